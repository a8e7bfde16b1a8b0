//! Widths that change while a run goes on: by schedule, by measurement, and by a strategy of one's own.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use candle_core::Tensor;
use common::{Chain, Fault, How, Perceptron, Slope, Spiral, When, given, scalars};
use interlock::{
    ActivationDtype, Adapt, Adaptive, Batch, ClipConfig, ClipScope, Dataset, EndToEnd, Error, GradientPlan, Interlock,
    Key, Length, Local, OptimizerConfig, Origin, Phase, PlanPhase, PlanSchedule, Recompute, Result, Strategy,
    TrainEvent, Trainer, TrainerBuilder, WidthSchedule,
    tools::{strategy::AdaptiveState, trainer::Followed},
};
use serde_json::Value;

fn perceptron(fault: Option<Fault>) -> TrainerBuilder {
    let optimizer = OptimizerConfig { lr: 0.05, ..OptimizerConfig::default() };
    Trainer::builder(Perceptron { layers: 4, fault }).stages(4).probes().optimizer(optimizer).batch_size(7).seed(3)
}

fn bits(tensors: interlock::Weights) -> BTreeMap<String, Vec<u32>> {
    let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect();
    tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
}

fn follows(plan: &GradientPlan) -> Vec<usize> {
    (0..plan.stages()).map(|k| plan.farthest(k)).collect()
}

/// The input 1, as often as asked for.
#[derive(Clone, Copy)]
struct Ones;

impl Dataset for Ones {
    fn len(&self) -> usize {
        6
    }

    fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
        Ok(scalars(&vec![1.0; numbers.len()]))
    }
}

/// A chain of scalars, `l_j = a_j·w_j … w_0`, with heads of these signs. All weights are positive and stay so.
fn signs(heads: [f32; 3]) -> TrainerBuilder {
    let [a, b, c] = heads;
    let weights = [("s0.weight", 2.0), ("s1.weight", 3.0), ("s2.weight", 2.0), ("s3.weight", 1.5)];
    let heads = [("aux.0.weight", a), ("aux.1.weight", b), ("aux.2.weight", c)];
    Trainer::builder(Chain { length: 4 })
        .stages(4)
        .loss(Slope(1.0))
        .optimizer(OptimizerConfig { lr: 1e-3, momentum: 0.0, ..OptimizerConfig::default() })
        .initial_values(given(&[&weights[..], &heads].concat()))
        .allow_unknown(true) // not every strategy has all heads
        .batch_size(6)
}

/// What an observer saw: changes of plan, and what each stage measured in each step.
#[derive(Default)]
struct Seen {
    changes: Vec<(u64, Vec<usize>)>,
    cosines: Vec<Vec<Option<f64>>>,
}

/// In a chain the gradients of stage `k` of `l_j` and `l_i` agree (cosine 1) or are opposed (-1) as the signs of `a_j` and `a_i` are.
#[test]
fn a_stage_widens_where_gradients_are_opposed_and_nowhere_else() {
    // Signs of a_0 … a_2 and of the last stage: + - - +.
    let rule = Adaptive { every: 2, window: 2, below: 0.0, width: 1, max_width: None };
    for micro_batches in [1, 3] {
        for in_flight in [1, 4] {
            let seen: Arc<Mutex<Seen>> = Arc::default();
            let sink = Arc::clone(&seen);
            let mut trainer = signs([1.0, -1.0, -1.0])
                .strategy(rule.clone())
                .micro_batches(micro_batches)
                .in_flight(in_flight)
                .steps(12)
                .callback(move |event: &TrainEvent<'_>| {
                    let Seen { changes, cosines } = &mut *sink.lock().unwrap();
                    match event {
                        TrainEvent::PlanChanged { from_step, plan } => changes.push((*from_step, follows(plan))),
                        TrainEvent::StepDone { stages, .. } => {
                            cosines.push(stages.iter().map(|stage| stage.alignment).collect::<Vec<_>>());
                        }
                        _ => {}
                    }
                })
                .build()
                .unwrap();
            let report = trainer.fit(Ones).unwrap();
            let Seen { changes, cosines } = &*seen.lock().unwrap();
            // Stages 0 and 2 were opposed in steps 0 and 2. Then stage 0 follows l_1, which agrees with l_2; stage 2 follows the last.
            assert_eq!(changes, &[(4, vec![1, 1, 3, 3])]);
            for (step, found) in cosines.iter().enumerate() {
                let expected = match step {
                    0 | 2 => vec![Some(-1.0), Some(1.0), Some(-1.0), None],
                    4 | 6 | 8 | 10 => vec![Some(1.0), Some(1.0), None, None],
                    _ => vec![None; 4],
                };
                assert_eq!(found, &expected, "step {step}");
            }
            let state: AdaptiveState = serde_json::from_value(trainer.strategy_state().unwrap().unwrap()).unwrap();
            assert_eq!(state.widths, [2, 1, 2, 1]);
            let changes: Vec<_> = state.changes.iter().map(|c| (c.step, c.stage, c.width, c.cosine)).collect();
            assert_eq!(changes, [(4, 0, 2, -1.0), (4, 2, 2, -1.0)]);
            assert_eq!((state.windows, state.measured), (vec![vec![1.0; 2], vec![1.0; 2], vec![], vec![]], Some(10)));
            assert_eq!(report.stages.iter().map(|stage| stage.follows).collect::<Vec<_>>(), [1, 1, 3, 3]);
            let plans: Vec<_> = report.plans.iter().map(|phase| (phase.from_step, &*phase.follows)).collect();
            let of = |losses: [usize; 4]| losses.map(|loss| Followed(vec![(loss, 1.0)]));
            assert_eq!(plans, [(0, &of([0, 1, 2, 3])[..]), (4, &of([1, 1, 3, 3])[..])]);
            let every = report.plans[1].every.as_ref().unwrap();
            assert_eq!((every.steps, &*every.measures), (2, &[Some(2), Some(2), None, None][..]));
        }
    }
}

#[test]
fn a_run_that_goes_on_keeps_its_widths() {
    let rule = Adaptive { every: 1, window: 1, below: 0.0, width: 1, max_width: Some(2) };
    let mut trainer = signs([1.0, -1.0, 1.0]).strategy(rule).steps(1).build().unwrap();
    for expected in [[0, 1, 2, 3], [1, 2, 2, 3], [1, 2, 2, 3]] {
        let report = trainer.fit(Ones).unwrap();
        assert_eq!(report.stages.iter().map(|stage| stage.follows).collect::<Vec<_>>(), expected);
        trainer.evaluate(Ones).unwrap();
        trainer.set_length(Length::Steps(2));
    }
    assert_eq!((trainer.steps(), trainer.plans().phases().len()), (5, 2));
    // A strategy that decides nothing on the way has no state.
    let mut trainer = signs([1.0; 3]).strategy(Interlock::width(2)).steps(1).build().unwrap();
    trainer.fit(Ones).unwrap();
    assert_eq!(trainer.strategy_state().unwrap(), None);
}

#[test]
fn measuring_changes_no_bit() {
    let data = Spiral { examples: 40 };
    for (micro_batches, width, dtype, recompute, clip) in [
        (1, 1, ActivationDtype::F32, Recompute::None, None),
        (3, 2, ActivationDtype::F32, Recompute::All, Some(ClipScope::Global)),
        (3, 1, ActivationDtype::Bf16, Recompute::Stages(vec![0, 2]), Some(ClipScope::Stage)),
    ] {
        let train = |strategy: Box<dyn Strategy>| {
            let mut trainer = perceptron(None)
                .strategy(strategy)
                .micro_batches(micro_batches)
                .dtype(dtype)
                .recompute(recompute.clone())
                .clip(clip.map(|scope| ClipConfig { max_norm: 0.1, scope }))
                .steps(20)
                .build()
                .unwrap();
            trainer.fit(data).unwrap();
            (bits(trainer.snapshot().unwrap()), trainer.strategy_state().unwrap())
        };
        let (constant, _) = train(Box::new(Interlock::width(width)));
        let never = Adaptive { every: 2, window: 3, below: -2.0, width, max_width: None };
        let (measured, state) = train(Box::new(never));
        assert!(constant == measured, "M = {micro_batches}, width {width}, {dtype:?}, {recompute:?}, {clip:?}");
        let state: AdaptiveState = serde_json::from_value(state.unwrap()).unwrap();
        assert_eq!((state.widths, state.windows[0].len()), (vec![width; 4], 3));
        assert!(state.changes.is_empty() && state.windows[0].iter().all(|cosine| cosine.abs() <= 1.0));
    }
}

#[test]
fn what_is_in_flight_changes_no_width() {
    let data = Spiral { examples: 40 };
    let train = |in_flight: usize, every: u64| {
        let rule = Adaptive { every, window: 2, below: 0.6, width: 1, max_width: None };
        let mut trainer = perceptron(None)
            .strategy(rule)
            .micro_batches(3)
            .in_flight(in_flight)
            .clip(ClipConfig { max_norm: 0.1, scope: ClipScope::Global })
            .steps(30)
            .build()
            .unwrap();
        trainer.fit(data).unwrap();
        (trainer.strategy_state().unwrap().unwrap(), bits(trainer.snapshot().unwrap()))
    };
    for every in [1, 3] {
        let (state, parameters) = train(1, every);
        let changes = state["changes"].as_array().unwrap();
        assert!(!changes.is_empty(), "{state}");
        for in_flight in [2, 4] {
            assert!(train(in_flight, every) == (state.clone(), parameters.clone()), "in flight {in_flight}");
        }
    }
}

#[test]
fn a_head_that_some_step_needs_is_trained_in_all() {
    let head = |trainer: &Trainer| trainer.snapshot().unwrap()["aux.0.weight"].to_vec1::<f32>().unwrap()[0];
    // Without probes: head 0 is there since local steps need it, heads 1 and 2 too.
    let strategy = WidthSchedule::new(EndToEnd).then(2, Local);
    let mut trainer = signs([1.0, 1.0, 1.0]).strategy(strategy).steps(1).build().unwrap();
    let mut last = head(&trainer);
    for (from_step, expected) in [(0, [3, 3, 3, 3]), (1, [3, 3, 3, 3]), (2, [0, 1, 2, 3])] {
        let report = trainer.fit(Ones).unwrap();
        assert_eq!(report.stages.iter().map(|stage| stage.follows).collect::<Vec<_>>(), expected, "step {from_step}");
        let now = head(&trainer);
        assert_ne!(now, last, "step {from_step}");
        last = now;
    }
    assert!(trainer.stages()[..3].iter().all(|stage| stage.head_parameters == 1));
    // Width 2 follows no head 0, and measures none.
    let rule = Adaptive { every: 1, window: 1, below: 0.0, width: 2, max_width: None };
    let trainer = signs([1.0; 3]).strategy(rule).build().unwrap();
    assert_eq!(trainer.stages().iter().map(|stage| stage.head_parameters).collect::<Vec<_>>(), [0, 1, 1, 0]);
}

#[test]
fn a_stage_that_fails_while_others_wait_for_a_plan_ends_the_run() {
    for (when, step) in [(When::Forward, 2), (When::BackwardParameters, 3)] {
        let rule = Adaptive { every: 1, window: 1, below: 2.0, width: 1, max_width: None };
        let fault = Fault { unit: 2, head: false, when, how: How::Panic, step };
        let error = fails_in_time(perceptron(Some(fault)).strategy(rule));
        let Error::Failed(failure) = error else { panic!("{error}") };
        assert_eq!((failure.stage(), failure.step), (Some(2), Some(step)), "{failure}");
    }
}

/// How a strategy of one's own goes wrong from step 3 on.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Panics,
    Errs,
    ChangesWhatIsKnown,
    NeedsNoSuchHead,
    KnowsNoMore,
    PlansForOthers,
}

#[derive(Debug)]
struct Broken {
    wrong: Wrong,
    known: u64,
}

impl Strategy for Broken {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        EndToEnd.plan(stages)
    }

    fn adapt(&self, _: usize) -> Result<Option<Box<dyn Adapt>>> {
        Ok(Some(Box::new(Self { ..*self })))
    }
}

impl Adapt for Broken {
    fn may_need(&self, _: usize) -> bool {
        false
    }

    fn known_until(&self) -> u64 {
        self.known
    }

    fn observe(&mut self, step: u64, _: &[Option<f64>]) -> Result<Option<PlanPhase>> {
        let phase = |from_step, plan: Result<GradientPlan>| -> Result<Option<PlanPhase>> {
            Ok(Some(PlanPhase { from_step, plan: plan?.into(), every: None }))
        };
        if step >= 3 {
            match self.wrong {
                Wrong::Panics => panic!("no idea"),
                Wrong::Errs => return Err(Error::Data("no idea".to_owned())),
                Wrong::ChangesWhatIsKnown => return phase(4, EndToEnd.plan(4)),
                Wrong::NeedsNoSuchHead => return phase(5, Local.plan(4)),
                Wrong::PlansForOthers => {
                    self.known = 7;
                    return phase(6, EndToEnd.plan(3));
                }
                Wrong::KnowsNoMore => return Ok(None),
            }
        }
        self.known = step + 3;
        Ok(None)
    }

    fn state(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _: &Value) -> Result<PlanSchedule> {
        Ok(PlanSchedule::constant(EndToEnd.plan(4)?))
    }
}

/// The failure of a run of ten steps.
fn fails_in_time(builder: TrainerBuilder) -> Error {
    let mut trainer = builder.steps(10).build().unwrap();
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let error = trainer.fit(Spiral { examples: 21 }).unwrap_err();
        drop(trainer);
        done.send(error).unwrap();
    });
    result.recv_timeout(Duration::from_secs(30)).expect("the failure ends in bounded time")
}

#[test]
fn a_strategy_that_fails_ends_the_run() {
    for (wrong, step, words) in [
        (Wrong::Panics, 3, "panicked: no idea"),
        (Wrong::Errs, 3, "no idea"),
        (Wrong::ChangesWhatIsKnown, 3, "changes the plan from step 4 on"),
        (Wrong::NeedsNoSuchHead, 3, "needs the head of stage 0"),
        (Wrong::PlansForOthers, 3, "3 stages"),
        (Wrong::KnowsNoMore, 4, "known up to step 5"),
    ] {
        let builder = perceptron(None).strategy(Broken { wrong, known: 2 });
        let error = fails_in_time(builder);
        let Error::Failed(failure) = error else { panic!("{wrong:?}: {error}") };
        assert_eq!(
            (failure.origin, failure.step, failure.phase),
            (Origin::Strategy, Some(step), Phase::Plan),
            "{wrong:?}: {failure}"
        );
        assert!(failure.to_string().contains(words), "{wrong:?}: {failure}");
    }
    // Nothing could ever be fed.
    let Err(error) = perceptron(None).strategy(Broken { wrong: Wrong::Errs, known: 0 }).build() else { panic!() };
    assert!(error.is_refusal() && error.to_string().contains("beyond the first step, 0"), "{error}");
}
