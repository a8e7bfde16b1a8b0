//! Attention of a whole batch, one task for each head of each example.

use rayon::prelude::*;

use super::AttentionHead;
use crate::kernels::{
    aligned_buffer::{AlignedBuffer, Filled, with_scratch},
    matrix::{Matrix, MatrixMut},
    panels::ProductForm,
};

/// The shape of the work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionHeads {
    /// Examples, `B`.
    pub(crate) batch: usize,
    /// Positions, `T`.
    pub(crate) length: usize,
    /// Heads, `n`.
    pub(crate) count: usize,
    /// Columns of a head, `h`.
    pub(crate) width: usize,
    /// The form of the products.
    pub(crate) form: ProductForm,
}

/// The attention weights that dropout keeps, `(B, n, T, T)`, and the factor that they are multiplied by.
pub(crate) type DropoutMask<'a> = Option<(&'a [bool], f32)>;

impl AttentionHeads {
    /// Returns the dimensions `(B, T, parts·n·h)`.
    pub(crate) fn dims(&self, parts: usize) -> [usize; 3] {
        [self.batch, self.length, parts * self.count * self.width]
    }

    fn elements(&self, parts: usize) -> usize {
        self.dims(parts).iter().product()
    }

    /// Returns the number of attention weights of all heads, `B·n·T·T`.
    pub(crate) fn weights(&self) -> usize {
        self.batch * self.count * self.length * self.length
    }

    /// Returns the columns of head number `task` (of all examples) in part `part` of values `(B, T, parts, n, h)`, as a matrix `(T, h)`.
    fn part<'a>(&self, values: &'a [f32], task: usize, part: usize, parts: usize) -> Matrix<'a> {
        let row = parts * self.count * self.width;
        let (example, head) = (task / self.count, task % self.count);
        let start = example * self.length * row + (part * self.count + head) * self.width;
        Matrix::strided(&values[start..], self.length, self.width, row)
    }

    fn head<'a>(
        &self,
        qkv: &'a [f32],
        kept: DropoutMask<'a>,
        task: usize,
        next: &'a [Matrix<'a>],
    ) -> AttentionHead<'a> {
        let [queries, keys, values] = [0, 1, 2].map(|part| self.part(qkv, task, part, 3));
        let square = self.length * self.length;
        let kept = kept.map(|(keep, scale)| (&keep[task * square..][..square], scale));
        AttentionHead { queries, keys, values, kept, next, form: self.form }
    }

    /// Returns the number of the next head, if there is one.
    fn next(&self, task: usize) -> Option<usize> {
        (task + 1 < self.batch * self.count).then_some(task + 1)
    }

    fn check(&self, qkv: &[f32], kept: DropoutMask<'_>) {
        assert_eq!(qkv.len(), self.elements(3), "queries, keys and values");
        assert!(kept.is_none_or(|(keep, _)| keep.len() == self.weights()), "a mask of another shape");
    }

    /// Returns the outputs of all heads, `(B, T, n·h)`, and a logarithm for each position of each head, `(B, n, T)`, from queries, keys and
    /// values `(B, T, 3·n·h)`.
    pub(crate) fn mix(&self, qkv: &[f32], kept: DropoutMask<'_>) -> (Filled, Vec<f32>) {
        self.check(qkv, kept);
        let mut mixed = AlignedBuffer::new(self.elements(1));
        let mut logs = vec![0.0; self.batch * self.count * self.length];
        let row = self.count * self.width;
        let strips = mixed.blank().chunks_mut(self.length * row);
        let strips = strips.flat_map(|example| MatrixMut::blank(example, self.length, row).strips(self.width));
        let tasks: Vec<_> = strips.zip(logs.chunks_mut(self.length)).collect();
        tasks.into_par_iter().enumerate().for_each(|(task, (mut mixed, logs))| {
            let next = self.next(task).map(|next| [0, 1, 2].map(|part| self.part(qkv, next, part, 3)));
            with_scratch(AttentionHead::scratch(self.length, self.width, self.form), |scratch| {
                self.head(qkv, kept, task, next.as_ref().map_or(&[], |next| next)).mix(&mut mixed, logs, scratch);
            });
        });
        // SAFETY: the strips cover all elements, and each head writes its own.
        (unsafe { mixed.filled() }, logs)
    }

    /// Returns the gradient of queries, keys and values, `(B, T, 3·n·h)`, from the results of [`Self::mix`] and their output gradient
    /// `c (B, T, n·h)`.
    pub(crate) fn backward(
        &self,
        qkv: &[f32],
        kept: DropoutMask<'_>,
        mixed: &[f32],
        logs: &[f32],
        c: &[f32],
    ) -> Filled {
        self.check(qkv, kept);
        assert!(mixed.len() == self.elements(1) && c.len() == mixed.len(), "results of another shape");
        let mut gradient = AlignedBuffer::new(self.elements(3));
        let row = 3 * self.count * self.width;
        let mut tasks = Vec::with_capacity(self.batch * self.count);
        for example in gradient.blank().chunks_mut(self.length * row) {
            let mut strips = MatrixMut::blank(example, self.length, row).strips(self.width);
            let mut part = || strips.by_ref().take(self.count).collect::<Vec<_>>();
            let (queries, keys, values) = (part(), part(), part());
            tasks.extend(queries.into_iter().zip(keys).zip(values).map(|((q, k), v)| [q, k, v]));
        }
        tasks.into_par_iter().enumerate().for_each(|(task, gradients)| {
            let logs = &logs[task * self.length..][..self.length];
            let next = self.next(task).map(|next| {
                let [queries, keys, values] = [0, 1, 2].map(|part| self.part(qkv, next, part, 3));
                [queries, keys, values, self.part(mixed, next, 0, 1), self.part(c, next, 0, 1)]
            });
            let [mixed, c] = [mixed, c].map(|values| self.part(values, task, 0, 1));
            with_scratch(AttentionHead::scratch(self.length, self.width, self.form), |scratch| {
                let head = self.head(qkv, kept, task, next.as_ref().map_or(&[], |next| next));
                head.backward(mixed, logs, c, gradients, scratch);
            });
        });
        // SAFETY: the strips cover all elements, and each head writes its own.
        unsafe { gradient.filled() }
    }
}
