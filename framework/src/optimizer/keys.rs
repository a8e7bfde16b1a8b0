//! The keys of [`OptimizerConfig`] in configuration files: those that may be read, and those of each kind, which are written.

use serde::{Deserialize, Serialize};

use super::config::{OptimizerConfig, OptimizerKind, ParameterGroup, StageOverride};

/// The keys of a table that is read, of either kind. Those that are not given have the defaults of the kind.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct GivenKeys {
    kind: OptimizerKind,
    lr: Option<f64>,
    momentum: Option<f64>,
    nesterov: Option<bool>,
    weight_decay: Option<f64>,
    betas: Option<[f64; 2]>,
    eps: Option<f64>,
    groups: Vec<ParameterGroup>,
    stages: Vec<StageOverride>,
}

impl From<GivenKeys> for OptimizerConfig {
    fn from(given: GivenKeys) -> Self {
        let defaults = Self::of(given.kind);
        Self {
            kind: given.kind,
            lr: given.lr.unwrap_or(defaults.lr),
            momentum: given.momentum.unwrap_or(defaults.momentum),
            nesterov: given.nesterov.unwrap_or(defaults.nesterov),
            weight_decay: given.weight_decay.unwrap_or(defaults.weight_decay),
            betas: given.betas.unwrap_or(defaults.betas),
            eps: given.eps.unwrap_or(defaults.eps),
            groups: given.groups,
            stages: given.stages,
        }
    }
}

/// An update rule and its constants, as PyTorch defines them.
#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "lowercase")]
#[cfg_attr(feature = "schema", schemars(transform = schema::sgd_needs_no_kind))]
pub(super) enum KeysOfKind {
    /// Stochastic gradient descent, with momentum and Nesterov's variant of it.
    Sgd(SgdKeys),
    /// Adam with decoupled weight decay.
    Adamw(AdamwKeys),
}

/// The keys of stochastic gradient descent.
#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(deny_unknown_fields))]
pub(super) struct SgdKeys {
    /// The learning rate before any schedule.
    #[cfg_attr(feature = "schema", schemars(default = "schema::sgd_lr"))]
    lr: f64,
    /// The share of the last update that each update repeats, from 0 to below 1.
    #[cfg_attr(feature = "schema", schemars(default = "schema::momentum"))]
    momentum: f64,
    /// Whether momentum is Nesterov's.
    #[cfg_attr(feature = "schema", schemars(default))]
    nesterov: bool,
    /// The L2 penalty: this share of each parameter is added to its gradient.
    #[cfg_attr(feature = "schema", schemars(default))]
    weight_decay: f64,
    /// Groups of parameters with settings of their own. The first group with a pattern that matches a parameter's name applies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(default))]
    groups: Vec<ParameterGroup>,
    /// Stages with constants of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(default))]
    stages: Vec<StageOverride>,
}

/// The keys of AdamW.
#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(deny_unknown_fields))]
pub(super) struct AdamwKeys {
    /// The learning rate before any schedule.
    #[cfg_attr(feature = "schema", schemars(default = "schema::adamw_lr"))]
    lr: f64,
    /// The decay rates of the two moments, each from 0 to below 1.
    #[cfg_attr(feature = "schema", schemars(default = "schema::betas"))]
    betas: [f64; 2],
    /// The number above 0 that is added to the root of the second moment.
    #[cfg_attr(feature = "schema", schemars(default = "schema::eps"))]
    eps: f64,
    /// The decoupled weight decay: each update takes this share of the parameter, times the learning rate.
    #[cfg_attr(feature = "schema", schemars(default))]
    weight_decay: f64,
    /// Groups of parameters with settings of their own. The first group with a pattern that matches a parameter's name applies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(default))]
    groups: Vec<ParameterGroup>,
    /// Stages with constants of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(default))]
    stages: Vec<StageOverride>,
}

impl From<OptimizerConfig> for KeysOfKind {
    fn from(config: OptimizerConfig) -> Self {
        let OptimizerConfig { kind, lr, momentum, nesterov, weight_decay, betas, eps, groups, stages } = config;
        match kind {
            OptimizerKind::Sgd => Self::Sgd(SgdKeys { lr, momentum, nesterov, weight_decay, groups, stages }),
            OptimizerKind::Adamw => Self::Adamw(AdamwKeys { lr, betas, eps, weight_decay, groups, stages }),
        }
    }
}

/// What the schema says of these keys.
#[cfg(feature = "schema")]
mod schema {
    use super::{OptimizerConfig, OptimizerKind};

    /// Lets a table without `kind` be one of stochastic gradient descent, as it is read.
    pub(super) fn sgd_needs_no_kind(schema: &mut schemars::Schema) {
        let sgd = schema.pointer_mut("/oneOf/0").and_then(serde_json::Value::as_object_mut);
        if let Some(sgd) = sgd {
            sgd.remove("required");
        }
    }

    pub(super) fn sgd_lr() -> f64 {
        OptimizerConfig::of(OptimizerKind::Sgd).lr
    }

    pub(super) fn adamw_lr() -> f64 {
        OptimizerConfig::of(OptimizerKind::Adamw).lr
    }

    pub(super) fn momentum() -> f64 {
        OptimizerConfig::default().momentum
    }

    pub(super) fn betas() -> [f64; 2] {
        OptimizerConfig::default().betas
    }

    pub(super) fn eps() -> f64 {
        OptimizerConfig::default().eps
    }
}
