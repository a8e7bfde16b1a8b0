//! Dropout: a mask that the host draws, the same on every device.

use candle_core::{Shape, Tensor};
use interlock::{Gradients, Pass, Result, SavedMemory, Wants};

use super::{CandleOperations, input, scaled, where_set};
use crate::layers::{Dropout, dropout};

/// The elements that dropout keeps.
pub(crate) struct Mask {
    /// One where an element is kept, zero elsewhere, of `u8`.
    keep: Tensor,
    scale: f64,
}

impl Mask {
    /// Draws a mask for a tensor of this shape on the device of `like`. Returns none if all elements are kept.
    pub(super) fn draw(
        probability: f64,
        name: &str,
        pass: &Pass,
        shape: impl Into<Shape>,
        like: &Tensor,
    ) -> Result<Option<Self>> {
        let shape = shape.into();
        let Some(keep) = dropout::keep(probability, name, pass, shape.elem_count())? else { return Ok(None) };
        let keep: Vec<u8> = keep.into_iter().map(u8::from).collect();
        let keep = Tensor::from_vec(keep, shape, like.device())?;
        Ok(Some(Self { keep, scale: f64::from(dropout::scale(probability)) }))
    }

    /// Returns the kept elements of `x`, scaled, and zeros elsewhere.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        where_set(&self.keep, &scaled(x, self.scale)?)
    }

    pub(super) fn memory(&self) -> SavedMemory {
        SavedMemory::of_tensor(&self.keep)
    }
}

/// Applies the mask to `x`, if there is one.
pub(super) fn masked(mask: Option<&Mask>, x: &Tensor) -> Result<Tensor> {
    mask.map_or_else(|| Ok(x.clone()), |mask| mask.apply(x))
}

impl CandleOperations for Dropout {
    type Saved = Option<Mask>;

    fn name(&self) -> &str {
        &self.name
    }

    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Option<Mask>)> {
        let mask = Mask::draw(self.probability, &self.name, pass, x.shape(), x)?;
        Ok((masked(mask.as_ref(), x)?, mask))
    }

    fn memory(mask: &Option<Mask>) -> Vec<SavedMemory> {
        mask.iter().map(Mask::memory).collect()
    }

    fn compute_gradients(&self, mask: &Option<Mask>, c: &Tensor, _: Wants) -> Result<Gradients> {
        Ok(input(masked(mask.as_ref(), c)?))
    }
}
