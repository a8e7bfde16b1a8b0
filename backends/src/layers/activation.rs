//! Functions of single elements: `ReLU(x) = max(x, 0)` and `GELU(x) = x Φ(x)` in its tanh approximation.
//!
//! Tensors of any shape. GELU: `y = x/2 (1 + tanh u) = x s` with `u = √(2/π) (x + 0.044715 x³)` and `s = 1/(1 + e^(-2u))`, so
//! `∂x = c (s + 2 x s (1 - s) u')` with `u' = √(2/π) (1 + 3·0.044715 x²)` (Hendrycks and Gimpel, 2016).

use interlock::{Activation, Differentiable, Gradients, Pass, Result, Saved, Wants};

use super::{
    candle_operations,
    images::MemoryOrder,
    saved_tensor::SavedTensor,
    slices::{dense, output_gradient, output_gradient_of, read},
};
use crate::kernels::{
    elementwise::{map, zip},
    gelu,
};

/// `y = max(x, 0)`. Its gradient at zero is zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Relu;

/// The tensors that a ReLU saves: its output, and not its input, since the next layer saves the output too.
struct SavedRelu {
    y: SavedTensor,
    dims: Vec<usize>,
    order: MemoryOrder,
}

impl Differentiable for Relu {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        if candle_operations::are_for(x) {
            return candle_operations::forward(self, x, pass);
        }
        let (order, dims) = (MemoryOrder::of(x), x.dims().to_vec());
        let x = order.dense(x, "relu")?;
        // Not `x > 0`, which would replace NaN by 0.
        let y = map(&read(&x)?, |x| if x < 0.0 { 0.0 } else { x }).into_tensor(x.shape())?;
        let output = order.tensor_of(&y)?;
        let saved = match pass.is_train() {
            true => {
                let y = SavedTensor::new(y, pass)?;
                let memory = y.memory();
                Saved::new(SavedRelu { y, dims, order }).with_memory([memory])
            }
            false => Saved::nothing(),
        };
        Ok((output.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let SavedRelu { y, dims, order } = saved.get()?;
        if !wants.input {
            return Ok(Gradients::default());
        }
        let c = order.dense(output_gradient_of(c, dims, "relu")?, "relu")?;
        let y = y.tensor()?;
        let dx = zip(&read(&c)?, &read::<f32>(&y)?, |c, y| if y > 0.0 { c } else { 0.0 });
        Ok(Gradients { input: Some(order.tensor_of(&dx.into_tensor(y.shape())?)?.into()), ..Gradients::default() })
    }

    fn has_parameters(&self) -> bool {
        false
    }
}

/// `y = x Φ(x)` in its tanh approximation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gelu;

impl Differentiable for Gelu {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        if candle_operations::are_for(x) {
            return candle_operations::forward(self, x, pass);
        }
        let x = dense(x, "gelu")?;
        let y = gelu::apply(&read(&x)?).into_tensor(x.shape())?;
        let saved = if pass.is_train() { SavedTensor::new(x, pass)?.saved() } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let x: &SavedTensor = saved.get()?;
        if !wants.input {
            return Ok(Gradients::default());
        }
        let x = x.tensor()?;
        let c = output_gradient(c, x.dims(), "gelu")?;
        let dx = gelu::backward(&read(&x)?, &read(&c)?).into_tensor(x.shape())?;
        Ok(Gradients { input: Some(dx.into()), ..Gradients::default() })
    }

    fn has_parameters(&self) -> bool {
        false
    }
}
