//! Reads whole files, plain or compressed with gzip.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use interlock::{Error, Result};

/// The first bytes of every gzip file.
pub(super) const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Returns the error for a path that could not be read, with a remedy.
pub(super) fn unreadable(path: &Path, error: &io::Error, remedy: &str) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::file(path, format!("no such file or folder; {remedy}")),
        _ => Error::file(path, format!("{error}; {remedy}")),
    }
}

/// Returns the content of a file, unpacked if it begins as a gzip file, whatever its name.
pub(super) fn read(path: &Path, remedy: &str) -> Result<Vec<u8>> {
    if path.is_dir() {
        return Err(Error::file(path, format!("is a folder, not a file; {remedy}")));
    }
    let bytes = fs::read(path).map_err(|e| unreadable(path, &e, remedy))?;
    if bytes.starts_with(&GZIP) { gunzip(path, &bytes) } else { Ok(bytes) }
}

/// Unpacks `bytes`, which are compressed with gzip. Errors name `path`.
pub(super) fn gunzip(path: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    match MultiGzDecoder::new(bytes).read_to_end(&mut content) {
        Ok(_) => Ok(content),
        Err(e) => Err(Error::file(
            path,
            format!("damaged gzip data after {} unpacked bytes ({e}); fetch the file again", content.len()),
        )),
    }
}
