//! What the actions of a stage cost.

use crate::{
    GradientPlan,
    plan::Wants,
    schedule::{Action, Purpose},
};

/// The seconds of each action of one stage: for one micro-batch, except `norm` and `update`, which are for a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageCosts {
    /// The forward pass.
    pub forward: f64,
    /// The head or the last stage's loss, with the output gradient for the stages that follow it.
    pub head: f64,
    /// A head that no stage follows.
    pub probe: f64,
    /// The input gradient.
    pub input: f64,
    /// The parameter gradients of a loss whose input gradient has been computed.
    pub parameters: f64,
    /// The input gradient and the parameter gradients in one pass.
    pub both: f64,
    /// The parameter gradients of a sum of losses that has been added up, or of a loss whose input gradient is not wanted, including the gradients
    /// passed from unit to unit.
    pub parameters_only: f64,
    /// Adding one output gradient to the weighted sum of the losses that the stage follows.
    pub add: f64,
    /// The squared norms of the gradients, if updates wait for the norm of all stages.
    pub norm: f64,
    /// The update, including the sum over replicas.
    pub update: f64,
    /// Bytes of a micro-batch's activation that goes to the next stage.
    pub activation_bytes: u64,
    /// Bytes of a gradient that goes to the previous stage.
    pub gradient_bytes: u64,
}

impl StageCosts {
    /// Returns costs with a forward pass of `forward` seconds, a head of `head`, an input gradient of `input` and parameter gradients of
    /// `parameters`. Everything else takes no time.
    pub fn of(forward: f64, head: f64, input: f64, parameters: f64) -> Self {
        let both = input + parameters;
        Self { forward, head, probe: head, input, parameters, both, parameters_only: both, ..Self::default() }
    }

    /// Returns the seconds in which stage `stage` adds up the output gradients of the losses that it follows and computes the sum's parameter gradients.
    pub(crate) fn sum_of_losses(&self, plan: &GradientPlan, stage: usize) -> f64 {
        plan.added_up(stage).len() as f64 * self.add + self.parameters_only
    }

    /// Returns the seconds that `action` takes in stage `stage`.
    pub fn seconds(&self, action: &Action, plan: &GradientPlan, stage: usize) -> f64 {
        match action {
            Action::Forward(_) => self.forward,
            Action::Head { output_gradient: true, .. } => self.head,
            Action::Head { micro_batch, .. } if micro_batch.purpose == Purpose::Train => self.probe,
            Action::Head { .. } => 0.0,
            Action::Backward { wants: Wants::BOTH, .. } => self.both,
            Action::Backward { wants: Wants::INPUT, .. } => self.input,
            Action::Backward { loss, .. } if plan.gradients(stage, *loss).input => self.parameters,
            Action::Backward { .. } => self.parameters_only,
            Action::BackwardSum { .. } => self.sum_of_losses(plan, stage),
            // The update has the costs of replicas.
            Action::ShareGradients(_) => 0.0,
            Action::ShareNorm(_) => self.norm,
            Action::Update(_) => self.update,
        }
    }
}
