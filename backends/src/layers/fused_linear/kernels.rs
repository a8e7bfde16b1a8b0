//! A linear layer fused with the layer norm or GELU before it, in kernels.
//!
//! GELU is computed while the product reads its rows, and its slope is applied while the product's rows are in the cache.

use interlock::{Activation, Differentiable, Gradients, ParameterGradients, Pass, Pending, Result, Saved, Wants};

use crate::{
    kernels::{
        linear::{Rows, RowsEpilogue},
        panels::ProductForm,
    },
    layers::{
        LayerNorm, Linear,
        saved_tensor::SavedTensor,
        slices::{dense, read},
    },
};

/// `y = f(x) Wᵀ + b`.
pub(super) struct LinearKernels {
    pub(super) inner: Inner,
    pub(super) linear: Linear,
}

/// The layer `f`.
pub(super) enum Inner {
    Norm(LayerNorm),
    Gelu,
}

struct SavedFused {
    /// The tensors that the norm saves, or GELU's input.
    inner: Saved,
    /// The input's shape, which `f` does not change.
    dims: Vec<usize>,
    form: ProductForm,
}

/// The work that a backward pass for the input leaves: the output gradient, and the norm's own pending work.
type PendingParts = (Activation, Option<Pending>);

impl LinearKernels {
    /// Calls `work` with the output of `f`, the same to the bit as in the forward pass.
    fn with_rows<R>(&self, inner: &Saved, work: impl FnOnce(Rows<'_>) -> Result<R>) -> Result<R> {
        match &self.inner {
            Inner::Norm(norm) => work(Rows::Plain(&read(&norm.output(inner)?)?)),
            Inner::Gelu => work(Rows::Gelu(&read(&inner.get::<SavedTensor>()?.tensor()?)?)),
        }
    }

    fn linear_gradients(&self, saved: &SavedFused, c: &Activation) -> Result<ParameterGradients> {
        self.with_rows(&saved.inner, |rows| self.linear.gradients(rows, &saved.dims, c, saved.form))
    }

    /// Returns the gradient of the output of `f`.
    fn inner_output_gradient(&self, saved: &SavedFused, c: &Activation) -> Result<Activation> {
        self.linear.input_gradient(&saved.dims, c, RowsEpilogue::Nothing, saved.form)
    }

    /// Returns the gradient of GELU's input.
    fn gelu_input_gradient(&self, saved: &SavedFused, c: &Activation) -> Result<Activation> {
        let x = saved.inner.get::<SavedTensor>()?.tensor()?;
        self.linear.input_gradient(&saved.dims, c, RowsEpilogue::GeluSlope(&read(&x)?), saved.form)
    }
}

impl Differentiable for LinearKernels {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let (dims, form) = (x.single()?.dims().to_vec(), ProductForm::of(pass.precision));
        let (y, inner) = match &self.inner {
            Inner::Norm(norm) => {
                let (normed, inner) = norm.forward(x, pass)?;
                (self.linear.apply(Rows::Plain(&read(normed.single()?)?), &dims, form)?, inner)
            }
            Inner::Gelu => {
                let x = dense(x.single()?, "GELU")?;
                let y = self.linear.apply(Rows::Gelu(&read(&x)?), &dims, form)?;
                (y, if pass.is_train() { SavedTensor::new(x, pass)?.saved() } else { Saved::nothing() })
            }
        };
        let saved = match pass.is_train() {
            true => {
                let memory = inner.memory().to_vec();
                Saved::new(SavedFused { inner, dims, form }).with_memory(memory)
            }
            false => Saved::nothing(),
        };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if wants == (Wants { input: false, parameters: false }) {
            return Ok(Gradients::default());
        }
        let saved: &SavedFused = saved.get()?;
        let mut gradients = match &self.inner {
            Inner::Norm(norm) => norm.backward(&saved.inner, &self.inner_output_gradient(saved, c)?, wants)?,
            Inner::Gelu if wants.input => {
                Gradients { input: Some(self.gelu_input_gradient(saved, c)?), ..Gradients::default() }
            }
            _ => Gradients::default(),
        };
        if wants.parameters {
            gradients.parameters.extend(self.linear_gradients(saved, c)?);
        }
        Ok(gradients)
    }

    fn backward_input(&self, saved: &Saved, c: &Activation) -> Result<(Activation, Pending)> {
        let saved: &SavedFused = saved.get()?;
        let (input, left) = match &self.inner {
            Inner::Norm(norm) => {
                let (input, left) = norm.backward_input(&saved.inner, &self.inner_output_gradient(saved, c)?)?;
                (input, Some(left))
            }
            Inner::Gelu => (self.gelu_input_gradient(saved, c)?, None),
        };
        Ok((input, Pending::new::<PendingParts>((c.clone(), left))))
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        let saved: &SavedFused = saved.get()?;
        let (c, left) = pending.take::<PendingParts>()?;
        let mut gradients = match (&self.inner, left) {
            (Inner::Norm(norm), Some(left)) => norm.backward_parameters(&saved.inner, left)?,
            _ => Vec::new(),
        };
        gradients.extend(self.linear_gradients(saved, &c)?);
        Ok(gradients)
    }
}
