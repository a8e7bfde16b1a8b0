//! Tiles of images and their transforms.

use std::ops::Range;

use super::{ELEMENTS, Tiles};
use crate::kernels::{
    convolution::tail::{Output, Place, finish},
    lanes::{LANES, Lanes},
    padded::Padded,
};

/// `Bᵀ d B` of a strip of tiles: `[16][channels/16][tile][16]`.
pub(super) fn inputs(x: &Padded, tiles: &Tiles, strip: Range<usize>, to: &mut [f32]) {
    let planes = x.numbers.len() / tiles.plane.max(1);
    assert!(strip.end <= x.images * tiles.down * tiles.across && to.len() >= ELEMENTS * planes * strip.len() * LANES);
    // SAFETY: the tiles are within the border (`Tiles::new`), the images are there, and so is the room.
    unsafe { inputs_here(x.numbers.as_ptr(), tiles, strip, planes, to.as_mut_ptr()) }
}

dispatch! {
    /// # Safety
    /// The strip's tiles lie within the images at `x`; `to` has room for their transforms in all planes.
    unsafe fn inputs_here(x: *const f32, tiles: &Tiles, strip: Range<usize>, planes: usize, to: *mut f32) = inputs_body
}

#[inline(always)]
unsafe fn inputs_body<L: Lanes>(x: *const f32, tiles: &Tiles, strip: Range<usize>, planes: usize, to: *mut f32) {
    let apart = planes * strip.len() * LANES;
    for plane in 0..planes {
        for (i, tile) in strip.clone().enumerate() {
            // SAFETY: as demanded of the caller.
            unsafe {
                let x = x.add(plane * tiles.plane + tiles.offset(tile));
                let to = to.add((plane * strip.len() + i) * LANES);
                let mut rows = [[L::splat(0.0); 4]; 4];
                for j in 0..4 {
                    let d: [L; 4] = std::array::from_fn(|i| L::load(x.add(i * tiles.row + j * LANES)));
                    rows[0][j] = d[0].minus(d[2]);
                    rows[1][j] = d[1].plus(d[2]);
                    rows[2][j] = d[2].minus(d[1]);
                    rows[3][j] = d[1].minus(d[3]);
                }
                for i in 0..4 {
                    let d = rows[i];
                    d[0].minus(d[2]).store(to.add(4 * i * apart));
                    d[1].plus(d[2]).store(to.add((4 * i + 1) * apart));
                    d[2].minus(d[1]).store(to.add((4 * i + 2) * apart));
                    d[1].minus(d[3]).store(to.add((4 * i + 3) * apart));
                }
            }
        }
    }
}

/// `A c Aᵀ` of a strip of tiles of the block of channels number `plane`: `[16][tile][16]`.
pub(super) fn cotangents(g: &Padded, tiles: &Tiles, strip: Range<usize>, plane: usize, to: &mut [f32]) {
    assert!(strip.end <= g.images * tiles.down * tiles.across && to.len() >= ELEMENTS * strip.len() * LANES);
    assert!((plane + 1) * tiles.plane <= g.numbers.len());
    // SAFETY: the tiles are within the border (`Tiles::new`), the images and the plane are there, and so is the room.
    unsafe { cotangents_here(g.numbers.as_ptr().add(plane * tiles.plane), tiles, strip, to.as_mut_ptr()) }
}

dispatch! {
    /// # Safety
    /// The strip's tiles lie within the images at `g`; `to` has room for their transforms.
    unsafe fn cotangents_here(g: *const f32, tiles: &Tiles, strip: Range<usize>, to: *mut f32) = cotangents_body
}

#[inline(always)]
unsafe fn cotangents_body<L: Lanes>(g: *const f32, tiles: &Tiles, strip: Range<usize>, to: *mut f32) {
    let apart = strip.len() * LANES;
    for (i, tile) in strip.enumerate() {
        // SAFETY: as demanded of the caller.
        unsafe {
            let g = g.add(tiles.offset(tile));
            let to = to.add(i * LANES);
            let [[a, b], [c, d]] = [0, 1].map(|i| [0, 1].map(|j| L::load(g.add(i * tiles.row + j * LANES))));
            let zero = L::splat(0.0);
            let rows = [[a, b], [a.plus(c), b.plus(d)], [a.minus(c), b.minus(d)], [zero.minus(c), zero.minus(d)]];
            for i in 0..4 {
                let [a, b] = rows[i];
                a.store(to.add(4 * i * apart));
                a.plus(b).store(to.add((4 * i + 1) * apart));
                a.minus(b).store(to.add((4 * i + 2) * apart));
                zero.minus(b).store(to.add((4 * i + 3) * apart));
            }
        }
    }
}

dispatch! {
    /// `Aᵀ m A` of the products `m [16][tile][wide]` of a strip of tiles, and what follows.
    ///
    /// # Safety
    /// The strip's tiles lie within the output and what its tail points to; `products` has 16 elements of `wide` numbers for each.
    pub(super) unsafe fn outputs(tiles: &Tiles, strip: Range<usize>, products: &[f32], wide_writes: [usize; 2], size: [usize; 2], output: &Output) = outputs_body
}

/// Tiles that are finished side by side.
const SIDE_BY_SIDE: usize = 4;

/// Their outputs, `[2][2·tiles][16]`.
#[repr(align(64))]
struct Done([f32; 4 * SIDE_BY_SIDE * LANES]);

#[inline(always)]
unsafe fn outputs_body<L: Lanes>(
    tiles: &Tiles,
    strip: Range<usize>,
    products: &[f32],
    [wide, writes]: [usize; 2],
    [height, width]: [usize; 2],
    output: &Output,
) {
    let apart = strip.len() * wide;
    let mut tile = strip.start;
    while tile < strip.end {
        let [image, row, column] = tiles.at(tile);
        let rows = (height - 2 * row).min(2);
        let whole = width / 2 - column.min(width / 2);
        let some = if whole >= SIDE_BY_SIDE && strip.end - tile >= SIDE_BY_SIDE { SIDE_BY_SIDE } else { 1 };
        let pixel = image * output.image_apart + 2 * row * output.row_apart + 2 * column;
        for channel in (0..writes).step_by(LANES) {
            let mut done = Done([0.0; 4 * SIDE_BY_SIDE * LANES]);
            // SAFETY: tiles and channels that there are; what they write lies within the image.
            unsafe {
                let from = products.as_ptr().add((tile - strip.start) * wide + channel);
                let place = Place { pixel, channel, image };
                let to = done.0.as_mut_ptr();
                if some == SIDE_BY_SIDE {
                    for i in 0..SIDE_BY_SIDE {
                        one::<L, { 2 * SIDE_BY_SIDE }>(from.add(i * wide), apart, to.add(2 * i * LANES));
                    }
                    match rows {
                        2 => finish::<L, 2, { 2 * SIDE_BY_SIDE }>(output, place, to),
                        _ => finish::<L, 1, { 2 * SIDE_BY_SIDE }>(output, place, to),
                    }
                    continue;
                }
                match (rows, whole) {
                    (2, 1..) => {
                        one::<L, 2>(from, apart, to);
                        finish::<L, 2, 2>(output, place, to);
                    }
                    (2, 0) => {
                        one::<L, 1>(from, apart, to);
                        finish::<L, 2, 1>(output, place, to);
                    }
                    (_, 1..) => {
                        one::<L, 2>(from, apart, to);
                        finish::<L, 1, 2>(output, place, to);
                    }
                    _ => {
                        one::<L, 1>(from, apart, to);
                        finish::<L, 1, 1>(output, place, to);
                    }
                }
            }
        }
        tile += some;
    }
}

/// One tile, its rows `Q` pixels apart; with `Q = 1` the right column is left out.
#[inline(always)]
unsafe fn one<L: Lanes, const Q: usize>(from: *const f32, apart: usize, to: *mut f32) {
    // SAFETY: 16 elements, `apart` from each other; room for two rows of `Q` pixels, and two pixels at the end of the first.
    unsafe {
        let mut rows = [[L::splat(0.0); 4]; 2];
        for j in 0..4 {
            let m: [L; 4] = std::array::from_fn(|i| L::load(from.add((4 * i + j) * apart)));
            rows[0][j] = m[0].plus(m[1]).plus(m[2]);
            rows[1][j] = m[1].minus(m[2]).minus(m[3]);
        }
        for i in 0..2 {
            let m = rows[i];
            m[0].plus(m[1]).plus(m[2]).store(to.add(i * Q * LANES));
            if Q > 1 {
                m[1].minus(m[2]).minus(m[3]).store(to.add((i * Q + 1) * LANES));
            }
        }
    }
}
