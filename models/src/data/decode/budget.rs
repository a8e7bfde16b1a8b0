//! Bounds on the memory of the images that are decoded at the same time.

use std::sync::{Condvar, Mutex, PoisonError};

/// The most bytes of one file, and of one decoded image.
pub(super) const EACH: u64 = 512 << 20;
/// The most bytes of each budget.
const ALL: u64 = 1 << 30;

/// The files that are in memory, in all threads of the process.
pub(super) static FILES: Budget = Budget::new();
/// The images that are decoded at the same time, in all threads of the process.
pub(super) static PIXELS: Budget = Budget::new();

/// A number of bytes that threads share.
pub(super) struct Budget {
    used: Mutex<u64>,
    freed: Condvar,
}

/// Bytes that are in use until this is dropped.
pub(super) struct Taken(&'static Budget, u64);

impl Budget {
    const fn new() -> Self {
        Self { used: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits until there is room for `bytes`, or until nothing else is in use if they are more than there ever is.
    ///
    /// A thread takes once from [`FILES`], then once from [`PIXELS`]: so the threads that have taken pixels never wait.
    pub(super) fn take(&'static self, bytes: u64) -> Taken {
        let bytes = bytes.min(ALL);
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = self.freed.wait_while(used, |used| *used + bytes > ALL);
        *fits.unwrap_or_else(PoisonError::into_inner) += bytes;
        Taken(self, bytes)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.0.used.lock().unwrap_or_else(PoisonError::into_inner) -= self.1;
        self.0.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering::SeqCst},
        thread,
    };

    use super::{ALL, Budget, EACH};

    static BUDGET: Budget = Budget::new();

    #[test]
    fn images_of_many_threads_stay_within_the_bound() {
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for i in 0..16 {
                let (now, most) = (&now, &most);
                scope.spawn(move || {
                    let bytes = EACH / (1 + i % 3);
                    let _taken = BUDGET.take(bytes);
                    most.fetch_max(now.fetch_add(bytes, SeqCst) + bytes, SeqCst);
                    thread::yield_now();
                    now.fetch_sub(bytes, SeqCst);
                });
            }
        });
        assert!((EACH..=ALL).contains(&most.load(SeqCst)), "{most:?}");
    }
}
