//! Tensors that are saved for backward passes, as they are or rounded.

use candle_core::{DType, Tensor};
use interlock::{ActivationDtype, Pass, Result, SavedMemory};

/// A tensor that is saved for backward passes.
pub(crate) struct SavedCandleTensor {
    tensor: Tensor,
    /// The dtype before it was saved.
    dtype: DType,
}

impl SavedCandleTensor {
    /// Saves `x` in the dtype that `pass` asks for, which is never wider than its own.
    pub(crate) fn new(x: &Tensor, pass: &Pass) -> Result<Self> {
        let tensor = match pass.dtype {
            ActivationDtype::Bf16 if pass.is_train() => x.to_dtype(DType::BF16)?,
            _ => x.clone(),
        };
        Ok(Self { tensor, dtype: x.dtype() })
    }

    /// Returns the memory that it takes.
    pub(crate) fn memory(&self) -> SavedMemory {
        SavedMemory::of_tensor(&self.tensor)
    }

    /// Returns the tensor in its original dtype, as a copy if it was rounded.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        Ok(self.tensor.to_dtype(self.dtype)?)
    }

    /// Returns its dimensions.
    pub(crate) fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }
}
