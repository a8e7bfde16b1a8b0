//! Replicas of stages on several ranks compute what one replica does with as many micro-batches, and always the same bits.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/behind.rs"]
mod behind;
#[path = "common/bits.rs"]
mod bits;
#[path = "common/models.rs"]
mod common;
#[path = "common/group.rs"]
mod group;
#[path = "common/on_ranks.rs"]
mod on_ranks;

use std::{sync::Arc, thread, time::Duration};

use common::Perceptron;
use group::group;
use interlock::{
    Activation, ActivationDtype, Adaptive, CheckpointConfig, ClipConfig, ClipScope, Criterion, Differentiable,
    EmaConfig, EndToEnd, Error, Gradients, Groups, HeadsConfig, HeadsReadout, Interlock, Local, ModelSpec,
    OptimizerConfig, OptimizerKind, ParameterGroup, Pass, Recompute, Result, Saved, StageDevice, Trainer,
    TrainerBuilder, Unit, Wants,
};
use on_ranks::{DATA, LONG, fit, four, near, on};
use serde_json::Value;

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
        let other = scope.spawn(|| builder(1).ranks(&ranks[1]).serve_with(|| Ok(DATA)).unwrap_err().to_string());
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
    let alone = four().batch_size(8).initial_values(parts.1.clone()).restore(parts.0.clone()).build().err().unwrap();
    assert!(alone.to_string().contains("replicas 2"), "{alone}");
    let (found, others) =
        on(&near(2), builder, |builder| fit(builder.initial_values(parts.1).restore(parts.0).steps(5)));
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    assert!(found == expected);
}

#[test]
fn checkpoints_of_replicas_are_written_while_they_train() {
    let folder = tempfile::tempdir().unwrap();
    let builder = || eights().strategy(Interlock::width(2)).replicas(2);
    let (expected, _) = on(&near(4), builder, fit);
    let config = CheckpointConfig { every_steps: Some(2), ..CheckpointConfig::default() };
    let (found, _) = on(&near(4), builder, |builder| fit(builder.checkpoint(folder.path(), config.clone())));
    assert!(found == expected);
    std::fs::remove_dir_all(folder.path().join("checkpoints/step-9")).unwrap();
    let (found, _) = on(&near(4), builder, |builder| fit(builder.resume(folder.path()).unwrap()));
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
