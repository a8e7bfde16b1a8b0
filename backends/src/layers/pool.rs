//! Pooling: the greatest value, or the mean, under a window that moves over each channel.
//!
//! Shapes: `x (B, C, H, W)`, `y (B, C, H', W')` with `H' = (H + 2·padding - kernel)/stride + 1`; global average: `y (B, C)`. The gradient of
//! a maximum goes to the first greatest pixel in row-major order; padding is never chosen. Input images may have any memory layout; output images
//! are channels-last.

use std::ops::Range;

use candle_core::Shape;
use interlock::{Activation, Differentiable, Error, Gradients, Pass, Result, Saved, SavedMemory, Wants};
use rayon::prelude::*;

use super::{
    candle_operations,
    images::{channels_first, channels_last, output_gradient_last},
    slices::{output_gradient, read, tensor, wrong_shape},
    window::Window,
};

/// Max pooling: the greatest value under each window.
#[derive(Clone, Copy, Debug)]
pub struct MaxPool2d {
    pub(super) window: [usize; 3],
}

struct SavedMaxPool {
    shape: Shape,
    window: Window,
    /// The pixel that each output was taken from, as an index in its image, `[B][H'][W'][C]`.
    chosen: Vec<u32>,
}

impl MaxPool2d {
    /// Makes a pool with windows of `kernel` by `kernel` pixels, `stride` apart, over images with `padding` (at most half of `kernel`) around them.
    pub fn new(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { window: [kernel, stride, padding] }
    }
}

/// Returns the range of pixels under the window along one side.
fn covered(window: &Window, place: usize, side: usize) -> Range<usize> {
    let start = place * window.stride;
    start.saturating_sub(window.padding)..(start + window.kernel).saturating_sub(window.padding).min(side)
}

/// Calls `visit(place, pixel)` for every place of the window and every pixel under it, in row-major order.
fn pixels(window: &Window, mut visit: impl FnMut(usize, usize)) {
    for y in 0..window.places[0] {
        for x in 0..window.places[1] {
            let columns = covered(window, x, window.image[1]);
            for row in covered(window, y, window.image[0]) {
                for column in columns.clone() {
                    visit(y * window.places[1] + x, row * window.image[1] + column);
                }
            }
        }
    }
}

/// Replaces numbers of `y` by greater ones of `x`, and the pixels that they come from in `chosen`. NaN counts as the greatest.
fn take_greater(y: &mut [f32], chosen: &mut [u32], x: &[f32], pixel: u32) {
    // Sixteen channels at once, without a branch.
    let (ys, y_rest) = y.as_chunks_mut::<16>();
    let (all_chosen, chosen_rest) = chosen.as_chunks_mut::<16>();
    let (xs, x_rest) = x.as_chunks::<16>();
    let wins = |x: f32, y: f32| (x > y) | (x.is_nan() & !y.is_nan());
    for ((y, chosen), x) in ys.iter_mut().zip(all_chosen).zip(xs) {
        let mask: [u32; 16] = std::array::from_fn(|i| if wins(x[i], y[i]) { u32::MAX } else { 0 });
        *y = std::array::from_fn(|i| f32::from_bits(x[i].to_bits() & mask[i] | y[i].to_bits() & !mask[i]));
        *chosen = std::array::from_fn(|i| pixel & mask[i] | chosen[i] & !mask[i]);
    }
    for ((y, chosen), &x) in y_rest.iter_mut().zip(chosen_rest).zip(x_rest) {
        if wins(x, *y) {
            (*y, *chosen) = (x, pixel);
        }
    }
}

impl Differentiable for MaxPool2d {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let [kernel, _, padding] = self.window;
        if 2 * padding > kernel {
            return Err(Error::invalid(
                "max pool",
                format!("padding {padding} for a window of {kernel}"),
                "use at most half of the window",
            ));
        }
        if candle_operations::are_for(x) {
            return candle_operations::forward(self, x, pass);
        }
        let window = Window::over(x.dims(), self.window, "max pool")?;
        let shape = x.shape().clone();
        let x = channels_last(x, "max pool")?;
        let (batch, channels) = (x.dims()[0], window.channels);
        let mut y = vec![0.0; batch * channels * window.places()];
        let mut chosen = vec![0; y.len()];
        let (from, to) = (channels * window.pixels(), channels * window.places());
        let values = read::<f32>(&x)?;
        (y.par_chunks_mut(to).zip(chosen.par_chunks_mut(to))).zip(values.par_chunks(from)).for_each(
            |((y, chosen), x)| {
                let mut current = usize::MAX;
                pixels(&window, |place, pixel| {
                    let range = place * channels..(place + 1) * channels;
                    let (y, chosen) = (&mut y[range.clone()], &mut chosen[range]);
                    let x = &x[pixel * channels..][..channels];
                    if current != place {
                        // The first pixel is always taken.
                        current = place;
                        y.copy_from_slice(x);
                        chosen.fill(pixel as u32);
                        return;
                    }
                    take_greater(y, chosen, x, pixel as u32);
                });
            },
        );
        let y = channels_first(&tensor(y, (batch, window.places[0], window.places[1], channels))?)?;
        let saved = match pass.is_train() {
            true => {
                let memory = SavedMemory::of_slice(&chosen);
                Saved::new(SavedMaxPool { shape, window, chosen }).with_memory([memory])
            }
            false => Saved::nothing(),
        };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let SavedMaxPool { shape, window, chosen } = saved.get()?;
        if !wants.input {
            return Ok(Gradients::default());
        }
        let (batch, channels) = (shape.dims()[0], window.channels);
        let c = output_gradient_last(c, &[batch, channels, window.places[0], window.places[1]], "max pool")?;
        let mut dx = vec![0.0; shape.elem_count()];
        let (from, to) = (channels * window.pixels(), channels * window.places());
        let c = read::<f32>(&c)?;
        dx.par_chunks_mut(from).zip(c.par_chunks(to).zip(chosen.par_chunks(to))).for_each(|(dx, (c, chosen))| {
            for (c, chosen) in c.chunks_exact(channels).zip(chosen.chunks_exact(channels)) {
                for (channel, (&c, &pixel)) in c.iter().zip(chosen).enumerate() {
                    dx[pixel as usize * channels + channel] += c;
                }
            }
        });
        let dx = tensor(dx, (batch, window.image[0], window.image[1], channels))?;
        Ok(Gradients { input: Some(channels_first(&dx)?.into()), ..Gradients::default() })
    }

    fn has_parameters(&self) -> bool {
        false
    }
}

/// Average pooling: the mean under each window, without padding.
#[derive(Clone, Copy, Debug)]
pub struct AvgPool2d {
    pub(super) window: [usize; 3],
}

impl AvgPool2d {
    /// Makes a pool with windows of `kernel` by `kernel` pixels, `stride` apart.
    pub fn new(kernel: usize, stride: usize) -> Self {
        Self { window: [kernel, stride, 0] }
    }
}

/// Computes `to += share · from`.
fn add(to: &mut [f32], from: &[f32], share: f32) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to += share * from;
    }
}

impl Differentiable for AvgPool2d {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        if candle_operations::are_for(x) {
            return candle_operations::forward(self, x, pass);
        }
        let window = Window::over(x.dims(), self.window, "average pool")?;
        let shape = x.shape().clone();
        let x = channels_last(x, "average pool")?;
        let (batch, channels) = (x.dims()[0], window.channels);
        let share = 1.0 / (window.kernel * window.kernel) as f32;
        let mut y = vec![0.0; batch * channels * window.places()];
        let values = read::<f32>(&x)?;
        let images = values.par_chunks(channels * window.pixels());
        y.par_chunks_mut(channels * window.places()).zip(images).for_each(|(y, x)| {
            pixels(&window, |place, pixel| {
                add(&mut y[place * channels..][..channels], &x[pixel * channels..][..channels], share);
            });
        });
        let y = channels_first(&tensor(y, (batch, window.places[0], window.places[1], channels))?)?;
        let saved = if pass.is_train() { Saved::new((shape, window)) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let (shape, window): &(Shape, Window) = saved.get()?;
        if !wants.input {
            return Ok(Gradients::default());
        }
        let (batch, channels) = (shape.dims()[0], window.channels);
        let c = output_gradient_last(c, &[batch, channels, window.places[0], window.places[1]], "average pool")?;
        let share = 1.0 / (window.kernel * window.kernel) as f32;
        let mut dx = vec![0.0; shape.elem_count()];
        let c = read::<f32>(&c)?;
        let images = c.par_chunks(channels * window.places());
        dx.par_chunks_mut(channels * window.pixels()).zip(images).for_each(|(dx, c)| {
            pixels(window, |place, pixel| {
                add(&mut dx[pixel * channels..][..channels], &c[place * channels..][..channels], share);
            });
        });
        let dx = tensor(dx, (batch, window.image[0], window.image[1], channels))?;
        Ok(Gradients { input: Some(channels_first(&dx)?.into()), ..Gradients::default() })
    }

    fn has_parameters(&self) -> bool {
        false
    }
}

/// Global average pooling: the mean of each channel, `(B, C, H, W) → (B, C)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct GlobalAvgPool;

/// The number of pixels that are summed in `f32` before their sum is added in `f64`.
const BLOCK: usize = 64;

impl Differentiable for GlobalAvgPool {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let &[batch, channels, height, width] = x.dims() else {
            return Err(wrong_shape("global average pool", x.dims(), "(B, C, H, W)"));
        };
        if candle_operations::are_for(x) {
            return candle_operations::forward(self, x, pass);
        }
        let saved = if pass.is_train() { Saved::new(x.shape().clone()) } else { Saved::nothing() };
        let x = channels_last(x, "global average pool")?;
        let pixels = height * width;
        let mut means = vec![0.0; batch * channels];
        means.par_chunks_mut(channels).zip(read::<f32>(&x)?.par_chunks(pixels * channels)).for_each(|(means, x)| {
            let mut totals = vec![0.0_f64; channels];
            for block in x.chunks(BLOCK * channels) {
                let mut sums = vec![0.0_f32; channels];
                for pixel in block.chunks_exact(channels) {
                    add(&mut sums, pixel, 1.0);
                }
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total += f64::from(sum);
                }
            }
            for (mean, total) in means.iter_mut().zip(totals) {
                *mean = (total / pixels as f64) as f32;
            }
        });
        Ok((tensor(means, (batch, channels))?.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let shape: &Shape = saved.get()?;
        if !wants.input {
            return Ok(Gradients::default());
        }
        let (batch, channels, height, width) = shape.dims4()?;
        let c = output_gradient(c, &[batch, channels], "global average pool")?;
        let pixels = height * width;
        let mut dx = vec![0.0; shape.elem_count()];
        let c = read::<f32>(&c)?;
        dx.par_chunks_mut(pixels * channels).zip(c.par_chunks(channels)).for_each(|(dx, c)| {
            for pixel in dx.chunks_exact_mut(channels) {
                add(pixel, c, 1.0 / pixels as f32);
            }
        });
        let dx = tensor(dx, (batch, height, width, channels))?;
        Ok(Gradients { input: Some(channels_first(&dx)?.into()), ..Gradients::default() })
    }

    fn has_parameters(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greater_value_or_nan_wins() {
        const COUNT: usize = 35;
        // All pairs of these occur, both in whole vectors of sixteen and after them.
        let values = [0.0, -0.0, 1.5, -2.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        for shift in 0..values.len() {
            let x: Vec<f32> = (0..COUNT).map(|i| values[i % values.len()]).collect();
            let before: Vec<f32> = (0..COUNT).map(|i| values[(i + shift) % values.len()]).collect();
            let (mut y, mut chosen) = (before.clone(), vec![3; COUNT]);
            take_greater(&mut y, &mut chosen, &x, 8);
            for i in 0..COUNT {
                let wins = if before[i].is_nan() { false } else { x[i].is_nan() || x[i] > before[i] };
                let (value, from) = if wins { (x[i], 8) } else { (before[i], 3) };
                assert_eq!((y[i].to_bits(), chosen[i]), (value.to_bits(), from), "{} and {}", before[i], x[i]);
            }
        }
    }
}
