//! The idx format of MNIST, Fashion-MNIST, KMNIST and EMNIST.
//!
//! A file is a big-endian magic number `0x0000_08DD` (`08`: unsigned bytes, `DD`: number of dimensions), the dimensions as 32-bit
//! numbers, and the bytes. Images have three dimensions, `(N, H, W)`; labels one.

use std::path::{Path, PathBuf};

use interlock::{Error, Result};

use super::{RawImages, files};

/// The magic number and the number of dimensions of a file of images.
const IMAGES: (u32, usize) = (0x0803, 3);
/// The magic number and the number of dimensions of a file of labels.
const LABELS: (u32, usize) = (0x0801, 1);

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
    let (image_bytes, label_bytes) = (files::read(&images, FOLDER)?, files::read(&labels, FOLDER)?);
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

/// Reads the images and labels of two unpacked files; errors name their paths.
///
/// # Errors
/// As [`open`].
pub fn decode(
    (image_path, mut pixels): (&Path, Vec<u8>),
    (label_path, labels): (&Path, Vec<u8>),
    classes: usize,
) -> Result<RawImages> {
    let (dimensions, start) = header(image_path, &pixels, IMAGES)?;
    let (count, label_start) = header(label_path, &labels, LABELS)?;
    let (images, height, width) = (dimensions[0], dimensions[1], dimensions[2]);
    if images == 0 || height == 0 || width == 0 {
        return Err(Error::file(
            image_path,
            format!("holds {images} images of {height} × {width} pixels; expected at least one image of one pixel"),
        ));
    }
    if count[0] != images {
        return Err(Error::file(
            label_path,
            format!(
                "{} labels, but {} holds {images} images; give the two files of one set",
                count[0],
                image_path.display()
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
    pixels.drain(..start);
    Ok(RawImages { shape: [1, height, width], pixels, labels })
}

/// Reads the dimensions of a file, and checks its size. Returns them and the position of the data.
fn header(path: &Path, bytes: &[u8], (magic, rank): (u32, usize)) -> Result<(Vec<usize>, usize)> {
    let start = 4 * (1 + rank);
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let kind = if rank == 3 { "images" } else { "labels" };
    let found = word(0);
    if let Some(found) = found.filter(|&found| found != magic) {
        return Err(Error::file(
            path,
            format!("begins with 0x{found:08x} at byte 0; an idx file of {kind} begins with 0x{magic:08x}"),
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
            let expected = size.map_or_else(|| "more than memory can hold".to_owned(), |s| format!("{s} bytes"));
            Err(Error::file(
                path,
                format!(
                    "has {} bytes (unpacked), but its header states {dimensions:?}, which is {expected}; fetch the file again",
                    bytes.len()
                ),
            ))
        }
    }
}
