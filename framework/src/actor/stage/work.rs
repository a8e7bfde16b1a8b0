//! What a stage's actor does once its stage is built: one action after the other, and what comes of them.

use std::{collections::HashMap, time::Instant};

use actix::{AsyncContext, Context};

use super::{StageActor, Stopped};
use crate::{
    Result, Score, Stage, StageFailure,
    actor::{
        messages::{Act, Way},
        waits::Waits,
    },
    metrics::{Direction, StageMetrics},
    schedule::{self, Action, ActionKind, Purpose, StageSchedule},
    stage::Outcome,
    timeline,
    transport::{Report, StageStep, Transport},
};

/// A stage at work.
pub(super) struct Work {
    pub(super) stage: Box<Stage>,
    pub(super) wire: Box<dyn Transport>,
    pub(super) schedule: StageSchedule,
    /// Whether an [`Act`] is on its way.
    pub(super) acting: bool,
    pub(super) norms: HashMap<u64, f64>,
    /// The score of the step in work, and what was done for it.
    pub(super) score: Option<Score>,
    pub(super) work: schedule::Work,
    pub(super) metrics: StageMetrics,
    pub(super) waits: Waits,
    /// From when times are counted where they are recorded, and what has been done of the step in work.
    pub(super) record: Option<Instant>,
    pub(super) spans: Vec<timeline::Span>,
}

impl Work {
    /// Makes sure that exactly one [`Act`] is on its way.
    pub(super) fn wake(&mut self, ctx: &mut Context<StageActor>) {
        if !self.acting {
            self.acting = true;
            ctx.notify(Act);
        }
    }

    /// Does one action, if there is one to do; whether there was.
    pub(super) fn act(&mut self) -> Result<bool, Stopped> {
        let Some(action) = self.schedule.begin() else { return Ok(false) };
        let norm = match action {
            Action::Update(step) => self.norms.remove(&step),
            _ => None,
        };
        let kind = action.kind();
        let span = tracing::debug_span!("action", phase = kind.name(), step = action.step(), micro = action.micro());
        let _entered = span.enter();
        // Taken before the update, which forgets them.
        let gradient_bytes = if kind == ActionKind::Update { self.stage.gradient_bytes() } else { 0 };
        let start = Instant::now();
        if let Some((way, since)) = self.waits.end(action) {
            self.metrics.waited(way, start.saturating_duration_since(since));
        }
        let outcome = self.stage.perform(action, norm)?;
        let end = Instant::now();
        self.metrics.did(kind, end - start, self.stage.activation_bytes());
        if kind == ActionKind::Update {
            self.metrics.updated(gradient_bytes, self.stage.optimizer_bytes());
        }
        if action.trains() {
            self.note(action, start, end);
        }
        self.deliver(action, outcome)?;
        self.schedule.done(action);
        for ticket in self.schedule.take_freed() {
            self.stage.free(ticket);
            if ticket.purpose == Purpose::Train {
                self.metrics.freed();
            }
            if ticket.purpose == Purpose::Evaluate && !self.schedule.role().has_head {
                let stage = self.stage.index();
                self.wire.report(Report::Scored { stage, ticket, score: None })?;
            }
            self.wire.send_credit()?;
        }
        self.metrics.holds(self.schedule.live());
        Ok(true)
    }

    /// Takes in what a message brought, and notes how long it was on its way.
    pub(super) fn take_in(
        &mut self,
        direction: Direction,
        way: Way,
        take: impl FnOnce(&mut Stage) -> Result<(), StageFailure>,
    ) -> Result<(), StageFailure> {
        let start = Instant::now();
        take(&mut self.stage)?;
        self.metrics.arrived(direction, way.arrived.saturating_duration_since(way.sent) + start.elapsed());
        Ok(())
    }

    /// Takes note of what has been done for the step in work.
    fn note(&mut self, action: Action, start: Instant, end: Instant) {
        self.work.add(action.kind(), end - start);
        if let Some(origin) = self.record {
            let since = |instant: Instant| instant.duration_since(origin).as_secs_f64();
            self.spans.push(timeline::Span { stage: self.stage.index(), action, start: since(start), end: since(end) });
        }
    }

    fn deliver(&mut self, action: Action, outcome: Outcome) -> Result<()> {
        let stage = self.stage.index();
        let role = self.schedule.role();
        let last = stage + 1 == role.plans.stages();
        match (action, outcome) {
            (Action::Forward(ticket), Outcome::Activation(payload)) if !last => {
                let bytes = payload.bytes();
                self.metrics.sent(Direction::Activation, bytes);
                self.work.activation_bytes = self.work.activation_bytes.max(bytes as u64);
                self.wire.send_activation(ticket, payload)
            }
            (Action::PullBack { ticket, loss, .. }, Outcome::Gradient(gradient)) => {
                let bytes = gradient.bytes();
                self.metrics.sent(Direction::Gradient, bytes);
                self.work.gradient_bytes = self.work.gradient_bytes.max(bytes as u64);
                self.wire.send_gradient(ticket, loss, gradient)
            }
            (Action::Head { ticket, .. }, Outcome::Score(score)) => match ticket.purpose {
                Purpose::Train => {
                    self.score = Some(self.score.map_or(score, |sum| sum.and(score)));
                    Ok(())
                }
                Purpose::Evaluate => self.wire.report(Report::Scored { stage, ticket, score: Some(score) }),
            },
            (Action::ShareNorm(step), Outcome::SquaredNorms(norms)) => {
                self.wire.report(Report::SquaredNorms { stage, step, norms })
            }
            (Action::Update(step), Outcome::Updated(updated)) => {
                let work = std::mem::take(&mut self.work);
                let (score, spans) = (self.score.take(), std::mem::take(&mut self.spans));
                let alignment = self.stage.alignment();
                let done = StageStep { stage, step, score, updated, alignment, work, spans };
                self.wire.report(Report::StepDone(done))
            }
            _ => Ok(()),
        }
    }
}
