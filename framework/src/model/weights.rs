//! The weights of a model: tensors by name, in memory and in files.

mod header;
mod index;
mod load;
mod save;
#[cfg(test)]
mod tests;

pub(crate) use save::ShardFile;

use std::{collections::BTreeMap, ops::Index};

use candle_core::Tensor;

use crate::{Error, Result};

/// Parameters and buffers by name, such as a [`snapshot`](crate::Trainer::snapshot) of a trainer or the contents of a file.
///
/// Names are as PyTorch has them (`layer1.0.conv1.weight`) and sorted. Weights of a trainer remember the stage of each tensor: [`Self::save`]
/// writes one file for each. They also remember the [partition](Self::units_per_stage), by which heads are found in a model with another partition.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use interlock::Weights;
///
/// let folder = std::env::temp_dir().join("interlock-weights-example");
/// std::fs::create_dir_all(&folder)?;
/// let bias = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
/// let weights = Weights::from_iter([("fc.bias".to_owned(), bias)]);
/// weights.save(&folder)?;
/// let loaded = Weights::load(&folder)?;
/// assert_eq!(loaded.get("fc.bias").map(|bias| bias.dims()), Some(&[3][..]));
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Placed>,
    /// The number of shards; greater than the shard of every tensor.
    shards: usize,
    units_per_stage: Option<Vec<usize>>,
    /// Names and dtypes of tensors of a file that have a dtype that cannot be read.
    unreadable: BTreeMap<String, String>,
}

/// A tensor and the number of its shard.
#[derive(Clone, Debug)]
struct Placed {
    tensor: Tensor,
    shard: usize,
}

impl Weights {
    /// Returns the weights of stages, in order of stages: each stage's tensors are one shard.
    pub fn of_stages(stages: impl IntoIterator<Item = Vec<(String, Tensor)>>) -> Self {
        let mut weights = Self::default();
        for (shard, tensors) in stages.into_iter().enumerate() {
            weights.shards = shard + 1;
            weights.tensors.extend(tensors.into_iter().map(|(name, tensor)| (name, Placed { tensor, shard })));
        }
        weights
    }

    /// Returns the same weights with the number of units of each stage of their model.
    #[must_use]
    pub fn with_units_per_stage(self, units_per_stage: impl Into<Vec<usize>>) -> Self {
        Self { units_per_stage: Some(units_per_stage.into()), ..self }
    }

    /// Returns the number of units of each stage of their model, which tells the unit that each head follows: the last one of its stage. None for
    /// weights that do not come from a trainer, or from files of earlier versions.
    pub fn units_per_stage(&self) -> Option<&[usize]> {
        self.units_per_stage.as_deref()
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name).map(|placed| &placed.tensor)
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Sets the tensor called `name`, and returns the one that it replaces. A new name belongs to the first shard.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        self.shards = self.shards.max(1);
        let name = name.into();
        let shard = self.tensors.get(&name).map_or(0, |placed| placed.shard);
        self.tensors.insert(name, Placed { tensor, shard }).map(|placed| placed.tensor)
    }

    /// Removes the tensor called `name` and returns it.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name).map(|placed| placed.tensor)
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, placed)| (name.as_str(), &placed.tensor))
    }

    /// The names of a file's tensors that were left out, since their dtype cannot be read, each with that dtype, such as `BOOL`.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.unreadable.iter().map(|(name, dtype)| (name.as_str(), dtype.as_str()))
    }

    /// Returns the weights with each tensor under the name that `rename` returns, or without it where that is none.
    ///
    /// # Errors
    /// If two tensors get the same name.
    pub fn renamed(self, rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let Self { tensors, shards, units_per_stage, unreadable } = self;
        let mut renamed = Self { shards, units_per_stage, ..Self::default() };
        for (old, placed) in tensors {
            let Some(new) = rename(&old) else { continue };
            if renamed.tensors.insert(new.clone(), placed).is_some() {
                let problem = format!("{old} and another tensor are both called {new} in the model");
                return Err(Error::invalid("weights", problem, "remove one of them"));
            }
        }
        let unreadable = unreadable.into_iter().filter_map(|(old, dtype)| Some((rename(&old)?, dtype)));
        renamed.unreadable = unreadable.collect();
        Ok(renamed)
    }
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Self::of_stages([tensors.into_iter().collect()])
    }
}

impl IntoIterator for Weights {
    type Item = (String, Tensor);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter().map(|(name, placed)| (name, placed.tensor)).collect::<Vec<_>>().into_iter()
    }
}

impl<'a> IntoIterator for &'a Weights {
    type Item = (&'a str, &'a Tensor);
    type IntoIter = Box<dyn Iterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

/// The tensor called `name`.
///
/// # Panics
/// If there is none; [`Weights::get`] returns an option.
impl Index<&str> for Weights {
    type Output = Tensor;

    fn index(&self, name: &str) -> &Tensor {
        &self.tensors[name].tensor
    }
}
