//! The memory that saved activations hold.

use std::collections::HashMap;

use candle_core::Tensor;

/// A piece of memory that saved activations hold, identified by its address, so that memory held by two layers is counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedMemory {
    address: usize,
    bytes: usize,
}

impl SavedMemory {
    /// Returns the memory of a tensor's elements.
    pub fn of_tensor(tensor: &Tensor) -> Self {
        let (storage, _) = tensor.storage_and_layout();
        Self {
            address: std::ptr::from_ref(&*storage).addr(),
            bytes: tensor.elem_count() * tensor.dtype().size_in_bytes(),
        }
    }

    /// Returns the memory of a slice.
    pub fn of_slice<T>(slice: &[T]) -> Self {
        Self { address: slice.as_ptr().addr(), bytes: size_of_val(slice) }
    }
}

/// Returns the bytes of all pieces. Of several pieces at one address, the largest counts.
pub(crate) fn bytes<'a>(memory: impl IntoIterator<Item = &'a SavedMemory>) -> usize {
    let mut largest = HashMap::<usize, usize>::new();
    for piece in memory {
        let known = largest.entry(piece.address).or_default();
        *known = piece.bytes.max(*known);
    }
    largest.values().sum()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn memory_kept_twice_is_counted_once() {
        let zeros = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
        let (a, b) = (zeros(10), zeros(10));
        let part = a.narrow(0, 2, 3).unwrap();
        let numbers = vec![0_u64; 4];
        let memory = [&part, &a, &a.detach(), &b].map(SavedMemory::of_tensor);
        assert_eq!(bytes(&memory[..1]), 12);
        assert_eq!(bytes(&memory), 80);
        assert_eq!(bytes(memory.iter().chain([&SavedMemory::of_slice(&numbers)])), 112);
    }
}
