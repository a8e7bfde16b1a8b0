//! Batch normalization: `y = γ (x - μ)/√(σ² + ε) + β` for each channel.
//!
//! Shapes: `x`, `y (B, C, H, W)`; `γ`, `β`, `μ`, `σ²` have one value for each channel; `ε = 1e-5`. In training, `μ` and `σ²` are the mean and the
//! (biased) variance over the `n = B·H·W` values of the channel, and the running statistics move by a tenth towards `μ` and `σ² n/(n-1)`. In
//! evaluation, `μ` and `σ²` are the running statistics. With `x̂ = (x - μ)/√(σ² + ε)` and an output gradient `c`:
//! `∂β = Σ c`, `∂γ = Σ c x̂`, `∂x = γ/√(σ² + ε) (c - ∂β/n - x̂ ∂γ/n)`.
//!
//! Ioffe and Szegedy, *Batch Normalization*, 2015, section 3.
//!
//! Input images may have any memory layout; output images are channels-last.

use candle_core::{Tensor, Var};
use candle_nn::{Init, VarBuilder};
use interlock::{Activation, Differentiable, Gradients, ParameterGradients, Pass, Pending, Result, Saved, Wants};

use super::{
    candle_operations,
    form::Form,
    images::{channels_last, images, output_gradient_last},
    saved_tensor::SavedTensor,
    slices::{label, read, tensor, wrong_shape},
};
use crate::kernels::{
    channel_lines::NormGradient,
    norm::{self, Addend, Norm, Statistics},
};

pub(super) const EPSILON: f64 = 1e-5;
pub(super) const MOMENTUM: f64 = 0.1;

/// Batch normalization of images, channel by channel.
#[derive(Clone, Debug)]
pub struct BatchNorm2d {
    pub(super) name: String,
    pub(super) channels: usize,
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) running_mean: Var,
    pub(super) running_var: Var,
    /// Chosen when the layer is built.
    form: Form,
}

struct SavedBatchNorm {
    /// `(B, H, W, C)`.
    x: SavedTensor,
    norm: Norm,
}

impl BatchNorm2d {
    /// Makes `weight` of ones, `bias` of zeros, and the buffers `running_mean` of zeros and `running_var` of ones, each `(channels)`.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Self::scaled(channels, 1.0, vb)
    }

    /// Returns a layer as [`Self::new`], with `weight_init` in `weight`. With 0, the output of a residual branch starts as zeros.
    pub fn scaled(channels: usize, weight_init: f64, vb: VarBuilder) -> Result<Self> {
        let get = |name: &str, value: f64| vb.get_with_hints(channels, name, Init::Const(value));
        Ok(Self {
            name: label("batch norm", &vb),
            form: Form::on(vb.device()),
            channels,
            weight: get("weight", weight_init)?,
            bias: get("bias", 0.0)?,
            running_mean: Var::from_tensor(&get("running_mean", 0.0)?)?,
            running_var: Var::from_tensor(&get("running_var", 1.0)?)?,
        })
    }

    /// Returns the norm of a batch of shape `dims`, `(B, C, H, W)`, by its own moments, and updates the running statistics if `pass` says so.
    /// `offset` is a constant for each channel that the values do not include: it does not change the norm, but the running mean.
    pub(super) fn of_batch(
        &self,
        moments: &[f32],
        dims: [usize; 4],
        pass: &Pass,
        offset: Option<&[f32]>,
    ) -> Result<Norm> {
        let [batch, _, height, width] = dims;
        if batch * height * width < 2 {
            return Err(wrong_shape(&self.name, &dims, "more than one value for each channel in training"));
        }
        let statistics = Statistics::merge(moments, self.channels, height * width);
        if pass.track {
            self.track(&statistics, offset)?;
        }
        Ok(statistics.norm(&read(&self.weight)?, &read(&self.bias)?, EPSILON))
    }

    fn track(&self, statistics: &Statistics, offset: Option<&[f32]>) -> Result<()> {
        let moved = |running: &Var, values: &mut dyn Iterator<Item = f64>| -> Result<()> {
            let old: Vec<f32> = running.to_vec1()?;
            let new =
                old.iter().zip(values).map(|(&old, new)| ((1.0 - MOMENTUM) * f64::from(old) + MOMENTUM * new) as f32);
            Ok(running.set(&tensor(new.collect(), self.channels)?)?)
        };
        let count = statistics.count();
        let offset = |channel: usize| offset.map_or(0.0, |offset| f64::from(offset[channel]));
        let mut means = statistics.means().iter().enumerate().map(|(channel, mean)| mean + offset(channel));
        moved(&self.running_mean, &mut means)?;
        moved(&self.running_var, &mut statistics.variances().map(|variance| variance * count / (count - 1.0)))
    }

    /// Returns the norm by the running statistics, for values that do not include `offset`.
    pub(super) fn of_running(&self, offset: Option<&[f32]>) -> Result<Norm> {
        let mut mean = read::<f32>(&self.running_mean)?.to_vec();
        for (mean, offset) in mean.iter_mut().zip(offset.unwrap_or_default()) {
            *mean -= offset;
        }
        let statistics = Statistics::given(&mean, &read(&self.running_var)?);
        Ok(statistics.norm(&read(&self.weight)?, &read(&self.bias)?, EPSILON))
    }

    /// Returns the gradients of the parameters.
    pub(super) fn gradients(&self, gradient: &NormGradient) -> Result<ParameterGradients> {
        Ok(vec![
            (self.weight.id(), tensor(gradient.weight.clone(), self.channels)?),
            (self.bias.id(), tensor(gradient.bias.clone(), self.channels)?),
        ])
    }
}

impl Differentiable for BatchNorm2d {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let &[batch, channels, height, width] = x.dims() else {
            return Err(wrong_shape(&self.name, x.dims(), format_args!("(B, {}, H, W)", self.channels)));
        };
        if channels != self.channels {
            return Err(wrong_shape(&self.name, x.dims(), format_args!("(B, {}, H, W)", self.channels)));
        }
        if self.form == Form::CandleOperations {
            return candle_operations::forward(self, x, pass);
        }
        let x = channels_last(x, &self.name)?;
        let values = read::<f32>(&x)?;
        let image = [height * width, channels];
        let norm = match pass.is_train() {
            true => self.of_batch(&norm::moments(&values, image), [batch, channels, height, width], pass, None)?,
            false => self.of_running(None)?,
        };
        let (y, _) = norm::join(values[..].into(), &norm.line, Addend::Nothing, image, false);
        drop(values);
        let saved = match pass.is_train() {
            true => {
                let x = SavedTensor::new(x, pass)?;
                let memory = x.memory();
                Saved::new(SavedBatchNorm { x, norm }).with_memory([memory])
            }
            false => Saved::nothing(),
        };
        Ok((images(y, batch, [height, width, channels])?.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let SavedBatchNorm { x, norm } = saved.get()?;
        let x = x.tensor()?;
        let (batch, height, width, channels) = x.dims4()?;
        let c = output_gradient_last(c, &[batch, channels, height, width], &self.name)?;
        let (x, c) = (read::<f32>(&x)?, read::<f32>(&c)?);
        let image = [height * width, channels];
        let gradient = norm.gradient(&norm::gradient_sums(&c, None, x[..].into(), norm, image));
        let mut gradients = Gradients::default();
        if wants.input {
            let dx = norm::gradient(&c, &x, &gradient, image);
            gradients.input = Some(images(dx, batch, [height, width, channels])?.into());
        }
        if wants.parameters {
            gradients.parameters = self.gradients(&gradient)?;
        }
        Ok(gradients)
    }

    /// Computes both gradients: the input's needs those of the parameters anyway, and they take less memory than the output gradient.
    fn backward_input(&self, saved: &Saved, c: &Activation) -> Result<(Activation, Pending)> {
        self.backward(saved, c, Wants::BOTH)?.into_backward_input()
    }

    fn backward_parameters(&self, _: &Saved, pending: Pending) -> Result<ParameterGradients> {
        pending.take()
    }
}
