//! Products `y = A B` with `B` packed in [`Panels`], and the epilogue that is applied while a result is in registers.
//!
//! A tile of 8 rows by 32 columns of `y` (4 by 16 if there are few registers) is summed over the whole depth in registers. For each row of a
//! panel, the tile loads the panel's 32 numbers once, and one number of each of the 8 rows of `A`. Rows are taken in blocks, so that a panel is
//! used several times while it is in the cache. The sum of an element runs over the depth from the first to the last, whatever the shape of `y`.
//!
//! Panels may have been rounded to `bf16`. Then the left factor is rounded here, a few rows at a time, and multiplied by the same loops or on tiles.

#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{
    aligned_buffer::with_scratch,
    gelu::gelu,
    half,
    lanes::{LANES, Lanes, prefetch},
    left_factor::{LeftFactor, STRIP, Strides},
    matrix::MatrixMut,
    panels::{PANEL, Panels, ProductForm},
};

/// The last operation on the elements of a product `p = A B`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ProductEpilogue<'a> {
    /// `y = p`
    Replace,
    /// `y += p`
    Add,
    /// `y = s p`
    Scaled(f32),
    /// `y = p + b`, a number for each column.
    Bias(&'a [f32]),
    /// `y = p GELU'(h)`, `h` as large as `y`, row after row without gaps.
    GeluSlope(&'a [f32]),
}

/// The addresses and sizes of a product.
#[derive(Clone, Copy)]
struct Job {
    a: *const f32,
    a_strides: Strides,
    b: *const f32,
    panel_stride: usize,
    rows: usize,
    depth: usize,
    output: Output,
}

/// The memory of a product's result, and its epilogue.
#[derive(Clone, Copy)]
pub(super) struct Output {
    y: *mut f32,
    y_stride: usize,
    pub(super) columns: usize,
    epilogue: EpiloguePointer,
}

impl Output {
    /// Returns the same from row `row` on.
    fn below(self, row: usize) -> Self {
        let epilogue = match self.epilogue {
            EpiloguePointer::GeluSlope(h) => EpiloguePointer::GeluSlope(h.wrapping_add(row * self.columns)),
            other => other,
        };
        Self { y: self.y.wrapping_add(row * self.y_stride), epilogue, ..self }
    }
}

/// [`ProductEpilogue`] as pointers.
#[derive(Clone, Copy)]
enum EpiloguePointer {
    Replace,
    Add,
    Scaled(f32),
    Bias(*const f32),
    GeluSlope(*const f32),
}

impl EpiloguePointer {
    /// Checks the epilogue for a product of `rows` by `columns` numbers.
    fn new(epilogue: ProductEpilogue<'_>, rows: usize, columns: usize) -> Self {
        match epilogue {
            ProductEpilogue::Replace => Self::Replace,
            ProductEpilogue::Add => Self::Add,
            ProductEpilogue::Scaled(scale) => Self::Scaled(scale),
            ProductEpilogue::Bias(bias) => {
                assert_eq!(bias.len(), columns, "a bias for each column");
                Self::Bias(bias.as_ptr())
            }
            ProductEpilogue::GeluSlope(h) => {
                assert_eq!(h.len(), rows * columns, "a slope for each number");
                Self::GeluSlope(h.as_ptr())
            }
        }
    }
}

/// Computes `y = A B` with the given epilogue, on the calling thread, in the form of the panels.
///
/// # Panics
/// If shapes do not fit, or if the product is added to a `y` that has not been written.
pub(crate) fn product<'a>(
    a: impl Into<LeftFactor<'a>>,
    b: Panels<'_>,
    y: MatrixMut<'_>,
    epilogue: ProductEpilogue<'_>,
) {
    let a = a.into();
    let ((rows, depth), (b_depth, columns)) = (a.dims(), b.dims());
    assert_eq!(depth, b_depth, "inner dimensions of a product");
    assert_eq!((rows, columns), y.dims(), "the shape of a product");
    assert!(
        !matches!(epilogue, ProductEpilogue::Add) || y.is_written(),
        "a product is added to memory that was never written"
    );
    let epilogue = EpiloguePointer::new(epilogue, rows, columns);
    let output = Output { y: y.first(), y_stride: y.row_stride(), columns, epilogue };
    let (form, (b, panel_stride)) = (b.form(), b.first());
    // SAFETY: matrices and panels lie inside their slices (asserted when they were made), their shapes fit, `y` is borrowed exclusively, and
    // is read only where it was written. There are tiles where they are the form.
    unsafe {
        match form {
            ProductForm::Plain => {
                run(&Job { a: a.first(), a_strides: a.strides(), b, panel_stride, rows, depth, output });
            }
            ProductForm::Rounded => run_rounded(a, b, panel_stride, output),
            #[cfg(target_arch = "x86_64")]
            ProductForm::Tiles => tiles::product::run(a.as_matrix(), b.cast(), 2 * panel_stride, &output),
        }
    }
}

/// Rows of a left factor that are rounded together.
const ROUNDED: usize = 32;

/// Runs the product of the rounded `a`, a few rows at a time.
///
/// # Safety
/// As for [`run`].
unsafe fn run_rounded(a: LeftFactor<'_>, b: *const f32, panel_stride: usize, output: Output) {
    let (rows, depth) = a.dims();
    let a = a.as_matrix();
    with_scratch(ROUNDED * depth, |scratch| {
        for row in (0..rows).step_by(ROUNDED) {
            let a = a.rows(row..rows.min(row + ROUNDED));
            let rows = a.dims().0;
            a.copy_to(scratch, half::nearest);
            let a_strides = Strides { strip: STRIP * depth, row: depth, column: 1 };
            let job = Job { a: scratch.as_ptr(), a_strides, b, panel_stride, rows, depth, output: output.below(row) };
            // SAFETY: as demanded of the caller; the scratch holds the rows.
            unsafe { run(&job) };
        }
    });
}

dispatch! { unsafe fn run(job: &Job) = body }

/// The size of a block of rows of `A`, in numbers: it stays in the cache while all panels are multiplied.
const BLOCK: usize = 65_536;

#[inline(always)]
unsafe fn body<L: Lanes>(job: &Job) {
    let height = (BLOCK / job.depth.max(1)).clamp(32, 256) / STRIP * STRIP;
    let rows_are_contiguous = job.a_strides.column == 1;
    for top in (0..job.rows).step_by(height) {
        let bottom = job.rows.min(top + height);
        for column in (0..job.output.columns).step_by(PANEL) {
            let mut row = top;
            // SAFETY: tiles lie inside of the product, and the caller guarantees its addresses.
            unsafe {
                if L::SUMS >= 16 {
                    // For the first panel the rows come from memory; later panels find them in the cache.
                    while row + 8 <= bottom && column == 0 && rows_are_contiguous {
                        tile::<L, 8, 2, true>(job, row, column);
                        row += 8;
                    }
                    while row + 8 <= bottom {
                        tile::<L, 8, 2, false>(job, row, column);
                        row += 8;
                    }
                    if row + 4 <= bottom {
                        tile::<L, 4, 2, false>(job, row, column);
                        row += 4;
                    }
                    while row < bottom {
                        tile::<L, 1, 2, false>(job, row, column);
                        row += 1;
                    }
                } else {
                    for column in [column, column + LANES] {
                        row = top;
                        while column < job.output.columns && row + 4 <= bottom {
                            tile::<L, 4, 1, false>(job, row, column);
                            row += 4;
                        }
                        while column < job.output.columns && row < bottom {
                            tile::<L, 1, 1, false>(job, row, column);
                            row += 1;
                        }
                    }
                }
            }
        }
    }
}

/// Computes a tile of `P` rows by `V` vectors. With `AHEAD`, it also prefetches the rows of the next tile, one cache line at a time.
#[inline(always)]
unsafe fn tile<L: Lanes, const P: usize, const V: usize, const AHEAD: bool>(job: &Job, row: usize, column: usize) {
    let Strides { strip, row: row_stride, column: column_stride } = job.a_strides;
    // SAFETY: the tile's rows are rows of the product, and its columns are columns of a panel, which is whole in memory. Only columns below
    // `job.columns` of `y`, the bias and the slopes are accessed.
    unsafe {
        for p in 0..P {
            if let EpiloguePointer::GeluSlope(h) = job.output.epilogue {
                let h = h.wrapping_add((row + p) * job.output.columns + column);
                prefetch(h);
                prefetch(h.wrapping_add(LANES));
            }
            prefetch(job.output.y.wrapping_add((row + p) * job.output.y_stride + column));
            if V == 2 {
                prefetch(job.output.y.wrapping_add((row + p) * job.output.y_stride + column + LANES));
            }
        }
        // Tiles lie within strips.
        let mut a = job.a.add(row / STRIP * strip + row % STRIP * row_stride);
        let mut b = job.b.add(column / PANEL * job.panel_stride + column % PANEL);
        let mut sums = [[L::splat(0.0); V]; P];
        let mut left = job.depth;
        if AHEAD {
            while left >= P {
                for p in 0..P {
                    prefetch(a.wrapping_add(strip + p * row_stride));
                    add::<L, P, V>(&mut sums, a, b, row_stride);
                    a = a.wrapping_add(column_stride);
                    b = b.wrapping_add(PANEL);
                }
                left -= P;
            }
        }
        for _ in 0..left {
            add::<L, P, V>(&mut sums, a, b, row_stride);
            a = a.wrapping_add(column_stride);
            b = b.wrapping_add(PANEL);
        }
        for p in 0..P {
            for v in 0..V {
                let column = column + v * LANES;
                if column < job.output.columns {
                    finish(&job.output, sums[p][v], row + p, column);
                }
            }
        }
    }
}

/// Adds the products of one column of `A` and one row of a panel.
#[inline(always)]
unsafe fn add<L: Lanes, const P: usize, const V: usize>(
    sums: &mut [[L; V]; P],
    a: *const f32,
    b: *const f32,
    row_stride: usize,
) {
    // SAFETY: the caller gives `P` rows of the column and `V` vectors of the row.
    unsafe {
        let mut factors = [L::splat(0.0); V];
        for v in 0..V {
            factors[v] = L::load(b.add(v * LANES));
        }
        for p in 0..P {
            let x = L::splat(*a.add(p * row_stride));
            for v in 0..V {
                sums[p][v] = sums[p][v].plus_product(x, factors[v]);
            }
        }
    }
}

/// Applies the epilogue to one vector of the product, from this row and column on.
///
/// # Safety
/// Both lie within the output, whose memory may be accessed. Where it is read, it has been written.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes>(output: &Output, sum: L, row: usize, column: usize) {
    let count = (output.columns - column).min(LANES);
    // SAFETY: `count` numbers from this row and column on belong to `y`, the bias and the slopes.
    unsafe {
        let y = output.y.add(row * output.y_stride + column);
        let load = |from: *const f32| if count == LANES { L::load(from) } else { L::load_first(from, count) };
        let result = match output.epilogue {
            EpiloguePointer::Replace => sum,
            EpiloguePointer::Add => load(y).plus(sum),
            EpiloguePointer::Scaled(scale) => sum.times(L::splat(scale)),
            EpiloguePointer::Bias(bias) => sum.plus(load(bias.add(column))),
            EpiloguePointer::GeluSlope(h) => sum.times(gelu(load(h.add(row * output.columns + column))).1),
        };
        if count == LANES { result.store(y) } else { result.store_first(y, count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{aligned_buffer::Aligned, gelu, lanes::Portable, matrix::Matrix};

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 23) as f32 / 8.0 - 1.375).collect()
    }

    /// Compares products of all shapes and epilogues, computed by `multiply`, with plain sums.
    fn check(form: ProductForm, multiply: impl Fn(LeftFactor<'_>, Panels<'_>, MatrixMut<'_>, ProductEpilogue<'_>)) {
        for (rows, columns, depth) in [(1, 1, 1), (3, 17, 5), (8, 32, 16), (17, 33, 7), (13, 70, 40), (300, 48, 260)] {
            let (a, b) = (numbers(depth * (rows + 2), 1), numbers(depth * columns, 2));
            let bias = numbers(columns, 3);
            let mut memory = Aligned::zeros(form.len(depth, columns));
            let panels = Panels::pack(Matrix::new(&b, depth, columns), form, &mut memory, None);
            // (depth, rows) with a gap, as the transpose of a left factor.
            let a_t = Matrix::strided(&a, depth, rows, rows + 2);
            let mut strips = vec![f32::NAN; LeftFactor::len(rows, depth)];
            let packed = LeftFactor::pack_transpose(a_t, &mut strips);
            let h = numbers(rows * columns, 4);
            let slopes = gelu::backward(&h, &vec![1.0; h.len()]);
            let epilogues = [
                ProductEpilogue::Replace,
                ProductEpilogue::Add,
                ProductEpilogue::Scaled(0.5),
                ProductEpilogue::Bias(&bias),
                ProductEpilogue::GeluSlope(&h),
            ];
            // The same rows side by side.
            let mut rows_of_a = vec![f32::NAN; rows * depth];
            a_t.t().copy_to(&mut rows_of_a, |value| value);
            let plain = LeftFactor::from(Matrix::new(&rows_of_a, rows, depth));
            let last = if form == ProductForm::Plain { packed } else { plain };
            for (epilogue, a_m) in
                epilogues.into_iter().flat_map(|epilogue| [a_t.t().into(), plain, last].map(|a_m| (epilogue, a_m)))
            {
                let mut y = vec![2.0; rows * (columns + 3)];
                multiply(a_m, panels, MatrixMut::strided(&mut y, rows, columns, columns + 3), epilogue);
                for (at, &found) in y.iter().enumerate() {
                    let (i, j) = (at / (columns + 3), at % (columns + 3));
                    if j >= columns {
                        assert_eq!(found, 2.0, "the gap between rows was written");
                        continue;
                    }
                    let p: f64 =
                        (0..depth).map(|l| f64::from(a[l * (rows + 2) + i]) * f64::from(b[l * columns + j])).sum();
                    let bias = f64::from(bias[j]);
                    let wanted = match epilogue {
                        ProductEpilogue::Replace => p,
                        ProductEpilogue::Add => p + 2.0,
                        ProductEpilogue::Scaled(_) => 0.5 * p,
                        ProductEpilogue::Bias(_) => p + bias,
                        ProductEpilogue::GeluSlope(_) => p * f64::from(slopes[i * columns + j]),
                    };
                    let error = (f64::from(found) - wanted).abs();
                    assert!(
                        error < 1e-4 * wanted.abs().max(1.0),
                        "{form:?}, {epilogue:?} ({rows}, {columns}, {depth}): {found} {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn products_of_all_shapes_and_epilogues_equal_plain_sums() {
        for form in forms() {
            check(form, |a, b, y, epilogue| product(a, b, y, epilogue));
        }
    }

    /// Returns the forms that this processor has, and says which one it lacks.
    fn forms() -> Vec<ProductForm> {
        #[cfg(target_arch = "x86_64")]
        if tiles::are_available() {
            return vec![ProductForm::Plain, ProductForm::Rounded, ProductForm::Tiles];
        }
        eprintln!("skipped on tiles: this processor has none, or the system does not allow them");
        vec![ProductForm::Plain, ProductForm::Rounded]
    }

    #[test]
    fn factors_are_rounded_to_bf16() {
        let (rows, columns, depth) = (37, 45, 300);
        let [a, b] = [rows * depth, depth * columns]
            .map(|count| (0..count).map(|i| ((i * 7919 % 10_007) as f32 / 5003.0 - 1.0) * 1.37).collect::<Vec<f32>>());
        for form in forms().into_iter().filter(|form| *form != ProductForm::Plain) {
            let mut memory = Aligned::zeros(form.len(depth, columns));
            let panels = Panels::pack(Matrix::new(&b, depth, columns), form, &mut memory, None);
            let mut y = vec![f32::NAN; rows * columns];
            let target = MatrixMut::strided(&mut y, rows, columns, columns);
            product(Matrix::new(&a, rows, depth), panels, target, ProductEpilogue::Replace);
            for (at, &found) in y.iter().enumerate() {
                let (i, j) = (at / columns, at % columns);
                let terms = (0..depth)
                    .map(|l| f64::from(half::nearest(a[i * depth + l])) * f64::from(half::nearest(b[l * columns + j])));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + f64::abs(term)));
                assert!((f64::from(found) - sum).abs() < 1e-6 * size, "{form:?} at {i}, {j}: {found} {sum}");
            }
        }
    }

    /// Returns `product`, computed by `run`, which is compiled for other lanes than the processor's best.
    fn product_by(run: unsafe fn(&Job)) -> impl Fn(LeftFactor<'_>, Panels<'_>, MatrixMut<'_>, ProductEpilogue<'_>) {
        move |a, b, y, epilogue| {
            let ((rows, depth), (_, columns), (b, panel_stride)) = (a.dims(), b.dims(), b.first());
            let (y, y_stride, a_strides) = (y.first(), y.row_stride(), a.strides());
            let epilogue = EpiloguePointer::new(epilogue, rows, columns);
            let output = Output { y, y_stride, columns, epilogue };
            let job = Job { a: a.first(), a_strides, b, panel_stride, rows, depth, output };
            // SAFETY: the shapes fit, and the processor has the instructions of `run`.
            unsafe { run(&job) }
        }
    }

    #[test]
    fn portable_lanes_multiply_correctly() {
        check(ProductForm::Plain, product_by(body::<Portable>));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx2_lanes_multiply_correctly() {
        use crate::kernels::{Instructions, lanes::Avx2};
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2(job: &Job) {
            // SAFETY: called below where the processor has them.
            unsafe { body::<Avx2>(job) }
        }
        if Instructions::of_the_processor() >= Instructions::Avx2 {
            check(ProductForm::Plain, product_by(avx2));
        }
    }

    #[test]
    #[should_panic(expected = "inner dimensions")]
    fn factors_that_do_not_fit_are_refused() {
        let one = [1.0_f32; 64];
        product(
            Matrix::new(&one, 2, 3),
            Panels::pack(Matrix::new(&one, 2, 1), ProductForm::Plain, &mut [0.0; 64], None),
            MatrixMut::strided(&mut [0.0; 2], 2, 1, 1),
            ProductEpilogue::Replace,
        );
    }
}
