//! The bits of weights, for comparisons to the bit.
#![allow(unreachable_pub)] // used by test files

use std::collections::BTreeMap;

use candle_core::Tensor;
use interlock::Weights;

/// The bits of `f32` tensors by name.
pub type Bits = BTreeMap<String, Vec<u32>>;

pub fn bits(weights: &Weights) -> Bits {
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect();
    weights.iter().map(|(name, tensor)| (name.to_owned(), bits(tensor))).collect()
}
