//! Layers of vectors, elementwise functions, and layer normalization.

use candle_core::{Device, Tensor};
use candle_nn::{Init, VarBuilder};
use interlock::{Differentiable, Pass, Result, Sequential, Wants};
use interlock_backends::layers::*;

use crate::{
    contract::{check, eval, one, same},
    support::{distinct, random, store, values},
};

#[test]
fn linear_keeps_the_contract() {
    for (dims, outputs, bias) in [
        (vec![1, 1], 1, true),
        (vec![3, 5], 7, true),
        (vec![2, 3, 5], 17, false),
        (vec![5], 2, true),
        (vec![700, 3], 70, true),
    ] {
        let inputs = dims[dims.len() - 1];
        let name = format!("linear {dims:?} to {outputs}");
        check(&name, &random("x", &dims), &|vb| Ok(Box::new(Linear::new(inputs, outputs, bias, vb)?)));
    }
}

#[test]
fn linear_multiplies_and_adds() {
    let store = store();
    let weight = Init::Const(2.0);
    let vb = store.builder(&Device::Cpu).pp("fc");
    let layer = Linear::with_init(3, 2, weight, Some(Init::Const(0.5)), vb).expect("a linear layer");
    let x = Tensor::new(&[[1_f32, 2., 3.]], &Device::Cpu).expect("a tensor");
    assert_eq!(eval(&layer, &x), [12.5, 12.5]);
    let names: Vec<String> = store.entries().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["fc.weight", "fc.bias"]);
    let error = layer.forward(&random("x", &[3, 2]).into(), &Pass::eval()).err().expect("a refusal");
    assert_eq!(error.to_string(), "linear fc: input of shape [3, 2]; it takes (…, 3)");
    let error = layer.forward(&random("x", &[0, 3]).into(), &Pass::eval()).err().expect("a refusal");
    assert_eq!(error.to_string(), "linear fc: input of shape [0, 3]; it takes at least one element");
}

#[test]
fn updated_weight_is_used_at_once() {
    let store = store();
    let layer = Linear::new(2, 1, false, store.builder(&Device::Cpu)).expect("a linear layer");
    let x = Tensor::new(&[[1_f32, 10.]], &Device::Cpu).expect("a tensor");
    store.entries()[0].var.set(&Tensor::new(&[[3_f32, 4.]], &Device::Cpu).expect("a tensor")).expect("an update");
    assert_eq!(eval(&layer, &x), [43.0]);
}

#[test]
fn elementwise_functions_keep_the_contract() {
    let x = distinct("x", &[3, 5, 7]);
    check("relu", &x, &|_| Ok(Box::new(Relu)));
    let x = random("x", &[3, 5, 7]);
    check("gelu", &(x * 3.0).expect("a tensor"), &|_| Ok(Box::new(Gelu)));
}

#[test]
fn gelu_equals_its_definition() {
    let x: Vec<f32> = (-60..60).map(|i| i as f32 / 8.0).collect();
    let got = eval(&Gelu, &Tensor::new(x.as_slice(), &Device::Cpu).expect("a tensor"));
    for (x, got) in x.into_iter().zip(got) {
        let x = f64::from(x);
        let wanted = 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
        assert!((f64::from(got) - wanted).abs() < 1e-6 * x.abs().max(1.0), "gelu({x}) is {got}, not {wanted}");
    }
}

#[test]
fn layer_norm_keeps_the_contract() {
    for dims in [vec![1, 3], vec![4, 17], vec![2, 3, 5], vec![300, 2, 70]] {
        let width = dims[dims.len() - 1];
        let name = format!("layer norm {dims:?}");
        check(&name, &random("x", &dims), &|vb| Ok(Box::new(LayerNorm::new(width, vb)?)));
    }
}

#[test]
fn layer_norm_returns_rows_of_mean_0_and_variance_1() {
    let layer = LayerNorm::new(4, store().builder(&Device::Cpu)).expect("a layer norm");
    let x = Tensor::new(&[[1_f32, 2., 3., 6.], [500.0, 500.0, 504.0, 504.0]], &Device::Cpu).expect("a tensor");
    let y = eval(&layer, &x);
    let wanted = [-2.0, -1.0, 0.0, 3.0].map(|d: f32| d / 3.5_f32.sqrt());
    for (got, wanted) in y.iter().zip(wanted.iter().chain(&[-1.0, -1.0, 1.0, 1.0])) {
        assert!((got - wanted).abs() < 1e-5, "{y:?}");
    }
}

/// Builds a norm and a linear layer.
fn norm_and_linear(width: usize, vb: &VarBuilder<'static>) -> Result<(LayerNorm, Linear)> {
    Ok((LayerNorm::new(width, vb.pp("ln"))?, Linear::new(width, 33, true, vb.pp("fc"))?))
}

#[test]
fn fused_linear_layer_equals_the_two_layers_one_after_another() {
    for dims in [vec![1, 3], vec![2, 5, 7], vec![300, 40]] {
        let width = dims[dims.len() - 1];
        let x = random("x", &dims);
        let of_norm = |vb: VarBuilder<'static>| -> Result<Box<dyn Differentiable>> {
            let (norm, linear) = norm_and_linear(width, &vb)?;
            Ok(Box::new(FusedLinear::norm(norm, linear)))
        };
        same("linear of a norm", &x, &of_norm, &|vb| {
            let (norm, linear) = norm_and_linear(width, &vb)?;
            Ok(Box::new(Sequential::default().add(norm).add(linear)))
        });
        let of_gelu = |vb: VarBuilder<'static>| -> Result<Box<dyn Differentiable>> {
            Ok(Box::new(FusedLinear::gelu(Linear::new(width, 5, false, vb)?)))
        };
        same("linear of GELU", &x, &of_gelu, &|vb| {
            Ok(Box::new(Sequential::default().add(Gelu).add(Linear::new(width, 5, false, vb)?)))
        });
        check("linear of a norm", &x, &of_norm);
        check("linear of GELU", &x, &of_gelu);
    }
}

#[test]
fn dropout_keeps_the_contract() {
    let x = random("x", &[3, 5, 7]);
    for p in [0.0, 0.3, 0.9] {
        check("dropout", &x, &|_| Ok(Box::new(Dropout::new(p, "drop"))));
    }
    for p in [-0.1, 1.0, f64::NAN] {
        assert!(Dropout::new(p, "drop").forward(&x.clone().into(), &Pass::eval()).is_err());
    }
}

#[test]
fn dropout_keeps_the_mean_and_draws_by_name_step_and_micro_batch() {
    let x = Tensor::ones(40_000, candle_core::DType::F32, &Device::Cpu).expect("a tensor");
    let draw =
        |name: &str, pass: Pass| one(&Dropout::new(0.25, name).forward(&x.clone().into(), &pass).expect("a pass").0);
    let y = draw("a", Pass::train(1, 2, 3));
    assert!(y.iter().all(|&y| y == 0.0 || y == 1.0 / 0.75));
    let mean = y.iter().sum::<f32>() / y.len() as f32;
    assert!((mean - 1.0).abs() < 0.015, "mean {mean}");
    assert_eq!(y, draw("a", Pass { track: false, ..Pass::train(1, 2, 3) }), "recomputation draws the same mask");
    for other in [("b", [1, 2, 3]), ("a", [0, 2, 3]), ("a", [1, 0, 3]), ("a", [1, 2, 0])] {
        let (name, [seed, step, micro]) = other;
        let differing =
            draw(name, Pass::train(seed, step, micro as usize)).iter().zip(&y).filter(|(a, b)| a != b).count();
        // Independent masks differ in 2·0.25·0.75 of the elements.
        assert!((13_500..16_500).contains(&differing), "{other:?}: {differing} elements differ");
    }
    assert_eq!(draw("a", Pass::eval()), values(&x));
}

#[test]
fn evaluation_pass_has_no_backward_pass() {
    let layer = Linear::new(3, 2, true, store().builder(&Device::Cpu)).expect("a linear layer");
    let (y, saved) = layer.forward(&random("x", &[4, 3]).into(), &Pass::eval()).expect("a pass");
    assert!(layer.backward(&saved, &y, Wants::BOTH).is_err());
}
