//! Tests of heads that continue as their network does: names, initial values, gradients, dropout and training.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "../../backends/tests/layers/contract.rs"]
#[allow(dead_code)] // some of it is for other tests
mod contract;
#[path = "../../backends/tests/support/given.rs"]
mod support;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use interlock::{
    Batch, Dataset, Differentiable, HeadsConfig, HeadsReadout, HeadsTrained, Interlock, Key, ModelSpec,
    OptimizerConfig, OptimizerKind, ParameterGroup, ParameterStore, Pass, Result, Sequential, Trainer, TrainerBuilder,
    Unit, Wants,
};
use interlock_backends::cpu;
use interlock_models::{
    ResNet, Transformer,
    resnet::{BlockKind, StemKind},
};
use support::{Build, random, store, tokens, values};

fn gpt() -> Transformer {
    Transformer { vocab: 11, context: 8, sequence: 5, width: 6, heads: 3, layers: 3, dropout: 0.0, tied: false }
}

fn resnet() -> ResNet {
    ResNet {
        block: BlockKind::Basic,
        stem: StemKind::Cifar,
        stem_planes: 4,
        planes: vec![4, 8],
        blocks: vec![1, 1],
        classes: 10,
        channels: 3,
        height: 9,
        width: 8,
    }
}

/// Returns the names and shapes of a unit's parameters and buffers below `prefix`.
fn shapes(unit: &Unit, prefix: &str) -> BTreeMap<String, Vec<usize>> {
    let store = store();
    unit.build(&store.builder(&Device::Cpu)).unwrap();
    let entries = store.entries();
    let below = entries.iter().filter_map(|e| Some((e.name.strip_prefix(prefix)?.to_owned(), e.var.dims().to_vec())));
    below.collect()
}

#[test]
fn blocks_of_heads_have_the_names_and_shapes_of_the_networks_blocks() {
    let head = gpt().head(0, "block_block_ln_fc").unwrap();
    let block = shapes(&gpt().units().unwrap()[2], "transformer.h.1.");
    assert_eq!(block.len(), 12);
    assert_eq!((shapes(&head, "0."), shapes(&head, "1.")), (block.clone(), block));
    assert_eq!(shapes(&head, "2."), BTreeMap::from([("bias".to_owned(), vec![6]), ("weight".to_owned(), vec![6])]));
    assert_eq!(shapes(&head, "3."), BTreeMap::from([("weight".to_owned(), vec![11, 6])]));

    // `layer2.0` has 8 channels and stride 2, as the first block here; the second needs no projection, as `layer1.0`.
    let head = resnet().head(1, "basic8s2_basic8_gbpl_fc").unwrap();
    let units = resnet().units().unwrap();
    assert_eq!(shapes(&head, "0."), shapes(&units[2], "layer2.0."));
    assert_eq!(shapes(&head, "0.")["downsample.0.weight"], [8, 4, 1, 1]);
    assert!(shapes(&head, "1.").into_keys().eq(shapes(&units[1], "layer1.0.").into_keys()));
    assert_eq!(shapes(&head, "4."), shapes(&units[3], "fc."));
}

#[test]
fn blocks_of_heads_start_as_the_networks_blocks() {
    let gpt = Transformer { width: 48, layers: 8, ..gpt() };
    let resnet = ResNet { planes: vec![4, 64], ..resnet() };
    for (head, unit, block) in [
        (gpt.head(0, "block_ln_fc").unwrap(), &gpt.units().unwrap()[1], "transformer.h.0."),
        (resnet.head(1, "basic64s2_gbpl_fc").unwrap(), &resnet.units().unwrap()[2], "layer2.0."),
    ] {
        let store = store();
        let root = store.builder(&Device::Cpu);
        unit.build(&root).unwrap();
        head.build(&root.pp("aux.0")).unwrap();
        let snapshot: BTreeMap<String, Tensor> = store.snapshot().unwrap().into_iter().collect();
        let deviation = |name: &str| {
            let values = values(&snapshot[name]);
            (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
        };
        for name in snapshot.keys().filter_map(|name| name.strip_prefix(block)) {
            let (own, networks) = (format!("aux.0.0.{name}"), format!("{block}{name}"));
            let (a, b) = (deviation(&own), deviation(&networks));
            assert!((a - b).abs() <= 0.15 * b, "{own}: {a}, {networks}: {b}");
            // Random values are drawn by name.
            let constant = values(&snapshot[&own]).windows(2).all(|w| w[0] == w[1]);
            assert!(constant || values(&snapshot[&own]) != values(&snapshot[&networks]), "{own}");
        }
    }
}

#[test]
fn groups_of_parameters_apply_to_blocks_of_heads_too() {
    let patterns = ["*.bias", "*.ln_?.*", "*bn?.*"].map(str::to_owned).to_vec();
    let groups = vec![ParameterGroup { patterns, lr_scale: None, weight_decay: Some(0.0), frozen: false }];
    let optimizer = OptimizerConfig { weight_decay: 0.1, groups, ..OptimizerConfig::default() };
    for (head, decayed) in [
        (gpt().head(0, "block_fc").unwrap(), ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"].as_slice()),
        (resnet().head(1, "basic8_gbpl_fc").unwrap(), &["conv1", "conv2", "downsample.0", "downsample.1"]),
    ] {
        let names = shapes(&head, "0.").into_keys().filter(|name| !name.contains("running_"));
        let found = names.filter(|name| optimizer.settings(&format!("aux.2.0.{name}")).unwrap().weight_decay > 0.0);
        assert!(found.eq(decayed.iter().map(|name| format!("{name}.weight"))), "{decayed:?}");
    }
}

/// Returns the builder of a head alone.
fn alone(head: Unit) -> impl Fn(candle_nn::VarBuilder<'static>) -> Result<Box<dyn Differentiable>> + Sync {
    move |vb| head.build(&vb)
}

#[test]
fn heads_with_transformer_blocks_keep_the_contract_of_layers() {
    for (arch, dropout) in [("block_ln_fc", 0.0), ("block_block_fc", 0.3), ("ln_block_ln_fc", 0.1)] {
        let head = Transformer { dropout, ..gpt() }.head(1, arch).unwrap();
        contract::check(&format!("{arch}, dropout {dropout}"), &random("x", &[2, 5, 6]), &alone(head));
    }
}

#[test]
fn heads_with_basic_blocks_keep_the_contract_of_layers() {
    for arch in ["basic6_gbpl_fc", "basic4_basic6s2_gbpl_fc", "basic6s3_conv4_bn_gbpl_ln_fc"] {
        let build = alone(resnet().head(1, arch).unwrap());
        let x = random("x", &[3, 4, 9, 8]);
        contract::check_bits(arch, &x, &build);
        contract::on(1, "kernels", || slopes(arch, &x, &build));
        contract::on(1, "candle", || slopes(arch, &x, &build));
    }
}

/// Compares the gradient of every parameter, and of the input, with the slope of `Σ r·y` along a random direction. A step is so small that few ReLUs
/// change sides.
fn slopes(name: &str, x: &Tensor, build: Build<'_>) {
    const STEP: f64 = 1.0 / 16384.0;
    let store = store();
    let head = build(store.builder(&Device::Cpu)).unwrap();
    let objective = |x: &Tensor| {
        let (y, _) = head.forward(&x.clone().into(), &contract::pass()).unwrap();
        let y = contract::one(&y);
        let r = values(&random("output_gradient", &[y.len()]));
        y.iter().zip(r).map(|(&y, r)| f64::from(y) * f64::from(r)).sum::<f64>()
    };
    let (y, saved) = head.forward(&x.clone().into(), &contract::pass()).unwrap();
    let r = random("output_gradient", y.single().unwrap().dims());
    let gradients = head.backward(&saved, &r.into(), Wants::BOTH).unwrap();
    let compare = |what: &str, gradient: &Tensor, slope: &dyn Fn(&Tensor) -> f64| {
        let direction = random(what, gradient.dims());
        let along = values(&(gradient * &direction).unwrap()).into_iter().map(f64::from).sum::<f64>();
        let numeric = slope(&(direction * STEP).unwrap()) / (2.0 * STEP);
        let largest = values(gradient).into_iter().map(f64::from).fold(0.0, |a: f64, b| a.max(b.abs()));
        assert!(
            (along - numeric).abs() <= 0.02 * (1.0 + largest),
            "{name}: {what}: {along}, but the slope is {numeric}"
        );
    };
    let input = gradients.input.unwrap();
    compare("input", input.single().unwrap(), &|step| {
        objective(&(x + step).unwrap()) - objective(&(x - step).unwrap())
    });
    let entries = store.entries();
    assert_eq!(gradients.parameters.len(), store.parameters().len(), "{name}");
    for (id, gradient) in gradients.parameters {
        let entry = &entries[store.position(id).unwrap()];
        let at = entry.var.as_detached_tensor().copy().unwrap();
        compare(&entry.name, &gradient, &|step| {
            let moved = |to: candle_core::Result<Tensor>| {
                entry.var.set(&to.unwrap()).unwrap();
                objective(x)
            };
            let difference = moved(&at + step) - moved(&at - step);
            entry.var.set(&at).unwrap();
            difference
        });
    }
}

/// Gives the parameters of the head at `aux.0` with a block and `ln_fc`, and those of a block of the network and of a head `ln_fc` at `aux.1`, the same
/// values: zeros to the projection `silent`, so that its branch adds nothing, and random ones to the rest. Returns the head, and the block followed by
/// the other head.
fn twins(gpt: &Transformer, silent: &str) -> (Box<dyn Differentiable>, Sequential) {
    let store: ParameterStore = store();
    let root = store.builder(&Device::Cpu);
    let head = gpt.head(0, "block_ln_fc").unwrap().build(&root.pp("aux.0")).unwrap();
    let block = gpt.units().unwrap()[1].build(&root).unwrap();
    let readout = gpt.head(1, "ln_fc").unwrap().build(&root.pp("aux.1")).unwrap();
    let entries = store.entries();
    for entry in entries.iter().filter(|e| e.name.starts_with("aux.0.")) {
        let name = entry.name.replace("aux.0.0.", "transformer.h.0.");
        let name = name.replace("aux.0.1.", "aux.1.0.").replace("aux.0.2.", "aux.1.1.");
        let twin = entries.iter().find(|e| e.name == name).unwrap();
        let mut value = random(&name, entry.var.dims());
        if !silent.is_empty() && name.contains(silent) {
            value = value.zeros_like().unwrap();
        }
        entry.var.set(&value).unwrap();
        twin.var.set(&value).unwrap();
    }
    (head, Sequential::new(vec![block, readout]))
}

fn output(layer: &dyn Differentiable, pass: &Pass) -> Vec<f32> {
    contract::one(&layer.forward(&random("x", &[2, 5, 6]).into(), pass).unwrap().0)
}

#[test]
fn block_of_a_head_computes_what_the_networks_block_computes() {
    let (head, chain) = twins(&gpt(), "");
    assert_eq!(output(&*head, &Pass::train(1, 0, 0)), output(&chain, &Pass::train(1, 0, 0)));
    assert_eq!(output(&*head, &Pass::eval()), output(&chain, &Pass::eval()));
}

#[test]
fn dropout_in_a_head_draws_its_own_masks() {
    let gpt = Transformer { dropout: 0.4, ..gpt() };
    let pass = Pass::train(1, 3, 1);
    // With one branch at a time, since a mask of one would hide that those of the other are equal.
    for silent in ["attn.c_proj", "mlp.c_proj"] {
        let (head, chain) = twins(&gpt, silent);
        assert_eq!(output(&*head, &Pass::eval()), output(&chain, &Pass::eval()));
        assert_ne!(output(&*head, &pass), output(&chain, &pass), "{silent} is silent");
        assert_eq!(output(&*head, &pass), output(&*twins(&gpt, silent).0, &pass));
        for other in [Pass::train(2, 3, 1), Pass::train(1, 4, 1), Pass::train(1, 3, 0)] {
            assert_ne!(output(&*head, &pass), output(&*head, &other), "{silent} is silent");
        }
    }
}

/// A data set that always returns the same batch.
#[derive(Clone)]
struct OneBatch(Batch);

impl Dataset for OneBatch {
    fn len(&self) -> usize {
        self.0.len().unwrap()
    }

    fn batch(&self, _: &[usize], _: Option<Key>) -> Result<Batch> {
        Ok(self.0.clone())
    }
}

/// Trains three stages, and checks that the losses of both heads and of the last stage fall well below those of a uniform guess.
fn learns(
    model: impl ModelSpec + Clone + 'static,
    arch: &str,
    data: &OneBatch,
    optimizer: &OptimizerConfig,
    uniform: f64,
) {
    for width in [1, 2] {
        let mut trainer = Trainer::builder(model.clone())
            .stages(3)
            .strategy(Interlock::width(width))
            .heads(HeadsConfig { arch: Some(arch.to_owned()), train: HeadsTrained::All, ..HeadsConfig::default() })
            .optimizer(optimizer.clone())
            .batch_size(data.len())
            .steps(60)
            .devices([cpu(0)])
            .build()
            .unwrap();
        let start = trainer.snapshot().unwrap();
        let report = trainer.fit(data.clone()).unwrap();
        for stage in &report.stages {
            let loss = stage.loss.unwrap();
            assert!(loss < 0.5 * uniform, "{arch}, width {width}, stage {}: {loss}", stage.index);
        }
        let end = trainer.snapshot().unwrap();
        for (name, value) in start.into_iter().filter(|(name, _)| name.starts_with("aux.")) {
            assert_ne!(values(&value), values(&end[&name]), "{name}");
        }
    }
}

#[test]
fn gpt_with_blocks_in_its_heads_learns() {
    let gpt = Transformer { dropout: 0.05, width: 12, ..gpt() };
    let adamw = OptimizerConfig { kind: OptimizerKind::Adamw, lr: 1e-2, ..OptimizerConfig::default() };
    let data = OneBatch(Batch { inputs: tokens(&[6, 5], 11).into(), targets: tokens(&[6, 5], 7) });
    learns(gpt, "block_ln_fc", &data, &adamw, 11_f64.ln());
}

#[test]
fn resnet_with_blocks_in_its_heads_learns() {
    let sgd = OptimizerConfig { lr: 0.1, momentum: 0.9, ..OptimizerConfig::default() };
    let targets = Tensor::from_vec((0..12).collect::<Vec<u32>>(), 12, &Device::Cpu).unwrap();
    let targets = (targets / 2.0).unwrap();
    let data = OneBatch(Batch { inputs: random("images", &[12, 3, 9, 8]).into(), targets });
    learns(resnet(), "basic16_gbpl_fc", &data, &sgd, 10_f64.ln());
}

#[test]
fn each_stage_has_the_head_that_its_description_says() {
    let archs = ["ln_fc", "", "block_ln_fc"].map(str::to_owned).to_vec();
    let data = OneBatch(Batch { inputs: tokens(&[6, 5], 11).into(), targets: tokens(&[6, 5], 7) });
    let mut trainer = Trainer::builder(gpt())
        .stages(4)
        .strategy(Interlock::width(2))
        .heads(HeadsConfig { archs: Some(archs), ..HeadsConfig::default() })
        .batch_size(data.len())
        .steps(3)
        .devices([cpu(0)])
        .build()
        .unwrap();
    let start = trainer.snapshot().unwrap();
    trainer.fit(data).unwrap();
    let end = trainer.snapshot().unwrap();
    let heads: Vec<String> = start
        .into_iter()
        .filter(|(name, _)| name.starts_with("aux."))
        .map(|(name, before)| {
            assert_ne!(values(&before), values(&end[&name]), "{name}");
            name
        })
        .collect();
    let below = |prefix: &str| heads.iter().filter(|name| name.starts_with(prefix)).count();
    // A layer norm and a linear layer without bias, behind a block at stage 2.
    assert_eq!((below("aux.0."), below("aux.1."), below("aux.2.")), (3, 0, 15));
    for name in ["aux.0.0.bias", "aux.0.1.weight", "aux.2.0.ln_1.weight", "aux.2.1.bias", "aux.2.2.weight"] {
        assert!(heads.iter().any(|head| head == name), "{name} is not among {heads:?}");
    }
    // Stage 0 follows its own loss, since stage 1, whose loss it would follow, has none.
    let follows: Vec<usize> = (0..4).map(|k| trainer.plans().at(0).farthest(k)).collect();
    assert_eq!(follows, [0, 2, 3, 3]);
}

#[test]
fn rest_of_the_network_is_the_same_bit_for_bit_with_probe_heads() {
    let data = OneBatch(Batch { inputs: random("x", &[6, 3, 9, 8]).into(), targets: tokens(&[6], 10) });
    let trained = |train: HeadsTrained, width: usize| {
        let model = ResNet { planes: vec![4, 8, 16], blocks: vec![2, 1, 1], ..resnet() };
        let mut trainer = Trainer::builder(model)
            .stages(4)
            .strategy(Interlock::width(width))
            .heads(HeadsConfig { train, ..HeadsConfig::default() })
            .batch_size(data.len())
            .steps(4)
            .devices([cpu(0)])
            .build()
            .unwrap();
        trainer.fit(data.clone()).unwrap();
        let heads = trainer.stages().iter().filter(|stage| stage.head_parameters > 0).count();
        let weights: BTreeMap<String, Vec<f32>> =
            trainer.snapshot().unwrap().into_iter().map(|(name, value)| (name, values(&value))).collect();
        (heads, trainer.partition().units_per_stage().to_vec(), weights)
    };
    for width in [2, 4] {
        let (needed, units, without) = trained(HeadsTrained::Needed, width);
        let (all, same, with) = trained(HeadsTrained::All, width);
        assert!(needed < all && all == 3, "{needed} {all}");
        assert_eq!(units, same, "width {width}");
        let rest = with.iter().filter(|(name, _)| !name.starts_with("aux.")).count();
        assert_eq!(rest, without.keys().filter(|name| !name.starts_with("aux.")).count());
        assert!(without.iter().all(|(name, value)| with[name] == *value), "width {width}");
    }
}

fn shared(arch: &str) -> HeadsConfig {
    HeadsConfig {
        arch: Some(arch.to_owned()),
        train: HeadsTrained::All,
        readout: HeadsReadout::Shared,
        readout_refresh: Some(5),
        ..HeadsConfig::default()
    }
}

#[test]
fn gpt_learns_with_heads_that_share_the_last_matrix() {
    let data = OneBatch(Batch { inputs: tokens(&[6, 5], 11).into(), targets: tokens(&[6, 5], 7) });
    for arch in ["ln_fc", "block_ln_fc"] {
        let optimizer = OptimizerConfig { kind: OptimizerKind::Adamw, lr: 1e-2, ..OptimizerConfig::default() };
        let mut trainer = Trainer::builder(Transformer { width: 12, ..gpt() })
            .stages(3)
            .strategy(Interlock::width(2))
            .heads(shared(arch))
            .optimizer(optimizer)
            .batch_size(data.len())
            .in_flight(2)
            .steps(59)
            .devices([cpu(0)])
            .build()
            .unwrap();
        // Of ln_fc only the norm is the head's own.
        let own = if arch == "ln_fc" { 24 } else { 24 + 12 * 12 * 12 + 13 * 12 };
        assert_eq!(trainer.stages()[0].head_parameters, own, "{arch}");
        trainer.fit(data.clone()).unwrap();
        let before_50 = trainer.snapshot().unwrap();
        for stage in trainer.evaluate(data.clone()).unwrap().heads() {
            assert!(stage.score.mean_loss() < 0.5 * 11_f64.ln(), "{arch}: {stage:?}");
        }
        let copy = if arch == "ln_fc" { "1.weight" } else { "2.weight" };
        let copies: Vec<_> = (0..2).map(|k| values(&before_50[&format!("aux.{k}.{copy}")])).collect();
        assert_eq!(copies[0], copies[1]);
        assert_ne!(copies[0], values(&before_50["lm_head.weight"]));
    }
}

/// The gradient of the weight is not computed, and everything else is as with a weight of the head's own that has the same values.
#[test]
fn gradients_through_a_read_only_weight_are_those_without_its_own() {
    let (x, c) = (random("x", &[2, 5, 6]), random("c", &[2, 5, 11]));
    let gradients = |variable: bool| {
        let store = store();
        let root = store.builder(&Device::Cpu);
        let vb = match variable {
            true => root,
            false => {
                let bound = 1.0 / 6_f64.sqrt();
                let init = candle_nn::Init::Uniform { lo: -bound, up: bound };
                let weight = root.get_with_hints((11, 6), "weight", init).unwrap();
                let weight = std::collections::HashMap::from([("weight".to_owned(), weight.detach())]);
                candle_nn::VarBuilder::from_tensors(weight, candle_core::DType::F32, &Device::Cpu)
            }
        };
        let layer = interlock_backends::layers::Linear::new(6, 11, false, vb).unwrap();
        let (_, saved) = layer.forward(&x.clone().into(), &Pass::train(0, 0, 0)).unwrap();
        let gradients = layer.backward(&saved, &c.clone().into(), Wants::BOTH).unwrap();
        (gradients.parameters.len(), values(gradients.input.unwrap().single().unwrap()))
    };
    let (with, without) = (gradients(true), gradients(false));
    assert_eq!((with.0, without.0), (1, 0));
    assert_eq!(with.1, without.1);
}

#[test]
fn models_and_heads_that_end_in_a_bias_share_nothing() {
    let refused = |model: TrainerBuilder, arch: &str| {
        let builder = model.stages(2).strategy(Interlock::width(1)).heads(shared(arch));
        builder.layout().err().unwrap().to_string()
    };
    let error = refused(Trainer::builder(resnet()), "conv8_bn_gbpl_ln_fc");
    assert!(error.starts_with("heads.readout: the last layer of the model has a bias, fc.bias; end model"), "{error}");
    let error = refused(Trainer::builder(gpt()), "fc");
    assert!(error.starts_with("heads.readout: the last layer of the head of stage 0 has a bias, 0.bias;"), "{error}");
}

#[test]
fn plans_count_two_versions_of_the_shared_matrix_and_nothing_else_of_it() {
    let batch = Batch { inputs: tokens(&[2, 5], 11).into(), targets: tokens(&[2, 5], 7) };
    let costs = |heads: HeadsConfig| {
        let optimizer = OptimizerConfig { kind: OptimizerKind::Adamw, ..OptimizerConfig::default() };
        let builder = Trainer::builder(Transformer { width: 12, ..gpt() }).stages(3).heads(heads).optimizer(optimizer);
        let profile = builder.profile(&batch, None).unwrap();
        let head = profile.devices[0].units[1].heads["ln_fc"].clone();
        [head.parameter_bytes, head.gradient_bytes, head.optimizer_bytes, head.readout_bytes]
    };
    let (norm, matrix) = (2 * 12 * 4, 11 * 12 * 4);
    assert_eq!(costs(HeadsConfig::default()), [norm + matrix, norm + matrix, 2 * (norm + matrix), 0]);
    assert_eq!(costs(shared("ln_fc")), [norm + 2 * matrix, norm, 2 * norm, matrix]);
}
