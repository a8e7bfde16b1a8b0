//! Batch and layer norm. Variances are means of squared distances from the mean.

use candle_core::{Tensor, Var};
use interlock::{Gradients, ParameterGradients, Pass, Result, SavedMemory, Wants};

use super::{CandleOperations, as_dtype, saved_tensor::SavedCandleTensor, wide};
use crate::{
    kernels::layer_norm,
    layers::{
        BatchNorm2d, LayerNorm,
        batch_norm::{EPSILON, MOMENTUM},
        slices::wrong_shape,
    },
};

/// The tensors that a norm saves: its input, and the mean and `1/√(σ² + ε)` of each channel or row, in `f32`.
pub(crate) struct SavedNorm {
    x: SavedCandleTensor,
    mean: Tensor,
    inverse: Tensor,
}

impl SavedNorm {
    fn memory(&self) -> Vec<SavedMemory> {
        vec![self.x.memory(), SavedMemory::of_tensor(&self.mean), SavedMemory::of_tensor(&self.inverse)]
    }

    /// Returns `x - μ`, in `f32`.
    fn centred(&self) -> Result<Tensor> {
        Ok(wide(&self.x.tensor()?)?.broadcast_sub(&self.mean)?)
    }
}

fn inverse(variance: &Tensor, epsilon: f64) -> Result<Tensor> {
    Ok((variance + epsilon)?.sqrt()?.recip()?)
}

/// Returns the sums of images `(B, C, H, W)` over all but the channels, `(1, C, 1, 1)`. Each image is summed first, which is more precise and
/// computes many sums in parallel.
pub(super) fn channel_sums(x: &Tensor) -> Result<Tensor> {
    as_channels(&x.flatten_from(2)?.sum(2)?.sum(0)?)
}

/// Returns one value for each channel as `(1, C, 1, 1)`, which broadcasts to images.
pub(super) fn as_channels(values: &Tensor) -> Result<Tensor> {
    Ok(values.detach().reshape((1, (), 1, 1))?)
}

impl BatchNorm2d {
    /// Moves the running statistics towards the mean and variance of `count` values for each channel, on the device.
    fn update_running(&self, mean: &Tensor, variance: &Tensor, count: f64) -> Result<()> {
        let moved = |running: &Var, new: &Tensor, share: f64| -> Result<()> {
            let new = ((running.as_detached_tensor() * (1.0 - MOMENTUM))? + (new.flatten_all()? * share)?)?;
            Ok(running.set(&new)?)
        };
        moved(&self.running_mean, mean, MOMENTUM)?;
        moved(&self.running_var, variance, MOMENTUM * count / (count - 1.0))
    }
}

impl CandleOperations for BatchNorm2d {
    type Saved = SavedNorm;

    fn name(&self) -> &str {
        &self.name
    }

    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, SavedNorm)> {
        let values = wide(x)?;
        let (mean, centred, inverse) = match pass.is_train() {
            true => {
                let count = x.elem_count() / self.channels;
                if count < 2 {
                    return Err(wrong_shape(&self.name, x.dims(), "more than one value for each channel in training"));
                }
                let count = count as f64;
                let mean = (channel_sums(&values)? / count)?;
                let centred = values.broadcast_sub(&mean)?;
                let variance = (channel_sums(&centred.sqr()?)? / count)?;
                if pass.track {
                    self.update_running(&mean, &variance, count)?;
                }
                (mean, centred, inverse(&variance, EPSILON)?)
            }
            false => {
                let mean = as_channels(&self.running_mean)?;
                let centred = values.broadcast_sub(&mean)?;
                (mean, centred, inverse(&as_channels(&self.running_var)?, EPSILON)?)
            }
        };
        let scale = (as_channels(&self.weight)? * &inverse)?;
        let y = centred.broadcast_mul(&scale)?.broadcast_add(&as_channels(&self.bias)?)?;
        Ok((as_dtype(&y, x.dtype())?, SavedNorm { x: SavedCandleTensor::new(x, pass)?, mean, inverse }))
    }

    fn memory(saved: &SavedNorm) -> Vec<SavedMemory> {
        saved.memory()
    }

    fn compute_gradients(&self, saved: &SavedNorm, c: &Tensor, wants: Wants) -> Result<Gradients> {
        let (dtype, c, centred) = (c.dtype(), wide(c)?, saved.centred()?);
        let bias = channel_sums(&c)?;
        let weight = (channel_sums(&(&c * &centred)?)? * &saved.inverse)?;
        let mut result = Gradients::default();
        if wants.input {
            let count = (c.elem_count() / self.channels) as f64;
            // ∂x = a c + b (x - μ) + d, with numbers a, b and d for each channel.
            let a = (as_channels(&self.weight)? * &saved.inverse)?;
            let b = ((&a * &saved.inverse)? * (&weight / -count)?)?;
            let d = (&a * (&bias / -count)?)?;
            let dx = (c.broadcast_mul(&a)? + centred.broadcast_mul(&b)?.broadcast_add(&d)?)?;
            result.input = Some(as_dtype(&dx, dtype)?.into());
        }
        if wants.parameters {
            result.parameters = gradients(&self.weight, &weight, &self.bias, &bias)?;
        }
        Ok(result)
    }
}

fn gradients(weight: &Tensor, dw: &Tensor, bias: &Tensor, db: &Tensor) -> Result<ParameterGradients> {
    Ok(vec![(weight.id(), dw.flatten_all()?), (bias.id(), db.flatten_all()?)])
}

/// Returns the mean of each row, `(…, 1)`.
fn row_means(x: &Tensor) -> Result<Tensor> {
    Ok(x.mean_keepdim(x.rank() - 1)?)
}

impl CandleOperations for LayerNorm {
    type Saved = SavedNorm;

    fn name(&self) -> &str {
        &self.name
    }

    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, SavedNorm)> {
        let values = wide(x)?;
        let mean = row_means(&values)?;
        let centred = values.broadcast_sub(&mean)?;
        let inverse = inverse(&row_means(&centred.sqr()?)?, f64::from(layer_norm::EPSILON))?;
        let normed = centred.broadcast_mul(&inverse)?;
        let y = normed.broadcast_mul(&self.weight.detach())?.broadcast_add(&self.bias.detach())?;
        Ok((as_dtype(&y, x.dtype())?, SavedNorm { x: SavedCandleTensor::new(x, pass)?, mean, inverse }))
    }

    fn memory(saved: &SavedNorm) -> Vec<SavedMemory> {
        saved.memory()
    }

    fn compute_gradients(&self, saved: &SavedNorm, c: &Tensor, wants: Wants) -> Result<Gradients> {
        let (dtype, c) = (c.dtype(), wide(c)?);
        let normed = saved.centred()?.broadcast_mul(&saved.inverse)?;
        let mut result = Gradients::default();
        if wants.input {
            let g = c.broadcast_mul(&self.weight.detach())?;
            let along = normed.broadcast_mul(&row_means(&(&g * &normed)?)?)?;
            let dx = (g.broadcast_sub(&row_means(&g)?)? - along)?.broadcast_mul(&saved.inverse)?;
            result.input = Some(as_dtype(&dx, dtype)?.into());
        }
        if wants.parameters {
            let sums = |x: Tensor| Ok::<_, interlock::Error>(x.reshape(((), self.width))?.sum(0)?);
            let (dw, db) = (sums((&c * &normed)?)?, sums(c)?);
            result.parameters = gradients(&self.weight, &dw, &self.bias, &db)?;
        }
        Ok(result)
    }
}
