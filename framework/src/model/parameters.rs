//! The parameters and buffers of a stage.
//!
//! A [`ParameterStore`] is the source of the `candle_nn::VarBuilder` that a unit is built from. When a unit asks the builder for a name, the store
//! makes the tensor: from given values, or from the name, the seed and the builder's hint. Layers share their tensors with the store. An update
//! changes them in place, so saved activations must not outlive their step.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Shape, Tensor, TensorId, Var};
use candle_nn::{Init, VarBuilder, init::NormalOrUniform, var_builder::SimpleBackend};
use rand_distr::{Distribution, Normal, Uniform};

use crate::{
    Error, Result,
    differentiation::{TensorKind, tensor_kind},
    model::weights::Weights,
    random::Key,
};

/// One named tensor of a store.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The full name, as PyTorch would have it: `layer1.0.conv1.weight`.
    pub name: String,
    /// The value; shared with the layer that asked for it.
    pub var: Var,
    /// Parameter or buffer.
    pub kind: TensorKind,
}

impl Entry {
    /// Returns whether it is a running statistic, and not a copy of a parameter.
    pub(crate) fn is_statistic(&self) -> bool {
        tensor_kind(&self.name) == TensorKind::Buffer
    }

    /// Returns that its gradient is not finite, in words.
    pub(crate) fn gradient_not_finite(&self) -> String {
        format!("the gradient of {} holds an infinity or a NaN", self.name)
    }
}

/// The named tensors of one stage's main part, or of one head, in the order in which they were asked for.
#[derive(Clone, Debug)]
pub struct ParameterStore(Arc<Mutex<Inner>>);

/// A tensor of a store that is a read-only copy of a tensor of another store.
#[derive(Clone, Debug)]
pub(crate) struct ReadOnlyCopy {
    /// The name of the copy.
    pub(crate) name: String,
    /// The name of the original, which decides the initial values.
    pub(crate) original: String,
    /// The hint that the original is made from.
    pub(crate) init: Init,
}

#[derive(Debug)]
struct Inner {
    key: Key,
    given: Arc<Weights>,
    entries: Vec<Entry>,
    copy: Option<ReadOnlyCopy>,
    by_name: HashMap<String, usize>,
    by_id: HashMap<TensorId, usize>,
}

impl ParameterStore {
    /// Returns an empty store. Values come from `given` if it has the name, otherwise from `seed` and the name.
    pub fn new(seed: u64, given: Arc<Weights>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            key: Key::new(seed).named("init"),
            given,
            entries: Vec::new(),
            copy: None,
            by_name: HashMap::new(),
            by_id: HashMap::new(),
        })))
    }

    /// Makes one tensor of the store a read-only copy: a buffer with the initial values of its original. Layers get it as a tensor that is no variable,
    /// and so need not compute its gradient.
    pub(crate) fn set_copy(&self, copy: ReadOnlyCopy) {
        self.lock().copy = Some(copy);
    }

    /// Returns a builder over this store, in `f32` on `device`.
    pub fn builder(&self, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, device.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All named tensors, in order of creation.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().entries.clone()
    }

    /// The parameters only, in order of creation.
    pub fn parameters(&self) -> Vec<Entry> {
        self.lock().entries.iter().filter(|e| e.kind == TensorKind::Parameter).cloned().collect()
    }

    /// Returns the position in [`Self::entries`] of the tensor with this identity.
    pub fn position(&self, id: TensorId) -> Option<usize> {
        self.lock().by_id.get(&id).copied()
    }

    /// Number of trained elements.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|e| e.var.elem_count()).sum()
    }

    /// Returns a copy of every value, by name. Later training does not change it.
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        self.entries().into_iter().map(|e| Ok((e.name, e.var.as_tensor().copy()?.detach()))).collect()
    }
}

/// Checks that the elements of a tensor, and their bytes, can be counted.
pub(crate) fn check_size(name: &str, shape: &Shape) -> Result<()> {
    let bytes = shape.dims().iter().try_fold(size_of::<f32>(), |bytes, &extent| bytes.checked_mul(extent));
    match bytes.filter(|&bytes| isize::try_from(bytes).is_ok()) {
        Some(_) => Ok(()),
        None => Err(Error::invalid(
            name,
            format!("a tensor of shape {:?} has more bytes than any machine can address", shape.dims()),
            "make the model smaller",
        )),
    }
}

fn check_shape(name: &str, value: &Tensor, wanted: &Shape) -> Result<()> {
    if value.shape() == wanted {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("the given value has shape {:?}", value.shape().dims()),
        format!("this model needs {:?}", wanted.dims()),
    ))
}

impl Inner {
    fn make(&mut self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let copy = self.copy.as_ref().filter(|copy| copy.name == name);
        if let Some(&at) = self.by_name.get(name) {
            let var = &self.entries[at].var;
            check_shape(name, var, &shape)?;
            return Ok(if copy.is_some() { var.as_detached_tensor() } else { var.as_tensor().clone() });
        }
        check_size(name, &shape)?;
        let (source, init) = copy.map_or((name, init), |copy| (&copy.original, copy.init));
        let value = match self.given.get(source) {
            Some(value) => {
                check_shape(name, value, &shape)?;
                // A copy, so that training never writes into the caller's tensor.
                value.to_device(device)?.to_dtype(dtype)?.contiguous()?.copy()?
            }
            None => initial(&shape, init, self.key.named(source))?.to_dtype(dtype)?.to_device(device)?,
        };
        let var = Var::from_tensor(&value)?;
        let (tensor, kind) = match copy {
            Some(_) => (var.as_detached_tensor(), TensorKind::Buffer),
            None => (var.as_tensor().clone(), tensor_kind(name)),
        };
        self.by_name.insert(name.to_owned(), self.entries.len());
        // A layer may compute the gradient of a copy all the same; it is not used.
        self.by_id.insert(tensor.id(), self.entries.len());
        self.entries.push(Entry { name: name.to_owned(), var, kind });
        Ok(tensor)
    }
}

/// Returns values of `shape` on the CPU, drawn in row-major order from the stream of `key`.
fn initial(shape: &Shape, init: Init, key: Key) -> Result<Tensor> {
    let count = shape.elem_count();
    let mut stream = key.stream();
    let bad = |what: &str| Error::invalid("initial values", what.to_owned(), "use finite bounds and deviations");
    let mut normal = |mean: f64, stdev: f64| -> Result<Vec<f32>> {
        let law = Normal::new(mean, stdev).map_err(|e| bad(&e.to_string()))?;
        Ok((0..count).map(|_| law.sample(&mut stream) as f32).collect())
    };
    let values: Vec<f32> = match init {
        Init::Const(value) => vec![value as f32; count],
        Init::Randn { mean, stdev } => normal(mean, stdev)?,
        Init::Kaiming { dist: NormalOrUniform::Normal, fan, non_linearity } => {
            normal(0.0, non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt())?
        }
        Init::Uniform { lo, up } => uniform(lo, up, count, key)?,
        Init::Kaiming { dist: NormalOrUniform::Uniform, fan, non_linearity } => {
            let bound = non_linearity.gain() * (3.0 / fan.for_shape(shape) as f64).sqrt();
            uniform(-bound, bound, count, key)?
        }
    };
    Ok(Tensor::from_vec(values, shape.clone(), &Device::Cpu)?)
}

fn uniform(lo: f64, up: f64, count: usize, key: Key) -> Result<Vec<f32>> {
    let law = Uniform::new_inclusive(lo, up)
        .map_err(|e| Error::invalid("initial values", e.to_string(), "use finite bounds, lower below upper"))?;
    let mut stream = key.stream();
    Ok((0..count).map(|_| law.sample(&mut stream) as f32).collect())
}

impl SimpleBackend for ParameterStore {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.lock().make(shape, name, init, dtype, device).map_err(candle_core::Error::wrap)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let shape = {
            let inner = self.lock();
            let known = inner.by_name.get(name).map(|&at| inner.entries[at].var.shape().clone());
            known.or_else(|| inner.given.get(name).map(|t| t.shape().clone()))
        };
        match shape {
            Some(shape) => self.get(shape, name, Init::Const(0.0), dtype, device),
            None => Err(candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt()),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let inner = self.lock();
        inner.by_name.contains_key(name) || inner.given.contains(name)
    }
}
