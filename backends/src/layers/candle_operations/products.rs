//! Products of matrices.

use candle_core::{DType, Tensor};
use interlock::{Pass, Precision, Result};

use super::as_dtype;

/// Returns `x` in the dtype of the pass's products.
pub(super) fn operand(x: &Tensor, pass: &Pass) -> Result<Tensor> {
    match pass.precision {
        Precision::F32 => as_dtype(x, DType::F32),
        Precision::Bf16 => as_dtype(x, DType::BF16),
    }
}

/// Returns `a b` in the dtype of both; sums are in `f32`. Each factor is row-major, or the transpose of a row-major matrix.
pub(super) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    summed_wide(a, b, |a, b| Ok(a.matmul(b)?))
}

/// Returns `of(a, b)` for two operands of one dtype. candle has no products of `bf16` on the CPU: there they are computed in `f32` and rounded, as
/// GPUs do.
pub(super) fn summed_wide(
    a: &Tensor,
    b: &Tensor,
    of: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if a.dtype() == DType::BF16 && a.device().is_cpu() {
        let product = of(&a.to_dtype(DType::F32)?, &b.to_dtype(DType::F32)?)?;
        return Ok(product.to_dtype(DType::BF16)?);
    }
    of(a, b)
}
