//! The binary versions of CIFAR-10 and CIFAR-100 (A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009).
//!
//! A file is records of one label byte (CIFAR-100: coarse, then fine) and 3,072 pixel bytes, `(3, 32, 32)`.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use interlock::{Error, Result};

use super::{
    RawImages,
    files::{self, Most},
    limits,
};

/// `(C, H, W)` of every image.
const SHAPE: [usize; 3] = [3, 32, 32];
/// Pixel bytes of an image.
const PIXELS: usize = 3 * 32 * 32;

/// The files and classes of one of the two sets.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The folder inside the archive.
    folder: &'static str,
    /// The official archive.
    archive: &'static str,
    /// The files of training images, in order.
    train: &'static [&'static str],
    /// The file of test images.
    test: &'static str,
    /// The file of the names of the classes, which is not needed.
    names: &'static str,
    /// The number of label bytes before each image; the last one is the class.
    label_bytes: usize,
    /// The names of the classes.
    pub class_names: &'static [&'static str],
}

/// CIFAR-10: 50,000 and 10,000 images of 10 classes.
pub const CIFAR10: Layout = Layout {
    folder: "cifar-10-batches-bin",
    archive: "cifar-10-binary.tar.gz",
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    test: "test_batch.bin",
    names: "batches.meta.txt",
    label_bytes: 1,
    class_names: &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
};

/// CIFAR-100 with its fine labels: 50,000 and 10,000 images of 100 classes.
pub const CIFAR100: Layout = Layout {
    folder: "cifar-100-binary",
    archive: "cifar-100-binary.tar.gz",
    train: &["train.bin"],
    test: "test.bin",
    names: "fine_label_names.txt",
    label_bytes: 2,
    class_names: &[
        "apple",
        "aquarium_fish",
        "baby",
        "bear",
        "beaver",
        "bed",
        "bee",
        "beetle",
        "bicycle",
        "bottle",
        "bowl",
        "boy",
        "bridge",
        "bus",
        "butterfly",
        "camel",
        "can",
        "castle",
        "caterpillar",
        "cattle",
        "chair",
        "chimpanzee",
        "clock",
        "cloud",
        "cockroach",
        "couch",
        "crab",
        "crocodile",
        "cup",
        "dinosaur",
        "dolphin",
        "elephant",
        "flatfish",
        "forest",
        "fox",
        "girl",
        "hamster",
        "house",
        "kangaroo",
        "keyboard",
        "lamp",
        "lawn_mower",
        "leopard",
        "lion",
        "lizard",
        "lobster",
        "man",
        "maple_tree",
        "motorcycle",
        "mountain",
        "mouse",
        "mushroom",
        "oak_tree",
        "orange",
        "orchid",
        "otter",
        "palm_tree",
        "pear",
        "pickup_truck",
        "pine_tree",
        "plain",
        "plate",
        "poppy",
        "porcupine",
        "possum",
        "rabbit",
        "raccoon",
        "ray",
        "road",
        "rocket",
        "rose",
        "sea",
        "seal",
        "shark",
        "shrew",
        "skunk",
        "skyscraper",
        "snail",
        "snake",
        "spider",
        "squirrel",
        "streetcar",
        "sunflower",
        "sweet_pepper",
        "table",
        "tank",
        "telephone",
        "television",
        "tiger",
        "tractor",
        "train",
        "trout",
        "tulip",
        "turtle",
        "wardrobe",
        "whale",
        "willow_tree",
        "wolf",
        "woman",
        "worm",
    ],
};

/// The most bytes of an archive (unpacked), or of one of its files; those of CIFAR-10 and CIFAR-100 have 180 MiB.
const ARCHIVE: u64 = 512 << 20;
/// The most bytes of a file of names.
const NAMES: u64 = 1 << 20;

/// The paths and the bytes of files, by their names.
type Contents = HashMap<&'static str, (PathBuf, Vec<u8>)>;

impl Layout {
    /// Returns the layout of the files at `path`, if there are any: a folder of `.bin` files, the folder around it, or an official archive.
    pub(super) fn at(path: &Path) -> Option<&'static Self> {
        [&CIFAR10, &CIFAR100].into_iter().find(|layout| match path.is_dir() {
            true => {
                layout.has_files(path)
                    || layout.has_files(&path.join(layout.folder))
                    || path.join(layout.archive).is_file()
            }
            false => path.ends_with(layout.archive),
        })
    }

    /// Returns whether one of the files is in this folder.
    fn has_files(&self, folder: &Path) -> bool {
        self.members().any(|name| folder.join(name).is_file())
    }

    fn members(&self) -> impl Iterator<Item = &'static str> {
        self.train.iter().copied().chain([self.test])
    }

    fn expected(&self) -> String {
        let files = self.members().collect::<Vec<_>>().join(", ");
        format!("expected {}, or a folder with {files} (also inside a folder {})", self.archive, self.folder)
    }

    /// Reads the training and test images at `path`: the folder of `.bin` files, the folder around it, or the official archive.
    ///
    /// # Errors
    /// If a file is missing or damaged, its size is not a multiple of a record, or a label is out of range.
    pub fn open(&self, path: &Path) -> Result<(RawImages, RawImages)> {
        let mut contents = self.read(path, &self.members().collect::<Vec<_>>())?;
        Ok((self.decode(self.train, &mut contents)?, self.decode(&[self.test], &mut contents)?))
    }

    /// Reads the test images at `path`, for which the training files need not exist.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_test(&self, path: &Path) -> Result<RawImages> {
        let mut contents = self.read(path, &[self.test])?;
        self.decode(&[self.test], &mut contents)
    }

    fn decode(&self, names: &[&'static str], contents: &mut Contents) -> Result<RawImages> {
        let mut images = RawImages { shape: SHAPE, pixels: Vec::new(), labels: Vec::new() };
        for &name in names {
            if let Some((path, bytes)) = contents.remove(name) {
                self.append(&path, &bytes, &mut images)?;
            }
        }
        Ok(images)
    }

    /// Reads the files called `wanted`.
    fn read(&self, path: &Path, wanted: &[&'static str]) -> Result<Contents> {
        if !path.is_dir() {
            return self.read_archive(path, wanted);
        }
        let inner = path.join(self.folder);
        let archive = path.join(self.archive);
        if self.has_files(path) {
            self.read_folder(path, wanted)
        } else if self.has_files(&inner) {
            self.read_folder(&inner, wanted)
        } else if archive.is_file() {
            self.read_archive(&archive, wanted)
        } else {
            Err(Error::file(path, format!("none of the files is in this folder; {}", self.expected())))
        }
    }

    fn read_folder(&self, folder: &Path, wanted: &[&'static str]) -> Result<Contents> {
        let read = |&name: &&'static str| {
            let path = folder.join(name);
            let bytes = files::read(&path, Most::Bytes(ARCHIVE), &self.expected())?;
            Ok((name, (path, bytes)))
        };
        let names = folder.join(self.names);
        if names.is_file() {
            self.check_names(&names, &files::read(&names, Most::Bytes(NAMES), "expected the names of the classes")?)?;
        }
        wanted.iter().map(read).collect()
    }

    fn read_archive(&self, path: &Path, wanted: &[&'static str]) -> Result<Contents> {
        let expected = self.expected();
        let file = fs::File::open(path).map_err(|e| files::unreadable(path, &e, &expected))?;
        let mut start = [0; 2];
        let len = (&file).take(2).read(&mut start).map_err(|e| Error::file(path, e))?;
        let head = io::Cursor::new(start).take(len as u64);
        let whole = head.chain(BufReader::new(file));
        let unpacked: Box<dyn Read> =
            if start == files::GZIP { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) };
        let mut reader = unpacked.take(ARCHIVE);

        let damaged =
            |e: io::Error| Error::file(path, format!("not a readable tar archive ({e}); fetch it again; {expected}"));
        let mut contents = HashMap::new();
        let mut seen = Vec::new();
        let mut archive = tar::Archive::new(&mut reader);
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let inner = entry.path().map_err(damaged)?.into_owned();
            let name = inner.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if let Some(&name) = wanted.iter().find(|&&member| member == name) {
                let mut bytes = Vec::new();
                // The holes of a sparse file are not in the archive.
                (&mut entry).take(ARCHIVE).read_to_end(&mut bytes).map_err(damaged)?;
                contents.insert(name, (path.join(&inner), bytes));
            } else if name == self.names {
                let mut bytes = Vec::new();
                entry.take(NAMES).read_to_end(&mut bytes).map_err(damaged)?;
                self.check_names(&path.join(&inner), &bytes)?;
            } else if seen.len() < 10 {
                seen.push(inner.display().to_string());
            }
        }
        // Reading the rest checks the checksum of the compressed stream.
        io::copy(&mut reader, &mut io::sink()).map_err(damaged)?;
        if reader.limit() == 0 {
            let most = limits::in_words(ARCHIVE);
            return Err(Error::file(
                path,
                format!("has more than {most} (unpacked), which no such archive has; {expected}"),
            ));
        }
        let missing: Vec<_> = wanted.iter().copied().filter(|name| !contents.contains_key(name)).collect();
        if missing.is_empty() {
            return Ok(contents);
        }
        let others = if seen.is_empty() { String::new() } else { format!(" (it holds {})", seen.join(", ")) };
        Err(Error::file(
            path,
            format!("the archive lacks {}{others}; {expected}: the binary version of the set", missing.join(", ")),
        ))
    }

    /// Checks that a file names the classes of the set, in their order.
    fn check_names(&self, path: &Path, text: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(text);
        let names: Vec<&str> = text.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
        if names == self.class_names {
            return Ok(());
        }
        let differs = |&class: &usize| names.get(class) != self.class_names.get(class);
        let class = (0..).find(differs).unwrap_or_default();
        let show = |name: Option<&&str>| name.map_or_else(|| "none".to_owned(), |name| format!("{name:?}"));
        let (found, own) = (show(names.get(class)), show(self.class_names.get(class)));
        Err(Error::file(
            path,
            format!(
                "class {class} is {found}, that of the original set {own}; fetch the set again, or write other images to a folder for each class \
                 (kind = \"image-folder\")"
            ),
        ))
    }

    /// Adds the records of one file.
    fn append(&self, path: &Path, bytes: &[u8], images: &mut RawImages) -> Result<()> {
        let record = self.label_bytes + PIXELS;
        if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
            return Err(Error::file(
                path,
                format!(
                    "has {} bytes, which is {} records and {} bytes more; expected one or more records of {record} bytes; \
                     fetch the file again",
                    bytes.len(),
                    bytes.len() / record,
                    bytes.len() % record
                ),
            ));
        }
        let classes = self.class_names.len();
        images.pixels.reserve_exact(bytes.len() / record * PIXELS);
        for (number, bytes) in bytes.chunks_exact(record).enumerate() {
            let (labels, pixels) = bytes.split_at(self.label_bytes);
            let label = labels[self.label_bytes - 1];
            if usize::from(label) >= classes {
                return Err(Error::file(
                    path,
                    format!(
                        "record {number} (byte {}) has label {label}; expected 0 to {}",
                        number * record + self.label_bytes - 1,
                        classes - 1
                    ),
                ));
            }
            images.labels.push(u32::from(label));
            images.pixels.extend_from_slice(pixels);
        }
        Ok(())
    }
}
