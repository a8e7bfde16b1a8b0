//! The stage engine: a stage's units, head, saved activations, gradients and optimizer, driven by plain calls.
//!
//! A [`Stage`] is given activations and gradients and told [`Action`]s; it answers with what is to be sent. It knows nothing of
//! actors or of when things should be done: the [`schedule`](crate::schedule) decides that.

mod blueprint;
pub(crate) mod finite;
mod memory;
mod recompute;
mod trainable;

pub use blueprint::{HeadsConfig, HeadsTrained, StageBlueprint, StageSettings};
pub use recompute::Recompute;
pub use trainable::Trainable;

use std::{collections::HashMap, sync::Arc};

use candle_core::Tensor;

use crate::{
    Activation, ActivationDtype, Differentiable, Error, Loss, NonFinite, Pass, Phase, Pulled, Result, Saved, Score,
    StageDevice, StageFailure, Wants,
    clip::{self, ClipConfig, ClipScope},
    differentiable::{Pending, input_of},
    lr_schedule::LrSchedule,
    metrics::table::NONFINITE,
    schedule::{Action, Purpose, Then, Ticket},
};

/// A micro-batch on its way from stage to stage.
#[derive(Clone, Debug)]
pub struct Payload {
    /// What the next stage takes.
    pub inputs: Activation,
    /// What every head's loss takes; it travels along.
    pub targets: Tensor,
    /// How many targets count in the whole batch: the divisor of every micro-batch's losses.
    pub total: f64,
}

impl Payload {
    /// Bytes held by the elements of inputs and targets.
    pub fn bytes(&self) -> usize {
        self.inputs.bytes() + self.targets.elem_count() * self.targets.dtype().size_in_bytes()
    }
}

/// What an action gives to the outside.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing.
    None,
    /// The input of the next stage.
    Activation(Payload),
    /// The gradient of a loss with respect to this stage's input, for the stage before.
    Gradient(Activation),
    /// What the head scored.
    Score(Score),
    /// The squared norms of the main parameters' gradients, in order of creation.
    SquaredNorms(Vec<f64>),
    /// The parameters have been updated.
    Updated(Updated),
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Updated {
    /// The learning rate.
    pub lr: f64,
    /// The norm of the gradient of the stage's main parameters, before clipping.
    pub gradient_norm: f64,
}

struct Head {
    module: Box<dyn Differentiable>,
    parameters: Trainable,
}

/// What a pull-back starts from.
enum Kept {
    /// What the forward pass saved.
    Saved(Saved),
    /// The input as it came, for the forward pass to be run again before the first pull-back.
    Input(Activation),
}

/// What is kept of a micro-batch between its forward pass and its last pull-back.
struct Live {
    /// Until the last pull-back begins.
    kept: Option<Kept>,
    /// Bytes of that, as far as layers tell.
    kept_bytes: usize,
    /// The stage's output, until the head has seen it.
    output: Option<Activation>,
    targets: Tensor,
    total: f64,
    /// Gradients of losses with respect to the stage's output, until they have been pulled back.
    cotangents: HashMap<usize, Activation>,
    /// What input passes have left for parameter passes.
    pending: HashMap<usize, Pending>,
}

impl Live {
    /// Keeps what the forward pass saved for a pull-back to come.
    fn keep(&mut self, saved: Saved) -> &Saved {
        self.kept = Some(Kept::Saved(saved));
        match &self.kept {
            Some(Kept::Saved(saved)) => saved,
            _ => unreachable!("just put there"),
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
    loss: Arc<dyn Loss>,
    clip: Option<ClipConfig>,
    schedule: LrSchedule,
    recompute: bool,
    dtype: ActivationDtype,
    /// What the step of the last update measured.
    alignment: Option<f64>,
    waiting: HashMap<Ticket, Payload>,
    live: HashMap<Ticket, Live>,
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

    /// The cosine between the gradients of the main parameters that the stage followed and that it measured, before clipping, in the step of
    /// the last update. None where nothing was measured, or one of the gradients was zero.
    pub fn alignment(&self) -> Option<f64> {
        self.alignment
    }

    /// A copy of every parameter and buffer of the stage and its head, by name.
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = self.parameters.store().snapshot()?;
        if let Some(head) = &self.head {
            tensors.extend(head.parameters.store().snapshot()?);
        }
        Ok(tensors)
    }

    /// From now on every update keeps the gradients it applied, for [`Trainable::applied`].
    pub fn keep_gradients(&mut self) {
        self.parameters.keep_gradients();
        if let Some(head) = &mut self.head {
            head.parameters.keep_gradients();
        }
    }

    /// Tells the schedule of learning rates how many steps the run has.
    pub fn begin(&mut self, total_steps: u64) {
        self.schedule.set_total(total_steps);
    }

    /// Tells the schedule of learning rates what an evaluation found; the same for every stage.
    pub fn observe_validation(&mut self, loss: f64) {
        self.schedule.observe(loss);
    }

    /// Takes in a micro-batch for a forward pass to come.
    pub fn accept(&mut self, ticket: Ticket, payload: Payload) -> Result<(), StageFailure> {
        let bring = || -> Result<Payload> {
            Ok(Payload {
                inputs: payload.inputs.try_map(|t| self.device.bring(t))?,
                targets: self.device.bring(&payload.targets)?,
                total: payload.total,
            })
        };
        let payload = bring().map_err(|e| self.failure(ticket, Phase::Transfer, &e))?;
        self.waiting.insert(ticket, payload);
        Ok(())
    }

    /// Takes in the gradient of `loss` with respect to this stage's output.
    pub fn accept_gradient(&mut self, ticket: Ticket, loss: usize, gradient: &Activation) -> Result<(), StageFailure> {
        let gradient =
            gradient.try_map(|t| self.device.bring(t)).map_err(|e| self.failure(ticket, Phase::Transfer, &e))?;
        if let Some(live) = self.live.get_mut(&ticket) {
            live.cotangents.insert(loss, gradient);
        }
        Ok(())
    }

    /// Forgets what was kept of a micro-batch.
    pub fn free(&mut self, ticket: Ticket) {
        self.live.remove(&ticket);
    }

    /// Does what `action` says, on the device's threads. `global_norm` is the norm over all stages, for an update under global
    /// clipping.
    ///
    /// # Errors
    /// If a layer, a loss or the optimizer fails, or a value that leaves the stage is not finite. The stage must not be used
    /// for training afterwards.
    pub fn perform(&mut self, action: Action, global_norm: Option<f64>) -> Result<Outcome, StageFailure> {
        let device = Arc::clone(&self.device);
        crate::device::run_on(&*device, || {
            let (phase, done) = match action {
                Action::Forward(ticket) => (Phase::Forward, self.forward(ticket)),
                Action::Head { ticket, cotangent } => (Phase::Head, self.run_head(ticket, cotangent)),
                Action::PullBack { ticket, loss, wants, measured, then } => {
                    (Phase::PullBack, self.pull_back(ticket, loss, wants, measured, then))
                }
                Action::ShareNorm(_) => (Phase::Update, Ok(Outcome::SquaredNorms(self.parameters.squared_norms()))),
                Action::Update(step) => (Phase::Update, self.update(step, global_norm)),
            };
            done.inspect_err(|error| {
                if let Error::NotFinite(sort, _) = error {
                    NONFINITE.counter(&[&self.index.to_string(), sort.name()]).increment(1);
                }
            })
            .map_err(|e| StageFailure {
                stage: self.index,
                step: Some(action.step()),
                micro: action.micro(),
                phase,
                cause: e.to_string(),
            })
        })
    }

    fn failure(&self, ticket: Ticket, phase: Phase, cause: &Error) -> StageFailure {
        StageFailure {
            stage: self.index,
            step: Some(ticket.step),
            micro: Some(ticket.micro),
            phase,
            cause: cause.to_string(),
        }
    }

    fn pass(&self, ticket: Ticket) -> Pass {
        match ticket.purpose {
            Purpose::Train => Pass { dtype: self.dtype, ..Pass::train(self.seed, ticket.step, ticket.micro) },
            Purpose::Evaluate => Pass::eval(),
        }
    }

    fn is_last(&self) -> bool {
        self.index + 1 == self.stages
    }

    fn forward(&mut self, ticket: Ticket) -> Result<Outcome> {
        let Payload { inputs, targets, total } =
            self.waiting.remove(&ticket).ok_or_else(|| lost("an activation", ticket))?;
        let pass = self.pass(ticket);
        let recompute = self.recompute && pass.is_train();
        let first = Pass { save: pass.save && !recompute, ..pass };
        let (output, saved) = self.module.forward(&self.dtype.unpack(&inputs)?, &first)?;
        let output = output.detach();
        let for_head = (self.is_last() || self.head.is_some()).then(|| output.clone());
        let output = if self.is_last() { output } else { self.dtype.pack(&output)? };
        if !self.is_last() {
            finite::check(&output, NonFinite::Activation, || format!("the output of stage {}", self.index))?;
        }
        let live = Live {
            kept_bytes: if recompute { inputs.bytes() } else { saved.bytes() },
            kept: Some(if recompute { Kept::Input(inputs) } else { Kept::Saved(saved) }),
            output: for_head,
            targets: targets.clone(),
            total,
            cotangents: HashMap::new(),
            pending: HashMap::new(),
        };
        self.live.insert(ticket, live);
        Ok(Outcome::Activation(Payload { inputs: output, targets, total }))
    }

    fn run_head(&mut self, ticket: Ticket, cotangent: bool) -> Result<Outcome> {
        let pass = self.pass(ticket);
        let live = self.live.get_mut(&ticket).ok_or_else(|| lost("a micro-batch", ticket))?;
        let output = live.output.take().ok_or_else(|| lost("the output", ticket))?;
        let training = ticket.purpose == Purpose::Train;
        let score = match (&mut self.head, training) {
            (None, false) => {
                let score = self.loss.score(output.single()?, &live.targets)?;
                check_loss(self.index, score)?;
                score
            }
            (None, true) => {
                let (score, gradient) = self.loss.differentiate(output.single()?, &live.targets, live.total)?;
                check_loss(self.index, score)?;
                if cotangent {
                    live.cotangents.insert(self.index, gradient.into());
                }
                score
            }
            (Some(head), false) => {
                let (logits, _) = head.module.forward(&output, &pass)?;
                let score = self.loss.score(logits.single()?, &live.targets)?;
                check_loss(self.index, score)?;
                score
            }
            (Some(head), true) => {
                let (logits, saved) = head.module.forward(&output, &pass)?;
                let (score, gradient) = self.loss.differentiate(logits.single()?, &live.targets, live.total)?;
                check_loss(self.index, score)?;
                let wants = Wants { input: cotangent, parameters: true };
                let mut pulled = head.module.last_pull_back(saved, gradient.into(), wants)?;
                head.parameters.accumulate(std::mem::take(&mut pulled.parameters))?;
                if cotangent {
                    let gradient = input_of(pulled)?;
                    finite::check(&gradient, NonFinite::Gradient, || {
                        format!("the gradient that head {} gives", self.index)
                    })?;
                    live.cotangents.insert(self.index, gradient);
                }
                score
            }
        };
        Ok(Outcome::Score(score))
    }

    fn pull_back(&mut self, ticket: Ticket, loss: usize, wants: Wants, measured: bool, then: Then) -> Result<Outcome> {
        let pass = Pass { track: false, ..self.pass(ticket) };
        let live = self.live.get_mut(&ticket).ok_or_else(|| lost("a micro-batch", ticket))?;
        let saved = match live.kept.take().ok_or_else(|| lost("the forward pass", ticket))? {
            Kept::Saved(saved) => saved,
            Kept::Input(inputs) => self.module.forward(&self.dtype.unpack(&inputs)?, &pass)?.1,
        };
        let mut pulled = if let (Wants::PARAMETERS, Some(pending)) = (wants, live.pending.remove(&loss)) {
            let parameters = match then {
                Then::Nothing => self.module.last_parameter_pass(saved, pending)?,
                _ => self.module.parameter_pass(live.keep(saved), pending)?,
            };
            Pulled { input: None, parameters }
        } else {
            let cotangent = live.cotangents.remove(&loss).ok_or_else(|| lost("a gradient", ticket))?;
            let cotangent = self.dtype.unpack(&cotangent)?;
            match then {
                Then::Nothing => self.module.last_pull_back(saved, cotangent, wants)?,
                Then::Others => self.module.pull_back(live.keep(saved), &cotangent, wants)?,
                Then::Parameters => {
                    let (input, pending) = self.module.input_pass(live.keep(saved), &cotangent)?;
                    live.pending.insert(loss, pending);
                    Pulled { input: Some(input), parameters: Vec::new() }
                }
            }
        };
        let gradients = std::mem::take(&mut pulled.parameters);
        match measured {
            true => self.parameters.measure(gradients)?,
            false => self.parameters.accumulate(gradients)?,
        }
        if !wants.input {
            return Ok(Outcome::None);
        }
        let input = self.dtype.pack(&input_of(pulled)?.detach())?;
        finite::check(&input, NonFinite::Gradient, || {
            format!("the gradient of loss {loss} behind stage {}", self.index)
        })?;
        Ok(Outcome::Gradient(input))
    }

    fn update(&mut self, step: u64, global_norm: Option<f64>) -> Result<Outcome> {
        let lr = self.schedule.lr(step);
        // Finite: checked as every gradient came.
        let own_norm = self.parameters.squared_norms().iter().sum::<f64>().sqrt();
        let coefficient = |norm: f64| self.clip.as_ref().map_or(1.0, |clip| clip::coefficient(clip.max_norm, norm));
        let main_norm = match &self.clip {
            Some(ClipConfig { scope: ClipScope::Global, .. }) => global_norm.ok_or_else(|| {
                Error::Ended("an update under global clipping came before the norm of all stages".to_owned())
            })?,
            _ => own_norm,
        };
        self.alignment = self.parameters.alignment()?;
        self.parameters.update(lr, coefficient(main_norm))?;
        if let Some(head) = &mut self.head {
            let coefficient = match self.clip {
                Some(_) => coefficient(head.parameters.squared_norms().iter().sum::<f64>().sqrt()),
                None => 1.0,
            };
            head.parameters.update(lr, coefficient)?;
        }
        Ok(Outcome::Updated(Updated { lr, gradient_norm: own_norm }))
    }
}

fn lost(what: &str, ticket: Ticket) -> Error {
    Error::Ended(format!("{what} of micro-batch {} is not there", ticket.micro))
}

fn check_loss(stage: usize, score: Score) -> Result<()> {
    if score.loss.is_finite() {
        return Ok(());
    }
    Err(Error::NotFinite(NonFinite::Loss, format!("the loss of head {stage} is {}", score.loss)))
}
