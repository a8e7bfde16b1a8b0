//! The entries of folders.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use interlock::{Error, Result};

use super::{
    folder_remedy,
    left_out::{self, LeftOut},
};
use crate::data::{
    files,
    formats::{self, FORMATS},
};

/// Files and folders that systems and programs make for themselves; so are those whose names begin with a dot.
const SYSTEM: [&str; 9] = [
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "lost+found",
    "System Volume Information",
    "Thumbs.db",
    "desktop.ini",
    "ehthumbs.db",
];

/// The kind of an entry, of a link that of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    /// A file, or a link to nothing.
    File,
    /// A pipe, a socket or a device, which may never end.
    Special,
}

impl Kind {
    fn of(entry: &fs::DirEntry) -> io::Result<Self> {
        let kind = entry.file_type()?;
        let kind =
            if kind.is_symlink() { fs::metadata(entry.path()).map_or(kind, |target| target.file_type()) } else { kind };
        Ok(match kind {
            kind if kind.is_dir() => Self::Folder,
            kind if kind.is_file() || kind.is_symlink() => Self::File,
            _ => Self::Special,
        })
    }
}

/// Returns the entries of a folder in the order of their names, without hidden ones and those of the system.
pub(super) fn entries(folder: &Path) -> Result<Vec<(PathBuf, Kind)>> {
    let failed = |e: io::Error| files::unreadable(folder, &e, &folder_remedy());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        if !is_hidden && !SYSTEM.iter().any(|system| name.eq_ignore_ascii_case(system)) {
            found.push((entry.path(), Kind::of(&entry).map_err(failed)?));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Returns the ending of a path in lower case; empty if there is none.
pub(super) fn ending(path: &Path) -> String {
    path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Returns whether a folder holds folders, but no images.
pub(super) fn is_folder_of_folders(folder: &Path) -> Result<bool> {
    let inside = entries(folder)?;
    let is_image = |(path, kind): &(PathBuf, Kind)| *kind == Kind::File && formats::is_image(&ending(path));
    Ok(inside.iter().any(|(_, kind)| *kind == Kind::Folder) && !inside.iter().any(is_image))
}

/// Lists the images in `folder` and the folders below it, in the order of their paths.
///
/// # Errors
/// If a folder cannot be read, there is no image, or there are images of a format that cannot be read.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (files, others) = images_in(folder)?;
    let others = others.into_iter().map(|(what, count)| LeftOut::Files { folder: String::new(), what, count });
    left_out::refuse_images(folder, &others.collect::<Vec<_>>())?;
    if files.is_empty() {
        return Err(Error::file(folder, format!("holds no image; expected images ({FORMATS}), also in folders below")));
    }
    Ok(files)
}

/// Lists the images in `folder` and the folders below it, in the order of their paths, and the numbers of the other files by their kind. A folder
/// that links name more than once is listed once.
pub(super) fn images_in(folder: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, usize>)> {
    let (mut files, mut others, mut folders) = (Vec::new(), BTreeMap::new(), vec![folder.to_owned()]);
    let mut seen = HashSet::new();
    while let Some(next) = folders.pop() {
        if !seen.insert(next.canonicalize().unwrap_or_else(|_| next.clone())) {
            continue;
        }
        for (path, kind) in entries(&next)? {
            let ending = ending(&path);
            let other = match kind {
                Kind::Folder => {
                    folders.push(path);
                    continue;
                }
                Kind::File if formats::is_read(&ending) => {
                    files.push(path);
                    continue;
                }
                Kind::File if ending.is_empty() => left_out::NO_ENDING.to_owned(),
                Kind::File => ending,
                Kind::Special => left_out::SPECIAL.to_owned(),
            };
            *others.entry(other).or_insert(0) += 1;
        }
    }
    files.sort();
    Ok((files, others))
}
