//! Models as ordered units, and their partition into stages.

pub(crate) mod parameters;
pub(crate) mod partition;
pub(crate) mod weights;

pub use parameters::ParameterStore;
pub use partition::Partition;
pub(crate) use weights::ShardFile;
pub use weights::Weights;

use std::sync::Arc;

use candle_nn::VarBuilder;

use crate::{Differentiable, Error, Result};

/// A function that builds a unit from its parameters' builder, on the stage's thread and device.
pub(crate) type UnitBuilder = dyn Fn(VarBuilder<'static>) -> Result<Box<dyn Differentiable>> + Send + Sync;

/// The smallest part of a model that can be a stage on its own.
#[derive(Clone)]
pub struct Unit {
    /// The prefix of its parameters' names: `layer1.0` for `layer1.0.conv1.weight`. May be empty.
    pub name: String,
    /// The shape of its output for one example, without the batch dimension. Of several output tensors, the shape of the first.
    pub output: Vec<usize>,
    /// The floating-point operations of its forward pass for one example. Partitions are balanced by it.
    pub flops: f64,
    /// An earlier unit whose parameters it shares (tied weights). Both must be on one stage.
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
    /// Describes a unit whose output has the shape `output` for one example. `builder` receives a `VarBuilder` with the prefix `name`.
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

    /// Sets the floating-point operations of a forward pass for one example.
    #[must_use]
    pub fn with_flops(mut self, flops: f64) -> Self {
        self.flops = flops;
        self
    }

    /// States that it shares parameters with the earlier unit number `unit`.
    #[must_use]
    pub fn tied_to(mut self, unit: usize) -> Self {
        self.tied_to = Some(unit);
        self
    }

    /// Builds the unit; its parameters are named `root.name.…`.
    ///
    /// # Errors
    /// If the unit's builder fails.
    pub fn build(&self, root: &VarBuilder<'static>) -> Result<Box<dyn Differentiable>> {
        (self.builder)(if self.name.is_empty() { root.clone() } else { root.pp(&self.name) })
    }
}

/// A model that can be cut in depth: an ordered list of units and the auxiliary heads that may follow them.
///
/// ```
/// use interlock::{Autograd, Error, FromModule, ModelSpec, Result, Unit, candle_nn::linear};
///
/// fn layer(name: String) -> Unit {
///     Unit::new(name, [8], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(8, 8, vb)?))))
/// }
///
/// struct Net {
///     layers: usize,
/// }
///
/// impl ModelSpec for Net {
///     fn units(&self) -> Result<Vec<Unit>> {
///         Ok((0..self.layers).map(|i| layer(format!("layers.{i}"))).collect())
///     }
///
///     fn head(&self, _unit: usize, arch: &str) -> Result<Unit> {
///         match arch {
///             "fc" => Ok(layer(String::new())), // aux.0.weight, aux.0.bias, …
///             _ => Err(Error::invalid("heads.arch", format!("{arch:?} is unknown"), "use fc")),
///         }
///     }
/// }
///
/// assert_eq!(Net { layers: 3 }.units()?[2].name, "layers.2");
/// # Ok::<(), interlock::Error>(())
/// ```
pub trait ModelSpec: Send + Sync {
    /// Returns the units from input to output. The last stage's loss takes the output of the last unit.
    fn units(&self) -> Result<Vec<Unit>>;

    /// Returns the auxiliary head described by `arch` that follows unit number `unit`. Its parameters' names start with `aux.{stage}`.
    ///
    /// # Errors
    /// If the model does not know the description. By default it knows none.
    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        Err(Error::invalid(
            "heads.arch",
            format!("this model has no auxiliary head {arch:?} after unit {unit}"),
            "implement ModelSpec::head, or train end-to-end, which needs no heads",
        ))
    }

    /// Returns the description of the auxiliary head that is used by default.
    fn default_head(&self) -> &str {
        "fc"
    }

    /// Returns weights that may be another program's under this model's names and in its layouts. They are given without what `torch.compile`
    /// and wrappers such as `DistributedDataParallel` add to names. It must return this model's own weights as they are. Default: all weights as they
    /// are.
    ///
    /// # Errors
    /// If the weights contradict themselves.
    fn adapt(&self, weights: Weights) -> Result<Adapted> {
        Ok(weights.into())
    }
}

/// Weights under the names of a model, as [`ModelSpec::adapt`] returns them.
#[derive(Clone, Debug, Default)]
pub struct Adapted {
    /// The weights.
    pub weights: Weights,
    /// What was done to them, in words for the log.
    pub notes: Vec<String>,
}

impl From<Weights> for Adapted {
    fn from(weights: Weights) -> Self {
        Self { weights, notes: Vec::new() }
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
    fn adapt(&self, weights: Weights) -> Result<Adapted> {
        (**self).adapt(weights)
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
    fn adapt(&self, weights: Weights) -> Result<Adapted> {
        (**self).adapt(weights)
    }
}
