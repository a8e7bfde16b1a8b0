//! Products of matrices with any strides. The result is divided into pieces; each packs its parts of both factors, one block of the depth at a
//! time.

use rayon::prelude::*;

use super::{
    aligned_buffer::{AlignedBuffer, Filled, with_scratch},
    left_factor::LeftFactor,
    matrix::{Matrix, MatrixMut},
    panels::{PANEL, Panels, ProductForm},
    product::{ProductEpilogue, product},
};

/// The depth of one block: a panel's part of it stays in the first-level cache.
const DEPTH: usize = 256;

/// Returns the rows and columns of one piece of the result: the parts of both factors and the piece stay in the cache of a core, and a large
/// result has at least four pieces.
fn piece_size(rows: usize, columns: usize) -> (usize, usize) {
    let (mut high, mut wide) = (rows.next_multiple_of(PANEL).min(256), columns.next_multiple_of(PANEL).min(512));
    while rows.div_ceil(high) * columns.div_ceil(wide) < 4 && high.max(wide) >= 4 * PANEL {
        let longer = if high > wide { &mut high } else { &mut wide };
        *longer = (*longer / 2).next_multiple_of(PANEL);
    }
    (high, wide)
}

/// Returns `a f(b)`, with `a (rows, depth)` and `b (depth, columns)`, computed by the threads of the current pool. `f` must map zeros to zeros.
///
/// The sum of an element runs over the blocks of the depth from the first to the last, however the result is divided.
pub(crate) fn multiply(a: Matrix<'_>, b: Matrix<'_>, form: ProductForm, f: Option<fn(&mut [f32])>) -> Filled {
    let ((rows, depth), (b_depth, columns)) = (a.dims(), b.dims());
    assert!(depth == b_depth && depth > 0, "inner dimensions of a product");
    let (high, wide) = piece_size(rows, columns);
    let mut buffer = AlignedBuffer::new(rows * columns);
    let pieces = buffer.blank().chunks_mut(high * columns).enumerate().flat_map(|(i, y)| {
        let count = y.len() / columns;
        MatrixMut::blank(y, count, columns).strips(wide).enumerate().map(move |(j, y)| ([i * high, j * wide], y))
    });
    pieces.collect::<Vec<_>>().into_par_iter().for_each(|([row, column], mut y)| {
        let (rows, columns) = y.dims();
        let (a, b) = (a.rows(row..row + rows), b.columns(column..column + columns));
        let strips = match form {
            ProductForm::Plain if a.strides().1 != 1 => LeftFactor::len(rows, DEPTH.min(depth)).next_multiple_of(PANEL),
            _ => 0,
        };
        with_scratch(strips + form.len(DEPTH.min(depth), columns), |scratch| {
            let (strips, panels) = scratch.split_at_mut(strips);
            for first in (0..depth).step_by(DEPTH) {
                let part = first..(first + DEPTH).min(depth);
                let a = a.columns(part.clone());
                let left = if strips.is_empty() { a.into() } else { LeftFactor::pack_transpose(a.t(), strips) };
                let panels = Panels::pack(b.rows(part.clone()), form, panels, f);
                let end = if first == 0 { ProductEpilogue::Replace } else { ProductEpilogue::Add };
                product(left, panels, y.again(), end);
                // SAFETY: the first product has written every element.
                y = unsafe { y.assume_written() };
            }
        });
    });
    // SAFETY: the pieces cover the result.
    unsafe { buffer.filled() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 31 + seed * 7) % 9) as f32 - 4.0).collect()
    }

    #[test]
    fn factors_in_any_order_of_memory_give_plain_sums() {
        for (rows, columns, depth) in
            [(1, 1, 1), (5, 17, 3), (40, 33, 70), (70, 20, 600), (600, 300, 30), (260, 1100, 20)]
        {
            let (a, b) = (whole(rows * depth, 1), whole(depth * columns, 2));
            let turned = |m: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..m.len()).map(|at| m[at % rows * columns + at / rows]).collect()
            };
            let (a_t, b_t) = (turned(&a, rows, depth), turned(&b, depth, columns));
            let lefts = [Matrix::new(&a, rows, depth), Matrix::new(&a_t, depth, rows).t()];
            let rights = [Matrix::new(&b, depth, columns), Matrix::new(&b_t, columns, depth).t()];
            for (left, right) in lefts.into_iter().flat_map(|left| rights.map(|right| (left, right))) {
                let twice: fn(&mut [f32]) = |part| part.iter_mut().for_each(|value| *value *= 2.0);
                let y = multiply(left, right, ProductForm::Plain, Some(twice));
                for (at, &found) in y.iter().enumerate() {
                    let (i, j) = (at / columns, at % columns);
                    let sum: f32 = (0..depth).map(|k| a[i * depth + k] * b[k * columns + j]).sum();
                    assert_eq!(found, 2.0 * sum, "({rows}, {columns}, {depth})");
                }
            }
        }
    }
}
