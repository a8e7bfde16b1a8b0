//! Convolution on tiles of `bf16`: a sweep whose tiles' rows are neighbouring pixels, and whose depth is the channels of the window's elements.
//!
//! The padded images are copied as `bf16`, `[image][H + 2b][W + 2b][C]`, so that the pixels that one element of the window reads for neighbouring
//! outputs lie equally far apart. A step of the depth takes 32 channels of one element. Images with at most 16 channels take two neighbouring pixels
//! instead. If neighbouring outputs read neighbouring pixels, a row of a tile then stands for two outputs, whose windows have two columns of weights.

mod multiply;
mod weights;

#[cfg(test)]
pub(super) use weights::can_add_weights;
pub(super) use weights::{add_weight_gradient, suits_weights};

use std::arch::x86_64::*;

use self::multiply::{Stores, multiply};
use super::{
    Geometry,
    epilogue::{Epilogue, Output, TilePosition, finish},
    pack::Direction,
    sweep::SweepPlan,
};
use crate::kernels::{
    Instructions,
    aligned_buffer::{Aligned, blank, with_scratch},
    channel_lines::blocks,
    lanes::{Avx512, LANES},
    matrix::Matrix,
    numbers::NumbersMut,
    padded::Padded,
    tiles::{
        Tiles,
        block::{BLOCK, STEP},
        pack::{self, halves},
    },
};

/// Returns whether this is the best method for a convolution: there are tiles, and rows long enough to fill a quarter of one.
pub(super) fn suits(geometry: &Geometry) -> bool {
    Instructions::in_use() >= Instructions::Amx && geometry.to[1] >= 4 && geometry.from[1] >= 4
}

/// A convolution, or one parity of the gradient of its input, with its weights in tiles.
pub(super) struct TileSweep {
    plan: SweepPlan,
    /// The numbers of a pixel in the copy.
    pixel: usize,
    /// The outputs that a row of a tile stands for, side by side.
    joined: usize,
    /// Row, column and first channel of each step.
    steps: Vec<Step>,
    /// `[writes/32 or /16][step]`, each step as the right factor of a block.
    weights: Aligned,
}

/// What a step of the depth reads, from the pixel of the first output.
#[derive(Clone, Copy, Debug)]
struct Step {
    row: isize,
    column: isize,
    channel: usize,
}

impl TileSweep {
    /// Packs `weight (O, I, k, k)` for a plan.
    pub(super) fn new(plan: SweepPlan, weight: &[f32]) -> Self {
        let is_narrow = plan.reads() <= LANES;
        let joined = if is_narrow && plan.step == 1 { 2 } else { 1 };
        let pixel = if is_narrow { LANES } else { plan.reads().next_multiple_of(BLOCK) };
        let mut steps = Vec::new();
        if is_narrow {
            let mut rows: Vec<isize> = plan.offsets.iter().map(|offset| offset[0]).collect();
            rows.dedup();
            for row in rows {
                let columns = plan.offsets.iter().filter(|offset| offset[0] == row).map(|offset| offset[1]);
                let (first, last) = (columns.clone().min().unwrap_or(0), columns.max().unwrap_or(0));
                let last = last + joined as isize - 1;
                steps.extend((first..=last).step_by(2).map(|column| Step { row, column, channel: 0 }));
            }
        } else {
            for &[row, column] in &plan.offsets {
                steps.extend((0..pixel).step_by(BLOCK).map(|channel| Step { row, column, channel }));
            }
        }
        let mut sweep = Self { plan, pixel, joined, steps, weights: Aligned::default() };
        sweep.weights = sweep.packed(weight);
        sweep
    }

    /// Returns the output channels of a panel of weights.
    fn panel(&self) -> usize {
        BLOCK / self.joined
    }

    fn packed(&self, weight: &[f32]) -> Aligned {
        let SweepPlan { direction, weights: [outputs, inputs, square], .. } = self.plan;
        assert_eq!(weight.len(), outputs * inputs * square, "weights of another shape");
        let (reads, writes) = (self.plan.reads(), self.plan.writes());
        let (read_apart, write_apart) = match direction {
            Direction::Forward => (square, inputs * square),
            Direction::Backward => (inputs * square, square),
        };
        let (wide, channels) = (self.panel(), self.pixel.min(BLOCK));
        let mut packed = Aligned::zeros(writes.div_ceil(wide) * self.steps.len() * STEP / 2);
        let mut targets = packed.chunks_exact_mut(STEP / 2);
        for panel in (0..writes).step_by(wide) {
            for step in &self.steps {
                let mut numbers = [0.0; BLOCK * BLOCK];
                for (pixel, side) in (0..BLOCK / channels).flat_map(|p| (0..self.joined).map(move |side| (p, side))) {
                    let offset = [step.row, step.column + pixel as isize - side as isize];
                    let Some(at) = self.plan.offsets.iter().position(|known| *known == offset) else { continue };
                    let element = self.plan.elements[at];
                    for channel in step.channel..reads.min(step.channel + channels) {
                        let row = (pixel * channels + channel - step.channel) * BLOCK + side * wide;
                        let from = &weight[channel * read_apart + panel * write_apart + element..];
                        let from = from.iter().step_by(write_apart).take(wide.min(writes - panel));
                        numbers[row..].iter_mut().zip(from).for_each(|(to, &from)| *to = from);
                    }
                }
                if let Some(target) = targets.next() {
                    // SAFETY: there are tiles, since this method is used only then.
                    unsafe { pack::pack_right(Matrix::new(&numbers, BLOCK, BLOCK), halves(blank(target))) };
                }
            }
        }
        packed
    }

    /// Sweeps over the first `images` images of `x` and writes channels-last images to `y`.
    pub(super) fn run(&self, x: &Padded, images: usize, y: NumbersMut<'_>, epilogue: Epilogue<'_>) {
        let plan = &self.plan;
        plan.check(x, images);
        let output = epilogue.output(y, images, plan.size, plan.writes(), plan.apart);
        let (pitch, image) = (x.width + 2 * x.border, (x.height + 2 * x.border) * (x.width + 2 * x.border));
        // The last tile may have rows beyond the last pixel, whose sums are not used.
        let beyond = BLOCK * plan.step * self.joined + BLOCK;
        with_scratch((images * image + beyond) * self.pixel / 2, |scratch| {
            // SAFETY: the scratch holds all pixels of these images, there are tiles, and the output is as the plan says (checked above).
            unsafe {
                let copy: *mut u16 = scratch.as_mut_ptr().cast();
                copy_images(x, images, self.pixel, copy);
                // A pair of pixels may have one beyond the last, whose weights are zeros: it must be a number.
                copy.add(images * image * self.pixel).write_bytes(0, 2 * self.pixel);
                let origin = x.border * (pitch + 1) * self.pixel;
                self.sweep(copy.add(origin), [pitch * self.pixel, image * self.pixel], images, &output);
            }
        });
    }

    /// # Safety
    /// `x` points to the first pixel inside of the border of the copy, whose rows and images are these numbers apart. There are tiles.
    #[target_feature(enable = "avx512f")]
    unsafe fn sweep(&self, x: *const u16, [pitch, image]: [usize; 2], images: usize, output: &Output) {
        let plan = &self.plan;
        if self.steps.is_empty() {
            // No element of the window reaches these pixels.
            // SAFETY: as demanded of the caller.
            return unsafe { self.finish_zeros(images, output) };
        }
        let rows = plan.grid[1].div_ceil(self.joined).min(LANES);
        let spots = self.spots([pitch, image], images, rows * self.joined, output);
        let bytes = |row: isize, column: isize, channel: usize| {
            2 * (row * pitch as isize + column * self.pixel as isize + channel as isize)
        };
        let offsets: Vec<isize> = self.steps.iter().map(|step| bytes(step.row, step.column, step.channel)).collect();
        let apart = 2 * self.pixel * plan.step * self.joined;
        let stores = if self.joined == 2 { Stores::side_by_side(rows) } else { Stores::one_by_one(rows) };
        let _tiles = Tiles::of_rows(rows);
        let mut sums = Sums([[0.0; 2 * STEP / 2]; 2]);
        for (panel, first) in (0..plan.writes()).step_by(self.panel()).enumerate() {
            // Sums are finished after the next ones have been computed: by then their stores have come to their end.
            let mut before: Option<(usize, &[Spot])> = None;
            for (at, pair) in spots.chunks(2).enumerate() {
                // SAFETY: the steps lie within the copy; there are weights for all panels and steps.
                unsafe {
                    let weights = self.weights.as_ptr().cast::<u16>().add(panel * self.steps.len() * STEP);
                    let from = pair[0].from;
                    let second = pair.get(1).map_or(0, |second| 2 * (second.from - from));
                    multiply(&offsets, x.add(from), second, apart, weights, sums.0[at % 2].as_mut_ptr(), &stores);
                    if let Some((at, pair)) = before.replace((at, pair)) {
                        self.finish(pair, sums.0[at % 2].as_ptr(), rows, first, output);
                    }
                }
            }
            if let Some((at, pair)) = before {
                // SAFETY: as above.
                unsafe { self.finish(pair, sums.0[at % 2].as_ptr(), rows, first, output) };
            }
        }
    }

    /// Returns the groups of outputs that a tile computes, each of at most `count` in a row.
    fn spots(&self, [pitch, image]: [usize; 2], images: usize, count: usize, output: &Output) -> Vec<Spot> {
        let plan = &self.plan;
        let [rows, columns] = plan.grid;
        let places = (0..images).flat_map(|image| (0..rows).map(move |row| (image, row)));
        let spot = |(at, row, column): (usize, usize, usize)| Spot {
            from: at * image + row * plan.step * pitch + column * plan.step * self.pixel,
            pixel: plan.first_pixel() + at * output.image_apart + row * output.row_apart + column * output.pixel_apart,
            image: at,
            count: count.min(columns - column),
        };
        places
            .flat_map(|(at, row)| (0..columns).step_by(count).map(move |column| (at, row, column)))
            .map(spot)
            .collect()
    }

    /// Applies the epilogue to the sums of two groups of outputs, for the channels of the panel from `first` on.
    ///
    /// # Safety
    /// The sums are those of this panel; the groups lie within the output.
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(&self, pair: &[Spot], sums: *const f32, rows: usize, first: usize, output: &Output) {
        let blocks = (first..first + self.panel()).step_by(LANES).filter(|channel| *channel < output.writes);
        for (block, channel) in blocks.enumerate() {
            for (i, spot) in pair.iter().enumerate() {
                // SAFETY: as demanded of the caller.
                unsafe {
                    let sums = sums.add((i * BLOCK / LANES + block) * rows * LANES);
                    finish_row(output, spot, channel, sums);
                }
            }
        }
    }

    /// Applies the epilogue to sums of nothing.
    ///
    /// # Safety
    /// The output is as the plan says.
    #[target_feature(enable = "avx512f")]
    unsafe fn finish_zeros(&self, images: usize, output: &Output) {
        let sums = Sums([[0.0; STEP]; 2]);
        for spot in self.spots([0, 0], images, LANES, output) {
            for channel in (0..output.writes).step_by(LANES) {
                // SAFETY: as demanded of the caller; there are zeros for sixteen pixels.
                unsafe { finish_row(output, &spot, channel, sums.0[0].as_ptr()) };
            }
        }
    }
}

/// Sums of two pairs of groups.
#[repr(align(64))]
struct Sums([[f32; STEP]; 2]);

/// Some outputs in a row, which one tile computes.
#[derive(Clone, Copy, Debug)]
struct Spot {
    /// The number in the copy from which the first reads.
    from: usize,
    /// The first output pixel, and its image.
    pixel: usize,
    image: usize,
    count: usize,
}

/// Applies the epilogue to sixteen channels of some outputs in a row.
///
/// # Safety
/// They lie within the output; `sums` has sixteen numbers for each.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish_row(output: &Output, spot: &Spot, channel: usize, sums: *const f32) {
    let mut done = 0;
    while done < spot.count {
        let position = TilePosition { pixel: spot.pixel + done * output.pixel_apart, channel, image: spot.image };
        // SAFETY: as many outputs as are left.
        unsafe {
            let sums = sums.add(done * LANES);
            done += match spot.count - done {
                16.. => finish_some::<16>(output, position, sums),
                8.. => finish_some::<8>(output, position, sums),
                4.. => finish_some::<4>(output, position, sums),
                2.. => finish_some::<2>(output, position, sums),
                _ => finish_some::<1>(output, position, sums),
            };
        }
    }
}

/// # Safety
/// As for [`finish`].
#[target_feature(enable = "avx512f")]
unsafe fn finish_some<const Q: usize>(output: &Output, position: TilePosition, sums: *const f32) -> usize {
    // SAFETY: as demanded of the caller.
    unsafe { finish::<Avx512, 1, Q>(output, position, sums) };
    Q
}

/// Copies padded images as `bf16`, pixel by pixel of `pixel` channels: sixteen, or a multiple of 32.
///
/// # Safety
/// `to` has room for them. The processor has the instructions that tiles ask for.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn copy_images(x: &Padded, images: usize, pixel: usize, to: *mut u16) {
    let (pixels, plane, all) = (images * x.image() / LANES, x.plane(), blocks(x.channels));
    let from = x.numbers.as_ptr();
    for block in (0..pixel / LANES).step_by(2) {
        for at in 0..pixels {
            // SAFETY: pixels of the images, in blocks of channels that exist; missing ones are zeros.
            unsafe {
                let low = _mm512_loadu_ps(from.add(block * plane + at * LANES));
                let to = to.add(at * pixel + block * LANES);
                if pixel == LANES {
                    let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(low));
                    _mm256_storeu_si256(to.cast(), rounded);
                } else {
                    let high = match block + 1 < all {
                        true => _mm512_loadu_ps(from.add((block + 1) * plane + at * LANES)),
                        false => _mm512_setzero_ps(),
                    };
                    let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_storeu_si512(to.cast(), rounded);
                }
            }
        }
    }
}
