//! Trained models as folders that Python programs load: Hugging Face's `transformers`, timm, torchvision and nanoGPT.

mod gpt;
mod image;
mod tokenizer;

use std::fmt::Write;

use interlock::{Error, Result, Weights};

use crate::{
    config::{InputShape, ModelConfig},
    data::{DataKind, Description},
};

/// Who loads an exported model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// `from_pretrained` of Hugging Face's `transformers`, or timm's `create_model`.
    Hf,
    /// `load_state_dict` of a PyTorch model: nanoGPT's, torchvision's, or a few lines of Python.
    Torch,
}

/// A model as another program reads it.
#[derive(Clone, Debug)]
pub struct Export {
    /// The weights, for the file `model.safetensors`.
    pub weights: Weights,
    /// The names and texts of the other files. `load.py` loads the model.
    pub files: Vec<(String, String)>,
}

impl ModelConfig {
    /// Returns the model of this section with these weights, without auxiliary heads, as a folder for other programs. The data had this description.
    ///
    /// # Errors
    /// If the programs of `format` have no such model.
    pub fn export(&self, format: ExportFormat, description: &Description, weights: &Weights) -> Result<Export> {
        let weights = weights.clone().renamed(|name| (!name.starts_with("aux.")).then(|| name.to_owned()))?;
        let shape = InputShape::from(&description.kind);
        match self {
            Self::Transformer(config) => gpt::export(&config.resolve(shape)?, format, description, &weights),
            Self::Resnet(config) => image::resnet(&config.resolve(shape)?, format, description, weights),
            Self::Mlp(config) => image::mlp(&config.resolve(shape)?, format, description, weights),
        }
    }
}

impl From<&DataKind> for InputShape {
    fn from(kind: &DataKind) -> Self {
        match kind {
            DataKind::Images { channels, height, width, classes, .. } => {
                Self::Images { channels: *channels, height: *height, width: *width, classes: *classes }
            }
            DataKind::Text { vocab, context } => Self::Text { vocab: vocab.len(), context: *context },
            DataKind::Vectors { width, classes, .. } => Self::Vectors { width: *width, outputs: *classes },
        }
    }
}

/// Returns the error for a model that the programs of `format` do not have.
fn unknown(format: ExportFormat, problem: &str) -> Error {
    let (name, remedy) = match format {
        ExportFormat::Hf => ("hf", "use the format torch"),
        ExportFormat::Torch => ("torch", "load the run's own safetensors files, which have PyTorch's names"),
    };
    Error::invalid(format!("format {name}"), problem, remedy)
}

/// Returns the text of a `load.py`: a first comment, imports, then what sets `model`.
fn load_py(comment: &str, imports: &str, body: &str) -> (String, String) {
    let mut text = format!("# {comment}\nfrom pathlib import Path\n\n{imports}\n\nFOLDER = Path(__file__).parent\n");
    let _ = write!(text, "{}\nmodel.eval()\n", body.trim_end());
    ("load.py".to_owned(), text)
}

/// Returns JSON as the text of a file.
fn json(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}
