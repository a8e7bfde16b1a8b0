//! The states of stages for another partition: each parameter takes along what its optimizer remembers of it.
//!
//! The tensors of an optimizer's state end in the name of their parameter, and its other values are objects by that name, or the same for all stages
//! (such as a count of updates).

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use serde_json::{Map, Value};

use super::{PartState, StageState, prefixes};
use crate::{
    Error, Result,
    stage::{initial::head_parameter, readout, trainable::state::own},
};

fn refuse<T>(problem: String) -> Result<T> {
    Err(Error::invalid("trainer state", problem, "cut the model as in that run (partition)"))
}

/// What the states of all stages say of one kind of parts, by the new names of parameters.
#[derive(Default)]
struct Gathered {
    /// The tensors of optimizers: what precedes the parameter's name, the parameter, and the tensor.
    tensors: Vec<(String, String, Tensor)>,
    /// The other values of each stage's optimizer, with the parameters of that stage.
    values: Vec<(Value, BTreeSet<String>)>,
    averaged: BTreeSet<String>,
}

/// Returns the name of a parameter under another partition, in which heads have the numbers of `heads` instead of their own; none if its head is not there.
pub(crate) fn regrouped_name(name: &str, heads: &BTreeMap<usize, usize>) -> Option<String> {
    match head_parameter(name) {
        Some((old, rest)) => heads.get(&old).map(|new| format!("aux.{new}.{rest}")),
        None => Some(name.to_owned()),
    }
}

/// Returns the states of stages with these names of parameters and buffers, from those of the stages of another partition. Heads are renamed by `heads`,
/// from the number of their old stage to that of their new one; others start anew.
///
/// # Errors
/// If the state of an optimizer cannot be divided by parameters.
pub(crate) fn regrouped(
    states: Vec<StageState>,
    heads: &BTreeMap<usize, usize>,
    stages: &[&[String]],
) -> Result<Vec<StageState>> {
    let renamed = |name: &str| regrouped_name(name, heads);
    let Some(plateau) = states.first().map(|state| state.plateau) else {
        return refuse("it has no stages".to_owned());
    };
    let refresh = states.iter().find_map(|state| state.readout_refresh);
    let (mut shapes, mut shared, mut gathered) = (BTreeMap::new(), BTreeMap::new(), Gathered::default());
    for (k, state) in states.into_iter().enumerate() {
        let prefixes = prefixes(k);
        let parts = [Some((&prefixes[0], state.main)), state.head.map(|head| (&prefixes[1], head))];
        let mut tensors = state.tensors;
        shared.extend(readout::versions_in(&tensors).into_iter().map(|v| (readout::state_name(v.step), v.matrix)));
        for (prefix, part) in parts.into_iter().flatten() {
            let is_of_part = |name: &&String| (*prefix == prefixes[1]) == head_parameter(name).is_some();
            let names: BTreeSet<String> = state.shapes.keys().filter(is_of_part).cloned().collect();
            gathered.add(prefix, part, &names, &mut tensors, &renamed)?;
        }
        shapes.extend(state.shapes.into_iter().filter_map(|(name, shape)| Some((renamed(&name)?, shape))));
        let averages = tensors.into_iter().filter_map(|(name, tensor)| {
            let parameter = name.strip_prefix("parameters.")?;
            Some((own(&renamed(parameter)?), tensor))
        });
        shared.extend(averages);
    }
    let state = |(k, names): (usize, &&[String])| {
        let of = |is_head: bool| -> BTreeSet<&str> {
            names.iter().map(String::as_str).filter(|name| head_parameter(name).is_some() == is_head).collect()
        };
        let (main, head) = (of(false), of(true));
        let mut tensors: BTreeMap<String, Tensor> = shared.clone();
        let prefixes = prefixes(k);
        let has_head = head.iter().any(|name| shapes.contains_key(*name));
        Ok(StageState {
            main: gathered.part(&prefixes[0], &main, &mut tensors)?,
            head: has_head.then(|| gathered.part(&prefixes[1], &head, &mut tensors)).transpose()?,
            shapes: shapes
                .iter()
                .filter(|(name, _)| names.contains(name))
                .map(|(n, s)| (n.clone(), s.clone()))
                .collect(),
            plateau,
            readout_refresh: refresh,
            tensors,
            is_regrouped: true,
        })
    };
    stages.iter().enumerate().map(state).collect()
}

impl Gathered {
    /// Adds the state of a part with the parameters `names`, whose tensors begin with `prefix`.
    fn add(
        &mut self,
        prefix: &str,
        part: PartState,
        names: &BTreeSet<String>,
        tensors: &mut BTreeMap<String, Tensor>,
        renamed: &impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        for name in part.tensors {
            let Some(tensor) = tensors.remove(&format!("{prefix}.{name}")) else {
                return refuse(format!("the tensor {prefix}.{name} is missing"));
            };
            let parameter = name.match_indices('.').map(|(at, _)| at).find(|&at| names.contains(&name[at + 1..]));
            let Some(at) = parameter else {
                return refuse(format!("the optimizer's tensor {name} does not end in the name of a parameter"));
            };
            if let Some(parameter) = renamed(&name[at + 1..]) {
                self.tensors.push((name[..at].to_owned(), parameter, tensor));
            }
        }
        let values = by_new_names(part.values, names, renamed);
        self.values.push((values, names.iter().filter_map(|name| renamed(name)).collect()));
        self.averaged.extend(part.averaged.iter().filter_map(|name| renamed(name)));
        Ok(())
    }

    /// Returns the state of a part with the parameters `names`, and adds its tensors to `into`.
    fn part(&self, prefix: &str, names: &BTreeSet<&str>, into: &mut BTreeMap<String, Tensor>) -> Result<PartState> {
        let mut tensors = Vec::new();
        for (kind, parameter, tensor) in self.tensors.iter().filter(|(_, name, _)| names.contains(name.as_str())) {
            let name = format!("{kind}.{parameter}");
            into.insert(format!("{prefix}.{name}"), tensor.clone());
            tensors.push(name);
        }
        let contributes = |of: &BTreeSet<String>| of.iter().any(|name| names.contains(name.as_str()));
        let mut values = None;
        for (value, of) in self.values.iter().filter(|(_, of)| contributes(of)) {
            let own = only(value, of, names);
            values = Some(match values {
                Some(before) => merged(before, own)?,
                None => own,
            });
        }
        let averaged = self.averaged.iter().filter(|name| names.contains(name.as_str())).cloned().collect();
        Ok(PartState { tensors, values: values.unwrap_or_default(), averaged })
    }
}

/// Returns whether the keys of an object are parameters.
fn is_by_parameter(object: &Map<String, Value>, names: &BTreeSet<String>) -> bool {
    object.keys().all(|key| names.contains(key))
}

/// Returns values with their parameters renamed, without those that have no new name.
fn by_new_names(value: Value, names: &BTreeSet<String>, renamed: &impl Fn(&str) -> Option<String>) -> Value {
    match value {
        Value::Object(object) if is_by_parameter(&object, names) => {
            object.into_iter().filter_map(|(name, value)| Some((renamed(&name)?, value))).collect()
        }
        Value::Object(object) => {
            object.into_iter().map(|(key, value)| (key, by_new_names(value, names, renamed))).collect()
        }
        other => other,
    }
}

/// Returns values with only these parameters, of those that the values are of.
fn only(value: &Value, of: &BTreeSet<String>, names: &BTreeSet<&str>) -> Value {
    match value {
        Value::Object(object) if is_by_parameter(object, of) => {
            let own = object.iter().filter(|(name, _)| names.contains(name.as_str()));
            own.map(|(name, value)| (name.clone(), value.clone())).collect()
        }
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), only(value, of, names))).collect(),
        other => other.clone(),
    }
}

/// Returns the values of two stages together.
///
/// # Errors
/// If they differ where they are not of parameters.
fn merged(a: Value, b: Value) -> Result<Value> {
    match (a, b) {
        (Value::Object(mut a), Value::Object(b)) => {
            for (key, value) in b {
                let value = match a.remove(&key) {
                    Some(before) => merged(before, value)?,
                    None => value,
                };
                a.insert(key, value);
            }
            Ok(Value::Object(a))
        }
        (a, b) if a == b => Ok(a),
        (a, b) => refuse(format!("the optimizers of two stages that are joined remember {a} and {b}")),
    }
}
