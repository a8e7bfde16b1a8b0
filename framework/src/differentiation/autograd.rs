//! Models written as a forward pass only: candle's own graph differentiates them.
//!
//! [`Autograd`] makes a [`Differentiable`] from a [`StageModule`] or from any `candle_nn::Module`. It copies its input once a forward
//! pass (a graph's leaf must be a variable of its own), and a pull-back computes all gradients that candle reaches, also those
//! that were not asked for. Layers that implement [`Differentiable`] themselves do neither; inside a module's `forward` they take
//! part as [`InGraph`](crate::differentiation::graph::InGraph).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::{Init, ModuleT, VarBuilder, var_builder::SimpleBackend};

use crate::{
    Activation, Differentiable, Error, Gradients, ParameterGradients, Pass, Precision, Result, Saved, Wants,
    differentiation::{Held, Pending, graph, input_of},
    model::parameters::{Kind, kind_of},
};

/// A unit of a model, written as its forward pass.
///
/// [`FromModule`] makes one of any `candle_nn::Module`. A module of one's own:
/// ```
/// use candle_nn::{Linear, Module, VarBuilder, linear};
/// use interlock::{Activation, Pass, Unit, differentiation::autograd::{Autograd, StageModule}};
///
/// /// `x + tanh(W·x)`
/// struct Block(Linear);
///
/// impl StageModule for Block {
///     fn forward(&self, x: &Activation, _: &Pass) -> interlock::Result<Activation> {
///         let x = x.single()?;
///         Ok((x + self.0.forward(x)?.tanh()?)?.into())
///     }
/// }
///
/// let unit = Unit::new("block", [8], |vb| Autograd::build(vb, |vb| Ok(Block(linear(8, 8, vb.pp("fc"))?))));
/// ```
pub trait StageModule: Send {
    /// The output, computed by candle operations from `x` and the module's parameters.
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation>;
}

/// Any `candle_nn::Module`, unchanged.
pub struct FromModule<M>(pub M);

impl<M: candle_nn::Module + Send> StageModule for FromModule<M> {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        Ok(self.0.forward(x.single()?)?.into())
    }
}

/// Any `candle_nn::ModuleT`, which is told whether it is being trained (batch norm, dropout).
pub struct FromModuleT<M>(pub M);

impl<M: ModuleT + Send> StageModule for FromModuleT<M> {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation> {
        Ok(self.0.forward_t(x.single()?, pass.is_train())?.into())
    }
}

/// A module differentiated by candle's graph.
pub struct Autograd<M> {
    module: M,
    /// What the module asked its builder for, and is trained.
    parameters: Vec<(String, Tensor)>,
}

impl<M: StageModule> Autograd<M> {
    /// The module that `build` makes; what it asks of its builder are its parameters.
    pub fn build(vb: VarBuilder<'static>, build: impl FnOnce(VarBuilder<'static>) -> Result<M>) -> Result<Self> {
        let asked: Asked = Arc::default();
        let (dtype, device) = (vb.dtype(), vb.device().clone());
        let recorder = Recorder { builder: vb, asked: Arc::clone(&asked) };
        let module = build(VarBuilder::from_backend(Box::new(recorder), dtype, device))?;
        let mut parameters = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
        let mut seen = std::collections::HashSet::new();
        parameters.retain(|(name, tensor)| kind_of(name) == Kind::Parameter && seen.insert(tensor.id()));
        Ok(Self { module, parameters })
    }
}

type Asked = Arc<Mutex<Vec<(String, Tensor)>>>;

/// Hands requests on to a builder and takes note of what it gave.
struct Recorder {
    builder: VarBuilder<'static>,
    asked: Asked,
}

impl Recorder {
    fn note(&self, name: &str, tensor: Tensor) -> Tensor {
        let prefix = self.builder.prefix();
        let full = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push((full, tensor.clone()));
        tensor
    }
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        Ok(self.note(name, self.builder.get_with_hints_dtype(shape, name, init, dtype)?))
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        Ok(self.note(name, self.builder.get_unchecked_dtype(name, dtype)?))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.builder.contains_tensor(name)
    }
}

/// The leaves and the results of a graph.
struct Graph {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl<M: StageModule> Differentiable for Autograd<M> {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        // Parameters are `f32`, and candle's operations take operands of one dtype.
        let x = Precision::F32.enter(x)?;
        if !pass.is_train() {
            return Ok((self.module.forward(&x.detach(), pass)?.detach(), Saved::nothing()));
        }
        let leaf = |t: &Tensor| -> Result<Tensor> {
            Ok(if t.dtype().is_float() { Var::from_tensor(&t.detach())?.into_inner() } else { t.detach() })
        };
        let inputs = x.try_map(leaf)?;
        let outputs = self.module.forward(&inputs, pass)?;
        let result = outputs.detach();
        // What the graph holds in between, it does not tell.
        let (inputs, outputs) = (inputs.into_tensors(), outputs.into_tensors());
        let held: Vec<Held> = inputs.iter().chain(&outputs).map(Held::tensor).collect();
        Ok((result, Saved::new(Graph { inputs, outputs }).holding(held)))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let graph: &Graph = saved.get()?;
        let differentiable: Vec<&Tensor> = graph.outputs.iter().filter(|t| t.dtype().is_float()).collect();
        if differentiable.len() != output_gradient.tensors().len() {
            return Err(Error::invalid(
                "pull-back",
                format!("{} output_gradients for {} outputs", output_gradient.tensors().len(), differentiable.len()),
                "give one for each floating-point tensor of the output",
            ));
        }
        // The gradient of Σ y·c with respect to anything is c pulled back to it.
        let mut objective: Option<Tensor> = None;
        for (y, c) in differentiable.into_iter().zip(output_gradient.tensors()) {
            let term = (y * c.detach().to_dtype(y.dtype())?)?.sum_all()?;
            objective = Some(match objective {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        let objective = objective.ok_or_else(|| {
            Error::invalid("pull-back", "the module's output has no floating-point tensor", "return at least one")
        })?;
        let (gradients, mut collected) = graph::collect(wants.parameters, || objective.backward())?;

        let mut pulled = Gradients::default();
        if wants.input {
            let leaves = graph.inputs.iter().filter(|t| t.dtype().is_float());
            let input = leaves.map(|leaf| match gradients.get(leaf) {
                Some(gradient) => Ok(gradient.detach()),
                None => Ok(leaf.zeros_like()?.detach()),
            });
            pulled.input =
                Some(Activation::new(input.collect::<Result<_>>()?)).filter(|input| !input.tensors().is_empty());
        }
        if wants.parameters {
            for (name, parameter) in &self.parameters {
                let mut found = collected.extract_if(.., |(id, _)| *id == parameter.id()).map(|(_, g)| g);
                let mut sum = gradients.get(parameter).map(Tensor::detach);
                for gradient in found.by_ref() {
                    sum = Some(match sum {
                        Some(sum) => (sum + gradient)?,
                        None => gradient,
                    });
                }
                let sum = sum.ok_or_else(|| {
                    Error::invalid(
                        name,
                        "no gradient reaches the parameter",
                        "use it in forward; candle's fused operations (LayerNorm, RmsNorm, softmax_last_dim, rotary \
                         embeddings) cut the graph, use differentiable ones",
                    )
                })?;
                pulled.parameters.push((parameter.id(), sum));
            }
        }
        Ok(pulled)
    }

    /// One backward pass computes both; the parameters' gradients are kept for later.
    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        let mut pulled = self.backward(saved, output_gradient, Wants::BOTH)?;
        let parameters = std::mem::take(&mut pulled.parameters);
        Ok((input_of(pulled)?, Pending::new(parameters)))
    }

    fn backward_parameters(&self, _: &Saved, pending: Pending) -> Result<ParameterGradients> {
        pending.take()
    }
}

#[cfg(test)]
mod tests {
    use candle_nn::{Linear, Module, linear};

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
        let names: Vec<String> = pulled
            .parameters
            .iter()
            .map(|(id, _)| store.entries()[store.position(*id).unwrap()].name.clone())
            .collect();
        assert_eq!(names, ["fc.weight", "fc.bias"]);
        let close = |a: &Tensor, b: &Tensor| {
            (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6
        };
        assert!(close(&pulled.parameters[0].1, &by_hand));
        assert!(close(&pulled.parameters[1].1, &c.sum(0).unwrap()));
        assert!(close(input_of(pulled).unwrap().single().unwrap(), &c.matmul(&weight).unwrap()));
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
        assert!(error.contains("ln.weight"), "{error}");
    }

    /// A layer with a pull-back of its own inside a graph: `y = w·x²`.
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
            let input =
                if wants.input { Some(((x * 2.0)? * c)?.broadcast_mul(&self.0.detach())?.into()) } else { None };
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
            Ok(Mixed {
                first: square(vb.pp("first"))?,
                fc: linear(3, 2, vb.pp("fc"))?,
                second: square(vb.pp("second"))?,
            })
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
        let found = input_of(pulled).unwrap().single().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
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
}
