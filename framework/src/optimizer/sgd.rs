//! Stochastic gradient descent.
//!
//! With weight decay `λ`, momentum `μ` and learning rate `η`, as PyTorch defines it:
//! `g ← g + λw`, `v ← μv + g` (`v = g` at first), `w ← w - η·(g + μv)` with Nesterov's variant, else `w ← w - ηv`.

use candle_core::Tensor;

use super::{
    ByParameter, Optimizer, OptimizerConfig, ParameterUpdate, StateDict, expect_used, like_parameter, restored_values,
    stored,
};
use crate::{
    Error, Result,
    tensor::elementwise::{CHUNK, all_finite, change_in_place, each},
};

/// Stochastic gradient descent with momentum.
pub struct Sgd {
    momentum: f64,
    nesterov: bool,
    velocity: ByParameter<Vec<f32>>,
    /// The velocities of parameters that the host does not update in place, and restored ones until their next update.
    velocity_elsewhere: ByParameter<Tensor>,
}

impl Sgd {
    /// The rule with the constants of `config`; no parameter has a velocity yet.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self {
            momentum: config.momentum,
            nesterov: config.nesterov,
            velocity: ByParameter::new(),
            velocity_elsewhere: ByParameter::new(),
        }
    }

    /// Updates a parameter with candle operations, on any device.
    fn update_elsewhere(&mut self, lr: f64, parameter: &ParameterUpdate<'_>) -> Result<()> {
        let mut gradient = parameter.gradient()?.detach();
        if parameter.weight_decay != 0.0 {
            gradient = (gradient + (parameter.var.as_detached_tensor() * parameter.weight_decay)?)?;
        }
        if self.momentum != 0.0 {
            let velocity = match self.velocity_elsewhere.remove(parameter.name) {
                Some(velocity) => ((like_parameter(&velocity, parameter)? * self.momentum)? + &gradient)?,
                None => gradient.clone(),
            };
            gradient = if self.nesterov { (gradient + (&velocity * self.momentum)?)? } else { velocity.clone() };
            self.velocity_elsewhere.insert(parameter.name.to_owned(), velocity);
        }
        parameter.var.set(&(parameter.var.as_detached_tensor() - (gradient * lr)?)?)?;
        parameter.check()
    }
}

/// The constants of one parameter's update.
#[derive(Clone, Copy)]
struct Constants {
    rate: f32,
    decay: f32,
    clip: f32,
    momentum: f32,
    /// The factor on the previous velocity; 0 at the first update.
    kept: f32,
    nesterov: bool,
}

/// Updates a chunk and returns whether it is finite. Takes the constants by value: behind a reference they would be read again in each iteration.
fn descend(Constants { rate, decay, clip, .. }: Constants, values: &mut [f32], gradient: &[f32]) -> bool {
    for (w, g) in values.iter_mut().zip(gradient) {
        *w -= rate * (clip * g + decay * *w);
    }
    all_finite(values)
}

/// [`descend`] with momentum.
fn roll(constants: Constants, values: &mut [f32], gradient: &[f32], velocity: &mut [f32]) -> bool {
    let Constants { rate, decay, clip, momentum, kept, nesterov } = constants;
    for ((w, g), v) in values.iter_mut().zip(gradient).zip(velocity) {
        let g = clip * g + decay * *w;
        *v = kept * *v + g;
        *w -= rate * if nesterov { g + momentum * *v } else { *v };
    }
    all_finite(values)
}

impl Optimizer for Sgd {
    fn state_bytes(&self) -> usize {
        let plain: usize = self.velocity.values().map(|v| size_of_val(&**v)).sum();
        plain + self.velocity_elsewhere.values().map(super::bytes).sum::<usize>()
    }

    fn update(&mut self, lr: f64, parameters: &[ParameterUpdate<'_>]) -> Result<()> {
        for parameter in parameters {
            let lr = lr * parameter.lr_scale;
            let Some(clip) = parameter.known_clip() else {
                self.update_elsewhere(lr, parameter)?;
                continue;
            };
            let restored = restored_values(self.velocity_elsewhere.get(parameter.name), parameter)?;
            let known = restored.is_some() || self.velocity.contains_key(parameter.name);
            let momentum = self.momentum as f32;
            let constants = Constants {
                rate: lr as f32,
                decay: parameter.weight_decay as f32,
                clip: clip as f32,
                momentum,
                kept: if known { momentum } else { 0.0 },
                nesterov: self.nesterov,
            };
            let finite = change_in_place(parameter.var, parameter.unclipped, |values, gradient| {
                let count = values.len();
                let chunks = values.chunks_mut(CHUNK).zip(gradient.chunks(CHUNK));
                if momentum == 0.0 {
                    return each(count, chunks, |(w, g)| descend(constants, w, g));
                }
                if let Some(restored) = restored {
                    self.velocity_elsewhere.remove(parameter.name);
                    self.velocity.insert(parameter.name.to_owned(), restored);
                }
                let velocity = self.velocity.entry(parameter.name.to_owned()).or_insert_with(|| vec![0.0; count]);
                each(count, chunks.zip(velocity.chunks_mut(CHUNK)), |((w, g), v)| roll(constants, w, g, v))
            })?;
            match finite {
                None => self.update_elsewhere(lr, parameter)?,
                Some(chunks) if chunks.contains(&false) => return Err(parameter.not_finite()),
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn checks_values(&self) -> bool {
        true
    }

    fn state(&self) -> Result<StateDict> {
        let mut state = StateDict::default();
        for (name, velocity) in &self.velocity {
            state.tensors.insert(format!("velocity.{name}"), stored(velocity)?);
        }
        for (name, velocity) in &self.velocity_elsewhere {
            state.tensors.insert(format!("velocity.{name}"), velocity.flatten_all()?);
        }
        Ok(state)
    }

    fn restore(&mut self, mut state: StateDict) -> Result<()> {
        let velocity = state.take_all("velocity");
        expect_used("stochastic gradient descent", &state)?;
        if !state.values.is_null() {
            return Err(Error::invalid(
                "optimizer state",
                "it holds values that stochastic gradient descent does not have",
                "give the state of stochastic gradient descent",
            ));
        }
        self.velocity.clear();
        self.velocity_elsewhere = velocity.into_iter().collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::optimizer::ClipFactor;

    /// `w` after three steps with these gradients, from `w = 1`, on both paths.
    fn run(config: &OptimizerConfig, elsewhere: bool) -> Vec<f64> {
        let var = Var::new(&[1.0_f32], &Device::Cpu).unwrap();
        let mut rule = Sgd::new(config);
        [0.5_f32, -0.25, 1.0]
            .iter()
            .map(|&g| {
                let gradient = Tensor::new(&[g], &Device::Cpu).unwrap();
                let parameter = ParameterUpdate {
                    name: "w",
                    var: &var,
                    unclipped: &gradient,
                    clip: ClipFactor::NONE,
                    asynchronous: elsewhere,
                    lr_scale: 1.0,
                    weight_decay: config.weight_decay,
                };
                rule.update(config.lr, &[parameter]).unwrap();
                f64::from(var.to_vec1::<f32>().unwrap()[0])
            })
            .collect()
    }

    fn check(config: OptimizerConfig, expected: [f64; 3]) {
        for elsewhere in [false, true] {
            for (found, expected) in run(&config, elsewhere).into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }

    #[test]
    fn by_hand() {
        let base = OptimizerConfig { lr: 0.1, momentum: 0.0, ..OptimizerConfig::default() };
        check(base.clone(), [0.95, 0.975, 0.875]);
        // Decay 0.2: g = 0.5 + 0.2·1 = 0.7; -0.25 + 0.2·0.93 = -0.064; 1 + 0.2·0.9364 = 1.18728.
        check(OptimizerConfig { weight_decay: 0.2, ..base.clone() }, [0.93, 0.9364, 0.817672]);
        // Momentum 0.9: v = 0.5; 0.45 - 0.25 = 0.2; 0.18 + 1 = 1.18.
        check(OptimizerConfig { momentum: 0.9, ..base.clone() }, [0.95, 0.93, 0.812]);
        // Nesterov: g + 0.9v = 0.95; -0.25 + 0.18 = -0.07; 1 + 1.062 = 2.062.
        check(OptimizerConfig { momentum: 0.9, nesterov: true, ..base }, [0.905, 0.912, 0.7058]);
    }
}
