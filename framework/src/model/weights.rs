//! Parameters as files: safetensors shards, one a stage, with an index as Hugging Face writes it.
//!
//! `model-00001-of-00004.safetensors` … hold the tensors under their PyTorch names; `model.safetensors.index.json` tells which
//! name lies in which shard. Files are written aside and renamed, the index last: a folder with an index is whole.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, model::parameters::NamedTensors};

/// The index's file name.
pub const INDEX: &str = "model.safetensors.index.json";

#[derive(Serialize, Deserialize)]
struct Index {
    metadata: Metadata,
    weight_map: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    total_size: u64,
}

/// Writes every stage's tensors into `folder`, which must exist.
///
/// # Errors
/// If a file cannot be written; the index is then not there.
pub fn save(folder: &Path, stages: &[Vec<(String, Tensor)>]) -> Result<()> {
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (k, tensors) in stages.iter().enumerate() {
        let shard = format!("model-{:05}-of-{:05}.safetensors", k + 1, stages.len());
        for (name, tensor) in tensors {
            total_size += (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
            weight_map.insert(name.clone(), shard.clone());
        }
        let tensors: HashMap<&str, Tensor> = tensors.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        write_aside(&folder.join(&shard), |path| {
            candle_core::safetensors::save(&tensors, path).map_err(|e| Error::file(path, e))
        })?;
    }
    let index = Index { metadata: Metadata { total_size }, weight_map };
    let text = serde_json::to_string_pretty(&index).map_err(|e| Error::file(folder.join(INDEX), e))?;
    write_text(&folder.join(INDEX), &text)
}

/// Reads tensors by name, from a safetensors file, an index, or a folder that has an index.
///
/// # Errors
/// If a file is missing, is not what its name says, or does not hold what the index promises.
pub fn load(path: &Path) -> Result<NamedTensors> {
    let index = if path.is_dir() { path.join(INDEX) } else { path.to_owned() };
    if index.extension().is_some_and(|e| e == "json") {
        return load_index(&index);
    }
    load_shard(&index)
}

fn load_shard(path: &Path) -> Result<NamedTensors> {
    candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|e| Error::file(path, format!("not a safetensors file: {e}")))
}

fn load_index(path: &Path) -> Result<NamedTensors> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|e| Error::file(path, format!("not an index of safetensors shards: {e}")))?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, shard) in &index.weight_map {
        shards.entry(shard).or_default().push(name);
    }
    let mut all = NamedTensors::new();
    for (shard, names) in shards {
        let file = path.with_file_name(shard);
        let mut tensors = load_shard(&file)?;
        for name in names {
            let tensor = tensors.remove(name).ok_or_else(|| {
                Error::file(&file, format!("there is no tensor {name}, which {} promises", path.display()))
            })?;
            all.insert(name.to_owned(), tensor);
        }
    }
    Ok(all)
}

/// Writes `text` to `path` by way of a file beside it, so that the file is there whole or not at all.
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

    fn stages() -> Vec<Vec<(String, Tensor)>> {
        let tensor = |v: f32| Tensor::new(&[v, v + 1.0], &Device::Cpu).unwrap();
        vec![
            vec![("a.weight".to_owned(), tensor(1.0))],
            vec![("b.weight".to_owned(), tensor(3.0)), ("aux".to_owned(), tensor(5.0))],
        ]
    }

    #[test]
    fn what_is_saved_is_loaded_from_folder_index_and_shard() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), &stages()).unwrap();
        for path in [folder.path().to_owned(), folder.path().join(INDEX)] {
            let loaded = load(&path).unwrap();
            assert_eq!(loaded.len(), 3);
            assert_eq!(loaded["b.weight"].to_vec1::<f32>().unwrap(), [3.0, 4.0]);
        }
        assert_eq!(load(&folder.path().join("model-00001-of-00002.safetensors")).unwrap().len(), 1);
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 3, "nothing is left beside two shards and the index");
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).unwrap_err().to_string().contains(INDEX));
        save(folder.path(), &stages()).unwrap();
        let shard = folder.path().join("model-00002-of-00002.safetensors");
        std::fs::write(&shard, b"short").unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("model-00002-of-00002") && error.contains("not a safetensors file"), "{error}");
        let one: HashMap<&str, Tensor> = HashMap::from([("aux", Tensor::new(&[1.0_f32], &Device::Cpu).unwrap())]);
        candle_core::safetensors::save(&one, &shard).unwrap();
        assert!(load(folder.path()).unwrap_err().to_string().contains("no tensor b.weight"));
    }
}
