//! Shows the progress of a run: on a terminal, a bar with the stages below it; elsewhere, plain lines.

mod pace;
mod show;

use std::time::{Duration, Instant};

use console::Term;
use indicatif::ProgressStyle;
use interlock::{
    Callback, Control, Evaluation, Result, TrainEvent, TrainerBuilder,
    tools::{
        trainer::{Followed, HeadScore},
        transport::StageStep,
    },
};

use crate::{
    table::{Measure, dash},
    terminal::{Terminal, Verbosity, note},
};
use pace::Pace;
use show::{Facts, StageFacts};

/// The time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// The time between two updates of the bar.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// The time that speed and idle shares are averaged over.
const WINDOW: Duration = Duration::from_secs(10);
/// The default number of columns.
const COLUMNS: usize = 80;

/// Shows the progress of a run.
pub(crate) struct Progress {
    terminal: Terminal,
    measure: Measure,
    /// The last loss of every stage's head.
    losses: Vec<Option<f64>>,
    pace: Pace,
    first_step: u64,
    last_step: u64,
    per_epoch: u64,
    begun: Instant,
    shown: Instant,
    /// Training time up to `since`, without evaluations.
    trained: Duration,
    /// When the training time was last updated.
    since: Instant,
    /// When the last step ended.
    stepped: Instant,
}

impl Progress {
    pub(crate) fn new(terminal: &Terminal, measure: Measure) -> Self {
        let now = Instant::now();
        Self {
            terminal: terminal.clone(),
            measure,
            losses: Vec::new(),
            pace: Pace::new(WINDOW, 0),
            first_step: 0,
            last_step: 0,
            per_epoch: 1,
            begun: now,
            shown: now,
            trained: Duration::ZERO,
            since: now,
            stepped: now,
        }
    }

    fn start(&mut self) {
        let now = Instant::now();
        (self.begun, self.shown, self.since, self.stepped) = (now, now, now, now);
        (self.trained, self.pace) = (Duration::ZERO, Pace::new(WINDOW, self.losses.len()));
        if self.terminal.verbosity() == Verbosity::Bar {
            let bar = self.terminal.bar();
            let steps = (self.last_step - self.first_step).to_string().len();
            let template = format!(
                "{{bar:{}.green/dim}}  {{pos}}/{{len}} steps  {{elapsed_precise}}  {{prefix}}\n{{msg}}",
                show::bar_width(columns(), steps)
            );
            let style = ProgressStyle::with_template(&template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━━─"));
            bar.set_length(self.last_step - self.first_step);
            bar.set_message(self.facts(0).stages_in_table(columns()));
            self.terminal.show_bar();
            bar.enable_steady_tick(Duration::from_secs(1));
        }
    }

    /// Returns the progress after this many steps.
    fn facts(&self, steps: u64) -> Facts {
        let done = steps.saturating_sub(self.first_step);
        let left = (done > 0).then(|| self.begun.elapsed().mul_f64((self.last_step - steps) as f64 / done as f64));
        let stage = |(k, &loss)| StageFacts { loss, idle: self.pace.idle(k) };
        Facts {
            epoch: steps as f64 / self.per_epoch as f64,
            examples_per_second: self.pace.examples_per_second(),
            left,
            stages: self.losses.iter().enumerate().map(stage).collect(),
        }
    }

    /// Shows the progress after this many steps, if an update is due.
    fn show(&mut self, steps: u64) {
        let interval = match self.terminal.verbosity() {
            Verbosity::Bar => BAR_INTERVAL,
            Verbosity::Lines => LINE_INTERVAL,
            Verbosity::Quiet => return,
        };
        let is_early = self.shown.elapsed() < interval || self.terminal.is_behind();
        if is_early && steps < self.last_step {
            return;
        }
        let facts = self.facts(steps);
        if self.terminal.verbosity() == Verbosity::Bar {
            let bar = self.terminal.bar();
            bar.set_position(steps - self.first_step);
            bar.set_prefix(facts.summary());
            bar.set_message(facts.stages_in_table(columns()));
        } else if self.shown.elapsed() >= interval {
            let (summary, stages) = (facts.summary(), facts.stages_in_words());
            self.terminal.say(&format!("step {steps}/{}  {summary}  {stages}", self.last_step));
        }
        self.shown = Instant::now();
    }

    fn scores(&self, evaluation: &Evaluation) -> String {
        let score = |head: &HeadScore| match self.measure {
            Measure::Accuracy => format!("{:.4}", head.score.accuracy().unwrap_or_default()),
            Measure::Perplexity => format!("{:.3}", head.score.perplexity()),
        };
        let stage = |k| (k, evaluation.head(k).map_or_else(dash, score));
        show::some_of(&(0..self.losses.len()).map(stage).collect::<Vec<_>>())
    }
}

/// Returns the number of columns of the terminal.
pub(crate) fn columns() -> usize {
    Term::stderr().size_checked().map_or(COLUMNS, |(_, columns)| columns.into())
}

/// Returns a line for a run on emulated devices; none if there are none.
pub(crate) fn emulation(builder: &TrainerBuilder) -> Option<&'static str> {
    let emulated = builder.pinned_to().iter().any(|device| device.name().starts_with("emulated"));
    emulated.then_some("emulated devices compute nothing: losses, scores and predictions mean nothing")
}

/// Prints that line to stderr.
pub(crate) fn note_emulation(builder: &TrainerBuilder) {
    emulation(builder).into_iter().for_each(note);
}

impl Callback for Progress {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        match event {
            TrainEvent::Started { first_step, last_step, steps_per_epoch, stages, .. } => {
                self.losses = vec![None; stages.len()];
                (self.first_step, self.last_step, self.per_epoch) = (*first_step, *last_step, *steps_per_epoch);
                self.start();
            }
            TrainEvent::StageStep(step) => {
                if let Some(score) = step.score {
                    self.losses[step.stage] = Some(score.mean_loss());
                }
            }
            TrainEvent::StepDone { step, examples, stages, .. } => {
                self.stepped = Instant::now();
                let at = self.trained + (self.stepped - self.since);
                self.pace.add(at, *examples as u64, stages.iter().map(StageStep::busy_seconds));
                self.show(step + 1);
            }
            TrainEvent::PlanChanged { from_step, plan } => {
                let follows: Vec<_> = Followed::of(plan)
                    .iter()
                    .map(|followed| followed.to_string().replace(' ', "+"))
                    .enumerate()
                    .collect();
                self.terminal.say(&format!(
                    "from step {from_step} on  stages follow the losses of stages {}",
                    show::some_of(&follows)
                ));
            }
            TrainEvent::Evaluated { steps, evaluation, improved } => {
                // The time from the end of a step to the end of an evaluation does not count as training.
                self.trained += self.stepped - self.since;
                self.since = Instant::now();
                self.stepped = self.since;
                let best = if *improved { "  (best so far)" } else { "" };
                self.terminal.say(&format!(
                    "epoch {:.1}  step {steps}  {} of each stage's head: {}{best}",
                    *steps as f64 / self.per_epoch as f64,
                    self.measure.name(),
                    self.scores(evaluation),
                ));
            }
            TrainEvent::StepSkipped { step } => {
                self.terminal.say(&format!("step {step} is left out: a value was not finite"));
            }
            TrainEvent::Finished { .. } => self.terminal.hide_bar(),
            _ => {}
        }
        Ok(Control::Continue)
    }
}
