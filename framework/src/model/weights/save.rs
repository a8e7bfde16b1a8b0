//! Weights as files: safetensors shards, one for each stage, with an index as Hugging Face writes it.
//!
//! `model-00001-of-00004.safetensors` and so on hold the tensors under their PyTorch names; `model.safetensors.index.json` maps each name to its
//! shard. Its metadata has the number of units of each stage, if it is known, and checksums of the shards and of itself. The index is written last: a folder with an index is complete. Weights
//! that are saved over others get other file names (`model-v1-00001-of-00004.safetensors`), so that those of the old index stay as they are until the
//! new index replaces it.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use candle_core::Tensor;

use super::{
    Placed, Weights,
    index::{INDEX, ShardIndex},
};
use crate::{Error, Result, checksum, files};

impl Weights {
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

    /// Writes the shards to `files`, each on a thread of its own, and the index last.
    fn write_to(&self, folder: &Path, files: &[String]) -> Result<()> {
        let write = |(shard, file): (usize, &String)| -> Result<(String, String)> {
            let path = folder.join(file);
            let tensors = self.tensors.iter().filter(|(_, placed)| placed.shard == shard);
            write_file(&path, tensors.map(|(name, placed)| (name.as_str(), &placed.tensor)), Place::Own)?;
            Ok((file.clone(), checksum::of_file(&path)?.0))
        };
        let shards = files.iter().enumerate();
        let checksums = std::thread::scope(|scope| {
            let started: Vec<_> = shards
                .map(|shard| (shard, std::thread::Builder::new().spawn_scoped(scope, move || write(shard))))
                .collect();
            let written = started.into_iter().map(|(shard, thread)| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| Err(Error::panicked(&*panic))),
                // The system has no thread left.
                Err(_) => write(shard),
            });
            written.collect::<Result<BTreeMap<_, _>>>()
        })?;
        let mut weight_map = BTreeMap::new();
        let mut total_size = 0;
        for (name, Placed { tensor, shard }) in &self.tensors {
            total_size += (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
            weight_map.insert(name.clone(), files[*shard].clone());
        }
        let index = ShardIndex::new(total_size, self.units_per_stage.clone(), weight_map, checksums);
        let path = folder.join(INDEX);
        files::write(&path, index.to_text(&path)?)
    }

    /// Writes all tensors to one safetensors file, which replaces one that is there.
    ///
    /// # Errors
    /// If it cannot be written; an older file then is as it was.
    pub fn save_file(&self, path: impl AsRef<Path>) -> Result<()> {
        write_file(path.as_ref(), self.iter(), Place::Named)
    }
}

/// Where a file is written.
#[derive(Clone, Copy)]
enum Place {
    /// In a folder that this library writes.
    Own,
    /// Where a user wants it, such as through a symbolic link.
    Named,
}

/// Writes tensors to a safetensors file, marked as PyTorch's as other programs expect it.
fn write_file<'a>(path: &Path, tensors: impl Iterator<Item = (&'a str, &'a Tensor)>, place: Place) -> Result<()> {
    let tensors = tensors.map(|(name, tensor)| Ok((name, tensor.contiguous()?))).collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let write = |aside: &Path| {
        safetensors::serialize_to_file(tensors, Some(metadata), aside).map_err(|e| Error::file(aside, e))
    };
    match place {
        Place::Own => files::replace(path, write),
        Place::Named => files::replace_output(path, write),
    }
}

/// Whether [`Weights::save`] may have written a file of this name.
fn is_shard(file: &str) -> bool {
    file.starts_with("model-") && file.ends_with(".safetensors") && !file.contains(['/', '\\'])
}
