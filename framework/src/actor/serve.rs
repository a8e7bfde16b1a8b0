//! The stages of a rank other than the first: built when the first rank starts a pipeline, and driven by it.

use std::{
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use actix::System;
use candle_core::Tensor;

use super::{
    exchange::{CoordinatorAddress, Exchange, Order, since_1970},
    hosted::HostedStages,
    notes::StartNote,
    pipeline::PipelineSettings,
    reader::Reader,
    shard_writer::ShardWriter,
};
use crate::{
    Dataset, Error, Failure, Origin, Phase, Result, Weights,
    error::guarded,
    ranks::Spread,
    stage::StageBlueprint,
    transport::CoordinatorMessage,
    watch::{Activity, Doing, NoMessage, Patience, Worker},
};

/// The threads beside those of the stages: what reads their data, and what writes their captures.
const OTHERS: usize = 2;

/// Opens the training set.
pub(crate) type OpenData = Box<dyn FnOnce() -> Result<Arc<dyn Dataset>>>;

/// Serves the stages of this rank to one pipeline of the first rank, until that ends. With `data`, this rank opens it and reads the examples of its replica.
///
/// # Errors
/// If the pipeline failed, the first rank is lost or has other settings, a stage of this rank is blocked, or the system has too few threads left.
pub(crate) fn serve(
    blueprints: Vec<StageBlueprint>,
    spread: &Spread,
    settings: PipelineSettings,
    data: Option<OpenData>,
) -> Result<()> {
    let rank = spread.ranks.rank();
    let own = spread.stages_of(rank);
    // One for each stage, one for what reads their data, and one for what writes their captures.
    let activities: Vec<Arc<Activity>> = (0..own.len() + OTHERS).map(|_| Arc::default()).collect();
    let (tell, orders) = channel();
    let exchange = Exchange::open(spread, activities.clone(), Some(tell));
    let order = |patience: Patience| {
        patience.receive(&orders, &activities, || true).map_err(|why| match why {
            NoMessage::Ended => Error::Ended("the first rank".to_owned()),
            NoMessage::Stalled(stalled) => {
                tracing::warn!("{}", stalled.failure);
                stalled.failure.into()
            }
        })
    };
    let coordinator = CoordinatorAddress::There { outbox: exchange.outbox().clone(), writer: None };
    let (start, values) = match order(Patience::default())? {
        Order::Start(start, values) => (start, values),
        Order::End(Some(failure)) => return Err(failure.into()),
        Order::End(None) => return Ok(()),
        Order::Lost(failure) => return Err(told(&coordinator, failure)),
    };
    let refuse = |error| told(&coordinator, Failure::new(Origin::Rank(rank), Phase::Build, error));
    agree(spread, &start).map_err(refuse)?;
    // The other ranks wait meanwhile, and see that this one does something.
    let opening = Doing::new(Origin::Data, Phase::Load);
    let open = |open: OpenData| activities[own.len()].during(opening, || guarded(open));
    let data = data.map(open).transpose().map_err(refuse)?;
    let mut running =
        ServedStages::start(blueprints, settings, start, values, &activities, &exchange, data).map_err(refuse)?;
    let patience = Patience::new(settings.stall_timeout);
    let ended = match order(patience) {
        Ok(Order::End(failure)) => failure.map_or(Ok(()), |failure| Err(failure.into())),
        Ok(Order::Lost(failure)) => Err(told(&coordinator, failure)),
        Ok(Order::Start(..)) => Err(Error::Internal("a pipeline was started twice".to_owned())),
        Err(Error::Failed(failure)) => Err(told(&coordinator, failure)),
        Err(error) => Err(error),
    };
    drop(exchange);
    let has_stalled = matches!(&ended, Err(Error::Failed(failure)) if matches!(*failure.cause, Error::Stalled(_)));
    running.end(patience, &activities, has_stalled);
    ended
}

/// Tells the first rank of a failure, which becomes that of the run, and returns it.
fn told(coordinator: &CoordinatorAddress, failure: Failure) -> Error {
    // If it cannot be told, it is lost.
    let _ = coordinator.report(CoordinatorMessage::Failed(failure.clone()));
    failure.into()
}

/// Checks what all ranks must agree in.
fn agree(spread: &Spread, start: &StartNote) -> Result<()> {
    let (mut own, mut other) = (spread.agreement.lines(), start.agreement.lines());
    loop {
        match (own.next(), other.next()) {
            (None, None) => return Ok(()),
            (own, other) if own == other => {}
            (own, other) => {
                let line = |line: Option<&str>| line.unwrap_or("nothing").to_owned();
                return Err(Error::invalid(
                    "settings of ranks",
                    format!("rank {} has {}, rank 0 has {}", spread.ranks.rank(), line(own), line(other)),
                    "start the same program with the same settings and files on all ranks",
                ));
            }
        }
    }
}

/// The actors of this rank.
struct ServedStages {
    hosted: Option<HostedStages>,
    system: System,
    thread: Worker,
    /// Reads the examples of the replica.
    reading: Option<Worker>,
    /// Writes captures of the stages.
    writing: Worker,
}

impl ServedStages {
    fn start(
        mut blueprints: Vec<StageBlueprint>,
        settings: PipelineSettings,
        start: StartNote,
        values: Vec<Tensor>,
        activities: &[Arc<Activity>],
        exchange: &Exchange,
        data: Option<Arc<dyn Dataset>>,
    ) -> Result<Self> {
        let StartNote { in_flight, first_step, record, values: names, .. } = start;
        let given: Weights = names.into_iter().zip(values).collect();
        let values = Arc::new(given);
        blueprints.iter_mut().for_each(|blueprint| blueprint.set_values(&values));
        // By the clocks of the hosts, which are set to the same time.
        let origin = |since: Duration| Instant::now().checked_sub(since_1970().saturating_sub(since));
        let record = record.map(|since| origin(since).unwrap_or_else(Instant::now));
        let settings = PipelineSettings { first_step, record, ..settings };
        let (started, ready) = channel();
        let thread = Worker::start("interlock", move || {
            let system = System::new();
            if started.send(System::current()).is_ok() {
                // Ends when the pipeline does. The exit code carries no information.
                let _ = system.run();
            }
        })?;
        let system = ready.recv().map_err(|_| Error::Ended("the thread of the actors".to_owned()))?;
        let (give, take) = channel();
        let (of_stages, hosted_exchange) = (activities.to_vec(), exchange.clone());
        system.arbiter().spawn_fn(move || {
            let hosted = HostedStages::start(blueprints, &settings, in_flight, &of_stages, Some(&hosted_exchange));
            let _ = give.send(hosted);
        });
        let hosted = take.recv().map_err(|_| Error::Ended("the thread of the actors".to_owned())).flatten();
        let hosted = hosted.inspect_err(|_| system.stop())?;
        let (outbox, addresses, rank) = (exchange.outbox().clone(), &hosted.addresses, exchange.spread().ranks.rank());
        let stages = activities.len() - OTHERS;
        let [of_reader, of_writer] = [stages, stages + 1].map(|thread| Arc::clone(&activities[thread]));
        let threads = || -> Result<_> {
            let coordinator = CoordinatorAddress::There { outbox: outbox.clone(), writer: None };
            let read = |data| Reader::start(data, addresses[0].clone(), coordinator, of_reader);
            let writer = ShardWriter::start(outbox.clone(), rank, stages, of_writer)?;
            Ok((writer, data.map(read).transpose()?))
        };
        let ((writer, writing), reading) = threads().inspect_err(|_| {
            hosted.stop();
            system.stop();
        })?;
        hosted.connect(&CoordinatorAddress::There { outbox, writer: Some(writer) }, Some(exchange));
        let reading = reading.map(|(reader, thread)| {
            exchange.read_with(reader);
            thread
        });
        exchange.deliver_to(&hosted.addresses, None);
        Ok(Self { hosted: Some(hosted), system, thread, reading, writing })
    }

    /// Stops the actors and waits for their threads, except for those that are blocked.
    fn end(&mut self, patience: Patience, activities: &[Arc<Activity>], has_stalled: bool) {
        let Some(hosted) = self.hosted.take() else { return };
        hosted.stop();
        match (has_stalled, patience.is_limited()) {
            (true, _) => {
                hosted.join_idle(activities);
                return self.system.stop();
            }
            (false, false) => hosted.join(),
            (false, true) => {
                if let Ok(mut stages) = hosted.join_on_a_thread() {
                    stages.join(patience, activities);
                }
            }
        }
        self.system.stop();
        self.thread.join(patience, activities);
        if let Some(reading) = &mut self.reading {
            reading.join(patience, activities);
        }
        self.writing.join(patience, activities);
    }
}
