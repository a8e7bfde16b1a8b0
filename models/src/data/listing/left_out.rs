//! What a listing leaves out.

use std::{fmt, path::Path};

use interlock::{Error, Result};

use crate::data::formats;

/// The kind of files without an ending.
pub(super) const NO_ENDING: &str = "without ending";
/// The kind of pipes, sockets and devices.
pub(super) const SPECIAL: &str = "pipes, sockets or devices";
/// The largest number of items in a description.
const ITEMS: usize = 10;

/// Something that a [`Listing`](super::Listing) has left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// Files that are no images, or images of a format that this build cannot read.
    Files {
        /// The class folder, such as `cat` or `train/cat`.
        folder: String,
        /// Their ending in lower case, or what they are instead of files with an ending.
        what: String,
        /// Their number.
        count: usize,
    },
    /// Images beside class folders.
    Loose {
        /// The folder, such as `train`; empty for that of the listing.
        folder: String,
        /// Their number.
        count: usize,
    },
    /// A folder beside those for training and validation.
    Folder(String),
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files { folder, what, count } => write!(f, "{count} {what} in {folder}"),
            Self::Loose { folder, count } if folder.is_empty() => write!(f, "{count} images beside the class folders"),
            Self::Loose { folder, count } => write!(f, "{count} images beside the class folders of {folder}"),
            Self::Folder(name) => write!(f, "folder {name}"),
        }
    }
}

/// Describes what was left out, and how images among it can be read.
pub(super) fn described(left_out: &[LeftOut]) -> String {
    let mut items: Vec<String> = left_out.iter().take(ITEMS).map(LeftOut::to_string).collect();
    if let Some(more) = left_out.len().checked_sub(ITEMS).filter(|more| *more > 0) {
        let files: usize = left_out[ITEMS..].iter().map(LeftOut::files).sum();
        items.push(format!("{files} more in {more} other places"));
    }
    let remedies = formats::remedies(left_out.iter().filter_map(LeftOut::ending));
    let remedies = if remedies.is_empty() { String::new() } else { format!(" ({})", remedies.join("; ")) };
    format!("{}{remedies}", items.join(", "))
}

/// Refuses images of a format that cannot be read.
pub(super) fn refuse_images(folder: &Path, left_out: &[LeftOut]) -> Result<()> {
    let images: Vec<&LeftOut> = left_out.iter().filter(|each| each.ending().is_some_and(formats::is_image)).collect();
    if images.is_empty() {
        return Ok(());
    }
    let endings: Vec<&str> = images.iter().filter_map(|each| each.ending()).collect();
    let mut names = endings.clone();
    names.sort_unstable();
    names.dedup();
    let remedies = formats::remedies(endings).join("; ");
    let count: usize = images.iter().map(|each| each.files()).sum();
    let problem = format!("{count} images in it have a format that cannot be read ({})", names.join(", "));
    Err(Error::file(folder, format!("{problem}; {remedies}, or remove them")))
}

impl LeftOut {
    /// Returns the number of files, which is not known for folders.
    fn files(&self) -> usize {
        match self {
            Self::Files { count, .. } | Self::Loose { count, .. } => *count,
            Self::Folder(_) => 0,
        }
    }

    /// Returns the ending of the files.
    fn ending(&self) -> Option<&str> {
        match self {
            Self::Files { what, .. } => Some(what),
            _ => None,
        }
    }
}
