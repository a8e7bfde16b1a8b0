//! What the actions of a stage cost.

use crate::{
    GradientPlan,
    plan::Wants,
    schedule::{Action, Purpose},
};

/// Seconds that one stage takes for each of its actions; everything but the last two for one micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageCosts {
    /// The forward pass.
    pub forward: f64,
    /// The head or the last stage's loss, with the gradient that its followers start from.
    pub head: f64,
    /// A head that no stage follows.
    pub probe: f64,
    /// The input's gradient.
    pub input: f64,
    /// The parameters' gradients where the same loss's input gradient has been computed.
    pub parameters: f64,
    /// Both at once.
    pub both: f64,
    /// The parameters' gradients of a loss whose input gradient nobody wants: the chain through the stage included.
    pub parameters_only: f64,
    /// Squaring the gradients, where updates wait for the norm of all stages.
    pub norm: f64,
    /// The update; with replicas, with the sum over them.
    pub update: f64,
    /// Bytes of a micro-batch's activation that goes to the next stage.
    pub activation_bytes: u64,
    /// Bytes of a gradient that goes to the previous stage.
    pub gradient_bytes: u64,
}

impl StageCosts {
    /// A forward pass of `forward` seconds, a head of `head`, and backward passes whose chain takes `input` and whose parameter gradients take
    /// `parameters` beside it; everything else takes nothing.
    pub fn of(forward: f64, head: f64, input: f64, parameters: f64) -> Self {
        let both = input + parameters;
        Self { forward, head, probe: head, input, parameters, both, parameters_only: both, ..Self::default() }
    }

    /// Seconds that `action` takes in stage `stage`.
    pub fn seconds(&self, action: &Action, plan: &GradientPlan, stage: usize) -> f64 {
        match action {
            Action::Forward(_) => self.forward,
            Action::Head { output_gradient: true, .. } => self.head,
            Action::Head { micro_batch, .. } if micro_batch.purpose == Purpose::Train => self.probe,
            Action::Head { .. } => 0.0,
            Action::Backward { wants: Wants::BOTH, .. } => self.both,
            Action::Backward { wants: Wants::INPUT, .. } => self.input,
            Action::Backward { loss, .. } if plan.backward(stage, *loss).input => self.parameters,
            Action::Backward { .. } => self.parameters_only,
            Action::ShareNorm(_) => self.norm,
            Action::Update(_) => self.update,
        }
    }
}
