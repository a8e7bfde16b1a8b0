//! Loops over all elements of a tensor on the CPU, in place, on all threads of the device.
//!
//! Work is cut into chunks of a fixed number of elements, so that no result depends on the number of threads. Loops run on the threads of the
//! caller's pool (a stage's device), or on the calling thread if it is in no pool.

use std::{cell::Cell, ops::Range};

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Storage, Tensor};
use rayon::prelude::*;

use crate::Result;

/// The elements of a chunk: 64 KiB of `f32`.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Returns what `of` returns for each of `pieces`, in order. `elements` is their total number of elements; if it is large, several threads share the
/// work.
pub(crate) fn each<P: Send, R: Send>(
    elements: usize,
    pieces: impl Iterator<Item = P>,
    of: impl Fn(P) -> R + Sync + Send,
) -> Vec<R> {
    match elements > CHUNK && rayon::current_thread_index().is_some() && rayon::current_num_threads() > 1 {
        true => pieces.collect::<Vec<P>>().into_par_iter().map(of).collect(),
        false => pieces.map(of).collect(),
    }
}

/// Returns whether every value is finite. It has no branch for each value, so it runs at the speed of memory.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    // An infinity or a NaN has an exponent of all ones.
    const EXPONENT: u32 = 0x7f80_0000;
    !values.iter().fold(false, |bad, v| bad | (v.to_bits() & EXPONENT == EXPONENT))
}

/// Returns whether every element is finite.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool> {
    let (storage, layout) = tensor.storage_and_layout();
    // A value that is repeated (stride 0) is looked at once.
    let range = range_without(layout, |stride, size| size == 1 || (stride == 0 && size > 0));
    match (&*storage, range) {
        (Storage::Cpu(CpuStorage::F32(values)), Some(range)) => {
            let values = &values[range];
            return Ok(!each(values.len(), values.chunks(CHUNK), all_finite).contains(&false));
        }
        (Storage::Cpu(CpuStorage::BF16(values)), Some(range)) => {
            let values = &values[range];
            let chunks = values.chunks(CHUNK);
            let bad = each(values.len(), chunks, |chunk| chunk.iter().fold(false, |bad, v| bad | !v.is_finite()));
            return Ok(!bad.contains(&true));
        }
        _ => {}
    }
    drop(storage);
    // Zero times a finite value is zero; zero times any other value is NaN.
    let sum = tensor.zeros_like()?.mul(tensor)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    Ok(sum == 0.0)
}

/// Returns the range of the storage that the tensor's elements cover, each once and without a gap, in any order: the range of contiguous tensors and
/// of their permutations. None for other tensors.
pub(crate) fn dense_range(layout: &Layout) -> Option<Range<usize>> {
    range_without(layout, |_, size| size == 1)
}

/// Returns the [`dense_range`] of the dimensions that remain without those for which `goes(stride, size)` is true.
fn range_without(layout: &Layout, goes: impl Fn(usize, usize) -> bool) -> Option<Range<usize>> {
    let strides = layout.stride().iter().copied();
    let mut dims: Vec<(usize, usize)> =
        strides.zip(layout.dims().iter().copied()).filter(|&(stride, size)| !goes(stride, size)).collect();
    dims.sort_unstable();
    let mut covered = 1;
    for (stride, size) in dims {
        if stride != covered {
            return None;
        }
        covered *= size;
    }
    Some(layout.start_offset()..layout.start_offset() + covered)
}

/// An operation that changes a tensor in place, and its result.
struct Change<F, R> {
    change: Cell<Option<F>>,
    result: Cell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32], &[f32]) -> R> InplaceOp2 for Change<F, R> {
    fn name(&self) -> &'static str {
        "change-in-place"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), CpuStorage::F32(others)) = (s1, s2) else { return Ok(()) };
        if let (Some((from, to)), Some((others_from, others_to)), Some(change)) =
            (l1.contiguous_offsets(), l2.contiguous_offsets(), self.change.take())
        {
            self.result.set(Some(change(&mut values[from..to], &others[others_from..others_to])));
        }
        Ok(())
    }
}

/// Lets `change` write into the elements of `values`, beside those of `others`, and returns its result. Every tensor that shares the storage of
/// `values` changes with it. Does nothing and returns none unless `values` is a contiguous `f32` tensor on the CPU and `others` is one of the same
/// shape there.
pub(crate) fn change_in_place<R>(
    values: &Tensor,
    others: &Tensor,
    change: impl FnOnce(&mut [f32], &[f32]) -> R,
) -> Result<Option<R>> {
    let suited = |t: &Tensor| t.device().is_cpu() && t.dtype() == DType::F32 && t.shape() == values.shape();
    if !suited(values) || !suited(others) || !values.is_contiguous() {
        return Ok(None);
    }
    let others = match storage_of(values) == storage_of(others) {
        // `others` is `values` itself or a view of it: copied before it is written to.
        true => others.copy()?.contiguous()?,
        false => others.contiguous()?,
    };
    let change = Change { change: Cell::new(Some(change)), result: Cell::new(None) };
    values.inplace_op2(&others, &change)?;
    Ok(change.result.take())
}

/// Returns the address of a tensor's storage, which is equal for tensors that share it.
fn storage_of(tensor: &Tensor) -> *const Storage {
    &*tensor.storage_and_layout().0
}

/// Adds `others` to `sum` in place, and returns what `of` returns for each chunk of the sum, in order. `of` reads each chunk while it is in the
/// cache. Does nothing and returns none in the cases of [`change_in_place`].
pub(crate) fn add_in_place<R: Send>(
    sum: &Tensor,
    others: &Tensor,
    of: impl Fn(&[f32]) -> R + Sync + Send,
) -> Result<Option<Vec<R>>> {
    change_in_place(sum, others, |sum, others| {
        each(sum.len(), sum.chunks_mut(CHUNK).zip(others.chunks(CHUNK)), |(sum, others)| {
            for (sum, other) in sum.iter_mut().zip(others) {
                *sum += other;
            }
            of(sum)
        })
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn dense_ranges_are_those_of_permutations() {
        let tensor = Tensor::zeros((4, 3, 1, 5), DType::F32, &Device::Cpu).unwrap();
        let range = |t: &Tensor| dense_range(t.layout());
        assert_eq!(range(&tensor), Some(0..60));
        assert_eq!(range(&tensor.permute((2, 3, 1, 0)).unwrap()), Some(0..60));
        assert_eq!(range(&tensor.narrow(0, 1, 2).unwrap().permute((0, 3, 1, 2)).unwrap()), Some(15..45));
        assert_eq!(range(&tensor.narrow(3, 0, 4).unwrap()), None);
        assert_eq!(range(&tensor.narrow(1, 0, 1).unwrap().broadcast_as((4, 3, 1, 5)).unwrap()), None);
        assert_eq!(range(&tensor.narrow(0, 3, 1).unwrap().narrow(1, 2, 1).unwrap()), Some(55..60));
        assert_eq!(range(&Tensor::zeros((), DType::F32, &Device::Cpu).unwrap()), Some(0..1));
    }

    #[test]
    fn values_change_in_place_in_chunks_whatever_the_threads() {
        let count = 3 * CHUNK + 5;
        let values = |scale: f32| Tensor::from_vec((0..count).map(|i| i as f32 * scale).collect(), count, &Device::Cpu);
        let add = || {
            let sum = values(0.1).unwrap();
            let shares = sum.detach();
            let lengths = add_in_place(&sum, &values(0.7).unwrap(), <[f32]>::len).unwrap();
            assert_eq!(lengths, Some(vec![CHUNK, CHUNK, CHUNK, 5]));
            shares.to_vec1::<f32>().unwrap()
        };
        let alone = add();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(add), alone);
        }
        let expected: Vec<f32> = (0..count).map(|i| i as f32 * 0.1 + i as f32 * 0.7).collect();
        assert_eq!(alone, expected);
    }

    #[test]
    fn a_tensor_may_be_added_to_itself_and_views_keep_their_order() {
        let add = |sum: &Tensor, others: &Tensor| add_in_place(sum, others, <[f32]>::to_vec).unwrap();
        let tensor = Tensor::new(&[[1.0_f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        assert_eq!(add(&tensor, &tensor.t().unwrap()), Some(vec![vec![2.0, 5.0, 5.0, 8.0]]));
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[2.0, 5.0], [5.0, 8.0]]);
        let other = Tensor::new(&[[1.0_f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        assert!(add(&tensor, &other.t().unwrap()).is_some());
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[3.0, 8.0], [7.0, 12.0]]);
        assert_eq!(add(&tensor.t().unwrap(), &other), None);
        assert_eq!(add(&tensor, &other.to_dtype(DType::F64).unwrap()), None);
    }

    #[test]
    fn repeated_values_are_looked_at_and_the_others_of_the_storage_are_not() {
        let tensor = Tensor::new(&[1.0_f32, f32::NAN, 2.0], &Device::Cpu).unwrap();
        for at in 0..3 {
            let row = tensor.narrow(0, at, 1).unwrap();
            assert_eq!(is_finite(&row.broadcast_as((5, 7, 1)).unwrap()).unwrap(), at != 1);
            let scalar = row.squeeze(0).unwrap();
            assert_eq!(is_finite(&scalar.broadcast_as((40, 50)).unwrap()).unwrap(), at != 1);
        }
        let rows = tensor.broadcast_as((4, 3)).unwrap();
        assert!(!is_finite(&rows).unwrap() && is_finite(&rows.narrow(1, 2, 1).unwrap()).unwrap());
        // Nothing is finite, however it is repeated.
        assert!(is_finite(&tensor.narrow(0, 1, 1).unwrap().broadcast_as((0, 1)).unwrap()).unwrap());
    }

    #[test]
    fn finds_the_one_value_that_is_not_finite() {
        for (bad, finite) in
            [(1.0, true), (f32::MAX, true), (f32::INFINITY, false), (f32::NAN, false), (-f32::INFINITY, false)]
        {
            let mut values = vec![0.5_f32; 40_000];
            values[39_999] = bad;
            let tensor = Tensor::from_vec(values, (200, 200), &Device::Cpu).unwrap();
            assert_eq!(is_finite(&tensor).unwrap(), finite, "{bad}");
            assert_eq!(is_finite(&tensor.t().unwrap()).unwrap(), finite, "{bad}, transposed");
            assert_eq!(is_finite(&tensor.narrow(1, 1, 199).unwrap()).unwrap(), finite, "{bad}, with gaps");
            let rounded = tensor.to_dtype(DType::BF16).unwrap();
            // The largest f32 is rounded up, beyond what bf16 reaches.
            assert_eq!(is_finite(&rounded).unwrap(), finite && bad != f32::MAX, "{bad}, rounded");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            assert_eq!(pool.install(|| is_finite(&tensor)).unwrap(), finite, "{bad}, two threads");
            // A view that leaves the bad value out is finite.
            assert!(is_finite(&tensor.narrow(0, 0, 199).unwrap()).unwrap());
            assert!(is_finite(&tensor.narrow(1, 0, 199).unwrap()).unwrap());
        }
    }
}
