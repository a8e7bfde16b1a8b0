//! The dtypes of activations and gradients at boundaries and of saved activations, and the precision in which stages compute.

use std::fmt;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Activation, Error, Result};

/// The dtype of the `f32` values that a stage sends and of the activations that it saves. A stage that computes in `bf16` ([`Precision`]) always has
/// `bf16`. Other dtypes (tokens, masks) are not changed.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// `f32` throughout.
    #[default]
    F32,
    /// The factors of products of matrices and of convolutions, and saved activations, rounded to `bf16` (to nearest, ties to even); sums, statistics,
    /// losses, parameters and their gradients in `f32`. Activations and gradients between layers are `bf16` too on GPUs, and `f32` on the CPU.
    Bf16,
}

impl Precision {
    /// Returns the name: `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Returns the dtype in which a stage of this precision sends and saves, if `asked` for one.
    ///
    /// # Errors
    /// If `f32` is asked for and this is [`Self::Bf16`].
    pub(crate) fn dtype(self, asked: Option<ActivationDtype>, device: &str) -> Result<ActivationDtype> {
        match (self, asked) {
            (Self::F32, asked) => Ok(asked.unwrap_or_default()),
            (Self::Bf16, None | Some(ActivationDtype::Bf16)) => Ok(ActivationDtype::Bf16),
            (Self::Bf16, Some(ActivationDtype::F32)) => Err(Error::invalid(
                "dtype",
                format!("f32, but {device} computes in bf16"),
                "leave dtype out, or let the device compute in f32",
            )),
        }
    }

    /// Widens an arriving activation to `f32` where layers take that: everywhere if this is [`Self::F32`], else on the CPU.
    pub(crate) fn enter(self, activation: &Activation) -> Result<Activation> {
        activation.try_map(|tensor| match (self, tensor.device()) {
            (Self::Bf16, device) if !device.is_cpu() => Ok(tensor.clone()),
            _ => converted(tensor, DType::BF16, DType::F32),
        })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ActivationDtype {
    /// Rounds a leaving activation to `bf16` if this is [`Self::Bf16`]; otherwise returns it unchanged.
    pub(crate) fn pack(self, activation: &Activation) -> Result<Activation> {
        match self {
            Self::F32 => Ok(activation.clone()),
            Self::Bf16 => activation.try_map(|tensor| converted(tensor, DType::F32, DType::BF16)),
        }
    }
}

fn converted(tensor: &Tensor, from: DType, to: DType) -> Result<Tensor> {
    Ok(if tensor.dtype() == from { tensor.to_dtype(to)? } else { tensor.clone() })
}
