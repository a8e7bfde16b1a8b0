//! The learning rate over time: a pure function of the settings and the step, computed in each stage.
//!
//! A [`LrRule`] is a configured schedule or a function of the step. Steps are optimizer steps, counted from 0.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A schedule as configuration files give it; steps are optimizer steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LrScheduleConfig {
    /// The base rate throughout.
    Constant {},
    /// Multiplied by `gamma` every `every` steps.
    Step {
        /// Steps between two changes.
        #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
        every: u64,
        /// The factor of each change.
        gamma: f64,
    },
    /// Multiplied by `gamma` at each milestone.
    MultiStep {
        /// The steps of the changes, ascending.
        milestones: Vec<u64>,
        /// The factor of each change.
        gamma: f64,
    },
    /// Rises linearly from `1/warmup_steps` of the base rate to the whole, then falls as half a cosine to `final_fraction` of it
    /// at the end of the run.
    Cosine {
        /// Steps of the rise.
        #[serde(default)]
        warmup_steps: u64,
        /// The fraction of the base rate at the end.
        #[serde(default)]
        final_fraction: f64,
        /// The step at which the fall ends; by default the end of the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total_steps: Option<u64>,
    },
    /// Multiplied by `factor` when the last stage's validation loss has not improved for more than `patience` evaluations. It needs a validation set.
    ReduceOnPlateau {
        /// The factor of each change.
        factor: f64,
        /// The evaluations without improvement that change nothing.
        patience: u64,
        /// The least relative improvement that counts as one.
        #[serde(default = "default_threshold")]
        threshold: f64,
        /// The least fraction of the base rate.
        #[serde(default)]
        min_fraction: f64,
    },
}

impl Default for LrScheduleConfig {
    fn default() -> Self {
        Self::Constant {}
    }
}

fn default_threshold() -> f64 {
    1e-4
}

fn refuse<T>(key: &str, value: String, remedy: &str) -> Result<T> {
    Err(Error::invalid(format!("lr_schedule.{key}"), value, remedy.to_owned()))
}

/// A function from the step to the factor by which the base rate is multiplied.
type LrFunction = dyn Fn(u64) -> f64 + Send + Sync;

/// The rule of a learning-rate schedule: configured, or a function of the step.
///
/// A function returns the factor by which the optimizer's base rate is multiplied in a step: a finite number, 0 or more. It must be pure: every
/// stage calls it, on its own thread, and a repeated run calls it again.
///
/// ```
/// use interlock::tools::optimizer::{LrRule, LrSchedule};
///
/// // Halved every 100 steps.
/// let schedule = LrSchedule::new(LrRule::function(|step| 0.5_f64.powi((step / 100) as i32)))?.for_base(0.2);
/// assert_eq!([0, 99, 100, 250].map(|step| schedule.lr(step).ok()), [0.2, 0.2, 0.1, 0.05].map(Some));
/// # Ok::<(), interlock::Error>(())
/// ```
#[derive(Clone)]
pub struct LrRule(Rule);

#[derive(Clone)]
enum Rule {
    Configured(LrScheduleConfig),
    Function(Arc<LrFunction>),
}

impl LrRule {
    /// A function from the step to the factor.
    pub fn function(factor: impl Fn(u64) -> f64 + Send + Sync + 'static) -> Self {
        Self(Rule::Function(Arc::new(factor)))
    }
}

impl fmt::Debug for LrRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rule::Configured(config) => config.fmt(f),
            Rule::Function(_) => f.write_str("a function of the step"),
        }
    }
}

impl From<LrScheduleConfig> for LrRule {
    fn from(config: LrScheduleConfig) -> Self {
        Self(Rule::Configured(config))
    }
}

impl<F: Fn(u64) -> f64 + Send + Sync + 'static> From<F> for LrRule {
    fn from(factor: F) -> Self {
        Self::function(factor)
    }
}

/// The learning rate of each step.
#[derive(Clone, Debug)]
pub struct LrSchedule {
    rule: LrRule,
    base: f64,
    total: u64,
    plateau: Plateau,
}

/// What a schedule remembers that reacts to validation losses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plateau {
    /// The best loss so far.
    best: Option<f64>,
    /// Evaluations in a row without improvement.
    bad: u64,
    /// What the base rate is multiplied by.
    factor: f64,
}

impl LrSchedule {
    /// The schedule for a base rate of 1.
    ///
    /// # Errors
    /// If a number is out of range; the message names its key.
    pub fn new(rule: impl Into<LrRule>) -> Result<Self> {
        let rule = rule.into();
        if let Rule::Configured(config) = &rule.0 {
            config.validate()?;
        }
        let plateau = Plateau { best: None, bad: 0, factor: 1.0 };
        Ok(Self { rule, base: 1.0, total: 1, plateau })
    }

    /// The same schedule for another base rate.
    #[must_use]
    pub fn for_base(&self, base: f64) -> Self {
        Self { base, ..self.clone() }
    }

    /// Sets the number of steps of the run.
    pub fn set_total(&mut self, steps: u64) {
        self.total = steps;
    }

    /// Returns whether it reacts to validation losses.
    pub(crate) fn reduces_on_plateau(&self) -> bool {
        matches!(self.rule.0, Rule::Configured(LrScheduleConfig::ReduceOnPlateau { .. }))
    }

    /// Returns the number of steps in which it rises at the start.
    pub(crate) fn warmup_steps(&self) -> u64 {
        match self.rule.0 {
            Rule::Configured(LrScheduleConfig::Cosine { warmup_steps, .. }) => warmup_steps,
            _ => 0,
        }
    }

    /// Notes the last stage's validation loss.
    pub fn observe(&mut self, loss: f64) {
        if let Rule::Configured(LrScheduleConfig::ReduceOnPlateau { factor, patience, threshold, min_fraction }) =
            self.rule.0
        {
            let plateau = &mut self.plateau;
            if plateau.best.is_none_or(|best| loss < best * (1.0 - threshold)) {
                (plateau.best, plateau.bad) = (Some(loss), 0);
            } else {
                plateau.bad += 1;
            }
            if plateau.bad > patience {
                plateau.bad = 0;
                plateau.factor = (plateau.factor * factor).max(min_fraction);
            }
        }
    }

    /// Returns what it remembers of validation losses.
    pub(crate) fn plateau(&self) -> Plateau {
        self.plateau
    }

    /// Continues from what [`Self::plateau`] returned.
    pub(crate) fn restore(&mut self, plateau: Plateau) {
        self.plateau = plateau;
    }

    /// Returns the learning rate of `step`.
    ///
    /// # Errors
    /// If a function of the step returned a number that is not finite, or below 0.
    pub fn lr(&self, step: u64) -> Result<f64> {
        let factor = match &self.rule.0 {
            Rule::Configured(config) => config.factor(step, self.total, &self.plateau),
            Rule::Function(factor) => factor(step),
        };
        if factor.is_finite() && factor >= 0.0 {
            return Ok(self.base * factor);
        }
        Err(Error::invalid(
            "lr_schedule",
            format!("its factor is {factor} in step {step}"),
            "return a finite number, 0 or more",
        ))
    }
}

impl LrScheduleConfig {
    fn validate(&self) -> Result<()> {
        let factor = |key: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                Ok(())
            } else {
                refuse(key, value.to_string(), "use a number above 0")
            }
        };
        let fraction = |key: &str, value: f64| {
            if (0.0..=1.0).contains(&value) {
                Ok(())
            } else {
                refuse(key, value.to_string(), "use a number from 0 to 1")
            }
        };
        match self {
            LrScheduleConfig::Constant {} => {}
            LrScheduleConfig::Step { every, gamma } => {
                if *every == 0 {
                    return refuse("every", "0".to_owned(), "use 1 or more steps");
                }
                factor("gamma", *gamma)?;
            }
            LrScheduleConfig::MultiStep { milestones, gamma } => {
                if !milestones.is_sorted() {
                    return refuse("milestones", format!("{milestones:?}"), "give them in ascending order");
                }
                factor("gamma", *gamma)?;
            }
            LrScheduleConfig::Cosine { final_fraction, total_steps, warmup_steps } => {
                fraction("final_fraction", *final_fraction)?;
                if let Some(total) = total_steps.filter(|total| total <= warmup_steps) {
                    return refuse("total_steps", total.to_string(), "use more steps than warmup_steps");
                }
            }
            LrScheduleConfig::ReduceOnPlateau { factor, threshold, min_fraction, .. } => {
                if !(*factor > 0.0 && *factor < 1.0) {
                    return refuse("factor", factor.to_string(), "use a number between 0 and 1");
                }
                fraction("threshold", *threshold)?;
                fraction("min_fraction", *min_fraction)?;
            }
        }
        Ok(())
    }

    fn factor(&self, step: u64, total: u64, plateau: &Plateau) -> f64 {
        match self {
            LrScheduleConfig::Constant {} => 1.0,
            LrScheduleConfig::Step { every, gamma } => gamma.powf((step / every) as f64),
            LrScheduleConfig::MultiStep { milestones, gamma } => {
                gamma.powf(milestones.iter().filter(|&&milestone| milestone <= step).count() as f64)
            }
            LrScheduleConfig::Cosine { warmup_steps, final_fraction, total_steps } => {
                if step < *warmup_steps {
                    return (step + 1) as f64 / *warmup_steps as f64;
                }
                let end = total_steps.unwrap_or(total).max(warmup_steps + 1);
                let done = ((step - warmup_steps) as f64 / (end - warmup_steps) as f64).min(1.0);
                final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
            LrScheduleConfig::ReduceOnPlateau { .. } => plateau.factor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(config: LrScheduleConfig, steps: &[u64]) -> Vec<f64> {
        let mut schedule = LrSchedule::new(config).unwrap().for_base(0.5);
        schedule.set_total(12);
        steps.iter().map(|&s| (schedule.lr(s).unwrap() * 1e9).round() / 1e9).collect()
    }

    #[test]
    fn by_hand() {
        assert_eq!(rates(LrScheduleConfig::Constant {}, &[0, 100]), [0.5, 0.5]);
        assert_eq!(rates(LrScheduleConfig::Step { every: 3, gamma: 0.1 }, &[0, 2, 3, 6]), [0.5, 0.5, 0.05, 0.005]);
        let milestones = LrScheduleConfig::MultiStep { milestones: vec![2, 5], gamma: 0.5 };
        assert_eq!(rates(milestones, &[1, 2, 4, 5, 9]), [0.5, 0.25, 0.25, 0.125, 0.125]);
        let cosine = LrScheduleConfig::Cosine { warmup_steps: 4, final_fraction: 0.0, total_steps: None };
        // Warm-up 1/4, 2/4, 3/4, 4/4; then half a cosine over the eight steps left.
        assert_eq!(rates(cosine, &[0, 1, 3, 4, 8, 12, 99]), [0.125, 0.25, 0.5, 0.5, 0.25, 0.0, 0.0]);
        let cosine = LrScheduleConfig::Cosine { warmup_steps: 0, final_fraction: 0.2, total_steps: Some(4) };
        assert_eq!(rates(cosine, &[0, 2, 4]), [0.5, 0.3, 0.1]);
    }

    #[test]
    fn a_plateau_is_more_than_patience_evaluations_without_improvement() {
        let config =
            LrScheduleConfig::ReduceOnPlateau { factor: 0.1, patience: 1, threshold: 0.01, min_fraction: 0.05 };
        let mut schedule = LrSchedule::new(config).unwrap();
        let mut after = |loss: f64| {
            schedule.observe(loss);
            schedule.lr(0).unwrap()
        };
        assert_eq!(after(1.0), 1.0);
        assert_eq!(after(0.995), 1.0); // improves by less than the threshold: the first bad one
        assert_eq!(after(1.0), 0.1); // the second
        assert_eq!(after(0.5), 0.1);
        assert_eq!(after(0.5), 0.1);
        assert_eq!(after(0.5), 0.05); // never below min_fraction
        // What another schedule takes over counts on, also after a trip through JSON.
        after(0.5);
        let text = serde_json::to_string(&schedule.plateau()).unwrap();
        let mut other = LrSchedule::new(LrScheduleConfig::ReduceOnPlateau {
            factor: 0.5,
            patience: 1,
            threshold: 0.01,
            min_fraction: 0.0,
        })
        .unwrap();
        other.restore(serde_json::from_str(&text).unwrap());
        assert_eq!(other.lr(0).unwrap(), 0.05);
        other.observe(0.5);
        assert_eq!(other.lr(0).unwrap(), 0.025);
    }

    #[test]
    fn refuses_what_cannot_be_and_names_the_key() {
        let refused = |config: LrScheduleConfig, key: &str| {
            let error = LrSchedule::new(config).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        };
        refused(LrScheduleConfig::Step { every: 0, gamma: 0.1 }, "lr_schedule.every");
        refused(LrScheduleConfig::Step { every: 1, gamma: 0.0 }, "lr_schedule.gamma");
        refused(LrScheduleConfig::MultiStep { milestones: vec![3, 1], gamma: 0.1 }, "lr_schedule.milestones");
        let cosine =
            |final_fraction, total_steps| LrScheduleConfig::Cosine { warmup_steps: 5, final_fraction, total_steps };
        refused(cosine(1.5, None), "lr_schedule.final_fraction");
        refused(cosine(0.0, Some(5)), "lr_schedule.total_steps");
    }
    #[test]
    fn a_function_of_the_step_multiplies_the_base_rate_and_is_checked() {
        let schedule =
            LrSchedule::new(|step: u64| [1.0, 0.5, 0.0, -1.0, f64::NAN][step as usize]).unwrap().for_base(0.2);
        assert_eq!([0, 1, 2].map(|step| schedule.lr(step).unwrap()), [0.2, 0.1, 0.0]);
        for (step, word) in [(3, "-1 in step 3"), (4, "NaN in step 4")] {
            let error = schedule.lr(step).unwrap_err().to_string();
            assert!(error.starts_with("lr_schedule: ") && error.contains(word), "{error}");
        }
    }
}
