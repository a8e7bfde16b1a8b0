//! The exponentials of a softmax, in loops that compile to vector instructions of any processor.

/// The number of values computed at once.
const LANES: usize = 16;

/// Returns the largest of `values`, ignoring NaN; `-∞` if there is no other value.
pub(super) fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (rows, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for row in rows {
        for (lane, &value) in lanes.iter_mut().zip(row) {
            *lane = larger(*lane, value);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// Writes `exp(value - max)` of each value to `to`, and returns their sum. `max` is at least as large as each value. A NaN makes the sum NaN.
pub(super) fn exponentials(values: &[f32], max: f32, to: &mut [f32]) -> f64 {
    let (rows, rest) = values.as_chunks::<LANES>();
    let (to_rows, to_rest) = to.as_chunks_mut::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for (row, to) in rows.iter().zip(to_rows) {
        for ((lane, to), value) in lanes.iter_mut().zip(to).zip(row) {
            *to = exp(value - max);
            *lane += *to;
        }
    }
    let mut sum = 0.0;
    for (to, value) in to_rest.iter_mut().zip(rest) {
        *to = exp(value - max);
        sum += f64::from(*to);
    }
    sum + lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>()
}

/// Returns `exp(x)` for `x ≤ 0`, exact to the last bit or two; 0 if the result is subnormal in `f32`.
///
/// As in Cephes: `x = n ln 2 + r`, and a polynomial for `exp(r)`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let mut p = 1.987_569_1e-4;
    for next in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + next;
    }
    // 2ⁿ: the shift drops everything above the low bits.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    let y = (p * r * r + r + 1.0) * power;
    if x < -87.0 { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right_to_the_last_bits_and_add_up() {
        let values: Vec<f32> = (0..20_011).map(|i| i as f32 * -0.004_371).collect();
        let mut found = vec![0.0; values.len()];
        let sum = exponentials(&values, 0.0, &mut found);
        let mut expected = 0.0;
        for (&x, found) in values.iter().zip(found) {
            let exact = f64::from(x).exp();
            expected += exact;
            let enough = if x < -87.0 { 2e-38 } else { 2.5e-7 * exact };
            assert!((f64::from(found) - exact).abs() <= enough, "exp({x}) is {found}, not {exact}");
        }
        assert!((sum - expected).abs() < 1e-6 * expected, "{sum} {expected}");
    }

    #[test]
    fn extremes() {
        let exponential = |x: f32| {
            let mut to = [7.0];
            (exponentials(&[x], 0.0, &mut to), to[0])
        };
        assert_eq!(exponential(0.0), (1.0, 1.0));
        for x in [f32::NEG_INFINITY, f32::MIN, -1000.0] {
            assert_eq!(exponential(x), (0.0, 0.0));
        }
        assert!(exponential(f32::NAN).0.is_nan());
        for at in [0, 20, 32] {
            let mut values = [-5.0; 33];
            values[at] = -3.0;
            assert_eq!(largest(&values), -3.0);
            values[at] = f32::NAN;
            assert_eq!(largest(&values), -5.0);
            assert!(exponentials(&values, -5.0, &mut [0.0; 33]).is_nan());
        }
        assert_eq!(largest(&[f32::NAN]), f32::NEG_INFINITY);
    }
}
