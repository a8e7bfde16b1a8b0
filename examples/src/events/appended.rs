//! A file of whole records.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use interlock::{Error, Result};

/// A file to which records are appended, each completely or not at all.
pub(crate) struct Appended {
    path: PathBuf,
    file: File,
    /// The bytes of whole records.
    len: u64,
}

impl Appended {
    /// Appends to this open file.
    ///
    /// # Errors
    /// If its length cannot be read.
    pub(crate) fn to(file: File, path: &Path) -> Result<Self> {
        let len = file.metadata().map_err(|e| Error::file(path, e))?.len();
        Ok(Self { path: path.to_owned(), file, len })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether it has no record.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a record in one write, so that readers see it at once.
    ///
    /// # Errors
    /// If it cannot be written, for example because the disk is full; the next one may be tried.
    pub(crate) fn put(&mut self, record: &[u8]) -> Result<()> {
        let written = self.file.seek(SeekFrom::Start(self.len)).and_then(|_| self.file.write_all(record));
        match written {
            Ok(()) => {
                self.len += record.len() as u64;
                Ok(())
            }
            Err(error) => {
                // What a full disk has taken of it. If it stays, the next record is written over it.
                let _ = self.file.set_len(self.len);
                Err(Error::file(&self.path, error))
            }
        }
    }
}
