//! What a data set is to a trainer.

use candle_core::Tensor;

use crate::{Activation, Error, Result, random::Key};

/// Examples stacked along the first dimension, on the CPU.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the first stage takes: images `(B, C, H, W)`, vectors `(B, D)`, tokens `(B, S)` of `u32`.
    pub inputs: Activation,
    /// What the losses take: classes `(B)` or tokens `(B, S)` of `u32`, values `(B, D)` of `f32`.
    pub targets: Tensor,
}

impl Batch {
    /// The number of examples `B`.
    pub fn len(&self) -> Result<usize> {
        Ok(self.targets.dim(0)?)
    }

    /// Whether there is no example.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the batch into at most `pieces` pieces whose sizes differ by at most one, larger ones first; no copy.
    ///
    /// A batch of fewer examples than pieces gives one piece an example.
    pub fn split(&self, pieces: usize) -> Result<Vec<Self>> {
        let len = self.len()?;
        for tensor in self.inputs.tensors() {
            if tensor.dim(0)? != len {
                return Err(Error::Data(format!(
                    "an input of shape {:?} beside {len} targets; the first dimensions must be equal",
                    tensor.dims()
                )));
            }
        }
        let pieces = pieces.clamp(1, len.max(1));
        let mut at = 0;
        (0..pieces)
            .map(|i| {
                let size = len / pieces + usize::from(i < len % pieces);
                let part = Self {
                    inputs: self.inputs.try_map(|t| Ok(t.narrow(0, at, size)?))?,
                    targets: self.targets.narrow(0, at, size)?,
                };
                at += size;
                Ok(part)
            })
            .collect()
    }
}

/// A set of numbered examples, readable from any thread.
pub trait Dataset: Send + Sync {
    /// The number of examples.
    fn len(&self) -> usize;

    /// Whether there is no example.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The examples with these numbers, in this order.
    ///
    /// With `augment`, each example is changed at random as its data set does (cropped, flipped): from `augment.with(number)`, so
    /// that it depends on nothing but the key and the example.
    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch>;
}
