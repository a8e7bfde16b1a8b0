//! This process's memory, as Linux tells it.

/// Memory resident now, in MiB; none where the system does not tell.
pub(super) fn resident() -> Option<f64> {
    status("VmRSS:")
}

/// The most memory that was ever resident, in MiB; none where the system does not tell.
pub(super) fn peak() -> Option<f64> {
    status("VmHWM:")
}

fn status(key: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: f64 = text.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn what_was_allocated_shows() {
        let before = resident().unwrap();
        let block = vec![1_u8; 64 << 20];
        assert!(resident().unwrap() > before + 32.0, "{}", block.len());
        drop(block);
        assert!(peak().unwrap() > before + 32.0);
    }
}
