//! Tensors between a forward pass and its last backward pass, as they are or rounded.

use candle_core::{DType, Tensor};
use interlock::{ActivationDtype, Held, Pass, Result};

/// A tensor that is kept.
pub(crate) struct SavedCandleTensor {
    tensor: Tensor,
    /// The dtype that it had.
    dtype: DType,
}

impl SavedCandleTensor {
    /// Keeps `x` in the dtype that `pass` says, which is never wider than its own.
    pub(crate) fn new(x: &Tensor, pass: &Pass) -> Result<Self> {
        let tensor = match pass.dtype {
            ActivationDtype::Bf16 if pass.is_train() => x.to_dtype(DType::BF16)?,
            _ => x.clone(),
        };
        Ok(Self { tensor, dtype: x.dtype() })
    }

    /// The memory that it takes.
    pub(crate) fn held(&self) -> Held {
        Held::tensor(&self.tensor)
    }

    /// The tensor in its own dtype; a copy where it was rounded.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        Ok(self.tensor.to_dtype(self.dtype)?)
    }

    /// Its dimensions.
    pub(crate) fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }
}
