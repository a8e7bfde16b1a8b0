//! The coordinator.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, mpsc::Sender},
};

use actix::{Actor, Context, Handler, Recipient};

use super::{
    address::{StageAddress, undelivered},
    exchange::OtherRank,
    messages::{
        Activation, Broadcast, CaptureAfter, Cleared, Credit, Feed, Fenced, Norm, Observe, Observed, PipelineEvent,
        Reported, Restore, RestoreStages, TransferTimes,
    },
    notes::IntoNote,
    sent::{Counter, count},
    stage::StageActor,
};
use crate::{
    Batch, Error, Failure, Origin, Phase, Result, Score,
    schedule::{MicroBatchId, Purpose},
    stage::{Payload, StageCapture, StageState},
    transport::{Built, CoordinatorMessage, StageStep},
};

/// Feeds micro-batches to the first stage within its credits, and gathers what the stages report into events.
pub(super) struct Coordinator {
    stages: Vec<StageAddress>,
    /// The strategy actor, if plans are decided during the run: it is sent every finished step.
    strategy: Option<Recipient<Observe>>,
    /// Only steps below this one are fed: the plans of the others may still change.
    cleared: u64,
    events: Sender<PipelineEvent>,
    sent: Arc<Counter>,
    credits: usize,
    in_flight: usize,
    /// The micro-batches that have been fed and not yet been sent, each with whether it is the last of its feed.
    waiting: VecDeque<(MicroBatchId, Payload, bool)>,
    built: Gather<(), Built>,
    steps: Gather<u64, StageStep>,
    scores: Gather<MicroBatchId, Option<Score>>,
    norms: Gather<u64, Vec<f64>>,
    snapshots: Gather<(), Vec<(String, candle_core::Tensor)>>,
    states: Gather<(), StageState>,
    restored: Gather<(), ()>,
    captures: Gather<u64, StageCapture>,
    /// The steps that are captured and have not been observed yet.
    captured: BTreeSet<u64>,
    /// The stages that received a non-finite value, and the failure of the run if no stage produced it.
    received_non_finite: BTreeMap<usize, Failure>,
    failed: bool,
    /// The other ranks.
    others: Vec<OtherRank>,
    /// The fences that have not come back. Until they have, nothing is fed.
    fences: usize,
}

/// Collects one value from every stage under a key.
struct Gather<K, V> {
    stages: usize,
    parts: BTreeMap<K, Vec<Option<V>>>,
}

impl<K: Ord + Copy, V> Gather<K, V> {
    fn new(stages: usize) -> Self {
        Self { stages, parts: BTreeMap::new() }
    }

    /// Adds a stage's value. Returns the values of all stages, in order of stages, once they are complete.
    fn add(&mut self, key: K, stage: usize, value: V) -> Option<Vec<V>> {
        let stages = self.stages;
        let parts = self.parts.entry(key).or_insert_with(|| (0..stages).map(|_| None).collect());
        parts[stage] = Some(value);
        if parts.iter().all(Option::is_some) {
            return self.parts.remove(&key).map(|parts| parts.into_iter().flatten().collect());
        }
        None
    }

    /// Whether for some key only values of the `received_non_finite` stages are missing.
    fn waits_only_for(&self, received_non_finite: &BTreeMap<usize, Failure>) -> bool {
        let there = |(stage, part): (usize, &Option<V>)| part.is_some() || received_non_finite.contains_key(&stage);
        self.parts.values().any(|parts| parts.iter().enumerate().all(there))
    }
}

impl Coordinator {
    pub(super) fn new(
        stages: Vec<StageAddress>,
        strategy: Option<Recipient<Observe>>,
        in_flight: usize,
        events: Sender<PipelineEvent>,
        sent: Arc<Counter>,
        others: Vec<OtherRank>,
    ) -> Self {
        let count = stages.len();
        Self {
            stages,
            strategy,
            cleared: 0,
            events,
            sent,
            credits: in_flight,
            in_flight,
            waiting: VecDeque::new(),
            built: Gather::new(count),
            steps: Gather::new(count),
            scores: Gather::new(count),
            norms: Gather::new(count),
            snapshots: Gather::new(count),
            states: Gather::new(count),
            restored: Gather::new(count),
            captures: Gather::new(count),
            captured: BTreeSet::new(),
            received_non_finite: BTreeMap::new(),
            failed: false,
            others,
            fences: 0,
        }
    }

    /// Reports an event to the pipeline's handle. If nobody listens the pipeline is being dropped, and nothing is lost.
    fn tell(&mut self, event: PipelineEvent) {
        let _ = self.events.send(event);
    }

    fn fail(&mut self, failure: Failure) {
        if !std::mem::replace(&mut self.failed, true) {
            self.tell(PipelineEvent::Failed(failure));
        }
    }

    /// Fails once every stage that could have sent the non-finite value has reported that it did not produce it.
    fn check_non_finite(&mut self) {
        let over = self.received_non_finite.len() == self.stages.len()
            || self.steps.waits_only_for(&self.received_non_finite)
            || self.scores.waits_only_for(&self.received_non_finite)
            || self.norms.waits_only_for(&self.received_non_finite);
        let earliest = self.received_non_finite.values().min_by_key(|failure| (failure.step, failure.micro_batch));
        if let Some(earliest) = earliest.filter(|_| over).cloned() {
            self.fail(earliest);
        }
    }

    /// Turns an error of `origin`, such as an actor that cannot be reached, into the run's failure.
    fn check(&mut self, origin: Origin, result: Result<()>) {
        if let Err(cause) = result {
            self.fail(Failure::new(origin, Phase::Transfer, cause));
        }
    }

    fn broadcast<M>(&mut self, message: &M)
    where
        M: actix::Message<Result = ()> + Clone + IntoNote + Send + 'static,
        StageActor: Handler<M>,
    {
        for k in 0..self.stages.len() {
            let sent = self.stages[k].send(message.clone());
            self.check(Origin::Stage(k), sent);
        }
    }

    /// Makes sure that what has been sent to the stages of other ranks is in their mailboxes before anything else is fed: an activation takes another way,
    /// from stage to stage, and could overtake it.
    fn fence(&mut self) {
        self.fences += self.others.len();
        for other in 0..self.others.len() {
            let sent = self.others[other].fence();
            self.check(Origin::Rank(self.others[other].rank()), sent);
        }
    }

    /// Sends waiting micro-batches, as far as credits and known plans allow.
    fn flow(&mut self) {
        while self.credits > 0 && !self.failed && self.fences == 0 {
            let cleared = |micro_batch: &MicroBatchId| {
                micro_batch.purpose == Purpose::Evaluate || micro_batch.step < self.cleared
            };
            if self.waiting.front().is_some_and(|(micro_batch, ..)| !cleared(micro_batch)) {
                break;
            }
            let Some((micro_batch, payload, last)) = self.waiting.pop_front() else { break };
            self.credits -= 1;
            count(&self.sent.activations);
            let sent = self.stages[0].send(Activation { micro_batch, payload, times: TransferTimes::now() });
            self.check(Origin::Stage(0), sent);
            if last {
                self.tell(PipelineEvent::Fed { purpose: micro_batch.purpose, step: micro_batch.step });
            }
        }
    }
}

impl Actor for Coordinator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Until this actor feeds more there are at most `in_flight` micro-batches at each boundary. For each of them every stage reports at most
        // three times (a norm, a step or a score, a credit), and the strategy actor twice.
        let stages = self.stages.len();
        ctx.set_mailbox_capacity(64 + (3 * stages + 2) * (stages + 1) * (self.in_flight + 1));
    }
}

impl Handler<Feed> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: Feed, _: &mut Self::Context) {
        let Feed { purpose, step, micro_batches, first_index, count, total, capture } = message;
        if capture {
            // It is in every stage's mailbox before the first activation of the step.
            self.captured.insert(step);
            self.broadcast(&CaptureAfter { step });
            self.fence();
        }
        let fed = micro_batches.len();
        for (i, Batch { inputs, targets }) in micro_batches.into_iter().enumerate() {
            let micro_batch = MicroBatchId { step, purpose, index: first_index + i, count };
            self.waiting.push_back((micro_batch, Payload { inputs, targets, total }, i + 1 == fed));
        }
        self.flow();
    }
}

impl Handler<Credit> for Coordinator {
    type Result = ();

    fn handle(&mut self, _: Credit, _: &mut Self::Context) {
        self.credits += 1;
        if self.credits > self.in_flight {
            let error = Err(Error::Internal("stage 0 returned more credits than it received micro-batches".to_owned()));
            self.check(Origin::Coordinator, error);
        }
        self.flow();
    }
}

impl Handler<Fenced> for Coordinator {
    type Result = ();

    fn handle(&mut self, _: Fenced, _: &mut Self::Context) {
        self.fences = self.fences.saturating_sub(1);
        self.flow();
    }
}

impl Handler<Cleared> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: Cleared, _: &mut Self::Context) {
        self.cleared = message.until;
        self.flow();
    }
}

impl Handler<Observed> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: Observed, _: &mut Self::Context) {
        if !self.failed {
            let Observed { step, stages, change, state } = message;
            if change.is_some() {
                self.fence();
            }
            self.tell(PipelineEvent::StepDone { step, stages, change, strategy: state });
        }
    }
}

impl Handler<Broadcast> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: Broadcast, _: &mut Self::Context) {
        match message {
            Broadcast::Begin(message) => self.broadcast(&message),
            Broadcast::Validated(message) => self.broadcast(&message),
            Broadcast::TakeSnapshot(message) => self.broadcast(&message),
            Broadcast::TakeState(message) => self.broadcast(&message),
        }
        self.fence();
    }
}

impl Handler<RestoreStages> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: RestoreStages, _: &mut Self::Context) {
        for (k, state) in message.states.into_iter().enumerate() {
            let sent = self.stages[k].send(Restore { state: Box::new(state) });
            self.check(Origin::Stage(k), sent);
        }
    }
}

impl Handler<Reported> for Coordinator {
    type Result = ();

    fn handle(&mut self, Reported(report): Reported, _: &mut Self::Context) {
        if self.failed {
            return;
        }
        match report {
            CoordinatorMessage::Built(built) => {
                if let Some(all) = self.built.add((), built.stage, built) {
                    self.tell(PipelineEvent::Ready(all));
                }
            }
            CoordinatorMessage::StepDone(done) => {
                self.tell(PipelineEvent::StageStep(done.clone()));
                let step = done.step;
                if let Some(stages) = self.steps.add(step, done.stage, done) {
                    let with_state = self.captured.remove(&step);
                    match &self.strategy {
                        Some(strategy) => {
                            let sent = strategy.try_send(Observe { step, stages, with_state });
                            let sent = sent.map_err(|error| undelivered(error, "the strategy actor"));
                            self.check(Origin::Strategy, sent);
                        }
                        None => self.tell(PipelineEvent::StepDone { step, stages, change: None, strategy: None }),
                    }
                }
            }
            CoordinatorMessage::Scored { stage, micro_batch, score } => {
                if let Some(scores) = self.scores.add(micro_batch, stage, score) {
                    debug_assert_eq!(micro_batch.purpose, Purpose::Evaluate);
                    self.tell(PipelineEvent::Scored { micro_batch, scores });
                }
            }
            CoordinatorMessage::SquaredNorms { stage, step, norms } => {
                if let Some(all) = self.norms.add(step, stage, norms) {
                    // In the order of stages and parameters, not of arrival.
                    let norm = all.iter().flatten().fold(0.0, |sum, norm| sum + norm).sqrt();
                    (0..self.stages.len()).for_each(|_| count(&self.sent.norms));
                    self.broadcast(&Norm { step, norm });
                }
            }
            CoordinatorMessage::Snapshot { stage, tensors } => {
                if let Some(all) = self.snapshots.add((), stage, tensors) {
                    self.tell(PipelineEvent::Snapshot(all));
                }
            }
            CoordinatorMessage::State { stage, state } => {
                if let Some(all) = self.states.add((), stage, *state) {
                    self.tell(PipelineEvent::State(all));
                }
            }
            CoordinatorMessage::Captured { stage, step, capture } => {
                if let Some(stages) = self.captures.add(step, stage, *capture) {
                    self.tell(PipelineEvent::Captured { step, stages });
                }
            }
            CoordinatorMessage::Restored { stage } => {
                if self.restored.add((), stage, ()).is_some() {
                    self.tell(PipelineEvent::Restored);
                }
            }
            CoordinatorMessage::ReceivedNonFinite(failure) => {
                if let Some(stage) = failure.stage() {
                    self.received_non_finite.insert(stage, failure);
                }
            }
            CoordinatorMessage::Failed(failure) => self.fail(failure),
        }
        if !self.received_non_finite.is_empty() {
            self.check_non_finite();
        }
    }
}
