//! A linear layer of what a cheap layer gives: `y = f(x) Wᵀ + b`.
//!
//! The same values as the two one after another. What `f` gives, which the linear layer would keep for its own gradient, is not kept but
//! computed again from what `f` keeps anyway: an eighth of a Transformer's memory for its norms and a quarter for its GELUs.

use interlock::{Activation, Differentiable, Gradients, Pass, Pulled, Result, Saved, Wants, differentiable::Pending};

use super::Linear;

/// A layer whose output costs little to compute again.
pub trait Recomputed: Differentiable {
    /// What the forward pass that saved `saved` gave, to the bit.
    fn output(&self, saved: &Saved) -> Result<Activation>;
}

/// `y = f(x) Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct LinearOf<F> {
    inner: F,
    pub(super) linear: Linear,
}

impl<F> LinearOf<F> {
    /// `linear` behind `inner`.
    pub fn new(inner: F, linear: Linear) -> Self {
        Self { inner, linear }
    }
}

/// What an input pass leaves: the cotangent, and what the inner layer leaves.
type Left = (Activation, Pending);

struct SavedLinearOf {
    inner: Saved,
    /// The shape of what the inner layer gave.
    dims: Vec<usize>,
}

impl<F: Recomputed> LinearOf<F> {
    fn linear_gradients(&self, saved: &SavedLinearOf, c: &Activation) -> Result<Gradients> {
        self.linear.gradients(self.inner.output(&saved.inner)?.single()?, c)
    }
}

impl<F: Recomputed> Differentiable for LinearOf<F> {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let (x, inner) = self.inner.forward(x, pass)?;
        let y = self.linear.apply(x.single()?)?;
        let dims = x.single()?.dims().to_vec();
        let saved = if pass.is_train() { Saved::new(SavedLinearOf { inner, dims }) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let saved: &SavedLinearOf = saved.get()?;
        let mut pulled = Pulled::default();
        if wants.input || wants.parameters && self.inner.has_parameters() {
            let inner = self.linear.input_gradient(&saved.dims, c)?;
            pulled = self.inner.pull_back(&saved.inner, &inner, wants)?;
        }
        if wants.parameters {
            pulled.parameters.extend(self.linear_gradients(saved, c)?);
        }
        Ok(pulled)
    }

    fn input_pass(&self, saved: &Saved, c: &Activation) -> Result<(Activation, Pending)> {
        let saved: &SavedLinearOf = saved.get()?;
        let inner = self.linear.input_gradient(&saved.dims, c)?;
        let (input, pending) = self.inner.input_pass(&saved.inner, &inner)?;
        Ok((input, Pending::new::<Left>((c.clone(), pending))))
    }

    fn parameter_pass(&self, saved: &Saved, pending: Pending) -> Result<Gradients> {
        let saved: &SavedLinearOf = saved.get()?;
        let (c, pending) = pending.take::<Left>()?;
        let mut gradients = self.inner.parameter_pass(&saved.inner, pending)?;
        gradients.extend(self.linear_gradients(saved, &c)?);
        Ok(gradients)
    }
}
