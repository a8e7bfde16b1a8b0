//! The requirements on every layer, checked by finite differences and by equality of bits.

use candle_core::{DType, Device, Tensor};
use interlock::{
    Activation, ActivationDtype, Differentiable, ParameterGradients, ParameterStore, Pass, Precision, Wants,
    tools::device::run_on,
};
use interlock_backends::CpuDevice;

use crate::support::{Build, random, store, values};

/// Returns the pass of all checks: training, without moving statistics.
pub(crate) fn pass() -> Pass {
    Pass { track: false, ..Pass::train(7, 3, 1) }
}

pub(crate) fn one(activation: &Activation) -> Vec<f32> {
    values(activation.single().expect("one tensor"))
}

pub(crate) fn eval(layer: &dyn Differentiable, x: &Tensor) -> Vec<f32> {
    one(&layer.forward(&x.clone().into(), &Pass::eval()).expect("a forward pass").0)
}

/// Returns the values of a tensor as bits, which compare equal only if they are the same.
fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

fn gradient_bits(store: &ParameterStore, gradients: &ParameterGradients) -> Vec<(Option<usize>, Vec<u32>)> {
    gradients.iter().map(|(id, g)| (store.position(*id), bits(g))).collect()
}

/// The results of one build of a layer, as bits.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    output: Vec<u32>,
    evaluated: Vec<u32>,
    input: Option<Vec<u32>>,
    parameters: Vec<(Option<usize>, Vec<u32>)>,
}

/// The forms of layers on the CPU: kernels, and candle's operations as on other devices.
pub(crate) const FORMS: [&str; 2] = ["kernels", "candle"];

/// Runs `work` on this many threads, with layers that compute in this form.
pub(crate) fn on<R: Send>(threads: usize, form: &str, work: impl FnOnce() -> R + Send) -> R {
    let device = CpuDevice::open(&format!("cpu:threads={threads},layers={form}")).expect("a device");
    run_on(&device, work)
}

/// Checks a layer made by `build` on the input `x`, with kernels and with candle's operations:
/// - the gradient of `Σ r·y` for random `r` against finite differences, for the input (where it is of `f32`) and every parameter;
/// - every parameter of the store gets one gradient of its shape;
/// - a pass for one gradient alone, and the two passes of a split backward pass, give the bits of a pass for both, and only what was asked for;
/// - so do the last backward passes, which free saved tensors as they go;
/// - views and output gradients that are not contiguous give the same bits;
/// - 1, 2 and 3 threads give the same bits;
/// - saving in `bf16` does not change outputs, and gradients only little;
/// - kernels that compute in `bf16` change outputs and gradients only little, and give the same bits for 1, 2 and 3 threads;
/// - an evaluation pass saves nothing.
pub(crate) fn check(name: &str, x: &Tensor, build: Build<'_>) {
    check_bits(name, x, build);
    for form in FORMS {
        on(1, form, || finite_differences(&format!("{name}, {form}"), x, build));
    }
}

/// Checks the same as [`check`], without finite differences, for layers that are not differentiable everywhere.
pub(crate) fn check_bits(name: &str, x: &Tensor, build: Build<'_>) {
    for form in FORMS {
        let name = &format!("{name}, {form}");
        let [one, two, three] = [1, 2, 3].map(|threads| on(threads, form, || outcome(name, x, build, &pass())));
        assert!(one == two && one == three, "{name}: bits depend on the number of threads");
        let half = on(1, form, || outcome(name, x, build, &Pass { dtype: ActivationDtype::Bf16, ..pass() }));
        assert!(
            half.output == one.output && half.evaluated == one.evaluated,
            "{name}: outputs depend on the dtype of saved tensors"
        );
        near(name, &half, &one, 0.06);
        if form == "kernels" {
            let name = &format!("{name}, computed in bf16");
            let pass = Pass { dtype: ActivationDtype::Bf16, precision: Precision::Bf16, ..pass() };
            let [half, two, three] = [1, 2, 3].map(|threads| on(threads, form, || outcome(name, x, build, &pass)));
            assert!(half == two && half == three, "{name}: bits depend on the number of threads");
            // The sign of a ReLU's input may change, which matters much to few values.
            near(name, &half, &one, 0.5);
        }
    }
}

/// Checks that rounding changed results by at most this part of them.
fn near(name: &str, half: &Outcome, whole: &Outcome, part: f64) {
    let close = |what: &str, half: &[u32], whole: &[u32]| {
        let number = |bits: &u32| f64::from(f32::from_bits(*bits));
        let norm = whole.iter().map(|w| number(w).powi(2)).sum::<f64>().sqrt();
        let error = half.iter().zip(whole).map(|(h, w)| (number(h) - number(w)).powi(2)).sum::<f64>().sqrt();
        // Gradients that are zero, such as those of a bias before a norm, are sums of rounded values.
        assert!(error <= part * norm + 2e-4, "{name}: {what} of rounded values differs by {error} of {norm}");
    };
    close("the output", &half.output, &whole.output);
    close("the output in evaluation", &half.evaluated, &whole.evaluated);
    for (half, whole) in half.input.iter().zip(&whole.input) {
        close("the gradient of the input", half, whole);
    }
    for (half, whole) in half.parameters.iter().zip(&whole.parameters) {
        assert_eq!(half.0, whole.0, "{name}: order of gradients");
        close("a parameter's gradient", &half.1, &whole.1);
    }
}

/// Checks that the layers that `one` and `other` build, with the same parameters, have the same results, to the bit.
pub(crate) fn same(name: &str, x: &Tensor, one: Build<'_>, other: Build<'_>) {
    for form in FORMS {
        let [one, other] = [one, other].map(|build| {
            let mut outcome = on(1, form, || outcome(name, x, build, &pass()));
            // Layers may return their gradients in any order.
            outcome.parameters.sort();
            outcome
        });
        assert_eq!(one.output, other.output, "{name}, {form}: outputs");
        assert_eq!(one.evaluated, other.evaluated, "{name}, {form}: outputs in evaluation");
        assert_eq!(one.input, other.input, "{name}, {form}: gradients of the input");
        assert_eq!(one.parameters, other.parameters, "{name}, {form}: gradients of parameters");
    }
}

fn outcome(name: &str, x: &Tensor, build: Build<'_>, pass: &Pass) -> Outcome {
    let store = store();
    let layer = build(store.builder(&Device::Cpu)).expect(name);
    let float = x.dtype() == DType::F32;
    let input = Activation::from(x.clone());
    let (y, saved) = layer.forward(&input, pass).expect(name);
    let y = y.single().expect(name);
    let c = random("output_gradient", y.dims());
    let output_gradient = Activation::from(c.clone());

    let both = layer.backward(&saved, &output_gradient, Wants { input: float, parameters: true }).expect(name);
    let parameters = gradient_bits(&store, &both.parameters);
    assert_eq!(both.input.is_some(), float, "{name}: input gradient of both");
    let input_bits = both.input.as_ref().map(|input| {
        let input = input.single().expect(name);
        assert_eq!(input.dims(), x.dims(), "{name}: shape of the input gradient");
        bits(input)
    });
    let mut positions: Vec<usize> =
        parameters.iter().map(|(at, _)| at.expect("a gradient of a known tensor")).collect();
    positions.sort_unstable();
    let wanted: Vec<usize> = store.parameters().iter().filter_map(|e| store.position(e.var.id())).collect();
    assert_eq!(positions, wanted, "{name}: one gradient for each parameter");
    for (id, gradient) in &both.parameters {
        let entry = &store.entries()[store.position(*id).expect(name)];
        assert_eq!(gradient.shape(), entry.var.shape(), "{name}: shape of the gradient of {}", entry.name);
    }

    let alone = layer.backward(&saved, &output_gradient, Wants::PARAMETERS).expect(name);
    assert!(alone.input.is_none(), "{name}: an input gradient that was not asked for");
    assert_eq!(gradient_bits(&store, &alone.parameters), parameters, "{name}: parameter pass alone");
    let nothing = layer.backward(&saved, &output_gradient, Wants { input: false, parameters: false }).expect(name);
    assert!(nothing.input.is_none() && nothing.parameters.is_empty(), "{name}: gradients that were not asked for");

    // The same values with gaps between their rows.
    let gaps =
        |t: &Tensor| Tensor::stack(&[t, t], t.rank()).and_then(|t| t.narrow(t.rank() - 1, 1, 1)?.squeeze(t.rank() - 1));
    let gapped = gaps(&c).expect("a view");
    assert!(gapped.elem_count() == 1 || !gapped.is_contiguous());
    if float {
        let alone = layer.backward(&saved, &output_gradient, Wants::INPUT).expect(name);
        assert!(alone.parameters.is_empty(), "{name}: parameter gradients that were not asked for");
        assert_eq!(
            alone.into_input().ok().map(|i| bits(i.single().expect(name))),
            input_bits,
            "{name}: input pass alone"
        );
        let (first, pending) = layer.backward_input(&saved, &gapped.clone().into()).expect(name);
        assert_eq!(Some(bits(first.single().expect(name))), input_bits, "{name}: input half");
        let second = layer.backward_parameters(&saved, pending).expect(name);
        assert_eq!(gradient_bits(&store, &second), parameters, "{name}: parameter half");
    } else {
        let again = layer.backward(&saved, &gapped.into(), Wants::PARAMETERS).expect(name);
        assert_eq!(gradient_bits(&store, &again.parameters), parameters, "{name}: output gradient with gaps");
        assert!(layer.backward(&saved, &output_gradient, Wants::INPUT).expect(name).input.is_none());
    }

    let saved = || layer.forward(&input, pass).expect(name).1;
    let last = |wants: Wants| {
        let gradients = layer.last_backward(saved(), output_gradient.clone(), wants).expect(name);
        let input = gradients.input.map(|input| bits(input.single().expect(name)));
        assert_eq!(input, input_bits.clone().filter(|_| wants.input), "{name}: input gradient of the last {wants:?}");
        let wanted = if wants.parameters { parameters.clone() } else { Vec::new() };
        assert_eq!(gradient_bits(&store, &gradients.parameters), wanted, "{name}: parameters of the last {wants:?}");
    };
    last(Wants::PARAMETERS);
    if float {
        last(Wants::BOTH);
        last(Wants::INPUT);
        let saved = saved();
        let (_, pending) = layer.backward_input(&saved, &output_gradient).expect(name);
        let second = layer.last_backward_parameters(saved, pending).expect(name);
        assert_eq!(gradient_bits(&store, &second), parameters, "{name}: last parameter half");
    }

    let doubled = Tensor::cat(&[x, x], 0).and_then(|t| t.narrow(0, x.dims()[0], x.dims()[0])).expect("a view");
    let transposed =
        x.transpose(0, x.rank() - 1).and_then(|t| t.contiguous()?.transpose(0, x.rank() - 1)).expect("a view");
    for view in [doubled, transposed, gaps(x).expect("a view")] {
        let (again, _) = layer.forward(&view.into(), pass).expect(name);
        assert_eq!(bits(again.single().expect(name)), bits(y), "{name}: another layout of the same input");
    }

    let (evaluated, nothing) = layer.forward(&input, &Pass { precision: pass.precision, ..Pass::eval() }).expect(name);
    assert!(
        nothing.get::<()>().is_ok() || nothing.get::<Vec<interlock::Saved>>().is_ok_and(Vec::is_empty),
        "{name}: an evaluation pass saved something"
    );
    Outcome { output: bits(y), evaluated: bits(evaluated.single().expect(name)), input: input_bits, parameters }
}

/// Returns `Σ r·y`, summed in `f64`.
fn objective(layer: &dyn Differentiable, x: &Tensor, r: &[f32]) -> f64 {
    let (y, _) = layer.forward(&x.clone().into(), &pass()).expect("a forward pass");
    one(&y).iter().zip(r).map(|(&y, &r)| f64::from(y) * f64::from(r)).sum()
}

/// Returns the derivative at 0 of a function of a step, from four values, with an error of fourth order.
fn derivative(mut f: impl FnMut(f32) -> f64) -> f64 {
    const STEP: f32 = 1.0 / 64.0;
    let inner = f(STEP) - f(-STEP);
    let outer = f(2.0 * STEP) - f(-2.0 * STEP);
    (8.0 * inner - outer) / (12.0 * f64::from(STEP))
}

fn finite_differences(name: &str, x: &Tensor, build: Build<'_>) {
    let store = store();
    let layer = build(store.builder(&Device::Cpu)).expect(name);
    let (y, saved) = layer.forward(&x.clone().into(), &pass()).expect(name);
    let dims = y.single().expect(name).dims().to_vec();
    let c = random("output_gradient", &dims);
    let r = values(&c);
    let float = x.dtype() == DType::F32;
    let gradients = layer.backward(&saved, &c.into(), Wants { input: float, parameters: true }).expect(name);
    if let Some(input) = gradients.input {
        let (analytic, at) = (one(&input), values(x));
        compare(name, "input", &analytic, |i, step| {
            let mut moved = at.clone();
            moved[i] += step;
            let moved = Tensor::from_vec(moved, x.dims(), &Device::Cpu).expect("a tensor");
            objective(layer.as_ref(), &moved, &r)
        });
    }
    for (id, gradient) in gradients.parameters {
        let entry = &store.entries()[store.position(id).expect(name)];
        let at = values(&entry.var);
        let set = |values: Vec<f32>| {
            entry
                .var
                .set(&Tensor::from_vec(values, entry.var.dims(), &Device::Cpu).expect("a tensor"))
                .expect("an update");
        };
        compare(name, &entry.name, &values(&gradient), |i, step| {
            let mut moved = at.clone();
            moved[i] += step;
            set(moved);
            objective(layer.as_ref(), x, &r)
        });
        set(at.clone());
    }
}

/// The largest number of elements of a tensor that are moved, spread evenly.
const MOVED: usize = 150;

fn compare(name: &str, what: &str, analytic: &[f32], mut moved: impl FnMut(usize, f32) -> f64) {
    let largest = analytic.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(largest > 0.0, "{name}: the gradient of {what} is zero everywhere");
    let stride = (analytic.len() / MOVED).max(1) | 1;
    for i in (0..analytic.len()).step_by(stride) {
        let numeric = derivative(|step| moved(i, step));
        let error = (numeric - f64::from(analytic[i])).abs();
        assert!(
            error <= 3e-4 * f64::from(largest.max(1.0)),
            "{name}: the gradient of {what}[{i}] is {}, but finite differences say {numeric}",
            analytic[i]
        );
    }
}
