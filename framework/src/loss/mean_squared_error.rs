//! Mean squared error: `l = Σ (y - t)²`, divided by the number of elements; `∂l/∂y = 2(y - t)`.

use candle_core::{DType, Tensor};

use super::{Loss, PendingScore, Score, Targets};
use crate::{
    Error, Result,
    tensor::{squared_norm::squared_norm, sums},
};

/// The mean over all elements of the squared difference, as PyTorch's `mse_loss`.
///
/// # Shapes
/// Output and targets alike, of any shape; targets are floating-point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeanSquaredError;

impl MeanSquaredError {
    /// Returns the difference, in `f64` if the output is, else in `f32`.
    fn difference(output: &Tensor, targets: &Targets) -> Result<Tensor> {
        if output.shape() != targets.shape() {
            return Err(Error::invalid(
                "mean squared error",
                format!("an output of shape {:?} against targets of shape {:?}", output.dims(), targets.dims()),
                "give targets of the output's shape",
            ));
        }
        let dtype = if output.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        Ok((output.detach().to_dtype(dtype)? - targets.to_dtype(dtype)?)?)
    }

    fn sum(difference: &Tensor, targets: &Targets) -> Result<PendingScore> {
        let count = difference.elem_count() as f64;
        if targets.is_asynchronous() {
            return Ok(PendingScore::on_device(sums::squares(difference)?, count));
        }
        let loss = squared_norm(&difference.to_dtype(DType::F32)?)?;
        Ok(Score { loss, count, correct: None }.into())
    }
}

impl Loss for MeanSquaredError {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        Ok(targets.elem_count() as f64)
    }

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
        Self::sum(&Self::difference(output, targets)?, targets)
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        let difference = Self::difference(output, targets)?;
        let scale = if total > 0.0 { 2.0 / total } else { 0.0 };
        let gradient = (&difference * scale)?.to_dtype(output.dtype())?;
        Ok((Self::sum(&difference, targets)?, gradient))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::tensor::Numbers;

    #[test]
    fn by_hand() {
        let output = Tensor::new(&[[1.0_f32, 2.0], [3.0, 5.0]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[[1.0_f32, 0.0], [4.0, 2.0]], &Device::Cpu).unwrap();
        let (scored, gradient) = MeanSquaredError.differentiate(&output, &(&targets).into(), 8.0).unwrap();
        assert_eq!(scored.read().unwrap(), Score { loss: 14.0, count: 4.0, correct: None });
        assert_eq!(gradient.to_vec2::<f32>().unwrap(), [[0.0, 0.5], [-0.25, 0.75]]);
        let asynchronous = Targets { asynchronous: true, ..(&targets).into() };
        let (scored, later) = MeanSquaredError.differentiate(&output, &asynchronous, 8.0).unwrap();
        assert!(matches!(scored.numbers, Numbers::Device(_)));
        assert_eq!(scored.read().unwrap().loss, 14.0);
        assert_eq!(later.to_vec2::<f32>().unwrap(), [[0.0, 0.5], [-0.25, 0.75]]);
        // 1.0039… lies between two numbers of bf16.
        let rounded = output.to_dtype(DType::BF16).unwrap();
        let near = (output + 1.0 / 256.0).unwrap();
        let (scored, gradient) = MeanSquaredError.differentiate(&rounded, &(&near).into(), 2.0).unwrap();
        assert_eq!((scored.read().unwrap().loss, gradient.dtype()), (4.0 / 65536.0, DType::BF16));
        assert_eq!(gradient.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap(), [[-1.0 / 256.0; 2]; 2]);
        let error =
            MeanSquaredError.score(&rounded, &(&targets.flatten_all().unwrap()).into()).unwrap_err().to_string();
        assert!(error.contains("[2, 2] against targets of shape [4]"), "{error}");
    }
}
