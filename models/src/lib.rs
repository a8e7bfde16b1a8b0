//! Models, auxiliary heads and data sets for Interlock.
//!
//! A model is an [`interlock::ModelSpec`]: an ordered list of units that a partition groups into stages. For every partition, its parameters have
//! the names of the usual PyTorch implementations (torchvision's ResNet, nanoGPT's Transformer), so that checkpoints can be used with other
//! partitions and programs.
//!
//! - [`Mlp`], [`ResNet`], [`Transformer`]: the models, with [presets](resnet::PRESETS) under their usual names.
//! - [`heads`]: auxiliary heads from descriptions such as `conv16_bn_gbpl_fc`.
//! - [`config`]: the configuration of a model, completed from the shape of the data.
//! - [`export`]: trained models as folders that Python programs load.
//! - [`data`]: data sets, tokenizers, and two small embedded sets.
//! - [`golden`]: training runs of a reference implementation, and comparisons with them.
//!
//! ```
//! use interlock::ModelSpec;
//! use interlock_models::ResNet;
//!
//! let model = ResNet::preset("resnet20", [3, 32, 32], 10)?;
//! let units = model.units()?; // a stem, nine blocks and a classifier
//! assert_eq!((units.len(), units[4].name.as_str()), (11, "layer2.0"));
//! let head = model.head(4, "conv16_bn_gbpl_fc")?;
//! assert_eq!(head.output, [10]);
//! # Ok::<(), interlock::Error>(())
//! ```
//!
//! Features, all off by default: `images` reads image files; `schema` gives the configurations `schemars::JsonSchema`.

pub mod config;
pub mod data;
pub mod export;
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

/// Checks that the example in the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
