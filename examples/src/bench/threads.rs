//! The CPU time of the stages' own threads, which pass messages and choose the next action. The work itself runs on the threads of the devices.

use std::path::Path;

/// The beginning of the names of the actors' threads, as long as the system keeps names.
const ACTOR_THREAD: &str = "actix-rt|";

/// Returns the seconds that the stages' threads together have computed so far, or none if the system does not tell.
pub(super) fn stage_seconds() -> Option<f64> {
    if !Path::new("/proc/self/schedstat").exists() {
        return None;
    }
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    let mut sum = 0.0;
    for thread in threads.flatten().map(|thread| thread.path()) {
        // A thread may end after it was listed.
        let read = |file: &str| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
        if read("comm").starts_with(ACTOR_THREAD) {
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
    fn computing_on_an_actors_thread_adds_time() {
        let before = stage_seconds().unwrap();
        let (worked, seen) = channel();
        let (end, until) = channel::<()>();
        let thread = thread::Builder::new().name(format!("{ACTOR_THREAD}test")).spawn(move || {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(30) {}
            worked.send(()).unwrap();
            until.recv().unwrap();
        });
        seen.recv().unwrap();
        // The thread gets at least a part of the time, however busy the machine is.
        assert!(stage_seconds().unwrap() > before + 1e-3);
        end.send(()).unwrap();
        thread.unwrap().join().unwrap();
    }
}
