//! Heads and losses.

use std::sync::Arc;

use super::{Outcome, Stage, lost, monitor::Task};
use crate::{
    Activation, Failure, NonFinite, Result, Wants,
    loss::Targets,
    schedule::{Action, MicroBatchId, Purpose},
};

impl Stage {
    /// Returns the head's output for a micro-batch of an evaluation whose forward pass is done, without a loss. For the last stage it is the stage's
    /// own output.
    pub(crate) fn head_output(&mut self, micro_batch: MicroBatchId) -> Result<Activation, Failure> {
        let device = Arc::clone(&self.device);
        let task = Task::of(Action::Head { micro_batch, output_gradient: false });
        let run = || {
            let pass = self.pass(micro_batch);
            let live = self.live.get_mut(&micro_batch).ok_or_else(|| lost("a micro-batch", micro_batch))?;
            let output = live.output.take().ok_or_else(|| lost("the output", micro_batch))?;
            match &self.head {
                Some(head) => Ok(head.module.forward(&output, &pass)?.0.detach()),
                None => Ok(output),
            }
        };
        let output = crate::device::run_on(&*device, run);
        output.map_err(|error| task.failure(self.index, device.hooks().explain(error)))
    }

    pub(super) fn run_head(&mut self, micro_batch: MicroBatchId, output_gradient: bool) -> Result<Outcome> {
        let pass = self.pass(micro_batch);
        let stage = self.index;
        let live = self.live.get_mut(&micro_batch).ok_or_else(|| lost("a micro-batch", micro_batch))?;
        let output = live.output.take().ok_or_else(|| lost("the output", micro_batch))?;
        let targets = Targets::on(&*self.device, &live.targets)?;
        let (logits, saved) = match &self.head {
            Some(head) => {
                let (logits, saved) = head.module.forward(&output, &pass)?;
                (logits, Some(saved))
            }
            None => (output, None),
        };
        let logits = logits.single()?;
        if micro_batch.purpose == Purpose::Evaluate {
            self.monitor.score(stage, self.loss.score(logits, &targets)?)?;
            return Ok(self.read_evaluation(micro_batch)?.map_or(Outcome::None, Outcome::Score));
        }
        let (scored, gradient) = self.loss.differentiate(logits, &targets, live.total)?;
        self.monitor.score(stage, scored)?;
        let gradient = match (&mut self.head, saved) {
            (Some(head), Some(saved)) => {
                let wants = Wants { input: output_gradient, parameters: true };
                let mut gradients = head.module.last_backward(saved, gradient.into(), wants)?;
                head.parameters.accumulate(std::mem::take(&mut gradients.parameters), &mut self.monitor)?;
                if output_gradient { Some(gradients.into_input()?) } else { None }
            }
            _ => output_gradient.then(|| gradient.into()),
        };
        if let Some(gradient) = gradient {
            if self.head.is_some() {
                self.monitor.check_activation(&gradient, NonFinite::Gradient, || {
                    format!("the gradient that head {stage} gives")
                })?;
            }
            live.output_gradients.insert(stage, gradient);
        }
        Ok(Outcome::None)
    }
}
