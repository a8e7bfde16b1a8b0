//! Products of whole batches of rows, by the threads of the current pool.

use super::{
    aligned_buffer::{Filled, blank, with_scratch},
    blocked::multiply,
    gelu,
    left_factor::STRIP,
    matrix::{Matrix, MatrixMut},
    panels::{Packed, ProductForm},
    product::{ProductEpilogue, product},
};

/// The rows that a product reads, one after another, and the function applied to them first.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rows<'a> {
    /// The numbers as they are.
    Plain(&'a [f32]),
    /// GELU of each number.
    Gelu(&'a [f32]),
}

/// The last operation of a product, on each of its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowsEpilogue<'a> {
    /// Return them.
    Nothing,
    /// Add a number to each column.
    Bias(&'a [f32]),
    /// Multiply them by the slope of GELU at these numbers, as many as the result has.
    GeluSlope(&'a [f32]),
}

impl<'a> Rows<'a> {
    fn values(&self) -> &'a [f32] {
        match *self {
            Self::Plain(x) | Self::Gelu(x) => x,
        }
    }
}

/// Returns the number of rows in a chunk of `rows` rows: there are about sixteen chunks, each large enough to be worth handing to a thread.
fn rows_at_a_time(rows: usize) -> usize {
    rows.div_ceil(16).next_multiple_of(STRIP).clamp(32, 512)
}

/// Returns `x b` with `x (rows, depth)` and `b (depth, columns)`.
pub(crate) fn rows_times(x: Rows<'_>, b: &Packed, epilogue: RowsEpilogue<'_>) -> Filled {
    let (depth, columns) = b.panels().dims();
    let rows = x.values().len() / depth;
    assert_eq!(x.values().len(), rows * depth, "whole rows");
    let some = rows_at_a_time(rows);
    // SAFETY: a product writes every element; the chunks cover all rows.
    unsafe {
        Filled::by_chunks(rows * columns, some * columns, |chunk, y| {
            let (first, rows) = (chunk * some, y.len() / columns);
            let epilogue = match epilogue {
                RowsEpilogue::Nothing => ProductEpilogue::Replace,
                RowsEpilogue::Bias(bias) => ProductEpilogue::Bias(bias),
                RowsEpilogue::GeluSlope(h) => ProductEpilogue::GeluSlope(&h[first * columns..][..rows * columns]),
            };
            let y = MatrixMut::blank(y, rows, columns);
            let from = &x.values()[first * depth..][..rows * depth];
            match x {
                Rows::Plain(_) => product(Matrix::new(from, rows, depth), b.panels(), y, epilogue),
                Rows::Gelu(_) => with_scratch(rows * depth, |scratch| {
                    gelu::apply_to(from, blank(scratch));
                    product(Matrix::new(scratch, rows, depth), b.panels(), y, epilogue);
                }),
            }
        })
    }
}

/// Returns `cᵀ x`, `(outputs, inputs)`, of `c (rows, outputs)` and `x (rows, inputs)`.
pub(crate) fn columns_times_rows(c: &[f32], outputs: usize, x: Rows<'_>, inputs: usize, form: ProductForm) -> Filled {
    let rows = c.len() / outputs;
    assert!(c.len() == rows * outputs && x.values().len() == rows * inputs && rows > 0, "whole rows, equally many");
    let (c, values) = (Matrix::new(c, rows, outputs), Matrix::new(x.values(), rows, inputs));
    match x {
        Rows::Plain(_) => multiply(c.t(), values, form, None),
        Rows::Gelu(_) => multiply(c.t(), values, form, Some(gelu::apply_in_place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 31 + seed * 7) % 9) as f32 - 4.0).collect()
    }

    #[test]
    fn whole_batches_equal_plain_sums() {
        for (rows, inputs, outputs) in
            [(1, 1, 1), (3, 17, 5), (70, 33, 40), (600, 20, 70), (30, 300, 600), (20, 1100, 260)]
        {
            let (x, w, c) = (whole(rows * inputs, 1), whole(inputs * outputs, 2), whole(rows * outputs, 3));
            let bias = whole(outputs, 4);
            let b = Packed::new(Matrix::new(&w, inputs, outputs), ProductForm::Plain);
            let y = rows_times(Rows::Plain(&x), &b, RowsEpilogue::Bias(&bias));
            for (at, &found) in y.iter().enumerate() {
                let (i, j) = (at / outputs, at % outputs);
                let sum: f32 = (0..inputs).map(|k| x[i * inputs + k] * w[k * outputs + j]).sum();
                assert_eq!(found, sum + bias[j], "({rows}, {inputs}, {outputs})");
            }
            for (at, &found) in
                columns_times_rows(&c, outputs, Rows::Plain(&x), inputs, ProductForm::Plain).iter().enumerate()
            {
                let (o, i) = (at / inputs, at % inputs);
                let sum: f32 = (0..rows).map(|k| c[k * outputs + o] * x[k * inputs + i]).sum();
                assert_eq!(found, sum, "({rows}, {inputs}, {outputs})");
            }
        }
    }

    #[test]
    fn fused_functions_equal_those_applied_before_or_after() {
        let (rows, inputs, outputs) = (150, 600, 70);
        let quarters = |count, seed| whole(count, seed).into_iter().map(|v| v / 4.0).collect::<Vec<_>>();
        let (x, w, c) = (quarters(rows * inputs, 1), quarters(inputs * outputs, 2), quarters(rows * outputs, 3));
        let h = quarters(rows * outputs, 4);
        let b = Packed::new(Matrix::new(&w, inputs, outputs), ProductForm::Plain);
        let applied = gelu::apply(&x);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let before = rows_times(Rows::Plain(&applied), &b, RowsEpilogue::Nothing);
        assert_eq!(bits(&rows_times(Rows::Gelu(&x), &b, RowsEpilogue::Nothing)), bits(&before));
        let after = gelu::backward(&h, &rows_times(Rows::Plain(&x), &b, RowsEpilogue::Nothing));
        assert_eq!(bits(&rows_times(Rows::Plain(&x), &b, RowsEpilogue::GeluSlope(&h))), bits(&after));
        let gradient = columns_times_rows(&c, outputs, Rows::Plain(&applied), inputs, ProductForm::Plain);
        assert_eq!(bits(&columns_times_rows(&c, outputs, Rows::Gelu(&x), inputs, ProductForm::Plain)), bits(&gradient));
    }
}
