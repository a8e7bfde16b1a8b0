//! The emulated CUDA device under candle's own CUDA code: what it computes, and what it finds wrong.
//!
//! These tests need device 0 and fail without it; backends/cuda/README.md says how to have an emulated one.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

mod common;
mod convolutions;
mod crossing;
mod elements;
#[cfg(feature = "cudnn")]
mod gradients;
mod kernels;
mod memory;
mod products;
#[cfg(feature = "nccl")]
mod ranks;
mod reductions;
mod streams;
