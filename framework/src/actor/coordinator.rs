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
        Activation, Broadcast, Capture, Cleared, CreditOfReplica, Feed, Fenced, GiveRead, Norm, Observe, Observed,
        PipelineEvent, Read, Reported, Restore, RestoreStages, TransferTimes,
    },
    notes::IntoNote,
    sent::{Counter, count},
    stage::StageActor,
};
use crate::{
    Batch, Error, Failure, Origin, Phase, Result, Score,
    ranks::share_of,
    schedule::{MicroBatchId, Purpose},
    stage::{Payload, StageCapture, StageState},
    transport::{Built, CoordinatorMessage, StageStep},
};

/// Feeds micro-batches to the first stage of each replica within its credits, and gathers what the stages report into events.
///
/// Weights, states and the scores of evaluations are those of the first replica.
pub(super) struct Coordinator {
    stages: usize,
    replicas: Vec<Replica>,
    /// The strategy actor, if plans are decided during the run: it is sent every finished step.
    strategy: Option<Recipient<Observe>>,
    /// Only steps below this one are fed: the plans of the others may still change.
    cleared: u64,
    events: Sender<PipelineEvent>,
    sent: Arc<Counter>,
    in_flight: usize,
    /// The feeds of which some micro-batch has not been sent, by number: purpose, step, and how many have not.
    unsent: BTreeMap<u64, (Purpose, u64, usize)>,
    feeds: u64,
    /// Of all replicas.
    built: Gather<(), Built>,
    /// By step and stage, of all replicas.
    steps_of_replicas: Gather<(u64, usize), StageStep>,
    steps: Gather<u64, StageStep>,
    scores: Gather<MicroBatchId, Option<Score>>,
    /// Of all replicas.
    norms: Gather<u64, Vec<f64>>,
    snapshots: Gather<(), Vec<(String, candle_core::Tensor)>>,
    states: Gather<(), StageState>,
    /// Of all replicas.
    restored: Gather<(), ()>,
    captures: Gather<Option<u64>, StageCapture>,
    /// The steps that are captured and have not been observed yet.
    captured: BTreeSet<u64>,
    /// The stages that received a non-finite value, by their place among those of all replicas, and the failure of the run if no stage produced it.
    received_non_finite: BTreeMap<usize, Failure>,
    failed: bool,
    /// The other ranks.
    others: Vec<OtherRank>,
    /// The fences that have not come back. Until they have, nothing is fed.
    fences: usize,
}

/// One replica of all stages.
struct Replica {
    stages: Vec<StageAddress>,
    credits: usize,
    /// The micro-batches that have been fed and not yet been sent, each with the number of its feed.
    waiting: VecDeque<(MicroBatchId, Input, u64)>,
}

/// The input of a forward pass of the first stage.
enum Input {
    Here(Payload),
    /// The rank of the stage has been told which examples it is, and reads them.
    Elsewhere,
}

/// Collects a value from each of several senders under a key: all stages, all replicas of a stage, or the stages of all replicas.
struct Gather<K, V> {
    senders: usize,
    parts: BTreeMap<K, Vec<Option<V>>>,
}

impl<K: Ord + Copy, V> Gather<K, V> {
    fn new(senders: usize) -> Self {
        Self { senders, parts: BTreeMap::new() }
    }

    /// Adds a sender's value. Returns the values of all, in order of senders, once they are complete.
    fn add(&mut self, key: K, sender: usize, value: V) -> Option<Vec<V>> {
        let senders = self.senders;
        let parts = self.parts.entry(key).or_insert_with(|| (0..senders).map(|_| None).collect());
        parts[sender] = Some(value);
        if parts.iter().all(Option::is_some) {
            return self.parts.remove(&key).map(|parts| parts.into_iter().flatten().collect());
        }
        None
    }

    /// Whether for some key only values of senders are missing that have `received_non_finite` values.
    fn waits_only_for(&self, received_non_finite: impl Fn(usize) -> bool) -> bool {
        let there = |(sender, part): (usize, &Option<V>)| part.is_some() || received_non_finite(sender);
        self.parts.values().any(|parts| parts.iter().enumerate().all(there))
    }
}

impl Coordinator {
    /// The coordinator of `replicas`, the stages of each.
    pub(super) fn new(
        replicas: Vec<Vec<StageAddress>>,
        strategy: Option<Recipient<Observe>>,
        in_flight: usize,
        events: Sender<PipelineEvent>,
        sent: Arc<Counter>,
        others: Vec<OtherRank>,
    ) -> Self {
        let (count, all) = (replicas[0].len(), replicas.iter().map(Vec::len).sum());
        let replica = |stages| Replica { stages, credits: in_flight, waiting: VecDeque::new() };
        Self {
            stages: count,
            steps_of_replicas: Gather::new(replicas.len()),
            replicas: replicas.into_iter().map(replica).collect(),
            strategy,
            cleared: 0,
            events,
            sent,
            in_flight,
            unsent: BTreeMap::new(),
            feeds: 0,
            built: Gather::new(all),
            steps: Gather::new(count),
            scores: Gather::new(count),
            norms: Gather::new(all),
            snapshots: Gather::new(count),
            states: Gather::new(count),
            restored: Gather::new(all),
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
        let all = self.stages * self.replicas.len();
        let has = |place: usize| self.received_non_finite.contains_key(&place);
        let stage_has = |stage: usize| (stage..all).step_by(self.stages).any(has);
        // A stage in which only some replicas have received one waits for these.
        let over = (0..self.stages).all(stage_has)
            || self.steps.waits_only_for(stage_has)
            || self.scores.waits_only_for(has)
            || self.norms.waits_only_for(has);
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

    /// The same for an error of a stage.
    fn check_stage(&mut self, replica: usize, stage: usize, result: Result<()>) {
        if let Err(cause) = result {
            let failure = Failure::new(Origin::Stage(stage), Phase::Transfer, cause);
            self.fail(failure.in_replica(replica, self.replicas.len()));
        }
    }

    /// Sends a message to the stages of these replicas.
    fn broadcast<M>(&mut self, replicas: std::ops::Range<usize>, message: &M)
    where
        M: actix::Message<Result = ()> + Clone + IntoNote + Send + 'static,
        StageActor: Handler<M>,
    {
        for replica in replicas {
            for k in 0..self.stages {
                let sent = self.replicas[replica].stages[k].send(message.clone());
                self.check_stage(replica, k, sent);
            }
        }
    }

    /// All replicas.
    fn all(&self) -> std::ops::Range<usize> {
        0..self.replicas.len()
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
        for replica in self.all() {
            self.flow_to(replica);
        }
    }

    fn flow_to(&mut self, replica: usize) {
        while self.replicas[replica].credits > 0 && !self.failed && self.fences == 0 {
            let to = &mut self.replicas[replica];
            let is_cleared = |micro_batch: &MicroBatchId| {
                micro_batch.purpose == Purpose::Evaluate || micro_batch.step < self.cleared
            };
            let next = to.waiting.pop_front_if(|(micro_batch, ..)| is_cleared(micro_batch));
            let Some((micro_batch, input, feed)) = next else { break };
            to.credits -= 1;
            count(&self.sent.activations);
            let sent = match input {
                Input::Here(payload) => {
                    to.stages[0].send(Activation { micro_batch, payload, times: TransferTimes::now() })
                }
                Input::Elsewhere => to.stages[0].send_to_rank(GiveRead),
            };
            self.check_stage(replica, 0, sent);
            self.sent_one_of(feed);
        }
    }

    /// Notes that a micro-batch of a feed has been sent.
    fn sent_one_of(&mut self, feed: u64) {
        if let Some((purpose, step, left)) = self.unsent.get_mut(&feed) {
            let (purpose, step) = (*purpose, *step);
            *left -= 1;
            if *left == 0 {
                self.unsent.remove(&feed);
                self.tell(PipelineEvent::Fed { purpose, step });
            }
        }
    }

    /// Adds up what the replicas of a stage reported of a step: their scores. All else is the first replica's.
    fn whole(replicas: Vec<StageStep>) -> Option<StageStep> {
        let add =
            |first: StageStep, other: StageStep| StageStep { score: Score::sum(first.score, other.score), ..first };
        replicas.into_iter().reduce(add)
    }
}

impl Actor for Coordinator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Until this actor feeds more there are at most `in_flight` micro-batches at each boundary. For each of them every stage reports at most
        // three times (a norm, a step or a score, a credit), and the strategy actor twice.
        let (stages, replicas) = (self.stages, self.replicas.len());
        ctx.set_mailbox_capacity(64 + (3 * stages * replicas + 2) * (stages + 1) * (self.in_flight + 1));
    }
}

impl Handler<Feed> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: Feed, _: &mut Self::Context) {
        let Feed { purpose, step, micro_batches, elsewhere, first_index, count, total, capture } = message;
        if let Some(to) = capture {
            // It is in every stage's mailbox before the first activation of the step.
            self.captured.insert(step);
            self.broadcast(0..1, &Capture { step: Some(step), to });
            self.fence();
        }
        let feed = self.feeds;
        self.feeds += 1;
        self.unsent.insert(feed, (purpose, step, micro_batches.len() + elsewhere.len()));
        // Evaluations need the running statistics of the first replica.
        let replicas = if purpose == Purpose::Train { self.replicas.len() } else { 1 };
        let homes = (0..replicas).flat_map(|replica| {
            let share = share_of(replica, replicas, count);
            std::iter::repeat_n((replica, share), share)
        });
        let here =
            micro_batches.into_iter().map(|Batch { inputs, targets }| Input::Here(Payload { inputs, targets, total }));
        let inputs = here.map(Ok).chain(elsewhere.into_iter().map(Err));
        for (i, (input, (replica, share))) in inputs.zip(homes).enumerate() {
            let micro_batch = MicroBatchId { step, purpose, index: first_index + i, count: share };
            let input = input.unwrap_or_else(|examples| {
                // At once, so that it reads ahead of the credits.
                let sent = self.replicas[replica].stages[0].send_to_rank(Read { micro_batch, examples, total });
                self.check_stage(replica, 0, sent);
                Input::Elsewhere
            });
            self.replicas[replica].waiting.push_back((micro_batch, input, feed));
        }
        self.flow();
    }
}

impl Handler<CreditOfReplica> for Coordinator {
    type Result = ();

    fn handle(&mut self, CreditOfReplica(replica): CreditOfReplica, _: &mut Self::Context) {
        self.replicas[replica].credits += 1;
        if self.replicas[replica].credits > self.in_flight {
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
            Broadcast::Begin(message) => self.broadcast(self.all(), &message),
            Broadcast::Validated(message) => self.broadcast(self.all(), &message),
            Broadcast::TakeSnapshot(message) => self.broadcast(0..1, &message),
            Broadcast::TakeState(message) => self.broadcast(0..1, &message),
            Broadcast::Capture(message) => self.broadcast(0..1, &message),
        }
        self.fence();
    }
}

impl Handler<RestoreStages> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: RestoreStages, _: &mut Self::Context) {
        for (k, state) in message.states.into_iter().enumerate() {
            for replica in self.all() {
                let sent = self.replicas[replica].stages[k].send(Restore { state: Box::new(state.clone()) });
                self.check_stage(replica, k, sent);
            }
        }
    }
}

impl Handler<Reported> for Coordinator {
    type Result = ();

    fn handle(&mut self, Reported { replica, report }: Reported, _: &mut Self::Context) {
        if self.failed {
            return;
        }
        // The place of a stage among those of all replicas.
        let place = |stage: usize| replica * self.stages + stage;
        match report {
            CoordinatorMessage::Built(built) => {
                let place = place(built.stage);
                if let Some(mut all) = self.built.add((), place, built) {
                    all.truncate(self.stages);
                    self.tell(PipelineEvent::Ready(all));
                }
            }
            CoordinatorMessage::StepDone(part) => {
                let key = (part.step, part.stage);
                let Some(done) = self.steps_of_replicas.add(key, replica, part).and_then(Self::whole) else { return };
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
                let place = place(stage);
                if let Some(all) = self.norms.add(step, place, norms) {
                    // In the order of stages and parameters, not of arrival. All replicas have the same gradients.
                    let first = all.iter().take(self.stages).flatten();
                    let norm = first.fold(0.0, |sum, norm| sum + norm).sqrt();
                    (0..all.len()).for_each(|_| count(&self.sent.norms));
                    self.broadcast(self.all(), &Norm { step, norm });
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
            CoordinatorMessage::Captured { stage, step, capture, to: _ } => {
                if let Some(stages) = self.captures.add(step, stage, *capture) {
                    self.tell(PipelineEvent::Captured { step, stages });
                }
            }
            CoordinatorMessage::Restored { stage } => {
                let place = place(stage);
                if self.restored.add((), place, ()).is_some() {
                    self.tell(PipelineEvent::Restored);
                }
            }
            CoordinatorMessage::ReceivedNonFinite(failure) => {
                if let Some(stage) = failure.stage() {
                    let place = place(stage);
                    let failure = failure.in_replica(replica, self.replicas.len());
                    self.received_non_finite.insert(place, failure);
                }
            }
            CoordinatorMessage::Failed(failure) => self.fail(failure.in_replica(replica, self.replicas.len())),
        }
        if !self.received_non_finite.is_empty() {
            self.check_non_finite();
        }
    }
}
