//! Embeddings: rows are selected, and added up for their gradient.
//!
//! Tokens on the CPU are checked. Elsewhere that would wait for the device: the row of a token that is out of the vocabulary is NaN there, which
//! is refused where the activation leaves its stage.

use candle_core::{DType, Tensor, WithDType};
use interlock::{Error, Gradients, Held, ParameterGradients, Pass, Result, Wants};

use super::{CandleOperations, products::operand, wide};
use crate::layers::{Embedding, TokenAndPosition, slices::wrong_shape};

impl Embedding {
    /// The tokens, contiguous; elsewhere than on the CPU, [`OUTSIDE`] for those that are out of the vocabulary.
    fn entered(&self, tokens: &Tensor) -> Result<Tensor> {
        if tokens.device().is_cpu() {
            return self.tokens(tokens);
        }
        if tokens.dtype() != DType::U32 {
            let problem = format!("a tensor of {}", tokens.dtype().as_str());
            return Err(Error::invalid(&self.name, problem, "convert it to u32"));
        }
        if tokens.elem_count() == 0 {
            return Err(wrong_shape(&self.name, tokens.dims(), "at least one element"));
        }
        within(self.vocab, &tokens.detach().contiguous()?)
    }

    /// A row of the weight for each token, in `f32`.
    fn rows(&self, tokens: &Tensor) -> Result<Tensor> {
        let (weight, flat) = (self.weight.detach(), tokens.flatten_all()?);
        let rows = match tokens.device().is_cpu() {
            true => weight.index_select(&flat, 0)?,
            false => marked_rows(&weight, &flat)?,
        };
        Ok(rows.reshape(self.output_dims(tokens))?)
    }

    /// `∂W`; each row's terms are added up in the order of the tokens.
    fn row_sums(&self, tokens: &Tensor, c: &Tensor) -> Result<Tensor> {
        let zeros = Tensor::zeros(self.weight.shape(), DType::F32, c.device())?;
        Ok(zeros.index_add(&tokens.flatten_all()?, &c.reshape(((), self.width))?, 0)?)
    }
}

/// Stands for a number out of range: it selects zeros, and takes no part in sums.
const OUTSIDE: u32 = u32::MAX;

/// `value` as often as `like` has elements; it takes the room of one.
fn constant<T: WithDType>(value: T, like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::full(value, 1, like.device())?.broadcast_as(like.shape())?)
}

/// `numbers` with [`OUTSIDE`] in the place of those that are not below `count`.
fn within(count: usize, numbers: &Tensor) -> Result<Tensor> {
    Ok(numbers.ge(&constant(count as u32, numbers)?)?.where_cond(&constant(OUTSIDE, numbers)?, numbers)?)
}

/// The rows of `weight` with these numbers; NaN for [`OUTSIDE`].
fn marked_rows(weight: &Tensor, numbers: &Tensor) -> Result<Tensor> {
    let outside = numbers.eq(&constant(OUTSIDE, numbers)?)?;
    let marks = outside.where_cond(&constant(f32::NAN, numbers)?, &constant(1.0_f32, numbers)?)?;
    Ok(weight.index_select(numbers, 0)?.broadcast_mul(&marks.unsqueeze(1)?)?)
}

impl CandleOperations for Embedding {
    /// The tokens.
    type Saved = Tensor;

    fn name(&self) -> &str {
        &self.name
    }

    fn enter(&self, x: &Tensor, _: &Pass) -> Result<Tensor> {
        self.entered(x)
    }

    fn compute(&self, tokens: &Tensor, pass: &Pass) -> Result<(Tensor, Tensor)> {
        Ok((operand(&self.rows(tokens)?, pass)?, tokens.clone()))
    }

    fn held(_: &Tensor) -> Vec<Held> {
        Vec::new()
    }

    fn pull(&self, tokens: &Tensor, c: &Tensor, wants: Wants) -> Result<Gradients> {
        let parameters = match wants.parameters {
            true => vec![(self.weight.id(), self.row_sums(tokens, &wide(c)?)?)],
            false => ParameterGradients::new(),
        };
        Ok(Gradients { input: None, parameters })
    }
}

impl CandleOperations for TokenAndPosition {
    /// The tokens.
    type Saved = Tensor;

    fn name(&self) -> &str {
        &self.name
    }

    fn enter(&self, x: &Tensor, _: &Pass) -> Result<Tensor> {
        self.tokens.entered(x)
    }

    fn compute(&self, tokens: &Tensor, pass: &Pass) -> Result<(Tensor, Tensor)> {
        let positions = self.positions.detach().narrow(0, 0, tokens.dim(1)?)?;
        Ok((operand(&self.tokens.rows(tokens)?.broadcast_add(&positions)?, pass)?, tokens.clone()))
    }

    fn held(_: &Tensor) -> Vec<Held> {
        Vec::new()
    }

    fn pull(&self, tokens: &Tensor, c: &Tensor, wants: Wants) -> Result<Gradients> {
        let mut parameters = ParameterGradients::new();
        if wants.parameters {
            let c = wide(c)?;
            parameters.push((self.tokens.weight.id(), self.tokens.row_sums(tokens, &c)?));
            let behind = self.context - tokens.dim(1)?;
            parameters.push((self.positions.id(), c.sum(0)?.pad_with_zeros(0, 0, behind)?));
        }
        Ok(Gradients { input: None, parameters })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_number_out_of_range_selects_nan_and_others_their_rows() -> Result<()> {
        let weight = Tensor::new(&[[1_f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
        let rows =
            marked_rows(&weight, &within(2, &Tensor::new(&[1_u32, 2, 0, 7], &Device::Cpu)?)?)?.to_vec2::<f32>()?;
        assert_eq!((&rows[0][..], &rows[2][..]), (&[3.0, 4.0][..], &[1.0, 2.0][..]));
        assert!(rows[1].iter().chain(&rows[3]).all(|value| value.is_nan()));
        Ok(())
    }
}
