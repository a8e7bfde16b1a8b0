//! How many bytes a stage holds, and for what.

use super::{MicroBatchState, Payload, Stage, Trainable};
use crate::Activation;

impl MicroBatchState {
    /// Bytes of the saved activations, and of the gradients that wait for their backward pass.
    fn bytes(&self) -> usize {
        let kept = if self.saved.is_some() { self.saved_bytes } else { 0 };
        kept + self.output_gradients.values().map(Activation::bytes).sum::<usize>()
    }
}

impl Stage {
    /// Bytes of the micro-batches that the stage holds: of those that wait, what was sent; of those run forward, the saved activations, as far
    /// as layers tell ([`Saved::holding`](crate::Saved::holding)), and the gradients that wait.
    pub fn activation_bytes(&self) -> usize {
        let waiting = self.waiting.values().map(Payload::bytes).sum::<usize>();
        waiting + self.live.values().map(MicroBatchState::bytes).sum::<usize>()
    }

    /// Its parameters and its head's.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Trainable> {
        [Some(&self.parameters), self.head_parameters()].into_iter().flatten()
    }

    /// Bytes of the parameters and buffers of the stage and its head.
    pub fn parameter_bytes(&self) -> usize {
        self.parts().map(Trainable::parameter_bytes).sum()
    }

    /// Bytes of their gradients, as far as they are there by now.
    pub fn gradient_bytes(&self) -> usize {
        self.parts().map(Trainable::gradient_bytes).sum()
    }

    /// Bytes of the state of their optimizers, as far as these tell.
    pub fn optimizer_bytes(&self) -> usize {
        self.parts().map(Trainable::optimizer_bytes).sum()
    }
}
