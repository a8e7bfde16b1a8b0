//! The log of a run: lines of text or JSON, in its folder and on the terminal.

mod file;

pub(crate) use file::RunLog;

use std::io;

use interlock::{Callback, Control, Result, TrainEvent};
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
    terminal::{Terminal, Verbosity, colours},
};

/// The target of log lines about a run's failure. They are not printed as text on the terminal, since the program prints the error when it ends.
const FAILURE: &str = "failure";

/// Sends log lines to the returned log and to stderr. `RUST_LOG` selects them; by default the log gets lines of level info, and the terminal those of
/// level warn.
pub(crate) fn start(format: LogFormat, terminal: &Terminal) -> RunLog {
    let log = RunLog::new(format);
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
    let to_terminal = layer(format, colours(&io::stderr()), terminal.clone()).with_filter(shown).with_filter(max_level);
    // A second run of the same process (tests) keeps the first one's log.
    let _ = tracing_subscriber::registry().with(to_file).with(to_terminal).try_init();
    log
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
        LogFormat::Text => fmt::layer()
            .with_ansi(ansi)
            // Without colours, the writers replace control characters; with colours, they cannot tell whose these are.
            .with_ansi_sanitization(ansi)
            .with_span_events(FmtSpan::CLOSE)
            .with_writer(writer)
            .boxed(),
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
