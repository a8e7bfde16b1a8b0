//! Right factors of products, packed into panels of 32 columns, in which a row's 32 numbers lie side by side.
//!
//! `B (depth, columns)` becomes `(columns/32, depth, 32)`; columns that are missing in the last panel are zeros.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    aligned_buffer::{Blank, Filled, blank, written},
    lanes::{LANES, Lanes},
    matrix::Matrix,
};

/// Columns of one panel.
pub(crate) const PANEL: usize = 32;

/// A packed matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a> {
    values: &'a [f32],
    depth: usize,
    columns: usize,
    /// The distance from one panel to the next, in numbers.
    stride: usize,
}

impl<'a> Panels<'a> {
    /// Returns the size of a packed matrix, in numbers.
    pub(crate) fn len(depth: usize, columns: usize) -> usize {
        columns.div_ceil(PANEL) * PANEL * depth
    }

    /// Makes a matrix of panels, one after another, that [`pack`] has filled.
    pub(crate) fn new(values: &'a [f32], depth: usize, columns: usize) -> Self {
        assert!(Self::len(depth, columns) <= values.len(), "panels beyond their slice");
        Self { values, depth, columns, stride: PANEL * depth }
    }

    /// Packs all of `b` into the first numbers of `memory`.
    pub(crate) fn pack(b: Matrix<'_>, memory: &'a mut [f32]) -> Self {
        let (depth, columns) = b.dims();
        let memory = &mut memory[..Self::len(depth, columns)];
        // Whole rows are read, a few at a time, or whole columns.
        let some = if b.strides().1 == 1 { LANES } else { depth.max(1) };
        for first in (0..depth).step_by(some) {
            let rows = first..(first + some).min(depth);
            if some < depth {
                b.read_ahead(rows.end..rows.end + some);
            }
            let b = b.rows(rows.clone());
            for (panel, memory) in memory.chunks_exact_mut(PANEL * depth).enumerate() {
                pack(b, panel, blank(&mut memory[rows.start * PANEL..rows.end * PANEL]));
            }
        }
        Self::new(memory, depth, columns)
    }

    /// Returns some of the rows.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= self.depth, "rows {rows:?} of {}", self.depth);
        Self { values: &self.values[rows.start * PANEL..], depth: rows.len(), ..self }
    }

    /// Returns the first columns.
    pub(crate) fn first_columns(self, columns: usize) -> Self {
        assert!(columns <= self.columns, "{columns} of {} columns", self.columns);
        Self { columns, ..self }
    }

    /// Returns the number of rows and of columns.
    pub(crate) fn dims(&self) -> (usize, usize) {
        (self.depth, self.columns)
    }

    /// Returns the first panel, and the distance to the next, in numbers.
    pub(super) fn first(&self) -> (*const f32, usize) {
        (self.values.as_ptr(), self.stride)
    }
}

/// A packed matrix with memory of its own.
pub(crate) struct Packed {
    memory: Filled,
    depth: usize,
    columns: usize,
}

impl Packed {
    /// Packs all of `b`, by the threads of the current pool.
    pub(crate) fn new(b: Matrix<'_>) -> Self {
        let (depth, columns) = b.dims();
        // SAFETY: `pack` writes every number.
        let memory = unsafe {
            Filled::by_chunks(Panels::len(depth, columns), PANEL * depth, |panel, memory| pack(b, panel, memory))
        };
        Self { memory, depth, columns }
    }

    /// Returns the matrix.
    pub(crate) fn panels(&self) -> Panels<'_> {
        Panels::new(&self.memory, self.depth, self.columns)
    }
}

/// Fills `memory (depth, 32)` with panel number `panel` of `b`.
pub(crate) fn pack(b: Matrix<'_>, panel: usize, memory: &mut Blank) {
    let (depth, columns) = b.dims();
    assert_eq!(memory.len(), depth * PANEL, "the memory of a panel");
    let first = panel * PANEL;
    let b = b.columns(first..columns.min(first + PANEL));
    match b.strides() {
        (row_stride, 1) => pack_rows(b, row_stride, memory),
        (1, column_stride) => pack_columns(b, column_stride, memory),
        strides => unreachable!("a matrix with strides {strides:?} has neither rows nor columns side by side"),
    }
}

/// Packs a panel of a matrix whose rows are contiguous.
fn pack_rows(b: Matrix<'_>, row_stride: usize, memory: &mut Blank) {
    let (values, (_, columns)) = (written(b.values()), b.dims());
    for (i, row) in memory.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
        match values[i * row_stride..].first_chunk::<PANEL>() {
            Some(whole) if columns == PANEL => *row = *whole,
            _ => {
                row[..columns].copy_from_slice(&values[i * row_stride..][..columns]);
                row[columns..].fill(MaybeUninit::new(0.0));
            }
        }
    }
}

/// Packs a panel of a matrix whose columns are contiguous: squares of sixteen by sixteen are transposed, and the rest is copied number by number.
fn pack_columns(b: Matrix<'_>, column_stride: usize, memory: &mut Blank) {
    let (values, (depth, columns)) = (b.values(), b.dims());
    if columns < PANEL {
        memory.fill(MaybeUninit::new(0.0));
    }
    let (high, wide) = (depth / LANES * LANES, columns.min(PANEL) / LANES * LANES);
    if high > 0 && wide > 0 {
        assert!((wide - 1) * column_stride + high <= values.len() && high * PANEL <= memory.len());
        // SAFETY: just asserted; `high` and `wide` are whole squares, of one panel at most.
        unsafe { transpose_squares(values.as_ptr(), column_stride, [high, wide], memory.as_mut_ptr().cast()) }
    }
    for column in 0..columns.min(PANEL) {
        let first = if column < wide { high } else { 0 };
        let from = &values[column * column_stride..][first..depth];
        for (row, &value) in memory[first * PANEL..].chunks_exact_mut(PANEL).zip(from) {
            row[column].write(value);
        }
    }
}

dispatch! {
    /// Writes `to[32 i + j] = from[j stride + i]` for `i` below the first side and `j` below the second, both multiples of sixteen.
    unsafe fn transpose_squares(from: *const f32, stride: usize, sides: [usize; 2], to: *mut f32) = transpose_squares_body
}

#[inline(always)]
unsafe fn transpose_squares_body<L: Lanes>(from: *const f32, stride: usize, [high, wide]: [usize; 2], to: *mut f32) {
    for j in (0..wide).step_by(LANES) {
        for i in (0..high).step_by(LANES) {
            // SAFETY: squares inside of both.
            unsafe {
                let rows = L::transpose(std::array::from_fn(|k| L::load(from.add((j + k) * stride + i))));
                for (k, row) in rows.into_iter().enumerate() {
                    row.store(to.add((i + k) * PANEL + j));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_memory_orders_pack_alike_and_missing_columns_are_zeros() {
        for (depth, columns) in [(1, 1), (3, 32), (16, 5), (17, 33), (40, 70), (35, 60), (64, 16)] {
            let rows: Vec<f32> = (0..depth * columns).map(|i| i as f32 + 1.0).collect();
            let turned: Vec<f32> = (0..depth * columns).map(|i| rows[i % depth * columns + i / depth]).collect();
            let len = Panels::len(depth, columns);
            let (mut one, mut other) = (vec![f32::NAN; len], vec![f32::NAN; len]);
            Panels::pack(Matrix::new(&rows, depth, columns), &mut one);
            Panels::pack(Matrix::new(&turned, columns, depth).t(), &mut other);
            assert_eq!(one, other);
            for (at, &found) in one.iter().enumerate() {
                let (panel, row, column) = (at / (depth * PANEL), at / PANEL % depth, at % PANEL);
                let column = panel * PANEL + column;
                let wanted = if column < columns { rows[row * columns + column] } else { 0.0 };
                assert_eq!(found, wanted, "({depth}, {columns}) at {at}");
            }
        }
    }
}
