//! In which dtype activations and gradients cross boundaries, and what forward passes save is kept.

use candle_core::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Activation, Result};

/// The dtype of the `f32` values that go from stage to stage, and of those that layers keep for their pull-backs; stages compute in `f32`
/// whatever it is, and other dtypes (tokens, masks) are left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ActivationDtype {
    /// As they are.
    #[default]
    F32,
    /// Rounded to `bf16`: half of the bytes, three significant decimal digits, the same range.
    Bf16,
}

impl ActivationDtype {
    /// What is sent of `activation`.
    pub(crate) fn pack(self, activation: &Activation) -> Result<Activation> {
        self.convert(activation, DType::F32, DType::BF16)
    }

    /// What is computed with of what was sent.
    pub(crate) fn unpack(self, activation: &Activation) -> Result<Activation> {
        self.convert(activation, DType::BF16, DType::F32)
    }

    fn convert(self, activation: &Activation, from: DType, to: DType) -> Result<Activation> {
        match self {
            Self::F32 => Ok(activation.clone()),
            Self::Bf16 => activation.try_map(|t| Ok(if t.dtype() == from { t.to_dtype(to)? } else { t.clone() })),
        }
    }
}
