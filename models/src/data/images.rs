//! Images in memory.

use candle_core::{Device, Tensor};
use interlock::{Batch, Dataset, Error, Key, Result};

use super::{Augment, Normalization};

/// The largest number of pixels by which a random crop moves an image.
const PADDING: usize = 4;

/// Images of one shape as bytes, with their classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawImages {
    /// `(C, H, W)` of each image.
    pub shape: [usize; 3],
    /// The images, `(N, C, H, W)`.
    pub pixels: Vec<u8>,
    /// The class of each image.
    pub labels: Vec<u32>,
}

impl RawImages {
    /// Keeps at most the first `count` images.
    pub fn truncate(&mut self, count: usize) {
        self.labels.truncate(count);
        self.pixels.truncate(self.labels.len() * self.shape.iter().product::<usize>());
    }

    /// Returns the statistics of these images.
    pub fn statistics(&self) -> Normalization {
        Normalization::of(&self.pixels, self.shape)
    }
}

/// A data set of images in memory, as bytes, which are normalised and augmented when a batch is taken.
///
/// Inputs are `(B, C, H, W)` of `f32`, targets the classes `(B)` of `u32`. In an augmented batch, each image is moved by up to 4 pixels in each
/// direction over black, and mirrored with a probability of 1/2, as its [`Augment`] allows.
#[derive(Clone, Debug)]
pub struct ImageSet {
    images: RawImages,
    /// The value of each byte, for each channel.
    tables: Vec<[f32; 256]>,
    augment: Augment,
}

impl ImageSet {
    /// Makes a set of `images`, normalised by `normalization` (that of the training set, for the test set too).
    ///
    /// # Errors
    /// If there is no image, a dimension is 0, the numbers of pixels and labels do not fit the shape, or `normalization` is for another number of
    /// channels, or `augment` has random rectangles, for which the images would have to be larger.
    pub fn new(images: RawImages, normalization: &Normalization, augment: Augment) -> Result<Self> {
        let each: usize = images.shape.iter().product();
        let count = images.labels.len();
        if count == 0 || each == 0 || images.pixels.len() != count * each {
            return Err(Error::invalid(
                "images",
                format!("{} pixel bytes and {count} labels for shape {:?}", images.pixels.len(), images.shape),
                "give C × H × W bytes and one label for each image, and at least one image",
            ));
        }
        if augment.resized_crop.is_some() {
            let problem = "given for images that all have one size";
            return Err(Error::invalid("data.augment.resized_crop", problem, "leave it out, or use crop = true"));
        }
        normalization.check(images.shape[0])?;
        Ok(Self { tables: normalization.tables(), images, augment })
    }

    /// Returns `(C, H, W)` of each image.
    pub fn shape(&self) -> [usize; 3] {
        self.images.shape
    }

    /// Returns the classes of all images.
    pub fn labels(&self) -> &[u32] {
        &self.images.labels
    }
}

impl Dataset for ImageSet {
    fn len(&self) -> usize {
        self.images.labels.len()
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        let shape = self.images.shape;
        let each: usize = shape.iter().product();
        let mut values = vec![0.0; numbers.len() * each];
        let labels = self.labels_of(numbers)?;
        for (&number, out) in numbers.iter().zip(values.chunks_exact_mut(each)) {
            let image = &self.images.pixels[number * each..][..each];
            self.augment.window(augment, number, PADDING).render(image, shape, &self.tables, out);
        }
        image_batch(values, labels, shape)
    }

    fn targets(&self, numbers: &[usize], _: Option<Key>) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.labels_of(numbers)?, numbers.len(), &Device::Cpu)?)
    }
}

impl ImageSet {
    fn labels_of(&self, numbers: &[usize]) -> Result<Vec<u32>> {
        let label =
            |&number: &usize| self.images.labels.get(number).copied().ok_or_else(|| out_of_range(number, self.len()));
        numbers.iter().map(label).collect()
    }
}

/// Makes a batch of images `(B, C, H, W)` and classes `(B)`.
pub(super) fn image_batch(values: Vec<f32>, labels: Vec<u32>, [c, h, w]: [usize; 3]) -> Result<Batch> {
    let count = labels.len();
    Ok(Batch {
        inputs: Tensor::from_vec(values, (count, c, h, w), &Device::Cpu)?.into(),
        targets: Tensor::from_vec(labels, count, &Device::Cpu)?,
    })
}

pub(super) fn out_of_range(number: usize, len: usize) -> Error {
    Error::Data(format!("there is no example {number}; the set has {len}, numbered from 0"))
}
