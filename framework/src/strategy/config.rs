//! Strategies as configuration files give them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Adaptive, EndToEnd, Interlock, Local, Pairwise, Strategy, WidthSchedule, width_schedule::WidthPhase};
use crate::{Error, Result};

/// The strategies that have names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StrategyName {
    /// Width 1.
    Local,
    /// Width 2.
    #[default]
    Pairwise,
    /// A width for all stages, or one for each stage.
    Interlock,
    /// The number of stages as width.
    EndToEnd,
    /// Each stage is widened when its gradient disagrees with that of the next loss.
    Adaptive,
}

/// A strategy by name, as configuration files give it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StrategyConfig {
    /// The strategy. Default: `interlock` if a width is given, `adaptive` if its table is, otherwise `pairwise`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<StrategyName>,
    /// The interlock width of every stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// The interlock width of each stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub widths: Option<Vec<usize>>,
    /// The steps divisible by this are end-to-end, whatever the name or width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_to_end_every: Option<u64>,
    /// Widths that change with the steps, instead of name and width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width_schedule: Option<Vec<WidthPhaseConfig>>,
    /// The keys of `adaptive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
}

/// One entry of `strategy.width_schedule`: the widths from a step on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WidthPhaseConfig {
    /// The first step; 0 in the first entry.
    pub from_step: u64,
    /// The interlock width of every stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// The interlock width of each stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub widths: Option<Vec<usize>>,
    /// The steps divisible by this are end-to-end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_to_end_every: Option<u64>,
}

impl StrategyConfig {
    /// Returns its label, with the width if all stages have the same: `pairwise`, `interlock-3`, `width-schedule`, …
    pub fn label(&self) -> String {
        use StrategyName as Name;
        if self.width_schedule.is_some() {
            return "width-schedule".to_owned();
        }
        match (self.name, self.width) {
            (None | Some(Name::Interlock), Some(width)) => format!("interlock-{width}"),
            (Some(Name::Interlock), None) => "interlock".to_owned(),
            (None, None) if self.widths.is_some() => "interlock".to_owned(),
            (None, None) if self.adaptive.is_some() => "adaptive".to_owned(),
            (Some(Name::Adaptive), _) => "adaptive".to_owned(),
            (Some(Name::Local), _) => "local".to_owned(),
            (Some(Name::EndToEnd), _) => "end-to-end".to_owned(),
            (Some(Name::Pairwise), _) | (None, None) => "pairwise".to_owned(),
        }
    }

    /// Builds the strategy. A width implies the name `interlock`, the table `adaptive` the name `adaptive`.
    ///
    /// # Errors
    /// If the keys contradict each other.
    pub fn build(&self) -> Result<Box<dyn Strategy>> {
        use StrategyName as Name;
        let refuse = |problem: &str, remedy: &str| Err(Error::invalid("strategy", problem, remedy));
        check_every("strategy", self.end_to_end_every)?;
        if let Some(phases) = &self.width_schedule {
            if self.name.is_some() || self.width.is_some() || self.widths.is_some() || self.adaptive.is_some() {
                return refuse("a width_schedule beside a name, a width or adaptive", "give one of them");
            }
            if self.end_to_end_every.is_some() {
                return refuse("end_to_end_every beside a width_schedule", "give it in the schedule's entries");
            }
            let phases = phases.iter().map(WidthPhaseConfig::phase).collect::<Result<_>>()?;
            return Ok(Box::new(WidthSchedule { phases }));
        }
        let plain: Box<dyn Strategy> = match (self.name, self.width, &self.widths, &self.adaptive) {
            (None | Some(Name::Adaptive), None, None, Some(adaptive)) if self.end_to_end_every.is_none() => {
                return Ok(Box::new(adaptive.clone()));
            }
            (None | Some(Name::Adaptive), None, None, Some(_)) => {
                return refuse("end_to_end_every beside adaptive", "leave one of them out");
            }
            (Some(Name::Adaptive), None, None, None) => {
                return refuse("adaptive without its table", "give every, window and below in strategy.adaptive");
            }
            (Some(Name::Adaptive), ..) => {
                return refuse("width is set beside adaptive", "give the first width in strategy.adaptive.width");
            }
            (.., Some(_)) => {
                return refuse("the table adaptive beside another name or a width", "leave one of them out");
            }
            (_, Some(_), Some(_), None) => return refuse("both width and widths are given", "give one of them"),
            (None | Some(Name::Interlock), Some(width), None, None) => Box::new(Interlock::width(width)),
            (None | Some(Name::Interlock), None, Some(widths), None) => Box::new(Interlock::widths(widths.clone())),
            (Some(Name::Interlock), None, None, None) => {
                return refuse("interlock without a width", "give strategy.width");
            }
            (Some(Name::Local), None, None, None) => Box::new(Local),
            (None | Some(Name::Pairwise), None, None, None) => Box::new(Pairwise),
            (Some(Name::EndToEnd), None, None, None) => Box::new(EndToEnd),
            (Some(_), .., None) => {
                return refuse("width is set, but the name is not interlock", "leave the name or the width out");
            }
        };
        Ok(match self.end_to_end_every {
            Some(steps) => Box::new(WidthSchedule::new(plain).end_to_end_every(steps)),
            None => plain,
        })
    }
}

impl WidthPhaseConfig {
    fn phase(&self) -> Result<WidthPhase> {
        let refuse = |problem: &str, remedy: &str| {
            let problem = format!("{problem} from step {} on", self.from_step);
            Err(Error::invalid("strategy.width_schedule", problem, remedy))
        };
        check_every("strategy.width_schedule", self.end_to_end_every)?;
        let strategy = match (self.width, &self.widths) {
            (Some(width), None) => Interlock::width(width),
            (None, Some(widths)) => Interlock::widths(widths.clone()),
            (Some(_), Some(_)) => return refuse("both width and widths", "give one of them"),
            (None, None) => return refuse("no width", "give width, or widths"),
        };
        let (from_step, end_to_end_every) = (self.from_step, self.end_to_end_every);
        Ok(WidthPhase { from_step, strategy: Box::new(strategy), end_to_end_every })
    }
}

fn check_every(table: &str, end_to_end_every: Option<u64>) -> Result<()> {
    match end_to_end_every {
        Some(0) => Err(Error::invalid(format!("{table}.end_to_end_every"), "0", "use 1 or more")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> StrategyConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_width_implies_interlock_and_contradictions_are_refused() {
        let plan = config(r#"{"width": 3}"#).build().unwrap().plan(4).unwrap();
        assert_eq!(plan, Interlock::width(3).plan(4).unwrap());
        let refused = |json: &str, word: &str| {
            let error = config(json).build().unwrap_err();
            assert!(error.is_refusal() && error.to_string().contains(word), "{error}");
        };
        refused(r#"{"name": "local", "width": 1}"#, "beside a name");
        refused(r#"{"width": 1, "widths": [1]}"#, "both width and widths");
        refused(r#"{"name": "interlock"}"#, "without a width");
        assert!(config(r#"{"widths": [1, 2]}"#).build().unwrap().plan(3).is_err());

        let table = r#""adaptive": {"every": 1, "window": 1, "below": 0.0}"#;
        refused(r#"{"name": "adaptive"}"#, "without its table");
        refused(r#"{"name": "adaptive", "width": 2}"#, "strategy.adaptive.width");
        refused(&format!(r#"{{"name": "local", {table}}}"#), "beside another name");
        refused(&format!(r#"{{"width": 2, {table}}}"#), "or a width");
        refused(&format!(r#"{{"end_to_end_every": 2, {table}}}"#), "beside adaptive");
        refused(r#"{"end_to_end_every": 0}"#, "strategy.end_to_end_every: 0; use 1 or more");

        let phases = r#""width_schedule": [{"from_step": 0, "width": 1}]"#;
        for other in [r#""name": "local""#, r#""width": 1"#, r#""widths": [1]"#, table] {
            refused(&format!("{{{other}, {phases}}}"), "beside a name, a width or adaptive");
        }
        refused(&format!(r#"{{"end_to_end_every": 2, {phases}}}"#), "in the schedule's entries");
    }

    #[test]
    fn a_width_schedule_is_checked_entry_by_entry() {
        let plans = |entries: &str| config(&format!(r#"{{"width_schedule": [{entries}]}}"#)).build()?.plans(3);
        let found =
            plans(r#"{"from_step": 0, "width": 1}, {"from_step": 5, "widths": [2, 2, 1], "end_to_end_every": 5}"#);
        let found = found.unwrap();
        assert_eq!([0, 4, 5, 6, 10].map(|step| found.at(step).farthest(0)), [0, 0, 2, 1, 2]);
        let refused = |entries: &str, words: &str| {
            let error = plans(entries).unwrap_err();
            assert!(error.is_refusal() && error.to_string().contains(words), "{error}");
        };
        refused("", "no phase");
        refused(r#"{"from_step": 3, "width": 1}"#, "begins at step 3; its first phase must begin at step 0");
        refused(r#"{"from_step": 0, "width": 1}, {"from_step": 0, "width": 2}"#, "step 0 comes after step 0");
        refused(
            r#"{"from_step": 0, "width": 1}, {"from_step": 9, "width": 4}"#,
            "width 4 for stage 0 of 3 (from step 9 on)",
        );
        refused(r#"{"from_step": 0, "width": 0}"#, "width 0");
        refused(r#"{"from_step": 0, "widths": [1]}"#, "1 widths for 3 stages");
        refused(r#"{"from_step": 0, "width": 1, "widths": [1, 1, 1]}"#, "both width and widths from step 0 on");
        refused(r#"{"from_step": 0}"#, "no width from step 0 on");
        refused(r#"{"from_step": 0, "width": 1, "end_to_end_every": 0}"#, "end_to_end_every: 0; use 1 or more");
    }

    #[test]
    fn end_to_end_steps_come_between_those_of_any_name() {
        for name in ["local", "pairwise", "end_to_end"] {
            let plain = config(&format!(r#"{{"name": "{name}"}}"#)).build().unwrap().plan(4).unwrap();
            let mixed = config(&format!(r#"{{"name": "{name}", "end_to_end_every": 3}}"#)).build().unwrap();
            let plans = mixed.plans(4).unwrap();
            assert!(plans.at(3).is_end_to_end() && **plans.at(4) == plain, "{name}");
        }
        let plans = config(r#"{"width": 2, "end_to_end_every": 3}"#).build().unwrap().plans(4).unwrap();
        assert_eq!([2, 3].map(|step| plans.at(step).farthest(0)), [1, 3]);
    }
}
