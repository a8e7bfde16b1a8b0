//! Images as the convolutions read them: surrounded by zeros, their channels in blocks of sixteen.
//!
//! Outside of the kernels images are channels-last, `[H][W][C]`. A kernel copies one or a few of them at a time, as
//! `[C/16][image][H + 2b][W + 2b][16]`, so that they stay in the cache. The copy applies batch norm, ReLU and their gradients, whose results
//! therefore never go to memory.

use std::{cell::RefCell, ops::Range};

use super::{
    aligned_buffer::Aligned,
    channel_lines::{Line, NormGradient, blocks},
    half,
    lanes::{LANES, Lanes},
    numbers::{Loads, Numbers, with_pointer},
};

/// The distance of prefetching, in pixels: images come from memory, and processors do not prefetch this far by themselves.
const AHEAD: usize = 32;

/// A few images with a border of zeros.
#[derive(Debug)]
pub(crate) struct Padded {
    pub(super) images: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) border: usize,
    pub(super) numbers: Aligned,
}

/// The channels-last images to copy, and the function applied to them.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// The numbers as they are.
    Plain(Numbers<'a>),
    /// The ReLU of a line of the numbers.
    Rectified(Numbers<'a>, &'a Line),
    /// The backward pass of a batch norm of `y`, with `g` where the gate is open, otherwise 0.
    Gradient { g: &'a [f32], gate: Option<&'a [u16]>, y: Numbers<'a>, lines: &'a NormGradient },
}

impl<'a> Source<'a> {
    /// Returns some of the images, each of `[height, width, channels]`.
    pub(crate) fn images(&self, images: Range<usize>, [height, width, channels]: [usize; 3]) -> Self {
        let each = height * width * channels;
        let part = images.start * each..images.end * each;
        match *self {
            Self::Plain(x) => Self::Plain(x.part(part)),
            Self::Rectified(y, line) => Self::Rectified(y.part(part), line),
            Self::Gradient { g, gate, y, lines } => {
                let each = height * width * blocks(channels);
                let gate = gate.map(|gate| &gate[images.start * each..images.end * each]);
                Self::Gradient { g: &g[part.clone()], gate, y: y.part(part), lines }
            }
        }
    }
}

/// The number of [`Padded`] that a thread keeps to use again.
const KEPT: usize = 4;
/// The size of the largest [`Padded`] that a thread keeps, in numbers.
const KEPT_NUMBERS: usize = 64 << 10;

thread_local! {
    static MEMORY: RefCell<Vec<Padded>> = const { RefCell::new(Vec::new()) };
}

impl Padded {
    /// Returns memory for `images` images inside a border of zeros: memory of that shape that this thread has kept, or new memory.
    pub(crate) fn taken(images: usize, size: [usize; 3], border: usize) -> Self {
        let same = |kept: &Self| {
            kept.images == images && [kept.height, kept.width, kept.channels] == size && kept.border == border
        };
        let kept = MEMORY.with_borrow_mut(|all| all.iter().position(same).map(|at| all.remove(at)));
        kept.unwrap_or_else(|| Self::zeros(images, size, border))
    }

    /// Keeps the memory for this thread to use again: only the inside is ever written, so the border need not be cleared again.
    pub(crate) fn keep(self) {
        if self.numbers.len() > KEPT_NUMBERS {
            return;
        }
        MEMORY.with_borrow_mut(|all| {
            if all.len() == KEPT {
                all.remove(0);
            }
            all.push(self);
        });
    }

    /// Makes `images` images of zeros.
    pub(crate) fn zeros(images: usize, [height, width, channels]: [usize; 3], border: usize) -> Self {
        let len = blocks(channels) * images * (height + 2 * border) * (width + 2 * border) * LANES;
        Self { images, height, width, channels, border, numbers: Aligned::zeros(len) }
    }

    /// Returns how many images fit.
    pub(crate) fn images(&self) -> usize {
        self.images
    }

    /// Returns the distance between rows, in numbers.
    pub(super) fn pitch(&self) -> usize {
        (self.width + 2 * self.border) * LANES
    }

    /// Returns the distance between images, in numbers.
    pub(super) fn image(&self) -> usize {
        (self.height + 2 * self.border) * self.pitch()
    }

    /// Returns the distance between blocks of channels, in numbers.
    pub(super) fn plane(&self) -> usize {
        self.images * self.image()
    }

    /// Returns the index of the first pixel inside the border.
    pub(super) fn origin(&self) -> usize {
        self.border * (self.pitch() + LANES)
    }

    /// Rounds all numbers to `bf16`.
    pub(crate) fn round(&mut self) {
        half::round_in_place(&mut self.numbers);
    }

    /// Copies all images of `source`, at most as many as fit; the others keep their values.
    pub(crate) fn fill(&mut self, source: &Source<'_>) {
        let len = match source {
            Source::Plain(x) => x.len(),
            Source::Rectified(y, line) => {
                assert!(line.holds(self.channels), "a line too short");
                y.len()
            }
            Source::Gradient { g, gate, y, lines } => {
                assert!(g.len() == y.len(), "a gradient of another length");
                assert!(lines.a.len() >= blocks(self.channels) * LANES, "lines too short");
                assert!(gate.is_none_or(|gate| gate.len() >= y.len() / self.channels * blocks(self.channels)));
                y.len()
            }
        };
        let image = self.height * self.width * self.channels;
        assert!(len.is_multiple_of(image) && len <= self.images * image, "images of another size");
        // SAFETY: the source has `len` numbers of whole images, which fit; lines have a number for each channel.
        unsafe { fill(self, source, len / image) }
    }
}

dispatch! { unsafe fn fill(padded: &mut Padded, source: &Source<'_>, images: usize) = fill_body }

/// # Safety
/// The source has `images` images, at most as many as the target, and lines of at least as many numbers as there are channels.
#[inline(always)]
unsafe fn fill_body<L: Lanes>(padded: &mut Padded, source: &Source<'_>, images: usize) {
    let channels = padded.channels;
    let blocks = blocks(channels);
    let ahead = AHEAD * channels;
    // SAFETY: `at` is the index of the first of `count` numbers of one pixel, `from` that of its first channel.
    unsafe {
        match *source {
            Source::Plain(x) => with_pointer!(x.pointer(), x => {
                write_pixels::<L, _>(padded, images, |_, count| {
                    move |at: usize, _| {
                        x.prefetch(at + ahead);
                        x.load(at, count)
                    }
                });
            }),
            Source::Rectified(y, line) => with_pointer!(y.pointer(), y => {
                write_pixels::<L, _>(padded, images, |from, count| {
                    let [mean, scale, shift] = line.lanes::<L>(from);
                    move |at: usize, _| {
                        y.prefetch(at + ahead);
                        // In this order of the arguments, NaN stays NaN.
                        L::splat(0.0).max(shift.plus_product(scale, y.load::<L>(at, count).minus(mean)))
                    }
                });
            }),
            Source::Gradient { g, gate, y, lines } => with_pointer!(y.pointer(), y => {
                write_pixels::<L, _>(padded, images, |from, count| {
                    let (g, [mean, a, b, c]) = (g.as_ptr(), lines.lanes::<L>(from));
                    move |at: usize, pixel: usize| {
                        g.prefetch(at + ahead);
                        y.prefetch(at + ahead);
                        let mut g: L = g.load(at, count);
                        if let Some(gate) = gate {
                            g = g.where_set(*gate.get_unchecked(pixel * blocks + from / LANES));
                        }
                        c.plus_product(b, y.load::<L>(at, count).minus(mean)).plus_product(a, g)
                    }
                });
            }),
        }
    }
}

/// Writes `value(from, count)(at, pixel)` for every block of channels, which has `count` channels from number `from` on, and every pixel, whose
/// numbers of that block begin at `at` in channels-last images.
///
/// # Safety
/// `images` images fit into `padded`.
#[inline(always)]
unsafe fn write_pixels<L: Lanes, V: Fn(usize, usize) -> L>(
    padded: &mut Padded,
    images: usize,
    value: impl Fn(usize, usize) -> V,
) {
    let (height, width, channels) = (padded.height, padded.width, padded.channels);
    let (pitch, image, plane) = (padded.pitch(), padded.image(), padded.plane());
    for from in (0..channels).step_by(LANES) {
        let value = value(from, (channels - from).min(LANES));
        // SAFETY: rows, columns and blocks are those inside the border, of images that fit.
        unsafe {
            let origin = padded.numbers.as_mut_ptr().add(padded.origin() + from / LANES * plane);
            for (i, row) in (0..images).flat_map(|i| (0..height).map(move |row| (i, row))) {
                let to = origin.add(i * image + row * pitch);
                let first = (i * height + row) * width;
                for column in 0..width {
                    value((first + column) * channels + from, first + column).store(to.add(column * LANES));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_written_inside_the_border_and_the_border_stays_zero() {
        let [height, width, channels] = [2, 3, 17];
        let mut padded = Padded::zeros(2, [height, width, channels], 1);
        let x: Vec<f32> = (1..=2 * 6 * 17).map(|i| i as f32).collect();
        padded.fill(&Source::Plain(x[..].into()));
        let mut inside = 0;
        for block in 0..2 {
            for (i, row, column) in (0..2 * 4 * 5).map(|at| (at / 20, at / 5 % 4, at % 5)) {
                for lane in 0..16 {
                    let at = block * padded.plane() + i * padded.image() + row * padded.pitch() + column * 16 + lane;
                    let channel = block * 16 + lane;
                    let within = (1..=2).contains(&row) && (1..=3).contains(&column) && channel < channels;
                    let expected = match within {
                        true => x[((i * 2 + row - 1) * 3 + column - 1) * channels + channel],
                        false => 0.0,
                    };
                    assert_eq!(padded.numbers[at], expected, "{block} {i} {row} {column} {lane}");
                    inside += usize::from(within);
                }
            }
        }
        assert_eq!(inside, x.len());
    }

    #[test]
    fn kept_memory_is_used_again_for_the_same_shape_only() {
        let mut padded = Padded::taken(2, [2, 3, 17], 1);
        padded.fill(&Source::Plain([1.0; 2 * 6 * 17][..].into()));
        let at = padded.numbers.as_ptr();
        padded.keep();
        for (images, size, border) in [(1, [2, 3, 17], 1), (2, [3, 2, 17], 1), (2, [2, 3, 16], 1), (2, [2, 3, 17], 2)] {
            let other = Padded::taken(images, size, border);
            assert!(other.numbers.iter().all(|&number| number == 0.0), "{images} {size:?} {border}");
        }
        let again = Padded::taken(2, [2, 3, 17], 1);
        assert_eq!(again.numbers.as_ptr(), at);
        assert_eq!(again.numbers.iter().sum::<f32>(), (2 * 6 * 17) as f32);
        assert_ne!(Padded::taken(2, [2, 3, 17], 1).numbers.as_ptr(), at, "taken twice");
        for side in 1..=KEPT + 1 {
            Padded::zeros(1, [side, 1, 1], 0).keep();
        }
        assert_eq!(MEMORY.with_borrow(Vec::len), KEPT);
    }

    #[test]
    fn functions_are_applied_channel_by_channel() {
        let line = |values: [f32; 2]| {
            let mut line = Aligned::zeros(LANES);
            line[..2].copy_from_slice(&values);
            line
        };
        let mut padded = Padded::zeros(1, [1, 2, 2], 0);
        let y = [1.0, 2.0, -3.0, 4.0];
        padded.fill(&Source::Rectified(
            y[..].into(),
            &Line { mean: line([1.0, 0.0]), scale: line([2.0, -1.0]), shift: line([3.0, 3.0]) },
        ));
        assert_eq!([0, 1, 16, 17].map(|at| padded.numbers[at]), [3.0, 1.0, 0.0, 0.0]);
        let g = [10.0, 20.0, 30.0, 40.0];
        let lines = NormGradient {
            mean: line([1.0, 0.0]),
            a: line([1.0, 0.5]),
            b: line([2.0, 1.0]),
            c: line([2.0, 100.0]),
            weight: Vec::new(),
            bias: Vec::new(),
        };
        padded.fill(&Source::Gradient { g: &g, gate: Some(&[0b01, 0b11]), y: y[..].into(), lines: &lines });
        assert_eq!([0, 1, 16, 17].map(|at| padded.numbers[at]), [12.0, 102.0, 24.0, 124.0]);
    }
}
