//! Interlock trains neural networks cut in depth across devices.
//!
//! A network is cut into *stages* `f_0 … f_{K-1}`, one actor and one device each. With *interlock width* `N`, the parameters of
//! stage `k` take the gradient of the loss of the head `N-1` stages ahead, `l_j` with `j = min(k+N-1, K-1)`, pulled back through
//! `f_j … f_k`: `N = 1` is local learning, `N = 2` pairwise, `N = K` end-to-end backpropagation. (Gomez et al., *Interlocking
//! Backpropagation: Improving depthwise model-parallelism*, JMLR 23(171), 2022.)

mod activation;
pub mod actor;
pub mod autograd;
pub mod clip;
pub mod data;
pub mod device;
pub mod differentiable;
mod error;
pub mod graph;
pub mod loss;
pub mod lr_schedule;
pub mod model;
pub mod optimizer;
pub mod parameters;
pub mod partition;
pub mod plain;
pub mod plan;
pub mod random;
pub mod schedule;
pub mod stage;
pub mod strategy;
pub mod trainer;
pub mod transport;
pub mod weights;

pub use activation::Activation;
pub use autograd::{Autograd, StageModule};
pub use data::{Batch, Dataset};
pub use device::{Backend, StageDevice};
pub use differentiable::{Differentiable, Mode, Pass, Pulled, Saved, Sequential, Wants};
pub use error::{Error, Phase, Result, StageFailure};
pub use loss::{Loss, Score};
pub use model::{ModelSpec, Unit};
pub use parameters::{Gradients, ParameterStore};
pub use partition::Partition;
pub use plan::GradientPlan;
pub use stage::Stage;
pub use strategy::{EndToEnd, Interlock, Local, Pairwise, Strategy};
pub use trainer::{Report, TrainEvent, Trainer};
