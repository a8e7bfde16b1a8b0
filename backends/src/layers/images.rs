//! Images as tensors: `(B, C, H, W)` to the outside, with the channels last in memory.
//!
//! A channels-last image is a tensor of shape `(B, C, H, W)` whose elements lie as those of `(B, H, W, C)`: PyTorch's `channels_last`. All layers
//! for images take any layout and give this one, so between them nothing is copied.

use candle_core::Tensor;
use interlock::{Activation, Result};

use super::slices::{dense, output_gradient_of, wrong_shape};
use crate::kernels::aligned_buffer::Filled;

/// `(B, C, H, W)` as a contiguous `(B, H, W, C)`. Copies only if the elements lie otherwise.
pub(super) fn channels_last(x: &Tensor, layer: &str) -> Result<Tensor> {
    if x.rank() != 4 {
        return Err(wrong_shape(layer, x.dims(), "(B, C, H, W)"));
    }
    dense(&x.permute((0, 2, 3, 1))?, layer)
}

/// The output gradient of images of shape `dims`, `(B, C, H, W)`, as [`channels_last`] gives it.
pub(super) fn output_gradient_last(c: &Activation, dims: &[usize], layer: &str) -> Result<Tensor> {
    channels_last(output_gradient_of(c, dims, layer)?, layer)
}

/// A contiguous `(B, H, W, C)` as `(B, C, H, W)`.
pub(super) fn channels_first(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 3, 1, 2))?)
}

/// Numbers `[B][H][W][C]` as a tensor `(B, C, H, W)`.
pub(super) fn images(numbers: Filled, batch: usize, [height, width, channels]: [usize; 3]) -> Result<Tensor> {
    channels_first(&numbers.into_tensor((batch, height, width, channels))?)
}

/// How the elements of a tensor lie in memory, for layers that take one element at a time and give what they took in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryOrder {
    /// Row by row, as its shape says.
    Plain,
    /// As channels-last images.
    ChannelsLast,
}

impl MemoryOrder {
    /// That of `x`; `Plain` where it is neither.
    pub(super) fn of(x: &Tensor) -> Self {
        match x.rank() == 4 && !x.is_contiguous() && x.permute((0, 2, 3, 1)).is_ok_and(|x| x.is_contiguous()) {
            true => Self::ChannelsLast,
            false => Self::Plain,
        }
    }

    /// Returns the elements of `x` side by side in this order. Copies only if they lie otherwise.
    pub(super) fn dense(self, x: &Tensor, layer: &str) -> Result<Tensor> {
        match self {
            Self::Plain => dense(x, layer),
            Self::ChannelsLast => channels_last(x, layer),
        }
    }

    /// What [`Self::dense`] gave, in the shape that it was given.
    pub(super) fn tensor_of(self, dense: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain => Ok(dense.clone()),
            Self::ChannelsLast => channels_first(dense),
        }
    }
}
