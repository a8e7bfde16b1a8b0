//! Loops over all elements of a tensor on the CPU, in place and on all threads of the device.
//!
//! Work is cut into chunks of a fixed number of elements, so that nothing depends on the number of threads. Loops run on the threads of the
//! pool that the caller is in (a stage's device), and on the calling thread alone where it is in none.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Storage, Tensor};
use rayon::prelude::*;

use crate::Result;

/// Elements of a chunk: 64 KiB of `f32`.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Whether more than one thread may help with `elements`.
fn is_shared(elements: usize) -> bool {
    elements > CHUNK && rayon::current_thread_index().is_some() && rayon::current_num_threads() > 1
}

/// What `of` gives for each chunk, in order.
pub(crate) fn map_chunks<T: Sync, R: Send>(values: &[T], of: impl Fn(&[T]) -> R + Sync + Send) -> Vec<R> {
    match is_shared(values.len()) {
        true => values.par_chunks(CHUNK).map(of).collect(),
        false => values.chunks(CHUNK).map(of).collect(),
    }
}

/// Changes `values` by `others`, chunk by chunk.
pub(crate) fn zip2(values: &mut [f32], others: &[f32], change: impl Fn(&mut [f32], &[f32]) + Sync) {
    match is_shared(values.len()) {
        true => values.par_chunks_mut(CHUNK).zip(others.par_chunks(CHUNK)).for_each(|(v, o)| change(v, o)),
        false => change(values, others),
    }
}

/// Changes `values` and `state` by `others`, chunk by chunk.
pub(crate) fn zip3(
    values: &mut [f32],
    others: &[f32],
    state: &mut [f32],
    change: impl Fn(&mut [f32], &[f32], &mut [f32]) + Sync,
) {
    match is_shared(values.len()) {
        true => {
            let chunks = values.par_chunks_mut(CHUNK).zip(others.par_chunks(CHUNK)).zip(state.par_chunks_mut(CHUNK));
            chunks.for_each(|((v, o), s)| change(v, o, s));
        }
        false => change(values, others, state),
    }
}

/// Changes `values` and both parts of `state` by `others`, chunk by chunk.
pub(crate) fn zip4(
    values: &mut [f32],
    others: &[f32],
    state: (&mut [f32], &mut [f32]),
    change: impl Fn(&mut [f32], &[f32], &mut [f32], &mut [f32]) + Sync,
) {
    match is_shared(values.len()) {
        true => {
            let state = state.0.par_chunks_mut(CHUNK).zip(state.1.par_chunks_mut(CHUNK));
            let chunks = values.par_chunks_mut(CHUNK).zip(others.par_chunks(CHUNK)).zip(state);
            chunks.for_each(|((v, o), (a, b))| change(v, o, a, b));
        }
        false => change(values, others, state.0, state.1),
    }
}

/// The range of the storage that the tensor's elements cover, each once and without a gap, in whatever order: contiguous tensors and
/// permutations of them. None for others.
pub(crate) fn dense_range(layout: &Layout) -> Option<std::ops::Range<usize>> {
    let mut dims: Vec<(usize, usize)> =
        layout.stride().iter().copied().zip(layout.dims().iter().copied()).filter(|&(_, size)| size != 1).collect();
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

struct Change<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32], &[f32])> InplaceOp2 for Change<F> {
    fn name(&self) -> &'static str {
        "change-in-place"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), CpuStorage::F32(others)) = (s1, s2) else { return Ok(()) };
        if let (Some((from, to)), Some((others_from, others_to)), Some(change)) =
            (l1.contiguous_offsets(), l2.contiguous_offsets(), self.0.take())
        {
            change(&mut values[from..to], &others[others_from..others_to]);
        }
        Ok(())
    }
}

/// Lets `change` write into the elements of `values`, beside those of `others`; every tensor that shares the storage of `values` changes with
/// it. False, and nothing is done, unless `values` is a contiguous `f32` tensor on the CPU and `others` one of the same shape there.
pub(crate) fn change_in_place(
    values: &Tensor,
    others: &Tensor,
    change: impl FnOnce(&mut [f32], &[f32]),
) -> Result<bool> {
    let suited = |t: &Tensor| t.device().is_cpu() && t.dtype() == DType::F32 && t.shape() == values.shape();
    if !suited(values) || !suited(others) || !values.is_contiguous() {
        return Ok(false);
    }
    let others = match storage_of(values) == storage_of(others) {
        // Its own value, or a view of it: read before it is written to.
        true => others.copy()?.contiguous()?,
        false => others.contiguous()?,
    };
    let change = Change(Cell::new(Some(change)));
    values.inplace_op2(&others, &change)?;
    Ok(change.0.take().is_none())
}

/// Where a tensor's storage lies: equal for tensors that share it.
fn storage_of(tensor: &Tensor) -> *const Storage {
    &*tensor.storage_and_layout().0
}

/// Adds `others` to `sum` in place; false, and nothing is done, as for [`change_in_place`].
pub(crate) fn add_in_place(sum: &Tensor, others: &Tensor) -> Result<bool> {
    change_in_place(sum, others, |sum, others| {
        zip2(sum, others, |sum, others| {
            for (sum, other) in sum.iter_mut().zip(others) {
                *sum += other;
            }
        });
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
            assert!(add_in_place(&sum, &values(0.7).unwrap()).unwrap());
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
        let tensor = Tensor::new(&[[1.0_f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        assert!(add_in_place(&tensor, &tensor.t().unwrap()).unwrap());
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[2.0, 5.0], [5.0, 8.0]]);
        let other = Tensor::new(&[[1.0_f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        assert!(add_in_place(&tensor, &other.t().unwrap()).unwrap());
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[3.0, 8.0], [7.0, 12.0]]);
        assert!(!add_in_place(&tensor.t().unwrap(), &other).unwrap());
        assert!(!add_in_place(&tensor, &other.to_dtype(DType::F64).unwrap()).unwrap());
    }
}
