//! Interlock trains neural networks cut in depth across devices.
//!
//! A network is cut into *stages* `f_0 … f_{K-1}`, one actor and one device each. With *interlock width* `N`, the parameters of stage `k` are trained
//! by `l_j`, the loss of the head `N-1` stages downstream (`j = min(k+N-1, K-1)`), whose gradient is sent back through `f_j … f_k`: `N = 1` is local
//! learning, `N = 2` pairwise, `N = K` end-to-end backpropagation. (Gomez et al., *Interlocking Backpropagation: Improving depthwise
//! model-parallelism*, JMLR 23(171), 2022.)
//!
//! Why: with end-to-end backpropagation a stage waits until its batch has passed all downstream stages and the gradient has come back. With a small
//! width it waits for `N-1` stages only, so a step takes about as long with many stages as with few.
//!
//! # Write your own model
//! A unit of a model is written as its forward pass ([`StageModule`]). A model is a list of units ([`ModelSpec`]). Everything else is settings.
//!
//! ```
//! use interlock::candle_core::{Device, Tensor};
//! use interlock::candle_nn::{Linear, Module, linear};
//! use interlock::{
//!     Activation, Autograd, Batch, Dataset, Interlock, Key, ModelSpec, Pass, Result, StageModule, Trainer, Unit,
//! };
//!
//! /// `tanh(W·x + b)`
//! struct Layer(Linear);
//!
//! impl StageModule for Layer {
//!     fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
//!         Ok(self.0.forward(x.single()?)?.tanh()?.into())
//!     }
//! }
//!
//! /// A unit of one layer; its parameters are called `name.weight` and `name.bias`.
//! fn layer(name: &str, inputs: usize, outputs: usize) -> Unit {
//!     Unit::new(name, [outputs], move |vb| Autograd::build(vb, |vb| Ok(Layer(linear(inputs, outputs, vb)?))))
//! }
//!
//! struct Net;
//!
//! impl ModelSpec for Net {
//!     fn units(&self) -> Result<Vec<Unit>> {
//!         Ok(vec![layer("first", 2, 16), layer("second", 16, 16), layer("third", 16, 2)])
//!     }
//!
//!     /// The auxiliary head that follows a unit.
//!     fn head(&self, _unit: usize, _arch: &str) -> Result<Unit> {
//!         Ok(layer("", 16, 2))
//!     }
//! }
//!
//! /// Points of a square; their class is whether both coordinates have the same sign.
//! struct Square;
//!
//! impl Dataset for Square {
//!     fn len(&self) -> usize {
//!         400
//!     }
//!
//!     fn batch(&self, numbers: &[usize], _augment: Option<Key>) -> Result<Batch> {
//!         let point = |&n: &usize| [(n % 20) as f32 / 10.0 - 0.95, (n / 20) as f32 / 10.0 - 0.95];
//!         let points: Vec<[f32; 2]> = numbers.iter().map(point).collect();
//!         let classes: Vec<u32> = points.iter().map(|[x, y]| u32::from(x * y > 0.0)).collect();
//!         let inputs = Tensor::new(points.concat(), &Device::Cpu)?.reshape(((), 2))?;
//!         Ok(Batch { inputs: inputs.into(), targets: Tensor::new(classes, &Device::Cpu)? })
//!     }
//! }
//!
//! let mut trainer = Trainer::builder(Net).strategy(Interlock::width(2)).stages(3).epochs(25).build()?;
//! let report = trainer.fit(Square)?;
//! assert!(trainer.evaluate(Square)?.last().score.accuracy() > Some(0.9));
//! # assert_eq!(report.steps, 25 * 13);
//! # Ok::<(), interlock::Error>(())
//! ```
//!
//! # Overview
//! Everything needed to build and train models is at the crate root; [`prelude`] has the items used most.
//! - Models and data: [`ModelSpec`] and [`Unit`]; [`Weights`], saved as files; [`Dataset`] and [`InMemory`]; [`Loss`] and [`Optimizer`].
//! - Differentiation: [`Autograd`] uses candle's graph; a layer with its own backward pass implements [`Differentiable`].
//! - Strategies: a [`Strategy`], such as [`Interlock`], makes a [`GradientPlan`], which says which gradients cross boundaries.
//! - Devices: [`Backend`] and [`StageDevice`].
//! - Training: a [`TrainerBuilder`] configures a [`Trainer`], a [`Callback`] follows its run, a [`Predictor`] uses the trained weights.
//! - For tools (pipelines without a trainer, planner, simulator, timelines, metrics): [`tools`], which is not stable.
//!
//! # Features
//! - `schema` (off by default): `schemars::JsonSchema` for the types of configurations.
//!
//! # What you can rely on
//! - **Timing changes no result.** With one binary on one model of CPU, the trained parameters depend only on configuration, seed and data, bit for
//!   bit: not on the number of threads, the micro-batches in flight, the schedule's policy, or the order of messages.
//! - **A failure is one typed error.** An error, a panic, an infinity or a NaN in any stage ends the run with
//!   [`Error::Failed`], which names stage, step, micro-batch, phase and cause.

mod actor;
mod checkpoint;
mod checksum;
mod data;
mod device;
mod differentiation;
mod error;
mod files;
mod loss;
mod metrics;
mod model;
mod names;
mod optimizer;
mod plain;
mod plan;
mod planner;
pub mod prelude;
mod random;
pub mod ranks;
mod schedule;
mod simulator;
mod stage;
mod strategy;
mod tensor;
mod timeline;
pub mod tools;
mod trainer;
mod transport;
mod watch;

pub use candle_core;
pub use candle_nn;
pub use data::{Batch, DataFrom, Dataset, InMemory};
pub use device::{AsynchronousDevice, Backend, Mark, PlainCpu, Reading, StageDevice};
pub use differentiation::{
    Differentiable, Gradients, ParameterGradients, Pass, Pending, Saved, SavedMemory, Sequential,
    autograd::{Autograd, FromModule, FromModuleT, StageModule},
    graph::InGraph,
};
pub use error::{Error, Failure, NonFinite, Origin, Phase, Result};
pub use loss::{CrossEntropy, Loss, MeanSquaredError, PendingScore, Score, Targets};
pub use model::{Adapted, ModelSpec, ParameterStore, Unit, Weights};
pub use optimizer::{
    Optimizer, OptimizerConfig, OptimizerKind, ParameterGroup, ParameterUpdate, StageOverride, StateDict,
    clip::{ClipConfig, ClipScope},
    lr_schedule::LrScheduleConfig,
};
pub use plan::{GradientPlan, PlanPhase, PlanSchedule, Wants, Window};
pub use random::Key;
pub use stage::{
    EmaConfig, HeadsConfig, HeadsReadout, HeadsTrained, OptimizerContext, OptimizerFactory, Recompute,
    ReplicaStatistics,
};
pub use strategy::{
    Adapt, Adaptive, AdaptiveWindows, EndToEnd, Groups, Interlock, Local, Pairwise, Strategy, WidthSchedule,
};
pub use tensor::{Activation, ActivationDtype, Numbers, Precision};
pub use trainer::{
    Callback, Checkpoint, CheckpointConfig, Control, Criterion, EarlyStopping, EarlyStoppingConfig, Evaluation,
    FailuresConfig, Length, OnFailure, OnNonfinite, Predictor, Report, Split, Stopper, TrainEvent, Trainer,
    TrainerBuilder, TrainerState,
};
