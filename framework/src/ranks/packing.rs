//! Tensors as they are sent: contiguous, with the order of their axes.

use candle_core::{Device, Tensor};

use crate::{Error, Result};

/// Returns a contiguous tensor on the host with the elements in the order in which they lie in memory, and the axes of `tensor` in that order. Of a tensor with
/// gaps in memory it is a copy without them.
pub(crate) fn packed(tensor: &Tensor) -> Result<(Tensor, Vec<u8>)> {
    let tensor = tensor.detach().to_device(&Device::Cpu)?;
    let mut axes: Vec<usize> = (0..tensor.rank()).collect();
    // Of axes with equal strides, such as those of one element, the order does not matter; it stays.
    axes.sort_by_key(|&axis| std::cmp::Reverse(tensor.stride()[axis]));
    let in_memory = tensor.permute(&*axes)?;
    match in_memory.is_contiguous() {
        true => Ok((in_memory, axes.into_iter().map(|axis| axis as u8).collect())),
        false => Ok((tensor.contiguous()?, (0..tensor.rank() as u8).collect())),
    }
}

/// Returns the tensor that [`packed`] made `tensor` of.
///
/// # Errors
/// If `axes` are not the axes of it.
pub(crate) fn unpacked(tensor: &Tensor, axes: &[u8]) -> Result<Tensor> {
    let places: Option<Vec<usize>> =
        (0..axes.len()).map(|axis| axes.iter().position(|&there| usize::from(there) == axis)).collect();
    match places.filter(|places| places.len() == tensor.rank()) {
        Some(places) => Ok(tensor.permute(&*places)?),
        None => Err(Error::Internal(format!("a tensor of shape {:?} arrived with axes {axes:?}", tensor.dims()))),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn tensors_keep_values_and_layout() {
        let values = Tensor::arange(0_f32, 120.0, &Device::Cpu).unwrap().reshape((2, 3, 4, 5)).unwrap();
        let channels_last = values.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap();
        let some = values.narrow(1, 1, 2).unwrap();
        let scalar = Tensor::new(3_u32, &Device::Cpu).unwrap();
        for tensor in [values, channels_last, some, scalar] {
            let (packed, axes) = packed(&tensor).unwrap();
            assert!(packed.is_contiguous());
            let back = unpacked(&packed, &axes).unwrap();
            assert_eq!(back.dims(), tensor.dims());
            let flat = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(&back), flat(&tensor));
            if packed.elem_count() == 120 {
                assert_eq!(back.stride(), tensor.stride());
            }
        }
        let two = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        for axes in [&[0_u8][..], &[0, 0], &[1, 2], &[0, 1, 2]] {
            assert!(unpacked(&two, axes).is_err(), "{axes:?}");
        }
    }
}
