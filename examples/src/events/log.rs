//! An observer that writes the events of a run to files while it runs.

use std::{
    fs::File,
    path::Path,
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::{Duration, Instant, SystemTime},
};

use interlock::{
    Callback, Control, Error, Result, TrainEvent,
    tools::{files, trainer::Followed},
};
use serde::Serialize;

use super::{
    Appended, Before, CheckpointFailed, CheckpointSaved, Evaluated, Event, EventKind, FORMAT, Failed, Finished,
    PlanChanged, Restarted, Resumed, Stage, StageMetrics, Started, Step, StepSkipped, steps_an_event, to_micros, until,
};
use crate::run_folder::not_through_symlinks;

/// A destination of events.
pub(crate) trait Sink: Send {
    /// Writes an event, so that others can read it at once.
    fn write(&mut self, event: &Event) -> Result<()>;

    /// Where it writes.
    fn path(&self) -> &Path;
}

/// An observer that passes events to sinks. Clones share the sinks.
#[derive(Clone)]
pub(crate) struct EventLog(Arc<Mutex<Inner>>);

struct Inner {
    run: String,
    /// Each with the number of events that it could not write since the last one that it wrote.
    sinks: Vec<(Box<dyn Sink>, u64)>,
    start: Instant,
    /// The seconds of the run before, if it continues.
    before: Option<f64>,
    /// The end of the last step or evaluation.
    last: Instant,
}

impl EventLog {
    /// Creates a log of the run called `run`, to these sinks, or of one that continues after so many seconds.
    pub(crate) fn new(run: &str, sinks: Vec<Box<dyn Sink>>, before: Option<f64>) -> Self {
        let now = Instant::now();
        let sinks = sinks.into_iter().map(|sink| (sink, 0)).collect();
        Self(Arc::new(Mutex::new(Inner { run: run.to_owned(), sinks, start: now, before, last: now })))
    }

    /// Writes that the run has failed; not if the disk is what blocks.
    pub(crate) fn failed(&self, error: &Error) {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(1) {
            let inner = match self.0.try_lock() {
                Err(TryLockError::Poisoned(inner)) => Some(inner.into_inner()),
                other => other.ok(),
            };
            if let Some(mut inner) = inner {
                return inner.write(EventKind::Failed(Failed::from(error)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        tracing::warn!("the failure is not among the events, since another one is still being written");
    }

    fn with(&self, act: impl FnOnce(&mut Inner)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Callback for EventLog {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        self.with(|inner| inner.observe(event));
        Ok(Control::Continue)
    }
}

impl Inner {
    fn observe(&mut self, event: &TrainEvent<'_>) {
        let now = Instant::now();
        let since = |then: Instant| to_micros(now.saturating_duration_since(then).as_secs_f64());
        let seconds = || self.before.unwrap_or_default() + since(self.start);
        let what = match event {
            TrainEvent::Started { first_step, next_step, last_step, stages, .. } if self.before.is_some() => {
                (self.start, self.last) = (now, now);
                EventKind::Resumed(Resumed {
                    next_step: *next_step,
                    steps: last_step - first_step,
                    stages: stages.iter().map(Stage::from).collect(),
                })
            }
            TrainEvent::Started { first_step, last_step, steps_per_epoch, plans, stages, .. } => {
                (self.start, self.last) = (now, now);
                EventKind::Started(Started {
                    run: self.run.clone(),
                    first_step: *first_step,
                    steps: last_step - first_step,
                    steps_per_epoch: *steps_per_epoch,
                    plans: plans.phases().iter().map(Into::into).collect(),
                    stages: stages.iter().map(Stage::from).collect(),
                })
            }
            TrainEvent::StepDone { step, epoch, examples, stages, .. } => {
                let (seconds, step_seconds) = (seconds(), since(self.last));
                self.last = now;
                if !step.is_multiple_of(steps_an_event(*step)) {
                    return;
                }
                EventKind::Step(Step {
                    step: *step,
                    epoch: *epoch,
                    examples: *examples as u64,
                    seconds,
                    step_seconds,
                    stages: stages.iter().map(StageMetrics::from).collect(),
                })
            }
            TrainEvent::PlanChanged { from_step, plan } => {
                EventKind::PlanChanged(PlanChanged { from_step: *from_step, follows: Followed::of(plan) })
            }
            TrainEvent::Evaluated { steps, evaluation, improved } => {
                self.last = now;
                EventKind::Evaluated(Evaluated {
                    steps: *steps,
                    seconds: seconds(),
                    evaluation_seconds: to_micros(evaluation.seconds()),
                    improved: *improved,
                    heads: evaluation.heads().iter().map(Into::into).collect(),
                })
            }
            TrainEvent::CheckpointSaved { steps, seconds, .. } => {
                EventKind::CheckpointSaved(CheckpointSaved { steps: *steps, checkpoint_seconds: to_micros(*seconds) })
            }
            TrainEvent::CheckpointFailed { steps, error } => {
                EventKind::CheckpointFailed(CheckpointFailed { steps: *steps, cause: error.to_string() })
            }
            TrainEvent::Restarted { failure, to_step } => {
                EventKind::Restarted(Restarted { to_step: *to_step, failure: (*failure).into() })
            }
            TrainEvent::StepSkipped { step } => EventKind::StepSkipped(StepSkipped { step: *step }),
            TrainEvent::Finished { report } => EventKind::Finished(Finished { report: (*report).clone() }),
            _ => return,
        };
        self.write(what);
    }

    fn write(&mut self, what: EventKind) {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let event = Event { time: to_micros(time), what };
        // A sink that fails must not end the run. It may have room again later.
        for (sink, left_out) in &mut self.sinks {
            match (sink.write(&event), *left_out) {
                (Ok(()), 0) => {}
                (Ok(()), missing) => {
                    tracing::warn!("{} is written again; {missing} events before are missing", sink.path().display());
                    *left_out = 0;
                }
                (Err(error), before) => {
                    if before == 0 {
                        tracing::warn!("an event could not be written; later ones are tried: {error}");
                    }
                    *left_out += 1;
                }
            }
        }
    }
}

/// A file of one JSON object a line. The first line names the format.
pub(crate) struct JsonLines(Appended);

/// The first line.
#[derive(Serialize)]
struct FirstLine<'a> {
    format: u32,
    #[serde(flatten)]
    event: &'a Event,
}

impl JsonLines {
    /// # Errors
    /// If the file cannot be made.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).map_err(|e| Error::file(path, e))?;
        Ok(Self(Appended::to(file, path)?))
    }

    /// Opens the file of a run that continues after `steps` steps, without the events of later steps. Returns also what the run needs of the others. A file
    /// that cannot be read is set aside with a warning: what is lost are curves, not the run.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn continue_after(path: &Path, steps: u64) -> Result<(Self, Before)> {
        let before = until(path, steps).or_else(|error| set_aside(path, &error))?;
        files::write(path, &before.lines)?;
        let mut options = File::options();
        options.write(true);
        not_through_symlinks(&mut options);
        let file = options.open(path).map_err(|e| Error::file(path, e))?;
        Ok((Self(Appended::to(file, path)?), before))
    }
}

/// Renames the file at `path`, which could not be read.
fn set_aside(path: &Path, error: &Error) -> Result<Before> {
    let aside = path.with_extension("damaged.jsonl");
    tracing::warn!("the events up to here are lost: {error}; the file is kept as {}", aside.display());
    match std::fs::rename(path, &aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file(path, error)),
        _ => Ok(Before::default()),
    }
}

impl Sink for JsonLines {
    fn write(&mut self, event: &Event) -> Result<()> {
        let line = match self.0.is_empty() {
            true => serde_json::to_vec(&FirstLine { format: FORMAT, event }),
            false => serde_json::to_vec(event),
        };
        let mut line = line.map_err(Error::other)?;
        line.push(b'\n');
        self.0.put(&line)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use interlock::{Failure, GradientPlan, Origin, Phase};

    use super::{super::read, *};

    /// Fails the first two times, and counts.
    struct Broken(Arc<AtomicUsize>);

    impl Sink for Broken {
        fn write(&mut self, _: &Event) -> Result<()> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => Err(Error::file("x", "the disk is full")),
                _ => Ok(()),
            }
        }

        fn path(&self) -> &Path {
            Path::new("x")
        }
    }

    fn failure() -> Error {
        let cause = Error::other("it is \"not\"\nfinite");
        Failure::new(Origin::Stage(1), Phase::Backward, cause).in_step(7).in_micro_batch(0).into()
    }

    #[test]
    fn events_are_read_as_written_and_a_broken_sink_does_not_stop_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let tries = Arc::new(AtomicUsize::new(0));
        let sinks: Vec<Box<dyn Sink>> =
            vec![Box::new(Broken(Arc::clone(&tries))), Box::new(JsonLines::create(&path).unwrap())];
        let mut log = EventLog::new("a", sinks, None);
        let plan = GradientPlan::new(vec![1, 1]).unwrap();
        assert!(matches!(log.on_event(&TrainEvent::PlanChanged { from_step: 3, plan: &plan }), Ok(Control::Continue)));
        log.clone().failed(&failure());
        log.failed(&Error::Data("gone".to_owned()));

        let events: Vec<EventKind> = read(&path).unwrap().into_iter().map(|event| event.what).collect();
        let changed = EventKind::PlanChanged(PlanChanged { from_step: 3, follows: Followed::of(&plan) });
        let nowhere =
            Failed { cause: "gone".to_owned(), origin: None, stage: None, step: None, micro_batch: None, phase: None };
        let failed = Failed {
            cause: "it is \"not\"\nfinite".to_owned(),
            origin: Some("stage".to_owned()),
            stage: Some(1),
            step: Some(7),
            micro_batch: Some(0),
            phase: Some("backward".to_owned()),
        };
        assert_eq!(events, [changed, EventKind::Failed(failed), EventKind::Failed(nowhere)]);
        let text = std::fs::read_to_string(&path).unwrap();
        let starts: Vec<bool> = text.lines().map(|line| line.starts_with("{\"format\":2,\"time\":")).collect();
        assert_eq!(starts, [true, false, false], "{text}");
        assert!(text.contains("\"follows\":[[[1,1.0]],[[1,1.0]]]"), "{text}");
        assert_eq!(tries.load(Ordering::Relaxed), 3);
        assert!(JsonLines::create(&folder.path().join("no/events.jsonl")).is_err());
    }
}
