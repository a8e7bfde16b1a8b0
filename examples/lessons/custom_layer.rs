//! A layer with a hand-written pull-back, inside a module that candle's graph differentiates.
//!
//! What one learns:
//! - [`Differentiable`] is the seam of differentiation: a forward pass that saves what its pull-back needs, and a pull-back that
//!   computes what it is asked for (the input's gradient, the parameters', or both) and nothing else.
//! - [`InGraph`] makes such a layer one node of a module's graph. Its parameters' gradients reach the stage all the same.
//! - That is how to use operations that candle does not differentiate: `candle_nn`'s own root-mean-square norm passes no gradient on.
//! - A gradient written by hand is checked by finite differences.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::{D, Device, Tensor};
use candle_nn::{Init, Linear, Module, VarBuilder, linear};
use interlock::{
    Activation, Autograd, Differentiable, Gradients, Interlock, ModelSpec, ParameterStore, Pass, Result, Saved,
    StageModule, Trainer, Unit, Wants, differentiation::graph::InGraph, optimizer::OptimizerConfig, trainer::Split,
};
use interlock_backends::{candle_single_threaded, cpu};
use interlock_models::data::config::{DataConfig, FashionMnistMini};

const WIDTH: usize = 64;

/// `y = g · n` with `n = x / √(mean(x²) + ε)`, on `(B, D)` with a gain `g` of `(D)`.
struct RmsNorm {
    gain: Tensor,
}

impl RmsNorm {
    fn new(width: usize, vb: VarBuilder<'static>) -> Result<Self> {
        Ok(Self { gain: vb.get_with_hints(width, "weight", Init::Const(1.0))? })
    }
}

impl Differentiable for RmsNorm {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        let normed = x.broadcast_div(&rms)?;
        let y = normed.broadcast_mul(&self.gain.detach())?;
        Ok((y.into(), Saved::new((normed, rms))))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let (normed, rms): &(Tensor, Tensor) = saved.get()?;
        let c = output_gradient.single()?;
        let mut pulled = Gradients::default();
        if wants.input {
            // ∂l/∂x = (s - n · mean(s·n)) / rms with s = c·g
            let s = c.broadcast_mul(&self.gain.detach())?;
            let along = normed.broadcast_mul(&(&s * normed)?.mean_keepdim(D::Minus1)?)?;
            pulled.input = Some((s - along)?.broadcast_div(rms)?.into());
        }
        if wants.parameters {
            // ∂l/∂g = Σ c·n over the batch
            pulled.parameters.push((self.gain.id(), (c * normed)?.sum(0)?));
        }
        Ok(pulled)
    }
}

/// `x + W·relu(norm(x))`: candle operations around a layer of one's own.
struct Block {
    norm: InGraph<RmsNorm>,
    fc: Linear,
}

impl StageModule for Block {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation> {
        let x = x.single()?;
        Ok((x + self.fc.forward(&self.norm.forward(x, pass)?.relu()?)?)?.into())
    }
}

/// A linear layer over everything behind the batch.
struct Flat(Linear);

impl StageModule for Flat {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        Ok(self.0.forward(&x.single()?.flatten_from(1)?)?.into())
    }
}

struct Net;

impl ModelSpec for Net {
    fn units(&self) -> Result<Vec<Unit>> {
        let flat = |name: &str, inputs, outputs| {
            Unit::new(name, [outputs], move |vb| Autograd::build(vb, |vb| Ok(Flat(linear(inputs, outputs, vb)?))))
        };
        let block = |i| {
            Unit::new(format!("blocks.{i}"), [WIDTH], |vb| {
                Autograd::build(vb, |vb| {
                    let norm = InGraph::new(RmsNorm::new(WIDTH, vb.pp("norm"))?);
                    Ok(Block { norm, fc: linear(WIDTH, WIDTH, vb.pp("fc"))? })
                })
            })
        };
        Ok(vec![flat("stem", 784, WIDTH), block(0), block(1), flat("fc", WIDTH, 10)])
    }
}

fn main() -> anyhow::Result<()> {
    candle_single_threaded(); // so that stages do not wait for each other in candle's own operations
    let worst = check_by_finite_differences()?;
    println!("pull-back against finite differences: worst difference {worst:.1e}");
    assert!(worst < 2e-3);

    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let mut trainer = Trainer::builder(Net)
        .strategy(Interlock::width(2)) // of two stages: no auxiliary head is needed
        .devices([cpu(0), cpu(1)])
        .units_per_stage([2, 2])
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .epochs(3)
        .build()?;
    let before = trainer.snapshot()?;
    let report = trainer.fit(Split { train: &*data.train, validation: Some(&*data.validation) })?;
    let accuracy = report.final_scores.accuracy.unwrap_or_default();
    println!("after {} steps: loss {:.3}, accuracy {accuracy:.3}", report.steps, report.final_scores.loss);
    assert!(accuracy > 0.65, "a tenth would be chance");

    // The gains have been trained, on both stages.
    let after = trainer.snapshot()?;
    for name in ["blocks.0.norm.weight", "blocks.1.norm.weight"] {
        let moved = (&after[name] - &before[name])?.abs()?.max_all()?.to_scalar::<f32>()?;
        println!("{name} moved by up to {moved:.3}");
        assert!(moved > 1e-3);
    }
    Ok(())
}

/// The largest difference between the pull-back of `Σ c·y` to the input and its slope by central differences.
fn check_by_finite_differences() -> Result<f32> {
    let layer = RmsNorm::new(3, ParameterStore::new(0, Default::default()).builder(&Device::Cpu))?;
    let (x, c) = ([0.3_f32, -0.7, 1.1], Tensor::new(&[[1.0_f32, 2.0, -0.5]], &Device::Cpu)?);
    let forward = |x: [f32; 3]| layer.forward(&Tensor::new(&[x], &Device::Cpu)?.into(), &Pass::train(0, 0, 0));
    let objective = |x: [f32; 3]| -> Result<f32> { Ok((forward(x)?.0.single()? * &c)?.sum_all()?.to_scalar()?) };
    let pulled = layer.backward(&forward(x)?.1, &c.clone().into(), Wants::INPUT)?;
    let gradient = interlock::differentiation::input_of(pulled)?.single()?.flatten_all()?.to_vec1::<f32>()?;
    let mut worst = 0.0_f32;
    for (i, found) in gradient.into_iter().enumerate() {
        let at = |step: f32| {
            let mut moved = x;
            moved[i] += step;
            objective(moved)
        };
        worst = worst.max((found - (at(1e-2)? - at(-1e-2)?) / 2e-2).abs());
    }
    Ok(worst)
}
