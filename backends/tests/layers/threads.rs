//! Every layer on inputs of several chunks: the same bits for 1, 2 and 3 threads, in every pass.

use candle_nn::VarBuilder;
use interlock::{Differentiable, Result, Sequential};
use interlock_backends::layers::*;

use crate::{
    contract::check_bits,
    support::{
        cases::{block, conv},
        random, tokens,
    },
};

#[test]
fn convolutions() {
    for (batch, side, config) in [
        // Winograd's method, and the plain sum for few channels.
        (20, 10, conv(16, 33, 3, 1, 1, true)),
        (20, 9, conv(3, 16, 3, 1, 1, false)),
        (20, 11, conv(16, 32, 3, 2, 1, false)),
        (20, 8, conv(16, 48, 1, 1, 0, true)),
        (20, 9, conv(16, 32, 1, 2, 0, false)),
        (20, 21, conv(3, 16, 7, 2, 3, false)),
        // Small images with large weights, which are one product of patches.
        (16, 4, conv(160, 192, 3, 1, 1, false)),
        (16, 4, conv(160, 192, 3, 2, 1, false)),
        // A weight gradient that is divided by outputs, not by images.
        (26, 8, conv(160, 192, 3, 1, 1, false)),
    ] {
        let x = random("x", &[batch, config.inputs, side, side]);
        check_bits(&format!("{config:?}"), &x, &|vb| Ok(Box::new(Conv2d::new(config, vb)?)));
    }
}

#[test]
fn convolution_blocks() {
    let same = |planes| conv(planes, planes, 3, 1, 1, false);
    for (name, dims, links, projection) in [
        ("identity", [20, 16, 8, 8], vec![same(16), same(16)], None),
        (
            "projection",
            [20, 16, 8, 8],
            vec![conv(16, 32, 3, 2, 1, false), same(32)],
            Some(conv(16, 32, 1, 2, 0, false)),
        ),
        (
            "bottleneck",
            [20, 32, 6, 6],
            vec![conv(32, 16, 1, 1, 0, false), same(16), conv(16, 32, 1, 1, 0, false)],
            None,
        ),
        ("no shortcut", [20, 3, 9, 9], vec![conv(3, 16, 7, 2, 3, true)], None),
        ("many planes", [16, 160, 2, 2], vec![conv(160, 192, 3, 1, 1, false)], Some(conv(160, 192, 1, 1, 0, false))),
    ] {
        check_bits(name, &random("x", &dims), &|vb| Ok(Box::new(block(&links, projection, &vb)?)));
    }
}

#[test]
fn norms_pools_and_shapes_of_images() {
    let x = random("x", &[20, 33, 9, 9]);
    check_bits("batch norm", &x, &|vb| Ok(Box::new(BatchNorm2d::new(33, vb)?)));
    check_bits("max pool", &x, &|_| Ok(Box::new(MaxPool2d::new(3, 2, 1))));
    check_bits("average pool", &x, &|_| Ok(Box::new(AvgPool2d::new(3, 2))));
    check_bits("global average pool", &x, &|_| Ok(Box::new(GlobalAvgPool)));
    check_bits("flatten", &x, &|_| Ok(Box::new(Flatten)));
    let main = |vb: &VarBuilder<'static>| -> Result<Box<dyn Differentiable>> {
        let conv = Conv2d::new(conv(33, 33, 3, 1, 1, false), vb.pp("conv"))?;
        Ok(Box::new(Sequential::default().add(conv).add(BatchNorm2d::new(33, vb.pp("bn"))?).add(Relu)))
    };
    check_bits("identity", &x, &|vb| Ok(Box::new(Residual::new(main(&vb)?, None))));
    check_bits("shortcut", &x, &|vb| {
        let short = Conv2d::new(conv(33, 33, 1, 1, 0, true), vb.pp("short"))?;
        Ok(Box::new(Residual::new(main(&vb)?, Some(Box::new(short)))))
    });
}

#[test]
fn single_elements() {
    let x = random("x", &[3, 20_000]);
    check_bits("relu", &x, &|_| Ok(Box::new(Relu)));
    check_bits("gelu", &x, &|_| Ok(Box::new(Gelu)));
    check_bits("dropout", &x, &|_| Ok(Box::new(Dropout::new(0.3, "drop"))));
}

#[test]
fn rows() {
    let x = random("x", &[7, 100, 72]);
    check_bits("linear", &x, &|vb| Ok(Box::new(Linear::new(72, 90, true, vb)?)));
    check_bits("layer norm", &x, &|vb| Ok(Box::new(LayerNorm::new(72, vb)?)));
    check_bits("linear of a norm", &x, &|vb| {
        let norm = LayerNorm::new(72, vb.pp("ln"))?;
        Ok(Box::new(FusedLinear::norm(norm, Linear::new(72, 90, true, vb.pp("fc"))?)))
    });
    check_bits("linear of GELU", &x, &|vb| Ok(Box::new(FusedLinear::gelu(Linear::new(72, 90, true, vb)?))));
}

#[test]
fn sequences() {
    let x = random("x", &[4, 70, 24]);
    for dropout in [0.0, 0.2] {
        let attention = |vb: &VarBuilder<'static>| CausalSelfAttention::new(24, 3, dropout, 0.4, 0.3, vb.pp("attn"));
        check_bits("attention", &x, &|vb| Ok(Box::new(attention(&vb)?)));
        check_bits("attention of a norm", &x, &|vb| Ok(Box::new(attention(&vb)?.of(LayerNorm::new(24, vb.pp("ln"))?))));
    }
    let x = tokens(&[20, 70], 300);
    check_bits("embedding", &x, &|vb| Ok(Box::new(Embedding::new(300, 40, vb)?)));
    check_bits("token and position", &x, &|vb| Ok(Box::new(TokenAndPosition::new(300, 70, 40, vb)?)));
}
