//! Optimizers as configuration files give them: constants, groups of parameters, and overrides for single stages.

use glob::Pattern;
use serde::{Deserialize, Serialize};

use super::keys::{GivenKeys, KeysOfKind};
use crate::{Error, Result, names::nearest};

/// The kind of an update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Stochastic gradient descent, with momentum and Nesterov's variant of it.
    #[default]
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// An update rule and its constants, as PyTorch defines them.
///
/// As a table of a configuration file it has the keys of its `kind` alone: `momentum` and `nesterov` are written for SGD, `betas` and `eps` for AdamW.
/// Both are read under either kind, since files of earlier versions have all of them. A table without `kind` is of SGD, and without `lr` has the
/// default of its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "GivenKeys", into = "KeysOfKind")]
#[cfg_attr(feature = "schema", schemars(with = "KeysOfKind"))]
pub struct OptimizerConfig {
    /// The rule.
    pub kind: OptimizerKind,
    /// The learning rate before any schedule.
    pub lr: f64,
    /// SGD: momentum.
    pub momentum: f64,
    /// SGD: Nesterov momentum.
    pub nesterov: bool,
    /// L2 penalty (SGD) or decoupled decay (AdamW).
    pub weight_decay: f64,
    /// AdamW: decay rates of the two moments.
    pub betas: [f64; 2],
    /// AdamW: added to the root of the second moment.
    pub eps: f64,
    /// Groups of parameters with settings of their own. The first group with a pattern that matches a parameter's name applies.
    pub groups: Vec<ParameterGroup>,
    /// Stages with constants of their own.
    pub stages: Vec<StageOverride>,
}

/// A group of parameters with settings of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// Patterns of names with `*`, `?` and `[…]`: `*.bias`, `*.bn?.*`, `transformer.h.0.*`.
    #[serde(rename = "match")]
    pub patterns: Vec<String>,
    /// The factor on the learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_scale: Option<f64>,
    /// The weight decay, instead of the optimizer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Whether the parameters are left unchanged.
    #[serde(default)]
    pub frozen: bool,
}

/// The constants of one stage. Constants that are not given are those of the optimizer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StageOverride {
    /// The stage, counted from 0.
    pub stage: usize,
    /// Its learning rate before any schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Its momentum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Its weight decay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// The settings of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParameterSettings {
    /// The factor on the learning rate.
    pub lr_scale: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether it is left unchanged.
    pub frozen: bool,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Sgd,
            lr: 0.1,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            groups: Vec::new(),
            stages: Vec::new(),
        }
    }
}

impl OptimizerConfig {
    /// Returns the defaults of this kind: those of PyTorch, except that SGD has learning rate 0.1 and momentum 0.9, and AdamW weight decay 0.
    #[must_use]
    pub fn of(kind: OptimizerKind) -> Self {
        let lr = match kind {
            OptimizerKind::Sgd => 0.1,
            OptimizerKind::Adamw => 1e-3,
        };
        Self { kind, lr, ..Self::default() }
    }

    /// Returns the constants of stage `k`.
    #[must_use]
    pub fn for_stage(&self, k: usize) -> Self {
        let mut config = self.clone();
        for own in self.stages.iter().filter(|own| own.stage == k) {
            config.lr = own.lr.unwrap_or(config.lr);
            config.momentum = own.momentum.unwrap_or(config.momentum);
            config.weight_decay = own.weight_decay.unwrap_or(config.weight_decay);
        }
        config
    }

    /// Returns the settings of the parameter called `name`.
    ///
    /// # Errors
    /// If a pattern is malformed.
    pub fn settings(&self, name: &str) -> Result<ParameterSettings> {
        let mut settings = ParameterSettings { lr_scale: 1.0, weight_decay: self.weight_decay, frozen: false };
        for (at, group) in self.groups.iter().enumerate() {
            let mut matches = false;
            for pattern in &group.patterns {
                matches |= parse(at, pattern)?.matches(name);
            }
            if matches {
                settings.lr_scale = group.lr_scale.unwrap_or(1.0);
                settings.weight_decay = group.weight_decay.unwrap_or(self.weight_decay);
                settings.frozen = group.frozen;
                break;
            }
        }
        Ok(settings)
    }

    /// Checks that every pattern of the groups matches one of `names`, the parameters of the model.
    ///
    /// # Errors
    /// If one matches none, or is malformed; the message has the names that are most like it.
    pub fn check_patterns<'a, I: Iterator<Item = &'a str>>(&self, names: impl Fn() -> I) -> Result<()> {
        for (at, group) in self.groups.iter().enumerate() {
            for pattern in &group.patterns {
                let parsed = parse(at, pattern)?;
                if !names().any(|name| parsed.matches(name)) {
                    return Err(Error::invalid(
                        format!("optimizer.groups[{at}].match"),
                        format!("{pattern:?} matches no parameter"),
                        format!("the names most like it are {}", nearest(pattern, names(), 3).join(", ")),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks every constant, for a model of `stages` stages.
    ///
    /// # Errors
    /// If one is out of range; the message names its key.
    pub fn validate(&self, stages: usize) -> Result<()> {
        let check = |key: String, value: f64, fine: bool, remedy: &str| {
            if fine { Ok(()) } else { Err(Error::invalid(format!("optimizer.{key}"), value.to_string(), remedy)) }
        };
        let positive =
            |key: String, value: f64| check(key, value, value > 0.0 && value.is_finite(), "use a number above 0");
        let not_negative =
            |key: String, value: f64| check(key, value, value >= 0.0 && value.is_finite(), "use 0 or a number above");
        let below_one =
            |key: String, value: f64| check(key, value, (0.0..1.0).contains(&value), "use a number from 0 to below 1");
        positive("lr".into(), self.lr)?;
        below_one("momentum".into(), self.momentum)?;
        not_negative("weight_decay".into(), self.weight_decay)?;
        for beta in self.betas {
            below_one("betas".into(), beta)?;
        }
        positive("eps".into(), self.eps)?;
        if self.nesterov && (self.kind != OptimizerKind::Sgd || self.momentum == 0.0) {
            return Err(Error::invalid(
                "optimizer.nesterov",
                "true without momentum",
                match self.kind {
                    OptimizerKind::Sgd => "use a momentum above 0",
                    OptimizerKind::Adamw => "AdamW has none: leave it out",
                },
            ));
        }
        for (at, group) in self.groups.iter().enumerate() {
            let key = |field: &str| format!("groups[{at}].{field}");
            if group.patterns.is_empty() {
                let right = "give at least one pattern, or leave the group out";
                return Err(Error::invalid(format!("optimizer.{}", key("match")), "the list is empty", right));
            }
            for pattern in &group.patterns {
                parse(at, pattern)?;
            }
            let has_constants = group.lr_scale.is_some() || group.weight_decay.is_some();
            if group.frozen && has_constants {
                let right = "leave lr_scale and weight_decay out, or frozen";
                return Err(Error::invalid(format!("optimizer.{}", key("frozen")), "true beside constants", right));
            }
            // A group without settings keeps its parameters out of the groups after it.
            if !group.frozen && !has_constants && at + 1 == self.groups.len() {
                let right = "give frozen, lr_scale or weight_decay, or leave the group out";
                return Err(Error::invalid(format!("optimizer.groups[{at}]"), "it sets nothing", right));
            }
            positive(key("lr_scale"), group.lr_scale.unwrap_or(1.0))?;
            not_negative(key("weight_decay"), group.weight_decay.unwrap_or(0.0))?;
        }
        for (at, own) in self.stages.iter().enumerate() {
            let key = |field: &str| format!("stages[{at}].{field}");
            if own.stage >= stages {
                return Err(Error::invalid(
                    format!("optimizer.{}", key("stage")),
                    own.stage.to_string(),
                    format!("the model has stages 0 to {}", stages - 1),
                ));
            }
            if self.stages[..at].iter().any(|other| other.stage == own.stage) {
                let problem = format!("stage {} is named twice", own.stage);
                return Err(Error::invalid(format!("optimizer.{}", key("stage")), problem, "name each stage once"));
            }
            if own.lr.is_none() && own.momentum.is_none() && own.weight_decay.is_none() {
                let problem = format!("stage {} has no constant of its own", own.stage);
                return Err(Error::invalid(
                    format!("optimizer.stages[{at}]"),
                    problem,
                    "give lr, momentum or weight_decay, or leave the stage out",
                ));
            }
            if self.kind == OptimizerKind::Adamw && own.momentum.is_some() {
                let problem = "AdamW has no momentum";
                return Err(Error::invalid(format!("optimizer.{}", key("momentum")), problem, "leave it out"));
            }
            if self.nesterov && own.momentum == Some(0.0) {
                let right = "use a momentum above 0, or nesterov = false";
                return Err(Error::invalid(format!("optimizer.{}", key("momentum")), "0 beside nesterov", right));
            }
            positive(key("lr"), own.lr.unwrap_or(1.0))?;
            below_one(key("momentum"), own.momentum.unwrap_or(0.0))?;
            not_negative(key("weight_decay"), own.weight_decay.unwrap_or(0.0))?;
        }
        Ok(())
    }
}

fn parse(group: usize, pattern: &str) -> Result<Pattern> {
    Pattern::new(pattern).map_err(|e| {
        Error::invalid(
            format!("optimizer.groups[{group}].match"),
            format!("{pattern:?}: {} at character {}", e.msg, e.pos),
            "use names with *, ? and [...]",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(pattern: &str) -> ParameterGroup {
        ParameterGroup { patterns: vec![pattern.to_owned()], lr_scale: None, weight_decay: Some(0.0), frozen: false }
    }

    #[test]
    fn the_first_group_that_matches_counts() {
        let frozen = ParameterGroup { frozen: true, weight_decay: None, ..group("transformer.w?e.*") };
        let config = OptimizerConfig {
            weight_decay: 0.1,
            groups: vec![frozen, group("*.bias"), group("*.ln_*.*")],
            ..Default::default()
        };
        assert!(config.settings("transformer.wte.weight").unwrap().frozen);
        assert_eq!(config.settings("transformer.h.0.attn.c_attn.bias").unwrap().weight_decay, 0.0);
        assert_eq!(config.settings("transformer.h.0.ln_1.weight").unwrap().weight_decay, 0.0);
        assert_eq!(config.settings("transformer.h.0.attn.c_attn.weight").unwrap().weight_decay, 0.1);
        config.validate(1).unwrap();
        let names = ["transformer.wte.weight", "transformer.h.0.attn.c_attn.bias"];
        let error = config.check_patterns(|| names.into_iter()).unwrap_err().to_string();
        let expected =
            "optimizer.groups[2].match: \"*.ln_*.*\" matches no parameter; the names most like it are transformer.";
        assert!(error.starts_with(expected), "{error}");
        config.check_patterns(|| names.into_iter().chain(["transformer.h.0.ln_1.weight"])).unwrap();
    }

    #[test]
    fn tables_have_the_keys_of_their_kind_and_its_defaults() {
        let read = |json: &str| serde_json::from_str::<OptimizerConfig>(json).unwrap();
        let written = |config: &OptimizerConfig| serde_json::to_string(config).unwrap();
        assert_eq!(read("{}"), OptimizerConfig::default());
        assert_eq!(read("{}"), OptimizerConfig::of(OptimizerKind::Sgd));
        assert_eq!(read(r#"{"kind": "adamw"}"#), OptimizerConfig::of(OptimizerKind::Adamw));
        assert_eq!(read(r#"{"kind": "adamw"}"#).lr, 1e-3);
        // Files of earlier versions have the keys of both kinds.
        let both = r#"{"kind": "sgd", "lr": 0.5, "momentum": 0.8, "nesterov": true, "weight_decay": 0.1, "betas": [0.5, 0.5], "eps": 1.0}"#;
        let sgd = r#"{"kind":"sgd","lr":0.5,"momentum":0.8,"nesterov":true,"weight_decay":0.1}"#;
        assert_eq!(written(&read(both)), sgd);
        let adamw = r#"{"kind":"adamw","lr":0.01,"betas":[0.9,0.99],"eps":1e-6,"weight_decay":0.0}"#;
        assert_eq!(written(&read(adamw)), adamw);
        assert!(serde_json::from_str::<OptimizerConfig>(r#"{"rate": 1}"#).is_err());
    }

    #[test]
    fn a_stage_may_have_constants_of_its_own() {
        let own = StageOverride { stage: 1, lr: Some(0.5), ..Default::default() };
        let config = OptimizerConfig { stages: vec![own], ..Default::default() };
        assert_eq!((config.for_stage(0).lr, config.for_stage(1).lr, config.for_stage(1).momentum), (0.1, 0.5, 0.9));
        assert!(config.validate(1).unwrap_err().to_string().contains("optimizer.stages[0].stage"));
        config.validate(2).unwrap();
    }

    #[test]
    fn refuses_constants_out_of_range_and_names_the_key() {
        let refused = |config: OptimizerConfig, key: &str| {
            let error = config.validate(2).unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        };
        let default = OptimizerConfig::default;
        for lr in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            refused(OptimizerConfig { lr, ..default() }, "optimizer.lr");
        }
        refused(OptimizerConfig { momentum: 1.0, ..default() }, "optimizer.momentum");
        refused(OptimizerConfig { weight_decay: -0.1, ..default() }, "optimizer.weight_decay");
        refused(OptimizerConfig { betas: [0.9, 1.0], ..default() }, "optimizer.betas");
        refused(OptimizerConfig { eps: 0.0, ..default() }, "optimizer.eps");
        refused(OptimizerConfig { momentum: 0.0, nesterov: true, ..default() }, "optimizer.nesterov");
        refused(OptimizerConfig { groups: vec![group("[")], ..default() }, "optimizer.groups[0].match");
        let empty = ParameterGroup { patterns: vec![], ..group("") };
        refused(
            OptimizerConfig { groups: vec![group("a"), empty], ..default() },
            "optimizer.groups[1].match: the list",
        );
        let frozen = ParameterGroup { frozen: true, ..group("a") };
        refused(OptimizerConfig { groups: vec![frozen], ..default() }, "optimizer.groups[0].frozen: true beside");
        let nothing = || ParameterGroup { weight_decay: None, ..group("a") };
        refused(OptimizerConfig { groups: vec![nothing()], ..default() }, "optimizer.groups[0]: it sets nothing");
        OptimizerConfig { groups: vec![nothing(), group("b")], ..default() }.validate(2).unwrap();
        let plain = StageOverride { stage: 1, ..Default::default() };
        refused(OptimizerConfig { stages: vec![plain], ..default() }, "optimizer.stages[0]: stage 1 has no constant");
        let own = |stage, momentum| StageOverride { stage, momentum: Some(momentum), ..Default::default() };
        let twice = vec![own(1, 0.5), own(0, 0.5), own(1, 0.8)];
        refused(OptimizerConfig { stages: twice, ..default() }, "optimizer.stages[2].stage: stage 1 is named twice");
        let plain = OptimizerConfig { nesterov: true, stages: vec![own(1, 0.0)], ..default() };
        refused(plain, "optimizer.stages[0].momentum: 0 beside nesterov");
        let adamw = OptimizerConfig { kind: OptimizerKind::Adamw, stages: vec![own(1, 0.5)], ..default() };
        refused(adamw, "optimizer.stages[0].momentum: AdamW has no momentum");
    }
}
