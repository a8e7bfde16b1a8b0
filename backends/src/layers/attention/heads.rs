//! The heads of causal self-attention on slices: one task a head of an example.

use std::ops::Range;

use rayon::prelude::*;

use crate::layers::{
    math::{dot, exp, max, sum},
    matrix::{Matrix, Target, Write, multiply},
    slices::with_scratch,
};

/// Rows of the matrix of attention weights that are computed together; nothing is computed right of their last diagonal element.
const ROWS: usize = 64;

/// The shape of the work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// Examples, `B`.
    pub(super) batch: usize,
    /// Positions, `T`.
    pub(super) length: usize,
    /// Heads, `n`.
    pub(super) count: usize,
    /// Columns of a head, `h`.
    pub(super) width: usize,
}

/// Which attention weights are kept, `(B, n, T, T)`, and what they are multiplied with.
pub(super) type Kept<'a> = Option<(&'a [bool], f32)>;

impl Heads {
    /// `(B, T, parts·n·h)`.
    pub(super) fn dims(&self, parts: usize) -> [usize; 3] {
        [self.batch, self.length, parts * self.count * self.width]
    }

    /// Attention weights of all heads: `B·n·T·T`.
    pub(super) fn weights(&self) -> usize {
        self.batch * self.count * self.length * self.length
    }

    /// Elements of a head's queries.
    fn head(&self) -> usize {
        self.length * self.width
    }

    fn root(&self) -> f32 {
        (1.0 / (self.width as f64).sqrt()) as f32
    }

    /// The columns of head number `task` (of all examples) in part `part` of values `(B, T, parts, n, h)`, as a matrix `(T, h)`.
    fn part<'a>(&self, values: &'a [f32], task: usize, part: usize, parts: usize) -> Matrix<'a> {
        let row = parts * self.count * self.width;
        let (example, head) = (task / self.count, task % self.count);
        let start = example * self.length * row + (part * self.count + head) * self.width;
        Matrix::strided(&values[start..], self.length, self.width, row)
    }

    /// Puts `(B, n, parts, T, h)` in the order `(B, T, parts, n, h)`.
    fn together(&self, heads: &[f32], parts: usize) -> Vec<f32> {
        let mut values = vec![0.0; heads.len()];
        values.par_chunks_mut(parts * self.count * self.width).enumerate().for_each(|(i, row)| {
            let (example, position) = (i / self.length, i % self.length);
            for (j, to) in row.chunks_exact_mut(self.width).enumerate() {
                let (part, head) = (j / self.count, j % self.count);
                let from = (((example * self.count + head) * parts + part) * self.length + position) * self.width;
                to.copy_from_slice(&heads[from..][..self.width]);
            }
        });
        values
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let length = self.length;
        (0..length).step_by(ROWS).map(move |start| start..(start + ROWS).min(length))
    }

    /// `softmax(Q Kᵀ/√h + M) V`, `(B, T, n·h)`, and, where they are to be `saved`, the softmax `(B, n, T, T)`.
    pub(super) fn apply(&self, qkv: &[f32], kept: Kept<'_>, saved: bool) -> (Vec<f32>, Vec<f32>) {
        let square = self.length * self.length;
        let mut mixed = vec![0.0; self.batch * self.count * self.head()];
        let mut probabilities = vec![0.0; if saved { self.weights() } else { 0 }];
        if saved {
            (mixed.par_chunks_mut(self.head()).zip(probabilities.par_chunks_mut(square)))
                .enumerate()
                .for_each(|(task, (mixed, probabilities))| self.mix(task, qkv, kept, probabilities, mixed));
        } else {
            mixed.par_chunks_mut(self.head()).enumerate().for_each(|(task, mixed)| {
                with_scratch(square, |probabilities| self.mix(task, qkv, kept, probabilities, mixed));
            });
        }
        (self.together(&mixed, 1), probabilities)
    }

    fn mix(&self, task: usize, qkv: &[f32], kept: Kept<'_>, probabilities: &mut [f32], mixed: &mut [f32]) {
        let (length, width) = (self.length, self.width);
        let [q, k, v] = [0, 1, 2].map(|part| self.part(qkv, task, part, 3));
        for rows in self.blocks() {
            let seen = 0..rows.end;
            let block = &mut probabilities[rows.start * length..rows.end * length];
            multiply(
                self.root(),
                q.rows(rows.clone()),
                k.rows(seen.clone()).t(),
                Target::new(block, length),
                Write::Replace,
            );
            for (i, row) in rows.clone().zip(block.chunks_exact_mut(length)) {
                softmax(&mut row[..=i]);
                row[i + 1..seen.end].fill(0.0);
            }
            let mixed = Target::new(&mut mixed[rows.start * width..rows.end * width], width);
            self.with_kept(task, &rows, block, kept, |weights| {
                multiply(1.0, weights, v.rows(seen.clone()), mixed, Write::Replace);
            });
        }
    }

    /// Calls `work` with the attention weights of some rows after dropout, `(rows, rows.end)`.
    fn with_kept(
        &self,
        task: usize,
        rows: &Range<usize>,
        block: &[f32],
        kept: Kept<'_>,
        work: impl FnOnce(Matrix<'_>),
    ) {
        let (rows, length) = (rows.clone(), self.length);
        let Some((keep, scale)) = kept else {
            return work(Matrix::new(block, rows.len(), length).first_columns(rows.end));
        };
        with_scratch(block.len(), |dropped| {
            let keep = &keep[(task * length + rows.start) * length..];
            for ((to, &from), &keep) in dropped.iter_mut().zip(block).zip(keep) {
                *to = if keep { from * scale } else { 0.0 };
            }
            work(Matrix::new(dropped, rows.len(), length).first_columns(rows.end));
        });
    }

    /// The cotangent of queries, keys and values, `(B, T, 3·n·h)`, from the cotangent `c (B, T, n·h)` of the mixed values.
    pub(super) fn pull_back(&self, qkv: &[f32], probabilities: &[f32], kept: Kept<'_>, c: &[f32]) -> Vec<f32> {
        let mut gradient = vec![0.0; 3 * self.batch * self.count * self.head()];
        gradient
            .par_chunks_mut(3 * self.head())
            .zip(probabilities.par_chunks(self.length * self.length))
            .enumerate()
            .for_each(|(task, (gradient, probabilities))| self.unmix(task, qkv, probabilities, kept, c, gradient));
        self.together(&gradient, 3)
    }

    fn unmix(&self, task: usize, qkv: &[f32], probabilities: &[f32], kept: Kept<'_>, c: &[f32], gradient: &mut [f32]) {
        let (length, width) = (self.length, self.width);
        let [q, k, v] = [0, 1, 2].map(|part| self.part(qkv, task, part, 3));
        let c = self.part(c, task, 0, 1);
        let (dq, rest) = gradient.split_at_mut(self.head());
        let (dk, dv) = rest.split_at_mut(self.head());
        for rows in self.blocks() {
            let seen = 0..rows.end;
            let block = &probabilities[rows.start * length..rows.end * length];
            self.with_kept(task, &rows, block, kept, |weights| {
                multiply(1.0, weights.t(), c.rows(rows.clone()), Target::new(dv, width), Write::Add);
            });
            with_scratch(rows.len() * length, |ds| {
                let v = v.rows(seen.clone()).t();
                multiply(1.0, c.rows(rows.clone()), v, Target::new(ds, length), Write::Replace);
                for (i, (ds, p)) in rows.clone().zip(ds.chunks_exact_mut(length).zip(block.chunks_exact(length))) {
                    if let Some((keep, scale)) = kept {
                        let keep = &keep[(task * length + i) * length..][..=i];
                        for (ds, &keep) in ds.iter_mut().zip(keep) {
                            *ds = if keep { *ds * scale } else { 0.0 };
                        }
                    }
                    softmax_gradient(&mut ds[..=i], &p[..=i], self.root());
                    ds[i + 1..seen.end].fill(0.0);
                }
                let ds = Matrix::new(ds, rows.len(), length).first_columns(seen.end);
                let dq = Target::new(&mut dq[rows.start * width..rows.end * width], width);
                multiply(1.0, ds, k.rows(seen.clone()), dq, Write::Replace);
                multiply(1.0, ds.t(), q.rows(rows.clone()), Target::new(dk, width), Write::Add);
            });
        }
    }
}

/// `e^(x_i - max) / Σ_j e^(x_j - max)`, in place.
fn softmax(row: &mut [f32]) {
    let top = max(row);
    for x in &mut *row {
        *x = exp(*x - top);
    }
    let inverse = (1.0 / sum(row)) as f32;
    for x in row {
        *x *= inverse;
    }
}

/// `p (d - Σ d p) scale` in place of `d`.
fn softmax_gradient(d: &mut [f32], p: &[f32], scale: f32) {
    let mean = dot(d, p) as f32;
    for (d, &p) in d.iter_mut().zip(p) {
        *d = p * (*d - mean) * scale;
    }
}
