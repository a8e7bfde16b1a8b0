//! Heads and losses.

use super::{Outcome, Stage, lost};
use crate::{
    NonFinite, Result, Wants,
    differentiation::input_of,
    loss::LossOn,
    schedule::{MicroBatchId, Purpose},
};

impl Stage {
    pub(super) fn run_head(&mut self, micro_batch: MicroBatchId, output_gradient: bool) -> Result<Outcome> {
        let pass = self.pass(micro_batch);
        let stage = self.index;
        let live = self.live.get_mut(&micro_batch).ok_or_else(|| lost("a micro-batch", micro_batch))?;
        let output = live.output.take().ok_or_else(|| lost("the output", micro_batch))?;
        let loss = LossOn { loss: &*self.loss, device: &*self.device };
        let (logits, saved) = match &self.head {
            Some(head) => {
                let (logits, saved) = head.module.forward(&output, &pass)?;
                (logits, Some(saved))
            }
            None => (output, None),
        };
        let logits = logits.single()?;
        if micro_batch.purpose == Purpose::Evaluate {
            let (scored, count) = loss.score(logits, &live.targets)?;
            let score = match self.watch.score(stage, scored, count)? {
                None => self.read_evaluation(micro_batch)?,
                known => known,
            };
            return Ok(score.map_or(Outcome::None, Outcome::Score));
        }
        let (scored, count, gradient) = loss.differentiate(logits, &live.targets, live.total)?;
        let score = self.watch.score(stage, scored, count)?;
        let gradient = match (&mut self.head, saved) {
            (Some(head), Some(saved)) => {
                let wants = Wants { input: output_gradient, parameters: true };
                let mut pulled = head.module.last_backward(saved, gradient.into(), wants)?;
                head.parameters.accumulate(std::mem::take(&mut pulled.parameters), &mut self.watch)?;
                if output_gradient { Some(input_of(pulled)?) } else { None }
            }
            _ => output_gradient.then(|| gradient.into()),
        };
        if let Some(gradient) = gradient {
            if self.head.is_some() {
                self.watch
                    .tensors(&gradient, NonFinite::Gradient, || format!("the gradient that head {stage} gives"))?;
            }
            live.output_gradients.insert(stage, gradient);
        }
        Ok(score.map_or(Outcome::None, Outcome::Score))
    }
}
