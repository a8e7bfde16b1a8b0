//! The simulation itself: the clock, the messages in transit, and the order of actions.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
};

use super::{
    Scenario, Simulated,
    critical::{self, Cause},
    deadlock,
};
use crate::{
    Error, Result,
    device::link::Channel,
    plan::PlanSchedule,
    schedule::{Action, Event, MicroBatchId, Purpose, StageRole, StageSchedule},
    timeline::{Span, Timeline},
};

/// Nanoseconds.
type Time = u64;

/// The longest time of an action or a message, in seconds.
const LONGEST: f64 = 1e6;

/// The longest period of the steady state, in steps, that is looked for.
const LONGEST_PERIOD: u64 = 8;

/// An event at some time of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Occurrence {
    /// A stage is done with the action of this span.
    Done(usize),
    /// A message arrives at a stage, sent when the action of this span was done.
    Arrive { stage: usize, event: Event, sender: Option<usize> },
}

struct StageState {
    schedule: StageSchedule,
    /// The latest cause, and its time.
    cause: Cause,
    caused: Time,
    /// Whether it waits for its device.
    waits: bool,
    /// The channels to the next and to the previous stage.
    channels: [Channel; 2],
    /// The actions of each finished step and of the present one, with the times at which they ended; every action is stored as one of step 0.
    steps: Vec<Vec<(Action, Time)>>,
    begun: Vec<(Action, Time)>,
    peak_live: usize,
    peak_held: usize,
    peak_waiting: usize,
    held: usize,
}

impl StageState {
    /// Returns the time at which a step ended.
    fn end(&self, step: usize) -> Time {
        self.steps[step].last().map_or(0, |&(_, end)| end)
    }

    /// Notes a cause. Of several causes at the same time one is stored: the stage's own work before other stages' work, and a message with tensors
    /// before a credit.
    fn comes(&mut self, now: Time, cause: Cause) {
        let weight = |cause: &Cause| match cause {
            Cause::Start => 0,
            Cause::Message(_, Event::Credit) => 1,
            Cause::Message(..) => 2,
            Cause::Device(_) => 3,
            Cause::Own(_) => 4,
        };
        if now > self.caused || weight(&cause) >= weight(&self.cause) {
            (self.caused, self.cause) = (now, cause);
        }
    }
}

pub(super) struct Simulation<'a> {
    scenario: &'a Scenario,
    stages: Vec<StageState>,
    now: Time,
    count: u64,
    queue: BinaryHeap<Reverse<(Time, u64, Occurrence)>>,
    /// Stages that could act if their device and cores were free, first come first.
    ready: VecDeque<usize>,
    device_busy: Vec<bool>,
    cores_free: usize,
    /// The next micro-batch to be fed, as its step and number.
    next: (u64, usize),
    credits: usize,
    norms: usize,
    spans: Vec<Span>,
    causes: Vec<Cause>,
    steps: u64,
}

fn time(seconds: f64) -> Time {
    (seconds * 1e9).round() as Time
}

fn seconds(time: Time) -> f64 {
    time as f64 / 1e9
}

impl<'a> Simulation<'a> {
    pub(super) fn new(scenario: &'a Scenario) -> Result<Self> {
        check(scenario)?;
        let count = scenario.plan.stages();
        let plans = PlanSchedule::constant(Arc::clone(&scenario.plan));
        let stages = (0..count)
            .map(|stage| StageState {
                schedule: StageSchedule::new(StageRole {
                    replicas: false,
                    stage,
                    plans: plans.clone(),
                    has_head: scenario.heads[stage],
                    global_norm: scenario.global_norm,
                    credits: scenario.in_flight,
                    policy: scenario.policy,
                    first_step: 0,
                    // The refresh interval is so long that no stage waits.
                    readout_refresh: None,
                }),
                cause: Cause::Start,
                caused: 0,
                waits: false,
                channels: scenario.links[stage].map(Channel::new),
                steps: Vec::new(),
                begun: Vec::new(),
                peak_live: 0,
                peak_held: 0,
                peak_waiting: 0,
                held: 0,
            })
            .collect();
        let devices = scenario.devices.iter().max().map_or(0, |most| most + 1);
        Ok(Self {
            scenario,
            stages,
            now: 0,
            count: 0,
            queue: BinaryHeap::new(),
            ready: VecDeque::new(),
            device_busy: vec![false; devices],
            cores_free: scenario.cores.unwrap_or(usize::MAX),
            next: (0, 0),
            credits: scenario.in_flight,
            norms: 0,
            spans: Vec::new(),
            causes: Vec::new(),
            steps: 0,
        })
    }

    /// Runs until steps repeat, or until the limit of steps.
    pub(super) fn run(mut self) -> Result<Simulated> {
        // The limit lets the slowest stage use up the credits of all upstream boundaries.
        let mut most = 64 + 4 * LONGEST_PERIOD;
        let mut period = None;
        self.feed(None);
        while self.steps < most {
            let Some(&Reverse((now, ..))) = self.queue.peek() else {
                return Err(Error::Deadlock(deadlock::find(self.stages.iter().map(|s| &s.schedule))));
            };
            self.now = now;
            while let Some(&Reverse((at, _, what))) = self.queue.peek()
                && at == now
            {
                self.queue.pop();
                self.happen(what)?;
            }
            self.act();
            while self.stages.iter().all(|stage| stage.steps.len() as u64 > self.steps) {
                self.steps += 1;
                if period.is_none() {
                    period = self.period();
                    // A few more steps, so that the critical path closes.
                    most = period.map_or(most, |p| self.steps + 4 * p);
                }
            }
        }
        Ok(self.found(period))
    }

    /// Returns the least number of steps after which every action of every stage occurs again at the same distance in time. Comparing updates alone
    /// is not enough: they may repeat while the credits of a boundary are being used up.
    fn period(&self) -> Option<u64> {
        let last = self.steps as usize - 1;
        let period = (1..=LONGEST_PERIOD as usize).find(|&p| {
            let Some(before) = last.checked_sub(3 * p) else { return false };
            let distance = self.stages[0].end(last) - self.stages[0].end(last - p);
            (before + 1..=last - p).all(|step| {
                self.stages.iter().all(|stage| {
                    let (one, other) = (&stage.steps[step], &stage.steps[step + p]);
                    let mut pairs = one.iter().zip(other).rev();
                    one.len() == other.len() && pairs.all(|(a, b)| a.0 == b.0 && b.1 - a.1 == distance)
                })
            })
        });
        period.map(|p| p as u64)
    }

    /// Sends micro-batches to the first stage, as far as its credits allow.
    fn feed(&mut self, sender: Option<usize>) {
        while self.credits > 0 {
            self.credits -= 1;
            let (step, micro) = self.next;
            let micros = self.scenario.micro_batches;
            self.next = if micro + 1 == micros { (step + 1, 0) } else { (step, micro + 1) };
            let event = Event::Activation(MicroBatchId { step, purpose: Purpose::Train, index: micro, count: micros });
            self.post(self.now, Occurrence::Arrive { stage: 0, event, sender });
        }
    }

    fn post(&mut self, at: Time, what: Occurrence) {
        self.count += 1;
        self.queue.push(Reverse((at, self.count, what)));
    }

    fn happen(&mut self, what: Occurrence) -> Result<()> {
        match what {
            Occurrence::Done(span) => self.finish(span),
            Occurrence::Arrive { stage, event, sender } => {
                let state = &mut self.stages[stage];
                state.schedule.on(event).map_err(|e| Error::Internal(format!("simulated stage {stage}: {e}")))?;
                state.comes(self.now, sender.map_or(Cause::Start, |span| Cause::Message(span, event)));
                state.peak_waiting = state.peak_waiting.max(state.schedule.waiting_gradients());
                if matches!(event, Event::Activation(_)) {
                    state.held += 1;
                    state.peak_held = state.peak_held.max(state.held);
                }
                self.want(stage);
            }
        }
        Ok(())
    }

    /// Puts a stage that has an action to do among those that wait for their devices.
    fn want(&mut self, stage: usize) {
        let state = &mut self.stages[stage];
        if !state.waits && state.schedule.next().is_some() {
            state.waits = true;
            self.ready.push_back(stage);
        }
    }

    fn cores(&self, stage: usize) -> usize {
        self.scenario.cores.map_or(0, |cores| self.scenario.threads[stage].min(cores))
    }

    /// Lets every waiting stage begin whose device and cores are free.
    fn act(&mut self) {
        let mut waiting = std::mem::take(&mut self.ready);
        while let Some(stage) = waiting.pop_front() {
            let device = self.scenario.devices[stage];
            let cores = self.cores(stage);
            if self.device_busy[device] || cores > self.cores_free {
                self.ready.push_back(stage);
                continue;
            }
            let scenario = self.scenario;
            let state = &mut self.stages[stage];
            state.waits = false;
            let Some(action) = state.schedule.begin() else { continue };
            let took = time(scenario.costs[stage].seconds(&action, &scenario.plan, stage));
            let span = self.spans.len();
            self.device_busy[device] = true;
            self.cores_free -= cores;
            self.causes.push(state.cause);
            self.spans.push(Span {
                stage,
                action,
                start: seconds(self.now),
                end: seconds(self.now.saturating_add(took)),
            });
            self.post(self.now.saturating_add(took), Occurrence::Done(span));
        }
    }

    fn finish(&mut self, span: usize) {
        let Span { stage, action, .. } = self.spans[span];
        self.device_busy[self.scenario.devices[stage]] = false;
        self.cores_free += self.cores(stage);
        let shared = self.scenario.cores.is_some();
        for &waiting in &self.ready {
            // Stages that waited for this device or these cores can begin now at the earliest.
            if shared || self.scenario.devices[waiting] == self.scenario.devices[stage] {
                self.stages[waiting].comes(self.now, Cause::Device(span));
            }
        }
        let costs = self.scenario.costs[stage];
        match action {
            Action::Forward(micro_batch) if stage + 1 < self.stages.len() => {
                self.send(span, 0, stage + 1, costs.activation_bytes, Event::Activation(micro_batch));
            }
            Action::Backward { micro_batch, loss, wants, .. } if wants.input => {
                self.send(span, 1, stage - 1, costs.gradient_bytes, Event::Gradient { micro_batch, loss });
            }
            Action::ShareNorm(step) => {
                self.norms += 1;
                if self.norms == self.stages.len() {
                    self.norms = 0;
                    for stage in 0..self.stages.len() {
                        self.deliver(span, stage, self.now, Event::Norm(step));
                    }
                }
            }
            _ => {}
        }
        let now = self.now;
        let state = &mut self.stages[stage];
        state.schedule.done(action);
        state.peak_live = state.peak_live.max(state.schedule.live());
        state.peak_waiting = state.peak_waiting.max(state.schedule.waiting_gradients());
        state.comes(now, Cause::Own(span));
        state.begun.push((action.of_step(0), now));
        if matches!(action, Action::Update(_)) {
            state.steps.push(std::mem::take(&mut state.begun));
        }
        let freed = state.schedule.take_freed().len();
        state.held -= freed;
        match stage {
            0 => {
                self.credits += freed;
                self.feed(Some(span));
            }
            _ => (0..freed).for_each(|_| self.deliver(span, stage - 1, now, Event::Credit)),
        }
        self.want(stage);
    }

    /// Sends over the stage's link.
    fn send(&mut self, span: usize, direction: usize, to: usize, bytes: u64, event: Event) {
        let stage = self.spans[span].stage;
        let arrival = time(self.stages[stage].channels[direction].send(seconds(self.now), bytes));
        self.deliver(span, to, arrival.max(self.now), event);
    }

    fn deliver(&mut self, span: usize, stage: usize, at: Time, event: Event) {
        self.post(at.saturating_add(time(self.scenario.hop)), Occurrence::Arrive { stage, event, sender: Some(span) });
    }

    fn found(self, period: Option<u64>) -> Simulated {
        let last = self.steps as usize - 1;
        // If steps never repeat, the window is the second half of them.
        let window = period.map_or(last / 2, |p| p as usize);
        let ends = |step: usize| self.stages.iter().map(move |stage| stage.end(step));
        // Each stage's own time, so that no stage works for longer than a step takes. Once steps repeat, all are equal.
        let own = ends(last).zip(ends(last - window)).map(|(end, begin)| end - begin);
        let step = own.max().unwrap_or(0) as f64 / window as f64;
        let work = self
            .spans
            .iter()
            .filter(|span| (last - window + 1..=last).contains(&(span.action.step() as usize)))
            .fold(vec![0; self.stages.len()], |mut work: Vec<Time>, span| {
                work[span.stage] = work[span.stage].saturating_add(time(span.end - span.start));
                work
            });
        let work = work.into_iter().map(|work| seconds(work) / window as f64).collect();
        let critical = critical::find(&self.spans, &self.causes, window as u64);
        Simulated {
            step_seconds: step / 1e9,
            steady: period.is_some(),
            first_step_seconds: seconds(ends(0).max().unwrap_or(0)),
            work,
            peak_live: self.stages.iter().map(|s| s.peak_live).collect(),
            peak_held: self.stages.iter().map(|s| s.peak_held).collect(),
            peak_waiting_gradients: self.stages.iter().map(|s| s.peak_waiting).collect(),
            critical,
            timeline: Timeline { stages: self.stages.len(), spans: self.spans },
            steps: self.steps,
            period: window as u64,
        }
    }
}

fn check(scenario: &Scenario) -> Result<()> {
    let stages = scenario.plan.stages();
    let refuse = |problem: String, right: &str| Err(Error::invalid("simulation", problem, right));
    for (what, count) in [
        ("costs", scenario.costs.len()),
        ("links", scenario.links.len()),
        ("heads", scenario.heads.len()),
        ("devices", scenario.devices.len()),
        ("threads", scenario.threads.len()),
    ] {
        if count != stages {
            return refuse(format!("{what} of {count} stages, the plan is for {stages}"), "give one for each stage");
        }
    }
    if scenario.micro_batches == 0 {
        return refuse("0 micro-batches".to_owned(), "use 1 or more");
    }
    if scenario.cores == Some(0) {
        return refuse("0 cores".to_owned(), "use 1 or more");
    }
    if let Some(k) = (0..stages.saturating_sub(1)).find(|&k| scenario.plan.is_needed(k) && !scenario.heads[k]) {
        return refuse(format!("stage {k} has no head, and some stage follows it"), "give it one");
    }
    let plain = |seconds: f64| (0.0..=LONGEST).contains(&seconds);
    for (k, costs) in scenario.costs.iter().enumerate() {
        let times = [
            costs.forward,
            costs.head,
            costs.probe,
            costs.input,
            costs.parameters,
            costs.both,
            costs.parameters_only,
            costs.add,
            costs.norm,
            costs.update,
            scenario.links[k][0].latency,
            scenario.links[k][1].latency,
            scenario.hop,
        ];
        if let Some(wrong) = times.into_iter().find(|&seconds| !plain(seconds)) {
            return refuse(format!("stage {k} has a cost of {wrong} seconds"), "times are from 0 to a million seconds");
        }
        let bandwidths = scenario.links[k].map(|link| link.bandwidth);
        if let Some(wrong) = bandwidths.into_iter().find(|bandwidth| bandwidth.is_nan() || *bandwidth <= 0.0) {
            return refuse(format!("stage {k} sends {wrong} bytes a second"), "bandwidths are above 0");
        }
    }
    Ok(())
}
