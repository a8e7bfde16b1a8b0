//! The order of preference among a stage's possible actions.

use serde::{Deserialize, Serialize};

use super::Action;
use crate::plan::{GradientPlan, Wants};

/// The name of a policy; `pipeline.schedule` in configuration files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// All forward passes of a step first, then the backward passes (GPipe).
    FillDrain,
    /// A micro-batch's backward pass before the next one's forward pass, with both gradients in one pass.
    OneFOneB,
    /// First the gradients that another stage waits for. Parameter gradients while waiting, or when the stage holds as many micro-batches as it may.
    #[default]
    Interlock,
}

/// An order of preference among possible actions. It changes when results are computed, never the results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy(PolicyName);

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        Self(name)
    }
}

/// The classes of actions that policies rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// The update, or the norm before it.
    Update,
    /// The gradients for the other replicas.
    Share,
    /// A forward pass.
    Forward,
    /// A backward pass that gives the input gradient.
    InputGradient,
    /// A head whose gradient the previous stage waits for.
    AwaitedHead,
    /// A backward pass that gives parameter gradients only.
    ParameterGradient,
    /// The same in a stage that holds as many micro-batches as it may, so that the previous stage cannot send.
    FreeingGradient,
    /// A needed head whose gradient no other stage waits for.
    OwnHead,
    /// A probe head.
    Probe,
}

use Class::{AwaitedHead, Forward, FreeingGradient, InputGradient, OwnHead, ParameterGradient, Probe, Share, Update};

/// The ranks of a policy, highest first. Actions of one rank are ordered by step, micro-batch and loss.
type Ranks = &'static [&'static [Class]];

const FILL_DRAIN: Ranks = &[
    &[Update, Forward],
    &[InputGradient],
    &[Share],
    &[AwaitedHead, ParameterGradient, FreeingGradient],
    &[OwnHead],
    &[Probe],
];

const ONE_F_ONE_B: Ranks = &[
    &[Update],
    &[InputGradient],
    &[Share],
    &[AwaitedHead, ParameterGradient, FreeingGradient],
    &[Forward],
    &[OwnHead],
    &[Probe],
];

const INTERLOCK: Ranks = &[
    &[Update],
    &[InputGradient],
    &[AwaitedHead],
    &[Share],
    &[Forward, FreeingGradient],
    &[OwnHead],
    &[ParameterGradient],
    &[Probe],
];

impl Policy {
    /// Whether one backward pass computes the input gradient and the parameter gradient of a loss if both are wanted.
    pub fn fuses(self) -> bool {
        self.0 != PolicyName::Interlock
    }

    fn ranks(self) -> Ranks {
        match self.0 {
            PolicyName::FillDrain => FILL_DRAIN,
            PolicyName::OneFOneB => ONE_F_ONE_B,
            PolicyName::Interlock => INTERLOCK,
        }
    }

    /// Returns the rank of an action. The action with the smallest rank comes first. `full` says that the stage holds as many micro-batches as it
    /// may.
    pub(super) fn rank(
        self,
        action: &Action,
        plan: &GradientPlan,
        stage: usize,
        full: bool,
    ) -> (usize, u64, usize, usize) {
        let class = match action {
            Action::Update(_) | Action::ShareNorm(_) => Update,
            Action::ShareGradients(_) => Share,
            Action::Forward(_) => Forward,
            Action::Backward { wants: Wants { input: true, .. }, .. } => InputGradient,
            Action::Backward { .. } | Action::BackwardSum { .. } if full => FreeingGradient,
            Action::Backward { .. } | Action::BackwardSum { .. } => ParameterGradient,
            Action::Head { output_gradient: true, .. } if plan.losses_sent_back(stage).contains(&stage) => AwaitedHead,
            Action::Head { output_gradient: true, .. } => OwnHead,
            Action::Head { output_gradient: false, .. } => Probe,
        };
        let ranks = self.ranks();
        let rank = ranks.iter().position(|classes| classes.contains(&class)).unwrap_or(ranks.len());
        (rank, action.step(), action.micro_batch_index().unwrap_or(0), action.loss().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_ranks_every_class_once() {
        let all =
            [Update, Share, Forward, InputGradient, AwaitedHead, ParameterGradient, FreeingGradient, OwnHead, Probe];
        for name in [PolicyName::FillDrain, PolicyName::OneFOneB, PolicyName::Interlock] {
            let ranks = Policy::from(name).ranks();
            assert!(all.iter().all(|class| ranks.iter().filter(|rank| rank.contains(class)).count() == 1), "{name:?}");
        }
    }
}
