//! Tests of the data sets, with small files that they write.

mod cifar;
mod config;
#[cfg(feature = "images")]
mod decode;
mod embedded;
#[cfg(feature = "images")]
mod folder;
mod idx;
mod images;
mod listing;
mod text;
mod tokenizers;
mod trained;
mod vocabulary;

use std::{fs, io::Write, path::Path};

use flate2::{Compression, write::GzEncoder};
use interlock::{Batch, Key, Result};

use super::{Data, DataConfig};

fn config(json: serde_json::Value) -> DataConfig {
    serde_json::from_value(json).expect("a valid configuration")
}

/// Asserts that opening `json` is refused with a message that contains all `parts`.
fn refused(json: serde_json::Value, parts: &[&str]) {
    refusal(config(json).open(), parts);
}

fn refusal(result: Result<Data>, parts: &[&str]) {
    let error = result.expect_err("must be refused");
    assert!(error.is_refusal(), "not a refusal: {error:?}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("writes to memory");
    encoder.finish().expect("writes to memory")
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("has a parent")).expect("makes folders");
    fs::write(path, bytes).expect("writes a file");
}

/// Returns the inputs of a batch of images, one after another.
fn values(batch: &Batch) -> Vec<f32> {
    let inputs = batch.inputs.single().expect("one tensor");
    inputs.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

fn labels(batch: &Batch) -> Vec<u32> {
    batch.targets.to_vec1().expect("labels")
}

/// Returns the inputs and the targets of a batch of tokens.
fn tokens(batch: &Batch) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let inputs = batch.inputs.single().expect("one tensor");
    (inputs.to_vec2().expect("tokens"), batch.targets.to_vec2().expect("tokens"))
}

/// Asserts that the targets alone are those of a batch, augmented or not.
fn assert_targets_alone(data: &Data) {
    let (train, last) = (&data.train, data.train.len() - 1);
    for augment in [None, Some(Key::new(3))] {
        let numbers = [last, 0, last];
        let (alone, batch) = (train.targets(&numbers, augment), train.batch(&numbers, augment));
        let values =
            |targets: candle_core::Tensor| targets.flatten_all().and_then(|t| t.to_vec1::<u32>()).expect("u32");
        let (alone, targets) = (alone.expect("targets"), batch.expect("a batch").targets);
        assert_eq!(alone.dims(), targets.dims());
        assert_eq!(values(alone), values(targets));
    }
    assert!(train.targets(&[last + 1], None).is_err());
}
