//! The file of a run's log, `run.log`. When it is full, it is renamed to `run.log.1`, which replaces an older one.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use interlock::{Error, Result};

use crate::{arguments::LogFormat, terminal::printable};

/// The most bytes of each of the two files.
const MOST: u64 = 32 << 20;
/// The most bytes of lines before there is a file.
const MOST_IN_MEMORY: usize = 1 << 20;

/// The log of a run, which has no file before the run has a folder. Clones share it.
#[derive(Clone)]
pub(crate) struct RunLog(Arc<Mutex<Inner>>);

struct Inner {
    format: LogFormat,
    lines: Lines,
    most: u64,
}

/// The lines of a log.
enum Lines {
    /// Those so far.
    InMemory(Vec<u8>),
    InFile {
        path: PathBuf,
        file: File,
        /// Its bytes.
        length: u64,
    },
}

impl RunLog {
    pub(super) fn new(format: LogFormat) -> Self {
        Self(Arc::new(Mutex::new(Inner { format, lines: Lines::InMemory(Vec::new()), most: MOST })))
    }

    /// Makes the file at `path`, and writes the lines so far and all further ones to it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write_to(&self, path: &Path) -> Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = File::create(path).map_err(|e| Error::file(path, e))?;
        let mut length = 0;
        if let Lines::InMemory(lines) = &inner.lines {
            file.write_all(lines).map_err(|e| Error::file(path, e))?;
            length = lines.len() as u64;
        }
        inner.lines = Lines::InFile { path: path.to_owned(), file, length };
        Ok(())
    }
}

/// Takes whole lines.
impl Write for RunLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.write(printable(&line).as_bytes()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inner {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if let Lines::InFile { path, file, length } = &mut self.lines
            && *length + line.len() as u64 > self.most
            && *length > 0
        {
            (*file, *length) = begin_again(path, self.format)?;
        }
        match &mut self.lines {
            Lines::InMemory(lines) if lines.len() + line.len() > MOST_IN_MEMORY => {}
            Lines::InMemory(lines) => lines.extend(line),
            Lines::InFile { file, length, .. } => {
                *length += line.len() as u64;
                file.write_all(line)?;
            }
        }
        Ok(())
    }
}

/// Renames the file at `path`, and begins another one there with a line that says so. Returns it and its length.
fn begin_again(path: &Path, format: LogFormat) -> io::Result<(File, u64)> {
    let mut name: OsString = path.file_name().unwrap_or_default().to_owned();
    name.push(".1");
    // If it cannot be renamed, it begins again too: its size has a bound.
    let _ = fs::rename(path, path.with_file_name(&name));
    let mut file = File::create(path)?;
    let says = format!("the lines before this one are in {}; those before them are gone", Path::new(&name).display());
    let line = match format {
        LogFormat::Text => format!("{says}\n"),
        LogFormat::Json => format!("{}\n", serde_json::json!({ "level": "INFO", "message": says })),
    };
    file.write_all(line.as_bytes())?;
    Ok((file, line.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(format: LogFormat, most: u64) -> RunLog {
        let log = RunLog::new(format);
        log.0.lock().unwrap().most = most;
        log
    }

    #[test]
    fn a_long_log_keeps_its_last_lines_in_two_files_and_says_so() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("run.log");
            let mut log = log(format, 1000);
            writeln!(log, "first").unwrap();
            log.write_to(&path).unwrap();
            for n in 0..500 {
                log.write_all(format!("line {n}\n").as_bytes()).unwrap();
            }
            let texts = ["run.log.1", "run.log"].map(|name| fs::read_to_string(folder.path().join(name)).unwrap());
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
            assert!(texts.iter().all(|text| text.len() <= 1000));
            let says = texts[1].lines().next().unwrap();
            assert!(
                says.contains("run.log.1") && (format == LogFormat::Json) == says.starts_with("{\"level\""),
                "{says}"
            );
            // No line is missing between the two files.
            let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines().skip(1)).collect();
            let first: usize = lines[0].strip_prefix("line ").unwrap().parse().unwrap();
            assert_eq!(lines, (first..500).map(|n| format!("line {n}")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn lines_before_the_file_are_bounded_and_lines_have_no_control_characters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.log");
        let mut log = log(LogFormat::Text, MOST);
        writeln!(log, "a \x1b[2J").unwrap();
        let long = "x".repeat(999) + "\n";
        (0..2000).for_each(|_| log.write_all(long.as_bytes()).unwrap());
        log.write_to(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("a \\u001b[2J\n") && text.len() <= MOST_IN_MEMORY, "{}", text.len());
    }
}
