//! Functions of single elements: `ReLU(x) = max(x, 0)` and `GELU(x) = x Φ(x)` in its tanh approximation.
//!
//! Any shape. GELU: `y = x/2 (1 + tanh u) = x s` with `u = √(2/π) (x + 0.044715 x³)` and `s = 1/(1 + e^(-2u))`, so
//! `∂x = c (s + 2 x s (1 - s) u')` with `u' = √(2/π) (1 + 3·0.044715 x²)` (Hendrycks and Gimpel, 2016).

use candle_core::Tensor;
use interlock::{Activation, Differentiable, Pass, Pulled, Result, Saved, Wants};

use super::{
    math::sigmoid,
    slices::{cotangent, dense, map, read, tensor, zip},
};

/// `y = max(x, 0)`. Its gradient at zero is zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Relu;

impl Differentiable for Relu {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = dense(x.single()?, "relu")?;
        // Not `x > 0`: a value that is not a number must not vanish.
        let y = tensor(map(&read(&x)?, |x| if x < 0.0 { 0.0 } else { x }), x.shape())?;
        // The output is kept, not the input: the next layer keeps it too.
        let saved = if pass.is_train() { Saved::new(y.clone()) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let y: &Tensor = saved.get()?;
        elementwise(y, c, wants, "relu", |c, y| if y > 0.0 { c } else { 0.0 })
    }
}

/// `y = x Φ(x)` in its tanh approximation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gelu;

/// `√(2/π)`.
const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

impl Differentiable for Gelu {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = dense(x.single()?, "gelu")?;
        let y = map(&read(&x)?, |x| x * sigmoid(2.0 * ROOT * (x + CUBE * x * x * x)));
        let y = tensor(y, x.shape())?;
        let saved = if pass.is_train() { Saved::new(x) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let x: &Tensor = saved.get()?;
        elementwise(x, c, wants, "gelu", |c, x| {
            let s = sigmoid(2.0 * ROOT * (x + CUBE * x * x * x));
            let slope = ROOT * (1.0 + 3.0 * CUBE * x * x);
            c * (s + 2.0 * x * s * (1.0 - s) * slope)
        })
    }
}

/// The pull-back of a function of single elements: `f(cotangent, saved)`.
fn elementwise(
    saved: &Tensor,
    c: &Activation,
    wants: Wants,
    layer: &str,
    f: impl Fn(f32, f32) -> f32 + Sync,
) -> Result<Pulled> {
    if !wants.input {
        return Ok(Pulled::default());
    }
    let c = cotangent(c, saved.dims(), layer)?;
    let dx = zip(&read(&c)?, &read::<f32>(saved)?, f);
    Ok(Pulled { input: Some(tensor(dx, saved.shape())?.into()), ..Pulled::default() })
}
