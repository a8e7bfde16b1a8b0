//! Layers written with candle's operations, beyond the conformance suite, which compares them with the kernels.

use candle_core::{DType, Device, Tensor};
use interlock::{Activation, Differentiable, Pass, Precision, Wants};
use interlock_backends::{CpuDevice, layers::*};

use crate::{
    contract::on,
    support::{
        self, Build, Given,
        cases::{cases, conv},
        random, store, values,
    },
};

/// Returns the results of a layer on the CPU, computed in this form: `kernels` or `candle`.
fn given(form: &str, x: &Tensor, c: Option<&Tensor>, precision: Precision, build: Build<'_>) -> Given {
    let device = CpuDevice::open(&format!("cpu:threads=2,layers={form}")).expect("a device");
    support::given(&device, x, c, precision, build)
}

#[test]
fn outputs_of_products_have_the_dtype_of_the_pass_for_wider_inputs() {
    let bf16 = |x: Tensor, build: Build<'_>| given("candle", &x, None, Precision::Bf16, build).0["output"].dtype();
    let x = random("x", &[2, 3, 5, 5]);
    assert_eq!(bf16(x.clone(), &|vb| Ok(Box::new(Conv2d::new(conv(3, 3, 3, 1, 1, true), vb)?))), DType::BF16);
    assert_eq!(bf16(x.clone(), &|vb| Ok(Box::new(Linear::new(5, 5, true, vb)?))), DType::BF16);
    let residual: Build<'_> =
        &|vb| Ok(Box::new(Residual::new(Box::new(Conv2d::new(conv(3, 3, 3, 1, 1, true), vb)?), None)));
    assert_eq!(bf16(x.clone(), residual), DType::BF16);
    assert_eq!(bf16(x.clone(), &|_| Ok(Box::new(Relu))), DType::F32);
    assert_eq!(bf16(x, &|vb| Ok(Box::new(BatchNorm2d::new(3, vb)?))), DType::F32);
}

#[test]
fn first_of_equal_pixels_gets_the_gradient_and_nan_stays_nan() {
    // Few different values, so that most windows have equal ones, and some have NaN or only infinities.
    let choices = [0.0, 1.0, f32::NEG_INFINITY, 1.0, f32::NAN, f32::NEG_INFINITY];
    let pixels: Vec<f32> = (0..2 * 9 * 8_usize).map(|i| choices[i * i * 7 / 3 % choices.len()]).collect();
    let finite: Vec<f32> = pixels.iter().map(|&p| if p.is_nan() { 0.0 } else { p }).collect();
    for pixels in [pixels, finite] {
        let x = Tensor::from_vec(pixels, (1, 2, 9, 8), &Device::Cpu).expect("a tensor");
        for [kernel, stride, padding] in [[2, 2, 0], [3, 2, 1], [3, 1, 1], [5, 1, 2], [4, 3, 2]] {
            let bits = |form| {
                let all =
                    given(form, &x, None, Precision::F32, &|_| Ok(Box::new(MaxPool2d::new(kernel, stride, padding))));
                let gradient = values(&all.0["input gradient"]);
                // Only whether a pixel gets a gradient is compared, since the order of the sums of several differs.
                let reached: Vec<bool> = gradient.iter().map(|&g| g != 0.0).collect();
                let output: Vec<Option<f32>> =
                    values(&all.0["output"]).into_iter().map(|y| (!y.is_nan()).then_some(y)).collect();
                (output, reached)
            };
            assert_eq!(bits("kernels"), bits("candle"), "{kernel} {stride} {padding}");
        }
        let relu = |form| {
            let all = given(form, &x, None, Precision::F32, &|_| Ok(Box::new(Relu)));
            let bits = |what: &str| values(&all.0[what]).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            (bits("output"), bits("input gradient"))
        };
        assert_eq!(relu("kernels"), relu("candle"));
    }
}

#[test]
fn batch_norm_is_near_far_from_zero() {
    let values_near_thousand: Vec<f32> = (0..4096).map(|i| 1000.0 + (i % 2) as f32 / 64.0).collect();
    let x = Tensor::from_vec(values_near_thousand, (4, 1, 32, 32), &Device::Cpu).expect("a tensor");
    let y = &given("candle", &x, None, Precision::F32, &|vb| Ok(Box::new(BatchNorm2d::new(1, vb)?))).0["output"];
    let size = (1.0 / 128.0) / ((1.0_f32 / 128.0).powi(2) + 1e-5).sqrt();
    for (at, y) in values(y).into_iter().enumerate() {
        let wanted = if at % 2 == 0 { -size } else { size };
        assert!((y - wanted).abs() < 0.02, "value {at} is {y}, not {wanted}");
    }
}

#[test]
fn wrong_dtypes_shapes_and_tokens_are_refused() {
    on(1, "candle", || {
        let vb = store().builder(&Device::Cpu).pp("fc");
        let layer = Linear::new(3, 2, true, vb).expect("a linear layer");
        let refusal = |x: Tensor| layer.forward(&x.into(), &Pass::eval()).err().expect("a refusal").to_string();
        let tensor = |dtype, rows: usize| Tensor::zeros((rows, 3), dtype, &Device::Cpu).expect("a tensor");
        assert_eq!(refusal(tensor(DType::U32, 2)), "linear fc: a tensor of u32; convert it to f32 or bf16");
        assert_eq!(refusal(tensor(DType::F32, 0)), "linear fc: input of shape [0, 3]; it takes at least one element");
        let x = random("x", &[4, 3]);
        let (_, saved) = layer.forward(&x.clone().into(), &Pass::train(0, 0, 0)).expect("a pass");
        let error = layer.backward(&saved, &x.into(), Wants::BOTH).err().expect("a refusal").to_string();
        assert_eq!(error, "linear fc: output gradient of shape [4, 3]; the output had shape [4, 2]");
        let error = layer.backward(&saved, &tensor(DType::U32, 4).narrow(1, 0, 2).expect("a view").into(), Wants::BOTH);
        assert_eq!(
            error.err().expect("a refusal").to_string(),
            "linear fc: a tensor of u32; convert it to f32 or bf16"
        );
        let tokens = Tensor::new(&[7_u32], &Device::Cpu).expect("a tensor");
        let layer = Embedding::new(7, 2, store().builder(&Device::Cpu)).expect("an embedding");
        let error = layer.forward(&tokens.into(), &Pass::eval()).err().expect("a refusal").to_string();
        assert!(error.contains("token 7 at index 0"), "{error}");
    });
}

/// A layer computes in the form in which it was built, on any thread.
#[test]
fn backward_pass_has_the_form_of_its_forward_pass() {
    for (name, x, build) in cases().into_iter().filter(|(_, x, _)| x.dtype() == DType::F32) {
        let store = store();
        let (layer, y, saved) = on(1, "candle", || {
            let layer = build(store.builder(&Device::Cpu)).expect("a layer");
            let (y, saved) = layer.forward(&x.clone().into(), &Pass::train(7, 3, 1)).expect("a pass");
            (layer, y, saved)
        });
        let c: Activation = random("output_gradient", y.single().expect("one tensor").dims()).into();
        let gradient = layer.backward(&saved, &c, Wants::BOTH).expect("a backward pass").input.expect("a gradient");
        let wanted = &given("candle", &x, None, Precision::F32, &*build).0["input gradient"];
        assert_eq!(values(gradient.single().expect("one tensor")), values(wanted), "{name}");
    }
}

#[test]
fn layer_with_parameters_chooses_its_form_when_it_is_built() {
    // The kernels do not accept bf16.
    let x: Activation = random("x", &[2, 4]).to_dtype(DType::BF16).expect("a cast").into();
    let build = || -> Vec<Box<dyn Differentiable>> {
        let vb = store().builder(&Device::Cpu);
        let linear = |name: &str| Linear::new(4, 4, true, vb.pp(name)).expect("a linear layer");
        let norm = |name: &str| LayerNorm::new(4, vb.pp(name)).expect("a norm");
        vec![Box::new(linear("a")), Box::new(norm("b")), Box::new(FusedLinear::norm(norm("c"), linear("d")))]
    };
    let takes_bf16 = |layer: &dyn Differentiable| layer.forward(&x, &Pass::eval()).is_ok();
    let in_candle = on(1, "candle", build);
    assert!(in_candle.iter().all(|layer| takes_bf16(&**layer)));
    let in_kernels = std::sync::Mutex::new(build());
    let taken = on(1, "candle", || in_kernels.lock().expect("layers").iter().any(|layer| takes_bf16(&**layer)));
    assert!(!taken);
}
