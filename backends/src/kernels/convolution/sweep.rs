//! Some elements of the window over a grid of pixels.

use super::{
    Geometry,
    pack::{Direction, pack},
    tail::End,
    tile::{self, Grid},
};
use crate::kernels::{
    Instructions,
    lanes::LANES,
    padded::Padded,
    room::{Aligned, Blank},
};

/// A convolution, or one parity of the gradient of its input, with its weights packed.
#[derive(Debug)]
pub(crate) struct Sweep {
    reads: usize,
    writes: usize,
    /// Registers of sixteen output channels a tile has side by side.
    vectors: usize,
    /// Row and column of each element of the window, from the pixel that is read for the first output pixel.
    elements: Vec<[isize; 2]>,
    /// Pixels between those read for neighbouring outputs.
    step: usize,
    /// Rows and columns of the outputs.
    grid: [usize; 2],
    /// Height and width of the whole output.
    size: [usize; 2],
    /// The first output pixel, and how far apart they are, along both axes.
    first: [usize; 2],
    apart: usize,
    weights: Aligned,
}

fn vectors(writes: usize) -> usize {
    if writes.is_multiple_of(2 * LANES) && Instructions::in_use() == Instructions::Avx512 { 2 } else { 1 }
}

impl Sweep {
    /// The forward pass with `weight (O, I, k, k)`.
    pub(crate) fn forward(geometry: &Geometry, weight: &[f32]) -> Self {
        let Geometry { inputs, outputs, kernel, stride, padding, to, .. } = *geometry;
        let elements: Vec<usize> = (0..kernel * kernel).collect();
        let vectors = vectors(outputs);
        let offset = |element: usize| element as isize - padding as isize;
        Self {
            reads: inputs,
            writes: outputs,
            vectors,
            weights: pack(weight, [outputs, inputs, kernel * kernel], Direction::Forward, &elements, vectors),
            elements: elements.iter().map(|e| [offset(e / kernel), offset(e % kernel)]).collect(),
            step: stride,
            grid: to,
            size: to,
            first: [0, 0],
            apart: 1,
        }
    }

    /// The gradient of the input, a sweep for each parity of its rows and columns; together they write every pixel once.
    pub(crate) fn input_gradient(geometry: &Geometry, weight: &[f32]) -> Vec<Self> {
        let Geometry { inputs, outputs, kernel, stride, from, .. } = *geometry;
        let vectors = vectors(inputs);
        let parities =
            (0..stride.min(from[0])).flat_map(|row| (0..stride.min(from[1])).map(move |column| [row, column]));
        let sweep = |first: [usize; 2]| {
            let reach: Vec<(usize, [isize; 2])> = geometry
                .elements(first[0])
                .flat_map(|(u, row)| {
                    geometry.elements(first[1]).map(move |(v, column)| (u * kernel + v, [row, column]))
                })
                .collect();
            let elements: Vec<usize> = reach.iter().map(|(element, _)| *element).collect();
            Self {
                reads: outputs,
                writes: inputs,
                vectors,
                weights: pack(weight, [outputs, inputs, kernel * kernel], Direction::Backward, &elements, vectors),
                elements: reach.into_iter().map(|(_, offset)| offset).collect(),
                step: 1,
                grid: [(from[0] - first[0]).div_ceil(stride), (from[1] - first[1]).div_ceil(stride)],
                size: from,
                first,
                apart: stride,
            }
        };
        parities.map(sweep).collect()
    }

    /// Sweeps over the first `images` images of `x` and writes channels-last images to `y`.
    pub(crate) fn run(&self, x: &Padded, images: usize, y: &mut Blank, end: End<'_>) {
        assert!(x.channels == self.reads && images <= x.images, "images of another shape");
        // Every pixel that is read lies within the border.
        for axis in 0..2 {
            let (border, extent) = (x.border as isize, [x.height, x.width][axis] as isize);
            let last = (self.grid[axis] * self.step).saturating_sub(self.step) as isize;
            for element in &self.elements {
                assert!(element[axis] >= -border && last + element[axis] < extent + border, "a border too narrow");
            }
        }
        let output = end.output(y, images, self.size, self.writes, self.apart);
        let pitch = x.pitch();
        let offsets: Vec<isize> =
            self.elements.iter().map(|[row, column]| row * pitch as isize + column * LANES as isize).collect();
        let grid = Grid {
            reads: self.reads,
            offsets: &offsets,
            plane: x.plane(),
            row: self.step * pitch,
            image: x.image(),
            images,
            rows: self.grid[0],
            columns: self.grid[1],
            weights: self.weights.as_ptr(),
            pixel: self.first[0] * self.size[1] + self.first[1],
        };
        // SAFETY: the grid's pixels and channels lie within `x` (checked above) and `y`, and the tail's slices have a number, or a bit, for
        // each number of `y`, or for each channel.
        unsafe { tile::sweep(&grid, x.numbers.as_ptr().add(x.origin()), &output, self.vectors, self.step) }
    }
}
