//! The weights of a model: tensors by name, in memory and in files.
//!
//! Files are safetensors shards, one for each stage, with an index as Hugging Face writes it. `model-00001-of-00004.safetensors` and so on hold
//! the tensors under their PyTorch names; `model.safetensors.index.json` maps each name to its shard. Its metadata has the number of units of each
//! stage, if it is known. The index is written last: a folder with an index is complete. Weights that are saved over others get other file names
//! (`model-v1-00001-of-00004.safetensors`), so that those of the old index stay as they are until the new index replaces it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    ops::Index,
    path::Path,
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, files};

/// The index's file name.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

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

    /// Writes the weights into `folder`, which must exist: one safetensors file for each shard, and the index. Weights that were saved there before
    /// are replaced; until the new ones are complete, the folder has the old ones.
    ///
    /// # Errors
    /// If a file cannot be written; the folder then still has the old weights.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let index = folder.join(INDEX);
        // An index that cannot be read lists nothing that could be lost.
        let old = ShardIndex::files(&index).unwrap_or_default();
        let name = |version: usize, shard: usize| {
            let version = if version > 0 { format!("v{version}-") } else { String::new() };
            format!("model-{version}{shard:05}-of-{:05}.safetensors", self.shards)
        };
        let mut files: Vec<String> = Vec::new();
        for version in 0.. {
            files = (1..=self.shards).map(|shard| name(version, shard)).collect();
            if !files.iter().any(|file| old.contains(file)) {
                break;
            }
        }
        let saved = self.write_to(folder, &files);
        if let Ok(present) = ShardIndex::files(&index) {
            let unused = old.iter().chain(&files).filter(|file| is_shard(file) && !present.contains(*file));
            // It does no harm if one stays.
            unused.for_each(|file| drop(std::fs::remove_file(folder.join(file))));
        }
        saved
    }

    /// Writes the shards to `files`, and the index last.
    fn write_to(&self, folder: &Path, files: &[String]) -> Result<()> {
        let mut weight_map = BTreeMap::new();
        let mut total_size = 0;
        for (shard, file) in files.iter().enumerate() {
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
            files::replace(&folder.join(file), |path| {
                candle_core::safetensors::save(&tensors, path).map_err(|e| Error::file(path, e))
            })?;
        }
        let metadata = Metadata { total_size, units_per_stage: self.units_per_stage.clone() };
        let index = ShardIndex { metadata, weight_map };
        let text = serde_json::to_string_pretty(&index).map_err(|e| Error::file(folder.join(INDEX), e))?;
        files::write(&folder.join(INDEX), text)
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
        let text =
            std::fs::read_to_string(path).map_err(|error| match path.parent().filter(|folder| folder.is_dir()) {
                Some(folder) if error.kind() == io::ErrorKind::NotFound && path.ends_with(INDEX) => {
                    Error::file(folder, format!("there are no weights in it: no {INDEX}"))
                }
                _ if error.kind() == io::ErrorKind::NotFound => Error::file(path, "no such file or folder"),
                _ => Error::file(path, error),
            })?;
        let index = ShardIndex::parse(path, &text)?;
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
        let weights = Self::of_stages(shards.collect::<Result<Vec<_>>>()?);
        Ok(Self { units_per_stage: index.metadata.units_per_stage, ..weights })
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    units_per_stage: Option<Vec<usize>>,
}

impl ShardIndex {
    /// Returns the names of the shards that the index at `path` lists; none if there is no index.
    fn files(path: &Path) -> Result<BTreeSet<String>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(path, &text)?.weight_map.into_values().collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(Error::file(path, error)),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::file(path, format!("not an index of safetensors shards: {e}")))
    }
}

/// Whether [`Weights::save`] may have written a file of this name.
fn is_shard(file: &str) -> bool {
    file.starts_with("model-") && file.ends_with(".safetensors") && !file.contains(['/', '\\'])
}

fn load_shard(path: &Path) -> Result<HashMap<String, Tensor>> {
    if let Err(error) = std::fs::File::open(path) {
        let missing = error.kind() == io::ErrorKind::NotFound;
        return Err(Error::file(path, if missing { "no such file or folder".to_owned() } else { error.to_string() }));
    }
    candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|e| Error::file(path, format!("not a safetensors file: {e}")))
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
        .with_units_per_stage([3, 1])
    }

    #[test]
    fn saved_weights_are_loaded_from_folder_index_and_shard() {
        let folder = tempfile::tempdir().unwrap();
        weights().save(folder.path()).unwrap();
        for path in [folder.path().to_owned(), folder.path().join(INDEX)] {
            let loaded = Weights::load(&path).unwrap();
            assert!(loaded.names().eq(["a.weight", "aux", "b.weight"]));
            assert_eq!(loaded.units_per_stage(), Some(&[3, 1][..]));
            assert_eq!(loaded["b.weight"].to_vec1::<f32>().unwrap(), [3.0, 4.0]);
        }
        assert_eq!(Weights::load(folder.path().join("model-00001-of-00002.safetensors")).unwrap().len(), 1);
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 3, "two shards, the index and nothing else");
    }

    /// The names in a folder.
    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_save_that_fails_leaves_the_old_weights() {
        let one = |v: f32| ("a.weight".to_owned(), Tensor::new(&[v], &Device::Cpu).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let value = || Weights::load(folder.path()).unwrap()["a.weight"].to_vec1::<f32>().unwrap()[0];
        let new = Weights::of_stages([vec![one(7.0)], vec![("b".to_owned(), one(8.0).1)]]);
        weights().save(folder.path()).unwrap();
        let before = names(folder.path());
        // The second shard cannot be written, then the index.
        for file in ["model-v1-00002-of-00002.safetensors", INDEX] {
            let in_the_way = folder.path().join(format!("{file}.part"));
            std::fs::create_dir(&in_the_way).unwrap();
            assert!(new.save(folder.path()).is_err());
            std::fs::remove_dir(&in_the_way).unwrap();
            assert_eq!((value(), names(folder.path())), (1.0, before.clone()));
        }
        new.save(folder.path()).unwrap();
        assert_eq!(value(), 7.0);
        let names_of = |version: &str| [1, 2].map(|shard| format!("model-{version}0000{shard}-of-00002.safetensors"));
        assert_eq!(names(folder.path()), [&names_of("v1-")[..], &[INDEX.to_owned()]].concat());
        // Another number of shards; then the first names are free again.
        Weights::from_iter([one(9.0)]).save(folder.path()).unwrap();
        assert_eq!((value(), names(folder.path()).len()), (9.0, 2));
        weights().save(folder.path()).unwrap();
        assert_eq!((value(), names(folder.path())), (1.0, before));
    }

    #[test]
    fn files_of_others_stay_when_weights_are_saved_over_an_index_that_lists_them() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let listed =
            r#"{"metadata":{"total_size":0},"weight_map":{"a":"../model-outside.safetensors","b":"other.bin"}}"#;
        for (path, text) in [("model-outside.safetensors", ""), ("inner/other.bin", ""), ("inner/index", listed)] {
            std::fs::write(folder.path().join(path), text).unwrap();
        }
        std::fs::rename(inner.join("index"), inner.join(INDEX)).unwrap();
        weights().save(&inner).unwrap();
        assert!(folder.path().join("model-outside.safetensors").exists() && inner.join("other.bin").exists());
        assert_eq!(Weights::load(&inner).unwrap().len(), 3);
        // An index that is damaged is replaced.
        std::fs::write(inner.join(INDEX), "{").unwrap();
        weights().save(&inner).unwrap();
        assert_eq!(Weights::load(&inner).unwrap().len(), 3);
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
