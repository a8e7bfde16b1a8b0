//! Blocks of 32 by 32 numbers of a product, summed in four tiles.

use std::arch::asm;

/// Rows and columns of a block, and the depth of one step.
pub(crate) const BLOCK: usize = 32;
/// The numbers of one step of a factor: two tiles of `bf16`, one after another.
pub(crate) const STEP: usize = BLOCK * BLOCK;

/// Writes `C = A B`, or adds the product to `C` with `ADD`. `C` is 32 rows of 32 numbers, `c_apart` numbers apart.
///
/// A step of `A` is a tile of its first 16 rows and one of the others, each of 16 rows by 32 numbers; a step of `B` is a tile of its first 16 columns and
/// one of the others, each of 16 rows of 16 pairs: the numbers of two rows, column by column.
///
/// # Safety
/// `a` and `b` point to `steps` steps, at least one, and `c` to the rows of `C`. [`Tiles`](super::Tiles) is alive on this thread.
#[inline(always)]
pub(crate) unsafe fn multiply<const ADD: bool>(
    a: *const u16,
    b: *const u16,
    steps: usize,
    c: *mut f32,
    c_apart: usize,
) {
    debug_assert!(steps > 0);
    let apart = c_apart * size_of::<f32>();
    macro_rules! product {
        ($($start:literal),*) => {
            // SAFETY: as demanded of the caller. The tiles are declared as overwritten.
            unsafe {
                asm!(
                    $($start,)*
                    "2:",
                    "tileloadd tmm6, [{b} + {row}]",
                    "tileloadd tmm4, [{a} + {row}]",
                    "tileloadd tmm7, [{b} + {row} + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a} + {row} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, 2048",
                    "add {b}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{c} + {apart}], tmm0",
                    "tilestored [{c} + {apart} + 64], tmm1",
                    "tilestored [{lower} + {apart}], tmm2",
                    "tilestored [{lower} + {apart} + 64], tmm3",
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    steps = inout(reg) steps => _,
                    c = in(reg) c,
                    lower = in(reg) c.add(16 * c_apart),
                    apart = in(reg) apart,
                    row = in(reg) 64_usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        };
    }
    if ADD {
        product!(
            "tileloadd tmm0, [{c} + {apart}]",
            "tileloadd tmm1, [{c} + {apart} + 64]",
            "tileloadd tmm2, [{lower} + {apart}]",
            "tileloadd tmm3, [{lower} + {apart} + 64]"
        );
    } else {
        product!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
    }
}
