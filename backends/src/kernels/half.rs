//! `f32` rounded to `bf16`, the upper half of its bits, and back.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::aligned_buffer::Filled;

/// The size of a chunk, in numbers.
const CHUNK: usize = 32_768;

/// Rounds every number to the nearest `bf16`, ties to even. NaN stays NaN.
pub(crate) fn round(x: &[f32]) -> Vec<u16> {
    let mut bits = vec![0; x.len()];
    bits.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(bits, x)| {
        for (bits, x) in bits.iter_mut().zip(x) {
            let x = x.to_bits();
            let nearest = (x.wrapping_add(0x7fff + (x >> 16 & 1)) >> 16) as u16;
            *bits = if x & 0x7fff_ffff > 0x7f80_0000 { (x >> 16) as u16 | 0x40 } else { nearest };
        }
    });
    bits
}

/// Returns the numbers that have these bits.
pub(crate) fn widen(bits: &[u16]) -> Filled {
    // SAFETY: chunk `i` of the bits is as long as that of the numbers, all of which are written.
    unsafe {
        Filled::by_chunks(bits.len(), CHUNK, |i, x| {
            for (x, &bits) in x.iter_mut().zip(&bits[i * CHUNK..]) {
                *x = MaybeUninit::new(f32::from_bits(u32::from(bits) << 16));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn rounds_as_candle_does_and_keeps_bf16_values() {
        let mut x: Vec<f32> = (0..CHUNK as u32 + 9).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9))).collect();
        x.extend([0.0, -0.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, f32::INFINITY, -f32::INFINITY, f32::NAN]);
        let rounded = widen(&round(&x));
        let tensor = Tensor::from_slice(&x, x.len(), &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        let wanted = tensor.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        for ((found, wanted), x) in rounded.iter().zip(wanted).zip(&x) {
            assert!(found.to_bits() == wanted.to_bits() || found.is_nan() && x.is_nan(), "{x}: {found}, not {wanted}");
        }
        assert_eq!(round(&rounded), round(&x));
    }
}
