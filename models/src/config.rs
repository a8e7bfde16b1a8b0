//! The configuration of a model, as in a configuration file.
//!
//! ```toml
//! [model]
//! kind = "resnet"
//! preset = "resnet18"
//! stem = "cifar"        # overrides the preset
//! ```
//!
//! Values that the data determine may be omitted: classes, channels, image size, vocabulary, context, and the first and last width of a perceptron.

use std::sync::Arc;

use interlock::{Error, ModelSpec, Result};
use serde::{Deserialize, Serialize};

use crate::{
    mlp::Mlp,
    resnet::{self, BlockKind, ResNet, StemKind},
    transformer::{self, Transformer},
};

/// The shape of an example of a data set, and of what is to be predicted from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputShape {
    /// Images `(B, channels, height, width)`, each of a class.
    Images {
        /// The number of channels.
        channels: usize,
        /// The height in pixels.
        height: usize,
        /// The width in pixels.
        width: usize,
        /// The number of classes.
        classes: usize,
    },
    /// Tokens `(B, context)`; for each, the next token is to be predicted.
    Text {
        /// The number of different tokens.
        vocab: usize,
        /// The number of tokens of an example.
        context: usize,
    },
    /// Vectors `(B, width)`.
    Vectors {
        /// The number of values of an example.
        width: usize,
        /// The number of classes, or of predicted values.
        outputs: usize,
    },
}

impl InputShape {
    fn name(&self) -> &'static str {
        match self {
            Self::Images { .. } => "images",
            Self::Text { .. } => "text",
            Self::Vectors { .. } => "vectors",
        }
    }
}

/// A model's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ModelConfig {
    /// A multilayer perceptron.
    Mlp(MlpConfig),
    /// A residual network.
    Resnet(ResNetConfig),
    /// A GPT-2-like language model.
    Transformer(TransformerConfig),
}

/// A multilayer perceptron, given by all of its widths (`dims`), or by those between input and output (`hidden`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// All widths from input to output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dims: Option<Vec<usize>>,
    /// The widths between input and output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Vec<usize>>,
}

/// A residual network, given by a preset, its shape, or both; a key overrides the preset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// resnet20, 32, 44, 56, 110 (for CIFAR) or resnet18, 34, 50, 101, 152 (for ImageNet).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// The residual block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<BlockKind>,
    /// The first unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stem: Option<StemKind>,
    /// Output channels of the first unit; by default the first group's planes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stem_planes: Option<usize>,
    /// Planes of each group of blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planes: Option<Vec<usize>>,
    /// Blocks of each group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Vec<usize>>,
    /// Classes; by default those of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Channels of the images; if given, the data must agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Height and width of the images; if given, the data must agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
}

/// A Transformer, given by a preset, its shape, or both; a key overrides the preset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// gpt-nano, gpt-micro, gpt-mini, gpt2, gpt2-medium, gpt2-large or gpt2-xl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Width of the residual stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// The number of attention heads; it must divide the width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Number of blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// The longest sequence; by default GPT-2's 1024 with its presets, otherwise the data's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Number of different tokens; by default GPT-2's 50257 with its presets, otherwise the data's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// Probability of dropping a value; by default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Whether the output projection uses the token embedding's weight; by default false, since both must then be on one stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
}

impl ModelConfig {
    /// Returns the value of the key `kind`: `mlp`, `resnet` or `transformer`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Mlp(_) => "mlp",
            Self::Resnet(_) => "resnet",
            Self::Transformer(_) => "transformer",
        }
    }

    /// Returns the model, completed from the shape of the data.
    ///
    /// # Errors
    /// If a value is missing, contradicts the data or is not possible; the message names the key and possible values.
    pub fn build(&self, shape: InputShape) -> Result<Arc<dyn ModelSpec>> {
        let model: Arc<dyn ModelSpec> = match self {
            Self::Mlp(config) => Arc::new(config.resolve(shape)?),
            Self::Resnet(config) => Arc::new(config.resolve(shape)?),
            Self::Transformer(config) => Arc::new(config.resolve(shape)?),
        };
        model.units()?;
        Ok(model)
    }
}

fn unsuited(kind: &str, shape: InputShape, takes: &str) -> Error {
    Error::invalid("model.kind", format!("{kind} does not take {}", shape.name()), format!("{kind} takes {takes}"))
}

fn missing(key: &str, presets: impl Iterator<Item = &'static str>) -> Error {
    let presets: Vec<&str> = presets.collect();
    Error::invalid(
        format!("model.{key}"),
        "it is not given, and no preset gives it",
        format!("give it, or name a preset: {}", presets.join(", ")),
    )
}

/// Checks that the model has at least as many of something, such as classes, as the data.
fn enough(key: &str, model: usize, data: usize) -> Result<()> {
    if model >= data {
        return Ok(());
    }
    Err(Error::invalid(
        key,
        format!("the model has {model}, the data have {data}"),
        format!("omit it, or set it to {data} or more"),
    ))
}

/// Checks that an extent of the model, if it is given, is that of the data.
fn equal(key: &str, model: Option<usize>, data: usize) -> Result<()> {
    match model {
        Some(model) if model != data => Err(Error::invalid(
            key,
            format!("the model has {model}, the data have {data}"),
            format!("omit it, or set it to {data}"),
        )),
        _ => Ok(()),
    }
}

impl MlpConfig {
    /// Returns the perceptron for data of this shape.
    ///
    /// # Errors
    /// As [`ModelConfig::build`].
    pub fn resolve(&self, shape: InputShape) -> Result<Mlp> {
        let (inputs, outputs, flatten) = match shape {
            InputShape::Vectors { width, outputs } => (width, outputs, false),
            InputShape::Images { channels, height, width, classes } => {
                (channels.saturating_mul(height).saturating_mul(width), classes, true)
            }
            InputShape::Text { .. } => return Err(unsuited("mlp", shape, "vectors and images")),
        };
        let dims = match (&self.dims, &self.hidden) {
            (Some(dims), None) => dims.clone(),
            (None, Some(hidden)) => [inputs].iter().chain(hidden).chain(&[outputs]).copied().collect(),
            (both, _) => {
                let problem = if both.is_some() { "dims and hidden are both given" } else { "it has no widths" };
                let remedy = "give dims, all widths from input to output, or hidden, those between";
                return Err(Error::invalid("model", problem, remedy));
            }
        };
        if let [first, .., last] = *dims.as_slice() {
            equal("model.dims[0]", Some(first), inputs)?;
            enough(&format!("model.dims[{}]", dims.len() - 1), last, outputs)?;
        }
        Ok(Mlp { dims, flatten })
    }
}

impl ResNetConfig {
    /// Returns the network for data of this shape.
    ///
    /// # Errors
    /// As [`ModelConfig::build`].
    pub fn resolve(&self, shape: InputShape) -> Result<ResNet> {
        let InputShape::Images { channels, height, width, classes } = shape else {
            return Err(unsuited("resnet", shape, "images"));
        };
        let preset = self.preset.as_deref().map(resnet::preset).transpose()?;
        let missing = |key| missing(key, resnet::PRESETS.iter().map(|p| p.name));
        let planes = self.planes.clone().or(preset.map(|p| p.planes.to_vec())).ok_or_else(|| missing("planes"))?;
        let stem_planes = self.stem_planes.or(planes.first().copied()).ok_or_else(|| missing("stem_planes"))?;
        equal("model.channels", self.channels, channels)?;
        equal("model.size", self.size, height)?;
        equal("model.size", self.size, width)?;
        enough("model.classes", self.classes.unwrap_or(classes), classes)?;
        Ok(ResNet {
            block: self.block.or(preset.map(|p| p.block)).ok_or_else(|| missing("block"))?,
            stem: self.stem.or(preset.map(|p| p.stem)).ok_or_else(|| missing("stem"))?,
            stem_planes,
            planes,
            blocks: self.blocks.clone().or(preset.map(|p| p.blocks.to_vec())).ok_or_else(|| missing("blocks"))?,
            classes: self.classes.unwrap_or(classes),
            channels,
            height,
            width,
        })
    }
}

impl TransformerConfig {
    /// Returns the language model for data of this shape.
    ///
    /// # Errors
    /// As [`ModelConfig::build`].
    pub fn resolve(&self, shape: InputShape) -> Result<Transformer> {
        let InputShape::Text { vocab: tokens, context: sequence } = shape else {
            return Err(unsuited("transformer", shape, "text"));
        };
        let preset = self.preset.as_deref().map(transformer::preset).transpose()?;
        let missing = |key| missing(key, transformer::PRESETS.iter().map(|p| p.name));
        let text = preset.and_then(|p| p.text);
        let vocab = self.vocab.or(text.map(|(vocab, _)| vocab)).unwrap_or(tokens);
        enough("model.vocab", vocab, tokens)?;
        Ok(Transformer {
            vocab,
            context: self.context.or(text.map(|(_, context)| context)).unwrap_or(sequence),
            sequence,
            width: self.width.or(preset.map(|p| p.width)).ok_or_else(|| missing("width"))?,
            heads: self.heads.or(preset.map(|p| p.heads)).ok_or_else(|| missing("heads"))?,
            layers: self.layers.or(preset.map(|p| p.layers)).ok_or_else(|| missing("layers"))?,
            dropout: self.dropout.unwrap_or(0.0),
            tied: self.tied.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests;
