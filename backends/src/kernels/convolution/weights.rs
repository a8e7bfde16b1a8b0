//! The gradient of a convolution's weights: `∂W[o][c][u][v] = Σ_p g[o][p] · x[c][s·p + (u,v) - padding]`.

use std::ops::Range;

use super::{Geometry, winograd};
use crate::kernels::{
    lanes::{LANES, Lanes},
    padded::{Padded, blocks},
    room::Aligned,
};

/// Sums for some blocks of output channels, `[O/16][I/16][element][16 inputs][16 outputs]`; the elements are those of the window, or of the
/// transformed window.
#[derive(Debug)]
pub(crate) struct WeightGradient {
    geometry: Geometry,
    winograd: bool,
    outputs: Range<usize>,
    pub(super) sums: Aligned,
}

impl WeightGradient {
    /// Zeros for blocks of sixteen output channels, of the method that suits `images` images.
    pub(crate) fn zeros(geometry: &Geometry, images: usize, outputs: Range<usize>) -> Self {
        Self::by(winograd::suits(geometry, images), geometry, outputs)
    }

    /// Zeros, of one method or the other.
    pub(super) fn by(winograd: bool, geometry: &Geometry, outputs: Range<usize>) -> Self {
        let mut zeros = Self { geometry: *geometry, winograd, outputs, sums: Aligned::default() };
        zeros.sums = Aligned::zeros(zeros.outputs.len() * blocks(geometry.inputs) * zeros.elements() * LANES * LANES);
        zeros
    }

    fn elements(&self) -> usize {
        if self.winograd { winograd::ELEMENTS } else { self.geometry.kernel * self.geometry.kernel }
    }

    /// Adds what the first `images` images of `x`, and of the cotangent `g`, give.
    pub(crate) fn add(&mut self, x: &Padded, g: &Padded, images: usize) {
        let geometry = &self.geometry;
        assert!(
            [x.height, x.width, x.channels] == geometry.input() && [g.height, g.width, g.channels] == geometry.output()
        );
        assert!(images <= x.images && images <= g.images && self.outputs.end <= blocks(geometry.outputs));
        if self.winograd {
            return winograd::add_tiles(geometry, x, g, images, self.outputs.clone(), &mut self.sums);
        }
        for axis in 0..2 {
            let last = (geometry.to[axis] - 1) * geometry.stride + geometry.kernel - 1;
            assert!(x.border >= geometry.padding && last < geometry.from[axis] + x.border + geometry.padding);
        }
        // SAFETY: both hold as many images of the geometry's sizes, with the border that it reads.
        unsafe { weight_gradient_sums(geometry, x, g, images, self.outputs.clone(), self.sums.as_mut_ptr()) }
    }

    /// Adds another sum of the same blocks.
    pub(crate) fn add_sums(&mut self, other: &Self) {
        assert!(
            self.geometry == other.geometry && self.winograd == other.winograd && self.outputs == other.outputs,
            "sums of other weights"
        );
        for (sum, &other) in self.sums.iter_mut().zip(other.sums.iter()) {
            *sum += other;
        }
    }

    /// Writes the gradients to `gradient`, the weights `(O, I, k, k)` of these blocks' output channels.
    pub(crate) fn write(&self, gradient: &mut [f32]) {
        let Geometry { inputs, outputs, kernel, .. } = self.geometry;
        let square = kernel * kernel;
        let first = self.outputs.start * LANES;
        assert_eq!(gradient.len(), ((self.outputs.end * LANES).min(outputs) - first) * inputs * square);
        let elements = self.elements();
        for (output, gradient) in gradient.chunks_exact_mut(inputs * square).enumerate() {
            for (input, gradient) in gradient.chunks_exact_mut(square).enumerate() {
                let pair = (output / LANES * blocks(inputs) + input / LANES) * elements * LANES * LANES;
                let from = pair + input % LANES * LANES + output % LANES;
                let sum = |element: usize| self.sums[from + element * LANES * LANES];
                if self.winograd {
                    gradient.copy_from_slice(&winograd::inverse(std::array::from_fn(sum)));
                } else {
                    for (element, gradient) in gradient.iter_mut().enumerate() {
                        *gradient = sum(element);
                    }
                }
            }
        }
    }
}

/// Whether sums are better cut by output channels than by images: where they are larger than the images.
pub(crate) fn sums_are_large(geometry: &Geometry) -> bool {
    let weights = geometry.outputs * geometry.inputs * geometry.kernel * geometry.kernel;
    weights > 1 << 18
}

dispatch! {
    /// # Safety
    /// `x` and `g` hold `images` images of the geometry's sizes, `sums` has room for the pairs of blocks.
    unsafe fn weight_gradient_sums(geometry: &Geometry, x: &Padded, g: &Padded, images: usize, outputs: Range<usize>, sums: *mut f32) = sums_body
}

#[inline(always)]
unsafe fn sums_body<L: Lanes>(
    geometry: &Geometry,
    x: &Padded,
    g: &Padded,
    images: usize,
    outputs: Range<usize>,
    sums: *mut f32,
) {
    let Geometry { inputs, kernel, stride, padding, to, .. } = *geometry;
    let mut sums = sums;
    for output in outputs {
        for block in 0..blocks(inputs) {
            // SAFETY: blocks, rows of the window and groups of channels that there are.
            unsafe {
                let from_g = g.numbers.as_ptr().add(output * g.plane() + g.origin());
                let from_x = x.numbers.as_ptr().add(block * x.plane() + x.origin());
                let count = (inputs - block * LANES).min(LANES);
                for u in 0..kernel {
                    let row = from_x.offset((u as isize - padding as isize) * x.pitch() as isize);
                    let mut v = 0;
                    while v < kernel {
                        let some = if kernel - v >= 3 { 3 } else { 1 };
                        let mut channel = 0;
                        while channel < count {
                            let walk = Walk {
                                x: row.offset((v as isize - padding as isize) * LANES as isize).add(channel),
                                g: from_g,
                                x_row: stride * x.pitch(),
                                g_row: g.pitch(),
                                x_image: x.image(),
                                g_image: g.image(),
                                images,
                                rows: to[0],
                                columns: to[1],
                                step: stride,
                                sums: sums.add(((u * kernel + v) * LANES + channel) * LANES),
                            };
                            channel += walk.some_channels::<L>(count - channel, some);
                        }
                        v += some;
                    }
                }
                sums = sums.add(kernel * kernel * LANES * LANES);
            }
        }
    }
}

/// Over all pixels of some images, for neighbouring channels and elements of the window.
struct Walk {
    x: *const f32,
    g: *const f32,
    x_row: usize,
    g_row: usize,
    x_image: usize,
    g_image: usize,
    images: usize,
    rows: usize,
    columns: usize,
    step: usize,
    sums: *mut f32,
}

impl Walk {
    /// Takes some of the `left` channels, for one or three elements; gives how many.
    #[inline(always)]
    unsafe fn some_channels<L: Lanes>(&self, left: usize, elements: usize) -> usize {
        // SAFETY: as demanded of the caller.
        unsafe {
            match (elements, self.step) {
                (3, 1) => self.channels::<L, 3, LANES>(left),
                (3, 2) => self.channels::<L, 3, { 2 * LANES }>(left),
                (3, _) => self.channels::<L, 3, 0>(left),
                (_, 1) => self.channels::<L, 1, LANES>(left),
                (_, 2) => self.channels::<L, 1, { 2 * LANES }>(left),
                _ => self.channels::<L, 1, 0>(left),
            }
        }
    }

    #[inline(always)]
    unsafe fn channels<L: Lanes, const T: usize, const X: usize>(&self, left: usize) -> usize {
        // SAFETY: at most as many channels as are left.
        unsafe {
            if left >= 8 && 8 * T <= L::SUMS {
                self.sum::<L, 8, T, X>()
            } else if left >= 3 {
                self.sum::<L, 3, T, X>()
            } else {
                self.sum::<L, 1, T, X>()
            }
        }
    }

    /// `M` channels by `T` elements in registers over all pixels; `X` numbers between pixels of `x`, or as `step` says. Gives `M`.
    #[inline(always)]
    unsafe fn sum<L: Lanes, const M: usize, const T: usize, const X: usize>(&self) -> usize {
        let apart = if X == 0 { self.step * LANES } else { X };
        // SAFETY: pixels inside the images, elements inside the border.
        unsafe {
            let mut sums = [[L::splat(0.0); T]; M];
            for image in 0..self.images {
                for row in 0..self.rows {
                    let x = self.x.add(image * self.x_image + row * self.x_row);
                    let g = self.g.add(image * self.g_image + row * self.g_row);
                    for column in 0..self.columns {
                        let (x, g) = (x.add(column * apart), L::load(g.add(column * LANES)));
                        for m in 0..M {
                            for t in 0..T {
                                sums[m][t] = sums[m][t].plus_product(L::splat(*x.add(t * LANES + m)), g);
                            }
                        }
                    }
                }
            }
            for m in 0..M {
                for t in 0..T {
                    let to = self.sums.add((t * LANES + m) * LANES);
                    L::load(to).plus(sums[m][t]).store(to);
                }
            }
            M
        }
    }
}
