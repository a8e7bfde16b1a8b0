//! Progress on the terminal: a bar, or plain lines where there is none to draw it on.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use interlock::{
    TrainEvent,
    trainer::{Evaluation, Observer},
};

use crate::table::Measure;

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbosity {
    Bar,
    Lines,
    Quiet,
}

/// Shows a run as it goes.
pub(crate) struct Progress {
    verbosity: Verbosity,
    measure: Measure,
    bar: ProgressBar,
    last_line: Instant,
    /// The last loss of every stage's head.
    losses: Vec<Option<f64>>,
    examples: u64,
    last_step: u64,
    per_epoch: u64,
    /// Training time, evaluations left out.
    trained: Duration,
    since: Instant,
}

/// Seconds between two plain lines.
const PATIENCE: Duration = Duration::from_secs(5);

impl Progress {
    pub(crate) fn new(verbosity: Verbosity, measure: Measure) -> Self {
        Self {
            verbosity,
            measure,
            bar: ProgressBar::hidden(),
            last_line: Instant::now(),
            losses: Vec::new(),
            examples: 0,
            last_step: 0,
            per_epoch: 1,
            trained: Duration::ZERO,
            since: Instant::now(),
        }
    }

    fn line(&self, text: &str) {
        match self.verbosity {
            Verbosity::Quiet => {}
            Verbosity::Bar => self.bar.println(text),
            Verbosity::Lines => say(text),
        }
    }

    fn rate(&self) -> f64 {
        let seconds = (self.trained + self.since.elapsed()).as_secs_f64();
        if seconds > 0.0 { self.examples as f64 / seconds } else { 0.0 }
    }

    fn losses(&self) -> String {
        let loss = |l: &Option<f64>| l.map_or_else(|| "-".to_owned(), |l| format!("{l:.3}"));
        self.losses.iter().map(loss).collect::<Vec<_>>().join(" ")
    }

    fn scores(&self, evaluation: &Evaluation) -> String {
        let show = |head: &interlock::trainer::HeadScore| match self.measure {
            Measure::Accuracy => format!("{:.4}", head.score.accuracy().unwrap_or_default()),
            Measure::Perplexity => format!("{:.3}", head.score.perplexity()),
        };
        evaluation.heads().iter().map(show).collect::<Vec<_>>().join(" ")
    }
}

#[allow(clippy::print_stdout)] // the program's own output
pub(crate) fn say(text: &str) {
    println!("{text}");
}

impl Observer for Progress {
    fn observe(&mut self, event: &TrainEvent<'_>) {
        match event {
            TrainEvent::Started { first_step, last_step, steps_per_epoch, stages, .. } => {
                self.losses = vec![None; stages.len()];
                (self.last_step, self.per_epoch, self.since) = (*last_step, *steps_per_epoch, Instant::now());
                if self.verbosity == Verbosity::Bar {
                    let style =
                        ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {elapsed} (eta {eta})  {msg}");
                    self.bar =
                        ProgressBar::with_draw_target(Some(last_step - first_step), ProgressDrawTarget::stderr());
                    self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                }
            }
            TrainEvent::StageStep(step) => {
                if let Some(score) = step.score {
                    self.losses[step.stage] = Some(score.mean_loss());
                }
            }
            TrainEvent::StepDone { step, examples, .. } => {
                self.examples += *examples as u64;
                let (losses, rate) = (self.losses(), self.rate());
                self.bar.inc(1);
                self.bar.set_message(format!("{rate:.0} examples/s  losses {losses}"));
                if self.verbosity == Verbosity::Lines && self.last_line.elapsed() >= PATIENCE {
                    self.last_line = Instant::now();
                    self.line(&format!("step {}/{}  {rate:.0} examples/s  losses {losses}", step + 1, self.last_step));
                }
            }
            TrainEvent::PlanChanged { from_step, plan } => {
                let follows: Vec<String> = (0..plan.stages()).map(|k| plan.follows(k).to_string()).collect();
                self.line(&format!(
                    "from step {from_step} on  stages follow the losses of stages {}",
                    follows.join(" ")
                ));
            }
            TrainEvent::Evaluated { steps, evaluation, improved } => {
                let spent = self.since.elapsed().saturating_sub(Duration::from_secs_f64(evaluation.seconds()));
                self.trained += spent;
                self.since = Instant::now();
                let best = if *improved { "  (best so far)" } else { "" };
                self.line(&format!(
                    "epoch {:.1}  step {steps}  {} of each head: {}{best}",
                    *steps as f64 / self.per_epoch as f64,
                    self.measure.name(),
                    self.scores(evaluation),
                ));
            }
            TrainEvent::Finished { .. } => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}
