//! The index of safetensors shards.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Error, Result,
    checksum::{self, damaged},
};

/// The index's file name.
pub(super) use crate::checkpoint::WEIGHTS as INDEX;

/// The key of the metadata with the number of units of each stage.
const UNITS: &str = "units_per_stage";

/// The keys of the metadata with the checksum of each shard, and with that of the index itself.
const SHARD_CHECKSUMS: &str = "shard_checksums";
const CHECKSUM: &str = "index_checksum";

/// The most bytes of an index: enough for a hundred thousand tensors.
const MOST: u64 = 16 << 20;

/// Returns the text of the index at `path`.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MOST {
        true => Err(io::Error::other(format!("an index of more than {MOST} bytes, which is not read"))),
        false => Ok(text),
    }
}

/// The contents of an index.
#[derive(Serialize, Deserialize)]
pub(super) struct ShardIndex {
    /// Anything; only the number of units of each stage is read.
    #[serde(default)]
    metadata: Value,
    /// The file of each tensor.
    pub(super) weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Returns the index of shards with these checksums.
    pub(super) fn new(
        total_size: u64,
        units: Option<Vec<usize>>,
        weight_map: BTreeMap<String, String>,
        checksums: BTreeMap<String, String>,
    ) -> Self {
        let mut metadata = json!({ "total_size": total_size });
        if let Some(units) = units {
            metadata[UNITS] = json!(units);
        }
        metadata[SHARD_CHECKSUMS] = json!(checksums);
        metadata[CHECKSUM] = json!(checksum::PLACE);
        Self { metadata, weight_map }
    }

    /// Returns the text of the index, with its own checksum.
    pub(super) fn to_text(&self, path: &Path) -> Result<String> {
        serde_json::to_string_pretty(self).map(|text| checksum::seal(&text)).map_err(|e| Error::file(path, e))
    }

    /// Reads the index at `path`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::file(path, "no such file or folder"),
            _ => Error::file(path, error),
        })?;
        Self::parse(path, &text)
    }

    /// Returns the names of the shards that the index at `path` lists; none if there is no index.
    pub(super) fn files(path: &Path) -> Result<BTreeSet<String>> {
        match read(path) {
            Ok(text) => Ok(Self::parse(path, &text)?.weight_map.into_values().collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(Error::file(path, error)),
        }
    }

    /// Reads the text of the index at `path`, and compares it with its own checksum, which those of other programs do not have.
    fn parse(path: &Path, text: &str) -> Result<Self> {
        let index: Self = serde_json::from_str(text)
            .map_err(|e| Error::file(path, format!("not an index of safetensors shards: {e}")))?;
        let own = |key: &str| index.metadata.get(key).and_then(Value::as_str);
        let has_checksums = text.contains(CHECKSUM) || text.contains(SHARD_CHECKSUMS);
        let is_whole = own(CHECKSUM).map_or(!has_checksums, |own| checksum::is_sealed(text, own));
        match is_whole {
            true => Ok(index),
            false => Err(Error::file(path, damaged("its text is not the one that was written"))),
        }
    }

    /// Returns the checksum of a shard; none if the index has none of any shard.
    ///
    /// # Errors
    /// If only that of this one is missing.
    pub(super) fn checksum_of(&self, path: &Path, shard: &str) -> Result<Option<&str>> {
        let Some(all) = self.metadata.get(SHARD_CHECKSUMS) else { return Ok(None) };
        match all.get(shard).and_then(Value::as_str) {
            Some(checksum) => Ok(Some(checksum)),
            None => Err(Error::file(path, damaged(format_args!("the checksum of {shard} is missing")))),
        }
    }

    /// Checks that all shards lie beside the index at `path`, or below its folder.
    pub(super) fn check_places(&self, path: &Path) -> Result<()> {
        let is_below = |shard: &str| Path::new(shard).components().all(|part| matches!(part, Component::Normal(_)));
        match self.weight_map.values().find(|shard| !is_below(shard)) {
            Some(shard) => Err(Error::file(path, format!("it names the shard {shard:?}, which is not in its folder"))),
            None => Ok(()),
        }
    }

    /// The number of units of each stage, if it is stated.
    pub(super) fn units_per_stage(&self, path: &Path) -> Result<Option<Vec<usize>>> {
        let Some(units) = self.metadata.get(UNITS) else { return Ok(None) };
        Option::deserialize(units)
            .map_err(|e| Error::file(path, format!("metadata.{UNITS} is no list of numbers: {e}")))
    }
}
