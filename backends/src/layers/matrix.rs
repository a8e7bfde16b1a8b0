//! Matrix products on slices, on the calling thread.

use std::ops::Range;

use gemm::Parallelism;

/// A matrix of `rows` by `columns` elements inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one after another, without gaps.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Rows that begin `row_stride` elements apart.
    pub(crate) fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        Self { values: &self.values[rows.start * self.row_stride..], rows: rows.len(), ..self }
    }

    /// The first columns.
    pub(crate) fn first_columns(self, columns: usize) -> Self {
        assert!(columns <= self.columns, "{columns} of {} columns", self.columns);
        Self { columns, ..self }
    }
}

/// Where a product goes: rows that begin `row_stride` elements apart.
pub(crate) struct Target<'a> {
    values: &'a mut [f32],
    row_stride: usize,
}

impl<'a> Target<'a> {
    /// Rows that begin `row_stride` elements apart.
    pub(crate) fn new(values: &'a mut [f32], row_stride: usize) -> Self {
        Self { values, row_stride }
    }
}

/// Whether a product replaces what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// It does.
    Replace,
    /// It is added to it.
    Add,
}

/// `c = scale·a·b`, or `c += scale·a·b`, on the calling thread.
pub(crate) fn multiply(scale: f32, a: Matrix<'_>, b: Matrix<'_>, c: Target<'_>, write: Write) {
    assert_eq!(a.columns, b.rows, "inner dimensions of a matrix product");
    let (m, n, k) = (a.rows, b.columns, a.columns);
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= c.row_stride || m == 1, "rows of a product overlap");
    assert!((m - 1) * c.row_stride + n <= c.values.len(), "a product beyond its slice");
    for x in [&a, &b] {
        let last = x.rows.saturating_sub(1) * x.row_stride + x.columns.saturating_sub(1) * x.column_stride;
        assert!(k == 0 || last < x.values.len(), "a factor beyond its slice");
    }
    // SAFETY: the assertions above keep every element that the three strided matrices name inside its slice, no two elements of `c`
    // share a place, and `c` is borrowed mutably, so it overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.values.as_mut_ptr(),
            1,
            c.row_stride as isize,
            write == Write::Add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_transposed_and_added_products_equal_the_plain_sum() {
        let (m, n, k) = (5, 7, 3);
        let a: Vec<f32> = (0..k * 9).map(|i| i as f32 * 0.5 - 3.0).collect(); // (k, m) with rows 9 apart
        let b: Vec<f32> = (0..k * n).map(|i| 2.0 - i as f32 * 0.25).collect();
        let mut c = vec![1.0_f32; m * 8];
        let (a_t, b_m) = (Matrix::strided(&a, k, m, 9).t(), Matrix::new(&b, k, n));
        multiply(2.0, a_t.rows(1..4), b_m, Target::new(&mut c, 8), Write::Add);
        for i in 0..3 {
            for j in 0..n {
                let sum: f32 = (0..k).map(|l| a[l * 9 + i + 1] * b[l * n + j]).sum();
                assert_eq!(c[i * 8 + j], 1.0 + 2.0 * sum);
            }
            assert_eq!(c[i * 8 + 7], 1.0, "the gap between rows was written");
        }
        multiply(1.0, Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 2), Target::new(&mut c, 8), Write::Replace);
        assert_eq!(&c[..2], &[0.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "a product beyond its slice")]
    fn a_product_that_does_not_fit_is_refused() {
        let one = [1.0_f32; 4];
        multiply(1.0, Matrix::new(&one, 2, 2), Matrix::new(&one, 2, 2), Target::new(&mut [0.0; 3], 2), Write::Replace);
    }
}
