//! Gradient clipping by norm, as PyTorch's `clip_grad_norm_` defines it.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, optimizer::ClipFactor, tensor::Numbers};

/// The parameters over which the norm is taken. Each head is clipped by its own norm in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ClipScope {
    /// The main parameters of each stage separately: no stage waits for another.
    #[default]
    Stage,
    /// The main parameters of all stages: every update waits for every stage's gradients, and the host waits for an asynchronous
    /// device once more in each step.
    Global,
}

/// Gradient clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// The largest norm that is left as it is.
    pub max_norm: f64,
    /// The parameters over which the norm is taken.
    #[serde(default)]
    pub scope: ClipScope,
}

impl ClipConfig {
    /// Checks the norm.
    ///
    /// # Errors
    /// If the norm is not a positive number.
    pub fn validate(&self) -> Result<()> {
        if self.max_norm > 0.0 && self.max_norm.is_finite() {
            return Ok(());
        }
        Err(Error::invalid("clip.max_norm", self.max_norm.to_string(), "use a number above 0, or leave [clip] out"))
    }
}

/// Returns the factor for gradients of this norm: `min(1, max_norm / (norm + 1e-6))`.
pub(crate) fn coefficient(max_norm: f64, norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// Returns the factor for gradients whose squared norm is the sum of `squares`.
pub(crate) fn factor(max_norm: f64, squares: &Numbers) -> Result<ClipFactor> {
    Ok(match squares {
        Numbers::Host(squares) => ClipFactor::Host(coefficient(max_norm, squares.iter().sum::<f64>().sqrt())),
        Numbers::Device(squares) => ClipFactor::Device(coefficient_on_device(max_norm, squares)?),
    })
}

/// Computes [`coefficient`] on the device for a squared norm that is the sum of `squares` (`f64`, one dimension), as an `f32` tensor `(1)`.
fn coefficient_on_device(max_norm: f64, squares: &Tensor) -> Result<Tensor> {
    let coefficient = ((squares.sum_keepdim(0)?.sqrt()? + 1e-6)?.recip()? * max_norm)?;
    Ok(coefficient.minimum(&coefficient.ones_like()?)?.to_dtype(DType::F32)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_coefficient_is_pytorchs() {
        assert_eq!(coefficient(1.0, 0.5), 1.0);
        assert!((coefficient(1.0, 4.0) - 0.25).abs() < 1e-6);
        assert!(coefficient(1.0, 1.0) < 1.0);
        for norm in [0.0_f64, 0.5, 1.0, 4.0, 1e20] {
            let parts = [norm * norm * 0.25, norm * norm * 0.75];
            let later = coefficient_on_device(1.5, &Tensor::new(&parts, &Device::Cpu).unwrap()).unwrap();
            assert_eq!((later.dims(), later.dtype()), (&[1][..], DType::F32));
            let (found, expected) = (f64::from(later.to_vec1::<f32>().unwrap()[0]), coefficient(1.5, norm));
            assert!((found - expected).abs() <= 1e-7 * expected, "{norm}: {found} {expected}");
        }
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(ClipConfig { max_norm: wrong, scope: ClipScope::Stage }.validate().is_err());
        }
    }
}
