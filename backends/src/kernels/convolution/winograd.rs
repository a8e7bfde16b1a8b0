//! Convolution with windows of 3×3 and stride 1 by fewer products: `F(2×2, 3×3)`.
//!
//! Two by two outputs come from four by four inputs `d` and the window `g` as `Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A`: 16 products where the plain sum has 36.
//! Summed over input channels, each of the 16 elements is a product of matrices, tiles by channels. The pull-backs are the transposes: the
//! gradient of the input is a convolution of the cotangent with the window turned around, that of the window is
//! `Gᵀ[(A c Aᵀ) ⊙ (Bᵀ d B)]G` summed over all tiles.
//!
//! Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016, section 4.1.

mod product;
mod transform;
mod weights;

pub(super) use weights::{ELEMENTS, add_tiles, inverse};

use super::{
    Geometry,
    pack::Direction,
    tail::{End, Output},
};
use crate::kernels::{
    Instructions,
    lanes::LANES,
    padded::{Padded, blocks},
    room::{Aligned, Blank, with_scratch},
};

/// Bytes of transformed inputs and products in work at a time, at least eight tiles.
const IN_WORK: usize = 384 << 10;

/// A convolution, or the gradient of its input, with its window transformed.
#[derive(Debug)]
pub(super) struct Winograd {
    reads: usize,
    writes: usize,
    /// Registers of sixteen output channels that are summed side by side.
    vectors: usize,
    padding: usize,
    /// Height and width of the output.
    size: [usize; 2],
    /// `[16][writes/16v][reads in blocks][16v]`.
    weights: Aligned,
}

/// Whether the method suits a convolution of so many images: enough tiles for the transformed window to be worth making, and channels for
/// the transformed tiles. The wider the vectors, the less the products saved count beside the transformations.
pub(super) fn suits(geometry: &Geometry, images: usize) -> bool {
    let Geometry { inputs, outputs, kernel, stride, padding, to, .. } = *geometry;
    let tiles = images * to[0].div_ceil(2) * to[1].div_ceil(2);
    let channels = if Instructions::in_use() == Instructions::Avx512 { 2 * LANES } else { LANES };
    kernel == 3 && stride == 1 && padding <= 2 && inputs >= channels && outputs >= channels && tiles >= 64
}

impl Winograd {
    /// The forward pass with `weight (O, I, 3, 3)`.
    pub(super) fn forward(geometry: &Geometry, weight: &[f32]) -> Self {
        let Geometry { inputs, outputs, padding, to, .. } = *geometry;
        Self::new(weight, [outputs, inputs], Direction::Forward, padding, to)
    }

    /// The gradient of the input.
    pub(super) fn input_gradient(geometry: &Geometry, weight: &[f32]) -> Self {
        let Geometry { inputs, outputs, padding, from, .. } = *geometry;
        Self::new(weight, [outputs, inputs], Direction::Backward, 2 - padding, from)
    }

    fn new(
        weight: &[f32],
        [outputs, inputs]: [usize; 2],
        direction: Direction,
        padding: usize,
        size: [usize; 2],
    ) -> Self {
        let (reads, writes) = match direction {
            Direction::Forward => (inputs, outputs),
            Direction::Backward => (outputs, inputs),
        };
        let wide = writes.is_multiple_of(2 * LANES) && Instructions::in_use() == Instructions::Avx512;
        let vectors = if wide { 2 } else { 1 };
        let weights = weights::transformed(weight, [outputs, inputs], direction, vectors);
        Self { reads, writes, vectors, padding, size, weights }
    }

    /// Sweeps over the first `images` images of `x` and writes channels-last images to `y`.
    pub(super) fn run(&self, x: &Padded, images: usize, y: &mut Blank, end: End<'_>) {
        assert!(x.channels == self.reads && images <= x.images, "images of another shape");
        let tiles = Tiles::new(x, self.size, self.padding);
        let output = end.output(y, images, self.size, self.writes, 1);
        let (reads, writes) = (blocks(self.reads) * LANES, self.writes.next_multiple_of(LANES * self.vectors));
        let each = ELEMENTS * (reads + writes);
        let count = images * tiles.down * tiles.across;
        let strip = (IN_WORK / size_of::<f32>() / each).max(8).min(count);
        with_scratch(strip * each, |scratch| {
            let (inputs, products) = scratch.split_at_mut(strip * ELEMENTS * reads);
            for first in (0..count).step_by(strip) {
                let strip = first..(first + strip).min(count);
                transform::inputs(x, &tiles, strip.clone(), inputs);
                self.multiply(strip.len(), inputs, products);
                self.finish(&tiles, strip, products, &output);
            }
        });
    }

    /// `[16][tile][writes]` from `[16][reads/16][tile][16]`.
    fn multiply(&self, tiles: usize, inputs: &[f32], products: &mut [f32]) {
        let (reads, writes) = (blocks(self.reads) * LANES, self.writes.next_multiple_of(LANES * self.vectors));
        let weights = self.weights.chunks_exact(reads * writes);
        let pairs = inputs.chunks_exact(reads * tiles).zip(products.chunks_exact_mut(writes * tiles));
        for ((inputs, products), weights) in pairs.zip(weights).take(ELEMENTS) {
            product::product(inputs, weights, products, [tiles, reads, writes], self.vectors);
        }
    }

    fn finish(&self, tiles: &Tiles, strip: std::ops::Range<usize>, products: &[f32], output: &Output) {
        let writes = self.writes.next_multiple_of(LANES * self.vectors);
        // SAFETY: the strip's tiles lie within the output, whose tail has been checked; `products` has 16 elements of each.
        unsafe { transform::outputs(tiles, strip, products, [writes, self.writes], self.size, output) }
    }
}

/// The tiles of two by two outputs of padded images.
pub(super) struct Tiles {
    /// Rows and columns of tiles.
    pub(super) down: usize,
    pub(super) across: usize,
    /// Where the first tile of the first image begins, from the first number; it may lie in the border.
    start: usize,
    /// How far apart rows, images and blocks of channels are.
    row: usize,
    image: usize,
    plane: usize,
}

impl Tiles {
    /// For outputs of `size` from inputs with `padding` around them.
    ///
    /// # Panics
    /// If the border of `x` is narrower than what the tiles read.
    pub(super) fn new(x: &Padded, size: [usize; 2], padding: usize) -> Self {
        let [down, across] = size.map(|side| side.div_ceil(2));
        let enough = |tiles: usize, side: usize| 2 * tiles + 2 <= side + x.border + padding;
        assert!(padding <= x.border && enough(down, x.height) && enough(across, x.width), "a border too narrow");
        let start = x.origin() - padding * (x.pitch() + LANES);
        Self { down, across, start, row: x.pitch(), image: x.image(), plane: x.plane() }
    }

    /// The tiles of cotangents of outputs of `size`.
    ///
    /// # Panics
    /// If they are not of that size, or their border is narrower than what the tiles read.
    pub(super) fn of_outputs(g: &Padded, size: [usize; 2]) -> Self {
        let [down, across] = size.map(|side| side.div_ceil(2));
        let enough = 2 * down <= g.height + g.border && 2 * across <= g.width + g.border;
        assert!(size == [g.height, g.width] && enough, "a border too narrow");
        Self { down, across, start: g.origin(), row: g.pitch(), image: g.image(), plane: g.plane() }
    }

    /// Image, row and column of a tile.
    fn at(&self, tile: usize) -> [usize; 3] {
        let each = self.down * self.across;
        [tile / each, tile % each / self.across, tile % self.across]
    }

    /// Where it begins in a block of channels.
    fn offset(&self, tile: usize) -> usize {
        let [image, row, column] = self.at(tile);
        self.start + image * self.image + 2 * row * self.row + 2 * column * LANES
    }
}
