//! The thread that writes checkpoints and the best weights of a run while it goes on.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant, SystemTime},
};

use metrics::{Counter, Gauge, Histogram};
use tempfile::TempDir;

use super::{Attached, Captured, CheckpointConfig};
use crate::{
    Error, Origin, Phase, Result, checkpoint, files,
    metrics::table,
    trainer::{Best, guarded},
    watch::{Activity, Doing, NoMessage, Patience, Worker},
};

/// What the thread writes next.
enum Job {
    Checkpoint(Captured),
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
    inner: Mutex<Inner>,
    /// The folder of the run, if other ranks may write to it.
    of_ranks: Option<PathBuf>,
}

struct Inner {
    /// None when no more are written.
    jobs: Option<Sender<Job>>,
    thread: Worker,
    results: Receiver<Saved>,
    /// What each job is whose result has not been received.
    open: VecDeque<(u64, Kind)>,
    /// Results that have not been taken.
    saved: Vec<Saved>,
    activity: Arc<Activity>,
    patience: Patience,
}

/// The most jobs that wait or are being written. Then the trainer waits too, so that no checkpoint is left out.
const OPEN: usize = 2;

impl Store {
    /// Starts the thread for the run in `run`, some stages of which may be on other ranks. A job that takes longer than `patience` says has failed, and so have all
    /// later ones.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn start(
        run: &Path,
        config: &CheckpointConfig,
        attached: Attached,
        patience: Patience,
        has_other_ranks: bool,
    ) -> Result<Self> {
        // Hosts may mount a folder in the same place by different links, so links stay.
        let of_ranks = std::path::absolute(run).ok().filter(|_| has_other_ranks);
        let (run, keep) = (run.to_owned(), config.keep);
        let write = move |job: &Job| match job {
            Job::Checkpoint(captured) => save(captured, &run, keep, &attached),
            Job::Best(best) => save_best(best, &run),
        };
        Ok(Self { of_ranks, ..Self::start_with(write, Handles::new(config), patience)? })
    }

    /// Makes a folder for the shards that other ranks write of the checkpoint after `steps` steps; none if there are no other ranks, or it cannot be made.
    pub(crate) fn folder_for_ranks(&self, steps: u64) -> Option<TempDir> {
        // Without it rank 0 writes all, and says so if it cannot.
        self.of_ranks.as_ref().and_then(|run| checkpoint::folder_for_ranks(run, steps).ok())
    }

    /// Starts the thread with this way to write.
    fn start_with(
        write: impl Fn(&Job) -> Result<PathBuf> + Send + 'static,
        handles: Handles,
        patience: Patience,
    ) -> Result<Self> {
        let (jobs, next) = channel::<Job>();
        let (tell, results) = channel();
        let activity = Arc::new(Activity::default());
        let present = Arc::clone(&activity);
        let thread = Worker::start("checkpoints", move || {
            for job in next {
                let start = Instant::now();
                let (steps, what) = job.is_of();
                let doing = Doing::new(Origin::Coordinator, Phase::Snapshot);
                let result = present.during(doing, || guarded(|| write(&job)));
                let saved = Saved { steps, what, time: start.elapsed(), result };
                handles.observe(&saved);
                // With it goes what other ranks have written for it.
                drop(job);
                // If nobody listens, the trainer has ended.
                let _ = tell.send(saved);
            }
        })?;
        let (open, saved) = (VecDeque::new(), Vec::new());
        let inner = Mutex::new(Inner { jobs: Some(jobs), thread, results, open, saved, activity, patience });
        Ok(Self { inner, of_ranks: None })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a checkpoint over; waits only if two others are not written yet.
    pub(crate) fn write(&self, captured: Captured) {
        self.inner().hand_over(Job::Checkpoint(captured));
    }

    /// Hands the best weights over, likewise.
    pub(crate) fn write_best(&self, best: Arc<Best>) {
        self.inner().hand_over(Job::Best(best));
    }

    /// Returns what has been written since the last call; waits for all that was handed over if `wait` is set.
    pub(crate) fn take_saved(&self, wait: bool) -> Vec<Saved> {
        let mut inner = self.inner();
        while let Ok(saved) = inner.results.try_recv() {
            inner.receive(saved);
        }
        while wait && !inner.open.is_empty() {
            inner.wait();
        }
        std::mem::take(&mut inner.saved)
    }
}

impl Inner {
    fn hand_over(&mut self, job: Job) {
        while self.open.len() >= OPEN {
            self.wait();
        }
        self.open.push_back(job.is_of());
        if self.jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
            self.fail(&"the thread that writes has ended, or is blocked");
        }
    }

    fn receive(&mut self, saved: Saved) {
        self.open.pop_front();
        self.saved.push(saved);
    }

    /// Waits for the next result. If the thread is blocked, nothing more is written.
    fn wait(&mut self) {
        match self.patience.receive(&self.results, &[Arc::clone(&self.activity)], || true) {
            Ok(saved) => self.receive(saved),
            Err(NoMessage::Ended) => self.fail(&"the thread that writes has ended"),
            Err(NoMessage::Stalled(stalled)) => {
                self.jobs = None;
                self.fail(&stalled.failure.cause);
            }
        }
    }

    /// Lets all open jobs have failed.
    fn fail(&mut self, cause: &dyn std::fmt::Display) {
        for (steps, what) in self.open.drain(..) {
            let result = Err(Error::Stalled(cause.to_string()));
            self.saved.push(Saved { steps, what, time: Duration::ZERO, result });
        }
    }
}

impl Drop for Inner {
    /// What was handed over is still written, unless the thread is blocked.
    fn drop(&mut self) {
        if self.jobs.take().is_some() {
            self.thread.join(self.patience, &[Arc::clone(&self.activity)]);
        }
    }
}

impl Job {
    fn is_of(&self) -> (u64, Kind) {
        match self {
            Self::Checkpoint(captured) => (captured.checkpoint.steps(), Kind::Checkpoint),
            Self::Best(best) => (best.steps, Kind::Best),
        }
    }
}

fn save(captured: &Captured, run: &Path, keep: usize, attached: &Attached) -> Result<PathBuf> {
    let path = captured.checkpoint.save_with(run, attached, &captured.files)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Score, Weights, trainer::Evaluation};

    #[test]
    fn a_disk_that_blocks_fails_what_is_open_and_all_that_comes_and_nothing_waits_for_it() {
        let score = Score { loss: 1.0, count: 1.0, correct: None };
        let best = |steps| {
            let evaluation = Evaluation::new(&[Some(score)], Duration::ZERO).unwrap();
            Arc::new(Best { steps, evaluation, weights: Weights::default() })
        };
        let (open, wait) = channel::<()>();
        let wait = Mutex::new(wait);
        let write = move |job: &Job| match job.is_of() {
            (1, _) => Ok(PathBuf::from("one")),
            _ => wait.lock().unwrap().recv().map(|()| PathBuf::new()).map_err(|_| Error::Stopped),
        };
        let patience = Patience::new(Some(Duration::from_millis(200)));
        let store = Store::start_with(write, Handles::new(&CheckpointConfig::default()), patience).unwrap();
        (1..=7).for_each(|steps| store.write_best(best(steps)));
        let saved = store.take_saved(true);
        let whole: Vec<(u64, bool)> = saved.iter().map(|saved| (saved.steps, saved.result.is_ok())).collect();
        assert_eq!(whole, (1..=7).map(|steps| (steps, steps == 1)).collect::<Vec<_>>());
        assert!(saved[1].result.as_ref().unwrap_err().to_string().contains("failures.stall_timeout"));
        drop(store);
        drop(open);
    }
}
