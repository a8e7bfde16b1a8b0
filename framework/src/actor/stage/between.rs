//! Requests to a stage between steps, when nothing is in flight.

use actix::Handler;

use super::{StageActor, StageWorker, State, Stopped};
use crate::{
    Error, Phase,
    actor::messages::{Begin, Restore, TakeSnapshot, TakeState, Validated},
    transport::CoordinatorMessage,
};

impl StageActor {
    /// Runs `work` between steps, when nothing is in flight and all steps have been reported.
    pub(super) fn between_steps(&mut self, phase: Phase, work: impl FnOnce(&mut StageWorker) -> Result<(), Stopped>) {
        self.mailbox.taken();
        self.guarded(phase, |this| match &mut this.state {
            State::Working(at_work) if at_work.schedule.is_idle() => {
                at_work.report_all_steps()?;
                work(at_work)
            }
            _ => Err(Error::Internal("asked between steps while something is in flight".to_owned()).into()),
        });
    }
}

impl Handler<Begin> for StageActor {
    type Result = ();

    fn handle(&mut self, message: Begin, _: &mut Self::Context) {
        self.between_steps(Phase::LearningRate, |work| {
            work.stage.begin(message.total_steps);
            Ok(())
        });
    }
}

impl Handler<Validated> for StageActor {
    type Result = ();

    fn handle(&mut self, message: Validated, _: &mut Self::Context) {
        self.between_steps(Phase::LearningRate, |work| {
            work.stage.observe_validation(message.loss);
            Ok(())
        });
    }
}

impl Handler<TakeSnapshot> for StageActor {
    type Result = ();

    fn handle(&mut self, _: TakeSnapshot, _: &mut Self::Context) {
        self.between_steps(Phase::Snapshot, |work| {
            let tensors = work.stage.snapshot()?;
            Ok(work.wire.report(CoordinatorMessage::Snapshot { stage: work.stage.index(), tensors })?)
        });
    }
}

impl Handler<TakeState> for StageActor {
    type Result = ();

    fn handle(&mut self, _: TakeState, _: &mut Self::Context) {
        self.between_steps(Phase::State, |work| {
            let state = Box::new(work.stage.state()?);
            Ok(work.wire.report(CoordinatorMessage::State { stage: work.stage.index(), state })?)
        });
    }
}

impl Handler<Restore> for StageActor {
    type Result = ();

    fn handle(&mut self, message: Restore, _: &mut Self::Context) {
        self.between_steps(Phase::State, |work| {
            work.stage.restore(*message.state)?;
            Ok(work.wire.report(CoordinatorMessage::Restored { stage: work.stage.index() })?)
        });
    }
}
