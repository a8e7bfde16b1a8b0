//! Sums over images for batch norm, and what follows from them for each channel.

mod passes;

pub(crate) use passes::{Addend, gradient, gradient_sums, join, moments};

use super::{
    lanes::{LANES, Lanes},
    padded::{Line, blocks},
    room::Aligned,
};

/// Number, mean and sum of squared distances from it, for each channel.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    count: f64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Statistics {
    /// Of images whose moments (see [`End::Moments`](super::convolution::End::Moments)) over `pixels` each are given in order.
    ///
    /// Merged as by Chan, Golub and LeVeque, *Updating Formulae and a Pairwise Algorithm for Computing Sample Variances*, 1979.
    pub(crate) fn merge(moments: &[f32], channels: usize, pixels: usize) -> Self {
        let padded = blocks(channels) * LANES;
        let mut merged = Self { count: 0.0, mean: vec![0.0; channels], squares: vec![0.0; channels] };
        let n = pixels as f64;
        for image in moments.chunks_exact(3 * padded) {
            let total = merged.count + n;
            for channel in 0..channels {
                let [shift, sum, squares] = [0, 1, 2].map(|i| f64::from(image[i * padded + channel]));
                let mean = shift + sum / n;
                let distance = mean - merged.mean[channel];
                merged.mean[channel] += distance * n / total;
                merged.squares[channel] +=
                    (squares - sum * sum / n).max(0.0) + distance * distance * merged.count * n / total;
            }
            merged.count = total;
        }
        merged
    }

    /// Of running means and variances.
    pub(crate) fn given(mean: &[f32], variance: &[f32]) -> Self {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect();
        Self { count: 1.0, mean: wide(mean), squares: wide(variance) }
    }

    /// How many values each channel has.
    pub(crate) fn count(&self) -> f64 {
        self.count
    }

    /// The means.
    pub(crate) fn means(&self) -> &[f64] {
        &self.mean
    }

    /// The variances, divided by the number of values.
    pub(crate) fn variances(&self) -> impl Iterator<Item = f64> {
        self.squares.iter().map(|squares| squares / self.count)
    }

    /// The norm with these statistics: `y = weight (x - mean)/√(variance + epsilon) + bias`.
    pub(crate) fn norm(&self, weight: &[f32], bias: &[f32], epsilon: f64) -> Norm {
        let channels = self.mean.len();
        let line = || Aligned::zeros(blocks(channels) * LANES);
        let mut norm = Norm {
            count: self.count,
            inverse: self.variances().map(|variance| 1.0 / (variance + epsilon).sqrt()).collect(),
            line: Line { mean: line(), scale: line(), shift: line() },
        };
        for channel in 0..channels {
            let scale = f64::from(weight[channel]) * norm.inverse[channel];
            let mean = self.mean[channel] as f32;
            norm.line.mean[channel] = mean;
            norm.line.scale[channel] = scale as f32;
            // What rounding the mean took away is put back.
            norm.line.shift[channel] =
                (f64::from(bias[channel]) + scale * (f64::from(mean) - self.mean[channel])) as f32;
        }
        norm
    }
}

/// A batch norm of one batch: a line for each channel.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    count: f64,
    inverse: Vec<f64>,
    pub(crate) line: Line,
}

/// The pull-back of a batch norm: `∂x = a·g + b·(x - mean) + c`, and the gradients of its parameters.
#[derive(Clone, Debug)]
pub(crate) struct NormGradient {
    pub(crate) mean: Aligned,
    pub(crate) a: Aligned,
    pub(crate) b: Aligned,
    pub(crate) c: Aligned,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl NormGradient {
    /// Mean, `a`, `b` and `c` of the channels from `from` on.
    ///
    /// # Safety
    /// The lines must hold them.
    #[inline(always)]
    pub(super) unsafe fn lanes<L: Lanes>(&self, from: usize) -> [L; 4] {
        // SAFETY: as demanded of the caller.
        [&self.mean, &self.a, &self.b, &self.c].map(|line| unsafe { L::load(line.as_ptr().add(from)) })
    }
}

impl Norm {
    /// From the sums of each image, `[image][2][channels in blocks]`: of the cotangent `g`, and of `g (x - mean)`.
    pub(crate) fn gradient(&self, sums: &[f32]) -> NormGradient {
        let channels = self.inverse.len();
        let padded = blocks(channels) * LANES;
        let line = || Aligned::zeros(padded);
        let mut gradient = NormGradient {
            mean: self.line.mean.clone(),
            a: line(),
            b: line(),
            c: line(),
            weight: vec![0.0; channels],
            bias: vec![0.0; channels],
        };
        for channel in 0..channels {
            let total = |i: usize| {
                sums.chunks_exact(2 * padded).map(|image| f64::from(image[i * padded + channel])).sum::<f64>()
            };
            let (bias, weight) = (total(0), total(1) * self.inverse[channel]);
            let a = f64::from(self.line.scale[channel]);
            let b = -a * self.inverse[channel] * weight / self.count;
            gradient.bias[channel] = bias as f32;
            gradient.weight[channel] = weight as f32;
            gradient.a[channel] = a as f32;
            gradient.b[channel] = b as f32;
            gradient.c[channel] = (-a * bias / self.count) as f32;
        }
        gradient
    }
}
