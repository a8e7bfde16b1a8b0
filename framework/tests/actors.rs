//! Actors compute what plain calls compute, to the bit, whatever is in flight.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;
#[path = "common/setup.rs"]
mod setup;

use std::{sync::Arc, time::Duration};

use candle_core::Tensor;
use common::Spiral;
use interlock::{
    ActivationDtype, Adaptive, ClipConfig, ClipScope, Dataset, EndToEnd, Interlock, OptimizerConfig, PlanSchedule,
    Recompute, Split, Strategy, TrainerBuilder, Wants, Weights, WidthSchedule,
    tools::{
        actor::{Feed, Pipeline, PipelineEvent, PipelineSettings},
        device::Link,
        plain::PlainPipeline,
        schedule::{Action, MicroBatchId, PolicyName, Purpose, Remaining},
        stage::{ActionContext, Outcome, Payload},
    },
};
use proptest::{prelude::*, strategy::Strategy as _};
use setup::{FAR, Remote, builder, devices};

fn same(a: &Weights, b: &Weights) -> bool {
    let bits = |t: &Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
    };
    a.len() == b.len() && a.iter().zip(b).all(|((n, x), (m, y))| n == m && bits(x) == bits(y))
}

/// The parameters and the plans after `steps` steps by plain calls: a loop over the batches in the order in which the trainer takes them is not
/// needed, since the data are the same for every batch here.
fn by_plain_calls(
    builder: &TrainerBuilder,
    steps: usize,
    micro_batches: usize,
    batch: usize,
) -> (Weights, PlanSchedule) {
    let layout = builder.layout().unwrap();
    let mut pipeline = PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings).unwrap();
    let data = OneBatch { size: batch };
    for _ in 0..steps {
        pipeline.train_step(&data.batch(&[], None).unwrap(), micro_batches).unwrap();
    }
    (pipeline.snapshot().unwrap(), pipeline.plans().schedule().clone())
}

/// Gives the same batch whatever is asked for.
#[derive(Clone, Copy)]
struct OneBatch {
    size: usize,
}

impl Dataset for OneBatch {
    fn len(&self) -> usize {
        self.size
    }

    fn batch(&self, _: &[usize], _: Option<interlock::Key>) -> interlock::Result<interlock::Batch> {
        Spiral { examples: self.size }.batch(&(0..self.size).collect::<Vec<_>>(), None)
    }
}

/// Which loss trains which stage, for any number of stages: widths beyond it are end-to-end.
#[derive(Clone, Debug)]
enum Widths {
    Constant(usize),
    /// A width in blocks of a group, by the mean of the window.
    Mean(usize, usize),
    Weights(Vec<f64>),
    /// Widths, each for so many steps, and every how many steps are end-to-end.
    Schedule(Vec<(u64, usize, Option<u64>)>),
    Adaptive(Adaptive),
}

impl Widths {
    fn strategy(&self, stages: usize) -> Box<dyn Strategy> {
        match self.clone() {
            Self::Constant(width) => Box::new(Interlock::width(width.min(stages))),
            Self::Mean(width, group) => {
                let group = group.min(stages);
                Box::new(Interlock::width(width.min(stages.div_ceil(group))).group(group).mean())
            }
            Self::Weights(mut weights) => {
                weights.truncate(stages);
                weights[0] += 0.125;
                Box::new(Interlock::weights(weights))
            }
            Self::Schedule(phases) => {
                let mut from_step = 0;
                let mut schedule: Option<WidthSchedule> = None;
                for (steps, width, every) in phases {
                    let strategy = Interlock::width(width.min(stages));
                    let next = match schedule {
                        Some(schedule) => schedule.then(from_step, strategy),
                        None => WidthSchedule::new(strategy),
                    };
                    schedule = Some(match every {
                        Some(steps) => next.end_to_end_every(steps),
                        None => next,
                    });
                    from_step += steps;
                }
                Box::new(schedule.unwrap())
            }
            Self::Adaptive(rule) => Box::new(Adaptive { width: rule.width.min(stages), ..rule }),
        }
    }
}

fn any_widths() -> impl proptest::strategy::Strategy<Value = Widths> {
    let phase = (1_u64..4, 1_usize..6, proptest::option::of(2_u64..4));
    let adaptive = (1_u64..4, 1_usize..3, prop_oneof![Just(2.0), -0.5..1.0], 1_usize..3);
    prop_oneof![
        (1_usize..6).prop_map(Widths::Constant),
        (1_usize..6, 1_usize..4).prop_map(|(width, group)| Widths::Mean(width, group)),
        proptest::collection::vec(prop_oneof![Just(0.0), 0.0..1.0], 1..6).prop_map(Widths::Weights),
        proptest::collection::vec(phase, 1..4).prop_map(Widths::Schedule),
        adaptive.prop_map(|(every, window, below, width)| {
            Widths::Adaptive(Adaptive { every, window, below, width, max_width: None })
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn actors_equal_plain_calls(
        layers in 1_usize..6,
        widths in any_widths(),
        micro_batches in 1_usize..5,
        in_flight in 1_usize..9,
        policy in prop_oneof![Just(PolicyName::FillDrain), Just(PolicyName::OneFOneB), Just(PolicyName::Interlock)],
        recompute in prop_oneof![Just(Recompute::None), Just(Recompute::All), Just(Recompute::Stages(vec![0]))],
        dtype in prop_oneof![Just(ActivationDtype::F32), Just(ActivationDtype::Bf16)],
        clip in prop_oneof![Just(None), Just(Some(ClipScope::Stage)), Just(Some(ClipScope::Global))],
        link in prop_oneof![Just(Link::IMMEDIATE), Just(FAR)],
    ) {
        let make = || {
            builder(layers, None)
                .strategy(widths.strategy(layers))
                .micro_batches(micro_batches)
                .dtype(dtype)
                .clip(clip.map(|scope| ClipConfig { max_norm: 0.1, scope }))
                .batch_size(13)
        };
        let (expected, plans) = by_plain_calls(&make(), 8, micro_batches, 13);
        let make = make().devices(devices(link)).recompute(recompute).in_flight(in_flight).policy(policy);
        let mut trainer = make.steps(8).build().unwrap();
        trainer.fit(OneBatch { size: 13 }).unwrap();
        let found = trainer.snapshot().unwrap();
        prop_assert!(same(&found, &expected));
        prop_assert_eq!(trainer.plans(), &plans);
    }
}

/// Drives the second of three stages by hand.
#[test]
fn what_crosses_a_boundary_is_rounded_and_half_as_large() {
    for (dtype, bytes) in [(ActivationDtype::F32, 4), (ActivationDtype::Bf16, 2)] {
        let layout = builder(3, None).strategy(EndToEnd).dtype(dtype).layout().unwrap();
        let mut stages: Vec<_> = layout.blueprints.iter().map(|stage| stage.build().unwrap()).collect();
        let micro_batch = MicroBatchId { step: 0, purpose: Purpose::Train, index: 0, count: 1 };
        let batch = Spiral { examples: 5 }.batch(&[0, 1, 2, 3, 4], None).unwrap();
        let mut payload = Payload { inputs: batch.inputs, targets: batch.targets, total: 5.0 };
        for (k, stage) in stages.iter_mut().enumerate() {
            stage.accept(micro_batch, payload).unwrap();
            let Outcome::Activation(next) =
                stage.perform(Action::Forward(micro_batch), ActionContext::default()).unwrap()
            else {
                panic!()
            };
            // (5, 8) between stages; the last one's logits (5, 3) go nowhere and stay as they are.
            assert_eq!(next.inputs.bytes(), if k < 2 { 5 * 8 * bytes } else { 5 * 3 * 4 });
            payload = next;
        }
        stages[2].perform(Action::Head { micro_batch, output_gradient: true }, ActionContext::default()).unwrap();
        for k in [2, 1] {
            let action = Action::Backward {
                micro_batch,
                loss: 2,
                wants: Wants::BOTH,
                measured: false,
                then: Remaining::Nothing,
            };
            let Outcome::Gradient(gradient) = stages[k].perform(action, ActionContext::default()).unwrap() else {
                panic!()
            };
            assert_eq!(gradient.bytes(), 5 * 8 * bytes);
            stages[k - 1].accept_gradient(micro_batch, 2, &gradient).unwrap();
        }
        let action = Action::Backward {
            micro_batch,
            loss: 2,
            wants: Wants::PARAMETERS,
            measured: false,
            then: Remaining::Nothing,
        };
        assert!(matches!(stages[0].perform(action, ActionContext::default()).unwrap(), Outcome::None));
    }
}

#[test]
fn training_with_rounded_boundaries_learns() {
    let data = Spiral { examples: 300 };
    let optimizer = OptimizerConfig { lr: 0.05, ..OptimizerConfig::default() };
    let train = |dtype| {
        let builder = builder(4, None).strategy(Interlock::width(2)).optimizer(optimizer.clone()).batch_size(32);
        let mut trainer = builder.epochs(60).dtype(dtype).build().unwrap();
        trainer.fit((data, data)).unwrap().final_scores
    };
    let (exact, rounded) = (train(ActivationDtype::F32), train(ActivationDtype::Bf16));
    assert_ne!(exact.loss, rounded.loss);
    assert!(rounded.accuracy.unwrap() > 0.85 && exact.accuracy.unwrap() > 0.85, "{rounded:?} {exact:?}");
}

#[test]
fn evaluations_in_between_change_nothing() {
    let data = Spiral { examples: 60 };
    let train = |eval_every: Option<u64>| {
        let mut trainer =
            builder(4, None).strategy(Interlock::width(2)).steps(20).eval_every(eval_every).build().unwrap();
        let validation = Spiral { examples: 31 };
        let split =
            Split { train: Arc::new(data), validation: eval_every.map(|_| Arc::new(validation) as Arc<dyn Dataset>) };
        let report = trainer.fit(split).unwrap();
        (trainer.snapshot().unwrap(), report)
    };
    let (without, _) = train(None);
    let (with, report) = train(Some(3));
    assert!(same(&without, &with));
    assert!(report.evaluated && report.stages.iter().all(|s| s.accuracy.is_some()));
}

#[test]
fn training_learns_and_every_strategy_has_its_heads() {
    let data = Spiral { examples: 300 };
    for strategy in
        [Box::new(Interlock::width(1)) as Box<dyn Strategy>, Box::new(Interlock::width(2)), Box::new(EndToEnd)]
    {
        let mut trainer = builder(3, None).strategy_boxed(strategy).batch_size(30).epochs(60).build().unwrap();
        let before = trainer.evaluate(data).unwrap();
        trainer.fit(data).unwrap();
        let after = trainer.evaluate(data).unwrap();
        assert_eq!(after.heads().len(), 3);
        for (before, after) in before.heads().iter().zip(after.heads()) {
            assert!(after.score.mean_loss() < before.score.mean_loss());
        }
    }
}

#[test]
fn a_pipeline_stops_with_messages_on_their_way() {
    let (done, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let link = Link { latency: 1e6, ..Link::IMMEDIATE };
        let layout = builder(2, None).strategy(EndToEnd).devices([Arc::new(Remote(link)) as _]).layout().unwrap();
        let settings = PipelineSettings {
            micro_batches: 1,
            in_flight: None,
            policy: PolicyName::default().into(),
            global_norm: false,
            first_step: 0,
            record: None,
            stall_timeout: None,
        };
        let pipeline = Pipeline::start(layout.blueprints, layout.plans, settings).unwrap();
        let micro_batches = vec![Spiral { examples: 3 }.batch(&[0, 1, 2], None).unwrap()];
        pipeline
            .feed(Feed {
                purpose: Purpose::Train,
                step: 0,
                micro_batches,
                elsewhere: Vec::new(),
                first_index: 0,
                count: 1,
                total: 3.0,
                capture: None,
            })
            .unwrap();
        while pipeline.sent().activations < 2 {
            std::thread::yield_now();
        }
        drop(pipeline);
        done.send(()).unwrap();
    });
    stopped.recv_timeout(Duration::from_secs(30)).expect("it stops in bounded time");
}

#[test]
fn a_link_that_cannot_be_is_refused_before_anything_starts() {
    let link = Link { latency: -1.0, ..FAR };
    let error = builder(2, None).strategy(EndToEnd).devices(devices(link)).build().err().unwrap();
    assert!(error.is_refusal() && error.to_string().starts_with("device remote: its link has a latency"), "{error}");
}

/// A unit that cannot be built.

#[test]
fn a_snapshot_keeps_the_events_that_come_meanwhile() {
    let layout = builder(2, None).strategy(EndToEnd).layout().unwrap();
    let settings = PipelineSettings {
        micro_batches: 1,
        in_flight: None,
        policy: PolicyName::Interlock.into(),
        global_norm: false,
        first_step: 0,
        record: None,
        stall_timeout: None,
    };
    let pipeline = Pipeline::start(layout.blueprints, layout.plans, settings).unwrap();
    let feed = |step| {
        let micro_batches = vec![OneBatch { size: 7 }.batch(&[], None).unwrap()];
        pipeline
            .feed(Feed {
                purpose: Purpose::Train,
                step,
                micro_batches,
                elsewhere: Vec::new(),
                first_index: 0,
                count: 1,
                total: 7.0,
                capture: None,
            })
            .unwrap();
    };
    let before = pipeline.sent().reports;
    feed(0);
    while pipeline.sent().reports < before + 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Both stages have finished the step, and nobody has taken an event.
    assert_eq!(pipeline.snapshot().unwrap().len(), 3);
    feed(1);
    let done = std::iter::from_fn(|| Some(pipeline.next().unwrap())).find_map(|event| match event {
        PipelineEvent::StepDone { step, .. } => Some(step),
        _ => None,
    });
    assert_eq!(done, Some(0));
}
