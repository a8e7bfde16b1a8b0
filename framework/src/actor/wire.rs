//! The transport between actors of one process: a message is moved into the receiver's mailbox, at once or through the delay line.

use std::{sync::Arc, time::Instant};

use actix::{Actor, Addr, Handler, Message, dev::ToEnvelope, prelude::SendError};

use super::{
    address::StageAddress,
    coordinator::Coordinator,
    delay::Delayed,
    messages::{Activation, Credit, Delayable, Gradient, Reported, TransferTimes},
    sent::{Counter, count},
    stage::StageActor,
};
use crate::{
    Activation as Tensors, Error, Failure, Origin, Phase, Result,
    schedule::MicroBatchId,
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
    to.try_send(message).map_err(|error| match error {
        SendError::Full(_) => Error::MailboxFull(name.to_owned()),
        SendError::Closed(_) => Error::Ended(name.to_owned()),
    })
}

/// The connections of one stage in process.
pub(super) struct Wire {
    pub(super) stage: usize,
    pub(super) previous: Option<Neighbour>,
    pub(super) next: Option<Neighbour>,
    pub(super) coordinator: Addr<Coordinator>,
    pub(super) sent: Arc<Counter>,
}

/// A neighbouring stage.
pub(super) struct Neighbour {
    pub(super) address: StageAddress,
    /// What holds back the activations or gradients that go there; none where nothing does.
    pub(super) delayed: Option<Delayed>,
}

impl Neighbour {
    /// Sends tensors of so many bytes, which belong to `micro_batch`, from stage `from`. Where that fails only when they arrive, the coordinator
    /// is told.
    fn send<M>(
        &mut self,
        from: usize,
        micro_batch: MicroBatchId,
        bytes: usize,
        mut message: M,
        teller: &Addr<Coordinator>,
    ) -> Result<()>
    where
        M: Delayable,
        StageActor: Handler<M>,
    {
        let Some(delayed) = &mut self.delayed else { return self.address.send(message) };
        let (address, teller) = (self.address.clone(), teller.clone());
        delayed.send(bytes as u64, move || {
            message.times().arrived = Instant::now();
            if let Err(error) = address.send(message) {
                let failure = Failure::new(Origin::Stage(from), Phase::Transfer, error)
                    .in_step(micro_batch.step)
                    .in_micro_batch(micro_batch.index);
                // If this fails the coordinator has ended, and nobody is left to report to.
                let _ = send(&teller, "the coordinator", Reported(Report::Failed(failure)));
            }
        })
    }
}

fn no_neighbour(stage: usize) -> Error {
    Error::Internal(format!("stage {stage} has no such neighbour"))
}

impl Transport for Wire {
    fn send_activation(&mut self, micro_batch: MicroBatchId, payload: Payload) -> Result<()> {
        let next = self.next.as_mut().ok_or_else(|| no_neighbour(self.stage))?;
        count(&self.sent.activations);
        next.send(
            self.stage,
            micro_batch,
            payload.bytes(),
            Activation { micro_batch, payload, times: TransferTimes::now() },
            &self.coordinator,
        )
    }

    fn send_gradient(&mut self, micro_batch: MicroBatchId, loss: usize, tensors: Tensors) -> Result<()> {
        let previous = self.previous.as_mut().ok_or_else(|| no_neighbour(self.stage))?;
        count(&self.sent.gradients);
        previous.send(
            self.stage,
            micro_batch,
            tensors.bytes(),
            Gradient { micro_batch, loss, tensors, times: TransferTimes::now() },
            &self.coordinator,
        )
    }

    fn send_credit(&mut self) -> Result<()> {
        count(&self.sent.credits);
        match &self.previous {
            Some(previous) => previous.address.send(Credit),
            None => send(&self.coordinator, "the coordinator", Credit),
        }
    }

    fn report(&mut self, report: Report) -> Result<()> {
        count(&self.sent.reports);
        send(&self.coordinator, "the coordinator", Reported(report))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{TryRecvError, channel},
        time::Duration,
    };

    use actix::{Arbiter, System};
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::{
        Link, ModelSpec, Sequential, Trainer, Unit,
        actor::{PipelineEvent, delay::DelayLine, stage::Settings},
        metrics::MailboxGauge,
        schedule::{Policy, Purpose},
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
        let settings = Settings {
            in_flight: 1,
            policy: Policy::default(),
            global_norm: false,
            first_step: 0,
            record: None,
            mailbox: 16,
        };
        let waiting = MailboxGauge::new(3);
        let line = DelayLine::start().unwrap();
        let event = System::new().block_on(async {
            let (tell, told) = channel();
            let sent = Arc::<Counter>::default();
            let coordinator = Coordinator::new(Vec::new(), None, 1, tell, Arc::clone(&sent)).start();
            let arbiter = Arbiter::new();
            let address = StageActor::start_in_arbiter(&arbiter.handle(), {
                let waiting = waiting.clone();
                move |_| StageActor::new(blueprint, settings, waiting)
            });
            arbiter.stop();
            arbiter.join().unwrap();
            let delayed = Some(line.direction(Link { latency: 1e-3, ..Link::IMMEDIATE }));
            let next = Some(Neighbour { address: StageAddress::new(3, address, waiting), delayed });
            let mut wire = Wire { stage: 2, previous: None, next, coordinator, sent };
            let inputs = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap();
            let payload = Payload { targets: inputs.clone(), inputs: inputs.into(), total: 1.0 };
            wire.send_activation(MicroBatchId { step: 5, purpose: Purpose::Train, index: 1, count: 2 }, payload)
                .unwrap();
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
