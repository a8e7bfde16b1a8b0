//! In which dtype activations and gradients cross boundaries, in which what forward passes save is kept, and in which stages compute.

use candle_core::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Activation, Result};

/// The dtype of the `f32` values that cross boundaries and of saved activations. Stages compute in the
/// precision of their devices whatever it is, and other dtypes (tokens, masks) are left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ActivationDtype {
    /// As they are.
    #[default]
    F32,
    /// Rounded to `bf16`: half of the bytes, three significant decimal digits, the same range.
    Bf16,
}

/// In which precision layers compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// `f32` throughout.
    #[default]
    F32,
    /// Products of matrices and convolutions, and the activations and gradients between layers, in `bf16`; statistics, sums, losses, parameters
    /// and their gradients in `f32`.
    Bf16,
}

impl Precision {
    /// What is computed with of what was sent, whatever the sender computes in.
    pub(crate) fn enter(self, activation: &Activation) -> Result<Activation> {
        match self {
            Self::F32 => convert(activation, DType::BF16, DType::F32),
            Self::Bf16 => Ok(activation.clone()),
        }
    }
}

impl ActivationDtype {
    /// What is sent of `activation`.
    pub(crate) fn pack(self, activation: &Activation) -> Result<Activation> {
        match self {
            Self::F32 => Ok(activation.clone()),
            Self::Bf16 => convert(activation, DType::F32, DType::BF16),
        }
    }
}

fn convert(activation: &Activation, from: DType, to: DType) -> Result<Activation> {
    activation.try_map(|t| Ok(if t.dtype() == from { t.to_dtype(to)? } else { t.clone() }))
}
