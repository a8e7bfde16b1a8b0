//! The place of a run: its folder is made by one process alone, locked while it is written, and never written through symbolic links.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use interlock::{Error, Result, tools::files};

use crate::terminal::note;

/// The file that the process that writes the run has locked. It has the number of that process.
pub(super) const LOCK: &str = "lock";

/// Locks the run in `folder` for this process. The lock ends with the process.
///
/// # Errors
/// If another process writes the run.
pub(super) fn lock(folder: &Path) -> Result<Arc<File>> {
    let path = folder.join(LOCK);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    not_through_symlinks(&mut options);
    let mut file = options.open(&path).map_err(|e| Error::file(&path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            // Without its number the message is still right.
            let _ = file.read_to_string(&mut process);
            let problem = format!("process {} writes it", process.trim());
            let remedy = "wait until it has ended, or stop it";
            return Err(Error::invalid(format!("run {}", folder.display()), problem, remedy));
        }
        // Some file systems of clusters have no locks.
        Err(TryLockError::Error(error)) => {
            note(&format!(
                "{}: cannot be locked ({error}); see to it that no other process writes this run",
                path.display()
            ));
        }
    }
    let number = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    number.map_err(|e| Error::file(&path, e))?;
    Ok(Arc::new(file))
}

/// Removes these files and folders, as far as they are there.
pub(super) fn remove(files: &[&Path], folders: &[&Path]) -> Result<()> {
    let removed_files = files.iter().map(|path| (path, std::fs::remove_file(path)));
    let removed_folders = folders.iter().map(|path| (path, std::fs::remove_dir_all(path)));
    for (path, removed) in removed_files.chain(removed_folders) {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::file(path, error)),
            _ => {}
        }
    }
    Ok(())
}

/// Makes files opened with these options the ones of that name, never those that a symbolic link leads to.
pub(crate) fn not_through_symlinks(options: &mut OpenOptions) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NOFOLLOW);
    #[cfg(not(unix))]
    let _ = options;
}

/// Returns the default folder of a new run: `runs/<name>-<time>`, with a number behind it from the second attempt on.
fn fresh(name: &str, attempt: usize) -> PathBuf {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let time: String = time.chars().filter(char::is_ascii_digit).collect();
    let number = if attempt > 0 { format!("-{}", attempt + 1) } else { String::new() };
    PathBuf::from("runs").join(format!("{name}-{}-{}{number}", &time[..8], &time[8..]))
}

/// Creates the folder at `path`, or by default a new one that `name` begins. Of several processes that create the same one only one succeeds.
///
/// # Errors
/// If it exists, or cannot be created.
pub(crate) fn create(path: Option<&Path>, name: &str) -> Result<PathBuf> {
    let make = |path: &Path| -> Result<bool> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.map_or(Ok(()), files::create_folder)?;
        match std::fs::create_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::file(path, error)),
        }
    };
    if let Some(path) = path {
        return if make(path)? { Ok(path.to_owned()) } else { Err(exists(path)) };
    }
    let mut attempt = 0;
    loop {
        let path = fresh(name, attempt);
        if make(&path)? {
            return Ok(path);
        }
        attempt += 1;
    }
}

fn exists(path: &Path) -> Error {
    Error::invalid(format!("--out {}", path.display()), "it exists", "name a folder that does not exist, or omit --out")
}

/// Checks that there is nothing at `path`, the value of `--out`.
///
/// # Errors
/// If there is.
pub(crate) fn refuse_existing(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() { Err(exists(path)) } else { Ok(()) }
}

/// Checks that a file can be written to `path`, the value of option `name`.
///
/// # Errors
/// If its folder does not exist, or it is a folder itself.
pub(crate) fn refuse_no_place(name: &str, path: &Path) -> Result<()> {
    let refuse =
        |problem: String, right: &str| Err(Error::invalid(format!("{name} {}", path.display()), problem, right));
    if path.is_dir() {
        return refuse("it is a folder".to_owned(), "name a file");
    }
    match path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        Some(parent) => refuse(format!("there is no folder {}", parent.display()), "create it first, or name another"),
        None => Ok(()),
    }
}
