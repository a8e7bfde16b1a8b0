//! What a program trains: the sections `[model]` and `[data]` of its configurations.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use interlock::{Dataset, Error, ModelSpec, Result, Weights};
use interlock_models::{
    InputShape, ModelConfig,
    data::{Data, DataConfig, Description, Inputs},
    export::{Export, ExportFormat},
    heads,
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

/// Returns the name by which this program was started, for messages.
pub(crate) fn program() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let path = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
        path.file_stem().map_or_else(|| "interlock".to_owned(), |name| name.to_string_lossy().into_owned())
    })
}

/// A section of a configuration file. Every type with these traits is one: derive them, with `#[serde(deny_unknown_fields)]`, so that a misspelt key is
/// refused.
pub trait Section:
    Clone + Debug + PartialEq + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static
{
}

impl<T: Clone + Debug + PartialEq + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static> Section for T {}

/// The section `[model]`.
pub trait ModelSection: Section {
    /// Returns the model's name in logs, metrics and reports, such as `resnet`.
    fn kind(&self) -> &str;

    /// Returns the model for data of this shape.
    ///
    /// # Errors
    /// If the section contradicts itself or the data; the message should name the key.
    fn build(&self, shape: InputShape) -> Result<Arc<dyn ModelSpec>>;

    /// Returns the model with these weights as a folder for other programs, for `export`. Its data had this description. Default: refused.
    ///
    /// # Errors
    /// If the programs of `format` have no such model.
    fn export(&self, format: ExportFormat, description: &Description, weights: &Weights) -> Result<Export> {
        let _ = (format, description, weights);
        let problem = format!("{} can be exported to no other program", self.kind());
        Err(Error::invalid("model.kind", problem, "load the safetensors files in the run's folder model"))
    }

    /// Returns the parts of head descriptions (`heads.arch`) for `config --help` and the schema. Default: none.
    fn head_parts() -> &'static [&'static str] {
        &[]
    }
}

/// The section `[data]`.
pub trait DataSection: Section {
    /// Opens the data for training.
    ///
    /// # Errors
    /// If they cannot be read; the message should name the file or the key.
    fn open(&self) -> Result<Data>;

    /// Opens the validation data alone, for a finished run whose data had this description.
    ///
    /// # Errors
    /// As [`Self::open`], and if they do not fit the description.
    fn open_validation(&self, description: &Description) -> Result<Arc<dyn Dataset>>;

    /// Opens other data with targets, for `eval --data`, processed as the validation data of a run whose data had this description. Default:
    /// [`Description::open_labelled`], which knows files of images and text, and refuses vectors.
    ///
    /// # Errors
    /// As [`Self::open_validation`]; the message should name the file.
    fn open_labelled(&self, description: &Description, path: &Path) -> Result<Arc<dyn Dataset>> {
        description.open_labelled(path)
    }

    /// Returns in words how the inputs of `data`, which one of the two methods above opened, clearly differ from those of the training data, for
    /// a note of `eval`; none if they do not, or that is not known. Default: none.
    ///
    /// # Errors
    /// If they cannot be read.
    fn difference(&self, _description: &Description, _data: &dyn Dataset) -> Result<Option<String>> {
        Ok(None)
    }

    /// Reads inputs without targets, for `predict`, processed as the validation data of a run whose data had this description. It is not called for
    /// text, which `predict` reads with the description's vocabulary. Default: [`Description::read_inputs`], which knows files of images, and refuses
    /// vectors.
    ///
    /// # Errors
    /// If a file cannot be read or does not fit the description; the message should name the file.
    fn read_inputs(&self, description: &Description, files: &[PathBuf]) -> Result<Inputs> {
        description.read_inputs(files)
    }
}

/// A program with the whole command, [`run`](crate::run): what its configurations may say, and its built-in one.
pub trait Program: 'static {
    /// The section `[model]`.
    type Model: ModelSection;
    /// The section `[data]`; [`DataConfig`] has images, text, and two embedded data sets.
    type Data: DataSection;
    /// The built-in configuration, in TOML: what the command does without `--config`.
    const CONFIG: &'static str;
}

/// The program `interlock`: the models and data sets of the crate `interlock-models`.
#[derive(Debug)]
pub enum BuiltIn {}

impl Program for BuiltIn {
    type Model = ModelConfig;
    type Data = DataConfig;
    const CONFIG: &'static str = include_str!("../configs/fashion-mnist.toml");
}

impl ModelSection for ModelConfig {
    fn kind(&self) -> &str {
        self.kind()
    }

    fn build(&self, shape: InputShape) -> Result<Arc<dyn ModelSpec>> {
        self.build(shape)
    }

    fn export(&self, format: ExportFormat, description: &Description, weights: &Weights) -> Result<Export> {
        self.export(format, description, weights)
    }

    fn head_parts() -> &'static [&'static str] {
        &heads::PARTS
    }
}

impl DataSection for DataConfig {
    fn open(&self) -> Result<Data> {
        self.open()
    }

    fn open_validation(&self, description: &Description) -> Result<Arc<dyn Dataset>> {
        self.open_validation(description)
    }

    fn difference(&self, description: &Description, data: &dyn Dataset) -> Result<Option<String>> {
        self.difference(description, data)
    }
}
