//! Elementwise functions of whole slices, by the threads of the current pool.

use std::mem::MaybeUninit;

use super::aligned_buffer::Filled;

/// The size of a chunk, in numbers.
pub(crate) const CHUNK: usize = 16_384;

/// Returns `f` of every number.
pub(crate) fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Filled {
    // SAFETY: chunk `i` of `x` is as long as that of the result, all of which is written.
    unsafe {
        Filled::by_chunks(x.len(), CHUNK, |i, y| {
            for (y, &x) in y.iter_mut().zip(&x[i * CHUNK..]) {
                *y = MaybeUninit::new(f(x));
            }
        })
    }
}

/// Returns `f` of every pair of numbers at the same index.
pub(crate) fn zip<T: Copy + Sync>(a: &[f32], b: &[T], f: impl Fn(f32, T) -> f32 + Sync) -> Filled {
    assert_eq!(a.len(), b.len(), "slices of different lengths");
    // SAFETY: chunk `i` of both is as long as that of the result, all of which is written.
    unsafe {
        Filled::by_chunks(a.len(), CHUNK, |i, y| {
            for (y, (&a, &b)) in y.iter_mut().zip(a[i * CHUNK..].iter().zip(&b[i * CHUNK..])) {
                *y = MaybeUninit::new(f(a, b));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_reached_beyond_one_chunk() {
        let whole = |seed: usize| (0..CHUNK + 3).map(|i| ((i * 31 + seed) % 13) as f32).collect::<Vec<_>>();
        let (a, b) = (whole(0), whole(1));
        assert!(map(&a, |a| 2.0 * a).iter().zip(&a).all(|(y, a)| *y == 2.0 * a));
        assert!(zip(&a, &b, |a, b| a - b).iter().zip(a.iter().zip(&b)).all(|(y, (a, b))| *y == a - b));
    }
}
