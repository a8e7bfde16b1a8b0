//! Reads whole files, plain or compressed with gzip, up to a bound.

use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use interlock::{Error, Result};

use super::limits;

/// The first bytes of every gzip file.
pub(super) const GZIP: [u8; 2] = [0x1f, 0x8b];

/// How many bytes of the (unpacked) content may state its size.
const HEADER: usize = 16;

/// The most bytes of an (unpacked) file.
#[derive(Clone, Copy)]
pub(crate) enum Most {
    /// As many as fit in memory, where each of them takes this many.
    Memory(u64),
    /// This many.
    Bytes(u64),
    /// As many as its first bytes state, and one more, by which a longer file is known.
    Stated(fn(&[u8]) -> Option<u64>),
}

/// Returns the error for a path that could not be read, with a remedy.
pub(super) fn unreadable(path: &Path, error: &io::Error, remedy: &str) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::file(path, format!("no such file or folder; {remedy}")),
        _ => Error::file(path, format!("{error}; {remedy}")),
    }
}

/// Returns the content of a file, unpacked if it begins as a gzip file, whatever its name.
///
/// # Errors
/// If it cannot be read, or has more bytes than `most`.
pub(crate) fn read(path: &Path, most: Most, remedy: &str) -> Result<Vec<u8>> {
    if path.is_dir() {
        return Err(Error::file(path, format!("is a folder, not a file; {remedy}")));
    }
    let file = File::open(path).map_err(|e| unreadable(path, &e, remedy))?;
    let mut start = Vec::new();
    (&file).take(GZIP.len() as u64).read_to_end(&mut start).map_err(|e| unreadable(path, &e, remedy))?;
    let is_packed = start == GZIP;
    let whole = Cursor::new(start).chain(BufReader::new(file));
    match is_packed {
        true => gunzip(path, whole, most),
        false => up_to(path, whole, most, |e, _| unreadable(path, &e, remedy)),
    }
}

/// Unpacks `packed`, which is compressed with gzip. Errors name `path`.
pub(super) fn gunzip(path: &Path, packed: impl io::BufRead, most: Most) -> Result<Vec<u8>> {
    up_to(path, MultiGzDecoder::new(packed), most, |e, unpacked| {
        Error::file(path, format!("damaged gzip data after {unpacked} unpacked bytes ({e}); fetch the file again"))
    })
}

/// Reads all that there is, up to `most`. `failed` gets an error and the number of bytes before it.
fn up_to(path: &Path, mut from: impl Read, most: Most, failed: impl Fn(io::Error, usize) -> Error) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut read = |content: &mut Vec<u8>, bytes: u64| {
        from.by_ref().take(bytes).read_to_end(content).map_err(|e| failed(e, content.len()))
    };
    read(&mut content, HEADER as u64)?;
    let memory = limits::memory();
    let (bound, why) = match most {
        Most::Memory(each) => (memory / each.max(1), "more than the memory that there is can take"),
        Most::Bytes(bytes) => (bytes, "more than such a file may have"),
        Most::Stated(size) => match size(&content).filter(|size| *size <= memory) {
            Some(size) => (size.saturating_add(1), ""),
            None => (memory, "more than the memory that there is"),
        },
    };
    let rest = bound.saturating_add(1).saturating_sub(content.len() as u64);
    read(&mut content, rest)?;
    match content.len() as u64 > bound {
        // The reader of the format compares the bytes with those that the header states.
        true if !why.is_empty() => {
            let problem = format!("has more than {} (unpacked), {why}", limits::in_words(bound));
            Err(Error::file(path, format!("{problem}; give a smaller file")))
        }
        _ => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_their_bound() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), [7; 100]).expect("writes");
        let read = |most| read(file.path(), most, "expected a file").map(|bytes| bytes.len());
        assert_eq!(read(Most::Memory(5)).expect("fits"), 100);
        assert_eq!(read(Most::Bytes(100)).expect("fits"), 100);
        assert!(read(Most::Bytes(99)).expect_err("too long").to_string().contains("more than 99 bytes (unpacked)"));
        // One byte more than stated tells that the file is longer.
        assert_eq!(read(Most::Stated(|_| Some(20))).expect("fits"), 22);
        assert_eq!(read(Most::Stated(|_| Some(200))).expect("fits"), 100);
    }
}
