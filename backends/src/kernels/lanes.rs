//! Vectors of sixteen `f32`, for each set of instructions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

use super::half;

/// The number of `f32` in one [`Lanes`].
pub(crate) const LANES: usize = 16;

/// Sixteen `f32`, in one register, in two, or in an array.
///
/// # Safety
/// Every method demands that the processor has the instructions of the implementing type; the bodies that [`dispatch!`] calls may rely on
/// that. Loads and stores demand valid memory of sixteen numbers (or of the `count` given), aligned as `f32`.
pub(crate) trait Lanes: Copy {
    /// The number of values of this type that a loop can keep as running sums in registers.
    const SUMS: usize;
    /// Returns `x` in all lanes.
    unsafe fn splat(x: f32) -> Self;
    /// Loads the sixteen numbers at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// Loads the first `count` (at most 16) numbers at `from`; the other lanes are 0.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// Writes all lanes to `to`.
    unsafe fn store(self, to: *mut f32);
    /// Writes the first `count` (at most 16) lanes to `to`.
    unsafe fn store_first(self, to: *mut f32, count: usize);
    /// Loads the sixteen `bf16` at `from`.
    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> Self {
        // SAFETY: as demanded of the caller.
        unsafe { Self::load_first_halves(from, LANES) }
    }
    /// Loads the first `count` (at most 16) `bf16` at `from`; the other lanes are 0.
    #[inline(always)]
    unsafe fn load_first_halves(from: *const u16, count: usize) -> Self {
        let mut array = [0.0; LANES];
        for (i, number) in array.iter_mut().enumerate().take(count) {
            // SAFETY: as demanded of the caller.
            *number = f32::from_bits(u32::from(unsafe { *from.add(i) }) << 16);
        }
        // SAFETY: the array holds sixteen numbers.
        unsafe { Self::load(array.as_ptr()) }
    }
    /// Writes all lanes to `to`, rounded to the nearest `bf16`.
    #[inline(always)]
    unsafe fn store_halves(self, to: *mut u16) {
        // SAFETY: as demanded of the caller.
        unsafe { self.store_first_halves(to, LANES) }
    }
    /// Writes the first `count` (at most 16) lanes to `to`, rounded to the nearest `bf16`.
    #[inline(always)]
    unsafe fn store_first_halves(self, to: *mut u16, count: usize) {
        // SAFETY: as demanded of the caller.
        unsafe {
            for (i, number) in self.array().into_iter().enumerate().take(count) {
                *to.add(i) = half::bits(number);
            }
        }
    }
    /// Returns `self + a·b`.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    unsafe fn plus(self, other: Self) -> Self;
    unsafe fn minus(self, other: Self) -> Self;
    unsafe fn times(self, other: Self) -> Self;
    /// Returns `1/self` to about one unit in the last place, unless it or its inverse is near the limits of the range of `f32`.
    unsafe fn inverse(self) -> Self;
    /// Returns the greater of each two; `other` where one is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// Returns the lesser of each two; `other` where one is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// Returns `self` where `gate > 0`, and 0 elsewhere.
    unsafe fn where_positive(self, gate: Self) -> Self;
    /// Returns a bit for each lane above 0; the first lane has the lowest bit.
    unsafe fn positive(self) -> u16;
    /// Returns `self` where the bit is set, and 0 elsewhere.
    unsafe fn where_set(self, bits: u16) -> Self;
    /// Returns `self · 2ⁿ` for `shifted = 1.5·2²³ + n`; finite results only.
    unsafe fn times_power_of_two(self, shifted: Self) -> Self;

    /// Returns `e^self` to about one unit in the last place; arguments are clamped to `-87.3 … 88`.
    ///
    /// `x = n ln 2 + r` with `|r| ≤ ln 2 / 2`, a polynomial in `r`, and `n` put into the exponent.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // Adding 1.5·2²³ rounds to an integer and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        // ln 2 in two parts; the first has few enough bits for n·LN2_HIGH to be exact.
        const LN2_HIGH: f32 = 355.0 / 512.0;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // SAFETY: as demanded of the caller.
        unsafe {
            // In this order of the arguments, NaN stays NaN.
            let x = Self::splat(88.0).min(Self::splat(-87.3).max(self));
            let shifted = Self::splat(ROUND).plus_product(x, Self::splat(std::f32::consts::LOG2_E));
            let n = shifted.minus(Self::splat(ROUND));
            let r = x.plus_product(n, Self::splat(-LN2_HIGH)).plus_product(n, Self::splat(-LN2_LOW));
            let mut series = Self::splat(1.0 / 5040.0);
            for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                series = Self::splat(coefficient).plus_product(series, r);
            }
            series.times_power_of_two(shifted)
        }
    }

    /// Returns the transpose of sixteen rows.
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        // SAFETY: as demanded of the caller; arrays hold sixteen numbers.
        unsafe {
            let rows = rows.map(|row| row.array());
            std::array::from_fn(|i| Self::load(std::array::from_fn::<f32, LANES, _>(|j| rows[j][i]).as_ptr()))
        }
    }

    /// Returns the lanes as an array.
    #[inline(always)]
    unsafe fn array(self) -> [f32; LANES] {
        let mut array = [0.0; LANES];
        // SAFETY: the array holds sixteen numbers.
        unsafe { self.store(array.as_mut_ptr()) };
        array
    }

    /// Returns the sum of all lanes, computed by adding the upper half to the lower half until one is left.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as demanded of the caller.
        let mut lanes = unsafe { self.array() };
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    /// Returns the greatest lane.
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        // SAFETY: as demanded of the caller.
        let lanes = unsafe { self.array() };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Prefetches the cache line at `at`, which may be any address.
#[inline(always)]
pub(crate) fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: this is only a hint, which every x86-64 processor accepts for any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
