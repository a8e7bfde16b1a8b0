//! Dropout: `y = m x / (1 - p)` with `m = 0` where an element is dropped (probability `p`) and 1 elsewhere; `∂x = m c / (1 - p)`.
//!
//! Tensors of any shape. In evaluation and at `p = 0`, `y = x`. The mask depends on the seed, the step, the micro-batch and the layer's name only,
//! so a recomputed forward pass draws the same one.

use candle_core::Shape;
use interlock::{Activation, Differentiable, Error, Gradients, Key, Pass, Result, Saved, SavedMemory, Wants};
use rand::Rng;
use rayon::prelude::*;

use super::{
    candle_operations,
    slices::{dense, output_gradient, read},
};
use crate::kernels::elementwise::{CHUNK, zip};

/// Drops elements at random while training.
#[derive(Clone, Debug)]
pub struct Dropout {
    pub(super) probability: f64,
    pub(super) name: String,
}

/// The shape of the input, and which of its elements are kept; none if all are.
struct SavedDropout {
    shape: Shape,
    keep: Option<Vec<bool>>,
}

impl Dropout {
    /// Drops each element independently with `probability` (at least 0, below 1). Layers of different names drop independently of each other.
    pub fn new(probability: f64, name: impl Into<String>) -> Self {
        Self { probability, name: name.into() }
    }
}

/// Draws which of `count` elements are kept. Returns none if all are: in evaluation, and at probability 0.
///
/// # Errors
/// If the probability is not at least 0 and below 1.
pub(super) fn keep(probability: f64, name: &str, pass: &Pass, count: usize) -> Result<Option<Vec<bool>>> {
    if !(0.0..1.0).contains(&probability) {
        return Err(Error::invalid(
            format!("dropout {name}"),
            format!("probability {probability}"),
            "give a probability of at least 0 and below 1",
        ));
    }
    if probability == 0.0 || !pass.is_train() {
        return Ok(None);
    }
    let key = Key::new(pass.seed).named("dropout").named(name).with(pass.step).with(pass.micro_batch as u64);
    // A random number below the threshold drops the element.
    let threshold = (probability * 4_294_967_296.0) as u32;
    let mut keep = vec![false; count];
    keep.par_chunks_mut(CHUNK).enumerate().for_each(|(i, keep)| {
        let mut stream = key.with(i as u64).stream();
        for keep in keep {
            *keep = stream.next_u32() >= threshold;
        }
    });
    Ok(Some(keep))
}

/// Returns `1/(1 - p)`, the factor of kept elements, which preserves the mean.
pub(super) fn scale(probability: f64) -> f32 {
    (1.0 / (1.0 - probability)) as f32
}

impl Differentiable for Dropout {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        if candle_operations::are_for(x) {
            return candle_operations::forward(self, x, pass);
        }
        let keep = keep(self.probability, &self.name, pass, x.elem_count())?;
        let y = match &keep {
            None => x.clone(),
            Some(keep) => {
                let scale = scale(self.probability);
                let x = dense(x, &self.name)?;
                zip(&read(&x)?, keep, |x, keep| if keep { x * scale } else { 0.0 }).into_tensor(x.shape())?
            }
        };
        let saved = if pass.is_train() {
            let memory = keep.as_deref().map(SavedMemory::of_slice);
            Saved::new(SavedDropout { shape: x.shape().clone(), keep }).with_memory(memory)
        } else {
            Saved::nothing()
        };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let SavedDropout { shape, keep } = saved.get()?;
        if !wants.input {
            return Ok(Gradients::default());
        }
        let c = output_gradient(c, shape.dims(), &self.name)?;
        let dx = match keep {
            None => c,
            Some(keep) => {
                let scale = scale(self.probability);
                zip(&read(&c)?, keep, |c, keep| if keep { c * scale } else { 0.0 }).into_tensor(shape)?
            }
        };
        Ok(Gradients { input: Some(dx.into()), ..Gradients::default() })
    }

    fn has_parameters(&self) -> bool {
        false
    }
}
