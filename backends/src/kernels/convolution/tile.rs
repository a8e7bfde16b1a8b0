//! The inner loops of a sweep.

use crate::kernels::{
    lanes::{LANES, Lanes},
    padded::Line,
};

/// Where a sweep reads and writes.
pub(super) struct Grid<'a> {
    pub(super) reads: usize,
    pub(super) writes: usize,
    /// Of each element of the window, in the padded images.
    pub(super) offsets: &'a [isize],
    /// In the padded images: how far apart blocks of channels, rows of the grid and images are.
    pub(super) plane: usize,
    pub(super) row: usize,
    pub(super) image: usize,
    pub(super) images: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// In the output, in pixels: the first, and how far apart neighbours, rows and images are.
    pub(super) pixel: usize,
    pub(super) pixel_apart: usize,
    pub(super) row_apart: usize,
    pub(super) image_apart: usize,
    pub(super) weights: *const f32,
}

/// [`End`](super::End) as pointers.
#[derive(Clone, Copy)]
pub(super) enum Tail {
    Write,
    Moments(*mut f32),
    Add,
    Skip { g: *const f32, gate: *const u16 },
    Gate { y: *const f32, line: *const Line, sums: *mut f32 },
}

dispatch! {
    /// # Safety
    /// What the grid spans must lie within the padded images from `x` on, within `y`, and within what the tail points to.
    pub(super) unsafe fn sweep(grid: &Grid<'_>, x: *const f32, y: *mut f32, tail: Tail, vectors: usize, step: usize) = sweep_body
}

#[inline(always)]
unsafe fn sweep_body<L: Lanes>(grid: &Grid<'_>, x: *const f32, y: *mut f32, tail: Tail, vectors: usize, step: usize) {
    // Distances known when compiled become parts of the instructions' addresses.
    // SAFETY: as demanded of the caller.
    unsafe {
        match (vectors, step) {
            (2, 1) => images::<L, 2, LANES>(grid, x, y, tail, LANES),
            (2, 2) => images::<L, 2, { 2 * LANES }>(grid, x, y, tail, 2 * LANES),
            (2, _) => images::<L, 2, 0>(grid, x, y, tail, step * LANES),
            (_, 1) => images::<L, 1, LANES>(grid, x, y, tail, LANES),
            (_, 2) => images::<L, 1, { 2 * LANES }>(grid, x, y, tail, 2 * LANES),
            _ => images::<L, 1, 0>(grid, x, y, tail, step * LANES),
        }
    }
}

/// `V` registers of output channels; `X` numbers between pixels read for neighbouring outputs, or 0 where `x_apart` says so.
#[inline(always)]
unsafe fn images<L: Lanes, const V: usize, const X: usize>(
    grid: &Grid<'_>,
    x: *const f32,
    y: *mut f32,
    tail: Tail,
    x_apart: usize,
) {
    let panel = grid.offsets.len() * grid.reads * LANES * V;
    // Output channels outermost: a panel of weights serves all images while it is in the cache.
    for (at, channel) in (0..grid.writes).step_by(LANES * V).enumerate() {
        for image in 0..grid.images {
            let mut row = 0;
            while row < grid.rows {
                let two = row + 1 < grid.rows && (V == 1 || grid.columns < 8) && L::SUMS >= 16;
                // SAFETY: rows and images of the grid, whole panels.
                unsafe {
                    let place = Place {
                        x: x.add(image * grid.image + row * grid.row),
                        weights: grid.weights.add(at * panel),
                        pixel: grid.pixel + image * grid.image_apart + row * grid.row_apart,
                        channel,
                        image,
                    };
                    if two {
                        columns::<L, V, X, 2>(grid, &place, y, tail, x_apart);
                    } else {
                        columns::<L, V, X, 1>(grid, &place, y, tail, x_apart);
                    }
                }
                row += 1 + usize::from(two);
            }
        }
    }
}

/// The first pixel of a tile.
#[derive(Clone, Copy)]
struct Place {
    x: *const f32,
    weights: *const f32,
    pixel: usize,
    channel: usize,
    image: usize,
}

/// `R` whole rows.
#[inline(always)]
unsafe fn columns<L: Lanes, const V: usize, const X: usize, const R: usize>(
    grid: &Grid<'_>,
    place: &Place,
    y: *mut f32,
    tail: Tail,
    x_apart: usize,
) {
    let apart = if X == 0 { x_apart } else { X };
    let mut column = 0;
    while column < grid.columns {
        let left = grid.columns - column;
        // SAFETY: as many columns as are left.
        unsafe {
            let place =
                Place { x: place.x.add(column * apart), pixel: place.pixel + column * grid.pixel_apart, ..*place };
            column += if X == 0 || left == 1 {
                tile::<L, V, X, R, 1>(grid, &place, y, tail)
            } else if left >= 8 && 8 * R * V <= L::SUMS {
                tile::<L, V, X, R, 8>(grid, &place, y, tail)
            } else if left >= 4 {
                tile::<L, V, X, R, 4>(grid, &place, y, tail)
            } else {
                tile::<L, V, X, R, 2>(grid, &place, y, tail)
            };
        }
    }
}

/// `R` rows of `Q` pixels by `V` registers of output channels, in registers over all elements and input channels. Gives `Q`.
#[inline(always)]
unsafe fn tile<L: Lanes, const V: usize, const X: usize, const R: usize, const Q: usize>(
    grid: &Grid<'_>,
    place: &Place,
    y: *mut f32,
    tail: Tail,
) -> usize {
    // SAFETY: the tile's pixels are in the grid; weights are packed in the order in which they are read here.
    unsafe {
        let mut sums = [[[L::splat(0.0); V]; Q]; R];
        let mut weights = place.weights;
        for block in 0..grid.reads.div_ceil(LANES) {
            let count = (grid.reads - block * LANES).min(LANES);
            let x = place.x.add(block * grid.plane);
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
        for v in 0..V {
            let channel = place.channel + v * LANES;
            let count = grid.writes.saturating_sub(channel).min(LANES);
            let column: [[L; Q]; R] = std::array::from_fn(|r| std::array::from_fn(|q| sums[r][q][v]));
            finish::<L, R, Q>(grid, place, y, tail, channel, count, &column);
        }
        Q
    }
}

/// Writes the sums of one register of channels.
#[inline(always)]
unsafe fn finish<L: Lanes, const R: usize, const Q: usize>(
    grid: &Grid<'_>,
    place: &Place,
    y: *mut f32,
    tail: Tail,
    channel: usize,
    count: usize,
    sums: &[[L; Q]; R],
) {
    let pixel = |r: usize, q: usize| place.pixel + r * grid.row_apart + q * grid.pixel_apart;
    let blocks = grid.writes.div_ceil(LANES);
    // SAFETY: `count` channels from `channel` on of the tile's pixels.
    unsafe {
        let load = |from: *const f32| if count == LANES { L::load(from) } else { L::load_first(from, count) };
        let store =
            |sum: L, at: usize| if count == LANES { sum.store(y.add(at)) } else { sum.store_first(y.add(at), count) };
        match tail {
            Tail::Write => {
                for r in 0..R {
                    for q in 0..Q {
                        store(sums[r][q], pixel(r, q) * grid.writes + channel);
                    }
                }
            }
            Tail::Add => {
                for r in 0..R {
                    for q in 0..Q {
                        let at = pixel(r, q) * grid.writes + channel;
                        store(load(y.add(at)).plus(sums[r][q]), at);
                    }
                }
            }
            Tail::Skip { g, gate } => {
                for r in 0..R {
                    for q in 0..Q {
                        let at = pixel(r, q) * grid.writes + channel;
                        let mut g = load(g.add(at));
                        if !gate.is_null() {
                            g = g.where_set(*gate.add(pixel(r, q) * blocks + channel / LANES));
                        }
                        store(g.plus(sums[r][q]), at);
                    }
                }
            }
            Tail::Moments(moments) => {
                let moments = moments.add(place.image * 3 * blocks * LANES + channel);
                let at = |i: usize| moments.add(i * blocks * LANES);
                // The image's first pixel is as good a guess of the mean as any, and always the same.
                if place.pixel == place.image * grid.image_apart {
                    sums[0][0].store(at(0));
                }
                let shift = L::load(at(0));
                let mut totals = [L::load(at(1)), L::load(at(2))];
                for r in 0..R {
                    for q in 0..Q {
                        let sum = sums[r][q];
                        let distance = sum.minus(shift);
                        totals = [totals[0].plus(distance), totals[1].plus_product(distance, distance)];
                        store(sum, pixel(r, q) * grid.writes + channel);
                    }
                }
                totals[0].store(at(1));
                totals[1].store(at(2));
            }
            Tail::Gate { y: own, line, sums: totals } => {
                let totals = totals.add(place.image * 2 * blocks * LANES + channel);
                let next = totals.add(blocks * LANES);
                let [mean, scale, shift] = (*line).lanes::<L>(channel);
                let mut pair = [L::load(totals), L::load(next)];
                for r in 0..R {
                    for q in 0..Q {
                        let at = pixel(r, q) * grid.writes + channel;
                        let own = load(own.add(at));
                        let distance = own.minus(mean);
                        let sum = sums[r][q].where_positive(shift.plus_product(scale, distance));
                        pair = [pair[0].plus(sum), pair[1].plus_product(sum, distance)];
                        store(sum, at);
                    }
                }
                pair[0].store(totals);
                pair[1].store(next);
            }
        }
    }
}
