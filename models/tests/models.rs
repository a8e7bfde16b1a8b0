//! Tests of presets, shapes, names, costs and gradients of the models.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use interlock::{Differentiable, ModelSpec, ParameterStore, Pass, Sequential, Unit, Wants};
use interlock_models::{Mlp, ResNet, Transformer, resnet, transformer};

/// Records the names and shapes of requested tensors, and returns tensors that take no memory.
#[derive(Clone, Default)]
struct ShapeRecorder(Arc<Mutex<BTreeMap<String, Vec<usize>>>>);

impl SimpleBackend for ShapeRecorder {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.0.lock().unwrap().insert(name.to_owned(), s.dims().to_vec());
        Tensor::zeros((), dtype, device)?.broadcast_as(s)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt())
    }

    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}

/// Returns the shapes of a model's parameters and buffers, by name.
fn shapes(model: &dyn ModelSpec) -> BTreeMap<String, Vec<usize>> {
    let recorder = ShapeRecorder::default();
    let root = VarBuilder::from_backend(Box::new(recorder.clone()), DType::F32, Device::Cpu);
    for unit in model.units().unwrap() {
        unit.build(&root).unwrap();
    }
    drop(root);
    recorder.0.lock().unwrap().clone()
}

fn count(model: &dyn ModelSpec) -> usize {
    let shapes = shapes(model);
    shapes.iter().filter(|(n, _)| !n.contains("running_")).map(|(_, s)| s.iter().product::<usize>()).sum()
}

fn giga(model: &dyn ModelSpec) -> f64 {
    model.units().unwrap().iter().map(|u| u.flops).sum::<f64>() / 1e9
}

fn near(value: f64, expected: f64) -> bool {
    (value / expected - 1.0).abs() < 0.03
}

fn imagenet(name: &str) -> ResNet {
    ResNet::preset(name, [3, 224, 224], 1000).unwrap()
}

fn cifar(name: &str) -> ResNet {
    ResNet::preset(name, [3, 32, 32], 10).unwrap()
}

fn gpt2(name: &str) -> Transformer {
    Transformer { tied: true, ..Transformer::preset(name, 50_257, 1024).unwrap() }
}

#[test]
fn presets_have_the_published_numbers_of_parameters() {
    for (name, parameters) in [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ] {
        assert_eq!(count(&imagenet(name)), parameters, "{name}");
    }
    for (name, parameters) in
        [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)]
    {
        assert_eq!(count(&gpt2(name)), parameters, "{name}");
    }
    let untied = Transformer { tied: false, ..gpt2("gpt2") };
    assert_eq!(count(&untied), 124_439_808 + 50_257 * 768);
    // Three groups of convolutions, their norms, two projections, the classifier.
    let convolutions = 16 * 9 * (3 + 6 * 16) + 32 * 9 * (16 + 5 * 32) + 64 * 9 * (32 + 5 * 64);
    let norms = 2 * (7 * 16 + 6 * 32 + 6 * 64);
    let projections = 32 * 16 + 64 * 32 + 2 * (32 + 64);
    assert_eq!(count(&cifar("resnet20")), convolutions + norms + projections + 650);
    assert_eq!(count(&Mlp::new([12, 16, 5])), 13 * 16 + 17 * 5);
}

#[test]
fn presets_are_found_by_name_and_unknown_ones_are_refused() {
    for preset in resnet::PRESETS {
        let units = imagenet(preset.name).units().unwrap();
        assert_eq!(units.len(), preset.blocks.iter().sum::<usize>() + 2, "{}", preset.name);
        let convolutions = if preset.block == resnet::BlockKind::Basic { 2 } else { 3 };
        let depth: usize = preset.name.trim_start_matches("resnet").parse().unwrap();
        assert_eq!(preset.blocks.iter().sum::<usize>() * convolutions + 2, depth);
    }
    for preset in transformer::PRESETS {
        let units = Transformer::preset(preset.name, 100, 32).unwrap().units().unwrap();
        assert_eq!(units.len(), preset.layers + 2, "{}", preset.name);
    }
    let text = ResNet::preset("resnet19", [3, 32, 32], 10).unwrap_err().to_string();
    assert!(text.contains("resnet19") && text.contains("resnet18, resnet34"), "{text}");
}

#[test]
fn names_are_those_of_torchvision_and_nanogpt() {
    let names: BTreeSet<String> = shapes(&imagenet("resnet18")).into_keys().collect();
    assert_eq!(names.len(), 102);
    for name in ["conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias"] {
        assert!(names.contains(name), "{name}");
    }
    assert!(!names.iter().any(|n| n.starts_with("layer1.0.downsample")));
    assert!(shapes(&imagenet("resnet50")).contains_key("layer1.0.downsample.0.weight"));

    let gpt = shapes(&gpt2("gpt2"));
    assert_eq!(gpt.len(), 12 * 12 + 4);
    assert_eq!(gpt["transformer.h.11.attn.c_attn.weight"], [3 * 768, 768]);
    assert_eq!(gpt["transformer.h.0.mlp.c_proj.weight"], [768, 4 * 768]);
    assert!(!gpt.contains_key("lm_head.weight"));
}

#[test]
fn output_shapes_follow_the_strides() {
    let outputs =
        |model: &dyn ModelSpec| -> Vec<Vec<usize>> { model.units().unwrap().into_iter().map(|u| u.output).collect() };
    let all = outputs(&imagenet("resnet50"));
    assert_eq!(all[0], [64, 56, 56]);
    assert_eq!(all[3], [256, 56, 56]);
    assert_eq!(all[4], [512, 28, 28]);
    assert_eq!(all[16], [2048, 7, 7]);
    assert_eq!(all[17], [1000]);
    // Odd sizes round up at every stride.
    let odd = ResNet { height: 33, width: 17, ..cifar("resnet20") };
    assert_eq!(outputs(&odd)[9], [64, 9, 5]);
}

#[test]
fn outputs_of_odd_images_have_the_given_shapes() {
    for name in ["resnet20", "resnet18", "resnet50"] {
        let model = ResNet { blocks: vec![1, 1], planes: vec![4, 6], stem_planes: 4, ..cifar(name) };
        let model = ResNet { height: 19, width: 13, ..model };
        let (_, units, _) = built(&model);
        let mut x = candle_core::Tensor::zeros((2, 3, 19, 13), DType::F32, &Device::Cpu).unwrap().into();
        for (unit, stated) in units.iter().zip(model.units().unwrap()) {
            x = unit.forward(&x, &Pass::eval()).unwrap().0;
            assert_eq!(x.single().unwrap().dims()[1..], stated.output, "{name}");
        }
    }
}

#[test]
fn flops_are_the_published_ones() {
    // Published numbers of multiply-accumulates, in billions, with two operations each.
    for (name, macs) in [("resnet18", 1.814), ("resnet34", 3.664), ("resnet50", 4.089), ("resnet152", 11.514)] {
        assert!(near(giga(&imagenet(name)), 2.0 * macs), "{name}: {}", giga(&imagenet(name)));
    }
    // Two operations for every token and weight, except the position embedding's, and causal attention.
    let weights = (124_439_808 - 1024 * 768) as f64 * 1024.0 * 2.0;
    let attention = 12.0 * 1024.0 * 1025.0 / 2.0 * 4.0 * 768.0;
    assert!(near(giga(&gpt2("gpt2")), (weights + attention) / 1e9), "{}", giga(&gpt2("gpt2")));
    assert!(imagenet("resnet50").units().unwrap().iter().all(|u| u.flops > 0.0));
}

#[test]
fn default_heads_fit_after_every_unit_but_the_last() {
    let models: [Box<dyn ModelSpec>; 5] = [
        Box::new(Mlp::new([12, 16, 16, 5])),
        Box::new(cifar("resnet20")),
        Box::new(imagenet("resnet50")),
        Box::new(Transformer::preset("gpt-nano", 65, 32).unwrap()),
        Box::new(Mlp { dims: vec![3072, 16, 5], flatten: true }),
    ];
    for model in models {
        let units = model.units().unwrap();
        let outputs = &units[units.len() - 1].output;
        for unit in 0..units.len() - 1 {
            let head: Unit = model.head(unit, model.default_head()).unwrap();
            assert_eq!(&head.output, outputs);
            assert!(head.name.is_empty() && head.flops > 0.0);
        }
        assert!(model.head(units.len(), model.default_head()).is_err());
    }
}

/// Builds a model. Returns its store, its units, and the names of its parameters.
fn built(model: &dyn ModelSpec) -> (ParameterStore, Vec<Box<dyn Differentiable>>, Vec<String>) {
    let store = ParameterStore::new(7, Arc::default());
    let root = store.builder(&Device::Cpu);
    let units = model.units().unwrap().iter().map(|u| u.build(&root).unwrap()).collect();
    let names = store.parameters().into_iter().map(|e| e.name).collect();
    (store, units, names)
}

fn tokens(batch: usize, length: usize, vocab: u32) -> Tensor {
    let values: Vec<u32> = (0..(batch * length) as u32).map(|i| (i * 7 + 3) % vocab).collect();
    Tensor::from_vec(values, (batch, length), &Device::Cpu).unwrap()
}

/// Returns the sum of each parameter's gradients, for an output gradient that varies over the output.
fn gradients(store: &ParameterStore, units: Vec<Box<dyn Differentiable>>, x: Tensor) -> HashMap<String, Tensor> {
    let model = Sequential::new(units);
    let (y, saved) = model.forward(&x.into(), &Pass::train(1, 0, 0)).unwrap();
    let y = y.single().unwrap();
    let values: Vec<f32> = (0..y.elem_count()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let output_gradient = Tensor::from_vec(values, y.shape(), &Device::Cpu).unwrap();
    let mut sums: HashMap<String, Tensor> = HashMap::new();
    for (id, gradient) in model.backward(&saved, &output_gradient.into(), Wants::PARAMETERS).unwrap().parameters {
        let entry = &store.entries()[store.position(id).unwrap()];
        assert_eq!(entry.var.dims(), gradient.dims(), "{}", entry.name);
        let sum = match sums.get(&entry.name) {
            Some(before) => (before + &gradient).unwrap(),
            None => gradient,
        };
        sums.insert(entry.name.clone(), sum);
    }
    sums
}

fn largest(tensor: &Tensor) -> f32 {
    tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn every_parameter_receives_a_gradient() {
    let gpt = Transformer { dropout: 0.1, ..Transformer::preset("gpt-nano", 11, 8).unwrap() };
    let images = || {
        let values: Vec<f32> = (0..2 * 3 * 24 * 24).map(|i| (i * 13 % 29) as f32 / 14.5 - 1.0).collect();
        Tensor::from_vec(values, (2, 3, 24, 24), &Device::Cpu).unwrap()
    };
    let small = |name: &str| {
        let of = imagenet(name);
        ResNet { planes: vec![4, 8], stem_planes: 4, blocks: vec![2, 1], height: 24, width: 24, classes: 7, ..of }
    };
    let models: [(Box<dyn ModelSpec>, Tensor); 5] = [
        (Box::new(gpt.clone()), tokens(2, 8, 11)),
        (Box::new(Transformer { tied: true, ..gpt }), tokens(2, 8, 11)),
        (Box::new(small("resnet18")), images()),
        (Box::new(small("resnet50")), images()),
        (Box::new(Mlp { dims: vec![3 * 24 * 24, 16, 5], flatten: true }), images()),
    ];
    for (model, x) in models {
        let (store, units, names) = built(&*model);
        let gradients = gradients(&store, units, x);
        assert_eq!(gradients.len(), names.len());
        for name in names {
            let gradient = largest(&gradients[&name]);
            assert!(gradient > 0.0 && gradient.is_finite(), "{name}: {gradient}");
        }
    }
}

#[test]
fn tied_weight_receives_the_gradients_of_both_uses() {
    let untied = Transformer::preset("gpt-nano", 11, 8).unwrap();
    let tied = Transformer { tied: true, ..untied.clone() };
    assert_eq!(tied.units().unwrap().last().unwrap().tied_to, Some(0));
    assert_eq!(untied.units().unwrap().last().unwrap().tied_to, None);

    let (tied_store, units, _) = built(&tied);
    let sums = gradients(&tied_store, units, tokens(2, 8, 11));
    let (store, units, _) = built(&untied);
    let wte = "transformer.wte.weight".to_owned();
    let value = tied_store.snapshot().unwrap().into_iter().find(|(n, _)| *n == wte).unwrap().1;
    for entry in store.entries().iter().filter(|e| e.name == wte || e.name == "lm_head.weight") {
        entry.var.set(&value).unwrap();
    }
    let parts = gradients(&store, units, tokens(2, 8, 11));
    let both = (&parts[&wte] + &parts["lm_head.weight"]).unwrap();
    assert!(largest(&parts[&wte]) > 0.0 && largest(&parts["lm_head.weight"]) > 0.0);
    assert!(largest(&(&both - &sums[&wte]).unwrap()) <= 1e-5 * largest(&both));
}

#[test]
fn initial_values_are_as_documented() {
    let deviation = |store: &ParameterStore, name: &str| {
        let values = store.snapshot().unwrap().into_iter().find(|(n, _)| n == name).unwrap().1;
        let values: Vec<f32> = values.flatten_all().unwrap().to_vec1().unwrap();
        (values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64).sqrt()
    };
    let (gpt, _, _) = built(&Transformer::preset("gpt-micro", 300, 32).unwrap());
    let projection = 0.02 / 8.0_f64.sqrt();
    for (name, expected) in [
        ("transformer.wte.weight", 0.02),
        ("transformer.wpe.weight", 0.02),
        ("transformer.h.0.attn.c_attn.weight", 0.02),
        ("transformer.h.1.attn.c_proj.weight", projection),
        ("transformer.h.2.mlp.c_fc.weight", 0.02),
        ("transformer.h.3.mlp.c_proj.weight", projection),
        ("lm_head.weight", 0.02),
    ] {
        let found = deviation(&gpt, name);
        assert!((found / expected - 1.0).abs() < 0.05, "{name}: {found}");
    }
    for name in ["transformer.h.0.attn.c_attn.bias", "transformer.h.0.mlp.c_proj.bias", "transformer.ln_f.bias"] {
        assert_eq!(deviation(&gpt, name), 0.0, "{name}");
    }
    assert_eq!(deviation(&gpt, "transformer.ln_f.weight"), 1.0);

    let (resnet, _, _) = built(&cifar("resnet20"));
    // Kaiming-normal over the fan-out: √(2 / (9 · 64)).
    let found = deviation(&resnet, "layer3.1.conv1.weight");
    assert!((found / (2.0 / 576.0_f64).sqrt() - 1.0).abs() < 0.05, "{found}");
    // PyTorch's linear layer: uniform within ±1/√64.
    let found = deviation(&resnet, "fc.weight");
    assert!((found / (1.0 / 192.0_f64).sqrt() - 1.0).abs() < 0.1, "{found}");
}

#[test]
fn bad_values_from_code_are_refused_too() {
    let text = |model: &dyn ModelSpec| model.units().unwrap_err().to_string();
    assert!(text(&Mlp::new([])).contains("makes no layer"));
    assert!(text(&ResNet { classes: 0, ..cifar("resnet20") }).contains("model.classes: it is 0"));
    assert!(text(&ResNet { planes: vec![], blocks: vec![], ..cifar("resnet20") }).contains("model.blocks"));
    let gpt = Transformer::preset("gpt-nano", 11, 8).unwrap();
    assert!(text(&Transformer { heads: 5, ..gpt.clone() }).contains("not divisible by the 5"));
    assert!(text(&Transformer { sequence: 9, ..gpt.clone() }).contains("positions for 8"));
    assert!(text(&Transformer { dropout: f64::NAN, ..gpt }).contains("model.dropout"));
}
