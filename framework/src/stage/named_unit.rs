//! A unit or head with its number and name, for errors.

use candle_core::Device;
use candle_nn::VarBuilder;

use crate::{
    Activation, Differentiable, Error, Gradients, ParameterGradients, Pass, Pending, Phase, Result, Saved, Unit, Wants,
    differentiation::{Mode, no_input_gradient},
};

/// A built unit, or the head that follows it. Its errors name it, and its output has the shape that it declares.
pub(crate) struct NamedUnit {
    /// Its number in the model; for a head, that of the unit that it follows.
    number: usize,
    name: String,
    is_head: bool,
    /// The declared shape of its input for one example; none for the first unit of a model.
    input: Option<Vec<usize>>,
    /// The declared shape of its output for one example.
    output: Vec<usize>,
    function: Box<dyn Differentiable>,
}

impl NamedUnit {
    /// Builds unit number `number` from `root`. The previous unit declares the output `input`.
    pub(crate) fn build(
        number: usize,
        unit: &Unit,
        input: Option<&[usize]>,
        root: &VarBuilder<'static>,
    ) -> Result<Self> {
        Self::make(number, unit.name.clone(), false, unit, input, root)
    }

    /// Builds the head that follows unit number `number`, in the same way.
    pub(crate) fn build_head(number: usize, head: &Unit, input: &[usize], root: &VarBuilder<'static>) -> Result<Self> {
        let name = match head.name.as_str() {
            "" => root.prefix(),
            name => format!("{}.{name}", root.prefix()),
        };
        Self::make(number, name, true, head, Some(input), root)
    }

    fn make(
        number: usize,
        name: String,
        is_head: bool,
        unit: &Unit,
        input: Option<&[usize]>,
        root: &VarBuilder<'static>,
    ) -> Result<Self> {
        let function = unit.build(root).map_err(|cause| named(number, &name, Phase::Build, cause))?;
        let input = input.map(<[usize]>::to_vec);
        Ok(Self { number, name, is_head, input, output: unit.output.clone(), function })
    }

    /// Checks the gradients, where the shape of the input is known.
    ///
    /// # Errors
    /// If one is zero or incomplete, names it.
    pub(crate) fn check_gradients(&self, device: &Device) -> Result<()> {
        let Some(input) = &self.input else { return Ok(()) };
        let checked = self.function.check_gradients(input, device);
        checked.map_err(|cause| named(self.number, &self.name, Phase::Build, cause))
    }

    fn forward_phase(&self) -> Phase {
        if self.is_head { Phase::Head } else { Phase::Forward }
    }

    fn in_backward<R>(&self, result: Result<R>) -> Result<R> {
        let phase = if self.is_head { Phase::Head } else { Phase::Backward };
        result.map_err(|cause| named(self.number, &self.name, phase, cause))
    }

    /// Refuses gradients without the input gradient if it was wanted.
    fn complete(&self, wants: Wants, gradients: Result<Gradients>) -> Result<Gradients> {
        self.in_backward(gradients.and_then(|gradients| match gradients.input {
            None if wants.input => Err(no_input_gradient()),
            _ => Ok(gradients),
        }))
    }

    /// Refuses an output of another shape than declared, if the input has its declared shape. An input of another size (a shorter sequence) gives an
    /// output of another size. The input of a model's first unit is not declared; there an output is refused if no dimension agrees with the
    /// declaration.
    fn check_output(&self, x: &Activation, y: &Activation) -> Result<()> {
        let ([x, ..], [y, ..]) = (x.tensors(), y.tensors()) else { return Ok(()) };
        let given = y.dims().get(1..).unwrap_or_default();
        let fits = given == self.output
            || match &self.input {
                Some(input) => x.dims().get(1..) != Some(input.as_slice()),
                None => {
                    given.len() == self.output.len() && given.iter().zip(&self.output).any(|(given, own)| given == own)
                }
            };
        if fits {
            return Ok(());
        }
        Err(Error::invalid(
            "output",
            format!("the unit declares the shape {:?} for one example and returned {given:?}", self.output),
            "give Unit::new the shape of the output without the batch dimension",
        ))
    }
}

fn named(unit: usize, name: &str, phase: Phase, cause: Error) -> Error {
    Error::Unit { unit, name: name.to_owned(), phase, cause: Box::new(cause) }
}

impl Differentiable for NamedUnit {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let result = self.function.forward(x, pass).and_then(|(y, saved)| {
            if pass.mode == Mode::Train {
                self.check_output(x, &y)?;
            }
            Ok((y, saved))
        });
        result.map_err(|cause| named(self.number, &self.name, self.forward_phase(), cause))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        self.complete(wants, self.function.backward(saved, output_gradient, wants))
    }

    fn has_parameters(&self) -> bool {
        self.function.has_parameters()
    }

    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        self.in_backward(self.function.backward_input(saved, output_gradient))
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        self.in_backward(self.function.backward_parameters(saved, pending))
    }

    fn last_backward(&self, saved: Saved, output_gradient: Activation, wants: Wants) -> Result<Gradients> {
        self.complete(wants, self.function.last_backward(saved, output_gradient, wants))
    }

    fn last_backward_parameters(&self, saved: Saved, pending: Pending) -> Result<ParameterGradients> {
        self.in_backward(self.function.last_backward_parameters(saved, pending))
    }

    fn has_unchecked_gradients(&self) -> bool {
        self.function.has_unchecked_gradients()
    }
}
