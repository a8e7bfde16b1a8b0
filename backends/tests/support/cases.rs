//! Layers of every kind, with inputs: strides that do and do not divide the image, padding, odd sizes, one pixel, one image.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use interlock::{Differentiable, Result, Sequential};
use interlock_backends::layers::*;

use super::{distinct, random, tokens};

pub(crate) fn conv(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    bias: bool,
) -> Conv2dConfig {
    Conv2dConfig { inputs, outputs, kernel, stride, padding, bias }
}

pub(crate) fn link(
    config: Conv2dConfig,
    vb: &candle_nn::VarBuilder<'static>,
    at: usize,
) -> interlock::Result<(Conv2d, BatchNorm2d)> {
    Ok((Conv2d::new(config, vb.pp(format!("conv{at}")))?, BatchNorm2d::new(config.outputs, vb.pp(format!("bn{at}")))?))
}

/// A name, the shape of the input, the links of the block, and the projection of the shortcut.
pub(crate) type BlockCase = (&'static str, [usize; 4], Vec<Conv2dConfig>, Option<Conv2dConfig>);

/// Returns blocks of every kind. Without a projection, the shortcut is the input if its shape is that of the output.
pub(crate) fn blocks() -> Vec<BlockCase> {
    vec![
        ("identity", [2, 3, 5, 7], vec![conv(3, 3, 3, 1, 1, false), conv(3, 3, 3, 1, 1, false)], None),
        (
            "projection",
            [3, 3, 5, 7],
            vec![conv(3, 17, 3, 2, 1, false), conv(17, 17, 3, 1, 1, false)],
            Some(conv(3, 17, 1, 2, 0, false)),
        ),
        (
            "bottleneck",
            [2, 4, 6, 5],
            vec![conv(4, 2, 1, 1, 0, false), conv(2, 2, 3, 2, 1, false), conv(2, 8, 1, 1, 0, false)],
            Some(conv(4, 8, 1, 2, 0, false)),
        ),
        ("biased", [3, 2, 4, 4], vec![conv(2, 3, 3, 1, 1, true)], None),
    ]
}

pub(crate) fn block(
    links: &[Conv2dConfig],
    projection: Option<Conv2dConfig>,
    vb: &candle_nn::VarBuilder<'static>,
) -> interlock::Result<ConvBlock> {
    let parts: Vec<_> = links.iter().enumerate().map(|(at, &c)| link(c, vb, at)).collect::<Result<_, _>>()?;
    let shortcut = match projection {
        Some(config) => {
            let (conv, norm) = link(config, vb, 9)?;
            Shortcut::Projection(conv, norm)
        }
        None if links[0].inputs == links[links.len() - 1].outputs => Shortcut::Identity,
        None => Shortcut::None,
    };
    ConvBlock::new(parts, shortcut)
}

pub(crate) type Case = (String, Tensor, Box<dyn Fn(VarBuilder<'static>) -> Result<Box<dyn Differentiable>> + Sync>);

fn case<L: Differentiable + 'static>(
    name: impl Into<String>,
    x: Tensor,
    build: impl Fn(VarBuilder<'static>) -> Result<L> + Sync + 'static,
) -> Case {
    (name.into(), x, Box::new(move |vb| Ok(Box::new(build(vb)?))))
}

/// Returns a name, an input and a layer for each case.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // Batch, image and convolution: strides that do and do not divide the image, padding up to a whole window, one pixel, one image.
    for (batch, image, config) in [
        (3, [9, 7], conv(3, 5, 3, 1, 1, true)),
        (2, [9, 7], conv(3, 5, 3, 2, 1, false)),
        (2, [8, 10], conv(3, 5, 3, 2, 1, true)),
        (1, [11, 8], conv(3, 4, 7, 2, 3, false)),
        (3, [9, 7], conv(4, 6, 1, 1, 0, true)),
        (3, [9, 8], conv(4, 6, 1, 2, 0, false)),
        (2, [5, 6], conv(2, 3, 3, 3, 3, true)),
        (2, [6, 5], conv(2, 3, 2, 2, 0, false)),
        (2, [8, 8], conv(2, 3, 2, 3, 1, false)),
        (1, [3, 3], conv(2, 3, 3, 1, 0, true)),
        (2, [1, 1], conv(3, 2, 1, 1, 0, true)),
    ] {
        let x = random("x", &[batch, config.inputs, image[0], image[1]]);
        cases.push(case(format!("{config:?}"), x, move |vb| Conv2d::new(config, vb)));
    }
    for dims in [[4, 3, 5, 7], [1, 17, 2, 3], [5, 3, 1, 1]] {
        cases.push(case(format!("batch norm {dims:?}"), random("x", &dims), move |vb| BatchNorm2d::new(dims[1], vb)));
    }
    for dims in [[1, 1, 5, 7], [2, 3, 6, 9]] {
        let x = distinct("x", &dims);
        for [kernel, stride, padding] in [[2, 2, 0], [3, 2, 1], [3, 1, 1], [1, 2, 0], [5, 1, 2], [4, 3, 2]] {
            let name = format!("max pool {dims:?} {kernel} {stride} {padding}");
            cases.push(case(name, x.clone(), move |_| Ok(MaxPool2d::new(kernel, stride, padding))));
        }
        for [kernel, stride] in [[2, 2], [3, 2], [3, 1], [1, 2], [2, 3]] {
            let name = format!("average pool {dims:?} {kernel} {stride}");
            cases.push(case(name, x.clone(), move |_| Ok(AvgPool2d::new(kernel, stride))));
        }
        cases.push(case("global average pool", x.clone(), |_| Ok(GlobalAvgPool)));
        cases.push(case("flatten", x.clone(), |_| Ok(Flatten)));
        cases.push(case("relu", x.clone(), |_| Ok(Relu)));
        cases.push(case("gelu", (x * 0.3).expect("a tensor"), |_| Ok(Gelu)));
    }
    for (dims, outputs, bias) in [(vec![1, 1], 1, true), (vec![5], 3, true), (vec![2, 3, 5], 7, false)] {
        let inputs = dims[dims.len() - 1];
        cases.push(case("linear", random("x", &dims), move |vb| Linear::new(inputs, outputs, bias, vb)));
        cases.push(case("linear of GELU", random("x", &dims), move |vb| {
            Ok(FusedLinear::gelu(Linear::new(inputs, outputs, bias, vb)?))
        }));
    }
    let x = random("x", &[2, 9, 12]);
    cases.push(case("layer norm", x.clone(), |vb| LayerNorm::new(12, vb)));
    cases.push(case("linear of a norm", x.clone(), |vb| {
        let norm = LayerNorm::new(12, vb.pp("ln"))?;
        Ok(FusedLinear::norm(norm, Linear::new(12, 5, true, vb.pp("fc"))?))
    }));
    cases.push(case("dropout", x.clone(), |_| Ok(Dropout::new(0.3, "drop"))));
    for (heads, dropout) in [(1, 0.0), (3, 0.2), (12, 0.0)] {
        cases.push(case(format!("attention {heads} {dropout}"), x.clone(), move |vb| {
            CausalSelfAttention::new(12, heads, dropout, 0.4, 0.3, vb)
        }));
    }
    cases.push(case("attention of a norm", x.clone(), |vb| {
        Ok(CausalSelfAttention::new(12, 2, 0.1, 0.4, 0.3, vb.pp("attn"))?.of(LayerNorm::new(12, vb.pp("ln"))?))
    }));
    cases.push(case("residual", x, |vb| {
        let main = Sequential::default().add(LayerNorm::new(12, vb.pp("ln"))?).add(Linear::new(12, 12, true, vb)?);
        Ok(Residual::new(Box::new(main), None))
    }));
    cases.push(case("embedding", tokens(&[3, 5], 7), |vb| Embedding::new(7, 4, vb)));
    cases.push(case("token and position", tokens(&[3, 5], 7), |vb| TokenAndPosition::new(7, 6, 4, vb)));
    for (name, dims, links, projection) in blocks() {
        cases.push(case(format!("block {name}"), random("x", &dims), move |vb| block(&links, projection, &vb)));
    }
    cases
}
