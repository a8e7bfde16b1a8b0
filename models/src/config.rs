//! A model as a configuration file states it.
//!
//! ```toml
//! [model]
//! kind = "resnet"
//! preset = "resnet18"
//! stem = "cifar"        # what is said overrides the preset
//! ```
//!
//! What the data decide (classes, channels, image size, vocabulary, context, the ends of a perceptron) may be left out.

use std::sync::Arc;

use interlock::{Error, ModelSpec, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    mlp::Mlp,
    resnet::{self, BlockKind, ResNet, StemKind},
    transformer::{self, Transformer},
};

/// What one example of a data set looks like, and what is to be predicted from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputShape {
    /// Images `(B, channels, height, width)` of a number of classes.
    Images {
        /// Channels.
        channels: usize,
        /// Pixels from top to bottom.
        height: usize,
        /// Pixels from left to right.
        width: usize,
        /// Classes.
        classes: usize,
    },
    /// Tokens `(B, context)`, each to be followed by the next.
    Text {
        /// Number of different tokens.
        vocab: usize,
        /// Tokens of one example.
        context: usize,
    },
    /// Vectors `(B, width)`.
    Vectors {
        /// Numbers of one example.
        width: usize,
        /// Classes, or values predicted.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ModelConfig {
    /// A multilayer perceptron.
    Mlp(MlpConfig),
    /// A residual network.
    Resnet(ResNetConfig),
    /// A GPT-2-like language model.
    Transformer(TransformerConfig),
}

/// A multilayer perceptron: `dims`, or `hidden` between the ends that the data decide.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// All widths from input to output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dims: Option<Vec<usize>>,
    /// The widths between input and output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Vec<usize>>,
}

/// A residual network: a preset, or its shape; what is given overrides the preset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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

/// A Transformer: a preset, or its shape; what is given overrides the preset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// gpt-nano, gpt-micro, gpt-mini, gpt2, gpt2-medium, gpt2-large or gpt2-xl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Width of the residual stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Attention heads; divides the width.
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
    /// Whether the output projection is the token embedding; by default false, since both must then lie on one stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
}

impl ModelConfig {
    /// The model, completed from the shape of the data.
    ///
    /// # Errors
    /// If something is missing, contradicts the data or makes no model; the message names the key and what would be right.
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

/// Refuses a model that knows fewer of something than the data have.
fn enough(key: &str, model: usize, data: usize) -> Result<()> {
    if model >= data {
        return Ok(());
    }
    Err(Error::invalid(
        key,
        format!("the model has {model}, the data have {data}"),
        format!("leave it out, or set it to {data} or more"),
    ))
}

/// Refuses an extent that the data contradict.
fn equal(key: &str, model: Option<usize>, data: usize) -> Result<()> {
    match model {
        Some(model) if model != data => Err(Error::invalid(
            key,
            format!("the model has {model}, the data have {data}"),
            format!("leave it out, or set it to {data}"),
        )),
        _ => Ok(()),
    }
}

impl MlpConfig {
    /// The perceptron for data of this shape.
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
    /// The network for data of this shape.
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
    /// The language model for data of this shape.
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
mod tests {
    use super::*;

    const IMAGES: InputShape = InputShape::Images { channels: 3, height: 32, width: 32, classes: 10 };
    const TEXT: InputShape = InputShape::Text { vocab: 65, context: 128 };
    const VECTORS: InputShape = InputShape::Vectors { width: 12, outputs: 5 };

    fn config(json: &str) -> ModelConfig {
        serde_json::from_str(json).unwrap()
    }

    fn refusal(json: &str, shape: InputShape) -> String {
        match config(json).build(shape) {
            Ok(_) => panic!("{json} was accepted"),
            Err(error) => {
                assert!(error.is_refusal());
                error.to_string()
            }
        }
    }

    #[test]
    fn the_data_complete_what_is_left_out() {
        let ModelConfig::Mlp(mlp) = config(r#"{"kind": "mlp", "hidden": [16, 8]}"#) else { panic!() };
        assert_eq!(mlp.resolve(VECTORS).unwrap(), Mlp::new([12, 16, 8, 5]));
        let flat = mlp.resolve(IMAGES).unwrap();
        assert_eq!((flat.dims, flat.flatten), (vec![3072, 16, 8, 10], true));

        let ModelConfig::Resnet(resnet) = config(r#"{"kind": "resnet", "preset": "resnet18", "stem": "cifar"}"#) else {
            panic!()
        };
        let expected = ResNet { stem: StemKind::Cifar, ..ResNet::preset("resnet18", [3, 32, 32], 10).unwrap() };
        assert_eq!(resnet.resolve(IMAGES).unwrap(), expected);

        let ModelConfig::Transformer(gpt) = config(r#"{"kind": "transformer", "preset": "gpt-mini", "dropout": 0.1}"#)
        else {
            panic!()
        };
        let expected = Transformer { dropout: 0.1, ..Transformer::preset("gpt-mini", 65, 128).unwrap() };
        assert_eq!(gpt.resolve(TEXT).unwrap(), expected);

        let ModelConfig::Transformer(gpt2) = config(r#"{"kind": "transformer", "preset": "gpt2"}"#) else { panic!() };
        let gpt2 = gpt2.resolve(TEXT).unwrap();
        assert_eq!((gpt2.vocab, gpt2.context, gpt2.sequence), (50_257, 1024, 128));
    }

    #[test]
    fn what_was_written_reads_back() {
        for text in [
            r#"{"kind":"mlp","dims":[12,16,5]}"#,
            r#"{"kind":"resnet","preset":"resnet20","classes":10}"#,
            r#"{"kind":"transformer","preset":"gpt2","dropout":0.1,"tied":true}"#,
        ] {
            assert_eq!(serde_json::to_string(&config(text)).unwrap(), text);
        }
    }

    #[test]
    fn unknown_kinds_and_keys_are_refused() {
        for (text, says) in [
            (r#"{"kind": "cnn"}"#, "expected one of `mlp`, `resnet`, `transformer`"),
            (r#"{"kind": "mlp", "dim": [1, 2]}"#, "unknown field `dim`, expected `dims` or `hidden`"),
            (r#"{"kind": "resnet", "block": "wide"}"#, "expected `basic` or `bottleneck`"),
            (r#"{"kind": "transformer", "layers": -1}"#, "invalid value: integer `-1`"),
        ] {
            let error = serde_json::from_str::<ModelConfig>(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_what_where_and_what_would_be_right() {
        let gpt = |change: &str| {
            let mut keys = serde_json::json!({"kind": "transformer", "width": 32, "heads": 4, "layers": 2});
            let change: serde_json::Map<_, _> = serde_json::from_str(change).unwrap();
            keys.as_object_mut().unwrap().extend(change);
            keys.to_string()
        };
        for (json, shape, says) in [
            (r#"{"kind": "mlp"}"#, VECTORS, "model: it has no widths; give dims"),
            (r#"{"kind": "mlp", "dims": [12, 5], "hidden": [3]}"#, VECTORS, "dims and hidden are both given"),
            (r#"{"kind": "mlp", "dims": [12]}"#, VECTORS, "model.dims: [12] makes no layer"),
            (r#"{"kind": "mlp", "dims": [12, 0, 5]}"#, VECTORS, "model.dims[1]: it is 0"),
            (r#"{"kind": "mlp", "dims": [13, 5]}"#, VECTORS, "model.dims[0]: the model has 13, the data have 12"),
            (r#"{"kind": "mlp", "dims": [12, 4]}"#, VECTORS, "model.dims[1]: the model has 4, the data have 5"),
            (r#"{"kind": "mlp", "hidden": [3]}"#, TEXT, "mlp does not take text; mlp takes vectors and images"),
            (r#"{"kind": "resnet", "preset": "resnet21"}"#, IMAGES, "no preset \"resnet21\"; presets are resnet20, "),
            (r#"{"kind": "resnet", "block": "basic"}"#, IMAGES, "model.planes: it is not given"),
            (r#"{"kind": "resnet", "preset": "resnet20", "blocks": [1, 0, 1]}"#, IMAGES, "model.blocks[1]: it is 0"),
            (
                r#"{"kind": "resnet", "preset": "resnet20", "blocks": [1]}"#,
                IMAGES,
                "[1] blocks for [16, 32, 64] planes",
            ),
            (r#"{"kind": "resnet", "preset": "resnet20", "planes": []}"#, IMAGES, "model.stem_planes"),
            (r#"{"kind": "resnet", "preset": "resnet20", "classes": 9}"#, IMAGES, "set it to 10 or more"),
            (r#"{"kind": "resnet", "preset": "resnet20", "channels": 1}"#, IMAGES, "model.channels: the model has 1"),
            (r#"{"kind": "resnet", "preset": "resnet20", "size": 28}"#, IMAGES, "model.size: the model has 28"),
            (r#"{"kind": "resnet", "preset": "resnet20"}"#, VECTORS, "resnet does not take vectors"),
            (r#"{"kind": "transformer", "preset": "gpt-5"}"#, TEXT, "presets are gpt-nano, gpt-micro"),
            (r#"{"kind": "transformer", "heads": 4, "layers": 2}"#, TEXT, "model.width: it is not given"),
            (&gpt(r#"{"vocab": 64}"#), TEXT, "model.vocab: the model has 64, the data have 65"),
            (&gpt(r#"{"context": 64}"#), TEXT, "examples have 128 tokens, the model has positions for 64"),
            (&gpt(r#"{"dropout": 1.0}"#), TEXT, "model.dropout: it is 1"),
            (&gpt(r#"{"width": 30}"#), TEXT, "model.width: 30 is not divisible by the 4 attention heads; use 32"),
            (&gpt(r#"{"layers": 0}"#), TEXT, "model.layers: it is 0"),
            (&gpt(r#"{"heads": 0}"#), TEXT, "model.heads: it is 0"),
            (&gpt(r#"{"width": 99999999999}"#), TEXT, "model.width: it is 99999999999; give a number from 1"),
            (r#"{"kind": "transformer", "preset": "gpt2"}"#, IMAGES, "transformer does not take images"),
        ] {
            let text = refusal(json, shape);
            assert!(text.contains(says), "{json}: {text}");
        }
    }
}
