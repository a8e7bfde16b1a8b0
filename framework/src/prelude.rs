//! The items that most programs need: `use interlock::prelude::*;`.
//!
//! ```
//! use interlock::prelude::*;
//!
//! fn train(model: impl ModelSpec + 'static, data: impl Dataset + 'static) -> Result<Report> {
//!     Trainer::builder(model).strategy(Interlock::width(2)).stages(4).epochs(10).build()?.fit(data)
//! }
//! ```

pub use crate::{
    Activation, Autograd, Batch, Callback, Control, CrossEntropy, Dataset, Differentiable, EarlyStopping, EndToEnd,
    Error, Gradients, Groups, InMemory, Interlock, Local, Loss, MeanSquaredError, ModelSpec, Optimizer,
    OptimizerConfig, Pairwise, Pass, Predictor, Report, Result, Saved, Sequential, Split, StageModule, Strategy,
    TrainEvent, Trainer, Unit, Wants, Weights,
};
