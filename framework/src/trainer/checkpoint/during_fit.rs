//! Captures and checkpoints in the course of a fit.

use std::sync::Arc;

use serde_json::Value;

use super::{Checkpoint, Reason, Saved};
use crate::{
    Error, Result,
    actor::PipelineEvent,
    stage::StageCapture,
    trainer::{TrainEvent, Trainer, run_metrics::RunState, state::FitState},
};

impl Trainer {
    /// Captures the state here, where nothing is in flight, for this reason.
    pub(in crate::trainer) fn capture_here(&mut self, reason: Reason, fit: FitState) -> Result<()> {
        let own = self.own_state(self.strategy_state()?, Some(fit))?;
        let checkpoint =
            Checkpoint { weights: self.pipeline.snapshot()?, state: own.with_stages(self.pipeline.state()?) };
        if reason == Reason::Checkpoint {
            self.captures.begin();
        }
        let complete = self.captures.completed(checkpoint, reason);
        self.write(complete)
    }

    /// Captures the state here if it is time.
    pub(in crate::trainer) fn capture_here_if_due(&mut self, fit: FitState) -> Result<()> {
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
        let complete = self.captures.add_own(self.steps, own)?;
        self.write(complete)
    }

    /// Adds the stages' states to the capture after `steps` steps.
    pub(in crate::trainer) fn capture_stages(&mut self, steps: u64, stages: Vec<StageCapture>) -> Result<()> {
        let complete = self.captures.add_stages(steps, stages)?;
        self.write(complete)
    }

    /// Waits for the captures of steps that are done.
    pub(in crate::trainer) fn finish_captures(&mut self) -> Result<()> {
        while self.captures.are_open() {
            match self.pipeline.next()? {
                PipelineEvent::Captured { step, stages } => self.capture_stages(step + 1, stages)?,
                other => return Err(Error::Internal(format!("{other:?} came instead of a capture"))),
            }
        }
        Ok(())
    }

    /// Hands a checkpoint to the store, if there are both.
    fn write(&mut self, checkpoint: Option<Arc<Checkpoint>>) -> Result<()> {
        match (checkpoint, &mut self.store) {
            (Some(checkpoint), Some(store)) => store.write(checkpoint),
            _ => Ok(()),
        }
    }

    /// Tells callbacks what has been written, or could not be; waits for all of it if `wait` is set.
    pub(in crate::trainer) fn tell_of_checkpoints(&mut self, wait: bool) -> Result<()> {
        let Some(store) = &mut self.store else { return Ok(()) };
        for Saved { steps, time, result } in store.take_saved(wait) {
            match result {
                Ok(path) if path.ends_with(crate::checkpoint::BEST) => {}
                Ok(path) => {
                    let seconds = time.as_secs_f64();
                    self.tell(&TrainEvent::CheckpointSaved { steps, path: &path, seconds })?;
                }
                Err(error) => {
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
            if self.checkpoint_on_stop || !stopped {
                self.capture_here(Reason::Checkpoint, fit)?;
            }
        }
        self.tell_of_checkpoints(true)
    }

    /// After a failure: writes the newest capture, if it has not been written, and waits until all is written.
    pub(in crate::trainer) fn save_newest(&mut self) {
        self.captures.abandon();
        let unwritten = self.captures.take_unwritten();
        let saved = self.write(unwritten).and_then(|()| self.tell_of_checkpoints(true));
        if let Err(error) = saved {
            tracing::warn!("after the failure: {error}");
        }
    }
}
