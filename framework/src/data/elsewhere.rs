//! Examples that another rank reads.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::{Batch, Dataset};
use crate::{Error, Result, checksum, random::Key};

/// Which ranks read the training set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DataFrom {
    /// The rank with the first stage of each replica reads the replica's examples, so that each of these ranks needs the data; for the first replica, rank 0
    /// does.
    #[default]
    All,
    /// Rank 0 reads all examples, and sends them.
    First,
}

/// Examples of a training set that a rank reads for its replica, as rank 0 names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examples {
    numbers: Vec<usize>,
    augment: Option<Key>,
    /// How many examples the set has.
    of: usize,
    /// The checksum of their targets.
    checksum: String,
}

impl Examples {
    /// Names the examples `numbers` of a set of `of` examples, whose targets are `targets`.
    ///
    /// # Errors
    /// If there is another number of targets.
    pub(crate) fn new(numbers: &[usize], augment: Option<Key>, of: usize, targets: &Tensor) -> Result<Self> {
        let found = targets.dims().first().copied();
        if found != Some(numbers.len()) {
            let (asked, shape) = (numbers.len(), targets.dims());
            return Err(Error::Data(format!(
                "the data set was asked for {asked} targets and returned shape {shape:?}; the first dimension must be {asked}"
            )));
        }
        Ok(Self { numbers: numbers.to_vec(), augment, of, checksum: checksum_of(targets)? })
    }

    /// Reads the examples from a set of this rank, and checks them.
    ///
    /// # Errors
    /// If it cannot be read, or is not the set of rank 0.
    pub(crate) fn read(&self, data: &dyn Dataset) -> Result<Batch> {
        let differs = |what: String| {
            Error::Data(format!("{what}; give all ranks the same data, or let rank 0 read all (data_from = \"first\")"))
        };
        if data.len() != self.of {
            return Err(differs(format!("{} training examples on this rank, {} on rank 0", data.len(), self.of)));
        }
        let batch = data.batch(&self.numbers, self.augment)?;
        batch.validate(&self.numbers)?;
        if checksum_of(&batch.targets)? != self.checksum {
            let alone = data.targets(&self.numbers, self.augment)?;
            if checksum_of(&alone)? != checksum_of(&batch.targets)? {
                let what = "the data set's methods `targets` and `batch` return other targets for the same examples";
                return Err(Error::Data(format!("{what}; they must return the same")));
            }
            let numbers = match &self.numbers[..] {
                [one] => format!("example {one}"),
                numbers => format!("some of the examples {}", first_few(numbers)),
            };
            return Err(differs(format!("{numbers}: other targets on this rank than on rank 0")));
        }
        Ok(batch)
    }
}

/// Returns the first few numbers, as words.
fn first_few(numbers: &[usize]) -> String {
    let few = numbers.iter().take(3).map(usize::to_string).collect::<Vec<_>>().join(", ");
    if numbers.len() > 3 { format!("{few}, …") } else { few }
}

/// Returns a checksum of the values, whatever their dtype.
fn checksum_of(targets: &Tensor) -> Result<String> {
    let values = targets.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(checksum::of(&bytes))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::InMemory;

    fn data(targets: &[u32]) -> InMemory {
        let inputs = Tensor::zeros((targets.len(), 2), DType::F32, &Device::Cpu).unwrap();
        InMemory::new(inputs, Tensor::new(targets, &Device::Cpu).unwrap()).unwrap()
    }

    #[test]
    fn examples_of_another_set_are_refused() {
        let own = data(&[0, 1, 2, 3, 4]);
        let examples =
            |numbers: &[usize]| Examples::new(numbers, None, own.len(), &own.targets(numbers, None).unwrap()).unwrap();
        let batch = examples(&[3, 1]).read(&own).unwrap();
        assert_eq!(batch.targets.to_vec1::<u32>().unwrap(), [3, 1]);
        let refused = |numbers: &[usize], data: &InMemory| examples(numbers).read(data).unwrap_err().to_string();
        assert!(
            refused(&[0], &data(&[0, 1])).contains("2 training examples on this rank, 5 on rank 0; give all ranks")
        );
        let other = data(&[0, 7, 2, 3, 4]);
        assert!(refused(&[1], &other).contains("example 1: other targets on this rank than on rank 0"));
        assert!(refused(&[0, 1, 2, 3], &other).contains("some of the examples 0, 1, 2, …: other targets"));
        assert!(examples(&[0, 2]).read(&other).is_ok());
        assert!(Examples::new(&[0, 1], None, 5, &own.targets(&[0], None).unwrap()).is_err());
    }
}
