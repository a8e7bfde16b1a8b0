//! The strategy actor.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actix::{Actor, Addr, Context, Handler, Message};

use super::{
    address::{COORDINATOR, StageAddress, send},
    coordinator::Coordinator,
    messages::{Change, Cleared, FollowPlans, Observe, Observed, ReadStrategyState, Reported},
    notes::IntoNote,
    stage::StageActor,
};
use crate::{
    Error, Failure, Origin, Phase, Result,
    strategy::Plans,
    transport::CoordinatorMessage,
    watch::{Activity, Doing},
};

/// From the pipeline's launch to the strategy actor: send the plans to these stages.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct StartStages {
    /// Of all replicas.
    pub(super) stages: Vec<StageAddress>,
    pub(super) coordinator: Addr<Coordinator>,
}

/// The actor that holds the gradient plans of the run. It sends them to every stage, decides changes from what stages measure, and tells the
/// coordinator up to which step every stage has its plans.
pub(super) struct StrategyActor {
    plans: Plans,
    /// The stages and the coordinator, once started; none after a failure.
    peers: Option<StartStages>,
    activity: Arc<Activity>,
}

impl StrategyActor {
    pub(super) fn new(plans: Plans, activity: Arc<Activity>) -> Self {
        Self { plans, peers: None, activity }
    }

    /// Runs `work`; an error or a panic becomes the run's failure, is reported once, and ends this actor's work.
    fn guarded(&mut self, step: Option<u64>, work: impl FnOnce(&mut Plans, &StartStages) -> Result<()>) {
        let Some(peers) = &self.peers else { return };
        let failure = |cause| Failure { step, ..Failure::new(Origin::Strategy, Phase::Plan, cause) };
        let doing = Doing::new(Origin::Strategy, Phase::Plan).in_step(step);
        let work = || self.activity.during(doing, || work(&mut self.plans, peers));
        let failure = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => return,
            Ok(Err(Error::Failed(failure))) => failure,
            Ok(Err(error)) => failure(error),
            Err(panic) => failure(Error::panicked(&*panic)),
        };
        // If this fails, the coordinator has ended and nobody is left to report to.
        let _ = send(&peers.coordinator, COORDINATOR, Reported::from(CoordinatorMessage::Failed(failure)));
        self.peers = None;
    }
}

/// Sends every stage a message.
fn tell_stages<M>(stages: &[StageAddress], message: impl Fn() -> M) -> Result<()>
where
    M: Message<Result = ()> + IntoNote + Send + 'static,
    StageActor: Handler<M>,
{
    for to in stages {
        to.send(message()).map_err(|cause| Failure::new(Origin::Stage(to.stage()), Phase::Transfer, cause))?;
    }
    Ok(())
}

fn tell_coordinator<M>(to: &Addr<Coordinator>, message: M) -> Result<()>
where
    M: Message<Result = ()> + Send + 'static,
    Coordinator: Handler<M>,
{
    send(to, COORDINATOR, message)
}

impl Actor for StrategyActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // The mailbox is unbounded: it holds at most one message for each step that was cleared and is not yet observed.
        ctx.set_mailbox_capacity(0);
    }
}

impl Handler<StartStages> for StrategyActor {
    type Result = ();

    fn handle(&mut self, message: StartStages, _: &mut Self::Context) {
        self.peers = Some(message);
        self.guarded(None, |plans, peers| {
            tell_stages(&peers.stages, || FollowPlans { plans: plans.schedule().clone() })?;
            tell_coordinator(&peers.coordinator, Cleared { until: plans.known_until() })
        });
    }
}

impl Handler<Observe> for StrategyActor {
    type Result = ();

    fn handle(&mut self, message: Observe, _: &mut Self::Context) {
        let Observe { step, stages, with_state } = message;
        self.guarded(Some(step), |plans, peers| {
            let alignments: Vec<Option<f64>> = stages.iter().map(|stage| stage.alignment).collect();
            let change = plans.observe(step, &alignments)?;
            if let Some(phase) = &change {
                tell_stages(&peers.stages, || Change { phase: phase.clone() })?;
            }
            let state = if with_state { plans.state()? } else { None };
            tell_coordinator(&peers.coordinator, Observed { step, stages, change, state })?;
            // The change is in every mailbox by now, so activations of the steps cleared here arrive after it.
            tell_coordinator(&peers.coordinator, Cleared { until: plans.known_until() })
        });
    }
}

impl Handler<ReadStrategyState> for StrategyActor {
    type Result = ();

    fn handle(&mut self, message: ReadStrategyState, _: &mut Self::Context) {
        let read = || self.activity.during(Doing::new(Origin::Strategy, Phase::State), || self.plans.state());
        let told = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| Err(Error::panicked(&*panic)));
        // The receiver may have stopped waiting; then nothing is lost.
        let _ = message.to.send(told);
    }
}
