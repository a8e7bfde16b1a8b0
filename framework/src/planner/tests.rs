//! Plans for models whose units' costs are made up.

use std::sync::Arc;

use super::*;
use crate::{ActivationDtype, GradientPlan, device::link::Link, schedule::PolicyName, stage::Recompute};

/// A unit whose forward pass takes `cost`, as do both of its gradients; its head takes 0.5, its bytes are powers of ten.
fn unit(cost: f64, head: bool) -> UnitCosts {
    UnitCosts {
        name: "u".to_owned(),
        forward: cost,
        input_gradient: cost,
        parameter_gradient: cost,
        both: 1.9 * cost,
        parameters_only: 1.2 * cost,
        update: 0.01,
        send: 0.001,
        receive: 0.002,
        add: 0.25,
        output_bytes: 1,
        parameter_bytes: 10,
        gradient_bytes: 100,
        optimizer_bytes: 1000,
        saved_bytes: Some(10_000),
        pending_bytes: Some(100_000),
        transient_bytes: Some(1_000_000),
        heads: head.then(|| ("fc".to_owned(), head_costs(1))).into_iter().collect(),
    }
}

/// A head that takes `times` as much as `fc`.
fn head_costs(times: u32) -> HeadCosts {
    HeadCosts {
        needed: 0.5 * f64::from(times),
        probe: 0.4 * f64::from(times),
        update: 0.02 * f64::from(times),
        readout_bytes: 0,
        parameter_bytes: 20 * u64::from(times),
        gradient_bytes: 200 * u64::from(times),
        optimizer_bytes: 2000 * u64::from(times),
        transient_bytes: Some(5_000_000 * u64::from(times)),
    }
}

/// The descriptions of heads of stages; an empty one is none.
fn archs(archs: &[&str]) -> Vec<Option<String>> {
    archs.iter().map(|&arch| (!arch.is_empty()).then(|| arch.to_owned())).collect()
}

fn profile(costs: &[f64]) -> Profile {
    let units = costs.iter().enumerate().map(|(i, &cost)| unit(cost, i + 1 < costs.len())).collect();
    let device = DeviceCosts {
        dtype: ActivationDtype::F32,
        device: "made up".to_owned(),
        action: 0.0001,
        units,
        loss: 0.03,
        loss_bytes: Some(7),
        scratch_bytes: Some(0),
    };
    Profile { examples: 1, devices: vec![device], order: vec![0] }
}

fn setup(profile: &Profile, width: usize, stages: usize, micro_batches: usize) -> PlannerSetup<'_> {
    PlannerSetup {
        profile,
        heads: (0..stages).map(|k| (k + 1 < stages && width < stages).then(|| "fc".to_owned())).collect(),
        plan: Arc::new(GradientPlan::of_widths(&vec![width; stages]).unwrap()),
        micro_batches,
        in_flight: 2,
        policy: PolicyName::Interlock.into(),
        global_norm: false,
        readout_refresh: None,
        recompute: Recompute::None,
        placement: Placement::dedicated(stages),
        links: vec![[Link::default(); 2]; stages],
        replicas: Replicas::default(),
    }
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-6, "{a} is not {b}");
}

#[test]
fn costs_of_units_add_up_to_those_of_stages() {
    let profile = profile(&[8.0, 4.0, 2.0, 1.0]);
    let setup = setup(&profile, 2, 2, 1);
    let cut = setup.simulate(&[2, 2]).unwrap();
    let [first, second] = cut.scenario.costs.as_slice() else { panic!() };
    close(first.forward, 0.0001 + 12.0 + 0.001);
    close(first.parameters_only, 0.0001 + 0.002 + 9.6 + 7.6);
    close(second.forward, 0.0001 + 0.002 + 3.0);
    close(second.head, 0.0001 + 0.03);
    close(second.input, 0.0001 + 3.0 + 0.001);
    close(second.parameters, 0.0001 + 3.0);
    close(second.update, 0.0001 + 0.02);
    assert_eq!((first.activation_bytes, second.gradient_bytes), (1, 1));
    // The way there and back: both forward passes, the loss, the input's gradient, and what stage 0 makes of it.
    let way = first.forward + second.forward + second.head + second.input + first.parameters_only + first.update;
    assert!(cut.simulated.step_seconds > way && cut.simulated.step_seconds < way + 0.001);
    // Two of each unit; what was saved, once; the largest transient.
    let held = 2 * (10 + 100 + 1000) + 10_000 * 2 + 1_000_000;
    assert_eq!(setup.memory(&cut).unwrap(), [held, held + 2 * 100_000]);
}

#[test]
fn a_stage_that_recomputes_takes_longer_and_keeps_its_input() {
    let profile = profile(&[1.0, 2.0, 4.0, 8.0]);
    let plain = setup(&profile, 1, 2, 1);
    let again = PlannerSetup { recompute: Recompute::Stages(vec![1]), ..plain.clone() };
    let [plain_cut, cut] = [&plain, &again].map(|setup| setup.simulate(&[2, 2]).unwrap());
    let stage = |cut: &PlannedCut, k: usize| cut.scenario.costs[k];
    close(stage(&cut, 1).parameters_only - stage(&plain_cut, 1).parameters_only, 12.0);
    assert_eq!(stage(&cut, 0), stage(&plain_cut, 0));
}

#[test]
fn replicas_add_up_gradients_in_two_rounds() {
    let link = Link { latency: 0.1, bandwidth: 100.0 };
    close(Replicas { count: 4, link }.all_reduce(400), 2.0 * (0.1 + 3.0));
    close(Replicas { count: 1, link }.all_reduce(400), 0.0);
    let profile = profile(&[1.0; 4]);
    let one = setup(&profile, 1, 2, 1);
    let four = PlannerSetup { replicas: Replicas { count: 4, link }, ..one.clone() };
    let update = |setup: &PlannerSetup<'_>| setup.simulate(&[2, 2]).unwrap().scenario.costs[0].update;
    // Of two units and a head.
    close(update(&four) - update(&one), 2.0 * (0.1 + 3.0));
}

/// Every cut of `units` into `stages`.
fn cuts(units: usize, stages: usize) -> Vec<Vec<usize>> {
    if stages == 1 {
        return vec![vec![units]];
    }
    let with = |first: usize| cuts(units - first, stages - 1).into_iter().map(move |rest| [vec![first], rest].concat());
    (1..=units + 1 - stages).flat_map(with).collect()
}

#[test]
fn no_cut_is_better_than_the_best() {
    let profile = profile(&[3.0, 1.0, 1.0, 2.0, 5.0, 1.0, 4.0]);
    for (width, stages, micro_batches) in [(1, 2, 1), (1, 3, 2), (2, 3, 1), (2, 4, 4), (3, 3, 1), (3, 4, 1), (4, 4, 2)]
    {
        let setup = setup(&profile, width, stages, micro_batches);
        let best = setup.best_cut(&[]).unwrap();
        assert!(best.proven);
        let step = |cut: &Vec<usize>| setup.simulate(cut).unwrap().simulated.step_seconds;
        let least = cuts(7, stages).iter().map(step).fold(f64::INFINITY, f64::min);
        close(best.simulated.step_seconds, least);
    }
}

#[test]
fn units_that_share_parameters_stay_together() {
    let profile = profile(&[1.0; 6]);
    let setup = setup(&profile, 1, 3, 1);
    assert_eq!(setup.best_cut(&[]).unwrap().units_per_stage, [2, 2, 2]);
    assert_eq!(setup.best_cut(&[(1, 3)]).unwrap().units_per_stage, [1, 3, 2]);
    assert!(setup.best_cut(&[(0, 5)]).unwrap_err().to_string().contains("ties on one stage"));
}

#[test]
fn a_stage_needs_a_head_where_some_stage_follows_it() {
    let mut profile = profile(&[1.0; 4]);
    profile.devices[0].units[1].heads.clear();
    let setup = setup(&profile, 1, 2, 1);
    assert_ne!(setup.best_cut(&[]).unwrap().units_per_stage[0], 2);
    assert!(setup.simulate(&[2, 2]).is_err());
    assert!(setup.simulate(&[4]).is_err() && setup.simulate(&[5, 0]).is_err());
    let plan = Arc::new(GradientPlan::of_widths(&[1; 5]).unwrap());
    let many = PlannerSetup { plan, heads: archs(&["fc", "fc", "fc", "fc", ""]), ..setup };
    assert!(many.best_cut(&[]).unwrap_err().to_string().contains("5 stages for a model of 4 units"));
}

#[test]
fn each_stage_has_the_costs_of_its_own_head() {
    let mut profile = profile(&[1.0; 6]);
    for unit in &mut profile.devices[0].units[2..5] {
        unit.heads.insert("large".to_owned(), head_costs(10));
    }
    let setup = PlannerSetup { heads: archs(&["fc", "large", ""]), ..setup(&profile, 2, 3, 1) };
    let cut = setup.simulate(&[2, 2, 2]).unwrap();
    let [first, second, last] = cut.scenario.costs.as_slice() else { panic!() };
    for (costs, times) in [(first, 1.0), (second, 10.0)] {
        close(costs.head, 0.0001 + 0.5 * times);
        close(costs.probe, 0.0001 + 0.4 * times);
        close(costs.update, 0.0001 + 2.0 * 0.01 + 0.02 * times);
    }
    close(last.head, 0.0001 + 0.03);
    let memory = setup.memory(&cut).unwrap();
    // Nine times as many bytes of parameters, gradients, optimizer state and temporary values.
    assert_eq!(memory[1] - memory[0], 9 * 2220 + 9 * 5_000_000);
    // No other stage needs a large head, and stage 1 cannot end before unit 2.
    assert!(setup.simulate(&[1, 1, 4]).is_err());
    let swapped = PlannerSetup { heads: archs(&["large", "fc", ""]), ..setup.clone() };
    assert!(swapped.simulate(&[2, 2, 2]).is_err());
    let best = |setup: &PlannerSetup<'_>| setup.best_cut(&[]).unwrap().units_per_stage;
    assert_eq!((best(&setup)[0], best(&swapped)[0]), (2, 3));
    // The stage with the large head has least to do beside it.
    assert_eq!(best(&setup), [2, 1, 3]);
}

#[test]
fn a_stage_that_follows_several_losses_adds_up_their_gradients_first() {
    let profile = profile(&[2.0, 1.0, 1.0]);
    let plan = |losses: Vec<(usize, f64)>| {
        Arc::new(GradientPlan::weighted(vec![losses, vec![(2, 1.0)], vec![(2, 1.0)]]).unwrap())
    };
    let follows =
        |losses| PlannerSetup { plan: plan(losses), heads: archs(&["fc", "fc", ""]), ..setup(&profile, 2, 3, 2) };
    let step = |setup: &PlannerSetup<'_>| setup.simulate(&[1; 3]).unwrap().simulated.work[0];
    let work = |setup: &PlannerSetup<'_>| setup.work(0, 0..1).unwrap();
    let one = follows(vec![(0, 1.0)]);
    for (losses, count) in
        [(vec![(0, 0.5)], 1.0), (vec![(0, 0.5), (1, 0.5)], 2.0), (vec![(0, 1.0), (1, 1.0), (2, 2.0)], 3.0)]
    {
        let several = follows(losses);
        // A quarter of a second for each loss and micro-batch.
        close(work(&several) - work(&one), 2.0 * 0.25 * count);
        close(step(&several) - step(&one), 2.0 * 0.25 * count);
        close(step(&several), work(&several));
    }
}

#[test]
fn a_refresh_interval_that_a_run_would_refuse_is_refused() {
    let profile = profile(&[1.0; 4]);
    let refresh = |steps| PlannerSetup { readout_refresh: Some(steps), ..setup(&profile, 2, 4, 1) };
    // Two in flight at each of three boundaries.
    insta::assert_snapshot!(refresh(6).check_readout().unwrap_err(), @"heads.readout_refresh: 6, but with 2 micro-batches in flight stage 0 may be so far ahead of the last stage that it waits; use 7 or more, or fewer in flight (in_flight)");
    assert!(refresh(7).check_readout().is_ok());
    // The first stage with a head is nearer to the last one.
    let near = PlannerSetup { heads: archs(&["", "", "fc", ""]), ..refresh(3) };
    assert!(near.check_readout().is_ok() && refresh(3).check_readout().is_err());
    let other = PlannerSetup { micro_batches: 2, ..refresh(4) };
    assert!(other.check_readout().is_ok());
    let none = PlannerSetup { heads: archs(&["", "", "", ""]), ..refresh(1) };
    assert!(none.check_readout().is_ok());
}

#[test]
fn many_stages_are_cut_where_the_busiest_has_least_to_do() {
    // More cuts than can be counted.
    let costs: Vec<f64> = (0..400).map(|i| 1.0 + f64::from(i % 7)).collect();
    let profile = profile(&costs);
    for (width, micro_batches) in [(1, 1), (2, 4)] {
        let setup = setup(&profile, width, 100, micro_batches);
        let best = setup.best_cut(&[]).unwrap();
        assert_eq!(best.units_per_stage.iter().sum::<usize>(), 400);
        let even = setup.simulate(&[4; 100]).unwrap();
        assert!(best.simulated.step_seconds < even.simulated.step_seconds);
        assert!(best.proven, "{}", best.simulated.critical);
    }
}

#[test]
fn stages_of_one_device_take_turns_and_others_share_cores() {
    use crate::{StageDevice, device::PlainCpu};
    let devices: Vec<Arc<dyn StageDevice>> = vec![Arc::new(PlainCpu), Arc::new(PlainCpu)];
    let placement = Placement::on(&devices, 3, 2);
    assert_eq!((placement.threads, placement.cores), (vec![1; 3], Some(2)));
    // A plain device computes on the stage's own thread.
    let distinct: std::collections::HashSet<usize> = placement.devices.into_iter().collect();
    assert_eq!(distinct.len(), 3);
}

#[test]
fn the_shared_readout_is_part_of_traffic_and_memory() {
    let without = profile(&[1.0; 3]);
    let mut with = without.clone();
    with.devices[0].units.iter_mut().flat_map(|unit| unit.heads.values_mut()).for_each(|head| head.readout_bytes = 600);
    let own = setup(&without, 2, 3, 2);
    let shared = PlannerSetup { readout_refresh: Some(10), ..setup(&with, 2, 3, 2) };
    // One loss crosses each boundary in two micro-batches a step: a version of 600 bytes for 20 gradients.
    let bytes = |setup: &PlannerSetup<'_>, k: usize| setup.costs(k, k..k + 1).unwrap().gradient_bytes;
    assert_eq!([0, 1, 2].map(|k| bytes(&shared, k) - bytes(&own, k)), [0, 30, 30]);
    let memory = |setup: &PlannerSetup<'_>| setup.memory(&setup.simulate(&[1; 3]).unwrap()).unwrap();
    let (shared, own) = (memory(&shared), memory(&own));
    assert_eq!([0, 1, 2].map(|k| shared[k] - own[k]), [0, 0, 1200]);
}
