//! Changes of shape: `(B, …) → (B, n)`.

use candle_core::Shape;
use interlock::{Activation, Differentiable, Pass, Pulled, Result, Saved, Wants};

use super::{
    composed,
    slices::{cotangent, wrong_shape},
};

/// Makes one dimension of all but the first: `(B, C, H, W) → (B, C·H·W)`. Copies only where the elements are not side by side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flatten;

impl Differentiable for Flatten {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let &[batch, ..] = x.dims() else {
            return Err(wrong_shape("flatten", x.dims(), "(B, …)"));
        };
        if composed::serves(x) {
            return composed::forward(self, x, pass);
        }
        let y = x.detach().reshape((batch, x.elem_count() / batch.max(1)))?;
        let saved = if pass.is_train() { Saved::new(x.shape().clone()) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        if let Some(pulled) = composed::pull_back(self, saved, c, wants) {
            return pulled;
        }
        let shape: &Shape = saved.get()?;
        if !wants.input {
            return Ok(Pulled::default());
        }
        let batch = shape.dims()[0];
        let c = cotangent(c, &[batch, shape.elem_count() / batch.max(1)], "flatten")?;
        Ok(Pulled { input: Some(c.reshape(shape)?.into()), ..Pulled::default() })
    }

    fn has_parameters(&self) -> bool {
        false
    }
}
