//! Tests that parameters after 50 steps are equal to the bit with plain calls and with actors, with any number of micro-batches in flight, with any
//! number of threads of a device, and with recomputed forward passes.
//!
//! Larger models, whose work is divided into many pieces, are trained for two steps: those of `interlock bench step` with fewer blocks and smaller
//! inputs.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Tensor};
use interlock::{
    Adaptive, Batch, ClipConfig, ClipScope, Dataset, HeadsConfig, HeadsTrained, Interlock, Key, ModelSpec,
    OptimizerConfig, OptimizerKind, Precision, Recompute, Result, StageDevice, Trainer, TrainerBuilder,
    tools::plain::PlainPipeline,
};
use interlock_backends::Backends;
use interlock_models::{
    Mlp, ResNet, Transformer,
    resnet::{BlockKind, StemKind},
};
use rand::RngExt;

const STEPS: u64 = 50;

/// A data set that always returns the same batch of random examples, so that plain calls need not shuffle them.
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

fn images(count: usize, side: usize) -> OneBatch {
    let mut stream = Key::new(9).named("images").stream();
    let pixels: Vec<f32> = (0..count * 3 * side * side).map(|_| stream.random::<f32>() - 0.5).collect();
    let inputs = Tensor::from_vec(pixels, (count, 3, side, side), &Device::Cpu).unwrap();
    let targets = Tensor::from_vec((0..count as u32).map(|i| i % 10).collect(), count, &Device::Cpu).unwrap();
    OneBatch(Batch { inputs: inputs.into(), targets })
}

fn tokens(count: usize, length: usize, vocab: u32) -> OneBatch {
    let mut stream = Key::new(9).named("tokens").stream();
    let mut draw = || {
        let tokens: Vec<u32> = (0..count * length).map(|_| stream.random_range(0..vocab)).collect();
        Tensor::from_vec(tokens, (count, length), &Device::Cpu).unwrap()
    };
    OneBatch(Batch { inputs: draw().into(), targets: draw() })
}

fn resnet() -> Arc<dyn ModelSpec> {
    Arc::new(ResNet {
        block: BlockKind::Basic,
        stem: StemKind::Cifar,
        stem_planes: 4,
        planes: vec![4, 8, 8],
        blocks: vec![1, 1, 1],
        classes: 10,
        channels: 3,
        height: 12,
        width: 12,
    })
}

fn transformer() -> Arc<dyn ModelSpec> {
    Arc::new(Transformer {
        vocab: 17,
        context: 10,
        sequence: 10,
        width: 16,
        heads: 2,
        layers: 3,
        dropout: 0.2,
        tied: false,
    })
}

fn devices(names: &[&str]) -> Vec<Arc<dyn StageDevice>> {
    devices_in(Precision::F32, names)
}

fn devices_in(precision: Precision, names: &[&str]) -> Vec<Arc<dyn StageDevice>> {
    names.iter().map(|name| Backends::default().precision(precision).open(name).unwrap()).collect()
}

fn bits(tensors: interlock::Weights) -> BTreeMap<String, Vec<u32>> {
    let bits = |t: Tensor| -> Vec<u32> {
        let values = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.iter().map(|v| v.to_bits()).collect()
    };
    tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
}

fn check(data: &OneBatch, micro_batches: usize, make: impl Fn() -> TrainerBuilder) {
    for precision in [Precision::F32, Precision::Bf16] {
        check_in(precision, data, micro_batches, &make);
    }
}

fn check_in(precision: Precision, data: &OneBatch, micro_batches: usize, make: impl Fn() -> TrainerBuilder) {
    let make = |names: &[&str]| {
        let builder = make().stages(4).probes().seed(7).micro_batches(micro_batches).batch_size(data.len());
        builder.steps(STEPS).devices(devices_in(precision, names))
    };
    let layout = make(&["cpu:threads=1"]).layout().unwrap();
    let mut plain = PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings).unwrap();
    for _ in 0..STEPS {
        plain.train_step(&data.0, micro_batches).unwrap();
    }
    let expected = bits(plain.snapshot().unwrap());
    for in_flight in [1, 2, 8] {
        for names in [&["cpu:threads=1"][..], &["cpu:threads=2"]] {
            let mut trainer = make(names).in_flight(in_flight).build().unwrap();
            trainer.fit(data.clone()).unwrap();
            let found = bits(trainer.snapshot().unwrap());
            assert!(found == expected, "{precision}, M = {micro_batches}, in flight {in_flight}, devices {names:?}");
            assert_eq!(trainer.plans(), plain.plans().schedule());
        }
    }
}

#[test]
fn resnet_in_four_stages() {
    for micro_batches in [1, 4] {
        check(&images(10, 12), micro_batches, || {
            let optimizer = OptimizerConfig { lr: 0.05, weight_decay: 1e-4, ..OptimizerConfig::default() };
            Trainer::builder(resnet()).strategy(Interlock::width(2)).optimizer(optimizer)
        });
    }
}

#[test]
fn resnet_with_adaptive_widths() {
    let rule = Adaptive { every: 4, window: 2, below: 0.5, width: 1, max_width: None };
    let data = images(10, 12);
    let make = || {
        let optimizer = OptimizerConfig { lr: 0.05, weight_decay: 1e-4, ..OptimizerConfig::default() };
        Trainer::builder(resnet()).strategy(rule.clone()).optimizer(optimizer)
    };
    check(&data, 4, make);
    let mut trainer = make().stages(4).seed(7).micro_batches(4).batch_size(10).steps(STEPS).build().unwrap();
    trainer.fit(data).unwrap();
    let phases = trainer.plans().phases().len();
    assert!(phases > 1, "no stage was widened, so the test compares nothing");
}

#[test]
fn transformer_with_dropout_and_global_clipping() {
    for micro_batches in [1, 4] {
        check(&tokens(10, 10, 17), micro_batches, || {
            let optimizer = OptimizerConfig { kind: OptimizerKind::Adamw, lr: 1e-3, ..OptimizerConfig::default() };
            let clip = ClipConfig { max_norm: 0.5, scope: ClipScope::Global };
            Trainer::builder(transformer()).strategy(Interlock::width(3)).optimizer(optimizer).clip(clip)
        });
    }
}

#[test]
fn blocks_in_heads() {
    let heads = |arch: &str| HeadsConfig { arch: Some(arch.to_owned()), ..HeadsConfig::default() };
    check(&images(10, 12), 4, || {
        let optimizer = OptimizerConfig { lr: 0.05, ..OptimizerConfig::default() };
        Trainer::builder(resnet()).strategy(Interlock::width(2)).optimizer(optimizer).heads(heads("basic8s2_gbpl_fc"))
    });
    check(&tokens(10, 10, 17), 4, || {
        let optimizer = OptimizerConfig { kind: OptimizerKind::Adamw, lr: 1e-3, ..OptimizerConfig::default() };
        Trainer::builder(transformer()).strategy(Interlock::width(2)).optimizer(optimizer).heads(heads("block_ln_fc"))
    });
}

/// Trains with actors, with and without recomputation.
fn check_recomputed(data: &OneBatch, model: fn() -> Arc<dyn ModelSpec>, optimizer: &OptimizerConfig) {
    for (width, micro_batches) in [(1, 4), (2, 1), (3, 1), (3, 4), (4, 4)] {
        let train = |recompute: Recompute| {
            let builder = Trainer::builder(model()).strategy(Interlock::width(width)).optimizer(optimizer.clone());
            let builder = builder.stages(4).probes().seed(7).micro_batches(micro_batches).batch_size(data.len());
            let mut trainer =
                builder.steps(20).devices(devices(&["cpu:threads=1"])).recompute(recompute).build().unwrap();
            trainer.fit(data.clone()).unwrap();
            bits(trainer.snapshot().unwrap())
        };
        let kept = train(Recompute::None);
        for recompute in [Recompute::All, Recompute::Stages(vec![1, 2])] {
            assert!(train(recompute.clone()) == kept, "width {width}, M = {micro_batches}, {recompute:?}");
        }
    }
}

#[test]
fn many_stages_share_a_device_of_few_threads() {
    let data = images(12, 12);
    let make = || {
        let dims = [&[3 * 12 * 12][..], &[16; 47], &[10]].concat();
        let model = Mlp { flatten: true, ..Mlp::new(dims) };
        Trainer::builder(model)
            .strategy(Interlock::width(3))
            .stages(48)
            .seed(7)
            .batch_size(12)
            .micro_batches(2)
            .steps(3)
    };
    let layout = make().devices(devices(&["cpu:threads=1"])).layout().unwrap();
    let mut plain = PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings).unwrap();
    for _ in 0..3 {
        plain.train_step(&data.0, 2).unwrap();
    }
    let mut trainer = make().devices(devices(&["cpu:threads=2"])).build().unwrap();
    trainer.fit(data).unwrap();
    assert!(bits(trainer.snapshot().unwrap()) == bits(plain.snapshot().unwrap()));
}

#[test]
fn recomputed_forward_passes_are_equal() {
    let sgd = OptimizerConfig { lr: 0.05, weight_decay: 1e-4, ..OptimizerConfig::default() };
    check_recomputed(&images(10, 12), resnet, &sgd);
    let adamw = OptimizerConfig { kind: OptimizerKind::Adamw, lr: 1e-3, ..OptimizerConfig::default() };
    check_recomputed(&tokens(10, 10, 17), transformer, &adamw);
}

/// Trains two stages for two steps on devices of 1, 2 and 3 threads.
fn check_threads(data: &OneBatch, model: &Arc<dyn ModelSpec>, head: &str, optimizer: &OptimizerConfig) {
    for (width, micro_batches) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let train = |device: &str| {
            let heads = HeadsConfig { arch: Some(head.to_owned()), train: HeadsTrained::All, ..HeadsConfig::default() };
            let builder = Trainer::builder(Arc::clone(model)).strategy(Interlock::width(width)).heads(heads);
            let builder = builder.optimizer(optimizer.clone()).stages(2).seed(7).micro_batches(micro_batches);
            // Clipping uses the norms, so their bits affect the parameters.
            let clip = ClipConfig { max_norm: 0.5, scope: ClipScope::Stage };
            let builder = builder.clip(clip).batch_size(data.len()).steps(2).devices(devices(&[device]));
            let mut trainer = builder.build().unwrap();
            trainer.fit(data.clone()).unwrap();
            bits(trainer.snapshot().unwrap())
        };
        let expected = train("cpu:threads=1");
        for device in ["cpu:threads=2", "cpu:threads=3"] {
            assert!(train(device) == expected, "width {width}, M = {micro_batches}, {device}");
        }
    }
}

/// Returns the stochastic gradient sgd of `interlock bench step`.
fn sgd() -> OptimizerConfig {
    OptimizerConfig { lr: 0.1, momentum: 0.9, weight_decay: 2e-4, ..OptimizerConfig::default() }
}

#[test]
fn resnet_for_cifar_on_any_number_of_threads() {
    let model: Arc<dyn ModelSpec> = Arc::new(ResNet {
        stem_planes: 16,
        planes: vec![16, 32, 64],
        height: 32,
        width: 32,
        blocks: vec![1, 1, 1],
        block: BlockKind::Basic,
        stem: StemKind::Cifar,
        classes: 10,
        channels: 3,
    });
    check_threads(&images(34, 32), &model, "conv16_bn_gbpl_fc", &sgd());
}

#[test]
fn resnet_for_imagenet_on_any_number_of_threads() {
    let model: Arc<dyn ModelSpec> = Arc::new(ResNet {
        stem_planes: 64,
        planes: vec![64, 128, 256, 512],
        height: 32,
        width: 32,
        blocks: vec![1, 1, 1, 1],
        block: BlockKind::Basic,
        stem: StemKind::Imagenet,
        classes: 10,
        channels: 3,
    });
    check_threads(&images(10, 32), &model, "gbpl_fc", &sgd());
}

#[test]
fn gpt_on_any_number_of_threads() {
    let model: Arc<dyn ModelSpec> = Arc::new(Transformer {
        vocab: 256,
        context: 128,
        sequence: 128,
        width: 256,
        heads: 8,
        layers: 2,
        dropout: 0.1,
        tied: false,
    });
    let adamw = OptimizerConfig {
        kind: OptimizerKind::Adamw,
        lr: 3e-4,
        betas: [0.9, 0.95],
        weight_decay: 0.1,
        ..OptimizerConfig::default()
    };
    check_threads(&tokens(3, 128, 256), &model, "ln_fc", &adamw);
}
