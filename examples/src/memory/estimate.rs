//! Runs that cannot fit in memory, refused before anything of them is made.

use interlock::{OptimizerConfig, OptimizerKind, Result, tools::trainer::LeastMemory};
use interlock_models::data::DataKind;

use super::{check, in_words};

/// What decides how much memory a step takes at least.
#[derive(Clone, Debug)]
pub(crate) struct LeastStep {
    /// The memory of stages on the host.
    pub(crate) stages: LeastMemory,
    /// The bytes of an example's inputs.
    pub(crate) example: u64,
    /// The examples of a batch, and of a micro-batch.
    pub(crate) examples: [usize; 2],
    /// Whether devices are emulated, which compute nothing.
    pub(crate) is_emulated: bool,
    /// Whether a moving average of the weights begins at once.
    pub(crate) has_average: bool,
}

/// Returns the bytes of the inputs of one example.
pub(crate) fn example(kind: &DataKind) -> u64 {
    let values = match kind {
        DataKind::Images { channels, height, width, .. } => channels.saturating_mul(*height).saturating_mul(*width),
        DataKind::Text { context, .. } => *context,
        DataKind::Vectors { width, .. } => *width,
    };
    (values as u64).saturating_mul(size_of::<f32>() as u64)
}

impl LeastStep {
    /// Refuses a step that cannot fit in memory. What a step takes besides, such as most saved activations, is not counted, so that nothing is refused
    /// that fits.
    ///
    /// # Errors
    /// If it cannot fit.
    pub(crate) fn check(&self, optimizer: &OptimizerConfig) -> Result<()> {
        let LeastMemory { values, trained, output } = self.stages;
        // Of each trained parameter: its gradient, the optimizer's state, and the average.
        let has_momentum = optimizer.momentum != 0.0 && optimizer.stages.iter().all(|own| own.momentum != Some(0.0));
        let states = match optimizer.kind {
            OptimizerKind::Adamw => 2,
            OptimizerKind::Sgd => u64::from(has_momentum),
        };
        let copies = if self.is_emulated { 0 } else { 1 + states + u64::from(self.has_average) };
        let [batch, micro_batch] = self.examples.map(|examples| examples as u64);
        let output = if self.is_emulated { 0 } else { output.saturating_mul(micro_batch) };
        let parts = [
            ("parameters", values),
            ("gradients and states of the optimizer", trained.saturating_mul(copies)),
            ("the inputs of a batch", self.example.saturating_mul(batch)),
            ("the largest output of a layer", output),
        ];
        let least = parts.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let parts = parts.map(|(name, bytes)| format!("{name} {}", in_words(bytes))).join(", ");
        let remedy = "make the model (its width, layers, vocabulary, context), data.size or batch_size smaller";
        check("memory", &format!("training takes ({parts})"), least, remedy)
    }
}
