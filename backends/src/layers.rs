//! Training layers with hand-written gradients: kernels on the CPU, for `f32` tensors, which they may multiply in `bf16`; candle's operations for `f32` and
//! `bf16` on any other device.
//!
//! Every layer implements [`Differentiable`](interlock::Differentiable) on an activation of one tensor. Images are `(B, C, H, W)`, sequences
//! `(B, T, D)`. Layers for images take them in any layout; on the CPU, they return them channels-last: their elements lie in memory as those of
//! `(B, H, W, C)`, which PyTorch calls `channels_last`. Parameters have PyTorch's names and shapes.
//!
//! Invariants of all layers:
//! - **The same bits for any number of threads**, on the CPU. Work is divided into chunks by shapes only, sums over chunks are added in the order of
//!   the chunks, and a matrix product within a chunk runs on one thread.
//! - **Only the gradients that are asked for are computed**: a pass for the input computes no parameter gradient, and a pass for the parameters no
//!   input gradient. The two passes one after the other give the same bits as one pass for both.
//! - A forward pass for evaluation saves nothing.
//! - Layers hold the tensors that the parameter store made, read them in place, and build no graph of candle operations.
//! - A layer with parameters chooses kernels or candle operations once, when it is built for its device.
//! - On other devices than the CPU, no layer reads a value back to the host or waits for the device.

mod activation;
mod attention;
mod batch_norm;
mod candle_operations;
mod conv;
mod conv_block;
mod dropout;
mod embedding;
pub(crate) mod form;
mod fused_linear;
mod images;
mod layer_norm;
mod linear;
mod pool;
mod residual;
mod saved_tensor;
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
pub use fused_linear::FusedLinear;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use pool::{AvgPool2d, GlobalAvgPool, MaxPool2d};
pub use residual::Residual;
pub use shape::Flatten;
