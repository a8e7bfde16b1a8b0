//! The loops over steps of the depth.

use std::arch::asm;

use crate::kernels::{lanes::LANES, tiles::block::BLOCK};

/// Where the four tiles of sums are stored, in bytes.
pub(super) struct Stores {
    /// The distance between rows.
    row: usize,
    /// From the sums of the first 16 columns to those of the others, and from those of the first tile's rows to those of the second's.
    right: usize,
    lower: usize,
}

impl Stores {
    /// One after another: of 16 columns for the first rows, of the other columns for these rows, then of the other rows.
    pub(super) fn one_by_one(rows: usize) -> Self {
        let tile = rows * LANES * size_of::<f32>();
        Self { row: LANES * size_of::<f32>(), right: tile, lower: 2 * tile }
    }

    /// A row's sums of the first 16 columns, and beside them those of the others.
    pub(super) fn side_by_side(rows: usize) -> Self {
        let row = BLOCK * size_of::<f32>();
        Self { row, right: row / 2, lower: rows * row }
    }
}

/// Writes the sums of products of two tiles' rows and 32 columns over all steps. `offsets`, in bytes, tell for each step where it begins in `a`; the rows
/// of a tile are `apart` bytes apart, and the second tile begins `second` bytes behind the first.
///
/// # Safety
/// The tiles of all steps lie in the memory of `a`, `b` has as many steps, and `c` room for the sums. A [`Tiles`](crate::kernels::tiles::Tiles) is alive.
#[inline(always)]
pub(super) unsafe fn multiply(
    offsets: &[isize],
    a: *const u16,
    second: usize,
    apart: usize,
    b: *const u16,
    c: *mut f32,
    stores: &Stores,
) {
    debug_assert!(!offsets.is_empty());
    let range = offsets.as_ptr_range();
    // SAFETY: as demanded of the caller. The tiles are declared as overwritten.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "mov {at}, [{step}]",
            "add {at}, {a}",
            "tileloadd tmm6, [{b} + {line}]",
            "tileloadd tmm4, [{at} + {apart}]",
            "tileloadd tmm7, [{b} + {line} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "add {at}, {second}",
            "tileloadd tmm5, [{at} + {apart}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {b}, 2048",
            "add {step}, 8",
            "cmp {step}, {end}",
            "jne 2b",
            "tilestored [{c} + {row}], tmm0",
            "lea {at}, [{c} + {right}]",
            "tilestored [{at} + {row}], tmm1",
            "add {c}, {lower}",
            "tilestored [{c} + {row}], tmm2",
            "lea {at}, [{c} + {right}]",
            "tilestored [{at} + {row}], tmm3",
            step = inout(reg) range.start => _,
            end = in(reg) range.end,
            a = in(reg) a,
            second = in(reg) second,
            apart = in(reg) apart,
            b = inout(reg) b => _,
            c = inout(reg) c => _,
            row = in(reg) stores.row,
            right = in(reg) stores.right,
            lower = in(reg) stores.lower,
            line = in(reg) 64_usize,
            at = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Adds the products of one tile and three others to three tiles of sums, `c[3][16][16]`, over `steps` steps of a tile each.
///
/// # Safety
/// All point to as many tiles as there are steps, at least one, `c` to the sums. A [`Tiles`](crate::kernels::tiles::Tiles) of 16 rows is alive.
#[inline(always)]
pub(super) unsafe fn add_three(a: *const u16, b: [*const u16; 3], steps: usize, c: *mut f32) {
    debug_assert!(steps > 0);
    // SAFETY: as demanded of the caller. The tiles are declared as overwritten.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {line}]",
            "tileloadd tmm1, [{c} + {line} + 1024]",
            "tileloadd tmm2, [{c} + {line} + 2048]",
            "2:",
            "tileloadd tmm4, [{a} + {line}]",
            "tileloadd tmm5, [{b0} + {line}]",
            "tileloadd tmm6, [{b1} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm7, [{b2} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm4, tmm7",
            "add {a}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "add {b2}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {line}], tmm0",
            "tilestored [{c} + {line} + 1024], tmm1",
            "tilestored [{c} + {line} + 2048], tmm2",
            a = inout(reg) a => _,
            b0 = inout(reg) b[0] => _,
            b1 = inout(reg) b[1] => _,
            b2 = inout(reg) b[2] => _,
            steps = inout(reg) steps => _,
            c = in(reg) c,
            line = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm4") _,
            out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
