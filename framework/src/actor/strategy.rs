//! The strategy actor.

use std::sync::Arc;

use actix::{Actor, Context, Handler};

use super::{
    messages::{Follow, Lead, Told},
    wire::send,
};
use crate::{GradientPlan, Phase, StageFailure, transport::Report};

/// Holds the gradient plan and tells every stage what to relay and what to follow.
pub(super) struct StrategyActor {
    plan: Arc<GradientPlan>,
}

impl StrategyActor {
    pub(super) fn new(plan: Arc<GradientPlan>) -> Self {
        Self { plan }
    }
}

impl Actor for StrategyActor {
    type Context = Context<Self>;
}

impl Handler<Lead> for StrategyActor {
    type Result = ();

    fn handle(&mut self, message: Lead, _: &mut Self::Context) {
        for (k, stage) in message.stages.iter().enumerate() {
            if let Err(error) = send(stage, &format!("stage {k}"), Follow { plan: Arc::clone(&self.plan) }) {
                let cause = error.to_string();
                let failure = StageFailure { stage: k, step: None, micro: None, phase: Phase::Transfer, cause };
                // Where this fails the coordinator is gone, and with it everyone who could be told.
                let _ = send(&message.coordinator, "the coordinator", Told(Report::Failed(failure)));
            }
        }
    }
}
