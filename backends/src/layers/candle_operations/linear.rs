//! Linear layers: one matrix product each for the output, the gradient of the input, and the gradient of the weight.

use candle_core::Tensor;
use interlock::{Activation, Gradients, ParameterGradients, Pass, Result, SavedMemory, Wants};

use super::{
    CandleOperations, as_dtype,
    products::{operand, product},
    saved_tensor::SavedCandleTensor,
    wide,
};
use crate::layers::Linear;

/// Returns `x` as a matrix whose rows are its last dimension.
fn rows(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_to(x.rank().saturating_sub(2)).and_then(|x| if x.rank() == 1 { x.unsqueeze(0) } else { Ok(x) })?)
}

impl CandleOperations for Linear {
    type Saved = SavedCandleTensor;

    fn name(&self) -> &str {
        &self.name
    }

    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, SavedCandleTensor)> {
        let dims = self.output_dims(x.dims())?;
        let x = operand(x, pass)?;
        let y = product(&rows(&x)?, &as_dtype(&self.weight, x.dtype())?.t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(&as_dtype(bias, y.dtype())?)?,
            None => y,
        };
        Ok((y.reshape(dims)?, SavedCandleTensor::new(&x, pass)?))
    }

    fn memory(x: &SavedCandleTensor) -> Vec<SavedMemory> {
        vec![x.memory()]
    }

    fn compute_gradients(&self, x: &SavedCandleTensor, c: &Tensor, wants: Wants) -> Result<Gradients> {
        let c = rows(c)?;
        let input = match wants.input {
            true => Some(product(&c, &as_dtype(&self.weight, c.dtype())?)?.reshape(x.dims())?.into()),
            false => None::<Activation>,
        };
        let mut parameters = ParameterGradients::new();
        if wants.parameters {
            if self.weight.is_variable() {
                parameters.push((self.weight.id(), wide(&product(&c.t()?, &rows(&x.tensor()?)?)?)?));
            }
            if let Some(bias) = &self.bias {
                parameters.push((bias.id(), wide(&c)?.sum(0)?));
            }
        }
        Ok(Gradients { input, parameters })
    }
}
