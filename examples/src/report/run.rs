//! A run, read from its folder.

use std::path::{Path, PathBuf};

use interlock::{
    Error, Report, Result,
    tools::{
        strategy::StrategyConfig,
        timeline::Timeline,
        trainer::{FinalReport, PhaseReport},
    },
};

use serde::Deserialize;

use crate::{
    config,
    environment::Environment,
    events::{self, Evaluated, Event, EventKind, Failed, PlanChanged, Resumed, Started, Step, steps_an_event},
    program::program,
    run_folder::{RunFolder, Status},
    table::Measure,
};

/// The largest number of actions in a picture of a timeline; with more, browsers show it slowly.
const MAX_ACTIONS: usize = 6000;

/// What a page says of a run's configuration. The rest, such as the model, may be that of any program.
#[derive(Deserialize)]
pub(super) struct ReportedConfig {
    pub(super) name: String,
    #[serde(with = "config::seed")]
    pub(super) seed: u64,
    pub(super) batch_size: usize,
    pub(super) micro_batches: usize,
    pub(super) strategy: StrategyConfig,
}

/// The contents of a run's folder, complete or up to its last event.
pub(crate) struct Run {
    pub(super) path: PathBuf,
    /// Its name on the page, which differs from those of other runs.
    pub(super) label: String,
    pub(super) config: ReportedConfig,
    /// The text of `config.toml`.
    pub(super) config_text: String,
    pub(super) status: Status,
    pub(super) measure: Measure,
    pub(super) environment: Option<Environment>,
    pub(super) timeline: Option<Timeline>,
    pub(super) started: Option<Started>,
    pub(super) steps: Vec<Step>,
    pub(super) evaluations: Vec<Evaluated>,
    changes: Vec<PlanChanged>,
    pub(super) report: Option<Report>,
    pub(super) failed: Option<Failed>,
}

fn scores(loss: f64, accuracy: Option<f64>) -> FinalReport {
    FinalReport { loss: Some(loss), accuracy, perplexity: accuracy.map(|_| loss.exp()) }
}

impl Run {
    /// Opens the runs in these folders, and gives each its own label.
    pub(super) fn open_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut runs = paths.iter().map(|path| Self::open(path)).collect::<Result<Vec<_>>>()?;
        let labels: Vec<String> = runs.iter().map(|run| run.label.clone()).collect();
        for run in &mut runs {
            if labels.iter().filter(|label| **label == run.label).count() > 1 {
                run.label = run.path.display().to_string();
            }
        }
        Ok(runs)
    }

    fn open(path: &Path) -> Result<Self> {
        let folder = RunFolder::open_any(path)?;
        let (config, config_text) = (folder.config()?, folder.config_text()?);
        let file = path.join(events::FILE);
        if !file.exists() {
            let cause = format!(
                "it does not exist; a report needs the events that `{} train` writes to a run's folder",
                program()
            );
            return Err(Error::file(file, cause));
        }
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let label = whole.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut run = Self {
            path: path.to_owned(),
            label,
            config,
            config_text,
            status: folder.status()?,
            measure: Measure::of(&folder.data()?.kind),
            environment: folder.environment()?,
            timeline: folder.timeline()?,
            started: None,
            steps: Vec::new(),
            evaluations: Vec::new(),
            changes: Vec::new(),
            report: None,
            failed: None,
        };
        events::read(&file)?.into_iter().for_each(|event| run.add(event));
        Ok(run)
    }

    fn add(&mut self, event: Event) {
        match event.what {
            EventKind::Started(started) => self.started = Some(started),
            EventKind::Resumed(Resumed { steps, stages, .. }) => {
                if let Some(started) = &mut self.started {
                    (started.steps, started.stages) = (steps, stages);
                }
            }
            EventKind::CheckpointSaved(_)
            | EventKind::CheckpointFailed(_)
            | EventKind::Restarted(_)
            | EventKind::StepSkipped(_) => {}
            EventKind::Step(step) => self.steps.push(step),
            EventKind::PlanChanged(change) => self.changes.push(change),
            EventKind::Evaluated(evaluated) => self.evaluations.push(evaluated),
            EventKind::Finished(finished) => self.report = Some(finished.report),
            EventKind::Failed(failed) => self.failed = Some(failed),
        }
    }

    /// Returns the number of stages, or 0 if none was built.
    pub(super) fn stages(&self) -> usize {
        self.started.as_ref().map_or(0, |started| started.stages.len())
    }

    /// Returns the scores of the last stage on the validation set, at the last evaluation; none if there was none.
    pub(super) fn validation_scores(&self) -> Option<FinalReport> {
        let last = || self.evaluations.last()?.heads.last().map(|head| scores(head.loss, head.accuracy));
        self.report.as_ref().filter(|report| report.evaluated).map(|report| report.final_scores).or_else(last)
    }

    /// Returns the number of steps before the last evaluation; none if there was none.
    pub(super) fn evaluated_after(&self) -> Option<u64> {
        let finished = self.report.as_ref().filter(|report| report.evaluated).map(|report| report.steps);
        finished.or_else(|| self.evaluations.last().map(|evaluated| evaluated.steps))
    }

    /// Returns the number of steps up to the last one that the run has made.
    pub(super) fn last_step(&self) -> u64 {
        self.steps.last().map_or(0, |step| step.step.saturating_add(1))
    }

    /// Returns the scores of the last stage on the batch of the last step; none before the first step.
    pub(super) fn training_scores(&self) -> Option<FinalReport> {
        let last = self.steps.last()?.stages.last()?;
        Some(scores(last.loss?, last.accuracy))
    }

    /// Returns the seconds of training, without evaluations.
    pub(super) fn train_seconds(&self) -> f64 {
        let so_far = || self.steps.iter().map(|step| step.step_seconds * steps_an_event(step.step) as f64).sum();
        self.report.as_ref().map_or_else(so_far, |report| report.train_seconds)
    }

    /// Returns the training examples a second, or none before the first step.
    pub(super) fn examples_per_second(&self) -> Option<f64> {
        let examples = |step: &Step| step.examples as f64 * steps_an_event(step.step) as f64;
        let so_far = self.steps.iter().map(examples).sum::<f64>() / self.train_seconds();
        self.report.as_ref().map(|report| report.examples_per_second).or(so_far.is_finite().then_some(so_far))
    }

    /// Returns the gradient plans up to the last event, in the order of their first steps.
    pub(super) fn plans(&self) -> Vec<PhaseReport> {
        if let Some(report) = &self.report {
            return report.plans.clone();
        }
        let mut phases = self.started.as_ref().map(|started| started.plans.clone()).unwrap_or_default();
        for PlanChanged { from_step, follows } in &self.changes {
            if phases.iter().all(|phase| phase.from_step != *from_step) {
                phases.push(PhaseReport { from_step: *from_step, follows: follows.clone(), every: None });
            }
        }
        phases.sort_by_key(|phase| phase.from_step);
        phases
    }

    /// Returns the timeline of as many last steps as a picture can show, or none if nothing was recorded.
    pub(super) fn timeline_to_show(&self) -> Option<Timeline> {
        let timeline = self.timeline.as_ref().filter(|timeline| !timeline.spans.is_empty())?;
        let fewer = [4, 3, 2].map(|steps| timeline.cut_to_last_steps(steps));
        let fits = |timeline: &Timeline| timeline.spans.len() <= MAX_ACTIONS;
        Some(fewer.into_iter().find(fits).unwrap_or_else(|| timeline.cut_to_last_steps(1)))
    }
}
