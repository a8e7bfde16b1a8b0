//! A fit that can be left behind: with a limit of time for a user's code, it runs on a thread of its own, and the thread of the caller watches its calls of
//! that code. The threads of stages, strategy and data are watched by those that wait for them ([`Patience`]).

use std::sync::{Arc, mpsc::channel};

use super::{Trainer, guarded, run_metrics::RunState};
use crate::{
    Error, Origin, Phase, Result,
    watch::{Activity, Doing, NoMessage, Patience, Worker},
};

/// A call of a data set, or of the common loss for the targets of a batch.
pub(super) const DATA: Doing = Doing::new(Origin::Data, Phase::Load);
/// A call of the strategy.
pub(super) const STRATEGY: Doing = Doing::new(Origin::Strategy, Phase::Plan);

/// The folder of a checkpoint is made.
pub(super) const FOLDER: Doing = Doing::new(Origin::Coordinator, Phase::Snapshot);

/// A call of a callback for an event.
pub(super) fn event(callback: usize) -> Doing {
    Doing::new(Origin::Callback(callback), Phase::Event)
}

/// A call of a callback for its state.
pub(super) fn state(callback: usize) -> Doing {
    Doing::new(Origin::Callback(callback), Phase::State)
}

/// The calls of a user's code on the thread of a fit.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<Activity>);

impl Calls {
    /// Makes a call.
    ///
    /// # Errors
    /// That of the call; or if the fit is left behind: then the call is not made, or comes to nothing.
    pub(super) fn during<T>(&self, doing: Doing, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let left = || Error::Ended("the fit".to_owned());
        if self.are_left() {
            return Err(left());
        }
        let done = self.0.during(doing, call);
        if self.are_left() { Err(left()) } else { done }
    }

    /// Drops data sets, whose code may be called for it. A panic of it has nothing to add to the result.
    pub(super) fn release<T>(&self, data: T) {
        let release = || {
            drop(data);
            Ok(())
        };
        let _ = guarded(|| self.during(DATA, release));
    }

    /// Returns whether the fit has been left behind, because a call was blocked: then it may change nothing any more.
    pub(super) fn are_left(&self) -> bool {
        self.0.is_left()
    }
}

impl Trainer {
    /// How long code of the user's may take.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.launch.pipeline.stall_timeout)
    }

    /// Runs `work` with this trainer: here, or if code of the user's has a limit of time, on a thread of its own. If a call is blocked there, the trainer is
    /// left to that thread, and what is left here has failed.
    pub(super) fn on_its_own_thread<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_usable()?;
        let patience = self.patience();
        if !patience.is_limited() {
            return guarded(|| work(self));
        }
        let (give, take) = channel::<Self>();
        let (give_back, take_back) = channel();
        let dispatch = tracing::dispatcher::get_default(Clone::clone);
        let mut thread = Worker::start("interlock-fit", move || {
            let Ok(mut trainer) = take.recv() else { return };
            let done = tracing::dispatcher::with_default(&dispatch, || guarded(|| work(&mut trainer)));
            // If it was left behind, it ends here.
            let _ = give_back.send((trainer, done));
        })?;
        let (calls, left_over) = (self.calls.clone(), self.left_over());
        let _ = give.send(std::mem::replace(self, left_over));
        loop {
            match patience.receive(&take_back, &[Arc::clone(&calls.0)], || true) {
                Ok((trainer, done)) => {
                    *self = trainer;
                    thread.join(patience, &[]);
                    return done;
                }
                Err(NoMessage::Ended) => return Err(Error::Ended("the thread of the fit".to_owned())),
                Err(NoMessage::Stalled(stalled)) if calls.0.leave(&stalled) => {
                    tracing::warn!("{}", stalled.failure);
                    self.save_newest();
                    self.metrics.state(RunState::Failed);
                    return Err(stalled.failure.into());
                }
                // It has gone on in this moment.
                Err(NoMessage::Stalled(_)) => {}
            }
        }
    }

    /// Returns what can be asked of this trainer while another thread has it: its description by now, and the newest copies of that thread. It has failed.
    fn left_over(&self) -> Self {
        Self {
            pipeline: self.pipeline.description(),
            blueprints: self.blueprints.clone(),
            plans: self.plans.clone(),
            settings: self.settings.clone(),
            partition: self.partition.clone(),
            loss: Arc::clone(&self.loss),
            callbacks: Vec::new(),
            stop_reason: None,
            steps: self.steps,
            order: self.order,
            interrupted: self.interrupted,
            fit: self.fit.clone(),
            resumes: self.resumes,
            evaluation_due: self.evaluation_due,
            captures: self.captures.sharing(),
            store: self.store.clone(),
            best_is_unwritten: false,
            attached: self.attached.clone(),
            snapshot_every: self.snapshot_every,
            checkpoint_on_stop: self.checkpoint_on_stop,
            best: Arc::clone(&self.best),
            recording: None,
            stopper: self.stopper.clone(),
            metrics: self.metrics.clone(),
            simulated_idle: self.simulated_idle.clone(),
            launch: Arc::clone(&self.launch),
            recovery: self.recovery.clone(),
            told: self.told.clone(),
            reduces_on_plateau: self.reduces_on_plateau,
            warmup_steps: self.warmup_steps,
            rehearsed: self.rehearsed.clone(),
            calls: self.calls.clone(),
            failed: true,
        }
    }
}
