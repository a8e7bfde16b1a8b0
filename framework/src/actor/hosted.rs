//! The stage actors of this process.

use std::sync::Arc;

use actix::{Actor, Arbiter, Context};

use super::{
    address::{StageAddress, StageHere},
    delay::DelayLine,
    exchange::{CoordinatorAddress, Exchange},
    messages::Connect,
    pipeline::PipelineSettings,
    sent::Counter,
    stage::{StageActor, StageActorSettings},
    wire::{Neighbour, Wire},
};
use crate::{
    Error, Result,
    device::Link,
    metrics::MailboxGauge,
    stage::StageBlueprint,
    watch::{Activity, Worker},
};

/// The stage actors of this process, each on a thread of its own, and the addresses of all stages.
pub(super) struct HostedStages {
    /// In order of the stages that are here.
    arbiters: Vec<Arbiter>,
    /// Of all stages, in order.
    pub(super) addresses: Vec<StageAddress>,
    /// Present if the link of a device delays.
    pub(super) delays: Option<DelayLine>,
    /// What each stage that is here sends.
    pub(super) sent: Vec<Arc<Counter>>,
    here: Vec<usize>,
    links: Vec<Link>,
}

impl HostedStages {
    /// Starts the actors of those stages of `blueprints` that are in this process: all, without an exchange. There is one of `activities` for each.
    ///
    /// # Errors
    /// If a link of a device is invalid, or the system has too few threads left.
    pub(super) fn start(
        blueprints: Vec<StageBlueprint>,
        settings: &PipelineSettings,
        in_flight: usize,
        activities: &[Arc<Activity>],
        exchange: Option<&Exchange>,
    ) -> Result<Self> {
        let stages = blueprints.len();
        blueprints.iter().try_for_each(|stage| stage.device.hooks().link().validate(stage.device.name()))?;
        let links: Vec<Link> = blueprints.iter().map(|stage| stage.device.hooks().link()).collect();
        let delays = match links.iter().all(Link::is_immediate) {
            true => None,
            false => Some(DelayLine::start()?),
        };
        let here = stages_here(stages, exchange);
        let (replica, replicas) =
            exchange.map_or((0, 1), |exchange| (exchange.spread().replica(), exchange.spread().replicas));
        let threads = || Arbiter::try_new().map_err(|cause| Error::Thread { name: "interlock-stage", cause });
        let arbiters: Vec<Arbiter> = here.iter().map(|_| threads()).collect::<Result<_>>()?;
        let sent = here.iter().map(|_| Arc::default()).collect();
        let mut threads = arbiters.iter().zip(activities);
        let start = |blueprint: StageBlueprint| {
            let stage = blueprint.index;
            if let Some(exchange) = exchange.filter(|exchange| !exchange.spread().is_here(stage)) {
                return exchange.there(exchange.spread().replica(), stage);
            }
            // One message for every activation, gradient and credit that can be in flight to the stage, and some more. A micro-batch has at most one
            // gradient of each loss of this stage and those downstream. Another replica sends two messages in a step, and may be one step ahead.
            let mailbox = 16 + in_flight * (2 + stages - stage) + 4 * (replicas - 1);
            let settings = StageActorSettings {
                in_flight,
                policy: settings.policy,
                global_norm: settings.global_norm,
                first_step: settings.first_step,
                // A timeline has the first replica.
                record: settings.record.filter(|_| replica == 0),
                mailbox,
                replica,
                replicas,
            };
            let waiting = MailboxGauge::new(stage);
            let (arbiter, activity) = threads.next().expect("a thread for each stage that is here");
            let (taken, activity) = (waiting.clone(), Arc::clone(activity));
            let actor = move |_: &mut Context<StageActor>| StageActor::new(blueprint, settings, taken, activity);
            StageHere::new(stage, StageActor::start_in_arbiter(&arbiter.handle(), actor), waiting).into()
        };
        let addresses = blueprints.into_iter().map(start).collect();
        Ok(Self { arbiters, addresses, delays, sent, here, links })
    }

    /// Tells the stages that are here of their neighbours, of other replicas and of the coordinator.
    pub(super) fn connect(&self, coordinator: &CoordinatorAddress, exchange: Option<&Exchange>) {
        for (&k, sent) in self.here.iter().zip(&self.sent) {
            let neighbour = |stage: usize| {
                let line = self.delays.as_ref().filter(|_| !self.links[k].is_immediate());
                let delayed = line.map(|line| line.direction(self.links[k]));
                self.addresses.get(stage).map(|address| Neighbour { address: address.clone(), delayed })
            };
            let to_replica = |(replica, stages): (usize, Vec<StageAddress>)| (replica, stages[k].clone());
            let wire = Wire {
                stage: k,
                previous: k.checked_sub(1).and_then(neighbour),
                next: neighbour(k + 1),
                replicas: exchange.into_iter().flat_map(Exchange::other_replicas).map(to_replica).collect(),
                coordinator: coordinator.clone(),
                sent: Arc::clone(sent),
            };
            // The mailboxes are new and empty: sending cannot fail.
            let _ = self.addresses[k].connect(Connect(Box::new(wire)));
        }
    }

    /// Asks the actors to stop.
    pub(super) fn stop(&self) {
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }

    /// Waits for the threads of all actors.
    pub(super) fn join(self) {
        for arbiter in self.arbiters {
            // A panic outside of a handler has nothing to add: the pipeline is ending anyway.
            let _ = arbiter.join();
        }
        // The messages still in it have no receiver any more.
        drop(self.delays);
    }

    /// Waits for the threads of those that do nothing; what is busy is left alone.
    pub(super) fn join_idle(self, activities: &[Arc<Activity>]) {
        let idle = self.arbiters.into_iter().zip(activities).filter(|(_, activity)| activity.is_idle());
        idle.for_each(|(arbiter, _)| drop(arbiter.join()));
    }

    /// Starts a thread that waits for them.
    pub(super) fn join_on_a_thread(self) -> Result<Worker> {
        Worker::start("interlock-end", move || self.join())
    }
}

/// Returns the stages that are in this process.
fn stages_here(stages: usize, exchange: Option<&Exchange>) -> Vec<usize> {
    (0..stages).filter(|&stage| exchange.is_none_or(|exchange| exchange.spread().is_here(stage))).collect()
}
