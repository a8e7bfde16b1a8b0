//! The address of a stage's mailbox, for those who send to it.

use std::time::Instant;

use actix::{Actor, Addr, Handler, Message, dev::ToEnvelope, prelude::SendError};

use super::{
    exchange::RemoteStage,
    messages::{Activation, Connect, Credit, Gradient, Readout, Shared, TransferTimes},
    notes::IntoNote,
    stage::StageActor,
};
use crate::{
    Error, Result,
    metrics::MailboxGauge,
    transport::{StageMailbox, StageMessage},
};

/// The name of the coordinator, for errors.
pub(super) const COORDINATOR: &str = "the coordinator";

/// Sends without waiting. A full or closed mailbox is an error, never a silent loss.
pub(super) fn send<A, M>(to: &Addr<A>, name: &str, message: M) -> Result<()>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    to.try_send(message).map_err(|error| undelivered(error, name))
}

/// Returns why a message to the actor `name` was not taken.
pub(super) fn undelivered<M>(error: SendError<M>, name: &str) -> Error {
    match error {
        SendError::Full(_) => Error::MailboxFull(name.to_owned()),
        SendError::Closed(_) => Error::Ended(name.to_owned()),
    }
}

/// The address of a stage.
#[derive(Clone)]
pub(super) struct StageAddress {
    stage: usize,
    place: StagePlace,
}

#[derive(Clone)]
enum StagePlace {
    Here(StageHere),
    There(RemoteStage),
}

/// A stage in this process; counts the messages in its mailbox.
#[derive(Clone)]
pub(super) struct StageHere {
    stage: usize,
    address: Addr<StageActor>,
    waiting: MailboxGauge,
}

impl StageHere {
    /// Stage `stage`. Sending counts `waiting` up; the actor counts it down when it takes a message.
    pub(super) fn new(stage: usize, address: Addr<StageActor>, waiting: MailboxGauge) -> Self {
        Self { stage, address, waiting }
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// If the mailbox is full or closed.
    pub(super) fn send<M>(&self, message: M) -> Result<()>
    where
        M: Message<Result = ()> + Send + 'static,
        StageActor: Handler<M>,
    {
        // Counted first, because the stage may count the message down before `send` returns.
        self.waiting.sent();
        let sent = send(&self.address, &format!("stage {}", self.stage), message);
        if sent.is_err() {
            self.waiting.taken();
        }
        sent
    }
}

impl From<StageHere> for StageAddress {
    fn from(here: StageHere) -> Self {
        Self { stage: here.stage, place: StagePlace::Here(here) }
    }
}

impl StageAddress {
    /// The address of a stage on another rank.
    pub(super) fn there(stage: usize, remote: RemoteStage) -> Self {
        Self { stage, place: StagePlace::There(remote) }
    }

    pub(super) fn stage(&self) -> usize {
        self.stage
    }

    /// Gives a stage of this process its connections.
    ///
    /// # Errors
    /// As [`Self::send`], or if it is on another rank.
    pub(super) fn connect(&self, connections: Connect) -> Result<()> {
        match &self.place {
            StagePlace::Here(here) => here.send(connections),
            StagePlace::There(_) => Err(Error::Internal(format!("stage {} is on another rank", self.stage))),
        }
    }

    /// Sends something to the other rank on which the stage is.
    ///
    /// # Errors
    /// If the stage is in this process, or the other rank cannot be sent to.
    pub(super) fn send_to_rank(&self, message: impl IntoNote) -> Result<()> {
        match &self.place {
            StagePlace::Here(_) => Err(Error::Internal(format!("stage {} is on this rank", self.stage))),
            StagePlace::There(remote) => remote.send(self.stage, message),
        }
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// If the mailbox is full or closed, or the other rank cannot be sent to.
    pub(super) fn send<M>(&self, message: M) -> Result<()>
    where
        M: Message<Result = ()> + IntoNote + Send + 'static,
        StageActor: Handler<M>,
    {
        match &self.place {
            StagePlace::Here(here) => here.send(message),
            StagePlace::There(remote) => remote.send(self.stage, message),
        }
    }
}

impl StageMailbox for StageAddress {
    fn deliver(&self, message: StageMessage, sent: Option<Instant>) -> Result<()> {
        let arrived = Instant::now();
        let times = TransferTimes { sent: sent.unwrap_or(arrived), arrived };
        match message {
            StageMessage::Activation { micro_batch, payload } => self.send(Activation { micro_batch, payload, times }),
            StageMessage::Gradient { micro_batch, loss, gradient } => {
                self.send(Gradient { micro_batch, loss, tensors: gradient, times })
            }
            StageMessage::Readout(version) => self.send(Readout { version }),
            StageMessage::Credit => self.send(Credit),
            StageMessage::Share { share, .. } => self.send(Shared(share)),
        }
    }
}
