//! Residual networks.
//!
//! He, Zhang, Ren, Sun: *Deep Residual Learning for Image Recognition*, CVPR 2016, with projection shortcuts where the shape changes (their option
//! B), and in bottleneck blocks with the stride in the 3×3 convolution as in torchvision.

pub(crate) mod blocks;

use interlock::{Adapted, Error, ModelSpec, Result, Unit, Weights};
use serde::{Deserialize, Serialize};

use crate::{
    checks,
    heads::{self, HeadSettings},
};
use blocks::Shape;

/// The kind of residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum BlockKind {
    /// Two 3×3 convolutions.
    Basic,
    /// A 1×1, a 3×3 and a 1×1 convolution, with four output channels for each plane.
    Bottleneck,
}

impl BlockKind {
    /// Returns the number of output channels for each plane.
    pub fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// The kind of first unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum StemKind {
    /// A 3×3 convolution with stride 1.
    Cifar,
    /// A 7×7 convolution and a 3×3 max-pool, both with stride 2.
    Imagenet,
}

/// A residual network: units are the stem, each block, and the classifier.
///
/// Inputs `(B, channels, height, width)`, outputs `(B, classes)`. Parameters are named as torchvision's: `conv1`, `bn1`,
/// `layer{i}.{j}.conv1`, …, `layer{i}.{j}.downsample.0`, `fc`. Initial values are Kaiming-normal over the fan-out for convolutions, 1 and 0 for
/// batch norms, and those of PyTorch's linear layer for the classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResNet {
    /// The residual block.
    pub block: BlockKind,
    /// The first unit.
    pub stem: StemKind,
    /// Output channels of the first unit.
    pub stem_planes: usize,
    /// Planes of each group of blocks; every group but the first begins with stride 2.
    pub planes: Vec<usize>,
    /// Blocks of each group.
    pub blocks: Vec<usize>,
    /// The number of classes.
    pub classes: usize,
    /// Channels of the images.
    pub channels: usize,
    /// Height of the images.
    pub height: usize,
    /// Width of the images.
    pub width: usize,
}

/// The shape of a residual network, under its usual name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name, such as `resnet50`.
    pub name: &'static str,
    /// The residual block.
    pub block: BlockKind,
    /// The first unit.
    pub stem: StemKind,
    /// Planes of each group of blocks; those of the first are the stem's output channels too.
    pub planes: &'static [usize],
    /// Blocks of each group.
    pub blocks: &'static [usize],
}

const fn cifar(name: &'static str, blocks: &'static [usize; 3]) -> Preset {
    Preset { name, block: BlockKind::Basic, stem: StemKind::Cifar, planes: &[16, 32, 64], blocks }
}

const fn imagenet(name: &'static str, block: BlockKind, blocks: &'static [usize; 4]) -> Preset {
    Preset { name, block, stem: StemKind::Imagenet, planes: &[64, 128, 256, 512], blocks }
}

/// The shapes of He et al.: sections 4.2 (CIFAR) and 4.1 (ImageNet).
pub const PRESETS: [Preset; 10] = [
    cifar("resnet20", &[3; 3]),
    cifar("resnet32", &[5; 3]),
    cifar("resnet44", &[7; 3]),
    cifar("resnet56", &[9; 3]),
    cifar("resnet110", &[18; 3]),
    imagenet("resnet18", BlockKind::Basic, &[2, 2, 2, 2]),
    imagenet("resnet34", BlockKind::Basic, &[3, 4, 6, 3]),
    imagenet("resnet50", BlockKind::Bottleneck, &[3, 4, 6, 3]),
    imagenet("resnet101", BlockKind::Bottleneck, &[3, 4, 23, 3]),
    imagenet("resnet152", BlockKind::Bottleneck, &[3, 8, 36, 3]),
];

/// Returns the preset called `name`.
///
/// # Errors
/// If there is no such preset. The message lists all of them.
pub fn preset(name: &str) -> Result<&'static Preset> {
    checks::preset("model.preset", name, &PRESETS, |p| p.name)
}

impl ResNet {
    /// Returns the preset called `name` for images of `[channels, height, width]`.
    ///
    /// # Errors
    /// If there is no such preset.
    pub fn preset(name: &str, [channels, height, width]: [usize; 3], classes: usize) -> Result<Self> {
        let Preset { block, stem, planes, blocks, .. } = *preset(name)?;
        Ok(Self {
            block,
            stem,
            stem_planes: planes[0],
            planes: planes.to_vec(),
            blocks: blocks.to_vec(),
            classes,
            channels,
            height,
            width,
        })
    }

    fn check(&self) -> Result<()> {
        if self.planes.is_empty() || self.planes.len() != self.blocks.len() {
            return Err(Error::invalid(
                "model.blocks",
                format!("{:?} blocks for {:?} planes", self.blocks, self.planes),
                "give both lists one entry for each group of blocks",
            ));
        }
        checks::extents("model.planes", &self.planes)?;
        for (at, &blocks) in self.blocks.iter().enumerate() {
            checks::depth(&format!("model.blocks[{at}]"), blocks)?;
        }
        checks::depth("the sum of model.blocks", self.blocks.iter().sum())?;
        for (key, extent) in [
            ("model.stem_planes", self.stem_planes),
            ("model.classes", self.classes),
            ("model.channels", self.channels),
            ("model.height", self.height),
            ("model.width", self.width),
        ] {
            checks::extent(key, extent)?;
        }
        Ok(())
    }
}

impl ResNet {
    fn image(&self) -> Shape {
        Shape { channels: self.channels, height: self.height, width: self.width }
    }

    /// Returns the output of a unit, without making the units; none if there are fewer.
    fn output(&self, unit: usize) -> Option<Vec<usize>> {
        let blocks = self.planes.iter().zip(&self.blocks).enumerate();
        let strides = blocks.flat_map(|(group, (&planes, &blocks))| {
            let channels = planes * self.block.expansion();
            (0..blocks).map(move |index| (channels, if group > 0 && index == 0 { 2 } else { 1 }))
        });
        let stem = blocks::stem_output(self.stem, self.image(), self.stem_planes);
        let mut shape = stem;
        let blocks = strides.map(|(channels, stride)| {
            shape = shape.strided(channels, stride);
            shape
        });
        let mut shapes = std::iter::once(stem).chain(blocks);
        match unit.checked_sub(self.blocks.iter().sum::<usize>() + 1) {
            Some(0) => Some(vec![self.classes]),
            Some(_) => None,
            None => shapes.nth(unit).map(|shape| shape.dims().to_vec()),
        }
    }
}

impl ModelSpec for ResNet {
    fn units(&self) -> Result<Vec<Unit>> {
        self.check()?;
        let (stem, mut shape) = blocks::stem(self.stem, self.image(), self.stem_planes);
        let mut units = vec![stem];
        for (group, (&planes, &blocks)) in self.planes.iter().zip(&self.blocks).enumerate() {
            for index in 0..blocks {
                let stride = if group > 0 && index == 0 { 2 } else { 1 };
                let name = format!("layer{}.{index}", group + 1);
                let (block, after) = match self.block {
                    BlockKind::Basic => blocks::basic(name, shape, planes, stride),
                    BlockKind::Bottleneck => blocks::bottleneck(name, shape, planes, stride),
                };
                units.push(block);
                shape = after;
            }
        }
        units.push(blocks::classifier(shape, self.classes));
        Ok(units)
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        self.check()?;
        let units = self.blocks.iter().sum::<usize>() + 2;
        heads::of_output(self.output(unit).as_deref(), (unit, units), arch, &HeadSettings::new(self.classes))
    }

    fn default_head(&self) -> &str {
        match self.stem {
            StemKind::Cifar => "conv16_bn_gbpl_fc",
            StemKind::Imagenet => "conv64_bn_gbpl_fc",
        }
    }

    /// Takes the weights of torchvision's and timm's ResNets, which count the batches of batch norms.
    fn adapt(&self, weights: Weights) -> Result<Adapted> {
        let is_count = |name: &str| name.ends_with(".num_batches_tracked");
        Ok(weights.renamed(|name| (!is_count(name)).then(|| name.to_owned()))?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_those_of_the_units() {
        for preset in PRESETS {
            let model = ResNet::preset(preset.name, [3, 30, 33], 10).expect("a preset");
            let units = model.units().expect("units");
            let found: Vec<_> = (0..=units.len()).map(|unit| model.output(unit)).collect();
            let stated: Vec<_> = units.into_iter().map(|unit| Some(unit.output)).chain([None]).collect();
            assert_eq!(found, stated, "{}", preset.name);
        }
    }
}
