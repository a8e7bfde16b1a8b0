//! Sums over whole tensors with candle operations. The results are tensors on the same device, so that the host does not wait.

use candle_core::{DType, Tensor};

use crate::Result;

/// The elements computed at once; it bounds the memory of copies in wider dtypes.
const PIECE: usize = 1 << 22;

/// The elements of a row. All rows are added up in parallel, because devices sum few long rows slowly.
const ROW: usize = 1024;

/// Returns the sum of squares of all elements, an `f64` tensor `(1)`. For `f32` elements it is finite iff they all are.
pub(crate) fn squares(tensor: &Tensor) -> Result<Tensor> {
    product(tensor, tensor)
}

/// Returns the sum of the products of elements at the same position, an `f64` tensor `(1)`.
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (flat_a, flat_b) = (a.detach().flatten_all()?, b.detach().flatten_all()?);
    let same = a.id() == b.id();
    pieces(flat_a.elem_count(), a, |from, count| {
        let wide = |t: &Tensor| t.narrow(0, from, count)?.to_dtype(DType::F64);
        let a = wide(&flat_a)?;
        total(&if same { a.sqr()? } else { (a * wide(&flat_b)?)? })
    })
}

/// Returns zero if every element is finite, else NaN: an `f64` tensor `(1)`.
pub(crate) fn zero_if_finite(tensor: &Tensor) -> Result<Tensor> {
    // Zero times a finite value is zero; zero times any other value is NaN.
    total(&tensor.detach().flatten_all()?.affine(0.0, 0.0)?)
}

/// Returns the sum of `of(start, length)` over pieces of `elements` elements, on the device of `tensor`.
fn pieces(elements: usize, tensor: &Tensor, of: impl Fn(usize, usize) -> Result<Tensor>) -> Result<Tensor> {
    if elements == 0 {
        return Ok(Tensor::zeros(1, DType::F64, tensor.device())?);
    }
    let mut sum = of(0, elements.min(PIECE))?;
    for from in (PIECE..elements).step_by(PIECE) {
        sum = (sum + of(from, PIECE.min(elements - from))?)?;
    }
    Ok(sum)
}

/// Returns the sum of `values`, which have one dimension, as an `f64` tensor `(1)`.
fn total(values: &Tensor) -> Result<Tensor> {
    let (count, rows) = (values.elem_count(), values.elem_count() / ROW);
    let sum = if rows < 2 {
        values.sum_all()?
    } else {
        let whole = values.narrow(0, 0, rows * ROW)?.reshape((rows, ROW))?.sum(1)?.sum_all()?;
        match count - rows * ROW {
            0 => whole,
            rest => (whole + values.narrow(0, rows * ROW, rest)?.sum_all()?)?,
        }
    };
    Ok(sum.to_dtype(DType::F64)?.reshape(1)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn value(tensor: Result<Tensor>) -> f64 {
        let tensor = tensor.unwrap();
        assert_eq!((tensor.dims(), tensor.dtype()), (&[1][..], DType::F64));
        tensor.to_vec1::<f64>().unwrap()[0]
    }

    #[test]
    fn every_element_counts_once_whatever_the_number() {
        for count in [0, 1, 7, ROW, 2 * ROW, 3 * ROW + 5, PIECE + 2 * ROW + 3] {
            let numbers = |step: usize| (0..count).map(|i| (i * step % 13) as f32 - 6.0).collect::<Vec<_>>();
            let (a, b) = (numbers(5), numbers(7));
            let tensor = |values: &[f32]| Tensor::from_slice(values, count, &Device::Cpu).unwrap();
            let exact = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            assert_eq!(value(squares(&tensor(&a))), exact(&a, &a), "{count}");
            assert_eq!(value(product(&tensor(&a), &tensor(&b))), exact(&a, &b), "{count}");
            assert_eq!(value(zero_if_finite(&tensor(&a))), 0.0, "{count}");
        }
        let view = Tensor::new(&[[1.0_f32, 2.0, 9.0], [3.0, 4.0, 9.0]], &Device::Cpu).unwrap();
        assert_eq!(value(squares(&view.narrow(1, 0, 2).unwrap().t().unwrap())), 30.0);
    }

    #[test]
    fn the_one_value_that_is_not_finite_is_found() {
        for count in [1, 5, 2 * ROW + 1] {
            for (other, at) in [(0.0_f32, 0), (f32::MAX, count - 1), (-1e30, count / 2)] {
                for (bad, finite) in
                    [(1.0, true), (f32::MAX, true), (f32::NAN, false), (f32::INFINITY, false), (-f32::INFINITY, false)]
                {
                    let mut values = vec![other; count];
                    values[at] = bad;
                    let tensor = Tensor::from_vec(values, count, &Device::Cpu).unwrap();
                    assert_eq!(value(squares(&tensor)).is_finite(), finite, "{bad} among {count}");
                    assert_eq!(value(zero_if_finite(&tensor)) == 0.0, finite, "{bad} among {count}");
                    let rounded = tensor.to_dtype(DType::BF16).unwrap();
                    let largest = f32::MAX == bad || f32::MAX == other && count > 1;
                    assert_eq!(value(zero_if_finite(&rounded)) == 0.0, finite && !largest, "{bad}, rounded");
                }
            }
        }
    }
}
