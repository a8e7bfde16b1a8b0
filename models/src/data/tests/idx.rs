use std::{fs, path::Path};

use serde_json::json;

use super::{config, gzip, labels, refused, values, write};
use crate::data::{DataKind, Normalization};

const TRAIN_IMAGES: &str = "train-images-idx3-ubyte";
const TRAIN_LABELS: &str = "train-labels-idx1-ubyte";
const TEST_IMAGES: &str = "t10k-images-idx3-ubyte";
const TEST_LABELS: &str = "t10k-labels-idx1-ubyte";

fn file(magic: u32, dimensions: &[u32], bytes: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let words = [magic].into_iter().chain(dimensions.iter().copied());
    words.flat_map(u32::to_be_bytes).chain(bytes).collect()
}

fn images(count: u32) -> Vec<u8> {
    file(0x803, &[count, 2, 3], (0..count * 6).map(|i| (i * 11 % 256) as u8))
}

fn labels_of(count: u32) -> Vec<u8> {
    file(0x801, &[count], (0..count).map(|i| (i % 10) as u8))
}

/// Makes a folder of 5 training and 3 test images of 2 × 3 pixels.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join(TRAIN_IMAGES), images(5));
    write(&folder.path().join(TRAIN_LABELS), labels_of(5));
    write(&folder.path().join(TEST_IMAGES), images(3));
    write(&folder.path().join(TEST_LABELS), labels_of(3));
    folder
}

fn json_of(folder: &Path) -> serde_json::Value {
    json!({ "kind": "idx", "path": folder, "normalize": false })
}

#[test]
fn images_and_labels_are_read() {
    let folder = folder();
    let data = config(json_of(folder.path())).open().expect("data");
    assert_eq!((data.train.len(), data.validation.len()), (5, 3));
    let batch = data.train.batch(&[1], None).expect("a batch");
    assert_eq!(batch.inputs.single().expect("one tensor").dims(), [1, 1, 2, 3]);
    assert_eq!(values(&batch), [66, 77, 88, 99, 110, 121].map(|p| p as f32 / 255.0));
    assert_eq!(labels(&batch), [1]);
    let DataKind::Images { channels: 1, height: 2, width: 3, classes: 10, class_names } = data.description.kind else {
        panic!("{:?}", data.description);
    };
    assert!(class_names.is_empty());
    assert_eq!(data.description.normalization, Some(Normalization::none(1)));
}

#[test]
fn gzip_and_names_with_dots_are_read_too() {
    let (plain, folder) = (folder(), folder());
    let at = |name: &str| folder.path().join(name);
    fs::remove_file(at(TRAIN_IMAGES)).expect("removes");
    write(&at("train-images-idx3-ubyte.gz"), gzip(&images(5)));
    fs::rename(at(TEST_LABELS), at("t10k-labels.idx1-ubyte")).expect("renames");
    let all: Vec<usize> = (0..5).collect();
    let read = |path| values(&config(json_of(path)).open().expect("data").train.batch(&all, None).expect("a batch"));
    assert_eq!(read(plain.path()), read(folder.path()));
}

#[test]
fn limit_takes_the_first_and_statistics_are_those_of_the_training_set() {
    let folder = folder();
    let data = config(json!({ "kind": "idx", "path": folder.path(), "limit": 2 })).open().expect("data");
    assert_eq!((data.train.len(), data.validation.len()), (2, 3));
    let pixels: Vec<u8> = (0..12).map(|i| i * 11).collect();
    assert_eq!(data.description.normalization, Some(Normalization::of(&pixels, [1, 2, 3])));
    // Equal pixels have equal values in training and test set.
    let first = |set: &dyn interlock::Dataset| values(&set.batch(&[0], None).expect("a batch"));
    assert_eq!(first(&*data.train), first(&*data.validation));
    refused(json!({ "kind": "idx", "path": folder.path(), "limit": 0 }), &["data.limit", "at least 1"]);
}

#[test]
fn given_normalization_is_used() {
    let folder = folder();
    let normalize = json!({ "mean": [0.25], "std": [0.5] });
    let data = config(json!({ "kind": "idx", "path": folder.path(), "normalize": normalize })).open().expect("data");
    assert_eq!(values(&data.train.batch(&[0], None).expect("a batch"))[0], -0.5);
    let normalize = json!({ "mean": [0.25, 0.25, 0.25], "std": [0.5, 0.5, 0.5] });
    refused(
        json!({ "kind": "idx", "path": folder.path(), "normalize": normalize }),
        &["data.normalize", "3 means", "1 channels"],
    );
}

/// Asserts that the folder is refused if file `name` has other content or is missing.
fn refused_with(name: &str, bytes: Option<Vec<u8>>, parts: &[&str]) {
    let folder = folder();
    let path = folder.path().join(name);
    match bytes {
        Some(bytes) => write(&path, bytes),
        None => fs::remove_file(&path).expect("removes"),
    }
    let name = [name];
    refused(json_of(folder.path()), &[parts, &name].concat());
}

#[test]
fn missing_files_are_refused() {
    refused(json_of(Path::new("/no/such/folder")), &["/no/such/folder: no such folder", TRAIN_IMAGES]);
    for name in [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS] {
        refused_with(name, None, &["no such file, nor with .gz"]);
    }
    let folder = folder();
    refused(json_of(&folder.path().join(TEST_LABELS)), &["is not a folder"]);
}

#[test]
fn damaged_headers_are_refused() {
    refused_with(
        TRAIN_IMAGES,
        Some(labels_of(5)),
        &["begins with 0x00000801 at byte 0", "images begins with 0x00000803"],
    );
    refused_with(TEST_LABELS, Some(images(3)), &["begins with 0x00000803 at byte 0", "labels begins with 0x00000801"]);
    let page = b"\r\n<!DOCTYPE html><title>403 Forbidden</title>";
    refused_with(TRAIN_IMAGES, Some(page.to_vec()), &["an HTML or XML page", "fetch the file again"]);
    refused_with(TRAIN_IMAGES, Some(images(5)[..10].to_vec()), &["ends at byte 10", "header of 16 bytes"]);
    refused_with(TRAIN_LABELS, Some(Vec::new()), &["ends at byte 0", "header of 8 bytes"]);
    refused_with(TRAIN_IMAGES, Some(file(0x803, &[0, 2, 3], [])), &["holds 0 images"]);
    let huge = file(0x803, &[u32::MAX, u32::MAX, u32::MAX], [0; 9]);
    refused_with(TRAIN_IMAGES, Some(huge), &["4294967295", "more than memory can hold"]);
}

#[test]
fn wrong_sizes_are_refused() {
    let mut cut = images(5);
    cut.pop();
    refused_with(TRAIN_IMAGES, Some(cut), &["has 45 bytes", "[5, 2, 3]", "46 bytes"]);
    let mut long = labels_of(3);
    long.push(0);
    refused_with(TEST_LABELS, Some(long), &["more bytes", "11 bytes"]);
    refused_with(TRAIN_LABELS, Some(labels_of(4)), &["4 labels", "holds 5 images", TRAIN_IMAGES]);
}

#[test]
fn label_out_of_range_is_named() {
    let bad = file(0x801, &[5], [0, 9, 10, 1, 200]);
    refused_with(TRAIN_LABELS, Some(bad), &["record 2 (byte 10) has label 10", "0 to 9"]);
}

#[test]
fn damaged_gzip_is_refused() {
    let mut bytes = gzip(&images(5));
    bytes.truncate(bytes.len() - 6);
    refused_with(TRAIN_IMAGES, Some(bytes), &["damaged gzip data", "fetch the file again"]);
    let mut bytes = gzip(&images(5));
    let at = bytes.len() - 6;
    bytes[at] ^= 1;
    refused_with(TRAIN_IMAGES, Some(bytes), &["damaged gzip data"]);
}

#[test]
fn sets_of_different_shapes_are_refused() {
    let folder = folder();
    write(&folder.path().join(TEST_IMAGES), file(0x803, &[3, 1, 1], [0; 3]));
    refused(json_of(folder.path()), &["test images of 1 × 1 pixels", "training images of 2 × 3"]);
}

#[test]
fn gzip_files_are_unpacked_as_far_as_their_headers_state() {
    let folder = folder();
    let bomb = [images(5), vec![0; 64 << 20]].concat();
    write(&folder.path().join(TRAIN_IMAGES), gzip(&bomb));
    refused(json_of(folder.path()), &[TRAIN_IMAGES, "more bytes (unpacked) than its header states"]);
    // A header that states more than there is, and one that states more than can be.
    for count in [1 << 20, u32::MAX] {
        let stated = file(0x803, &[count, count, count], [0; 8]);
        write(&folder.path().join(TRAIN_IMAGES), gzip(&stated));
        refused(json_of(folder.path()), &[TRAIN_IMAGES, "its header states"]);
    }
}
