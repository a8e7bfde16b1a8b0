//! The data sets embedded in this crate; `models/data/` has their origins and licences.

use std::path::Path;

use interlock::Result;

use super::{
    RawImages,
    files::{self, Most},
    idx,
};

/// The classes of Fashion-MNIST, by number.
pub(super) const FASHION_MNIST_CLASSES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// A file under `models/data/`: its path for errors, and its bytes.
macro_rules! embedded {
    ($path:literal) => {
        (Path::new($path), include_bytes!(concat!("../../data/", $path)).as_slice())
    };
}

fn unpacked((path, bytes): (&'static Path, &'static [u8])) -> Result<(&'static Path, Vec<u8>)> {
    Ok((path, files::gunzip(path, bytes, Most::Memory(1))?))
}

/// Returns the first 4,000 training images and the first 2,000 test images of Fashion-MNIST, `(1, 28, 28)` each.
///
/// # Errors
/// None, unless the program itself is damaged.
pub fn fashion_mnist() -> Result<(RawImages, RawImages)> {
    let part = |(images, labels)| {
        let ((image_path, images), (label_path, labels)) = (unpacked(images)?, unpacked(labels)?);
        idx::decode((image_path, images), (label_path, labels), FASHION_MNIST_CLASSES.len())
    };
    let train =
        (embedded!("fashion-mnist/train-images-idx3-ubyte.gz"), embedded!("fashion-mnist/train-labels-idx1-ubyte.gz"));
    let test =
        (embedded!("fashion-mnist/t10k-images-idx3-ubyte.gz"), embedded!("fashion-mnist/t10k-labels-idx1-ubyte.gz"));
    Ok((part(train)?, part(test)?))
}

/// Returns nine plays by Shakespeare, 988,098 bytes of UTF-8, and their path for errors.
///
/// # Errors
/// None, unless the program itself is damaged.
pub fn shakespeare() -> Result<(&'static Path, Vec<u8>)> {
    unpacked(embedded!("shakespeare/shakespeare.txt.gz"))
}
