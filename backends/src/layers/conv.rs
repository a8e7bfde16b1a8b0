//! Two-dimensional convolution: `y[b,o,p] = bias[o] + Σ_{c,u,v} W[o,c,u,v] x[b,c,s·p + (u,v) - padding]`.
//!
//! Shapes: `x (B, I, H, W)`, `W (O, I, k, k)`, `bias (O)`, `y (B, O, H', W')` with `H' = (H + 2·padding - k)/stride + 1`. Input images may have any
//! memory layout; output images are channels-last.

use candle_core::Tensor;
use candle_nn::{
    Init, VarBuilder,
    init::{FanInOut, NonLinearity, NormalOrUniform},
};
use interlock::{Activation, Differentiable, Gradients, Pass, Result, Saved, Wants};
use rayon::prelude::*;

use super::{
    candle_operations,
    form::Form,
    images::{channels_last, images, output_gradient_last},
    saved_tensor::SavedTensor,
    slices::{column_sums, label, read, tensor, wrong_shape},
    window::Window,
};
use crate::kernels::{
    convolution::{Batch, Geometry, GradientTarget},
    padded::Source,
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
    pub(super) name: String,
    pub(super) config: Conv2dConfig,
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    /// Chosen when the layer is built.
    form: Form,
}

impl Conv2d {
    /// Makes `weight (O, I, k, k)` from a normal distribution of variance `2/(O k²)` (Kaiming, fan-out) and, with `bias`, `bias (O)` uniform in
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
            form: Form::on(vb.device()),
            config,
            weight: vb.get_with_hints((outputs, inputs, kernel, kernel), "weight", init)?,
            bias: if bias { Some(vb.get_with_hints(outputs, "bias", bias_init)?) } else { None },
        })
    }

    /// Returns the geometry for images of shape `dims`, `(B, I, H, W)`.
    pub(super) fn geometry(&self, dims: &[usize]) -> Result<Geometry> {
        let Conv2dConfig { inputs, outputs, kernel, stride, padding, .. } = self.config;
        let window = Window::over(dims, [kernel, stride, padding], &self.name)?;
        if window.channels != inputs {
            return Err(wrong_shape(&self.name, dims, format_args!("(B, {inputs}, H, W)")));
        }
        Ok(Geometry { inputs, outputs, kernel, stride, padding, from: window.image, to: window.places })
    }
}

impl Differentiable for Conv2d {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let geometry = self.geometry(x.dims())?;
        if self.form == Form::CandleOperations {
            return candle_operations::forward(self, x, pass);
        }
        let x = channels_last(x, &self.name)?;
        let batch = Batch { geometry, weight: &read(&self.weight)?, images: x.dims()[0], precision: pass.precision };
        let mut y = batch.forward(&Source::Plain(read::<f32>(&x)?[..].into()), None);
        if let Some(bias) = &self.bias {
            add_to_rows(&mut y, &read(bias)?);
        }
        let y = images(y, batch.images, geometry.output())?;
        Ok((y.into(), if pass.is_train() { SavedTensor::new(x, pass)?.saved() } else { Saved::nothing() }))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let x: &SavedTensor = saved.get()?;
        let &[batch, height, width, channels] = x.dims() else {
            return Err(wrong_shape(&self.name, x.dims(), "(B, H, W, I)"));
        };
        let geometry = self.geometry(&[batch, channels, height, width])?;
        let batch = Batch { geometry, weight: &read(&self.weight)?, images: batch, precision: x.precision() };
        let [height, width, outputs] = geometry.output();
        let c = output_gradient_last(c, &[batch.images, outputs, height, width], &self.name)?;
        let (x, c) = (x.numbers()?, read::<f32>(&c)?);
        let x = Source::Plain(x.get());
        let gradients = batch.backward(
            &Source::Plain(c[..].into()),
            wants.parameters.then_some(&x),
            wants.input.then_some(GradientTarget::Write),
        );
        let mut result = Gradients::default();
        if let Some(input) = gradients.input {
            result.input = Some(images(input, batch.images, geometry.input())?.into());
        }
        if let Some(weight) = gradients.weight {
            result.parameters.push((self.weight.id(), weight.into_tensor(self.weight.shape())?));
            if let Some(bias) = &self.bias {
                result.parameters.push((bias.id(), tensor(column_sums(&c, outputs), bias.shape())?));
            }
        }
        Ok(result)
    }
}

/// Adds `bias` to every row of `y`, which are as long as `bias`.
fn add_to_rows(y: &mut [f32], bias: &[f32]) {
    y.par_chunks_mut(bias.len() * 1024).for_each(|rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            for (y, bias) in row.iter_mut().zip(bias) {
                *y += bias;
            }
        }
    });
}
