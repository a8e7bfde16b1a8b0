//! The inner loops of a sweep.

use std::mem::MaybeUninit;

use super::tail::{Output, Place, finish};
use crate::kernels::lanes::{LANES, Lanes};

/// What a sweep reads, and in which order.
pub(super) struct Grid<'a> {
    pub(super) reads: usize,
    /// Of each element of the window, in the padded images.
    pub(super) offsets: &'a [isize],
    /// In the padded images: how far apart blocks of channels, rows of the grid and images are.
    pub(super) plane: usize,
    pub(super) row: usize,
    pub(super) image: usize,
    pub(super) images: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) weights: *const f32,
    /// The output's pixel for the grid's first.
    pub(super) pixel: usize,
}

dispatch! {
    /// # Safety
    /// What the grid spans must lie within the padded images from `x` on, within the output, and within what its tail points to.
    pub(super) unsafe fn sweep(grid: &Grid<'_>, x: *const f32, output: &Output, vectors: usize, step: usize) = sweep_body
}

#[inline(always)]
unsafe fn sweep_body<L: Lanes>(grid: &Grid<'_>, x: *const f32, output: &Output, vectors: usize, step: usize) {
    // Distances known when compiled become parts of the instructions' addresses.
    // SAFETY: as demanded of the caller.
    unsafe {
        match (vectors, step) {
            (2, 1) => images::<L, 2, LANES>(grid, x, output, LANES),
            (2, 2) => images::<L, 2, { 2 * LANES }>(grid, x, output, 2 * LANES),
            (2, _) => images::<L, 2, 0>(grid, x, output, step * LANES),
            (_, 1) => images::<L, 1, LANES>(grid, x, output, LANES),
            (_, 2) => images::<L, 1, { 2 * LANES }>(grid, x, output, 2 * LANES),
            _ => images::<L, 1, 0>(grid, x, output, step * LANES),
        }
    }
}

/// `V` registers of output channels; `X` numbers between pixels read for neighbouring outputs, or 0 where `x_apart` says so.
#[inline(always)]
unsafe fn images<L: Lanes, const V: usize, const X: usize>(
    grid: &Grid<'_>,
    x: *const f32,
    output: &Output,
    x_apart: usize,
) {
    let panel = grid.offsets.len() * grid.reads * LANES * V;
    // Output channels outermost: a panel of weights serves all images while it is in the cache.
    for (at, channel) in (0..output.writes).step_by(LANES * V).enumerate() {
        for image in 0..grid.images {
            let mut row = 0;
            while row < grid.rows {
                let two = row + 1 < grid.rows && (V == 1 || grid.columns < 8) && L::SUMS >= 16;
                // SAFETY: rows and images of the grid, whole panels.
                unsafe {
                    let from =
                        From { x: x.add(image * grid.image + row * grid.row), weights: grid.weights.add(at * panel) };
                    let pixel = grid.pixel + image * output.image_apart + row * output.row_apart;
                    let place = Place { pixel, channel, image };
                    if two {
                        columns::<L, V, X, 2>(grid, from, output, place, x_apart);
                    } else {
                        columns::<L, V, X, 1>(grid, from, output, place, x_apart);
                    }
                }
                row += 1 + usize::from(two);
            }
        }
    }
}

/// What a tile reads first.
#[derive(Clone, Copy)]
struct From {
    x: *const f32,
    weights: *const f32,
}

/// `R` whole rows.
#[inline(always)]
unsafe fn columns<L: Lanes, const V: usize, const X: usize, const R: usize>(
    grid: &Grid<'_>,
    from: From,
    output: &Output,
    place: Place,
    x_apart: usize,
) {
    let apart = if X == 0 { x_apart } else { X };
    let mut column = 0;
    while column < grid.columns {
        let left = grid.columns - column;
        // SAFETY: as many columns as are left.
        unsafe {
            let from = From { x: from.x.add(column * apart), ..from };
            let place = Place { pixel: place.pixel + column * output.pixel_apart, ..place };
            column += if X == 0 || left == 1 {
                tile::<L, V, X, R, 1>(grid, from, output, place)
            } else if left >= 8 && 8 * R * V <= L::SUMS {
                tile::<L, V, X, R, 8>(grid, from, output, place)
            } else if left >= 4 {
                tile::<L, V, X, R, 4>(grid, from, output, place)
            } else {
                tile::<L, V, X, R, 2>(grid, from, output, place)
            };
        }
    }
}

/// `R` rows of `Q` pixels by `V` registers of output channels, in registers over all elements and input channels. Gives `Q`.
#[inline(always)]
unsafe fn tile<L: Lanes, const V: usize, const X: usize, const R: usize, const Q: usize>(
    grid: &Grid<'_>,
    from: From,
    output: &Output,
    place: Place,
) -> usize {
    // SAFETY: the tile's pixels are in the grid; weights are packed in the order in which they are read here.
    unsafe {
        let mut sums = [[[L::splat(0.0); V]; Q]; R];
        let mut weights = from.weights;
        for block in 0..grid.reads.div_ceil(LANES) {
            let count = (grid.reads - block * LANES).min(LANES);
            let x = from.x.add(block * grid.plane);
            for &offset in grid.offsets {
                let x = x.offset(offset);
                for channel in 0..count {
                    let weight: [L; V] = std::array::from_fn(|v| L::load(weights.add(v * LANES)));
                    for r in 0..R {
                        for q in 0..Q {
                            let x = L::splat(*x.add(r * grid.row + q * X + channel));
                            for v in 0..V {
                                sums[r][q][v] = sums[r][q][v].plus_product(x, weight[v]);
                            }
                        }
                    }
                    weights = weights.add(V * LANES);
                }
            }
        }
        // Through memory: what follows is too long to be unrolled, and `sums` must stay in registers up to here.
        let mut done = Done(MaybeUninit::uninit());
        let to: *mut f32 = done.0.as_mut_ptr().cast();
        for r in 0..R {
            for q in 0..Q {
                for v in 0..V {
                    sums[r][q][v].store(to.add(((v * R + r) * Q + q) * LANES));
                }
            }
        }
        for v in 0..V {
            let place = Place { channel: place.channel + v * LANES, ..place };
            finish::<L, R, Q>(output, place, to.add(v * R * Q * LANES));
        }
        Q
    }
}

/// Most registers that a tile has.
const MOST: usize = 16;

/// The sums of a tile, `[V][R][Q][16]`.
#[repr(align(64))]
struct Done(MaybeUninit<[f32; MOST * LANES]>);
