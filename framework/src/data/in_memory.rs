//! A data set of tensors in memory.

use candle_core::{Device, Tensor};
use rand::{Rng, seq::SliceRandom};

use super::{Batch, Dataset};
use crate::{Activation, Error, Result, random::Key};

/// A data set of tensors in memory. It does not augment its examples.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use interlock::{Dataset, InMemory};
///
/// let inputs = Tensor::arange(0f32, 40., &Device::Cpu)?.reshape((20, 2))?; // 20 examples
/// let targets = Tensor::arange(0u32, 20, &Device::Cpu)?;
/// let (train, validation) = InMemory::new(inputs, targets)?.split(0.25, 7)?;
/// assert_eq!((train.len(), validation.len()), (15, 5));
///
/// let batch = train.batch(&[3, 0], None)?;
/// assert_eq!(batch.inputs.single()?.dims(), [2, 2]);
/// # Ok::<(), interlock::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct InMemory {
    inputs: Activation,
    targets: Tensor,
    /// The rows of the tensors that belong to this set.
    rows: Vec<u32>,
}

impl InMemory {
    /// Returns a data set whose example `i` is row `i` of `inputs` and of `targets`. Tensors on other devices are copied to the CPU.
    ///
    /// # Errors
    /// If inputs and targets differ in their number of rows, or a value is infinite or NaN.
    pub fn new(inputs: impl Into<Activation>, targets: Tensor) -> Result<Self> {
        let at_hand = |tensor: &Tensor| Ok(tensor.to_device(&Device::Cpu)?.contiguous()?);
        let (inputs, targets) = (inputs.into().try_map(at_hand)?, at_hand(&targets)?);
        let count = targets.dims().first().copied().unwrap_or(0);
        if let Some(other) = inputs.tensors().iter().find(|t| t.dims().first() != Some(&count)) {
            return Err(Error::invalid(
                "data set",
                format!("inputs of shape {:?} and targets of shape {:?}", other.dims(), targets.dims()),
                "give as many rows of inputs as of targets",
            ));
        }
        let rows: Vec<usize> = (0..count).collect();
        Batch { inputs: inputs.clone(), targets: targets.clone() }.validate(&rows)?;
        let rows = rows.into_iter().map(|row| row as u32).collect();
        Ok(Self { inputs, targets, rows })
    }

    /// Splits the examples at random, by `seed`, into a training set and a validation set. `validation` is the validation set's share of the
    /// examples, above 0 and below 1, rounded to whole examples. No tensor is copied.
    ///
    /// # Errors
    /// If the share is not between 0 and 1, or a set would be empty.
    pub fn split(self, validation: f64, seed: u64) -> Result<(Self, Self)> {
        let mut rows = self.rows.clone();
        let count = (validation * rows.len() as f64).round();
        if !(count >= 1.0 && count < rows.len() as f64) {
            return Err(Error::invalid(
                "split",
                format!("a share of {validation} of {} examples leaves a set empty", rows.len()),
                "give a share between 0 and 1 that leaves both sets at least one example",
            ));
        }
        let mut stream = Key::new(seed).named("split").stream();
        rows.shuffle(&mut stream as &mut dyn Rng);
        let held_out = rows.split_off(rows.len() - count as usize);
        Ok((Self { rows, ..self.clone() }, Self { rows: held_out, ..self }))
    }
}

impl Dataset for InMemory {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
        let rows = self.rows_of(numbers)?;
        let inputs = self.inputs.try_map(|tensor| Ok(tensor.index_select(&rows, 0)?))?;
        Ok(Batch { inputs, targets: self.targets.index_select(&rows, 0)? })
    }

    fn targets(&self, numbers: &[usize], _: Option<Key>) -> Result<Tensor> {
        Ok(self.targets.index_select(&self.rows_of(numbers)?, 0)?)
    }
}

impl InMemory {
    /// Returns the rows of these examples.
    fn rows_of(&self, numbers: &[usize]) -> Result<Tensor> {
        let row = |&number: &usize| {
            self.rows.get(number).copied().ok_or_else(|| {
                Error::Data(format!(
                    "there is no example {number}; examples are 0 to {}",
                    self.rows.len().saturating_sub(1)
                ))
            })
        };
        let rows = numbers.iter().map(row).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::from_vec(rows, numbers.len(), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(count: u32) -> InMemory {
        let targets = Tensor::arange(0, count, &Device::Cpu).unwrap();
        let inputs = targets.to_dtype(candle_core::DType::F32).unwrap().reshape((count as usize, 1)).unwrap();
        InMemory::new(inputs, targets).unwrap()
    }

    fn all(data: &InMemory) -> Vec<u32> {
        let batch = data.batch(&(0..data.len()).collect::<Vec<_>>(), None).unwrap();
        let targets = batch.targets.to_vec1::<u32>().unwrap();
        let inputs = batch.inputs.single().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(inputs.iter().zip(&targets).all(|(x, t)| *x == *t as f32));
        targets
    }

    #[test]
    fn a_split_shares_the_examples_out_and_follows_its_seed() {
        let (train, validation) = data(10).split(0.3, 1).unwrap();
        assert_eq!((train.len(), validation.len()), (7, 3));
        let mut both = [all(&train), all(&validation)].concat();
        assert_ne!(both, (0..10).collect::<Vec<_>>());
        let (again, _) = data(10).split(0.3, 1).unwrap();
        assert_eq!(all(&again), all(&train));
        let (other, _) = data(10).split(0.3, 2).unwrap();
        assert_ne!(all(&other), all(&train));
        both.sort_unstable();
        assert_eq!(both, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_be_a_data_set_or_a_split_is_refused() {
        for share in [0.0, 0.01, 1.0, -0.5, f64::NAN] {
            assert!(data(10).split(share, 0).unwrap_err().to_string().contains("leaves a set empty"));
        }
        let tensor = |count: usize| Tensor::ones(count, candle_core::DType::F32, &Device::Cpu).unwrap();
        let uneven = InMemory::new(tensor(3), tensor(4)).unwrap_err().to_string();
        assert!(uneven.contains("inputs of shape [3] and targets of shape [4]"), "{uneven}");
        let error = InMemory::new(tensor(3), (tensor(3) / 0.0).unwrap()).unwrap_err().to_string();
        assert!(error.contains("the targets of example 0"), "{error}");
        assert!(data(2).batch(&[2], None).unwrap_err().to_string().contains("examples are 0 to 1"));
    }
}
