//! Data sets: images and text, from files or from inside the program.
//!
//! [`DataConfig`] names a data set as configuration does, and [`DataConfig::open`] turns it into [`Data`]: a training set, a
//! validation set, and a [`Description`] of what a model for them takes and gives. All that can be wrong with files is found
//! there, before anything is trained. The sets can also be built by hand: [`ImageSet`] from [`RawImages`], [`FolderSet`] from a
//! [`Listing`], [`TextSet`] from the tokens of a [`Vocabulary`].
//!
//! What a model was trained on is saved with it as its [`Description`]: [`DataConfig::open_validation`] scores the model by it, and
//! [`Description::read_images`] prepares images for it, without the training data.
//!
//! Random changes are keyed by the batch's key and the number of the example alone, so an example is changed alike whatever
//! batch, thread or process takes it.

mod augment;
pub mod cifar;
pub mod config;
mod description;
pub mod embedded;
mod files;
mod folder;
pub mod idx;
mod images;
mod normalization;
mod open;
#[cfg(test)]
mod tests;
mod text;
mod trained;
mod vocabulary;

pub use augment::Augment;
pub use config::DataConfig;
pub use description::{Data, DataKind, Description};
pub use folder::{FolderSet, Listing, image_files};
pub use images::{ImageSet, RawImages};
pub use normalization::Normalization;
pub use text::TextSet;
pub use vocabulary::Vocabulary;
