//! A stage's mailbox, as those see it who send to it.

use actix::{Addr, Handler, Message};

use super::{stage::StageActor, wire::send};
use crate::{Result, metrics::MailboxGauge};

/// The address of a stage, which counts what waits in its mailbox.
#[derive(Clone)]
pub(super) struct StageAddress {
    stage: usize,
    address: Addr<StageActor>,
    waiting: MailboxGauge,
}

impl StageAddress {
    /// That of stage `stage`; the actor takes the messages that it gets off `waiting`.
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
        // Before the stage can take it off again.
        self.waiting.sent();
        let sent = send(&self.address, &format!("stage {}", self.stage), message);
        if sent.is_err() {
            self.waiting.taken();
        }
        sent
    }
}
