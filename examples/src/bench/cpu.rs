//! This process's CPU time.

/// Returns the seconds that all threads of the process have computed since its start, or none if the system does not tell.
#[cfg(unix)]
pub(crate) fn seconds() -> Option<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// Returns the seconds that all threads of the process have computed since its start, or none if the system does not tell.
#[cfg(not(unix))]
pub(crate) fn seconds() -> Option<f64> {
    None
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn computing_adds_cpu_time() {
        let before = seconds().unwrap();
        let mut sum = 0_u64;
        while seconds().unwrap() < before + 0.02 {
            sum = sum.wrapping_mul(31).wrapping_add(7);
        }
        assert!(seconds().unwrap() >= before + 0.02, "{sum}");
    }
}
