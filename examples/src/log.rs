//! The log of a run: lines of text or JSON, in its folder and on the terminal.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use interlock::{Callback, Control, Error, Result, TrainEvent};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::Directive,
    fmt,
    fmt::{MakeWriter, format::FmtSpan},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    arguments::LogFormat,
    terminal::{Terminal, Verbosity},
};

/// The target of log lines about a run's failure. They are not printed as text on the terminal, since the program prints the error when it ends.
const FAILURE: &str = "failure";

/// The log of a run, which has no file before the run has a folder. Clones share it.
#[derive(Clone)]
pub(crate) struct RunLog(Arc<Mutex<Lines>>);

/// The lines of a log.
enum Lines {
    /// Those so far.
    InMemory(Vec<u8>),
    InFile(File),
}

impl RunLog {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the file at `path`, and writes the lines so far and all further ones to it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write_to(&self, path: &Path) -> Result<()> {
        let mut file = File::create(path).map_err(|e| Error::file(path, e))?;
        let mut lines = self.lines();
        if let Lines::InMemory(bytes) = &*lines {
            file.write_all(bytes).map_err(|e| Error::file(path, e))?;
        }
        *lines = Lines::InFile(file);
        Ok(())
    }
}

impl Write for RunLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.lines() {
            Lines::InMemory(lines) => lines.write(bytes),
            Lines::InFile(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut *self.lines() {
            Lines::InMemory(_) => Ok(()),
            Lines::InFile(file) => file.flush(),
        }
    }
}

/// Sends log lines to the returned log and to stderr. `RUST_LOG` selects them; by default the log gets lines of level info, and the terminal those of
/// level warn.
pub(crate) fn start(format: LogFormat, terminal: &Terminal) -> RunLog {
    let log = RunLog(Arc::new(Mutex::new(Lines::InMemory(Vec::new()))));
    let writer = log.clone();
    let filter = |level: &str| EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let mut shown = filter("warn");
    if format == LogFormat::Text {
        shown = shown.add_directive(off(FAILURE));
    }
    let max_level = match terminal.verbosity() {
        Verbosity::Quiet => LevelFilter::ERROR,
        Verbosity::Bar | Verbosity::Lines => LevelFilter::TRACE,
    };
    let to_file = layer(format, false, move || writer.clone()).with_filter(filter("info"));
    let to_terminal = layer(format, colours(), terminal.clone()).with_filter(shown).with_filter(max_level);
    // A second run of the same process (tests) keeps the first one's log.
    let _ = tracing_subscriber::registry().with(to_file).with(to_terminal).try_init();
    log
}

/// Returns whether log lines on stderr are coloured.
fn colours() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
}

fn off(target: &str) -> Directive {
    let directive: std::result::Result<Directive, _> = format!("{target}=off").parse();
    directive.unwrap_or_else(|_| LevelFilter::OFF.into())
}

/// Returns a layer that writes lines in this format. Each span gets a line with its duration when it ends; at level `debug`, actions are spans.
fn layer<S, W>(format: LogFormat, ansi: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => fmt::layer().with_ansi(ansi).with_span_events(FmtSpan::CLOSE).with_writer(writer).boxed(),
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_span_events(FmtSpan::CLOSE).with_writer(writer).boxed()
        }
    }
}

/// Logs the failure of a run.
pub(crate) fn failed(cause: &str) {
    tracing::error!(target: FAILURE, "{cause}");
}

/// An observer that writes the events of a run to the log.
pub(crate) struct Log;

impl Callback for Log {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        use TrainEvent as E;
        match event {
            E::Started { first_step, last_step, steps_per_epoch, plans, .. } => {
                tracing::info!(
                    "steps {first_step} to {last_step}, {steps_per_epoch} an epoch; gradient plan:\n{plans}"
                );
            }
            E::PlanChanged { from_step, plan } => tracing::info!("from step {from_step} on, gradient plan:\n{plan}"),
            E::StageStep(step) => {
                let loss = step.score.map(|s| s.mean_loss());
                tracing::debug!(
                    stage = step.stage,
                    step = step.step,
                    loss,
                    lr = step.updated.lr,
                    gradient_norm = step.updated.gradient_norm,
                    alignment = step.alignment,
                    busy = step.busy_seconds()
                );
            }
            E::Evaluated { steps, evaluation, improved } => {
                for head in evaluation.heads() {
                    let (loss, accuracy) = (head.score.mean_loss(), head.score.accuracy());
                    tracing::info!(steps, head = head.stage, loss, accuracy, improved, "evaluated");
                }
            }
            E::Finished { report } => {
                if let Some(reason) = &report.stop_reason {
                    tracing::info!("{reason}");
                }
                let how = if report.stopped { "stopped" } else { "finished" };
                tracing::info!(
                    steps = report.steps,
                    evaluated = report.evaluated,
                    loss = report.final_scores.loss,
                    examples_per_second = report.examples_per_second,
                    "{how}"
                );
            }
            _ => {}
        }
        Ok(Control::Continue)
    }
}
