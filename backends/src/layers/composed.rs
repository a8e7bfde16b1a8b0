//! The mathematics of the layers in candle's operations, for any device.
//!
//! The CPU has kernels of its own (`crate::kernels`). Every other device computes with what is here, and so does the CPU where it is told to:
//! the operations are the same on all devices, so what is checked there holds for all. The parameters, names and messages are those of the
//! public layers, which ask [`serves`] in a forward pass and go by what was saved in a pull-back.
//!
//! Rules:
//! - No value is read back to the host, and nothing waits for the device.
//! - Inputs are `f32` or `bf16`. Products of matrices and convolutions take and give the dtype of the pass's [`Precision`]; norms, softmax,
//!   means and sums compute in `f32` and give what they took. Cotangents are brought to the dtype of the output that they belong to.
//! - Parameters are `f32`, read where they are used; so are their gradients and running statistics.
//! - Tensors are contiguous, and no operation is followed by candle's own differentiation.

mod activation;
mod attention;
mod convolution;
mod dropout;
mod embedding;
mod kept;
mod linear;
mod norm;
mod pool;
mod products;
mod shape;

pub(super) use attention::{SavedHeads, backward_heads, mix};

use candle_core::{DType, Shape, Tensor};
use interlock::{
    Activation, Differentiable, Error, Gradients, Pass, Precision, Result, Saved, Wants, differentiation::Held,
};

use super::{
    form::Form,
    slices::{output_gradient_of, wrong_shape},
};

/// Whether layers compute with `x` by candle's operations.
pub(super) fn serves(x: &Tensor) -> bool {
    Form::on(x.device()) == Form::CandleOperations
}

/// A layer in candle's operations.
pub(super) trait Composed: Differentiable {
    /// What its pull-backs need.
    type Saved: Send + 'static;

    /// What it calls itself in messages.
    fn name(&self) -> &str;

    /// Its input as [`Self::compute`] takes it.
    fn enter(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        enter(x, pass, self.name())
    }

    /// The output for an input that has entered, and what pull-backs need.
    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Self::Saved)>;

    /// The memory that is kept for them.
    fn held(saved: &Self::Saved) -> Vec<Held>;

    /// What `wants` asks for, of a contiguous output_gradient of the output's shape and dtype.
    fn pull(&self, saved: &Self::Saved, c: &Tensor, wants: Wants) -> Result<Gradients>;
}

/// A saved forward pass, with the output that its output_gradients must look like.
struct Forward<S> {
    saved: S,
    shape: Shape,
    dtype: DType,
}

/// `x` contiguous, outside of any graph, and in `f32` unless it is `bf16` and may stay so.
///
/// # Errors
/// If it has another dtype, or no element.
pub(super) fn enter(x: &Tensor, pass: &Pass, layer: &str) -> Result<Tensor> {
    let dtype = activation_dtype(x, pass, layer)?;
    if x.elem_count() == 0 {
        return Err(wrong_shape(layer, x.dims(), "at least one element"));
    }
    as_dtype(x, dtype)
}

/// The dtype of what is computed of both `tensors`: `bf16` where one has it and may keep it.
///
/// # Errors
/// If one has neither dtype of activations.
pub(super) fn common_dtype(tensors: [&Tensor; 2], pass: &Pass, layer: &str) -> Result<DType> {
    let [a, b] = tensors.map(|x| activation_dtype(x, pass, layer));
    Ok(if a? == DType::BF16 || b? == DType::BF16 { DType::BF16 } else { DType::F32 })
}

/// The dtype that `x` has as an activation of `pass`.
fn activation_dtype(x: &Tensor, pass: &Pass, layer: &str) -> Result<DType> {
    match (x.dtype(), pass.precision) {
        (DType::BF16, Precision::Bf16) => Ok(DType::BF16),
        (DType::F32 | DType::BF16, _) => Ok(DType::F32),
        (other, _) => Err(wrong_dtype(layer, other)),
    }
}

/// `x` contiguous, outside of any graph, in `dtype`.
pub(super) fn as_dtype(x: &Tensor, dtype: DType) -> Result<Tensor> {
    Ok(x.detach().to_dtype(dtype)?.contiguous()?)
}

/// `x` in `f32`.
fn wide(x: &Tensor) -> Result<Tensor> {
    as_dtype(x, DType::F32)
}

/// `x` times a number, rounded once: candle's own product in bf16 would round the number too.
fn scaled(x: &Tensor, by: f64) -> Result<Tensor> {
    as_dtype(&(wide(x)? * by)?, x.dtype())
}

fn wrong_dtype(layer: &str, dtype: DType) -> Error {
    Error::invalid(layer, format!("a tensor of {}", dtype.as_str()), "convert it to f32 or bf16")
}

/// Zero as often as `x` has elements; it takes the room of one.
fn zeros(x: &Tensor) -> Result<Tensor> {
    Ok(Tensor::zeros(1, x.dtype(), x.device())?.broadcast_as(x.shape())?)
}

/// `x` where `mask` is not zero, and zero elsewhere, whatever `x` is there.
fn where_set(mask: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(mask.where_cond(x, &zeros(x)?)?)
}

/// The forward pass of `layer`.
pub(super) fn forward<L: Composed>(layer: &L, x: &Tensor, pass: &Pass) -> Result<(Activation, Saved)> {
    let (y, saved) = layer.compute(&layer.enter(x, pass)?, pass)?;
    let saved = match pass.is_train() {
        true => {
            let held = L::held(&saved);
            Saved::new(Forward { saved, shape: y.shape().clone(), dtype: y.dtype() }).holding(held)
        }
        false => Saved::nothing(),
    };
    Ok((y.into(), saved))
}

/// The pull-back of `layer`; none where it was not [`forward`] that saved.
pub(super) fn backward<L: Composed>(
    layer: &L,
    saved: &Saved,
    c: &Activation,
    wants: Wants,
) -> Option<Result<Gradients>> {
    let Forward { saved, shape, dtype } = saved.get::<Forward<L::Saved>>().ok()?;
    let wants = Wants { parameters: wants.parameters && layer.has_parameters(), ..wants };
    if !wants.input && !wants.parameters {
        return Some(Ok(Gradients::default()));
    }
    let pull = || layer.pull(saved, &output_gradient(c, shape.dims(), *dtype, layer.name())?, wants);
    Some(pull())
}

/// A output_gradient of an output of shape `dims`, in its `dtype`.
pub(super) fn output_gradient(c: &Activation, dims: &[usize], dtype: DType, layer: &str) -> Result<Tensor> {
    let c = output_gradient_of(c, dims, layer)?;
    match c.dtype() {
        DType::F32 | DType::BF16 => as_dtype(c, dtype),
        other => Err(wrong_dtype(layer, other)),
    }
}

/// A pull-back to the input alone.
fn input(gradient: Tensor) -> Gradients {
    Gradients { input: Some(gradient.into()), ..Gradients::default() }
}
