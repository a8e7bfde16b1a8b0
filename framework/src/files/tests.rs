use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

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

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{FileTypeExt, symlink};

    use super::*;

    /// Writes by both ways.
    fn write_both(path: &Path) -> [Result<()>; 2] {
        let whole = write_output(path, "text");
        [whole, replace_output(path, |aside| fs::write(aside, "text").map_err(|e| Error::file(aside, e)))]
    }

    fn link(folder: &Path, name: &str, to: impl AsRef<Path>) -> PathBuf {
        symlink(to, folder.join(name)).unwrap();
        folder.join(name)
    }

    #[test]
    fn the_file_that_a_link_leads_to_is_replaced_and_a_dangling_link_gets_one() {
        let folder = tempfile::tempdir().unwrap();
        create_folder(&folder.path().join("inner")).unwrap();
        fs::write(folder.path().join("inner/file"), "old and longer").unwrap();
        link(folder.path(), "inner/first", "file");
        let links = [link(folder.path(), "second", "inner/first"), link(folder.path(), "dangling", "inner/new")];
        for (path, file) in links.iter().zip(["inner/file", "inner/new"]) {
            for written in write_both(path) {
                written.unwrap();
                assert!(path.is_symlink(), "{}", path.display());
                assert_eq!(fs::read_to_string(folder.path().join(file)).unwrap(), "text");
            }
        }
        assert_eq!(names(&folder.path().join("inner")), ["file", "first", "new"]);
        let ring = link(folder.path(), "ring", "ring");
        assert!(write_output(&ring, "").unwrap_err().to_string().contains("too many symbolic links"));
        let nowhere = link(folder.path(), "nowhere", "missing/file");
        assert!(write_output(&nowhere, "").unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn devices_stay_devices() {
        let folder = tempfile::tempdir().unwrap();
        let null = link(folder.path(), "null", "/dev/null");
        for path in [null.as_path(), Path::new("/dev/null")] {
            for written in write_both(path) {
                written.unwrap();
                assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
            }
        }
        assert!(null.is_symlink());
        if Path::new("/dev/full").exists() {
            for written in write_both(Path::new("/dev/full")) {
                let error = written.unwrap_err().to_string();
                assert!(error.contains("/dev/full") && error.contains("space"), "{error}");
            }
            assert!(fs::metadata("/dev/full").unwrap().file_type().is_char_device());
        }
        assert_eq!(names(folder.path()), ["null"]);
    }

    #[test]
    fn readers_of_a_fifo_get_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || {
                let mut text = String::new();
                for _ in 0..2 {
                    File::open(&fifo).unwrap().read_to_string(&mut text).unwrap();
                }
                text
            }
        });
        // The first reader has to see the end before the second writer opens.
        write_output(&fifo, "first ").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        replace_output(&fifo, |aside| fs::write(aside, "second").map_err(|e| Error::file(aside, e))).unwrap();
        assert_eq!(reader.join().unwrap(), "first second");
        assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
        assert_eq!(names(folder.path()), ["fifo"]);
    }

    #[test]
    fn an_open_descriptor_is_written_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let mut open = File::create(&file).unwrap();
        open.write_all(b"before ").unwrap();
        let descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
        if Path::new(&descriptor).exists() {
            write_output(Path::new(&descriptor), "after").unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), "before after");
            assert_eq!(names(folder.path()), ["file"]);
        }
    }

    #[test]
    fn a_link_in_the_place_of_the_incomplete_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "kept").unwrap();
        link(folder.path(), "file.part", &other);
        write_output(&folder.path().join("file"), "text").unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "kept");
        assert_eq!(names(folder.path()), ["file", "other"]);
    }
}
