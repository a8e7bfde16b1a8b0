//! The tensors that a module asks its builder for.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

/// Named tensors, in the order in which a module asked for them.
#[derive(Clone, Default)]
pub(super) struct RecordedTensors(Arc<Mutex<Vec<(String, Tensor)>>>);

impl RecordedTensors {
    /// Returns a builder that gives what `builder` gives and records it here.
    pub(super) fn record(&self, builder: VarBuilder<'static>) -> VarBuilder<'static> {
        let (dtype, device) = (builder.dtype(), builder.device().clone());
        VarBuilder::from_backend(Box::new(Recorder { builder, asked: self.clone() }), dtype, device)
    }

    /// Returns what was recorded so far and forgets it.
    pub(super) fn take(&self) -> Vec<(String, Tensor)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Passes requests on to a builder and records its answers.
struct Recorder {
    builder: VarBuilder<'static>,
    asked: RecordedTensors,
}

impl Recorder {
    fn note(&self, name: &str, tensor: Tensor) -> Tensor {
        let prefix = self.builder.prefix();
        let full = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        self.asked.0.lock().unwrap_or_else(PoisonError::into_inner).push((full, tensor.clone()));
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
