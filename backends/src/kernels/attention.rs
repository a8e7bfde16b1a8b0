//! One head of causal attention: `y = R V`, `R` the kept and scaled part of `P = softmax(Q Kᵀ/√h + M)`.
//!
//! Scores exist for 32 positions at a time, up to the last of them. Kept are `y` and for each position `l = log Σ_j exp(S_ij)`, from which a
//! pull-back computes `P = exp(S - l)` again. With `c` the cotangent of `y`: `∂V = Rᵀ c`, `∂P = c Vᵀ` where kept,
//! `∂S = P (∂P - rowsum(c y))/√h`, `∂Q = ∂S K`, `∂K = ∂Sᵀ Q`; `rowsum(c y) = rowsum(∂P P)`.
//!
//! After Dao et al., *FlashAttention*, 2022.

mod heads;

use std::ops::Range;

pub(crate) use heads::Heads;

use super::{
    lanes::{LANES, Lanes},
    matrix::{Matrix, MatrixMut},
    panels::Panels,
    product::{End, product},
};

/// Positions whose scores are computed together; nothing is computed right of the last one's diagonal element.
const ROWS: usize = 32;

/// Queries, keys and values of one head, `(T, h)` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    pub(crate) queries: Matrix<'a>,
    pub(crate) keys: Matrix<'a>,
    pub(crate) values: Matrix<'a>,
    /// Which weights are kept, `(T, T)`, and what they are multiplied with.
    pub(crate) kept: Option<(&'a [bool], f32)>,
    /// What the next head will read, `(T, …)`: it is read ahead, its rows lying too far apart for the processor to do so by itself.
    pub(crate) next: &'a [Matrix<'a>],
}

impl Head<'_> {
    /// Positions and columns.
    fn dims(&self) -> (usize, usize) {
        let dims = self.queries.dims();
        assert!(dims == self.keys.dims() && dims == self.values.dims(), "queries, keys and values of different shapes");
        assert!(self.kept.is_none_or(|(keep, _)| keep.len() == dims.0 * dims.0), "a mask of another shape");
        dims
    }

    fn root(&self) -> f32 {
        (1.0 / (self.dims().1 as f64).sqrt()) as f32
    }

    /// Scratch that a pass over the head takes.
    pub(crate) fn scratch(length: usize, width: usize) -> usize {
        let by_position = Panels::len(width, length);
        2 * by_position + 3 * Panels::len(length, width) + 2 * ROWS * length.next_multiple_of(LANES)
    }

    /// Reads these rows of the next head.
    fn read_ahead(&self, rows: Range<usize>) {
        self.next.iter().for_each(|matrix| matrix.read_ahead(rows.clone()));
    }

    /// Multiplies the weights of position `row` that are kept with their scale, and drops the others.
    fn drop_weights(&self, row: usize, weights: &mut [f32]) {
        if let Some((keep, scale)) = self.kept {
            let keep = &keep[row * self.dims().0..];
            for (weight, &keep) in weights.iter_mut().zip(keep) {
                *weight = if keep { *weight * scale } else { 0.0 };
            }
        }
    }

    /// Writes `y (T, h)` and `l (T)`.
    pub(crate) fn mix(&self, y: &mut MatrixMut<'_>, logs: &mut [f32], scratch: &mut [f32]) {
        let (length, width) = self.dims();
        let stride = length.next_multiple_of(LANES);
        assert!(y.dims() == (length, width) && logs.len() == length, "results of another shape");
        let (keys, rest) = scratch.split_at_mut(Panels::len(width, length));
        let (values, scores) = rest.split_at_mut(Panels::len(length, width));
        let keys = Panels::pack(self.keys.t(), keys);
        let values = Panels::pack(self.values, values);
        for start in (0..length).step_by(ROWS) {
            let end = (start + ROWS).min(length);
            self.read_ahead(start..end);
            let block = MatrixMut::strided(scores, end - start, end, stride);
            product(self.queries.rows(start..end), keys.first_columns(end), block, End::Scaled(self.root()));
            let mut sums = [0.0_f32; ROWS];
            for ((row, scores), sum) in (start..end).zip(scores.chunks_exact_mut(stride)).zip(&mut sums) {
                let (top, total) = exponentials(scores, row + 1, end);
                (logs[row], *sum) = (top + total.ln(), total);
                self.drop_weights(row, &mut scores[..=row]);
            }
            let weights = Matrix::strided(scores, end - start, end, stride);
            product(weights, values.rows(0..end), y.rows(start..end), End::Replace);
            for (row, sum) in (start..end).zip(sums) {
                let inverse = 1.0 / sum;
                for value in y.row(row) {
                    // SAFETY: the product wrote every element of these rows.
                    value.write(unsafe { value.assume_init() } * inverse);
                }
            }
        }
    }

    /// Writes `∂Q`, `∂K` and `∂V`, `(T, h)` each, from `y` and `l` of [`Self::mix`] and the cotangent `c (T, h)` of `y`.
    pub(crate) fn pull_back(
        &self,
        y: Matrix<'_>,
        logs: &[f32],
        c: Matrix<'_>,
        [mut dq, mut dk, mut dv]: [MatrixMut<'_>; 3],
        scratch: &mut [f32],
    ) {
        let (length, width) = self.dims();
        let stride = length.next_multiple_of(LANES);
        assert!(y.dims() == (length, width) && c.dims() == y.dims() && logs.len() == length, "other shapes");
        let (keys_t, rest) = scratch.split_at_mut(Panels::len(width, length));
        let (values_t, rest) = rest.split_at_mut(Panels::len(width, length));
        let (keys, rest) = rest.split_at_mut(Panels::len(length, width));
        let (queries, rest) = rest.split_at_mut(Panels::len(length, width));
        let (cotangents, rest) = rest.split_at_mut(Panels::len(length, width));
        let (weights, slopes) = rest.split_at_mut(ROWS * stride);
        let (keys_t, values_t) = (Panels::pack(self.keys.t(), keys_t), Panels::pack(self.values.t(), values_t));
        let [keys, queries, cotangents] =
            [(self.keys, keys), (self.queries, queries), (c, cotangents)].map(|(m, memory)| Panels::pack(m, memory));
        for start in (0..length).step_by(ROWS) {
            let end = (start + ROWS).min(length);
            let rows = start..end;
            self.read_ahead(rows.clone());
            let block = |values| MatrixMut::strided(values, end - start, end, stride);
            product(
                self.queries.rows(rows.clone()),
                keys_t.first_columns(end),
                block(weights),
                End::Scaled(self.root()),
            );
            product(c.rows(rows.clone()), values_t.first_columns(end), block(slopes), End::Replace);
            let pairs = weights.chunks_exact_mut(stride).zip(slopes.chunks_exact_mut(stride));
            for (row, (weights, slopes)) in rows.clone().zip(pairs) {
                self.drop_weights(row, &mut slopes[..=row]);
                let mean = dot(c.rows(row..row + 1).values(), y.rows(row..row + 1).values(), width);
                softmax_gradient(weights, slopes, [logs[row], mean, self.root()], row + 1, end);
                self.drop_weights(row, &mut weights[..=row]);
            }
            let weights = Matrix::strided(weights, end - start, end, stride);
            let slopes = Matrix::strided(slopes, end - start, end, stride);
            product(slopes, keys.rows(0..end), dq.rows(rows.clone()), End::Replace);
            for (result, left, right) in [(&mut dk, slopes, queries), (&mut dv, weights, cotangents)] {
                let (left, right) = (left.t(), right.rows(rows.clone()));
                product(left.rows(rows.clone()), right, result.rows(rows.clone()), End::Replace);
                // SAFETY: each of these rows was in an earlier block, and was written there by the line above.
                let earlier = unsafe { result.rows(0..start).assume_written() };
                product(left.rows(0..start), right, earlier, End::Add);
            }
        }
    }
}

/// `e^(x - top)` of the first `seen` scores in place, zeros up to number `end`; gives `top`, the greatest, and the sum.
fn exponentials(scores: &mut [f32], seen: usize, end: usize) -> (f32, f32) {
    assert!(0 < seen && seen <= end && end.next_multiple_of(LANES) <= scores.len(), "scores of a row");
    // SAFETY: just asserted.
    unsafe { exponentials_in(scores.as_mut_ptr(), seen, end) }
}

/// `p = e^(x - log)` in place of the first `seen` scores, and `p (d - mean) root` in place of the slopes `d`; zeros up to number `end`.
fn softmax_gradient(scores: &mut [f32], slopes: &mut [f32], constants: [f32; 3], seen: usize, end: usize) {
    assert!(scores.len() == slopes.len(), "slices of different lengths");
    assert!(seen <= end && end.next_multiple_of(LANES) <= scores.len(), "scores of a row");
    // SAFETY: just asserted.
    unsafe { softmax_gradient_in(scores.as_mut_ptr(), slopes.as_mut_ptr(), constants, seen, end) }
}

/// `Σ_i a_i b_i` over the first `count`.
fn dot(a: &[f32], b: &[f32], count: usize) -> f32 {
    assert!(count <= a.len() && count <= b.len(), "a dot product beyond its slices");
    // SAFETY: just asserted.
    unsafe { dot_of(a.as_ptr(), b.as_ptr(), count) }
}

dispatch! { unsafe fn exponentials_in(scores: *mut f32, seen: usize, end: usize) -> (f32, f32) = exponentials_body }
dispatch! {
    unsafe fn softmax_gradient_in(scores: *mut f32, slopes: *mut f32, constants: [f32; 3], seen: usize, end: usize)
        = softmax_gradient_body
}
dispatch! { unsafe fn dot_of(a: *const f32, b: *const f32, count: usize) -> f32 = dot_body }

/// A bit for each lane from number `at` on that is among the first `seen`.
#[inline(always)]
fn among(at: usize, seen: usize) -> u16 {
    match seen.saturating_sub(at) {
        left @ 0..LANES => (1 << left) - 1,
        _ => u16::MAX,
    }
}

#[inline(always)]
unsafe fn exponentials_body<L: Lanes>(scores: *mut f32, seen: usize, end: usize) -> (f32, f32) {
    let whole = seen / LANES * LANES;
    // SAFETY: the caller gives whole vectors up to `end`.
    unsafe {
        let mut top = L::splat(f32::NEG_INFINITY);
        for at in (0..whole).step_by(LANES) {
            top = top.max(L::load(scores.add(at)));
        }
        let mut top = top.greatest();
        for at in whole..seen {
            top = top.max(*scores.add(at));
        }
        let (centre, mut sum) = (L::splat(top), L::splat(0.0));
        for at in (0..whole).step_by(LANES) {
            let power = L::load(scores.add(at)).minus(centre).exp();
            power.store(scores.add(at));
            sum = sum.plus(power);
        }
        for at in (whole..end).step_by(LANES) {
            let power = L::load(scores.add(at)).minus(centre).exp().where_set(among(at, seen));
            power.store(scores.add(at));
            sum = sum.plus(power);
        }
        (top, sum.sum())
    }
}

#[inline(always)]
unsafe fn softmax_gradient_body<L: Lanes>(
    scores: *mut f32,
    slopes: *mut f32,
    [log, mean, root]: [f32; 3],
    seen: usize,
    end: usize,
) {
    // SAFETY: the caller gives whole vectors up to `end`.
    unsafe {
        for at in (0..end).step_by(LANES) {
            let seen = among(at, seen);
            let p = L::load(scores.add(at)).minus(L::splat(log)).exp().where_set(seen);
            let slope = L::load(slopes.add(at)).minus(L::splat(mean)).times(p).times(L::splat(root));
            p.store(scores.add(at));
            slope.where_set(seen).store(slopes.add(at));
        }
    }
}

#[inline(always)]
unsafe fn dot_body<L: Lanes>(a: *const f32, b: *const f32, count: usize) -> f32 {
    // SAFETY: the caller gives `count` numbers.
    unsafe {
        let mut sum = L::splat(0.0);
        for at in (0..count).step_by(LANES) {
            let left = (count - at).min(LANES);
            sum = sum.plus_product(L::load_first(a.add(at), left), L::load_first(b.add(at), left));
        }
        sum.sum()
    }
}
