//! Compares all lanes with the portable ones.

use super::*;
use crate::kernels::Instructions;

/// Returns the results of all exact methods of the trait.
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
fn lanes_of_this_processor_equal_the_portable_ones() {
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
fn avx2_lanes_equal_the_portable_ones() {
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
fn exp_is_within_two_units_in_the_last_place_and_keeps_nan() {
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
