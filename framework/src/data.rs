//! Data sets and batches.

mod elsewhere;
mod in_memory;

pub use elsewhere::{DataFrom, Examples};
pub use in_memory::InMemory;

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;

use crate::{Activation, Error, Result, random::Key, tensor::elementwise::is_finite};

/// Examples stacked along the first dimension, on the CPU.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The input of the first stage: images `(B, C, H, W)`, vectors `(B, D)`, tokens `(B, S)` of `u32`.
    pub inputs: Activation,
    /// The targets of the losses: classes `(B)` or tokens `(B, S)` of `u32`, values `(B, D)` of `f32`.
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

    /// Checks that the batch holds one input and one target for each of `numbers`, and that all values are finite.
    ///
    /// # Errors
    /// Returns [`Error::Data`], which says what is wrong and names the example.
    pub(crate) fn validate(&self, numbers: &[usize]) -> Result<()> {
        let asked = numbers.len();
        let parts = || self.inputs.tensors().iter().map(|t| ("inputs", t)).chain([("targets", &self.targets)]);
        for (part, tensor) in parts() {
            let found = tensor.dims().first().copied();
            if found != Some(asked) {
                return Err(Error::Data(format!(
                    "the data set was asked for {asked} examples and returned {part} of shape {:?}; the first dimension must be {asked}",
                    tensor.dims()
                )));
            }
        }
        for (part, tensor) in parts().filter(|(_, tensor)| tensor.dtype().is_float()) {
            if is_finite(tensor)? {
                continue;
            }
            let mut wrong = asked;
            for at in 0..asked {
                if !is_finite(&tensor.narrow(0, at, 1)?)? {
                    wrong = at;
                    break;
                }
            }
            let example =
                numbers.get(wrong).map_or_else(|| "an example".to_owned(), |number| format!("example {number}"));
            return Err(Error::Data(format!(
                "the {part} of {example} hold an infinity or a NaN; the data set must return finite values"
            )));
        }
        Ok(())
    }

    /// Splits the batch into at most `pieces` pieces without a copy. Sizes differ by at most one; larger pieces come first.
    ///
    /// A batch with fewer examples than pieces gives one piece for each example.
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
        pieces_of(len, pieces).map(|piece| self.part(piece)).collect()
    }

    /// Returns some of the examples, without a copy.
    pub(crate) fn part(&self, examples: Range<usize>) -> Result<Self> {
        let take = |tensor: &Tensor| Ok(tensor.narrow(0, examples.start, examples.len())?);
        Ok(Self { inputs: self.inputs.try_map(take)?, targets: take(&self.targets)? })
    }
}

/// Returns the examples of each of at most `pieces` pieces of `len`. Sizes differ by at most one; larger pieces come first.
pub(crate) fn pieces_of(len: usize, pieces: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = pieces.clamp(1, len.max(1));
    let first_of = move |i: usize| i * (len / pieces) + i.min(len % pieces);
    (0..pieces).map(move |i| first_of(i)..first_of(i + 1))
}

/// A set of numbered examples, readable from any thread. [`InMemory`] holds its examples as tensors.
///
/// ```
/// use interlock::{Batch, Dataset, Key, Result, candle_core::{Device, Tensor}};
///
/// /// A number as its bits; its class is whether it is odd.
/// struct Parity;
///
/// impl Dataset for Parity {
///     fn len(&self) -> usize {
///         256
///     }
///
///     fn batch(&self, numbers: &[usize], _augment: Option<Key>) -> Result<Batch> {
///         let bits: Vec<f32> = numbers.iter().flat_map(|n| (0..8).map(move |bit| (n >> bit & 1) as f32)).collect();
///         let classes: Vec<u32> = numbers.iter().map(|n| (n % 2) as u32).collect();
///         Ok(Batch {
///             inputs: Tensor::from_vec(bits, (numbers.len(), 8), &Device::Cpu)?.into(),
///             targets: Tensor::new(classes, &Device::Cpu)?,
///         })
///     }
/// }
///
/// let batch = Parity.batch(&[3, 4], None)?;
/// assert_eq!(batch.targets.to_vec1::<u32>()?, [1, 0]);
/// # Ok::<(), interlock::Error>(())
/// ```
pub trait Dataset: Send + Sync {
    /// The number of examples.
    fn len(&self) -> usize;

    /// Whether there is no example.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the examples with these numbers, one for each number and in this order. All floating-point values must be finite.
    ///
    /// With `augment`, the data set changes each example at random (crops it, flips it) with the random numbers of `augment.with(number)`. The result
    /// then depends on the key and the example only.
    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch>;

    /// Returns the targets of [`Self::batch`] with the same arguments, for which the inputs are not needed: with several replicas, rank 0 counts the targets of
    /// examples that other ranks read. Write it yourself where inputs are expensive.
    fn targets(&self, numbers: &[usize], augment: Option<Key>) -> Result<Tensor> {
        Ok(self.batch(numbers, augment)?.targets)
    }
}

impl<D: Dataset + ?Sized> Dataset for Arc<D> {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn is_empty(&self) -> bool {
        (**self).is_empty()
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        (**self).batch(numbers, augment)
    }

    fn targets(&self, numbers: &[usize], augment: Option<Key>) -> Result<Tensor> {
        (**self).targets(numbers, augment)
    }
}
