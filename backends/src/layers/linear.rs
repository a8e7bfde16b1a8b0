//! Linear layer: `y = x Wᵀ + b`.
//!
//! Shapes: `x (…, inputs)`, `W (outputs, inputs)`, `b (outputs)`, `y (…, outputs)`, with any leading dimensions. For an output gradient `c` of `y`,
//! with all leading dimensions taken as rows: `∂x = c W`, `∂W = cᵀ x`, `∂b = Σ_rows c`.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use interlock::{Activation, Differentiable, Gradients, ParameterGradients, Pass, Result, Saved, Wants};

use super::{
    candle_operations,
    form::Form,
    saved_tensor::SavedTensor,
    slices::{column_sums, dense, label, output_gradient, read, tensor, wrong_shape},
};
use crate::kernels::{
    linear::{self, Rows, RowsEpilogue},
    matrix::Matrix,
    panels::{Packed, ProductForm},
};

/// `y = x Wᵀ + b` over the last dimension. A weight that is no variable, such as a read-only copy, gets no gradient.
#[derive(Clone, Debug)]
pub struct Linear {
    pub(super) name: String,
    inputs: usize,
    outputs: usize,
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    /// Chosen when the layer is built.
    form: Form,
}

impl Linear {
    /// Makes `weight (outputs, inputs)` and, with `bias`, `bias (outputs)`, both uniform in `±1/√inputs` (PyTorch's default).
    pub fn new(inputs: usize, outputs: usize, bias: bool, vb: VarBuilder) -> Result<Self> {
        let bound = 1.0 / (inputs.max(1) as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        Self::with_init(inputs, outputs, init, bias.then_some(init), vb)
    }

    /// Makes `weight (outputs, inputs)` and, if an initialization is given for it, `bias (outputs)`.
    pub fn with_init(inputs: usize, outputs: usize, weight: Init, bias: Option<Init>, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            name: label("linear", &vb),
            form: Form::on(vb.device()),
            inputs,
            outputs,
            weight: vb.get_with_hints((outputs, inputs), "weight", weight)?,
            bias: bias.map(|init| vb.get_with_hints(outputs, "bias", init)).transpose()?,
        })
    }

    pub(super) fn output_dims(&self, dims: &[usize]) -> Result<Vec<usize>> {
        match dims {
            [leading @ .., last] if *last == self.inputs => Ok([leading, &[self.outputs]].concat()),
            _ => Err(wrong_shape(&self.name, dims, format_args!("(…, {})", self.inputs))),
        }
    }

    /// Returns `weight` as a matrix `(outputs, inputs)`.
    fn matrix<'a>(&self, weight: &'a [f32]) -> Matrix<'a> {
        Matrix::new(weight, self.outputs, self.inputs)
    }

    /// Returns `y` for the rows of a dense tensor of shape `dims`.
    pub(super) fn apply(&self, x: Rows<'_>, dims: &[usize], form: ProductForm) -> Result<Tensor> {
        let dims = self.output_dims(dims)?;
        let bias = self.bias.as_ref().map(read::<f32>).transpose()?;
        let weight = Packed::new(self.matrix(&read(&self.weight)?).t(), form);
        linear::rows_times(x, &weight, bias.as_deref().map_or(RowsEpilogue::Nothing, RowsEpilogue::Bias))
            .into_tensor(dims)
    }

    /// Returns `∂x`, of shape `dims`, with the given epilogue.
    pub(super) fn input_gradient(
        &self,
        dims: &[usize],
        c: &Activation,
        epilogue: RowsEpilogue<'_>,
        form: ProductForm,
    ) -> Result<Activation> {
        let c = output_gradient(c, &self.output_dims(dims)?, &self.name)?;
        let weight = Packed::new(self.matrix(&read(&self.weight)?), form);
        Ok(linear::rows_times(Rows::Plain(&read(&c)?), &weight, epilogue).into_tensor(dims)?.into())
    }

    /// Returns `∂W`, if the weight is a variable, and `∂b` for an input of these rows, of shape `dims`.
    pub(super) fn gradients(
        &self,
        x: Rows<'_>,
        dims: &[usize],
        c: &Activation,
        form: ProductForm,
    ) -> Result<ParameterGradients> {
        let c = output_gradient(c, &self.output_dims(dims)?, &self.name)?;
        let c = read(&c)?;
        let mut gradients = Vec::new();
        if self.weight.is_variable() {
            let dw = linear::columns_times_rows(&c, self.outputs, x, self.inputs, form);
            gradients.push((self.weight.id(), dw.into_tensor(self.weight.shape())?));
        }
        if let Some(bias) = &self.bias {
            gradients.push((bias.id(), tensor(column_sums(&c, self.outputs), bias.shape())?));
        }
        Ok(gradients)
    }
}

impl Differentiable for Linear {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        self.output_dims(x.dims())?;
        if self.form == Form::CandleOperations {
            return candle_operations::forward(self, x, pass);
        }
        let x = dense(x, &self.name)?;
        let y = self.apply(Rows::Plain(&read(&x)?), x.dims(), ProductForm::of(pass.precision))?;
        Ok((y.into(), if pass.is_train() { SavedTensor::new(x, pass)?.saved() } else { Saved::nothing() }))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let x: &SavedTensor = saved.get()?;
        let (dims, form) = (x.dims(), ProductForm::of(x.precision()));
        let input = wants.input.then(|| self.input_gradient(dims, c, RowsEpilogue::Nothing, form)).transpose()?;
        let parameters = match wants.parameters {
            true => self.gradients(Rows::Plain(&read(&x.tensor()?)?), dims, c, form)?,
            false => Vec::new(),
        };
        Ok(Gradients { input, parameters })
    }
}
