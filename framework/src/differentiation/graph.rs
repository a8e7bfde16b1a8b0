//! Layers with pull-backs of their own as nodes of candle's graph.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Storage, Tensor, Var};

use crate::{Activation, Differentiable, ParameterGradients, Pass, Result, Saved, Wants};

/// A layer that can be used inside a module's `forward`, where it is one node of candle's graph.
///
/// For layers on the CPU. The gradients of its parameters reach the stage through the [`Autograd`](crate::differentiation::autograd::Autograd) around the module.
pub struct InGraph<D>(Arc<D>);

impl<D: Differentiable + Sync + 'static> InGraph<D> {
    /// The layer as a node.
    pub fn new(layer: D) -> Self {
        Self(Arc::new(layer))
    }

    /// The layer's output for one tensor, linked into the graph that `x` belongs to.
    ///
    /// # Errors
    /// As the layer's, or if its output is not a single tensor.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (y, saved) = self.0.forward(&x.detach().into(), pass)?;
        let y = y.single()?.detach();
        if !pass.is_train() {
            return Ok(y);
        }
        // A variable of the node's own keeps it in the graph where `x` (tokens, say) is in none.
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
        let y = self.y.contiguous()?.copy()?;
        let (storage, _) = y.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.clone(), y.shape().clone())),
            _ => candle_core::bail!("a layer on the CPU gave a result on another device"),
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
        let pulled = self.layer.backward(&saved, &output_gradient, wants).map_err(candle_core::Error::wrap)?;
        COLLECTED.with_borrow_mut(|collected| {
            if let Some(collected) = collected {
                collected.extend(pulled.parameters);
            }
        });
        let input = match pulled.input {
            Some(input) => Some(input.single().map_err(candle_core::Error::wrap)?.clone()),
            None => None,
        };
        Ok((input, None))
    }
}

thread_local! {
    /// Where nodes leave their parameters' gradients while a backward pass that wants them runs on this thread.
    static COLLECTED: RefCell<Option<ParameterGradients>> = const { RefCell::new(None) };
}

/// Runs `backward` and gives, beside its result, the parameters' gradients of the nodes it passed, if they are wanted.
pub(crate) fn collect<R>(
    wanted: bool,
    backward: impl FnOnce() -> candle_core::Result<R>,
) -> Result<(R, ParameterGradients)> {
    COLLECTED.with_borrow_mut(|collected| *collected = wanted.then(Vec::new));
    let result = backward();
    let collected = COLLECTED.with_borrow_mut(Option::take).unwrap_or_default();
    Ok((result?, collected))
}
