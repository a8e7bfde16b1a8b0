//! Opens the data of a configuration, and checks them.

use std::{path::Path, sync::Arc};

use interlock::{Error, Result};

use super::{
    Augment, Data, DataConfig, DataKind, Description, FolderSet, ImageSet, LineEnds, Listing, Normalization, RawImages,
    TextSet, cifar,
    config::{FRACTION, ImageFolder, Normalize, Tokenizer},
    decode::Decoder,
    embedded,
    files::{self, Most},
    folder, idx, listing,
    text::{self, Tokenization},
};

/// The most threads that decode images.
const MOST_THREADS: usize = 1024;

impl DataConfig {
    /// Reads and checks the data.
    ///
    /// # Errors
    /// If an option is out of range, or a file is missing, is damaged, has another format or does not fit the others. The error is always a refusal
    /// ([`Error::is_refusal`]).
    pub fn open(&self) -> Result<Data> {
        match self {
            Self::FashionMnistMini(c) => {
                check_limit(c.limit)?;
                let names = &embedded::FASHION_MNIST_CLASSES;
                images(embedded::fashion_mnist()?, names.len(), names, c.limit, &c.normalize, c.augment)
            }
            Self::Idx(c) => {
                check_limit(c.limit)?;
                if c.classes == 0 || c.classes > 256 {
                    return Err(Error::invalid("data.classes", c.classes.to_string(), "give 1 to 256, such as 10"));
                }
                images(idx::open(&c.path, c.classes)?, c.classes, &[], c.limit, &c.normalize, c.augment)
            }
            Self::Cifar10(c) | Self::Cifar100(c) => {
                check_limit(c.limit)?;
                let layout = if matches!(self, Self::Cifar10(_)) { cifar::CIFAR10 } else { cifar::CIFAR100 };
                let names = layout.class_names;
                images(layout.open(&c.path)?, names.len(), names, c.limit, &c.normalize, c.augment)
            }
            Self::ImageFolder(c) => image_folder(c),
            Self::Shakespeare(c) => {
                check_limit(c.limit)?;
                let (path, content) = embedded::shakespeare()?;
                texts(
                    (path, &content),
                    Validation::Fraction(c.validation_fraction),
                    &c.tokenizer,
                    LineEnds::Keep,
                    c.context,
                    c.augment,
                    c.limit,
                )
            }
            Self::Text(c) => {
                check_limit(c.limit)?;
                let remedy = "expected a text file, plain or .gz";
                // The text itself, and a number for each of its tokens.
                let most = Most::Memory(if matches!(c.tokenizer, Tokenizer::File(_)) { 1 } else { 5 });
                let content = files::read(&c.path, most, remedy)?;
                let held_out = c.validation_path.as_ref().map(|path| files::read(path, most, remedy)).transpose()?;
                let held = match (&c.validation_path, &held_out, c.validation_fraction) {
                    (Some(_), _, Some(_)) => {
                        return Err(Error::invalid(
                            "data.validation_fraction",
                            "given together with data.validation_path",
                            "give one of the two",
                        ));
                    }
                    (Some(path), Some(text), None) => Validation::File(path, text),
                    (_, _, fraction) => Validation::Fraction(fraction.unwrap_or(FRACTION)),
                };
                texts((&c.path, &content), held, &c.tokenizer, c.line_ends, c.context, c.augment, c.limit)
            }
        }
    }
}

fn check_limit(limit: Option<usize>) -> Result<()> {
    match limit {
        Some(0) => {
            Err(Error::invalid("data.limit", "0 training examples", "give at least 1, or leave it out to use all"))
        }
        _ => Ok(()),
    }
}

pub(super) fn check_fraction(fraction: f64) -> Result<()> {
    if fraction > 0.0 && fraction < 1.0 {
        return Ok(());
    }
    Err(Error::invalid("data.validation_fraction", fraction.to_string(), "give a number between 0 and 1, such as 0.1"))
}

impl Normalize {
    /// Returns the given values, or the training set's statistics from `own`, or none.
    fn resolve(&self, channels: usize, own: impl FnOnce() -> Result<Normalization>) -> Result<Normalization> {
        match self {
            Self::Own(true) => own(),
            Self::Own(false) => Ok(Normalization::none(channels)),
            Self::Given(values) => values.check(channels).map(|()| values.clone()),
        }
    }
}

fn images(
    (mut train, test): (RawImages, RawImages),
    classes: usize,
    names: &[&str],
    limit: Option<usize>,
    normalize: &Normalize,
    augment: Augment,
) -> Result<Data> {
    train.truncate(limit.unwrap_or(usize::MAX));
    let [channels, height, width] = train.shape;
    let normalization = normalize.resolve(channels, || Ok(train.statistics()))?;
    let class_names = names.iter().map(|&name| name.to_owned()).collect();
    Ok(Data {
        train: Arc::new(ImageSet::new(train, &normalization, augment)?),
        validation: Arc::new(ImageSet::new(test, &normalization, Augment::NONE)?),
        description: Description::new(
            DataKind::Images { channels, height, width, classes, class_names },
            Some(normalization),
        ),
        notes: Vec::new(),
    })
}

fn image_folder(c: &ImageFolder) -> Result<Data> {
    let mut decoder = Decoder::new(c.exif_orientation)?;
    check_limit(c.limit)?;
    let fraction = c.validation_fraction.unwrap_or(FRACTION);
    check_fraction(fraction)?;
    if c.threads.is_some_and(|threads| threads == 0 || threads > MOST_THREADS) {
        let given = c.threads.unwrap_or_default().to_string();
        return Err(Error::invalid("data.threads", given, format!("give 1 to {MOST_THREADS}, or leave it out")));
    }
    if let (Some(_), Some((_, validation))) = (c.validation_fraction, listing::parts(&c.path)?) {
        return Err(Error::invalid(
            "data.validation_fraction",
            format!("given, but there are images for validation in {}", validation.display()),
            "leave it out",
        ));
    }
    let listing = Listing::open(&c.path, fraction)?;
    let mut train = listing.train.clone();
    train.truncate(c.limit.unwrap_or(usize::MAX));
    let sample = c.normalize == Normalize::Own(true);
    let inspect = |files, sample| folder::inspect(decoder, files, c.size, sample, c.verify, c.threads);
    let (inspected, held_out) = (inspect(&train, sample)?, inspect(&listing.validation, false)?);
    if c.verify {
        decoder.trust();
    }
    let normalization = c.normalize.resolve(3, || Ok(inspected.statistics))?;
    let notes = vec![listing.summary(inspected.turned + held_out.turned)];
    let shape = [3, c.size, c.size];
    let set = |files, augment| FolderSet::of_shape(decoder, files, shape, &normalization, augment, c.threads);
    Ok(Data {
        train: Arc::new(set(train, c.augment)?),
        validation: Arc::new(set(listing.validation, Augment::NONE)?),
        notes,
        description: Description {
            kind: DataKind::Images {
                channels: 3,
                height: c.size,
                width: c.size,
                classes: listing.class_names.len(),
                class_names: listing.class_names,
            },
            normalization: Some(normalization),
            exif_orientation: c.exif_orientation,
        },
    })
}

/// The text for validation.
enum Validation<'a> {
    /// The end of the text.
    Fraction(f64),
    /// Another file: its path and its bytes.
    File(&'a Path, &'a [u8]),
}

fn texts(
    text: (&Path, &[u8]),
    held: Validation<'_>,
    tokenizer: &Tokenizer,
    line_ends: LineEnds,
    context: usize,
    shift: bool,
    limit: Option<usize>,
) -> Result<Data> {
    let tokenization = match tokenizer {
        Tokenizer::Bytes => Tokenization::Bytes,
        Tokenizer::Chars => Tokenization::Characters,
        Tokenizer::File(path) => Tokenization::File(path),
    };
    let set = |path: &Path, part: &str, tokens, shift| {
        TextSet::new(tokens, context, shift).map_err(|e| Error::file(path, format!("{part}: {e}")))
    };
    let (vocab, train, validation) = match held {
        Validation::File(path, held_out) => {
            let (vocab, mut tokens) = text::tokenize(&[text, (path, held_out)], &tokenization, line_ends)?;
            let validation = set(path, "validation", tokens.pop().unwrap_or_default(), false)?;
            (vocab, set(text.0, "training", tokens.pop().unwrap_or_default(), shift)?, validation)
        }
        Validation::Fraction(fraction) => {
            check_fraction(fraction)?;
            let (vocab, mut tokens) = text::tokenize(&[text], &tokenization, line_ends)?;
            let mut train = tokens.pop().unwrap_or_default();
            let validation = train.split_off((train.len() as f64 * (1.0 - fraction)) as usize);
            let train = set(text.0, "training", train, shift)?;
            let validation = TextSet::new(validation, context, false).map_err(|e| {
                let part = format!("validation, the last {fraction} of the text");
                Error::file(text.0, format!("{part}: {e}, or a larger data.validation_fraction"))
            })?;
            (vocab, train, validation)
        }
    };
    let mut train = train;
    train.truncate(limit.unwrap_or(usize::MAX));
    Ok(Data {
        train: Arc::new(train),
        validation: Arc::new(validation),
        description: Description::new(DataKind::Text { vocab, context }, None),
        notes: Vec::new(),
    })
}
