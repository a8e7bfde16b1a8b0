//! Compares layers on every device with the kernels of the CPU, and with finite differences.

use candle_core::{DType, Device, Tensor};
use interlock::{Activation, Pass, Precision, StageDevice, Wants, tools::device::run_on};
use interlock_backends::Backends;

use crate::{
    devices::{all, beside_others},
    support::{
        Build,
        cases::{Case, cases},
        distinct, error, given, random, store, values, wide,
    },
};

/// The device that all others are compared with.
const REFERENCE: &str = "cpu:threads=1";

fn reference() -> std::sync::Arc<dyn StageDevice> {
    Backends::default().open(REFERENCE).expect("the CPU")
}

/// Returns whether layers on this device compute with the kernels of the CPU, which support only `f32`.
fn has_kernels(device: &dyn StageDevice) -> bool {
    device.device().is_cpu() && !device.name().contains("layers=candle")
}

/// The largest relative difference in `f32`, where only the order of sums differs.
const ALLOWED: f64 = 1e-5;

#[test]
fn layers_in_f32_equal_the_kernels_of_the_cpu() {
    let _turn = beside_others();
    let reference = reference();
    for device in all() {
        for (name, x, build) in cases() {
            let kernels = given(&*reference, &x, None, Precision::F32, &*build).0;
            let there = given(&**device, &x, None, Precision::F32, &*build).0;
            assert!(kernels.keys().eq(there.keys()), "{}: {name}: {:?} and {:?}", device.name(), kernels, there);
            for ((what, wanted), got) in kernels.iter().zip(there.values()) {
                let error = error(got, wanted);
                assert!(error <= ALLOWED, "{}: {name}: {what} is off by {error:e}", device.name());
                assert_eq!(got.dtype(), DType::F32, "{}: {name}: {what}", device.name());
            }
        }
    }
}

#[test]
fn layers_in_bf16_are_near_and_parameters_stay_f32() {
    let _turn = beside_others();
    let reference = reference();
    for device in all() {
        if has_kernels(&**device) {
            println!("skipped: {} computes in f32 only", device.name());
            continue;
        }
        for (name, x, build) in cases() {
            in_bf16(&**device, &*reference, &name, &x, &*build);
        }
    }
}

fn in_bf16(device: &dyn StageDevice, reference: &dyn StageDevice, name: &str, x: &Tensor, build: Build<'_>) {
    let rounded = |x: &Tensor| x.to_dtype(DType::BF16).expect("a cast");
    let float = x.dtype() == DType::F32;
    let half = if float { rounded(x) } else { x.clone() };
    let x = if float { wide(&half) } else { x.clone() };
    let dims = given(reference, &x, None, Precision::F32, build).0["output"].dims().to_vec();
    let c = rounded(&random("output_gradient", &dims));
    let kernels = given(reference, &x, Some(&wide(&c)), Precision::F32, build).0;
    let there = given(device, &half, Some(&c), Precision::Bf16, build).0;
    let name = format!("{}: {name}", device.name());
    assert!(kernels.keys().eq(there.keys()), "{name}: {:?} and {:?}", kernels.keys(), there.keys());
    for ((what, wanted), got) in kernels.iter().zip(there.values()) {
        let error = error(got, wanted);
        // Rounding may change the sign of a ReLU's input inside of a block, and these blocks have few elements.
        let allowed = if name.contains(": block") { 0.2 } else { 0.03 };
        assert!(error <= allowed, "{name}: {what} is off by {error}");
        let parameter = what.starts_with("gradient of") || what.contains("running");
        assert_eq!(got.dtype(), if parameter { DType::F32 } else { DType::BF16 }, "{name}: {what}");
    }
    // Output gradients and inputs may have either dtype: those wider than the pass are rounded when products are computed.
    let other = given(device, &half, Some(&wide(&c)), Precision::Bf16, build).0;
    for ((what, got), other) in there.iter().zip(other.values()) {
        assert!(values(&wide(got)) == values(&wide(other)), "{name}: {what} for an f32 output gradient");
    }
    let widened = given(device, &half, Some(&c), Precision::F32, build).0;
    for ((what, wanted), got) in kernels.iter().zip(widened.values()) {
        let error = error(got, wanted);
        assert!(error <= ALLOWED && got.dtype() == DType::F32, "{name}: {what} of a bf16 input is off by {error:e}");
    }
}

/// Returns the cases of layers that are smooth, or whose kinks lie between the values of the input.
fn smooth() -> Vec<Case> {
    let kinked = |name: &str| name.starts_with("block");
    cases().into_iter().filter(|(name, x, _)| x.dtype() == DType::F32 && !kinked(name)).collect()
}

const STEP: f64 = 1.0 / 64.0;

/// Compares the derivative of `Σ r·y` along a direction, for the input and for each parameter, with finite differences of four steps.
#[test]
fn gradients_equal_finite_differences() {
    let _turn = beside_others();
    for device in all() {
        for (name, x, build) in smooth() {
            run_on(&**device, || differences(&**device, &format!("{}: {name}", device.name()), &x, &*build));
        }
    }
}

fn differences(device: &dyn StageDevice, name: &str, x: &Tensor, build: Build<'_>) {
    let here = |x: &Tensor| device.bring(x).expect("a tensor on the device");
    let store = store();
    let layer = build(store.builder(device.device())).expect("a layer");
    let pass = Pass { track: false, ..Pass::train(7, 3, 1) };
    let output = |x: &Tensor| layer.forward(&Activation::from(here(x)), &pass).expect("a forward pass");
    let (y, saved) = output(x);
    let c = random("output_gradient", y.single().expect("one tensor").dims());
    let gradients = layer.backward(&saved, &here(&c).into(), Wants::BOTH).expect("a backward pass");
    let products = |a: &Tensor, b: &Tensor| -> f64 {
        let [a, b] = [a, b].map(|t| values(&t.to_device(&Device::Cpu).expect("a tensor of the CPU")));
        a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let objective = |x: &Tensor| products(output(x).0.single().expect("one tensor"), &c);
    // With four values, the error is of fourth order in the step.
    let derivative =
        |f: &dyn Fn(f64) -> f64| (8.0 * (f(STEP) - f(-STEP)) - (f(2.0 * STEP) - f(-2.0 * STEP))) / (12.0 * STEP);
    let check = |what: &str, numeric: f64, analytic: f64, scale: f64| {
        let allowed = 3e-3 * scale.max(1.0);
        assert!((numeric - analytic).abs() <= allowed, "{name}: {what}: {analytic}, finite differences say {numeric}");
    };
    // A step along the direction is as long as a step of one element.
    let direction = |dims: &[usize]| {
        let count: usize = dims.iter().product();
        (distinct("direction", dims) * (8.0 / count as f64)).expect("a direction")
    };
    let norm = |t: &Tensor| products(t, t).sqrt();
    let along = direction(x.dims());
    let input = gradients.input.expect("a gradient of the input");
    let input = input.single().expect("one tensor");
    let moved = |step: f64| objective(&(x + (&along * step).expect("a step")).expect("a moved input"));
    check("the input", derivative(&moved), products(input, &along), norm(input) * norm(&along));
    for (id, gradient) in &gradients.parameters {
        let entry = &store.entries()[store.position(*id).expect("a known tensor")];
        let along = direction(entry.var.dims());
        let at = entry.var.as_detached_tensor().copy().expect("a copy");
        let moved = |step: f64| {
            let there = (&at + here(&(&along * step).expect("a step"))).expect("a moved parameter");
            entry.var.set(&there).expect("an update");
            objective(x)
        };
        check(&entry.name, derivative(&moved), products(gradient, &along), norm(gradient) * norm(&along));
        entry.var.set(&at).expect("an update");
    }
}
