//! The time that the stages' own threads compute: they carry messages and decide what is next. The work itself is done by the threads of devices.

use std::path::Path;

/// How an arbiter's thread is called, as far as the system keeps names.
const ARBITER: &str = "actix-rt|";

/// Seconds that the stages' threads have computed by now, all together; none where the system does not tell.
pub(super) fn stage_seconds() -> Option<f64> {
    if !Path::new("/proc/self/schedstat").exists() {
        return None;
    }
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    let mut sum = 0.0;
    for thread in threads.flatten().map(|thread| thread.path()) {
        // A thread may end between being listed and being asked.
        let read = |file: &str| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
        if read("comm").starts_with(ARBITER) {
            let nanoseconds = read("schedstat").split_whitespace().next().and_then(|first| first.parse::<f64>().ok());
            sum += 1e-9 * nanoseconds.unwrap_or(0.0);
        }
    }
    Some(sum)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::{
        sync::mpsc::channel,
        thread,
        time::{Duration, Instant},
    };

    #[test]
    fn what_a_stages_thread_computes_counts() {
        let before = stage_seconds().unwrap();
        let (worked, seen) = channel();
        let (end, until) = channel::<()>();
        let thread = thread::Builder::new().name(format!("{ARBITER}test")).spawn(move || {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(30) {}
            worked.send(()).unwrap();
            until.recv().unwrap();
        });
        seen.recv().unwrap();
        // At least a part of it, however busy the machine is.
        assert!(stage_seconds().unwrap() > before + 1e-3);
        end.send(()).unwrap();
        thread.unwrap().join().unwrap();
    }
}
