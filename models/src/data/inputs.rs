//! Inputs for predictions.

use std::{fmt, ops::Range};

use interlock::{Activation, Error, Result};

/// Makes the inputs of some examples.
type Read = Box<dyn Fn(Range<usize>) -> Result<Activation> + Send + Sync>;

/// Inputs of a model without targets, each with a name for the results, such as its file.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use interlock_models::data::Inputs;
/// let tensor = Tensor::zeros((2, 16), DType::F32, &Device::Cpu)?; // two examples of 16 values
/// let inputs = Inputs::new(vec!["first".to_owned(), "second".to_owned()], tensor)?;
/// assert_eq!(inputs.len(), 2);
/// # Ok::<_, interlock::Error>(())
/// ```
#[derive(Default)]
pub struct Inputs {
    parts: Vec<(Vec<String>, Read)>,
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inputs").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Inputs {
    /// Makes inputs of the rows of tensors, one row an example.
    ///
    /// # Errors
    /// If the number of names is not that of the rows.
    pub fn new(names: Vec<String>, tensors: impl Into<Activation>) -> Result<Self> {
        let tensors = tensors.into();
        if let Some(other) = tensors.tensors().iter().find(|tensor| tensor.dims().first() != Some(&names.len())) {
            let problem = format!("{} names for a tensor of shape {:?}", names.len(), other.dims());
            return Err(Error::invalid("inputs", problem, "give one name for each row of the tensor"));
        }
        let mut inputs = Self::default();
        inputs.push(names, move |rows| tensors.try_map(|tensor| Ok(tensor.narrow(0, rows.start, rows.len())?)));
        Ok(inputs)
    }

    /// Adds examples that `read` makes when they are needed; it gets the range of their numbers, counted from 0 for the first of `names`.
    pub fn push(
        &mut self,
        names: Vec<String>,
        read: impl Fn(Range<usize>) -> Result<Activation> + Send + Sync + 'static,
    ) {
        self.parts.push((names, Box::new(read)));
    }

    /// Keeps at most the first `count` examples.
    pub fn truncate(&mut self, mut count: usize) {
        for (names, _) in &mut self.parts {
            names.truncate(count);
            count -= names.len();
        }
    }

    /// Returns the number of examples.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|(names, _)| names.len()).sum()
    }

    /// Returns whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the examples in batches of at most `size`: their names, and their inputs stacked along the first dimension.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Result<(&[String], Activation)>> {
        let size = size.max(1);
        self.parts.iter().flat_map(move |(names, read)| {
            names.chunks(size).enumerate().map(move |(batch, names)| {
                let start = batch * size;
                Ok((names, read(start..start + names.len())?))
            })
        })
    }
}

impl FromIterator<Inputs> for Inputs {
    /// Joins inputs, such as those of several files, in order.
    fn from_iter<I: IntoIterator<Item = Inputs>>(inputs: I) -> Self {
        Self { parts: inputs.into_iter().flat_map(|inputs| inputs.parts).collect() }
    }
}
