//! The gradient of a convolution's weights: `∂W[o][c][u][v] = Σ_p g[o][p] · x[c][s·p + (u,v) - padding]`.

use std::{array::from_fn, ops::Range};

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
            // For windows with stride 1 cotangents are read wherever a pixel of `x` is.
            let beyond = geometry.from[axis] + geometry.padding > geometry.to[axis] + g.border
                || geometry.kernel > 1 + geometry.padding + g.border;
            assert!(geometry.stride > 1 || !beyond, "a border of the cotangent too narrow");
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
    let Geometry { inputs, kernel, stride, .. } = *geometry;
    let mut sums = sums;
    for output in outputs {
        for block in 0..blocks(inputs) {
            // SAFETY: blocks, rows of the window and groups of channels that there are.
            unsafe {
                let from_g = g.numbers.as_ptr().add(output * g.plane() + g.origin());
                let from_x = x.numbers.as_ptr().add(block * x.plane() + x.origin());
                let count = (inputs - block * LANES).min(LANES);
                for u in 0..kernel {
                    let mut v = 0;
                    while v < kernel {
                        let some = elements_at_once(L::SUMS, kernel - v, count);
                        let slide = stride == 1 && some == 3;
                        let walk = if slide { Walk::slide } else { Walk::window };
                        let walk = Walk { images, ..walk(geometry, [x, g], [from_x, from_g], [u, v]) };
                        let mut channel = 0;
                        while channel < count {
                            let sums = sums.add(((u * kernel + v) * LANES + channel) * LANES);
                            let walk = Walk { x: walk.x.add(channel), sums, ..walk };
                            channel += if slide {
                                walk.slides::<L>(count - channel)
                            } else {
                                walk.elements::<L>(count - channel, some)
                            };
                        }
                        v += some;
                    }
                }
                sums = sums.add(kernel * kernel * LANES * LANES);
            }
        }
    }
}

/// How many of the `left` elements in a row of the window are taken at once, for `count` channels: 1, 3 or 7.
fn elements_at_once(registers: usize, left: usize, count: usize) -> usize {
    match left {
        7.. if count < 4 && registers >= 7 * count => 7,
        3.. if registers >= 24 => 3,
        _ => 1,
    }
}

/// Over all pixels of some images, for neighbouring channels and elements of the window.
#[derive(Clone, Copy)]
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
    /// Over the pixels of the cotangent, for the elements of the window from `[u, v]` on.
    ///
    /// # Safety
    /// `x` and `g` are of the geometry's sizes, with the border that it reads; the pointers are to their first pixels.
    unsafe fn window(geometry: &Geometry, [x, g]: [&Padded; 2], from: [*const f32; 2], [u, v]: [usize; 2]) -> Self {
        let Geometry { stride, padding, to, .. } = *geometry;
        let [row, column] = [u, v].map(|element| element as isize - padding as isize);
        Self {
            // SAFETY: elements of the window lie inside the border.
            x: unsafe { from[0].offset(row * x.pitch() as isize + column * LANES as isize) },
            g: from[1],
            x_row: stride * x.pitch(),
            g_row: g.pitch(),
            x_image: x.image(),
            g_image: g.image(),
            images: 0,
            rows: to[0],
            columns: to[1],
            step: stride,
            sums: std::ptr::null_mut(),
        }
    }

    /// Over the pixels of `x`, for windows with stride 1: those in rows that element `[u, v]` takes, and the cotangents of the outputs whose
    /// element `[u, v]` they are.
    ///
    /// # Safety
    /// As of [`window`](Self::window).
    unsafe fn slide(geometry: &Geometry, [x, g]: [&Padded; 2], from: [*const f32; 2], [u, v]: [usize; 2]) -> Self {
        let Geometry { padding, from: size, to, .. } = *geometry;
        let first = u.saturating_sub(padding);
        let last = size[0].min((to[0] + u).saturating_sub(padding));
        let row = (first + padding - u) as isize;
        let column = padding as isize - v as isize;
        Self {
            // SAFETY: rows that there are, columns inside the border.
            x: unsafe { from[0].add(first * x.pitch()) },
            // SAFETY: as above.
            g: unsafe { from[1].offset(row * g.pitch() as isize + column * LANES as isize) },
            x_row: x.pitch(),
            g_row: g.pitch(),
            x_image: x.image(),
            g_image: g.image(),
            images: 0,
            rows: last.saturating_sub(first),
            columns: size[1],
            step: 1,
            sums: std::ptr::null_mut(),
        }
    }

    /// Takes some of the `left` channels for three elements, sliding over `x`; gives how many.
    #[inline(always)]
    unsafe fn slides<L: Lanes>(&self, left: usize) -> usize {
        // SAFETY: at most as many channels as are left.
        unsafe {
            match left {
                8.. => self.slide_sum::<L, 8>(),
                3.. => self.slide_sum::<L, 3>(),
                _ => self.slide_sum::<L, 1>(),
            }
        }
    }

    /// Takes some of the `left` channels for this many elements; gives how many.
    #[inline(always)]
    unsafe fn elements<L: Lanes>(&self, left: usize, elements: usize) -> usize {
        // SAFETY: as demanded of the caller.
        unsafe {
            match self.step {
                1 => self.channels::<L, LANES>(left, elements),
                2 => self.channels::<L, { 2 * LANES }>(left, elements),
                _ => self.channels::<L, 0>(left, elements),
            }
        }
    }

    #[inline(always)]
    unsafe fn channels<L: Lanes, const X: usize>(&self, left: usize, elements: usize) -> usize {
        // SAFETY: at most as many channels as are left.
        unsafe {
            match (elements, left) {
                (7, 3..) if L::SUMS >= 21 => self.sum::<L, 3, 7, X>(),
                (7, _) => self.sum::<L, 1, 7, X>(),
                (3, 8..) => self.sum::<L, 8, 3, X>(),
                (3, 3..) => self.sum::<L, 3, 3, X>(),
                (3, _) => self.sum::<L, 1, 3, X>(),
                (_, 16..) if L::SUMS >= 16 => self.sum::<L, 16, 1, X>(),
                (_, 6..) => self.sum::<L, 6, 1, X>(),
                (_, 3..) => self.sum::<L, 3, 1, X>(),
                _ => self.sum::<L, 1, 1, X>(),
            }
        }
    }

    /// `M` channels by three elements in registers over all pixels of `x`: each is read once, beside the cotangents of the three outputs that
    /// it is part of. Outside of the outputs these are zeros. Gives `M`.
    #[inline(always)]
    unsafe fn slide_sum<L: Lanes, const M: usize>(&self) -> usize {
        // SAFETY: pixels inside the images, cotangents inside the border.
        unsafe {
            let mut sums = [[L::splat(0.0); 3]; M];
            for image in 0..self.images {
                for row in 0..self.rows {
                    let x = self.x.add(image * self.x_image + row * self.x_row);
                    let g = self.g.add(image * self.g_image + row * self.g_row);
                    for column in 0..self.columns {
                        let (x, g) = (x.add(column * LANES), g.add(column * LANES));
                        let g: [L; 3] = from_fn(|t| L::load(g.sub(t * LANES)));
                        for m in 0..M {
                            let x = L::splat(*x.add(m));
                            for t in 0..3 {
                                sums[m][t] = sums[m][t].plus_product(x, g[t]);
                            }
                        }
                    }
                }
            }
            self.add(sums)
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
            self.add(sums)
        }
    }

    /// Adds a walk's sums to those before. Gives `M`.
    #[inline(always)]
    unsafe fn add<L: Lanes, const M: usize, const T: usize>(&self, sums: [[L; T]; M]) -> usize {
        for m in 0..M {
            for t in 0..T {
                // SAFETY: the sums of as many elements and channels.
                unsafe {
                    let to = self.sums.add((t * LANES + m) * LANES);
                    L::load(to).plus(sums[m][t]).store(to);
                }
            }
        }
        M
    }
}
