//! The units of a residual network.

use candle_nn::VarBuilder;
use interlock::{Result, Sequential, Unit};
use interlock_backends::layers::{
    BatchNorm2d, Conv2d, Conv2dConfig, ConvBlock, GlobalAvgPool, Linear, MaxPool2d, Shortcut,
};

use super::{BlockKind, StemKind};
use crate::flops;

/// The shape of an activation without the batch dimension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Shape {
    pub(super) fn dims(self) -> [usize; 3] {
        [self.channels, self.height, self.width]
    }

    fn elements(self) -> f64 {
        flops::elements(&self.dims())
    }

    /// Returns the output shape of a window with an odd kernel and the padding `(kernel - 1) / 2`.
    pub(super) fn strided(self, channels: usize, stride: usize) -> Self {
        Self { channels, height: self.height.div_ceil(stride), width: self.width.div_ceil(stride) }
    }
}

/// A convolution with an odd kernel, the padding `(kernel - 1) / 2` and no bias, and a batch norm after it.
#[derive(Clone, Copy, Debug)]
struct Normed {
    inputs: usize,
    kernel: usize,
    stride: usize,
    output: Shape,
}

impl Normed {
    fn new(input: Shape, outputs: usize, kernel: usize, stride: usize) -> Self {
        Self { inputs: input.channels, kernel, stride, output: input.strided(outputs, stride) }
    }

    fn flops(self) -> f64 {
        flops::convolution(self.inputs, self.kernel, &self.output.dims()) + flops::NORM * self.output.elements()
    }

    fn build(self, vb: &VarBuilder<'static>, convolution: &str, norm: &str) -> Result<(Conv2d, BatchNorm2d)> {
        let Self { inputs, kernel, stride, output } = self;
        let config =
            Conv2dConfig { inputs, outputs: output.channels, kernel, stride, padding: (kernel - 1) / 2, bias: false };
        Ok((Conv2d::new(config, vb.pp(convolution))?, BatchNorm2d::new(output.channels, vb.pp(norm))?))
    }
}

/// Returns the shape of the first unit's output.
pub(super) fn stem_output(kind: StemKind, input: Shape, planes: usize) -> Shape {
    match kind {
        StemKind::Cifar => input.strided(planes, 1),
        StemKind::Imagenet => input.strided(planes, 2).strided(planes, 2),
    }
}

/// Returns the first unit, and its output's shape: `conv1`, `bn1`, ReLU and, for ImageNet, a max-pool.
pub(super) fn stem(kind: StemKind, input: Shape, planes: usize) -> (Unit, Shape) {
    let (convolution, pooled) = match kind {
        StemKind::Cifar => (Normed::new(input, planes, 3, 1), None),
        StemKind::Imagenet => {
            let convolution = Normed::new(input, planes, 7, 2);
            (convolution, Some(convolution.output.strided(planes, 2)))
        }
    };
    let mut cost = convolution.flops() + flops::SIMPLE * convolution.output.elements();
    if let Some(pooled) = pooled {
        cost += 9.0 * flops::SIMPLE * pooled.elements();
    }
    let output = pooled.unwrap_or(convolution.output);
    let unit = Unit::new("", output.dims(), move |vb| {
        let links = vec![convolution.build(&vb, "conv1", "bn1")?];
        let mut layers = Sequential::default().add(ConvBlock::new(links, Shortcut::None)?);
        if pooled.is_some() {
            layers.push(MaxPool2d::new(3, 2, 1));
        }
        Ok(layers)
    });
    (unit.with_flops(cost), output)
}

/// Returns a block of two 3×3 convolutions and a shortcut, and its output's shape.
pub(crate) fn basic(name: String, input: Shape, planes: usize, stride: usize) -> (Unit, Shape) {
    let first = Normed::new(input, planes, 3, stride);
    let second = Normed::new(first.output, planes, 3, 1);
    block(name, input, stride, vec![first, second], BlockKind::Basic.expansion() * planes)
}

/// Returns a block of a 1×1, a 3×3 (with the stride) and a 1×1 convolution and a shortcut, and its output's shape.
pub(super) fn bottleneck(name: String, input: Shape, planes: usize, stride: usize) -> (Unit, Shape) {
    let outputs = BlockKind::Bottleneck.expansion() * planes;
    let first = Normed::new(input, planes, 1, 1);
    let second = Normed::new(first.output, planes, 3, stride);
    let third = Normed::new(second.output, outputs, 1, 1);
    block(name, input, stride, vec![first, second, third], outputs)
}

/// Returns the unit `relu(main(x) + shortcut(x))`, and its output's shape. `main` consists of `conv{i}` and `bn{i}` with a ReLU between; the shortcut
/// is the identity or, where the shape changes, a 1×1 convolution and a batch norm: `downsample.0` and `downsample.1`.
fn block(name: String, input: Shape, stride: usize, main: Vec<Normed>, outputs: usize) -> (Unit, Shape) {
    let projection = (stride != 1 || input.channels != outputs).then(|| Normed::new(input, outputs, 1, stride));
    let output = input.strided(outputs, stride);
    let convolutions: f64 = main.iter().chain(&projection).map(|c| c.flops()).sum();
    // A ReLU after every convolution of the main path, and the addition.
    let elementwise: f64 = main.iter().map(|c| c.output.elements()).sum::<f64>() + output.elements();
    let unit = Unit::new(name, output.dims(), move |vb| {
        let links = main
            .iter()
            .enumerate()
            .map(|(at, convolution)| convolution.build(&vb, &format!("conv{}", at + 1), &format!("bn{}", at + 1)));
        let links = links.collect::<Result<_>>()?;
        let shortcut = match projection {
            Some(projection) => {
                let (convolution, norm) = projection.build(&vb.pp("downsample"), "0", "1")?;
                Shortcut::Projection(convolution, norm)
            }
            None => Shortcut::Identity,
        };
        ConvBlock::new(links, shortcut)
    });
    (unit.with_flops(convolutions + flops::SIMPLE * elementwise), output)
}

/// Returns the last unit: global average pool and `fc`.
pub(super) fn classifier(input: Shape, classes: usize) -> Unit {
    let channels = input.channels;
    Unit::new("", [classes], move |vb| {
        let fc = Linear::new(channels, classes, true, vb.pp("fc"))?;
        Ok(Sequential::default().add(GlobalAvgPool).add(fc))
    })
    .with_flops(flops::SIMPLE * input.elements() + flops::linear(1, channels, classes))
}
