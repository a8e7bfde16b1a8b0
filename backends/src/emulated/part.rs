//! The function that replaces a stage's main part or head, and the optimizer that replaces its update.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use interlock::{
    Activation, Differentiable, Error, Gradients, Optimizer, ParameterGradients, ParameterUpdate, Pass, Pending,
    Result, Saved, Wants,
    tools::{
        device::{Part, PartKind},
        sleep,
    },
};

use super::name::Costs;

/// A function that sleeps and returns zeros of a known shape.
pub(super) struct Asleep {
    /// The output's shape, without the batch.
    output: Vec<usize>,
    /// A zero that is broadcast to every tensor, so that tensors take neither time nor memory.
    zero: Tensor,
    forward: Duration,
    input_gradient: Duration,
    parameter_gradient: Duration,
}

/// The shapes of the input's tensors that have gradients.
struct Shapes(Vec<Vec<usize>>);

/// Runs `work`, and sleeps until `time` has passed since the call.
fn spend<R>(time: Duration, work: impl FnOnce() -> R) -> R {
    let deadline = Instant::now() + time;
    let result = work();
    sleep::until(deadline);
    result
}

impl Asleep {
    pub(super) fn new(part: &Part<'_>, costs: &Costs) -> Result<Self> {
        let (forward, input_gradient, parameter_gradient) = match part.kind {
            PartKind::Main => (costs.forward, costs.input_gradient, costs.parameter_gradient),
            PartKind::Head => (costs.head, Duration::ZERO, Duration::ZERO),
        };
        let zero = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        Ok(Self { output: part.output.to_vec(), zero, forward, input_gradient, parameter_gradient })
    }
}

impl Differentiable for Asleep {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        spend(self.forward, || {
            let examples = x.tensors().first().and_then(|tensor| tensor.dims().first()).ok_or_else(|| {
                Error::invalid(
                    "activation",
                    "it has no examples",
                    "stack them along the first dimension of its tensors",
                )
            })?;
            let output = [&[*examples], self.output.as_slice()].concat();
            let float = x.tensors().iter().filter(|tensor| tensor.dtype().is_float());
            let shapes = Shapes(float.map(|tensor| tensor.dims().to_vec()).collect());
            Ok((self.zero.broadcast_as(output)?.into(), Saved::new(shapes)))
        })
    }

    fn backward(&self, saved: &Saved, _: &Activation, wants: Wants) -> Result<Gradients> {
        let parameters = if wants.parameters { self.parameter_gradient } else { Duration::ZERO };
        spend(self.input_gradient + parameters, || {
            let Shapes(shapes) = saved.get()?;
            let zeros = |shape: &Vec<usize>| Ok(self.zero.broadcast_as(shape.as_slice())?);
            let gradient = || shapes.iter().map(zeros).collect::<Result<_>>().map(Activation::new);
            Ok(Gradients { input: if wants.input { Some(gradient()?) } else { None }, parameters: Vec::new() })
        })
    }

    fn has_parameters(&self) -> bool {
        // There are none that could change.
        false
    }

    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        Ok((self.backward(saved, output_gradient, Wants::INPUT)?.into_input()?, Pending::new(())))
    }

    fn backward_parameters(&self, _: &Saved, _: Pending) -> Result<ParameterGradients> {
        Ok(spend(self.parameter_gradient, Vec::new))
    }
}

/// An update that takes its time and changes nothing.
#[derive(Default)]
pub(super) struct Rest(pub(super) Duration);

impl Optimizer for Rest {
    fn update(&mut self, _: f64, _: &[ParameterUpdate<'_>]) -> Result<()> {
        spend(self.0, || Ok(()))
    }

    fn uses_gradients(&self) -> bool {
        false
    }

    fn checks_values(&self) -> bool {
        // There are no new values to check.
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(kind: PartKind) -> Asleep {
        let costs = "emulated:forward-ms=3,head-ms=4,input-gradient-ms=6,parameter-gradient-ms=10".parse().unwrap();
        Asleep::new(&Part { stage: 1, kind, output: &[7, 2] }, &costs).unwrap()
    }

    /// Returns the result of `work`, and asserts that it took at least this many milliseconds.
    fn takes<R>(ms: u64, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let done = work();
        assert!(start.elapsed() >= Duration::from_millis(ms), "{:?} instead of {ms} ms", start.elapsed());
        done
    }

    fn input() -> Activation {
        let mask = Tensor::ones((5, 9), DType::U32, &Device::Cpu).unwrap();
        Activation::new(vec![Tensor::ones((5, 3), DType::F32, &Device::Cpu).unwrap(), mask])
    }

    fn is_zero(tensor: &Tensor, dims: &[usize]) -> bool {
        tensor.dims() == dims
            && tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).unwrap().iter().all(|v| *v == 0.0)
    }

    #[test]
    fn every_phase_takes_its_time_and_returns_zeros_of_the_right_shape() {
        let stage = part(PartKind::Main);
        let (output, saved) = takes(3, || stage.forward(&input(), &Pass::train(0, 0, 0))).unwrap();
        assert!(is_zero(output.single().unwrap(), &[5, 7, 2]));
        assert_eq!(output.bytes(), 5 * 7 * 2 * 4);
        for (wants, ms) in [(Wants::INPUT, 6), (Wants::PARAMETERS, 16), (Wants::BOTH, 16)] {
            let gradients = takes(ms, || stage.backward(&saved, &output, wants)).unwrap();
            assert!(gradients.parameters.is_empty());
            assert_eq!(gradients.input.is_some(), wants.input);
            if let Some(input) = gradients.input {
                assert!(is_zero(input.single().unwrap(), &[5, 3]));
            }
        }
        let (input, pending) = takes(6, || stage.backward_input(&saved, &output)).unwrap();
        assert!(is_zero(input.single().unwrap(), &[5, 3]));
        assert!(takes(10, || stage.backward_parameters(&saved, pending)).unwrap().is_empty());
        takes(8, || Rest(Duration::from_millis(8)).update(0.1, &[])).unwrap();
    }

    #[test]
    fn time_of_a_head_is_spent_in_its_forward_pass() {
        let head = part(PartKind::Head);
        let (output, saved) = takes(4, || head.forward(&input(), &Pass::eval())).unwrap();
        let gradients = head.backward(&saved, &output, Wants::BOTH).unwrap();
        assert!(is_zero(gradients.input.unwrap().single().unwrap(), &[5, 3]));
        assert_eq!((head.input_gradient, head.parameter_gradient), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn activation_without_examples_is_refused() {
        let stage = part(PartKind::Main);
        for empty in [Activation::new(vec![]), Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().into()] {
            let error = stage.forward(&empty, &Pass::eval()).err().unwrap().to_string();
            assert!(error.contains("it has no examples"), "{error}");
        }
    }
}
