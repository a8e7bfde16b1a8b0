//! The steps that a stage has given to its device and not yet reported. Their numbers and times are read here.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{Stopped, phase_of, work::StageWorker};
use crate::{
    Error, Failure, Origin, Phase, Result,
    device::Mark,
    schedule::{self, Action, MicroBatchId},
    stage::{StepNumbers, StepReading},
    timeline::Span,
    transport::{CoordinatorMessage, StageStep},
    watch::Doing,
};

/// An action, between two marks in the device's stream.
pub(super) struct Timed {
    pub(super) action: Action,
    pub(super) before: Box<dyn Mark>,
    pub(super) after: Box<dyn Mark>,
}

impl Timed {
    /// Waits until the device has finished the action, and returns when it began and ended it.
    fn times(&self) -> Result<[Instant; 2]> {
        Ok([self.before.instant()?, self.after.instant()?])
    }
}

/// The actions done for a step.
#[derive(Default)]
pub(super) struct Done {
    work: schedule::StageWork,
    timed: Vec<Timed>,
}

impl Done {
    /// Notes the bytes of an activation that was sent.
    pub(super) fn sent_activation(&mut self, bytes: usize) {
        self.work.activation_bytes = self.work.activation_bytes.max(bytes as u64);
    }

    /// Notes the bytes of a gradient that was sent.
    pub(super) fn sent_gradient(&mut self, bytes: usize) {
        self.work.gradient_bytes = self.work.gradient_bytes.max(bytes as u64);
    }
}

/// A step whose numbers are being read.
pub(super) struct Unreported {
    step: u64,
    reading: StepReading,
    done: Done,
}

/// The steps whose numbers are being read, in order.
pub(super) type Queue = VecDeque<Unreported>;

impl StageWorker {
    /// Marks the present position in the device's stream.
    pub(super) fn mark(&self) -> Result<Box<dyn Mark>> {
        self.stage.device().mark()
    }

    /// Stores an action whose times are read later.
    pub(super) fn timed(&mut self, timed: Timed) {
        if timed.action.trains() { &mut self.done.timed } else { &mut self.evaluated }.push(timed);
    }

    /// Returns the recorded span of an action; none if nothing is recorded.
    fn span(&self, action: Action, [start, end]: [Instant; 2]) -> Option<Span> {
        let origin = self.record?;
        let since = |instant: Instant| instant.saturating_duration_since(origin).as_secs_f64();
        Some(Span { stage: self.stage.index(), action, start: since(start), end: since(end) })
    }

    /// Reads the times of the actions of a micro-batch of an evaluation, which is finished.
    pub(super) fn time_evaluation(&mut self, over: MicroBatchId) -> Result<(), Stopped> {
        let of = |timed: &Timed| match timed.action {
            Action::Forward(micro_batch) | Action::Head { micro_batch, .. } => micro_batch == over,
            _ => false,
        };
        let (now, later) = std::mem::take(&mut self.evaluated).into_iter().partition::<Vec<_>, _>(of);
        self.evaluated = later;
        for timed in now {
            let [start, end] = timed.times().map_err(|error| self.failed_in(timed.action, error))?;
            self.metrics.took(timed.action.kind(), end.saturating_duration_since(start));
        }
        Ok(())
    }

    /// Stores a step whose update has been given to the device. Reports all earlier steps first, so that the host is never more than one step ahead
    /// of the device.
    pub(super) fn update_submitted(&mut self, step: u64, reading: StepReading) -> Result<(), Stopped> {
        self.report_all_steps()?;
        let done = std::mem::take(&mut self.done);
        self.unreported.push_back(Unreported { step, reading, done });
        Ok(())
    }

    /// Reports the steps whose numbers have arrived. Does not wait.
    pub(super) fn report_ready_steps(&mut self) -> Result<(), Stopped> {
        while let Some(next) = self.unreported.front() {
            let step = next.step;
            if !next.reading.is_ready().map_err(|error| self.failure(step, error))? {
                break;
            }
            self.report_next_step()?;
        }
        Ok(())
    }

    /// Waits for the numbers of all steps, and reports them.
    pub(super) fn report_all_steps(&mut self) -> Result<(), Stopped> {
        while self.report_next_step()? {}
        Ok(())
    }

    /// Waits for the numbers of the next step, and reports it. Returns whether there was one.
    pub(super) fn report_next_step(&mut self) -> Result<bool, Stopped> {
        let Some(Unreported { step, reading, done }) = self.unreported.pop_front() else { return Ok(false) };
        let waits = Doing::new(Origin::Stage(self.stage.index()), Phase::Update).in_step(step);
        Arc::clone(&self.activity).during(waits, || match self.stage.take(reading)? {
            Some(numbers) => self.report_step(step, numbers, done),
            None => self.report_received_non_finite(),
        })?;
        Ok(true)
    }

    /// Reports, once, that the stage received a non-finite value, if it did.
    pub(super) fn report_received_non_finite(&mut self) -> Result<(), Stopped> {
        if !self.reported_non_finite
            && let Some(failure) = self.stage.received_non_finite().cloned()
        {
            self.reported_non_finite = true;
            self.wire.report(CoordinatorMessage::ReceivedNonFinite(failure))?;
        }
        Ok(())
    }

    /// Reports a step.
    fn report_step(&mut self, step: u64, numbers: StepNumbers, done: Done) -> Result<(), Stopped> {
        let Done { mut work, timed } = done;
        let mut spans = Vec::new();
        for timed in timed {
            let times = timed.times().map_err(|error| self.failure(step, error))?;
            let took = times[1].saturating_duration_since(times[0]);
            self.metrics.took(timed.action.kind(), took);
            work.add(timed.action.kind(), took);
            spans.extend(self.span(timed.action, times));
        }
        let StepNumbers { score, updated, alignment } = numbers;
        let stage = self.stage.index();
        self.wire.report(CoordinatorMessage::StepDone(StageStep {
            stage,
            step,
            score,
            updated,
            alignment,
            work,
            spans,
        }))?;
        Ok(())
    }

    /// The failure of the device while the host waited for the times of an action.
    fn failed_in(&self, action: Action, error: Error) -> Failure {
        Failure { phase: phase_of(action), ..self.failure(action.step(), error) }
            .in_micro_batch(action.micro_batch_index())
    }

    /// The failure of the device while the host waited for the numbers of a step.
    fn failure(&self, step: u64, error: Error) -> Failure {
        Failure::new(Origin::Stage(self.stage.index()), Phase::Update, error).in_step(step)
    }
}
