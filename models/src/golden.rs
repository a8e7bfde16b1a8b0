//! Golden cases: training runs with the results that a reference implementation computed, for comparison up to the rounding of `f32`.
//!
//! A case is a folder with `case.json`, which gives model, partition, strategy, optimizer and steps, and `tensors.safetensors`, with the
//! initial values, the batches and the results of the reference. The script `make_golden.py` beside the cases writes them, and defines their format
//! and semantics.
//!
//! [`GoldenCase::replay`] runs a case with plain calls of the stage engine, and [`GoldenCase::compare`] compares its results. For each tensor,
//! `max|ours - theirs| ≤ 2e-6 + 5e-5 · max|theirs|` must hold.

mod compare;
mod read;
mod replay;

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::Tensor;
use interlock::{Batch, ClipConfig, Interlock, ModelSpec, OptimizerConfig, Result, Weights};

use crate::config::{InputShape, ModelConfig};
pub use compare::Comparison;

/// The results of a run, or the expected ones.
#[derive(Clone, Debug)]
pub struct Computed {
    /// The mean loss of each stage at each step, before the update: `losses[step][stage]`; none if a stage has no head.
    pub losses: Vec<Vec<Option<f64>>>,
    /// The gradients of step 0 after clipping, by the names of parameters.
    pub gradients: HashMap<String, Tensor>,
    /// Every parameter and buffer after the last step, by name.
    pub finals: HashMap<String, Tensor>,
    /// The outputs of the trained model in evaluation mode for step 0's inputs.
    pub logits: Tensor,
}

/// A golden case.
#[derive(Clone, Debug)]
pub struct GoldenCase {
    /// The folder's name.
    pub name: String,
    /// The model.
    pub model: ModelConfig,
    /// The shape of its data.
    pub shape: InputShape,
    /// The partition: the number of units of each stage.
    pub units_per_stage: Vec<usize>,
    /// The losses that each stage follows.
    pub strategy: Interlock,
    /// Whether every stage but the last has an auxiliary head; it is trained on its own loss, even if no stage follows that.
    pub heads: bool,
    /// The heads' description.
    pub head: String,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The number of training steps.
    pub steps: usize,
    /// The number of micro-batches of each batch.
    pub micro_batches: usize,
    /// Clipping, if any.
    pub clip: Option<ClipConfig>,
    /// Every parameter and buffer before step 0, by name.
    pub init: Arc<Weights>,
    /// The batch of each step.
    pub batches: Vec<Batch>,
    /// The results of the reference.
    pub expected: Computed,
}

impl GoldenCase {
    /// Reads the case in `folder`.
    ///
    /// # Errors
    /// If a file cannot be read, `case.json` has an unknown key or contradictory values, or a tensor is missing, is unknown, or has a shape or dtype
    /// that does not fit the case.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        read::read(folder.as_ref())
    }

    /// Returns the model, which [`Self::units_per_stage`] divides into stages.
    ///
    /// # Errors
    /// None for a case that was read and not changed.
    pub fn spec(&self) -> Result<Arc<dyn ModelSpec>> {
        self.model.build(self.shape)
    }

    /// Returns the number of stages.
    pub fn stages(&self) -> usize {
        self.units_per_stage.len()
    }

    /// Compares results with this case. Returns one comparison for each loss and tensor: losses by step and stage, gradients and final values by
    /// name, then the logits.
    ///
    /// A comparison fails if a value is missing, not expected, of another shape, or NaN.
    pub fn compare(&self, computed: &Computed) -> Vec<Comparison> {
        compare::compare(&self.expected, computed)
    }
}
