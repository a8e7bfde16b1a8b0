//! The transport between actors of one process: a message is moved into the receiver's mailbox.

use actix::{Actor, Addr, Handler, Message, dev::ToEnvelope, prelude::SendError};

use super::{
    coordinator::Coordinator,
    messages::{Activation, Credit, Gradient, Told},
    stage::StageActor,
};
use crate::{
    Activation as Tensors, Error, Result,
    schedule::Ticket,
    stage::Payload,
    transport::{Report, Transport},
};

/// Sends without waiting; a full or closed mailbox is an error, never a silent loss.
pub(super) fn send<A, M>(to: &Addr<A>, name: &str, message: M) -> Result<()>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    to.try_send(message).map_err(|error| {
        Error::Ended(match error {
            SendError::Full(_) => format!("the mailbox of {name} is full, which its credits rule out"),
            SendError::Closed(_) => format!("{name} no longer takes messages"),
        })
    })
}

/// The connections of one stage in process.
pub(super) struct Wire {
    pub(super) stage: usize,
    pub(super) previous: Option<Addr<StageActor>>,
    pub(super) next: Option<Addr<StageActor>>,
    pub(super) coordinator: Addr<Coordinator>,
}

impl Wire {
    fn neighbour<'a>(&self, to: Option<&'a Addr<StageActor>>) -> Result<&'a Addr<StageActor>> {
        to.ok_or_else(|| Error::Ended(format!("stage {} has no such neighbour", self.stage)))
    }
}

impl Transport for Wire {
    fn send_activation(&mut self, ticket: Ticket, payload: Payload) -> Result<()> {
        let to = self.neighbour(self.next.as_ref())?;
        send(to, &format!("stage {}", self.stage + 1), Activation { ticket, payload })
    }

    fn send_gradient(&mut self, ticket: Ticket, loss: usize, tensors: Tensors) -> Result<()> {
        let to = self.neighbour(self.previous.as_ref())?;
        send(to, &format!("stage {}", self.stage.wrapping_sub(1)), Gradient { ticket, loss, tensors })
    }

    fn send_credit(&mut self) -> Result<()> {
        match &self.previous {
            Some(previous) => send(previous, &format!("stage {}", self.stage - 1), Credit),
            None => send(&self.coordinator, "the coordinator", Credit),
        }
    }

    fn report(&mut self, report: Report) -> Result<()> {
        send(&self.coordinator, "the coordinator", Told(report))
    }
}
