//! Access to tensors as slices, and messages about wrong tensors.

use std::{marker::PhantomData, ops::Deref, ops::Range};

use candle_core::{DType, Device, Storage, StorageRef, Tensor, WithDType};
use candle_nn::VarBuilder;
use interlock::{Activation, Error, Result};
use rayon::prelude::*;

/// Returns the name of a layer in messages: its kind and the prefix of its parameters' names.
pub(crate) fn label(kind: &str, vb: &VarBuilder) -> String {
    match vb.prefix() {
        prefix if prefix.is_empty() => kind.to_owned(),
        prefix => format!("{kind} {prefix}"),
    }
}

/// Returns the error for an input of the wrong shape; `takes` describes the right one.
pub(crate) fn wrong_shape(layer: &str, got: &[usize], takes: impl std::fmt::Display) -> Error {
    Error::invalid(layer, format!("input of shape {got:?}"), format!("it takes {takes}"))
}

/// Returns `tensor` without a graph, with contiguous elements. Copies only if they are not contiguous yet.
///
/// # Errors
/// If it is not a tensor of `f32` on the CPU with at least one element.
pub(crate) fn dense(tensor: &Tensor, layer: &str) -> Result<Tensor> {
    dense_of(tensor, DType::F32, layer)
}

/// As [`dense`], for another type of elements.
pub(crate) fn dense_of(tensor: &Tensor, dtype: DType, layer: &str) -> Result<Tensor> {
    if tensor.dtype() != dtype {
        return Err(Error::invalid(
            layer,
            format!("a tensor of {}", tensor.dtype().as_str()),
            format!("convert it to {}", dtype.as_str()),
        ));
    }
    if !matches!(tensor.device(), Device::Cpu) {
        return Err(Error::invalid(layer, "a tensor on another device", "move it to the CPU"));
    }
    if tensor.elem_count() == 0 {
        return Err(wrong_shape(layer, tensor.dims(), "at least one element"));
    }
    Ok(tensor.detach().contiguous()?)
}

/// Returns the output gradient of an output of shape `dims`, as [`dense`] does.
pub(crate) fn output_gradient(output_gradient: &Activation, dims: &[usize], layer: &str) -> Result<Tensor> {
    dense(output_gradient_of(output_gradient, dims, layer)?, layer)
}

/// Returns the output gradient of an output of shape `dims`.
pub(crate) fn output_gradient_of<'a>(
    output_gradient: &'a Activation,
    dims: &[usize],
    layer: &str,
) -> Result<&'a Tensor> {
    let tensor = output_gradient.single()?;
    if tensor.dims() != dims {
        return Err(Error::invalid(
            layer,
            format!("output gradient of shape {:?}", tensor.dims()),
            format!("the output had shape {dims:?}"),
        ));
    }
    Ok(tensor)
}

/// The elements of a tensor, which stay locked for reading until this is dropped.
pub(crate) struct Values<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    elements: PhantomData<T>,
}

/// Returns the elements of a dense tensor (see [`dense`]), without a copy.
pub(crate) fn read<T: WithDType>(tensor: &Tensor) -> Result<Values<'_, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::invalid(
            "layer",
            "a tensor that is not contiguous",
            "give parameters as contiguous tensors",
        ));
    };
    match &*storage {
        Storage::Cpu(cpu) => cpu.as_slice::<T>().map(drop)?,
        _ => return Err(Error::invalid("layer", "a tensor on another device", "build the layer on the CPU")),
    }
    Ok(Values { storage, range: start..end, elements: PhantomData })
}

impl<T: WithDType> Deref for Values<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(cpu) => match cpu.as_slice::<T>() {
                Ok(all) => &all[self.range.clone()],
                Err(_) => unreachable!("`read` checked the type"),
            },
            _ => unreachable!("`read` checked the device"),
        }
    }
}

/// Returns a tensor of these values.
pub(crate) fn tensor(values: Vec<f32>, dims: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// Returns the sums of the columns of a matrix with rows of length `width`. Chunks of 64 rows are summed in `f32`, and their sums in `f64`.
pub(crate) fn column_sums(rows: &[f32], width: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = rows
        .par_chunks(64 * width)
        .map(|rows| {
            let mut sums = vec![0.0_f32; width];
            for row in rows.chunks_exact(width) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            sums
        })
        .collect();
    let mut sums = vec![0.0_f64; width];
    for part in parts {
        for (sum, value) in sums.iter_mut().zip(part) {
            *sum += f64::from(value);
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns small whole numbers, whose sums are exact in any order.
    fn whole(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 31 + seed * 7) % 13) as f32 - 6.0).collect()
    }

    #[test]
    fn column_sums_equal_plain_sums() {
        let values = whole(150 * 6, 2);
        let columns: Vec<f32> = (0..6).map(|c| (0..150).map(|row| values[row * 6 + c]).sum()).collect();
        assert_eq!(column_sums(&values, 6), columns);
    }

    #[test]
    fn view_is_read_in_place() -> Result<()> {
        let whole = tensor((0..12).map(|i| i as f32).collect(), (4, 3))?;
        let view = dense(&whole.narrow(0, 2, 2)?, "test")?;
        assert_eq!(&*read::<f32>(&view)?, &[6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
        assert!(std::ptr::eq(&read::<f32>(&view)?[0], &read::<f32>(&whole)?[6]), "the view was copied");
        assert!(read::<f32>(&whole.t()?).is_err() && read::<u32>(&whole).is_err());
        Ok(())
    }
}
