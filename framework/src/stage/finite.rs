//! Checks that values are finite before they spread.

use candle_core::{CpuStorage, Storage, Tensor};

use crate::{
    Activation, Error, Result,
    elementwise::{dense_range, map_chunks},
};

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
    // An exponent of all ones is an infinity or a NaN; without a branch a value, this runs at the speed of memory.
    match (&*storage, dense_range(layout)) {
        (Storage::Cpu(CpuStorage::F32(values)), Some(range)) => {
            const EXPONENT: u32 = 0x7f80_0000;
            let is_bad = |chunk: &[f32]| chunk.iter().fold(false, |bad, v| bad | (v.to_bits() & EXPONENT == EXPONENT));
            return Ok(!map_chunks(&values[range], is_bad).contains(&true));
        }
        (Storage::Cpu(CpuStorage::BF16(values)), Some(range)) => {
            let values = &values[range];
            return Ok(
                !map_chunks(values, |chunk| chunk.iter().fold(false, |bad, v| bad | !v.is_finite())).contains(&true)
            );
        }
        _ => {}
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
            let mut values = vec![0.5_f32; 40_000];
            values[39_999] = bad;
            let tensor = Tensor::from_vec(values, (200, 200), &Device::Cpu).unwrap();
            assert_eq!(is_finite(&tensor).unwrap(), finite, "{bad}");
            assert_eq!(is_finite(&tensor.t().unwrap()).unwrap(), finite, "{bad}, transposed");
            assert_eq!(is_finite(&tensor.narrow(1, 1, 199).unwrap()).unwrap(), finite, "{bad}, with gaps");
            let rounded = tensor.to_dtype(candle_core::DType::BF16).unwrap();
            // The largest f32 is rounded up, beyond what bf16 reaches.
            assert_eq!(is_finite(&rounded).unwrap(), finite && bad != f32::MAX, "{bad}, rounded");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            assert_eq!(pool.install(|| is_finite(&tensor)).unwrap(), finite, "{bad}, two threads");
            // A view that leaves the bad value out is finite.
            assert!(is_finite(&tensor.narrow(0, 0, 199).unwrap()).unwrap());
            assert!(is_finite(&tensor.narrow(1, 0, 199).unwrap()).unwrap());
        }
    }
}
