//! A lower bound of the memory of a run, from shapes alone.

use std::sync::Arc;

use super::Layout;
use crate::{
    Weights,
    differentiation::{TensorKind, tensor_kind},
    stage::{StageBlueprint, initial::head_builder, shapes},
};

/// The bytes of an element.
const ELEMENT: u64 = size_of::<f32>() as u64;

/// A lower bound of the memory that training takes on the host, in bytes. Stages on devices with memory of their own do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeastMemory {
    /// All parameters and buffers, of heads too.
    pub values: u64,
    /// The parameters that are trained.
    pub trained: u64,
    /// The largest output of a unit, for one example.
    pub output: u64,
}

impl Layout {
    /// Returns a lower bound of the memory that training takes on the host. Nothing of this size is allocated to find it. Units that cannot be built
    /// do not count.
    pub fn least_memory(&self) -> LeastMemory {
        let constants = self.settings.optimizer.constants();
        let is_trained = |name: &str| {
            let frozen = constants.settings(name).is_ok_and(|settings| settings.frozen);
            tensor_kind(name) == TensorKind::Parameter && !frozen
        };
        let mut least = LeastMemory::default();
        for stage in self.blueprints.iter().filter(|stage| stage.device.device().is_cpu()) {
            for (name, shape) in requests(stage) {
                let bytes = bytes(&shape);
                least.values = least.values.saturating_add(bytes);
                least.trained = least.trained.saturating_add(if is_trained(&name) { bytes } else { 0 });
            }
            let outputs = stage.units().iter().chain(stage.head()).map(|unit| bytes(&unit.output));
            least.output = outputs.fold(least.output, u64::max);
        }
        least
    }
}

/// Returns the names and shapes of a stage's tensors.
fn requests(stage: &StageBlueprint) -> impl Iterator<Item = (String, Vec<usize>)> {
    let nothing = Arc::new(Weights::default());
    let main = shapes::asked(&nothing, |root| stage.units().iter().all(|unit| shapes::builds(unit, root))).0;
    let head = stage
        .head()
        .map(|head| shapes::asked(&nothing, |root| shapes::builds(head, &head_builder(root, stage.index))).0);
    main.into_iter().chain(head.into_iter().flatten())
}

fn bytes(shape: &[usize]) -> u64 {
    shape.iter().fold(ELEMENT, |bytes, &extent| bytes.saturating_mul(extent as u64))
}
