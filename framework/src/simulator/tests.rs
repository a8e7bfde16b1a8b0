//! Steps worked out by hand, and properties of any scenario.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{
    Error,
    error::Wait,
    plan::Window,
    schedule::{Action, PolicyName},
    timeline::{Span, TimelineGrid},
};

/// Costs `F = B = W = 1` and `H = 0.3`; the last stage's loss costs nothing.
fn scenario(width: usize, stages: usize) -> Scenario {
    let plan = GradientPlan::of_widths(&vec![width; stages]).unwrap();
    let costs = (0..stages).map(|k| StageCosts::of(1.0, if k + 1 < stages { 0.3 } else { 0.0 }, 1.0, 1.0)).collect();
    Scenario::new(plan, costs)
}

fn found(scenario: &Scenario) -> Simulated {
    let found = simulate(scenario).unwrap();
    assert!(found.steady, "{scenario:?}");
    found
}

fn step(scenario: &Scenario) -> f64 {
    (found(scenario).step_seconds * 1e6).round() / 1e6
}

#[test]
fn a_step_takes_as_long_for_many_stages_as_for_few() {
    for (width, expected) in [(1, 3.3), (2, 5.3), (3, 7.3), (5, 11.3)] {
        for stages in [8, 16, 64] {
            let scenario = scenario(width, stages);
            assert_eq!(step(&scenario), expected, "width {width}, {stages} stages");
            let CriticalPath { bottleneck, .. } = found(&scenario).critical;
            match bottleneck {
                Bottleneck::Work { .. } => assert_eq!(width, 1),
                Bottleneck::Chain { first, last } => assert_eq!(last - first + 1, width),
                other => panic!("{other}"),
            }
        }
    }
    for stages in [2, 4, 8, 16, 64] {
        let scenario = scenario(stages, stages);
        assert_eq!(step(&scenario), 2.0 * stages as f64 + 1.0, "end-to-end, {stages} stages");
        assert_eq!(found(&scenario).critical.bottleneck, Bottleneck::Chain { first: 0, last: stages - 1 });
    }
}

/// The same costs; every stage has the same window.
fn windows(group: usize, window: Window, stages: usize) -> Scenario {
    let plan = GradientPlan::of_windows(group, &vec![window; stages]).unwrap();
    Scenario {
        heads: (0..stages).map(|k| plan.is_needed(k)).collect(),
        ..Scenario::new(plan, scenario(1, stages).costs)
    }
}

/// Backward passes and gradient messages of one step.
fn passes_and_messages(scenario: &Scenario) -> (usize, usize) {
    let of_one_step = |span: &&Span| span.action.trains() && span.action.step() == 1;
    let spans: Vec<_> = found(scenario).timeline.spans;
    let (mut passes, mut messages) = (0, 0);
    for span in spans.iter().filter(of_one_step) {
        match span.action {
            Action::Backward { wants, loss, .. } => {
                // The parameter pass after an input pass of the same loss is the same pass.
                passes += usize::from(wants.input || !scenario.plan.gradients(span.stage, loss).input);
                messages += usize::from(wants.input);
            }
            Action::BackwardSum { .. } => passes += 1,
            _ => {}
        }
    }
    (passes, messages)
}

#[test]
fn the_mean_of_a_window_costs_what_its_last_loss_costs_in_the_middle_of_the_network() {
    for stages in [8, 16, 64] {
        // The sum waits for the last loss as the last loss alone does.
        for width in [2, 3] {
            let [mean, last] =
                [Window::Mean(width), Window::Last(width)].map(|window| step(&windows(1, window, stages)));
            assert_eq!(mean, last, "width {width}, {stages} stages");
        }
    }
    for (width, stages, mean, last) in [(2, 4, (6, 3), (6, 3)), (3, 4, (8, 5), (6, 4)), (5, 8, (29, 22), (20, 16))] {
        assert_eq!(passes_and_messages(&windows(1, Window::Mean(width), stages)), mean);
        assert_eq!(passes_and_messages(&windows(1, Window::Last(width), stages)), last);
    }
    // Stage 0 holds the gradient of its own head until that of the next stage's has come.
    assert_eq!(found(&windows(1, Window::Mean(2), 4)).peak_waiting_gradients, [2, 2, 2, 0]);
    assert_eq!(found(&windows(1, Window::Last(2), 4)).peak_waiting_gradients, [0; 4]);
}

#[test]
fn blocks_of_stages_are_pipelines_of_their_own() {
    for group in [2, 4] {
        for micro_batches in [1, 2, 8] {
            for stages in [8, 16, 64] {
                let blocks = windows(group, Window::Last(1), stages);
                let policy = PolicyName::OneFOneB.into();
                // Without the time of heads: the bubble is (g-1)/(M+g-1) whatever the number of stages.
                let costs = vec![StageCosts::of(1.0, 0.0, 1.0, 1.0); stages];
                let scenario = Scenario { micro_batches, in_flight: 16, policy, costs, ..blocks };
                let expected = 3.0 * (micro_batches + group - 1) as f64;
                // The first stages of blocks may begin the next step while the last ones finish.
                assert!(step(&scenario) <= expected, "{group} {micro_batches} {stages}: {}", step(&scenario));
                let alone =
                    Scenario { costs: scenario.costs[..group].to_vec(), ..windows(group, Window::Last(1), group) };
                let alone = Scenario { micro_batches, in_flight: 16, policy, ..alone };
                assert_eq!(step(&scenario), step(&alone), "{group} {micro_batches} {stages}");
            }
        }
    }
    assert_eq!(passes_and_messages(&windows(2, Window::Last(1), 8)), (8, 4));
}

#[test]
fn micro_batches_fill_the_waits() {
    let with =
        |policy: PolicyName| Scenario { micro_batches: 8, in_flight: 18, policy: policy.into(), ..scenario(4, 4) };
    // 8 (F + B + W), and the waits of the first and the last micro-batch: 3 (F + B + W) if both gradients are computed in one pass.
    assert_eq!(step(&with(PolicyName::FillDrain)), 33.0);
    assert_eq!(step(&with(PolicyName::OneFOneB)), 33.0);
    // Parameter gradients fill the waits.
    let interlock = with(PolicyName::Interlock);
    assert_eq!(step(&interlock), 24.0);
    assert_eq!(found(&interlock).lower_bound(&interlock), 24.0);
    // The simplest schedule holds all micro-batches, the others no more than there are downstream stages.
    assert_eq!(found(&with(PolicyName::FillDrain)).peak_live, [8, 8, 8, 8]);
    assert_eq!(found(&Scenario { in_flight: 5, ..with(PolicyName::OneFOneB) }).peak_live, [5, 5, 4, 1]);
}

#[test]
fn the_least_room_that_costs_nothing() {
    let least = |width: usize, stages: usize, micro_batches| {
        let plan = Arc::new(GradientPlan::of_widths(&vec![width; stages]).unwrap());
        least_in_flight(&plan, micro_batches, PolicyName::Interlock.into()).unwrap()
    };
    assert_eq!([1, 2, 3, 8].map(|width| least(width, 8, 1)), [2; 4]);
    assert_eq!([1, 2, 3, 8].map(|width| least(width, 8, 8)), [2, 2, 4, 8]);
}

#[test]
fn what_is_on_its_way_costs_no_ones_time() {
    // Forward and back over the boundary, once a step.
    let slow = Scenario { links: vec![[Link { latency: 0.25, bandwidth: f64::INFINITY }; 2]; 2], ..scenario(2, 2) };
    assert_eq!(step(&slow), 5.5);
    assert!(found(&slow).critical.segments.contains(&Segment { kind: "transfer", count: 2.0, seconds: 0.5 }));
    // With local losses no stage waits for a message, unless a link is busy for longer than the stages.
    let local = |bandwidth| {
        let mut local =
            Scenario { links: vec![[Link { latency: 3.0, bandwidth }; 2]; 2], in_flight: 9, ..scenario(1, 2) };
        local.costs[0].activation_bytes = 100;
        step(&local)
    };
    assert_eq!((local(100.0), local(f64::INFINITY)), (3.3, 3.3));
    assert_eq!(local(20.0), 5.0);
}

#[test]
fn shared_devices_and_cores_are_taken_in_turns() {
    let shared = Scenario { devices: vec![0; 4], ..scenario(1, 4) };
    assert_eq!(step(&shared), 12.9);
    assert!((found(&shared).lower_bound(&shared) - 12.9).abs() < 1e-9);
    let cores = Scenario { cores: Some(2), ..scenario(1, 4) };
    let found = found(&cores);
    assert!(
        (found.lower_bound(&cores) - 6.45).abs() < 1e-9 && (6.45..7.0).contains(&found.step_seconds),
        "{}",
        found.step_seconds
    );
    assert_eq!(found.critical.bottleneck, Bottleneck::Device);
    // One core is not enough for a device of two threads beside another.
    let wide = Scenario { cores: Some(3), threads: vec![2; 4], ..scenario(1, 4) };
    assert_eq!(step(&wide), 12.9);
}

#[test]
fn what_makes_a_step_long_is_named() {
    let mut slow = scenario(1, 4);
    slow.costs[2].forward = 5.0;
    assert_eq!(found(&slow).critical.bottleneck, Bottleneck::Work { stage: 2 });
    assert_eq!(
        found(&slow).critical.to_string(),
        "stage 2 has work all the time (forward 5000.0 ms, head 300.0 ms, parameter gradient 2000.0 ms)"
    );
    let norm = Scenario { global_norm: true, ..scenario(1, 4) };
    assert_eq!(found(&norm).critical.bottleneck, Bottleneck::GlobalNorm);
    let tight = Scenario { in_flight: 1, ..scenario(1, 4) };
    assert!(matches!(found(&tight).critical.bottleneck, Bottleneck::InFlight { .. }), "{}", found(&tight).critical);
    assert!(step(&tight) > 3.3);
}

#[test]
fn a_deadlock_is_an_error_with_its_cycle() {
    let stuck = Scenario { in_flight: 0, ..scenario(1, 2) };
    match simulate(&stuck) {
        Err(Error::Deadlock(deadlock)) => {
            assert_eq!(deadlock.cycle, [Wait { stage: 0, on: None, what: "an activation".to_owned() }]);
            assert_eq!(deadlock.to_string(), "stage 0 waits for an activation");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    let refused = |scenario: Scenario| simulate(&scenario).unwrap_err().to_string();
    let with = |change: &dyn Fn(&mut Scenario)| {
        let mut scenario = scenario(2, 3);
        change(&mut scenario);
        refused(scenario)
    };
    assert!(with(&|s| s.costs.truncate(2)).contains("costs of 2 stages"));
    assert!(with(&|s| s.micro_batches = 0).contains("0 micro-batches"));
    assert!(with(&|s| s.cores = Some(0)).contains("0 cores"));
    assert!(with(&|s| s.heads[1] = false).contains("stage 1 has no head"));
    assert!(with(&|s| s.costs[1].both = f64::NAN).contains("NaN seconds"));
    assert!(with(&|s| s.hop = -1.0).contains("-1 seconds"));
    assert!(with(&|s| s.links[0][1].bandwidth = 0.0).contains("0 bytes a second"));
}

fn any_scenario() -> impl Strategy<Value = Scenario> {
    let times = || {
        (0_u32..20, 0_u32..20, 0_u32..20, 0_u32..20, 0_u32..4).prop_map(|(f, h, b, w, u)| {
            let [f, h, b, w, u] = [f, h, b, w, u].map(|tenths| f64::from(tenths) / 10.0);
            StageCosts { update: u, norm: u, ..StageCosts::of(f, h, b, w) }
        })
    };
    let policy = prop_oneof![Just(PolicyName::FillDrain), Just(PolicyName::OneFOneB), Just(PolicyName::Interlock)];
    (1_usize..7, policy, 1_usize..5, 1_usize..6, any::<bool>(), any::<bool>(), prop::option::of(1_usize..4))
        .prop_flat_map(move |(stages, policy, micro_batches, in_flight, global_norm, shared, cores)| {
            let follows = (0..stages).map(|k| prop::collection::btree_set(k..stages, 1..3)).collect::<Vec<_>>();
            let costs = prop::collection::vec(times(), stages);
            let links = prop::collection::vec((0_u32..5).prop_map(|l| f64::from(l) / 10.0), stages);
            (follows, costs, links).prop_map(move |(follows, costs, links)| {
                let links = links.into_iter().map(|latency| [Link { latency, ..Link::default() }; 2]).collect();
                let devices = (0..stages).map(|k| if shared { k / 2 } else { k }).collect();
                // Weights of 1 and of 1/2: a single loss of weight 1 is not added up.
                let weighted = |losses: BTreeSet<usize>| {
                    let weight = 1.0 / losses.len() as f64;
                    losses.into_iter().map(|loss| (loss, weight)).collect()
                };
                let plan = GradientPlan::weighted(follows.into_iter().map(weighted).collect()).unwrap();
                let scenario = Scenario::new(plan, costs);
                let policy = policy.into();
                Scenario { micro_batches, in_flight, policy, global_norm, links, devices, cores, ..scenario }
            })
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// No schedule deadlocks, none is faster than its busiest stage, and the critical path accounts for all of the time.
    #[test]
    fn any_pipeline_goes_on(scenario in any_scenario()) {
        let found = simulate(&scenario).unwrap();
        if found.steady {
            prop_assert!(found.step_seconds >= found.lower_bound(&scenario) - 1e-6);
            let path: f64 = found.critical.segments.iter().map(|segment| segment.seconds).sum();
            prop_assert!((path - found.step_seconds).abs() < 1e-6, "{path} {}", found.step_seconds);
        }
        for k in 0..scenario.plan.stages() {
            prop_assert!(found.peak_held[k] <= scenario.in_flight && found.peak_live[k] <= found.peak_held[k]);
            prop_assert!(found.idle(k) > -1e-6);
        }
        // One after another, and none twice.
        let mut last = vec![0.0; scenario.plan.stages()];
        let mut seen = std::collections::HashSet::new();
        for span in &found.timeline.spans {
            prop_assert!(span.start >= last[span.stage] && span.end >= span.start);
            last[span.stage] = span.end;
            prop_assert!(seen.insert((span.stage, span.action)));
        }
    }
}

/// Two steps of three stages where every action takes 1, as a grid that parses back.
fn grid(width: usize, micro_batches: usize, policy: PolicyName) -> String {
    grid_of(GradientPlan::of_widths(&[width; 3]).unwrap(), micro_batches, policy)
}

fn grid_of(plan: GradientPlan, micro_batches: usize, policy: PolicyName) -> String {
    let costs = vec![StageCosts { update: 1.0, ..StageCosts::of(1.0, 1.0, 1.0, 1.0) }; 3];
    let scenario = Scenario { micro_batches, policy: policy.into(), in_flight: 4, ..Scenario::new(plan, costs) };
    let mut timeline = simulate(&scenario).unwrap().timeline;
    timeline.spans.retain(|span| span.action.step() < 2);
    let grid = TimelineGrid::of(&timeline, 1.0).unwrap();
    assert_eq!(grid.to_string().parse::<TimelineGrid>().unwrap(), grid);
    grid.to_string()
}

#[test]
fn interlocked_stages_wait_for_the_window_only() {
    insta::assert_snapshot!(grid(2, 1, PolicyName::Interlock), @r"
    F0 .  .  .    W0.1 -    U F0@1 .    .    .      W0.1@1 -      U@1 .
    .  F0 H0 I0.1 .    W0.2 - U    F0@1 H0@1 I0.1@1 .      W0.2@1 -   U@1
    .  .  F0 H0   I0.2 W0.2 U .    .    F0@1 H0@1   I0.2@1 W0.2@1 U@1 .
    ");
}

#[test]
fn a_stage_adds_up_when_the_last_gradient_has_come() {
    let plan = GradientPlan::of_windows(1, &[Window::Mean(2), Window::Mean(2), Window::Mean(2)]).unwrap();
    insta::assert_snapshot!(grid_of(plan, 1, PolicyName::Interlock), @r"
    F0 H0 .  .    W0   -    U F0@1 H0@1 .    .      W0@1   -      U@1 .
    .  F0 H0 I0.1 .    W0   - U    F0@1 H0@1 I0.1@1 .      W0@1   -   U@1
    .  .  F0 H0   I0.2 W0.2 U .    .    F0@1 H0@1   I0.2@1 W0.2@1 U@1 .
    ");
}

#[test]
fn parameter_gradients_fill_the_waits_of_end_to_end() {
    insta::assert_snapshot!(grid(3, 2, PolicyName::Interlock), @r"
    F0 F1 .  .  .    .    W0.2 -    .    W1.2 - U F0@1 F1@1 .    .    .      .      W0.2@1 -      .      W1.2@1 -   U@1
    .  F0 F1 .  .    I0.2 W0.2 .    I1.2 W1.2 U . .    F0@1 F1@1 .    .      I0.2@1 W0.2@1 .      I1.2@1 W1.2@1 U@1 .
    .  .  F0 H0 I0.2 F1   H1   I1.2 W0.2 W1.2 U . .    .    F0@1 H0@1 I0.2@1 F1@1   H1@1   I1.2@1 W0.2@1 W1.2@1 U@1 .
    ");
}

#[test]
fn one_forward_one_backward() {
    insta::assert_snapshot!(grid(3, 3, PolicyName::OneFOneB), @r"
    F0 F1 F2 .  .    . .    .  W0.2 - .    .  W1.2 - .    . W2.2 - U F0@1 F1@1 F2@1 .    .      . .      .    W0.2@1 - .      .    W1.2@1 - .      . W2.2@1 - U@1
    .  F0 F1 F2 .    . B0.2 -  .    . B1.2 -  .    . B2.2 - U    . . .    F0@1 F1@1 F2@1 .      . B0.2@1 -    .      . B1.2@1 -    .      . B2.2@1 - U@1    . .
    .  .  F0 H0 B0.2 - F1   H1 B1.2 - F2   H2 B2.2 - U    . .    . . .    .    F0@1 H0@1 B0.2@1 - F1@1   H1@1 B1.2@1 - F2@1   H2@1 B2.2@1 - U@1    . .      . .
    ");
}

#[test]
fn fill_and_drain() {
    insta::assert_snapshot!(grid(3, 3, PolicyName::FillDrain), @r"
    F0 F1 F2 .  .  .  .    . .    .    W0.2 -    .    W1.2 -    . W2.2 - U F0@1 F1@1 F2@1 .    .    .    .      . .      .      W0.2@1 -      .      W1.2@1 -      . W2.2@1 - U@1
    .  F0 F1 F2 .  .  .    . B0.2 -    .    B1.2 -    .    B2.2 - U    . . .    F0@1 F1@1 F2@1 .    .    .      . B0.2@1 -      .      B1.2@1 -      .      B2.2@1 - U@1    . .
    .  .  F0 F1 F2 H0 B0.2 - H1   B1.2 -    H2   B2.2 -    U    . .    . . .    .    F0@1 F1@1 F2@1 H0@1 B0.2@1 - H1@1   B1.2@1 -      H2@1   B2.2@1 -      U@1    . .      . .
    ");
}
