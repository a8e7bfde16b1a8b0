//! Weights from files, this project's own and those of other programs.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, safetensors::Load};
use safetensors::SafeTensors;

use super::{
    Weights, header,
    index::{INDEX, ShardIndex},
};
use crate::{
    Error, Result, checkpoint,
    checksum::{self, damaged},
};

/// The name of a file with all weights, as other programs write it.
const SINGLE: &str = "model.safetensors";
/// The endings of files of PyTorch's own format, which is Python's pickle.
const PICKLES: [&str; 5] = ["bin", "ckpt", "pkl", "pt", "pth"];
/// What to do with a file of PyTorch's own format.
const CONVERT: &str = "is in PyTorch's pickle format, which can run code when it is read, so it is not read here; convert it in Python: \
                       import torch, safetensors.torch as st; \
                       st.save_file({k: v.clone().contiguous() for k, v in torch.load(\"IN\", weights_only=True).items()}, \"OUT.safetensors\")";

/// The tensors of a file.
#[derive(Default)]
struct Shard {
    tensors: HashMap<String, Tensor>,
    /// Names and dtypes of tensors that cannot be read.
    unreadable: BTreeMap<String, String>,
}

impl Weights {
    /// Reads weights from a safetensors file, an index of such files, a folder that has an index or a file `model.safetensors`, or the folder of a run
    /// ([`TrainerBuilder::checkpoint`](crate::TrainerBuilder::checkpoint)): those in its folder `model`, or else those of its last checkpoint.
    ///
    /// Files that this library has written are compared with their checksums.
    ///
    /// Tensors whose dtype cannot be read, such as those of truth values, are left out ([`Self::unreadable`]).
    ///
    /// # Errors
    /// If a file is missing or damaged, or does not hold the tensors that the index lists.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_within(path, u64::MAX)
    }

    /// Reads weights as [`Self::load`] does, unless the files have more than `memory` bytes.
    ///
    /// # Errors
    /// As [`Self::load`], or if they have more.
    pub fn load_within(path: impl AsRef<Path>, memory: u64) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { in_folder(&checkpoint::weights_in(path))? } else { path.to_owned() };
        if file.extension().is_some_and(|extension| extension == "json") {
            return Self::load_index(&file, memory);
        }
        let Shard { tensors, unreadable } = Shard::load(&file, None, &mut { memory })?;
        Ok(Self { unreadable, ..tensors.into_iter().collect() })
    }

    fn load_index(path: &Path, mut memory: u64) -> Result<Self> {
        let index = ShardIndex::read(path)?;
        index.check_places(path)?;
        let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, shard) in &index.weight_map {
            names.entry(shard).or_default().push(name);
        }
        let (mut shards, mut unreadable) = (Vec::with_capacity(names.len()), BTreeMap::new());
        for (shard, names) in names {
            let file = path.with_file_name(shard);
            let mut shard = Shard::load(&file, index.checksum_of(path, shard)?, &mut memory)?;
            let mut tensors = Vec::with_capacity(names.len());
            for name in names {
                match (shard.tensors.remove(name), shard.unreadable.remove(name)) {
                    (Some(tensor), _) => tensors.push((name.to_owned(), tensor)),
                    (None, Some(dtype)) => drop(unreadable.insert(name.to_owned(), dtype)),
                    (None, None) => {
                        let problem = format!("no tensor {name}, which {} lists", path.display());
                        return Err(Error::file(file, problem));
                    }
                }
            }
            shards.push(tensors);
        }
        Ok(Self { units_per_stage: index.units_per_stage(path)?, unreadable, ..Self::of_stages(shards) })
    }
}

/// Returns the file of a folder that leads to all of its weights.
fn in_folder(folder: &Path) -> Result<PathBuf> {
    let place = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
    if let Some(path) = place(INDEX).or_else(|| place(SINGLE)) {
        return Ok(path);
    }
    let entries = fs::read_dir(folder).map_err(|e| Error::file(folder, e))?;
    let mut names: Vec<PathBuf> = entries.filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name()))).collect();
    names.sort();
    let ends = |name: &PathBuf, endings: &[&str]| {
        name.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| endings.contains(&ending))
    };
    let of_endings = |endings: &[&str]| {
        let found = names.iter().filter(|name| ends(name, endings)).map(|name| name.display().to_string());
        found.collect::<Vec<_>>().join(", ")
    };
    let problem = match (of_endings(&["safetensors"]), of_endings(&PICKLES)) {
        (tensors, _) if !tensors.is_empty() => {
            format!("no {INDEX} and no {SINGLE} in it; name one of its files: {tensors}")
        }
        (_, pickles) if !pickles.is_empty() => format!("no {INDEX} and no {SINGLE} in it; {pickles} {CONVERT}"),
        _ => format!("there are no weights in it: no {INDEX} and no {SINGLE}"),
    };
    Err(Error::file(folder, problem))
}

impl Shard {
    /// Reads a safetensors file, unless it has more than `memory` bytes, from which its own are taken, and compares it with its checksum if there is one.
    fn load(path: &Path, expected: Option<&str>, memory: &mut u64) -> Result<Self> {
        // Neither waits for the writer of a pipe nor reads a device without end.
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(Error::file(path, "is not a file"));
        }
        let mut file = fs::File::open(path).map_err(|error| unreadable(path, &error))?;
        if let Some(expected) = expected
            && checksum::of_file(path)?.0 != expected
        {
            return Err(Error::file(path, damaged("its checksum is not that of the file that was written")));
        }
        let size = file.metadata().map_err(|error| unreadable(path, &error))?.len();
        let failed = |e: &dyn std::fmt::Display| Error::file(path, format!("not a safetensors file: {e}"));
        let mut bytes = header::start(&mut file, size).map_err(|(problem, start)| match kind_of(path, &start) {
            Some(kind) => Error::file(path, kind),
            None => failed(&problem),
        })?;
        *memory = memory.checked_sub(size).ok_or_else(|| {
            let problem = format!("it has {} MiB, more than the memory that there is for weights", size >> 20);
            Error::file(path, format!("{problem}; use a smaller model, or a machine with more memory"))
        })?;
        bytes.reserve_exact((size as usize).saturating_sub(bytes.len()));
        file.take(size).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| failed(&e))?;
        let mut shard = Self::default();
        for (name, view) in file.iter() {
            if DType::try_from(view.dtype()).is_err() {
                shard.unreadable.insert(name.to_owned(), format!("{:?}", view.dtype()));
                continue;
            }
            let tensor = view.load(&Device::Cpu).map_err(|e| failed(&format_args!("tensor {name}: {e}")))?;
            shard.tensors.insert(name.to_owned(), tensor);
        }
        Ok(shard)
    }
}

/// Returns what a file that is no safetensors file is, and what to do with it.
fn kind_of(path: &Path, bytes: &[u8]) -> Option<String> {
    let has_ending =
        path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| PICKLES.contains(&ending));
    let is_pickle = bytes.starts_with(b"\x80") && bytes.get(1).is_some_and(|version| (2..=5).contains(version));
    let name = |kind: &str| Some(format!("is {kind}; give a safetensors file"));
    match bytes {
        _ if bytes.starts_with(b"PK\x03\x04") || is_pickle || has_ending => Some(CONVERT.to_owned()),
        _ if bytes.is_empty() => name("empty"),
        _ if bytes.starts_with(b"version https://git-lfs") => {
            Some("is a pointer of Git LFS, not the file itself; fetch the file with `git lfs pull`".to_owned())
        }
        _ if bytes.starts_with(b"GGUF") => name("a GGUF file"),
        _ if bytes.starts_with(b"\x89HDF\r\n\x1a\n") => name("an HDF5 file"),
        _ if bytes.trim_ascii_start().starts_with(b"<") => name("a web page"),
        _ => None,
    }
}

/// Returns the error for a file that could not be read.
fn unreadable(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::file(path, "no such file or folder"),
        _ => Error::file(path, error),
    }
}
