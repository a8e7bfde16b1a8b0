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

#[cfg(test)]
mod tests {
    use candle_nn::linear;

    use crate::{
        Autograd, Error, FromModule, ModelSpec, OptimizerConfig, ParameterGroup, Result, Trainer, Unit,
        tools::trainer::LeastMemory,
    };

    /// Two layers of this width, and no bounds of their own.
    struct Wide(usize);

    fn layer(name: String, width: usize) -> Unit {
        Unit::new(name, [width], move |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(width, width, vb)?))))
    }

    impl ModelSpec for Wide {
        fn units(&self) -> Result<Vec<Unit>> {
            Ok((0..2).map(|at| layer(format!("layers.{at}"), self.0)).collect())
        }

        fn head(&self, _: usize, _: &str) -> Result<Unit> {
            Ok(layer(String::new(), self.0))
        }
    }

    fn least(width: usize, frozen: bool) -> LeastMemory {
        let patterns = vec!["layers.0.*".to_owned()];
        let group = ParameterGroup { patterns, lr_scale: Some(2.0).filter(|_| !frozen), weight_decay: None, frozen };
        let optimizer = OptimizerConfig { groups: vec![group], ..OptimizerConfig::default() };
        Trainer::builder(Wide(width))
            .strategy(crate::Local)
            .stages(2)
            .optimizer(optimizer)
            .layout()
            .unwrap()
            .least_memory()
    }

    #[test]
    fn the_bound_counts_stages_and_heads_and_allocates_nothing() {
        let layer = |width: u64| 4 * (width * width + width);
        // Two layers and the head of the first.
        assert_eq!(least(10, false), LeastMemory { values: 3 * layer(10), trained: 3 * layer(10), output: 40 });
        assert_eq!(least(10, true).trained, 2 * layer(10));
        let width = 1 << 24;
        assert_eq!(least(width, false).values, 3 * layer(width as u64));
        assert_eq!(least(1 << 40, false).values, u64::MAX);
    }

    #[test]
    fn numbers_beyond_any_machine_are_refused() {
        let refused = |set: fn(crate::TrainerBuilder) -> crate::TrainerBuilder| {
            let builder = set(Trainer::builder(Wide(4)).stages(2).batch_size(1 << 20));
            builder.layout().map(drop).unwrap_err().to_string()
        };
        insta::assert_snapshot!(refused(|b| b.in_flight(1_000_000)), @"in_flight: 1000000; use 1 to 65536");
        insta::assert_snapshot!(refused(|b| b.micro_batches(5000)), @"micro_batches: 5000; use 1 to 4096");
        insta::assert_snapshot!(refused(|b| b.record(u64::MAX)), @"record: 18446744073709551615; use 1 to 100000");
        insta::assert_snapshot!(refused(|b| b.stages(usize::MAX)), @"partition.stages: 18446744073709551615 stages; use 1 to 2 stages");
        let built = Trainer::builder(Wide(1 << 40)).stages(1).build().map(drop).unwrap_err();
        assert!(
            matches!(built, Error::Failed(_)) && built.to_string().contains("than any machine can address"),
            "{built}"
        );
    }
}
