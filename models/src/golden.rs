//! Golden cases: what one training run must compute, to the last digit that `f32` allows.
//!
//! A case is a folder with `case.json`, which states model, partition, interlock widths, optimizer and steps, and
//! `tensors.safetensors`, which holds what a reference implementation started from and computed. Beside the cases stands the
//! script that writes them and defines their format and semantics.
//!
//! [`GoldenCase::replay`] runs a case by plain calls of the stage engine, [`GoldenCase::compare`] compares what it computed. For
//! each tensor, `max|ours - theirs| ≤ 2e-6 + 5e-5 · max|theirs|` must hold.

mod compare;
mod read;
mod replay;

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::Tensor;
use interlock::{Batch, ClipConfig, ModelSpec, OptimizerConfig, Result, Weights};

use crate::config::{InputShape, ModelConfig};
pub use compare::Comparison;

/// What a run computed, or must compute.
#[derive(Clone, Debug)]
pub struct Computed {
    /// The mean loss of each stage at each step, before the update: `losses[step][stage]`; none where a stage has no head.
    pub losses: Vec<Vec<Option<f64>>>,
    /// The gradients of step 0 by parameter name, after clipping.
    pub gradients: HashMap<String, Tensor>,
    /// Every parameter and buffer after the last step, by name.
    pub finals: HashMap<String, Tensor>,
    /// What the trained model in evaluation mode gives for step 0's inputs.
    pub logits: Tensor,
}

/// A golden case.
#[derive(Clone, Debug)]
pub struct GoldenCase {
    /// The folder's name.
    pub name: String,
    /// The model.
    pub model: ModelConfig,
    /// What its data look like.
    pub shape: InputShape,
    /// The partition: the number of units of each stage.
    pub units_per_stage: Vec<usize>,
    /// The interlock width of each stage.
    pub widths: Vec<usize>,
    /// Whether every stage but the last has an auxiliary head, which is trained on its own loss whether or not a stage follows it.
    pub heads: bool,
    /// The heads' description.
    pub head: String,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// Number of training steps.
    pub steps: usize,
    /// Pieces that each batch is cut into.
    pub micro_batches: usize,
    /// Clipping, if any.
    pub clip: Option<ClipConfig>,
    /// Every parameter and buffer before step 0, by name.
    pub init: Arc<Weights>,
    /// The batch of each step.
    pub batches: Vec<Batch>,
    /// What the reference computed.
    pub expected: Computed,
}

impl GoldenCase {
    /// Reads the case in `folder`.
    ///
    /// # Errors
    /// If a file cannot be read, `case.json` says something unknown or contradictory, or a tensor is missing, unknown or of another
    /// shape or dtype than the case asks for.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        read::read(folder.as_ref())
    }

    /// The model, to be cut by [`Self::units_per_stage`].
    ///
    /// # Errors
    /// None for a case that was read and not changed.
    pub fn spec(&self) -> Result<Arc<dyn ModelSpec>> {
        self.model.build(self.shape)
    }

    /// The number of stages.
    pub fn stages(&self) -> usize {
        self.units_per_stage.len()
    }

    /// Compares what was computed with this case, one comparison a tensor, in order of name.
    ///
    /// Whatever is missing, superfluous, of another shape or not a number is a comparison that does not pass.
    pub fn compare(&self, computed: &Computed) -> Vec<Comparison> {
        compare::compare(&self.expected, computed)
    }
}
