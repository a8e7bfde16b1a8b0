//! Initial values for a model: which of them it uses, under which names, and how they differ from it.
//!
//! Weights of other programs first get the model's own names ([`adapted`]). Main parameters have the same names in every partition. A head is named by
//! its stage, `aux.{stage}.…`, but belongs to the unit that it follows, so [`InitialValues::of`] finds it by that unit and renames it.

mod adapted;
mod differences;
mod skip;

pub(crate) use adapted::adapted;
pub(crate) use differences::{AllowedDifferences, HeadName, Missing, ValueDifferences};
use skip::Skip;

use std::{collections::BTreeMap, sync::Arc};

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{
    StageBlueprint,
    shapes::{asked, builds},
};
use crate::{Adapted, Result, Weights, names::misspelt, tensor::elementwise::is_finite};

/// The prefix of the names of all heads' parameters; the stage's number follows.
const HEADS: &str = "aux";

/// Returns the builder of the head of stage `stage`.
pub(crate) fn head_builder(root: &VarBuilder<'static>, stage: usize) -> VarBuilder<'static> {
    root.pp(HEADS).pp(stage)
}

/// Returns the stage of a head's parameter, and the rest of the name: 3 and `fc.weight` for `aux.3.fc.weight`.
pub(super) fn head_parameter(name: &str) -> Option<(usize, &str)> {
    let (stage, rest) = name.strip_prefix(HEADS)?.strip_prefix('.')?.split_once('.')?;
    Some((stage.parse().ok()?, rest))
}

/// Returns whether `name` is that of a head's parameter.
pub(crate) fn is_head(name: &str) -> bool {
    head_parameter(name).is_some()
}

/// Returns the unit that the head of stage `stage` follows: the last one of the stage.
pub(crate) fn head_unit(units_per_stage: &[usize], stage: usize) -> Option<usize> {
    let count = units_per_stage.get(..=stage)?.iter().try_fold(0_usize, |sum, units| sum.checked_add(*units))?;
    count.checked_sub(1)
}

/// The initial values that a model uses, under its own names.
pub(crate) struct InitialValues {
    pub(crate) values: Arc<Weights>,
    pub(crate) differences: ValueDifferences,
}

impl InitialValues {
    /// Returns the values of `given` for the model of these stages. A head is used whole or not at all: it must have followed the same unit, or had the
    /// same stage's number where `given` does not know its units, and have the same names and shapes. A
    /// name that is nearly one that the model's head lacks counts as unknown: another head has names of its own. Names that a pattern of `skip` matches
    /// are used as if `given` did not have them.
    ///
    /// If a unit cannot be built, the names of the model are incomplete, so no name counts as unknown; the build of the stage reports the failure.
    ///
    /// # Errors
    /// If a pattern of `skip` is none, or matches no name.
    pub(crate) fn of(given: Adapted, skip: &[String], stages: &[StageBlueprint]) -> Result<Self> {
        let Adapted { weights: all, notes } = given;
        let skip = Skip::new(skip)?;
        let given = &Arc::new(all.clone().renamed(|name| (!skip.matches(name)).then(|| name.to_owned()))?);
        let mut values = Weights::default();
        let mut differences = ValueDifferences { notes, ..ValueDifferences::default() };
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
                (None, None) => {}
                (Some(wanted), _) if value.dims() != wanted => {
                    differences.misshaped.push((name.to_owned(), value.dims().to_vec(), wanted.clone()));
                }
                (Some(_), _) if !value.dtype().is_float() => {
                    differences.not_floats.push(format!("{name} ({:?})", value.dtype()));
                }
                (Some(_), _) if !is_finite(value)? => differences.not_finite.push(name.to_owned()),
                (Some(_), _) => differences.matched.push(name.to_owned()),
            }
            values.insert(name, value.clone());
        }
        for (name, dtype) in given.unreadable() {
            match shapes.contains_key(name) {
                true => differences.not_floats.push(format!("{name} ({dtype})")),
                false if is_complete => differences.unknown.push(name.to_owned()),
                false => {}
            }
        }
        let is_missing = |name: &String| !given.contains(name) && !given.unreadable().any(|(other, _)| other == name);
        if is_complete {
            skip.check(&shapes.keys().map(String::as_str).chain(all.names()).collect::<Vec<_>>())?;
        }
        (differences.skipped, differences.missing) =
            shapes.into_keys().filter(is_missing).partition(|name| skip.matches(name));

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
                if !is_finite(value)? {
                    differences.not_finite.push(name.to_owned());
                }
                values.insert(name, value.clone());
            }
            source.and_then(|source| heads.remove(&source));
        }
        differences.unused_heads = heads.keys().map(|&stage| HeadName { stage, unit: unit_of(stage) }).collect();
        Ok(Self { values: Arc::new(values), differences })
    }
}

/// Returns whether `name` is probably meant to be `right`: each part between points is the same or nearly the same word. Other numbers are other
/// layers.
fn is_misspelt(name: &str, right: &str) -> bool {
    let word = |part: &str| part.replace(|letter: char| letter.is_ascii_digit(), "");
    let is_meant =
        |(part, right): (&str, &str)| part == right || (word(part) != word(right) && misspelt(part, [right]).is_some());
    name.split('.').count() == right.split('.').count() && name.split('.').zip(right.split('.')).all(is_meant)
}
