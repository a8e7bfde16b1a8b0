//! Embeddings: the forward pass selects rows, and the gradient sums rows.
//!
//! Tokens on the CPU are checked. On other devices a check would wait for the device. There, a token outside of the vocabulary gets a row of NaN,
//! and the stage fails when it checks its output.

use candle_core::{DType, Tensor, WithDType};
use interlock::{Error, Gradients, ParameterGradients, Pass, Result, SavedMemory, Wants};

use super::{CandleOperations, products::operand, wide};
use crate::layers::{Embedding, TokenAndPosition, slices::wrong_shape};

impl Embedding {
    /// Returns the tokens, contiguous. On other devices than the CPU, tokens outside of the vocabulary become [`OUTSIDE`].
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

    /// Returns a row of the weight for each token, in `f32`.
    fn rows(&self, tokens: &Tensor) -> Result<Tensor> {
        let (weight, flat) = (self.weight.detach(), tokens.flatten_all()?);
        let rows = match tokens.device().is_cpu() {
            true => weight.index_select(&flat, 0)?,
            false => marked_rows(&weight, &flat)?,
        };
        Ok(rows.reshape(self.output_dims(tokens))?)
    }

    /// Returns `∂W`. Each row's terms are added in the order of the tokens.
    fn row_sums(&self, tokens: &Tensor, c: &Tensor) -> Result<Tensor> {
        let zeros = Tensor::zeros(self.weight.shape(), DType::F32, c.device())?;
        Ok(zeros.index_add(&tokens.flatten_all()?, &c.reshape(((), self.width))?, 0)?)
    }
}

/// The index that replaces tokens outside of the vocabulary: candle selects zeros for it, and leaves it out of sums.
const OUTSIDE: u32 = u32::MAX;

/// Returns a tensor shaped as `like` with this value everywhere, which takes the memory of one element.
fn constant<T: WithDType>(value: T, like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::full(value, 1, like.device())?.broadcast_as(like.shape())?)
}

/// Returns `numbers` with [`OUTSIDE`] instead of those that are not below `count`.
fn within(count: usize, numbers: &Tensor) -> Result<Tensor> {
    Ok(numbers.ge(&constant(count as u32, numbers)?)?.where_cond(&constant(OUTSIDE, numbers)?, numbers)?)
}

/// Returns the rows of `weight` with these numbers, and rows of NaN for [`OUTSIDE`].
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

    fn memory(_: &Tensor) -> Vec<SavedMemory> {
        Vec::new()
    }

    fn compute_gradients(&self, tokens: &Tensor, c: &Tensor, wants: Wants) -> Result<Gradients> {
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

    fn memory(_: &Tensor) -> Vec<SavedMemory> {
        Vec::new()
    }

    fn compute_gradients(&self, tokens: &Tensor, c: &Tensor, wants: Wants) -> Result<Gradients> {
        let mut parameters = ParameterGradients::new();
        if wants.parameters {
            let c = wide(c)?;
            parameters.push((self.tokens.weight.id(), self.tokens.row_sums(tokens, &c)?));
            let unused = self.context - tokens.dim(1)?;
            parameters.push((self.positions.id(), c.sum(0)?.pad_with_zeros(0, 0, unused)?));
        }
        Ok(Gradients { input: None, parameters })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn index_out_of_range_selects_nan_and_others_select_their_rows() -> Result<()> {
        let weight = Tensor::new(&[[1_f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
        let rows =
            marked_rows(&weight, &within(2, &Tensor::new(&[1_u32, 2, 0, 7], &Device::Cpu)?)?)?.to_vec2::<f32>()?;
        assert_eq!((&rows[0][..], &rows[2][..]), (&[3.0, 4.0][..], &[1.0, 2.0][..]));
        assert!(rows[1].iter().chain(&rows[3]).all(|value| value.is_nan()));
        Ok(())
    }
}
