use std::{fs, path::Path};

use serde_json::json;

use super::{config, gzip, labels, refused, values, write};
use crate::data::DataKind;

const FILES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];

/// Returns two records, whose labels and pixels depend on the number of the file.
fn records(number: usize, label_bytes: usize) -> Vec<u8> {
    let record = |i: usize| {
        let label = (2 * number + i) % 10;
        let labels = if label_bytes == 2 { vec![99, 90 + label as u8] } else { vec![label as u8] };
        labels.into_iter().chain((0..3072).map(move |p| ((p + number * 5 + i) % 256) as u8))
    };
    (0..2).flat_map(record).collect()
}

fn cifar10(folder: &Path) {
    for (number, name) in FILES.iter().enumerate() {
        write(&folder.join(name), records(number, 1));
    }
}

fn archive(members: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice()).expect("appends");
    }
    builder.into_inner().expect("finishes")
}

fn cifar10_archive() -> Vec<u8> {
    let files =
        FILES.iter().enumerate().map(|(number, name)| (format!("cifar-10-batches-bin/{name}"), records(number, 1)));
    archive([("cifar-10-batches-bin/readme.html".to_owned(), b"hello".to_vec())].into_iter().chain(files))
}

fn json_of(path: &Path) -> serde_json::Value {
    json!({ "kind": "cifar10", "path": path, "normalize": false })
}

/// Returns the labels of the training and test images at `path`, and the pixels of the training images.
fn summary(path: &Path) -> (Vec<u32>, Vec<u32>, Vec<f32>) {
    let data = config(json_of(path)).open().expect("data");
    let train = data.train.batch(&(0..10).collect::<Vec<_>>(), None).expect("a batch");
    let test = data.validation.batch(&[0, 1], None).expect("a batch");
    (labels(&train), labels(&test), values(&train))
}

#[test]
fn folder_subfolder_and_archives_give_the_same_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    cifar10(&at("plain"));
    cifar10(&at("around/cifar-10-batches-bin"));
    write(&at("download/cifar-10-binary.tar.gz"), gzip(&cifar10_archive()));
    write(&at("cifar.tar"), cifar10_archive());
    let plain = summary(&at("plain"));
    assert_eq!(plain.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(plain.1, [0, 1]);
    // Record 1 of file 2, first and last pixel: channels are planes.
    assert_eq!(plain.2[5 * 3072], 11.0 / 255.0);
    assert_eq!(plain.2[6 * 3072 - 1], ((3071 + 11) % 256) as f32 / 255.0);
    for other in ["around", "download", "download/cifar-10-binary.tar.gz", "cifar.tar"] {
        assert_eq!(summary(&at(other)), plain, "{other}");
    }
}

#[test]
fn names_of_other_classes_or_in_another_order_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    cifar10(&at("a"));
    let names = crate::data::cifar::CIFAR10.class_names;
    write(&at("a/batches.meta.txt"), names.join("\n") + "\n\n");
    assert_eq!(summary(&at("a")).1, [0, 1]);
    let swapped = [&["automobile", "airplane"], &names[2..]].concat().join("\n");
    write(&at("a/batches.meta.txt"), swapped.clone());
    let swapped_pair = "batches.meta.txt: class 0 is \"automobile\", that of the original set \"airplane\"";
    refused(json_of(&at("a")), &[swapped_pair, "fetch the set again"]);
    write(&at("a/batches.meta.txt"), names[..9].join("\n"));
    refused(json_of(&at("a")), &["class 9 is none, that of the original set \"truck\""]);
    let files = FILES.iter().enumerate().map(|(number, name)| ((*name).to_owned(), records(number, 1)));
    write(&at("b.tar"), archive(files.chain([("batches.meta.txt".to_owned(), swapped.into_bytes())])));
    refused(json_of(&at("b.tar")), &["b.tar/batches.meta.txt: class 0"]);
}

#[test]
fn cifar100_has_fine_labels() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("train.bin"), records(0, 2));
    write(&folder.path().join("test.bin"), records(1, 2));
    let data = config(json!({ "kind": "cifar100", "path": folder.path() })).open().expect("data");
    assert_eq!(labels(&data.train.batch(&[0, 1], None).expect("a batch")), [90, 91]);
    assert_eq!(labels(&data.validation.batch(&[0, 1], None).expect("a batch")), [92, 93]);
    let DataKind::Images { channels: 3, height: 32, width: 32, classes: 100, class_names } = data.description.kind
    else {
        panic!("{:?}", data.description);
    };
    assert_eq!((class_names[0].as_str(), class_names[99].as_str()), ("apple", "worm"));
}

#[test]
fn missing_files_are_refused() {
    refused(json_of(Path::new("/no/such/cifar")), &["/no/such/cifar: no such file", "cifar-10-binary.tar.gz"]);
    let folder = tempfile::tempdir().expect("a folder");
    refused(json_of(folder.path()), &["none of the files", "data_batch_1.bin", "cifar-10-batches-bin"]);
    cifar10(folder.path());
    fs::remove_file(folder.path().join(FILES[2])).expect("removes");
    refused(json_of(folder.path()), &[FILES[2], "no such file"]);
}

#[test]
fn wrong_sizes_and_labels_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    cifar10(folder.path());
    let mut bytes = records(3, 1);
    bytes.truncate(6000);
    write(&folder.path().join(FILES[3]), bytes);
    refused(json_of(folder.path()), &[FILES[3], "6000 bytes", "1 records and 2927 bytes more", "3073"]);
    write(&folder.path().join(FILES[3]), []);
    refused(json_of(folder.path()), &[FILES[3], "0 bytes"]);
    let mut bytes = records(3, 1);
    bytes[3073] = 10;
    write(&folder.path().join(FILES[3]), bytes);
    refused(json_of(folder.path()), &[FILES[3], "record 1 (byte 3073) has label 10", "0 to 9"]);

    let json = json!({ "kind": "cifar100", "path": folder.path() });
    write(&folder.path().join("train.bin"), records(0, 2));
    write(&folder.path().join("test.bin"), &records(0, 2)[1..]);
    refused(json.clone(), &["test.bin", "6147 bytes", "3074"]);
    let mut bytes = records(0, 2);
    bytes[3075] = 100;
    write(&folder.path().join("test.bin"), bytes);
    refused(json, &["test.bin", "record 1 (byte 3075) has label 100", "0 to 99"]);
}

#[test]
fn archives_of_something_else_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cifar-10-python.tar.gz");
    write(&path, gzip(&archive([("cifar-10-batches-py/data_batch_1".to_owned(), vec![1; 9])])));
    refused(json_of(&path), &["lacks data_batch_1.bin", "it holds cifar-10-batches-py/data_batch_1", "binary version"]);
    write(&path, b"certainly no archive".repeat(100));
    refused(json_of(&path), &["not a readable tar archive", "cifar-10-binary.tar.gz"]);
    write(&path, []);
    refused(json_of(&path), &["lacks data_batch_1.bin"]);
}

#[test]
fn damaged_archives_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cifar-10-binary.tar.gz");
    let whole = gzip(&cifar10_archive());
    write(&path, &whole[..whole.len() / 2]);
    refused(json_of(&path), &["not a readable tar archive", "fetch it again"]);
    // A wrong bit in the checksum at the end.
    let mut bytes = whole;
    let at = bytes.len() - 6;
    bytes[at] ^= 1;
    write(&path, bytes);
    refused(json_of(&path), &["not a readable tar archive"]);
    // A member longer than the archive.
    write(&path, &cifar10_archive()[..20_000]);
    refused(json_of(&path), &["not a readable tar archive"]);
}
