//! The stage engine: the units, head, saved activations, gradients and optimizer of one stage, driven by plain calls.
//!
//! A [`Stage`] takes activations and gradients, performs [`Action`]s, and returns the results to send. It knows neither actors nor the order of
//! actions, which the [`schedule`](crate::schedule) decides.

mod average;
mod blueprint;
mod head;
pub(crate) mod initial;
mod memory;
pub(crate) mod monitor;
mod named_unit;
mod optimizer_factory;
mod outcome;
mod reading;
pub(crate) mod readout;
mod recompute;
mod rehearsal;
mod replicas;
pub(crate) mod shapes;
mod state;
mod trainable;
mod update;

pub use average::EmaConfig;
pub use blueprint::{HeadsConfig, HeadsReadout, HeadsTrained, StageBlueprint, StageSettings};
pub use optimizer_factory::{OptimizerContext, OptimizerFactory};
pub use outcome::{ActionContext, Outcome, Payload, Updated};
pub use reading::{StepNumbers, StepReading};
pub use readout::ReadoutVersion;
pub(crate) use readout::leave_out_update;
pub use recompute::Recompute;
pub use replicas::ReplicaStatistics;
pub(crate) use state::StageFiles;
pub use state::{CaptureTo, StageCapture, StageState};
pub(crate) use state::{StateNote, regrouped, regrouped_name};
pub use trainable::Trainable;

use std::{collections::HashMap, sync::Arc};

use candle_core::Tensor;

use self::{
    monitor::{Monitor, Task},
    readout::Versions,
};
use crate::{
    Activation, ActivationDtype, Differentiable, Error, Failure, Gradients, Loss, NonFinite, Pass, Result, Saved,
    Score, StageDevice, Wants,
    differentiation::Pending,
    optimizer::{clip::ClipConfig, lr_schedule::LrSchedule},
    schedule::{Action, MicroBatchId, Purpose, Remaining},
    tensor::weighted_sum::weighted_sum,
};

struct Head {
    module: Box<dyn Differentiable>,
    parameters: Trainable,
}

/// The starting point of a micro-batch's backward passes.
enum SavedForward {
    /// The saved activations of the forward pass.
    Saved(Saved),
    /// The stage's input: the forward pass runs again before the first backward pass.
    Input(Activation),
}

/// The state of a micro-batch between its forward pass and its last backward pass.
struct MicroBatchState {
    /// None once the last backward pass has begun.
    saved: Option<SavedForward>,
    /// Bytes of the saved forward pass, as layers report them.
    saved_bytes: usize,
    /// The stage's output, until the head has used it.
    output: Option<Activation>,
    targets: Tensor,
    total: f64,
    /// The output gradients of losses that later backward passes need, by loss.
    output_gradients: HashMap<usize, Activation>,
    /// The pending values that input gradients left for parameter gradients, by loss.
    pending: HashMap<usize, Pending>,
}

impl MicroBatchState {
    /// Puts the saved activations back for a later backward pass.
    fn keep(&mut self, saved: Saved) -> &Saved {
        self.saved = Some(SavedForward::Saved(saved));
        match &self.saved {
            Some(SavedForward::Saved(saved)) => saved,
            _ => unreachable!("it has just been stored"),
        }
    }
}

/// One stage of a model, on its device.
pub struct Stage {
    index: usize,
    stages: usize,
    seed: u64,
    device: Arc<dyn StageDevice>,
    module: Box<dyn Differentiable>,
    parameters: Trainable,
    head: Option<Head>,
    /// The versions of the shared readout that the last stage and heads hold.
    readout: Option<Versions>,
    /// Whether it sends them to the previous stage.
    sends_readout: bool,
    loss: Arc<dyn Loss>,
    clip: Option<ClipConfig>,
    lr_schedule: LrSchedule,
    recompute: bool,
    dtype: ActivationDtype,
    statistics: ReplicaStatistics,
    monitor: Monitor,
    /// The score of the present step, as far as it has been read.
    score: Option<Score>,
    /// See [`Self::received_non_finite`].
    received_non_finite: Option<Failure>,
    /// The neighbours whose tensors this stage checks for non-finite values, because they are on asynchronous devices and this one is not.
    unseen: Vec<usize>,
    waiting: HashMap<MicroBatchId, Payload>,
    live: HashMap<MicroBatchId, MicroBatchState>,
}

impl Stage {
    /// The stage's number, counted from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether it has an auxiliary head.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// The device it lives on.
    pub fn device(&self) -> &Arc<dyn StageDevice> {
        &self.device
    }

    /// The main parameters.
    pub fn parameters(&self) -> &Trainable {
        &self.parameters
    }

    /// The head's parameters.
    pub fn head_parameters(&self) -> Option<&Trainable> {
        self.head.as_ref().map(|head| &head.parameters)
    }

    /// Makes the stage compute with the moving averages of its parameters in evaluation, and with their own values in training.
    fn show_averages(&mut self, purpose: Purpose) -> Result<()> {
        let averages = purpose == Purpose::Evaluate;
        self.parameters.show_averages(averages)?;
        self.head.as_mut().map_or(Ok(()), |head| head.parameters.show_averages(averages))
    }

    /// Makes later updates store the gradients that they applied, for [`Trainable::applied`].
    pub fn keep_gradients(&mut self) {
        self.parameters.keep_gradients();
        if let Some(head) = &mut self.head {
            head.parameters.keep_gradients();
        }
    }

    /// Sets the number of steps of the run in the learning-rate schedule.
    pub fn begin(&mut self, total_steps: u64) {
        self.lr_schedule.set_total(total_steps);
    }

    /// Passes the last stage's validation loss, the same for every stage, to the learning-rate schedule.
    pub fn observe_validation(&mut self, loss: f64) {
        self.lr_schedule.observe(loss);
    }

    /// Stores a micro-batch for a later forward pass. Its targets stay on the host, where losses check them.
    pub fn accept(&mut self, micro_batch: MicroBatchId, payload: Payload) -> Result<(), Failure> {
        // The first stage's inputs come from no stage; a non-finite input shows in the first stage's output.
        let inputs = self.take_in(micro_batch, &payload.inputs, self.index.checked_sub(1), NonFinite::Activation)?;
        self.waiting.insert(micro_batch, Payload { inputs, ..payload });
        Ok(())
    }

    /// Brings a tensor that `sender` sent to the stage's device.
    fn take_in(
        &mut self,
        micro_batch: MicroBatchId,
        sent: &Activation,
        sender: Option<usize>,
        kind: NonFinite,
    ) -> Result<Activation, Failure> {
        let task = Task::transfer(micro_batch);
        let mut bring = || {
            let here = sent.try_map(|t| self.device.bring(t))?;
            if sender.is_some() {
                self.monitor.begin(task);
                self.monitor.received(&here)?;
            }
            Ok(here)
        };
        let here = bring().map_err(|error| task.failure(self.index, self.device.hooks().explain(error)))?;
        if let Some(sender) = sender.filter(|sender| self.unseen.contains(sender)) {
            let what = || format!("the tensor that it sent to stage {}", self.index);
            self.monitor.check_activation(&here, kind, what).map_err(|error| task.failure(sender, error))?;
        }
        Ok(here)
    }

    /// Stores the gradient of `loss` with respect to this stage's output.
    pub fn accept_gradient(
        &mut self,
        micro_batch: MicroBatchId,
        loss: usize,
        gradient: &Activation,
    ) -> Result<(), Failure> {
        let gradient = self.take_in(micro_batch, gradient, Some(self.index + 1), NonFinite::Gradient)?;
        let Some(live) = self.live.get_mut(&micro_batch) else {
            return Err(Task::transfer(micro_batch).failure(self.index, lost("a micro-batch", micro_batch)));
        };
        live.output_gradients.insert(loss, gradient);
        Ok(())
    }

    /// Frees the state of a micro-batch, and the unread measurements of an evaluation's micro-batch.
    pub fn free(&mut self, micro_batch: MicroBatchId) {
        self.live.remove(&micro_batch);
        if micro_batch.purpose == Purpose::Evaluate {
            self.monitor.take_evaluated(micro_batch);
        }
    }

    /// Performs `action` on the device's threads.
    ///
    /// # Errors
    /// If a layer, a loss or the optimizer fails, or a value that leaves the stage is not finite. The stage must not be used
    /// for training afterwards.
    pub fn perform(&mut self, action: Action, context: ActionContext<'_>) -> Result<Outcome, Failure> {
        let device = Arc::clone(&self.device);
        let task = Task::of(action);
        self.monitor.begin(task);
        crate::device::run_on(&*device, || {
            let done = match action {
                Action::Forward(micro_batch) => self.forward(micro_batch),
                Action::Head { micro_batch, output_gradient } => self.run_head(micro_batch, output_gradient),
                Action::Backward { micro_batch, loss, wants, measured, then } => {
                    let in_sum = context.added_up.iter().any(|&(added, _)| added == loss);
                    self.backward(micro_batch, loss, wants, measured, in_sum, then)
                }
                Action::BackwardSum { micro_batch, then } => self.backward_sum(micro_batch, context.added_up, then),
                Action::ShareGradients(_) => self.share_gradients(),
                Action::ShareNorm(_) => self.share_norms(),
                Action::Update(step) => self.update(step, context.global_norm),
            };
            done.map_err(|error| match error {
                // A failure of an earlier task, known only now.
                Error::Failed(failure) => failure,
                error => task.failure(self.index, device.hooks().explain(error)),
            })
        })
    }

    /// Makes tensors ready for another stage to read.
    fn release(&self, leaving: &Activation) -> Result<Activation> {
        leaving.try_map(|t| self.device.release(t))
    }

    fn pass(&self, micro_batch: MicroBatchId) -> Pass {
        let precision = self.device.precision();
        match micro_batch.purpose {
            Purpose::Train => {
                Pass { dtype: self.dtype, precision, ..Pass::train(self.seed, micro_batch.step, micro_batch.index) }
            }
            Purpose::Evaluate => Pass { precision, ..Pass::eval() },
        }
    }

    fn is_last(&self) -> bool {
        self.index + 1 == self.stages
    }

    fn forward(&mut self, micro_batch: MicroBatchId) -> Result<Outcome> {
        // Steps and evaluations never overlap in a stage.
        self.show_averages(micro_batch.purpose)?;
        let Payload { inputs, targets, total } =
            self.waiting.remove(&micro_batch).ok_or_else(|| lost("an activation", micro_batch))?;
        let pass = self.pass(micro_batch);
        let recompute = self.recompute && pass.is_train();
        let first = Pass { save: pass.save && !recompute, ..pass };
        let (output, saved) = self.module.forward(&pass.precision.enter(&inputs)?, &first)?;
        let output = output.detach();
        let for_head = (self.is_last() || self.head.is_some()).then(|| output.clone());
        let output = if self.is_last() { output } else { self.dtype.pack(&output)? };
        if !self.is_last() {
            let stage = self.index;
            self.monitor.check_activation(&output, NonFinite::Activation, || format!("the output of stage {stage}"))?;
        }
        if micro_batch.purpose == Purpose::Evaluate && for_head.is_none() {
            // No head will read these measurements.
            self.read_evaluation(micro_batch)?;
        }
        let output = if self.is_last() { output } else { self.release(&output)? };
        let live = MicroBatchState {
            saved_bytes: if recompute { inputs.bytes() } else { saved.bytes() },
            saved: Some(if recompute { SavedForward::Input(inputs) } else { SavedForward::Saved(saved) }),
            output: for_head,
            targets: targets.clone(),
            total,
            output_gradients: HashMap::new(),
            pending: HashMap::new(),
        };
        self.live.insert(micro_batch, live);
        Ok(Outcome::Activation(Payload { inputs: output, targets, total }))
    }

    /// Takes the saved activations of a micro-batch for a backward pass. Repeats the forward pass if only its input was saved.
    fn take_saved(&mut self, micro_batch: MicroBatchId) -> Result<(Saved, Pass)> {
        let pass = Pass { track: false, ..self.pass(micro_batch) };
        let live = self.live.get_mut(&micro_batch).ok_or_else(|| lost("a micro-batch", micro_batch))?;
        let saved = match live.saved.take().ok_or_else(|| lost("the forward pass", micro_batch))? {
            SavedForward::Saved(saved) => saved,
            SavedForward::Input(inputs) => self.module.forward(&pass.precision.enter(&inputs)?, &pass)?.1,
        };
        Ok((saved, pass))
    }

    /// Runs one backward pass over the weighted sum of the output gradients of `added_up`, added in order of the losses.
    fn backward_sum(
        &mut self,
        micro_batch: MicroBatchId,
        added_up: &[(usize, f64)],
        then: Remaining,
    ) -> Result<Outcome> {
        let (saved, pass) = self.take_saved(micro_batch)?;
        let live = self.live.get_mut(&micro_batch).ok_or_else(|| lost("a micro-batch", micro_batch))?;
        let gradient = |&(loss, weight): &(usize, f64)| {
            let gradient = live.output_gradients.remove(&loss).ok_or_else(|| lost("a gradient", micro_batch))?;
            Ok((gradient, weight))
        };
        let sum = weighted_sum(&added_up.iter().map(gradient).collect::<Result<Vec<_>>>()?)?;
        let sum = pass.precision.enter(&sum)?;
        let gradients = match then {
            Remaining::Nothing => self.module.last_backward(saved, sum, Wants::PARAMETERS)?,
            _ => self.module.backward(live.keep(saved), &sum, Wants::PARAMETERS)?,
        };
        self.parameters.accumulate(gradients.parameters, &mut self.monitor)?;
        Ok(Outcome::None)
    }

    fn backward(
        &mut self,
        micro_batch: MicroBatchId,
        loss: usize,
        wants: Wants,
        measured: bool,
        in_sum: bool,
        then: Remaining,
    ) -> Result<Outcome> {
        let (saved, pass) = self.take_saved(micro_batch)?;
        let live = self.live.get_mut(&micro_batch).ok_or_else(|| lost("a micro-batch", micro_batch))?;
        let mut pulled = if let (Wants::PARAMETERS, Some(pending)) = (wants, live.pending.remove(&loss)) {
            let parameters = match then {
                Remaining::Nothing => self.module.last_backward_parameters(saved, pending)?,
                _ => self.module.backward_parameters(live.keep(saved), pending)?,
            };
            Gradients { input: None, parameters }
        } else {
            // A gradient that is also part of a sum waits for that.
            let output_gradient = match in_sum {
                true => live.output_gradients.get(&loss).cloned(),
                false => live.output_gradients.remove(&loss),
            };
            let output_gradient = output_gradient.ok_or_else(|| lost("a gradient", micro_batch))?;
            let output_gradient = pass.precision.enter(&output_gradient)?;
            match then {
                Remaining::Nothing => self.module.last_backward(saved, output_gradient, wants)?,
                Remaining::Others => self.module.backward(live.keep(saved), &output_gradient, wants)?,
                Remaining::Parameters => {
                    let (input, pending) = self.module.backward_input(live.keep(saved), &output_gradient)?;
                    live.pending.insert(loss, pending);
                    Gradients { input: Some(input), parameters: Vec::new() }
                }
            }
        };
        let gradients = std::mem::take(&mut pulled.parameters);
        match measured {
            true => self.parameters.measure(gradients, &mut self.monitor)?,
            false => self.parameters.accumulate(gradients, &mut self.monitor)?,
        }
        if !wants.input {
            return Ok(Outcome::None);
        }
        let input = self.dtype.pack(&pulled.into_input()?.detach())?;
        let stage = self.index;
        self.monitor.check_activation(&input, NonFinite::Gradient, || {
            format!("the input gradient of loss {loss} of stage {stage}")
        })?;
        Ok(Outcome::Gradient(self.release(&input)?))
    }
}

fn lost(what: &str, micro_batch: MicroBatchId) -> Error {
    Error::Internal(format!("{what} of micro-batch {} is missing", micro_batch.index))
}
