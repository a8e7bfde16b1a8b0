//! ReLU and GELU.

use candle_core::Tensor;
use interlock::{Gradients, Pass, Result, SavedMemory, Wants};

use super::{CandleOperations, as_dtype, input, saved_tensor::SavedCandleTensor, where_set, wide, zeros};
use crate::layers::{Gelu, Relu};

impl CandleOperations for Relu {
    /// The output, which the next layer saves too.
    type Saved = SavedCandleTensor;

    fn name(&self) -> &str {
        "relu"
    }

    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, SavedCandleTensor)> {
        let zeros = zeros(x)?;
        // Not `x > 0`, which would replace NaN by 0.
        let y = x.lt(&zeros)?.where_cond(&zeros, x)?;
        let saved = SavedCandleTensor::new(&y, pass)?;
        Ok((y, saved))
    }

    fn memory(y: &SavedCandleTensor) -> Vec<SavedMemory> {
        vec![y.memory()]
    }

    fn compute_gradients(&self, y: &SavedCandleTensor, c: &Tensor, _: Wants) -> Result<Gradients> {
        let y = y.tensor()?;
        Ok(input(where_set(&y.gt(&zeros(&y)?)?, c)?))
    }
}

impl CandleOperations for Gelu {
    type Saved = SavedCandleTensor;

    fn name(&self) -> &str {
        "gelu"
    }

    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, SavedCandleTensor)> {
        Ok((as_dtype(&wide(x)?.gelu()?, x.dtype())?, SavedCandleTensor::new(x, pass)?))
    }

    fn memory(x: &SavedCandleTensor) -> Vec<SavedMemory> {
        vec![x.memory()]
    }

    fn compute_gradients(&self, x: &SavedCandleTensor, c: &Tensor, _: Wants) -> Result<Gradients> {
        const CUBIC: f64 = 0.044715;
        let root = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
        // y = x (1 + t)/2 with t = tanh u, so ∂x = c ((1 + t) + x (1 - t²) u')/2.
        let x = wide(&x.tensor()?)?;
        let square = x.sqr()?;
        let t = (&x * square.affine(root * CUBIC, root)?)?.tanh()?;
        let x_du = (&x * square.affine(3.0 * root * CUBIC, root)?)?;
        let slope = ((&t + (x_du * t.sqr()?.affine(-1.0, 1.0)?)?)? * 0.5)?.affine(1.0, 0.5)?;
        Ok(input(as_dtype(&(wide(c)? * slope)?, c.dtype())?))
    }
}
