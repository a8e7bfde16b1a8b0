//! A backward pass on a few examples, in which functions check gradients that they could not check when they were built.

use std::sync::Arc;

use super::Stage;
use crate::{
    Activation, Differentiable, Failure, Origin, Phase, Result, Saved, Wants,
    schedule::{MicroBatchId, Purpose},
};

impl Stage {
    /// Returns whether its main part or head has unchecked gradients.
    pub(crate) fn has_unchecked_gradients(&self) -> bool {
        let head = self.head.as_ref().map(|head| &head.module);
        [Some(&self.module), head].into_iter().flatten().any(Differentiable::has_unchecked_gradients)
    }

    /// Runs the main part and the head forward and backward, and returns the output; none if a forward pass fails, which the first step reports.
    /// The gradients of the input and of the head's input are computed if they are wanted.
    ///
    /// # Errors
    /// If a backward pass fails.
    pub(crate) fn check_gradients(
        &mut self,
        inputs: &Activation,
        input: bool,
        head_input: bool,
    ) -> Result<Option<Activation>, Failure> {
        let device = Arc::clone(&self.device);
        let checked = crate::device::run_on(&*device, || self.run_both(inputs, input, head_input));
        checked.map_err(|cause| Failure::new(Origin::Stage(self.index), Phase::Build, device.hooks().explain(cause)))
    }

    fn run_both(&mut self, inputs: &Activation, input: bool, head_input: bool) -> Result<Option<Activation>> {
        let here = inputs.try_map(|tensor| self.device.bring(tensor))?;
        let pass = self.pass(MicroBatchId { step: 0, purpose: Purpose::Train, index: 0, count: 1 });
        let Ok((output, saved)) = self.module.forward(&pass.precision.enter(&here)?, &pass) else { return Ok(None) };
        let output = output.detach();
        run_backward(&self.module, saved, &output, Wants { input, parameters: true })?;
        if let Some(head) = &self.head {
            let Ok((logits, saved)) = head.module.forward(&output, &pass) else { return Ok(None) };
            run_backward(&head.module, saved, &logits, Wants { input: head_input, parameters: true })?;
        }
        self.release(&output).map(Some)
    }
}

/// Runs a backward pass for an output gradient of ones.
fn run_backward(function: &impl Differentiable, saved: Saved, output: &Activation, wants: Wants) -> Result<()> {
    let floats = output.tensors().iter().filter(|tensor| tensor.dtype().is_float());
    let ones = floats.map(|tensor| Ok(tensor.ones_like()?.detach())).collect::<Result<_>>()?;
    function.last_backward(saved, Activation::new(ones), wants).map(drop)
}
