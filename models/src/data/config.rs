//! The configuration of data sets.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Augment, LineEnds, Normalization};

/// A data set and its preparation, as in the table `[data]` of a configuration.
///
/// ```
/// # use interlock_models::data::DataConfig;
/// let config: DataConfig = serde_json::from_str(r#"{ "kind": "fashion-mnist-mini", "limit": 256 }"#)?;
/// let data = config.open()?;
/// assert_eq!((data.train.len(), data.validation.len()), (256, 2000));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DataConfig {
    /// The first 4,000 training and 2,000 test images of Fashion-MNIST, embedded in the program: grey, 28 × 28, 10 classes.
    FashionMnistMini(FashionMnistMini),
    /// Nine plays by Shakespeare, embedded in the program: 988,098 bytes.
    Shakespeare(Shakespeare),
    /// Images in the idx format, such as MNIST and Fashion-MNIST.
    Idx(Idx),
    /// CIFAR-10, binary version: a folder, or `cifar-10-binary.tar.gz`.
    Cifar10(Cifar),
    /// CIFAR-100 with its fine labels, binary version: a folder, or `cifar-100-binary.tar.gz`.
    Cifar100(Cifar),
    /// A folder of class folders of images.
    ImageFolder(ImageFolder),
    /// A text file.
    Text(Text),
}

/// Options of the embedded Fashion-MNIST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct FashionMnistMini {
    /// Random changes to training images; by default flips only.
    pub augment: Augment,
    /// The normalization of pixels.
    pub normalize: Normalize,
    /// Use only this many training examples, the first ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub limit: Option<usize>,
}

impl Default for FashionMnistMini {
    fn default() -> Self {
        Self { augment: Augment::FLIP, normalize: Normalize::default(), limit: None }
    }
}

/// Options of files in the idx format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Idx {
    /// The folder with the four files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-…`, each plain or `.gz`.
    pub path: PathBuf,
    /// The number of classes; labels must be below it.
    #[serde(default = "ten")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub classes: usize,
    /// Random changes to training images; by default none (a mirrored digit is not a digit).
    #[serde(default = "no_augment")]
    pub augment: Augment,
    /// The normalization of pixels.
    #[serde(default)]
    pub normalize: Normalize,
    /// Use only this many training examples, the first ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub limit: Option<usize>,
}

/// Options of CIFAR-10 and CIFAR-100.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Cifar {
    /// The folder of `.bin` files, the folder around it, or the official archive.
    pub path: PathBuf,
    /// Random changes to training images; by default crops and flips.
    #[serde(default = "all_augment")]
    pub augment: Augment,
    /// The normalization of pixels.
    #[serde(default)]
    pub normalize: Normalize,
    /// Use only this many training examples, the first ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub limit: Option<usize>,
}

/// Options of a folder of class folders of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageFolder {
    /// The folder: class folders, or `train/` and `val/` (or `valid/`, `validation/`, `test/`) with class folders in them.
    pub path: PathBuf,
    /// The height and width of the inputs in pixels: the central square of each image is resized.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub size: usize,
    /// The share of each class for validation if there is no folder `train/`, between 0 and 1; by default 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
    /// Decode every image before training, so that damaged ones are found; otherwise only headers are read.
    #[serde(default = "yes")]
    pub verify: bool,
    /// Turn images as their EXIF orientation says.
    #[serde(default = "yes")]
    pub exif_orientation: bool,
    /// The number of threads that decode; by default one for each core. Results do not depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub threads: Option<usize>,
    /// Random changes to training images; by default crops and flips.
    #[serde(default = "all_augment")]
    pub augment: Augment,
    /// The normalization of pixels; `true` uses statistics of up to 1,000 evenly spread training images.
    #[serde(default)]
    pub normalize: Normalize,
    /// Use only this many training examples, taken from the classes in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub limit: Option<usize>,
}

/// Options of the embedded plays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Shakespeare {
    /// The tokenizer; by default characters are tokens.
    pub tokenizer: Tokenizer,
    /// The number of tokens of a window.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub context: usize,
    /// The share of the whole text's tokens for validation, the last ones, between 0 and 1.
    pub validation_fraction: f64,
    /// Move each training window by a random number of tokens, less than a window.
    pub augment: bool,
    /// Use only this many training windows, the first ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub limit: Option<usize>,
}

impl Default for Shakespeare {
    fn default() -> Self {
        Self {
            tokenizer: Tokenizer::Chars,
            context: context(),
            validation_fraction: FRACTION,
            augment: true,
            limit: None,
        }
    }
}

/// Options of a text file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The text, plain or `.gz`.
    pub path: PathBuf,
    /// A text for validation; by default the end of the training text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_path: Option<PathBuf>,
    /// The share of the whole text's tokens for validation, the last ones, between 0 and 1; by default 0.1. Not with `validation_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
    /// The tokenizer; by default bytes are tokens.
    #[serde(default)]
    pub tokenizer: Tokenizer,
    /// The line ends of all texts, also those that the trained model gets: `"keep"` takes them as they are, `"lf"` turns `\r\n` and `\r` into `\n`.
    #[serde(default)]
    pub line_ends: LineEnds,
    /// The number of tokens of a window.
    #[serde(default = "context")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub context: usize,
    /// Move each training window by a random number of tokens, less than a window.
    #[serde(default = "yes")]
    pub augment: bool,
    /// Use only this many training windows, the first ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub limit: Option<usize>,
}

/// The default share for validation.
pub(super) const FRACTION: f64 = 0.1;

fn ten() -> usize {
    10
}

fn context() -> usize {
    128
}

fn yes() -> bool {
    true
}

fn no_augment() -> Augment {
    Augment::NONE
}

fn all_augment() -> Augment {
    Augment::ALL
}

/// The normalization of pixels: `true` uses the training set's statistics, `false` only scales to 0 … 1; or values are given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "expected true, false or { mean = […], std = […] }")]
pub enum Normalize {
    /// With the training set's statistics, or none.
    Own(bool),
    /// With these values, such as those of another run.
    Given(Normalization),
}

impl Default for Normalize {
    fn default() -> Self {
        Self::Own(true)
    }
}

/// A tokenizer: `"bytes"`, `"chars"`, or the path of a Hugging Face `tokenizer.json` or a saved vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub enum Tokenizer {
    /// 256 tokens, the bytes of the text.
    #[default]
    Bytes,
    /// A token for each different character of the training and validation texts.
    Chars,
    /// The tokens of this file, whose name ends in `.json`.
    File(PathBuf),
}

impl TryFrom<String> for Tokenizer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "bytes" => Ok(Self::Bytes),
            "chars" => Ok(Self::Chars),
            path if path.ends_with(".json") => Ok(Self::File(path.into())),
            other => Err(format!("tokenizer {other:?}; expected \"bytes\", \"chars\" or a path that ends in .json")),
        }
    }
}

impl From<Tokenizer> for String {
    fn from(tokenizer: Tokenizer) -> Self {
        match tokenizer {
            Tokenizer::Bytes => "bytes".to_owned(),
            Tokenizer::Chars => "chars".to_owned(),
            Tokenizer::File(path) => path.to_string_lossy().into_owned(),
        }
    }
}
