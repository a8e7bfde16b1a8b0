//! The weights of a model: tensors by name, in memory and in files.
//!
//! Files are safetensors shards, one for each stage, with an index as Hugging Face writes it. `model-00001-of-00004.safetensors` and so on hold
//! the tensors under their PyTorch names; `model.safetensors.index.json` maps each name to its shard. Files are written under another name and
//! renamed, the index last: a folder with an index is complete.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Index,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The index's file name.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Parameters and buffers by name, such as a [`snapshot`](crate::Trainer::snapshot) of a trainer or the contents of a file.
///
/// Names are as PyTorch has them (`layer1.0.conv1.weight`) and sorted. Weights of a trainer remember the stage of each tensor: [`Self::save`]
/// writes one file for each.
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

    /// Writes the weights into `folder`, which must exist: one safetensors file for each shard, and the index.
    ///
    /// # Errors
    /// If a file cannot be written; the index is then not there, nor one of earlier weights in the same folder.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        // An older index would list shards of which some are replaced and some are not.
        match std::fs::remove_file(folder.join(INDEX)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file(folder.join(INDEX), error));
            }
            _ => {}
        }
        let mut weight_map = BTreeMap::new();
        let mut total_size = 0;
        for shard in 0..self.shards {
            let file = format!("model-{:05}-of-{:05}.safetensors", shard + 1, self.shards);
            let tensors: HashMap<&str, Tensor> = self
                .tensors
                .iter()
                .filter(|(_, placed)| placed.shard == shard)
                .map(|(name, placed)| (name.as_str(), placed.tensor.clone()))
                .collect();
            for (name, tensor) in &tensors {
                total_size += (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
                weight_map.insert((*name).to_owned(), file.clone());
            }
            write_aside(&folder.join(&file), |path| {
                candle_core::safetensors::save(&tensors, path).map_err(|e| Error::file(path, e))
            })?;
        }
        let index = ShardIndex { metadata: Metadata { total_size }, weight_map };
        let text = serde_json::to_string_pretty(&index).map_err(|e| Error::file(folder.join(INDEX), e))?;
        write_text(&folder.join(INDEX), &text)
    }

    /// Reads weights from a safetensors file, an index, or a folder that has an index.
    ///
    /// # Errors
    /// If a file is missing or broken, or does not hold the tensors that the index lists.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join(INDEX) } else { path.to_owned() };
        if file.extension().is_some_and(|extension| extension == "json") {
            return Self::load_index(&file);
        }
        Ok(load_shard(&file)?.into_iter().collect())
    }

    fn load_index(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        let index: ShardIndex = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("not an index of safetensors shards: {e}")))?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, shard) in &index.weight_map {
            shards.entry(shard).or_default().push(name);
        }
        let shards = shards.into_iter().map(|(shard, names)| {
            let file = path.with_file_name(shard);
            let mut tensors = load_shard(&file)?;
            let take = |name: &str| match tensors.remove(name) {
                Some(tensor) => Ok((name.to_owned(), tensor)),
                None => Err(Error::file(&file, format!("no tensor {name}, which {} lists", path.display()))),
            };
            names.into_iter().map(take).collect()
        });
        Ok(Self::of_stages(shards.collect::<Result<Vec<_>>>()?))
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

#[derive(Serialize, Deserialize)]
struct ShardIndex {
    metadata: Metadata,
    weight_map: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    total_size: u64,
}

fn load_shard(path: &Path) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|e| Error::file(path, format!("not a safetensors file: {e}")))
}

/// Writes `text` to `path` through a second file that is then renamed, so that `path` is written completely or not at all.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_aside(path, |aside| std::fs::write(aside, text).map_err(|e| Error::file(aside, e)))
}

fn write_aside(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let aside: PathBuf = path.with_file_name(name);
    write(&aside)?;
    std::fs::rename(&aside, path).map_err(|e| Error::file(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> Weights {
        let tensor = |v: f32| Tensor::new(&[v, v + 1.0], &Device::Cpu).unwrap();
        Weights::of_stages([
            vec![("a.weight".to_owned(), tensor(1.0))],
            vec![("b.weight".to_owned(), tensor(3.0)), ("aux".to_owned(), tensor(5.0))],
        ])
    }

    #[test]
    fn saved_weights_are_loaded_from_folder_index_and_shard() {
        let folder = tempfile::tempdir().unwrap();
        weights().save(folder.path()).unwrap();
        for path in [folder.path().to_owned(), folder.path().join(INDEX)] {
            let loaded = Weights::load(&path).unwrap();
            assert!(loaded.names().eq(["a.weight", "aux", "b.weight"]));
            assert_eq!(loaded["b.weight"].to_vec1::<f32>().unwrap(), [3.0, 4.0]);
        }
        assert_eq!(Weights::load(folder.path().join("model-00001-of-00002.safetensors")).unwrap().len(), 1);
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 3, "two shards, the index and nothing else");
    }

    #[test]
    fn weights_that_are_saved_in_part_over_others_cannot_be_loaded() {
        let folder = tempfile::tempdir().unwrap();
        weights().save(folder.path()).unwrap();
        // The second shard cannot be written.
        let shard = folder.path().join("model-00002-of-00002.safetensors");
        std::fs::remove_file(&shard).unwrap();
        std::fs::create_dir(&shard).unwrap();
        assert!(weights().save(folder.path()).is_err());
        assert!(Weights::load(folder.path()).unwrap_err().to_string().contains(INDEX));
        std::fs::remove_dir(&shard).unwrap();
        weights().save(folder.path()).unwrap();
        assert_eq!(Weights::load(folder.path()).unwrap().len(), 3);
    }

    #[test]
    fn loaded_weights_are_saved_as_the_same_files() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        weights().save(first.path()).unwrap();
        Weights::load(first.path()).unwrap().save(second.path()).unwrap();
        for file in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX] {
            let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
            assert_eq!(read(first.path()), read(second.path()), "{file}");
        }
    }

    #[test]
    fn weights_are_a_map() {
        let mut weights = weights();
        let zero = Tensor::new(&[0.0_f32], &Device::Cpu).unwrap();
        assert!(weights.insert("new", zero.clone()).is_none() && weights.insert("aux", zero).is_some());
        assert_eq!(weights.remove("new").unwrap().dims(), [1]);
        assert!(!weights.contains("new") && weights.get("new").is_none());
        assert_eq!((weights.len(), weights.get("aux").unwrap().dims()), (3, &[1][..]));
        let names: Vec<String> = weights.clone().into_iter().map(|(name, _)| name).collect();
        assert!(names.iter().map(String::as_str).eq(weights.iter().map(|(name, _)| name)));
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Weights::load(folder.path()).unwrap_err().to_string().contains(INDEX));
        weights().save(folder.path()).unwrap();
        let shard = folder.path().join("model-00002-of-00002.safetensors");
        std::fs::write(&shard, b"short").unwrap();
        let error = Weights::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("model-00002-of-00002") && error.contains("not a safetensors file"), "{error}");
        let one: HashMap<&str, Tensor> = HashMap::from([("aux", Tensor::new(&[1.0_f32], &Device::Cpu).unwrap())]);
        candle_core::safetensors::save(&one, &shard).unwrap();
        assert!(Weights::load(folder.path()).unwrap_err().to_string().contains("no tensor b.weight"));
    }
}
