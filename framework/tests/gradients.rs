//! Gradients of a chain of scalars, worked out by hand, and the equivalences of strategies.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{Device, Tensor};
use common::{ByTarget, Chain, Matrices, Slope, given, scalars};
use interlock::{
    Activation, Autograd, Batch, Dataset, EndToEnd, FromModule, GradientPlan, HeadsConfig, HeadsTrained, Interlock,
    Loss, ModelSpec, OptimizerConfig, Pass, PlainCpu, StageModule, Strategy, Trainer, Unit,
    tools::plain::PlainPipeline,
};

const WEIGHTS: [(&str, f32); 7] = [
    ("s0.weight", 2.0),
    ("s1.weight", 3.0),
    ("s2.weight", 5.0),
    ("s3.weight", 7.0),
    ("aux.0.weight", 11.0),
    ("aux.1.weight", 13.0),
    ("aux.2.weight", 17.0),
];

/// The clipped gradients of one step of a chain of `stages` scalars with input 1 and losses of slope 1.
fn gradients(stages: usize, strategy: impl Strategy + 'static) -> BTreeMap<String, f32> {
    gradients_with_heads(stages, strategy, None)
}

/// The same if only every n-th stage carries a head.
fn gradients_with_heads(
    stages: usize,
    strategy: impl Strategy + 'static,
    every: Option<usize>,
) -> BTreeMap<String, f32> {
    let builder = Trainer::builder(Chain { length: stages })
        .strategy(strategy)
        .stages(stages)
        .heads(HeadsConfig { every, train: HeadsTrained::All, ..HeadsConfig::default() })
        .loss(Slope(1.0))
        .optimizer(OptimizerConfig { lr: 1e-3, momentum: 0.0, ..OptimizerConfig::default() })
        .devices([Arc::new(PlainCpu) as Arc<dyn interlock::StageDevice>])
        .initial_values(given(&WEIGHTS))
        .allow_unknown(true); // shorter chains need fewer
    let layout = builder.layout().unwrap();
    let mut pipeline = PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings).unwrap();
    pipeline.stages_mut().iter_mut().for_each(interlock::tools::stage::Stage::keep_gradients);
    pipeline.train_step(&scalars(&[1.0]), 1).unwrap();
    let parts = pipeline.stages().iter().flat_map(|s| [Some(s.parameters()), s.head_parameters()]).flatten();
    parts
        .flat_map(|part| part.applied())
        .map(|(name, gradient)| (name.clone(), gradient.to_vec1::<f32>().unwrap()[0]))
        .collect()
}

/// `l_j = a_j · w_j … w_0 · x`, so `∂l_j/∂w_k` is the product of all but `w_k`, and `∂l_k/∂a_k = w_k … w_0 · x`.
#[test]
fn three_stages_by_hand() {
    // Losses: l_0 = 11·2 = 22, l_1 = 13·3·2 = 78, l_2 = 5·3·2 = 30.
    let by_hand = [
        (1, [11.0, 26.0, 6.0]), // ∂l_0/∂w_0 = 11; ∂l_1/∂w_1 = 13·2; ∂l_2/∂w_2 = 3·2
        (2, [39.0, 10.0, 6.0]), // ∂l_1/∂w_0 = 13·3; ∂l_2/∂w_1 = 5·2
        (3, [15.0, 10.0, 6.0]), // ∂l_2/∂w_0 = 5·3
    ];
    for (width, expected) in by_hand {
        let found = gradients(3, Interlock::width(width));
        for (k, expected) in expected.into_iter().enumerate() {
            assert_eq!(found[&format!("s{k}.weight")], expected, "width {width}, stage {k}");
        }
        assert_eq!(found["aux.0.weight"], 2.0);
        assert_eq!(found["aux.1.weight"], 6.0);
    }
}

#[test]
fn four_stages_by_hand() {
    // l_0 = 11·2, l_1 = 13·3·2, l_2 = 17·5·3·2, l_3 = 7·5·3·2.
    let by_hand = [
        (1, [11.0, 26.0, 102.0, 30.0]),
        (2, [39.0, 170.0, 42.0, 30.0]), // 13·3; 17·5·2; 7·3·2
        (3, [255.0, 70.0, 42.0, 30.0]), // 17·5·3; 7·5·2
        (4, [105.0, 70.0, 42.0, 30.0]), // 7·5·3
    ];
    for (width, expected) in by_hand {
        let found = gradients(4, Interlock::width(width));
        for (k, expected) in expected.into_iter().enumerate() {
            assert_eq!(found[&format!("s{k}.weight")], expected, "width {width}, stage {k}");
        }
        assert_eq!([found["aux.0.weight"], found["aux.1.weight"], found["aux.2.weight"]], [2.0, 6.0, 30.0]);
    }
}

#[test]
fn mixed_widths_by_hand() {
    // Stage 0 follows l_2, stage 1 its own, stage 2 l_3.
    let found = gradients(4, Interlock::widths([3, 1, 2, 1]));
    let stages: Vec<f32> = (0..4).map(|k| found[&format!("s{k}.weight")]).collect();
    assert_eq!(stages, [255.0, 26.0, 42.0, 30.0]);
}

#[test]
fn weighted_sums_and_groups_by_hand() {
    let found = |strategy: Interlock| -> Vec<f32> {
        let found = gradients(4, strategy);
        assert_eq!(found["aux.1.weight"], 6.0);
        (0..4).map(|k| found[&format!("s{k}.weight")]).collect()
    };
    // By stage: ∂l_0 = 11, ∂l_1 = 39, ∂l_2 = 255, ∂l_3 = 105; ∂l_1 = 26, ∂l_2 = 170, ∂l_3 = 70; ∂l_2 = 102, ∂l_3 = 42; ∂l_3 = 30.
    assert_eq!(found(Interlock::width(2).mean()), [25.0, 98.0, 72.0, 30.0]);
    assert_eq!(found(Interlock::weights([0.5, 0.25, 0.25])), [79.0, 73.0, 72.0, 30.0]);
    assert_eq!(found(Interlock::weights([0.0, 0.0, 2.0])), [510.0, 140.0, 84.0, 60.0]);
    let lists = [vec![0.0, 0.0, 0.0, 1.0], vec![1.0, 1.0], vec![0.5], vec![0.25, 4.0]];
    assert_eq!(found(Interlock::weights_of_stages(lists)), [105.0, 196.0, 51.0, 127.5]);
    assert_eq!(found(Interlock::width(1).group(2)), [39.0, 26.0, 42.0, 30.0]);
    assert_eq!(found(Interlock::width(2).group(2).mean()), [72.0, 48.0, 42.0, 30.0]);
    // In blocks of three the last block is one stage.
    let found = gradients(4, Interlock::width(1).group(3));
    let stages: Vec<f32> = (0..4).map(|k| found[&format!("s{k}.weight")]).collect();
    assert_eq!(stages, [255.0, 170.0, 102.0, 30.0]);
    assert!(found.contains_key("aux.2.weight") && !found.contains_key("aux.1.weight"), "one head a block");
}

/// Only stages 1 and 3 have a loss: l_1 = 13·3·2 and l_3 = 7·5·3·2.
#[test]
fn every_second_head_by_hand() {
    let stages = |strategy: Interlock| {
        let found = gradients_with_heads(4, strategy, Some(2));
        assert_eq!(found.len(), 5, "{found:?}");
        assert_eq!(found["aux.1.weight"], 6.0);
        (0..4).map(|k| found[&format!("s{k}.weight")]).collect::<Vec<_>>()
    };
    // ∂l_1/∂w_0 = 13·3, ∂l_1/∂w_1 = 13·2, ∂l_3/∂w_2 = 7·3·2.
    assert_eq!(stages(Interlock::width(2)), [39.0, 26.0, 42.0, 30.0]);
    assert_eq!(stages(Interlock::width(2).mean()), [39.0, 26.0, 42.0, 30.0]);
    // Stage 1: a quarter of ∂l_1/∂w_1 and, with l_2's weight, three quarters of ∂l_3/∂w_1 = 7·5·2.
    assert_eq!(stages(Interlock::weights([0.25, 0.25, 0.5])), [39.0, 59.0, 42.0, 30.0]);
}

/// A strategy of one's own: a stage may follow any later head, nearer or farther than its neighbours do.
#[derive(Debug)]
struct Crossing;

impl Strategy for Crossing {
    fn plan(&self, _: usize) -> interlock::Result<GradientPlan> {
        GradientPlan::new(vec![3, 1, 2, 3])
    }
}

#[test]
fn a_strategy_of_ones_own_by_hand() {
    let found = gradients(4, Crossing);
    let stages: Vec<f32> = (0..4).map(|k| found[&format!("s{k}.weight")]).collect();
    // Stage 0 takes l_3 = 7·5·3·x through stages that do not follow it.
    assert_eq!(stages, [105.0, 26.0, 102.0, 30.0]);
}

/// Local learning; the first stage measures the loss of the next.
#[derive(Debug)]
struct Measuring;

impl Strategy for Measuring {
    fn plan(&self, stages: usize) -> interlock::Result<GradientPlan> {
        let next = |k: usize| Some(k + 1).filter(|&j| j < stages);
        GradientPlan::new((0..stages).collect())?.measuring((0..stages).map(next).collect())
    }
}

/// The cosines that each stage measures in a step, and the gradient of `s0.weight` that it applies.
fn measured(
    model: impl interlock::ModelSpec + 'static,
    loss: impl Loss + 'static,
    values: &[(&str, &[f32], [usize; 2])],
    batch: &Batch,
    micro_batches: usize,
) -> (Vec<Option<f64>>, Vec<f32>) {
    let values = values
        .iter()
        .map(|&(name, values, dims)| (name.to_owned(), Tensor::from_slice(values, &dims[..], &Device::Cpu).unwrap()));
    let builder = Trainer::builder(model)
        .strategy(Measuring)
        .stages(2)
        .head_loss(1, loss)
        .loss(Slope(1.0))
        .optimizer(OptimizerConfig { lr: 1e-3, momentum: 0.0, ..OptimizerConfig::default() })
        .initial_values(values.collect::<interlock::Weights>());
    let layout = builder.layout().unwrap();
    let mut pipeline = PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings).unwrap();
    pipeline.stages_mut().iter_mut().for_each(interlock::tools::stage::Stage::keep_gradients);
    pipeline.train_step(batch, micro_batches).unwrap();
    let applied = &pipeline.stages()[0].parameters().applied()[0].1;
    let alignments = pipeline.alignments().to_vec();
    (alignments, applied.flatten_all().unwrap().to_vec1().unwrap())
}

/// `l_0 = x·W_0·A_0` and `l_1 = x·W_0·W_1`, so `∂l_0/∂W_0 = xᵀ·A_0ᵀ` and `∂l_1/∂W_0 = xᵀ·W_1ᵀ`.
#[test]
fn a_cosine_by_hand() {
    let values: [(&str, &[f32], [usize; 2]); 3] = [
        ("s0.weight", &[2.0, -1.0], [1, 2]),
        ("aux.0.weight", &[1.0, 0.0], [2, 1]),
        ("s1.weight", &[3.0, 4.0], [2, 1]),
    ];
    let model = Matrices { dims: vec![1, 2, 1] };
    let (alignments, applied) = measured(model.clone(), Slope(1.0), &values, &scalars(&[5.0]), 1);
    // (1, 0) and (3, 4); what is applied is the gradient that the stage follows, 5·(1, 0).
    assert_eq!((alignments, applied), (vec![Some(0.6), None], vec![5.0, 0.0]));
    let (alignments, _) = measured(model.clone(), Slope(-1.0), &values, &scalars(&[5.0]), 1);
    assert_eq!(alignments[0], Some(-0.6));
    // A gradient that is zero points nowhere.
    let (alignments, _) = measured(model, Slope(0.0), &values, &scalars(&[5.0]), 1);
    assert_eq!(alignments[0], None);
}

/// The sums over micro-batches are compared: `∂l_0/∂W_0 = Σ x_i = (1, 1)` and `∂l_1/∂W_0 = Σ t_i·x_i = (1, 7)`, up to a factor, so the cosine
/// is `8 / √(2·50)`. Each micro-batch by itself would have the cosine 1.
#[test]
fn the_cosine_is_that_of_sums_over_micro_batches() {
    let values: [(&str, &[f32], [usize; 2]); 3] =
        [("s0.weight", &[1.0, 1.0], [2, 1]), ("aux.0.weight", &[1.0], [1, 1]), ("s1.weight", &[1.0], [1, 1])];
    let inputs = Tensor::new(&[[1.0_f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
    let batch = Batch { inputs: inputs.into(), targets: Tensor::new(&[1_u32, 7], &Device::Cpu).unwrap() };
    for micro_batches in [1, 2] {
        let (alignments, _) = measured(Matrices { dims: vec![2, 1, 1] }, ByTarget, &values, &batch, micro_batches);
        assert_eq!(alignments, [Some(0.8), None], "M = {micro_batches}");
    }
}

/// Units `first` (3 → 4), `second` (4 → 4 by `operation`) and `third` (4 → 2); `second` declares the output `declared`.
struct ByOperation {
    operation: fn(&Tensor) -> interlock::Result<Tensor>,
    declared: usize,
}

/// A module that gives what a function gives.
struct Calls(fn(&Tensor) -> interlock::Result<Tensor>);

impl StageModule for Calls {
    fn forward(&self, x: &Activation, _: &Pass) -> interlock::Result<Activation> {
        Ok((self.0)(x.single()?)?.into())
    }
}

impl ModelSpec for ByOperation {
    fn units(&self) -> interlock::Result<Vec<Unit>> {
        let dense = |name: &str, inputs: usize, outputs: usize| {
            Unit::new(name, [outputs], move |vb| {
                Autograd::build(vb, |vb| Ok(FromModule(candle_nn::linear(inputs, outputs, vb)?)))
            })
        };
        let operation = self.operation;
        let second = Unit::new("second", [self.declared], move |vb| Autograd::build(vb, |_| Ok(Calls(operation))));
        Ok(vec![dense("first", 3, 4), second, dense("third", 4, 2)])
    }
}

fn by_operation(operation: fn(&Tensor) -> interlock::Result<Tensor>, declared: usize) -> interlock::Error {
    let builder = Trainer::builder(ByOperation { operation, declared }).strategy(EndToEnd).stages(3).steps(1);
    let builder = builder.devices([Arc::new(PlainCpu) as Arc<dyn interlock::StageDevice>]).batch_size(2);
    builder.build().and_then(|mut trainer| trainer.fit(Threes)).map(|_| ()).unwrap_err()
}

/// Examples of three numbers.
#[derive(Clone, Copy)]
struct Threes;

impl Dataset for Threes {
    fn len(&self) -> usize {
        8
    }

    fn batch(&self, numbers: &[usize], _: Option<interlock::Key>) -> interlock::Result<Batch> {
        let inputs: Vec<f32> = numbers.iter().flat_map(|&n| [n as f32, 1.0, -0.5]).collect();
        let targets: Vec<u32> = numbers.iter().map(|&n| n as u32 % 2).collect();
        Ok(Batch {
            inputs: Tensor::from_vec(inputs, (numbers.len(), 3), &Device::Cpu)?.into(),
            targets: Tensor::new(targets, &Device::Cpu)?,
        })
    }
}

#[test]
fn a_stage_whose_gradient_is_zero_or_incomplete_is_refused_when_it_is_built() {
    for operation in [
        |x: &Tensor| Ok(candle_nn::ops::softmax_last_dim(x)?),
        |x: &Tensor| Ok((x + candle_nn::ops::softmax_last_dim(x)?)?),
        |x: &Tensor| Ok(x.detach()),
    ] {
        let error = by_operation(operation, 4).to_string();
        assert!(error.starts_with("stage 1, unit 1 \"second\", build: its input: the gradient is "), "{error}");
    }
}

#[test]
fn shape_errors_name_the_unit() {
    let error = by_operation(|x| Ok(x.narrow(1, 0, 3)?), 3).to_string();
    assert!(error.contains("unit 2 \"third\", forward: ") && error.contains("matmul"), "{error}");
    let error = by_operation(|x| Ok(x.narrow(1, 0, 3)?), 4).to_string();
    assert!(error.contains("unit 1 \"second\", forward: output: "), "{error}");
    assert!(error.contains("[4]") && error.contains("[3]"), "{error}");
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the tank is empty")]
struct Empty;

#[test]
fn an_error_of_a_users_module_names_the_unit_and_keeps_its_source() {
    let error = by_operation(|_| Err(interlock::Error::other(Empty)), 4);
    assert!(error.to_string().contains("unit 1 \"second\", forward: the tank is empty"), "{error}");
    let interlock::Error::Failed(failure) = &error else { panic!("{error:?}") };
    let interlock::Error::Unit { unit: 1, cause, .. } = &*failure.cause else { panic!("{failure:?}") };
    assert!(matches!(&**cause, interlock::Error::Other(own) if own.is::<Empty>()), "{cause:?}");
}
