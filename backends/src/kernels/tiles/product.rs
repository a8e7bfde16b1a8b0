//! Whole products on tiles.

use super::{
    Tiles,
    block::{BLOCK, STEP, multiply},
    pack::{self, pack_left},
};
use crate::kernels::{
    aligned_buffer::{blank, with_scratch},
    lanes::{Avx512, LANES, Lanes},
    matrix::Matrix,
    product::{Output, finish},
};

/// Steps of the depth at a time: that part of a panel and of the left factor's rows stay in the first-level cache.
const STEPS: usize = 8;

/// Computes `A B` for the packed `B`, whose panels begin `panel_apart` numbers of `bf16` apart, 32 rows at a time.
///
/// # Safety
/// There are tiles, `b` points to panels for all columns of `output`, and `output` has as many rows as `a`.
pub(in crate::kernels) unsafe fn run(a: Matrix<'_>, b: *const u16, panel_apart: usize, output: &Output) {
    let (rows, depth) = a.dims();
    let (strip, sums) = (pack::len(depth) / 2, output.columns.next_multiple_of(BLOCK) * BLOCK);
    let _tiles = Tiles::new();
    with_scratch(strip + sums, |scratch| {
        let (strip, sums) = scratch.split_at_mut(strip);
        for row in (0..rows).step_by(BLOCK) {
            let high = (rows - row).min(BLOCK);
            // SAFETY: as demanded of the caller; the scratch holds a strip, and sums for 32 rows of all panels.
            unsafe {
                pack_left(a.rows(row..row + high), pack::halves(blank(strip)));
                strip_times(strip.as_ptr().cast(), b, panel_apart, depth, sums.as_mut_ptr(), output, [row, high]);
            }
        }
    });
}

/// Multiplies a strip by all panels, and applies the epilogue to its first `high` rows, which are the output's from `row` on.
///
/// # Safety
/// As for [`run`]; `sums` has room for 32 rows of all panels.
#[target_feature(enable = "avx512f")]
unsafe fn strip_times(
    a: *const u16,
    b: *const u16,
    panel_apart: usize,
    depth: usize,
    sums: *mut f32,
    output: &Output,
    [row, high]: [usize; 2],
) {
    let (steps, columns) = (depth.div_ceil(BLOCK), output.columns);
    // A block of sums is finished after the next one has been computed: by then its stores have come to their end.
    let mut before = None;
    for first in (0..steps).step_by(STEPS) {
        let some = (steps - first).min(STEPS);
        for panel in 0..columns.div_ceil(BLOCK) {
            // SAFETY: as demanded of the caller.
            unsafe {
                let (a, b) = (a.add(first * STEP), b.add(panel * panel_apart + first * STEP));
                let c = sums.add(panel * BLOCK * BLOCK);
                match first {
                    0 => multiply::<false>(a, b, some, c, BLOCK),
                    _ => multiply::<true>(a, b, some, c, BLOCK),
                }
                if first + some == steps
                    && let Some(panel) = before.replace(panel)
                {
                    finish_block(sums, panel, output, [row, high]);
                }
            }
        }
    }
    if let Some(panel) = before {
        // SAFETY: as above.
        unsafe { finish_block(sums, panel, output, [row, high]) };
    }
}

/// Applies the epilogue to the block of a panel.
///
/// # Safety
/// As for [`strip_times`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish_block(sums: *const f32, panel: usize, output: &Output, [row, high]: [usize; 2]) {
    let first = panel * BLOCK;
    for column in [first, first + LANES].into_iter().filter(|column| *column < output.columns) {
        for i in 0..high {
            // SAFETY: as demanded of the caller.
            unsafe {
                let sum = Avx512::load(sums.add(panel * BLOCK * BLOCK + i * BLOCK + column - first));
                finish(output, sum, row + i, column);
            }
        }
    }
}
