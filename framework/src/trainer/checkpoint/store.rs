//! The thread that writes checkpoints and the best weights of a run while it goes on.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use metrics::{Counter, Gauge, Histogram};

use super::{Attached, Checkpoint, CheckpointConfig};
use crate::{
    Error, Result, checkpoint, files,
    metrics::table,
    trainer::{Best, guarded},
};

/// What the thread writes next.
enum Job {
    Checkpoint(Arc<Checkpoint>),
    Best(Arc<Best>),
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Checkpoint,
    Best,
}

/// What came of writing a checkpoint, or the best weights.
#[derive(Debug)]
pub(crate) struct Saved {
    /// The number of steps that had been made.
    pub(crate) steps: u64,
    pub(crate) what: Kind,
    pub(crate) time: Duration,
    /// Its folder.
    pub(crate) result: Result<PathBuf>,
}

/// The handles of the metrics of checkpoints.
struct Handles {
    last_success: Gauge,
    size: Gauge,
    duration: Histogram,
    failures: Counter,
}

impl Handles {
    fn new(config: &CheckpointConfig) -> Self {
        table::CHECKPOINT_INTERVAL.gauge(&[]).set(config.every_minutes * 60.0);
        let handles = Self {
            last_success: table::CHECKPOINT_LAST_SUCCESS.gauge(&[]),
            size: table::CHECKPOINT_SIZE.gauge(&[]),
            duration: table::CHECKPOINT_DURATION.histogram(&[]),
            failures: table::CHECKPOINT_FAILURES.counter(&[]),
        };
        handles.last_success.set(now());
        handles
    }

    fn observe(&self, saved: &Saved) {
        match &saved.result {
            Ok(path) if saved.what == Kind::Checkpoint => {
                self.last_success.set(now());
                self.duration.record(saved.time);
                self.size.set(size_of_folder(path) as f64);
            }
            Ok(_) => {}
            Err(_) => self.failures.increment(1),
        }
    }
}

/// The seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Writes checkpoints and best weights into the folder of a run, one after another, on a thread of its own.
pub(crate) struct Store {
    jobs: Option<SyncSender<Job>>,
    saved: Receiver<Saved>,
    thread: Option<JoinHandle<()>>,
    /// Jobs whose result has not been taken.
    open: usize,
}

impl Store {
    /// Starts the thread for the run in `run`.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn start(run: &Path, config: &CheckpointConfig, attached: Attached) -> Result<Self> {
        // One job may wait while another is written: then the trainer waits too, so that no checkpoint is left out.
        let (jobs, next) = sync_channel(1);
        let (tell, saved) = channel();
        let (run, keep, handles) = (run.to_owned(), config.keep, Handles::new(config));
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || {
                for job in next {
                    let start = Instant::now();
                    let (steps, what) = match &job {
                        Job::Checkpoint(checkpoint) => (checkpoint.steps(), Kind::Checkpoint),
                        Job::Best(best) => (best.steps, Kind::Best),
                    };
                    let result = guarded(|| match &job {
                        Job::Checkpoint(checkpoint) => save(checkpoint, &run, keep, &attached),
                        Job::Best(best) => save_best(best, &run),
                    });
                    let saved = Saved { steps, what, time: start.elapsed(), result };
                    handles.observe(&saved);
                    // If nobody listens, the trainer has ended.
                    let _ = tell.send(saved);
                }
            })
            .map_err(|cause| Error::Thread { name: "checkpoints", cause })?;
        Ok(Self { jobs: Some(jobs), saved, thread: Some(thread), open: 0 })
    }

    /// Hands a checkpoint over; waits only if two others are not written yet.
    pub(crate) fn write(&mut self, checkpoint: Arc<Checkpoint>) -> Result<()> {
        self.hand_over(Job::Checkpoint(checkpoint))
    }

    /// Hands the best weights over, likewise.
    pub(crate) fn write_best(&mut self, best: Arc<Best>) -> Result<()> {
        self.hand_over(Job::Best(best))
    }

    fn hand_over(&mut self, job: Job) -> Result<()> {
        let handed = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        self.open += usize::from(handed);
        if handed { Ok(()) } else { Err(Error::Ended("the thread of checkpoints".to_owned())) }
    }

    /// Returns what has been written since the last call; waits for all that was handed over if `wait` is set.
    pub(crate) fn take_saved(&mut self, wait: bool) -> Vec<Saved> {
        let mut taken = Vec::new();
        while self.open > 0 {
            let next = if wait { self.saved.recv().ok() } else { self.saved.try_recv().ok() };
            let Some(saved) = next else { break };
            self.open -= 1;
            taken.push(saved);
        }
        taken
    }
}

impl Drop for Store {
    /// What was handed over is still written.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn save(checkpoint: &Checkpoint, run: &Path, keep: usize, attached: &Attached) -> Result<PathBuf> {
    let path = checkpoint.save_with(run, attached)?;
    checkpoint::prune(run, keep);
    Ok(path)
}

fn save_best(best: &Best, run: &Path) -> Result<PathBuf> {
    let folder = run.join(checkpoint::BEST);
    files::create_folder(&folder)?;
    best.weights.save(&folder)?;
    Ok(folder)
}

/// Returns the bytes of the files in a folder and those below it.
fn size_of_folder(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of_folder(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
