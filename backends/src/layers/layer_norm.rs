//! Layer normalization: `y = γ (x - μ)/√(σ² + ε) + β` for each row.
//!
//! Shapes: `x`, `y (…, D)`; `γ`, `β (D)`; `μ` and the biased variance `σ²` are over the last dimension, `ε = 1e-5`. With
//! `x̂ = (x - μ)/√(σ² + ε)` and a cotangent `c`: `∂β = Σ_rows c`, `∂γ = Σ_rows c x̂`, and with `g = γ c`, for each row,
//! `∂x = (g - mean(g) - x̂ mean(g x̂))/√(σ² + ε)`.
//!
//! Ba, Kiros and Hinton, *Layer Normalization*, 2016.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use interlock::{Activation, Differentiable, Pass, Pulled, Result, Saved, Wants};
use rayon::prelude::*;

use super::{
    math::{dot, sum, sum_of},
    slices::{CHUNK, add_up, cotangent, dense, label, read, tensor, with_scratch, wrong_shape},
};

const EPSILON: f64 = 1e-5;

/// Layer normalization over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    name: String,
    width: usize,
    weight: Tensor,
    bias: Tensor,
}

/// `μ` and `1/√(σ² + ε)` of one row.
type Statistics = (f32, f32);

struct SavedLayerNorm {
    x: Tensor,
    /// A pair for each row.
    statistics: Vec<Statistics>,
}

impl LayerNorm {
    /// Makes `weight (width)` of ones and `bias (width)` of zeros.
    pub fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            name: label("layer norm", &vb),
            width,
            weight: vb.get_with_hints(width, "weight", Init::Const(1.0))?,
            bias: vb.get_with_hints(width, "bias", Init::Const(0.0))?,
        })
    }

    /// Rows in one piece of elementwise work.
    fn rows(&self) -> usize {
        CHUNK.div_ceil(self.width)
    }

    fn moments(&self, row: &[f32]) -> Statistics {
        let count = self.width as f64;
        let mean = sum(row) / count;
        let centre = mean as f32;
        let distance = mean - f64::from(centre);
        let square = sum_of(row, row, |x, _| (x - centre) * (x - centre)) / count;
        (centre, (1.0 / ((square - distance * distance).max(0.0) + EPSILON).sqrt()) as f32)
    }

    fn apply(&self, x: &[f32]) -> Result<(Vec<f32>, Vec<Statistics>)> {
        let (width, rows) = (self.width, self.rows());
        let (weight, bias) = (read::<f32>(&self.weight)?, read::<f32>(&self.bias)?);
        let (weight, bias): (&[f32], &[f32]) = (&weight, &bias);
        let mut y = vec![0.0; x.len()];
        let mut statistics = vec![(0.0, 0.0); x.len() / width];
        let pieces =
            y.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).zip(statistics.par_chunks_mut(rows));
        pieces.for_each(|((y, x), statistics)| {
            for ((y, x), kept) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(statistics) {
                let (mean, inverse) = self.moments(x);
                *kept = (mean, inverse);
                for ((y, &x), (&weight, &bias)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                    *y = (x - mean) * inverse * weight + bias;
                }
            }
        });
        Ok((y, statistics))
    }

    fn input_gradient(&self, x: &[f32], statistics: &[Statistics], c: &[f32]) -> Result<Vec<f32>> {
        let (width, rows) = (self.width, self.rows());
        let weight = read::<f32>(&self.weight)?;
        let weight: &[f32] = &weight;
        let mut dx = vec![0.0; x.len()];
        let sources = x.par_chunks(rows * width).zip(c.par_chunks(rows * width)).zip(statistics.par_chunks(rows));
        dx.par_chunks_mut(rows * width).zip(sources).for_each(|(dx, ((x, c), statistics))| {
            let sources = x.chunks_exact(width).zip(c.chunks_exact(width)).zip(statistics);
            for (dx, ((x, c), &(mean, inverse))) in dx.chunks_exact_mut(width).zip(sources) {
                with_scratch(width, |normal| {
                    for ((normal, &x), (dx, (&c, &weight))) in
                        normal.iter_mut().zip(x).zip(dx.iter_mut().zip(c.iter().zip(weight)))
                    {
                        *normal = (x - mean) * inverse;
                        *dx = c * weight;
                    }
                    let mean_g = (sum(dx) / width as f64) as f32;
                    let mean_gx = (dot(dx, normal) / width as f64) as f32;
                    for (dx, &normal) in dx.iter_mut().zip(normal.iter()) {
                        *dx = inverse * (*dx - mean_g - normal * mean_gx);
                    }
                });
            }
        });
        Ok(dx)
    }

    /// `∂γ` and then `∂β`.
    fn parameter_gradients(&self, x: &[f32], statistics: &[Statistics], c: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let width = self.width;
        // At most sixteen pieces: each holds a sum as long as two rows.
        let rows = self.rows().max(statistics.len().div_ceil(16));
        let parts = (x.par_chunks(rows * width).zip(c.par_chunks(rows * width)).zip(statistics.par_chunks(rows)))
            .map(|((x, c), statistics)| {
                let mut sums = vec![0.0; 2 * width];
                let (dg, db) = sums.split_at_mut(width);
                for ((x, c), &(mean, inverse)) in x.chunks_exact(width).zip(c.chunks_exact(width)).zip(statistics) {
                    for ((dg, db), (&x, &c)) in dg.iter_mut().zip(db.iter_mut()).zip(x.iter().zip(c)) {
                        *dg += c * ((x - mean) * inverse);
                        *db += c;
                    }
                }
                sums
            })
            .collect();
        let mut dg = add_up(parts);
        let db = dg.split_off(width);
        (dg, db)
    }
}

impl Differentiable for LayerNorm {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        if x.dims().last() != Some(&self.width) {
            return Err(wrong_shape(&self.name, x.dims(), format_args!("(…, {})", self.width)));
        }
        let x = dense(x, &self.name)?;
        let (y, statistics) = self.apply(&read(&x)?)?;
        let y = tensor(y, x.shape())?;
        let saved = if pass.is_train() { Saved::new(SavedLayerNorm { x, statistics }) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let SavedLayerNorm { x, statistics } = saved.get()?;
        let c = cotangent(c, x.dims(), &self.name)?;
        let (values, c) = (read(x)?, read(&c)?);
        let mut pulled = Pulled::default();
        if wants.input {
            pulled.input = Some(tensor(self.input_gradient(&values, statistics, &c)?, x.shape())?.into());
        }
        if wants.parameters {
            let (dg, db) = self.parameter_gradients(&values, statistics, &c);
            pulled.parameters =
                vec![(self.weight.id(), tensor(dg, self.width)?), (self.bias.id(), tensor(db, self.width)?)];
        }
        Ok(pulled)
    }
}
