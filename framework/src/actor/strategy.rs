//! The strategy actor.

use std::panic::{AssertUnwindSafe, catch_unwind};

use actix::{Actor, Addr, Context, Handler, Message};

use super::{
    address::StageAddress,
    coordinator::Coordinator,
    messages::{Change, Cleared, Follow, Lead, Observe, Observed, TellState, Told},
    stage::StageActor,
    wire::send,
};
use crate::{Error, Failure, Origin, Phase, Result, strategy::Plans, transport::Report};

/// Holds the plans of the run: tells every stage what to relay and what to follow, decides the changes that follow from what stages measure, and
/// tells the coordinator for which steps every stage has been told.
pub(super) struct StrategyActor {
    plans: Plans,
    /// Whom to tell, once it leads; none after a failure.
    followers: Option<Lead>,
}

impl StrategyActor {
    pub(super) fn new(plans: Plans) -> Self {
        Self { plans, followers: None }
    }

    /// Runs `work`; an error or a panic becomes the run's failure, is reported once, and ends this actor's work.
    fn guarded(&mut self, step: Option<u64>, work: impl FnOnce(&mut Plans, &Lead) -> Result<()>) {
        let Some(followers) = &self.followers else { return };
        let failure = |cause| Failure { step, ..Failure::new(Origin::Strategy, Phase::Plan, cause) };
        let failure = match catch_unwind(AssertUnwindSafe(|| work(&mut self.plans, followers))) {
            Ok(Ok(())) => return,
            Ok(Err(Error::Failed(failure))) => failure,
            Ok(Err(error)) => failure(error),
            Err(panic) => failure(Error::panicked(&*panic)),
        };
        // Where this fails the coordinator is gone, and with it everyone who could be told.
        let _ = send(&followers.coordinator, "the coordinator", Told(Report::Failed(failure)));
        self.followers = None;
    }
}

/// Sends every stage a message.
fn tell_stages<M>(stages: &[StageAddress], message: impl Fn() -> M) -> Result<()>
where
    M: Message<Result = ()> + Send + 'static,
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
    send(to, "the coordinator", message)
}

impl Actor for StrategyActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Unbounded: at most one message for each step that was cleared and is not yet observed.
        ctx.set_mailbox_capacity(0);
    }
}

impl Handler<Lead> for StrategyActor {
    type Result = ();

    fn handle(&mut self, message: Lead, _: &mut Self::Context) {
        self.followers = Some(message);
        self.guarded(None, |plans, followers| {
            tell_stages(&followers.stages, || Follow { plans: plans.schedule().clone() })?;
            tell_coordinator(&followers.coordinator, Cleared { until: plans.known_until() })
        });
    }
}

impl Handler<Observe> for StrategyActor {
    type Result = ();

    fn handle(&mut self, message: Observe, _: &mut Self::Context) {
        let Observe { step, stages } = message;
        self.guarded(Some(step), |plans, followers| {
            let alignments: Vec<Option<f64>> = stages.iter().map(|stage| stage.alignment).collect();
            let change = plans.observe(step, &alignments)?;
            if let Some(phase) = &change {
                tell_stages(&followers.stages, || Change { phase: phase.clone() })?;
            }
            tell_coordinator(&followers.coordinator, Observed { step, stages, change })?;
            // After the change is in every mailbox: an activation of a step that this clears arrives behind it.
            tell_coordinator(&followers.coordinator, Cleared { until: plans.known_until() })
        });
    }
}

impl Handler<TellState> for StrategyActor {
    type Result = ();

    fn handle(&mut self, message: TellState, _: &mut Self::Context) {
        let told =
            catch_unwind(AssertUnwindSafe(|| self.plans.state())).unwrap_or_else(|panic| Err(Error::panicked(&*panic)));
        // Whoever asked may have given up; nothing is lost.
        let _ = message.to.send(told);
    }
}
