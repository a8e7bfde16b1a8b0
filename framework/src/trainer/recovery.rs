//! What a fit does after a failure: it ends, or goes back to the last capture and repeats the steps since then.

use std::{sync::Arc, time::Duration};

use metrics::Counter;
use serde::{Deserialize, Serialize};

use super::{Checkpoint, TrainEvent, Trainer, calls, checkpoint::Reason, trained::Trained};
use crate::{
    Error, Failure, Result, Strategy,
    actor::{Pipeline, PipelineSettings},
    metrics::table::{self, RESTART_REASONS},
    stage::{HeadsConfig, StageBlueprint, StageSettings},
    strategy::Plans,
};

/// The shortest limit of time for code of the user's.
const SHORTEST: Duration = Duration::from_millis(10);

/// What happens when a stage, the strategy or the data set fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The run ends with the failure.
    #[default]
    Stop,
    /// All stages are built again and return to the last copy of the run in memory. The steps since then are repeated.
    Restart,
}

/// What happens when a loss, an activation, a gradient or a parameter is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// It is a failure.
    #[default]
    Stop,
    /// The step is left out: it changes nothing, and its batch is not used.
    SkipStep,
}

/// What a run does about failures, as configuration files give it.
///
/// Since data and random numbers depend on the step alone, a run that was restarted computes the same bits as one without the failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct FailuresConfig {
    /// What happens when a stage, the strategy or the data set fails. A failure that comes back at the same step ends the run.
    pub on_failure: OnFailure,
    /// The most restarts of a fit, and the most steps in a row that are left out.
    pub max_restarts: u64,
    /// What happens when a value of a training step is not finite.
    pub on_nonfinite: OnNonfinite,
    /// Steps between two copies of the run in memory. A run that fails also leaves the last of them as a checkpoint. 0: no copies; a restart then goes back
    /// to the last checkpoint or to the beginning.
    pub snapshot_every: u64,
    /// The longest time, in seconds, that one action of a stage, one decision of the strategy, one batch of the data set or one event of a callback may take.
    /// What takes longer is named, and ends the run as a failure; nothing waits for it any more. 0: no limit. Default: 600 in configuration files, no limit in
    /// a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub stall_timeout: Option<f64>,
}

impl Default for FailuresConfig {
    fn default() -> Self {
        Self {
            on_failure: OnFailure::Stop,
            max_restarts: 3,
            on_nonfinite: OnNonfinite::Stop,
            snapshot_every: 100,
            stall_timeout: None,
        }
    }
}

impl FailuresConfig {
    /// Returns whether a run may go on after a failure.
    pub(super) fn recovers(&self) -> bool {
        self.on_failure == OnFailure::Restart || self.on_nonfinite == OnNonfinite::SkipStep
    }

    /// Returns the limit of time for code of the user's; none if there is none.
    ///
    /// # Errors
    /// If it is not a length of time.
    pub(super) fn stall_limit(&self) -> Result<Option<Duration>> {
        let Some(seconds) = self.stall_timeout.filter(|seconds| *seconds != 0.0) else { return Ok(None) };
        match Duration::try_from_secs_f64(seconds) {
            Ok(limit) if limit >= SHORTEST => Ok(Some(limit)),
            _ => Err(Error::invalid(
                "failures.stall_timeout",
                seconds.to_string(),
                "use seconds, such as 600, at least 0.01, or 0 for no limit",
            )),
        }
    }
}

/// What a pipeline is started from, the first time and again.
pub(super) struct Launch {
    pub(super) strategy: Box<dyn Strategy>,
    pub(super) heads: HeadsConfig,
    pub(super) settings: Arc<StageSettings>,
    pub(super) pipeline: PipelineSettings,
}

/// The failures of a fit that it has survived.
#[derive(Clone)]
pub(super) struct Recovery {
    config: FailuresConfig,
    restarts: u64,
    /// The step of the last failure after which the run was restarted.
    failed_at: Option<u64>,
    /// The last step that was left out, and how many in a row.
    skipped: Option<(u64, u64)>,
    /// The step that is left out when it is its turn.
    pub(super) to_skip: Option<u64>,
    counters: Vec<[Counter; RESTART_REASONS.len()]>,
}

impl Recovery {
    pub(super) fn new(config: FailuresConfig, stages: usize) -> Self {
        let counters =
            |k: usize| RESTART_REASONS.map(|reason| table::STAGE_RESTARTS.counter(&[&k.to_string(), reason]));
        let counted = if config.recovers() { stages } else { 0 };
        let counters = (0..counted).map(counters).collect();
        Self { config, restarts: 0, failed_at: None, skipped: None, to_skip: None, counters }
    }

    /// Returns whether the run may go on after a failure.
    pub(super) fn recovers(&self) -> bool {
        self.config.recovers()
    }

    /// Begins a fit.
    pub(super) fn begin(&mut self) {
        (self.restarts, self.failed_at, self.skipped, self.to_skip) = (0, None, None, None);
    }

    /// Decides whether the fit goes on after `failure`, and notes it. `trains` says whether it came in a training step.
    fn survives(&mut self, failure: &Failure, trains: bool) -> bool {
        let is_nonfinite = is_nonfinite(&failure.cause);
        let survives = match failure.step {
            // The thread of what is blocked cannot be ended.
            _ if matches!(*failure.cause, Error::Stalled(_)) => false,
            Some(step) if is_nonfinite && trains && self.config.on_nonfinite == OnNonfinite::SkipStep => {
                let in_a_row = match self.skipped {
                    Some((last, count)) if last + 1 == step => count + 1,
                    _ => 1,
                };
                self.skipped = Some((step, in_a_row));
                self.to_skip = Some(step);
                in_a_row <= self.config.max_restarts
            }
            step => {
                let comes_back = self.failed_at.is_some() && self.failed_at == step;
                self.failed_at = step;
                self.restarts += 1;
                self.config.on_failure == OnFailure::Restart && self.restarts <= self.config.max_restarts && !comes_back
            }
        };
        if let Some(counters) = failure.stage().filter(|_| survives).and_then(|k| self.counters.get(k)) {
            let reason = match &*failure.cause {
                _ if is_nonfinite => 2,
                Error::Panicked(_) => 0,
                _ => 1,
            };
            counters[reason].increment(1);
        }
        survives
    }
}

/// Returns whether the cause of a failure is a value that is not finite.
fn is_nonfinite(cause: &Error) -> bool {
    match cause {
        Error::NotFinite(..) | Error::CorruptedInTransfer => true,
        Error::Unit { cause, .. } => is_nonfinite(cause),
        _ => false,
    }
}

impl Trainer {
    /// Goes back to the newest capture after a failure, so that training can go on.
    ///
    /// # Errors
    /// `error` itself, if the run is to end with it.
    pub(super) fn recover(&mut self, error: Error, last: u64, trained: &mut Trained) -> Result<()> {
        if self.calls.are_left() {
            return Err(error);
        }
        let trains = !self.evaluation_due;
        let (Error::Failed(failure), Some(newest)) = (&error, self.captures.newest()) else {
            return Err(error);
        };
        if !self.recovery.survives(failure, trains) {
            return Err(error);
        }
        self.captures.abandon();
        tracing::warn!("{failure}; the run goes back to step {}", newest.steps());
        self.relaunch(&newest, false)?;
        self.pipeline.begin(last)?;
        if let Some(fit) = newest.state.fit() {
            trained.go_back(fit);
        }
        self.tell(&TrainEvent::Restarted { failure, to_step: newest.steps() })
    }

    /// Leaves out the next step: it changes nothing, and its number is used up.
    pub(super) fn skip_step(&mut self, last: u64, trained: &Trained, first: u64) -> Result<()> {
        let step = self.steps;
        self.capture_here_if_due(trained.so_far(first))?;
        self.recovery.to_skip = None;
        let here = self.here(None, trained.so_far(first))?;
        self.relaunch(&here.checkpoint, true)?;
        self.pipeline.begin(last)?;
        self.tell(&TrainEvent::StepSkipped { step })?;
        self.tell_of_plan()?;
        // A later failure must not lead back to before the step.
        self.capture_here_if_due(trained.so_far(first))?;
        match self.captures.newest().is_some_and(|newest| newest.steps() == self.steps) {
            true => Ok(()),
            false => self.capture_here(Reason::Snapshot, trained.so_far(first)),
        }
    }

    /// Builds all stages again, in the state of `checkpoint`, of a trainer with the same parts; after one more step, which is left out, if `skips` is set.
    fn relaunch(&mut self, checkpoint: &Checkpoint, skips: bool) -> Result<()> {
        let Checkpoint { weights, state } = checkpoint;
        self.failed = true;
        self.pipeline.end();
        let stages = self.partition.stages();
        let plans = self.calls.during(calls::STRATEGY, || {
            let mut plans = self.launch.plans(stages, state.strategy())?;
            if skips {
                plans.observe(state.steps(), &vec![None; stages])?;
            }
            Ok(plans)
        })?;
        let mut state = state.clone();
        if skips {
            state.leave_out_step(weights, self.blueprints.iter().find_map(StageBlueprint::shared_matrix));
        }
        let settings = Arc::new(StageSettings { given: Arc::new(weights.clone()), ..(*self.launch.settings).clone() });
        let mut blueprints = self.blueprints.clone();
        blueprints.iter_mut().for_each(|stage| stage.set(&settings));
        let schedule = plans.schedule().clone();
        let pipeline = PipelineSettings { first_step: state.steps(), ..self.launch.pipeline };
        self.pipeline = Pipeline::start(blueprints, plans, pipeline)?;
        self.plans = schedule;
        (self.steps, self.evaluation_due) = (state.steps(), state.evaluation_is_due());
        self.pipeline.restore(state.into_stages())?;
        self.failed = false;
        Ok(())
    }
}

impl Launch {
    /// Returns the plans of the strategy, continued from its state if it has one.
    fn plans(&self, stages: usize, state: Option<serde_json::Value>) -> Result<Plans> {
        let mut plans = Plans::of(&*self.strategy, stages)?.moved_to_heads(self.heads.carriers(stages)?)?;
        if let Some(state) = state {
            plans.restore(&state)?;
        }
        Ok(plans)
    }
}
