//! Loops over numbers in memory, written for vector units. Layers spend most of their time here.
//!
//! A kernel is a generic body over [`Lanes`](lanes::Lanes), sixteen numbers at a time, compiled for AVX-512, for AVX2 and for any processor;
//! [`dispatch!`] makes the function that selects one of them when it is called. Kernels work on slices and pointers and do not depend on layers;
//! all `unsafe` code of the layers is in this folder. Work for several threads is divided by shapes only.
//!
//! In `bf16` precision, factors of products are rounded to `bf16`; sums and all else are `f32`. Processors with AMX multiply tiles of such factors. On
//! others the same loops as for `f32` run on rounded numbers; the results differ in the order of additions only.
//!
//! The bits of a result depend on the selected instructions, because a fused multiply-add rounds once where the portable body rounds twice (but for
//! aarch64, where it has that instruction too). They depend on nothing else: one binary gives the same bits on every run on one model of CPU.

// Many loops run over constant ranges, so that the compiler unrolls them and keeps the arrays that they index in registers.
#![allow(clippy::needless_range_loop)]

#[macro_use]
mod instructions;
pub(crate) mod aligned_buffer;
pub(crate) mod attention;
pub(crate) mod blocked;
pub(crate) mod channel_lines;
pub(crate) mod convolution;
pub(crate) mod elementwise;
pub(crate) mod gelu;
pub(crate) mod half;
pub(crate) mod image_chunks;
pub(crate) mod lanes;
pub(crate) mod layer_norm;
pub(crate) mod left_factor;
pub(crate) mod linear;
pub(crate) mod matrix;
pub(crate) mod norm;
pub(crate) mod numbers;
pub(crate) mod padded;
pub(crate) mod panels;
pub(crate) mod product;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;

pub use instructions::Instructions;
