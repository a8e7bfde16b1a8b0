//! Embeddings: `y[i] = W[t[i]]`, and with positions `y[b,s] = W[t[b,s]] + P[s]`.
//!
//! Shapes: tokens `t (…)` of `u32`, `W (vocab, D)`, `P (context, D)`, `y (…, D)`. `∂W[v] = Σ_{t[i] = v} c[i]`, `∂P[s] = Σ_b c[b,s]`. Tokens have no
//! gradient, so an embedding must be the first layer of a model.

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};
use interlock::{Activation, Differentiable, Error, Gradients, Pass, Result, Saved, Wants};
use rayon::prelude::*;

use super::{
    candle_operations,
    form::Form,
    slices::{dense_of, label, output_gradient, read, tensor, wrong_shape},
};
use crate::kernels::elementwise::CHUNK;

/// A vector for each token.
#[derive(Clone, Debug)]
pub struct Embedding {
    pub(super) name: String,
    pub(super) vocab: usize,
    pub(super) width: usize,
    pub(super) weight: Tensor,
    /// Chosen when the layer is built.
    form: Form,
}

impl Embedding {
    /// Makes `weight (vocab, width)` from the standard normal distribution.
    pub fn new(vocab: usize, width: usize, vb: VarBuilder) -> Result<Self> {
        Self::with_init(vocab, width, Init::Randn { mean: 0.0, stdev: 1.0 }, vb)
    }

    /// Makes `weight (vocab, width)`.
    pub fn with_init(vocab: usize, width: usize, init: Init, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((vocab, width), "weight", init)?;
        Ok(Self { name: label("embedding", &vb), vocab, width, weight, form: Form::on(vb.device()) })
    }

    /// Returns the tokens, contiguous, and checks that each is below the size of the vocabulary.
    pub(super) fn tokens(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = dense_of(x, DType::U32, &self.name)?;
        if let Some((at, token)) = read::<u32>(&tokens)?.iter().enumerate().find(|(_, t)| **t as usize >= self.vocab) {
            return Err(Error::invalid(
                &self.name,
                format!("token {token} at index {at} of an input of shape {:?}", tokens.dims()),
                format!("tokens must be below {}, the size of the vocabulary", self.vocab),
            ));
        }
        Ok(tokens)
    }

    pub(super) fn output_dims(&self, tokens: &Tensor) -> Vec<usize> {
        [tokens.dims(), &[self.width]].concat()
    }

    fn look_up(&self, tokens: &Tensor) -> Result<Vec<f32>> {
        let (width, rows) = (self.width, CHUNK.div_ceil(self.width));
        let (weight, tokens) = (read::<f32>(&self.weight)?, read::<u32>(tokens)?);
        let weight: &[f32] = &weight;
        let mut y = vec![0.0; tokens.len() * width];
        y.par_chunks_mut(rows * width).zip(tokens.par_chunks(rows)).for_each(|(y, tokens)| {
            for (y, &token) in y.chunks_exact_mut(width).zip(tokens) {
                y.copy_from_slice(&weight[token as usize * width..][..width]);
            }
        });
        Ok(y)
    }

    /// Returns `∂W`. The work is divided by the vocabulary: each task adds the rows of its own tokens, in the order of the input.
    fn weight_gradient(&self, tokens: &Tensor, c: &[f32]) -> Result<Tensor> {
        let width = self.width;
        let tokens = read::<u32>(tokens)?;
        let tokens: &[u32] = &tokens;
        let rows = self.vocab.div_ceil(8);
        let mut dw = vec![0.0; self.vocab * width];
        dw.par_chunks_mut(rows * width).enumerate().for_each(|(i, dw)| {
            let first = i * rows;
            let own_tokens = first..first + dw.len() / width;
            for (c, &token) in c.chunks_exact(width).zip(tokens) {
                let token = token as usize;
                if own_tokens.contains(&token) {
                    for (dw, &c) in dw[(token - first) * width..][..width].iter_mut().zip(c) {
                        *dw += c;
                    }
                }
            }
        });
        tensor(dw, self.weight.shape())
    }
}

impl Differentiable for Embedding {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        if self.form == Form::CandleOperations {
            return candle_operations::forward(self, x, pass);
        }
        let tokens = self.tokens(x)?;
        let y = tensor(self.look_up(&tokens)?, self.output_dims(&tokens))?;
        let saved = if pass.is_train() { Saved::new(tokens) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let tokens: &Tensor = saved.get()?;
        if !wants.parameters {
            return Ok(Gradients::default());
        }
        let c = output_gradient(c, &self.output_dims(tokens), &self.name)?;
        let dw = self.weight_gradient(tokens, &read(&c)?)?;
        Ok(Gradients { input: None, parameters: vec![(self.weight.id(), dw)] })
    }
}

/// A vector for each token plus one for each position: tokens `(B, T)` to `(B, T, D)`.
#[derive(Clone, Debug)]
pub struct TokenAndPosition {
    pub(super) name: String,
    pub(super) context: usize,
    pub(super) tokens: Embedding,
    pub(super) positions: Tensor,
}

impl TokenAndPosition {
    /// Makes `wte.weight (vocab, width)` and `wpe.weight (context, width)` from a normal distribution of standard deviation 0.02.
    pub fn new(vocab: usize, context: usize, width: usize, vb: VarBuilder) -> Result<Self> {
        let init = Init::Randn { mean: 0.0, stdev: 0.02 };
        Ok(Self {
            name: label("token and position embedding", &vb),
            context,
            tokens: Embedding::with_init(vocab, width, init, vb.pp("wte"))?,
            positions: vb.pp("wpe").get_with_hints((context, width), "weight", init)?,
        })
    }

    fn position_gradient(&self, c: &[f32], length: usize) -> Result<Tensor> {
        let width = self.tokens.width;
        let mut dp = vec![0.0_f32; self.context * width];
        dp[..length * width].par_chunks_mut(width).enumerate().for_each(|(position, dp)| {
            for sequence in c.chunks_exact(length * width) {
                for (dp, &c) in dp.iter_mut().zip(&sequence[position * width..]) {
                    *dp += c;
                }
            }
        });
        tensor(dp, self.positions.shape())
    }
}

impl Differentiable for TokenAndPosition {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let length = match x.dims() {
            &[_, length] if length <= self.context => length,
            dims => {
                return Err(wrong_shape(
                    &self.name,
                    dims,
                    format_args!("(B, T) with T ≤ {}, its context", self.context),
                ));
            }
        };
        if self.tokens.form == Form::CandleOperations {
            return candle_operations::forward(self, x, pass);
        }
        let tokens = self.tokens.tokens(x)?;
        let mut y = self.tokens.look_up(&tokens)?;
        let width = self.tokens.width;
        let positions = read::<f32>(&self.positions)?;
        let positions = &positions[..length * width];
        y.par_chunks_mut(length * width).for_each(|y| {
            for (y, &position) in y.iter_mut().zip(positions) {
                *y += position;
            }
        });
        let y = tensor(y, self.tokens.output_dims(&tokens))?;
        let saved = if pass.is_train() { Saved::new(tokens) } else { Saved::nothing() };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let tokens: &Tensor = saved.get()?;
        if !wants.parameters {
            return Ok(Gradients::default());
        }
        let c = output_gradient(c, &self.tokens.output_dims(tokens), &self.name)?;
        let c = read(&c)?;
        let dw = self.tokens.weight_gradient(tokens, &c)?;
        let dp = self.position_gradient(&c, tokens.dims()[1])?;
        Ok(Gradients { input: None, parameters: vec![(self.tokens.weight.id(), dw), (self.positions.id(), dp)] })
    }
}
