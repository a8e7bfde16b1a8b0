//! One head of causal attention: `y = R V`, `R` the kept and scaled part of `P = softmax(Q Kᵀ/√h + M)`.
//!
//! Scores are computed for 32 positions at a time. The forward pass saves `y` and, for each position, `l = log Σ_j exp(S_ij)`, from which the
//! backward pass computes `P = exp(S - l)` again. With `c` the output gradient of `y`: `∂V = Rᵀ c`, `∂P = c Vᵀ` where kept,
//! `∂S = P (∂P - rowsum(c y))/√h`, `∂Q = ∂S K`, `∂K = ∂Sᵀ Q`; `rowsum(c y) = rowsum(∂P P)`.
//!
//! After Dao et al., *FlashAttention*, 2022.

mod heads;
mod softmax;

use std::ops::Range;

pub(crate) use heads::AttentionHeads;
use softmax::Block;

use super::{
    lanes::LANES,
    matrix::{Matrix, MatrixMut},
    panels::{Panels, ProductForm},
    product::{ProductEpilogue, product},
};

/// The number of positions whose scores are computed together, up to the column of the last one.
const ROWS: usize = 32;

/// Queries, keys and values of one head, `(T, h)` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionHead<'a> {
    pub(crate) queries: Matrix<'a>,
    pub(crate) keys: Matrix<'a>,
    pub(crate) values: Matrix<'a>,
    /// Dropout: which weights are kept, `(T, T)`, and the factor of those.
    pub(crate) kept: Option<(&'a [bool], f32)>,
    /// The matrices that the next head reads, `(T, …)`. They are prefetched: their rows lie too far apart for the processor to prefetch by itself.
    pub(crate) next: &'a [Matrix<'a>],
    /// The form of the products.
    pub(crate) form: ProductForm,
}

impl AttentionHead<'_> {
    /// Returns the number of positions and of columns.
    fn dims(&self) -> (usize, usize) {
        let dims = self.queries.dims();
        assert!(dims == self.keys.dims() && dims == self.values.dims(), "queries, keys and values of different shapes");
        assert!(self.kept.is_none_or(|(keep, _)| keep.len() == dims.0 * dims.0), "a mask of another shape");
        dims
    }

    fn score_scale(&self) -> f32 {
        (1.0 / (self.dims().1 as f64).sqrt()) as f32
    }

    /// Returns the size of the scratch that a pass over the head needs, in numbers.
    pub(crate) fn scratch(length: usize, width: usize, form: ProductForm) -> usize {
        2 * form.len(width, length) + 3 * form.len(length, width) + 2 * ROWS * length.next_multiple_of(LANES)
    }

    /// Returns the layout of the scores of the positions from `start` to `end`.
    fn block(&self, start: usize, end: usize) -> Block {
        Block { rows: end - start, seen: start + 1, stride: self.dims().0.next_multiple_of(LANES) }
    }

    /// Prefetches these rows of the next head.
    fn read_ahead(&self, rows: Range<usize>) {
        self.next.iter().for_each(|matrix| matrix.read_ahead(rows.clone()));
    }

    /// Scales the kept weights of position `row`, and sets the others to zero.
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
        let form = self.form;
        let (keys, rest) = scratch.split_at_mut(form.len(width, length));
        let (values, scores) = rest.split_at_mut(form.len(length, width));
        let keys = Panels::pack(self.keys.t(), form, keys, None);
        let values = Panels::pack(self.values, form, values, None);
        for start in (0..length).step_by(ROWS) {
            let end = (start + ROWS).min(length);
            self.read_ahead(start..end);
            let block = MatrixMut::strided(scores, end - start, end, stride);
            product(
                self.queries.rows(start..end),
                keys.first_columns(end),
                block,
                ProductEpilogue::Scaled(self.score_scale()),
            );
            let mut sums = [[0.0_f32; 2]; ROWS];
            softmax::exponentials(scores, self.block(start, end), &mut sums[..end - start]);
            for ((row, scores), [top, sum]) in (start..end).zip(scores.chunks_exact_mut(stride)).zip(sums) {
                logs[row] = top + sum.ln();
                self.drop_weights(row, &mut scores[..=row]);
            }
            let weights = Matrix::strided(scores, end - start, end, stride);
            product(weights, values.rows(0..end), y.rows(start..end), ProductEpilogue::Replace);
            for (row, [_, sum]) in (start..end).zip(sums) {
                let inverse = 1.0 / sum;
                for value in y.row(row) {
                    // SAFETY: the product wrote every element of these rows.
                    value.write(unsafe { value.assume_init() } * inverse);
                }
            }
        }
    }

    /// Writes `∂Q`, `∂K` and `∂V`, `(T, h)` each, from `y` and `l` of [`Self::mix`] and the output gradient `c (T, h)` of `y`.
    pub(crate) fn backward(
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
        let form = self.form;
        let (keys_t, rest) = scratch.split_at_mut(form.len(width, length));
        let (values_t, rest) = rest.split_at_mut(form.len(width, length));
        let (keys, rest) = rest.split_at_mut(form.len(length, width));
        let (queries, rest) = rest.split_at_mut(form.len(length, width));
        let (output_gradients, rest) = rest.split_at_mut(form.len(length, width));
        let (weights, slopes) = rest.split_at_mut(ROWS * stride);
        let [keys_t, values_t] =
            [(self.keys, keys_t), (self.values, values_t)].map(|(m, memory)| Panels::pack(m.t(), form, memory, None));
        let [keys, queries, output_gradients] = [(self.keys, keys), (self.queries, queries), (c, output_gradients)]
            .map(|(m, memory)| Panels::pack(m, form, memory, None));
        for start in (0..length).step_by(ROWS) {
            let end = (start + ROWS).min(length);
            let rows = start..end;
            self.read_ahead(rows.clone());
            let block = |values| MatrixMut::strided(values, end - start, end, stride);
            product(
                self.queries.rows(rows.clone()),
                keys_t.first_columns(end),
                block(weights),
                ProductEpilogue::Scaled(self.score_scale()),
            );
            product(c.rows(rows.clone()), values_t.first_columns(end), block(slopes), ProductEpilogue::Replace);
            for (row, slopes) in rows.clone().zip(slopes.chunks_exact_mut(stride)) {
                self.drop_weights(row, &mut slopes[..=row]);
            }
            let c_and_y = [c, y].map(|matrix| matrix.rows(rows.clone()));
            softmax::gradient(
                weights,
                slopes,
                self.block(start, end),
                &logs[rows.clone()],
                c_and_y,
                self.score_scale(),
            );
            for (row, weights) in rows.clone().zip(weights.chunks_exact_mut(stride)) {
                self.drop_weights(row, &mut weights[..=row]);
            }
            let weights = Matrix::strided(weights, end - start, end, stride);
            let slopes = Matrix::strided(slopes, end - start, end, stride);
            product(slopes, keys.rows(0..end), dq.rows(rows.clone()), ProductEpilogue::Replace);
            for (result, left, right) in [(&mut dk, slopes, queries), (&mut dv, weights, output_gradients)] {
                let (left, right) = (left.t(), right.rows(rows.clone()));
                product(left.rows(rows.clone()), right, result.rows(rows.clone()), ProductEpilogue::Replace);
                // SAFETY: each of these rows was in an earlier block, and was written there by the line above.
                let earlier = unsafe { result.rows(0..start).assume_written() };
                product(left.rows(0..start), right, earlier, ProductEpilogue::Add);
            }
        }
    }
}
