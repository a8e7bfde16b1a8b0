//! Factors of products in tiles: rounded to `bf16`, with zeros up to whole tiles. [`multiply`](super::block::multiply) tells their order.

use std::{
    arch::x86_64::*,
    mem::{MaybeUninit, transmute},
};

use super::block::{BLOCK, STEP};
use crate::kernels::{aligned_buffer::Blank, lanes::LANES, matrix::Matrix};

/// The numbers of one tile.
const TILE: usize = STEP / 2;

/// Returns how many numbers a panel of 32 columns, or a strip of 32 rows, of this depth has.
pub(crate) fn len(depth: usize) -> usize {
    depth.div_ceil(BLOCK) * STEP
}

/// Views memory of `f32` as that of twice as many `bf16`.
pub(crate) fn halves(memory: &mut Blank) -> &mut [MaybeUninit<u16>] {
    // SAFETY: both are memory without values, and the bytes and their alignment fit.
    unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), 2 * memory.len()) }
}

/// Writes a strip of a left factor of at most 32 rows.
///
/// # Safety
/// The processor has the instructions that [`are_available`](super::are_available) asks for.
pub(crate) unsafe fn pack_left(a: Matrix<'_>, to: &mut [MaybeUninit<u16>]) {
    let ((rows, depth), (row_stride, column_stride)) = (a.dims(), a.strides());
    assert!(rows <= BLOCK && to.len() == len(depth) && (column_stride == 1 || row_stride == 1), "a strip of rows");
    let from = Lines::new(a.values().as_ptr(), if column_stride == 1 { row_stride } else { column_stride });
    for (step, to) in to.chunks_exact_mut(STEP).enumerate() {
        let first = step * BLOCK;
        let some = (depth - first).min(BLOCK);
        for (half, to) in to.chunks_exact_mut(TILE).enumerate() {
            let high = rows.saturating_sub(half * LANES).min(LANES);
            // SAFETY: the counts are those of the rows and columns that are left; a tile is written whole.
            unsafe {
                let to = to.as_mut_ptr().cast();
                match column_stride {
                    1 => along(from.at(half * LANES, first), [high, some], to),
                    _ => transposed_pairs(from.at(first, half * LANES), [some, high], to),
                }
            }
        }
    }
}

/// Writes a panel of a right factor of at most 32 columns.
///
/// # Safety
/// The processor has the instructions that [`are_available`](super::are_available) asks for.
pub(crate) unsafe fn pack_right(b: Matrix<'_>, to: &mut [MaybeUninit<u16>]) {
    let ((depth, columns), (row_stride, column_stride)) = (b.dims(), b.strides());
    assert!(
        columns <= BLOCK && to.len() == len(depth) && (column_stride == 1 || row_stride == 1),
        "a panel of columns"
    );
    let from = Lines::new(b.values().as_ptr(), if column_stride == 1 { row_stride } else { column_stride });
    for (step, to) in to.chunks_exact_mut(STEP).enumerate() {
        let first = step * BLOCK;
        let some = (depth - first).min(BLOCK);
        for (half, to) in to.chunks_exact_mut(TILE).enumerate() {
            let wide = columns.saturating_sub(half * LANES).min(LANES);
            // SAFETY: as in `pack_left`.
            unsafe {
                let to = to.as_mut_ptr().cast();
                match column_stride {
                    1 => pairs(from.at(first, half * LANES), [some, wide], to),
                    _ => transposed(from.at(half * LANES, first), [wide, some], to),
                }
            }
        }
    }
}

/// Writes a tile whose row `i` has number `i` of each of 32 lines of sixteen numbers, `apart` numbers apart, of which `lines` exist; the others are zeros.
///
/// # Safety
/// The lines that exist may be read, `to` has room for a tile on a cache line, and the processor has the instructions.
pub(crate) unsafe fn pack_transposed_pairs(from: *const f32, apart: usize, lines: usize, to: *mut u16) {
    // SAFETY: as demanded of the caller.
    unsafe { transposed_pairs(Lines::new(from, apart), [lines, LANES], to) };
}

/// Writes a tile whose row `i` has the pairs of numbers of lines `2i` and `2i + 1`, as [`pack_transposed_pairs`] takes them.
///
/// # Safety
/// As for that.
pub(crate) unsafe fn pack_pairs(from: *const f32, apart: usize, lines: usize, to: *mut u16) {
    // SAFETY: as demanded of the caller.
    unsafe { pairs(Lines::new(from, apart), [lines, LANES], to) };
}

/// Numbers in lines: those of a line lie side by side.
#[derive(Clone, Copy)]
struct Lines {
    first: *const f32,
    apart: usize,
}

impl Lines {
    fn new(first: *const f32, apart: usize) -> Self {
        Self { first, apart }
    }

    /// Returns the lines from number `line` on, from their number `at` on. They may lie beyond the end, if nothing is read there.
    fn at(self, line: usize, at: usize) -> Self {
        Self { first: self.first.wrapping_add(line * self.apart + at), ..self }
    }
}

/// Loads `count` numbers, at most 16, of a line; zeros follow, and are all that there is of a line beyond `lines`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(from: Lines, line: usize, lines: usize, count: usize) -> __m512 {
    let mask = if line < lines { ((1_u32 << count) - 1) as u16 } else { 0 };
    // SAFETY: only the numbers of the mask are read.
    unsafe { _mm512_maskz_loadu_ps(mask, from.first.wrapping_add(line * from.apart)) }
}

/// Rounds two vectors to one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn round(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 64 bytes.
    unsafe { transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Loads and rounds `count` numbers, at most 32, of a line; zeros follow.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn load_rounded(from: Lines, line: usize, lines: usize, count: usize) -> __m512i {
    // SAFETY: as demanded of the caller.
    unsafe {
        let low = load(from, line, lines, count.min(LANES));
        round(low, load(from.at(0, LANES), line, lines, count.saturating_sub(LANES)))
    }
}

/// Writes a tile whose row `i` is line `i`, of `[lines, numbers]`, at most 16 by 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn along(from: Lines, [lines, count]: [usize; 2], to: *mut u16) {
    for line in 0..LANES {
        // SAFETY: as demanded of the caller.
        unsafe { _mm512_store_si512(to.add(line * BLOCK).cast(), load_rounded(from, line, lines, count)) };
    }
}

/// Writes a tile whose row `i` has the pairs of numbers `2i` and `2i + 1` of each line, line by line, of `[lines, numbers]`, at most 16 by 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn transposed(from: Lines, [lines, count]: [usize; 2], to: *mut u16) {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (line, row) in rows.iter_mut().enumerate() {
        // SAFETY: as demanded of the caller.
        *row = unsafe { load_rounded(from, line, lines, count) };
    }
    // SAFETY: as demanded of the caller.
    unsafe { store(transpose(rows), to) };
}

/// The order that puts the first of two halves of a vector beside the second, number by number: 0, 16, 1, 17, …
static INTERLEAVED: [u16; BLOCK] = {
    let mut order = [0; BLOCK];
    let mut i = 0;
    while i < LANES {
        (order[2 * i], order[2 * i + 1]) = (i as u16, (LANES + i) as u16);
        i += 1;
    }
    order
};

/// Returns the pairs of numbers of lines `2i` and `2i + 1`, of `[lines, numbers]`, at most 32 by 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pair(from: Lines, i: usize, [lines, count]: [usize; 2]) -> __m512i {
    // SAFETY: as demanded of the caller; the order has 64 bytes.
    unsafe {
        let both = round(load(from, 2 * i, lines, count), load(from, 2 * i + 1, lines, count));
        _mm512_permutexvar_epi16(_mm512_loadu_si512(INTERLEAVED.as_ptr().cast()), both)
    }
}

/// Writes a tile whose row `i` has the pairs of numbers of lines `2i` and `2i + 1`, of `[lines, numbers]`, at most 32 by 16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pairs(from: Lines, sizes: [usize; 2], to: *mut u16) {
    for i in 0..LANES {
        // SAFETY: as demanded of the caller.
        unsafe { _mm512_store_si512(to.add(i * BLOCK).cast(), pair(from, i, sizes)) };
    }
}

/// Writes a tile whose row `i` has number `i` of each line, of `[lines, numbers]`, at most 32 by 16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn transposed_pairs(from: Lines, sizes: [usize; 2], to: *mut u16) {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: as demanded of the caller.
        *row = unsafe { pair(from, i, sizes) };
    }
    // SAFETY: as demanded of the caller.
    unsafe { store(transpose(rows), to) };
}

/// Writes the rows of a tile.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(rows: [__m512i; LANES], to: *mut u16) {
    for (i, row) in rows.into_iter().enumerate() {
        // SAFETY: as demanded of the caller.
        unsafe { _mm512_store_si512(to.add(i * BLOCK).cast(), row) };
    }
}

/// Returns the transpose of 16 rows of 16 words of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(mut rows: [__m512i; LANES]) -> [__m512i; LANES] {
    // Each round exchanges blocks of twice the size: words, pairs of words, quarters of rows, halves.
    let from = rows;
    for i in 0..8 {
        rows[2 * i] = _mm512_unpacklo_epi32(from[2 * i], from[2 * i + 1]);
        rows[2 * i + 1] = _mm512_unpackhi_epi32(from[2 * i], from[2 * i + 1]);
    }
    let from = rows;
    for i in 0..4 {
        for j in 0..2 {
            rows[4 * i + 2 * j] = _mm512_unpacklo_epi64(from[4 * i + j], from[4 * i + 2 + j]);
            rows[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(from[4 * i + j], from[4 * i + 2 + j]);
        }
    }
    let from = rows;
    for i in 0..4 {
        rows[i] = _mm512_shuffle_i32x4::<0x88>(from[i], from[4 + i]);
        rows[4 + i] = _mm512_shuffle_i32x4::<0xdd>(from[i], from[4 + i]);
        rows[8 + i] = _mm512_shuffle_i32x4::<0x88>(from[8 + i], from[12 + i]);
        rows[12 + i] = _mm512_shuffle_i32x4::<0xdd>(from[8 + i], from[12 + i]);
    }
    let from = rows;
    for i in 0..4 {
        rows[i] = _mm512_shuffle_i32x4::<0x88>(from[i], from[8 + i]);
        rows[8 + i] = _mm512_shuffle_i32x4::<0xdd>(from[i], from[8 + i]);
        rows[4 + i] = _mm512_shuffle_i32x4::<0x88>(from[4 + i], from[12 + i]);
        rows[12 + i] = _mm512_shuffle_i32x4::<0xdd>(from[4 + i], from[12 + i]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{half, tiles};

    #[test]
    fn factors_of_both_orders_of_memory_are_packed_alike() {
        if !tiles::are_available() {
            return eprintln!("skipped: this processor has no AMX tiles, or the system does not allow them");
        }
        for (lines, depth) in [(32, 32), (1, 1), (17, 40), (32, 64), (5, 31), (16, 33)] {
            let numbers: Vec<f32> = (0..lines * depth).map(|i| i as f32 * 0.37 - 9.0).collect();
            let turned: Vec<f32> = (0..lines * depth).map(|i| numbers[i % lines * depth + i / lines]).collect();
            let orders = [Matrix::new(&numbers, lines, depth), Matrix::new(&turned, depth, lines).t()];
            #[repr(align(64))]
            struct Memory([MaybeUninit<u16>; 2 * STEP]);
            let packed = |pack: &dyn Fn(&mut [MaybeUninit<u16>])| -> Vec<u16> {
                let mut memory = Memory([MaybeUninit::new(7); 2 * STEP]);
                pack(&mut memory.0[..len(depth)]);
                // SAFETY: all of it was written.
                memory.0[..len(depth)].iter().map(|number| unsafe { number.assume_init() }).collect()
            };
            // SAFETY: the processor has the instructions.
            let left = orders.map(|m| packed(&|to| unsafe { pack_left(m, to) }));
            // SAFETY: as above.
            let right = orders.map(|m| packed(&|to| unsafe { pack_right(m.t(), to) }));
            assert!(left[0] == left[1] && right[0] == right[1], "({lines}, {depth})");
            for (line, at) in (0..BLOCK).flat_map(|line| (0..depth.next_multiple_of(BLOCK)).map(move |at| (line, at))) {
                let wanted = if line < lines && at < depth { half::bits(numbers[line * depth + at]) } else { 0 };
                let tile = at / BLOCK * STEP + line / LANES * TILE;
                let in_left = tile + line % LANES * BLOCK + at % BLOCK;
                let in_right = tile + at % BLOCK / 2 * BLOCK + line % LANES * 2 + at % 2;
                assert_eq!(
                    (left[0][in_left], right[0][in_right]),
                    (wanted, wanted),
                    "({lines}, {depth}): {line}, {at}"
                );
            }
        }
    }
}
