//! Weighted sums of gradients.

use std::cmp::Reverse;

use candle_core::{CpuStorage, DType, Storage, Tensor};

use crate::{
    Activation, Error, Result,
    tensor::elementwise::{CHUNK, dense_range, each},
};

/// Returns the sum of `terms`, each times its weight, added in the order given and in `f32`. The terms are gradients with respect to one activation,
/// of `f32` or `bf16`. On the CPU the sum is `f32`, elsewhere it has the dtype of the terms.
///
/// # Errors
/// If there is no term, or they are not of the same shapes.
pub(crate) fn weighted_sum(terms: &[(Activation, f64)]) -> Result<Activation> {
    let [(first, _), ..] = terms else {
        return Err(Error::Internal("a weighted sum of no gradients".to_owned()));
    };
    let of_position = |at: usize| {
        let tensor = |(term, weight): &(Activation, f64)| match term.tensors().get(at) {
            Some(tensor) if tensor.shape() == first.tensors()[at].shape() => Ok((tensor.clone(), *weight)),
            _ => Err(Error::Internal("gradients of one activation have different shapes".to_owned())),
        };
        sum(&terms.iter().map(tensor).collect::<Result<Vec<_>>>()?)
    };
    Ok(Activation::new((0..first.tensors().len()).map(of_position).collect::<Result<_>>()?))
}

fn sum(terms: &[(Tensor, f64)]) -> Result<Tensor> {
    let on_host = |tensor: &Tensor| tensor.device().is_cpu() && [DType::F32, DType::BF16].contains(&tensor.dtype());
    if terms.iter().all(|(tensor, _)| on_host(tensor)) {
        return sum_on_host(terms);
    }
    let mut sum: Option<Tensor> = None;
    for (tensor, weight) in terms {
        let term = (tensor.to_dtype(DType::F32)? * *weight)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    let (sum, dtype) = (sum.ok_or_else(|| Error::Internal("no term".to_owned()))?, terms[0].0.dtype());
    Ok(sum.to_dtype(dtype)?)
}

/// Adds `weight` times the values to `sum`.
fn add<T: Copy>(sum: &mut [f32], values: &[T], weight: f32, widen: impl Fn(T) -> f32) {
    sum.iter_mut().zip(values).for_each(|(sum, &value)| *sum += weight * widen(value));
}

/// Returns the dimensions in the order in which the tensor's elements lie in memory, the one with the largest stride first: for images with their
/// channels last `[0, 2, 3, 1]`. If elements overlap or leave gaps, the order is that of the shape.
fn order_in_memory(tensor: &Tensor) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tensor.rank()).collect();
    if dense_range(tensor.layout()).is_some() {
        let (strides, dims) = (tensor.stride(), tensor.dims());
        // The stride of a dimension of size 1 means nothing.
        order.sort_by_key(|&d| Reverse(if dims[d] == 1 { usize::MAX } else { strides[d] }));
    }
    order
}

/// Adds tensors on the CPU in one pass, on the threads of the caller's pool. The sum lies in memory as the first term does; terms that lie otherwise
/// are copied first.
fn sum_on_host(terms: &[(Tensor, f64)]) -> Result<Tensor> {
    let order = order_in_memory(&terms[0].0);
    let ordered = |(tensor, _): &(Tensor, f64)| Ok(tensor.permute(&order[..])?.contiguous()?);
    let dense = terms.iter().map(ordered).collect::<Result<Vec<_>>>()?;
    let storages: Vec<_> = dense.iter().map(Tensor::storage_and_layout).collect();
    let mut parts = Vec::with_capacity(terms.len());
    for ((storage, layout), (_, weight)) in storages.iter().zip(terms) {
        let (Storage::Cpu(storage), Some((from, _))) = (&**storage, layout.contiguous_offsets()) else {
            return Err(Error::Internal("a contiguous tensor on the CPU has other storage".to_owned()));
        };
        parts.push((storage, from, *weight as f32));
    }
    let mut sum = vec![0.0_f32; dense[0].elem_count()];
    each(sum.len(), sum.chunks_mut(CHUNK).enumerate(), |(i, sum)| {
        for (storage, from, weight) in &parts {
            let here = from + i * CHUNK..from + i * CHUNK + sum.len();
            match storage {
                CpuStorage::F32(values) => add(sum, &values[here], *weight, |value| value),
                CpuStorage::BF16(values) => add(sum, &values[here], *weight, |value| value.to_f32()),
                // Other dtypes do not come here.
                _ => {}
            }
        }
    });
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &dimension)| back[dimension] = place);
    Ok(Tensor::from_vec(sum, dense[0].shape(), dense[0].device())?.permute(back)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn terms_are_added_in_order_with_their_weights_whatever_the_threads() {
        let count = 2 * CHUNK + 7;
        let tensor = |scale: f32| Tensor::from_vec((0..count).map(|i| i as f32 * scale).collect(), count, &Device::Cpu);
        let terms = [
            (tensor(0.1).unwrap().into(), 0.3),
            (tensor(-0.7).unwrap().into(), 1.0),
            (tensor(3.1).unwrap().into(), 0.25),
        ];
        let sum = || weighted_sum(&terms).unwrap().single().unwrap().to_vec1::<f32>().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let (alone, shared) = (sum(), pool.install(sum));
        assert_eq!(alone, shared);
        for i in [0, 1, CHUNK - 1, CHUNK, count - 1] {
            let x = i as f32;
            assert_eq!(alone[i], 0.3_f32 * (x * 0.1) + x * -0.7 + 0.25 * (x * 3.1));
        }
    }

    #[test]
    fn sum_lies_in_memory_as_the_first_term() {
        let count = 2 * 3 * 4 * 5;
        let values = Tensor::from_vec((0..count).map(|i| i as f32).collect::<Vec<_>>(), count, &Device::Cpu).unwrap();
        let plain = values.reshape((2, 3, 4, 5)).unwrap();
        // The same images with their channels last in memory, and a batch of one.
        let last = |x: &Tensor| x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap();
        for plain in [plain.clone(), plain.narrow(0, 1, 1).unwrap()] {
            let images = last(&plain);
            let expected = (&plain * 2.0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (first, second) in [(&images, &plain), (&plain, &images), (&images, &images)] {
                let sum = weighted_sum(&[(first.clone().into(), 1.0), (second.clone().into(), 1.0)]).unwrap();
                let sum = sum.single().unwrap();
                assert_eq!(sum.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
                let channels_last = sum.permute((0, 2, 3, 1)).unwrap().is_contiguous();
                assert_eq!(
                    (channels_last, sum.is_contiguous()),
                    if first.is_contiguous() { (false, true) } else { (true, false) }
                );
            }
        }
    }

    #[test]
    fn views_and_other_dtypes_are_added_too() {
        let x = Tensor::new(&[[1.0_f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let sum = weighted_sum(&[(x.t().unwrap().into(), 2.0), (x.clone().into(), 1.0)]).unwrap();
        assert_eq!(sum.single().unwrap().to_vec2::<f32>().unwrap(), [[3.0, 8.0], [7.0, 12.0]]);
        let low = x.to_dtype(DType::BF16).unwrap();
        let sum = weighted_sum(&[(low.clone().into(), 0.5), (low.into(), 0.5)]).unwrap();
        assert_eq!(sum.single().unwrap().to_vec2::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
        let other = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        assert!(weighted_sum(&[(x.into(), 1.0), (other.into(), 1.0)]).is_err() && weighted_sum(&[]).is_err());
    }
}
