//! A layer with a hand-written backward pass, inside a module that candle's graph differentiates.
//!
//! - A [`Differentiable`] has a forward pass that saves what its backward pass needs, and a backward pass that computes what is wanted.
//! - [`InGraph`] makes such a layer one node of a module's graph. Its parameters' gradients reach the stage all the same.
use candle_core::Tensor;
use candle_nn::{Init, Linear, Module, VarBuilder, linear};
use interlock::{
    Activation, Autograd, Differentiable, Gradients, InGraph, ModelSpec, OptimizerConfig, Pass, Result, Saved,
    StageModule, Trainer, Unit, Wants,
};
use interlock_models::data::config::{DataConfig, FashionMnistMini};

/// `y = g · x`, on `(B, D)` with a gain `g` of `(D)`.
struct Gain(Tensor);

impl Differentiable for Gain {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?.detach();
        Ok((x.broadcast_mul(&self.0.detach())?.into(), Saved::new(x)))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let (x, c): (&Tensor, _) = (saved.get()?, output_gradient.single()?);
        let input = if wants.input { Some(c.broadcast_mul(&self.0.detach())?.into()) } else { None };
        let parameters = if wants.parameters { vec![(self.0.id(), (c * x)?.sum(0)?)] } else { Vec::new() };
        Ok(Gradients { input, parameters })
    }
}

/// `W·gain(x)`: candle operations around the layer.
struct Block(InGraph<Gain>, Linear);

impl StageModule for Block {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation> {
        Ok(self.1.forward(&self.0.forward(&x.single()?.flatten_from(1)?, pass)?)?.into())
    }
}

struct Net;

impl ModelSpec for Net {
    fn units(&self) -> Result<Vec<Unit>> {
        let build = |vb: VarBuilder<'static>, i, o| {
            let gain = vb.get_with_hints(i, "gain", Init::Const(1.0))?;
            Ok(Block(InGraph::new(Gain(gain)), linear(i, o, vb)?))
        };
        let unit = |n, i, o| Unit::new(n, [o], move |vb| Autograd::build(vb, |vb| build(vb, i, o)));
        Ok(vec![unit("first", 784, 64), unit("second", 64, 10)])
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let optimizer = OptimizerConfig { lr: 0.01, ..Default::default() };
    let mut trainer = Trainer::builder(Net).stages(2).optimizer(optimizer).epochs(3).build()?;
    trainer.fit(data.train)?;
    let moved = (&trainer.snapshot()?["first.gain"] - 1.0)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(moved > 1e-3, "the gains moved by up to {moved:.4}");
    Ok(())
}
