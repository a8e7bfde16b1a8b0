//! Tensors that layers save for their backward passes, as they are or rounded.

use candle_core::{Shape, Tensor};
use interlock::{ActivationDtype, Pass, Result, Saved, SavedMemory};

use super::slices::read;
use crate::kernels::half;

/// A dense `f32` tensor between a forward pass and its last backward pass.
#[derive(Debug)]
pub(super) enum SavedTensor {
    /// In `f32`.
    Whole(Tensor),
    /// Rounded to `bf16`.
    Half(Vec<u16>, Shape),
}

impl SavedTensor {
    /// Saves `x` in the dtype that `pass` asks for.
    pub(super) fn new(x: Tensor, pass: &Pass) -> Result<Self> {
        Ok(match pass.dtype {
            ActivationDtype::F32 => Self::Whole(x),
            ActivationDtype::Bf16 => Self::Half(half::round(&read(&x)?), x.shape().clone()),
        })
    }

    /// Returns the memory that it takes.
    pub(super) fn memory(&self) -> SavedMemory {
        match self {
            Self::Whole(x) => SavedMemory::of_tensor(x),
            Self::Half(bits, _) => SavedMemory::of_slice(bits),
        }
    }

    /// Makes this the only tensor that a layer saves.
    pub(super) fn saved(self) -> Saved {
        let memory = self.memory();
        Saved::new(self).with_memory([memory])
    }

    /// Returns the tensor in `f32`, as a copy if it was rounded.
    pub(super) fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Whole(x) => Ok(x.clone()),
            Self::Half(bits, shape) => half::widen(bits).into_tensor(shape),
        }
    }

    /// Returns its dimensions.
    pub(super) fn dims(&self) -> &[usize] {
        match self {
            Self::Whole(x) => x.dims(),
            Self::Half(_, shape) => shape.dims(),
        }
    }
}
