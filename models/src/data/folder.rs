//! Images in a folder for each class, which are decoded when a batch is taken.

use std::{
    collections::HashSet,
    fs,
    num::NonZero,
    ops::Range,
    path::{Path, PathBuf},
    thread,
};

use interlock::{Batch, Dataset, Error, Key, Result};
use rand::Rng;

use super::{
    Augment, Normalization,
    decode::Decoder,
    files,
    images::{image_batch, out_of_range},
    normalization::Sums,
};

/// The endings of the files that count as images.
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "bmp", "webp"];
/// The endings of images that cannot be read.
const OTHER_ENDINGS: [&str; 16] = [
    "avif", "cr2", "dng", "gif", "heic", "heif", "ico", "jp2", "jxl", "nef", "pgm", "ppm", "psd", "tga", "tif", "tiff",
];
/// Folders that systems make for themselves.
const SYSTEM_FOLDERS: [&str; 6] =
    ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "System Volume Information"];
/// The names of the folder of validation images beside `train`, in order of preference.
const VALIDATION: [&str; 4] = ["val", "valid", "validation", "test"];
/// The largest number of images to compute statistics from.
const SAMPLE: usize = 1000;
/// The end of errors about a folder.
const FOLDER: &str = "expected a folder for each class with its images (png, jpg, bmp, webp), either directly, or in train/ and \
                      val/ (or valid/, validation/, test/)";

/// The files of a folder of class folders, split into training and validation.
///
/// Classes are numbered in the order of their folders' names. Within a part, examples are numbered by taking one image of each
/// class in turn, so that the first `n` are as balanced as the classes allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The names of the classes.
    pub class_names: Vec<String>,
    /// The training images and their classes.
    pub train: Vec<(PathBuf, u32)>,
    /// The validation images and their classes.
    pub validation: Vec<(PathBuf, u32)>,
}

impl Listing {
    /// Lists the images of `path`, from its folders `train/` and `val/` or, if there are none, split into two parts.
    ///
    /// A split gives `fraction` of each class, and at least one image of each class with two or more, to validation: the images whose names have the
    /// smallest hashes, so that the split depends neither on the order of the files nor on a seed.
    ///
    /// # Errors
    /// If a folder is missing or empty, or validation has a class that training lacks.
    pub fn open(path: &Path, fraction: f64) -> Result<Self> {
        let train = path.join("train");
        if !train.is_dir() {
            return Self::split(classes(path)?, fraction);
        }
        let Some(validation) = VALIDATION.iter().map(|name| path.join(name)).find(|folder| folder.is_dir()) else {
            return Err(Error::file(path, format!("has train/, but neither val/ nor test/; {FOLDER}")));
        };
        let (train, held_out) = (classes(&train)?, classes(&validation)?);
        let class_names: Vec<String> = train.iter().map(|(name, _)| name.clone()).collect();
        let mut numbered = Vec::new();
        for (name, files) in held_out {
            let Ok(class) = class_names.binary_search(&name) else {
                return Err(Error::file(
                    validation.join(&name),
                    "there is no such class in train/; give validation the classes of training, or fewer",
                ));
            };
            numbered.push((class, files));
        }
        let train = train.into_iter().map(|(_, files)| files).enumerate().collect();
        Ok(Self { class_names, train: in_turn(train), validation: in_turn(numbered) })
    }

    /// Lists the validation images of `path` for a model that was trained on `class_names`, whose order gives the classes their numbers.
    ///
    /// If there is a validation folder, only that is read.
    ///
    /// # Errors
    /// If a folder is missing or empty, or has a class that is not among `class_names`.
    pub fn open_validation(path: &Path, fraction: f64, class_names: &[String]) -> Result<Vec<(PathBuf, u32)>> {
        let (folder, held_out) = match validation_folder(path, class_names) {
            Some(folder) => {
                let held_out = classes(&folder)?;
                (folder, held_out)
            }
            None => {
                let Self { class_names, train: _, validation } = Self::split(classes(path)?, fraction)?;
                let mut held_out: Vec<_> = class_names.into_iter().map(|name| (name, Vec::new())).collect();
                validation.into_iter().for_each(|(file, class)| held_out[class as usize].1.push(file));
                (path.to_owned(), held_out)
            }
        };
        numbered(&folder, held_out, class_names)
    }

    /// Lists the images of `path` for a model that was trained on `class_names`: those of its validation folder, or if there is none, all images of
    /// its class folders.
    ///
    /// # Errors
    /// As [`Self::open_validation`].
    pub fn open_labelled(path: &Path, class_names: &[String]) -> Result<Vec<(PathBuf, u32)>> {
        let folder = validation_folder(path, class_names).unwrap_or_else(|| path.to_owned());
        numbered(&folder, classes(&folder)?, class_names)
    }

    fn split(classes: Vec<(String, Vec<PathBuf>)>, fraction: f64) -> Result<Self> {
        let (mut class_names, mut train, mut validation) = (Vec::new(), Vec::new(), Vec::new());
        for (class, (name, mut files)) in classes.into_iter().enumerate() {
            let hash = |file: &PathBuf| {
                let file = file.file_name().unwrap_or_default().to_string_lossy();
                Key::new(0).named(&name).named(&file).stream().next_u64()
            };
            files.sort_by_cached_key(|file| (hash(file), file.clone()));
            let wanted = (files.len() as f64 * fraction).round() as usize;
            let count = wanted.max(1).min(files.len() - 1);
            let mut rest = files.split_off(count);
            files.sort();
            rest.sort();
            if count > 0 {
                validation.push((class, files));
            }
            train.push((class, rest));
            class_names.push(name);
        }
        if validation.is_empty() {
            return Err(Error::invalid(
                "data.path",
                "no class has a second image, so none is left for validation",
                "give at least one class two images, or folders train/ and val/",
            ));
        }
        Ok(Self { class_names, train: in_turn(train), validation: in_turn(validation) })
    }
}

/// Returns the folder of validation images in `path`: one of the usual names that is not a class, or stands beside `train`.
fn validation_folder(path: &Path, class_names: &[String]) -> Option<PathBuf> {
    let is_part = |name: &str| path.join("train").is_dir() || !class_names.iter().any(|class| class == name);
    VALIDATION.iter().filter(|name| is_part(name)).map(|name| path.join(name)).find(|folder| folder.is_dir())
}

/// Gives the classes of `folder` the numbers of their names among `class_names`.
fn numbered(
    folder: &Path,
    classes: Vec<(String, Vec<PathBuf>)>,
    class_names: &[String],
) -> Result<Vec<(PathBuf, u32)>> {
    let number = |(name, files): (String, Vec<PathBuf>)| match class_names.iter().position(|class| *class == name) {
        Some(class) => Ok((class, files)),
        None => Err(Error::file(
            folder.join(&name),
            format!(
                "the model was not trained on a class of this name; its classes are {}: rename or remove the folder",
                class_names.join(", ")
            ),
        )),
    };
    Ok(in_turn(classes.into_iter().map(number).collect::<Result<_>>()?))
}

/// Takes one file of each class in turn, until all are taken.
fn in_turn(classes: Vec<(usize, Vec<PathBuf>)>) -> Vec<(PathBuf, u32)> {
    let mut files: Vec<_> = classes
        .into_iter()
        .flat_map(|(class, files)| files.into_iter().enumerate().map(move |(turn, file)| (turn, class, file)))
        .collect();
    files.sort();
    files.into_iter().map(|(_, class, file)| (file, class as u32)).collect()
}

/// Returns the class folders of `folder` with their images, both in the order of their names.
fn classes(folder: &Path) -> Result<Vec<(String, Vec<PathBuf>)>> {
    let mut classes = Vec::new();
    for class in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let files = images_in(&class)?;
        if files.is_empty() {
            return Err(Error::file(class, format!("holds no image; {FOLDER}; remove a class without images")));
        }
        let name = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
        classes.push((name, files));
    }
    classes.sort();
    if classes.is_empty() {
        return Err(Error::file(folder, format!("holds no class folders; {FOLDER}")));
    }
    Ok(classes)
}

/// Lists the images in `folder` and the folders below it, in the order of their paths.
///
/// # Errors
/// If a folder cannot be read, there is no image, or there are images of a format that cannot be read.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = images_in(folder)?;
    if files.is_empty() {
        let problem = "holds no image; expected images (png, jpg, bmp, webp), also in folders below";
        return Err(Error::file(folder, problem));
    }
    Ok(files)
}

/// Lists the images in `folder` and the folders below it; there may be none. A folder that links name more than once is listed once.
fn images_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut others, mut folders) = (Vec::new(), Vec::new(), vec![folder.to_owned()]);
    let mut seen = HashSet::new();
    while let Some(next) = folders.pop() {
        if !seen.insert(next.canonicalize().unwrap_or_else(|_| next.clone())) {
            continue;
        }
        for path in entries(&next)? {
            let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).unwrap_or_default();
            match ending.as_str() {
                _ if path.is_dir() => folders.push(path),
                ending if ENDINGS.contains(&ending) => files.push(path),
                ending if OTHER_ENDINGS.contains(&ending) => others.push(path),
                _ => {}
            }
        }
    }
    if let Some(first) = others.iter().min() {
        return Err(Error::file(
            first,
            format!(
                "{} images in {} have a format that cannot be read; convert them to png, jpg, bmp or webp, or remove them",
                others.len(),
                folder.display()
            ),
        ));
    }
    files.sort();
    Ok(files)
}

/// Returns the entries of a folder in the order of their names, without hidden ones and those of the system.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| files::unreadable(folder, &e, FOLDER);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && !SYSTEM_FOLDERS.contains(&&*name) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// A data set of images in files, which several threads decode when a batch is taken.
///
/// An image is turned as its EXIF orientation says, cut to its central square, resized to `size` × `size` pixels (bilinear, smoothed when it
/// shrinks) and taken as RGB; transparency is ignored. Inputs are `(B, 3, size, size)` of `f32`, targets the classes `(B)` of `u32`. In an augmented batch, an image is
/// moved by up to an eighth of the size (at least 4 pixels) over black, and mirrored with a probability of 1/2, as its [`Augment`] allows.
#[derive(Clone, Debug)]
pub struct FolderSet {
    decoder: Decoder,
    files: Vec<(PathBuf, u32)>,
    /// `(C, H, W)` of each input.
    shape: [usize; 3],
    tables: Vec<[f32; 256]>,
    augment: Augment,
    threads: usize,
}

impl FolderSet {
    /// Makes a set of image files and their classes. `threads` threads decode, by default one for each core.
    ///
    /// # Errors
    /// If there is no file, `size` is not in 1 … 65,535, `normalization` is not for three channels, or the crate is built without the feature `images`.
    pub fn new(
        files: Vec<(PathBuf, u32)>,
        size: usize,
        normalization: &Normalization,
        augment: Augment,
        threads: Option<usize>,
    ) -> Result<Self> {
        check_size(size)?;
        Self::of_shape(files, [3, size, size], normalization, augment, threads)
    }

    /// Makes a set of inputs of shape `(C, H, W)`, where `C` is 1 (grey) or 3.
    pub(super) fn of_shape(
        files: Vec<(PathBuf, u32)>,
        shape: [usize; 3],
        normalization: &Normalization,
        augment: Augment,
        threads: Option<usize>,
    ) -> Result<Self> {
        if files.is_empty() {
            return Err(Error::invalid("images", "no file", "give at least one"));
        }
        normalization.check(shape[0])?;
        Ok(Self {
            decoder: Decoder::new()?,
            files,
            shape,
            tables: normalization.tables(),
            augment,
            threads: thread_count(threads),
        })
    }
}

impl Dataset for FolderSet {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        let shape = self.shape;
        let each = shape.iter().product();
        let padding = (shape[1] / 8).max(4);
        let mut values = vec![0.0; numbers.len() * each];
        let file = |number: usize| self.files.get(number).ok_or_else(|| out_of_range(number, self.len()));
        let labels = numbers.iter().map(|&number| Ok(file(number)?.1)).collect::<Result<_>>()?;

        let share = numbers.len().div_ceil(self.threads).max(1);
        let decode = |numbers: &[usize], values: &mut [f32]| {
            for (&number, out) in numbers.iter().zip(values.chunks_exact_mut(each)) {
                let path = &file(number)?.0;
                let image =
                    self.decoder.pixels(path, shape).map_err(|e| Error::Data(format!("{}: {e}", path.display())))?;
                self.augment.window(augment, number, padding).render(&image, shape, &self.tables, out);
            }
            Ok::<_, Error>(())
        };
        let decode = &decode;
        let mut pieces = numbers.chunks(share).zip(values.chunks_mut(share * each));
        thread::scope(|scope| {
            let first = pieces.next();
            let others: Vec<_> = pieces.map(|(numbers, values)| scope.spawn(move || decode(numbers, values))).collect();
            let first = first.map_or(Ok(()), |(numbers, values)| decode(numbers, values));
            others.into_iter().map(joined).fold(first, Result::and)
        })?;
        image_batch(values, labels, shape)
    }
}

/// Checks every file. With `sample`, computes the statistics of up to 1,000 of them, evenly spread, at `size` × `size` pixels.
///
/// With `thorough`, every image is decoded; otherwise only the headers of those outside of the sample are read.
///
/// # Errors
/// If files cannot be decoded; the message has the first of them and their number.
pub(super) fn inspect(
    decoder: Decoder,
    files: &[(PathBuf, u32)],
    size: usize,
    sample: bool,
    thorough: bool,
    threads: Option<usize>,
) -> Result<Normalization> {
    check_size(size)?;
    let count = files.len();
    let sampled = if sample { count.min(SAMPLE) } else { 0 };
    let in_sample = |i: usize| (i + 1) * sampled / count > i * sampled / count;
    let check = |range: Range<usize>| {
        let (mut sums, mut bad) = (Sums::new(3), Vec::new());
        for i in range {
            let path = &files[i].0;
            let result = if in_sample(i) {
                decoder.pixels(path, [3, size, size]).map(|pixels| sums.add(&pixels))
            } else if thorough {
                decoder.check(path)
            } else {
                decoder.check_header(path)
            };
            bad.extend(result.err().map(|cause| (path, cause)));
        }
        (sums, bad)
    };
    let share = count.div_ceil(thread_count(threads)).max(1);
    let pieces: Vec<_> = thread::scope(|scope| {
        let check = &check;
        let running: Vec<_> =
            (0..count).step_by(share).map(|at| scope.spawn(move || check(at..(at + share).min(count)))).collect();
        running.into_iter().map(joined).collect()
    });
    let mut sums = Sums::new(3);
    let mut bad = Vec::new();
    for (part, more) in pieces {
        sums.merge(&part);
        bad.extend(more);
    }
    match bad.first() {
        None => Ok(sums.finish()),
        Some((path, cause)) => Err(Error::file(
            path,
            format!(
                "cannot be decoded as an image ({cause}); {} of {count} images cannot; mend or remove them",
                bad.len()
            ),
        )),
    }
}

fn check_size(size: usize) -> Result<()> {
    if size == 0 || size > usize::from(u16::MAX) {
        return Err(Error::invalid("data.size", size.to_string(), "give pixels from 1 to 65535, such as 224"));
    }
    Ok(())
}

fn thread_count(wanted: Option<usize>) -> usize {
    wanted.or_else(|| thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1).max(1)
}

/// Waits for a thread, and returns its result or resumes its panic.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
