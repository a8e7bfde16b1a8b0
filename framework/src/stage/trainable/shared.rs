//! The gradients and running statistics that replicas of a stage share.

use candle_core::{DType, Device, Tensor};

use super::{Sum, Trainable};
use crate::{NonFinite, Result, model::parameters::Entry, stage::monitor::Monitor};

impl Trainable {
    /// Returns what the replicas of a stage add up: for each trained parameter whether it has a gradient, as 0 or 1, and its gradient or zeros; the same for
    /// those that are only measured, if any are; and the running statistics if they are wanted.
    pub(in crate::stage) fn shared(&self, statistics: bool) -> Result<Vec<Tensor>> {
        let mut shared = Vec::new();
        for sums in [&self.gradients, &self.measured] {
            for (at, sum) in sums.iter().enumerate().filter(|&(at, _)| self.is_trained(at)) {
                let var = &self.entries[at].var;
                shared.push(Tensor::full(f32::from(u8::from(sum.is_some())), 1, var.device())?);
                shared.push(match sum {
                    Some(sum) => sum.value.clone(),
                    None => var.as_detached_tensor().zeros_like()?,
                });
            }
        }
        shared.extend(self.averaged().filter(|_| statistics).map(|entry| entry.var.as_detached_tensor()));
        Ok(shared)
    }

    /// The running statistics that replicas average.
    fn averaged(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_statistic() && entry.var.dtype().is_float())
    }

    /// Replaces what [`Self::shared`] returned by the sums over all replicas, which `next` returns one after another, in the shape of each and divided by the
    /// number that it is given; running statistics by their means, if the number of replicas is given. `monitor` checks the sums.
    ///
    /// # Errors
    /// If a gradient is not finite.
    pub(in crate::stage) fn replace_shared(
        &mut self,
        mut next: impl FnMut(&Tensor, f64) -> Result<Tensor>,
        replicas: Option<usize>,
        monitor: &mut Monitor,
    ) -> Result<()> {
        let mut all = [std::mem::take(&mut self.gradients), std::mem::take(&mut self.measured)];
        for sums in &mut all {
            for (at, sum) in sums.iter_mut().enumerate().filter(|&(at, _)| self.is_trained(at)) {
                let entry = &self.entries[at];
                let has = next(&Tensor::zeros(1, DType::F32, &Device::Cpu)?, 1.0)?.to_vec1::<f32>()?;
                let value = next(entry.var.as_tensor(), 1.0)?;
                // Some replica has a gradient of it.
                *sum = match has[0] > 0.0 {
                    true => Some(Sum { squares: monitor.squared_norm(&value)?, value, owned: false }),
                    false => None,
                };
                if let Some(sum) = sum {
                    monitor.check_numbers(sum.squares.clone(), NonFinite::Gradient, || entry.gradient_not_finite())?;
                }
            }
        }
        [self.gradients, self.measured] = all;
        if let Some(replicas) = replicas {
            for entry in self.averaged() {
                entry.var.set(&next(entry.var.as_tensor(), replicas as f64)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ParameterStore,
        optimizer::{ClipFactor, OptimizerConfig},
        tensor::{Numbers, cosine::Products},
    };

    fn values(numbers: &Numbers) -> Vec<f64> {
        match numbers {
            Numbers::Host(values) => values.clone(),
            Numbers::Device(tensor) => tensor.to_vec1().unwrap(),
        }
    }

    fn host() -> Monitor {
        Monitor::new(false)
    }

    fn gradient(values: [f32; 2]) -> Tensor {
        Tensor::new(&values, &Device::Cpu).unwrap()
    }

    #[test]
    fn what_replicas_share_replaces_gradients_and_statistics() {
        let config = OptimizerConfig { lr: 1.0, momentum: 0.0, ..OptimizerConfig::default() };
        let store = ParameterStore::new(1, Default::default());
        let builder = store.builder(&Device::Cpu);
        let weight = builder.get_with_hints(2, "w", candle_nn::Init::Const(0.0)).unwrap();
        let mean = builder.get_with_hints(2, "running_mean", candle_nn::Init::Const(3.0)).unwrap();
        let optimizer = crate::optimizer::built_in(&config).unwrap();
        let mut trainable = Trainable::new(store, &config, optimizer).unwrap();
        trainable.accumulate(vec![(weight.id(), gradient([1.0, 2.0]))], &mut host()).unwrap();
        trainable.measure(vec![(weight.id(), gradient([5.0, 6.0]))], &mut host()).unwrap();
        let shared = |trainable: &Trainable, statistics| -> Vec<Vec<f32>> {
            trainable.shared(statistics).unwrap().iter().map(|tensor| tensor.to_vec1().unwrap()).collect()
        };
        assert_eq!(shared(&trainable, false), [vec![1.0], vec![1.0, 2.0], vec![1.0], vec![5.0, 6.0]]);
        assert_eq!(shared(&trainable, true)[4], [3.0, 3.0]);
        // The sums of two replicas.
        let given = |sums: &[&[f32]]| {
            let mut sums: Vec<Tensor> = sums.iter().rev().map(|sum| Tensor::new(*sum, &Device::Cpu).unwrap()).collect();
            move |_: &Tensor, divisor: f64| Ok((sums.pop().unwrap() / divisor)?)
        };
        let sums: [&[f32]; 5] = [&[2.0], &[4.0, 3.0], &[2.0], &[0.0, 10.0], &[8.0, 7.0]];
        trainable.replace_shared(given(&sums), Some(2), &mut host()).unwrap();
        assert_eq!(values(&trainable.squared_norms().unwrap()), [25.0]);
        assert_eq!(Products::from_slice(&values(&trainable.products(&host()).unwrap())).cosine(), Some(0.6));
        trainable.update(1.0, &ClipFactor::NONE, &mut host()).unwrap();
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [-4.0, -3.0]);
        assert_eq!(mean.to_vec1::<f32>().unwrap(), [4.0, 3.5]);
        // A parameter that got a gradient in the other replica only.
        assert_eq!(shared(&trainable, false), [vec![0.0], vec![0.0, 0.0]]);
        trainable.replace_shared(given(&[&[1.0], &[6.0, 8.0]]), None, &mut host()).unwrap();
        assert_eq!(values(&trainable.squared_norms().unwrap()), [100.0]);
        trainable.update(0.0, &ClipFactor::NONE, &mut host()).unwrap();
        // And in none.
        trainable.replace_shared(given(&[&[0.0], &[0.0, 0.0]]), None, &mut host()).unwrap();
        assert!(trainable.update(0.0, &ClipFactor::NONE, &mut host()).is_err());
        let bad = given(&[&[1.0], &[f32::INFINITY, 0.0]]);
        let bad = trainable.replace_shared(bad, None, &mut host()).unwrap_err();
        assert!(bad.to_string().starts_with("the gradient of w holds an infinity or a NaN"), "{bad}");
    }
}
