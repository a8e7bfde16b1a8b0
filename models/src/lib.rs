//! Models, auxiliary heads and data sets for Interlock.
//!
//! A model here is an [`interlock::ModelSpec`]: an ordered list of units that a partition groups into stages. Its parameters are
//! named as the usual PyTorch implementations name them (torchvision's ResNet, nanoGPT's Transformer), whatever the partition,
//! so that checkpoints move between partitions and between programs.
//!
//! - [`Mlp`], [`ResNet`], [`Transformer`]: the models, with [presets](resnet::PRESETS) under their usual names.
//! - [`heads`]: auxiliary heads from descriptions such as `conv16_bn_gbpl_fc`.
//! - [`config`]: a model as a configuration file states it, completed from the shape of the data.
//! - [`data`]: data sets, tokenizers, and two small embedded sets.
//! - [`golden`]: reference runs to the last digit that `f32` allows, and comparisons with them.
//!
//! ```
//! use interlock::ModelSpec;
//! use interlock_models::ResNet;
//!
//! let model = ResNet::preset("resnet20", [3, 32, 32], 10)?;
//! let units = model.units()?; // a stem, nine blocks and a classifier, to be grouped into stages
//! assert_eq!((units.len(), units[4].name.as_str()), (11, "layer2.0"));
//! let head = model.head(4, "conv16_bn_gbpl_fc")?;
//! assert_eq!(head.output, [10]);
//! # Ok::<(), interlock::Error>(())
//! ```

pub mod config;
pub mod data;
pub mod golden;
pub mod heads;
pub mod mlp;
pub mod resnet;
pub mod transformer;

mod checks;
mod flops;

pub use config::{InputShape, ModelConfig};
pub use mlp::Mlp;
pub use resnet::ResNet;
pub use transformer::Transformer;

/// The example in the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
