//! Convolution of padded images, with one kernel for the forward pass and for the gradient of the input.
//!
//! `y[o][p] = Σ_{c,u,v} W[o][c][u][v] · x[c][s·p + (u,v) - padding]`. The gradient of the input is such a sum too. With stride `s`, the input
//! pixels of each parity (position modulo `s`) meet only some elements of the window: the gradient is `s²` convolutions of the output gradient
//! with stride 1, each of which writes every `s`-th pixel.
//!
//! A tile of pixels by sixteen or thirty-two output channels is summed in registers over all input channels and all elements of the window.
//! The epilogue of a sum (adding it to another, the gate of a ReLU, sums for batch norm) runs while the tile is in registers.

mod batch;
mod epilogue;
mod pack;
mod patches;
mod sweep;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod weights;
mod winograd;

pub(crate) use batch::{Batch, GradientTarget, Gradients, line_count};

/// The shape of a convolution of images of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    /// Height and width of the input.
    pub(crate) from: [usize; 2],
    /// Height and width of the output.
    pub(crate) to: [usize; 2],
}

impl Geometry {
    /// Returns height, width and channels of the input.
    pub(crate) fn input(&self) -> [usize; 3] {
        [self.from[0], self.from[1], self.inputs]
    }

    /// Returns height, width and channels of the output.
    pub(crate) fn output(&self) -> [usize; 3] {
        [self.to[0], self.to[1], self.outputs]
    }

    /// Returns the border that the input needs; one pixel more if the last tile of two by two outputs reaches beyond the outputs.
    pub(crate) fn border(&self) -> usize {
        self.padding + self.ragged()
    }

    /// Returns 1 if tiles of two by two outputs may be used and do not fit evenly, otherwise 0.
    fn ragged(&self) -> usize {
        let odd = self.to.iter().chain(&self.from).any(|side| side % 2 == 1);
        usize::from(self.kernel == 3 && self.stride == 1 && odd)
    }

    /// Returns the border that the output gradient needs for the gradient of the input.
    pub(crate) fn gradient_border(&self) -> usize {
        let beyond = |axis: usize| {
            let classes = (0..self.stride.min(self.from[axis])).flat_map(|parity| {
                let last = (self.from[axis] - 1 - parity) / self.stride;
                self.elements(parity).map(move |(_, offset)| {
                    let after = last as isize + offset - (self.to[axis] as isize - 1);
                    (-offset).max(after).max(0) as usize
                })
            });
            classes.max().unwrap_or(0)
        };
        beyond(0).max(beyond(1)) + self.ragged()
    }

    /// Returns, along one axis, the elements of the window that reach input pixels `s·i + parity`, each with the output pixel's offset from `i`.
    fn elements(&self, parity: usize) -> impl Iterator<Item = (usize, isize)> + use<> {
        let (stride, padding) = (self.stride as isize, self.padding as isize);
        (0..self.kernel).filter_map(move |element| {
            let distance = parity as isize + padding - element as isize;
            (distance.rem_euclid(stride) == 0).then_some((element, distance.div_euclid(stride)))
        })
    }
}
