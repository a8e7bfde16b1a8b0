//! Data sets of images and text, from files or embedded in the program.
//!
//! [`DataConfig`] names a data set in a configuration, and [`DataConfig::open`] turns it into [`Data`]: a training set, a validation set, and a
//! [`Description`] of the inputs and outputs of a model for them. It checks all files before anything is trained. The sets can also be built in
//! code: [`ImageSet`] from [`RawImages`], [`FolderSet`] from a [`Listing`], [`TextSet`] from the tokens of a [`Vocabulary`].
//!
//! The [`Description`] of the training data is saved with a model. With it, the model can be used without the training data:
//! [`DataConfig::open_validation`] opens the validation data of the configuration, [`Description::open_labelled`] other data with targets, and
//! [`Description::read_inputs`] and [`Description::read_text`] read what a model is to predict from.
//!
//! Random changes depend only on the batch's key and the number of the example, so an example is changed in the same way in every batch, thread and
//! process.

mod augment;
mod caught;
pub mod cifar;
pub mod config;
#[cfg_attr(not(feature = "images"), path = "data/decode/missing.rs")]
mod decode;
mod description;
mod difference;
pub mod embedded;
pub(crate) mod files;
mod folder;
mod formats;
pub mod idx;
mod images;
mod inputs;
pub(crate) mod limits;
mod line_ends;
mod listing;
mod normalization;
mod open;
#[cfg(test)]
mod tests;
mod text;
mod trained;
mod vocabulary;

pub use augment::{Augment, ResizedCrop};
pub use config::DataConfig;
pub use description::{Data, DataKind, Description};
pub use folder::FolderSet;
pub use images::{ImageSet, RawImages};
pub use inputs::Inputs;
pub use limits::limit_memory;
pub use line_ends::LineEnds;
pub use listing::{LeftOut, Listing, image_files};
pub use normalization::Normalization;
pub use text::TextSet;
pub use vocabulary::{TextStream, Vocabulary};
