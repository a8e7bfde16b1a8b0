//! Models as ordered units, and their partition into stages.

pub(crate) mod initial;
pub mod parameters;
pub mod partition;
pub mod weights;

pub use parameters::{ParameterGradients, ParameterStore};
pub use partition::Partition;
pub use weights::Weights;

use std::sync::Arc;

use candle_nn::VarBuilder;

use crate::{Differentiable, Error, Result};

/// Builds a unit's function from its parameters' builder, inside the stage's thread and on its device.
pub type UnitBuilder = dyn Fn(VarBuilder<'static>) -> Result<Box<dyn Differentiable>> + Send + Sync;

/// The smallest piece of a model that a partition may put on a stage of its own.
#[derive(Clone)]
pub struct Unit {
    /// The prefix of its parameters' names, `layer1.0` for `layer1.0.conv1.weight`; may be empty.
    pub name: String,
    /// The shape of its output for one example, without the batch dimension; of the first tensor where there are several.
    pub output: Vec<usize>,
    /// Floating-point operations of its forward pass for one example; balances partitions.
    pub flops: f64,
    /// An earlier unit whose parameters it uses too (tied weights): both must lie on one stage.
    pub tied_to: Option<usize>,
    builder: Arc<UnitBuilder>,
}

impl std::fmt::Debug for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unit")
            .field("name", &self.name)
            .field("output", &self.output)
            .field("flops", &self.flops)
            .field("tied_to", &self.tied_to)
            .finish_non_exhaustive()
    }
}

impl Unit {
    /// A unit; `builder` is called once, with a `VarBuilder` that already stands at `name`.
    pub fn new<D: Differentiable + 'static>(
        name: impl Into<String>,
        output: impl Into<Vec<usize>>,
        builder: impl Fn(VarBuilder<'static>) -> Result<D> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            output: output.into(),
            flops: 0.0,
            tied_to: None,
            builder: Arc::new(move |vb| Ok(Box::new(builder(vb)?))),
        }
    }

    /// The same unit with its cost.
    #[must_use]
    pub fn with_flops(mut self, flops: f64) -> Self {
        self.flops = flops;
        self
    }

    /// The same unit, using parameters of the earlier unit number `unit`.
    #[must_use]
    pub fn tied_to(mut self, unit: usize) -> Self {
        self.tied_to = Some(unit);
        self
    }

    /// Builds the unit below `root`: its parameters are named `root.name.…`.
    pub fn build(&self, root: &VarBuilder<'static>) -> Result<Box<dyn Differentiable>> {
        (self.builder)(if self.name.is_empty() { root.clone() } else { root.pp(&self.name) })
    }
}

/// A model that can be cut in depth: an ordered list of units, and the auxiliary heads that may follow them.
pub trait ModelSpec: Send + Sync {
    /// The units from input to output. The last one's output is what the last stage's loss takes.
    fn units(&self) -> Result<Vec<Unit>>;

    /// The auxiliary head described by `arch` behind unit number `unit`; its parameters' names start below `aux.{stage}`.
    ///
    /// # Errors
    /// If the description is not one that this model knows; the default knows none.
    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        Err(Error::invalid(
            "heads.arch",
            format!("this model has no auxiliary head {arch:?} behind unit {unit}"),
            "implement ModelSpec::head, or train end-to-end, which needs no heads",
        ))
    }

    /// The description of the auxiliary head that suits the model where none is given.
    fn default_head(&self) -> &str {
        "fc"
    }
}

impl<M: ModelSpec + ?Sized> ModelSpec for Arc<M> {
    fn units(&self) -> Result<Vec<Unit>> {
        (**self).units()
    }
    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        (**self).head(unit, arch)
    }
    fn default_head(&self) -> &str {
        (**self).default_head()
    }
}

impl<M: ModelSpec + ?Sized> ModelSpec for Box<M> {
    fn units(&self) -> Result<Vec<Unit>> {
        (**self).units()
    }
    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        (**self).head(unit, arch)
    }
    fn default_head(&self) -> &str {
        (**self).default_head()
    }
}
