//! Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
//!
//! With learning rate `η`, decay `λ` and step `t = 1, 2, …`, as PyTorch defines it: `w ← w - ηλw`, `m ← β₁m + (1-β₁)g`,
//! `s ← β₂s + (1-β₂)g²`, `w ← w - η/(1-β₁ᵗ) · m / (√s/√(1-β₂ᵗ) + ε)`.

use candle_core::Tensor;
use serde_json::json;

use super::{
    ByParameter, Optimizer, OptimizerConfig, ParameterUpdate, StateDict, expect_used, like_parameter, restored_values,
    stored,
};
use crate::{
    Error, Result,
    tensor::elementwise::{CHUNK, all_finite, change_in_place, each},
};

/// Adam with decoupled weight decay.
pub struct AdamW {
    betas: [f64; 2],
    eps: f64,
    moments: ByParameter<Moments<Vec<f32>>>,
    /// The moments of parameters that the host does not update in place, and restored moments until their next update.
    moments_elsewhere: ByParameter<Moments<Tensor>>,
}

struct Moments<T> {
    first: T,
    second: T,
    steps: i32,
}

impl AdamW {
    /// The rule with the constants of `config`; all moments are zero.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self {
            betas: config.betas,
            eps: config.eps,
            moments: ByParameter::new(),
            moments_elsewhere: ByParameter::new(),
        }
    }

    /// Updates a parameter with candle operations, on any device.
    fn update_elsewhere(&mut self, lr: f64, parameter: &ParameterUpdate<'_>) -> Result<()> {
        let [b1, b2] = self.betas;
        let g = parameter.gradient()?.detach();
        let state = match self.moments_elsewhere.remove(parameter.name) {
            Some(Moments { first, second, steps }) => Moments {
                first: ((like_parameter(&first, parameter)? * b1)? + (&g * (1.0 - b1))?)?,
                second: ((like_parameter(&second, parameter)? * b2)? + (g.sqr()? * (1.0 - b2))?)?,
                steps: steps + 1,
            },
            None => Moments { first: (&g * (1.0 - b1))?, second: (g.sqr()? * (1.0 - b2))?, steps: 1 },
        };
        let root = ((state.second.sqrt()? / (1.0 - b2.powi(state.steps)).sqrt())? + self.eps)?;
        let change = ((&state.first / root)? * (lr / (1.0 - b1.powi(state.steps))))?;
        let decayed = (parameter.var.as_detached_tensor() * (1.0 - lr * parameter.weight_decay))?;
        parameter.var.set(&(decayed - change)?)?;
        self.moments_elsewhere.insert(parameter.name.to_owned(), state);
        parameter.check()
    }
}

/// The constants of one parameter's update.
#[derive(Clone, Copy)]
struct Constants {
    clip: f32,
    /// `β` and `1 - β`, of either moment.
    first: [f32; 2],
    second: [f32; 2],
    /// The factor that weight decay leaves of the value.
    keep: f32,
    /// `η/(1-β₁ᵗ)`.
    rate: f32,
    /// `1/√(1-β₂ᵗ)`.
    root: f32,
    eps: f32,
}

/// Updates a chunk and returns whether it is finite. Takes the constants by value: behind a reference they would be read again in each iteration.
fn step(constants: Constants, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) -> bool {
    let Constants { clip, first: [b1, c1], second: [b2, c2], keep, rate, root, eps } = constants;
    for ((w, g), (m, s)) in values.iter_mut().zip(gradient).zip(first.iter_mut().zip(second)) {
        let g = clip * g;
        *m = b1 * *m + c1 * g;
        *s = b2 * *s + c2 * g * g;
        *w = keep * *w - rate * *m / (s.sqrt() * root + eps);
    }
    all_finite(values)
}

impl Optimizer for AdamW {
    fn state_bytes(&self) -> usize {
        let plain = self.moments.values().flat_map(|m| [&m.first, &m.second]).map(|m| size_of_val(&**m)).sum::<usize>();
        let tensors = self.moments_elsewhere.values().flat_map(|m| [&m.first, &m.second]);
        plain + tensors.map(super::bytes).sum::<usize>()
    }

    fn update(&mut self, lr: f64, parameters: &[ParameterUpdate<'_>]) -> Result<()> {
        let [b1, b2] = self.betas;
        for parameter in parameters {
            let lr = lr * parameter.lr_scale;
            let Some(clip) = parameter.known_clip() else {
                self.update_elsewhere(lr, parameter)?;
                continue;
            };
            let elsewhere = self.moments_elsewhere.get(parameter.name);
            let restored = [
                restored_values(elsewhere.map(|moments| &moments.first), parameter)?,
                restored_values(elsewhere.map(|moments| &moments.second), parameter)?,
            ];
            let finite = change_in_place(parameter.var, parameter.unclipped, |values, gradient| {
                if let [Some(first), Some(second)] = restored
                    && let Some(Moments { steps, .. }) = self.moments_elsewhere.remove(parameter.name)
                {
                    self.moments.insert(parameter.name.to_owned(), Moments { first, second, steps });
                }
                let count = values.len();
                let zeros = || vec![0.0; count];
                let state = self.moments.entry(parameter.name.to_owned()).or_insert_with(|| Moments {
                    first: zeros(),
                    second: zeros(),
                    steps: 0,
                });
                state.steps += 1;
                let constants = Constants {
                    clip: clip as f32,
                    first: [b1, 1.0 - b1].map(|c| c as f32),
                    second: [b2, 1.0 - b2].map(|c| c as f32),
                    keep: (1.0 - lr * parameter.weight_decay) as f32,
                    rate: (lr / (1.0 - b1.powi(state.steps))) as f32,
                    root: (1.0 / (1.0 - b2.powi(state.steps)).sqrt()) as f32,
                    eps: self.eps as f32,
                };
                let moments = state.first.chunks_mut(CHUNK).zip(state.second.chunks_mut(CHUNK));
                let chunks = values.chunks_mut(CHUNK).zip(gradient.chunks(CHUNK)).zip(moments);
                each(count, chunks, |((w, g), (m, s))| step(constants, w, g, m, s))
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
        let mut steps = serde_json::Map::new();
        for (name, moments) in &self.moments {
            state.tensors.insert(format!("first.{name}"), stored(&moments.first)?);
            state.tensors.insert(format!("second.{name}"), stored(&moments.second)?);
            steps.insert(name.clone(), moments.steps.into());
        }
        for (name, moments) in &self.moments_elsewhere {
            state.tensors.insert(format!("first.{name}"), moments.first.flatten_all()?);
            state.tensors.insert(format!("second.{name}"), moments.second.flatten_all()?);
            steps.insert(name.clone(), moments.steps.into());
        }
        state.values = json!({ "steps": steps });
        Ok(state)
    }

    fn restore(&mut self, mut state: StateDict) -> Result<()> {
        let (first, mut second) = (state.take_all("first"), state.take_all("second"));
        expect_used("AdamW", &state)?;
        if !state.values["steps"].is_object() {
            return Err(Error::invalid("optimizer state", "it has no counts of updates", "give the state of AdamW"));
        }
        let mut moments = ByParameter::new();
        for (name, first) in first {
            let steps = state.values["steps"][&name].as_i64().and_then(|steps| i32::try_from(steps).ok());
            let (Some(second), Some(steps)) = (second.remove(&name), steps) else {
                return Err(incomplete(&name));
            };
            moments.insert(name, Moments { first, second, steps });
        }
        if let Some(name) = second.keys().next() {
            return Err(incomplete(name));
        }
        self.moments.clear();
        self.moments_elsewhere = moments;
        Ok(())
    }
}

fn incomplete(name: &str) -> Error {
    Error::invalid(
        format!("optimizer state of {name}"),
        "a moment or the number of updates is missing",
        "give the state of AdamW as it was saved",
    )
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::optimizer::{ClipFactor, OptimizerKind};

    #[test]
    fn by_hand() {
        let config = OptimizerConfig {
            kind: OptimizerKind::Adamw,
            lr: 0.1,
            betas: [0.9, 0.99],
            eps: 1e-8,
            weight_decay: 0.5,
            ..OptimizerConfig::default()
        };
        // The first change is η·sign(g); the second follows from the formulas above in f64.
        let (mut w, mut m, mut s) = (1.0_f64, 0.0_f64, 0.0_f64);
        let expected: Vec<f64> = [0.5_f64, -0.25, 1.0]
            .iter()
            .enumerate()
            .map(|(i, g)| {
                let t = i as i32 + 1;
                m = 0.9 * m + 0.1 * g;
                s = 0.99 * s + 0.01 * g * g;
                w -= 0.1 * 0.5 * w;
                w -= 0.1 * (m / (1.0 - 0.9_f64.powi(t))) / ((s / (1.0 - 0.99_f64.powi(t))).sqrt() + 1e-8);
                w
            })
            .collect();
        assert!((expected[0] - 0.85).abs() < 1e-7);
        for elsewhere in [false, true] {
            let var = Var::new(&[1.0_f32], &Device::Cpu).unwrap();
            let mut rule = AdamW::new(&config);
            for (g, expected) in [0.5_f32, -0.25, 1.0].iter().zip(&expected) {
                let gradient = Tensor::new(&[*g], &Device::Cpu).unwrap();
                let parameter = ParameterUpdate {
                    name: "w",
                    var: &var,
                    unclipped: &gradient,
                    clip: ClipFactor::NONE,
                    asynchronous: elsewhere,
                    lr_scale: 1.0,
                    weight_decay: 0.5,
                };
                rule.update(0.1, &[parameter]).unwrap();
                let found = f64::from(var.to_vec1::<f32>().unwrap()[0]);
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }
}
