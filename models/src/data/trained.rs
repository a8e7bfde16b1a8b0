//! Data for a trained model, with the normalization, classes and vocabulary that were saved with it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use interlock::{Dataset, Error, Result};

use super::{
    Augment, DataConfig, DataKind, Description, FolderSet, ImageSet, Listing, Normalization, RawImages, TextSet,
    Vocabulary, cifar,
    config::{FRACTION, ImageFolder, Text},
    decode::Decoder,
    embedded, files, folder, idx,
    open::check_fraction,
    text,
};

impl DataConfig {
    /// Reads the validation data for a model that was trained on data of the description `saved`.
    ///
    /// Only files of validation data are read. The normalization of pixels, the numbers of classes and the vocabulary are those of `saved`, even if
    /// the training data have changed since.
    ///
    /// # Errors
    /// If a file is missing or damaged, or its images, classes or characters are not those of `saved`. The error is always a refusal
    /// ([`Error::is_refusal`]).
    pub fn open_validation(&self, saved: &Description) -> Result<Arc<dyn Dataset>> {
        match self {
            Self::FashionMnistMini(_) => saved.image_set(embedded::fashion_mnist()?.1),
            Self::Idx(c) => saved.image_set(idx::open_test(&c.path, saved.images()?.classes)?),
            Self::Cifar10(c) => saved.image_set(cifar::CIFAR10.open_test(&c.path)?),
            Self::Cifar100(c) => saved.image_set(cifar::CIFAR100.open_test(&c.path)?),
            Self::ImageFolder(c) => saved.folder_set(c),
            Self::Shakespeare(c) => {
                let (path, content) = embedded::shakespeare()?;
                saved.end_of_text((path, &content), c.validation_fraction)
            }
            Self::Text(Text { path, validation_path, validation_fraction, .. }) => {
                let remedy = "expected a text file, plain or .gz";
                match validation_path {
                    Some(path) => saved.text_set((path, &files::read(path, remedy)?), 1.0),
                    None => {
                        saved.end_of_text((path, &files::read(path, remedy)?), validation_fraction.unwrap_or(FRACTION))
                    }
                }
            }
        }
    }
}

/// The values of a description of images.
struct Images<'a> {
    shape: [usize; 3],
    classes: usize,
    class_names: &'a [String],
    normalization: &'a Normalization,
}

impl Description {
    /// Reads image files as inputs `(B, C, H, W)` of a model that was trained on data of this description.
    ///
    /// The largest central part of an image that has the proportions of the model's images is resized to them (bilinear, smoothed
    /// when it shrinks), turned to grey for a model of one channel, and normalised as the training images were.
    ///
    /// # Errors
    /// If the description is not of images of one or three channels, a file cannot be decoded (it is named), or the crate is built without the feature
    /// `images`.
    pub fn read_images(&self, files: &[PathBuf]) -> Result<Tensor> {
        let Images { shape, normalization, .. } = self.images()?;
        let [channels, height, width] = shape;
        if ![1, 3].contains(&channels) {
            return Err(Error::invalid(
                "the model",
                format!("it takes images of {channels} channels"),
                "use a model of one channel (grey) or three (red, green, blue)",
            ));
        }
        let decoder = Decoder::new()?;
        let tables = normalization.tables();
        let mut values = Vec::with_capacity(files.len() * channels * height * width);
        for file in files {
            let pixels = decoder.pixels(file, shape).map_err(|e| {
                Error::file(file, format!("cannot be decoded as an image ({e}); give png, jpg, bmp or webp files"))
            })?;
            for (plane, table) in pixels.chunks_exact(height * width).zip(&tables) {
                values.extend(plane.iter().map(|&byte| table[usize::from(byte)]));
            }
        }
        Ok(Tensor::from_vec(values, (files.len(), channels, height, width), &Device::Cpu)?)
    }

    fn images(&self) -> Result<Images<'_>> {
        let other = || Error::invalid("data.kind", "it is of images, the model is not", "use the data of the run");
        let DataKind::Images { channels, height, width, classes, class_names } = &self.kind else {
            return Err(other());
        };
        let normalization = self.normalization.as_ref().ok_or_else(other)?;
        normalization.check(*channels)?;
        Ok(Images { shape: [*channels, *height, *width], classes: *classes, class_names, normalization })
    }

    fn image_set(&self, images: RawImages) -> Result<Arc<dyn Dataset>> {
        let saved = self.images()?;
        if images.shape != saved.shape {
            return Err(Error::invalid(
                "data",
                format!("images of shape {:?}, the model was trained on {:?}", images.shape, saved.shape),
                "use the data of the run",
            ));
        }
        Ok(Arc::new(ImageSet::new(images, saved.normalization, Augment::NONE)?))
    }

    fn folder_set(&self, c: &ImageFolder) -> Result<Arc<dyn Dataset>> {
        let Images { shape: [_, size, _], class_names, normalization, .. } = self.images()?;
        let fraction = c.validation_fraction.unwrap_or(FRACTION);
        check_fraction(fraction)?;
        let decoder = Decoder::new()?;
        let files = Listing::open_validation(&c.path, fraction, class_names)?;
        folder::inspect(decoder, &files, size, false, c.verify, c.threads)?;
        Ok(Arc::new(FolderSet::new(files, size, normalization, Augment::NONE, c.threads)?))
    }

    fn end_of_text(&self, text: (&Path, &[u8]), fraction: f64) -> Result<Arc<dyn Dataset>> {
        check_fraction(fraction)?;
        self.text_set(text, fraction)
    }

    /// Returns a set of the last `fraction` of the tokens.
    fn text_set(&self, text: (&Path, &[u8]), fraction: f64) -> Result<Arc<dyn Dataset>> {
        let (vocabulary, context) = self.text()?;
        let mut tokens = text::encode(vocabulary, text)?;
        let kept = tokens.split_off((tokens.len() as f64 * (1.0 - fraction)) as usize);
        let set = TextSet::new(kept, context, false);
        Ok(Arc::new(set.map_err(|e| Error::file(text.0, format!("validation: {e}")))?))
    }

    fn text(&self) -> Result<(&Vocabulary, usize)> {
        match &self.kind {
            DataKind::Text { vocab, context } => Ok((vocab, *context)),
            DataKind::Images { .. } => {
                Err(Error::invalid("data.kind", "it is text, the model is of images", "use the data of the run"))
            }
        }
    }
}
