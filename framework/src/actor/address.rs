//! The address of a stage's mailbox, for those who send to it.

use std::time::Instant;

use actix::{Addr, Handler, Message};

use super::{
    messages::{Activation, Credit, Gradient, TransferTimes},
    stage::StageActor,
    wire::send,
};
use crate::{
    Result,
    metrics::MailboxGauge,
    transport::{Inbox, StageMessage},
};

/// The address of a stage; counts the messages in its mailbox.
#[derive(Clone)]
pub(super) struct StageAddress {
    stage: usize,
    address: Addr<StageActor>,
    waiting: MailboxGauge,
}

impl StageAddress {
    /// The address of stage `stage`. Sending counts `waiting` up; the actor counts it down when it takes a message.
    pub(super) fn new(stage: usize, address: Addr<StageActor>, waiting: MailboxGauge) -> Self {
        Self { stage, address, waiting }
    }

    pub(super) fn stage(&self) -> usize {
        self.stage
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

impl Inbox for StageAddress {
    fn deliver(&self, message: StageMessage, sent: Option<Instant>) -> Result<()> {
        let arrived = Instant::now();
        let times = TransferTimes { sent: sent.unwrap_or(arrived), arrived };
        match message {
            StageMessage::Activation { micro_batch, payload } => self.send(Activation { micro_batch, payload, times }),
            StageMessage::Gradient { micro_batch, loss, gradient } => {
                self.send(Gradient { micro_batch, loss, tensors: gradient, times })
            }
            StageMessage::Credit => self.send(Credit),
        }
    }
}
