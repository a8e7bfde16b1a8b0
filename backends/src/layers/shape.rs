//! Changes of shape: `(B, …) → (B, n)`.

use candle_core::Shape;
use interlock::{Activation, Differentiable, Gradients, Pass, Result, Saved, Wants};

use super::{
    candle_operations,
    slices::{output_gradient, wrong_shape},
};

/// Flattens all dimensions but the first: `(B, C, H, W) → (B, C·H·W)`. Copies only if the elements are not contiguous.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flatten;

impl Differentiable for Flatten {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let &[batch, ..] = x.dims() else {
            return Err(wrong_shape("flatten", x.dims(), "(B, …)"));
        };
        if candle_operations::are_for(x) {
            return candle_operations::forward(self, x, pass);
        }
        let y = x.detach().reshape((batch, x.elem_count() / batch.max(1)))?;
        let saved = if pass.is_train() { Saved::new(x.shape().clone()) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let shape: &Shape = saved.get()?;
        if !wants.input {
            return Ok(Gradients::default());
        }
        let batch = shape.dims()[0];
        let c = output_gradient(c, &[batch, shape.elem_count() / batch.max(1)], "flatten")?;
        Ok(Gradients { input: Some(c.reshape(shape)?.into()), ..Gradients::default() })
    }

    fn has_parameters(&self) -> bool {
        false
    }
}
