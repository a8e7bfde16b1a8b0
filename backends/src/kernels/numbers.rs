//! Numbers in memory: `f32`, or `bf16` that are read and written as `f32`.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    aligned_buffer::Blank,
    lanes::{LANES, Lanes, prefetch},
};

/// Numbers to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl<'a> From<&'a [f32]> for Numbers<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self::F32(numbers)
    }
}

impl Numbers<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::Bf16(numbers) => numbers.len(),
        }
    }

    /// Returns some of them.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(numbers) => Self::F32(&numbers[range]),
            Self::Bf16(numbers) => Self::Bf16(&numbers[range]),
        }
    }

    pub(super) fn pointer(&self) -> NumbersPointer {
        match self {
            Self::F32(numbers) => NumbersPointer::F32(numbers.as_ptr()),
            Self::Bf16(numbers) => NumbersPointer::Bf16(numbers.as_ptr()),
        }
    }
}

/// [`Numbers`] as a pointer.
#[derive(Clone, Copy)]
pub(super) enum NumbersPointer {
    F32(*const f32),
    Bf16(*const u16),
}

/// `with_pointer!(numbers, y => expression)` evaluates the expression with the pointer to the numbers, compiled for each of their types.
macro_rules! with_pointer {
    ($numbers:expr, $y:ident => $expression:expr) => {
        match $numbers {
            $crate::kernels::numbers::NumbersPointer::F32($y) => $expression,
            $crate::kernels::numbers::NumbersPointer::Bf16($y) => $expression,
        }
    };
}
pub(super) use with_pointer;

/// A pointer to numbers of one type.
pub(super) trait Loads: Copy {
    /// Returns `count` numbers, at most sixteen, from number `at` on; the other lanes are 0.
    ///
    /// # Safety
    /// These numbers may be read.
    unsafe fn load<L: Lanes>(self, at: usize, count: usize) -> L;

    /// Prefetches number `at`, which need not exist.
    fn prefetch(self, at: usize);
}

impl Loads for *const f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(self, at: usize, count: usize) -> L {
        // SAFETY: as demanded of the caller.
        unsafe { if count == LANES { L::load(self.add(at)) } else { L::load_first(self.add(at), count) } }
    }

    #[inline(always)]
    fn prefetch(self, at: usize) {
        prefetch(self.wrapping_add(at));
    }
}

impl Loads for *const u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(self, at: usize, count: usize) -> L {
        // SAFETY: as demanded of the caller.
        unsafe { if count == LANES { L::load_halves(self.add(at)) } else { L::load_first_halves(self.add(at), count) } }
    }

    #[inline(always)]
    fn prefetch(self, at: usize) {
        prefetch(self.wrapping_add(at).cast());
    }
}

/// Memory for numbers to write.
pub(crate) enum NumbersMut<'a> {
    F32(&'a mut Blank),
    Bf16(&'a mut [MaybeUninit<u16>]),
}

impl NumbersMut<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::Bf16(numbers) => numbers.len(),
        }
    }
}

/// The types of numbers.
pub(crate) trait Number: Copy + Send + Sync {
    /// Returns memory for numbers of this type.
    fn memory(memory: &mut [MaybeUninit<Self>]) -> NumbersMut<'_>;
}

impl Number for f32 {
    fn memory(memory: &mut [MaybeUninit<Self>]) -> NumbersMut<'_> {
        NumbersMut::F32(memory)
    }
}

impl Number for u16 {
    fn memory(memory: &mut [MaybeUninit<Self>]) -> NumbersMut<'_> {
        NumbersMut::Bf16(memory)
    }
}
