//! Heads and losses.

use super::{Outcome, Stage, lost};
use crate::{
    NonFinite, Result, Wants,
    differentiable::input_of,
    loss::LossOn,
    schedule::{Purpose, Ticket},
};

impl Stage {
    pub(super) fn run_head(&mut self, ticket: Ticket, cotangent: bool) -> Result<Outcome> {
        let pass = self.pass(ticket);
        let stage = self.index;
        let live = self.live.get_mut(&ticket).ok_or_else(|| lost("a micro-batch", ticket))?;
        let output = live.output.take().ok_or_else(|| lost("the output", ticket))?;
        let loss = LossOn { loss: &*self.loss, device: &*self.device };
        let (logits, saved) = match &self.head {
            Some(head) => {
                let (logits, saved) = head.module.forward(&output, &pass)?;
                (logits, Some(saved))
            }
            None => (output, None),
        };
        let logits = logits.single()?;
        if ticket.purpose == Purpose::Evaluate {
            let (scored, count) = loss.score(logits, &live.targets)?;
            let score = match self.watch.score(stage, scored, count)? {
                None => self.read_evaluation(ticket)?,
                known => known,
            };
            return Ok(score.map_or(Outcome::None, Outcome::Score));
        }
        let (scored, count, gradient) = loss.differentiate(logits, &live.targets, live.total)?;
        let score = self.watch.score(stage, scored, count)?;
        let gradient = match (&mut self.head, saved) {
            (Some(head), Some(saved)) => {
                let wants = Wants { input: cotangent, parameters: true };
                let mut pulled = head.module.last_pull_back(saved, gradient.into(), wants)?;
                head.parameters.accumulate(std::mem::take(&mut pulled.parameters), &mut self.watch)?;
                if cotangent { Some(input_of(pulled)?) } else { None }
            }
            _ => cotangent.then(|| gradient.into()),
        };
        if let Some(gradient) = gradient {
            if self.head.is_some() {
                self.watch
                    .tensors(&gradient, NonFinite::Gradient, || format!("the gradient that head {stage} gives"))?;
            }
            live.cotangents.insert(stage, gradient);
        }
        Ok(score.map_or(Outcome::None, Outcome::Score))
    }
}
