//! Sixteen `f32` at a time.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// How many numbers one [`Lanes`] holds.
pub(crate) const LANES: usize = 16;

/// Sixteen `f32`, in one register, in two, or in an array.
///
/// # Safety
/// Every method demands that the processor has the instructions of the implementing type; the bodies that [`dispatch!`] calls may rely on
/// that. Loads and stores demand valid memory of sixteen numbers (or of the `count` given), aligned as `f32`.
pub(crate) trait Lanes: Copy {
    /// How many of them a loop may keep as running sums before the compiler must put some into memory.
    const SUMS: usize;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// The sixteen numbers at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// The first `count` (at most 16) numbers at `from`, and zeros.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// Writes all lanes to `to`.
    unsafe fn store(self, to: *mut f32);
    /// Writes the first `count` (at most 16) lanes to `to`.
    unsafe fn store_first(self, to: *mut f32, count: usize);
    /// `self + a·b`.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    unsafe fn plus(self, other: Self) -> Self;
    unsafe fn minus(self, other: Self) -> Self;
    unsafe fn times(self, other: Self) -> Self;
    /// `1/self` to about one unit in the last place, where neither it nor its inverse is near the ends of what `f32` holds.
    unsafe fn inverse(self) -> Self;
    /// The greater of each two; `other` where one is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// The lesser of each two; `other` where one is not a number.
    unsafe fn min(self, other: Self) -> Self;
    /// `self` where `gate > 0`, otherwise 0.
    unsafe fn where_positive(self, gate: Self) -> Self;
    /// A bit for each lane above 0, the first lane's lowest.
    unsafe fn positive(self) -> u16;
    /// `self` where the bit is set, otherwise 0.
    unsafe fn where_set(self, bits: u16) -> Self;
    /// `self · 2ⁿ` for `shifted = 1.5·2²³ + n`; finite results only.
    unsafe fn times_power_of_two(self, shifted: Self) -> Self;

    /// `e^self` to about one unit in the last place, for arguments limited to `-87.3 … 88`.
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
            // In this order a value that is not a number stays one.
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

    /// The transpose of sixteen rows.
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        // SAFETY: as demanded of the caller; arrays hold sixteen numbers.
        unsafe {
            let rows = rows.map(|row| row.array());
            std::array::from_fn(|i| Self::load(std::array::from_fn::<f32, LANES, _>(|j| rows[j][i]).as_ptr()))
        }
    }

    /// The lanes as an array.
    #[inline(always)]
    unsafe fn array(self) -> [f32; LANES] {
        let mut array = [0.0; LANES];
        // SAFETY: the array holds sixteen numbers.
        unsafe { self.store(array.as_mut_ptr()) };
        array
    }

    /// The sum of all lanes, halves added to halves.
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

    /// The greatest lane.
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        // SAFETY: as demanded of the caller.
        let lanes = unsafe { self.array() };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// A bit for each of the first `count` lanes.
#[cfg(target_arch = "x86_64")]
fn first(count: usize) -> u16 {
    debug_assert!(count <= LANES);
    ((1_u32 << count) - 1) as u16
}

/// Asks for the cache line of what may lie at `at`, which will be read soon; any address will do.
#[inline(always)]
pub(crate) fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which every x86-64 processor takes and which reads nothing that a program can see.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// One 512-bit register.
#[cfg(target_arch = "x86_64")]
pub(crate) type Avx512 = __m512;

// Each method demands the instructions it uses (see the trait); there is nothing else to any of these blocks.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx512 {
    const SUMS: usize = 24;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        unsafe { _mm512_maskz_loadu_ps(first(count), from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, first(count), self) }
    }
    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        unsafe { _mm512_add_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        unsafe { _mm512_sub_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        unsafe { _mm512_mul_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn inverse(self) -> Self {
        // Good to 14 bits, and one step of Newton's.
        unsafe {
            let near = _mm512_rcp14_ps(self);
            let error = _mm512_fnmadd_ps(self, near, _mm512_set1_ps(1.0));
            _mm512_fmadd_ps(near, error, near)
        }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { _mm512_max_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { _mm512_min_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // Halves to halves, as the other lanes do.
        unsafe {
            let x = _mm512_add_ps(self, _mm512_shuffle_f32x4::<0b01_00_11_10>(self, self));
            let x = _mm512_add_ps(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0b01_00_11_10>(x));
            _mm512_cvtss_f32(_mm512_add_ps(x, _mm512_permute_ps::<0b10_11_00_01>(x)))
        }
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        unsafe {
            let x = _mm512_max_ps(self, _mm512_shuffle_f32x4::<0b01_00_11_10>(self, self));
            let x = _mm512_max_ps(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
            let x = _mm512_max_ps(x, _mm512_permute_ps::<0b01_00_11_10>(x));
            _mm512_cvtss_f32(_mm512_max_ps(x, _mm512_permute_ps::<0b10_11_00_01>(x)))
        }
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(gate, _mm512_setzero_ps()), self) }
    }
    #[inline(always)]
    unsafe fn positive(self) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self, _mm512_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn where_set(self, bits: u16) -> Self {
        unsafe { _mm512_maskz_mov_ps(bits, self) }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let (mut pairs, mut fours, mut columns) = (rows, rows, rows);
        unsafe {
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let double = |x| _mm512_castps_pd(x);
            for i in 0..4 {
                let [a, b, c, d] = [0, 1, 2, 3].map(|j| double(pairs[4 * i + j]));
                fours[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                fours[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                fours[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                fours[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            // Of four rows each, quarter `q` of `fours[j]` is column `4q + j`: quarters of one number are brought together.
            const EVEN: i32 = 0b10_00_10_00;
            const ODD: i32 = 0b11_01_11_01;
            for j in 0..4 {
                let [a, b, c, d] = [0, 4, 8, 12].map(|i| fours[i + j]);
                let (even, other_even) = (_mm512_shuffle_f32x4::<EVEN>(a, b), _mm512_shuffle_f32x4::<EVEN>(c, d));
                let (odd, other_odd) = (_mm512_shuffle_f32x4::<ODD>(a, b), _mm512_shuffle_f32x4::<ODD>(c, d));
                columns[j] = _mm512_shuffle_f32x4::<EVEN>(even, other_even);
                columns[4 + j] = _mm512_shuffle_f32x4::<EVEN>(odd, other_odd);
                columns[8 + j] = _mm512_shuffle_f32x4::<ODD>(even, other_even);
                columns[12 + j] = _mm512_shuffle_f32x4::<ODD>(odd, other_odd);
            }
        }
        columns
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self), exponent))
        }
    }
}

/// Two 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// A mask of all ones in the first `count` lanes.
    #[inline(always)]
    unsafe fn first(count: usize) -> (__m256i, __m256i) {
        debug_assert!(count <= LANES);
        const ONES: [i32; 2 * LANES] = {
            let mut ones = [0; 2 * LANES];
            let mut i = 0;
            while i < LANES {
                ones[i] = -1;
                i += 1;
            }
            ones
        };
        // SAFETY: `count` is at most 16, so both loads end within the table.
        unsafe {
            let from = ONES.as_ptr().add(LANES - count);
            (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast()))
        }
    }

    #[inline(always)]
    fn both(self, other: Self, f: impl Fn(__m256, __m256) -> __m256) -> Self {
        Self(f(self.0, other.0), f(self.1, other.1))
    }
}

// As above.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx2 {
    const SUMS: usize = 6;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        let x = unsafe { _mm256_set1_ps(x) };
        Self(x, x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        unsafe {
            let (low, high) = Self::first(count);
            Self(_mm256_maskload_ps(from, low), _mm256_maskload_ps(from.wrapping_add(8), high))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        unsafe {
            let (low, high) = Self::first(count);
            _mm256_maskstore_ps(to, low, self.0);
            _mm256_maskstore_ps(to.wrapping_add(8), high, self.1);
        }
    }
    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        self.both(other, |a, b| unsafe { _mm256_add_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        self.both(other, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        self.both(other, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn inverse(self) -> Self {
        unsafe { Self::splat(1.0).both(self, |one, x| _mm256_div_ps(one, x)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.both(other, |a, b| unsafe { _mm256_max_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.both(other, |a, b| unsafe { _mm256_min_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        self.both(gate, |x, gate| unsafe { _mm256_and_ps(x, _mm256_cmp_ps::<_CMP_GT_OQ>(gate, _mm256_setzero_ps())) })
    }
    #[inline(always)]
    unsafe fn positive(self) -> u16 {
        let half = |x| unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_setzero_ps())) as u16 };
        half(self.0) | half(self.1) << 8
    }
    #[inline(always)]
    unsafe fn where_set(self, bits: u16) -> Self {
        let half = |x, bits: u16| unsafe {
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), lane);
            _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)))
        };
        Self(half(self.0, bits), half(self.1, bits >> 8))
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        self.both(shifted, |x, shifted| unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent))
        })
    }
}

/// An array, for any processor.
pub(crate) type Portable = [f32; LANES];

#[inline(always)]
fn both(a: Portable, b: Portable, f: impl Fn(f32, f32) -> f32) -> Portable {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Portable {
    const SUMS: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives sixteen numbers; an array of them is aligned as one is.
        unsafe { *from.cast() }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller gives `count` numbers, at most as many as the array has.
        unsafe { from.copy_to_nonoverlapping(lanes.as_mut_ptr(), count.min(LANES)) };
        lanes
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for sixteen numbers.
        unsafe { *to.cast() = self }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: the caller gives room for `count` numbers.
        unsafe { to.copy_from_nonoverlapping(self.as_ptr(), count.min(LANES)) };
    }
    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] + a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        both(self, other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        both(self, other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        both(self, other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn inverse(self) -> Self {
        self.map(|x| 1.0 / x)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        both(self, other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        both(self, other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        both(self, gate, |x, gate| if gate > 0.0 { x } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn positive(self) -> u16 {
        self.iter().enumerate().fold(0, |bits, (i, &x)| bits | u16::from(x > 0.0) << i)
    }
    #[inline(always)]
    unsafe fn where_set(self, bits: u16) -> Self {
        std::array::from_fn(|i| if bits >> i & 1 == 1 { self[i] } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        both(self, shifted, |x, shifted| f32::from_bits(x.to_bits().wrapping_add(shifted.to_bits() << 23)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Instructions;

    /// Everything the trait can do, on values with signs, zeros and numbers that are none.
    #[inline(always)]
    unsafe fn everything<L: Lanes>(a: &[f32; 16], b: &[f32; 16]) -> Vec<[f32; 16]> {
        // SAFETY: called for the processor's own instructions only; the arrays hold sixteen numbers.
        unsafe {
            let (x, y) = (L::load(a.as_ptr()), L::load(b.as_ptr()));
            let mut all: Vec<[f32; 16]> = [
                x.plus(y),
                x.minus(y),
                x.times(y),
                x.max(y),
                x.min(y),
                x.where_positive(y),
                x.where_set(0b1010_0110_0011_0101),
                L::splat(a[3]),
                L::splat(1.0).times_power_of_two(L::splat(12_582_912.0 + 5.0)),
            ]
            .map(|lanes| lanes.array())
            .into();
            all.extend(L::transpose(std::array::from_fn(|i| x.plus(L::splat(i as f32)))).map(|row| row.array()));
            all.extend(L::transpose(std::array::from_fn(|i| L::splat(i as f32))).map(|row| row.array()));
            let positive = x.positive();
            all.push(std::array::from_fn(|i| f32::from(positive >> i & 1)));
            for count in [0, 1, 7, 8, 9, 15, 16] {
                all.push(L::load_first(a.as_ptr(), count).array());
                let mut target = *b;
                x.store_first(target.as_mut_ptr(), count);
                all.push(target);
            }
            all
        }
    }

    #[inline(always)]
    unsafe fn rounded<L: Lanes>(a: &[f32; 16], b: &[f32; 16]) -> Vec<[f32; 16]> {
        // SAFETY: as above.
        unsafe {
            let (x, y) = (L::load(a.as_ptr()), L::load(b.as_ptr()));
            vec![
                x.plus_product(x, y).array(),
                x.exp().array(),
                y.inverse().array(),
                L::splat(1.0).plus(x.exp()).inverse().array(),
                [x.sum(); 16],
                [x.greatest(); 16],
            ]
        }
    }

    dispatch! { unsafe fn everything_here(a: &[f32; 16], b: &[f32; 16]) -> Vec<[f32; 16]> = everything }
    dispatch! { unsafe fn rounded_here(a: &[f32; 16], b: &[f32; 16]) -> Vec<[f32; 16]> = rounded }

    const A: [f32; 16] = [1.5, -2.0, 0.0, -0.0, 3.25, -7.0, 0.125, 9.0, -1.0, 4.0, 5.5, -6.0, 2.0, -8.5, 10.0, -0.5];
    const B: [f32; 16] = [2.0, -3.0, 1.0, -4.0, 0.5, 7.0, -0.25, 8.0, 1.0, -1.0, 2.5, 6.0, -2.0, 0.75, -5.0, 3.0];

    #[test]
    fn the_processors_lanes_do_as_the_portable_ones() {
        // SAFETY: `dispatch!` calls what the processor has; portable lanes need nothing.
        let (here, portable) = unsafe { (everything_here(&A, &B), everything::<Portable>(&A, &B)) };
        assert_eq!(here, portable, "{}", Instructions::in_use());
        // SAFETY: as above.
        let (here, portable) = unsafe { (rounded_here(&A, &B), rounded::<Portable>(&A, &B)) };
        for (here, portable) in here.iter().flatten().zip(portable.iter().flatten()) {
            assert!((here - portable).abs() <= 4e-7 * portable.abs(), "{here} {portable}");
        }
    }

    #[test]
    fn transposed_rows_are_columns() {
        let rows: [Portable; 16] = std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as f32));
        // SAFETY: portable lanes need nothing.
        let columns = unsafe { Portable::transpose(rows) };
        assert!((0..256).all(|at| columns[at % 16][at / 16] == at as f32));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx2_lanes_do_as_the_portable_ones() {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2() -> Vec<[f32; 16]> {
            // SAFETY: called below where the processor has them.
            unsafe { everything::<Avx2>(&A, &B) }
        }
        if Instructions::of_the_processor() >= Instructions::Avx2 {
            // SAFETY: just checked.
            let (avx2, portable) = unsafe { (avx2(), everything::<Portable>(&A, &B)) };
            assert_eq!(avx2, portable);
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place_and_keeps_what_is_no_number() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            // SAFETY: portable lanes need nothing.
            let (portable, here) = unsafe { ([x; 16].exp()[0], rounded_here(&[x; 16], &[0.0; 16])[1][7]) };
            for found in [portable, here] {
                assert!((f64::from(found) / f64::from(x).exp() - 1.0).abs() < 2.5e-7, "e^{x} = {found}");
            }
        }
        // SAFETY: as above.
        unsafe {
            assert!([f32::NAN; 16].exp()[0].is_nan() && rounded_here(&[f32::NAN; 16], &[0.0; 16])[1][0].is_nan());
            assert!([f32::NEG_INFINITY; 16].exp()[0] < 2e-38 && [f32::INFINITY; 16].exp()[0] > 1e38);
        }
    }
}
