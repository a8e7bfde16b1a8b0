//! Layers with their own backward pass as nodes of candle's graph.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Storage, Tensor, Var};

use crate::{Activation, Differentiable, ParameterGradients, Pass, Result, Saved, Wants};

/// A [`Differentiable`] layer inside a module's `forward`, as one node of candle's graph.
///
/// Works on the CPU only. The [`Autograd`](crate::Autograd) around the module returns the gradients of the layer's parameters.
pub struct InGraph<D>(Arc<D>);

impl<D: Differentiable + Sync + 'static> InGraph<D> {
    /// Makes a node of `layer`.
    pub fn new(layer: D) -> Self {
        Self(Arc::new(layer))
    }

    /// Returns the layer's output for one tensor, as part of the graph that `x` belongs to.
    ///
    /// # Errors
    /// If the layer fails, or its output is not a single tensor.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (y, saved) = self.0.forward(&x.detach().into(), pass)?;
        let y = y.single()?.detach();
        if !pass.is_train() {
            return Ok(y);
        }
        // This variable keeps the node in the graph if `x` itself is in none (tokens, for example).
        let anchor = Var::zeros(1, DType::F32, x.device())?;
        let node = Node { layer: Arc::clone(&self.0), saved: Mutex::new(saved), y, float: x.dtype().is_float() };
        Ok(x.apply_op2(anchor.as_tensor(), node)?)
    }
}

struct Node<D> {
    layer: Arc<D>,
    saved: Mutex<Saved>,
    y: Tensor,
    /// Whether the input can have a gradient.
    float: bool,
}

impl<D: Differentiable + Sync + 'static> CustomOp2 for Node<D> {
    fn name(&self) -> &'static str {
        "interlock-layer"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        // Only the output's elements: its storage may hold others before them.
        let y = self.y.force_contiguous()?;
        let (storage, _) = y.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.clone(), y.shape().clone())),
            _ => candle_core::bail!("InGraph: the layer's output is on another device; use it on the CPU only"),
        }
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let parameters = COLLECTED.with_borrow(Option::is_some);
        let wants = Wants { input: self.float, parameters };
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let output_gradient = Activation::from(gradient.detach());
        let gradients = self.layer.backward(&saved, &output_gradient, wants).map_err(candle_core::Error::wrap)?;
        COLLECTED.with_borrow_mut(|collected| {
            if let Some(collected) = collected {
                collected.extend(gradients.parameters);
            }
        });
        let input = match gradients.input {
            Some(input) => Some(input.single().map_err(candle_core::Error::wrap)?.clone()),
            None => None,
        };
        Ok((input, None))
    }
}

thread_local! {
    /// The parameter gradients collected by nodes in the backward pass on this thread; none if it does not want them.
    static COLLECTED: RefCell<Option<ParameterGradients>> = const { RefCell::new(None) };
}

/// Restores what an outer backward pass on this thread has collected so far, also after an error or a panic.
struct Restore(Option<ParameterGradients>);

impl Drop for Restore {
    fn drop(&mut self) {
        let outer = self.0.take();
        COLLECTED.with_borrow_mut(|collected| *collected = outer);
    }
}

/// Runs `backward` and returns its result together with the parameter gradients of the nodes that it passed, if they are wanted.
///
/// Calls may nest: while a layer waits for other threads of a pool, its thread may run another stage's backward pass.
pub(crate) fn collect<R>(
    wanted: bool,
    backward: impl FnOnce() -> candle_core::Result<R>,
) -> Result<(R, ParameterGradients)> {
    let _restore = Restore(COLLECTED.replace(wanted.then(Vec::new)));
    let result = backward()?;
    Ok((result, COLLECTED.take().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::Gradients;

    /// `y = w·x`, whose backward pass starts another one on the same thread, as a thread of a pool does while it waits.
    struct Waits {
        weight: Tensor,
        meanwhile: fn(),
    }

    impl Differentiable for Waits {
        fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
            let x = x.single()?;
            Ok((x.broadcast_mul(&self.weight.detach())?.into(), Saved::new(x.clone())))
        }

        fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
            (self.meanwhile)();
            let (x, c): (&Tensor, _) = (saved.get()?, c.single()?);
            let gradient = |wanted: bool| wanted.then(|| (x * c)?.sum_all()?.reshape(1)).transpose();
            Ok(Gradients {
                input: Some(c.broadcast_mul(&self.weight.detach())?.into()),
                parameters: gradient(wants.parameters)?.map(|g| (self.weight.id(), g)).into_iter().collect(),
            })
        }
    }

    fn gradients_of_two_layers(wanted: bool, meanwhile: fn()) -> Result<ParameterGradients> {
        let weight = || Tensor::new(&[2.0_f32], &Device::Cpu);
        let layer = |weight| InGraph::new(Waits { weight, meanwhile });
        let pass = Pass::train(0, 0, 0);
        let x = Var::new(&[1.0_f32, 3.0], &Device::Cpu)?;
        let y = layer(weight()?).forward(&layer(weight()?).forward(&x, &pass)?, &pass)?;
        Ok(collect(wanted, || y.sum_all()?.backward())?.1)
    }

    #[test]
    fn a_backward_pass_inside_another_loses_no_parameter_gradient() {
        let inner: [fn(); 3] = [
            || assert_eq!(gradients_of_two_layers(true, || ()).unwrap().len(), 2),
            || assert_eq!(gradients_of_two_layers(false, || ()).unwrap().len(), 0),
            || assert!(collect(true, || Err::<(), _>(candle_core::Error::Msg("fails".to_owned()))).is_err()),
        ];
        for meanwhile in inner {
            let gradients = gradients_of_two_layers(true, meanwhile).unwrap();
            let values: Vec<f32> = gradients.iter().map(|(_, g)| g.to_vec1::<f32>().unwrap()[0]).collect();
            assert_eq!(values, [8.0, 8.0]);
        }
    }
}
