//! Tensors: the activations that cross boundaries, their dtypes, and sums over whole tensors in an order that depends on shapes only.

mod activation;
pub(crate) mod cosine;
mod dtype;
pub(crate) mod elementwise;
mod numbers;
pub(crate) mod squared_norm;
pub(crate) mod sums;
pub(crate) mod weighted_sum;

pub use activation::Activation;
pub use dtype::{ActivationDtype, Precision};
pub use numbers::Numbers;
