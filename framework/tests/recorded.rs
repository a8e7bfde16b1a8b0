//! Optimizers, clipping and learning-rate schedules against values of PyTorch, for 200 random settings. `recorded/make.py` recorded them.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::{fs, path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use candle_nn::Init;
use interlock::{
    Activation, Batch, ClipConfig, ClipScope, Differentiable, Gradients, Loss, LrScheduleConfig, ModelSpec,
    OptimizerConfig, Pass, PendingScore, PlainCpu, Result, Saved, Score, StageDevice, Targets, Trainer, Unit, Wants,
    Weights,
    tools::{optimizer::LrSchedule, plain::PlainPipeline},
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Recorded {
    schedules: Vec<Schedule>,
    plateaus: Vec<OnPlateau>,
    optimizers: Vec<Run>,
}

/// The rates of the steps of a run, from step 0 on.
#[derive(Deserialize)]
struct Schedule {
    lr: f64,
    /// The steps of the run.
    steps: u64,
    schedule: LrScheduleConfig,
    rates: Vec<f64>,
}

/// The rates after each of the losses.
#[derive(Deserialize)]
struct OnPlateau {
    lr: f64,
    schedule: LrScheduleConfig,
    losses: Vec<f64>,
    rates: Vec<f64>,
}

/// The four values of a weight and the two of a bias after each step.
#[derive(Deserialize)]
struct Run {
    /// The table [optimizer].
    optimizer: Value,
    /// The bias's own settings.
    bias: Option<Value>,
    schedule: LrScheduleConfig,
    clip: Option<f64>,
    initial: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

fn recorded() -> Recorded {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/values.json");
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn assert_rate(found: f64, expected: f64, of: &impl std::fmt::Debug) {
    // PyTorch computes a rate from the one before it, so that its roundings add up.
    assert!((found - expected).abs() <= 1e-12 * expected.abs() + 1e-17, "{found} is not {expected}: {of:?}");
}

#[test]
fn schedules_are_those_of_pytorch() {
    let Recorded { schedules, plateaus, .. } = recorded();
    assert_eq!((schedules.len(), plateaus.len()), (60, 40));
    for Schedule { lr, steps, schedule: config, rates } in schedules {
        let mut schedule = LrSchedule::new(config.clone()).unwrap().for_base(lr);
        schedule.set_total(steps);
        for (step, rate) in rates.into_iter().enumerate() {
            assert_rate(schedule.lr(step as u64).unwrap(), rate, &(step, &config));
        }
    }
    for OnPlateau { lr, schedule: config, losses, rates } in plateaus {
        let mut schedule = LrSchedule::new(config.clone()).unwrap().for_base(lr);
        for (step, (loss, rate)) in losses.into_iter().zip(rates).enumerate() {
            schedule.observe(loss);
            assert_rate(schedule.lr(step as u64).unwrap(), rate, &(step, &config));
        }
    }
}

/// `y = w·x₀ + b·x₁` with a weight `w` of four values and a bias `b` of two: the input `(1, 6)` is the gradient of both.
#[derive(Clone)]
struct Linear;

struct Values {
    weight: Tensor,
    bias: Tensor,
}

impl Differentiable for Values {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let values = Tensor::cat(&[&self.weight, &self.bias], 0)?;
        Ok(((x * values.unsqueeze(0)?)?.sum_keepdim(1)?.into(), Saved::new(x.clone())))
    }

    fn backward(&self, saved: &Saved, _: &Activation, _: Wants) -> Result<Gradients> {
        let x = saved.get::<Tensor>()?.squeeze(0)?;
        let part = |from, count| -> Result<Tensor> { Ok(x.narrow(0, from, count)?.contiguous()?.detach()) };
        Ok(Gradients { input: None, parameters: vec![(self.weight.id(), part(0, 4)?), (self.bias.id(), part(4, 2)?)] })
    }
}

impl ModelSpec for Linear {
    fn units(&self) -> Result<Vec<Unit>> {
        let unit = Unit::new("layer", [1], |vb| {
            let get = |name, count: usize| vb.get_with_hints(count, name, Init::Const(0.0));
            Ok(Values { weight: get("weight", 4)?, bias: get("bias", 2)? })
        });
        Ok(vec![unit.with_flops(1.0)])
    }
}

/// The output itself as loss.
struct Output;

impl Loss for Output {
    fn count(&self, _: &Tensor) -> Result<f64> {
        Ok(1.0)
    }

    fn score(&self, output: &Tensor, _: &Targets) -> Result<PendingScore> {
        let loss = f64::from(output.flatten_all()?.sum_all()?.to_scalar::<f32>()?);
        Ok(Score { loss, count: 1.0, correct: None }.into())
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, _: f64) -> Result<(PendingScore, Tensor)> {
        Ok((self.score(output, targets)?, output.ones_like()?))
    }
}

/// Returns the weight and the bias after each step.
fn replay(run: &Run) -> Vec<Vec<f32>> {
    let mut table = run.optimizer.clone();
    if let Some(own) = &run.bias {
        table["groups"] = json!([{
            "match": ["*.bias"], "weight_decay": own["weight_decay"], "lr_scale": own["lr_scale"]
        }]);
    }
    let optimizer: OptimizerConfig = serde_json::from_value(table).unwrap();
    let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    let initial: Weights = [("layer.weight", &run.initial[..4]), ("layer.bias", &run.initial[4..])]
        .into_iter()
        .map(|(name, values)| (name.to_owned(), tensor(values)))
        .collect();
    let builder = Trainer::builder(Linear)
        .stages(1)
        .loss(Output)
        .optimizer(optimizer)
        .lr_schedule(run.schedule.clone())
        .clip(run.clip.map(|max_norm| ClipConfig { max_norm, scope: ClipScope::Stage }))
        .devices([Arc::new(PlainCpu) as Arc<dyn StageDevice>])
        .initial_values(Arc::new(initial));
    let layout = builder.layout().unwrap();
    let mut pipeline = PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings).unwrap();
    pipeline.stages_mut()[0].begin(run.gradients.len() as u64);
    let step = |gradient: &Vec<f32>| {
        let inputs = tensor(gradient).unsqueeze(0).unwrap().into();
        let targets = Tensor::zeros(1, candle_core::DType::U32, &Device::Cpu).unwrap();
        pipeline.train_step(&Batch { inputs, targets }, 1).unwrap();
        let values = Weights::from_iter(pipeline.stages()[0].parameters().store().snapshot().unwrap());
        ["layer.weight", "layer.bias"].map(|name| values.get(name).unwrap().to_vec1::<f32>().unwrap()).concat()
    };
    run.gradients.iter().map(step).collect()
}

#[test]
fn optimizers_are_those_of_pytorch() {
    let runs = recorded().optimizers;
    assert_eq!(runs.len(), 100);
    for run in &runs {
        for (step, (found, expected)) in replay(run).iter().zip(&run.values).enumerate() {
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                    "{found} is not {expected} after step {step}: {}, {:?}, {:?}, clip {:?}",
                    run.optimizer,
                    run.bias,
                    run.schedule,
                    run.clip
                );
            }
        }
    }
}
