//! Softmax of a block of causal attention's scores, and its gradient: row `i` of a block sees `seen + i` positions.

use crate::kernels::{
    lanes::{LANES, Lanes},
    matrix::Matrix,
};

/// The scores of some positions, or numbers for each of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Rows, one for each position.
    pub(super) rows: usize,
    /// The number of positions that the first row sees.
    pub(super) seen: usize,
    /// The distance from one row to the next, in numbers.
    pub(super) stride: usize,
}

impl Block {
    /// Returns the number of positions that the last row sees. Every row holds numbers up to there.
    fn end(&self) -> usize {
        self.seen + self.rows - 1
    }

    fn check(&self, scores: &[f32]) {
        assert!(self.rows > 0 && self.seen > 0 && self.end().next_multiple_of(LANES) <= self.stride, "scores of a row");
        assert!(self.rows * self.stride <= scores.len(), "a block beyond its slice");
    }
}

/// Replaces the scores `x` that each row sees by `e^(x - top)`, and the rest of the row by zeros. Writes each row's `top`, its greatest score, and
/// the sum of its exponentials to `sums`.
pub(super) fn exponentials(scores: &mut [f32], block: Block, sums: &mut [[f32; 2]]) {
    block.check(scores);
    assert_eq!(sums.len(), block.rows, "a sum for each row");
    // SAFETY: the block lies in the slice, and there is a sum for each row.
    unsafe { exponentials_in(scores.as_mut_ptr(), block, sums) }
}

/// Replaces the scores `x` that each row sees by `p = e^(x - log)`, the slopes `d` by `p (d - c·y) root`, and the rest of each row by zeros. `c`
/// and `y` have as many rows as the block.
pub(super) fn gradient(
    scores: &mut [f32],
    slopes: &mut [f32],
    block: Block,
    logs: &[f32],
    [c, y]: [Matrix<'_>; 2],
    root: f32,
) {
    block.check(scores);
    block.check(slopes);
    assert!(logs.len() == block.rows && c.dims().0 == block.rows && c.dims() == y.dims(), "rows of another block");
    // SAFETY: the block lies in both slices, and the others have its rows.
    unsafe { gradient_in(scores.as_mut_ptr(), slopes.as_mut_ptr(), block, logs, c, y, root) }
}

dispatch! { unsafe fn exponentials_in(scores: *mut f32, block: Block, sums: &mut [[f32; 2]]) = exponentials_body }
dispatch! {
    unsafe fn gradient_in(
        scores: *mut f32, slopes: *mut f32, block: Block, logs: &[f32], c: Matrix<'_>, y: Matrix<'_>, root: f32,
    ) = gradient_body
}

/// Returns a bit for each of sixteen positions from `at` on: set for those among the first `seen`.
#[inline(always)]
fn seen_bits(at: usize, seen: usize) -> u16 {
    match seen.saturating_sub(at) {
        left @ 0..LANES => (1 << left) - 1,
        _ => u16::MAX,
    }
}

#[inline(always)]
unsafe fn exponentials_body<L: Lanes>(scores: *mut f32, block: Block, sums: &mut [[f32; 2]]) {
    let end = block.end();
    for (row, result) in sums.iter_mut().enumerate() {
        let (seen, scores) = (block.seen + row, scores.wrapping_add(row * block.stride));
        // SAFETY: whole vectors of a row, up to `end`.
        unsafe {
            let nothing = L::splat(f32::NEG_INFINITY);
            let mut top = nothing;
            for at in (0..end).step_by(LANES) {
                let seen = seen_bits(at, seen);
                top = top.max(L::load(scores.add(at)).where_set(seen).plus(nothing.where_set(!seen)));
            }
            let top = top.greatest();
            let (centre, mut sum) = (L::splat(top), L::splat(0.0));
            for at in (0..end).step_by(LANES) {
                let power = L::load(scores.add(at)).minus(centre).exp().where_set(seen_bits(at, seen));
                power.store(scores.add(at));
                sum = sum.plus(power);
            }
            *result = [top, sum.sum()];
        }
    }
}

#[inline(always)]
unsafe fn gradient_body<L: Lanes>(
    scores: *mut f32,
    slopes: *mut f32,
    block: Block,
    logs: &[f32],
    c: Matrix<'_>,
    y: Matrix<'_>,
    root: f32,
) {
    let end = block.end();
    for (row, &log) in logs.iter().enumerate() {
        let (seen, at_row) = (block.seen + row, row * block.stride);
        let (scores, slopes) = (scores.wrapping_add(at_row), slopes.wrapping_add(at_row));
        // SAFETY: whole vectors of a row, up to `end`; both matrices have the row.
        unsafe {
            let (log, mean, root) = (L::splat(log), L::splat(dot::<L>(c, y, row)), L::splat(root));
            for at in (0..end).step_by(LANES) {
                let seen = seen_bits(at, seen);
                let p = L::load(scores.add(at)).minus(log).exp().where_set(seen);
                let slope = L::load(slopes.add(at)).minus(mean).times(p).times(root);
                p.store(scores.add(at));
                slope.where_set(seen).store(slopes.add(at));
            }
        }
    }
}

/// Returns `Σ_j a_ij b_ij`.
#[inline(always)]
unsafe fn dot<L: Lanes>(a: Matrix<'_>, b: Matrix<'_>, row: usize) -> f32 {
    let (a, b, count) = (a.row(row), b.row(row), a.dims().1);
    let mut at = 0;
    // SAFETY: as many numbers as the rows have.
    unsafe {
        let mut sum = L::splat(0.0);
        while at + LANES <= count {
            sum = sum.plus_product(L::load(a.as_ptr().add(at)), L::load(b.as_ptr().add(at)));
            at += LANES;
        }
        if at < count {
            let left = count - at;
            sum = sum.plus_product(L::load_first(a.as_ptr().add(at), left), L::load_first(b.as_ptr().add(at), left));
        }
        sum.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lanes::Portable;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 23) as f32 / 4.0 - 2.5).collect()
    }

    #[test]
    fn rows_see_positions_up_to_their_own_and_none_after() {
        for (rows, seen, width, by_portable) in [(1, 1, 1), (5, 3, 16), (32, 17, 20), (3, 32, 33)]
            .into_iter()
            .flat_map(|(rows, seen, width)| [(rows, seen, width, false), (rows, seen, width, true)])
        {
            let end = seen + rows - 1;
            let block = Block { rows, seen, stride: end.next_multiple_of(LANES) + 16 };
            // Scores that a row does not see may have any value.
            let mut before = numbers(rows * block.stride, 1);
            for (row, scores) in before.chunks_exact_mut(block.stride).enumerate() {
                scores[seen + row..].fill(f32::NAN);
            }
            let (mut powers, mut sums) = (before.clone(), vec![[0.0; 2]; rows]);
            let (c, y) = (numbers(rows * width, 2), numbers(rows * width, 3));
            let [c, y] = [&c, &y].map(|values| Matrix::new(values, rows, width));
            let mut slopes = numbers(before.len(), 4);
            let (logs, d) = (numbers(rows, 5), slopes.clone());
            let mut p = before.clone();
            if by_portable {
                // SAFETY: sizes as checked below for the other lanes; portable lanes need nothing.
                unsafe {
                    exponentials_body::<Portable>(powers.as_mut_ptr(), block, &mut sums);
                    gradient_body::<Portable>(p.as_mut_ptr(), slopes.as_mut_ptr(), block, &logs, c, y, 0.5);
                }
            } else {
                exponentials(&mut powers, block, &mut sums);
                gradient(&mut p, &mut slopes, block, &logs, [c, y], 0.5);
            }
            let near = |found: f32, wanted: f64| (f64::from(found) - wanted).abs() <= 1e-5 * wanted.abs().max(1.0);
            for row in 0..rows {
                let at = row * block.stride;
                let visible = &before[at..at + seen + row];
                let top = visible.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let power = |x: f32, from: f32| (f64::from(x) - f64::from(from)).exp();
                let sum: f64 = visible.iter().map(|&x| power(x, top)).sum();
                assert!(sums[row][0] == top && near(sums[row][1], sum), "{:?}, not {top}, {sum}", sums[row]);
                let mean: f64 = c.row(row).iter().zip(y.row(row)).map(|(a, b)| f64::from(a * b)).sum();
                for column in 0..end {
                    let (wanted, gradient, slope) = match before[at..at + seen + row].get(column) {
                        Some(&x) => {
                            let p = power(x, logs[row]);
                            (power(x, top), p, p * (f64::from(d[at + column]) - mean) * 0.5)
                        }
                        None => (0.0, 0.0, 0.0),
                    };
                    assert!(near(powers[at + column], wanted), "power {row} {column}");
                    assert!(near(p[at + column], gradient) && near(slopes[at + column], slope), "slope {row} {column}");
                }
            }
        }
    }
}
