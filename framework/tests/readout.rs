//! Heads whose last matrix is a read-only copy of the last stage's.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;
#[path = "common/setup.rs"]
mod setup;

use std::sync::Arc;

use candle_core::Tensor;
use common::{Dense, Matrices, Scale, Slope, Spiral, scalars};
use interlock::{
    Batch, Dataset, EmaConfig, EndToEnd, HeadsConfig, HeadsReadout, HeadsTrained, Interlock, Key, Local, ModelSpec,
    OptimizerConfig, Result, Trainer, TrainerBuilder, Unit, Weights,
    tools::{
        actor::{Feed, Pipeline, PipelineEvent, PipelineSettings},
        device::Link,
        plain::PlainPipeline,
        schedule::{PolicyName, Purpose},
        stage::Stage,
    },
};
use proptest::prelude::*;
use setup::{FAR, builder, devices};

fn shared(refresh: impl Into<Option<u64>>) -> HeadsConfig {
    let readout_refresh = refresh.into();
    HeadsConfig { train: HeadsTrained::All, readout: HeadsReadout::Shared, readout_refresh, ..HeadsConfig::default() }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|value| value.to_bits()).collect()
}

fn same(a: &Weights, b: &Weights) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((n, x), (m, y))| n == m && bits(x) == bits(y))
}

/// Gives the same batch whatever is asked for.
#[derive(Clone)]
struct OneBatch(Batch);

impl Dataset for OneBatch {
    fn len(&self) -> usize {
        self.0.len().unwrap()
    }

    fn batch(&self, _: &[usize], _: Option<Key>) -> Result<Batch> {
        Ok(self.0.clone())
    }
}

fn spiral(size: usize) -> OneBatch {
    OneBatch(Spiral { examples: size }.batch(&(0..size).collect::<Vec<_>>(), None).unwrap())
}

fn plain(builder: &TrainerBuilder) -> PlainPipeline {
    let layout = builder.layout().unwrap();
    PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings).unwrap()
}

/// The weights after each step, by plain calls.
fn by_plain_calls(builder: &TrainerBuilder, steps: usize, micro_batches: usize, data: &OneBatch) -> Vec<Weights> {
    let mut pipeline = plain(builder);
    let mut after = vec![pipeline.snapshot().unwrap()];
    for _ in 0..steps {
        pipeline.train_step(&data.0, micro_batches).unwrap();
        after.push(pipeline.snapshot().unwrap());
    }
    after
}

/// The versions at steps 0 to 8 for the intervals 2 and 3.
const VERSIONS: [(u64, [usize; 9]); 2] = [(2, [0, 0, 0, 0, 2, 2, 4, 4, 6]), (3, [0, 0, 0, 0, 0, 0, 3, 3, 3])];

/// `y = w·x` in three stages, each trained by its own loss, which is the sum of its outputs.
#[test]
fn gradients_through_the_shared_matrix_are_the_hand_worked_ones() {
    for (refresh, versions) in VERSIONS {
        let optimizer = OptimizerConfig { lr: 0.25, momentum: 0.0, ..OptimizerConfig::default() };
        let builder = Trainer::builder(Matrices { dims: vec![1; 4] })
            .strategy(Local)
            .stages(3)
            .heads(shared(refresh))
            .loss(Slope(1.0))
            .optimizer(optimizer);
        let mut pipeline = plain(&builder);
        let value = |weights: &Weights, name: &str| weights[name].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        let start = pipeline.snapshot().unwrap();
        let [mut a, mut b, mut c] = ["s0.weight", "s1.weight", "s2.weight"].map(|name| value(&start, name));
        let mut past = vec![c];
        for (step, &version) in versions[..8].iter().enumerate() {
            let h = past[version];
            for head in ["aux.0.weight", "aux.1.weight"] {
                assert_eq!(value(&pipeline.snapshot().unwrap(), head), h, "step {step}");
            }
            pipeline.train_step(&scalars(&[1.0]), 1).unwrap();
            (a, b, c) = (a - 0.25 * h, b - 0.25 * h * a, c - 0.25 * a * b);
            past.push(c);
            let now = pipeline.snapshot().unwrap();
            for (name, expected) in [("s0.weight", a), ("s1.weight", b), ("s2.weight", c)] {
                assert!((value(&now, name) - expected).abs() < 1e-5, "{name}, step {step}");
            }
        }
    }
}

#[test]
fn the_version_depends_on_the_step_alone() {
    for (refresh, versions) in VERSIONS {
        let after =
            by_plain_calls(&builder(3, None).strategy(Interlock::width(2)).heads(shared(refresh)), 8, 1, &spiral(13));
        for (weights, version) in after.iter().zip(versions) {
            for head in ["aux.0.0.weight", "aux.1.0.weight"] {
                assert_eq!(bits(&weights[head]), bits(&after[version]["layers.2.weight"]));
            }
        }
        // Otherwise the test could not tell versions apart.
        assert_ne!(bits(&after[2]["layers.2.weight"]), bits(&after[3]["layers.2.weight"]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn actors_equal_plain_calls(
        layers in 2_usize..6,
        cut in 1_usize..6,
        width in 1_usize..6,
        mean in any::<bool>(),
        micro_batches in 1_usize..5,
        in_flight in 1_usize..4,
        beyond in 0_u64..3,
        policy in prop_oneof![Just(PolicyName::FillDrain), Just(PolicyName::OneFOneB), Just(PolicyName::Interlock)],
        link in prop_oneof![Just(Link::IMMEDIATE), Just(FAR), Just(Link { latency: 2e-3, ..FAR })],
        ema in proptest::option::of(0_u64..6),
    ) {
        let stages = cut.min(layers);
        let refresh = 1 + ((stages - 1) * in_flight / micro_batches) as u64 + beyond;
        let strategy = Interlock::width(width.min(stages));
        let make = || {
            builder(layers, None)
                .stages(stages)
                .strategy(if mean { strategy.clone().mean() } else { strategy.clone() })
                .heads(shared(refresh))
                .micro_batches(micro_batches)
                .ema(ema.map(|from_step| EmaConfig { decay: 0.5, from_step }))
                .batch_size(13)
        };
        let expected = by_plain_calls(&make(), 12, micro_batches, &spiral(13)).pop().unwrap();
        let make = make().devices(devices(link)).in_flight(in_flight).policy(policy);
        let mut trainer = make.steps(12).build().unwrap();
        trainer.fit(spiral(13)).unwrap();
        prop_assert!(same(&trainer.snapshot().unwrap(), &expected));
    }
}

#[test]
fn a_run_in_two_parts_is_one_run_and_predictors_use_the_version_in_force() {
    for (refresh, first) in [(4, 4), (4, 5), (4, 7), (4, 8), (4, 9), (5, 5), (6, 6)] {
        let data = spiral(13);
        let make = || {
            builder(4, None)
                .strategy(Interlock::width(2))
                .heads(shared(refresh))
                .in_flight(1)
                .ema(EmaConfig { decay: 0.75, from_step: 1 })
                .batch_size(13)
        };
        let mut whole = make().steps(20).build().unwrap();
        whole.fit(data.clone()).unwrap();
        let mut half = make().steps(first).build().unwrap();
        half.fit(data.clone()).unwrap();
        let (weights, state) = (half.snapshot().unwrap(), half.state().unwrap());
        let folder = tempfile::tempdir().unwrap();
        state.tensors.save(folder.path()).unwrap();
        let mut read: interlock::TrainerState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        read.tensors = Weights::load(folder.path()).unwrap();
        let mut other = make().initial_values(weights.clone()).restore(read).steps(20 - first).build().unwrap();
        assert!(same(&other.snapshot().unwrap(), &weights), "{refresh} {first}");
        let scores = |trainer: &mut Trainer| {
            trainer
                .evaluate(data.clone())
                .unwrap()
                .heads()
                .iter()
                .map(|head| head.score.mean_loss().to_bits())
                .collect::<Vec<_>>()
        };
        assert_eq!(scores(&mut other), scores(&mut half));
        other.fit(data.clone()).unwrap();
        assert!(same(&other.snapshot().unwrap(), &whole.snapshot().unwrap()), "{refresh} {first}");

        // The same from the trainer and from its weights, and as the evaluation scores it.
        let inputs = &data.0.inputs;
        let mut predictor = whole.predictor().unwrap();
        let mut saved = make().predictor(whole.snapshot().unwrap()).unwrap();
        let mut own = make().heads(HeadsConfig { train: HeadsTrained::All, ..HeadsConfig::default() });
        own = own.ema(None);
        let mut own = own.predictor(whole.snapshot().unwrap()).unwrap();
        let evaluation = whole.evaluate(data.clone()).unwrap();
        for (k, head) in evaluation.heads().iter().enumerate() {
            let output = predictor.predict_at(k, inputs.clone()).unwrap();
            assert_eq!(bits(&output), bits(&saved.predict_at(k, inputs.clone()).unwrap()));
            assert_eq!(bits(&output), bits(&own.predict_at(k, inputs.clone()).unwrap()));
            let logits = candle_nn::ops::log_softmax(&output, 1).unwrap();
            let loss = candle_nn::loss::nll(&logits, &data.0.targets).unwrap().to_scalar::<f32>().unwrap();
            assert!((f64::from(loss) - head.score.mean_loss()).abs() < 1e-5);
        }
    }
}

#[test]
fn a_run_from_a_later_step_begins_with_its_own_matrix() {
    let data = spiral(13);
    let make = || builder(3, None).strategy(Interlock::width(2)).heads(shared(4)).in_flight(1).batch_size(13);
    let start = Arc::new(make().layout().map(|_| make().build().unwrap().snapshot().unwrap()).unwrap());
    let mut trainer = make().initial_values(Arc::clone(&start)).first_step(7).steps(2).build().unwrap();
    let mut matrices = vec![(7, bits(&start["layers.2.weight"]))];
    for expected in [7, 7, 8, 12] {
        trainer.fit(data.clone()).unwrap();
        let now = trainer.snapshot().unwrap();
        matrices.push((trainer.steps(), bits(&now["layers.2.weight"])));
        // Steps 9, 11, 13 and 17 use versions 7 (4 is before the run), 7, 8 and 12, of which 8 and 12 are not in the list.
        let version = bits(&now["aux.0.0.weight"]);
        match matrices.iter().find(|(step, _)| *step == expected) {
            Some((_, matrix)) => assert_eq!(&version, matrix),
            None => assert!(matrices.iter().all(|(_, matrix)| *matrix != version)),
        }
        trainer.set_length(interlock::Length::Steps(if trainer.steps() == 13 { 4 } else { 2 }));
    }
}

#[test]
fn states_of_other_readouts_are_refused() {
    let data = spiral(13);
    let own = HeadsConfig { train: HeadsTrained::All, ..HeadsConfig::default() };
    let make = |heads: HeadsConfig| builder(2, None).heads(heads).in_flight(1).batch_size(13).steps(5);
    let refused = |then: HeadsConfig, now: HeadsConfig| {
        let mut trainer = make(then).build().unwrap();
        trainer.fit(data).unwrap();
        let (weights, state) = (trainer.snapshot().unwrap(), trainer.state().unwrap());
        make(now).initial_values(weights).restore(state).build().err().unwrap().to_string()
    };
    let error = refused.clone()(shared(2), shared(3));
    assert!(
        error.contains(
            "shares its readout, refreshed every 2 steps, in this run it shares its readout, refreshed every 3"
        ),
        "{error}"
    );
    let error = refused(shared(2), own);
    assert!(error.contains("every 2 steps, in this run it shares no readout; set heads as in that run"), "{error}");
}

#[test]
fn versions_travel_once_over_each_boundary_that_needs_them() {
    // Every stage but the last has a head; with a group of two only stage 1 of four.
    for (group, hops) in [(1, 3), (2, 2)] {
        let layout = builder(4, None)
            .strategy(Interlock::width(2).group(group))
            .heads(shared(4))
            .batch_size(13)
            .layout()
            .unwrap();
        let settings = PipelineSettings {
            micro_batches: 1,
            in_flight: Some(1),
            policy: PolicyName::Interlock.into(),
            global_norm: false,
            first_step: 0,
            record: None,
            stall_timeout: None,
        };
        let pipeline = Pipeline::start(layout.blueprints, layout.plans, settings).unwrap();
        for step in 0..9 {
            let micro_batches = vec![spiral(13).0];
            pipeline
                .feed(Feed {
                    purpose: Purpose::Train,
                    step,
                    micro_batches,
                    elsewhere: Vec::new(),
                    first_index: 0,
                    count: 1,
                    total: 13.0,
                    capture: None,
                })
                .unwrap();
            while !matches!(pipeline.next().unwrap(), PipelineEvent::StepDone { .. }) {}
        }
        // Versions 4 and 8. A request between steps comes after them in every mailbox but those of relays.
        while pipeline.sent().readouts < 2 * hops {
            std::thread::yield_now();
        }
        pipeline.snapshot().unwrap();
        assert_eq!(pipeline.sent().readouts, 2 * hops);
        let sent = pipeline.sent();
        assert_eq!(
            sent.total(),
            sent.activations + sent.gradients + sent.readouts + sent.credits + sent.reports + sent.norms
        );
    }
}

#[test]
fn the_shared_matrix_costs_no_gradient_and_no_state() {
    let bytes = |heads: HeadsConfig| {
        let optimizer = OptimizerConfig { lr: 0.05, momentum: 0.9, ..OptimizerConfig::default() };
        let mut pipeline = plain(&builder(3, None).strategy(Local).optimizer(optimizer).heads(heads));
        pipeline.train_step(&spiral(13).0, 1).unwrap();
        let of = |stage: &Stage| {
            let head = stage.head_parameters().unwrap();
            (head.store().parameter_count(), head.parameter_bytes(), head.optimizer_bytes())
        };
        [of(&pipeline.stages()[0]), of(&pipeline.stages()[1])]
    };
    assert_eq!(bytes(shared(2)), [(0, 96, 0); 2]);
    assert_eq!(bytes(HeadsConfig { train: HeadsTrained::All, ..HeadsConfig::default() }), [(24, 96, 96); 2]);
}

/// Units of these shapes, with these heads.
struct Shapes {
    last: fn() -> Unit,
    head: fn() -> Unit,
}

impl ModelSpec for Shapes {
    fn units(&self) -> Result<Vec<Unit>> {
        Ok(vec![dense("first", 2, 8), dense("second", 8, 8), (self.last)()])
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok((self.head)())
    }
}

fn dense(name: &str, inputs: usize, outputs: usize) -> Unit {
    Unit::new(name, [outputs], move |vb| Dense::new(&vb, inputs, outputs, false))
}

fn with_bias(name: &str) -> Unit {
    use interlock::{Autograd, FromModule, candle_nn::linear};
    Unit::new(name, [3], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(8, 3, vb)?))))
}

#[test]
fn what_cannot_be_shared_is_refused_before_training() {
    let refused = |model: Shapes, heads: HeadsConfig| {
        let builder = Trainer::builder(model).strategy(Interlock::width(1)).stages(3).heads(heads).in_flight(2);
        builder.build().err().unwrap().to_string()
    };
    let last = || dense("last", 8, 3);
    let head = || dense("", 8, 3);
    let good = || Shapes { last, head };
    insta::assert_snapshot!(refused(good(), shared(0)), @"heads.readout_refresh: 0; use 1 or more");
    let own = HeadsConfig { readout_refresh: Some(7), ..HeadsConfig::default() };
    insta::assert_snapshot!(refused(good(), own), @r#"heads.readout_refresh: 7, but heads have their own readout; leave it out, or set readout = "shared""#);
    // Stage 0 of 3 with 2 in flight: it may have updated itself when the last one has freed all but 4 micro-batches.
    insta::assert_snapshot!(refused(good(), shared(4)), @"heads.readout_refresh: 4, but with 2 micro-batches in flight stage 0 may be so far ahead of the last stage that it waits; use 5 or more, or fewer in flight (in_flight)");
    insta::assert_snapshot!(refused(Shapes { last, head: || dense("", 8, 4) }, shared(9)), @r#"heads.readout: weight of the head of stage 0 is [8, 4], last.weight of the last stage is [8, 3]; use heads whose last layer has the width of the model's last layer, or readout = "own""#);
    insta::assert_snapshot!(refused(Shapes { last: || with_bias("last"), head }, shared(9)), @r#"heads.readout: the last layer of the model has a bias, last.bias; end model and heads in a linear layer without bias (such as ln_fc for a GPT), or use readout = "own""#);
    insta::assert_snapshot!(refused(Shapes { last, head: || with_bias("") }, shared(9)), @r#"heads.readout: the last layer of the head of stage 0 has a bias, bias; end model and heads in a linear layer without bias (such as ln_fc for a GPT), or use readout = "own""#);
    let scale = || Unit::new("scale", [3], |vb| Scale::new(&vb));
    insta::assert_snapshot!(refused(Shapes { last: scale, head }, shared(9)), @r#"heads.readout: the model ends in scale.weight of shape [1], no matrix to its outputs; end model and heads in a linear layer without bias (such as ln_fc for a GPT), or use readout = "own""#);
    insta::assert_snapshot!(refused(Shapes { last: || dense("last", 8, 3).tied_to(0), head }, shared(9)), @"partition: units 0 and 2 share weights (tied) but lie on stages 0 and 2; put both on one stage, or untie them (model.tied = false)");
    let nothing = || Unit::new("last", [3], |_| Ok(interlock::Sequential::default()));
    insta::assert_snapshot!(refused(Shapes { last: nothing, head }, shared(9)), @r#"heads.readout: the model ends in a unit without parameters; end model and heads in a linear layer without bias (such as ln_fc for a GPT), or use readout = "own""#);
}

/// A head of candle's own layer, by candle's graph.
#[test]
fn heads_by_autograd_share_too() {
    use interlock::{Autograd, FromModule, candle_nn::linear_no_bias};
    let linear = |name: &str, inputs: usize, outputs: usize| {
        Unit::new(name, [outputs], move |vb| {
            Autograd::build(vb, |vb| Ok(FromModule(linear_no_bias(inputs, outputs, vb)?)))
        })
    };
    struct Net(Vec<Unit>, Unit);
    impl ModelSpec for Net {
        fn units(&self) -> Result<Vec<Unit>> {
            Ok(self.0.clone())
        }
        fn head(&self, _: usize, _: &str) -> Result<Unit> {
            Ok(self.1.clone())
        }
    }
    let model = || Net(vec![linear("first", 2, 8), linear("second", 8, 8), linear("last", 8, 3)], linear("", 8, 3));
    let make = || Trainer::builder(model()).strategy(Local).stages(3).heads(shared(3)).in_flight(1).batch_size(13);
    let expected = by_plain_calls(&make(), 8, 1, &spiral(13)).pop().unwrap();
    let mut trainer = make().steps(8).build().unwrap();
    trainer.fit(spiral(13)).unwrap();
    assert!(same(&trainer.snapshot().unwrap(), &expected));
}

#[test]
fn without_heads_nothing_is_shared() {
    let heads = HeadsConfig { train: HeadsTrained::Needed, ..shared(2) };
    let mut trainer = builder(3, None).strategy(EndToEnd).heads(heads).steps(3).batch_size(13).build().unwrap();
    trainer.fit(spiral(13)).unwrap();
}
