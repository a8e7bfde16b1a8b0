//! What follows a sum, while the tile that it belongs to is in registers or near them.

use crate::kernels::{
    lanes::{LANES, Lanes},
    padded::{Line, blocks},
    room::Blank,
};

/// What becomes of the sums.
pub(crate) enum End<'a> {
    /// They are written.
    Write,
    /// They are written, and each image's moments go to `moments`: `[image][3][channels in blocks]`, a shift `d` near the mean, `Σ (y - d)` and
    /// `Σ (y - d)²`.
    Moments(&'a mut [f32]),
    /// They are added to what is there.
    Add,
    /// They are added to the cotangent where the gate is open, and written.
    Skip { g: &'a [f32], gate: Option<&'a [u16]> },
    /// They are written where the line of `y` is above 0, elsewhere 0; `sums` are `[image][2][channels in blocks]`: of what is written, and of what
    /// is written times `y - mean`.
    Gate { y: &'a [f32], line: &'a Line, sums: &'a mut [f32] },
}

impl End<'_> {
    /// Of sums for every `apart`-th pixel and row of images of `size`, each of `writes` channels.
    pub(super) fn output(self, y: &mut Blank, images: usize, size: [usize; 2], writes: usize, apart: usize) -> Output {
        let [height, width] = size;
        let (pixels, padded) = (images * height * width, blocks(writes) * LANES);
        assert_eq!(y.len(), pixels * writes, "room for other images");
        let tail = match self {
            Self::Write => Tail::Write,
            Self::Add => Tail::Add,
            Self::Moments(moments) => {
                assert_eq!(moments.len(), images * 3 * padded, "room for other moments");
                moments.fill(0.0);
                Tail::Moments(moments.as_mut_ptr())
            }
            Self::Skip { g, gate } => {
                assert!(g.len() == y.len() && gate.is_none_or(|gate| gate.len() == pixels * blocks(writes)));
                Tail::Skip { g: g.as_ptr(), gate: gate.map_or(std::ptr::null(), <[u16]>::as_ptr) }
            }
            Self::Gate { y: own, line, sums } => {
                assert!(own.len() == y.len() && sums.len() == images * 2 * padded && line.holds(writes));
                Tail::Gate { y: own.as_ptr(), line, sums: sums.as_mut_ptr() }
            }
        };
        Output {
            y: y.as_mut_ptr().cast(),
            writes,
            pixel_apart: apart,
            row_apart: apart * width,
            image_apart: height * width,
            tail,
        }
    }
}

/// Where sums go: channels-last images.
pub(super) struct Output {
    pub(super) y: *mut f32,
    /// Channels.
    pub(super) writes: usize,
    /// In pixels: how far apart neighbours, rows and images are.
    pub(super) pixel_apart: usize,
    pub(super) row_apart: usize,
    pub(super) image_apart: usize,
    pub(super) tail: Tail,
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

/// Where a tile begins: its first pixel and channel, and its image.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) pixel: usize,
    pub(super) channel: usize,
    pub(super) image: usize,
}

/// Does what follows the sums `[R][Q][16]` of sixteen channels of a tile.
///
/// # Safety
/// The tile's pixels and channels lie within the output, and within what its tail points to.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes, const R: usize, const Q: usize>(output: &Output, place: Place, sums: *const f32) {
    let Place { channel, image, .. } = place;
    let (writes, y) = (output.writes, output.y);
    let blocks = writes.div_ceil(LANES);
    let count = writes.saturating_sub(channel).min(LANES);
    let pixel = |r: usize, q: usize| place.pixel + r * output.row_apart + q * output.pixel_apart;
    // SAFETY: `count` channels from `channel` on of the tile's pixels.
    unsafe {
        let sum_of = |r: usize, q: usize| L::load(sums.add((r * Q + q) * LANES));
        match output.tail {
            Tail::Write => {
                for r in 0..R {
                    for q in 0..Q {
                        put(sum_of(r, q), y.add(pixel(r, q) * writes + channel), count);
                    }
                }
            }
            Tail::Add => {
                for r in 0..R {
                    for q in 0..Q {
                        let y = y.add(pixel(r, q) * writes + channel);
                        put(get::<L>(y, count).plus(sum_of(r, q)), y, count);
                    }
                }
            }
            Tail::Skip { g, gate } => {
                for r in 0..R {
                    for q in 0..Q {
                        let at = pixel(r, q) * writes + channel;
                        let mut g = get::<L>(g.add(at), count);
                        if !gate.is_null() {
                            g = g.where_set(*gate.add(pixel(r, q) * blocks + channel / LANES));
                        }
                        put(g.plus(sum_of(r, q)), y.add(at), count);
                    }
                }
            }
            Tail::Moments(moments) => {
                let shift = moments.add(image * 3 * blocks * LANES + channel);
                let (first, second) = (shift.add(blocks * LANES), shift.add(2 * blocks * LANES));
                // The image's first pixel is as good a guess of the mean as any, and always the same.
                if place.pixel == image * output.image_apart {
                    L::load(sums).store(shift);
                }
                let shift = L::load(shift);
                let (mut sum, mut squares) = (L::load(first), L::load(second));
                for r in 0..R {
                    for q in 0..Q {
                        let distance = sum_of(r, q).minus(shift);
                        sum = sum.plus(distance);
                        squares = squares.plus_product(distance, distance);
                        put(sum_of(r, q), y.add(pixel(r, q) * writes + channel), count);
                    }
                }
                sum.store(first);
                squares.store(second);
            }
            Tail::Gate { y: own, line, sums: totals } => {
                let first = totals.add(image * 2 * blocks * LANES + channel);
                let second = first.add(blocks * LANES);
                let [mean, scale, shift] = (*line).lanes::<L>(channel);
                let (mut sum, mut products) = (L::load(first), L::load(second));
                for r in 0..R {
                    for q in 0..Q {
                        let at = pixel(r, q) * writes + channel;
                        let distance = get::<L>(own.add(at), count).minus(mean);
                        let open = sum_of(r, q).where_positive(shift.plus_product(scale, distance));
                        sum = sum.plus(open);
                        products = products.plus_product(open, distance);
                        put(open, y.add(at), count);
                    }
                }
                sum.store(first);
                products.store(second);
            }
        }
    }
}

/// The first `count` numbers at `from`.
#[inline(always)]
unsafe fn get<L: Lanes>(from: *const f32, count: usize) -> L {
    // SAFETY: as demanded of the caller.
    unsafe { if count == LANES { L::load(from) } else { L::load_first(from, count) } }
}

/// Writes the first `count` lanes.
#[inline(always)]
unsafe fn put<L: Lanes>(lanes: L, to: *mut f32, count: usize) {
    // SAFETY: as demanded of the caller.
    unsafe { if count == LANES { lanes.store(to) } else { lanes.store_first(to, count) } }
}
