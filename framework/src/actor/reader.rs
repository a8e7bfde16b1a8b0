//! The thread of a rank that reads the examples of its replica for the first stage, ahead of the stage's credits.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Sender, channel},
    },
};

use super::{
    address::StageAddress,
    exchange::CoordinatorAddress,
    messages::{Activation, Read, TransferTimes},
};
use crate::{
    Batch, Dataset, Failure, Origin, Phase, Result,
    error::guarded,
    schedule::MicroBatchId,
    stage::Payload,
    transport::CoordinatorMessage,
    watch::{Activity, Doing, Worker},
};

/// Reads examples in order, and gives each micro-batch to the first stage when the coordinator asks for it.
pub(super) struct Reader {
    orders: Sender<Read>,
    shelf: Arc<Shelf>,
}

/// Where micro-batches wait that have been read and not asked for, or requests for some that have not been read.
struct Shelf {
    first_stage: StageAddress,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    read: VecDeque<(MicroBatchId, Payload)>,
    asked: usize,
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
    ) -> Result<(Self, Worker)> {
        let shelf = Arc::new(Shelf { first_stage, waiting: Mutex::default() });
        let (orders, taken) = channel::<Read>();
        let filled = Arc::clone(&shelf);
        let thread = Worker::start("interlock-data", move || {
            for order in taken {
                let MicroBatchId { step, index, .. } = order.micro_batch;
                let doing = Doing::new(Origin::Data, Phase::Load).in_step(step);
                let read = || activity.during(doing, || order.examples.read(&*data));
                let unread = |cause| Failure::new(Origin::Data, Phase::Load, cause);
                let given = guarded(read).map_err(unread).and_then(|Batch { inputs, targets }| {
                    let payload = Payload { inputs, targets, total: order.total };
                    filled.put(order.micro_batch, payload).map_err(|cause| {
                        Failure::new(Origin::Stage(filled.first_stage.stage()), Phase::Transfer, cause)
                    })
                });
                if let Err(failure) = given {
                    // If it cannot be told, it is lost, or the pipeline has ended.
                    let told = CoordinatorMessage::Failed(failure.in_step(step).in_micro_batch(index));
                    let _ = coordinator.report(told);
                    return;
                }
            }
        })?;
        Ok((Self { orders, shelf }, thread))
    }

    /// Lets the thread read these examples next, without waiting.
    pub(super) fn read(&self, order: Read) {
        // If the thread has ended, the coordinator has been told why.
        let _ = self.orders.send(order);
    }

    /// Gives the first stage the next micro-batch, as soon as it has been read.
    ///
    /// # Errors
    /// If the stage's mailbox is full or closed.
    pub(super) fn give(&self) -> Result<()> {
        self.shelf.ask()
    }
}

impl Shelf {
    fn put(&self, micro_batch: MicroBatchId, payload: Payload) -> Result<()> {
        self.change(|waiting| waiting.read.push_back((micro_batch, payload)))
    }

    fn ask(&self) -> Result<()> {
        self.change(|waiting| waiting.asked += 1)
    }

    /// Changes what waits, and gives the stage what has been read and asked for. Under the lock, so that micro-batches stay in order.
    fn change(&self, change: impl FnOnce(&mut Waiting)) -> Result<()> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut waiting);
        while waiting.asked > 0
            && let Some((micro_batch, payload)) = waiting.read.pop_front()
        {
            waiting.asked -= 1;
            self.first_stage.send(Activation { micro_batch, payload, times: TransferTimes::now() })?;
        }
        Ok(())
    }
}
