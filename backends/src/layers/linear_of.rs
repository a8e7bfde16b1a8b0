//! A linear layer of what a cheap layer gives: `y = f(x) Wᵀ + b`, `f` a layer norm or GELU.
//!
//! The same values as the two one after another. What `f` gives, which the linear layer would keep for its own gradient, is not kept but
//! computed again from what `f` keeps anyway: an eighth of a Transformer's memory for its norms and a quarter for its GELUs. GELU is computed
//! where the product reads its rows, and its slope multiplied in where the product's rows are near. Elsewhere than on the CPU the two are
//! computed one after another, and both keep their inputs.

use interlock::{
    Activation, Differentiable, Gradients, ParameterGradients, Pass, Result, Saved, Sequential, Wants,
    differentiation::Pending,
};

use super::{
    Gelu, LayerNorm, Linear, composed,
    kept::Kept,
    slices::{dense, read},
};
use crate::kernels::linear::{Rows, Then};

/// `y = f(x) Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct LinearOf {
    inner: Inner,
    pub(super) linear: Linear,
}

#[derive(Clone, Debug)]
enum Inner {
    Norm(LayerNorm),
    Gelu,
}

struct SavedLinearOf {
    /// What the norm keeps, or GELU's input.
    inner: Saved,
    /// The input's shape, which `f` does not change.
    dims: Vec<usize>,
}

/// What an input pass leaves: the output_gradient, and what the norm leaves.
type Left = (Activation, Option<Pending>);

impl LinearOf {
    /// `linear` behind `norm`.
    pub fn norm(norm: LayerNorm, linear: Linear) -> Self {
        Self { inner: Inner::Norm(norm), linear }
    }

    /// `linear` behind GELU.
    pub fn gelu(linear: Linear) -> Self {
        Self { inner: Inner::Gelu, linear }
    }

    /// `f` and the linear layer one after another, of the same parameters: how it is composed.
    fn parts(&self) -> Sequential {
        let parts = match &self.inner {
            Inner::Norm(norm) => Sequential::default().and(norm.clone()),
            Inner::Gelu => Sequential::default().and(Gelu),
        };
        parts.and(self.linear.clone())
    }

    /// Gives `work` what `f` gave, to the bit.
    fn with_rows<R>(&self, inner: &Saved, work: impl FnOnce(Rows<'_>) -> Result<R>) -> Result<R> {
        match &self.inner {
            Inner::Norm(norm) => work(Rows::Plain(&read(&norm.output(inner)?)?)),
            Inner::Gelu => work(Rows::Gelu(&read(&inner.get::<Kept>()?.tensor()?)?)),
        }
    }

    fn linear_gradients(&self, saved: &SavedLinearOf, c: &Activation) -> Result<ParameterGradients> {
        self.with_rows(&saved.inner, |rows| self.linear.gradients(rows, &saved.dims, c))
    }

    /// The output_gradient of what `f` gave.
    fn inner_output_gradient(&self, saved: &SavedLinearOf, c: &Activation) -> Result<Activation> {
        self.linear.input_gradient(&saved.dims, c, Then::Nothing)
    }

    /// The output_gradient of GELU's input.
    fn through_gelu(&self, saved: &SavedLinearOf, c: &Activation) -> Result<Activation> {
        let x = saved.inner.get::<Kept>()?.tensor()?;
        self.linear.input_gradient(&saved.dims, c, Then::GeluSlope(&read(&x)?))
    }
}

impl Differentiable for LinearOf {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        if composed::serves(x.single()?) {
            return self.parts().forward(x, pass);
        }
        let dims = x.single()?.dims().to_vec();
        let (y, inner) = match &self.inner {
            Inner::Norm(norm) => {
                let (normed, inner) = norm.forward(x, pass)?;
                (self.linear.apply(Rows::Plain(&read(normed.single()?)?), &dims)?, inner)
            }
            Inner::Gelu => {
                let x = dense(x.single()?, "GELU")?;
                let y = self.linear.apply(Rows::Gelu(&read(&x)?), &dims)?;
                (y, if pass.is_train() { Kept::new(x, pass)?.saved() } else { Saved::nothing() })
            }
        };
        let saved = match pass.is_train() {
            true => {
                let held = inner.held().to_vec();
                Saved::new(SavedLinearOf { inner, dims }).holding(held)
            }
            false => Saved::nothing(),
        };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if wants == (Wants { input: false, parameters: false }) {
            return Ok(Gradients::default());
        }
        if composed::is_of_parts(saved) {
            return self.parts().backward(saved, c, wants);
        }
        let saved: &SavedLinearOf = saved.get()?;
        let mut pulled = match &self.inner {
            Inner::Norm(norm) => norm.backward(&saved.inner, &self.inner_output_gradient(saved, c)?, wants)?,
            Inner::Gelu if wants.input => {
                Gradients { input: Some(self.through_gelu(saved, c)?), ..Gradients::default() }
            }
            _ => Gradients::default(),
        };
        if wants.parameters {
            pulled.parameters.extend(self.linear_gradients(saved, c)?);
        }
        Ok(pulled)
    }

    fn backward_input(&self, saved: &Saved, c: &Activation) -> Result<(Activation, Pending)> {
        if composed::is_of_parts(saved) {
            return self.parts().backward_input(saved, c);
        }
        let saved: &SavedLinearOf = saved.get()?;
        let (input, left) = match &self.inner {
            Inner::Norm(norm) => {
                let (input, left) = norm.backward_input(&saved.inner, &self.inner_output_gradient(saved, c)?)?;
                (input, Some(left))
            }
            Inner::Gelu => (self.through_gelu(saved, c)?, None),
        };
        Ok((input, Pending::new::<Left>((c.clone(), left))))
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        if composed::is_of_parts(saved) {
            return self.parts().backward_parameters(saved, pending);
        }
        let saved: &SavedLinearOf = saved.get()?;
        let (c, left) = pending.take::<Left>()?;
        let mut gradients = match (&self.inner, left) {
            (Inner::Norm(norm), Some(left)) => norm.backward_parameters(&saved.inner, left)?,
            _ => Vec::new(),
        };
        gradients.extend(self.linear_gradients(saved, &c)?);
        Ok(gradients)
    }

    fn last_backward(&self, saved: Saved, c: Activation, wants: Wants) -> Result<Gradients> {
        match composed::is_of_parts(&saved) && (wants.input || wants.parameters) {
            true => self.parts().last_backward(saved, c, wants),
            false => self.backward(&saved, &c, wants),
        }
    }

    fn last_backward_parameters(&self, saved: Saved, pending: Pending) -> Result<ParameterGradients> {
        match composed::is_of_parts(&saved) {
            true => self.parts().last_backward_parameters(saved, pending),
            false => self.backward_parameters(&saved, pending),
        }
    }
}
