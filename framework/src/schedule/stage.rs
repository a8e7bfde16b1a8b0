//! The state machine of one stage.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::readout::version_at;
use super::{Action, Event, MicroBatchId, Policy, Purpose, Remaining, Unexpected, WaitingFor};
use crate::plan::{GradientPlan, PlanPhase, PlanSchedule, Wants};

/// The fixed settings of a stage's schedule.
#[derive(Clone, Debug)]
pub(crate) struct StageRole {
    /// The stage, counted from 0.
    pub stage: usize,
    /// The plans of all stages by step.
    pub plans: PlanSchedule,
    /// Whether the stage has an auxiliary head; the last stage has its loss in any case.
    pub has_head: bool,
    /// Whether updates wait for the gradients of other replicas of the stage.
    pub replicas: bool,
    /// Whether updates wait for the norm of all stages' gradients.
    pub global_norm: bool,
    /// Credits: the most micro-batches that the next stage holds.
    pub credits: usize,
    /// The order of preference among possible actions.
    pub policy: Policy,
    /// The first step of the run.
    pub first_step: u64,
    /// The refresh interval of the matrix that the head shares with the last stage, if it does.
    pub readout_refresh: Option<u64>,
}

/// The backward passes that remain for one loss of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BackwardState {
    loss: usize,
    arrived: bool,
    left: Wants,
    /// Whether the loss is part of the sum that remains.
    in_sum: bool,
}

/// A micro-batch that has been run forward and not yet been freed.
#[derive(Clone, Debug)]
struct Live {
    head_left: bool,
    losses: Vec<BackwardState>,
}

impl Live {
    fn is_done(&self) -> bool {
        !self.head_left && !self.losses.iter().any(|state| state.is_left() || state.in_sum)
    }

    /// Whether a sum remains, and all its gradients have arrived.
    fn sum_is_complete(&self) -> bool {
        let mut parts = self.losses.iter().filter(|state| state.in_sum).peekable();
        parts.peek().is_some() && parts.all(|state| state.arrived)
    }
}

impl BackwardState {
    /// Whether a backward pass of this loss alone remains.
    fn is_left(&self) -> bool {
        self.left.input || self.left.parameters
    }
}

/// The state machine of one stage.
#[derive(Clone, Debug)]
pub(crate) struct StageSchedule {
    role: StageRole,
    /// The step whose forward passes may run: the number of updates made.
    step: u64,
    /// The plan of that step.
    plan: Arc<GradientPlan>,
    /// The micro-batches that have arrived and not yet run forward, in order of arrival.
    queue: VecDeque<MicroBatchId>,
    credits: usize,
    live: BTreeMap<MicroBatchId, Live>,
    /// The number of micro-batches in the present step, once known, and how many of them are freed.
    micros: Option<usize>,
    freed_in_step: usize,
    /// The next micro-batch whose head, parameter gradient of the followed losses, and parameter gradient of the measured loss may run.
    next_head: usize,
    next_parameters: usize,
    next_measured: usize,
    /// The gradients of all replicas, and then the norm of all stages' gradients.
    sum: SharedState,
    norm: SharedState,
    /// The latest version of the shared matrix that is there; those up to the first step are from the beginning.
    readout: u64,
    running: Option<Action>,
    freed: Vec<MicroBatchId>,
}

/// How far a result of the step is that others add up: the stage shares its part, and then learns the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SharedState {
    ToShare,
    Shared,
    Known,
}

impl SharedState {
    /// The state at the beginning of a step.
    fn begin(is_shared: bool) -> Self {
        if is_shared { Self::ToShare } else { Self::Known }
    }
}

impl StageSchedule {
    /// Returns the schedule of a stage before anything has arrived.
    pub(crate) fn new(role: StageRole) -> Self {
        Self {
            step: role.first_step,
            plan: Arc::clone(role.plans.at(role.first_step)),
            queue: VecDeque::new(),
            credits: role.credits,
            live: BTreeMap::new(),
            micros: None,
            freed_in_step: 0,
            next_head: 0,
            next_parameters: 0,
            next_measured: 0,
            sum: SharedState::begin(role.replicas),
            norm: SharedState::begin(role.global_norm),
            readout: role.first_step,
            running: None,
            freed: Vec::new(),
            role,
        }
    }

    /// Returns the settings that it was made from.
    pub(crate) fn role(&self) -> &StageRole {
        &self.role
    }

    fn is_last(&self) -> bool {
        self.role.stage + 1 == self.role.plans.stages()
    }

    /// Replaces the plans from the first step of `phase` on by `phase`.
    ///
    /// # Errors
    /// If a forward pass of that step has begun, or the phase does not fit the plans before.
    pub(crate) fn follow(&mut self, phase: PlanPhase) -> Result<(), Unexpected> {
        let begun = self.step + u64::from(self.micros.is_some());
        if phase.from_step < begun {
            let problem = format!("a change of plan at step {}, which has begun", phase.from_step);
            return Err(Unexpected::new(problem));
        }
        self.role.plans.change(phase).map_err(|error| Unexpected::new(error.to_string()))?;
        self.plan = Arc::clone(self.role.plans.at(self.step));
        Ok(())
    }

    /// Returns the action that has begun and is not yet done.
    pub(crate) fn running(&self) -> Option<Action> {
        self.running
    }

    /// Returns the number of micro-batches whose saved activations the stage holds.
    pub(crate) fn live(&self) -> usize {
        self.live.len()
    }

    /// Returns the number of output gradients that have arrived and wait for the others of their sums.
    pub(crate) fn waiting_gradients(&self) -> usize {
        self.live.values().flat_map(|live| &live.losses).filter(|state| state.in_sum && state.arrived).count()
    }

    /// Returns the plan of the step whose forward passes may run.
    pub(crate) fn plan(&self) -> &GradientPlan {
        &self.plan
    }

    /// Whether nothing is queued, running or held.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.live.is_empty() && self.running.is_none()
    }

    /// Notes an event.
    ///
    /// # Errors
    /// If it contradicts earlier events, such as the gradient of a micro-batch that the stage does not hold.
    pub(crate) fn on(&mut self, event: Event) -> Result<(), Unexpected> {
        let unexpected = |what: String| Err(Unexpected::new(what));
        match event {
            Event::Activation(micro_batch) => {
                if micro_batch.step < self.step {
                    return unexpected(format!("an activation of step {} during step {}", micro_batch.step, self.step));
                }
                if self.queue.back().is_some_and(|last| *last >= micro_batch) {
                    return unexpected(format!("activation {micro_batch:?} out of order"));
                }
                self.queue.push_back(micro_batch);
            }
            Event::Gradient { micro_batch, loss } => {
                let stage = self.role.stage;
                let state = self
                    .live
                    .get_mut(&micro_batch)
                    .and_then(|live| live.losses.iter_mut().find(|l| l.loss == loss && loss != stage));
                match state {
                    Some(state) if !state.arrived => state.arrived = true,
                    Some(_) => return unexpected(format!("a second gradient of loss {loss} for {micro_batch:?}")),
                    None => return unexpected(format!("a gradient of loss {loss} for {micro_batch:?}")),
                }
            }
            Event::Credit => {
                if self.credits >= self.role.credits {
                    return unexpected("more credits than the stage was given".to_owned());
                }
                self.credits += 1;
            }
            Event::Replicas(step) => {
                if step != self.step || self.sum != SharedState::Shared {
                    return unexpected(format!(
                        "the gradients of all replicas of step {step} during step {}",
                        self.step
                    ));
                }
                self.sum = SharedState::Known;
            }
            Event::Norm(step) => {
                if step != self.step || self.norm != SharedState::Shared {
                    return unexpected(format!("the gradient norm of step {step} during step {}", self.step));
                }
                self.norm = SharedState::Known;
            }
            Event::Readout(version) => {
                if version <= self.readout {
                    return unexpected(format!("version {version} of the shared readout after {}", self.readout));
                }
                self.readout = version;
            }
        }
        Ok(())
    }

    /// Returns the action that [`Self::begin`] would return.
    pub(crate) fn next(&self) -> Option<Action> {
        if self.running.is_some() {
            return None;
        }
        let full = self.live.len() >= self.role.credits;
        self.candidates().into_iter().min_by_key(|a| self.role.policy.rank(a, &self.plan, self.role.stage, full))
    }

    /// Returns the event that an idle stage waits for.
    pub(crate) fn waiting_for(&self) -> WaitingFor {
        let front_waits = self.queue.front().is_some_and(|micro_batch| micro_batch.step == self.step);
        let unarrived =
            self.live.values().flat_map(|live| &live.losses).find(|l| !l.arrived && (l.is_left() || l.in_sum));
        match unarrived {
            Some(state) => WaitingFor::Gradient { loss: state.loss },
            None if self.sum == SharedState::Shared && self.is_done_with_step() => WaitingFor::Replicas,
            None if self.norm == SharedState::Shared => WaitingFor::Norm,
            None if self.is_done_with_step() && !self.has_next_readout() => WaitingFor::Readout,
            None if front_waits => WaitingFor::Credit,
            None => WaitingFor::Activation,
        }
    }

    /// Begins the next action and returns it, if one is possible. Until [`Self::done`] is called for it, no other action is possible.
    pub(crate) fn begin(&mut self) -> Option<Action> {
        let action = self.next()?;
        if let Action::Forward(micro_batch) = action {
            self.queue.pop_front();
            if !self.is_last() {
                self.credits -= 1;
            }
            if micro_batch.purpose == Purpose::Train && self.micros.is_none() {
                self.micros = Some(micro_batch.count);
                let first = micro_batch.index;
                (self.next_head, self.next_parameters, self.next_measured) = (first, first, first);
            }
        }
        self.running = Some(action);
        Some(action)
    }

    /// Returns all possible actions, in the same order for the same history.
    fn candidates(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(&micro_batch) = self.queue.front()
            && micro_batch.step == self.step
            && (self.is_last() || self.credits > 0)
        {
            actions.push(Action::Forward(micro_batch));
        }
        for (&micro_batch, live) in &self.live {
            let in_order = micro_batch.purpose == Purpose::Evaluate || micro_batch.index == self.next_head;
            if live.head_left && in_order {
                let needed = micro_batch.purpose == Purpose::Train && self.plan.is_needed(self.role.stage);
                actions.push(Action::Head { micro_batch, output_gradient: needed });
            }
            for state in live.losses.iter().filter(|l| l.arrived) {
                let measured = self.plan.measures(self.role.stage) == Some(state.loss);
                let in_order = micro_batch.index == if measured { self.next_measured } else { self.next_parameters };
                let others = live.losses.iter().any(|l| l.in_sum || (l.loss != state.loss && l.is_left()));
                let mut push = |wants: Wants| {
                    let then = Remaining::after(state.left.parameters && !wants.parameters, others);
                    let measured = measured && wants.parameters;
                    actions.push(Action::Backward { micro_batch, loss: state.loss, wants, measured, then });
                };
                match (state.left.input, state.left.parameters) {
                    (true, true) if self.role.policy.fuses() && in_order => push(Wants::BOTH),
                    (true, _) => push(Wants::INPUT),
                    (false, true) if in_order => push(Wants::PARAMETERS),
                    _ => {}
                }
            }
            if live.sum_is_complete() && micro_batch.index == self.next_parameters {
                let then = Remaining::after(false, live.losses.iter().any(BackwardState::is_left));
                actions.push(Action::BackwardSum { micro_batch, then });
            }
        }
        if self.is_done_with_step() {
            match (self.sum, self.norm) {
                (SharedState::Known, SharedState::ToShare) => actions.push(Action::ShareNorm(self.step)),
                (SharedState::Known, SharedState::Known) if self.has_next_readout() => {
                    actions.push(Action::Update(self.step));
                }
                _ => {}
            }
        }
        if self.sum == SharedState::ToShare && self.has_all_gradients() {
            actions.push(Action::ShareGradients(self.step));
        }
        actions
    }

    /// Whether all micro-batches of the step are freed.
    fn is_done_with_step(&self) -> bool {
        self.micros == Some(self.freed_in_step) && self.live.is_empty()
    }

    /// Whether no parameter gradient of the step remains; input gradients, which other stages wait for, may.
    fn has_all_gradients(&self) -> bool {
        let is_complete = |live: &Live| !live.head_left && live.losses.iter().all(|l| !l.left.parameters && !l.in_sum);
        self.micros == Some(self.freed_in_step + self.live.len()) && self.live.values().all(is_complete)
    }

    /// Whether the version of the shared matrix that the head uses at the next step is there.
    fn has_next_readout(&self) -> bool {
        self.role.readout_refresh.is_none_or(|refresh| version_at(refresh, self.step + 1) <= self.readout)
    }

    /// Notes that the action that [`Self::begin`] returned is done.
    ///
    /// # Panics
    /// If `action` is not the one begun.
    pub(crate) fn done(&mut self, action: Action) {
        assert_eq!(self.running.take(), Some(action), "an action was reported done that was not the one begun");
        match action {
            Action::Forward(micro_batch) => {
                let train = micro_batch.purpose == Purpose::Train;
                let plan = &self.plan;
                let stage = self.role.stage;
                let losses = if train { plan.wants(stage) } else { &[] };
                let in_sum = |loss: usize| plan.added_up(stage).iter().any(|&(added, _)| added == loss);
                let state = |&loss: &usize| {
                    let left = plan.gradients(stage, loss);
                    BackwardState { loss, arrived: false, left, in_sum: in_sum(loss) }
                };
                let losses = losses.iter().map(state).collect();
                let live = Live { head_left: self.is_last() || self.role.has_head, losses };
                self.live.insert(micro_batch, live);
                self.free_if_done(micro_batch);
            }
            Action::Head { micro_batch, output_gradient } => {
                if micro_batch.purpose == Purpose::Train {
                    self.next_head += 1;
                }
                let stage = self.role.stage;
                if let Some(live) = self.live.get_mut(&micro_batch) {
                    live.head_left = false;
                    for state in live.losses.iter_mut().filter(|l| l.loss == stage) {
                        state.arrived = output_gradient;
                    }
                }
                self.free_if_done(micro_batch);
            }
            Action::Backward { micro_batch, loss, wants, measured, .. } => {
                if wants.parameters {
                    *(if measured { &mut self.next_measured } else { &mut self.next_parameters }) += 1;
                }
                if let Some(state) =
                    self.live.get_mut(&micro_batch).and_then(|live| live.losses.iter_mut().find(|l| l.loss == loss))
                {
                    state.left.input &= !wants.input;
                    state.left.parameters &= !wants.parameters;
                }
                self.free_if_done(micro_batch);
            }
            Action::BackwardSum { micro_batch, .. } => {
                self.next_parameters += 1;
                if let Some(live) = self.live.get_mut(&micro_batch) {
                    live.losses.iter_mut().for_each(|state| state.in_sum = false);
                }
                self.free_if_done(micro_batch);
            }
            Action::ShareGradients(_) => self.sum = SharedState::Shared,
            Action::ShareNorm(_) => self.norm = SharedState::Shared,
            Action::Update(_) => {
                self.step += 1;
                self.plan = Arc::clone(self.role.plans.at(self.step));
                self.micros = None;
                self.freed_in_step = 0;
                self.sum = SharedState::begin(self.role.replicas);
                self.norm = SharedState::begin(self.role.global_norm);
            }
        }
    }

    fn free_if_done(&mut self, micro_batch: MicroBatchId) {
        if self.live.get(&micro_batch).is_some_and(Live::is_done) {
            self.live.remove(&micro_batch);
            if micro_batch.purpose == Purpose::Train {
                self.freed_in_step += 1;
            }
            self.freed.push(micro_batch);
        }
    }

    /// Returns the micro-batches freed since the last call. Their saved activations can be freed, and the previous stage gets a credit for each.
    pub(crate) fn take_freed(&mut self) -> Vec<MicroBatchId> {
        std::mem::take(&mut self.freed)
    }
}
