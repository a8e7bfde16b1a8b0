//! The heads of causal self-attention. The attention weights are not saved: a backward pass computes them again from queries and keys.

use candle_core::{DType, Tensor};
use candle_nn::ops::softmax_last_dim;
use interlock::{Activation, Pass, Result, SavedMemory};

use super::{
    as_dtype,
    dropout::{Mask, masked},
    output_gradient,
    products::{operand, product},
    saved_tensor::SavedCandleTensor,
    scaled, wide,
};
use crate::kernels::attention::AttentionHeads;

/// The tensors that the heads save.
pub(crate) struct SavedHeads {
    /// Queries, keys and values, `(B, T, 3·n·h)`.
    qkv: SavedCandleTensor,
    /// The dropout of the weights, `(B, n, T, T)`.
    mask: Option<Mask>,
}

impl SavedHeads {
    pub(crate) fn memory(&self) -> Vec<SavedMemory> {
        self.mask.iter().map(Mask::memory).chain([self.qkv.memory()]).collect()
    }
}

/// Returns queries divided by `√h`, keys, and values of all heads, `(B, n, T, h)` each.
fn parts(heads: &AttentionHeads, qkv: &Tensor) -> Result<[Tensor; 3]> {
    let AttentionHeads { batch, length, count, width, .. } = *heads;
    let qkv = qkv.reshape((batch, length, 3, count, width))?;
    let part = |at: usize| qkv.narrow(2, at, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
    Ok([scaled(&part(0)?, scale(heads))?, part(1)?, part(2)?])
}

fn scale(heads: &AttentionHeads) -> f64 {
    1.0 / (heads.width as f64).sqrt()
}

/// Returns the softmax of each position's scores up to its own, `(B, n, T, T)`, in `f32`.
fn weights(queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
    let scores = wide(&product(queries, &keys.transpose(2, 3)?)?)?;
    let length = scores.dim(3)?;
    let positions = Tensor::arange(0, length as u32, scores.device())?;
    let seen = positions.reshape((length, 1))?.broadcast_ge(&positions.reshape((1, length))?)?;
    let nothing = Tensor::full(f32::NEG_INFINITY, 1, scores.device())?.broadcast_as(scores.shape())?;
    Ok(softmax_last_dim(&seen.broadcast_as(scores.shape())?.where_cond(&scores, &nothing)?)?)
}

/// Returns `x (B, n, T, h)` with the heads side by side, `(B, T, n·h)`.
fn joined(heads: &AttentionHeads, x: &Tensor) -> Result<Tensor> {
    Ok(x.transpose(1, 2)?.reshape(&heads.dims(1))?)
}

/// Returns the outputs of all heads, `(B, T, n·h)`, from queries, keys and values `(B, T, 3·n·h)`. Weights are dropped with `probability`, by the
/// random numbers of the dropout called `name`.
pub(crate) fn mix(
    heads: &AttentionHeads,
    qkv: &Tensor,
    (probability, name): (f64, &str),
    pass: &Pass,
) -> Result<(Tensor, SavedHeads)> {
    let AttentionHeads { batch, length, count, .. } = *heads;
    let qkv = operand(qkv, pass)?;
    let [queries, keys, values] = parts(heads, &qkv)?;
    let mask = Mask::draw(probability, name, pass, (batch, count, length, length), &qkv)?;
    let weights = masked(mask.as_ref(), &weights(&queries, &keys)?)?;
    let mixed = product(&as_dtype(&weights, qkv.dtype())?, &values)?;
    Ok((joined(heads, &mixed)?, SavedHeads { qkv: SavedCandleTensor::new(&qkv, pass)?, mask }))
}

/// Returns the gradient of queries, keys and values from the output gradient of [`mix`].
pub(crate) fn backward_heads(
    heads: &AttentionHeads,
    saved: &SavedHeads,
    c: &Activation,
    layer: &str,
) -> Result<Tensor> {
    let AttentionHeads { batch, length, count, width, .. } = *heads;
    let qkv = saved.qkv.tensor()?;
    let dtype = qkv.dtype();
    let c = output_gradient(c, &heads.dims(1), dtype, layer)?;
    let c = c.reshape((batch, length, count, width))?.transpose(1, 2)?.contiguous()?;
    let [queries, keys, values] = parts(heads, &qkv)?;
    let p = weights(&queries, &keys)?;
    let mask = saved.mask.as_ref();
    let dv = product(&as_dtype(&masked(mask, &p)?, dtype)?.transpose(2, 3)?, &c)?;
    let dp = masked(mask, &product(&c, &values.transpose(2, 3)?)?.to_dtype(DType::F32)?)?;
    let along = (&dp * &p)?.sum_keepdim(3)?;
    let ds = as_dtype(&(&p * dp.broadcast_sub(&along)?)?, dtype)?;
    let dq = scaled(&product(&ds, &keys)?, scale(heads))?;
    // `queries` are already divided by √h.
    let dk = product(&ds.transpose(2, 3)?, &queries)?;
    let all = [dq, dk, dv].map(|part| part.transpose(1, 2));
    let [dq, dk, dv] = all;
    let all = Tensor::stack(&[dq?, dk?, dv?], 2)?;
    Ok(all.reshape(&heads.dims(3))?)
}
