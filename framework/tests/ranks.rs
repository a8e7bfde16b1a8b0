//! Stages on several ranks compute what those of one process do, and the failure of one rank ends all.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/bits.rs"]
mod bits;
#[path = "common/models.rs"]
mod common;
#[path = "common/group.rs"]
mod group;
#[path = "common/on_ranks.rs"]
mod on_ranks;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bits::bits;
use common::{Fault, How, Perceptron, When};
use group::{ALL, MESSAGES, group};
use interlock::{
    Activation, ActivationDtype, Adaptive, Callback, Checkpoint, CheckpointConfig, ClipConfig, ClipScope, Criterion,
    Differentiable, EmaConfig, EndToEnd, Error, FailuresConfig, Gradients, Groups, HeadsConfig, HeadsReadout,
    Interlock, Local, LrScheduleConfig, ModelSpec, OnFailure, OptimizerConfig, OptimizerKind, Origin, Pass, Recompute,
    Result, Saved, TrainEvent, Trainer, TrainerBuilder, Unit, Wants, WidthSchedule,
    tools::{schedule::Action, timeline::Span},
};
use on_ranks::{DATA, LONG, fit, four, near, on};

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
fn links_are_measured_while_the_other_ranks_wait() {
    let (ranks, cuts) = group(3, Duration::from_secs(2), |from, to| match (from, to) {
        (0, 2) | (2, 0) => Duration::from_millis(20),
        _ => Duration::ZERO,
    });
    let links = ranks[0].measure_links().unwrap();
    assert_eq!(links[0].latency, 0.0);
    // A pulse may be on its way before.
    assert!((0.02..0.2).contains(&links[2].latency), "{links:?}");
    assert!(links[1].latency < links[2].latency, "{links:?}");
    // Nothing comes from a rank that is cut off, and the late answer of another is not taken for its own.
    cuts[1].store(ALL, Relaxed);
    let error = ranks[0].measure_links().unwrap_err().to_string();
    assert!(error.contains("rank 1 does not answer"), "{error}");
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
