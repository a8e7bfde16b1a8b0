//! Tensors that layers save for their backward passes, as they are or rounded.

use candle_core::{Shape, Tensor};
use interlock::{ActivationDtype, Pass, Precision, Result, Saved, SavedMemory};

use super::slices::{Values, read};
use crate::kernels::{half, numbers::Numbers};

/// A dense `f32` tensor between a forward pass and its last backward pass, and the precision of both.
#[derive(Debug)]
pub(super) struct SavedTensor {
    values: SavedValues,
    precision: Precision,
}

#[derive(Debug)]
enum SavedValues {
    /// In `f32`.
    Whole(Tensor),
    /// Rounded to `bf16`.
    Half(Vec<u16>, Shape),
}

/// The numbers of a saved tensor, which stays locked for reading until this is dropped.
pub(super) enum SavedNumbers<'a> {
    Whole(Values<'a, f32>),
    Half(&'a [u16]),
}

impl SavedNumbers<'_> {
    pub(super) fn get(&self) -> Numbers<'_> {
        match self {
            Self::Whole(numbers) => Numbers::F32(numbers),
            Self::Half(numbers) => Numbers::Bf16(numbers),
        }
    }
}

impl SavedTensor {
    /// Saves `x` in the dtype that `pass` asks for.
    pub(super) fn new(x: Tensor, pass: &Pass) -> Result<Self> {
        let values = match pass.dtype {
            ActivationDtype::F32 => SavedValues::Whole(x),
            ActivationDtype::Bf16 => SavedValues::Half(half::round(&read(&x)?), x.shape().clone()),
        };
        Ok(Self { values, precision: pass.precision })
    }

    /// Holds `x` as it is.
    pub(super) fn whole(x: Tensor, pass: &Pass) -> Self {
        Self { values: SavedValues::Whole(x), precision: pass.precision }
    }

    /// Holds numbers that have been rounded.
    pub(super) fn half(x: Vec<u16>, shape: impl Into<Shape>, pass: &Pass) -> Self {
        Self { values: SavedValues::Half(x, shape.into()), precision: pass.precision }
    }

    /// Rounds it, if `pass` asks for that.
    pub(super) fn save(self, pass: &Pass) -> Result<Self> {
        match self.values {
            SavedValues::Whole(x) => Self::new(x, pass),
            SavedValues::Half(..) => Ok(self),
        }
    }

    /// Returns its numbers, without a copy.
    pub(super) fn numbers(&self) -> Result<SavedNumbers<'_>> {
        Ok(match &self.values {
            SavedValues::Whole(x) => SavedNumbers::Whole(read(x)?),
            SavedValues::Half(bits, _) => SavedNumbers::Half(bits),
        })
    }

    /// Returns the precision of the forward pass, which is that of its backward passes.
    pub(super) fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns the memory that it takes.
    pub(super) fn memory(&self) -> SavedMemory {
        match &self.values {
            SavedValues::Whole(x) => SavedMemory::of_tensor(x),
            SavedValues::Half(bits, _) => SavedMemory::of_slice(bits),
        }
    }

    /// Makes this the only tensor that a layer saves.
    pub(super) fn saved(self) -> Saved {
        let memory = self.memory();
        Saved::new(self).with_memory([memory])
    }

    /// Returns the tensor in `f32`, as a copy if it was rounded.
    pub(super) fn tensor(&self) -> Result<Tensor> {
        match &self.values {
            SavedValues::Whole(x) => Ok(x.clone()),
            SavedValues::Half(bits, shape) => half::widen(bits).into_tensor(shape),
        }
    }

    /// Returns its dimensions.
    pub(super) fn dims(&self) -> &[usize] {
        match &self.values {
            SavedValues::Whole(x) => x.dims(),
            SavedValues::Half(_, shape) => shape.dims(),
        }
    }
}
