//! Two-dimensional convolution: `y[b,o,p] = bias[o] + Σ_{c,u,v} W[o,c,u,v] x[b,c,s·p + (u,v) - padding]`.
//!
//! Shapes: `x (B, I, H, W)`, `W (O, I, k, k)`, `bias (O)`, `y (B, O, H', W')` with `H' = (H + 2·padding - k)/stride + 1`. With `X_b` the matrix
//! of the pixels under the window, one column a place: `y_b = W X_b`, `∂X_b = Wᵀ c_b` added back to the pixels, `∂W = Σ_b c_b X_bᵀ`.

use candle_core::Tensor;
use candle_nn::{
    Init, VarBuilder,
    init::{FanInOut, NonLinearity, NormalOrUniform},
};
use interlock::{Activation, Differentiable, Pass, Pulled, Result, Saved, Wants};
use rayon::prelude::*;

use super::{
    matrix::{Matrix, Target, Write, multiply},
    slices::{add_up, channel_sums, cotangent, dense, label, read, tensor, with_scratch, wrong_shape},
    window::Window,
};

/// The shape of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Channels of the input, `I`.
    pub inputs: usize,
    /// Channels of the output, `O`.
    pub outputs: usize,
    /// Side of the square window, `k`.
    pub kernel: usize,
    /// Step of the window, in pixels.
    pub stride: usize,
    /// Pixels of zero on each side of the image.
    pub padding: usize,
    /// Whether a bias is added.
    pub bias: bool,
}

/// Two-dimensional convolution with a square window.
#[derive(Clone, Debug)]
pub struct Conv2d {
    name: String,
    config: Conv2dConfig,
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Places of the window that a matrix product should have at least: small images are taken several at a time.
const PLACES: usize = 256;

impl Conv2d {
    /// Makes `weight (O, I, k, k)` from a normal law of variance `2/(O k²)` (Kaiming, fan-out) and, with `bias`, `bias (O)` uniform in
    /// `±1/√(I k²)`.
    pub fn new(config: Conv2dConfig, vb: VarBuilder) -> Result<Self> {
        let Conv2dConfig { inputs, outputs, kernel, bias, .. } = config;
        let init = Init::Kaiming {
            dist: NormalOrUniform::Normal,
            fan: FanInOut::FanOut,
            non_linearity: NonLinearity::ExplicitGain(std::f64::consts::SQRT_2),
        };
        let bound = 1.0 / ((inputs * kernel * kernel).max(1) as f64).sqrt();
        let bias_init = Init::Uniform { lo: -bound, up: bound };
        Ok(Self {
            name: label("conv2d", &vb),
            config,
            weight: vb.get_with_hints((outputs, inputs, kernel, kernel), "weight", init)?,
            bias: if bias { Some(vb.get_with_hints(outputs, "bias", bias_init)?) } else { None },
        })
    }

    fn window(&self, dims: &[usize]) -> Result<Window> {
        let Conv2dConfig { inputs, kernel, stride, padding, .. } = self.config;
        match dims {
            [_, channels, _, _] if *channels == inputs => Window::over(dims, [kernel, stride, padding], &self.name),
            _ => Err(wrong_shape(&self.name, dims, format_args!("(B, {inputs}, H, W)"))),
        }
    }

    fn output_dims(&self, batch: usize, window: &Window) -> [usize; 4] {
        [batch, self.config.outputs, window.places[0], window.places[1]]
    }

    fn apply(&self, window: &Window, batch: usize, x: &[f32]) -> Result<Vec<f32>> {
        let (outputs, places, depth) = (self.config.outputs, window.places(), window.depth());
        let weight = read(&self.weight)?;
        let bias = self.bias.as_ref().map(read).transpose()?;
        let (weight, bias) = (Matrix::new(&weight, outputs, depth), bias.as_deref());
        let images = images_at_a_time(window, batch);
        let image = window.channels * window.pixels();
        let mut y = vec![0.0; batch * outputs * places];
        y.par_chunks_mut(images * outputs * places).zip(x.par_chunks(images * image)).for_each(|(y, x)| {
            let write = match bias {
                Some(bias) => {
                    for (i, channel) in y.chunks_exact_mut(places).enumerate() {
                        channel.fill(bias[i % outputs]);
                    }
                    Write::Add
                }
                None => Write::Replace,
            };
            with_columns(window, x, |columns, across| {
                if across == places {
                    return multiply(1.0, weight, columns, Target::new(y, places), write);
                }
                with_scratch(outputs * across, |together| {
                    multiply(1.0, weight, columns, Target::new(together, across), Write::Replace);
                    apart(together, y, outputs, places);
                });
            });
        });
        Ok(y)
    }

    fn input_gradient(&self, window: &Window, batch: usize, c: &[f32]) -> Result<Vec<f32>> {
        let (outputs, places, depth) = (self.config.outputs, window.places(), window.depth());
        let weight = read(&self.weight)?;
        let weight = Matrix::new(&weight, outputs, depth).t();
        let images = images_at_a_time(window, batch);
        let image = window.channels * window.pixels();
        let mut dx = vec![0.0; batch * image];
        dx.par_chunks_mut(images * image).zip(c.par_chunks(images * outputs * places)).for_each(|(dx, c)| {
            with_images_together(c, outputs, places, |c, across| {
                if window.is_pointwise() && across == places {
                    return multiply(1.0, weight, c, Target::new(dx, places), Write::Replace);
                }
                let stride = row_stride(across);
                with_scratch(depth * stride, |columns| {
                    multiply(1.0, weight, c, Target::new(columns, stride), Write::Replace);
                    for (i, dx) in dx.chunks_exact_mut(image).enumerate() {
                        window.add_back(columns, stride, i * places, dx);
                    }
                });
            });
        });
        Ok(dx)
    }

    fn weight_gradient(&self, window: &Window, batch: usize, x: &[f32], c: &[f32]) -> Vec<f32> {
        let (outputs, places, depth) = (self.config.outputs, window.places(), window.depth());
        let images = images_at_a_time(window, batch);
        let (x_images, c_images) = (images * window.channels * window.pixels(), images * outputs * places);
        // Each part adds its images up in order; fewer parts where the sums themselves are large.
        let parts = if outputs * depth > 1 << 18 { 4 } else { 8 };
        let groups = batch.div_ceil(images).div_ceil(parts);
        let sums = x
            .par_chunks(groups * x_images)
            .zip(c.par_chunks(groups * c_images))
            .map(|(x, c)| {
                let mut dw = vec![0.0; outputs * depth];
                let mut write = Write::Replace;
                for (x, c) in x.chunks(x_images).zip(c.chunks(c_images)) {
                    with_columns(window, x, |columns, _| {
                        with_images_together(c, outputs, places, |c, _| {
                            multiply(1.0, c, columns.t(), Target::new(&mut dw, depth), write);
                        });
                    });
                    write = Write::Add;
                }
                dw
            })
            .collect();
        add_up(sums)
    }
}

/// How many images one matrix product takes.
fn images_at_a_time(window: &Window, batch: usize) -> usize {
    (PLACES / window.places()).clamp(1, batch.div_ceil(4))
}

/// How far apart rows of `across` columns begin: never a multiple of 64 elements, or down a column of the matrix all elements would
/// compete for the same few lines of the cache.
fn row_stride(across: usize) -> usize {
    if across.is_multiple_of(64) { across + 16 } else { across }
}

/// Calls `work` with the columns of all images of `x` beside each other, and their number.
fn with_columns(window: &Window, x: &[f32], work: impl FnOnce(Matrix<'_>, usize)) {
    let image = window.channels * window.pixels();
    let (places, depth) = (window.places(), window.depth());
    let across = x.len() / image * places;
    if window.is_pointwise() && across == places {
        return work(Matrix::new(x, depth, places), places);
    }
    let stride = row_stride(across);
    with_scratch(depth * stride, |columns| {
        for (i, x) in x.chunks_exact(image).enumerate() {
            window.fill(x, columns, stride, i * places);
        }
        work(Matrix::strided(columns, depth, across, stride), across);
    });
}

/// Calls `work` with images `(n, channels, places)` as one matrix `(channels, n·places)`, and its width.
fn with_images_together(c: &[f32], channels: usize, places: usize, work: impl FnOnce(Matrix<'_>, usize)) {
    let across = c.len() / channels;
    if across == places {
        return work(Matrix::new(c, channels, places), places);
    }
    with_scratch(c.len(), |together| {
        for (i, image) in c.chunks_exact(channels * places).enumerate() {
            for (channel, values) in image.chunks_exact(places).enumerate() {
                together[channel * across + i * places..][..places].copy_from_slice(values);
            }
        }
        work(Matrix::new(together, channels, across), across);
    });
}

/// Adds a matrix `(channels, n·places)` to images `(n, channels, places)`.
fn apart(together: &[f32], images: &mut [f32], channels: usize, places: usize) {
    let across = together.len() / channels;
    for (i, image) in images.chunks_exact_mut(channels * places).enumerate() {
        for (channel, values) in image.chunks_exact_mut(places).enumerate() {
            for (to, &from) in values.iter_mut().zip(&together[channel * across + i * places..]) {
                *to += from;
            }
        }
    }
}

impl Differentiable for Conv2d {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let window = self.window(x.dims())?;
        let x = dense(x, &self.name)?;
        let batch = x.dims()[0];
        let y = self.apply(&window, batch, &read(&x)?)?;
        let saved = if pass.is_train() { Saved::new(x) } else { Saved::nothing() };
        Ok((tensor(y, &self.output_dims(batch, &window))?.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let x: &Tensor = saved.get()?;
        let window = self.window(x.dims())?;
        let batch = x.dims()[0];
        let c = cotangent(c, &self.output_dims(batch, &window), &self.name)?;
        let c = read(&c)?;
        let mut pulled = Pulled::default();
        if wants.input {
            pulled.input = Some(tensor(self.input_gradient(&window, batch, &c)?, x.shape())?.into());
        }
        if wants.parameters {
            let dw = self.weight_gradient(&window, batch, &read(x)?, &c);
            pulled.parameters.push((self.weight.id(), tensor(dw, self.weight.shape())?));
            if let Some(bias) = &self.bias {
                let sums = channel_sums(&c, self.config.outputs, window.places());
                pulled.parameters.push((bias.id(), tensor(sums, bias.shape())?));
            }
        }
        Ok(pulled)
    }
}
