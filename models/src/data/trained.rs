//! Data for a trained model, with the normalization, classes and vocabulary that were saved with it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use interlock::{Dataset, Error, Result};

use super::{
    Augment, DataConfig, DataKind, Description, FolderSet, ImageSet, Inputs, Listing, Normalization, RawImages,
    TextSet, Vocabulary, cifar,
    config::{FRACTION, ImageFolder, Text},
    decode::{CENTRAL, Decoder},
    embedded,
    files::{self, Most},
    folder,
    formats::FORMATS,
    idx, listing,
    open::check_fraction,
    text,
};

/// The end of errors about a file of text.
const TEXT: &str = "expected a text file, plain or .gz";
/// The end of errors about inputs of a model of images.
const IMAGES: &str = "name image files, folders of them, or files of images in the idx format";
/// The end of errors about labelled images.
const LABELLED: &str = "name a folder with a folder of images for each class, a file of images in the idx format beside its file of labels \
                        (or a folder with t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte), or a folder or archive of CIFAR";

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
            Self::FashionMnistMini(_) => saved.image_set("data", embedded::fashion_mnist()?.1),
            Self::Idx(c) => saved.image_set("data", idx::open_test(&c.path, saved.images()?.classes)?),
            Self::Cifar10(c) => saved.image_set("data", cifar::CIFAR10.open_test(&c.path)?),
            Self::Cifar100(c) => saved.image_set("data", cifar::CIFAR100.open_test(&c.path)?),
            Self::ImageFolder(c) => saved.folder_set(c),
            Self::Shakespeare(c) => {
                let (path, content) = embedded::shakespeare()?;
                saved.end_of_text((path, &content), c.validation_fraction)
            }
            Self::Text(Text { path, validation_path, validation_fraction, .. }) => match validation_path {
                Some(path) => saved.text_set("validation: ", (path, &files::read(path, Most::Memory(1), TEXT)?), 1.0),
                None => saved.end_of_text(
                    (path, &files::read(path, Most::Memory(1), TEXT)?),
                    validation_fraction.unwrap_or(FRACTION),
                ),
            },
        }
    }
}

/// The most values of an image of a description: those of the largest that image folders have.
const MOST_VALUES: usize = 3 << 26;

/// The values of a description of images.
struct Images<'a> {
    shape: [usize; 3],
    classes: usize,
    class_names: &'a [String],
    normalization: &'a Normalization,
}

impl Description {
    /// Reads inputs for a model that was trained on images of this description, processed as its validation images were.
    ///
    /// Each of `files` is an image, a folder whose images are taken, also from folders below, or a file of images in the idx format, plain or `.gz`,
    /// of the model's size. Results name image `i` of such a file `file[i]`. Images are read as by [`Self::read_images`], when they are needed.
    ///
    /// # Errors
    /// If the description is not of images, a file cannot be read, or the images of an idx file have another size.
    pub fn read_inputs(&self, files: &[PathBuf]) -> Result<Inputs> {
        let Images { shape, normalization, .. } = self.images_of("predict")?;
        let (mut inputs, mut images) = (Inputs::default(), Vec::new());
        let add_images = |inputs: &mut Inputs, images: Vec<PathBuf>| {
            let (names, description) = (images.iter().map(|file| file.display().to_string()).collect(), self.clone());
            inputs.push(names, move |numbers| Ok(description.read_images(&images[numbers])?.into()));
        };
        for file in files {
            if file.is_dir() {
                images.extend(listing::image_files(file)?);
            } else if idx::is_meant(file, IMAGES)? {
                let set = idx::open_images(file)?;
                check_shape(&file.display().to_string(), set.shape, shape)?;
                let names = (0..set.labels.len()).map(|i| format!("{}[{i}]", file.display())).collect();
                let set = ImageSet::new(set, normalization, Augment::NONE)?;
                add_images(&mut inputs, std::mem::take(&mut images));
                inputs.push(names, move |numbers| Ok(set.batch(&numbers.collect::<Vec<_>>(), None)?.inputs));
            } else {
                images.push(file.clone());
            }
        }
        add_images(&mut inputs, images);
        Ok(inputs)
    }

    /// Reads the tokens of a text file, plain or `.gz`, with the vocabulary of this description.
    ///
    /// # Errors
    /// As [`Self::encode`], or if the file cannot be read.
    pub fn read_text(&self, file: &Path) -> Result<Vec<u32>> {
        self.encode(file, &files::read(file, Most::Memory(1), TEXT)?)
    }

    /// Returns the tokens of a text with the vocabulary of this description; errors name `origin`. A byte order mark is left out.
    ///
    /// # Errors
    /// If the description is not of text, or the text is empty, has characters that the vocabulary lacks, or is not UTF-8 and the tokens are no bytes.
    pub fn encode(&self, origin: &Path, text: &[u8]) -> Result<Vec<u32>> {
        let tokens = text::encode(self.text()?.0, (origin, text))?;
        match tokens.is_empty() {
            true => Err(Error::file(origin, "is empty; give a text of at least one token")),
            false => Ok(tokens),
        }
    }

    /// Opens data with targets for a model that was trained on data of this description, processed as its validation data were.
    ///
    /// For a model of images, `path` is one of these:
    ///
    /// - a folder with a folder of images for each class, or such folders in `val/` (or `valid/`, `validation/`, `test/`); the names must be those of the
    ///   model's classes, or the classes' numbers if it has no names;
    /// - a file of images in the idx format, whose labels are in the file beside it with `labels` for `images` and `idx1` for `idx3` in its name, or a
    ///   folder with such files for `t10k`;
    /// - a folder or an archive of CIFAR-10 or CIFAR-100, of which the test images are taken.
    ///
    /// For a model of text, it is a text file, plain or `.gz`, of which all windows are taken.
    ///
    /// # Errors
    /// If a file is missing or damaged, its images, classes or characters are not those of this description, or the description is of vectors, for which
    /// there is no format of files. The error is always a refusal ([`Error::is_refusal`]).
    pub fn open_labelled(&self, path: &Path) -> Result<Arc<dyn Dataset>> {
        if let DataKind::Text { .. } = self.kind {
            return self.text_set("", (path, &files::read(path, Most::Memory(1), TEXT)?), 1.0);
        }
        let Images { shape, classes, class_names, normalization } = self.images_of("eval --data")?;
        let name = path.display().to_string();
        if let Some(layout) = cifar::Layout::at(path) {
            let fits = if class_names.is_empty() {
                layout.class_names.len() == classes
            } else {
                layout.class_names == class_names
            };
            if !fits {
                let own =
                    if class_names.is_empty() { format!("{classes} without names") } else { class_names.join(", ") };
                return Err(Error::file(
                    path,
                    format!(
                        "its classes are {}, those of the model are {own}; name data of the model's classes",
                        layout.class_names.join(", ")
                    ),
                ));
            }
            return self.image_set(&name, layout.open_test(path)?);
        }
        if path.is_dir() && idx::has_test(path) {
            return self.image_set(&name, idx::open_test(path, classes)?);
        }
        if path.is_dir() {
            let numbers: Vec<String> = (0..classes).map(|class| class.to_string()).collect();
            let files = Listing::open_labelled(path, if class_names.is_empty() { &numbers } else { class_names })?;
            check_channels(shape[0])?;
            let mut decoder = Decoder::new(self.exif_orientation)?;
            folder::inspect(decoder, &files, shape[1], false, true, None)?;
            decoder.trust();
            return Ok(Arc::new(FolderSet::of_shape(decoder, files, shape, normalization, Augment::NONE, None)?));
        }
        match idx::is_meant(path, LABELLED)? {
            true => self.image_set(&name, idx::open_pair(path, classes)?),
            false => Err(Error::file(path, format!("has no labels; {LABELLED}"))),
        }
    }

    /// Reads image files as inputs `(B, C, H, W)` of a model that was trained on data of this description.
    ///
    /// An image is turned as its EXIF orientation says, unless the description rules that out. Its largest central part that has the proportions of
    /// the model's images is resized to them (bilinear, smoothed when it shrinks), turned to grey for a model of one channel, and normalised as the
    /// training images were.
    ///
    /// # Errors
    /// If the description is not of images of one or three channels, a file cannot be decoded (it is named), or the crate is built without the feature
    /// `images`.
    pub fn read_images(&self, files: &[PathBuf]) -> Result<Tensor> {
        let Images { shape, normalization, .. } = self.images()?;
        let [channels, height, width] = shape;
        check_channels(channels)?;
        let decoder = Decoder::new(self.exif_orientation)?;
        let tables = normalization.tables();
        let mut values = Vec::with_capacity(files.len() * channels * height * width);
        for file in files {
            let (pixels, _) = decoder.pixels(file, shape, CENTRAL).map_err(|e| {
                Error::file(file, format!("cannot be decoded as an image ({e}); give files of the formats {FORMATS}"))
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
        let values = channels.checked_mul(*height).and_then(|values| values.checked_mul(*width));
        if values.is_none_or(|values| values == 0 || values > MOST_VALUES) {
            let problem = format!("images of {channels} × {height} × {width} values");
            return Err(Error::invalid("data.json", problem, format!("images have 1 to {MOST_VALUES} values")));
        }
        Ok(Images { shape: [*channels, *height, *width], classes: *classes, class_names, normalization })
    }

    /// Returns the values of a description of images, for `use_of` the model with files.
    fn images_of(&self, use_of: &str) -> Result<Images<'_>> {
        match self.kind {
            DataKind::Images { .. } => self.images(),
            _ => Err(Error::invalid(
                use_of,
                format!("the model takes {}, which this program cannot read from files", self.kind.name()),
                "a program with its own data does so where its section [data] implements `read_inputs` and `open_labelled` of `DataSection`",
            )),
        }
    }

    /// Makes a set of images; errors name `subject`.
    fn image_set(&self, subject: &str, images: RawImages) -> Result<Arc<dyn Dataset>> {
        let saved = self.images()?;
        check_shape(subject, images.shape, saved.shape)?;
        Ok(Arc::new(ImageSet::new(images, saved.normalization, Augment::NONE)?))
    }

    fn folder_set(&self, c: &ImageFolder) -> Result<Arc<dyn Dataset>> {
        let Images { shape: [_, size, _], class_names, normalization, .. } = self.images()?;
        let fraction = c.validation_fraction.unwrap_or(FRACTION);
        check_fraction(fraction)?;
        let mut decoder = Decoder::new(self.exif_orientation)?;
        let files = Listing::open_validation(&c.path, fraction, class_names)?;
        folder::inspect(decoder, &files, size, false, c.verify, c.threads)?;
        if c.verify {
            decoder.trust();
        }
        let shape = [3, size, size];
        Ok(Arc::new(FolderSet::of_shape(decoder, files, shape, normalization, Augment::NONE, c.threads)?))
    }

    fn end_of_text(&self, text: (&Path, &[u8]), fraction: f64) -> Result<Arc<dyn Dataset>> {
        check_fraction(fraction)?;
        self.text_set("validation: ", text, fraction)
    }

    /// Returns a set of the last `fraction` of the tokens, which errors call `part`.
    fn text_set(&self, part: &str, text: (&Path, &[u8]), fraction: f64) -> Result<Arc<dyn Dataset>> {
        let (vocabulary, context) = self.text()?;
        let mut tokens = text::encode(vocabulary, text)?;
        let kept = tokens.split_off((tokens.len() as f64 * (1.0 - fraction)) as usize);
        if kept.len() <= context {
            let problem = format!("{} tokens are too few for a window of {context} and the token after it", kept.len());
            return Err(Error::file(text.0, format!("{part}{problem}; give a longer text")));
        }
        Ok(Arc::new(TextSet::new(kept, context, false)?))
    }

    fn text(&self) -> Result<(&Vocabulary, usize)> {
        match &self.kind {
            DataKind::Text { vocab, context } => Ok((vocab, *context)),
            kind => {
                let problem = format!("it is text, the model is of {}", kind.name());
                Err(Error::invalid("data.kind", problem, "use the data of the run"))
            }
        }
    }
}

/// Checks that images have the shape `(C, H, W)` of those that the model was trained on.
fn check_shape(subject: &str, found: [usize; 3], trained: [usize; 3]) -> Result<()> {
    if found == trained {
        return Ok(());
    }
    let problem = format!("images of shape {found:?}, the model was trained on {trained:?}");
    Err(Error::invalid(subject, problem, "use images of that shape (channels, height, width)"))
}

/// Checks that image files can be read with this number of channels.
fn check_channels(channels: usize) -> Result<()> {
    match channels {
        1 | 3 => Ok(()),
        _ => Err(Error::invalid(
            "the model",
            format!("it takes images of {channels} channels"),
            "use a model of one channel (grey) or three (red, green, blue)",
        )),
    }
}
