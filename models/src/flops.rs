//! Numbers of floating-point operations of forward passes, for one example.
//!
//! A multiplication and an addition count as two operations. Elementwise work, which is a few percent of any model here, is estimated with the
//! constants below. The numbers are used only to balance partitions.

/// Operations for each element of a ReLU, an addition or a pooling window.
pub(crate) const SIMPLE: f64 = 1.0;
/// Operations for each element of a batch or layer norm: mean, variance, normalization, scale and shift.
pub(crate) const NORM: f64 = 8.0;
/// Operations for each element of the tanh-approximated GELU.
pub(crate) const GELU: f64 = 12.0;
/// Operations for each element of a softmax: maximum, difference, exponential, sum and quotient.
pub(crate) const SOFTMAX: f64 = 5.0;

/// Returns the number of elements of a shape.
pub(crate) fn elements(shape: &[usize]) -> f64 {
    shape.iter().map(|&n| n as f64).product()
}

/// Returns the operations of a linear layer for `rows` vectors.
pub(crate) fn linear(rows: usize, inputs: usize, outputs: usize) -> f64 {
    2.0 * rows as f64 * inputs as f64 * outputs as f64
}

/// Returns the operations of a convolution with a square kernel, `inputs` input channels and output `shape` `[C, H, W]`.
pub(crate) fn convolution(inputs: usize, kernel: usize, shape: &[usize]) -> f64 {
    2.0 * inputs as f64 * (kernel * kernel) as f64 * elements(shape)
}

/// Returns the operations of causal attention of `heads` heads over `tokens` tokens: of the lower triangle of the scores, without the projections.
pub(crate) fn attention(tokens: usize, width: usize, heads: usize) -> f64 {
    let pairs = tokens as f64 * (tokens as f64 + 1.0) / 2.0;
    pairs * (4.0 * width as f64 + SOFTMAX * heads as f64)
}
