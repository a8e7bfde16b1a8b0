//! Layer normalization of rows: `y = γ (x - μ) r + β` with `r = 1/√(σ² + ε)`.
//!
//! With `x̂ = (x - μ) r`, an output gradient `c` and `g = γ c`: `∂x = r (g - mean(g) - x̂ mean(g x̂))`, `∂γ = Σ c x̂` and `∂β = Σ c` over rows.

use rayon::prelude::*;

use super::{
    aligned_buffer::{AlignedBuffer, Filled},
    lanes::{LANES, Lanes},
};

pub(crate) const EPSILON: f32 = 1e-5;

/// `μ` and `r` of one row.
pub(crate) type Statistics = (f32, f32);

/// The approximate size of a chunk, in numbers.
const CHUNK: usize = 16_384;

/// Returns the number of rows in a chunk.
fn rows(width: usize) -> usize {
    CHUNK.div_ceil(width)
}

/// Returns the statistics of each row of `x`.
pub(crate) fn statistics(x: &[f32], width: usize) -> Vec<Statistics> {
    assert!(x.len().is_multiple_of(width), "whole rows");
    let mut statistics = vec![(0.0, 0.0); x.len() / width];
    statistics.par_chunks_mut(rows(width)).zip(x.par_chunks(rows(width) * width)).for_each(|(statistics, x)| {
        // SAFETY: as many rows as statistics.
        unsafe { statistics_of(x, width, statistics) }
    });
    statistics
}

/// Returns `γ (x - μ) r + β`.
pub(crate) fn normalize(x: &[f32], statistics: &[Statistics], weight: &[f32], bias: &[f32]) -> Filled {
    let width = weight.len();
    assert_eq!(bias.len(), width, "slices of different lengths");
    assert_eq!(x.len(), statistics.len() * width, "a pair of statistics for each row");
    let rows = rows(width);
    // SAFETY: as many rows of `x` and the result as statistics, as wide as weight and bias; all are written.
    unsafe {
        Filled::by_chunks(x.len(), rows * width, |i, y| {
            let statistics = &statistics[i * rows..][..y.len() / width];
            normalize_rows(x[i * rows * width..].as_ptr(), y.as_mut_ptr().cast(), statistics, weight, bias);
        })
    }
}

/// Returns `∂x`.
pub(crate) fn input_gradient(x: &[f32], statistics: &[Statistics], weight: &[f32], c: &[f32]) -> Filled {
    let width = weight.len();
    assert_eq!(x.len(), c.len(), "slices of different lengths");
    assert_eq!(x.len(), statistics.len() * width, "a pair of statistics for each row");
    let rows = rows(width);
    // SAFETY: as many rows of all as statistics, as wide as the weight; all of the result are written.
    unsafe {
        Filled::by_chunks(x.len(), rows * width, |i, dx| {
            let statistics = &statistics[i * rows..][..dx.len() / width];
            let at = i * rows * width;
            input_gradient_to(x[at..].as_ptr(), statistics, weight, c[at..].as_ptr(), dx.as_mut_ptr().cast());
        })
    }
}

/// Returns the number of rows in a chunk of sums. There are at most sixteen chunks, since each holds sums as long as two rows.
fn rows_summed(width: usize, count: usize) -> usize {
    rows(width.max(1)).max(count.div_ceil(16))
}

/// Adds the sums of chunks in order.
fn add_up(parts: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; 2 * width];
    for part in parts {
        for (sum, part) in sums.iter_mut().zip(part) {
            *sum += part;
        }
    }
    sums
}

/// Returns `∂γ` followed by `∂β`.
pub(crate) fn parameter_gradients(x: &[f32], statistics: &[Statistics], c: &[f32]) -> Vec<f32> {
    let width = x.len() / statistics.len().max(1);
    assert!(x.len() == c.len() && x.len() == statistics.len() * width, "slices of different lengths");
    let rows = rows_summed(width, statistics.len());
    let pieces = statistics.par_chunks(rows).zip(x.par_chunks(rows * width).zip(c.par_chunks(rows * width)));
    let parts = pieces.map(|(statistics, (x, c))| {
        let mut sums = vec![0.0; 2 * width];
        // SAFETY: as many rows of both as statistics, half as wide as the sums.
        unsafe { add_parameter_gradients_to(x.as_ptr(), statistics, c.as_ptr(), &mut sums) };
        sums
    });
    add_up(parts.collect(), width)
}

/// Returns [`input_gradient`] and [`parameter_gradients`], computed in one pass.
pub(crate) fn gradients(x: &[f32], statistics: &[Statistics], weight: &[f32], c: &[f32]) -> (Filled, Vec<f32>) {
    let width = weight.len();
    assert_eq!(x.len(), c.len(), "slices of different lengths");
    assert_eq!(x.len(), statistics.len() * width, "a pair of statistics for each row");
    let rows = rows_summed(width, statistics.len());
    let mut buffer = AlignedBuffer::new(x.len());
    let pieces = statistics.par_chunks(rows).zip(x.par_chunks(rows * width).zip(c.par_chunks(rows * width)));
    let parts = buffer.blank().par_chunks_mut(rows * width).zip(pieces).map(|(dx, (statistics, (x, c)))| {
        let mut sums = vec![0.0; 2 * width];
        // SAFETY: as many rows of all as statistics, as wide as the weight and half as wide as the sums.
        unsafe { gradients_to(x.as_ptr(), statistics, weight, c.as_ptr(), dx.as_mut_ptr().cast(), &mut sums) };
        sums
    });
    let sums = add_up(parts.collect(), width);
    // SAFETY: the chunks cover all rows, and all of each has been written.
    (unsafe { buffer.filled() }, sums)
}

dispatch! { unsafe fn statistics_of(x: &[f32], width: usize, statistics: &mut [Statistics]) = statistics_body }
dispatch! {
    unsafe fn normalize_rows(
        x: *const f32, y: *mut f32, statistics: &[Statistics], weight: &[f32], bias: &[f32],
    ) = normalize_body
}
dispatch! {
    unsafe fn input_gradient_to(
        x: *const f32, statistics: &[Statistics], weight: &[f32], c: *const f32, dx: *mut f32,
    ) = input_gradient_body
}
dispatch! {
    unsafe fn add_parameter_gradients_to(x: *const f32, statistics: &[Statistics], c: *const f32, sums: &mut [f32])
        = add_parameter_gradients_body
}
dispatch! {
    unsafe fn gradients_to(
        x: *const f32, statistics: &[Statistics], weight: &[f32], c: *const f32, dx: *mut f32, sums: &mut [f32],
    ) = gradients_body
}

/// Loads sixteen numbers; if only `left` are left, those and zeros.
#[inline(always)]
unsafe fn load<L: Lanes>(from: *const f32, left: usize) -> L {
    // SAFETY: the caller gives `left` numbers.
    unsafe { if left >= LANES { L::load(from) } else { L::load_first(from, left) } }
}

/// Stores sixteen numbers; if only `left` are left, those.
#[inline(always)]
unsafe fn store<L: Lanes>(lanes: L, to: *mut f32, left: usize) {
    // SAFETY: the caller gives space for `left` numbers.
    unsafe { if left >= LANES { lanes.store(to) } else { lanes.store_first(to, left) } }
}

#[inline(always)]
unsafe fn statistics_body<L: Lanes>(x: &[f32], width: usize, statistics: &mut [Statistics]) {
    for (x, kept) in x.chunks_exact(width).zip(statistics) {
        // SAFETY: loads end with the row.
        unsafe {
            let (mut sum, mut square) = (L::splat(0.0), L::splat(0.0));
            for at in (0..width).step_by(LANES) {
                sum = sum.plus(load(x.as_ptr().add(at), width - at));
            }
            let mean = sum.sum() / width as f32;
            for at in (0..width).step_by(LANES) {
                let mut distance = load::<L>(x.as_ptr().add(at), width - at).minus(L::splat(mean));
                if width - at < LANES {
                    distance = distance.where_set((1_u16 << (width - at)) - 1);
                }
                square = square.plus_product(distance, distance);
            }
            *kept = (mean, 1.0 / (square.sum() / width as f32 + EPSILON).sqrt());
        }
    }
}

#[inline(always)]
unsafe fn normalize_body<L: Lanes>(
    x: *const f32,
    y: *mut f32,
    statistics: &[Statistics],
    weight: &[f32],
    bias: &[f32],
) {
    let width = weight.len();
    for (row, &(mean, inverse)) in statistics.iter().enumerate() {
        for at in (0..width).step_by(LANES) {
            // SAFETY: the caller gives as many rows as statistics; loads and stores end with the row.
            unsafe {
                let left = width - at;
                let x: L = load(x.add(row * width + at), left);
                let normal = x.minus(L::splat(mean)).times(L::splat(inverse));
                let result =
                    load::<L>(bias.as_ptr().add(at), left).plus_product(normal, load(weight.as_ptr().add(at), left));
                store(result, y.add(row * width + at), left);
            }
        }
    }
}

#[inline(always)]
unsafe fn input_gradient_body<L: Lanes>(
    x: *const f32,
    statistics: &[Statistics],
    weight: &[f32],
    c: *const f32,
    dx: *mut f32,
) {
    // SAFETY: as demanded of the caller.
    unsafe { backward::<L>(x, statistics, weight, c, dx, None) }
}

#[inline(always)]
unsafe fn gradients_body<L: Lanes>(
    x: *const f32,
    statistics: &[Statistics],
    weight: &[f32],
    c: *const f32,
    dx: *mut f32,
    sums: &mut [f32],
) {
    // SAFETY: as demanded of the caller.
    unsafe { backward::<L>(x, statistics, weight, c, dx, Some(sums)) }
}

/// Writes `∂x`. Adds `∂γ` and `∂β` to `sums` row by row, as [`add_parameter_gradients_body`] does, if `sums` is given.
#[inline(always)]
unsafe fn backward<L: Lanes>(
    x: *const f32,
    statistics: &[Statistics],
    weight: &[f32],
    c: *const f32,
    dx: *mut f32,
    sums: Option<&mut [f32]>,
) {
    let width = weight.len();
    let sums = sums.map(|sums| sums.as_mut_ptr());
    for (row, &(mean, inverse)) in statistics.iter().enumerate() {
        // SAFETY: the caller gives as many rows as statistics; loads and stores end with the row.
        unsafe {
            let (x, c, dx) = (x.add(row * width), c.add(row * width), dx.add(row * width));
            let (centre, scale) = (L::splat(mean), L::splat(inverse));
            let (mut sum, mut product) = (L::splat(0.0), L::splat(0.0));
            for at in (0..width).step_by(LANES) {
                let left = width - at;
                // After the row's end `g` is 0, so `normal` does not matter there.
                let g = load::<L>(c.add(at), left).times(load(weight.as_ptr().add(at), left));
                let normal = load::<L>(x.add(at), left).minus(centre).times(scale);
                sum = sum.plus(g);
                product = product.plus_product(g, normal);
            }
            let count = width as f32;
            let (mean_g, mean_gx) = (L::splat(sum.sum() / count), L::splat(-product.sum() / count));
            for at in (0..width).step_by(LANES) {
                let left = width - at;
                let c = load::<L>(c.add(at), left);
                let g = c.times(load(weight.as_ptr().add(at), left));
                let normal = load::<L>(x.add(at), left).minus(centre).times(scale);
                let inner = g.minus(mean_g).plus_product(normal, mean_gx);
                store(inner.times(scale), dx.add(at), left);
                if let Some(sums) = sums {
                    let (dg, db) = (sums.add(at), sums.add(width + at));
                    store(load::<L>(dg, left).plus_product(c, normal), dg, left);
                    store(load::<L>(db, left).plus(c), db, left);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn add_parameter_gradients_body<L: Lanes>(
    x: *const f32,
    statistics: &[Statistics],
    c: *const f32,
    sums: &mut [f32],
) {
    let width = sums.len() / 2;
    let (dg, db) = sums.split_at_mut(width);
    let (dg, db) = (dg.as_mut_ptr(), db.as_mut_ptr());
    for at in (0..width).step_by(LANES) {
        // SAFETY: the caller gives as many rows as statistics; loads and stores end with the row.
        unsafe {
            let left = width - at;
            let (mut g, mut b): (L, L) = (load(dg.add(at), left), load(db.add(at), left));
            for (row, &(mean, inverse)) in statistics.iter().enumerate() {
                let c: L = load(c.add(row * width + at), left);
                let x: L = load(x.add(row * width + at), left);
                g = g.plus_product(c, x.minus(L::splat(mean)).times(L::splat(inverse)));
                b = b.plus(c);
            }
            store(g, dg.add(at), left);
            store(b, db.add(at), left);
        }
    }
}
