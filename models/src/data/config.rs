//! Data sets as configuration.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Augment, Normalization};

/// Which data set, and how it is prepared: the table `[data]` of a configuration.
///
/// ```
/// # use interlock_models::data::DataConfig;
/// let config: DataConfig = serde_json::from_str(r#"{ "kind": "fashion-mnist-mini", "limit": 256 }"#)?;
/// let data = config.open()?;
/// assert_eq!((data.train.len(), data.validation.len()), (256, 2000));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DataConfig {
    /// The first 4,000 and 2,000 images of Fashion-MNIST, inside the program: grey, 28 × 28, 10 classes.
    FashionMnistMini(FashionMnistMini),
    /// Nine plays by Shakespeare, inside the program: 988,098 bytes.
    Shakespeare(Shakespeare),
    /// MNIST, Fashion-MNIST and others in the idx format.
    Idx(Idx),
    /// CIFAR-10, binary version: a folder, or `cifar-10-binary.tar.gz`.
    Cifar10(Cifar),
    /// CIFAR-100 with its fine labels, binary version: a folder, or `cifar-100-binary.tar.gz`.
    Cifar100(Cifar),
    /// A folder of class folders of images.
    ImageFolder(ImageFolder),
    /// A text file of one's own.
    Text(Text),
}

/// Options of the embedded Fashion-MNIST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FashionMnistMini {
    /// Random changes to training images; by default flips only.
    pub augment: Augment,
    /// Whether and how pixels are normalised.
    pub normalize: Normalize,
    /// Use only the first so many training examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl Default for FashionMnistMini {
    fn default() -> Self {
        Self { augment: Augment::FLIP, normalize: Normalize::default(), limit: None }
    }
}

/// Options of files in the idx format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Idx {
    /// The folder with the four files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-…`, each plain or `.gz`.
    pub path: PathBuf,
    /// The number of classes; labels must be below it.
    #[serde(default = "ten")]
    pub classes: usize,
    /// Random changes to training images; by default none (a mirrored digit is no digit).
    #[serde(default = "no_augment")]
    pub augment: Augment,
    /// Whether and how pixels are normalised.
    #[serde(default)]
    pub normalize: Normalize,
    /// Use only the first so many training examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Options of CIFAR-10 and CIFAR-100.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cifar {
    /// The folder of `.bin` files, the folder around it, or the official archive.
    pub path: PathBuf,
    /// Random changes to training images; by default crops and flips.
    #[serde(default = "all_augment")]
    pub augment: Augment,
    /// Whether and how pixels are normalised.
    #[serde(default)]
    pub normalize: Normalize,
    /// Use only the first so many training examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Options of a folder of class folders of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFolder {
    /// The folder: class folders, or `train/` and `val/` (or `valid/`, `validation/`, `test/`) with class folders in them.
    pub path: PathBuf,
    /// Height and width that images are brought to, in pixels: the central square, resized.
    pub size: usize,
    /// The share of each class that a single folder gives to validation, in 0 … 1; by default 0.1. Not with `train/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
    /// Decode every image once before training, so that a damaged one is found at once; otherwise only headers are read.
    #[serde(default = "yes")]
    pub verify: bool,
    /// Threads that decode; by default as many as the machine has. Results do not depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Random changes to training images; by default crops and flips.
    #[serde(default = "all_augment")]
    pub augment: Augment,
    /// Whether and how pixels are normalised; `true` takes statistics of up to 1,000 training images, evenly spread.
    #[serde(default)]
    pub normalize: Normalize,
    /// Use only the first so many training examples, taking one image of each class in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Options of the embedded plays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shakespeare {
    /// How the text becomes tokens; by default characters.
    pub tokenizer: Tokenizer,
    /// Tokens of a window.
    pub context: usize,
    /// The share of the tokens, at the end, that serves validation, in 0 … 1.
    pub validation_fraction: f64,
    /// Begin each training window up to a window later, at random.
    pub augment: bool,
    /// Use only the first so many training windows.
    #[serde(skip_serializing_if = "Option::is_none")]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The text, plain or `.gz`.
    pub path: PathBuf,
    /// A text for validation; without it, the end of the first text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_path: Option<PathBuf>,
    /// The share of the tokens, at the end, that serves validation, in 0 … 1; by default 0.1. Not with `validation_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
    /// How the text becomes tokens; by default bytes.
    #[serde(default)]
    pub tokenizer: Tokenizer,
    /// Tokens of a window.
    #[serde(default = "context")]
    pub context: usize,
    /// Begin each training window up to a window later, at random.
    #[serde(default = "yes")]
    pub augment: bool,
    /// Use only the first so many training windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The share that serves validation where none is given.
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

/// How pixels are normalised: `true` by the training set's own statistics, `false` scaled to 0 … 1 only, or by given values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected true, false or { mean = […], std = […] }")]
pub enum Normalize {
    /// By the training set's own statistics, or not at all.
    Own(bool),
    /// By these values, such as those of another run.
    Given(Normalization),
}

impl Default for Normalize {
    fn default() -> Self {
        Self::Own(true)
    }
}

/// How text becomes tokens: `"bytes"`, `"chars"`, or the path of a Hugging Face `tokenizer.json` or a saved vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Tokenizer {
    /// 256 tokens, the bytes of the text.
    #[default]
    Bytes,
    /// A token for each different character of the text (training and validation).
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
