//! Text files of a bounded size.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// The most bytes of a configuration.
pub(crate) const CONFIG: u64 = 1 << 20;
/// The most bytes of a file of JSON in a run's folder; a description of the data has a tokenizer in it.
pub(crate) const JSON: u64 = 96 << 20;
/// The most bytes of a line of events.
pub(crate) const LINE: u64 = 16 << 20;

/// Returns the text of a file.
///
/// # Errors
/// If it cannot be read, is not UTF-8, or has more than `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    let count = File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    match count as u64 > most {
        true => Err(io::Error::other(format!("it has more than {}, which is not read", crate::memory::in_words(most)))),
        false => Ok(text),
    }
}
