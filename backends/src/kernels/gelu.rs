//! `GELU(x) = x s` with `s = 1/(1 + e^-v)`, `v = 2√(2/π) (x + 0.044715 x³)`, and its slope `s + x s (1 - s) v'`.
//!
//! This is the tanh approximation, `tanh(v/2) = 2s - 1`, without the cancellation of `1 + tanh` for negative `x`.

use super::{
    aligned_buffer::{Blank, Filled},
    lanes::{LANES, Lanes, prefetch},
};

/// `2√(2/π)`.
const LINEAR: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715 * LINEAR;

/// Returns GELU and its slope.
///
/// # Safety
/// As for every method of [`Lanes`].
#[inline(always)]
pub(super) unsafe fn gelu<L: Lanes>(x: L) -> (L, L) {
    // SAFETY: as demanded of the caller.
    unsafe {
        let (one, square) = (L::splat(1.0), x.times(x));
        let minus_v = x.times(L::splat(-LINEAR).plus_product(square, L::splat(-CUBIC)));
        let s = one.plus(minus_v.exp()).inverse();
        let slope_of_v = L::splat(LINEAR).plus_product(square, L::splat(3.0 * CUBIC));
        (x.times(s), s.plus_product(x.times(s).times(one.minus(s)), slope_of_v))
    }
}

/// The size of a chunk, in numbers.
const CHUNK: usize = 16_384;

/// The distance of prefetching, in numbers.
const AHEAD: usize = 512;

/// Returns GELU of every number.
pub(crate) fn apply(x: &[f32]) -> Filled {
    // SAFETY: all of each chunk is written.
    unsafe { Filled::by_chunks(x.len(), CHUNK, |i, y| apply_to(&x[i * CHUNK..][..y.len()], y)) }
}

/// Writes GELU of every number of `x` to `y`.
pub(crate) fn apply_to(x: &[f32], y: &mut Blank) {
    assert_eq!(x.len(), y.len(), "slices of different lengths");
    // SAFETY: as many numbers of both.
    unsafe { apply_here(x.as_ptr(), y.as_mut_ptr().cast(), x.len()) }
}

/// Replaces every number by its GELU.
pub(crate) fn apply_in_place(x: &mut [f32]) {
    let (first, len) = (x.as_mut_ptr(), x.len());
    // SAFETY: each number is read before it is written.
    unsafe { apply_here(first, first, len) }
}

/// Returns `c · GELU'(x)`.
pub(crate) fn backward(x: &[f32], c: &[f32]) -> Filled {
    assert_eq!(x.len(), c.len(), "slices of different lengths");
    // SAFETY: chunk `i` of `x` and `c` is as long as that of the result, all of which is written.
    unsafe {
        Filled::by_chunks(x.len(), CHUNK, |i, dx| {
            let (x, c) = (&x[i * CHUNK..][..dx.len()], &c[i * CHUNK..][..dx.len()]);
            backward_here(x.as_ptr(), c.as_ptr(), dx.as_mut_ptr().cast(), x.len());
        })
    }
}

dispatch! { unsafe fn apply_here(x: *const f32, y: *mut f32, len: usize) = apply_body }
dispatch! { unsafe fn backward_here(x: *const f32, c: *const f32, dx: *mut f32, len: usize) = backward_body }

#[inline(always)]
unsafe fn apply_body<L: Lanes>(x: *const f32, y: *mut f32, len: usize) {
    for at in (0..len).step_by(LANES) {
        // SAFETY: the caller gives `len` numbers; reads and writes end with them.
        unsafe {
            if len - at >= LANES {
                prefetch(x.wrapping_add(at + AHEAD));
                gelu(L::load(x.add(at))).0.store(y.add(at));
            } else {
                gelu(L::load_first(x.add(at), len - at)).0.store_first(y.add(at), len - at);
            }
        }
    }
}

#[inline(always)]
unsafe fn backward_body<L: Lanes>(x: *const f32, c: *const f32, dx: *mut f32, len: usize) {
    for at in (0..len).step_by(LANES) {
        // SAFETY: as above.
        unsafe {
            if len - at >= LANES {
                gelu(L::load(x.add(at))).1.times(L::load(c.add(at))).store(dx.add(at));
            } else {
                let slope = gelu(L::load_first(x.add(at), len - at)).1;
                slope.times(L::load_first(c.add(at), len - at)).store_first(dx.add(at), len - at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lanes::Portable;

    #[test]
    fn values_and_slopes_are_those_of_the_definition_for_all_instructions() {
        let x: Vec<f32> = (-77..80).map(|i| i as f32 / 8.0).collect();
        let ones = vec![1.0; x.len()];
        let (y, slopes) = (apply(&x), backward(&x, &ones));
        let (mut plain, mut plain_slopes) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        // SAFETY: slices of one length; portable lanes need nothing.
        unsafe {
            apply_body::<Portable>(x.as_ptr(), plain.as_mut_ptr(), x.len());
            backward_body::<Portable>(x.as_ptr(), ones.as_ptr(), plain_slopes.as_mut_ptr(), x.len());
        }
        let root = (2.0 / std::f64::consts::PI).sqrt();
        for (i, &x) in x.iter().enumerate() {
            let x = f64::from(x);
            let t = (root * (x + 0.044715 * x * x * x)).tanh();
            let slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * x * x);
            for (found, wanted) in [
                (y[i], 0.5 * x * (1.0 + t)),
                (plain[i], 0.5 * x * (1.0 + t)),
                (slopes[i], slope),
                (plain_slopes[i], slope),
            ] {
                assert!((f64::from(found) - wanted).abs() < 1e-6 * x.abs().max(1.0), "{x}: {found}, not {wanted}");
            }
        }
    }
}
