//! Steps that a stage has given to its device and not yet told of: their numbers and times come later.

use std::{collections::VecDeque, time::Instant};

use super::{Stopped, phase_of, work::Work};
use crate::{
    Error, Failure, Origin, Phase, Result,
    device::Mark,
    schedule::{self, Action, MicroBatchId},
    stage::{StepNumbers, StepReading},
    timeline::Span,
    transport::{Report, StageStep},
};

/// An action between two places in the queue of a device.
pub(super) struct Timed {
    action: Action,
    before: Box<dyn Mark>,
    after: Box<dyn Mark>,
}

/// What has been done for a step.
#[derive(Default)]
pub(super) struct Done {
    work: schedule::Work,
    spans: Vec<Span>,
    /// What the device has yet to say the times of.
    timed: Vec<Timed>,
}

impl Done {
    /// Takes note of the bytes of an activation that was sent.
    pub(super) fn sent_activation(&mut self, bytes: usize) {
        self.work.activation_bytes = self.work.activation_bytes.max(bytes as u64);
    }

    /// Takes note of the bytes of a gradient that was sent.
    pub(super) fn sent_gradient(&mut self, bytes: usize) {
        self.work.gradient_bytes = self.work.gradient_bytes.max(bytes as u64);
    }
}

/// A step whose numbers are being read.
pub(super) struct Untold {
    step: u64,
    reading: StepReading,
    done: Done,
}

/// The steps whose numbers are being read, in order.
pub(super) type Queue = VecDeque<Untold>;

impl Work {
    /// A place in the queue of the device, where it has one.
    pub(super) fn mark(&self) -> Result<Option<Box<dyn Mark>>> {
        self.stage.device().mark()
    }

    /// Takes note of when an action was done, by the device's marks or by the host's clock.
    pub(super) fn note(&mut self, action: Action, marks: Option<(Box<dyn Mark>, Box<dyn Mark>)>, host: [Instant; 2]) {
        match marks {
            Some((before, after)) => {
                let timed = Timed { action, before, after };
                if action.trains() { &mut self.done.timed } else { &mut self.evaluated }.push(timed);
            }
            None => {
                self.metrics.took(action.kind(), host[1] - host[0]);
                if action.trains() {
                    let span = self.span(action, host);
                    self.done.work.add(action.kind(), host[1] - host[0]);
                    self.done.spans.extend(span);
                }
            }
        }
    }

    /// What is recorded of an action, if anything is.
    fn span(&self, action: Action, [start, end]: [Instant; 2]) -> Option<Span> {
        let origin = self.record?;
        let since = |instant: Instant| instant.saturating_duration_since(origin).as_secs_f64();
        Some(Span { stage: self.stage.index(), action, start: since(start), end: since(end) })
    }

    /// The times of what was done for an evaluation's micro-batch, which is over.
    pub(super) fn time_evaluation(&mut self, over: MicroBatchId) -> Result<(), Stopped> {
        let of = |timed: &Timed| match timed.action {
            Action::Forward(micro_batch) | Action::Head { micro_batch, .. } => micro_batch == over,
            _ => false,
        };
        let (now, later) = std::mem::take(&mut self.evaluated).into_iter().partition::<Vec<_>, _>(of);
        self.evaluated = later;
        for Timed { action, before, after } in now {
            let instant = |mark: &dyn Mark| mark.instant().map_err(|error| self.failed_in(action, error));
            let took = instant(&*after)?.saturating_duration_since(instant(&*before)?);
            self.metrics.took(action.kind(), took);
        }
        Ok(())
    }

    /// Tells of a step, now or when its numbers are there. Of the steps before none is left untold then: the device is never more than a step
    /// behind.
    pub(super) fn update_given(&mut self, step: u64, reading: StepReading) -> Result<(), Stopped> {
        self.settle_all()?;
        let done = std::mem::take(&mut self.done);
        self.untold.push_back(Untold { step, reading, done });
        Ok(())
    }

    /// Tells of the steps whose numbers are there; does not wait.
    pub(super) fn settle_ready(&mut self) -> Result<(), Stopped> {
        while let Some(next) = self.untold.front() {
            let step = next.step;
            if !next.reading.is_ready().map_err(|error| self.failure(step, error))? {
                break;
            }
            self.settle_next()?;
        }
        Ok(())
    }

    /// Waits for the numbers of all steps, and tells of them.
    pub(super) fn settle_all(&mut self) -> Result<(), Stopped> {
        while self.settle_next()? {}
        Ok(())
    }

    /// Waits for the numbers of the next step, and tells of it; whether there is one.
    pub(super) fn settle_next(&mut self) -> Result<bool, Stopped> {
        let Some(Untold { step, reading, done }) = self.untold.pop_front() else { return Ok(false) };
        match self.stage.take(reading)? {
            Some(numbers) => self.tell(step, numbers, done)?,
            None => self.tell_silence()?,
        }
        Ok(true)
    }

    /// Reports, once, that there is nothing to tell any more, if that is so.
    pub(super) fn tell_silence(&mut self) -> Result<(), Stopped> {
        if !self.silent
            && let Some(failure) = self.stage.silence().cloned()
        {
            self.silent = true;
            self.wire.report(Report::Silent(failure))?;
        }
        Ok(())
    }

    /// Reports a step.
    pub(super) fn tell(&mut self, step: u64, numbers: StepNumbers, done: Done) -> Result<(), Stopped> {
        let Done { mut work, mut spans, timed } = done;
        for Timed { action, before, after } in timed {
            let instant = |mark: &dyn Mark| mark.instant().map_err(|error| self.failure(step, error));
            let times = [instant(&*before)?, instant(&*after)?];
            let took = times[1].saturating_duration_since(times[0]);
            self.metrics.took(action.kind(), took);
            work.add(action.kind(), took);
            spans.extend(self.span(action, times));
        }
        let StepNumbers { score, updated, alignment } = numbers;
        let stage = self.stage.index();
        self.wire.report(Report::StepDone(StageStep { stage, step, score, updated, alignment, work, spans }))?;
        Ok(())
    }

    /// The failure of the device while the times of an action were waited for.
    fn failed_in(&self, action: Action, error: Error) -> Failure {
        Failure { phase: phase_of(action), ..self.failure(action.step(), error) }.in_micro_batch(action.micro())
    }

    /// The failure of the device while a step was waited for.
    fn failure(&self, step: u64, error: Error) -> Failure {
        Failure::new(Origin::Stage(self.stage.index()), Phase::Update, error).in_step(step)
    }
}
