//! The messages of one pipeline between ranks: sent to where a stage or the coordinator is, and given to those that are here.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::{Duration, SystemTime},
};

use actix::Addr;
use candle_core::Tensor;

use super::{
    address::{COORDINATOR, StageAddress, send},
    coordinator::Coordinator,
    messages::{CreditOfReplica, Read, Reported},
    notes::{CoordinatorNote, Header, IntoNote, Note, StageNote, StartNote},
    pipeline::PipelineSettings,
    reader::Reader,
    shard_writer::{ShardWriter, is_for_files},
};
use crate::{
    Error, Failure, Origin, Phase, Result,
    ranks::{Incoming, RankMessage, Ranks, Spread},
    stage::StageBlueprint,
    transport::CoordinatorMessage,
    watch::Activity,
};

/// Returns the time by this host's clock.
pub(super) fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The rank with the trainer, the coordinator and the strategy actor.
const FIRST: usize = 0;

/// Sends the messages of one pipeline to other ranks.
#[derive(Clone)]
pub(super) struct Outbox {
    ranks: Ranks,
    pipeline: u64,
}

impl Outbox {
    /// Sends without waiting.
    pub(super) fn send(&self, rank: usize, note: Note, tensors: &[Tensor]) -> Result<()> {
        self.ranks.send(rank, Header::message(self.pipeline, note, tensors)?)
    }

    pub(super) fn report(&self, report: CoordinatorMessage) -> Result<()> {
        let (note, tensors) = CoordinatorNote::of(report)?;
        self.send(FIRST, Note::ToCoordinator(note), &tensors)
    }
}

/// The coordinator, here or on rank 0. Stages beside it are the first replica's.
#[derive(Clone)]
pub(super) enum CoordinatorAddress {
    Here(Addr<Coordinator>),
    There {
        outbox: Outbox,
        /// Writes captures of the stages of this rank to files.
        writer: Option<ShardWriter>,
    },
}

impl CoordinatorAddress {
    /// Reports without waiting, unless it is a capture and others of the stage are still being written.
    pub(super) fn report(&self, report: CoordinatorMessage) -> Result<()> {
        match self {
            Self::Here(address) => send(address, COORDINATOR, Reported::from(report)),
            Self::There { writer: Some(writer), .. } if is_for_files(&report) => writer.write(report),
            Self::There { outbox, .. } => outbox.report(report),
        }
    }

    /// Sends the first stage's credit.
    pub(super) fn credit(&self) -> Result<()> {
        match self {
            Self::Here(address) => send(address, COORDINATOR, CreditOfReplica(0)),
            Self::There { outbox, .. } => outbox.send(FIRST, Note::ToCoordinator(CoordinatorNote::Credit), &[]),
        }
    }
}

/// A stage on another rank.
#[derive(Clone)]
pub(super) struct RemoteStage {
    pub(super) outbox: Outbox,
    pub(super) rank: usize,
}

impl RemoteStage {
    pub(super) fn send(&self, stage: usize, message: impl IntoNote) -> Result<()> {
        let (note, tensors) = message.into_note()?;
        self.outbox.send(self.rank, Note::ToStage { stage, note }, &tensors)
    }
}

/// A rank other than the first.
pub(super) struct OtherRank {
    outbox: Outbox,
    rank: usize,
}

impl OtherRank {
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Asks it to tell when all that was sent to its stages before is in their mailboxes.
    pub(super) fn fence(&self) -> Result<()> {
        self.outbox.send(self.rank, Note::Fence, &[])
    }
}

/// What the thread that serves the stages of a rank other than the first is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Build the stages.
    Start(StartNote, Vec<Tensor>),
    /// The pipeline has ended; with the failure, if it failed.
    End(Option<Failure>),
    /// Another rank is lost, or what it sends cannot be read.
    Lost(Failure),
}

/// The exchange of messages of one pipeline with other ranks. A clone is another handle; the last one ends it.
#[derive(Clone)]
pub(super) struct Exchange {
    inbox: Arc<Inbox>,
    _open: Arc<OpenExchange>,
}

/// Ends an exchange: what comes is kept for the next one.
struct OpenExchange(Ranks);

impl Drop for OpenExchange {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Gives the messages that come to the actors that are here.
struct Inbox {
    spread: Spread,
    outbox: Outbox,
    here: Mutex<ActorsHere>,
}

/// The actors that are here.
struct ActorsHere {
    stages: Vec<Option<StageAddress>>,
    coordinator: Option<Addr<Coordinator>>,
    orders: Option<Sender<Order>>,
    /// Present if this rank reads the examples of its replica.
    reader: Option<Reader>,
    /// What came before the actors were here, and from which rank; none once they are.
    early: Option<Vec<(usize, Note, Vec<Tensor>)>>,
    /// The failure that came before the coordinator was here.
    failure: Option<Failure>,
}

impl Exchange {
    /// Begins to take messages of the next pipeline. `activities` says what the stages of this rank do.
    pub(super) fn open(spread: &Spread, activities: Vec<Arc<Activity>>, orders: Option<Sender<Order>>) -> Self {
        let outbox = Outbox { ranks: spread.ranks.clone(), pipeline: spread.ranks.next_pipeline() };
        let here = ActorsHere {
            stages: vec![None; spread.homes.len()],
            coordinator: None,
            orders,
            reader: None,
            early: Some(Vec::new()),
            failure: None,
        };
        let inbox = Arc::new(Inbox { spread: spread.clone(), outbox, here: Mutex::new(here) });
        let taker = Arc::clone(&inbox);
        spread.ranks.open(activities, move |incoming| taker.take(incoming));
        Self { inbox, _open: Arc::new(OpenExchange(spread.ranks.clone())) }
    }

    /// Sends to other ranks.
    pub(super) fn outbox(&self) -> &Outbox {
        &self.inbox.outbox
    }

    pub(super) fn spread(&self) -> &Spread {
        &self.inbox.spread
    }

    /// Returns the address of a stage of a replica on another rank.
    pub(super) fn there(&self, replica: usize, stage: usize) -> StageAddress {
        let rank = self.spread().rank_of(replica, stage);
        StageAddress::there(stage, RemoteStage { outbox: self.outbox().clone(), rank })
    }

    /// Returns the addresses of all stages of the replicas that this process has none of.
    pub(super) fn other_replicas(&self) -> impl Iterator<Item = (usize, Vec<StageAddress>)> {
        let spread = self.spread();
        let others = (0..spread.replicas).filter(|&replica| replica != spread.replica());
        others.map(|replica| (replica, (0..spread.homes.len()).map(|stage| self.there(replica, stage)).collect()))
    }

    /// Returns the other ranks.
    pub(super) fn others(&self) -> Vec<OtherRank> {
        (1..self.spread().ranks.size()).map(|rank| OtherRank { outbox: self.outbox().clone(), rank }).collect()
    }

    /// Tells the other ranks to build their stages, with their initial values.
    pub(super) fn start_others(
        &self,
        blueprints: &[StageBlueprint],
        in_flight: usize,
        settings: &PipelineSettings,
    ) -> Result<()> {
        for rank in 1..self.spread().ranks.size() {
            let own = self.spread().stages_of(rank).into_iter().flat_map(|stage| blueprints[stage].own_values());
            let (values, tensors): (_, Vec<_>) = own.unzip();
            let start = StartNote {
                agreement: self.spread().agreement.clone(),
                in_flight,
                first_step: settings.first_step,
                record: settings.record.map(|origin| since_1970().saturating_sub(origin.elapsed())),
                values,
            };
            self.outbox().send(rank, Note::Start(start), &tensors)?;
        }
        Ok(())
    }

    /// Lets this rank read the examples of its replica. Call it before [`Self::deliver_to`].
    pub(super) fn read_with(&self, reader: Reader) {
        self.inbox.lock().reader = Some(reader);
    }

    /// Gives what comes, and has come, to these actors.
    pub(super) fn deliver_to(&self, stages: &[StageAddress], coordinator: Option<&Addr<Coordinator>>) {
        let mut here = self.inbox.lock();
        for address in stages.iter().filter(|address| self.spread().is_here(address.stage())) {
            here.stages[address.stage()] = Some(address.clone());
        }
        here.coordinator = coordinator.cloned();
        if let Some(failure) = here.failure.take() {
            here.fail(failure);
        }
        for (from, note, tensors) in here.early.take().into_iter().flatten() {
            self.inbox.give(&here, from, note, tensors);
        }
    }

    /// Tells the other ranks that the pipeline has ended, if this is the first.
    pub(super) fn end(&self, failure: Option<&Failure>) {
        if self.spread().ranks.rank() == FIRST {
            for rank in 1..self.spread().ranks.size() {
                // One that cannot be told is lost or has ended.
                let _ = self.outbox().send(rank, Note::End(failure.map(Into::into)), &[]);
            }
        }
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, ActorsHere> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what comes. Returns whether the pipeline goes on.
    fn take(&self, incoming: Incoming) -> bool {
        let mut here = self.lock();
        match incoming {
            Incoming::Message { from, message } => match self.read(message) {
                Ok(Some((note, tensors))) => match (&mut here.early, note) {
                    (_, Note::Start(start)) => here.order(Order::Start(start, tensors)),
                    (_, Note::End(failure)) => {
                        here.order(Order::End(failure.map(Into::into)));
                        return false;
                    }
                    (Some(early), note) => early.push((from, note, tensors)),
                    (None, note) => self.give(&here, from, note, tensors),
                },
                Ok(None) => {}
                Err(error) => here.fail(Failure::new(Origin::Rank(from), Phase::Transfer, error)),
            },
            Incoming::Lost { rank, cause } => {
                let stages = self.spread.stages_of(rank);
                let list = stages.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                let replica = match self.spread.replicas {
                    1 => String::new(),
                    _ => format!(" of replica {}", self.spread.replica_of(rank)),
                };
                let lost = match stages.len() {
                    0 => String::new(),
                    1 => format!("; stage {list}{replica} is lost with it"),
                    _ => format!("; stages {list}{replica} are lost with it"),
                };
                let text = format!("{cause}{lost}: look at its host, and resume from the last checkpoint");
                here.fail(Failure::new(Origin::Rank(rank), Phase::Transfer, Error::RankLost(text)));
            }
        }
        true
    }

    /// Reads a message; none if it belongs to an earlier pipeline.
    fn read(&self, message: RankMessage) -> Result<Option<(Note, Vec<Tensor>)>> {
        let (header, tensors) = Header::read(message)?;
        Ok((header.pipeline == self.outbox.pipeline).then_some((header.note, tensors)))
    }

    fn give(&self, here: &ActorsHere, from: usize, note: Note, tensors: Vec<Tensor>) {
        let given = match note {
            Note::ToStage { stage, note } => self.give_stage(here, stage, note, tensors),
            Note::ToCoordinator(note) => self
                .give_coordinator(here, from, note, tensors)
                .map_err(|cause| Failure::new(Origin::Coordinator, Phase::Transfer, cause)),
            Note::Fence => {
                let told = self.outbox.send(FIRST, Note::ToCoordinator(CoordinatorNote::Fenced), &[]);
                told.map_err(|cause| Failure::new(Origin::Coordinator, Phase::Transfer, cause))
            }
            Note::Start(_) | Note::End(_) => Ok(()),
        };
        let Err(failure) = given else { return };
        let report = CoordinatorMessage::Failed(failure);
        let told = match &here.coordinator {
            Some(coordinator) => send(coordinator, COORDINATOR, Reported::from(report)),
            None => self.outbox.report(report),
        };
        if let Err(error) = told {
            tracing::warn!("{error}");
        }
    }

    fn give_stage(
        &self,
        here: &ActorsHere,
        stage: usize,
        note: StageNote,
        tensors: Vec<Tensor>,
    ) -> Result<(), Failure> {
        let given = match (here.stages.get(stage), note, &here.reader) {
            (_, StageNote::Read { micro_batch, examples, total }, Some(reader)) => {
                reader.read(Read { micro_batch, examples, total });
                Ok(())
            }
            (_, StageNote::GiveRead, Some(reader)) => reader.give(),
            (Some(Some(address)), note, _) => note.deliver(tensors, address),
            _ => Err(Error::Internal(format!("a message for stage {stage} came to rank {}", self.spread.ranks.rank()))),
        };
        given.map_err(|cause| Failure::new(Origin::Stage(stage), Phase::Transfer, cause))
    }

    fn give_coordinator(
        &self,
        here: &ActorsHere,
        from: usize,
        note: CoordinatorNote,
        tensors: Vec<Tensor>,
    ) -> Result<()> {
        let Some(coordinator) = &here.coordinator else {
            return Err(Error::Internal("a report came to a rank without the coordinator".to_owned()));
        };
        note.deliver(self.spread.replica_of(from), tensors, coordinator)
    }
}

impl ActorsHere {
    /// Makes a failure that of the run.
    fn fail(&mut self, failure: Failure) {
        match (&self.coordinator, &self.orders) {
            (Some(coordinator), _) => {
                // If this fails, the coordinator has ended and nobody is left to report to.
                let _ = send(coordinator, COORDINATOR, Reported::from(CoordinatorMessage::Failed(failure)));
            }
            (None, Some(_)) => self.order(Order::Lost(failure)),
            (None, None) => self.failure = Some(failure),
        }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // Who takes no orders any more has ended.
            let _ = orders.send(order);
        }
    }
}
