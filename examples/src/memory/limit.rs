//! The memory that this process may use.

use std::{fs, path::Path, sync::OnceLock};

use interlock::{Error, Result};

use super::in_words;

/// The value of `--memory-limit`, if it is given.
static GIVEN: OnceLock<u64> = OnceLock::new();

/// Sets the value of `--memory-limit`, and bounds what readers of data take.
pub(crate) fn limit(given: Option<u64>) {
    if let Some(bytes) = given {
        GIVEN.get_or_init(|| bytes);
    }
    if let Some(bytes) = available() {
        interlock_models::data::limit_memory(bytes);
    }
}

/// Returns the memory that this process may use, in bytes: that of `--memory-limit`, or the smaller of what the machine has free and what the control
/// group may have; none if the system reports neither.
pub(crate) fn available() -> Option<u64> {
    let machine = || Some(super::free_bytes()?.saturating_add(super::free_swap().unwrap_or(0)));
    let group = || group_limit(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").ok()?);
    GIVEN.get().copied().or_else(|| [machine(), group()].into_iter().flatten().min())
}

/// Refuses what takes `least` bytes or more, if there are fewer. `what` names it, with its parts.
///
/// # Errors
/// If it cannot fit.
pub(crate) fn check(subject: &str, what: &str, least: u64, remedy: &str) -> Result<()> {
    let Some(available) = available().filter(|available| least > *available) else { return Ok(()) };
    let source = if GIVEN.get().is_some() { "--memory-limit" } else { "what this process may use" };
    let problem = format!("{what} at least {}; there are {} ({source})", in_words(least), in_words(available));
    Err(Error::invalid(subject, problem, format!("{remedy}, or say with --memory-limit that there is more")))
}

/// Returns the memory limit of the control groups that `/proc/self/cgroup` lists as `groups`, below `root`: of version 2 or 1, and of the groups above.
fn group_limit(root: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        let limit = |folder: &Path| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        root.join(path).ancestors().take_while(|folder| folder.starts_with(&root)).filter_map(limit).min()
    });
    limits.min()
}

/// Reads the value of `--memory-limit`: a number with a unit, such as `8GiB`.
pub(crate) fn size(text: &str) -> std::result::Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let unit = UNITS.iter().find_map(|(name, size)| Some((text.strip_suffix(name)?.trim_end(), *size)));
    let bytes = unit.and_then(|(number, size)| Some(number.parse::<f64>().ok()? * size as f64));
    match bytes.filter(|bytes| (1.0..u64::MAX as f64).contains(bytes)) {
        Some(bytes) => Ok(bytes as u64),
        None => Err(format!("{text:?} is no size; use a number with a unit, such as 8GiB or 512MiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let read = [("8GiB", 8 << 30), ("1.5 MiB", 3 << 19), ("2GB", 2_000_000_000), ("12B", 12)];
        read.iter().for_each(|(text, bytes)| assert_eq!(size(text).as_ref(), Ok(bytes)));
        for wrong in ["", "8", "GiB", "-1GiB", "0B", "nanGiB", "infGiB", "8 gigabytes"] {
            assert!(size(wrong).unwrap_err().contains("8GiB"), "{wrong}");
        }
    }

    #[test]
    fn the_smallest_limit_of_a_group_and_those_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let found = |groups: &str| group_limit(root.path(), groups);
        assert_eq!(found("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(found("0::/a/b\n"), None);
        write("a/memory.max", "4096\n");
        assert_eq!(found("0::/a/b\n"), Some(4096));
        // Within a container, the path may be one of the machine; the root is the container's own.
        write("memory.max", "8192\n");
        assert_eq!(found("0::/elsewhere\n"), Some(8192));
        write("memory/c/memory.limit_in_bytes", "1024\n");
        assert_eq!(found("5:cpu,memory:/c\n0::/\n"), Some(1024));
    }
}
