//! What a path leads to.

use std::{
    fs::{self, File, FileType},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The most symbolic links that lead to a file, as on Linux.
const MAX_LINKS: usize = 40;

/// What a path leads to.
pub(super) enum Target {
    /// A file, or a place without one, at a path that is no symbolic link.
    File(PathBuf),
    /// A device, a FIFO or an open descriptor.
    Stream(Box<dyn Write>),
}

impl Target {
    /// Follows the symbolic links at `path`, and opens what is no file. A FIFO is open once it has a reader.
    ///
    /// # Errors
    /// If there are too many links, or it cannot be opened.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut place = path.to_owned();
        for _ in 0..=MAX_LINKS {
            if let Some(stream) = own_descriptor(&place) {
                return Ok(Self::Stream(stream));
            }
            // What cannot be looked at cannot be written either; that error is reported then.
            let Ok(metadata) = fs::symlink_metadata(&place) else { return Ok(Self::File(place)) };
            if metadata.is_symlink() && !is_descriptor(&place) {
                let to = fs::read_link(&place)?;
                place = place.parent().map(|folder| folder.join(&to)).unwrap_or(to);
            } else if is_stream(metadata.file_type()) {
                return Ok(Self::Stream(Box::new(File::options().append(true).open(&place)?)));
            } else {
                return Ok(Self::File(place));
            }
        }
        Err(io::Error::other("too many symbolic links"))
    }
}

/// Returns whether bytes can only be written there: what is neither a file nor a folder. A link is that of a descriptor.
fn is_stream(kind: FileType) -> bool {
    !kind.is_file() && !kind.is_dir()
}

/// Returns whether `path` is a link of a folder such as `/proc/self/fd`. Its text is not always a path.
fn is_descriptor(path: &Path) -> bool {
    folder_of(path).is_some_and(|folder| folder.starts_with("/proc") && folder.ends_with("fd"))
}

/// Returns stdout or stderr of this process if `path` is one of them: what is written there then comes after what has been printed.
fn own_descriptor(path: &Path) -> Option<Box<dyn Write>> {
    let own = folder_of(path)? == fs::canonicalize("/proc/self/fd").ok()?;
    match path.file_name()?.to_str()? {
        "1" if own => Some(Box::new(io::stdout())),
        "2" if own => Some(Box::new(io::stderr())),
        _ => None,
    }
}

fn folder_of(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path.parent().filter(|parent| !parent.as_os_str().is_empty())?).ok()
}
