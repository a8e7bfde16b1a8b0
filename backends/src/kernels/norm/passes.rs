//! What batch norm does to whole images.

use std::ops::Range;

use rayon::prelude::*;

use super::{Norm, NormGradient};
use crate::kernels::{
    lanes::{LANES, Lanes},
    padded::{Line, blocks},
    room::{Blank, Filled, Room},
};

/// Something added to a normed image.
#[derive(Clone, Copy)]
pub(crate) enum Addend<'a> {
    /// Nothing.
    Nothing,
    /// An image.
    Plain(&'a [f32]),
    /// An image, normed itself.
    Normed(&'a [f32], &'a Line),
}

impl Addend<'_> {
    fn part(&self, range: Range<usize>) -> Self {
        match *self {
            Self::Nothing => Self::Nothing,
            Self::Plain(x) => Self::Plain(&x[range]),
            Self::Normed(x, line) => Self::Normed(&x[range], line),
        }
    }
}

/// `norm(y) + addend` of images of `pixels` pixels each, and with `rectified` the ReLU of that, with a bit for each number above 0, in blocks
/// of sixteen channels.
pub(crate) fn join(
    y: &[f32],
    line: &Line,
    addend: Addend<'_>,
    [pixels, channels]: [usize; 2],
    rectified: bool,
) -> (Filled, Vec<u16>) {
    let (image, bits) = (pixels * channels, pixels * blocks(channels));
    let images = y.len() / image;
    assert_eq!(y.len(), images * image, "images of another size");
    let mut out = Room::new(y.len());
    let mut gate = vec![0; if rectified { images * bits } else { 0 }];
    let gates: Vec<Option<&mut [u16]>> = match rectified {
        true => gate.chunks_mut(bits).map(Some).collect(),
        false => (0..images).map(|_| None).collect(),
    };
    let work: Vec<_> = out.blank().chunks_mut(image).zip(y.chunks(image)).zip(gates).collect();
    work.into_par_iter().enumerate().for_each(|(i, ((out, y), gate))| {
        join_image(y, line, addend.part(i * image..(i + 1) * image), channels, out, gate);
    });
    // SAFETY: each image's numbers have been written.
    (unsafe { out.filled() }, gate)
}

/// [`join`] of one image; writes every number of `out`.
fn join_image(y: &[f32], line: &Line, addend: Addend<'_>, channels: usize, out: &mut Blank, gate: Option<&mut [u16]>) {
    assert!(y.len() == out.len() && line.holds(channels));
    assert!(gate.as_ref().is_none_or(|gate| gate.len() == y.len() / channels * blocks(channels)));
    match addend {
        Addend::Nothing => {}
        Addend::Plain(x) => assert_eq!(x.len(), y.len()),
        Addend::Normed(x, line) => {
            assert!(x.len() == y.len() && line.holds(channels));
        }
    }
    let gate = gate.map_or(std::ptr::null_mut(), <[u16]>::as_mut_ptr);
    // SAFETY: equally many numbers everywhere, lines of a number a channel, a bit for each number.
    unsafe { join_here(y, line, addend, channels, out.as_mut_ptr().cast(), gate) }
}

dispatch! {
    /// # Safety
    /// `out` and the addend have as many numbers as `y`, `gate` is null or has a bit for each; lines have a number for each channel.
    unsafe fn join_here(y: &[f32], line: &Line, addend: Addend<'_>, channels: usize, out: *mut f32, gate: *mut u16) = join_body
}

#[inline(always)]
unsafe fn join_body<L: Lanes>(
    y: &[f32],
    line: &Line,
    addend: Addend<'_>,
    channels: usize,
    out: *mut f32,
    gate: *mut u16,
) {
    let blocks = blocks(channels);
    for from in (0..channels).step_by(LANES) {
        let count = (channels - from).min(LANES);
        // SAFETY: `count` channels of each pixel.
        unsafe {
            let load = |x: *const f32| if count == LANES { L::load(x) } else { L::load_first(x, count) };
            let [mean, scale, shift] = line.lanes::<L>(from);
            let (x, [x_mean, x_scale, x_shift]) = match addend {
                Addend::Nothing => (std::ptr::null(), [L::splat(0.0); 3]),
                Addend::Plain(x) => (x.as_ptr(), [0.0, 1.0, 0.0].map(|x| L::splat(x))),
                Addend::Normed(x, line) => (x.as_ptr(), line.lanes::<L>(from)),
            };
            for pixel in 0..y.len() / channels {
                let at = pixel * channels + from;
                let mut value = shift.plus_product(scale, load(y.as_ptr().add(at)).minus(mean));
                if !x.is_null() {
                    value = value.plus(x_shift.plus_product(x_scale, load(x.add(at)).minus(x_mean)));
                }
                if !gate.is_null() {
                    *gate.add(pixel * blocks + from / LANES) = value.positive();
                    value = L::splat(0.0).max(value);
                }
                if count == LANES { value.store(out.add(at)) } else { value.store_first(out.add(at), count) }
            }
        }
    }
}

/// `Σ a` and `Σ a·b` of `pair(i) = (a, b)` for `i` below `count`.
#[inline(always)]
unsafe fn two_sums<L: Lanes>(count: usize, pair: impl Fn(usize) -> (L, L)) -> [L; 2] {
    // SAFETY: as demanded of the caller.
    unsafe {
        // Four at a time: one sum would wait for itself.
        let mut totals = [[L::splat(0.0); 2]; 4];
        for four in 0..count / 4 {
            for (i, total) in totals.iter_mut().enumerate() {
                let (a, b) = pair(four * 4 + i);
                *total = [total[0].plus(a), total[1].plus_product(a, b)];
            }
        }
        for i in count / 4 * 4..count {
            let (a, b) = pair(i);
            totals[0] = [totals[0][0].plus(a), totals[0][1].plus_product(a, b)];
        }
        [0, 1].map(|i| totals[0][i].plus(totals[1][i]).plus(totals[2][i].plus(totals[3][i])))
    }
}

/// The sums of each image that [`Norm::gradient`] needs, `[image][2][channels in blocks]`; `g` counts where the gate is open.
pub(crate) fn gradient_sums(
    g: &[f32],
    gate: Option<&[u16]>,
    y: &[f32],
    norm: &Norm,
    [pixels, channels]: [usize; 2],
) -> Vec<f32> {
    let (image, bits, each) = (pixels * channels, pixels * blocks(channels), 2 * blocks(channels) * LANES);
    let mut sums = vec![0.0; y.len() / image * each];
    let images = g.par_chunks(image).zip(y.par_chunks(image));
    sums.par_chunks_mut(each).zip(images).enumerate().for_each(|(i, (sums, (g, y)))| {
        gradient_sums_of_image(g, gate.map(|gate| &gate[i * bits..][..bits]), y, norm, channels, sums);
    });
    sums
}

fn gradient_sums_of_image(g: &[f32], gate: Option<&[u16]>, y: &[f32], norm: &Norm, channels: usize, sums: &mut [f32]) {
    assert!(g.len() == y.len() && norm.line.holds(channels) && sums.len() == 2 * blocks(channels) * LANES);
    assert!(gate.is_none_or(|gate| gate.len() == y.len() / channels * blocks(channels)));
    // SAFETY: equally many numbers, a bit for each, room for two sums a channel.
    unsafe { gradient_sums_here(g, gate, y, &norm.line.mean, channels, sums.as_mut_ptr()) }
}

dispatch! {
    /// # Safety
    /// `g` has as many numbers as `y`, `gate` a bit for each, `mean` a number and `sums` two (in blocks of sixteen) for each channel.
    unsafe fn gradient_sums_here(g: &[f32], gate: Option<&[u16]>, y: &[f32], mean: &[f32], channels: usize, sums: *mut f32) = gradient_sums_body
}

#[inline(always)]
unsafe fn gradient_sums_body<L: Lanes>(
    g: &[f32],
    gate: Option<&[u16]>,
    y: &[f32],
    mean: &[f32],
    channels: usize,
    sums: *mut f32,
) {
    let blocks = blocks(channels);
    for from in (0..channels).step_by(LANES) {
        let count = (channels - from).min(LANES);
        // SAFETY: `count` channels of each pixel.
        unsafe {
            let load = |x: *const f32| if count == LANES { L::load(x) } else { L::load_first(x, count) };
            let mean = load(mean.as_ptr().add(from));
            let totals = two_sums::<L>(y.len() / channels, |pixel| {
                let at = pixel * channels + from;
                let mut g = load(g.as_ptr().add(at));
                if let Some(gate) = gate {
                    g = g.where_set(*gate.get_unchecked(pixel * blocks + from / LANES));
                }
                (g, load(y.as_ptr().add(at)).minus(mean))
            });
            for (i, total) in totals.into_iter().enumerate() {
                total.store(sums.add(i * blocks * LANES + from));
            }
        }
    }
}

/// The moments of each image, as [`Statistics::merge`](super::Statistics::merge) takes them.
pub(crate) fn moments(x: &[f32], [pixels, channels]: [usize; 2]) -> Vec<f32> {
    let (image, each) = (pixels * channels, 3 * blocks(channels) * LANES);
    let mut all = vec![0.0; x.len() / image * each];
    all.par_chunks_mut(each).zip(x.par_chunks(image)).for_each(|(moments, x)| moments_of_image(x, channels, moments));
    all
}

fn moments_of_image(x: &[f32], channels: usize, moments: &mut [f32]) {
    assert!(!x.is_empty() && x.len().is_multiple_of(channels) && moments.len() == 3 * blocks(channels) * LANES);
    // SAFETY: whole pixels, at least one, and room for three numbers a channel.
    unsafe { moments_here(x, channels, moments.as_mut_ptr()) }
}

dispatch! {
    /// # Safety
    /// `x` has at least one whole pixel, `moments` room for three numbers (in blocks of sixteen) for each channel.
    unsafe fn moments_here(x: &[f32], channels: usize, moments: *mut f32) = moments_body
}

#[inline(always)]
unsafe fn moments_body<L: Lanes>(x: &[f32], channels: usize, moments: *mut f32) {
    for from in (0..channels).step_by(LANES) {
        let count = (channels - from).min(LANES);
        // SAFETY: `count` channels of each pixel.
        unsafe {
            let load = |x: *const f32| if count == LANES { L::load(x) } else { L::load_first(x, count) };
            let shift = load(x.as_ptr().add(from));
            let totals = two_sums::<L>(x.len() / channels, |pixel| {
                let distance = load(x.as_ptr().add(pixel * channels + from)).minus(shift);
                (distance, distance)
            });
            for (i, total) in [shift, totals[0], totals[1]].into_iter().enumerate() {
                total.store(moments.add(i * blocks(channels) * LANES + from));
            }
        }
    }
}

/// `a·g + b·(y - mean) + c` of images of `pixels` pixels each.
pub(crate) fn gradient(g: &[f32], y: &[f32], lines: &NormGradient, [pixels, channels]: [usize; 2]) -> Filled {
    assert!(
        g.len() == y.len() && lines.a.len() >= blocks(channels) * LANES && y.len().is_multiple_of(pixels * channels)
    );
    let image = pixels * channels;
    let mut out = Room::new(y.len());
    let images = g.par_chunks(image).zip(y.par_chunks(image));
    out.blank().par_chunks_mut(image).zip(images).for_each(|(out, (g, y))| {
        // SAFETY: equally many numbers, lines of a number a channel.
        unsafe { gradient_here(g, y, lines, channels, out.as_mut_ptr().cast()) }
    });
    // SAFETY: each image's numbers have been written.
    unsafe { out.filled() }
}

dispatch! {
    /// # Safety
    /// `g` and `out` have as many numbers as `y`, the lines a number for each channel.
    unsafe fn gradient_here(g: &[f32], y: &[f32], lines: &NormGradient, channels: usize, out: *mut f32) = gradient_body
}

#[inline(always)]
unsafe fn gradient_body<L: Lanes>(g: &[f32], y: &[f32], lines: &NormGradient, channels: usize, out: *mut f32) {
    for from in (0..channels).step_by(LANES) {
        let count = (channels - from).min(LANES);
        // SAFETY: `count` channels of each pixel.
        unsafe {
            let load = |x: *const f32| if count == LANES { L::load(x) } else { L::load_first(x, count) };
            let [mean, a, b, c] = lines.lanes::<L>(from);
            for at in (from..y.len()).step_by(channels) {
                let (g, y) = (load(g.as_ptr().add(at)), load(y.as_ptr().add(at)));
                let value = c.plus_product(b, y.minus(mean)).plus_product(a, g);
                if count == LANES { value.store(out.add(at)) } else { value.store_first(out.add(at), count) }
            }
        }
    }
}
