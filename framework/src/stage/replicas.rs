//! The gradients of a stage that its replicas add up, and the running statistics that they average.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Outcome, Stage, monitor::Task};
use crate::{Failure, Result, schedule::Action};

/// The running statistics of batch norms with several replicas, each of which sees other examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReplicaStatistics {
    /// Each replica keeps its own. Evaluations use those of the first, which are saved.
    #[default]
    First,
    /// All replicas have the mean after every step.
    Mean,
}

impl Stage {
    /// Returns the gradients of the step, one after another, and the running statistics if they are averaged.
    pub(super) fn share_gradients(&mut self) -> Result<Outcome> {
        // What is not finite fails here, and not in another replica.
        if self.read_so_far()?.is_none() {
            return Ok(Outcome::None);
        }
        let statistics = self.statistics == ReplicaStatistics::Mean;
        let mut values = Vec::new();
        for part in self.parts() {
            values.extend(part.shared(statistics)?);
        }
        let dtype = if values.iter().any(|value| value.dtype() == DType::F64) { DType::F64 } else { DType::F32 };
        let flat = |value: &Tensor| value.detach().flatten_all()?.to_dtype(dtype);
        let flat = values.iter().map(flat).collect::<candle_core::Result<Vec<_>>>()?;
        let all = match flat.is_empty() {
            true => Tensor::zeros(0, dtype, &Device::Cpu)?,
            false => Tensor::cat(&flat, 0)?.to_device(&Device::Cpu)?,
        };
        Ok(Outcome::Gradients(all))
    }

    /// Takes the sum over `replicas` replicas of what [`Outcome::Gradients`] held.
    ///
    /// # Errors
    /// If a gradient is not finite.
    pub fn accept_gradients(&mut self, step: u64, sum: &Tensor, replicas: usize) -> Result<(), Failure> {
        let device = Arc::clone(&self.device);
        let task = Task::of(Action::ShareGradients(step));
        self.monitor.begin(task);
        let taken = crate::device::run_on(&*device, || self.take_sums(sum, replicas));
        taken.map_err(|error| task.failure(self.index, device.hooks().explain(error)))
    }

    fn take_sums(&mut self, sum: &Tensor, replicas: usize) -> Result<()> {
        let mut at = 0;
        let mut next = |like: &Tensor, divisor: f64| -> Result<Tensor> {
            let values = sum.narrow(0, at, like.elem_count())?;
            at += like.elem_count();
            let values = if divisor == 1.0 { values } else { (values / divisor)? };
            Ok(values.reshape(like.shape())?.to_device(like.device())?.to_dtype(like.dtype())?)
        };
        let replicas = (self.statistics == ReplicaStatistics::Mean).then_some(replicas);
        self.parameters.replace_shared(&mut next, replicas, &mut self.monitor)?;
        match &mut self.head {
            Some(head) => head.parameters.replace_shared(&mut next, replicas, &mut self.monitor),
            None => Ok(()),
        }
    }
}
