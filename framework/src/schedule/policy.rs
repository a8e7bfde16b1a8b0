//! What comes first when a stage could do several things.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Action;
use crate::{plan::GradientPlan, plan::Wants};

/// The policies that have names; `pipeline.schedule` in configuration files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// All forward passes of a step first, then the pull-backs (GPipe).
    FillDrain,
    /// A micro-batch's pull-back before the next one's forward pass, both gradients at once.
    OneFOneB,
    /// Gradients that another stage waits for first, parameter gradients while waiting, or when there is no room left.
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

    /// Smaller comes first; of equal ranks, the one that became possible first. `full` tells that the stage holds as many micro-batches as it
    /// has room for, so that the stage before cannot send: then what frees one comes before what takes another.
    pub(super) fn rank(
        self,
        action: &Action,
        plan: &GradientPlan,
        stage: usize,
        full: bool,
    ) -> (u8, u64, usize, usize) {
        let awaited_head = plan.crosses(stage).contains(&stage);
        let class = match action {
            Action::Update(_) | Action::ShareNorm(_) => 0,
            Action::Forward(_) if self.0 == PolicyName::FillDrain => 0,
            Action::Forward(_) => 3,
            Action::Backward { wants: Wants { input: true, .. }, .. } => 1,
            Action::Head { output_gradient: true, .. } if awaited_head => 2,
            Action::Backward { .. } if self.0 == PolicyName::Interlock => {
                if full {
                    3
                } else {
                    5
                }
            }
            Action::Backward { .. } => 2,
            Action::Head { output_gradient: true, .. } => 4,
            Action::Head { output_gradient: false, .. } => 6,
        };
        let loss = match action {
            Action::Backward { loss, .. } => *loss,
            _ => 0,
        };
        (class, action.step(), action.micro().unwrap_or(0), loss)
    }
}
