//! The work of a stage's actor after its stage is built: it does one action after another and sends the results.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use actix::{AsyncContext, Context};

use super::{
    StageActor, Stopped, phase_of,
    sharing::Sharing,
    steps::{Done, Queue, Timed},
};
use crate::{
    Error, Failure, Origin,
    actor::{
        arrivals::Arrivals,
        messages::{NextAction, TransferTimes},
    },
    metrics::{Direction, StageMetrics},
    schedule::{Action, ActionKind, Event, Purpose, StageSchedule},
    stage::{ActionContext, CaptureTo, Outcome, ReadoutVersion, Stage},
    transport::{CoordinatorMessage, GradientShare, StageMessage, Transport},
    watch::{Activity, Doing},
};

/// A built stage with its schedule and its connections.
pub(super) struct StageWorker {
    pub(super) stage: Box<Stage>,
    pub(super) wire: Box<dyn Transport>,
    pub(super) schedule: StageSchedule,
    /// Whether a [`NextAction`] is in the mailbox.
    pub(super) acting: bool,
    pub(super) norms: HashMap<u64, f64>,
    pub(super) sharing: Sharing,
    /// The actions done for the step in work.
    pub(super) done: Done,
    /// The steps whose numbers are being read.
    pub(super) unreported: Queue,
    /// The steps after which weights and state are reported, in order.
    pub(super) captures: VecDeque<(u64, CaptureTo)>,
    /// Whether the stage has reported that it received a non-finite value: it reports nothing after that.
    pub(super) reported_non_finite: bool,
    /// The actions done for evaluations whose times are not known yet.
    pub(super) evaluated: Vec<Timed>,
    pub(super) metrics: StageMetrics,
    pub(super) arrivals: Arrivals,
    /// The moment from which recorded times count; none if nothing is recorded.
    pub(super) record: Option<Instant>,
    pub(super) activity: Arc<Activity>,
}

impl StageWorker {
    /// Makes sure that exactly one [`NextAction`] is in the mailbox.
    pub(super) fn wake(&mut self, ctx: &mut Context<StageActor>) {
        if !self.acting {
            self.acting = true;
            ctx.notify(NextAction);
        }
    }

    /// Does one action if there is one. Returns whether there was.
    pub(super) fn act(&mut self) -> Result<bool, Stopped> {
        let Some(action) = self.schedule.begin() else { return Ok(false) };
        let doing = Doing {
            micro_batch: action.micro_batch_index(),
            ..Doing::new(Origin::Stage(self.stage.index()), phase_of(action)).in_step(action.step())
        };
        Arc::clone(&self.activity).during(doing, || self.perform(action)).map(|()| true)
    }

    /// Does this action, sends its results, and reports the steps whose numbers have arrived.
    fn perform(&mut self, action: Action) -> Result<(), Stopped> {
        let kind = action.kind();
        if !action.trains() || matches!(kind, ActionKind::Share | ActionKind::Norm) {
            // This action waits for the device in any case, and earlier steps must be reported first.
            self.report_all_steps()?;
        }
        let global_norm = match action {
            Action::Update(step) => self.norms.remove(&step),
            _ => None,
        };
        let span = tracing::debug_span!(
            "action",
            phase = kind.name(),
            step = action.step(),
            micro = action.micro_batch_index()
        );
        let _entered = span.enter();
        // Read before the update, which frees the gradients.
        let gradient_bytes = if kind == ActionKind::Update { self.stage.gradient_bytes() } else { 0 };
        let added_up = self.schedule.plan().added_up(self.stage.index());
        for (direction, since) in self.arrivals.end(action, added_up) {
            self.metrics.waited(direction, since.elapsed());
        }
        let before = self.mark()?;
        let added_up = self.schedule.plan().added_up(self.stage.index());
        let outcome = self.stage.perform(action, ActionContext { added_up, global_norm })?;
        let after = self.mark()?;
        self.report_received_non_finite()?;
        self.metrics.acted(self.stage.activation_bytes());
        if kind == ActionKind::Update {
            self.metrics.updated(gradient_bytes, self.stage.optimizer_bytes());
        }
        self.timed(Timed { action, before, after });
        self.deliver(action, outcome)?;
        self.schedule.done(action);
        if let Action::ShareGradients(step) = action {
            self.take_sum(step)?;
        }
        for micro_batch in self.schedule.take_freed() {
            self.stage.free(micro_batch);
            if micro_batch.purpose == Purpose::Train {
                self.metrics.freed();
            }
            if micro_batch.purpose == Purpose::Evaluate {
                self.time_evaluation(micro_batch)?;
            }
            if micro_batch.purpose == Purpose::Evaluate && !self.schedule.role().has_head && !self.reported_non_finite {
                let stage = self.stage.index();
                self.wire.report(CoordinatorMessage::Scored { stage, micro_batch, score: None })?;
            }
            self.wire.send(StageMessage::Credit)?;
        }
        self.metrics.holds(self.schedule.live());
        self.report_ready_steps()
    }

    /// Stores the content of a message, and records how long it was in transit.
    pub(super) fn take_in(
        &mut self,
        direction: Direction,
        times: TransferTimes,
        take: impl FnOnce(&mut Stage) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        take(&mut self.stage)?;
        self.metrics.arrived(direction, times.arrived.saturating_duration_since(times.sent) + start.elapsed());
        Ok(())
    }

    /// Sends a version of the shared matrix to the previous stage, if a stage upstream needs it.
    pub(super) fn send_readout(&mut self, version: ReadoutVersion) -> Result<(), Stopped> {
        if self.stage.sends_readout() {
            self.metrics.sent(Direction::Readout, version.bytes());
            self.wire.send(StageMessage::Readout(version))?;
        }
        Ok(())
    }

    /// Takes gradients of another replica.
    pub(super) fn take_share(&mut self, share: GradientShare) -> Result<(), Stopped> {
        let step = share.step;
        for (to, share) in self.sharing.take(share)? {
            self.wire.send(StageMessage::Share { to, share })?;
        }
        self.take_sum(step)
    }

    /// Gives the stage the gradients of all replicas, if they are there.
    fn take_sum(&mut self, step: u64) -> Result<(), Stopped> {
        if let Some(sum) = self.sharing.finish(step)? {
            self.stage.accept_gradients(step, &sum, self.sharing.replicas())?;
            self.schedule.on(Event::Replicas(step)).map_err(|e| Error::Internal(e.to_string()))?;
        }
        Ok(())
    }

    fn deliver(&mut self, action: Action, outcome: Outcome) -> Result<(), Stopped> {
        let stage = self.stage.index();
        let role = self.schedule.role();
        let last = stage + 1 == role.plans.stages();
        match (action, outcome) {
            (Action::Forward(micro_batch), Outcome::Activation(payload)) if !last => {
                let bytes = payload.bytes();
                self.metrics.sent(Direction::Activation, bytes);
                self.done.sent_activation(bytes);
                self.wire.send(StageMessage::Activation { micro_batch, payload })?;
            }
            (Action::Backward { micro_batch, loss, .. }, Outcome::Gradient(gradient)) => {
                let bytes = gradient.bytes();
                self.metrics.sent(Direction::Gradient, bytes);
                self.done.sent_gradient(bytes);
                self.wire.send(StageMessage::Gradient { micro_batch, loss, gradient })?;
            }
            (Action::Head { micro_batch, .. }, Outcome::Score(score)) => {
                self.wire.report(CoordinatorMessage::Scored { stage, micro_batch, score: Some(score) })?;
            }
            (Action::ShareGradients(step), Outcome::Gradients(gradients)) => {
                for (to, share) in self.sharing.begin(step, &gradients)? {
                    self.wire.send(StageMessage::Share { to, share })?;
                }
            }
            (Action::ShareNorm(step), Outcome::SquaredNorms(norms)) => {
                self.wire.report(CoordinatorMessage::SquaredNorms { stage, step, norms })?;
            }
            (Action::Update(step), Outcome::Updated(reading)) => {
                if let Some(version) = self.stage.take_published()? {
                    self.send_readout(version)?;
                }
                self.update_submitted(step, reading)?;
                if let Some((step, to)) = self.captures.pop_front_if(|(next, _)| *next == step) {
                    // The copy waits for the device anyway, and a value that is not finite is reported first.
                    self.report_all_steps()?;
                    self.capture(Some(step), to)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Reports a copy of the stage's weights and state.
    pub(super) fn capture(&mut self, step: Option<u64>, to: CaptureTo) -> Result<(), Stopped> {
        let (stage, capture) = (self.stage.index(), Box::new(self.stage.capture()?));
        Ok(self.wire.report(CoordinatorMessage::Captured { stage, step, capture, to })?)
    }
}
