//! Weights of other programs under a model's own names.

use crate::{Adapted, ModelSpec, Result, Weights};

/// Parts of names that `torch.compile` and wrappers of modules add, anywhere in a name.
const PARTS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// First parts of all names, from `DistributedDataParallel` and from classes that have the model as an attribute.
const PREFIXES: [&str; 3] = ["module", "model", "state_dict"];

/// Returns `given` under the names of `model`: without what wrappers add, and as the model adapts it.
///
/// # Errors
/// If two tensors would have the same name, or the model cannot list its units or refuses the weights.
pub(crate) fn adapted(model: &dyn ModelSpec, given: &Weights) -> Result<Adapted> {
    let mut notes = Vec::new();
    let mut weights = given.clone();
    let is_part = |part: &str| PARTS.contains(&part);
    if given.names().any(|name| name.split('.').any(is_part)) {
        weights = weights
            .renamed(|name| Some(name.split('.').filter(|part| !is_part(part)).collect::<Vec<_>>().join(".")))?;
        notes.push("the parts of names that wrappers add were left out".to_owned());
    }
    let units = model.units()?;
    while let Some(prefix) = PREFIXES.iter().map(|prefix| format!("{prefix}.")).find(|prefix| {
        let is_own = units.iter().any(|unit| format!("{}.", unit.name).starts_with(prefix));
        !is_own && !weights.is_empty() && weights.names().all(|name| name.starts_with(prefix))
    }) {
        weights = weights.renamed(|name| Some(name[prefix.len()..].to_owned()))?;
        notes.push(format!("the prefix {prefix:?} of all names was left out"));
    }
    let own = model.adapt(weights)?;
    notes.extend(own.notes);
    Ok(Adapted { weights: own.weights, notes })
}
