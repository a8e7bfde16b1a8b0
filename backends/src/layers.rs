//! Training layers with hand-written gradients: kernels for `f32` tensors on the CPU, candle's operations for `f32` and `bf16` on any other device.
//!
//! Every layer implements [`Differentiable`](interlock::Differentiable) on an activation of one tensor. Images are `(B, C, H, W)`, sequences
//! `(B, T, D)`. Layers for images take them in any layout and, on the CPU, give them channels-last: as elements of `(B, H, W, C)` lie, in PyTorch's
//! words `channels_last`. Parameters have PyTorch's names and shapes.
//!
//! Invariants, kept by all of them:
//! - **The same bits for any number of threads**, on the CPU. Work is cut into chunks that depend on shapes only, every sum over chunks is added up
//!   in the order of the chunks, and matrix products run inside one chunk on one thread.
//! - **Only what is asked for is computed**: an input pass computes no parameter gradient, a parameter pass no input gradient, and the two
//!   apart give the same bits as both at once.
//! - In evaluation mode nothing is saved.
//! - Layers hold the tensors that the parameter store made, read them in place and never build a graph of candle operations.
//! - Elsewhere than on the CPU, no layer reads a value back to the host or waits for the device.

mod activation;
mod attention;
mod batch_norm;
mod composed;
mod conv;
mod conv_block;
mod dropout;
mod embedding;
pub(crate) mod form;
mod images;
mod kept;
mod layer_norm;
mod linear;
mod linear_of;
mod pool;
mod residual;
mod shape;
mod slices;
mod window;

pub use activation::{Gelu, Relu};
pub use attention::CausalSelfAttention;
pub use batch_norm::BatchNorm2d;
pub use conv::{Conv2d, Conv2dConfig};
pub use conv_block::{ConvBlock, Shortcut};
pub use dropout::Dropout;
pub use embedding::{Embedding, TokenAndPosition};
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use linear_of::LinearOf;
pub use pool::{AvgPool2d, GlobalAvgPool, MaxPool2d};
pub use residual::Residual;
pub use shape::Flatten;
