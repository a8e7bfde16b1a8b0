//! Pipelines of schedules under any order of messages: the same result, no deadlock, and never more sent than there are credits for.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::plan::{GradientPlan, PlanPhase, PlanSchedule};

/// The effect of a run on a stage: the order in which each sum was formed, and under which parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Record {
    /// (step, micro) of every forward pass, in order, with the number of updates before it.
    forwards: Vec<(MicroBatchId, u64)>,
    /// Every head that trains, in order, and every head that only scores; sorted, with the number of updates before it.
    heads: Vec<MicroBatchId>,
    scores: Vec<(MicroBatchId, u64)>,
    /// (micro_batch, losses) of every parameter gradient that is followed, in order, and (micro_batch, loss) of every one that is measured, in order.
    parameters: Vec<(MicroBatchId, Vec<usize>)>,
    measured: Vec<(MicroBatchId, usize)>,
    /// Every loss whose input gradient was computed; sorted, since their order does not matter.
    inputs: Vec<(MicroBatchId, usize)>,
    updates: Vec<u64>,
}

struct World {
    stages: Vec<StageSchedule>,
    records: Vec<Record>,
    in_flight: usize,
    /// Messages in transit, by receiver; activations in order, all others in any order.
    activations: Vec<VecDeque<MicroBatchId>>,
    others: Vec<Vec<Event>>,
    /// Not yet fed into stage 0, and the credits there.
    source: VecDeque<MicroBatchId>,
    source_credits: usize,
    norms: BTreeMap<u64, usize>,
    /// Activations sent to each stage and not yet freed there.
    held: Vec<usize>,
    /// The losses whose output gradients each stage has, by micro-batch.
    arrived: BTreeSet<(usize, MicroBatchId, usize)>,
}

impl World {
    fn new(
        plans: &PlanSchedule,
        feed: Vec<MicroBatchId>,
        in_flight: usize,
        policy: Policy,
        heads: bool,
        norm: bool,
    ) -> Self {
        let stages: Vec<_> = (0..plans.stages())
            .map(|stage| {
                StageSchedule::new(StageRole {
                    replicas: false,
                    stage,
                    plans: plans.clone(),
                    has_head: heads || plans.plans().any(|plan| plan.is_needed(stage)),
                    global_norm: norm,
                    credits: in_flight,
                    policy,
                    first_step: 0,
                    readout_refresh: None,
                })
            })
            .collect();
        let count = stages.len();
        Self {
            stages,
            records: vec![Record::default(); count],
            in_flight,
            activations: vec![VecDeque::new(); count],
            others: vec![Vec::new(); count],
            source: feed.into(),
            source_credits: in_flight,
            norms: BTreeMap::new(),
            held: vec![0; count],
            arrived: BTreeSet::new(),
        }
    }

    /// Returns every move that is possible next.
    fn moves(&mut self) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.source_credits > 0 && !self.source.is_empty() {
            moves.push(Move::Feed);
        }
        for k in 0..self.stages.len() {
            if !self.activations[k].is_empty() {
                moves.push(Move::Activation(k));
            }
            moves.extend((0..self.others[k].len()).map(|i| Move::Other(k, i)));
            if self.stages[k].clone().begin().is_some() {
                moves.push(Move::Act(k));
            }
        }
        moves
    }

    fn perform(&mut self, what: Move) {
        match what {
            Move::Feed => {
                let micro_batch = self.source.pop_front().unwrap();
                self.source_credits -= 1;
                self.send(0, micro_batch);
            }
            Move::Activation(k) => {
                let micro_batch = self.activations[k].pop_front().unwrap();
                self.stages[k].on(Event::Activation(micro_batch)).unwrap();
            }
            Move::Other(k, i) => {
                let event = self.others[k].remove(i);
                if let Event::Gradient { micro_batch, loss } = event {
                    self.arrived.insert((k, micro_batch, loss));
                }
                self.stages[k].on(event).unwrap();
            }
            Move::Act(k) => self.act(k),
        }
    }

    fn send(&mut self, k: usize, micro_batch: MicroBatchId) {
        self.held[k] += 1;
        assert!(self.held[k] <= self.in_flight, "stage {k} was sent more than it has credits for");
        self.activations[k].push_back(micro_batch);
    }

    fn act(&mut self, k: usize) {
        let action = self.stages[k].begin().unwrap();
        let record = &mut self.records[k];
        let updates = record.updates.len() as u64;
        match action {
            Action::Forward(micro_batch) => {
                record.forwards.push((micro_batch, updates));
                if k + 1 < self.stages.len() {
                    self.send(k + 1, micro_batch);
                }
            }
            Action::Head { micro_batch, output_gradient } if micro_batch.purpose == Purpose::Train => {
                record.heads.push(micro_batch);
                if output_gradient {
                    self.arrived.insert((k, micro_batch, k));
                }
            }
            Action::Head { micro_batch, .. } => {
                assert_eq!(micro_batch.step, updates, "a head scored with parameters newer than the forward pass");
                record.scores.push((micro_batch, updates));
            }
            Action::Backward { micro_batch, loss, wants, measured, .. } => {
                assert_eq!(micro_batch.step, updates, "a backward pass saw parameters newer than its forward pass");
                assert!(wants.parameters || !measured, "{action} measures nothing");
                match (wants.parameters, measured) {
                    (true, true) => record.measured.push((micro_batch, loss)),
                    (true, false) => record.parameters.push((micro_batch, vec![loss])),
                    (false, _) => {}
                }
                if wants.input {
                    record.inputs.push((micro_batch, loss));
                    self.others[k - 1].push(Event::Gradient { micro_batch, loss });
                }
            }
            Action::BackwardSum { micro_batch, .. } => {
                assert_eq!(micro_batch.step, updates, "a backward pass saw parameters newer than its forward pass");
                let added_up = self.stages[k].plan().added_up(k);
                let losses: Vec<usize> = added_up.iter().map(|&(loss, _)| loss).collect();
                let missing = losses.iter().find(|&&loss| !self.arrived.contains(&(k, micro_batch, loss)));
                assert_eq!(missing, None, "stage {k} adds up a gradient that it does not have");
                record.parameters.push((micro_batch, losses));
            }
            Action::ShareNorm(step) => {
                let shared = self.norms.entry(step).or_default();
                *shared += 1;
                if *shared == self.stages.len() {
                    self.others.iter_mut().for_each(|o| o.push(Event::Norm(step)));
                }
            }
            Action::ShareGradients(_) => unreachable!("there are no replicas"),
            Action::Update(step) => record.updates.push(step),
        }
        self.stages[k].done(action);
        for _ in self.stages[k].take_freed() {
            self.held[k] -= 1;
            match k {
                0 => self.source_credits += 1,
                _ => self.others[k - 1].push(Event::Credit),
            }
        }
    }

    /// Runs until no move is possible; `choose` picks among the possible moves.
    fn run(mut self, mut choose: impl FnMut(usize) -> usize) -> Vec<Record> {
        loop {
            let moves = self.moves();
            if moves.is_empty() {
                break;
            }
            let chosen = moves[choose(moves.len())];
            self.perform(chosen);
        }
        assert!(self.source.is_empty() && self.stages.iter().all(StageSchedule::is_idle), "the pipeline is stuck");
        for record in &mut self.records {
            record.inputs.sort_unstable();
            record.scores.sort_unstable();
        }
        self.records
    }
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Feed,
    Activation(usize),
    Other(usize, usize),
    Act(usize),
}

/// Steps of varying numbers of micro-batches, with an evaluation of two batches after every second step.
fn feed(micros: &[usize]) -> Vec<MicroBatchId> {
    let mut micro_batches = Vec::new();
    for (step, &micros) in micros.iter().enumerate() {
        let step = step as u64;
        let micro_batch =
            |step, purpose, micros| move |micro| MicroBatchId { step, purpose, index: micro, count: micros };
        micro_batches.extend((0..micros).map(micro_batch(step, Purpose::Train, micros)));
        if step % 2 == 1 {
            micro_batches.extend((0..2).map(micro_batch(step + 1, Purpose::Evaluate, 2)));
        }
    }
    micro_batches
}

fn constant(plan: GradientPlan) -> PlanSchedule {
    PlanSchedule::constant(plan)
}

/// The losses that stage `k` may follow: one, mostly with weight 1, or any of them.
fn any_follows(k: usize, stages: usize) -> impl Strategy<Value = Vec<(usize, f64)>> {
    let weight = || prop_oneof![3 => Just(1.0), 1 => Just(0.5)];
    let several = proptest::collection::btree_map(k..stages, weight(), 1..=stages - k);
    prop_oneof![
        (k..stages, weight()).prop_map(|followed| vec![followed]),
        several.prop_map(|followed| followed.into_iter().collect()),
    ]
}

/// A plan of `stages` stages, each following any losses that it can, and measuring any other or none.
fn any_plan(stages: usize) -> impl Strategy<Value = Arc<GradientPlan>> {
    let follows = (0..stages).map(|k| any_follows(k, stages)).collect::<Vec<_>>();
    let measures = (0..stages).map(|k| proptest::option::of(k..stages)).collect::<Vec<_>>();
    (follows, measures).prop_map(|(follows, mut measures)| {
        let follows_it = |followed: &[(usize, f64)], j: usize| followed.iter().any(|&(loss, _)| loss == j);
        for (measured, followed) in measures.iter_mut().zip(&follows) {
            *measured = measured.filter(|&j| !follows_it(followed, j));
        }
        Arc::new(GradientPlan::weighted(follows).unwrap().measuring(measures).unwrap())
    })
}

/// Up to three phases, some of them with another plan in between.
fn any_plans() -> impl Strategy<Value = PlanSchedule> {
    let phases = |stages| {
        let every = proptest::option::of((1_u64..4, any_plan(stages)));
        proptest::collection::vec((1_u64..3, any_plan(stages), every), 1..4)
    };
    (1_usize..7).prop_flat_map(phases).prop_map(|phases| {
        let mut next = 0;
        let phase = |(steps, plan, every)| {
            let from_step = next;
            next += steps;
            PlanPhase { from_step, plan, every }
        };
        PlanSchedule::new(phases.into_iter().map(phase).collect()).unwrap()
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(PolicyName::FillDrain), Just(PolicyName::OneFOneB), Just(PolicyName::Interlock)]
        .prop_map(Policy::from)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any arrival order, any policy and any number in flight give the same sums under the same parameters.
    #[test]
    fn timing_changes_nothing(
        plans in any_plans(),
        micros in proptest::collection::vec(1_usize..5, 1..6),
        in_flight in 1_usize..5,
        policy in any_policy(),
        heads in any::<bool>(),
        norm in any::<bool>(),
        choices in proptest::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let micro_batches = feed(&micros);
        let reference = World::new(&plans, micro_batches.clone(), 1, Policy::default(), heads, norm).run(|_| 0);
        let mut turn = 0;
        let records = World::new(&plans, micro_batches.clone(), in_flight, policy, heads, norm).run(|count| {
            turn += 1;
            choices[turn % choices.len()].index(count)
        });
        prop_assert_eq!(&records, &reference);
        for (k, record) in records.iter().enumerate() {
            // Every micro-batch in order, under the plan of its step.
            let trained = || micro_batches.iter().filter(|micro_batch| micro_batch.purpose == Purpose::Train);
            let losses = |step| plans.at(step).follows(k).iter().map(|&(loss, _)| loss).collect::<Vec<_>>();
            let followed: Vec<_> = trained().map(|&micro_batch| (micro_batch, losses(micro_batch.step))).collect();
            prop_assert_eq!(&record.parameters, &followed);
            let measured = trained().filter_map(|&micro_batch| Some((micro_batch, plans.at(micro_batch.step).measures(k)?)));
            prop_assert_eq!(&record.measured, &measured.collect::<Vec<_>>());
            let crossing = |micro_batch: &MicroBatchId| plans.at(micro_batch.step).losses_sent_back(k).len();
            prop_assert_eq!(record.inputs.len(), trained().map(crossing).sum::<usize>());
            prop_assert_eq!(record.updates.len(), micros.len());
            prop_assert_eq!(record.forwards.len(), micro_batches.len());
            prop_assert!(record.forwards.iter().all(|(micro_batch, updates)| micro_batch.step == *updates));
        }
    }
}

fn single(width: usize, stages: usize, stage: usize, policy: PolicyName) -> StageSchedule {
    StageSchedule::new(StageRole {
        stage,
        replicas: false,
        plans: constant(GradientPlan::of_widths(&vec![width; stages]).unwrap()),
        has_head: true,
        global_norm: false,
        credits: 2,
        policy: policy.into(),
        first_step: 0,
        readout_refresh: None,
    })
}

#[test]
fn measured_gradients_are_told_from_followed_ones() {
    let plan = GradientPlan::of_widths(&[1, 1, 1]).unwrap().measuring(vec![Some(1), Some(2), None]).unwrap();
    let run = |policy: PolicyName| {
        let mut stage =
            StageSchedule::new(StageRole { plans: constant(plan.clone()), ..single(1, 3, 1, policy).role().clone() });
        stage.on(Event::Activation(train(0, 1))).unwrap();
        let before = until_waiting(&mut stage);
        stage.on(Event::Gradient { micro_batch: train(0, 1), loss: 2 }).unwrap();
        before + " | " + &until_waiting(&mut stage)
    };
    // Loss 1 is followed here and measured by the previous stage; loss 2 is measured here and goes no further back.
    assert_eq!(run(PolicyName::Interlock), "F0 H0 I0.1 W0.1 | w0.2 U");
    assert_eq!(run(PolicyName::OneFOneB), "F0 H0 B0.1 | w0.2 U");
    let far = GradientPlan::of_widths(&[2, 1, 1]).unwrap().measuring(vec![Some(2), Some(2), None]).unwrap();
    let role = single(1, 3, 1, PolicyName::OneFOneB).role().clone();
    let mut stage = StageSchedule::new(StageRole { plans: constant(far), ..role });
    stage.on(Event::Activation(train(0, 1))).unwrap();
    assert_eq!(until_waiting(&mut stage), "F0 H0 B0.1");
    stage.on(Event::Gradient { micro_batch: train(0, 1), loss: 2 }).unwrap();
    assert_eq!(until_waiting(&mut stage), "b0.2 U");
}

#[test]
fn a_change_of_plan_holds_from_its_step_on_unless_that_has_begun() {
    let mut stage = single(1, 3, 1, PolicyName::Interlock);
    let phase = |from_step, width: usize| PlanPhase {
        from_step,
        plan: GradientPlan::of_widths(&[width; 3]).unwrap().into(),
        every: None,
    };
    let step = |step| MicroBatchId { step, ..train(0, 1) };
    // Its activation has arrived, but nothing of the step has begun.
    stage.on(Event::Activation(step(0))).unwrap();
    stage.follow(phase(0, 2)).unwrap();
    assert_eq!(until_waiting(&mut stage), "F0 H0 I0.1");
    assert!(stage.follow(phase(0, 1)).unwrap_err().to_string().contains("step 0, which has begun"));
    stage.follow(phase(1, 1)).unwrap();
    // The change is for a later step than the present one, which continues as it began.
    stage.on(Event::Gradient { micro_batch: step(0), loss: 2 }).unwrap();
    assert_eq!(until_waiting(&mut stage), "W0.2 U");
    stage.on(Event::Activation(step(1))).unwrap();
    stage.on(Event::Credit).unwrap();
    assert_eq!(until_waiting(&mut stage), "F0 H0 W0.1 U");
    assert!(stage.follow(phase(1, 2)).unwrap_err().to_string().contains("step 1"));
    assert!(stage.follow(PlanPhase { plan: GradientPlan::new(vec![0]).unwrap().into(), ..phase(9, 1) }).is_err());
}

fn train(micro: usize, micros: usize) -> MicroBatchId {
    MicroBatchId { step: 0, purpose: Purpose::Train, index: micro, count: micros }
}

/// Everything that the stage does until it has to wait, in its notation.
fn until_waiting(schedule: &mut StageSchedule) -> String {
    let mut done = Vec::new();
    while let Some(action) = schedule.begin() {
        schedule.done(action);
        done.push(action.to_string());
    }
    done.join(" ")
}

#[test]
fn a_relay_comes_before_the_stages_own_work() {
    let mut stage = single(3, 4, 2, PolicyName::Interlock);
    stage.on(Event::Activation(train(0, 2))).unwrap();
    stage.on(Event::Activation(train(1, 2))).unwrap();
    assert_eq!(until_waiting(&mut stage), "F0 H0 I0.2 F1 H1 I1.2");
    stage.on(Event::Gradient { micro_batch: train(1, 2), loss: 3 }).unwrap();
    // The second gradient is relayed, its parameter gradient waits for its turn.
    assert_eq!(until_waiting(&mut stage), "I1.3");
    stage.on(Event::Gradient { micro_batch: train(0, 2), loss: 3 }).unwrap();
    assert_eq!(until_waiting(&mut stage), "I0.3 W0.3 W1.3 U");
}

#[test]
fn gradients_are_shared_as_soon_as_they_are_complete() {
    // The stage follows its own loss, and relays the gradient of loss 2.
    let plan = GradientPlan::of_widths(&[3, 1, 1]).unwrap();
    let role =
        StageRole { replicas: true, plans: constant(plan), ..single(1, 3, 1, PolicyName::Interlock).role().clone() };
    let mut stage = StageSchedule::new(role);
    assert!(stage.on(Event::Replicas(0)).is_err());
    // The second replica's micro-batches: those before them are the first one's.
    for micro in 2..4 {
        stage.on(Event::Activation(train(micro, 2))).unwrap();
    }
    assert_eq!(until_waiting(&mut stage), "F2 F3 H2 W2.1 H3 W3.1 S");
    let gradient = |micro| Event::Gradient { micro_batch: train(micro, 2), loss: 2 };
    stage.on(gradient(2)).unwrap();
    assert_eq!(until_waiting(&mut stage), "I2.2");
    assert_eq!(stage.waiting_for(), WaitingFor::Gradient { loss: 2 });
    // What other stages wait for comes first.
    let mut relays = StageSchedule::new(stage.role().clone());
    for micro in 2..4 {
        relays.on(Event::Activation(train(micro, 2))).unwrap();
    }
    while relays.next().is_some_and(|action| action.to_string() != "W3.1") {
        let action = relays.begin().unwrap();
        relays.done(action);
    }
    relays.on(gradient(2)).unwrap();
    let last = relays.begin().unwrap();
    relays.done(last);
    assert_eq!(last.to_string() + " " + &until_waiting(&mut relays), "I2.2 W3.1 S");
    // The sum may come before the last relay.
    let mut early = stage.clone();
    early.on(Event::Replicas(0)).unwrap();
    assert_eq!(until_waiting(&mut early), "");
    early.on(gradient(3)).unwrap();
    assert_eq!(until_waiting(&mut early), "I3.2 U");
    stage.on(gradient(3)).unwrap();
    assert_eq!(until_waiting(&mut stage), "I3.2");
    assert_eq!(stage.waiting_for(), WaitingFor::Replicas);
    stage.on(Event::Replicas(0)).unwrap();
    assert!(stage.on(Event::Replicas(0)).is_err());
    assert_eq!(until_waiting(&mut stage), "U");
}

#[test]
fn fill_drain_runs_all_forward_passes_first() {
    let mut stage = single(4, 4, 3, PolicyName::FillDrain);
    for micro in 0..2 {
        stage.on(Event::Activation(train(micro, 2))).unwrap();
    }
    assert_eq!(until_waiting(&mut stage), "F0 F1 H0 B0.3 H1 B1.3 U");
}

#[test]
fn without_credit_nothing_is_sent() {
    let mut stage = single(1, 2, 0, PolicyName::Interlock);
    for micro in 0..3 {
        stage.on(Event::Activation(train(micro, 3))).unwrap();
    }
    // The stage holds as many micro-batches as it may, so the previous stage waits: an action that frees one comes before the next head.
    assert_eq!(until_waiting(&mut stage), "F0 F1 H0 W0.0 H1 W1.0");
    stage.on(Event::Credit).unwrap();
    assert_eq!(until_waiting(&mut stage), "F2 H2 W2.0 U");
}

#[test]
fn a_message_that_contradicts_the_plan_is_refused() {
    let mut stage = single(1, 2, 0, PolicyName::Interlock);
    assert!(stage.on(Event::Credit).is_err());
    assert!(stage.on(Event::Norm(0)).is_err());
    assert!(stage.on(Event::Gradient { micro_batch: train(0, 1), loss: 1 }).is_err());
    stage.on(Event::Activation(train(0, 1))).unwrap();
    assert!(stage.on(Event::Activation(train(0, 1))).is_err());
    // The stage's own loss never arrives as a message.
    let forward = stage.begin().unwrap();
    stage.done(forward);
    assert!(stage.on(Event::Gradient { micro_batch: train(0, 1), loss: 0 }).is_err());
}
