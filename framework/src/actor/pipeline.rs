//! The handle on the actors.

use std::{
    cell::RefCell,
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use actix::{Actor, Addr, Handler, Message, System};
use serde_json::Value;

use super::{
    address::{COORDINATOR, send},
    coordinator::Coordinator,
    delay::DelayLine,
    exchange::{CoordinatorAddress, Exchange},
    hosted::HostedStages,
    messages::{
        Begin, Broadcast, Capture, Feed, PipelineEvent, ReadStrategyState, RestoreStages, TakeSnapshot, TakeState,
        Validated,
    },
    sent::{Counter, Sent},
    strategy::{StartStages, StrategyActor},
};
use crate::{
    Error, Failure, Origin, Phase, Result,
    model::Weights,
    ranks::Spread,
    schedule::{Policy, readout::check_refresh},
    simulator,
    stage::{CaptureTo, StageBlueprint, StageCapture, StageState},
    strategy::Plans,
    transport::Built,
    watch::{Activity, NoMessage, Patience, Worker},
};

/// The settings of a pipeline. `in_flight`, `policy` and `record` change how long a step takes, never its result.
#[derive(Clone, Copy, Debug)]
pub struct PipelineSettings {
    /// The most micro-batches that a training step has.
    pub micro_batches: usize,
    /// Credits of each boundary: activations sent whose receiver has not yet freed its saved copy. Default: the fewest that cost the schedule no
    /// time.
    pub in_flight: Option<usize>,
    /// The order of a stage's actions when several are possible.
    pub policy: Policy,
    /// Whether updates wait for the norm of all stages' gradients.
    pub global_norm: bool,
    /// The first step.
    pub first_step: u64,
    /// The moment from which recorded times count; none if nothing is recorded.
    pub record: Option<Instant>,
    /// How long a stage or the strategy may do one thing before the pipeline fails; none: for ever.
    pub stall_timeout: Option<Duration>,
}

/// A running pipeline of stage actors.
///
/// Dropping it stops the actors and waits for their threads; a stage in the middle of a computation finishes that computation. One that takes longer
/// than [`PipelineSettings::stall_timeout`] is not waited for.
pub struct Pipeline {
    /// None after [`Self::end`].
    running: Option<Running>,
    patience: Patience,
    sent: Vec<Arc<Counter>>,
    in_flight: usize,
    units_per_stage: Vec<usize>,
    /// Events that came while a call waited for an answer of its own.
    set_aside: RefCell<VecDeque<PipelineEvent>>,
    /// The failure that ended the pipeline: there will be no further event.
    failure: RefCell<Option<Failure>>,
    built: Vec<Built>,
}

/// The actors, their events and their threads.
struct Running {
    actors: Actors,
    events: Receiver<PipelineEvent>,
    system: System,
    /// The thread of the coordinator and the strategy actor.
    thread: Worker,
}

/// The actors that the handle sends to, and what belongs to the stages.
struct Actors {
    coordinator: Addr<Coordinator>,
    strategy: Addr<StrategyActor>,
    hosted: HostedStages,
    /// What each stage of this process does, and the strategy.
    activities: Vec<Arc<Activity>>,
    /// Present if some stages are on other ranks.
    exchange: Option<Exchange>,
}

impl Pipeline {
    /// Starts an actor for each blueprint, each on a thread of its own, and waits until all are built.
    ///
    /// # Errors
    /// If the plans are for another number of stages or do not decide the first step, a device's link is invalid, a thread cannot be started, or a
    /// stage cannot be built. The failure then names the stage and the cause.
    pub fn start(blueprints: Vec<StageBlueprint>, plans: impl Into<Plans>, settings: PipelineSettings) -> Result<Self> {
        Self::start_on(blueprints, plans, settings, None)
    }

    /// As [`Self::start`], with the stages of other ranks there: each of them calls [`serve`](super::serve).
    ///
    /// # Errors
    /// As [`Self::start`], or if a rank is lost or has been started with other settings.
    pub(crate) fn start_on(
        blueprints: Vec<StageBlueprint>,
        plans: impl Into<Plans>,
        settings: PipelineSettings,
        spread: Option<Spread>,
    ) -> Result<Self> {
        let plans = plans.into();
        if plans.stages() != blueprints.len() {
            return Err(Error::invalid(
                "gradient plan",
                format!("it is for {} stages", plans.stages()),
                format!("there are {}", blueprints.len()),
            ));
        }
        if plans.known_until() <= settings.first_step {
            return Err(Error::invalid(
                "strategy",
                format!("its plans are known up to step {}", plans.known_until()),
                format!("known_until must be beyond the first step, {}", settings.first_step),
            ));
        }
        let in_flight =
            simulator::credits(settings.in_flight, plans.schedule(), settings.micro_batches, settings.policy)?;
        let sharing = blueprints.iter().find_map(|stage| Some((stage.index, stage.shared_refresh()?)));
        if let Some((stage, refresh)) = sharing {
            check_refresh(refresh, stage, blueprints.len(), in_flight, settings.micro_batches)?;
        }
        let units_per_stage = blueprints.iter().map(|stage| stage.units().len()).collect();
        let (tell, events) = channel();
        let (started, ready) = channel();
        let thread = Worker::start("interlock", move || {
            let system = System::new();
            let launched =
                system.block_on(async { launch(blueprints, plans, settings, in_flight, tell, spread.as_ref()) });
            let is_whole = launched.is_ok();
            if started.send((System::current(), launched)).is_ok() && is_whole {
                // Ends when the handle is dropped, which stops the system. The exit code carries no information.
                let _ = system.run();
            }
        })?;
        let (system, launched) = ready.recv().map_err(|_| Error::Ended("the pipeline's thread".to_owned()))?;
        let (actors, sent) = launched?;
        let mut pipeline = Self {
            running: Some(Running { actors, events, system, thread }),
            patience: Patience::new(settings.stall_timeout),
            sent,
            in_flight,
            units_per_stage,
            set_aside: RefCell::default(),
            failure: RefCell::new(None),
            built: Vec::new(),
        };
        match pipeline.next()? {
            PipelineEvent::Ready(built) => {
                let mut names = HashSet::new();
                if let Some(twice) = built.iter().flat_map(|stage| &stage.names).find(|name| !names.insert(*name)) {
                    return Err(Error::invalid(
                        "model",
                        format!("two stages have a parameter called {twice}"),
                        "give every unit a name of its own",
                    ));
                }
                pipeline.built = built;
            }
            other => return Err(Error::Internal(format!("{other:?} came before the stages were built"))),
        }
        Ok(pipeline)
    }

    /// Returns a description of each stage.
    pub fn built(&self) -> &[Built] {
        &self.built
    }

    /// Returns the number of credits of each boundary: the most activations sent and not yet freed.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns whether some stages are on other ranks.
    pub(crate) fn has_other_ranks(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.actors.exchange.is_some())
    }

    /// Returns the number of messages that the actors of this process have sent since the start.
    pub fn sent(&self) -> Sent {
        self.sent.iter().fold(Sent::default(), |sum, counter| sum + counter.read())
    }

    /// Hands a batch over, to be fed as credits allow. It never waits.
    ///
    /// # Errors
    /// If the pipeline has failed or ended.
    pub fn feed(&self, feed: Feed) -> Result<()> {
        self.send(feed)
    }

    fn send<M>(&self, message: M) -> Result<()>
    where
        M: Message<Result = ()> + Send + 'static,
        Coordinator: Handler<M>,
    {
        send(&self.running()?.actors.coordinator, COORDINATOR, message)
    }

    /// Returns the actors.
    ///
    /// # Errors
    /// If the pipeline has failed or ended.
    fn running(&self) -> Result<&Running> {
        match (&*self.failure.borrow(), &self.running) {
            (Some(failure), _) => Err(Error::Failed(failure.clone())),
            (None, Some(running)) => Ok(running),
            (None, None) => Err(Error::Ended("the pipeline".to_owned())),
        }
    }

    /// Returns the next event; waits for it.
    ///
    /// # Errors
    /// If the run has failed ([`Error::Failed`], the same from then on), or the actors' threads have ended.
    pub fn next(&self) -> Result<PipelineEvent> {
        let set_aside = self.set_aside.borrow_mut().pop_front();
        set_aside.map_or_else(|| self.receive(), Ok)
    }

    /// The next event that the actors send.
    fn receive(&self) -> Result<PipelineEvent> {
        match self.wait(&self.running()?.events)? {
            PipelineEvent::Failed(failure) => Err(self.fails(failure)),
            event => Ok(event),
        }
    }

    /// Waits for a message of the actors, unless one of them is blocked.
    fn wait<T>(&self, from: &Receiver<T>) -> Result<T> {
        let actors = &self.running()?.actors;
        let is_on_its_way = || {
            actors.hosted.delays.as_ref().is_some_and(DelayLine::is_busy)
                || actors.exchange.as_ref().is_some_and(|exchange| exchange.spread().ranks.move_elsewhere())
        };
        self.patience.receive(from, &actors.activities, is_on_its_way).map_err(|why| match why {
            NoMessage::Ended => Error::Ended("the pipeline".to_owned()),
            NoMessage::Stalled(stalled) => {
                tracing::warn!("{}", stalled.failure);
                self.fails(stalled.failure)
            }
        })
    }

    fn fails(&self, failure: Failure) -> Error {
        self.failure.replace(Some(failure.clone()));
        Error::Failed(failure)
    }

    /// Tells every stage the last stage's validation loss; call it only while nothing is in flight.
    pub fn observe_validation(&self, loss: f64) -> Result<()> {
        self.send(Broadcast::Validated(Validated { loss }))
    }

    /// Tells every stage how many steps the run has, for schedules that depend on it; call it only while nothing is in flight.
    pub fn begin(&self, total_steps: u64) -> Result<()> {
        self.send(Broadcast::Begin(Begin { total_steps }))
    }

    /// Returns what the strategy has decided and remembers by the last [`PipelineEvent::StepDone`]; none if no plan is decided during the run.
    ///
    /// # Errors
    /// If the strategy cannot return its state, or the actors' threads have ended.
    pub fn strategy_state(&self) -> Result<Option<Value>> {
        let (to, told) = channel();
        send(&self.running()?.actors.strategy, "the strategy actor", ReadStrategyState { to })?;
        self.wait(&told)?
    }

    /// Returns a copy of every parameter and buffer. Call it only while nothing is in flight. Events that arrive in the meantime are returned by
    /// later calls of [`Self::next`].
    pub fn snapshot(&self) -> Result<Weights> {
        self.send(Broadcast::TakeSnapshot(TakeSnapshot))?;
        loop {
            match self.receive()? {
                PipelineEvent::Snapshot(stages) => {
                    return Ok(Weights::of_stages(stages).with_units_per_stage(self.units_per_stage.clone()));
                }
                other => self.set_aside.borrow_mut().push_back(other),
            }
        }
    }

    /// Returns the state of every stage, in order of stages. Call it only while nothing is in flight. Events that come meanwhile are kept for
    /// [`Self::next`].
    pub fn state(&self) -> Result<Vec<StageState>> {
        self.send(Broadcast::TakeState(TakeState))?;
        loop {
            match self.receive()? {
                PipelineEvent::State(stages) => return Ok(stages),
                other => self.set_aside.borrow_mut().push_back(other),
            }
        }
    }

    /// Returns a copy of every stage's weights and state, in order of stages. Call it only while nothing is in flight. Events that come meanwhile are kept for
    /// [`Self::next`].
    ///
    /// # Errors
    /// If a stage cannot copy them, or the actors' threads have ended.
    pub fn capture(&self, to: CaptureTo) -> Result<Vec<StageCapture>> {
        self.send(Broadcast::Capture(Capture { step: None, to }))?;
        loop {
            match self.receive()? {
                PipelineEvent::Captured { step: None, stages } => return Ok(stages),
                other => self.set_aside.borrow_mut().push_back(other),
            }
        }
    }

    /// Lets every stage continue from its state, in order of stages. Call it before the first step.
    ///
    /// # Errors
    /// If there is not one state for each stage, or a stage refuses its own: the pipeline has then failed.
    pub fn restore(&self, states: Vec<StageState>) -> Result<()> {
        if states.len() != self.built.len() {
            let problem = format!("it has {} stages", states.len());
            return Err(Error::invalid(
                "trainer state",
                problem,
                format!("the model is cut into {}", self.built.len()),
            ));
        }
        self.send(RestoreStages { states })?;
        loop {
            match self.receive()? {
                PipelineEvent::Restored => return Ok(()),
                other => self.set_aside.borrow_mut().push_back(other),
            }
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.end();
    }
}

impl Pipeline {
    /// Stops the actors and waits for their threads, except for those that are blocked. The pipeline cannot be used any more.
    pub(crate) fn end(&mut self) {
        let Some(Running { actors, system, mut thread, .. }) = self.running.take() else { return };
        let Actors { hosted, activities, exchange, .. } = actors;
        let failure = self.failure.get_mut();
        if let Some(exchange) = exchange {
            exchange.end(failure.as_ref());
        }
        hosted.stop();
        let has_stalled = failure.as_ref().is_some_and(|failure| matches!(*failure.cause, Error::Stalled(_)));
        match (has_stalled, self.patience.is_limited()) {
            (true, _) => {
                hosted.join_idle(&activities);
                return system.stop();
            }
            (false, false) => hosted.join(),
            (false, true) => {
                // If there is no thread to wait with, they end by themselves.
                if let Ok(mut stages) = hosted.join_on_a_thread() {
                    stages.join(self.patience, &activities);
                }
            }
        }
        system.stop();
        thread.join(self.patience, &activities);
    }

    /// Returns what describes this pipeline, without its actors: an ended one.
    pub(crate) fn description(&self) -> Self {
        Self {
            running: None,
            patience: self.patience,
            sent: self.sent.clone(),
            in_flight: self.in_flight,
            units_per_stage: self.units_per_stage.clone(),
            set_aside: RefCell::default(),
            failure: RefCell::default(),
            built: self.built.clone(),
        }
    }
}

/// Starts the actors of this process and tells them of each other. Returns them with the counters of what each of them sends.
///
/// # Errors
/// If a link is invalid, or the system has too few threads left.
fn launch(
    blueprints: Vec<StageBlueprint>,
    plans: Plans,
    settings: PipelineSettings,
    in_flight: usize,
    events: Sender<PipelineEvent>,
    spread: Option<&Spread>,
) -> Result<(Actors, Vec<Arc<Counter>>)> {
    let stages = blueprints.len();
    let here = spread.map_or(stages, |spread| spread.stages_of(spread.ranks.rank()).len());
    // One for each stage of this process, and one for the strategy actor.
    let activities: Vec<Arc<Activity>> = (0..=here).map(|_| Arc::default()).collect();
    let exchange = spread.map(|spread| Exchange::open(spread, activities.clone(), None));
    let hosted = || {
        if let Some(exchange) = &exchange {
            exchange.start_others(&blueprints, in_flight, &settings)?;
        }
        HostedStages::start(blueprints, &settings, in_flight, &activities, exchange.as_ref())
    };
    let hosted = hosted().inspect_err(|error| {
        if let Some(exchange) = &exchange {
            let cause = Error::other(error.to_string());
            exchange.end(Some(&Failure::new(Origin::Coordinator, Phase::Build, cause)));
        }
    })?;
    let mut sent = hosted.sent.clone();
    let counter = Arc::<Counter>::default();
    sent.push(Arc::clone(&counter));
    let adapts = plans.adapts();
    let strategy = StrategyActor::new(plans, Arc::clone(&activities[here])).start();
    let observer = adapts.then(|| strategy.clone().recipient());
    let others = exchange.as_ref().map(Exchange::others).unwrap_or_default();
    let other_replicas = exchange.iter().flat_map(Exchange::other_replicas).map(|(_, stages)| stages);
    let replicas: Vec<_> = [hosted.addresses.clone()].into_iter().chain(other_replicas).collect();
    let coordinator = Coordinator::new(replicas.clone(), observer, in_flight, events, counter, others).start();
    hosted.connect(&CoordinatorAddress::Here(coordinator.clone()), exchange.as_ref());
    if let Some(exchange) = &exchange {
        exchange.deliver_to(&hosted.addresses, Some(&coordinator));
    }
    let start = StartStages { stages: replicas.concat(), coordinator: coordinator.clone() };
    // The mailbox is new and empty: sending cannot fail.
    let _ = send(&strategy, "the strategy actor", start);
    Ok((Actors { coordinator, strategy, hosted, activities, exchange }, sent))
}
