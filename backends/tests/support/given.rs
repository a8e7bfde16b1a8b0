//! Inputs, layers and their results, for tests of layers on any device.
#![allow(dead_code)] // each test uses some of it

pub(crate) mod cases;

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use interlock::{
    Activation, Differentiable, Key, ParameterStore, Pass, Precision, Result, StageDevice, Wants, tools::device::run_on,
};
use rand::Rng;

pub(crate) type Build<'a> = &'a (dyn Fn(VarBuilder<'static>) -> Result<Box<dyn Differentiable>> + Sync);

/// Returns numbers in `-1 … 1` that depend on `name` and `count` only.
pub(crate) fn numbers(name: &str, count: usize) -> Vec<f32> {
    let mut stream = Key::new(1).named(name).stream();
    (0..count).map(|_| (f64::from(stream.next_u32()) / 2_147_483_648.0 - 1.0) as f32).collect()
}

pub(crate) fn random(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_vec(numbers(name, dims.iter().product()), dims, &Device::Cpu).expect("a tensor")
}

/// Returns distinct values in a shuffled order, at least 1/8 from each other and 1/16 from zero, so that no step of a finite difference crosses
/// a kink.
pub(crate) fn distinct(name: &str, dims: &[usize]) -> Tensor {
    let count: usize = dims.iter().product();
    let mut order: Vec<(f32, usize)> = numbers(name, count).into_iter().zip(0..).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let values = order.into_iter().map(|(_, i)| (i as f32 - (count / 2) as f32 + 0.5) / 8.0).collect::<Vec<_>>();
    Tensor::from_vec(values, dims, &Device::Cpu).expect("a tensor")
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("the values of a tensor")
}

pub(crate) fn tokens(dims: &[usize], vocab: u32) -> Tensor {
    let count: usize = dims.iter().product();
    let tokens: Vec<u32> = (0..count as u32).map(|i| i * i * 7 % vocab).collect();
    Tensor::from_vec(tokens, dims, &Device::Cpu).expect("a tensor")
}

pub(crate) fn store() -> ParameterStore {
    ParameterStore::new(11, Arc::default())
}

/// The results of a layer by name: the output, gradients, running statistics, and then the output in evaluation.
#[derive(Clone)]
pub(crate) struct Given(pub(crate) BTreeMap<String, Tensor>);

/// Returns the results of a layer on `device`, as tensors on the CPU.
pub(crate) fn given(
    device: &dyn StageDevice,
    x: &Tensor,
    c: Option<&Tensor>,
    precision: Precision,
    build: Build<'_>,
) -> Given {
    run_on(device, || {
        let store = store();
        let layer = build(store.builder(device.device())).expect("a layer");
        let here = |x: &Tensor| device.bring(x).expect("a tensor on the device");
        let x = Activation::from(here(x));
        let pass = Pass { precision, ..Pass::train(7, 3, 1) };
        let (y, saved) = layer.forward(&x, &pass).expect("a forward pass");
        let y = y.single().expect("one tensor").clone();
        let c = here(&c.cloned().unwrap_or_else(|| random("output_gradient", y.dims())));
        let float = x.single().expect("one tensor").dtype() != DType::U32;
        let wants = Wants { input: float, parameters: true };
        let gradients = layer.backward(&saved, &c.into(), wants).expect("a backward pass");
        let mut all = BTreeMap::from([("output".to_owned(), y)]);
        all.extend(gradients.input.map(|dx| ("input gradient".to_owned(), dx.single().expect("one tensor").clone())));
        for (id, gradient) in gradients.parameters {
            let name = &store.entries()[store.position(id).expect("a known tensor")].name;
            all.insert(format!("gradient of {name}"), gradient);
        }
        for entry in store.entries().iter().filter(|entry| entry.name.contains("running")) {
            all.insert(entry.name.clone(), entry.var.as_detached_tensor().copy().expect("a copy"));
        }
        let eval = Pass { precision, ..Pass::eval() };
        let (y, _) = layer.forward(&x, &eval).expect("a forward pass");
        all.insert("evaluated".to_owned(), y.single().expect("one tensor").clone());
        Given(
            all.into_iter().map(|(name, t)| (name, t.to_device(&Device::Cpu).expect("a tensor of the CPU"))).collect(),
        )
    })
}

pub(crate) fn wide(x: &Tensor) -> Tensor {
    x.to_dtype(DType::F32).expect("a cast")
}

/// Returns the norm of the difference over that of `wanted`, or over 1 if that is less.
pub(crate) fn error(got: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(got.dims(), wanted.dims());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let (got, wanted) = (values(&wide(got)), values(&wide(wanted)));
    let difference = norm(&mut got.iter().zip(&wanted).map(|(&g, &w)| f64::from(g) - f64::from(w)));
    difference / norm(&mut wanted.iter().map(|&w| f64::from(w))).max(1.0)
}
