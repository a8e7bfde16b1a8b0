//! Views of matrices inside slices, which the kernels multiply.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::{
    aligned_buffer::Blank,
    lanes::{LANES, prefetch},
};

/// A matrix of `rows` by `columns` numbers inside a slice, read only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Makes a matrix of rows one after another, without gaps.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Makes a matrix of rows that begin `row_stride` numbers apart.
    pub(crate) fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self::with_strides(values, [rows, columns], [row_stride, 1])
    }

    /// Makes a matrix of these rows and columns, with these distances between rows and between columns, in numbers.
    pub(super) fn with_strides(
        values: &'a [f32],
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        let matrix = Self { values, rows, columns, row_stride, column_stride };
        assert!(matrix.extent() <= values.len(), "a matrix beyond its slice");
        matrix
    }

    /// Writes `f` of each number to `to`, row after row without gaps.
    pub(super) fn copy_to(&self, to: &mut [f32], f: impl Fn(f32) -> f32) {
        assert!(self.rows * self.columns <= to.len(), "a copy beyond its slice");
        // Lines of memory are read one after another.
        if self.column_stride == 1 {
            for (row, to) in (0..self.rows).zip(to.chunks_exact_mut(self.columns.max(1))) {
                for (to, &from) in to.iter_mut().zip(self.row(row)) {
                    *to = f(from);
                }
            }
            return;
        }
        for column in 0..self.columns {
            let from = self.values[column * self.column_stride..].iter().step_by(self.row_stride);
            for (to, &from) in to[column..].iter_mut().step_by(self.columns).zip(from.take(self.rows)) {
                *to = f(from);
            }
        }
    }

    /// Returns how many numbers lie from the first to the last element, both included.
    fn extent(&self) -> usize {
        match (self.rows, self.columns) {
            (0, _) | (_, 0) => 0,
            (rows, columns) => (rows - 1) * self.row_stride + (columns - 1) * self.column_stride + 1,
        }
    }

    /// Returns the transpose.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Returns some of the rows.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let start = (rows.start * self.row_stride).min(self.values.len());
        Self { values: &self.values[start..], rows: rows.len(), ..self }
    }

    /// Returns some of the columns.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        self.t().rows(columns).t()
    }

    /// Returns one row. Its numbers must lie side by side.
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows && (self.column_stride == 1 || self.columns == 1), "row {row} of {}", self.rows);
        &self.values[row * self.row_stride..][..self.columns]
    }

    /// Prefetches these rows, whose numbers must lie side by side. Ignores rows beyond the last.
    pub(super) fn read_ahead(&self, rows: Range<usize>) {
        for row in rows.start..rows.end.min(self.rows) {
            for column in (0..self.columns).step_by(LANES) {
                prefetch(self.values.as_ptr().wrapping_add(row * self.row_stride + column));
            }
        }
    }

    /// Returns the number of rows and of columns.
    pub(crate) fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Returns the distances between rows and between columns, in numbers.
    pub(super) fn strides(&self) -> (usize, usize) {
        (self.row_stride, self.column_stride)
    }

    /// Returns the numbers from the first element on.
    pub(super) fn values(&self) -> &'a [f32] {
        self.values
    }
}

/// A matrix of `rows` by `columns` numbers inside a slice, borrowed exclusively, to write to.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a> {
    first: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    written: bool,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: this is a mutable borrow of its elements, and of nothing between its rows; such a borrow may go to another thread.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// Makes a matrix of rows that begin `row_stride` numbers apart.
    pub(crate) fn strided(values: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(columns <= row_stride, "rows of a matrix overlap");
        let extent = if rows == 0 { 0 } else { (rows - 1) * row_stride + columns };
        assert!(extent <= values.len(), "a matrix beyond its slice");
        Self { first: values.as_mut_ptr(), rows, columns, row_stride, written: true, memory: PhantomData }
    }

    /// Makes a matrix of rows one after another in memory that has not been written.
    pub(crate) fn blank(memory: &'a mut Blank, rows: usize, columns: usize) -> Self {
        assert!(rows * columns <= memory.len(), "a matrix beyond its memory");
        let first = memory.as_mut_ptr().cast();
        Self { first, rows, columns, row_stride: columns, written: false, memory: PhantomData }
    }

    /// Borrows the same matrix for a shorter time.
    pub(crate) fn again(&mut self) -> MatrixMut<'_> {
        MatrixMut { memory: PhantomData, ..*self }
    }

    /// Returns some of the rows.
    pub(crate) fn rows(&mut self, rows: Range<usize>) -> MatrixMut<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let first = self.first.wrapping_add(rows.start * self.row_stride);
        MatrixMut { first, rows: rows.len(), memory: PhantomData, ..*self }
    }

    /// Divides the matrix into strips of `width` columns; the last may have fewer.
    pub(crate) fn strips(self, width: usize) -> impl Iterator<Item = MatrixMut<'a>> {
        let Self { first, rows, row_stride, written, columns, .. } = self;
        (0..columns).step_by(width).map(move |at| MatrixMut {
            first: first.wrapping_add(at),
            rows,
            columns: width.min(columns - at),
            row_stride,
            written,
            memory: PhantomData,
        })
    }

    /// Returns one row, to write to.
    pub(crate) fn row(&mut self, row: usize) -> &mut Blank {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies within the memory that was borrowed (asserted when this was made), and this borrow of it is exclusive.
        unsafe {
            let first: *mut MaybeUninit<f32> = self.first.add(row * self.row_stride).cast();
            std::slice::from_raw_parts_mut(first, self.columns)
        }
    }

    /// Marks every element as written.
    ///
    /// # Safety
    /// Every element must have been written.
    pub(super) unsafe fn assume_written(self) -> Self {
        Self { written: true, ..self }
    }

    /// Returns whether every element is known to have been written.
    pub(super) fn is_written(&self) -> bool {
        self.written
    }

    /// Returns the number of rows and of columns.
    pub(crate) fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Returns the distance between rows, in numbers.
    pub(super) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Returns its first element.
    pub(super) fn first(&self) -> *mut f32 {
        self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_matrix_have_its_elements() {
        let values: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let matrix = Matrix::strided(&values, 4, 3, 5);
        let part = matrix.rows(1..3).columns(1..3);
        assert_eq!((part.dims(), part.values()[0]), ((2, 2), 6.0));
        assert_eq!(part.t().rows(1..2).values()[0], 7.0);
        assert_eq!(matrix.rows(4..4).dims(), (0, 3));
    }

    #[test]
    fn strips_do_not_overlap() {
        let mut values = vec![0.0; 15];
        for (strip, mut part) in MatrixMut::strided(&mut values, 3, 5, 5).strips(2).enumerate() {
            for row in 0..3 {
                part.row(row).fill(MaybeUninit::new((strip * 10 + row) as f32));
            }
        }
        assert_eq!(
            values,
            [[0.0, 0.0, 10.0, 10.0, 20.0], [1.0, 1.0, 11.0, 11.0, 21.0], [2.0, 2.0, 12.0, 12.0, 22.0]].concat()
        );
    }

    #[test]
    #[should_panic(expected = "a matrix beyond its slice")]
    fn a_matrix_that_does_not_fit_is_refused() {
        Matrix::strided(&[0.0; 7], 2, 3, 5);
    }
}
