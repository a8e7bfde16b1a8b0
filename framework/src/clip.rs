//! Gradient clipping by norm, as PyTorch's `clip_grad_norm_` defines it.

use candle_core::{CpuStorage, Storage, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Over which parameters the norm is taken. Heads are clipped each by their own in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClipScope {
    /// The main parameters of each stage by themselves: no stage waits for another.
    #[default]
    Stage,
    /// The main parameters of all stages: every update waits for every stage's gradients.
    Global,
}

/// Gradient clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// The largest norm that is left as it is.
    pub max_norm: f64,
    /// Over which parameters the norm is taken.
    #[serde(default)]
    pub scope: ClipScope,
}

impl ClipConfig {
    /// # Errors
    /// If the norm is not a positive number.
    pub fn validate(&self) -> Result<()> {
        if self.max_norm > 0.0 && self.max_norm.is_finite() {
            return Ok(());
        }
        Err(Error::invalid("clip.max_norm", self.max_norm.to_string(), "use a number above 0, or leave [clip] out"))
    }
}

/// What gradients of this norm are multiplied with: `min(1, max_norm / (norm + 1e-6))`.
pub fn coefficient(max_norm: f64, norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// The sum of squares of all elements, in `f64` and in an order that depends on the shape only.
pub fn squared_norm(tensor: &Tensor) -> Result<f64> {
    const LANES: usize = 8;
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        let chunks = values[start..end].chunks_exact(LANES);
        let rest: f64 = chunks.remainder().iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let mut sums = [0.0_f64; LANES];
        for chunk in chunks {
            for (sum, &v) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(v) * f64::from(v);
            }
        }
        return Ok(sums.iter().sum::<f64>() + rest);
    }
    drop(storage);
    Ok(tensor.to_dtype(candle_core::DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_norm_is_that_of_all_elements_of_a_view() {
        let values: Vec<f32> = (0..60).map(|v| v as f32 - 20.0).collect();
        let expected: f64 = values[6..].iter().map(|&v| f64::from(v * v)).sum();
        let tensor = Tensor::from_vec(values, (10, 6), &Device::Cpu).unwrap().narrow(0, 1, 9).unwrap();
        assert_eq!(squared_norm(&tensor).unwrap(), expected);
        assert_eq!(squared_norm(&tensor.t().unwrap()).unwrap(), expected);
    }

    #[test]
    fn the_coefficient_is_pytorchs() {
        assert_eq!(coefficient(1.0, 0.5), 1.0);
        assert!((coefficient(1.0, 4.0) - 0.25).abs() < 1e-6);
        assert!(coefficient(1.0, 1.0) < 1.0);
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(ClipConfig { max_norm: wrong, scope: ClipScope::Stage }.validate().is_err());
        }
    }
}
