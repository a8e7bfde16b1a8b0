//! Matrix products.

use crate::common::{same_within, seeded, values};
use candle_core::{DType, Device, Result, Tensor};

fn product<const N: usize>(
    left: [usize; N],
    right: [usize; N],
    change: impl Fn(Tensor, Tensor) -> Result<(Tensor, Tensor)>,
) -> impl Fn(&Device, DType) -> Result<Tensor> {
    move |device, dtype| {
        let (left, right) = change(values(&left, dtype, device)?, seeded(1, &right, dtype, device)?)?;
        left.matmul(&right)
    }
}

#[test]
fn products_equal_those_of_the_cpu() {
    for (dtype, allowed) in [(DType::F32, 2e-4), (DType::F64, 1e-12), (DType::BF16, 1e-2)] {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (64, 33, 65), (256, 256, 256), (1, 300, 10), (40, 1, 2)] {
            let plain = product([m, k], [k, n], |a, b| Ok((a, b)));
            same_within("product", dtype, allowed, plain);
            let left = product([k, m], [k, n], |a, b| Ok((a.t()?, b)));
            same_within("product, left transposed", dtype, allowed, left);
            let right = product([m, k], [n, k], |a, b| Ok((a, b.t()?)));
            same_within("product, right transposed", dtype, allowed, right);
            let both = product([k, m], [n, k], |a, b| Ok((a.t()?, b.t()?)));
            same_within("product, both transposed", dtype, allowed, both);
        }
        let batched = product([2, 3, 9, 17], [2, 3, 17, 5], |a, b| Ok((a, b)));
        same_within("batched product", dtype, allowed, batched);
        let heads = product([2, 9, 3, 8], [2, 9, 3, 8], |a, b| {
            Ok((a.transpose(1, 2)?.contiguous()?, b.transpose(1, 2)?.contiguous()?.t()?))
        });
        same_within("batched product, right transposed", dtype, allowed, heads);
        same_within("broadcast product", dtype, allowed, |device, dtype| {
            values(&[4, 6, 8], dtype, device)?.broadcast_matmul(&seeded(1, &[8, 5], dtype, device)?)
        });
    }
}
