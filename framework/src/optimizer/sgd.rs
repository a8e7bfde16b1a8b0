//! Stochastic gradient descent.
//!
//! With weight decay `λ`, momentum `μ` and learning rate `η`, as PyTorch defines it:
//! `g ← g + λw`, `v ← μv + g` (`v = g` at first), `w ← w - η·(g + μv)` with Nesterov's variant, else `w ← w - ηv`.

use candle_core::Tensor;

use super::{Optimizer, OptimizerConfig, Slot, State};
use crate::{
    Result,
    elementwise::{change_in_place, zip2, zip3},
};

/// Stochastic gradient descent with momentum.
pub struct Sgd {
    momentum: f64,
    nesterov: bool,
    velocity: State<Vec<f32>>,
    velocity_elsewhere: State<Tensor>,
}

impl Sgd {
    /// The rule with the constants of `config`; no parameter has a velocity yet.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self {
            momentum: config.momentum,
            nesterov: config.nesterov,
            velocity: State::new(),
            velocity_elsewhere: State::new(),
        }
    }

    /// The rule in candle operations, for any device.
    fn update_elsewhere(&mut self, lr: f64, slot: &Slot<'_>) -> Result<()> {
        let mut gradient = slot.gradient.detach();
        if slot.weight_decay != 0.0 {
            gradient = (gradient + (slot.var.as_detached_tensor() * slot.weight_decay)?)?;
        }
        if self.momentum != 0.0 {
            let velocity = match self.velocity_elsewhere.remove(slot.name) {
                Some(velocity) => ((velocity * self.momentum)? + &gradient)?,
                None => gradient.clone(),
            };
            gradient = if self.nesterov { (gradient + (&velocity * self.momentum)?)? } else { velocity.clone() };
            self.velocity_elsewhere.insert(slot.name.to_owned(), velocity);
        }
        Ok(slot.var.set(&(slot.var.as_detached_tensor() - (gradient * lr)?)?)?)
    }
}

impl Optimizer for Sgd {
    fn update(&mut self, lr: f64, slots: &[Slot<'_>]) -> Result<()> {
        for slot in slots {
            let lr = lr * slot.lr_scale;
            let (rate, decay, momentum) = (lr as f32, slot.weight_decay as f32, self.momentum as f32);
            let nesterov = self.nesterov;
            let done = change_in_place(slot.var, slot.gradient, |values, gradient| {
                if momentum == 0.0 {
                    return zip2(values, gradient, |values, gradient| {
                        for (w, g) in values.iter_mut().zip(gradient) {
                            *w -= rate * (g + decay * *w);
                        }
                    });
                }
                let known = self.velocity.contains_key(slot.name);
                let velocity = self.velocity.entry(slot.name.to_owned()).or_insert_with(|| vec![0.0; values.len()]);
                let kept = if known { momentum } else { 0.0 };
                zip3(values, gradient, velocity, |values, gradient, velocity| {
                    for ((w, g), v) in values.iter_mut().zip(gradient).zip(velocity) {
                        let g = g + decay * *w;
                        *v = kept * *v + g;
                        *w -= rate * if nesterov { g + momentum * *v } else { *v };
                    }
                });
            })?;
            if !done {
                self.update_elsewhere(lr, slot)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// `w` after three steps with these gradients, from `w = 1`, on both paths.
    fn run(config: &OptimizerConfig, elsewhere: bool) -> Vec<f64> {
        let var = Var::new(&[1.0_f32], &Device::Cpu).unwrap();
        let mut rule = Sgd::new(config);
        [0.5_f32, -0.25, 1.0]
            .iter()
            .map(|&g| {
                let gradient = Tensor::new(&[g], &Device::Cpu).unwrap();
                let slot = Slot {
                    name: "w",
                    var: &var,
                    gradient: &gradient,
                    lr_scale: 1.0,
                    weight_decay: config.weight_decay,
                };
                match elsewhere {
                    true => rule.update_elsewhere(config.lr, &slot).unwrap(),
                    false => rule.update(config.lr, &[slot]).unwrap(),
                }
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
