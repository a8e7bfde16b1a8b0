//! The bytes that a stage holds, by purpose.

use super::{MicroBatchState, Payload, Stage, Trainable};
use crate::Activation;

impl MicroBatchState {
    /// Returns the bytes of the saved activations, and of the gradients that wait for their backward pass.
    fn bytes(&self) -> usize {
        let kept = if self.saved.is_some() { self.saved_bytes } else { 0 };
        kept + self.output_gradients.values().map(Activation::bytes).sum::<usize>()
    }
}

impl Stage {
    /// Returns the bytes of the micro-batches that the stage holds. Before the forward pass these are the received tensors; after it the saved
    /// activations, as far as layers report them ([`Saved::with_memory`](crate::Saved::with_memory)), and the gradients that wait.
    pub fn activation_bytes(&self) -> usize {
        let waiting = self.waiting.values().map(Payload::bytes).sum::<usize>();
        waiting + self.live.values().map(MicroBatchState::bytes).sum::<usize>()
    }

    /// Returns the parameters of the stage and of its head.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Trainable> {
        [Some(&self.parameters), self.head_parameters()].into_iter().flatten()
    }

    /// Returns the bytes of the parameters and buffers of the stage and its head.
    pub fn parameter_bytes(&self) -> usize {
        self.parts().map(Trainable::parameter_bytes).sum()
    }

    /// Returns the bytes of their gradients that exist at present.
    pub fn gradient_bytes(&self) -> usize {
        self.parts().map(Trainable::gradient_bytes).sum()
    }

    /// Returns the bytes of the state of their optimizers, as far as these report it.
    pub fn optimizer_bytes(&self) -> usize {
        self.parts().map(Trainable::optimizer_bytes).sum()
    }
}
