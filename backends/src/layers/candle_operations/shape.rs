//! Changes of shape.

use candle_core::{Shape, Tensor};
use interlock::{Gradients, Held, Pass, Result, Wants};

use super::{CandleOperations, input};
use crate::layers::Flatten;

impl CandleOperations for Flatten {
    type Saved = Shape;

    fn name(&self) -> &str {
        "flatten"
    }

    fn compute(&self, x: &Tensor, _: &Pass) -> Result<(Tensor, Shape)> {
        Ok((x.reshape((x.dim(0)?, ()))?, x.shape().clone()))
    }

    fn held(_: &Shape) -> Vec<Held> {
        Vec::new()
    }

    fn compute_gradients(&self, shape: &Shape, c: &Tensor, _: Wants) -> Result<Gradients> {
        Ok(input(c.reshape(shape)?))
    }
}
