//! The dtypes of activations and gradients at boundaries and of saved activations, and the precision in which stages compute.

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::{Activation, Result};

/// The dtype of the `f32` values that cross boundaries and of saved activations. The precision in which a stage computes is its device's and does not
/// depend on it. Other dtypes (tokens, masks) are not changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ActivationDtype {
    /// Unchanged.
    #[default]
    F32,
    /// Rounded to `bf16`: half the bytes, the range of `f32`, and about three significant decimal digits.
    Bf16,
}

/// The precision in which layers compute.
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
    /// Widens an arriving activation to `f32` if this is [`Self::F32`]; otherwise returns it unchanged.
    pub(crate) fn enter(self, activation: &Activation) -> Result<Activation> {
        match self {
            Self::F32 => convert(activation, DType::BF16, DType::F32),
            Self::Bf16 => Ok(activation.clone()),
        }
    }
}

impl ActivationDtype {
    /// Rounds a leaving activation to `bf16` if this is [`Self::Bf16`]; otherwise returns it unchanged.
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
