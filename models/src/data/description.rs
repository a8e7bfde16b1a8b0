//! Opened data, and their description for building models.

use std::{fmt, sync::Arc};

use interlock::{Dataset, Split};
use serde::{Deserialize, Serialize};

use super::{Normalization, Vocabulary};

/// Data that can be trained on.
#[derive(Clone)]
pub struct Data {
    /// The training examples.
    pub train: Arc<dyn Dataset>,
    /// The validation examples, which are never augmented.
    pub validation: Arc<dyn Dataset>,
    /// The description of the examples.
    pub description: Description,
    /// Lines for the user about what was taken from the files and what was left out; may be empty.
    pub notes: Vec<String>,
}

impl Data {
    /// Returns both sets, for [`Trainer::fit`](interlock::Trainer::fit).
    pub fn split(&self) -> Split {
        Split { train: Arc::clone(&self.train), validation: Some(Arc::clone(&self.validation)) }
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data")
            .field("train", &self.train.len())
            .field("validation", &self.validation.len())
            .field("description", &self.description)
            .finish()
    }
}

/// The description of a data set's examples: all that is needed to build a model for them, and to use the model later without the data set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Images, text or vectors.
    pub kind: DataKind,
    /// The normalization of pixels; none for text and vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalization: Option<Normalization>,
    /// Whether image files are turned as their EXIF orientation says.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub exif_orientation: bool,
}

fn yes() -> bool {
    true
}

impl Description {
    /// Makes a description; image files are turned as their EXIF orientation says.
    pub fn new(kind: DataKind, normalization: Option<Normalization>) -> Self {
        Self { kind, normalization, exif_orientation: true }
    }
}

/// The kind of data.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DataKind {
    /// Inputs `(B, C, H, W)` of `f32`, targets the classes `(B)` of `u32`.
    Images {
        /// `C`
        channels: usize,
        /// `H`
        height: usize,
        /// `W`
        width: usize,
        /// The number of classes.
        classes: usize,
        /// The names of the classes by number; empty if they are not known.
        class_names: Vec<String>,
    },
    /// Inputs and targets `(B, context)` of `u32`, each target the token after its input.
    Text {
        /// The vocabulary.
        vocab: Vocabulary,
        /// The number of tokens of an example.
        context: usize,
    },
    /// Inputs `(B, width)` of `f32`, targets the classes `(B)` of `u32`: measurements, features, or what else your own data set has.
    Vectors {
        /// The number of values of an example.
        width: usize,
        /// The number of classes.
        classes: usize,
        /// The names of the classes by number; empty if they are not known.
        class_names: Vec<String>,
    },
}

impl DataKind {
    /// Returns the name of this kind of data for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Images { .. } => "images",
            Self::Text { .. } => "text",
            Self::Vectors { .. } => "vectors",
        }
    }

    /// Returns the names of the classes by number; empty if they are not known, or the data are text.
    pub fn class_names(&self) -> &[String] {
        match self {
            Self::Images { class_names, .. } | Self::Vectors { class_names, .. } => class_names,
            Self::Text { .. } => &[],
        }
    }
}
