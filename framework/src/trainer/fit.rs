//! Training: the steps of one fit, its evaluations, and the events of both.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tempfile::TempDir;

use super::{
    Control, Evaluation, Length, Report, Split, TrainEvent, Trainer, calls,
    checkpoint::Reason,
    evaluation,
    example_order::ExampleOrder,
    guarded,
    loader::{Loaded, Loader},
    rehearsal,
    run_metrics::RunState,
    state::FitState,
    trained::Trained,
};
use crate::{
    Dataset, Error, Result,
    actor::{Feed, Feeder, PipelineEvent},
    differentiation::{TensorKind, tensor_kind},
    schedule::Purpose,
    stage::{CaptureTo, StageBlueprint},
    transport::StageStep,
};

/// Checks that every head's loss counted `targets` targets of a batch: the common loss's number, by which gradients are divided.
///
/// # Errors
/// If one counted another number.
fn check_counts(stages: &[StageStep], targets: f64) -> Result<()> {
    let counts = stages.iter().filter_map(|stage| Some((stage.stage, stage.score?.count)));
    // A number need not be whole, and micro-batches are counted one by one.
    match counts.into_iter().find(|(_, count)| (count - targets).abs() > 1e-6 * targets.abs()) {
        None => Ok(()),
        Some((k, count)) => Err(Error::invalid(
            format!("the loss of head {k}"),
            format!("its scores count {count} targets of a batch, of which the common loss counts {targets}"),
            "score and count the same targets in all losses",
        )),
    }
}

impl Trainer {
    /// Sends the event to every callback. The first reason to stop counts.
    ///
    /// # Errors
    /// If one fails or panics.
    pub(super) fn tell(&mut self, event: &TrainEvent<'_>) -> Result<()> {
        if !self.told.is_new(event) {
            return Ok(());
        }
        self.metrics.observe(event);
        for (number, callback) in self.callbacks.iter_mut().enumerate() {
            let handle = || {
                catch_unwind(AssertUnwindSafe(|| callback.on_event(event))).unwrap_or_else(|panic| {
                    Err(match Error::panicked(&*panic) {
                        Error::Panicked(text) => Error::Panicked(format!("a callback: {text}")),
                        other => other,
                    })
                })
            };
            let control = self.calls.during(calls::event(number).in_step(event.step()), handle)?;
            if let Control::Stop(reason) = control {
                self.stop_reason.get_or_insert(reason);
            }
        }
        Ok(())
    }

    /// Returns whether the fit is to end early. Steps that are repeated after a failure are repeated first.
    fn is_stopping(&self) -> bool {
        (self.stopper.is_requested() || self.stop_reason.is_some()) && self.steps >= self.told.steps()
    }

    /// Returns whether the next fit continues `fit`.
    fn continues(&self, fit: &FitState) -> bool {
        self.resumes && fit.first_step <= self.steps
    }

    /// Returns the first step of the fit that begins now, or of the one that it continues, and the step before which it ends.
    ///
    /// # Errors
    /// If the fit that it continues has made more steps.
    fn steps_of_fit(&self, order: ExampleOrder) -> Result<[u64; 2]> {
        let continued = self.fit.as_ref().filter(|fit| self.continues(fit));
        let first = continued.map_or(self.steps, |fit| fit.first_step);
        let (length, key) = match self.settings.length {
            Length::Epochs(epochs) => (epochs.saturating_mul(order.per_epoch), "epochs"),
            Length::Steps(steps) => (steps, "steps"),
        };
        let last = first.saturating_add(length);
        if last < self.steps {
            let problem = format!("the run would have {length} steps, and has made {}", self.steps - first);
            return Err(Error::invalid(key, problem, "give at least as many to continue it"));
        }
        Ok([first, last])
    }

    /// Checks the data of a fit, and returns the order in which its training set is read from now on: the unfinished epoch of a stopped fit
    /// continues, or a new one begins.
    pub(super) fn order_of(&self, data: &Split) -> Result<ExampleOrder> {
        self.settings.length.validate()?;
        let (examples, validated) = self
            .calls
            .during(calls::DATA, || Ok((data.train.len(), data.validation.as_ref().map(|set| set.is_empty()))))?;
        let order = match self.order {
            Some(order) if self.interrupted && order.examples == examples => order,
            last => {
                let order =
                    rehearsal::order_of(&*data.train, examples, &self.settings, self.with_statistics(), &self.calls)?;
                last.map_or(order, |last| order.beginning(last.epochs_begun(self.steps), self.steps))
            }
        };
        match validated {
            Some(true) => Err(evaluation::empty()),
            None if self.settings.keep_best.is_some() => Err(evaluation::missing("keep_best")),
            None if self.settings.eval_every.is_some() => Err(evaluation::missing("eval_every")),
            None if self.reduces_on_plateau => Err(evaluation::missing("lr_schedule (reduce_on_plateau)")),
            _ => Ok(()),
        }?;
        if let Some(last) = self.stages().iter().rposition(|stage| stage.unchecked).filter(|_| !self.rehearsed.get()) {
            rehearsal::check_gradients(&*data.train, examples, &self.blueprints[..=last], &self.plans, &self.calls)?;
            self.rehearsed.set(true);
        }
        self.steps_of_fit(order)?;
        Ok(order)
    }

    /// Returns the blueprints of the stages if one of them has running statistics; none otherwise: only layers with statistics of a batch need more
    /// than one example.
    fn with_statistics(&self) -> &[StageBlueprint] {
        let mut names = self.stages().iter().flat_map(|stage| &stage.names);
        if names.any(|name| tensor_kind(name) == TensorKind::Buffer) { &self.blueprints } else { &[] }
    }

    pub(super) fn run(&mut self, data: &Split) -> Result<Report> {
        let order = self.order_of(data)?;
        let [first, last] = self.steps_of_fit(order)?;
        let continued = self.fit.take().filter(|fit| self.continues(fit));
        if self.warmup_steps > last {
            tracing::warn!(
                "lr_schedule.warmup_steps: {} of {last} steps: the learning rate never reaches its base; use fewer",
                self.warmup_steps
            );
        }
        let joining = order.joining();
        if joining > 0 {
            tracing::warn!(
                "batch_size: {joining} of {} training examples are left after the last whole batch, fewer than the {} that {} here: \
                 they join that batch; drop_last = true leaves them out",
                order.examples,
                order.division.smallest_batch(),
                if order.division.replicas > 1 { "all replicas need" } else { "batch norm needs" }
            );
        }
        self.stop_reason = None;
        let (plans, built) = (self.plans.clone(), self.stages().to_vec());
        // A callback that refuses the run does so here: nothing has been sent to a stage.
        let told = self.tell(&TrainEvent::Started {
            first_step: first,
            next_step: self.steps,
            last_step: last,
            steps_per_epoch: order.per_epoch,
            plans: &plans,
            stages: &built,
            evaluates: data.validation.is_some(),
        });
        if let Err(refusal) = told {
            self.fit = continued;
            return Err(refusal);
        }
        // After an error between steps the next fit goes on in this epoch.
        (self.order, self.interrupted) = (Some(order), true);
        self.resumes = false;
        self.evaluation_due &= data.validation.is_some();
        self.pipeline.begin(last)?;
        self.captures.begin();

        let stopper = self.stopper.clone();
        let mut trained = continued.as_ref().map(Trained::continuing).unwrap_or_default();
        self.told.begin(self.steps);
        self.recovery.begin();
        // A callback had ended the fit, and the program was killed before it could say so.
        self.stop_reason =
            continued.as_ref().filter(|fit| fit.last_step == last).and_then(|fit| fit.stop_reason.clone());
        if self.recovery.recovers() {
            self.capture_here(Reason::Snapshot, trained.so_far(first))?;
        }
        let mut evaluation = loop {
            match self.train_to(data, order, [first, last], &mut trained) {
                Ok(evaluation) => break evaluation,
                Err(error) => self.recover(error, last, &mut trained)?,
            }
        };
        let is_rest = continued.is_some();
        // Nothing was left to train: the report has the scores all the same.
        let has_ended = self.steps >= last || self.stop_reason.is_some();
        if let (true, None, Some(validation)) = (has_ended && is_rest, &evaluation, &data.validation) {
            evaluation = self.run_evaluation(validation, &stopper)?;
        }
        let unevaluated = data.validation.is_some() && evaluation.is_none();
        trained.stopped = stopper.is_requested() && (self.steps < last || unevaluated);
        if trained.stopped {
            stopper.done();
        }
        trained.stop_reason = self.stop_reason.take().filter(|_| self.steps < last);
        self.interrupted = trained.stopped || trained.stop_reason.is_some();
        let ended = FitState { last_step: last, stop_reason: trained.stop_reason.clone(), ..trained.so_far(first) };
        self.fit = Some(ended.clone());
        self.end_with_checkpoint(self.interrupted, ended)?;
        let report = Report::new(self, &trained, evaluation);
        self.tell(&TrainEvent::Finished { report: &report })?;
        Ok(report)
    }

    /// Trains and evaluates up to the step `last` of a fit that began at `first`, or until it is asked to end. Returns the evaluation after the last step.
    fn train_to(
        &mut self,
        data: &Split,
        order: ExampleOrder,
        [first, last]: [u64; 2],
        trained: &mut Trained,
    ) -> Result<Option<Evaluation>> {
        let stopper = self.stopper.clone();
        let mut evaluation = None;
        while (self.steps < last || self.evaluation_due) && !self.is_stopping() {
            let until = match (&data.validation, self.settings.eval_every) {
                _ if self.evaluation_due => self.steps,
                (None, _) => last,
                (Some(_), Some(every)) => ((self.steps / every + 1) * every).min(last),
                (Some(_), None) => order.end_of_epoch(self.steps).min(last),
            };
            evaluation = None;
            let to_skip = self.recovery.to_skip.filter(|step| *step < until);
            self.train_until(&data.train, order, to_skip.unwrap_or(until), first, trained)?;
            if to_skip == Some(self.steps) {
                self.skip_step(last, trained, first)?;
            }
            if self.steps < until {
                continue;
            }
            if let Some(validation) = &data.validation {
                self.evaluation_due = true;
                self.metrics.state(RunState::Evaluating);
                let Some(found) = self.run_evaluation(validation, &stopper)? else { break };
                self.pipeline.observe_validation(found.last().score.mean_loss())?;
                let steps = self.steps;
                let improved = self.remember(&found)?;
                self.evaluation_due = false;
                self.tell(&TrainEvent::Evaluated { steps, evaluation: &found, improved })?;
                evaluation = Some(found);
            }
            if self.steps < last {
                self.capture_here_if_due(trained.so_far(first))?;
            }
            self.tell_of_checkpoints(false)?;
        }
        Ok(evaluation)
    }

    /// Runs the steps up to `until` (exclusive), or up to the last step that has been fed when the run is asked to end, and waits for them.
    fn train_until(
        &mut self,
        data: &Arc<dyn Dataset>,
        order: ExampleOrder,
        until: u64,
        first: u64,
        trained: &mut Trained,
    ) -> Result<()> {
        if self.steps == until {
            return Ok(());
        }
        self.metrics.trains();
        trained.begin();
        let (loss, steps, told) = (Arc::clone(&self.loss), self.steps..until, self.told.steps());
        let (calls, patience, store) = (self.calls.clone(), self.patience(), self.store.clone());
        // Once something has been fed, an error leaves the stages in the middle of a step.
        let fed = Cell::new(false);
        self.failed = true;
        let from = self.settings.data_from;
        let done = guarded(|| {
            let mut loader = Loader::training(Arc::clone(data), order, from, steps.clone(), patience)?;
            // The numbers of examples and targets of each batch that has been fed.
            let sizes = RefCell::new(VecDeque::new());
            let (timing, captured) = (RefCell::new(self.captures.timing.clone()), RefCell::new(Vec::new()));
            let mut feeder = Feeder::new(steps, |step| {
                let (size, feed) = guarded(|| {
                    let Loaded { micro_batches, elsewhere, targets, examples } = loader.next()?;
                    let counted = calls.during(calls::DATA.in_step(step), || loss.count(&targets));
                    let total = counted.map_err(|cause| super::loader::failure(cause).in_step(step))?;
                    let count = micro_batches.len() + elsewhere.len();
                    // After the last of these steps nothing is in flight: then all is captured at once. Callbacks are ahead of repeated steps.
                    let may_be_captured = step + 1 < until && step + 1 > told;
                    let reason =
                        Some(step + 1).filter(|_| may_be_captured).and_then(|steps| timing.borrow_mut().reason(steps));
                    let make = |reason: Reason| {
                        calls.during(calls::FOLDER, || Ok(reason.folder_for_ranks(store.as_deref(), step + 1)))
                    };
                    let folder = reason.map(make).transpose()?.flatten();
                    let feed = Feed {
                        purpose: Purpose::Train,
                        step,
                        micro_batches,
                        elsewhere,
                        first_index: 0,
                        count,
                        total,
                        capture: reason.map(|_| CaptureTo::files_in(folder.as_ref().map(TempDir::path))),
                    };
                    captured.borrow_mut().extend(reason.map(|reason| (step + 1, reason, folder)));
                    Ok(((examples, total), feed))
                })?;
                fed.set(true);
                sizes.borrow_mut().push_back(size);
                Ok(feed)
            });
            loop {
                if self.is_stopping() {
                    feeder.stop();
                }
                let event = feeder.next(&self.pipeline)?;
                captured
                    .take()
                    .into_iter()
                    .for_each(|(steps, reason, folder)| self.captures.begun(steps, reason, folder));
                match event {
                    None => return Ok(()),
                    Some(PipelineEvent::StageStep(stage)) => self.tell(&TrainEvent::StageStep(&stage))?,
                    Some(PipelineEvent::StepDone { step, stages, change, strategy }) => {
                        let size = sizes.borrow_mut().pop_front();
                        let (examples, targets) =
                            size.ok_or_else(|| Error::Internal(format!("step {step} ended without having been fed")))?;
                        check_counts(&stages, targets)?;
                        self.steps = step + 1;
                        trained.add(&stages, examples);
                        if self.told.steps() <= step {
                            self.simulated_idle.step_done(self.plans.at(step), &stages);
                            if let Some(recording) = &mut self.recording {
                                recording.add(&stages);
                            }
                        }
                        let epoch = order.epoch_at(step);
                        self.tell(&TrainEvent::StepDone { step, epoch, examples, targets, stages: &stages })?;
                        if let Some(phase) = change {
                            self.plans.change(phase)?;
                        }
                        self.tell_of_plan()?;
                        self.capture_own(strategy, trained.so_far(first))?;
                        self.tell_of_checkpoints(false)?;
                    }
                    Some(PipelineEvent::Captured { step: Some(step), stages }) => self.capture_stages(step + 1, stages),
                    Some(other) => return Err(Error::Internal(format!("{other:?} came in the middle of training"))),
                }
            }
        });
        let done = done.and_then(|()| self.finish_captures());
        self.failed = done.is_err() && fed.get();
        trained.end();
        done
    }

    /// Sends an event if a phase of plans begins with the next step.
    pub(super) fn tell_of_plan(&mut self) -> Result<()> {
        let phase = self.plans.phase_at(self.steps);
        if phase.from_step != self.steps {
            return Ok(());
        }
        let (from_step, plan) = (phase.from_step, Arc::clone(&phase.plan));
        self.simulated_idle.plan(&plan);
        self.tell(&TrainEvent::PlanChanged { from_step, plan: &plan })
    }
}
