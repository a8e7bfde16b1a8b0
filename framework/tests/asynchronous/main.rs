//! On a device that works behind the host's back a run is what it is elsewhere: the same parameters and numbers up to rounding, the same
//! failures, though its numbers come late; and nothing in a step waits for them.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "../common/behind.rs"]
mod behind;
#[path = "../common/models.rs"]
mod common;
mod failures;

use std::{
    sync::{Arc, Mutex, mpsc::channel},
    time::{Duration, Instant},
};

use behind::{Behind, Counts, When as Late, each};
use candle_core::Tensor;
use common::{ByTarget, Fault, Matrices, Perceptron, Spiral};
use interlock::{
    Adaptive, ClipConfig, ClipScope, CrossEntropy, Dataset, EndToEnd, Error, HeadsConfig, HeadsTrained, Interlock,
    Local, Loss, LrScheduleConfig, MeanSquaredError, OptimizerConfig, OptimizerKind, Phase, PlainCpu, StageDevice,
    TrainEvent, Trainer, TrainerBuilder,
    tools::{plain::PlainPipeline, schedule::ActionKind, transport::StageStep},
};

fn plain() -> Vec<Arc<dyn StageDevice>> {
    vec![Arc::new(PlainCpu)]
}

fn builder(layers: usize, fault: Option<Fault>) -> TrainerBuilder {
    Trainer::builder(Perceptron { layers, fault })
        .stages(layers)
        .heads(HeadsConfig { train: HeadsTrained::All, ..HeadsConfig::default() })
        .optimizer(OptimizerConfig { lr: 0.05, ..OptimizerConfig::default() })
        .batch_size(13)
        .seed(3)
}

const SMOOTH: CrossEntropy = CrossEntropy { label_smoothing: 0.1, ignore_index: Some(2) };

type Snapshot = interlock::Weights;

/// Lets a trainer act, in bounded time.
fn bounded<T: Send + 'static>(
    mut trainer: Trainer,
    act: impl FnOnce(&mut Trainer) -> interlock::Result<T> + Send + 'static,
) -> interlock::Result<T> {
    let (done, ended) = channel();
    std::thread::spawn(move || {
        let result = act(&mut trainer);
        drop(trainer);
        done.send(result).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(120)).expect("the run ends in bounded time")
}

/// Trains, in bounded time: the parameters, and every stage's reports in order of events.
fn run(builder: TrainerBuilder, data: impl Dataset + 'static) -> interlock::Result<(Snapshot, Vec<StageStep>)> {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&steps);
    let trainer = builder
        .callback(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StageStep(step) = event {
                seen.lock().unwrap().push((*step).clone());
            }
        })
        .build()?;
    let snapshot = bounded(trainer, move |trainer| {
        let validation = Spiral { examples: 20 };
        trainer.fit((data, validation))?;
        trainer.snapshot()
    })?;
    let steps = steps.lock().unwrap().clone();
    Ok((snapshot, steps))
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 5e-6 * (1.0 + a.abs().max(b.abs()))
}

fn assert_same(found: &Snapshot, expected: &Snapshot, what: &str) {
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    for (name, found) in found {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in values(found).into_iter().zip(values(&expected[name])) {
            assert!(near(a.into(), b.into()), "{what}: {name} holds {a} instead of {b}");
        }
    }
}

/// Whether each stage reported its steps in order, with the numbers of the other run.
fn assert_same_reports(found: &[StageStep], expected: &[StageStep], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let of = |steps: &[StageStep], k: usize| steps.iter().filter(|s| s.stage == k).cloned().collect::<Vec<_>>();
    for k in 0..=found.iter().map(|s| s.stage).max().unwrap_or_default() {
        let (found, expected) = (of(found, k), of(expected, k));
        assert!(found.iter().map(|s| s.step).eq(0..found.len() as u64), "{what}: stage {k} reported out of order");
        for (a, b) in found.iter().zip(&expected) {
            let what = format!("{what}, stage {k}, step {}: {a:?} instead of {b:?}", a.step);
            assert_eq!(a.updated.lr, b.updated.lr, "{what}");
            assert!(near(a.updated.gradient_norm, b.updated.gradient_norm), "{what}");
            assert_eq!(a.score.is_some(), b.score.is_some(), "{what}");
            if let (Some(a), Some(b)) = (a.score, b.score) {
                assert!(near(a.loss, b.loss) && a.count == b.count && a.correct == b.correct, "{what}");
            }
            assert_eq!(a.alignment.is_some(), b.alignment.is_some(), "{what}");
            assert!(near(a.alignment.unwrap_or_default(), b.alignment.unwrap_or_default()), "{what}");
            let actions = |step: &StageStep| ActionKind::ALL.map(|kind| step.work.actions(kind));
            assert_eq!(actions(a), actions(b), "{what}");
            assert_eq!(
                (a.work.activation_bytes, a.work.gradient_bytes),
                (b.work.activation_bytes, b.work.gradient_bytes)
            );
        }
    }
}

const LAYERS: usize = 4;

#[test]
fn a_run_is_the_same_whenever_its_numbers_come() {
    let adamw =
        OptimizerConfig { kind: OptimizerKind::Adamw, lr: 0.01, weight_decay: 0.1, ..OptimizerConfig::default() };
    let sgd = OptimizerConfig { lr: 0.05, nesterov: true, weight_decay: 0.01, ..OptimizerConfig::default() };
    let lates = [Late::Now, Late::Polled(3), Late::After(Duration::from_millis(2)), Late::Polled(usize::MAX)];
    let mut case = 0;
    for optimizer in [&sgd, &adamw] {
        for scope in [None, Some(ClipScope::Stage), Some(ClipScope::Global)] {
            for width in [1, 2, LAYERS] {
                for (micro_batches, in_flight) in [(1, 1), (4, 1), (4, 3)] {
                    let late = lates[case % lates.len()];
                    case += 1;
                    let make = |devices| {
                        builder(LAYERS, None)
                            .devices(devices)
                            .strategy(Interlock::width(width))
                            .optimizer(optimizer.clone())
                            .clip(scope.map(|scope| ClipConfig { max_norm: 0.2, scope }))
                            .loss(SMOOTH)
                            .micro_batches(micro_batches)
                            .in_flight(in_flight)
                            .steps(8)
                            .eval_every(3)
                    };
                    let data = || Spiral { examples: 31 };
                    let (expected, expected_steps) = run(make(plain()), data()).unwrap();
                    let (found, steps) = run(make(each(LAYERS, late)), data()).unwrap();
                    let what =
                        format!("{:?} {scope:?} width {width}, {micro_batches} {in_flight} {late:?}", optimizer.kind);
                    assert_same(&found, &expected, &what);
                    assert_same_reports(&steps, &expected_steps, &what);
                }
            }
        }
    }
}

#[test]
fn a_step_reads_once_a_stage_and_what_leaves_is_released() {
    let (steps, micros) = (6, 3);
    for (scope, reads) in [(ClipScope::Stage, 1), (ClipScope::Global, 2)] {
        let devices: Vec<Arc<Behind>> = (0..LAYERS).map(|_| Behind::new(Late::Polled(2))).collect();
        let trainer = builder(LAYERS, None)
            .devices(devices.iter().map(|d| Arc::clone(d) as _).collect::<Vec<_>>())
            .strategy(EndToEnd)
            .clip(ClipConfig { max_norm: 0.2, scope })
            .micro_batches(micros)
            .steps(steps as u64)
            .build()
            .unwrap();
        bounded(trainer, |trainer| trainer.fit(Spiral { examples: 26 })).unwrap();
        for (k, device) in devices.iter().enumerate() {
            let counts = &device.counts;
            assert_eq!(Counts::of(&counts.reads), reads * steps, "stage {k} under {scope:?}");
            // An activation to the next stage, and a gradient to the one before.
            let neighbours = usize::from(k + 1 < LAYERS) + usize::from(k > 0);
            assert_eq!(Counts::of(&counts.released), neighbours * micros * steps, "stage {k}");
            // The input, the gradient from behind, and the targets of the head.
            let brought = 2 + usize::from(k + 1 < LAYERS);
            assert_eq!(Counts::of(&counts.brought), brought * micros * steps, "stage {k}");
        }
    }
}

#[test]
fn plain_calls_agree_too() {
    let train = |devices| {
        let clip = ClipConfig { max_norm: 0.2, scope: ClipScope::Global };
        let builder = builder(3, None).devices(devices).strategy(Interlock::width(2)).loss(SMOOTH).clip(clip);
        let layout = builder.layout().unwrap();
        let mut pipeline = PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings).unwrap();
        let batch = Spiral { examples: 13 }.batch(&(0..13).collect::<Vec<_>>(), None).unwrap();
        let mut scores = Vec::new();
        for _ in 0..4 {
            scores.extend(pipeline.train_step(&batch, 3).unwrap());
        }
        scores.extend(pipeline.evaluate(&batch).unwrap());
        (pipeline.snapshot().unwrap(), scores)
    };
    let ((expected, expected_scores), (found, scores)) = (train(plain()), train(each(3, Late::Polled(9))));
    assert_same(&found, &expected, "plain calls");
    for (a, b) in scores.into_iter().zip(expected_scores) {
        let (a, b) = (a.unwrap(), b.unwrap());
        assert!(near(a.loss, b.loss) && a.count == b.count && a.correct == b.correct, "{a:?} {b:?}");
    }
}

#[test]
fn a_prediction_leaves_nothing_behind() {
    let layout = builder(3, None).devices(each(3, Late::Polled(1))).strategy(Local).layout().unwrap();
    let mut pipeline = PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings).unwrap();
    let batch = Spiral { examples: 13 }.batch(&[0, 1, 2], None).unwrap();
    let spoilt = (batch.inputs.single().unwrap() * f64::NAN).unwrap();
    assert!(matches!(pipeline.predict(&spoilt), Err(Error::Failed(failure)) if failure.phase == Phase::Head));
    let scores = pipeline.evaluate(&batch).unwrap();
    assert!(scores.iter().all(|score| score.is_some_and(|score| score.loss.is_finite())), "{scores:?}");
}

#[test]
fn what_is_decided_by_reports_is_decided_alike() {
    let plateau = LrScheduleConfig::ReduceOnPlateau { factor: 0.5, patience: 0, threshold: 0.5, min_fraction: 0.01 };
    let make = |devices| {
        builder(LAYERS, None)
            .devices(devices)
            .strategy(Adaptive { every: 2, window: 1, below: 0.9, width: 1, max_width: None })
            .lr_schedule(plateau.clone())
            .micro_batches(2)
            .steps(12)
            .eval_every(3)
    };
    let (expected, expected_steps) = run(make(plain()), Spiral { examples: 31 }).unwrap();
    let (found, steps) =
        run(make(each(LAYERS, Late::After(Duration::from_millis(1)))), Spiral { examples: 31 }).unwrap();
    assert!(expected_steps.iter().any(|step| step.alignment.is_some()));
    assert!(expected_steps.iter().any(|step| step.updated.lr < 0.05));
    assert_same(&found, &expected, "adaptive");
    assert_same_reports(&steps, &expected_steps, "adaptive");
}

/// Batches of 13 whose targets are what `targets` makes of the classes.
struct Targets<F>(F);

impl<F: Fn(Tensor) -> interlock::Result<Tensor> + Send + Sync> Dataset for Targets<F> {
    fn len(&self) -> usize {
        26
    }

    fn batch(&self, numbers: &[usize], augment: Option<interlock::Key>) -> interlock::Result<interlock::Batch> {
        let batch = Spiral { examples: 26 }.batch(numbers, augment)?;
        Ok(interlock::Batch { targets: (self.0)(batch.targets)?, ..batch })
    }
}

#[test]
fn other_losses_score_and_train_alike() {
    fn check<L: Loss + 'static>(make: impl Fn() -> L, targets: fn(Tensor) -> interlock::Result<Tensor>) {
        let run = |devices| {
            let model = Matrices { dims: vec![2, 3, 4, 1] };
            let optimizer = OptimizerConfig { lr: 1e-3, ..OptimizerConfig::default() };
            let steps = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&steps);
            let builder = Trainer::builder(model).stages(3).strategy(Interlock::width(2)).devices(devices);
            let builder = builder.loss(make()).optimizer(optimizer).batch_size(13).micro_batches(2).steps(5);
            let trainer = builder
                .callback(move |event: &TrainEvent<'_>| {
                    if let TrainEvent::StageStep(step) = event {
                        seen.lock().unwrap().push((*step).clone());
                    }
                })
                .build()
                .unwrap();
            let snapshot = bounded(trainer, move |trainer| {
                trainer.fit(Targets(targets))?;
                trainer.snapshot()
            });
            let steps = steps.lock().unwrap().clone();
            (snapshot.unwrap(), steps)
        };
        let ((expected, expected_steps), (found, steps)) = (run(plain()), run(each(3, Late::Polled(1))));
        assert_same(&found, &expected, "another loss");
        assert_same_reports(&steps, &expected_steps, "another loss");
    }
    let floats = |targets: Tensor| Ok(targets.to_dtype(candle_core::DType::F32)?.reshape(((), 1))?);
    check(|| MeanSquaredError, floats);
    // One that knows nothing of such devices.
    check(|| ByTarget, Ok);
}

#[test]
fn times_are_those_of_the_device() {
    let begin = Instant::now();
    let devices: Vec<Arc<dyn StageDevice>> =
        (0..3).map(|_| Behind::marking(Late::Polled(2), begin + Duration::from_secs(100)) as _).collect();
    let make = builder(3, None).devices(devices).strategy(Interlock::width(2)).micro_batches(2).record(4);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&steps);
    let trainer = make
        .steps(4)
        .callback(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StageStep(step) = event {
                seen.lock().unwrap().push((*step).clone());
            }
        })
        .build()
        .unwrap();
    let timeline = bounded(trainer, |trainer| {
        trainer.fit(Spiral { examples: 26 })?;
        Ok(trainer.timeline().unwrap())
    })
    .unwrap();
    for step in steps.lock().unwrap().iter() {
        let mut actions = 0;
        for kind in ActionKind::ALL {
            let (count, seconds) = (step.work.actions(kind), step.work.seconds(kind));
            assert!((seconds - count as f64 * 1e-3).abs() < 1e-9, "{kind:?}: {count} in {seconds} s");
            actions += count;
        }
        assert!(actions >= 5 && (step.busy_seconds() - actions as f64 * 1e-3).abs() < 1e-9);
        assert_eq!(step.spans.len() as u64, actions);
        assert!(step.spans.iter().all(|span| (span.end - span.start - 1e-3).abs() < 1e-9));
        assert!(step.spans.is_sorted_by(|a, b| a.end < b.start), "an action begins when the one before it is over");
        // The host has no such clock.
        assert!(step.spans.iter().all(|span| span.start > 90.0), "{:?}", step.spans);
    }
    assert_eq!(timeline.spans.iter().map(|span| span.start).reduce(f64::min), Some(0.0));
}
