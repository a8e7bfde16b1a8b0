//! Captures and checkpoints in the course of a fit.

use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;

use super::{Captured, Reason, Saved, store::Kind};
use crate::{
    Error, Result,
    actor::PipelineEvent,
    stage::{CaptureTo, StageCapture},
    trainer::{TrainEvent, Trainer, calls, run_metrics::RunState, state::FitState},
};

impl Trainer {
    /// Returns all of the trainer here, where nothing is in flight. Other ranks write what they have into `folder`, if there is one.
    pub(in crate::trainer) fn here(&self, folder: Option<TempDir>, fit: FitState) -> Result<Captured> {
        let own = self.own_state(self.strategy_state()?, Some(fit))?;
        let to = CaptureTo::files_in(folder.as_ref().map(TempDir::path));
        Ok(Captured::new(own, self.pipeline.capture(to)?, folder))
    }

    /// Captures the state here for this reason.
    pub(in crate::trainer) fn capture_here(&mut self, reason: Reason, fit: FitState) -> Result<()> {
        let folder = || Ok(reason.folder_for_ranks(self.store.as_deref(), self.steps));
        let captured = self.here(self.calls.during(calls::FOLDER, folder)?, fit)?;
        if reason == Reason::Checkpoint {
            self.captures.begin();
        }
        let complete = self.captures.completed(captured, reason);
        self.write(complete);
        Ok(())
    }

    /// Captures the state here if it is time, but not while steps are repeated: callbacks are ahead of them.
    pub(in crate::trainer) fn capture_here_if_due(&mut self, fit: FitState) -> Result<()> {
        if self.steps < self.told.steps() {
            return Ok(());
        }
        match self.captures.timing.reason(self.steps) {
            Some(reason) => self.capture_here(reason, fit),
            None => Ok(()),
        }
    }

    /// Adds the trainer's own state to the capture after the last step, if there is one.
    pub(in crate::trainer) fn capture_own(&mut self, strategy: Option<Value>, fit: FitState) -> Result<()> {
        if !self.captures.wants(self.steps) {
            return Ok(());
        }
        let own = self.own_state(strategy, Some(fit))?;
        let complete = self.captures.add_own(self.steps, own);
        self.write(complete);
        Ok(())
    }

    /// Adds the stages' states to the capture after `steps` steps.
    pub(in crate::trainer) fn capture_stages(&mut self, steps: u64, stages: Vec<StageCapture>) {
        let complete = self.captures.add_stages(steps, stages);
        self.write(complete);
    }

    /// Waits for the captures of steps that are done.
    pub(in crate::trainer) fn finish_captures(&mut self) -> Result<()> {
        while self.captures.are_open() {
            match self.pipeline.next()? {
                PipelineEvent::Captured { step: Some(step), stages } => self.capture_stages(step + 1, stages),
                other => return Err(Error::Internal(format!("{other:?} came instead of a capture"))),
            }
        }
        Ok(())
    }

    /// Hands a checkpoint to the store, if there are both.
    fn write(&self, captured: Option<Captured>) {
        if let (Some(captured), Some(store)) = (captured, &self.store) {
            store.write(captured);
        }
    }

    /// Tells callbacks what has been written, or could not be; waits for all of it if `wait` is set.
    pub(in crate::trainer) fn tell_of_checkpoints(&mut self, wait: bool) -> Result<()> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        for Saved { steps, what, time, result } in store.take_saved(wait) {
            match (what, result) {
                (Kind::Best, Ok(_)) => self.best_is_unwritten = false,
                (Kind::Best, Err(error)) => {
                    // They are written again at the end of the fit.
                    self.best_is_unwritten = true;
                    tracing::warn!(
                        "the best weights, after {steps} steps, could not be written: {error}; training goes on"
                    );
                }
                (Kind::Checkpoint, Ok(path)) => {
                    self.captures.saved(steps, &path);
                    let seconds = time.as_secs_f64();
                    self.tell(&TrainEvent::CheckpointSaved { steps, path: &path, seconds })?;
                }
                (Kind::Checkpoint, Err(error)) => {
                    tracing::warn!(
                        "the checkpoint after {steps} steps could not be written: {error}; training goes on"
                    );
                    self.tell(&TrainEvent::CheckpointFailed { steps, error: &error })?;
                }
            }
        }
        Ok(())
    }

    /// Ends a fit with a checkpoint, unless it was stopped and `on_stop` is not set, and waits until all is written.
    pub(in crate::trainer) fn end_with_checkpoint(&mut self, stopped: bool, fit: FitState) -> Result<()> {
        self.finish_captures()?;
        if self.store.is_some() {
            self.metrics.state(RunState::Checkpointing);
            // The one that the run continues from, or that was taken at this step, needs no other in its place, unless a callback has ended the fit.
            let is_new = !self.captures.is_written(self.steps) || fit.stop_reason.is_some();
            if is_new && (self.checkpoint_on_stop || !stopped) {
                self.capture_here(Reason::Checkpoint, fit)?;
            }
        }
        self.tell_of_checkpoints(true)?;
        if let (true, Some(best), Some(store)) = (self.best_is_unwritten, &self.best(), &self.store) {
            store.write_best(Arc::clone(best));
            self.tell_of_checkpoints(true)?;
        }
        Ok(())
    }

    /// After a failure: writes the newest capture, if it has not been written, and waits until all is written.
    pub(in crate::trainer) fn save_newest(&mut self) {
        self.captures.abandon();
        let unwritten = self.captures.take_unwritten();
        self.write(unwritten);
        if let Err(error) = self.tell_of_checkpoints(true) {
            tracing::warn!("after the failure: {error}");
        }
    }
}
