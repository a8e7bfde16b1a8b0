//! Images in a folder for each class, which are decoded when a batch is taken.

use std::{num::NonZero, ops::Range, path::PathBuf, thread};

use candle_core::{Device, Tensor};
use interlock::{Batch, Dataset, Error, Key, Result};

use super::{
    Augment, Normalization,
    decode::{CENTRAL, Decoder},
    images::{image_batch, out_of_range},
    normalization::Sums,
};

/// The largest height and width of inputs in pixels; they have 768 MiB.
const MOST_SIZE: usize = 8192;

/// The largest number of images to compute statistics from.
const SAMPLE: usize = 1000;

/// A data set of images in files, which several threads decode when a batch is taken.
///
/// An image is turned as its EXIF orientation says, cut to its central square, resized to `size` × `size` pixels (bilinear, smoothed when it
/// shrinks) and taken as RGB; transparency is ignored, 16 bits are rounded to 8. Inputs are `(B, 3, size, size)` of `f32`, targets the classes `(B)`
/// of `u32`. In an augmented batch, a random rectangle is cut out instead of the central square, the image is moved by up to an eighth of the size
/// (at least 4 pixels) over black, and mirrored with a probability of 1/2, as its [`Augment`] allows.
///
/// A decoded image may have 512 MiB. Images that take more than 1 GiB together, with the copies that decoding, turning and resizing make, are not decoded
/// at the same time in a process: threads wait for each other.
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
    /// If there is no file, `size` is not in 1 … 8,192, `normalization` is not for three channels, or the crate is built without the feature `images`.
    pub fn new(
        files: Vec<(PathBuf, u32)>,
        size: usize,
        normalization: &Normalization,
        augment: Augment,
        threads: Option<usize>,
    ) -> Result<Self> {
        check_size(size)?;
        Self::of_shape(Decoder::new(true)?, files, [3, size, size], normalization, augment, threads)
    }

    /// Makes a set of inputs of shape `(C, H, W)`, where `C` is 1 (grey) or 3.
    pub(super) fn of_shape(
        decoder: Decoder,
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
        Ok(Self { decoder, files, shape, tables: normalization.tables(), augment, threads: thread_count(threads) })
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
        let labels = self.labels_of(numbers)?;
        let share = numbers.len().div_ceil(self.threads).max(1);
        let decode = |numbers: &[usize], values: &mut [f32]| {
            for (&number, out) in numbers.iter().zip(values.chunks_exact_mut(each)) {
                let path = &self.file(number)?.0;
                let part = |width, height| self.augment.part(augment, number, width, height);
                let (image, _) = self
                    .decoder
                    .pixels(path, shape, &part)
                    .map_err(|e| Error::Data(format!("{}: {e}", path.display())))?;
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

    fn targets(&self, numbers: &[usize], _: Option<Key>) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.labels_of(numbers)?, numbers.len(), &Device::Cpu)?)
    }
}

impl FolderSet {
    fn file(&self, number: usize) -> Result<&(PathBuf, u32)> {
        self.files.get(number).ok_or_else(|| out_of_range(number, self.len()))
    }

    fn labels_of(&self, numbers: &[usize]) -> Result<Vec<u32>> {
        numbers.iter().map(|&number| Ok(self.file(number)?.1)).collect()
    }
}

/// What the files of a set are like.
#[derive(Clone, Debug)]
pub(super) struct Inspected {
    /// The statistics of the sample.
    pub(super) statistics: Normalization,
    /// The number of images that are turned when they are read.
    pub(super) turned: usize,
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
) -> Result<Inspected> {
    check_size(size)?;
    let count = files.len();
    let sampled = if sample { count.min(SAMPLE) } else { 0 };
    let in_sample = |i: usize| (i + 1) * sampled / count > i * sampled / count;
    let check = |range: Range<usize>| {
        let (mut sums, mut turned, mut bad) = (Sums::new(3), 0, Vec::new());
        for i in range {
            let path = &files[i].0;
            let result = if in_sample(i) {
                decoder.pixels(path, [3, size, size], CENTRAL).map(|(pixels, is_turned)| {
                    sums.add(&pixels);
                    is_turned
                })
            } else if thorough {
                decoder.check(path)
            } else {
                decoder.check_header(path)
            };
            match result {
                Ok(is_turned) => turned += usize::from(is_turned),
                Err(cause) => bad.push((path, cause)),
            }
        }
        (sums, turned, bad)
    };
    let share = count.div_ceil(thread_count(threads)).max(1);
    let pieces: Vec<_> = thread::scope(|scope| {
        let check = &check;
        let running: Vec<_> =
            (0..count).step_by(share).map(|at| scope.spawn(move || check(at..(at + share).min(count)))).collect();
        running.into_iter().map(joined).collect()
    });
    let (mut sums, mut turned, mut bad) = (Sums::new(3), 0, Vec::new());
    for (part, more_turned, more) in pieces {
        sums.merge(&part);
        turned += more_turned;
        bad.extend(more);
    }
    match bad.first() {
        None => Ok(Inspected { statistics: sums.finish(), turned }),
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
    if size == 0 || size > MOST_SIZE {
        return Err(Error::invalid(
            "data.size",
            size.to_string(),
            format!("give pixels from 1 to {MOST_SIZE}, such as 224"),
        ));
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
