//! Callbacks: code of your own that follows a run and may end it.

mod early_stopping;

pub use early_stopping::{EarlyStopping, EarlyStoppingConfig};

use serde_json::Value;

use super::TrainEvent;
use crate::{Error, Result};

/// Whether a run goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub enum Control {
    /// The run goes on.
    #[default]
    Continue,
    /// The run ends for this reason, which [`Report::stop_reason`](super::Report::stop_reason) holds.
    Stop(String),
}

/// Code that follows a run and may end it.
///
/// The trainer calls [`on_event`](Self::on_event) on the thread of [`fit`](super::Trainer::fit): that of its caller, or with
/// [`stall_timeout`](super::FailuresConfig::stall_timeout) one of its own. Stages wait for it only if it is slow. A
/// function of a [`TrainEvent`] is a callback that only watches.
///
/// A run that a callback ends at an evaluation has the same parameters each time. After a training step, stages may have begun further steps,
/// which are finished first: how many depends on timing.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use interlock::{Batch, Dataset, ModelSpec, Sequential, Unit, Key, MeanSquaredError};
/// # struct Net;
/// # impl ModelSpec for Net {
/// #     fn units(&self) -> Result<Vec<Unit>> {
/// #         Ok(vec![Unit::new("", [1], |_| Ok(Sequential::default()))])
/// #     }
/// # }
/// # struct Ones;
/// # impl Dataset for Ones {
/// #     fn len(&self) -> usize {
/// #         64
/// #     }
/// #     fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
/// #         let ones = Tensor::new(vec![1.0_f32; numbers.len()], &Device::Cpu)?.reshape(((), 1))?;
/// #         Ok(Batch { inputs: ones.clone().into(), targets: ones })
/// #     }
/// # }
/// use interlock::{Result, TrainEvent, Trainer, Callback, Control};
///
/// /// Ends a run once the validation loss is good enough.
/// struct GoodEnough {
///     loss: f64,
/// }
///
/// impl Callback for GoodEnough {
///     fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
///         match event {
///             TrainEvent::Evaluated { evaluation, .. } if evaluation.last().score.mean_loss() <= self.loss => {
///                 Ok(Control::Stop("good enough".to_owned()))
///             }
///             _ => Ok(Control::Continue),
///         }
///     }
/// }
///
/// let builder = Trainer::builder(Net).loss(MeanSquaredError).epochs(9).callback(GoodEnough { loss: 0.5 });
/// let report = builder.build()?.fit((Ones, Ones))?;
/// assert_eq!((report.steps, report.stop_reason.as_deref()), (2, Some("good enough")));
/// # Ok::<(), interlock::Error>(())
/// ```
pub trait Callback: Send {
    /// Handles an event, and returns whether the run goes on. The return value for [`TrainEvent::Finished`] has no effect.
    ///
    /// # Errors
    /// Any error ends the run with this error. For [`TrainEvent::Started`] it refuses the run: nothing has been sent to a stage, and the trainer can
    /// be used as before.
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control>;

    /// Returns everything that it remembers, so that another run can continue with it. Default: null, it remembers nothing.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    fn state(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    /// Restores a state that [`Self::state`] returned.
    ///
    /// # Errors
    /// If it is not the state of such a callback. Default: if it is not null.
    fn restore(&mut self, state: &Value) -> Result<()> {
        if state.is_null() {
            return Ok(());
        }
        Err(Error::invalid("callback state", "this callback has no state", "leave the state out"))
    }
}

impl<F: FnMut(&TrainEvent<'_>) + Send> Callback for F {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        self(event);
        Ok(Control::Continue)
    }
}
