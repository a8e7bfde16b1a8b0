//! Gradient clipping by norm, as PyTorch's `clip_grad_norm_` defines it.

use candle_core::{CpuStorage, DType, Storage, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    optimizer::ClipFactor,
    tensor::{
        Numbers,
        elementwise::{CHUNK, add_in_place, dense_range, each},
    },
};

/// Over which parameters the norm is taken. Heads are clipped each by their own in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClipScope {
    /// The main parameters of each stage by themselves: no stage waits for another.
    #[default]
    Stage,
    /// The main parameters of all stages: every update waits for every stage's gradients, and the host waits for an asynchronous
    /// device once more in each step.
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
pub(crate) fn coefficient(max_norm: f64, norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// The factor for gradients whose norm's square is the sum of `squares`.
pub(crate) fn factor(max_norm: f64, squares: &Numbers) -> Result<ClipFactor> {
    Ok(match squares {
        Numbers::Host(squares) => ClipFactor::Host(coefficient(max_norm, squares.iter().sum::<f64>().sqrt())),
        Numbers::Device(squares) => ClipFactor::Device(coefficient_on_device(max_norm, squares)?),
    })
}

/// [`coefficient`] of the norm whose square is the sum of `squares`, an `f64` tensor of one dimension: an `f32` tensor `(1)` on its device.
fn coefficient_on_device(max_norm: f64, squares: &Tensor) -> Result<Tensor> {
    let coefficient = ((squares.sum_keepdim(0)?.sqrt()? + 1e-6)?.recip()? * max_norm)?;
    Ok(coefficient.minimum(&coefficient.ones_like()?)?.to_dtype(DType::F32)?)
}

/// The sum of squares of all elements, in `f64` and in an order that depends on shape and strides only. Of `f32` it is finite iff they all
/// are: their squares are far from what `f64` cannot hold.
pub(crate) fn squared_norm(tensor: &Tensor) -> Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some(range)) = (&*storage, dense_range(layout)) {
        let values = &values[range];
        return Ok(each(values.len(), values.chunks(CHUNK), squares).iter().sum());
    }
    drop(storage);
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?)
}

/// Adds `others` to `sum` in place, and gives the squared norm of the sum as [`squared_norm`] does. None, and nothing is done, unless both are
/// `f32` on the CPU, of one shape, and `sum` contiguous.
pub(crate) fn add_with_squared_norm(sum: &Tensor, others: &Tensor) -> Result<Option<f64>> {
    Ok(add_in_place(sum, others, squares)?.map(|parts| parts.iter().sum()))
}

/// Elements whose squares are added in `f32`: few, so that the sum is right to about six digits.
const BLOCK: usize = 256;

/// The sum of squares of a chunk.
fn squares(chunk: &[f32]) -> f64 {
    chunk.chunks(BLOCK).map(block).sum()
}

fn block(values: &[f32]) -> f64 {
    const LANES: usize = 16;
    let (rows, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for row in rows {
        for (sum, v) in sums.iter_mut().zip(row) {
            *sum += v * v;
        }
    }
    let sum = rest.iter().map(|v| v * v).chain(sums).map(f64::from).sum::<f64>();
    if sum.is_finite() && sum > 1e-25 {
        return sum;
    }
    // Squares that are too large or too small for f32 are taken in f64.
    let wide = |v: f32| f64::from(v) * f64::from(v);
    let mut sums = [0.0_f64; LANES];
    for row in rows {
        for (sum, v) in sums.iter_mut().zip(row) {
            *sum += wide(*v);
        }
    }
    rest.iter().map(|&v| wide(v)).chain(sums).sum()
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
    fn squares_beyond_f32_count_and_threads_do_not() {
        let norm = |values: Vec<f32>| {
            let count = values.len();
            squared_norm(&Tensor::from_vec(values, count, &Device::Cpu).unwrap()).unwrap()
        };
        for (value, count) in [(1e30_f32, 1000), (1e-30, 1000), (0.5, 100_003), (0.0, 50)] {
            let expected = count as f64 * f64::from(value) * f64::from(value);
            let found = norm(vec![value; count]);
            assert!((found - expected).abs() <= 1e-6 * expected, "{value}: {found} {expected}");
        }
        let uneven = || norm((0..100_003).map(|i| (i % 1013) as f32 * 1e-3 - 0.4).collect());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(uneven).to_bits(), uneven().to_bits());
    }

    #[test]
    fn the_norm_is_finite_iff_every_element_is() {
        let extremes = [0.0, 1.0, 1e30, -f32::MAX, f32::MIN_POSITIVE];
        for count in [1, 16, 20, 256, 300, CHUNK + 20] {
            for others in extremes {
                // At the first place, within a row of lanes, and at the last.
                for at in [0, count / 2, count - 1] {
                    let norm = |value: f32| {
                        let mut values = vec![others; count];
                        values[at] = value;
                        let tensor = Tensor::from_vec(values, count, &Device::Cpu).unwrap();
                        let zeros = tensor.zeros_like().unwrap();
                        let norm = squared_norm(&tensor).unwrap();
                        let of_sum = add_with_squared_norm(&zeros, &tensor).unwrap().unwrap();
                        assert!(of_sum.to_bits() == norm.to_bits() || of_sum.is_nan() && norm.is_nan());
                        norm.is_finite()
                    };
                    assert!(extremes.into_iter().all(norm), "{count} of {others}, other at {at}");
                    let bad = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                    assert!(!bad.into_iter().any(norm), "{count} of {others}, bad at {at}");
                }
            }
        }
    }

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
