//! Sleeping until an exact time, without spinning.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Makes the calling thread wake from later sleeps and timed waits as soon as the system can.
///
/// By default Linux lets a thread sleep up to 50 µs longer than asked, to wake several threads together. This turns that off. On other systems it
/// does nothing.
pub(crate) fn wake_promptly() {
    #[cfg(target_os = "linux")]
    {
        use std::{cell::Cell, num::NonZeroU64};

        thread_local!(static ASKED: Cell<bool> = const { Cell::new(false) });
        if !ASKED.replace(true) {
            // If the system refuses, waits are as long as before.
            let _ = rustix::thread::set_current_timer_slack(Some(NonZeroU64::MIN));
        }
    }
}

/// Sleeps until `deadline` and wakes promptly; returns at once if it has passed.
pub fn until(deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    if left > Duration::ZERO {
        wake_promptly();
        thread::sleep(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_wakes_before_the_deadline() {
        for micros in [0, 1, 70, 2_000] {
            let deadline = Instant::now() + Duration::from_micros(micros);
            until(deadline);
            assert!(Instant::now() >= deadline);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_is_asked_for_the_least_slack() {
        thread::spawn(|| {
            let before = rustix::thread::current_timer_slack();
            wake_promptly();
            // A system that knows no slack has none.
            assert!(before.is_err() || rustix::thread::current_timer_slack() == Ok(1));
        })
        .join()
        .unwrap();
    }
}
