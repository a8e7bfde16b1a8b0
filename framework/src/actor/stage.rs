//! The stage actor.

mod between;
mod sharing;
mod steps;
mod work;

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use actix::{Actor, Context, Handler};
use tracing::Span;

use self::{
    sharing::Sharing,
    steps::{Done, Queue},
    work::StageWorker,
};
use super::{
    arrivals::Arrivals,
    messages::{
        Activation, Capture, Change, Connect, Credit, FollowPlans, Gradient, NextAction, Norm, Readout, Shared,
    },
};
use crate::{
    Error, Failure, Origin, Phase, Result,
    metrics::{Direction, MailboxGauge, StageMetrics},
    schedule::{Action, Event, Policy, StageRole, StageSchedule},
    stage::{Stage, StageBlueprint, Trainable},
    transport::{Built, CoordinatorMessage, Transport},
    watch::{Activity, Doing},
};

/// One stage of the model as an actor on its own thread.
pub(super) struct StageActor {
    blueprint: StageBlueprint,
    settings: StageActorSettings,
    state: State,
    /// Messages in the mailbox: senders count up, this actor counts down.
    mailbox: MailboxGauge,
    /// The tracing span around all work of the stage.
    span: Span,
    activity: Arc<Activity>,
}

/// The settings of a stage actor that its blueprint does not have.
#[derive(Clone, Copy, Debug)]
pub(super) struct StageActorSettings {
    pub(super) in_flight: usize,
    pub(super) policy: Policy,
    pub(super) global_norm: bool,
    pub(super) first_step: u64,
    pub(super) record: Option<Instant>,
    pub(super) mailbox: usize,
    /// The replica that the stage belongs to, and how many there are.
    pub(super) replica: usize,
    pub(super) replicas: usize,
}

enum State {
    /// Does not know its neighbours yet.
    Alone,
    /// Knows its neighbours, and waits for the strategy actor to send the plans.
    Connected { wire: Box<dyn Transport> },
    /// Built, and computing.
    Working(Box<StageWorker>),
    /// Has failed and reported it; later messages are dropped.
    Failed,
}

impl State {
    fn wire(&mut self) -> Option<&mut dyn Transport> {
        match self {
            Self::Connected { wire } => Some(wire.as_mut()),
            Self::Working(work) => Some(work.wire.as_mut()),
            Self::Alone | Self::Failed => None,
        }
    }
}

impl StageActor {
    /// The actor of a stage that is to be built; `mailbox` counts the messages that are sent to it, and `activity` says what it does.
    pub(super) fn new(
        blueprint: StageBlueprint,
        settings: StageActorSettings,
        mailbox: MailboxGauge,
        activity: Arc<Activity>,
    ) -> Self {
        let span = tracing::info_span!("stage", index = blueprint.index);
        Self { blueprint, settings, state: State::Alone, mailbox, span, activity }
    }

    /// Runs `work`; an error or a panic becomes the stage's failure, is reported once, and ends the stage's work.
    fn guarded(&mut self, phase: Phase, work: impl FnOnce(&mut Self) -> Result<(), Stopped>) {
        if matches!(self.state, State::Failed) {
            return;
        }
        let _entered = self.span.clone().entered();
        let (activity, doing) = (Arc::clone(&self.activity), Doing::new(Origin::Stage(self.blueprint.index), phase));
        let stopped = match catch_unwind(AssertUnwindSafe(|| activity.during(doing, || work(self)))) {
            Ok(Ok(())) => return,
            Ok(Err(stopped)) => stopped,
            Err(panic) => Stopped::Other(Error::panicked(&*panic)),
        };
        let failure = match stopped {
            Stopped::Failure(failure) => failure,
            Stopped::Other(error) => {
                let action = match &self.state {
                    State::Working(work) => work.schedule.running(),
                    _ => None,
                };
                let failure = Failure::new(Origin::Stage(self.blueprint.index), action.map_or(phase, phase_of), error);
                match action {
                    Some(action) => failure.in_step(action.step()).in_micro_batch(action.micro_batch_index()),
                    None => failure,
                }
            }
        };
        if let Some(wire) = self.state.wire() {
            // If this fails, the coordinator has ended and nobody is left to report to.
            let _ = wire.report(CoordinatorMessage::Failed(failure));
        }
        self.state = State::Failed;
    }

    /// Passes `event` to the schedule, stores its content with `take`, and makes the stage act.
    fn arrived(
        &mut self,
        ctx: &mut Context<Self>,
        event: Event,
        take: impl FnOnce(&mut StageWorker) -> Result<(), Stopped>,
    ) {
        self.mailbox.taken();
        self.guarded(Phase::Transfer, |this| {
            let State::Working(work) = &mut this.state else {
                return Err(Error::Internal(format!("{event:?} arrived before the plan")).into());
            };
            work.schedule.on(event).map_err(|e| Error::Internal(e.to_string()))?;
            take(work)?;
            work.wake(ctx);
            Ok(())
        });
    }
}

/// Why the work of a handler stopped.
enum Stopped {
    Failure(Failure),
    Other(Error),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        match error {
            Error::Failed(failure) => Self::Failure(failure),
            other => Self::Other(other),
        }
    }
}

fn phase_of(action: Action) -> Phase {
    match action {
        Action::Forward(_) => Phase::Forward,
        Action::Head { .. } => Phase::Head,
        Action::Backward { .. } | Action::BackwardSum { .. } => Phase::Backward,
        Action::ShareGradients(_) | Action::ShareNorm(_) | Action::Update(_) => Phase::Update,
    }
}

impl Actor for StageActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.settings.mailbox);
    }
}

impl Handler<Connect> for StageActor {
    type Result = ();

    fn handle(&mut self, Connect(wire): Connect, _: &mut Self::Context) {
        self.mailbox.taken();
        self.state = State::Connected { wire };
    }
}

impl Handler<FollowPlans> for StageActor {
    type Result = ();

    fn handle(&mut self, message: FollowPlans, _: &mut Self::Context) {
        self.mailbox.taken();
        self.guarded(Phase::Build, |this| {
            let mut stage = Box::new(this.blueprint.build()?);
            stage.set_first_step(this.settings.first_step);
            let role = StageRole {
                stage: stage.index(),
                plans: message.plans,
                has_head: stage.has_head() || stage.index() + 1 == this.blueprint.stages,
                replicas: this.settings.replicas > 1,
                global_norm: this.settings.global_norm,
                credits: this.settings.in_flight,
                policy: this.settings.policy,
                first_step: this.settings.first_step,
                readout_refresh: stage.copies_readout(),
            };
            let built = describe(&stage);
            let (mailbox, stages) = (this.settings.mailbox, this.blueprint.stages);
            let readout = stage.sends_readout();
            let metrics = StageMetrics::new(stage.index(), stages, mailbox, stage.parameter_bytes(), readout);
            this.state = match std::mem::replace(&mut this.state, State::Alone) {
                State::Connected { wire } => State::Working(Box::new(StageWorker {
                    stage,
                    wire,
                    schedule: StageSchedule::new(role),
                    acting: false,
                    norms: HashMap::new(),
                    sharing: Sharing::new(this.settings.replica, this.settings.replicas),
                    done: Done::default(),
                    unreported: Queue::default(),
                    captures: VecDeque::new(),
                    reported_non_finite: false,
                    evaluated: Vec::new(),
                    metrics,
                    arrivals: Arrivals::default(),
                    record: this.settings.record,
                    activity: Arc::clone(&this.activity),
                })),
                other => other,
            };
            match &mut this.state {
                State::Working(work) => Ok(work.wire.report(CoordinatorMessage::Built(built))?),
                _ => Err(Error::Internal("the plans came before the connections, or twice".to_owned()).into()),
            }
        });
    }
}

impl Handler<Change> for StageActor {
    type Result = ();

    fn handle(&mut self, message: Change, _: &mut Self::Context) {
        self.mailbox.taken();
        self.guarded(Phase::Plan, |this| match &mut this.state {
            State::Working(work) => {
                work.report_all_steps()?;
                Ok(work.schedule.follow(message.phase).map_err(|e| Error::Internal(e.to_string()))?)
            }
            _ => Err(Error::Internal("received a change of plan before the first plan".to_owned()).into()),
        });
    }
}

impl Handler<Capture> for StageActor {
    type Result = ();

    fn handle(&mut self, Capture { step, to }: Capture, _: &mut Self::Context) {
        let Some(step) = step else {
            return self.between_steps(Phase::State, |work| work.capture(None, to));
        };
        self.mailbox.taken();
        self.guarded(Phase::State, |this| match &mut this.state {
            State::Working(work) => {
                work.captures.push_back((step, to));
                Ok(())
            }
            _ => Err(Error::Internal("received a request for a capture before the first plan".to_owned()).into()),
        });
    }
}

fn describe(stage: &Stage) -> Built {
    let stores = || stage.parts().map(Trainable::store);
    Built {
        stage: stage.index(),
        device: stage.device().name().to_owned(),
        parameters: stage.parameters().store().parameter_count(),
        head_parameters: stage.head_parameters().map_or(0, |head| head.store().parameter_count()),
        names: stores().flat_map(|s| s.entries()).map(|e| e.name).collect(),
        frozen: !stage.parts().any(Trainable::trains),
        unchecked: stage.has_unchecked_gradients(),
    }
}

impl Handler<NextAction> for StageActor {
    type Result = ();

    fn handle(&mut self, _: NextAction, ctx: &mut Self::Context) {
        self.guarded(Phase::Transfer, |this| {
            if let State::Working(work) = &mut this.state {
                work.acting = false;
                // With nothing else to do, it waits for the numbers of the next step.
                if work.act()? || work.report_next_step()? {
                    work.wake(ctx);
                }
            }
            Ok(())
        });
    }
}

impl Handler<Activation> for StageActor {
    type Result = ();

    fn handle(&mut self, message: Activation, ctx: &mut Self::Context) {
        let Activation { micro_batch, payload, times } = message;
        self.arrived(ctx, Event::Activation(micro_batch), |work| {
            work.take_in(Direction::Activation, times, |stage| stage.accept(micro_batch, payload))?;
            work.arrivals.begin_forward(micro_batch, times.arrived);
            Ok(())
        });
    }
}

impl Handler<Gradient> for StageActor {
    type Result = ();

    fn handle(&mut self, message: Gradient, ctx: &mut Self::Context) {
        let Gradient { micro_batch, loss, tensors, times } = message;
        self.arrived(ctx, Event::Gradient { micro_batch, loss }, |work| {
            work.take_in(Direction::Gradient, times, |stage| stage.accept_gradient(micro_batch, loss, &tensors))?;
            work.arrivals.begin_backward(micro_batch, loss, times.arrived);
            Ok(())
        });
    }
}

impl Handler<Readout> for StageActor {
    type Result = ();

    fn handle(&mut self, message: Readout, ctx: &mut Self::Context) {
        let Readout { version } = message;
        self.arrived(ctx, Event::Readout(version.step), |work| {
            work.send_readout(version.clone())?;
            Ok(work.stage.accept_readout(version)?)
        });
    }
}

impl Handler<Credit> for StageActor {
    type Result = ();

    fn handle(&mut self, _: Credit, ctx: &mut Self::Context) {
        self.arrived(ctx, Event::Credit, |_| Ok(()));
    }
}

impl Handler<Norm> for StageActor {
    type Result = ();

    fn handle(&mut self, message: Norm, ctx: &mut Self::Context) {
        let Norm { step, norm } = message;
        self.arrived(ctx, Event::Norm(step), |work| {
            work.norms.insert(step, norm);
            Ok(())
        });
    }
}

impl Handler<Shared> for StageActor {
    type Result = ();

    fn handle(&mut self, Shared(share): Shared, ctx: &mut Self::Context) {
        self.mailbox.taken();
        self.guarded(Phase::Transfer, |this| match &mut this.state {
            State::Working(work) => {
                work.take_share(share)?;
                work.wake(ctx);
                Ok(())
            }
            _ => Err(Error::Internal("received gradients of a replica before the first plan".to_owned()).into()),
        });
    }
}

impl Drop for StageActor {
    /// A stage whose thread ends early must not leave the other stages waiting. After an ordinary shutdown the report has no receiver. Work already
    /// given to the device is finished first.
    fn drop(&mut self) {
        self.guarded(Phase::Transfer, |this| match &mut this.state {
            State::Working(work) => work.report_all_steps(),
            _ => Ok(()),
        });
        if let Some(wire) = self.state.wire() {
            let cause = Error::Ended("the stage's thread".to_owned());
            let failure = Failure::new(Origin::Stage(self.blueprint.index), Phase::Transfer, cause);
            let _ = wire.report(CoordinatorMessage::Failed(failure));
        }
    }
}
