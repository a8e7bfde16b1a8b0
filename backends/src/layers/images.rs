//! Images as tensors of shape `(B, C, H, W)`, with the channels last in memory.
//!
//! A channels-last image is a tensor of shape `(B, C, H, W)` whose elements lie in memory as those of `(B, H, W, C)`: PyTorch's `channels_last`.
//! All layers for images take any layout and return this one, so nothing is copied between them.

use candle_core::Tensor;
use interlock::{Activation, Result};

use super::slices::{dense, output_gradient_of, wrong_shape};
use crate::kernels::aligned_buffer::Filled;

/// Returns `(B, C, H, W)` as a contiguous `(B, H, W, C)`. Copies only if the elements are in another order.
pub(super) fn channels_last(x: &Tensor, layer: &str) -> Result<Tensor> {
    if x.rank() != 4 {
        return Err(wrong_shape(layer, x.dims(), "(B, C, H, W)"));
    }
    dense(&x.permute((0, 2, 3, 1))?, layer)
}

/// Returns the output gradient of images of shape `dims`, `(B, C, H, W)`, as [`channels_last`].
pub(super) fn output_gradient_last(c: &Activation, dims: &[usize], layer: &str) -> Result<Tensor> {
    channels_last(output_gradient_of(c, dims, layer)?, layer)
}

/// Returns a contiguous `(B, H, W, C)` as `(B, C, H, W)`.
pub(super) fn channels_first(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 3, 1, 2))?)
}

/// Returns numbers `[B][H][W][C]` as a tensor `(B, C, H, W)`.
pub(super) fn images(numbers: Filled, batch: usize, [height, width, channels]: [usize; 3]) -> Result<Tensor> {
    channels_first(&numbers.into_tensor((batch, height, width, channels))?)
}

/// The order of a tensor's elements in memory. Elementwise layers return their output in the order of their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryOrder {
    /// Row-major.
    Plain,
    /// Channels-last images.
    ChannelsLast,
}

impl MemoryOrder {
    /// Returns the order of `x`; `Plain` if it has neither.
    pub(super) fn of(x: &Tensor) -> Self {
        match x.rank() == 4 && !x.is_contiguous() && x.permute((0, 2, 3, 1)).is_ok_and(|x| x.is_contiguous()) {
            true => Self::ChannelsLast,
            false => Self::Plain,
        }
    }

    /// Returns the elements of `x` contiguous in this order. Copies only if they are not.
    pub(super) fn dense(self, x: &Tensor, layer: &str) -> Result<Tensor> {
        match self {
            Self::Plain => dense(x, layer),
            Self::ChannelsLast => channels_last(x, layer),
        }
    }

    /// Returns a result of [`Self::dense`] in the tensor's original shape.
    pub(super) fn tensor_of(self, dense: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain => Ok(dense.clone()),
            Self::ChannelsLast => channels_first(dense),
        }
    }
}
