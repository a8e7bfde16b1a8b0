use std::sync::Arc;

use candle_core::Device;
use candle_nn::{Init, Linear, Module, linear};

use super::*;
use crate::ParameterStore;

fn store() -> (ParameterStore, VarBuilder<'static>) {
    let store = ParameterStore::new(5, Arc::default());
    let builder = store.builder(&Device::Cpu);
    (store, builder)
}

fn input() -> Activation {
    Tensor::new(&[[0.3_f32, -0.7, 1.1], [0.2, 0.9, -0.4]], &Device::Cpu).unwrap().into()
}

/// The objective `Σ y·c` as a number.
fn value(layer: &impl Differentiable, x: &Activation, c: &Tensor) -> f64 {
    let (y, _) = layer.forward(x, &Pass::train(0, 0, 0)).unwrap();
    f64::from((y.single().unwrap() * c).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
}

#[test]
fn a_candle_module_is_differentiated_as_it_is() {
    let (store, vb) = store();
    let layer = Autograd::build(vb, |vb| Ok(FromModule(linear(3, 2, vb.pp("fc"))?))).unwrap();
    let x = input();
    let c = Tensor::new(&[[1.0_f32, 2.0], [-1.0, 0.5]], &Device::Cpu).unwrap();
    let (_, saved) = layer.forward(&x, &Pass::train(0, 0, 0)).unwrap();
    let pulled = layer.backward(&saved, &c.clone().into(), Wants::BOTH).unwrap();
    // By hand: ∂/∂W = cᵀx, ∂/∂b = Σ c, ∂/∂x = cW.
    let weight = store.entries()[0].var.as_detached_tensor();
    let by_hand = c.t().unwrap().matmul(x.single().unwrap()).unwrap();
    let names: Vec<String> =
        pulled.parameters.iter().map(|(id, _)| store.entries()[store.position(*id).unwrap()].name.clone()).collect();
    assert_eq!(names, ["fc.weight", "fc.bias"]);
    let close =
        |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6;
    assert!(close(&pulled.parameters[0].1, &by_hand));
    assert!(close(&pulled.parameters[1].1, &c.sum(0).unwrap()));
    assert!(close(pulled.into_input().unwrap().single().unwrap(), &c.matmul(&weight).unwrap()));
    // Again, and only what is asked for.
    let again = layer.backward(&saved, &c.into(), Wants::INPUT).unwrap();
    assert!(again.parameters.is_empty() && again.input.is_some());
}

struct Unused(Linear, #[allow(dead_code)] Tensor);

impl StageModule for Unused {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        Ok(Module::forward(&self.0, x.single()?)?.into())
    }
}

#[test]
fn a_parameter_that_no_gradient_reaches_is_an_error_that_names_it() {
    let (_, vb) = store();
    let build = |vb: VarBuilder<'static>| Ok(Unused(linear(3, 2, vb.pp("fc"))?, vb.get(4, "lost")?));
    let layer = Autograd::build(vb.pp("block"), build).unwrap();
    let (y, saved) = layer.forward(&input(), &Pass::train(0, 0, 0)).unwrap();
    assert!(layer.backward(&saved, &y, Wants::INPUT).is_ok());
    let error = layer.backward(&saved, &y, Wants::PARAMETERS).err().unwrap().to_string();
    assert!(error.contains("block.lost"), "{error}");
}

#[test]
fn a_norm_that_cuts_the_graph_is_found_out() {
    let (_, vb) = store();
    let layer = Autograd::build(vb, |vb| Ok(FromModule(candle_nn::layer_norm(3, 1e-5, vb.pp("ln"))?))).unwrap();
    let (y, saved) = layer.forward(&input(), &Pass::train(0, 0, 0)).unwrap();
    let error = layer.backward(&saved, &y, Wants::BOTH).err().unwrap().to_string();
    assert!(error.starts_with("its input: the gradient is zero; "), "{error}");
    // The first unit of a model is not asked for its input's gradient.
    let (_, vb) = store();
    let layer = Autograd::build(vb, |vb| Ok(FromModule(candle_nn::layer_norm(3, 1e-5, vb.pp("ln"))?))).unwrap();
    let (y, saved) = layer.forward(&input(), &Pass::train(0, 0, 0)).unwrap();
    let error = layer.backward(&saved, &y, Wants::PARAMETERS).err().unwrap().to_string();
    assert!(error.starts_with("parameter ln.weight: the gradient is zero; "), "{error}");
}

/// A layer with its own backward pass inside a graph: `y = w·x²`.
struct Square(Tensor);

impl Differentiable for Square {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        Ok((x.sqr()?.broadcast_mul(&self.0.detach())?.into(), Saved::new(x.clone())))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        let (x, c): (&Tensor, _) = (saved.get()?, c.single()?);
        let parameters =
            if wants.parameters { vec![(self.0.id(), (x.sqr()? * c)?.sum_all()?.reshape(1)?)] } else { Vec::new() };
        let input = if wants.input { Some(((x * 2.0)? * c)?.broadcast_mul(&self.0.detach())?.into()) } else { None };
        Ok(Gradients { input, parameters })
    }
}

struct Mixed {
    first: graph::InGraph<Square>,
    fc: Linear,
    second: graph::InGraph<Square>,
}

impl StageModule for Mixed {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation> {
        let x = x.single()?;
        let hidden = self.fc.forward(&self.first.forward(x, pass)?)?.tanh()?;
        // The same layer twice: its gradients add up.
        let twice = self.second.forward(&self.second.forward(&hidden, pass)?, pass)?;
        Ok((twice + hidden)?.into())
    }
}

#[test]
fn layers_of_their_own_take_part_in_a_graph() {
    let (store, vb) = store();
    let square = |vb: VarBuilder<'static>| -> Result<_> {
        Ok(graph::InGraph::new(Square(vb.get_with_hints(1, "weight", Init::Uniform { lo: 0.5, up: 1.5 })?)))
    };
    let layer = Autograd::build(vb, |vb| {
        Ok(Mixed { first: square(vb.pp("first"))?, fc: linear(3, 2, vb.pp("fc"))?, second: square(vb.pp("second"))? })
    })
    .unwrap();
    let x = input();
    let c = Tensor::new(&[[1.0_f32, 2.0], [-1.0, 0.5]], &Device::Cpu).unwrap();
    let (_, saved) = layer.forward(&x, &Pass::train(0, 0, 0)).unwrap();
    let pulled = layer.backward(&saved, &c.clone().into(), Wants::BOTH).unwrap();
    assert_eq!(pulled.parameters.len(), 4);
    for (id, gradient) in &pulled.parameters {
        let var = &store.entries()[store.position(*id).unwrap()].var;
        let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..values.len() {
            let at = |step: f32| {
                let mut moved = values.clone();
                moved[i] += step;
                var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
                value(&layer, &x, &c)
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            at(0.0);
            assert!((slope - f64::from(gradient[i])).abs() < 2e-3, "{slope} {}", gradient[i]);
        }
    }
    let found = pulled.into_input().unwrap().single().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let values = x.single().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for i in 0..values.len() {
        let at = |step: f32| {
            let mut moved = values.clone();
            moved[i] += step;
            value(&layer, &Tensor::from_vec(moved, (2, 3), &Device::Cpu).unwrap().into(), &c)
        };
        let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((slope - f64::from(found[i])).abs() < 2e-3, "{slope} {}", found[i]);
    }
}
