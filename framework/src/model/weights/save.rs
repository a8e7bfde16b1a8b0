//! Weights as files: safetensors shards, one for each stage, with an index as Hugging Face writes it.
//!
//! `model-00001-of-00004.safetensors` and so on hold the tensors under their PyTorch names; `model.safetensors.index.json` maps each name to its
//! shard. Its metadata has the number of units of each stage, if it is known, and checksums of the shards and of itself. The index is written last: a folder with an index is complete. Weights
//! that are saved over others get other file names (`model-v1-00001-of-00004.safetensors`), so that those of the old index stay as they are until the
//! new index replaces it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{
    Placed, Weights,
    index::{INDEX, ShardIndex},
};
use crate::{Error, Result, checkpoint::FileEntry, files};

/// The files of shards by their names in the folder.
type Shards = BTreeMap<String, FileEntry>;

impl Weights {
    /// Writes the weights into `folder`, which must exist: one safetensors file for each shard, and the index. Weights that were saved there before
    /// are replaced; until the new ones are complete, the folder has the old ones.
    ///
    /// # Errors
    /// If a file cannot be written; the folder then still has the old weights.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.save_with(folder.as_ref(), &BTreeMap::new()).map(drop)
    }

    /// As [`Self::save`], but takes these shards, which have no tensors here, from the files in which other ranks have written them. Returns what has been
    /// written.
    ///
    /// # Errors
    /// As [`Self::save`], or if one of these files is not as it was written.
    pub(crate) fn save_with(&self, folder: &Path, elsewhere: &BTreeMap<usize, ShardFile>) -> Result<Shards> {
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
        let saved = self.write_to(folder, &files, elsewhere);
        if let Ok(present) = ShardIndex::files(&index) {
            let unused = old.iter().chain(&files).filter(|file| is_shard(file) && !present.contains(*file));
            // It does no harm if one stays.
            unused.for_each(|file| drop(std::fs::remove_file(folder.join(file))));
        }
        saved
    }

    /// Writes the shards to `files`, each on a thread of its own, and the index last.
    fn write_to(&self, folder: &Path, files: &[String], elsewhere: &BTreeMap<usize, ShardFile>) -> Result<Shards> {
        let write = |(shard, file): (usize, &String)| -> Result<(String, FileEntry)> {
            let path = folder.join(file);
            if let Some(written) = elsewhere.get(&shard) {
                return Ok((file.clone(), written.move_to(&path)?));
            }
            let tensors = self.tensors.iter().filter(|(_, placed)| placed.shard == shard);
            write_file(&path, tensors.map(|(name, placed)| (name.as_str(), &placed.tensor)), Place::Own)?;
            Ok((file.clone(), FileEntry::of(&path)?))
        };
        let shards = files.iter().enumerate();
        let shards = std::thread::scope(|scope| {
            let started: Vec<_> = shards
                .map(|shard| (shard, std::thread::Builder::new().spawn_scoped(scope, move || write(shard))))
                .collect();
            let written = started.into_iter().map(|(shard, thread)| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| Err(Error::panicked(&*panic))),
                // The system has no thread left.
                Err(_) => write(shard),
            });
            written.collect::<Result<Shards>>()
        })?;
        let mut weight_map = BTreeMap::new();
        let mut total_size = 0;
        for (name, Placed { tensor, shard }) in &self.tensors {
            total_size += bytes_of(tensor);
            weight_map.insert(name.clone(), files[*shard].clone());
        }
        for (&shard, written) in elsewhere {
            total_size += written.bytes;
            weight_map.extend(written.names.iter().map(|name| (name.clone(), files[shard].clone())));
        }
        let checksums = shards.iter().map(|(file, entry)| (file.clone(), entry.checksum().to_owned())).collect();
        let index = ShardIndex::new(total_size, self.units_per_stage.clone(), weight_map, checksums);
        let path = folder.join(INDEX);
        files::write(&path, index.to_text(&path)?)?;
        Ok(shards)
    }

    /// Writes all tensors to one safetensors file, which replaces one that is there.
    ///
    /// # Errors
    /// If it cannot be written; an older file then is as it was.
    pub fn save_file(&self, path: impl AsRef<Path>) -> Result<()> {
        write_file(path.as_ref(), self.iter(), Place::Named)
    }
}

fn bytes_of(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

/// A shard in a file that waits for the rest of its weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShardFile {
    path: PathBuf,
    names: Vec<String>,
    /// The bytes of its tensors.
    bytes: u64,
    entry: FileEntry,
}

impl ShardFile {
    /// Writes tensors to the file at `path`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(path: PathBuf, tensors: &[(String, Tensor)]) -> Result<Self> {
        write_file(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), Place::Own)?;
        let names = tensors.iter().map(|(name, _)| name.clone()).collect();
        let bytes = tensors.iter().map(|(_, tensor)| bytes_of(tensor)).sum();
        Ok(Self { entry: FileEntry::of(&path)?, path, names, bytes })
    }

    /// Moves the file to `place`, in the same file system. Only the rank that wrote it has read its contents; here only the size is compared.
    fn move_to(&self, place: &Path) -> Result<FileEntry> {
        let size = fs::metadata(&self.path).map_err(|e| Error::file(&self.path, e))?.len();
        if size != self.entry.bytes {
            let cause = format!("it has {size} bytes, of {} that another rank has written", self.entry.bytes);
            return Err(Error::file(&self.path, cause));
        }
        fs::rename(&self.path, place).map_err(|e| Error::file(place, e))?;
        Ok(self.entry.clone())
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
