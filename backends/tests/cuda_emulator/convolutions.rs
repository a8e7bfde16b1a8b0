//! Convolutions, pools and upsampling.

use crate::common::{same, same_within, seeded, values};
use candle_core::DType;

#[test]
fn convolutions_equal_those_of_the_cpu() {
    for (dtype, allowed) in [(DType::F32, 2e-5), (DType::F64, 1e-11), (DType::BF16, 2e-2)] {
        for (padding, stride, dilation) in [(0, 1, 1), (1, 1, 1), (1, 2, 1), (2, 1, 2), (3, 3, 2)] {
            same_within("conv2d", dtype, allowed, |device, dtype| {
                let (x, w) = (values(&[2, 3, 11, 9], dtype, device)?, seeded(1, &[4, 3, 3, 2], dtype, device)?);
                x.conv2d(&w, padding, stride, dilation, 1)
            });
            same_within("conv1d", dtype, allowed, |device, dtype| {
                let (x, w) = (values(&[2, 3, 12], dtype, device)?, seeded(1, &[4, 3, 3], dtype, device)?);
                x.conv1d(&w, padding, stride, dilation, 1)
            });
        }
        same_within("conv2d of a view", dtype, allowed, |device, dtype| {
            let x = values(&[2, 8, 7, 3], dtype, device)?.permute((0, 3, 1, 2))?;
            x.conv2d(&seeded(1, &[4, 3, 3, 3], dtype, device)?, 1, 1, 1, 1)
        });
        same_within("conv2d in groups", dtype, allowed, |device, dtype| {
            values(&[2, 4, 8, 8], dtype, device)?.conv2d(&seeded(1, &[6, 2, 3, 3], dtype, device)?, 1, 1, 1, 2)
        });
        same_within("conv_transpose2d", dtype, allowed, |device, dtype| {
            let (x, w) = (values(&[2, 3, 5, 6], dtype, device)?, seeded(1, &[3, 4, 3, 3], dtype, device)?);
            x.conv_transpose2d(&w, 1, 1, 2, 1)
        });
    }
}

#[test]
fn pools_and_upsampling_equal_those_of_the_cpu() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        same("max_pool2d", dtype, |device, dtype| values(&[2, 3, 9, 8], dtype, device)?.max_pool2d(2));
        same("max_pool2d with stride", dtype, |device, dtype| {
            values(&[2, 3, 9, 8], dtype, device)?.max_pool2d_with_stride(3, 2)
        });
        same("avg_pool2d", dtype, |device, dtype| values(&[2, 3, 9, 8], dtype, device)?.avg_pool2d(2));
        same("upsample_nearest2d", dtype, |device, dtype| {
            values(&[2, 3, 4, 5], dtype, device)?.upsample_nearest2d(8, 10)
        });
    }
}
