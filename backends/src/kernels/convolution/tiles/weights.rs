//! The gradient of a convolution's weights on tiles: the depth of its products is the pixels, 32 at a time.
//!
//! Padded images and padded output gradients have equally long rows. So one distance leads from every pixel of the output gradient to the pixel of the
//! input that an element of the window meets, and pixels are taken one after another, borders included, which are zeros in the output gradient.
//! The left factor of a step is 16 output channels by 32 pixels, and the right factor is pairs of pixels by 16 input channels. Pairs begin at
//! even pixels in one copy and at odd ones in another, so that each element of the window finds whole pairs.

use std::ops::Range;

use super::{super::Geometry, multiply::add_three};
use crate::kernels::{
    Instructions,
    aligned_buffer::with_scratch,
    channel_lines::blocks,
    lanes::LANES,
    padded::Padded,
    tiles::{Tiles, block::BLOCK, pack},
};

/// The numbers of a tile, and of its sums.
const TILE: usize = LANES * BLOCK;
const SUMS: usize = LANES * LANES;
/// Elements of the window that are summed together, side by side.
const TOGETHER: usize = 3;

/// Returns whether this is the best method for the gradient of the weights of a convolution.
pub(in super::super) fn suits_weights(geometry: &Geometry) -> bool {
    Instructions::in_use() >= Instructions::Amx && geometry.kernel == TOGETHER && can_add_weights(geometry)
}

/// Returns whether images and output gradients have equally long rows, which this method needs.
pub(in super::super) fn can_add_weights(geometry: &Geometry) -> bool {
    geometry.stride == 1 && geometry.from == geometry.to && geometry.border() == geometry.gradient_border()
}

/// Adds the gradient from the first `images` images of `x` and of the output gradient `g` to the sums of some blocks of output channels,
/// `[O/16][I/16][element][16 outputs][16 inputs]`.
pub(in super::super) fn add_weight_gradient(
    geometry: &Geometry,
    [x, g]: [&Padded; 2],
    images: usize,
    outputs: Range<usize>,
    sums: &mut [f32],
) {
    let Geometry { inputs, kernel, padding, .. } = *geometry;
    assert!(can_add_weights(geometry) && x.border == g.border && [x.height, x.width] == [g.height, g.width]);
    let (width, square, inputs) = (x.width + 2 * x.border, kernel * kernel, blocks(inputs));
    assert_eq!(sums.len(), outputs.len() * inputs * square * SUMS, "sums of other weights");
    // In pixels, from the first of a plane on.
    let (origin, end) = (x.border * (width + 1), images * x.image() / LANES);
    let used = end - 2 * x.border * width - 2 * x.border;
    let steps = used.div_ceil(BLOCK);
    let reach = padding * (width + 1);
    // The pairs that the last step of the last element meets.
    let pairs = (2 * reach + steps * BLOCK).div_ceil(2) + 1;
    let left = outputs.len() * steps * TILE;
    let copy = pairs.next_multiple_of(LANES) * BLOCK;
    with_scratch((left + inputs * 2 * copy) / 2, |scratch| {
        let (left, right) = scratch.split_at_mut(left / 2);
        let first_x = x.numbers.as_ptr();
        let mut targets = left.chunks_exact_mut(TILE / 2);
        for output in outputs.clone() {
            let from = g.numbers.as_ptr().wrapping_add(output * g.plane() + origin * LANES);
            for (step, target) in (0..steps).zip(&mut targets) {
                // SAFETY: the pixels that are used lie within the plane.
                unsafe {
                    pack::pack_transposed_pairs(
                        from.add(step * TILE),
                        LANES,
                        used - step * BLOCK,
                        target.as_mut_ptr().cast(),
                    );
                }
            }
        }
        for (block, right) in right.chunks_exact_mut(copy).enumerate() {
            for (odd, right) in right.chunks_exact_mut(copy / 2).enumerate() {
                let first = origin - reach + odd;
                for (at, target) in right.chunks_exact_mut(TILE / 2).enumerate() {
                    let pixel = first + at * BLOCK;
                    let from = first_x.wrapping_add(block * x.plane() + pixel * LANES);
                    // SAFETY: only pixels of the plane are read.
                    unsafe { pack::pack_pairs(from, LANES, end.saturating_sub(pixel), target.as_mut_ptr().cast()) };
                }
            }
        }
        let _tiles = Tiles::new();
        let (left, right): (*const u16, *const u16) = (left.as_ptr().cast(), right.as_ptr().cast());
        let mut dummy = [0.0; SUMS * TOGETHER];
        for (pair, sums) in sums.chunks_exact_mut(square * SUMS).enumerate() {
            let (output, input) = (pair / inputs, pair % inputs);
            for (u, v) in (0..kernel).flat_map(|u| (0..kernel).step_by(TOGETHER).map(move |v| (u, v))) {
                let some = TOGETHER.min(kernel - v);
                let of = |v: usize| {
                    let distance = u * width + v.min(kernel - 1);
                    let pair = (distance % 2) * (copy / BLOCK) + distance / 2;
                    // SAFETY: the pairs of all steps lie within the copy.
                    unsafe { right.add(input * 2 * copy + pair * BLOCK) }
                };
                let sums = &mut sums[(u * kernel + v) * SUMS..][..some * SUMS];
                let own = if some == TOGETHER { sums.as_mut_ptr() } else { dummy.as_mut_ptr() };
                if some < TOGETHER {
                    dummy[..sums.len()].copy_from_slice(sums);
                }
                // SAFETY: as many steps of both factors, and sums of three elements.
                unsafe { add_three(left.add(output * steps * TILE), [of(v), of(v + 1), of(v + 2)], steps, own) };
                if some < TOGETHER {
                    sums.copy_from_slice(&dummy[..sums.len()]);
                }
            }
        }
    });
}
