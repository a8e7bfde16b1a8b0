//! The comparison of initial values with the model that they are for.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use super::StageBlueprint;
use crate::{Error, Result, Weights};

/// The most names that a message lists.
const LISTED: usize = 20;

/// The differences between initial values and a model that are allowed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AllowedDifferences {
    /// Names of the model without a value, which start from the seed.
    pub(crate) missing: bool,
    /// Values whose names are not in the model, which are not used.
    pub(crate) unknown: bool,
}

/// How initial values differ from a model. Every list is sorted.
#[derive(Debug, Default)]
pub(crate) struct ValueDifferences {
    pub(crate) missing: Vec<String>,
    pub(crate) unknown: Vec<String>,
    /// Name, shape of the value, and shape in the model.
    misshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl ValueDifferences {
    /// Returns the differences of `given` from the model of these stages. If a unit cannot be built, the names of the model are incomplete, so no
    /// name counts as unknown; the build of the stage reports the failure.
    pub(crate) fn between(given: &Arc<Weights>, stages: &[StageBlueprint]) -> Self {
        let asked = ShapeRecorder { given: Arc::clone(given), shapes: Arc::default() };
        let root = VarBuilder::from_backend(Box::new(asked.clone()), DType::F32, Device::Cpu);
        let mut is_complete = true;
        for (unit, root) in stages.iter().flat_map(|stage| stage.units_from(&root)) {
            is_complete &= matches!(catch_unwind(AssertUnwindSafe(|| unit.build(&root))), Ok(Ok(_)));
        }
        let mut differences = Self::default();
        let shapes = asked.lock();
        for (name, wanted) in &*shapes {
            match given.get(name).map(Tensor::dims) {
                None => differences.missing.push(name.clone()),
                Some(found) if found == wanted => {}
                Some(found) => differences.misshaped.push((name.clone(), found.to_vec(), wanted.clone())),
            }
        }
        let is_unknown = |name: &&str| is_complete && !shapes.contains_key(*name);
        differences.unknown = given.names().filter(is_unknown).map(str::to_owned).collect();
        differences
    }

    /// Refuses the differences that are not allowed.
    ///
    /// # Errors
    /// [`Error::Invalid`], which lists missing and unknown names and tensors of another shape.
    pub(crate) fn refuse(&self, subject: &str, allowed: AllowedDifferences) -> Result<()> {
        let misshaped: Vec<String> = self
            .misshaped
            .iter()
            .map(|(name, found, wanted)| format!("{name}, which is {found:?} and must be {wanted:?}"))
            .collect();
        let problems = [
            ("missing", !allowed.missing, &self.missing),
            ("not in the model", !allowed.unknown, &self.unknown),
            ("of another shape", true, &misshaped),
        ];
        let problems: Vec<String> = problems
            .iter()
            .filter(|(_, refused, names)| *refused && !names.is_empty())
            .map(|(what, _, names)| format!("{} {what} ({})", names.len(), list(names)))
            .collect();
        if problems.is_empty() {
            return Ok(());
        }
        let remedy = "give the weights of this model (allow_missing and allow_unknown allow other names)";
        Err(Error::invalid(subject, problems.join(", "), remedy))
    }
}

/// Lists names for a message or a warning.
pub(crate) fn list(names: &[String]) -> String {
    let mut text = names[..names.len().min(LISTED)].join(", ");
    if names.len() > LISTED {
        text += &format!(" and {} more", names.len() - LISTED);
    }
    text
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
            None => Tensor::zeros(shape, dtype, device),
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
