//! Batch normalization: `y = γ (x - μ)/√(σ² + ε) + β` for each channel.
//!
//! Shapes: `x`, `y (B, C, H, W)`; `γ`, `β`, `μ`, `σ²` have one value a channel, `ε = 1e-5`. In training `μ` and `σ²` are the mean and the (biased)
//! variance over the `n = B·H·W` values of the channel, and the running statistics move by a tenth towards `μ` and `σ² n/(n-1)`. In
//! evaluation they are the running statistics. With `x̂ = (x - μ)/√(σ² + ε)` and a cotangent `c`:
//! `∂β = Σ c`, `∂γ = Σ c x̂`, `∂x = γ/√(σ² + ε) (c - ∂β/n - x̂ ∂γ/n)`.
//!
//! Ioffe and Szegedy, *Batch Normalization*, 2015, section 3.

use candle_core::{Tensor, Var};
use candle_nn::{Init, VarBuilder};
use interlock::{Activation, Differentiable, Pass, Pulled, Result, Saved, Wants};
use rayon::prelude::*;

use super::{
    math::{sum, sum_of},
    slices::{cotangent, dense, label, read, tensor, wrong_shape},
};

const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Batch normalization of images, channel by channel.
#[derive(Clone, Debug)]
pub struct BatchNorm2d {
    name: String,
    channels: usize,
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
}

/// Mean and variance (biased) of one channel.
type Moments = (f64, f64);

struct SavedBatchNorm {
    x: Tensor,
    /// `μ` and `1/√(σ² + ε)` of each channel.
    statistics: Vec<(f32, f32)>,
}

impl BatchNorm2d {
    /// Makes `weight` of ones, `bias` of zeros, and the buffers `running_mean` of zeros and `running_var` of ones, each `(channels)`.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Self::scaled(channels, 1.0, vb)
    }

    /// As [`Self::new`], with `weight_init` in `weight`: 0 lets a residual branch begin as nothing.
    pub fn scaled(channels: usize, weight_init: f64, vb: VarBuilder) -> Result<Self> {
        let get = |name: &str, value: f64| vb.get_with_hints(channels, name, Init::Const(value));
        Ok(Self {
            name: label("batch norm", &vb),
            channels,
            weight: get("weight", weight_init)?,
            bias: get("bias", 0.0)?,
            running_mean: Var::from_tensor(&get("running_mean", 0.0)?)?,
            running_var: Var::from_tensor(&get("running_var", 1.0)?)?,
        })
    }

    /// Pixels of one channel of an image.
    fn pixels(&self, dims: &[usize]) -> Result<usize> {
        match dims {
            [_, channels, height, width] if *channels == self.channels => Ok(height * width),
            _ => Err(wrong_shape(&self.name, dims, format_args!("(B, {}, H, W)", self.channels))),
        }
    }

    /// `f` of each channel's number, a task a channel.
    fn for_channels<R: Send>(&self, f: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
        (0..self.channels).into_par_iter().map(f).collect()
    }

    /// Mean first, then the mean square distance from it: no cancellation.
    fn moments(&self, x: &[f32], pixels: usize) -> Vec<Moments> {
        let image = self.channels * pixels;
        let count = (x.len() / self.channels) as f64;
        self.for_channels(|c| {
            let planes = || x.chunks_exact(image).map(|image| &image[c * pixels..][..pixels]);
            let mean = planes().map(sum).sum::<f64>() / count;
            let centre = mean as f32;
            // What rounding the centre took away is put back.
            let distance = mean - f64::from(centre);
            let square = |plane: &[f32]| sum_of(plane, plane, |x, _| (x - centre) * (x - centre));
            (mean, (planes().map(square).sum::<f64>() / count - distance * distance).max(0.0))
        })
    }

    fn track(&self, moments: &[Moments], count: f64) -> Result<()> {
        let moved = |running: &Var, values: &mut dyn Iterator<Item = f64>| -> Result<()> {
            let old: Vec<f32> = running.to_vec1()?;
            let new =
                old.iter().zip(values).map(|(&old, new)| ((1.0 - MOMENTUM) * f64::from(old) + MOMENTUM * new) as f32);
            Ok(running.set(&tensor(new.collect(), self.channels)?)?)
        };
        moved(&self.running_mean, &mut moments.iter().map(|m| m.0))?;
        moved(&self.running_var, &mut moments.iter().map(|m| m.1 * count / (count - 1.0)))
    }

    fn running(&self) -> Result<Vec<Moments>> {
        let (mean, var) = (read::<f32>(&self.running_mean)?, read::<f32>(&self.running_var)?);
        Ok(mean.iter().zip(var.iter()).map(|(&mean, &var)| (f64::from(mean), f64::from(var))).collect())
    }

    fn apply(&self, x: &[f32], pixels: usize, statistics: &[(f32, f32)]) -> Result<Vec<f32>> {
        let (weight, bias) = (read::<f32>(&self.weight)?, read::<f32>(&self.bias)?);
        let lines: Vec<(f32, f32, f32)> = statistics
            .iter()
            .zip(weight.iter().zip(bias.iter()))
            .map(|(&(mean, inverse), (&weight, &bias))| (mean, weight * inverse, bias))
            .collect();
        let image = self.channels * pixels;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(image).zip(x.par_chunks(image)).for_each(|(y, x)| {
            let planes = y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels));
            for ((y, x), &(mean, scale, shift)) in planes.zip(&lines) {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = (x - mean) * scale + shift;
                }
            }
        });
        Ok(y)
    }

    /// `(∂β, ∂γ)` of each channel.
    fn sums(&self, saved: &SavedBatchNorm, x: &[f32], c: &[f32], pixels: usize) -> Vec<(f64, f64)> {
        let image = self.channels * pixels;
        self.for_channels(|channel| {
            let (mean, inverse) = saved.statistics[channel];
            let at = channel * pixels;
            let mut sums = (0.0, 0.0);
            for (x, c) in x.chunks_exact(image).zip(c.chunks_exact(image)) {
                let (x, c) = (&x[at..][..pixels], &c[at..][..pixels]);
                sums.0 += sum(c);
                sums.1 += sum_of(x, c, |x, c| c * ((x - mean) * inverse));
            }
            sums
        })
    }

    fn input_gradient(
        &self,
        saved: &SavedBatchNorm,
        sums: &[(f64, f64)],
        x: &[f32],
        c: &[f32],
        pixels: usize,
    ) -> Result<Vec<f32>> {
        let count = (x.len() / self.channels) as f64;
        let weight = read::<f32>(&self.weight)?;
        // ∂x = scale (c - mean_c - (x - μ) slope)
        let lines: Vec<[f32; 4]> = (sums.iter().zip(&saved.statistics).zip(weight.iter()))
            .map(|((&(db, dg), &(mean, inverse)), &weight)| {
                [mean, weight * inverse, (db / count) as f32, (dg / count * f64::from(inverse)) as f32]
            })
            .collect();
        let image = self.channels * pixels;
        let mut dx = vec![0.0; x.len()];
        dx.par_chunks_mut(image).zip(x.par_chunks(image).zip(c.par_chunks(image))).for_each(|(dx, (x, c))| {
            let planes = dx.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels).zip(c.chunks_exact(pixels)));
            for ((dx, (x, c)), &[mean, scale, mean_c, slope]) in planes.zip(&lines) {
                for (dx, (&x, &c)) in dx.iter_mut().zip(x.iter().zip(c)) {
                    *dx = scale * (c - mean_c - (x - mean) * slope);
                }
            }
        });
        Ok(dx)
    }
}

impl Differentiable for BatchNorm2d {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let pixels = self.pixels(x.dims())?;
        let x = dense(x, &self.name)?;
        let values = read(&x)?;
        let count = values.len() / self.channels;
        let moments = if pass.is_train() {
            if count < 2 {
                return Err(wrong_shape(&self.name, x.dims(), "more than one value a channel in training"));
            }
            let moments = self.moments(&values, pixels);
            if pass.track {
                self.track(&moments, count as f64)?;
            }
            moments
        } else {
            self.running()?
        };
        let statistics: Vec<(f32, f32)> =
            moments.iter().map(|&(mean, var)| (mean as f32, (1.0 / (var + EPSILON).sqrt()) as f32)).collect();
        let y = tensor(self.apply(&values, pixels, &statistics)?, x.shape())?;
        drop(values);
        let saved = if pass.is_train() { Saved::new(SavedBatchNorm { x, statistics }) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let saved: &SavedBatchNorm = saved.get()?;
        let dims = saved.x.dims();
        let pixels = self.pixels(dims)?;
        let c = cotangent(c, dims, &self.name)?;
        let (x, c) = (read(&saved.x)?, read(&c)?);
        let sums = self.sums(saved, &x, &c, pixels);
        let mut pulled = Pulled::default();
        if wants.input {
            pulled.input = Some(tensor(self.input_gradient(saved, &sums, &x, &c, pixels)?, dims)?.into());
        }
        if wants.parameters {
            let of =
                |part: fn(&(f64, f64)) -> f64| tensor(sums.iter().map(|s| part(s) as f32).collect(), self.channels);
            pulled.parameters = vec![(self.weight.id(), of(|s| s.1)?), (self.bias.id(), of(|s| s.0)?)];
        }
        Ok(pulled)
    }
}
