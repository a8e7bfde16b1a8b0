//! AMX: eight registers of 16 rows by 64 bytes, called tiles, and products of `bf16` tiles that are added to `f32` tiles.
//!
//! The system must allow a process the use of tiles, once. A thread sets the tiles' sizes before it uses them, and gives them back afterwards: a
//! system saves tiles that are in use at every switch of threads. [`Tiles`] does both.

pub(crate) mod block;
pub(crate) mod pack;
pub(crate) mod product;

use std::{arch::asm, marker::PhantomData, sync::OnceLock};

/// Returns whether the processor has tiles for `bf16`, the vector instructions that fill them, and this process may use both.
pub(crate) fn are_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| processor_has_tiles() && system_allows_tiles())
}

fn processor_has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// The leaf that describes tiles.
    const TILE_LEAF: u32 = 0x1d;
    /// Bits 22 and 24 of `edx`: AMX-BF16 and AMX-TILE.
    const AMX: u32 = 1 << 22 | 1 << 24;
    let vectors = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16");
    vectors && __cpuid(0).eax >= TILE_LEAF && __cpuid_count(7, 0).edx & AMX == AMX
}

/// Asks the system for the use of tiles. It refuses where it does not save them.
#[cfg(target_os = "linux")]
fn system_allows_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this call reads and writes no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn system_allows_tiles() -> bool {
    false
}

/// The sizes of the tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Sizes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tiles that hold sums and left factors; the others hold right factors.
const LEFT: usize = 6;

/// The right to use tiles on this thread. They belong to the thread, so this does not go to another.
pub(crate) struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// Lets this thread use tiles of 16 rows by 64 bytes. No other [`Tiles`] may be alive on this thread: dropping one takes the tiles from both.
    pub(crate) fn new() -> Self {
        Self::of_rows(16)
    }

    /// As [`Self::new`], but tiles 0 to 5, for sums and left factors, have this number of rows, 1 to 16.
    pub(crate) fn of_rows(rows: usize) -> Self {
        assert!(are_available(), "this process has no tiles");
        assert!((1..=16).contains(&rows), "a tile of {rows} rows");
        let mut sizes = Sizes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for tile in 0..8 {
            sizes.row_bytes[tile] = 64;
            sizes.rows[tile] = if tile < LEFT { rows as u8 } else { 16 };
        }
        // SAFETY: the process may use tiles; the instruction reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const sizes, options(nostack, readonly, preserves_flags)) };
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the process may use tiles; no value lives in one between two `asm!` blocks.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_multiply_and_add() {
        if !are_available() {
            return eprintln!("skipped: this processor has no AMX tiles, or the system does not allow them");
        }
        // Row i of A has the number 1 in column i: the product is B, two numbers of a column added to each other.
        let one = 0x3f80_u16;
        let (mut a, mut b, mut c) = ([0_u16; 512], [0_u16; 512], [1.0_f32; 256]);
        for i in 0..16 {
            (a[i * 32 + 2 * i], a[i * 32 + 2 * i + 1]) = (one, one);
            for j in 0..32 {
                b[i * 32 + j] = ((i * 32 + j) as f32).to_bits().div_ceil(1 << 16) as u16;
            }
        }
        let _tiles = Tiles::new();
        // SAFETY: each array holds 16 rows of 64 bytes.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c} + {row}]",
                "tileloadd tmm1, [{a} + {row}]",
                "tileloadd tmm2, [{b} + {row}]",
                "tdpbf16ps tmm0, tmm1, tmm2",
                "tilestored [{c} + {row}], tmm0",
                a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(), c = in(reg) c.as_mut_ptr(), row = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, options(nostack),
            );
        }
        let value = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        for (i, &found) in c.iter().enumerate() {
            assert_eq!(found, 1.0 + value(b[2 * i]) + value(b[2 * i + 1]), "number {i}");
        }
    }
}
