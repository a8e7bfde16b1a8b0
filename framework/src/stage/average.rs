//! The exponential moving average of a stage's parameters.

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    tensor::elementwise::{CHUNK, change_in_place, each},
};

/// An exponential moving average of the weights, as configuration files give it.
///
/// Each stage keeps the average `a` of every trained parameter `w`. The update of step `from_step` sets `a ← w`; every later update sets
/// `a ← decay·a + (1-decay)·w`. Training is unchanged, to the bit. Evaluations, predictions and all copies of the weights use the average as soon
/// as there is one; so do the best and the saved weights of a run. Frozen parameters never change and have no average; buffers, such as running
/// statistics, are used as they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// The share of the average that each update keeps, from 0 to below 1, such as 0.999.
    pub decay: f64,
    /// The step, counted from 0, whose update the average begins with.
    #[serde(default)]
    pub from_step: u64,
}

impl EmaConfig {
    /// Checks the decay.
    ///
    /// # Errors
    /// If it is out of range.
    pub fn validate(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.decay) {
            return Ok(());
        }
        Err(Error::invalid("ema.decay", self.decay.to_string(), "use a number from 0 to below 1, such as 0.999"))
    }
}

/// The averages of some parameters.
pub(super) struct Average {
    config: EmaConfig,
    parameters: Vec<Averaged>,
}

/// A parameter and its average.
struct Averaged {
    var: Var,
    /// None before the update of the first averaged step.
    average: Option<Tensor>,
    /// The parameter's own value while the average takes its place.
    own: Option<Tensor>,
}

impl Average {
    /// Returns the averages of these parameters. Nothing has been averaged yet.
    pub(super) fn new(config: EmaConfig, parameters: impl Iterator<Item = Var>) -> Self {
        Self { config, parameters: parameters.map(|var| Averaged { var, average: None, own: None }).collect() }
    }

    /// Adds the values after the update of `step` to the averages.
    pub(super) fn update(&mut self, step: u64) -> Result<()> {
        if step < self.config.from_step {
            return Ok(());
        }
        for Averaged { var, average, .. } in &mut self.parameters {
            *average = Some(match average.take() {
                None => var.as_tensor().copy()?.detach(),
                Some(average) => mean(average, var, 1.0 - self.config.decay)?,
            });
        }
        Ok(())
    }

    /// Replaces the parameters' own values by the averages, or restores the values. Layers see the change, because they share the elements.
    pub(super) fn show(&mut self, averages: bool) -> Result<()> {
        for Averaged { var, average, own } in &mut self.parameters {
            match (averages, &average, own.take()) {
                (true, Some(average), None) => {
                    *own = Some(var.as_tensor().copy()?.detach());
                    var.set(average)?;
                }
                (false, _, Some(value)) => var.set(&value)?,
                (_, _, value) => *own = value,
            }
        }
        Ok(())
    }

    /// Returns the average of the parameter `var`, if there is one.
    pub(super) fn of(&self, var: &Var) -> Option<&Tensor> {
        self.parameters.iter().find(|averaged| averaged.var.id() == var.id())?.average.as_ref()
    }

    /// A copy of the own value of the parameter that `var` is, if it has an average.
    pub(super) fn own(&self, var: &Var) -> Result<Option<Tensor>> {
        let found = self.parameters.iter().find(|averaged| averaged.var.id() == var.id());
        let Some(Averaged { var, average: Some(_), own }) = found else { return Ok(None) };
        Ok(Some(own.as_ref().unwrap_or(var.as_tensor()).copy()?.detach()))
    }

    /// Takes the present value of `var` as its average and `own` as its own value; whether averages of it are kept here.
    pub(super) fn restore(&mut self, var: &Var, own: &Tensor) -> Result<bool> {
        let found = self.parameters.iter_mut().find(|averaged| averaged.var.id() == var.id());
        let Some(averaged) = found else { return Ok(false) };
        averaged.average = Some(var.as_tensor().copy()?.detach());
        averaged.own = None;
        var.set(&own.to_device(var.device())?.to_dtype(var.dtype())?)?;
        Ok(true)
    }

    /// Bytes of the averages.
    pub(super) fn bytes(&self) -> usize {
        self.parameters.iter().filter_map(|averaged| averaged.average.as_ref()).map(crate::optimizer::bytes).sum()
    }
}

/// `average + rate·(value - average)`.
fn mean(average: Tensor, value: &Var, rate: f64) -> Result<Tensor> {
    let count = average.elem_count();
    let done = change_in_place(&average, value, |averages, values| {
        let chunks = averages.chunks_mut(CHUNK).zip(values.chunks(CHUNK));
        each(count, chunks, |(averages, values)| {
            for (average, value) in averages.iter_mut().zip(values) {
                *average += rate as f32 * (value - *average);
            }
        });
    })?;
    match done {
        Some(()) => Ok(average),
        None => Ok((&average + ((value.as_detached_tensor() - &average)? * rate)?)?),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn value(var: &Var) -> f32 {
        var.to_vec1::<f32>().unwrap()[0]
    }

    #[test]
    fn the_average_of_a_scalar_follows_the_hand_worked_values() {
        let var = Var::new(&[8.0_f32], &Device::Cpu).unwrap();
        let mut average = Average::new(EmaConfig { decay: 0.75, from_step: 1 }, std::iter::once(var.clone()));
        // Step 0 does not count; step 1 sets the average; then 0.75·4 + 0.25·8 = 5 and 0.75·5 + 0.25·1 = 4.
        for (step, (own, expected)) in
            [(16.0_f32, None), (4.0, Some(4.0_f32)), (8.0, Some(5.0)), (1.0, Some(4.0))].into_iter().enumerate()
        {
            var.set(&Tensor::new(&[own], &Device::Cpu).unwrap()).unwrap();
            average.update(step as u64).unwrap();
            assert_eq!(average.of(&var).map(|tensor| tensor.to_vec1::<f32>().unwrap()[0]), expected);
            // Twice in a row: the second changes nothing.
            for _ in 0..2 {
                average.show(true).unwrap();
                assert_eq!(value(&var), expected.unwrap_or(own));
            }
            for _ in 0..2 {
                average.show(false).unwrap();
                assert_eq!(value(&var), own);
            }
        }
        assert_eq!(average.bytes(), 4);
    }

    #[test]
    fn a_decay_out_of_range_is_refused() {
        for decay in [-0.1, 1.0, f64::NAN] {
            let error = EmaConfig { decay, from_step: 0 }.validate().unwrap_err().to_string();
            assert!(error.starts_with("ema.decay: "), "{error}");
        }
        EmaConfig { decay: 0.0, from_step: 0 }.validate().unwrap();
    }
}
