//! Aligned buffers: memory for results that begins on a cache line and is not cleared before it is written.

use std::{cell::RefCell, mem::MaybeUninit};

use candle_core::{Device, Shape, Tensor};
use interlock::Result;
use rayon::prelude::*;

use super::lanes::LANES;

/// Memory for results, which may be uninitialized.
pub(crate) type Blank = [MaybeUninit<f32>];

/// Views numbers as memory, all of which is initialized.
pub(crate) fn written(numbers: &[f32]) -> &Blank {
    // SAFETY: `MaybeUninit<f32>` has the layout of `f32`, and any number is a value of it.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
}

/// Views numbers as memory for results. Elements that a kernel does not write keep their values.
pub(crate) fn blank(numbers: &mut [f32]) -> &mut Blank {
    // SAFETY: `MaybeUninit<f32>` has the layout of `f32`, and nothing in this crate puts memory that was never written into a `Blank`: it
    // writes numbers only.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), numbers.len()) }
}

/// A buffer for numbers that begins on a cache line: a vector load across two lines costs twice as much.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    memory: Vec<MaybeUninit<f32>>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Makes a buffer of `len` numbers of any value.
    pub(crate) fn new(len: usize) -> Self {
        let mut memory: Vec<MaybeUninit<f32>> = Vec::with_capacity(len + LANES);
        // SAFETY: uninitialized memory is a value of `MaybeUninit`.
        unsafe { memory.set_len(len + LANES) };
        // One of the first sixteen `f32` begins a line of 64 bytes. Any start is correct, so an unknown offset is no error.
        let start = memory.as_ptr().align_offset(64).min(LANES);
        let mut buffer = Self { memory, start, len };
        if cfg!(debug_assertions) {
            // Makes reads of unwritten memory visible.
            buffer.blank().fill(MaybeUninit::new(f32::NAN));
        }
        buffer
    }

    /// Returns the whole buffer, to write to.
    pub(crate) fn blank(&mut self) -> &mut Blank {
        &mut self.memory[self.start..][..self.len]
    }

    /// Returns the numbers, which have all been written.
    ///
    /// # Safety
    /// Every number must have been written.
    pub(crate) unsafe fn filled(self) -> Filled {
        let Self { memory, start, len } = self;
        let mut memory = std::mem::ManuallyDrop::new(memory);
        let (whole, capacity) = (memory.len(), memory.capacity());
        // SAFETY: `MaybeUninit<f32>` has the layout of `f32`; the allocation is handed over once. The numbers before and after were possibly
        // never written; they are written now, before the vector can be read.
        let memory = unsafe {
            let first: *mut f32 = memory.as_mut_ptr().cast();
            first.write_bytes(0, start);
            first.add(start + len).write_bytes(0, whole - start - len);
            Vec::from_raw_parts(first, whole, capacity)
        };
        Filled { memory, start, len }
    }
}

/// Numbers that begin on a cache line.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Filled {
    /// Makes `len` numbers, written in chunks by the threads of the current pool.
    ///
    /// # Safety
    /// `write(i, chunk i)` must write every number of its chunk.
    pub(crate) unsafe fn by_chunks(len: usize, chunk: usize, write: impl Fn(usize, &mut Blank) + Sync) -> Self {
        let mut buffer = AlignedBuffer::new(len);
        buffer.blank().par_chunks_mut(chunk.max(1)).enumerate().for_each(|(i, part)| write(i, part));
        // SAFETY: the chunks cover all numbers, and each has been written.
        unsafe { buffer.filled() }
    }

    /// Makes the numbers a tensor of this shape.
    pub(crate) fn into_tensor(self, shape: impl Into<Shape>) -> Result<Tensor> {
        let Self { memory, start, len } = self;
        let whole = memory.len();
        Ok(Tensor::from_vec(memory, whole, &Device::Cpu)?.narrow(0, start, len)?.reshape(shape)?)
    }

    /// Returns the numbers, to overwrite.
    pub(crate) fn blank(&mut self) -> &mut Blank {
        blank(self)
    }
}

impl From<Vec<f32>> for Filled {
    fn from(memory: Vec<f32>) -> Self {
        Self { start: 0, len: memory.len(), memory }
    }
}

impl std::ops::Deref for Filled {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.start..][..self.len]
    }
}

impl std::ops::DerefMut for Filled {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..][..self.len]
    }
}

/// Zeros that begin on a cache line, for scratch and packed weights.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aligned {
    memory: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

impl Aligned {
    /// Returns a buffer of `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Self { memory: vec![Line([0.0; LANES]); len.div_ceil(LANES)], len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: lines are sixteen numbers without gaps, and there are enough of them for `len`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `len` numbers of any value. The thread keeps their memory for the next call.
pub(crate) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out while in use, so that a nested call gets memory of its own.
    let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if scratch.len() < len {
        scratch = Aligned::zeros(len);
    }
    if cfg!(debug_assertions) {
        // Makes reads of unwritten memory visible.
        scratch[..len].fill(f32::NAN);
    }
    let result = work(&mut scratch[..len]);
    SCRATCH.with_borrow_mut(|kept| kept.push(scratch));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_starts_on_a_line_and_becomes_a_tensor_of_the_written_numbers() -> Result<()> {
        for len in [1, 15, 16, 17, 1000] {
            let mut buffer = AlignedBuffer::new(len);
            for (i, number) in buffer.blank().iter_mut().enumerate() {
                number.write(i as f32);
            }
            assert_eq!(buffer.blank().as_ptr() as usize % 64, 0);
            // SAFETY: just written.
            let tensor = unsafe { buffer.filled() }.into_tensor((1, len))?;
            assert_eq!(tensor.to_vec2::<f32>()?, [(0..len).map(|i| i as f32).collect::<Vec<_>>()]);
            assert!(tensor.is_contiguous());
        }
        Ok(())
    }

    #[test]
    fn zeros_start_on_a_line() {
        for len in [0, 1, 16, 33] {
            let zeros = Aligned::zeros(len);
            assert_eq!(&*zeros, vec![0.0; len]);
            assert_eq!(zeros.as_ptr() as usize % 64, 0);
        }
    }
}
