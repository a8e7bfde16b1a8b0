//! Linear functions with coefficients for each channel, which are stored in blocks of sixteen channels.

use super::{
    aligned_buffer::Aligned,
    lanes::{LANES, Lanes},
};

/// Returns the number of blocks of sixteen channels that hold `channels`.
pub(crate) fn blocks(channels: usize) -> usize {
    channels.div_ceil(LANES)
}

/// `scale·(x - mean) + shift`, with one mean, scale and shift for each channel, and zeros up to whole blocks of channels.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) mean: Aligned,
    pub(crate) scale: Aligned,
    pub(crate) shift: Aligned,
}

impl Line {
    /// Returns whether there are coefficients for this many channels.
    pub(super) fn holds(&self, channels: usize) -> bool {
        [&self.mean, &self.scale, &self.shift].iter().all(|line| line.len() >= blocks(channels) * LANES)
    }

    /// Returns mean, scale and shift of sixteen channels from `from` on.
    ///
    /// # Safety
    /// The line must hold them.
    #[inline(always)]
    pub(super) unsafe fn lanes<L: Lanes>(&self, from: usize) -> [L; 3] {
        // SAFETY: as demanded of the caller.
        unsafe {
            let load = |line: &Aligned| L::load(line.as_ptr().add(from));
            [load(&self.mean), load(&self.scale), load(&self.shift)]
        }
    }
}

/// The backward pass of a batch norm: `∂x = a·g + b·(x - mean) + c`, and the gradients of its parameters.
#[derive(Clone, Debug)]
pub(crate) struct NormGradient {
    pub(crate) mean: Aligned,
    pub(crate) a: Aligned,
    pub(crate) b: Aligned,
    pub(crate) c: Aligned,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl NormGradient {
    /// Returns mean, `a`, `b` and `c` of sixteen channels from `from` on.
    ///
    /// # Safety
    /// The lines must hold them.
    #[inline(always)]
    pub(super) unsafe fn lanes<L: Lanes>(&self, from: usize) -> [L; 4] {
        // SAFETY: as demanded of the caller.
        unsafe {
            let load = |line: &Aligned| L::load(line.as_ptr().add(from));
            [load(&self.mean), load(&self.a), load(&self.b), load(&self.c)]
        }
    }
}
