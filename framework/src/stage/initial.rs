//! Initial values for a model: which of them it uses, under which names, and how they differ from it.
//!
//! Main parameters have the same names in every partition. A head is named by its stage, `aux.{stage}.…`, but belongs to the unit that it follows, so
//! [`InitialValues::of`] finds it by that unit and renames it.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use super::StageBlueprint;
use crate::{Error, Result, Unit, Weights, names::misspelt};

/// The most names that a message lists.
const LISTED: usize = 20;

/// The prefix of the names of all heads' parameters; the stage's number follows.
const HEADS: &str = "aux";

/// Returns the builder of the head of stage `stage`.
pub(crate) fn head_builder(root: &VarBuilder<'static>, stage: usize) -> VarBuilder<'static> {
    root.pp(HEADS).pp(stage)
}

/// Returns the stage of a head's parameter, and the rest of the name: 3 and `fc.weight` for `aux.3.fc.weight`.
fn head_parameter(name: &str) -> Option<(usize, &str)> {
    let (stage, rest) = name.strip_prefix(HEADS)?.strip_prefix('.')?.split_once('.')?;
    Some((stage.parse().ok()?, rest))
}

/// Returns the unit that the head of stage `stage` follows: the last one of the stage.
fn head_unit(units_per_stage: &[usize], stage: usize) -> Option<usize> {
    let count = units_per_stage.get(..=stage)?.iter().try_fold(0_usize, |sum, units| sum.checked_add(*units))?;
    count.checked_sub(1)
}

/// A head as messages name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadName {
    pub(crate) stage: usize,
    /// The unit that it follows, if it is known.
    pub(crate) unit: Option<usize>,
}

impl fmt::Display for HeadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HEADS}.{}", self.stage)?;
        self.unit.map_or(Ok(()), |unit| write!(f, " after unit {unit}"))
    }
}

/// The differences between initial values and a model that are allowed. Heads that the model does not have always are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllowedDifferences {
    /// Main parameters and buffers of the model without a value, which start from the seed.
    pub(crate) missing: bool,
    /// Values whose names are not in the model, which are not used.
    pub(crate) unknown: bool,
    /// Heads of the model without values of their shapes, which start from the seed.
    pub(crate) heads: bool,
}

impl Default for AllowedDifferences {
    fn default() -> Self {
        Self { missing: false, unknown: false, heads: true }
    }
}

/// How initial values differ from a model. Every list is sorted.
#[derive(Debug, Default)]
pub(crate) struct ValueDifferences {
    /// Names of main parameters and buffers without a value.
    pub(crate) missing: Vec<String>,
    pub(crate) unknown: Vec<String>,
    /// Name, shape of the value, and shape in the model.
    misshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Heads of the model for which there are no values at their unit, or of other names or shapes.
    pub(crate) fresh_heads: Vec<HeadName>,
    /// Heads for which there are values that are not used.
    pub(crate) unused_heads: Vec<HeadName>,
    /// Heads whose values were found by the stage's number, because it is not known which units they followed.
    pub(crate) heads_by_stage: Vec<HeadName>,
}

/// The initial values that a model uses, under its own names.
pub(crate) struct InitialValues {
    pub(crate) values: Arc<Weights>,
    pub(crate) differences: ValueDifferences,
}

impl InitialValues {
    /// Returns the values of `given` for the model of these stages. A head is used whole or not at all: it must have followed the same unit, or had the
    /// same stage's number where `given` does not know its units, and have the same names and shapes. A
    /// name that is nearly one that the model's head lacks counts as unknown: another head has names of its own.
    ///
    /// If a unit cannot be built, the names of the model are incomplete, so no name counts as unknown; the build of the stage reports the failure.
    pub(crate) fn of(given: &Arc<Weights>, stages: &[StageBlueprint]) -> Self {
        let mut values = Weights::default();
        let mut differences = ValueDifferences::default();
        let units = || stages.iter().flat_map(StageBlueprint::units);
        let (shapes, is_complete) = asked(given, |root| units().filter(|unit| !builds(unit, root)).count() == 0);
        let mut heads: BTreeMap<usize, Vec<(&str, &Tensor)>> = BTreeMap::new();
        for (name, value) in given.iter() {
            match (shapes.get(name), head_parameter(name)) {
                (None, Some((stage, rest))) => {
                    heads.entry(stage).or_default().push((rest, value));
                    continue;
                }
                (None, None) if is_complete => differences.unknown.push(name.to_owned()),
                (Some(wanted), _) if value.dims() != wanted => {
                    differences.misshaped.push((name.to_owned(), value.dims().to_vec(), wanted.clone()));
                }
                _ => {}
            }
            values.insert(name, value.clone());
        }
        differences.missing = shapes.into_keys().filter(|name| !given.contains(name)).collect();

        let unit_of = |stage| given.units_per_stage().and_then(|units| head_unit(units, stage));
        for (blueprint, head) in stages.iter().filter_map(|stage| Some((stage, stage.head()?))) {
            let (stage, unit) = (blueprint.index, blueprint.last_unit());
            let source = match given.units_per_stage() {
                Some(_) => heads.keys().copied().find(|&source| unit_of(source) == Some(unit)),
                None => Some(stage),
            };
            let found = source.and_then(|source| heads.get(&source)).into_iter().flatten();
            let found = found.map(|(rest, value)| (format!("{HEADS}.{stage}.{rest}"), (*value).clone()));
            let found: Arc<Weights> = Arc::new(found.collect());
            let (shapes, is_complete) = asked(&found, |root| builds(head, &head_builder(root, stage)));
            let fits = shapes.len() == found.len()
                && found.iter().all(|(name, value)| shapes.get(name).is_some_and(|wanted| value.dims() == wanted));
            let name = HeadName { stage, unit: Some(unit) };
            if is_complete && !fits {
                let is_missing = |name: &&String| !found.contains(name);
                let is_wrong = |name: &&str| {
                    !shapes.contains_key(*name)
                        && shapes.keys().filter(is_missing).any(|right| is_misspelt(name, right))
                };
                differences.unknown.extend(found.iter().map(|(name, _)| name).filter(is_wrong).map(str::to_owned));
                differences.unknown.sort();
                differences.fresh_heads.push(name);
                continue;
            }
            if given.units_per_stage().is_none() && !found.is_empty() {
                differences.heads_by_stage.push(name);
            }
            for (name, value) in found.iter() {
                values.insert(name, value.clone());
            }
            source.and_then(|source| heads.remove(&source));
        }
        differences.unused_heads = heads.keys().map(|&stage| HeadName { stage, unit: unit_of(stage) }).collect();
        Self { values: Arc::new(values), differences }
    }
}

impl ValueDifferences {
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
        let fresh_heads: Vec<String> = self.fresh_heads.iter().map(HeadName::to_string).collect();
        let problems = [
            ("missing", !allowed.missing, &self.missing),
            ("not in the model", !allowed.unknown, &self.unknown),
            ("of another shape", true, &misshaped),
            ("of the heads missing or of another shape", !allowed.heads, &fresh_heads),
        ];
        let problems: Vec<String> = problems
            .iter()
            .filter(|(_, refused, names)| *refused && !names.is_empty())
            .map(|(what, _, names)| format!("{} {what} ({})", names.len(), list(names)))
            .collect();
        if problems.is_empty() {
            return Ok(());
        }
        let main = (!allowed.missing && !self.missing.is_empty())
            || (!allowed.unknown && !self.unknown.is_empty())
            || !misshaped.is_empty();
        let remedy = match main {
            true => "give the weights of this model (allow_missing and allow_unknown allow other names)",
            false => "give weights that were trained with these heads at the same units",
        };
        Err(Error::invalid(subject, problems.join(", "), remedy))
    }

    /// Warns of heads that do not have their values from the same unit.
    pub(crate) fn warn_of_heads(&self, subject: &str) {
        warn(subject, "heads not given at their unit and in their shape, which start from the seed", &self.fresh_heads);
        warn(subject, "heads given and not used", &self.unused_heads);
        self.warn_of_heads_by_stage(subject);
    }

    /// Warns of heads that were found by the stage's number.
    pub(crate) fn warn_of_heads_by_stage(&self, subject: &str) {
        let what = "they do not say which units their heads followed, so heads were found by the stage's number";
        warn(subject, what, &self.heads_by_stage);
    }
}

/// Warns of names.
pub(crate) fn warn(subject: &str, what: &str, names: &[impl fmt::Display]) {
    if !names.is_empty() {
        tracing::warn!("{subject}: {what}: {}", list(names));
    }
}

/// Lists names for a message or a warning.
fn list(names: &[impl fmt::Display]) -> String {
    let listed: Vec<String> = names.iter().take(LISTED).map(ToString::to_string).collect();
    let mut text = listed.join(", ");
    if names.len() > LISTED {
        text += &format!(" and {} more", names.len() - LISTED);
    }
    text
}

/// Returns the names and shapes that `build` requests of its builder, which returns values of `given` or zeros, and what `build` returns.
fn asked(
    given: &Arc<Weights>,
    build: impl FnOnce(&VarBuilder<'static>) -> bool,
) -> (BTreeMap<String, Vec<usize>>, bool) {
    let recorder = ShapeRecorder { given: Arc::clone(given), shapes: Arc::default() };
    let built = build(&VarBuilder::from_backend(Box::new(recorder.clone()), DType::F32, Device::Cpu));
    (std::mem::take(&mut *recorder.lock()), built)
}

/// Returns whether `name` is probably meant to be `right`: each part between points is the same or nearly the same word. Other numbers are other
/// layers.
fn is_misspelt(name: &str, right: &str) -> bool {
    let word = |part: &str| part.replace(|letter: char| letter.is_ascii_digit(), "");
    let is_meant =
        |(part, right): (&str, &str)| part == right || (word(part) != word(right) && misspelt(part, [right]).is_some());
    name.split('.').count() == right.split('.').count() && name.split('.').zip(right.split('.')).all(is_meant)
}

/// Builds `unit` and returns whether it could be built.
fn builds(unit: &Unit, root: &VarBuilder<'static>) -> bool {
    matches!(catch_unwind(AssertUnwindSafe(|| unit.build(root))), Ok(Ok(_)))
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
