//! Checks that values are finite before they spread.

use candle_core::{CpuStorage, Storage, Tensor};

use crate::{Activation, Error, Result};

/// # Errors
/// If a tensor of floating-point dtype holds an infinity or a NaN; `what` names it.
pub(super) fn check(activation: &Activation, what: impl Fn() -> String) -> Result<()> {
    for tensor in activation.tensors().iter().filter(|t| t.dtype().is_float()) {
        if !is_finite(tensor)? {
            return Err(Error::NotFinite(format!("{} holds an infinity or a NaN", what())));
        }
    }
    Ok(())
}

/// Whether every element is neither an infinity nor a NaN.
pub(super) fn is_finite(tensor: &Tensor) -> Result<bool> {
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        // An exponent of all ones is an infinity or a NaN; without a branch a value, this runs at the speed of memory.
        const EXPONENT: u32 = 0x7f80_0000;
        return Ok(!values[start..end]
            .chunks(4096)
            .any(|chunk| chunk.iter().fold(false, |bad, value| bad | (value.to_bits() & EXPONENT == EXPONENT))));
    }
    drop(storage);
    // A product with zero is zero for finite values and NaN for all others.
    let sum = tensor.zeros_like()?.mul(tensor)?.to_dtype(candle_core::DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    Ok(sum == 0.0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn finds_the_one_value_that_is_not_finite() {
        for (bad, finite) in
            [(1.0, true), (f32::MAX, true), (f32::INFINITY, false), (f32::NAN, false), (-f32::INFINITY, false)]
        {
            let mut values = vec![0.5_f32; 10_000];
            values[9_999] = bad;
            let tensor = Tensor::from_vec(values, (100, 100), &Device::Cpu).unwrap();
            assert_eq!(is_finite(&tensor).unwrap(), finite, "{bad}");
            assert_eq!(is_finite(&tensor.t().unwrap()).unwrap(), finite, "{bad}, transposed");
            // A view that leaves the bad value out is finite.
            assert!(is_finite(&tensor.narrow(0, 0, 99).unwrap()).unwrap());
        }
    }
}
