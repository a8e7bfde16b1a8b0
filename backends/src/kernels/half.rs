//! `f32` rounded to `bf16`, the upper half of its bits, and back.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::{
    aligned_buffer::{Blank, Filled},
    lanes::Lanes,
};

/// The size of a chunk, in numbers.
const CHUNK: usize = 32_768;

/// Returns the bits of the `bf16` nearest to `x`, ties to even. NaN stays NaN.
#[inline]
pub(crate) fn bits(x: f32) -> u16 {
    let x = x.to_bits();
    let nearest = (x.wrapping_add(0x7fff + (x >> 16 & 1)) >> 16) as u16;
    if x & 0x7fff_ffff > 0x7f80_0000 { (x >> 16) as u16 | 0x40 } else { nearest }
}

/// Returns the `bf16` nearest to `x`.
#[inline]
pub(crate) fn nearest(x: f32) -> f32 {
    f32::from_bits(u32::from(bits(x)) << 16)
}

/// Rounds every number to the nearest `bf16`.
pub(crate) fn round(x: &[f32]) -> Vec<u16> {
    let mut rounded = Vec::with_capacity(x.len());
    let blank = &mut rounded.spare_capacity_mut()[..x.len()];
    blank.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(rounded, x)| {
        // SAFETY: equally many numbers.
        unsafe { round_some(x, rounded) };
    });
    // SAFETY: the chunks cover all numbers, which have been written.
    unsafe { rounded.set_len(x.len()) };
    rounded
}

dispatch! {
    /// # Safety
    /// There is room for all numbers.
    unsafe fn round_some(x: &[f32], rounded: &mut [MaybeUninit<u16>]) = round_body
}

/// The compiler makes vector instructions of these loops, which it may choose among those of the lanes.
#[inline(always)]
unsafe fn round_body<L: Lanes>(x: &[f32], rounded: &mut [MaybeUninit<u16>]) {
    for (rounded, &x) in rounded.iter_mut().zip(x) {
        rounded.write(bits(x));
    }
}

/// Rounds every number in place.
pub(crate) fn round_in_place(x: &mut [f32]) {
    // SAFETY: any numbers.
    unsafe { round_there(x) }
}

dispatch! {
    /// # Safety
    /// None is demanded.
    unsafe fn round_there(x: &mut [f32]) = round_there_body
}

#[inline(always)]
unsafe fn round_there_body<L: Lanes>(x: &mut [f32]) {
    for x in x {
        *x = nearest(*x);
    }
}

/// Returns the numbers that have these bits.
pub(crate) fn widen(bits: &[u16]) -> Filled {
    // SAFETY: chunk `i` of the bits is as long as that of the numbers, all of which are written.
    unsafe { Filled::by_chunks(bits.len(), CHUNK, |i, x| widen_some(&bits[i * CHUNK..][..x.len()], x)) }
}

dispatch! {
    /// # Safety
    /// There is room for all numbers.
    unsafe fn widen_some(bits: &[u16], x: &mut Blank) = widen_body
}

#[inline(always)]
unsafe fn widen_body<L: Lanes>(bits: &[u16], x: &mut Blank) {
    for (x, &bits) in x.iter_mut().zip(bits) {
        x.write(f32::from_bits(u32::from(bits) << 16));
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
