//! Squared norms of tensors.

use candle_core::{CpuStorage, DType, Storage, Tensor};

use crate::{
    Result,
    tensor::elementwise::{CHUNK, add_in_place, dense_range, each},
};

/// Returns the sum of squares of all elements, in `f64` and in an order that depends on shape and strides only. For `f32` elements it is finite iff
/// they all are, since their squares cannot overflow `f64`.
pub(crate) fn squared_norm(tensor: &Tensor) -> Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some(range)) = (&*storage, dense_range(layout)) {
        let values = &values[range];
        return Ok(each(values.len(), values.chunks(CHUNK), squares).iter().sum());
    }
    drop(storage);
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?)
}

/// Adds `others` to `sum` in place, and returns the squared norm of the sum as [`squared_norm`] does. Does nothing and returns none unless both are
/// `f32` on the CPU, of one shape, and `sum` is contiguous.
pub(crate) fn add_with_squared_norm(sum: &Tensor, others: &Tensor) -> Result<Option<f64>> {
    Ok(add_in_place(sum, others, squares)?.map(|parts| parts.iter().sum()))
}

/// The elements whose squares are added in `f32`: few, so that the sum is exact to about six digits.
const BLOCK: usize = 256;

/// Returns the sum of squares of a chunk.
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
    // Squares that are too large or too small for `f32` are computed in `f64`.
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
}
