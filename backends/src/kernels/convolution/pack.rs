//! Weights in the order in which a tile uses them.

use crate::kernels::{aligned_buffer::Aligned, lanes::LANES};

/// The axes of `W (O, I, k, k)` that a sweep reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Reads `I`, writes `O`.
    Forward,
    /// Reads `O`, writes `I`.
    Backward,
}

/// Returns the weights of some elements of the window as `[writes/16v][reads/16][element/run][reads in the block][run][16v]`, with zeros for
/// missing channels.
pub(super) fn pack(
    weight: &[f32],
    [outputs, inputs, square]: [usize; 3],
    direction: Direction,
    elements: &[usize],
    run: usize,
    vectors: usize,
) -> Aligned {
    assert_eq!(weight.len(), outputs * inputs * square, "weights of another shape");
    assert!(elements.len().is_multiple_of(run), "elements must fill whole runs");
    let wide = LANES * vectors;
    let ((reads, read_stride), (writes, write_stride)) = match direction {
        Direction::Forward => ((inputs, square), (outputs, inputs * square)),
        Direction::Backward => ((outputs, inputs * square), (inputs, square)),
    };
    let mut packed = Aligned::zeros(writes.div_ceil(wide) * reads * elements.len() * wide);
    for (first, panel) in (0..writes).step_by(wide).zip(packed.chunks_exact_mut((reads * elements.len() * wide).max(1)))
    {
        let written = (writes - first).min(wide);
        for block in (0..reads).step_by(LANES) {
            let count = (reads - block).min(LANES);
            let part = &mut panel[block * elements.len() * wide..][..count * elements.len() * wide];
            for lane in 0..written {
                let from = &weight[(first + lane) * write_stride + block * read_stride..];
                for (i, &element) in elements.iter().enumerate() {
                    let first = (i / run * count * run + i % run) * wide + lane;
                    let to = part[first..].iter_mut().step_by(run * wide);
                    for (to, &from) in to.zip(from[element..].iter().step_by(read_stride)).take(count) {
                        *to = from;
                    }
                }
            }
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_lies_where_the_tile_reads_it() {
        let [outputs, inputs, square] = [18, 17, 9];
        let weight: Vec<f32> = (0..outputs * inputs * square).map(|i| i as f32).collect();
        let elements = [1, 4, 7, 8];
        for (direction, reads, writes, run) in
            [(Direction::Forward, inputs, outputs, 1), (Direction::Backward, outputs, inputs, 2)]
        {
            let packed = pack(&weight, [outputs, inputs, square], direction, &elements, run, 1);
            assert_eq!(packed.len(), 2 * reads * 4 * 16);
            for (write, read, (i, element)) in (0..32)
                .flat_map(|write| (0..reads).map(move |read| (write, read)))
                .flat_map(|(write, read)| elements.into_iter().enumerate().map(move |e| (write, read, e)))
            {
                let (block, count) = (read / 16, (reads - read / 16 * 16).min(16));
                let in_block = (i / run * count + read % 16) * run + i % run;
                let at = write / 16 * reads * 64 + block * 16 * 64 + in_block * 16 + write % 16;
                let (output, input) = if direction == Direction::Forward { (write, read) } else { (read, write) };
                let expected = if write < writes { weight[(output * inputs + input) * square + element] } else { 0.0 };
                assert_eq!(packed[at], expected, "{direction:?} {write} {read} {element}");
            }
        }
    }
}
