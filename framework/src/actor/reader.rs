//! The thread of a rank that reads the examples of its replica for the first stage.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
};

use super::{
    address::StageAddress,
    exchange::CoordinatorAddress,
    messages::{Activation, Read, TransferTimes},
};
use crate::{
    Batch, Dataset, Error, Failure, Origin, Phase,
    schedule::MicroBatchId,
    stage::Payload,
    transport::CoordinatorMessage,
    watch::{Activity, Doing, Worker},
};

/// Reads examples and gives them to the first stage, in order.
pub(super) struct Reader {
    orders: Sender<Read>,
}

impl Reader {
    /// Starts the thread. It ends when the reader is dropped, or when something cannot be read, which the coordinator is told.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(super) fn start(
        data: Arc<dyn Dataset>,
        first_stage: StageAddress,
        coordinator: CoordinatorAddress,
        activity: Arc<Activity>,
    ) -> Result<(Self, Worker), Error> {
        let (orders, taken) = channel::<Read>();
        let thread = Worker::start("interlock-data", move || {
            for order in taken {
                let MicroBatchId { step, index, .. } = order.micro_batch;
                let doing = Doing::new(Origin::Data, Phase::Load).in_step(step);
                let read = || activity.during(doing, || order.examples.read(&*data));
                let batch = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| Err(Error::panicked(&*panic)));
                let given = batch.and_then(|Batch { inputs, targets }| {
                    let payload = Payload { inputs, targets, total: order.total };
                    let times = TransferTimes::now();
                    first_stage.send(Activation { micro_batch: order.micro_batch, payload, times })
                });
                if let Err(cause) = given {
                    let failure = Failure::new(Origin::Data, Phase::Load, cause).in_step(step).in_micro_batch(index);
                    // If it cannot be told, it is lost, or the pipeline has ended.
                    let _ = coordinator.report(CoordinatorMessage::Failed(failure));
                    return;
                }
            }
        })?;
        Ok((Self { orders }, thread))
    }

    /// Lets the thread read these examples next, without waiting.
    pub(super) fn read(&self, order: Read) {
        // If the thread has ended, the coordinator has been told why.
        let _ = self.orders.send(order);
    }
}
