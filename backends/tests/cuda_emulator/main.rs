//! The emulated CUDA device under candle's own CUDA code: its results, and the errors that it detects.
//!
//! These tests need device 0 and fail without it; backends/cuda/README.md explains how to build an emulated one.
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
