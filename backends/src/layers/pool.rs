//! Pooling: the greatest value, or the mean, under a window that moves over each channel.
//!
//! Shapes: `x (B, C, H, W)`, `y (B, C, H', W')` with `H' = (H + 2·padding - kernel)/stride + 1`; global average: `y (B, C)`. The gradient of
//! a maximum goes to the first greatest pixel in reading order; padding is never chosen.

use candle_core::Shape;
use interlock::{Activation, Differentiable, Error, Pass, Pulled, Result, Saved, Wants};
use rayon::prelude::*;

use super::{
    math,
    slices::{cotangent, dense, read, tensor, wrong_shape},
    window::Window,
};

/// The greatest value under each window.
#[derive(Clone, Copy, Debug)]
pub struct MaxPool2d {
    window: [usize; 3],
}

struct SavedMaxPool {
    shape: Shape,
    window: Window,
    /// The pixel of its channel that each output came from.
    chosen: Vec<u32>,
}

impl MaxPool2d {
    /// Windows of `kernel` by `kernel` pixels, `stride` apart, over images with `padding` (at most half of `kernel`) around them.
    pub fn new(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { window: [kernel, stride, padding] }
    }
}

/// The range of pixels under the window along one side.
fn covered(window: &Window, place: usize, side: usize) -> std::ops::Range<usize> {
    let start = place * window.stride;
    start.saturating_sub(window.padding)..(start + window.kernel).saturating_sub(window.padding).min(side)
}

/// Calls `visit(place, rows, columns)` for every place of the window.
fn places(window: &Window, mut visit: impl FnMut(usize, std::ops::Range<usize>, std::ops::Range<usize>)) {
    for y in 0..window.places[0] {
        for x in 0..window.places[1] {
            let (rows, columns) = (covered(window, y, window.image[0]), covered(window, x, window.image[1]));
            visit(y * window.places[1] + x, rows, columns);
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
        let window = Window::over(x.dims(), self.window, "max pool")?;
        let x = dense(x, "max pool")?;
        let (batch, channels) = (x.dims()[0], window.channels);
        let mut y = vec![0.0; batch * channels * window.places()];
        let mut chosen = vec![0_u32; y.len()];
        let values = read::<f32>(&x)?;
        (y.par_chunks_mut(window.places()).zip(chosen.par_chunks_mut(window.places())))
            .zip(values.par_chunks(window.pixels()))
            .for_each(|((y, chosen), x)| {
                places(&window, |place, rows, columns| {
                    let mut best = rows.start * window.image[1] + columns.start;
                    for row in rows {
                        for pixel in row * window.image[1] + columns.start..row * window.image[1] + columns.end {
                            // A value that is not a number wins and stays.
                            if x[pixel] > x[best] || (x[pixel].is_nan() && !x[best].is_nan()) {
                                best = pixel;
                            }
                        }
                    }
                    y[place] = x[best];
                    chosen[place] = best as u32;
                });
            });
        let y = tensor(y, (batch, channels, window.places[0], window.places[1]))?;
        let saved = if pass.is_train() {
            Saved::new(SavedMaxPool { shape: x.shape().clone(), window, chosen })
        } else {
            Saved::nothing()
        };
        Ok((y.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let SavedMaxPool { shape, window, chosen } = saved.get()?;
        if !wants.input {
            return Ok(Pulled::default());
        }
        let dims = [shape.dims()[0], window.channels, window.places[0], window.places[1]];
        let c = cotangent(c, &dims, "max pool")?;
        let mut dx = vec![0.0; shape.elem_count()];
        let c = read::<f32>(&c)?;
        (dx.par_chunks_mut(window.pixels()))
            .zip(c.par_chunks(window.places()).zip(chosen.par_chunks(window.places())))
            .for_each(|(dx, (c, chosen))| {
                for (&c, &pixel) in c.iter().zip(chosen) {
                    dx[pixel as usize] += c;
                }
            });
        Ok(Pulled { input: Some(tensor(dx, shape)?.into()), ..Pulled::default() })
    }
}

/// The mean under each window; no padding.
#[derive(Clone, Copy, Debug)]
pub struct AvgPool2d {
    window: [usize; 3],
}

impl AvgPool2d {
    /// Windows of `kernel` by `kernel` pixels, `stride` apart.
    pub fn new(kernel: usize, stride: usize) -> Self {
        Self { window: [kernel, stride, 0] }
    }
}

impl Differentiable for AvgPool2d {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let window = Window::over(x.dims(), self.window, "average pool")?;
        let x = dense(x, "average pool")?;
        let (batch, channels) = (x.dims()[0], window.channels);
        let share = 1.0 / (window.kernel * window.kernel) as f32;
        let mut y = vec![0.0; batch * channels * window.places()];
        let values = read::<f32>(&x)?;
        y.par_chunks_mut(window.places()).zip(values.par_chunks(window.pixels())).for_each(|(y, x)| {
            places(&window, |place, rows, columns| {
                let mut sum = 0.0;
                for row in rows {
                    sum += x[row * window.image[1]..][columns.clone()].iter().sum::<f32>();
                }
                y[place] = sum * share;
            });
        });
        let y = tensor(y, (batch, channels, window.places[0], window.places[1]))?;
        let saved = if pass.is_train() { Saved::new((x.shape().clone(), window)) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let (shape, window): &(Shape, Window) = saved.get()?;
        if !wants.input {
            return Ok(Pulled::default());
        }
        let dims = [shape.dims()[0], window.channels, window.places[0], window.places[1]];
        let c = cotangent(c, &dims, "average pool")?;
        let share = 1.0 / (window.kernel * window.kernel) as f32;
        let mut dx = vec![0.0; shape.elem_count()];
        let c = read::<f32>(&c)?;
        dx.par_chunks_mut(window.pixels()).zip(c.par_chunks(window.places())).for_each(|(dx, c)| {
            places(window, |place, rows, columns| {
                for row in rows {
                    for dx in &mut dx[row * window.image[1]..][columns.clone()] {
                        *dx += c[place] * share;
                    }
                }
            });
        });
        Ok(Pulled { input: Some(tensor(dx, shape)?.into()), ..Pulled::default() })
    }
}

/// The mean of each channel: `(B, C, H, W) → (B, C)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct GlobalAvgPool;

impl Differentiable for GlobalAvgPool {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let &[batch, channels, height, width] = x.dims() else {
            return Err(wrong_shape("global average pool", x.dims(), "(B, C, H, W)"));
        };
        let x = dense(x, "global average pool")?;
        let pixels = height * width;
        let means = read::<f32>(&x)?.par_chunks(pixels).map(|x| (math::sum(x) / pixels as f64) as f32).collect();
        let saved = if pass.is_train() { Saved::new(x.shape().clone()) } else { Saved::nothing() };
        Ok((tensor(means, (batch, channels))?.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let shape: &Shape = saved.get()?;
        if !wants.input {
            return Ok(Pulled::default());
        }
        let (batch, channels, height, width) = shape.dims4()?;
        let c = cotangent(c, &[batch, channels], "global average pool")?;
        let pixels = height * width;
        let mut dx = vec![0.0; shape.elem_count()];
        let c = read::<f32>(&c)?;
        dx.par_chunks_mut(pixels).zip(c.par_iter()).for_each(|(dx, &c)| dx.fill(c / pixels as f32));
        Ok(Pulled { input: Some(tensor(dx, shape)?.into()), ..Pulled::default() })
    }
}
