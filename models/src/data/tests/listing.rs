use std::{collections::BTreeMap, fs, path::Path};

use proptest::prelude::*;

use super::write;
use crate::data::{LeftOut, Listing, image_files};

/// Makes empty files.
fn touch(folder: &Path, files: &[&str]) {
    files.iter().for_each(|file| write(&folder.join(file), ""));
}

fn open(folder: &Path) -> Result<Listing, String> {
    Listing::open(folder, 0.5).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(folder: &Path, words: &[&str]) {
    let error = open(folder).expect_err("must be refused");
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn train_alone_is_a_class_and_beside_a_validation_folder_a_part() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    touch(path, &["train/1.png", "train/2.png"]);
    refused(path, &["has train/, but neither val/ nor test/", "if train is a class"]);
    touch(path, &["car/1.png", "bus/1.png"]);
    assert_eq!(open(path).expect("a listing").class_names, ["bus", "car", "train"]);
    // Whether they are two classes or a division without classes is not clear.
    touch(path, &["test/1.png"]);
    refused(path, &["has train/ and test/", "files but no class folders", "another name"]);

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    touch(path, &["train/a/1.png", "car/1.png"]);
    refused(path, &["has train/, but neither val/ nor test/", "if train is a class"]);
    touch(path, &["test/a/2.png", "train/loose.jpg"]);
    let listing = open(path).expect("a listing");
    assert_eq!((listing.class_names, listing.train.len(), listing.validation.len()), (vec!["a".to_owned()], 1, 1));
    let left_out = [LeftOut::Folder("car".to_owned()), LeftOut::Loose { folder: "train".to_owned(), count: 1 }];
    assert_eq!(listing.left_out, left_out);

    let folder = tempfile::tempdir().expect("a folder");
    touch(folder.path(), &["val/a/1.png"]);
    refused(folder.path(), &["has val/, but no train/"]);
    touch(folder.path(), &["val/2.png", "val/3.png", "dog/1.png"]);
    assert_eq!(open(folder.path()).expect("a listing").class_names, ["dog", "val"]);
}

#[test]
fn classes_without_images_are_all_named() {
    let folder = tempfile::tempdir().expect("a folder");
    touch(folder.path(), &["a/1.png", "b/1.heic", "b/2.txt", "d/x"]);
    fs::create_dir(folder.path().join("c")).expect("makes a folder");
    refused(
        folder.path(),
        &[
            "3 classes hold no image that can be read: b (1 heic, 1 txt), c (no files), d (1 without ending)",
            "for heic convert them",
        ],
    );
}

#[test]
fn files_and_folders_of_the_system_are_not_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    touch(path, &["a/1.png", "a/2.JPG", "a/Thumbs.db", "a/desktop.ini", "a/._1.png", "a/.DS_Store", "a/x.png/3.jpeg"]);
    for system in ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "$Recycle.Bin", "lost+found", ".ipynb_checkpoints"] {
        touch(path, &[&format!("{system}/1.png"), &format!("a/{system}/1.png")]);
    }
    let listing = open(path).expect("a listing");
    assert_eq!((listing.train.len() + listing.validation.len(), listing.left_out), (3, Vec::new()));
    assert_eq!(image_files(path).expect("files").len(), 3);
}

#[test]
fn classes_of_validation_that_training_lacks_are_all_named() {
    let folder = tempfile::tempdir().expect("a folder");
    touch(folder.path(), &["train/caf\u{e9}/1.png", "val/cafe\u{301}/1.png", "val/dog/1.png"]);
    refused(folder.path(), &["no such class in train/ (cafe\\u{301}, dog)"]);
    let error =
        Listing::open_labelled(folder.path(), &["caf\u{e9}".to_owned()]).expect_err("other classes").to_string();
    assert!(error.contains("(cafe\\u{301}, dog); its classes are caf\u{e9}:"), "{error}");
}

#[test]
fn names_that_look_the_same_are_different_classes() {
    let folder = tempfile::tempdir().expect("a folder");
    touch(folder.path(), &["caf\u{e9}/1.png", "cafe\u{301}/1.png", "cafe\u{301}/2.png"]);
    let listing = open(folder.path()).expect("a listing");
    assert_eq!(listing.class_names.len(), 2);
    assert_eq!(listing.summary(0), "images: 3 in 2 classes (cafe\\u{301} 2, caf\u{e9} 1): 3 png");
}

#[test]
#[cfg(target_os = "linux")] // other systems refuse such names
fn names_that_are_not_utf8_are_different_classes() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let folder = tempfile::tempdir().expect("a folder");
    for name in [&b"a\xff"[..], b"a\xfe", b"\xff\xd8.png"] {
        let class = folder.path().join(OsStr::from_bytes(name));
        fs::create_dir(&class).expect("makes a folder");
        fs::write(class.join(OsStr::from_bytes(b"\xff.png")), "").expect("writes");
        fs::write(class.join("2.png"), "").expect("writes");
    }
    assert_eq!(open(folder.path()).expect("a listing").class_names, ["\\xff\\xd8.png", "a\\xfe", "a\\xff"]);
    touch(folder.path(), &["a\\xff/1.png"]);
    refused(folder.path(), &["two folders whose classes would have the name a\\xff"]);
}

#[test]
#[cfg(unix)]
fn pipes_are_left_out_and_links_to_nothing_are_listed() {
    use std::{os::unix::fs::symlink, process::Command};
    let folder = tempfile::tempdir().expect("a folder");
    touch(folder.path(), &["a/1.png", "a/2.png"]);
    let class = folder.path().join("a");
    assert!(Command::new("mkfifo").arg(class.join("pipe.png")).status().expect("runs").success());
    symlink("nowhere", class.join("3.png")).expect("links");
    symlink(".", class.join("loop.png")).expect("links");
    let listing = open(folder.path()).expect("a listing");
    // Reading it says what is wrong; leaving it out would hide that a disk is missing.
    assert_eq!(listing.train.len() + listing.validation.len(), 3);
    assert_eq!(
        listing.left_out.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["1 pipes, sockets or devices in a"]
    );
}

/// A name of a file or a folder, and whether it is hidden or the system's.
fn name() -> impl Strategy<Value = (String, bool)> {
    let stem = prop::sample::select(vec!["1", "two", "train", "a b", "é", "x.png", "-", "#"]);
    let ending = prop::sample::select(vec!["", ".png", ".JPG", ".jpeg", ".webp", ".heic", ".txt", ".png.bak", ".bmp"]);
    let hidden = prop::sample::select(vec![".png", "._1.jpg", "__MACOSX", "@eaDir", "Thumbs.db", "lost+found", ".git"]);
    prop_oneof![
        6 => (stem, ending).prop_map(|(stem, ending)| (format!("{stem}{ending}"), false)),
        1 => hidden.prop_map(|name| (name.to_owned(), true)),
    ]
}

/// The parts of a path, each with whether it is hidden; the first are few, so that most of them hold images.
fn path() -> impl Strategy<Value = Vec<(String, bool)>> {
    let first = prop_oneof![
        6 => prop::sample::select(vec!["train", "train", "val", "cat"]).prop_map(|name| (name.to_owned(), false)),
        1 => name(),
    ];
    let second = prop_oneof![
        2 => prop::sample::select(vec!["a", "b"]).prop_map(|name| (name.to_owned(), false)),
        1 => name(),
    ];
    (first, second, prop::collection::vec(name(), 0..4))
        .prop_map(|(first, second, rest)| [vec![first, second], rest].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every file in a class folder of a random tree is taken once or counted as left out, unless it is hidden.
    #[test]
    fn every_file_is_taken_once_or_counted(paths in prop::collection::vec(path(), 0..60), fraction in 0.01..0.99) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut written = BTreeMap::new();
        for parts in &paths {
            let path = parts.iter().fold(folder.path().to_owned(), |path, (name, _)| path.join(name));
            // A file may stand where this path has a folder, or the other way round.
            let has_folder = fs::create_dir_all(path.parent().expect("has a parent")).is_ok();
            if has_folder && !path.exists() && fs::write(&path, "").is_ok() {
                written.insert(path, parts.iter().all(|(_, is_hidden)| !is_hidden));
            }
        }
        let is_divided = ["train", "val"].iter().all(|part| folder.path().join(part).is_dir());
        let in_class = |path: &Path| {
            let parts: Vec<_> = path.strip_prefix(folder.path()).expect("is inside").components().collect();
            let is_part = parts[0].as_os_str() == "train" || parts[0].as_os_str() == "val";
            if is_divided { is_part && parts.len() > 2 } else { parts.len() > 1 }
        };
        let expected = written.iter().filter(|(path, is_visible)| **is_visible && in_class(path)).count();
        let Ok(listing) = Listing::open(folder.path(), fraction) else { return Ok(()) };
        let mut taken: Vec<_> = listing.train.iter().chain(&listing.validation).map(|(path, _)| path).collect();
        for (path, class) in listing.train.iter().chain(&listing.validation) {
            prop_assert_eq!(written.get(path), Some(&true));
            let class = listing.class_names[*class as usize].as_str();
            prop_assert!(path.components().any(|part| part.as_os_str() == class), "{path:?} in {class}");
        }
        let count = taken.len();
        taken.sort();
        taken.dedup();
        prop_assert_eq!(taken.len(), count);
        let left_out = listing.left_out.iter().map(|left_out| match left_out {
            LeftOut::Files { count, .. } => *count,
            _ => 0,
        });
        prop_assert_eq!(count + left_out.sum::<usize>(), expected);
    }
}
