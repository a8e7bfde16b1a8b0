//! Interlock trains neural networks cut in depth across devices.
//!
//! A network is cut into *stages* `f_0 … f_{K-1}`, one actor and one device each. With *interlock width* `N`, the parameters of
//! stage `k` take the gradient of the loss of the head `N-1` stages ahead, `l_j` with `j = min(k+N-1, K-1)`, sent back through
//! `f_j … f_k`: `N = 1` is local learning, `N = 2` pairwise, `N = K` end-to-end backpropagation. (Gomez et al., *Interlocking
//! Backpropagation: Improving depthwise model-parallelism*, JMLR 23(171), 2022.)
//!
//! Why: end-to-end, a stage waits until its batch has gone through all downstream stages and its gradient has come back. With a small width it waits for
//! `N-1` stages, so that a step takes about as long for many stages as for few.
//!
//! # Write your own model
//! A block is its forward pass ([`StageModule`]), a model is a list of blocks ([`ModelSpec`]); the rest is settings.
//!
//! ```
//! use interlock::candle_core::{Device, Tensor};
//! use interlock::candle_nn::{Linear, Module, linear};
//! use interlock::{
//!     Activation, Autograd, Batch, Dataset, Interlock, ModelSpec, Pass, Result, StageModule, Trainer, Unit, random::Key,
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
//!     /// The auxiliary head behind a unit.
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
//! let report = trainer.fit(&Square)?;
//! assert!(trainer.evaluate(&Square)?.last().score.accuracy() > Some(0.9));
//! # assert_eq!(report.steps, 25 * 13);
//! # Ok::<(), interlock::Error>(())
//! ```
//!
//! # Where things are
//! - What is trained: [`model`] (models, partitions, parameters, weights as files), [`data`], [`loss`], [`optimizer`] (update rules, learning rates,
//!   clipping).
//! - How gradients are computed: [`differentiation`], with candle's graph behind it for your own modules.
//! - *Which* gradients cross boundaries: [`strategy`] and [`plan`]. *When* a stage does what: [`schedule`]. *How*: [`stage`]. *Where*: [`device`].
//! - What carries the messages: [`actor`], over a [`transport`]. [`plain`] is the same computation by plain calls.
//! - What you use: [`trainer`], and [`Predictor`] for what was trained. What units cost on a device: [`planner`], and how long steps take:
//!   [`simulator`] and [`timeline`]. What a run reports to a monitoring system: [`metrics`].
//!
//! # What you can rely on
//! - **Timing changes nothing.** For one binary on one model of CPU the trained parameters depend on configuration, seed and data
//!   only, bit for bit: not on threads, on what is in flight, on the schedule's policy, or on which message came first.
//! - **A failure is one typed error.** An error, a panic, an infinity or a NaN in any stage ends the run with
//!   [`Error::Failed`], which names stage, step, micro-batch, phase and cause.

pub mod actor;
pub mod data;
pub mod device;
pub mod differentiation;
mod error;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod optimizer;
pub mod plain;
pub mod plan;
pub mod planner;
mod predictor;
pub mod random;
pub mod schedule;
pub mod simulator;
pub mod stage;
pub mod strategy;
mod tensor;
pub mod timeline;
pub mod trainer;
pub mod transport;

pub use candle_core;
pub use candle_nn;
pub use data::{Batch, Dataset, InMemory};
pub use device::{Backend, Link, StageDevice};
pub use differentiation::{Autograd, Differentiable, Gradients, Mode, Pass, Saved, Sequential, StageModule};
pub use error::{Deadlock, Error, Failure, NonFinite, Origin, Phase, Result, Wait};
pub use loss::{Loss, Score, Scored, Targets};
pub use model::{ModelSpec, ParameterGradients, ParameterStore, Partition, Unit, Weights};
pub use plan::{GradientPlan, PlanSchedule, Wants};
pub use predictor::Predictor;
pub use stage::Stage;
pub use strategy::{Adaptive, EndToEnd, Interlock, Local, Pairwise, Strategy, WidthSchedule};
pub use tensor::{Activation, ActivationDtype, Numbers, Precision};
pub use trainer::{Report, TrainEvent, Trainer};
