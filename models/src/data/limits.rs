//! Bounds on the memory that reading may take.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The most bytes of a file of JSON, such as a `tokenizer.json`; the largest known one has 33 MiB.
pub(crate) const JSON: u64 = 64 << 20;

/// The memory of this process, as far as it is known.
static MEMORY: AtomicU64 = AtomicU64::new(u64::MAX);

/// Sets the memory that this process has, in bytes; by default it is not known. Files whose contents surely take more are refused while they are
/// read, such as a small gzip file of a hundred gigabytes.
pub fn limit_memory(bytes: u64) {
    MEMORY.store(bytes, Relaxed);
}

/// Returns the memory that this process has.
pub(crate) fn memory() -> u64 {
    MEMORY.load(Relaxed)
}

/// Returns a number of bytes in words: `1.5 GiB`.
pub(crate) fn in_words(bytes: u64) -> String {
    let unit = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)].into_iter().find(|(_, size)| bytes >= *size);
    match unit {
        Some((name, size)) if bytes.is_multiple_of(size) => format!("{} {name}", bytes / size),
        Some((name, size)) => format!("{:.1} {name}", bytes as f64 / size as f64),
        None => format!("{bytes} bytes"),
    }
}
