//! The transport between actors: moves a message into the receiver's mailbox, at once or through the delay line, or sends it to the receiver's rank.

use std::{sync::Arc, time::Instant};

use super::{
    address::StageAddress,
    delay::Delayed,
    exchange::CoordinatorAddress,
    sent::{Counter, count},
};
use crate::{
    Error, Failure, Origin, Phase, Result,
    transport::{CoordinatorMessage, MessageKind, StageMailbox, StageMessage, Transport},
};

/// The connections of one stage to its neighbours, its replicas and the coordinator.
pub(super) struct Wire {
    pub(super) stage: usize,
    pub(super) previous: Option<Neighbour>,
    pub(super) next: Option<Neighbour>,
    /// The same stage of other replicas.
    pub(super) replicas: Vec<(usize, StageAddress)>,
    pub(super) coordinator: CoordinatorAddress,
    pub(super) sent: Arc<Counter>,
}

/// A neighbouring stage.
pub(super) struct Neighbour {
    pub(super) address: StageAddress,
    /// The delay line for messages with tensors to this neighbour; none if the link does not delay.
    pub(super) delayed: Option<Delayed>,
}

impl Neighbour {
    /// Sends a message from stage `from`. If a delayed message cannot be delivered, the coordinator receives the failure.
    fn send(&mut self, from: usize, message: StageMessage, teller: &CoordinatorAddress) -> Result<()> {
        let header = message.header();
        let Some(delayed) = self.delayed.as_mut().filter(|_| header.kind != MessageKind::Credit) else {
            return self.address.deliver(message, None);
        };
        let (address, teller, sent) = (self.address.clone(), teller.clone(), Instant::now());
        delayed.send(header.bytes as u64, move || {
            if let Err(error) = address.deliver(message, Some(sent)) {
                let failure = Failure::new(Origin::Stage(from), Phase::Transfer, error);
                let failure = match header.micro_batch {
                    Some(micro_batch) => failure.in_step(micro_batch.step).in_micro_batch(micro_batch.index),
                    None => failure,
                };
                // If this fails, the coordinator has ended and nobody is left to report to.
                let _ = teller.report(CoordinatorMessage::Failed(failure));
            }
        })
    }
}

fn no_neighbour(stage: usize) -> Error {
    Error::Internal(format!("stage {stage} has no such neighbour"))
}

impl Transport for Wire {
    fn send(&mut self, message: StageMessage) -> Result<()> {
        let (counter, neighbour) = match &message {
            StageMessage::Activation { .. } => (&self.sent.activations, &mut self.next),
            StageMessage::Gradient { .. } => (&self.sent.gradients, &mut self.previous),
            StageMessage::Readout(_) => (&self.sent.readouts, &mut self.previous),
            StageMessage::Credit => (&self.sent.credits, &mut self.previous),
            StageMessage::Share { to, .. } => {
                count(&self.sent.shares);
                let replica = self.replicas.iter().find(|(replica, _)| replica == to);
                let (_, address) = replica.ok_or_else(|| no_neighbour(self.stage))?;
                return address.deliver(message, None);
            }
        };
        count(counter);
        match neighbour {
            Some(neighbour) => neighbour.send(self.stage, message, &self.coordinator),
            None if matches!(message, StageMessage::Credit) => self.coordinator.credit(),
            None => Err(no_neighbour(self.stage)),
        }
    }

    fn report(&mut self, report: CoordinatorMessage) -> Result<()> {
        count(&self.sent.reports);
        self.coordinator.report(report)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{TryRecvError, channel},
        time::Duration,
    };

    use actix::{Actor, Arbiter, System};
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::{
        ModelSpec, Sequential, Trainer, Unit,
        actor::{
            PipelineEvent,
            address::StageHere,
            coordinator::Coordinator,
            delay::DelayLine,
            stage::{StageActor, StageActorSettings},
        },
        device::Link,
        metrics::MailboxGauge,
        schedule::{MicroBatchId, Policy, Purpose},
        stage::Payload,
    };

    /// One unit that does nothing.
    struct Nothing;

    impl ModelSpec for Nothing {
        fn units(&self) -> Result<Vec<Unit>> {
            Ok(vec![Unit::new("", [1], |_| Ok(Sequential::default()))])
        }
    }

    #[test]
    fn a_delayed_message_that_finds_nobody_is_the_runs_failure() {
        let blueprint = Trainer::builder(Nothing).layout().unwrap().blueprints.remove(0);
        let settings = StageActorSettings {
            in_flight: 1,
            policy: Policy::default(),
            global_norm: false,
            first_step: 0,
            record: None,
            mailbox: 16,
            replica: 0,
            replicas: 1,
        };
        let waiting = MailboxGauge::new(3);
        let line = DelayLine::start().unwrap();
        let event = System::new().block_on(async {
            let (tell, told) = channel();
            let sent = Arc::<Counter>::default();
            let coordinator = Coordinator::new(vec![Vec::new()], None, 1, tell, Arc::clone(&sent), Vec::new()).start();
            let arbiter = Arbiter::new();
            let address = StageActor::start_in_arbiter(&arbiter.handle(), {
                let waiting = waiting.clone();
                move |_| StageActor::new(blueprint, settings, waiting, Arc::default())
            });
            arbiter.stop();
            arbiter.join().unwrap();
            let delayed = Some(line.direction(Link { latency: 1e-3, ..Link::IMMEDIATE }));
            let next = Some(Neighbour { address: StageHere::new(3, address, waiting).into(), delayed });
            let coordinator = CoordinatorAddress::Here(coordinator);
            let mut wire = Wire { stage: 2, previous: None, next, replicas: Vec::new(), coordinator, sent };
            let inputs = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap();
            let payload = Payload { targets: inputs.clone(), inputs: inputs.into(), total: 1.0 };
            let micro_batch = MicroBatchId { step: 5, purpose: Purpose::Train, index: 1, count: 2 };
            wire.send(StageMessage::Activation { micro_batch, payload }).unwrap();
            loop {
                match told.try_recv() {
                    Ok(event) => break event,
                    Err(TryRecvError::Empty) => actix::clock::sleep(Duration::from_millis(1)).await,
                    Err(TryRecvError::Disconnected) => panic!("the coordinator has ended"),
                }
            }
        });
        let PipelineEvent::Failed(failure) = event else { panic!("{event:?}") };
        assert_eq!(
            failure.to_string(),
            "stage 2, step 5, micro-batch 1, transfer: stage 3 has ended; build a new trainer"
        );
    }
}
