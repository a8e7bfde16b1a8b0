//! Memory of this process and of the machine, as Linux reports it, and what is refused because there is too little.

mod estimate;
mod limit;

pub(crate) use estimate::{LeastStep, example};
pub(crate) use limit::{available, check, limit, size};

/// Returns the resident memory of this process in MiB, or none if the system does not report it.
pub(crate) fn resident() -> Option<f64> {
    status("VmRSS:")
}

/// Returns the peak of the resident memory in MiB, or none if the system does not report it.
pub(crate) fn peak() -> Option<f64> {
    status("VmHWM:")
}

/// Returns the available memory of this machine in bytes, or none if the system does not report it.
pub(crate) fn free_bytes() -> Option<u64> {
    Some((read("/proc/meminfo", "MemAvailable:")? * f64::from(1 << 20)) as u64)
}

/// Returns the unused swap space of this machine in bytes, or none if the system does not report it.
fn free_swap() -> Option<u64> {
    Some((read("/proc/meminfo", "SwapFree:")? * f64::from(1 << 20)) as u64)
}

/// Returns a number of bytes in words: `1.5 GiB`.
pub(crate) fn in_words(bytes: u64) -> String {
    let units = [("EiB", 60), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, bits)| bytes >> bits > 0) {
        Some((unit, bits)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << bits) as f64),
        None => format!("{bytes} bytes"),
    }
}

/// Returns the memory of this machine in bytes, or none if the system does not report it.
pub(crate) fn total_bytes() -> Option<u64> {
    Some((read("/proc/meminfo", "MemTotal:")? * f64::from(1 << 20)) as u64)
}

fn status(key: &str) -> Option<f64> {
    read("/proc/self/status", key)
}

/// Reads the line of `key`, a number of KiB. Returns it in MiB.
fn read(file: &str, key: &str) -> Option<f64> {
    let text = std::fs::read_to_string(file).ok()?;
    let kib: f64 = text.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn allocations_show() {
        let before = resident().unwrap();
        let block = vec![1_u8; 64 << 20];
        assert!(resident().unwrap() > before + 32.0, "{}", block.len());
        drop(block);
        assert!(peak().unwrap() > before + 32.0);
        assert!(free_bytes().unwrap() > 0 && total_bytes().unwrap() > free_bytes().unwrap());
    }
}
