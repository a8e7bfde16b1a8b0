//! What comes first when a stage could do several things.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Action;
use crate::{differentiable::Wants, plan::GradientPlan};

/// The policies that have names; `pipeline.schedule` in configuration files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// All forward passes of a step first, then the pull-backs (GPipe).
    FillDrain,
    /// A micro-batch's pull-back before the next one's forward pass, both gradients at once.
    OneFOneB,
    /// Gradients that another stage waits for first, parameter gradients while waiting.
    #[default]
    Interlock,
}

/// An order of preference among possible actions. It changes when things are computed, never what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy(PolicyName);

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        Self(name)
    }
}

impl Policy {
    /// Whether input and parameter gradient of a loss are computed in one go where both are wanted.
    pub fn fuses(self) -> bool {
        self.0 != PolicyName::Interlock
    }

    /// The least room, in micro-batches a boundary, that costs the schedule nothing: every stage of a pipeline of `stages` can
    /// hold what lies between its forward pass and its last pull-back, and one more may be on its way.
    pub fn in_flight(self, stages: usize, micro_batches: usize) -> usize {
        match self.0 {
            PolicyName::FillDrain => micro_batches + 1,
            PolicyName::OneFOneB | PolicyName::Interlock => stages.min(micro_batches) + 1,
        }
    }

    /// Smaller comes first; of equal ranks, the one that became possible first.
    pub(super) fn rank(self, action: &Action, plan: &GradientPlan, stage: usize) -> (u8, u64, usize, usize) {
        let awaited_head = plan.crosses(stage).contains(&stage);
        let class = match action {
            Action::Update(_) | Action::ShareNorm(_) => 0,
            Action::Forward(_) if self.0 == PolicyName::FillDrain => 0,
            Action::Forward(_) => 3,
            Action::PullBack { wants: Wants { input: true, .. }, .. } => 1,
            Action::Head { cotangent: true, .. } if awaited_head => 2,
            Action::PullBack { .. } if self.0 == PolicyName::Interlock => 5,
            Action::PullBack { .. } => 2,
            Action::Head { cotangent: true, .. } => 4,
            Action::Head { cotangent: false, .. } => 6,
        };
        let loss = match action {
            Action::PullBack { loss, .. } => *loss,
            _ => 0,
        };
        (class, action.step(), action.micro().unwrap_or(0), loss)
    }
}
