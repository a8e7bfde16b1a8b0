//! Products of whole batches of rows, by the threads at hand.

use rayon::prelude::*;

use super::{
    matrix::{Matrix, MatrixMut},
    panels::Packed,
    product::{End, product},
    room::{Filled, Room},
};

/// Rows in one piece of work over `rows` rows: about sixteen pieces, none too small to be worth one.
fn rows_at_a_time(rows: usize) -> usize {
    rows.div_ceil(16).next_multiple_of(8).clamp(32, 512)
}

/// `x b`, with a `bias` for each column added where there is one: `x (rows, depth)`, `b (depth, columns)`.
pub(crate) fn rows_times(x: &[f32], b: &Packed, bias: Option<&[f32]>) -> Filled {
    let (depth, columns) = b.panels().dims();
    let rows = x.len() / depth;
    assert_eq!(x.len(), rows * depth, "whole rows");
    let some = rows_at_a_time(rows);
    // SAFETY: a product writes every element; the pieces cover all rows.
    unsafe {
        Filled::by_chunks(rows * columns, some * columns, |i, y| {
            let rows = y.len() / columns;
            let x = Matrix::new(&x[i * some * depth..][..rows * depth], rows, depth);
            let end = bias.map_or(End::Replace, End::Bias);
            product(x, b.panels(), MatrixMut::blank(y, rows, columns), end);
        })
    }
}

/// Depth that is summed at a time: a panel's part stays in the nearest cache.
const DEPTH: usize = 256;

/// `cᵀ x`, `(outputs, inputs)`, of `c (rows, outputs)` and `x (rows, inputs)`: cut by outputs, so that there is nothing to add up afterwards.
pub(crate) fn columns_times_rows(c: &[f32], outputs: usize, x: &[f32], inputs: usize) -> Filled {
    let rows = c.len() / outputs;
    assert!(c.len() == rows * outputs && x.len() == rows * inputs && rows > 0, "whole rows, equally many");
    let (c, x) = (Matrix::new(c, rows, outputs).t(), Packed::new(Matrix::new(x, rows, inputs)));
    let some = rows_at_a_time(outputs);
    let mut room = Room::new(outputs * inputs);
    room.blank().par_chunks_mut(some * inputs).enumerate().for_each(|(i, y)| {
        let count = y.len() / inputs;
        let c = c.rows(i * some..i * some + count);
        let mut y = MatrixMut::blank(y, count, inputs);
        for first in (0..rows).step_by(DEPTH) {
            let depth = first..(first + DEPTH).min(rows);
            let end = if first == 0 { End::Replace } else { End::Add };
            product(c.columns(depth.clone()), x.panels().rows(depth), y.again(), end);
            // SAFETY: the first product has written every element.
            y = unsafe { y.assume_written() };
        }
    });
    // SAFETY: the pieces cover all outputs.
    unsafe { room.filled() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 31 + seed * 7) % 9) as f32 - 4.0).collect()
    }

    #[test]
    fn whole_batches_equal_plain_sums() {
        for (rows, inputs, outputs) in [(1, 1, 1), (3, 17, 5), (70, 33, 40), (600, 20, 70)] {
            let (x, w, c) = (whole(rows * inputs, 1), whole(inputs * outputs, 2), whole(rows * outputs, 3));
            let bias = whole(outputs, 4);
            let b = Packed::new(Matrix::new(&w, inputs, outputs));
            let y = rows_times(&x, &b, Some(&bias));
            for (at, &found) in y.iter().enumerate() {
                let (i, j) = (at / outputs, at % outputs);
                let sum: f32 = (0..inputs).map(|k| x[i * inputs + k] * w[k * outputs + j]).sum();
                assert_eq!(found, sum + bias[j], "({rows}, {inputs}, {outputs})");
            }
            for (at, &found) in columns_times_rows(&c, outputs, &x, inputs).iter().enumerate() {
                let (o, i) = (at / inputs, at % inputs);
                let sum: f32 = (0..rows).map(|k| c[k * outputs + o] * x[k * inputs + i]).sum();
                assert_eq!(found, sum, "({rows}, {inputs}, {outputs})");
            }
        }
    }
}
