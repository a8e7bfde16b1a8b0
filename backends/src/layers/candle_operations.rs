//! The mathematics of the layers in candle's operations, for any device.
//!
//! On the CPU, layers compute with kernels (`crate::kernels`). On every other device, they compute with the functions here. So does the CPU device
//! `cpu:layers=candle`, which tests these functions without a GPU. The parameters, names and messages are those of the public layers. A layer with
//! parameters chooses its form when it is built ([`Form`]); a layer without parameters follows the device of its input. A backward pass has the form
//! of its forward pass.
//!
//! Rules:
//! - No value is read back to the host, and nothing waits for the device.
//! - Inputs are `f32` or `bf16`. Products of matrices and convolutions compute in the pass's [`Precision`], and their outputs have its dtype. Norms,
//!   softmax, means and sums compute in `f32`, and their outputs have the dtype of their inputs. An output gradient is converted to the dtype of
//!   the output.
//! - Parameters, their gradients and running statistics are `f32`.
//! - Tensors are contiguous, and candle does not record operations for its own differentiation.

mod activation;
mod attention;
mod convolution;
mod dropout;
mod embedding;
mod linear;
mod norm;
mod pool;
mod products;
mod saved_tensor;
mod shape;

pub(super) use attention::{SavedHeads, backward_heads, mix};

use candle_core::{DType, Shape, Tensor};
use interlock::{Activation, Differentiable, Error, Gradients, Pass, Precision, Result, Saved, SavedMemory, Wants};

use super::{
    form::Form,
    slices::{output_gradient_of, wrong_shape},
};

/// Returns whether a layer without parameters computes with candle's operations for the input `x`.
pub(super) fn are_for(x: &Tensor) -> bool {
    Form::on(x.device()) == Form::CandleOperations
}

/// A layer written with candle's operations.
pub(super) trait CandleOperations: Differentiable {
    /// The tensors that its backward passes need.
    type Saved: Send + 'static;

    /// Returns the layer's name in messages.
    fn name(&self) -> &str;

    /// Converts the input to what [`Self::compute`] takes.
    fn enter(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        enter(x, pass, self.name())
    }

    /// Returns the output for a converted input, and the tensors that backward passes need.
    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, Self::Saved)>;

    /// Returns the memory of these tensors.
    fn memory(saved: &Self::Saved) -> Vec<SavedMemory>;

    /// Returns the gradients that `wants` asks for, from a contiguous output gradient of the output's shape and dtype.
    fn compute_gradients(&self, saved: &Self::Saved, c: &Tensor, wants: Wants) -> Result<Gradients>;
}

/// A saved forward pass, with the shape and dtype of its output.
struct Forward<S> {
    saved: S,
    shape: Shape,
    dtype: DType,
}

/// Returns `x` contiguous, without a graph, and in `f32`; in `bf16` if it is `bf16` and the pass's precision is too.
///
/// # Errors
/// If it has another dtype, or no elements.
pub(super) fn enter(x: &Tensor, pass: &Pass, layer: &str) -> Result<Tensor> {
    let dtype = activation_dtype(x, pass, layer)?;
    if x.elem_count() == 0 {
        return Err(wrong_shape(layer, x.dims(), "at least one element"));
    }
    as_dtype(x, dtype)
}

/// Returns the dtype of what is computed from both `tensors`: `bf16` if one is and the pass's precision is too, else `f32`.
///
/// # Errors
/// If one is neither `f32` nor `bf16`.
pub(super) fn common_dtype(tensors: [&Tensor; 2], pass: &Pass, layer: &str) -> Result<DType> {
    let [a, b] = tensors.map(|x| activation_dtype(x, pass, layer));
    Ok(if a? == DType::BF16 || b? == DType::BF16 { DType::BF16 } else { DType::F32 })
}

/// Returns the dtype of `x` as an activation of `pass`.
fn activation_dtype(x: &Tensor, pass: &Pass, layer: &str) -> Result<DType> {
    match (x.dtype(), pass.precision) {
        (DType::BF16, Precision::Bf16) => Ok(DType::BF16),
        (DType::F32 | DType::BF16, _) => Ok(DType::F32),
        (other, _) => Err(wrong_dtype(layer, other)),
    }
}

/// Returns `x` contiguous, without a graph, in `dtype`.
pub(super) fn as_dtype(x: &Tensor, dtype: DType) -> Result<Tensor> {
    Ok(x.detach().to_dtype(dtype)?.contiguous()?)
}

/// Returns `x` in `f32`.
fn wide(x: &Tensor) -> Result<Tensor> {
    as_dtype(x, DType::F32)
}

/// Returns `x` times a number, rounded once: candle's own product in `bf16` would round the number too.
fn scaled(x: &Tensor, by: f64) -> Result<Tensor> {
    as_dtype(&(wide(x)? * by)?, x.dtype())
}

fn wrong_dtype(layer: &str, dtype: DType) -> Error {
    Error::invalid(layer, format!("a tensor of {}", dtype.as_str()), "convert it to f32 or bf16")
}

/// Returns zeros shaped as `x`, which share the memory of a single zero.
fn zeros(x: &Tensor) -> Result<Tensor> {
    Ok(Tensor::zeros(1, x.dtype(), x.device())?.broadcast_as(x.shape())?)
}

/// Returns `x` where `mask` is not zero, and zero elsewhere, even if `x` is not finite there.
fn where_set(mask: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(mask.where_cond(x, &zeros(x)?)?)
}

/// Runs the forward pass of `layer`.
pub(super) fn forward<L: CandleOperations>(layer: &L, x: &Tensor, pass: &Pass) -> Result<(Activation, Saved)> {
    let (y, saved) = layer.compute(&layer.enter(x, pass)?, pass)?;
    let saved = match pass.is_train() {
        true => {
            let memory = L::memory(&saved);
            Saved::new(Forward { saved, shape: y.shape().clone(), dtype: y.dtype() }).with_memory(memory)
        }
        false => Saved::nothing(),
    };
    Ok((y.into(), saved))
}

/// Runs the backward pass of `layer`. Returns none if `saved` is not from [`forward`].
pub(super) fn backward<L: CandleOperations>(
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
    let run = || layer.compute_gradients(saved, &output_gradient(c, shape.dims(), *dtype, layer.name())?, wants);
    Some(run())
}

/// Returns the output gradient of an output of shape `dims`, in that output's `dtype`.
pub(super) fn output_gradient(c: &Activation, dims: &[usize], dtype: DType, layer: &str) -> Result<Tensor> {
    let c = output_gradient_of(c, dims, layer)?;
    match c.dtype() {
        DType::F32 | DType::BF16 => as_dtype(c, dtype),
        other => Err(wrong_dtype(layer, other)),
    }
}

/// Returns [`Gradients`] with that of the input alone.
fn input(gradient: Tensor) -> Gradients {
    Gradients { input: Some(gradient.into()), ..Gradients::default() }
}
