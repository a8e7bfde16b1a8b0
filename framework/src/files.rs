//! Files that are written completely or not at all, also if the power fails.
//!
//! A file is written beside its place, synced, and renamed; then its folder is synced. Where a user names the file ([`write_output`]), a symbolic link is
//! followed: the file that it leads to is replaced, or made. A device, a FIFO or an open descriptor (`/dev/stdout`) is opened and written: nothing is
//! renamed over it.

mod target;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use self::target::Target;
use crate::{Error, Result};

/// Writes `contents` to the file at `path`. If this fails, or the program or the machine stops in between, an older file there is as it was. A symbolic link is
/// replaced, not followed.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    replace(path, |aside| fs::write(aside, contents).map_err(|e| Error::file(aside, e)))
}

/// As [`write()`], for a path that a user names: it follows symbolic links, and writes to devices, FIFOs and open descriptors themselves.
///
/// # Errors
/// If the file cannot be written.
pub fn write_output(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    match Target::of(path).map_err(|e| Error::file(path, e))? {
        Target::File(place) => replace(&place, |aside| fs::write(aside, contents).map_err(|e| Error::file(aside, e))),
        Target::Stream(mut stream) => {
            stream.write_all(contents.as_ref()).and_then(|()| stream.flush()).map_err(|e| Error::file(path, e))
        }
    }
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

/// Replaces the file to which `path` leads by the one that `write` writes to the path that it is given. If it leads to no file, what was written is copied
/// there.
pub(crate) fn replace_output(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    match Target::of(path).map_err(|e| Error::file(path, e))? {
        Target::File(place) => replace(&place, write),
        Target::Stream(mut stream) => {
            let folder = tempfile::tempdir().map_err(|e| Error::file(path, e))?;
            let aside = folder.path().join("file");
            write(&aside)?;
            let copied = File::open(&aside).and_then(|mut file| io::copy(&mut file, &mut stream));
            copied.and_then(|_| stream.flush()).map_err(|e| Error::file(path, e))
        }
    }
}

/// Replaces the file or the symbolic link at `path` by the file that `write` writes to the path that it is given.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let aside = path.with_file_name(name);
    // One that a killed program has left, or a link that leads elsewhere.
    let cleared =
        fs::remove_file(&aside).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) });
    // Some writers make files that only their owner may read; ours have the mode of any other new file.
    let mode =
        cleared.and_then(|()| File::create_new(&aside)?.metadata()).map_err(|e| Error::file(&aside, e))?.permissions();
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
