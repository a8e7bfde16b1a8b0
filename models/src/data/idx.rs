//! The idx format of MNIST, Fashion-MNIST, KMNIST and EMNIST.
//!
//! A file is a big-endian magic number `0x0000_08DD` (`08`: unsigned bytes, `DD`: number of dimensions), the dimensions as 32-bit
//! numbers, and the bytes. Images have three dimensions, `(N, H, W)`; labels one.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use interlock::{Error, Result};

use super::{
    RawImages,
    files::{self, Most},
};

/// The magic number and the number of dimensions of a file of images.
const IMAGES: (u32, usize) = (0x0803, 3);
/// The magic number and the number of dimensions of a file of labels.
const LABELS: (u32, usize) = (0x0801, 1);

/// The most bytes of a file: those that its header states.
const MOST: Most = Most::Stated(stated);

/// The end of errors about a folder.
const FOLDER: &str = "expected a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and \
                      t10k-labels-idx1-ubyte, each plain or .gz";

/// Reads the training and test images of a folder with the usual four files, each plain or `.gz`.
///
/// # Errors
/// If a file is missing, of the wrong kind or size, or names a class that is not below `classes`.
pub fn open(folder: &Path, classes: usize) -> Result<(RawImages, RawImages)> {
    let (train, test) = (part(folder, "train", classes)?, open_test(folder, classes)?);
    if train.shape != test.shape {
        let [_, h, w] = train.shape;
        let [_, th, tw] = test.shape;
        return Err(Error::file(
            folder,
            format!(
                "test images of {th} × {tw} pixels beside training images of {h} × {w}; give files of one data set"
            ),
        ));
    }
    Ok((train, test))
}

/// Reads the test images of such a folder, for which the training files need not exist.
///
/// # Errors
/// As [`open`].
pub fn open_test(folder: &Path, classes: usize) -> Result<RawImages> {
    part(folder, "t10k", classes)
}

/// Reads the images and labels of the two files whose names begin with `name`.
fn part(folder: &Path, name: &str, classes: usize) -> Result<RawImages> {
    if !folder.is_dir() {
        let problem = if folder.exists() { "is not a folder" } else { "no such folder" };
        return Err(Error::file(folder, format!("{problem}; {FOLDER}")));
    }
    let images = find(folder, &format!("{name}-images"), "idx3-ubyte")?;
    let labels = find(folder, &format!("{name}-labels"), "idx1-ubyte")?;
    let (image_bytes, label_bytes) = (files::read(&images, MOST, FOLDER)?, files::read(&labels, MOST, FOLDER)?);
    decode((&images, image_bytes), (&labels, label_bytes), classes)
}

/// Finds the file `STEM-KIND`, or `STEM.KIND` as on some mirrors, plain or `.gz`.
fn find(folder: &Path, stem: &str, kind: &str) -> Result<PathBuf> {
    let names = ["-", "."].iter().flat_map(|dot| ["", ".gz"].map(|end| format!("{stem}{dot}{kind}{end}")));
    let found = names.map(|name| folder.join(name)).find(|path| path.exists());
    found.ok_or_else(|| {
        Error::file(folder.join(format!("{stem}-{kind}")), format!("no such file, nor with .gz; {FOLDER}"))
    })
}

/// Returns whether `folder` has a file of test images under its usual name.
pub(super) fn has_test(folder: &Path) -> bool {
    find(folder, "t10k-images", "idx3-ubyte").is_ok()
}

/// Returns whether a file is meant to be in the idx format: it begins with two zeros or as a gzip file, or is named `…ubyte` or `….gz`.
///
/// # Errors
/// If it cannot be read; `remedy` ends the message.
pub(super) fn is_meant(path: &Path, remedy: &str) -> Result<bool> {
    let mut start = [0; 2];
    let length = fs::File::open(path).and_then(|file| file.take(2).read(&mut start));
    let length = length.map_err(|e| files::unreadable(path, &e, remedy))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(length == 2 && (start == files::GZIP || start == [0; 2]) || name.contains("ubyte") || name.ends_with(".gz"))
}

/// Reads the images of one file, plain or `.gz`, all with label 0.
pub(super) fn open_images(path: &Path) -> Result<RawImages> {
    decode_images(path, files::read(path, MOST, "expected a file of images in the idx format, plain or .gz")?)
}

/// Reads the images of one file, and their labels from the file beside it that has `labels` for `images` and `idx1` for `idx3` in its name.
///
/// # Errors
/// As [`open`], or if there is no such file.
pub(super) fn open_pair(images: &Path, classes: usize) -> Result<RawImages> {
    let name = images.file_name().unwrap_or_default().to_string_lossy();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    let labels = plain.replace("images", "labels").replace("idx3", "idx1");
    let beside = |name: String| images.with_file_name(name);
    let found = ["", ".gz"].map(|end| beside(format!("{labels}{end}"))).into_iter().find(|path| path.exists());
    let Some(path) = found.filter(|_| labels != plain) else {
        let right =
            "give the file of labels the name of the file of images, with `labels` for `images` and `idx1` for `idx3`";
        return Err(match labels == plain {
            true => Error::file(images, format!("has no `images` in its name, by which its labels are found; {right}")),
            false => Error::file(beside(labels), format!("no such file, nor with .gz; {right}")),
        });
    };
    decode((images, files::read(images, MOST, FOLDER)?), (&path, files::read(&path, MOST, FOLDER)?), classes)
}

/// Reads the images and labels of two unpacked files; errors name their paths.
///
/// # Errors
/// As [`open`].
pub fn decode(
    (image_path, pixels): (&Path, Vec<u8>),
    (label_path, labels): (&Path, Vec<u8>),
    classes: usize,
) -> Result<RawImages> {
    let images = decode_images(image_path, pixels)?;
    let (count, label_start) = header(label_path, &labels, LABELS)?;
    if count[0] != images.labels.len() {
        return Err(Error::file(
            label_path,
            format!(
                "{} labels, but {} holds {} images; give the two files of one set",
                count[0],
                image_path.display(),
                images.labels.len()
            ),
        ));
    }
    let labels = labels[label_start..].iter().map(|&l| u32::from(l)).collect::<Vec<_>>();
    if let Some(record) = labels.iter().position(|&l| l as usize >= classes) {
        return Err(Error::file(
            label_path,
            format!(
                "record {record} (byte {}) has label {}; expected 0 to {}, for `classes = {classes}`",
                label_start + record,
                labels[record],
                classes.saturating_sub(1)
            ),
        ));
    }
    Ok(RawImages { labels, ..images })
}

/// Reads the images of an unpacked file, all with label 0.
fn decode_images(path: &Path, mut pixels: Vec<u8>) -> Result<RawImages> {
    let (dimensions, start) = header(path, &pixels, IMAGES)?;
    let (images, height, width) = (dimensions[0], dimensions[1], dimensions[2]);
    if images == 0 || height == 0 || width == 0 {
        return Err(Error::file(
            path,
            format!("holds {images} images of {height} × {width} pixels; expected at least one image of one pixel"),
        ));
    }
    pixels.drain(..start);
    Ok(RawImages { shape: [1, height, width], pixels, labels: vec![0; images] })
}

/// Returns the bytes of a file that begins with these, by its header; only a header's if it has none, or states more than memory can hold.
fn stated(first: &[u8]) -> Option<u64> {
    let word = |i: usize| first.get(4 * i..4 * i + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let (_, rank) = [IMAGES, LABELS].into_iter().find(|(magic, _)| word(0) == Some(*magic)).unwrap_or((0, 0));
    let start = 4 * (1 + rank) as u64;
    let data = (1..=rank).try_fold(1_u64, |product, i| product.checked_mul(u64::from(word(i)?)));
    Some(data.filter(|_| rank > 0).and_then(|data| data.checked_add(start)).unwrap_or(start))
}

/// Reads the dimensions of a file, and checks its size. Returns them and the position of the data.
fn header(path: &Path, bytes: &[u8], (magic, rank): (u32, usize)) -> Result<(Vec<usize>, usize)> {
    let start = 4 * (1 + rank);
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let kind = if rank == 3 { "images" } else { "labels" };
    let found = word(0);
    if let Some(found) = found.filter(|&found| found != magic) {
        let what = match bytes.trim_ascii_start().starts_with(b"<") {
            true => " (an HTML or XML page, such as the answer to a failed download)",
            false => "",
        };
        return Err(Error::file(
            path,
            format!(
                "begins with 0x{found:08x} at byte 0{what}; an idx file of {kind} begins with 0x{magic:08x}: \
                 fetch the file again, or name another"
            ),
        ));
    }
    let dimensions: Option<Vec<usize>> = (1..=rank).map(|i| word(i).map(|d| d as usize)).collect();
    let Some(dimensions) = dimensions.filter(|_| found.is_some()) else {
        return Err(Error::file(
            path,
            format!("ends at byte {}, within the header of {start} bytes; fetch the file again", bytes.len()),
        ));
    };
    let size =
        dimensions.iter().try_fold(1_usize, |product, &d| product.checked_mul(d)).and_then(|s| s.checked_add(start));
    match size {
        Some(size) if size == bytes.len() => Ok((dimensions, start)),
        size => {
            let problem = match size {
                None => format!("its header states {dimensions:?}, which is more than memory can hold"),
                Some(size) if bytes.len() > size => {
                    format!("has more bytes (unpacked) than its header states, {dimensions:?}, which is {size} bytes")
                }
                Some(size) => {
                    let found = bytes.len();
                    format!("has {found} bytes (unpacked), but its header states {dimensions:?}, which is {size} bytes")
                }
            };
            Err(Error::file(path, format!("{problem}; fetch the file again")))
        }
    }
}
