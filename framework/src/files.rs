//! Files that are written completely or not at all, also if the power fails.
//!
//! A file is written beside its place, synced, and renamed; then its folder is synced.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use crate::{Error, Result};

/// Writes `contents` to the file at `path`. If this fails, or the program or the machine stops in between, an older file there is as it was.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    replace(path, |aside| fs::write(aside, contents).map_err(|e| Error::file(path, e)))
}

/// Creates the folder at `path` and those above it, as far as they are missing.
///
/// # Errors
/// If one cannot be created.
pub fn create_folder(path: &Path) -> Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    let created = fs::create_dir_all(path).and_then(|()| missing.into_iter().try_for_each(sync_folder_of));
    created.map_err(|e| Error::file(path, e))
}

/// Replaces the file at `path` by the one that `write` writes to the path that it is given.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let aside = path.with_file_name(name);
    // Some writers make files that only their owner may read; ours have the mode of any other new file.
    let mode = File::create(&aside).and_then(|file| file.metadata()).map_err(|e| Error::file(&aside, e))?.permissions();
    let sync = || File::options().write(true).open(&aside)?.sync_all();
    let set_mode = || fs::set_permissions(&aside, mode);
    let rename =
        || set_mode().and_then(|()| sync()).and_then(|()| fs::rename(&aside, path)).map_err(|e| Error::file(path, e));
    let replaced = write(&aside).and_then(|()| rename());
    if replaced.is_err() {
        // The first error is reported, even if the incomplete file cannot be removed.
        let _ = fs::remove_file(&aside);
    }
    replaced?;
    sync_folder_of(path).map_err(|e| Error::file(path, e))
}

/// Makes the name of the file or folder at `path` survive a power failure.
#[cfg(unix)]
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match File::open(folder)?.sync_all() {
        // Some file systems cannot sync folders.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}

/// Does nothing: the file system takes care of names.
#[cfg(not(unix))]
pub(crate) fn sync_folder_of(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The names in a folder.
    pub(crate) fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, "old").unwrap();
        let error = replace(&path, |aside| {
            fs::write(aside, "ne").unwrap();
            Err(Error::file(aside, "no space left"))
        });
        assert!(error.unwrap_err().to_string().contains("no space left"));
        assert_eq!((fs::read(&path).unwrap().as_slice(), names(folder.path())), (&b"old"[..], vec!["file".to_owned()]));
        write(&path, b"new").unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), names(folder.path())), (&b"new"[..], vec!["file".to_owned()]));
        // A folder cannot be replaced by a file.
        let inner = folder.path().join("a/b");
        create_folder(&inner).unwrap();
        create_folder(&inner).unwrap();
        assert!(write(&folder.path().join("a"), "").is_err());
        assert_eq!(names(folder.path()), ["a", "file"]);
        assert!(create_folder(&path.join("c")).unwrap_err().is_refusal());
    }
}
