//! A gradient written by hand, checked by finite differences.
//!
//! - A layer is built from a `VarBuilder` over a [`ParameterStore`], and called without a trainer.
//! - The input gradient of `Σ c·y` must be the slope of `Σ c·y` by central differences.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::{Device, Tensor};
use candle_nn::{Init, VarBuilder};
use interlock::{Activation, Differentiable, Gradients, ParameterStore, Pass, Result, Saved, Wants};

/// `y = g · x²` with a gain `g`.
struct Square(Tensor);

impl Square {
    fn new(width: usize, vb: VarBuilder<'static>) -> Result<Self> {
        Ok(Self(vb.get_with_hints(width, "weight", Init::Uniform { lo: 0.5, up: 1.5 })?))
    }
}

impl Differentiable for Square {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        Ok((x.sqr()?.broadcast_mul(&self.0.detach())?.into(), Saved::new(x.clone())))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let (x, c): (&Tensor, _) = (saved.get()?, output_gradient.single()?);
        let slope = (x.broadcast_mul(&self.0.detach())? * 2.0)?;
        let input = if wants.input { Some((c * slope)?.into()) } else { None };
        let parameters = if wants.parameters { vec![(self.0.id(), (c * x.sqr()?)?.sum(0)?)] } else { Vec::new() };
        Ok(Gradients { input, parameters })
    }
}

fn main() -> anyhow::Result<()> {
    let layer = Square::new(3, ParameterStore::new(0, Default::default()).builder(&Device::Cpu))?;
    let (x, c) = ([0.3_f32, -0.7, 1.1], Tensor::new(&[[1.0_f32, 2.0, -0.5]], &Device::Cpu)?);
    let forward = |x: [f32; 3]| layer.forward(&Tensor::new(&[x], &Device::Cpu)?.into(), &Pass::train(0, 0, 0));
    let objective = |x: [f32; 3]| -> Result<f32> { Ok((forward(x)?.0.single()? * &c)?.sum_all()?.to_scalar()?) };
    let gradients = layer.backward(&forward(x)?.1, &c.clone().into(), Wants::INPUT)?;
    let gradient = gradients.into_input()?.single()?.flatten_all()?.to_vec1::<f32>()?;
    for (i, found) in gradient.into_iter().enumerate() {
        let at = |step: f32| {
            let mut moved = x;
            moved[i] += step;
            objective(moved)
        };
        let expected = (at(1e-2)? - at(-1e-2)?) / 2e-2;
        println!("input {i}: {found:.4} by hand, {expected:.4} by finite differences");
        assert!((found - expected).abs() < 2e-3);
    }
    Ok(())
}
