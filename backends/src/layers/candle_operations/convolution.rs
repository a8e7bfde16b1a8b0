//! Convolutions. The output, the gradient of the input and that of the weight are all computed by [`convolve`], or by a kernel of cuDNN for each if
//! it is built in.

use candle_core::Tensor;
use interlock::{Gradients, Pass, Result, SavedMemory, Wants};

use super::{
    CandleOperations, as_dtype,
    norm::{as_channels, channel_sums},
    products::{operand, product, summed_wide},
    saved_tensor::SavedCandleTensor,
    wide,
};
use crate::layers::{Conv2d, Conv2dConfig};

/// The padding and the stride of a window, in pixels.
#[derive(Clone, Copy)]
struct Steps {
    padding: usize,
    stride: usize,
    /// The distance between the pixels of the window.
    dilation: usize,
}

const DENSE: Steps = Steps { padding: 0, stride: 1, dilation: 1 };

/// Returns `y[b,o,p] = Σ_{i,u} w[o,i,u] x[b,i, stride·p + dilation·u - padding]`, `(B, O, H', W')`, for `x (B, I, H, W)` and `w (O, I, k, l)`. All
/// three have the same dtype.
fn convolve(x: &Tensor, w: &Tensor, Steps { padding, stride, dilation }: Steps) -> Result<Tensor> {
    let (outputs, inputs, height, width) = w.dims4()?;
    let (batch, _, rows, columns) = x.dims4()?;
    if (height, width, padding, stride) == (1, 1, 0, 1) {
        // A product for each image, without a copy of it.
        let w = w.reshape((1, outputs, inputs))?.broadcast_as((batch, outputs, inputs))?;
        let y = product(&w, &x.reshape((batch, inputs, rows * columns))?)?;
        return Ok(y.reshape((batch, outputs, rows, columns))?);
    }
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() && dilation == 1 {
        return crate::cuda::cudnn::convolve(x, w, padding, stride);
    }
    summed_wide(x, &w.contiguous()?, |x, w| Ok(x.conv2d(w, padding, stride, dilation, 1)?))
}

/// Returns `w (O, I, k, k)` as `(I, O, k, k)`, with its windows rotated by 180°.
fn rotated(w: &Tensor) -> Result<Tensor> {
    let (outputs, inputs, k, _) = w.dims4()?;
    let backwards: Vec<u32> = (0..(k * k) as u32).rev().collect();
    let backwards = Tensor::new(backwards, w.device())?;
    let w = w.reshape((outputs, inputs, k * k))?.index_select(&backwards, 2)?;
    Ok(w.reshape((outputs, inputs, k, k))?.transpose(0, 1)?.contiguous()?)
}

/// Returns a tensor of `length` along `axis`, with `c[p]` at position `stride·p + shift` and zeros elsewhere. Elements that would lie outside are
/// left out.
fn spread(c: &Tensor, axis: usize, stride: usize, shift: isize, length: usize) -> Result<Tensor> {
    let count = c.dim(axis)?;
    let from = |at: usize| {
        let position = usize::try_from(at as isize - shift).ok()?;
        (position % stride == 0 && position / stride < count).then_some((position / stride) as u32)
    };
    // candle selects zeros for the index `u32::MAX`.
    let from: Vec<u32> = (0..length).map(|at| from(at).unwrap_or(u32::MAX)).collect();
    Ok(c.index_select(&Tensor::new(from, c.device())?, axis)?)
}

/// Returns `∂x (B, I, H, W)`: the convolution of the output gradient, its pixels `stride` apart with zeros around them, with the rotated window.
fn input_gradient(
    c: &Tensor,
    w: &Tensor,
    [height, width]: [usize; 2],
    Conv2dConfig { kernel, stride, padding, .. }: Conv2dConfig,
) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if c.device().is_cuda() {
        let (batch, _, _, _) = c.dims4()?;
        return crate::cuda::cudnn::input_gradient(c, w, [batch, w.dim(1)?, height, width], padding, stride);
    }
    let w = rotated(w)?;
    if stride == 1 && padding < kernel {
        return convolve(c, &w, Steps { padding: kernel - 1 - padding, ..DENSE });
    }
    let shift = kernel as isize - 1 - padding as isize;
    let spread =
        |c: &Tensor| spread(&spread(c, 2, stride, shift, height + kernel - 1)?, 3, stride, shift, width + kernel - 1);
    match kernel {
        // A window of one pixel maps zeros to zeros, so the pixels can be spread afterwards.
        1 => spread(&convolve(c, &w, DENSE)?),
        _ => convolve(&spread(c)?, &w, DENSE),
    }
}

/// Returns `∂W (O, I, k, k)`: the convolution of the images with the output gradient as the window, and examples as channels.
fn weight_gradient(
    x: &Tensor,
    c: &Tensor,
    Conv2dConfig { kernel, stride, padding, .. }: Conv2dConfig,
) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        let window = [c.dim(1)?, x.dim(1)?, kernel, kernel];
        return crate::cuda::cudnn::weight_gradient(x, c, window, padding, stride);
    }
    let (x, c) = (x.transpose(0, 1)?, c.transpose(0, 1)?);
    let dw = convolve(&x, &c, Steps { padding, stride: 1, dilation: stride })?;
    // It is larger if there are pixels that no position of the window reached.
    Ok(dw.narrow(2, 0, kernel)?.narrow(3, 0, kernel)?.transpose(0, 1)?.contiguous()?)
}

impl CandleOperations for Conv2d {
    type Saved = SavedCandleTensor;

    fn name(&self) -> &str {
        &self.name
    }

    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, SavedCandleTensor)> {
        let x = operand(x, pass)?;
        let Conv2dConfig { stride, padding, .. } = self.config;
        let y = convolve(&x, &as_dtype(&self.weight, x.dtype())?, Steps { padding, stride, dilation: 1 })?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(&as_dtype(&as_channels(bias)?, y.dtype())?)?,
            None => y,
        };
        Ok((y, SavedCandleTensor::new(&x, pass)?))
    }

    fn memory(x: &SavedCandleTensor) -> Vec<SavedMemory> {
        vec![x.memory()]
    }

    fn compute_gradients(&self, x: &SavedCandleTensor, c: &Tensor, wants: Wants) -> Result<Gradients> {
        let mut gradients = Gradients::default();
        if wants.input {
            let image = [x.dims()[2], x.dims()[3]];
            let dx = input_gradient(c, &as_dtype(&self.weight, c.dtype())?, image, self.config)?;
            gradients.input = Some(dx.into());
        }
        if wants.parameters {
            let dw = weight_gradient(&x.tensor()?, c, self.config)?;
            gradients.parameters.push((self.weight.id(), wide(&dw)?));
            if let Some(bias) = &self.bias {
                gradients.parameters.push((bias.id(), channel_sums(&wide(c)?)?.flatten_all()?));
            }
        }
        Ok(gradients)
    }
}
