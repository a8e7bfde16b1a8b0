//! The names and shapes of the tensors that units request, found without making them.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use crate::{Unit, Weights, model::parameters::check_size};

/// Returns the names and shapes that `build` requests of its builder, which returns values of `given` or zeros, and what `build` returns.
pub(crate) fn asked(
    given: &Arc<Weights>,
    build: impl FnOnce(&VarBuilder<'static>) -> bool,
) -> (BTreeMap<String, Vec<usize>>, bool) {
    let recorder = ShapeRecorder { given: Arc::clone(given), shapes: Arc::default() };
    let built = build(&VarBuilder::from_backend(Box::new(recorder.clone()), DType::F32, Device::Cpu));
    (std::mem::take(&mut *recorder.lock()), built)
}

/// Builds `unit` and returns whether it could be built.
pub(crate) fn builds(unit: &Unit, root: &VarBuilder<'static>) -> bool {
    matches!(catch_unwind(AssertUnwindSafe(|| unit.build(root))), Ok(Ok(_)))
}

/// Returns zeros that take no memory, whatever their shape: all elements are one.
pub(crate) fn zeros(name: &str, shape: &Shape, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
    check_size(name, shape).map_err(candle_core::Error::wrap)?;
    Tensor::zeros((), dtype, device)?.broadcast_as(shape)
}

/// A builder backend that records the names and shapes that units request. It returns the given values, or zeros.
#[derive(Clone)]
struct ShapeRecorder {
    given: Arc<Weights>,
    shapes: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
}

impl ShapeRecorder {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<usize>>> {
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimpleBackend for ShapeRecorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.lock().entry(name.to_owned()).or_insert_with(|| shape.dims().to_vec());
        match self.given.get(name).filter(|value| value.shape() == &shape) {
            Some(value) => value.to_device(device)?.to_dtype(dtype),
            None => zeros(name, &shape, dtype, device),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let known = self.lock().get(name).cloned().or_else(|| self.given.get(name).map(|value| value.dims().to_vec()));
        match known {
            Some(shape) => self.get(shape.into(), name, Init::Const(0.0), dtype, device),
            None => Err(candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt()),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.lock().contains_key(name) || self.given.contains(name)
    }
}
