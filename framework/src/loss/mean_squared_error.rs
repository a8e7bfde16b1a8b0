//! Mean squared error: `l = Σ (y - t)²`, divided by the number of elements; `∂l/∂y = 2(y - t)`.

use candle_core::{DType, Tensor};

use super::{Loss, Score, Scored};
use crate::{Error, Result, tensor::sums};

/// The mean over all elements of the squared difference, as PyTorch's `mse_loss`.
///
/// # Shapes
/// Output and targets alike, of any shape; targets are floating-point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeanSquaredError;

impl MeanSquaredError {
    /// In `f32` at the least, however few digits the output has.
    fn difference(&self, output: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.check(output, targets)?;
        let dtype = if output.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        Ok((output.detach().to_dtype(dtype)? - targets.to_dtype(dtype)?)?)
    }

    fn sum(difference: &Tensor) -> Result<Score> {
        let loss = crate::optimizer::clip::squared_norm(&difference.to_dtype(DType::F32)?)?;
        Ok(Score { loss, count: difference.elem_count() as f64, correct: None })
    }

    fn gradient(difference: &Tensor, total: f64, dtype: DType) -> Result<Tensor> {
        let scale = if total > 0.0 { 2.0 / total } else { 0.0 };
        Ok((difference * scale)?.to_dtype(dtype)?)
    }
}

impl Loss for MeanSquaredError {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        Ok(targets.elem_count() as f64)
    }

    fn score(&self, output: &Tensor, targets: &Tensor) -> Result<Score> {
        Self::sum(&self.difference(output, targets)?)
    }

    fn differentiate(&self, output: &Tensor, targets: &Tensor, total: f64) -> Result<(Score, Tensor)> {
        let difference = self.difference(output, targets)?;
        Ok((Self::sum(&difference)?, Self::gradient(&difference, total, output.dtype())?))
    }

    fn check(&self, output: &Tensor, targets: &Tensor) -> Result<()> {
        if output.shape() == targets.shape() {
            return Ok(());
        }
        Err(Error::invalid(
            "mean squared error",
            format!("an output of shape {:?} against targets of shape {:?}", output.dims(), targets.dims()),
            "give targets of the output's shape",
        ))
    }

    fn score_later(&self, output: &Tensor, targets: &Tensor) -> Result<Scored> {
        Ok(Scored::Later(sums::squares(&self.difference(output, targets)?)?))
    }

    fn differentiate_later(&self, output: &Tensor, targets: &Tensor, total: f64) -> Result<(Scored, Tensor)> {
        let difference = self.difference(output, targets)?;
        Ok((Scored::Later(sums::squares(&difference)?), Self::gradient(&difference, total, output.dtype())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn by_hand() {
        let output = Tensor::new(&[[1.0_f32, 2.0], [3.0, 5.0]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[[1.0_f32, 0.0], [4.0, 2.0]], &Device::Cpu).unwrap();
        let (score, gradient) = MeanSquaredError.differentiate(&output, &targets, 8.0).unwrap();
        assert_eq!(score, Score { loss: 14.0, count: 4.0, correct: None });
        assert_eq!(gradient.to_vec2::<f32>().unwrap(), [[0.0, 0.5], [-0.25, 0.75]]);
        let (Scored::Later(sum), later) = MeanSquaredError.differentiate_later(&output, &targets, 8.0).unwrap() else {
            panic!("it is known")
        };
        assert_eq!(sum.to_vec1::<f64>().unwrap(), [14.0]);
        assert_eq!(later.to_vec2::<f32>().unwrap(), [[0.0, 0.5], [-0.25, 0.75]]);
        // 1.0039… lies between two numbers of bf16.
        let rounded = output.to_dtype(DType::BF16).unwrap();
        let near = (output + 1.0 / 256.0).unwrap();
        let (score, gradient) = MeanSquaredError.differentiate(&rounded, &near, 2.0).unwrap();
        assert_eq!((score.loss, gradient.dtype()), (4.0 / 65536.0, DType::BF16));
        assert_eq!(gradient.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap(), [[-1.0 / 256.0; 2]; 2]);
        let error = MeanSquaredError.score(&rounded, &targets.flatten_all().unwrap()).unwrap_err().to_string();
        assert!(error.contains("[2, 2] against targets of shape [4]"), "{error}");
    }
}
