//! Tensors that layers save for their backward passes, as they are or rounded.

use candle_core::{Shape, Tensor};
use interlock::{ActivationDtype, Held, Pass, Result, Saved};

use super::slices::read;
use crate::kernels::half;

/// A dense `f32` tensor between a forward pass and its last backward pass.
#[derive(Debug)]
pub(super) enum SavedTensor {
    /// As it is.
    Whole(Tensor),
    /// Rounded to `bf16`.
    Half(Vec<u16>, Shape),
}

impl SavedTensor {
    /// Keeps `x` in the dtype that `pass` says.
    pub(super) fn new(x: Tensor, pass: &Pass) -> Result<Self> {
        Ok(match pass.dtype {
            ActivationDtype::F32 => Self::Whole(x),
            ActivationDtype::Bf16 => Self::Half(half::round(&read(&x)?), x.shape().clone()),
        })
    }

    /// The memory that it takes.
    pub(super) fn held(&self) -> Held {
        match self {
            Self::Whole(x) => Held::tensor(x),
            Self::Half(bits, _) => Held::slice(bits),
        }
    }

    /// As the only thing that a layer keeps.
    pub(super) fn saved(self) -> Saved {
        let held = self.held();
        Saved::new(self).holding([held])
    }

    /// The tensor, in `f32`; a copy where it was rounded.
    pub(super) fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Whole(x) => Ok(x.clone()),
            Self::Half(bits, shape) => half::widen(bits).into_tensor(shape),
        }
    }

    /// Its dimensions.
    pub(super) fn dims(&self) -> &[usize] {
        match self {
            Self::Whole(x) => x.dims(),
            Self::Half(_, shape) => shape.dims(),
        }
    }
}
