//! Stages on several ranks compute what those of one process do, and the failure of one rank ends all.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/behind.rs"]
mod behind;
#[path = "common/bits.rs"]
mod bits;
#[path = "common/models.rs"]
mod common;
#[path = "common/group.rs"]
mod group;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bits::bits;
use common::{Fault, How, Perceptron, Spiral, When};
use group::{ALL, MESSAGES, group};
use interlock::{
    Activation, ActivationDtype, Adaptive, Callback, Checkpoint, CheckpointConfig, ClipConfig, ClipScope, Criterion,
    Differentiable, EmaConfig, EndToEnd, Error, FailuresConfig, Gradients, Groups, HeadsConfig, HeadsReadout,
    Interlock, Local, LrScheduleConfig, ModelSpec, OnFailure, OptimizerConfig, OptimizerKind, Origin, ParameterGroup,
    Pass, Recompute, Result, Saved, StageDevice, TrainEvent, Trainer, TrainerBuilder, Unit, Wants, WidthSchedule,
    ranks::Ranks,
    tools::{schedule::Action, timeline::Span},
};
use serde_json::Value;

const DATA: Spiral = Spiral { examples: 24 };
const LONG: Duration = Duration::from_secs(60);

/// Ranks whose parcels arrive at once.
fn near(size: usize) -> Vec<Ranks> {
    group(size, LONG, |_, _| Duration::ZERO).0
}

/// What a run comes to: the weights, the state without wall seconds, and the scores.
fn everything(trainer: &Trainer) -> (bits::Bits, bits::Bits, Value) {
    let state = trainer.state().unwrap();
    let mut values = serde_json::to_value(&state).unwrap();
    values["best"]["seconds"] = Value::Null;
    values["fit"] = Value::Null;
    (bits(&trainer.snapshot().unwrap()), bits(&state.tensors), values)
}

/// Runs `work` on rank 0 while the others serve. Returns what each of the others ended with, too.
fn on<T>(
    ranks: &[Ranks],
    builder: impl Fn() -> TrainerBuilder + Sync,
    work: impl FnOnce(TrainerBuilder) -> T,
) -> (T, Vec<Result<()>>) {
    thread::scope(|scope| {
        let others = ranks[1..].iter().map(|ranks| scope.spawn(|| builder().ranks(ranks).serve()));
        let others: Vec<_> = others.collect();
        let done = work(builder().ranks(&ranks[0]));
        (done, others.into_iter().map(|other| other.join().unwrap()).collect())
    })
}

fn four() -> TrainerBuilder {
    Trainer::builder(Perceptron { layers: 5, fault: None }).stages(4).batch_size(6).seed(7).steps(9)
}

fn fit(builder: TrainerBuilder) -> (bits::Bits, bits::Bits, Value) {
    let mut trainer = builder.build().unwrap();
    trainer.fit((DATA, DATA)).unwrap();
    everything(&trainer)
}

/// Compares one process with several ranks.
fn same(builder: impl Fn() -> TrainerBuilder + Sync) {
    let expected = fit(builder());
    for (size, stages) in
        [(2, None), (4, None), (2, Some(vec![vec![1, 3], vec![0, 2]])), (2, Some(vec![vec![], vec![0, 1, 2, 3]]))]
    {
        let builder = || builder().stages_of_ranks(stages.clone());
        let (found, others) = on(&near(size), builder, fit);
        assert!(others.iter().all(Result::is_ok), "{others:?}");
        assert!(found == expected, "{size} ranks, {stages:?}");
    }
}

#[test]
fn every_width_is_the_same() {
    same(|| four().strategy(Local));
    same(|| four().strategy(Interlock::width(2)).probes());
    same(|| four().strategy(Interlock::width(3).mean()).micro_batches(3));
    same(|| four().strategy(Groups).micro_batches(2));
    same(|| four().strategy(EndToEnd).in_flight(4));
}

#[test]
fn every_setting_is_the_same() {
    let adamw =
        OptimizerConfig { kind: OptimizerKind::Adamw, lr: 0.02, weight_decay: 0.1, ..OptimizerConfig::default() };
    same(|| four().optimizer(adamw.clone()).ema(EmaConfig { decay: 0.75, from_step: 2 }));
    same(|| four().clip(ClipConfig { max_norm: 0.1, scope: ClipScope::Global }).strategy(Interlock::width(2)));
    same(|| four().dtype(ActivationDtype::Bf16).micro_batches(2).recompute(Recompute::All));
    let plateau = LrScheduleConfig::ReduceOnPlateau { factor: 0.5, patience: 1, threshold: 0.5, min_fraction: 0.0 };
    same(|| four().eval_every(1).keep_best(Criterion::Loss).lr_schedule(plateau.clone()));
    let cosine = LrScheduleConfig::Cosine { warmup_steps: 2, total_steps: None, final_fraction: 0.1 };
    same(|| four().lr_schedule(cosine.clone()).record(3));
    let shared = HeadsConfig { readout: HeadsReadout::Shared, readout_refresh: Some(4), ..HeadsConfig::default() };
    same(|| four().heads(shared.clone()).in_flight(1).strategy(Interlock::width(2)));
}

#[test]
fn recorded_times_of_all_ranks_have_one_origin() {
    let (timeline, _) = on(
        &near(4),
        || four().strategy(EndToEnd),
        |builder| {
            let mut trainer = builder.record(3).build().unwrap();
            trainer.fit(DATA).unwrap();
            trainer.timeline().unwrap()
        },
    );
    let forward = |stage: usize, step: u64| {
        let is_it = |span: &&Span| span.stage == stage && matches!(span.action, Action::Forward(m) if m.step == step);
        timeline.spans.iter().find(is_it).unwrap()
    };
    for step in 6..9 {
        for stage in 1..4 {
            let (before, after) = (forward(stage - 1, step), forward(stage, step));
            assert!(before.end <= after.start + 1e-3, "{before:?} {after:?}");
            assert!(after.start < before.end + 5.0, "{before:?} {after:?}");
        }
    }
}

#[test]
fn plans_that_change_are_the_same() {
    same(|| four().strategy(WidthSchedule::new(Local).then(3, Interlock::width(2)).end_to_end_every(4)).in_flight(3));
    let adaptive = || Adaptive { every: 2, window: 1, below: 2.0, width: 1, max_width: None };
    same(move || four().strategy(adaptive()).in_flight(3).steps(16));
}

#[test]
fn nothing_overtakes_what_goes_to_all_stages() {
    // What rank 0 tells the last rank takes longer than what gets there from stage to stage.
    let far = |from: usize, to: usize| Duration::from_millis(if from == 0 && to == 3 { 40 } else { 0 });
    let adaptive = || Adaptive { every: 2, window: 1, below: 2.0, width: 1, max_width: None };
    let folder = tempfile::tempdir().unwrap();
    let builder = || four().strategy(adaptive()).in_flight(2).eval_every(3);
    let expected = fit(builder());
    let config = CheckpointConfig { every_steps: Some(1), ..CheckpointConfig::default() };
    let (found, others) = on(&group(4, LONG, far).0, builder, |builder| fit(builder.checkpoint(folder.path(), config)));
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    assert!(found == expected);
    let whole = Checkpoint::newest(folder.path()).unwrap().unwrap().0;
    assert!(bits(&whole.weights) == expected.0);
}

#[test]
fn a_run_goes_on_elsewhere() {
    let expected = fit(four().strategy(Interlock::width(2)));
    let half = |builder: TrainerBuilder| {
        let mut trainer = builder.steps(4).build().unwrap();
        trainer.fit((DATA, DATA)).unwrap();
        (trainer.state().unwrap(), trainer.snapshot().unwrap())
    };
    let builder = || four().strategy(Interlock::width(2));
    for (first, then) in [(1, 3), (3, 1), (2, 4)] {
        let run = |size: usize, work: &mut dyn FnMut(TrainerBuilder)| match size {
            1 => work(builder()),
            size => {
                let (_, others) = on(&near(size), builder, work);
                assert!(others.iter().all(Result::is_ok), "{others:?}");
            }
        };
        let mut parts = None;
        run(first, &mut |builder| parts = Some(half(builder)));
        let (state, weights) = parts.unwrap();
        let mut found = None;
        run(then, &mut |builder| {
            found = Some(fit(builder.initial_values(weights.clone()).restore(state.clone()).steps(5)))
        });
        assert!(found.unwrap() == expected, "{first} ranks, then {then}");
    }
}

#[test]
fn one_group_trains_several_models_one_after_another() {
    let ranks = near(3);
    for width in 1..4 {
        let builder = || four().strategy(Interlock::width(width));
        let expected = fit(builder());
        let (found, others) = on(&ranks, builder, fit);
        assert!(found == expected && others.iter().all(Result::is_ok));
    }
}

#[test]
fn a_failure_of_any_stage_ends_every_rank_with_its_cause() {
    for unit in 0..4 {
        for how in [How::Panic, How::Error, How::NotANumber] {
            let fault = Fault { unit, head: false, when: When::Forward, how, step: 3 };
            let builder = || {
                Trainer::builder(Perceptron { layers: 4, fault: Some(fault.clone()) }).stages(4).batch_size(6).steps(9)
            };
            let alone = builder().build().unwrap().fit(DATA).unwrap_err().to_string();
            let (error, others) = on(&near(4), builder, |builder| builder.build().unwrap().fit(DATA).unwrap_err());
            assert_eq!(error.to_string(), alone);
            for other in others {
                assert_eq!(other.unwrap_err().to_string(), alone);
            }
        }
    }
}

/// A callback that cuts a rank off after the fourth step.
fn cutting(is_cut: Arc<AtomicU8>, what: u8) -> impl Callback {
    move |event: &TrainEvent<'_>| {
        if matches!(event, TrainEvent::StepDone { step: 3, .. }) {
            is_cut.store(what, Relaxed);
        }
    }
}

#[test]
fn a_rank_that_is_silent_is_lost_and_the_others_end() {
    for cut in 0..3 {
        let (ranks, cuts) = group(3, Duration::from_secs(2), |_, _| Duration::ZERO);
        let start = Instant::now();
        let is_cut = Arc::clone(&cuts[cut]);
        let (error, others) = on(&ranks, four, |builder| {
            let mut trainer = builder.steps(1_000_000_000).build().unwrap();
            trainer.callback(cutting(is_cut, ALL));
            trainer.fit(DATA).unwrap_err()
        });
        let lost = |error: &Error, rank: usize| match error {
            Error::Failed(failure) => {
                failure.origin == Origin::Rank(rank) && matches!(*failure.cause, Error::RankLost(_))
            }
            _ => false,
        };
        // The others tell rank 0, if it is the one that they do not hear; that is a failure too.
        if cut > 0 {
            assert!(lost(&error, cut), "{cut}: {error}");
            assert!(error.to_string().contains("nothing has come from it for 2 s; stage"), "{error}");
        }
        for (rank, other) in (1..).zip(&others) {
            let other = other.as_ref().unwrap_err();
            // Nothing leaves the rank that is cut off, but it may hear what the others find.
            assert!(lost(other, 0) || lost(other, cut), "{cut}, rank {rank}: {other}");
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }
}

/// Blocks for longer than any test in the forward pass of one step.
struct Blocks;

impl Differentiable for Blocks {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        if pass.is_train() && pass.step == 3 {
            thread::sleep(Duration::from_secs(3600));
        }
        Ok((x.clone(), Saved::new(())))
    }

    fn backward(&self, _: &Saved, output_gradient: &Activation, _: Wants) -> Result<Gradients> {
        Ok(Gradients { input: Some(output_gradient.clone()), parameters: Vec::new() })
    }
}

/// [`Perceptron`] with a layer that blocks after its third.
struct Blocking;

impl ModelSpec for Blocking {
    fn units(&self) -> Result<Vec<Unit>> {
        let mut units = Perceptron { layers: 5, fault: None }.units()?;
        units.insert(3, Unit::new("blocks", [8], |_| Ok(Blocks)));
        Ok(units)
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        Perceptron { layers: 5, fault: None }.head(unit, arch)
    }
}

fn patient(seconds: f64) -> FailuresConfig {
    FailuresConfig { stall_timeout: Some(seconds), ..FailuresConfig::default() }
}

#[test]
fn a_stage_that_blocks_on_any_rank_is_named() {
    for units in [vec![1, 1, 1, 3], vec![1, 1, 2, 2], vec![3, 1, 1, 1], vec![4, 1, 1]] {
        let stage = (0..units.len()).find(|&k| units[..=k].iter().sum::<usize>() > 3).unwrap();
        let builder =
            || Trainer::builder(Blocking).units_per_stage(units.clone()).batch_size(6).steps(9).failures(patient(3.0));
        let start = Instant::now();
        let (error, others) =
            on(&near(units.len()), builder, |builder| builder.build().unwrap().fit(DATA).unwrap_err());
        let expected = format!("stage {stage}, step 3, micro-batch 0, forward: it has not ended after 3 s");
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(
            others.iter().all(|other| other.as_ref().unwrap_err().to_string().starts_with(&expected)),
            "{others:?}"
        );
        assert!(start.elapsed() < Duration::from_secs(40));
    }
}

#[test]
fn a_message_that_is_lost_ends_the_run() {
    let (ranks, cuts) = group(3, LONG, |_, _| Duration::ZERO);
    let is_cut = Arc::clone(&cuts[1]);
    let builder = || four().stages(3).failures(patient(2.0));
    let (error, _) = on(&ranks, builder, |builder| {
        let mut trainer = builder.steps(1_000_000_000).build().unwrap();
        trainer.callback(cutting(is_cut, MESSAGES));
        trainer.fit(DATA).unwrap_err()
    });
    assert!(error.to_string().contains("nothing is done, and no message has come"), "{error}");
}

#[test]
fn ranks_that_differ_are_refused_and_named() {
    let ranks = near(2);
    let error = thread::scope(|scope| {
        let other =
            scope.spawn(|| four().agreement("data 1\nfile 2").ranks(&ranks[1]).serve().unwrap_err().to_string());
        let error = four().agreement("data 1\nfile 3").ranks(&ranks[0]).build().err().unwrap().to_string();
        assert!(other.join().unwrap().contains("rank 1 has file 2, rank 0 has file 3"));
        error
    });
    assert!(
        error.contains("settings of ranks: rank 1 has file 2, rank 0 has file 3; start the same program"),
        "{error}"
    );
}

#[test]
fn what_ranks_cannot_do_is_refused() {
    let ranks = near(2);
    let restart = FailuresConfig { on_failure: OnFailure::Restart, ..FailuresConfig::default() };
    let refused = |builder: TrainerBuilder| builder.build().err().unwrap().to_string();
    assert!(refused(four().failures(restart).ranks(&ranks[0])).contains("failures: restarts with several ranks"));
    assert!(
        refused(four().failures(patient(0.5)).ranks(&ranks[0])).contains("failures.stall_timeout: 0.5 with several")
    );
    assert!(refused(four().ranks(&ranks[1])).contains("rank 1: it has no trainer; call serve on it"));
    assert!(four().ranks(&ranks[0]).serve().unwrap_err().to_string().contains("rank 0: it has nobody to serve"));
    assert!(four().serve().is_err());
    assert!(refused(four().stages_of_ranks(vec![vec![0, 1, 2, 3]])).contains("there is only one process"));
    assert!(refused(four().ranks(&ranks[0]).stages_of_ranks(vec![vec![0]])).contains("lists for 1 ranks"));
}

/// Several replicas, and one that cuts its batches into as many micro-batches.
fn replicas(count: usize, builder: impl Fn() -> TrainerBuilder) -> (TrainerBuilder, TrainerBuilder) {
    (builder().replicas(count), builder().micro_batches(count))
}

/// Compares weights up to the order of sums.
fn assert_close(found: &bits::Bits, expected: &bits::Bits) {
    assert!(found.keys().eq(expected.keys()));
    for (name, values) in found {
        for (found, expected) in values.iter().zip(&expected[name]) {
            let (found, expected) = (f32::from_bits(*found), f32::from_bits(*expected));
            assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{name}: {found}, not {expected}");
        }
    }
}

/// Compares replicas with one that has as many micro-batches, and runs of other timing with each other.
fn same_as_one(builder: impl Fn() -> TrainerBuilder + Sync) {
    for (size, count) in [(2, 2), (3, 3), (4, 2), (4, 4), (6, 2)] {
        let several = || replicas(count, &builder).0;
        let (weights, _, values) = fit(replicas(count, &builder).1);
        let (found, others) = on(&near(size), several, fit);
        assert!(others.iter().all(Result::is_ok), "{others:?}");
        assert_close(&found.0, &weights);
        let best = |values: &Value| -> Vec<f64> {
            let heads = values["best"]["heads"].as_array().cloned().unwrap_or_default();
            heads.iter().map(|head| head["score"]["loss"].as_f64().unwrap()).collect()
        };
        let (found_best, best) = (best(&found.2), best(&values));
        assert!(found_best.len() == best.len() && found_best.iter().zip(&best).all(|(a, b)| (a - b).abs() < 1e-4 * b));
        let lag = |from: usize, to: usize| Duration::from_millis((3 * from + 5 * to) as u64 % 4);
        let (again, _) = on(&group(size, LONG, lag).0, several, fit);
        assert!(again == found, "{size} ranks, {count} replicas");
    }
}

/// Batches of 8 of 24 examples.
fn eights() -> TrainerBuilder {
    four().batch_size(8).steps(9)
}

#[test]
fn replicas_are_as_one_with_more_micro_batches() {
    same_as_one(|| eights().strategy(Local));
    same_as_one(|| eights().strategy(Interlock::width(2)).probes());
    same_as_one(|| eights().strategy(Groups).dtype(ActivationDtype::Bf16).recompute(Recompute::All));
    let adamw = OptimizerConfig { kind: OptimizerKind::Adamw, lr: 0.02, ..OptimizerConfig::default() };
    let global = ClipConfig { max_norm: 0.1, scope: ClipScope::Global };
    same_as_one(|| eights().strategy(Interlock::width(3).mean()).optimizer(adamw.clone()).clip(global.clone()));
    let frozen =
        ParameterGroup { patterns: vec!["layers.1.*".to_owned()], lr_scale: None, weight_decay: None, frozen: true };
    let part = OptimizerConfig { groups: vec![frozen], ..OptimizerConfig::default() };
    let ema = EmaConfig { decay: 0.75, from_step: 2 };
    same_as_one(|| eights().strategy(Groups).optimizer(part.clone()).ema(ema));
    let adaptive = || Adaptive { every: 2, window: 1, below: 2.0, width: 1, max_width: None };
    same_as_one(|| eights().strategy(adaptive()).in_flight(3).steps(16).keep_best(Criterion::Loss).eval_every(4));
    let shared = HeadsConfig { readout: HeadsReadout::Shared, readout_refresh: Some(4), ..HeadsConfig::default() };
    same_as_one(|| eights().heads(shared.clone()).in_flight(1).strategy(Interlock::width(2)));
}

#[test]
fn replicas_on_asynchronous_devices_are_the_same() {
    let global = ClipConfig { max_norm: 0.1, scope: ClipScope::Global };
    for when in [behind::When::Now, behind::When::Polled(2)] {
        same_as_one(|| eights().strategy(Interlock::width(2)).devices(behind::each(4, when)));
        same_as_one(|| eights().strategy(Groups).clip(global.clone()).devices(behind::each(4, when)));
    }
}

#[test]
fn a_value_that_is_corrupted_between_stages_of_a_replica_ends_the_run() {
    // Stage 1 of the second replica gets NaN from its tenth tensor on, and no stage has sent it.
    let builder = |replica: usize| {
        let spoils = if replica == 1 { 10 } else { usize::MAX };
        let device: Arc<dyn StageDevice> = behind::Behind::spoiling(behind::When::Polled(2), spoils);
        let other: Arc<dyn StageDevice> = behind::Behind::new(behind::When::Polled(2));
        Trainer::builder(Perceptron { layers: 4, fault: None })
            .stages(2)
            .batch_size(8)
            .steps(9)
            .strategy(EndToEnd)
            .replicas(2)
            .devices([other, device])
    };
    let ranks = near(2);
    let error = thread::scope(|scope| {
        let other = scope.spawn(|| builder(1).ranks(&ranks[1]).serve().unwrap_err().to_string());
        let error = builder(0).ranks(&ranks[0]).build().unwrap().fit(DATA).unwrap_err().to_string();
        assert_eq!(other.join().unwrap(), error);
        error
    });
    assert!(error.contains("of replica 1") && error.contains("corrupted in transfer"), "{error}");
}

#[test]
fn replicas_share_short_batches_and_several_micro_batches() {
    // 24 examples in batches of 7: the last 3 are a batch of their own, of fewer micro-batches.
    let builder = || four().batch_size(7).steps(11).strategy(Groups);
    for (size, count, micro_batches) in [(2, 2, 3), (3, 3, 2)] {
        let (found, others) = on(&near(size), || builder().replicas(count).micro_batches(micro_batches), fit);
        assert!(others.iter().all(Result::is_ok), "{others:?}");
        assert_close(&found.0, &fit(builder().micro_batches(count * micro_batches)).0);
    }
    // 24 in batches of 11: the last 2 cannot be divided among 3 replicas and join the batch before them.
    let epoch = |builder: TrainerBuilder| {
        let mut trainer = builder.epochs(1).build().unwrap();
        trainer.fit(DATA).unwrap();
        trainer.steps()
    };
    let builder = || four().batch_size(11).strategy(Groups);
    assert_eq!(epoch(builder()), 3);
    assert_eq!(on(&near(3), || builder().replicas(3), epoch).0, 2);
}

#[test]
fn replicas_go_on_from_a_checkpoint() {
    let builder = || eights().strategy(Interlock::width(2)).replicas(2);
    let (expected, _) = on(&near(4), builder, fit);
    let (parts, _) = on(&near(4), builder, |builder| {
        let mut trainer = builder.steps(4).build().unwrap();
        trainer.fit((DATA, DATA)).unwrap();
        (trainer.state().unwrap(), trainer.snapshot().unwrap())
    });
    let (found, others) =
        on(&near(2), builder, |builder| fit(builder.initial_values(parts.1).restore(parts.0).steps(5)));
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    assert!(found == expected);
}

/// Fails in the second micro-batch of one step, which is the second replica's.
struct Fails;

impl Differentiable for Fails {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        match pass.is_train() && (pass.step, pass.micro_batch) == (3, 1) {
            true => Err(Error::Data("the fault that was asked for".to_owned())),
            false => Ok((x.clone(), Saved::new(()))),
        }
    }

    fn backward(&self, _: &Saved, output_gradient: &Activation, _: Wants) -> Result<Gradients> {
        Ok(Gradients { input: Some(output_gradient.clone()), parameters: Vec::new() })
    }
}

/// [`Perceptron`] with a layer that fails after its first.
struct Failing;

impl ModelSpec for Failing {
    fn units(&self) -> Result<Vec<Unit>> {
        let mut units = Perceptron { layers: 4, fault: None }.units()?;
        units.insert(1, Unit::new("fails", [8], |_| Ok(Fails)));
        Ok(units)
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        Perceptron { layers: 4, fault: None }.head(unit, arch)
    }
}

#[test]
fn the_failure_of_a_replica_names_it() {
    let builder = || Trainer::builder(Failing).stages(2).batch_size(6).steps(9).replicas(2);
    let (error, others) = on(&near(4), builder, |builder| builder.build().unwrap().fit(DATA).unwrap_err().to_string());
    assert!(
        error.starts_with("stage 0 of replica 1, step 3, micro-batch 1, unit 1 \"fails\", forward: the fault"),
        "{error}"
    );
    assert!(others.iter().all(|other| other.as_ref().unwrap_err().to_string() == error), "{others:?}");
}

#[test]
fn what_replicas_cannot_do_is_refused() {
    let ranks = near(4);
    let refused = |builder: TrainerBuilder| builder.build().err().unwrap().to_string();
    assert_eq!(
        refused(four().replicas(3).ranks(&ranks[0])),
        "replicas: 3 on 4 ranks; start a multiple of 3 ranks: each replica has as many"
    );
    let alone = refused(four().replicas(2));
    assert!(alone.starts_with("replicas: 2 in one process; start a multiple of 2 ranks"), "{alone}");
    assert!(refused(four().replicas(0)).starts_with("replicas: 0; use 1 or more"));
    assert!(refused(four().replicas(7).ranks(&ranks[0])).starts_with("replicas: 7; use at most 6: a batch has 6"));
    let many = refused(four().replicas(2).micro_batches(4).ranks(&ranks[0]));
    assert!(many.starts_with("micro_batches: 4 of each of 2 replicas; a batch has 6 examples: use 1 to 3"), "{many}");
    let uneven = refused(four().replicas(2).ranks(&ranks[0]).stages_of_ranks(vec![vec![0, 1, 2, 3]]));
    assert!(uneven.contains("lists for 1 ranks; there are 2 for each replica"), "{uneven}");
}
