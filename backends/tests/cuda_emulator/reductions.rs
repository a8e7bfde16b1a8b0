//! Sums, extremes, and the operations built on them.

use crate::common::{distinct, same, same_within, values};
use candle_core::{D, DType};

const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];

#[test]
fn reductions_equal_those_of_the_cpu() {
    for dtype in FLOATS {
        let sums = if dtype == DType::BF16 { 2e-2 } else { 2e-5 };
        for shape in [[3, 4, 5], [2, 70, 33], [1, 3, 1500]] {
            for dim in 0..3 {
                same_within("sum", dtype, sums, |device, dtype| values(&shape, dtype, device)?.sum_keepdim(dim));
                same("max", dtype, |device, dtype| values(&shape, dtype, device)?.max(dim));
                same("min", dtype, |device, dtype| values(&shape, dtype, device)?.min_keepdim(dim));
                if dtype != DType::BF16 {
                    same("argmax", dtype, |device, dtype| distinct(&shape, dtype, device)?.argmax(dim));
                    same("argmin", dtype, |device, dtype| distinct(&shape, dtype, device)?.argmin(dim));
                }
            }
            same_within("sum of all", dtype, 3.0 * sums, |device, dtype| values(&shape, dtype, device)?.sum_all());
            same_within("mean", dtype, sums, |device, dtype| values(&shape, dtype, device)?.transpose(0, 2)?.mean(1));
            same_within("var", dtype, sums, |device, dtype| values(&[4, 77], dtype, device)?.var(1));
        }
    }
}

#[test]
fn normalizations_equal_those_of_the_cpu() {
    for dtype in FLOATS {
        let allowed = if dtype == DType::BF16 { 2e-2 } else { 3e-6 };
        for columns in [1, 5, 64, 1000, 1500] {
            same_within("softmax", dtype, allowed, |device, dtype| {
                candle_nn::ops::softmax_last_dim(&values(&[6, columns], dtype, device)?)
            });
            same_within("log_softmax", dtype, 5.0 * allowed, |device, dtype| {
                candle_nn::ops::log_softmax(&values(&[6, columns], dtype, device)?, D::Minus1)
            });
            if dtype == DType::F64 {
                continue; // the CPU has no such layer norm
            }
            same_within("layer_norm", dtype, 5.0 * allowed, |device, dtype| {
                let (x, w) = (values(&[6, columns], dtype, device)?, values(&[columns], dtype, device)?);
                candle_nn::ops::layer_norm(&x, &w, &w.affine(0.5, 0.1)?, 1e-5)
            });
        }
    }
}
