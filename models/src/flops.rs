//! Floating-point operations of forward passes, for one example.
//!
//! A multiplication and an addition count as two. Elementwise work is counted roughly, by the constants below: it is a few percent
//! of any model here. The numbers are used only to balance partitions.

/// A rectified linear unit, an addition, one element of a pooling window: each element.
pub(crate) const SIMPLE: f64 = 1.0;
/// Batch or layer norm: mean, variance, normalisation, scale and shift, each element.
pub(crate) const NORM: f64 = 8.0;
/// The tanh-approximated GELU, each element.
pub(crate) const GELU: f64 = 12.0;
/// Softmax: maximum, difference, exponential, sum, quotient, each element.
pub(crate) const SOFTMAX: f64 = 5.0;

/// The number of elements of a shape.
pub(crate) fn elements(shape: &[usize]) -> f64 {
    shape.iter().map(|&n| n as f64).product()
}

/// A linear layer applied to `rows` vectors.
pub(crate) fn linear(rows: usize, inputs: usize, outputs: usize) -> f64 {
    2.0 * rows as f64 * inputs as f64 * outputs as f64
}

/// A square convolution with `inputs` channels whose output has `shape` `[C, H, W]`.
pub(crate) fn convolution(inputs: usize, kernel: usize, shape: &[usize]) -> f64 {
    2.0 * inputs as f64 * (kernel * kernel) as f64 * elements(shape)
}

/// Causal attention of `heads` heads over `tokens` tokens without its projections: the lower triangle of the scores.
pub(crate) fn attention(tokens: usize, width: usize, heads: usize) -> f64 {
    let pairs = tokens as f64 * (tokens as f64 + 1.0) / 2.0;
    pairs * (4.0 * width as f64 + SOFTMAX * heads as f64)
}
