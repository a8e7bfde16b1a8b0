//! Changes of shape.

use candle_core::{Shape, Tensor};
use interlock::{Gradients, Pass, Result, SavedMemory, Wants};

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

    fn memory(_: &Shape) -> Vec<SavedMemory> {
        Vec::new()
    }

    fn compute_gradients(&self, shape: &Shape, c: &Tensor, _: Wants) -> Result<Gradients> {
        Ok(input(c.reshape(shape)?))
    }
}
