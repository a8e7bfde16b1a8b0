//! The open connections of the server of metrics, of which there are only so many.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    task::{self, JoinHandle},
    time,
};

/// The most connections at once.
const CONNECTIONS: usize = 64;
/// Connections take at most one in this many of the descriptors that the process may have. The others are for the run: its data and its weights.
#[cfg(unix)]
const DESCRIPTORS_FOR_ONE: u64 = 4;
/// A connection is not closed for another one in its first moments, in which its request is on the way.
const GRACE: Duration = Duration::from_millis(100);
/// The time until the next look for a connection that may be closed.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Returns the most connections of this process at once.
pub(super) fn most() -> usize {
    #[cfg(unix)]
    {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let share = descriptors.map_or(u64::MAX, |descriptors| descriptors / DESCRIPTORS_FOR_ONE);
        usize::try_from(share).unwrap_or(usize::MAX).clamp(2, CONNECTIONS)
    }
    #[cfg(not(unix))]
    CONNECTIONS
}

/// The open connections, the oldest first. There is always place for one more, which has been accepted and not yet been added.
pub(super) struct Connections {
    most: usize,
    open: Vec<Connection>,
}

struct Connection {
    task: JoinHandle<()>,
    since: Instant,
    /// Whether its request has arrived.
    asked: Arc<AtomicBool>,
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: Vec::new() }
    }

    pub(super) fn add(&mut self, task: JoinHandle<()>, asked: Arc<AtomicBool>) {
        self.open.push(Connection { task, since: Instant::now(), asked });
    }

    /// Waits until the one that has been accepted may be added. If there are too many others, closes the oldest one without a request. Returns
    /// whether it has closed one.
    pub(super) async fn make_room(&mut self) -> bool {
        let mut closed = false;
        loop {
            self.open.retain(|connection| !connection.task.is_finished());
            // One place is for the next that is accepted.
            if self.open.len() + 1 < self.most {
                return closed;
            }
            // Requests that lie ready are read first.
            task::yield_now().await;
            let silent = |connection: &Connection| {
                !connection.asked.load(Ordering::Relaxed) && connection.since.elapsed() >= GRACE
            };
            match self.open.iter().position(silent) {
                Some(oldest) => {
                    let connection = self.open.remove(oldest);
                    connection.task.abort();
                    // Its descriptor is free when the task has ended.
                    let _ = connection.task.await;
                    closed = true;
                }
                None => time::sleep(LOOK_EVERY).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_runtime(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test);
    }

    fn silent() -> (JoinHandle<()>, Arc<AtomicBool>) {
        (tokio::spawn(std::future::pending()), Arc::default())
    }

    #[test]
    fn the_oldest_connection_without_a_request_is_closed_for_a_new_one() {
        in_runtime(async {
            let mut connections = Connections::new(4);
            let begun = Instant::now();
            for at in 0..3 {
                assert!(!connections.make_room().await);
                let (task, asked) = silent();
                asked.store(at == 0, Ordering::Relaxed);
                connections.add(task, asked);
            }
            let second = connections.open[1].task.abort_handle();
            assert!(connections.make_room().await);
            // Not before it has had the time to ask.
            assert!(begun.elapsed() >= GRACE);
            assert!(second.is_finished() && connections.open.len() == 2);
            assert!(connections.open[0].asked.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn a_new_connection_waits_while_all_others_are_answered() {
        in_runtime(async {
            let mut connections = Connections::new(2);
            connections.add(tokio::spawn(time::sleep(4 * GRACE)), Arc::new(AtomicBool::new(true)));
            let begun = Instant::now();
            assert!(!connections.make_room().await);
            assert!(begun.elapsed() >= 4 * GRACE && connections.open.is_empty());
        });
    }

    #[test]
    fn connections_leave_most_descriptors_to_the_run() {
        assert!((2..=CONNECTIONS).contains(&most()));
    }
}
