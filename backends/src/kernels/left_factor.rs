//! Left factors of products: matrices as they are, or packed in strips of eight rows, in which the eight numbers of a column lie side by side.
//!
//! A transpose is packed before it is multiplied, since each number of its rows lies on a cache line of its own.

use super::matrix::Matrix;

/// Rows of one strip.
pub(crate) const STRIP: usize = 8;

/// A left factor of `rows` by `depth` numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeftFactor<'a> {
    values: &'a [f32],
    rows: usize,
    depth: usize,
    strides: Strides,
}

/// Distances in memory, in numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strides {
    /// From one strip to the next.
    pub(super) strip: usize,
    /// From a row to the next of the same strip.
    pub(super) row: usize,
    /// From a column to the next.
    pub(super) column: usize,
}

impl<'a> From<Matrix<'a>> for LeftFactor<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        let ((rows, depth), (row, column)) = (matrix.dims(), matrix.strides());
        Self { values: matrix.values(), rows, depth, strides: Strides { strip: STRIP * row, row, column } }
    }
}

impl<'a> LeftFactor<'a> {
    /// Returns the size of a packed factor, in numbers.
    pub(crate) fn len(rows: usize, depth: usize) -> usize {
        rows.next_multiple_of(STRIP) * depth
    }

    /// Packs the transpose of `columns (depth, rows)`, whose rows lie side by side, into the first numbers of `memory`.
    pub(crate) fn pack_transpose(columns: Matrix<'_>, memory: &'a mut [f32]) -> Self {
        let (depth, rows) = columns.dims();
        let (values, (row_stride, column_stride)) = (columns.values(), columns.strides());
        assert!(column_stride == 1 || rows <= 1, "numbers of a row lie side by side");
        let memory = &mut memory[..Self::len(rows, depth)];
        // A few rows at a time, which are read and written in whole cache lines.
        const ROWS: usize = 8;
        for first in (0..depth).step_by(ROWS) {
            let some = ROWS.min(depth - first);
            columns.read_ahead(first + some..first + some + ROWS);
            for (strip, memory) in memory.chunks_exact_mut(STRIP * depth).enumerate() {
                let memory = memory[first * STRIP..].as_chunks_mut::<STRIP>().0;
                for (row, to) in (first..first + some).zip(memory) {
                    let from = &values[row * row_stride..][strip * STRIP..rows];
                    match from.first_chunk::<STRIP>() {
                        Some(whole) => *to = *whole,
                        None => to[..from.len()].copy_from_slice(from),
                    }
                }
            }
        }
        Self::packed(memory, rows, depth)
    }

    /// Makes a factor of strips, one after another, that the caller has filled.
    pub(crate) fn packed(values: &'a [f32], rows: usize, depth: usize) -> Self {
        assert!(Self::len(rows, depth) <= values.len(), "strips beyond their slice");
        Self { values, rows, depth, strides: Strides { strip: STRIP * depth, row: 1, column: STRIP } }
    }

    /// Returns rows and depth.
    pub(crate) fn dims(&self) -> (usize, usize) {
        (self.rows, self.depth)
    }

    /// Returns the factor as a matrix.
    ///
    /// # Panics
    /// If it is packed in strips.
    pub(super) fn as_matrix(&self) -> Matrix<'a> {
        let Strides { strip, row, column } = self.strides;
        assert_eq!(strip, STRIP * row, "a factor in strips");
        Matrix::with_strides(self.values, [self.rows, self.depth], [row, column])
    }

    pub(super) fn strides(&self) -> Strides {
        self.strides
    }

    /// Returns its first number; all others follow it.
    pub(super) fn first(&self) -> *const f32 {
        self.values.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_transpose_has_the_same_elements() {
        for (depth, rows) in [(1, 1), (3, 8), (9, 13), (17, 32)] {
            let values: Vec<f32> = (0..depth * (rows + 2)).map(|i| i as f32).collect();
            let matrix = Matrix::strided(&values, depth, rows, rows + 2);
            let mut memory = vec![f32::NAN; LeftFactor::len(rows, depth)];
            let packed = LeftFactor::pack_transpose(matrix, &mut memory);
            let plain = LeftFactor::from(matrix.t());
            assert_eq!((packed.dims(), plain.dims()), ((rows, depth), (rows, depth)));
            let at = |left: &LeftFactor<'_>, row: usize, column: usize| {
                let Strides { strip, row: apart, column: columns } = left.strides();
                left.values[row / STRIP * strip + row % STRIP * apart + column * columns]
            };
            for (row, column) in (0..rows).flat_map(|row| (0..depth).map(move |column| (row, column))) {
                assert_eq!(at(&packed, row, column), at(&plain, row, column), "({depth}, {rows}) at {row}, {column}");
            }
        }
    }
}
