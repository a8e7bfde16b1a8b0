//! Strategies as configuration files give them.

use serde::{Deserialize, Serialize};

use super::{
    Adaptive, FollowConfig, GROUP, GroupSize, Interlock, Strategy, WidthSchedule, WindowSettings,
    width_schedule::WidthPhase,
};
use crate::{Error, Result};

/// The strategies that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StrategyName {
    /// Width 1.
    Local,
    /// Width 2.
    Pairwise,
    /// Width 2 in blocks of two stages, each of which follows the mean of its own loss and the next block's.
    Groups,
    /// A width for all stages, or one for each stage.
    Interlock,
    /// The number of stages as width.
    EndToEnd,
    /// Each stage is widened when its gradient disagrees with that of the next loss.
    Adaptive,
}

/// A strategy by name, as configuration files give it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct StrategyConfig {
    /// The strategy. Default: `interlock` if a width or weights are given, `adaptive` if its table is, `groups` if no key of the strategy is given,
    /// otherwise `pairwise`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<StrategyName>,
    /// The interlock width of every stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub width: Option<usize>,
    /// The interlock width of each stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(inner(range(min = 1))))]
    pub widths: Option<Vec<usize>>,
    /// The losses of its window that a stage follows: the last one (`"last"`), the mean of all (`"mean"`), or weights by distance, which set the
    /// width. Default: `"last"`; for the name `groups`, `"mean"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow: Option<FollowConfig>,
    /// Weights by distance for each stage, which set its width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follows: Option<Vec<Vec<f64>>>,
    /// The number of stages in a block. The last stage of a block carries its head, and widths and weights count blocks. Default: 1; for
    /// the name `groups`, 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub group: Option<usize>,
    /// The steps divisible by this are end-to-end, whatever the name, width or weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub end_to_end_every: Option<u64>,
    /// Widths that change with the steps, instead of name and width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width_schedule: Option<Vec<WidthPhaseConfig>>,
    /// The rule of the strategy `adaptive`: when stages measure, and when one is widened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
}

/// One entry of `strategy.width_schedule`: the widths from a step on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WidthPhaseConfig {
    /// The first step; 0 in the first entry.
    pub from_step: u64,
    /// The interlock width of every stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub width: Option<usize>,
    /// The interlock width of each stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(inner(range(min = 1))))]
    pub widths: Option<Vec<usize>>,
    /// The losses that a stage follows, as `strategy.follow`. Default: that of the strategy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<FollowConfig>,
    /// The steps divisible by this are end-to-end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub end_to_end_every: Option<u64>,
}

impl StrategyConfig {
    /// Returns the strategy's name, or the one that the other keys imply.
    pub fn name(&self) -> StrategyName {
        use StrategyName as Name;
        match self.name {
            Some(name) => name,
            None if self.width.is_some() || self.widths.is_some() || self.width_schedule.is_some() => Name::Interlock,
            None if self.follows.is_some() || matches!(self.follow, Some(FollowConfig::Weights(_))) => Name::Interlock,
            None if self.adaptive.is_some() => Name::Adaptive,
            None if *self == Self::default() => Name::Groups,
            None => Name::Pairwise,
        }
    }

    /// Returns whether stages follow the mean of their window.
    pub fn follows_mean(&self) -> bool {
        match &self.follow {
            Some(follow) => *follow == FollowConfig::Mean,
            None => self.name() == StrategyName::Groups,
        }
    }

    /// Returns the number of stages in a block.
    pub fn group(&self) -> usize {
        match (self.group, self.name()) {
            (Some(group), _) => group,
            (None, StrategyName::Groups) => GROUP,
            (None, _) => 1,
        }
    }

    /// Returns its label: the name, or the width, or the widths of the stages (the least and the greatest if there are more than 8), then what is
    /// followed and the group if they are not the default. Examples: `pairwise`, `interlock-3-mean`, `interlock-3-1-2-1`, `interlock-1-to-4`,
    /// `local-group-2`, `weights-0.7-0.3`, `width-schedule`.
    pub fn label(&self) -> String {
        use StrategyName as Name;
        let base = match (self.name(), self.width, &self.widths) {
            _ if self.width_schedule.is_some() => "width-schedule".to_owned(),
            _ if self.follows.is_some() => "weights".to_owned(),
            (Name::Interlock, Some(width), _) => format!("interlock-{width}"),
            (Name::Interlock, None, Some(widths)) => format!("interlock-{}", widths_label(widths)),
            (Name::Interlock, None, None) => "interlock".to_owned(),
            (Name::Adaptive, ..) => "adaptive".to_owned(),
            (Name::Local, ..) => "local".to_owned(),
            (Name::EndToEnd, ..) => "end-to-end".to_owned(),
            (Name::Pairwise, ..) => "pairwise".to_owned(),
            (Name::Groups, ..) => "groups".to_owned(),
        };
        let followed = match &self.follow {
            Some(FollowConfig::Weights(weights)) => {
                weights.iter().fold("weights".to_owned(), |label, weight| format!("{label}-{weight}"))
            }
            Some(FollowConfig::Mean) if self.name() != Name::Groups => base + "-mean",
            Some(FollowConfig::Last) if self.name() == Name::Groups => base + "-last",
            Some(FollowConfig::Mean | FollowConfig::Last) | None => base,
        };
        match self.group {
            Some(group) if group != 1 => format!("{followed}-group-{group}"),
            _ => followed,
        }
    }

    /// Builds the strategy. A width implies the name `interlock`, the table `adaptive` the name `adaptive`.
    ///
    /// # Errors
    /// If the keys contradict each other.
    pub fn build(&self) -> Result<Box<dyn Strategy>> {
        check_every("strategy", self.end_to_end_every)?;
        self.check_lists()?;
        let group = if self.group.is_some() { GroupSize::Of } else { GroupSize::UpTo };
        let settings = WindowSettings { mean: self.follows_mean(), group: group(self.group()) };
        if let Some(phases) = &self.width_schedule {
            if self.name.is_some() || self.width.is_some() || self.widths.is_some() || self.adaptive.is_some() {
                return refuse("a width_schedule beside a name, a width or adaptive", "give one of them");
            }
            if self.end_to_end_every.is_some() {
                return refuse("end_to_end_every beside a width_schedule", "give it in the schedule's entries");
            }
            let phases = phases.iter().map(|phase| phase.build(settings)).collect::<Result<_>>()?;
            return Ok(Box::new(WidthSchedule { phases }));
        }
        let interlock = match (&self.follow, &self.follows) {
            (Some(FollowConfig::Weights(weights)), _) => Interlock::weights(weights.clone()),
            (_, Some(weights)) => Interlock::weights_of_stages(weights.clone()),
            _ if self.adaptive.is_some() || self.name() == StrategyName::Adaptive => {
                return self.build_adaptive(settings);
            }
            _ => self.windows()?,
        };
        let interlock = Interlock { settings, ..interlock };
        Ok(match self.end_to_end_every {
            Some(steps) => Box::new(WidthSchedule::new(interlock).end_to_end_every(steps)),
            None => Box::new(interlock),
        })
    }

    /// Returns the interlocking strategy of the name, width or widths.
    fn windows(&self) -> Result<Interlock> {
        use StrategyName as Name;
        Ok(match (self.name(), self.width, &self.widths) {
            (_, Some(_), Some(_)) => return refuse("both width and widths are given", "give one of them"),
            (Name::Interlock, Some(width), None) => Interlock::width(width),
            (Name::Interlock, None, Some(widths)) => Interlock::widths(widths.clone()),
            (Name::Interlock, None, None) => {
                return refuse("interlock without a width", "give strategy.width");
            }
            (Name::Local, None, None) => Interlock::width(1),
            (Name::Pairwise | Name::Groups, None, None) => Interlock::width_up_to(2),
            (Name::EndToEnd, None, None) => Interlock::width_up_to(usize::MAX),
            (name, width, _) => {
                let key = if width.is_some() { "width" } else { "widths" };
                let name = serde_json::to_string(&name).unwrap_or_default();
                return refuse(
                    &format!("{key} is given beside name = {name}"),
                    &format!("leave the name or {key} out"),
                );
            }
        })
    }

    fn build_adaptive(&self, settings: WindowSettings) -> Result<Box<dyn Strategy>> {
        let has_width = self.width.is_some() || self.widths.is_some();
        match (self.name, &self.adaptive) {
            (None | Some(StrategyName::Adaptive), Some(adaptive)) if !has_width => match self.end_to_end_every {
                None => Ok(Box::new(adaptive.clone().in_windows(settings))),
                Some(_) => refuse("end_to_end_every beside adaptive", "leave one of them out"),
            },
            (Some(StrategyName::Adaptive), _) if has_width => {
                refuse("width is set beside adaptive", "give the first width in strategy.adaptive.width")
            }
            (_, None) => refuse("adaptive without its table", "give every, window and below in strategy.adaptive"),
            (_, Some(_)) => refuse("the table adaptive beside another name or a width", "leave one of them out"),
        }
    }

    /// Refuses lists of weights beside keys that they replace.
    fn check_lists(&self) -> Result<()> {
        let list = match (&self.follow, &self.follows) {
            (Some(_), Some(_)) => return refuse("both follow and follows are given", "give one of them"),
            (Some(FollowConfig::Weights(_)), None) => "follow",
            (None, Some(_)) => "follows",
            (Some(FollowConfig::Last | FollowConfig::Mean) | None, None) => return Ok(()),
        };
        let others = [
            ("name", self.name.is_some_and(|name| name != StrategyName::Interlock)),
            ("width", self.width.is_some()),
            ("widths", self.widths.is_some()),
            ("width_schedule", self.width_schedule.is_some()),
            ("adaptive", self.adaptive.is_some()),
        ];
        match others.iter().find(|(_, given)| *given) {
            Some((other, _)) => refuse(
                &format!("{other} is given beside a list of weights in {list}"),
                &format!("the list sets the width: leave {other} out"),
            ),
            None => Ok(()),
        }
    }
}

impl WidthPhaseConfig {
    fn build(&self, settings: WindowSettings) -> Result<WidthPhase> {
        let refuse = |problem: &str, remedy: &str| {
            let problem = format!("{problem} from step {} on", self.from_step);
            Err(Error::invalid("strategy.width_schedule", problem, remedy))
        };
        check_every("strategy.width_schedule", self.end_to_end_every)?;
        let interlock = match (self.width, &self.widths, &self.follow) {
            (None, None, Some(FollowConfig::Weights(weights))) => Interlock::weights(weights.clone()),
            (.., Some(FollowConfig::Weights(_))) => {
                return refuse("a width beside a list of weights", "the list sets the width: leave the other out");
            }
            (Some(width), None, _) => Interlock::width(width),
            (None, Some(widths), _) => Interlock::widths(widths.clone()),
            (Some(_), Some(_), _) => return refuse("both width and widths", "give one of them"),
            (None, None, _) => return refuse("no width", "give width, widths, or a list of weights in follow"),
        };
        let mean = self.follow.as_ref().map_or(settings.mean, |follow| *follow == FollowConfig::Mean);
        let strategy = Box::new(Interlock { settings: WindowSettings { mean, ..settings }, ..interlock });
        Ok(WidthPhase { from_step: self.from_step, strategy, end_to_end_every: self.end_to_end_every })
    }
}

/// Joins the widths; of many, only the least and the greatest.
fn widths_label(widths: &[usize]) -> String {
    match (widths.iter().min(), widths.iter().max()) {
        (Some(least), Some(greatest)) if widths.len() > 8 => format!("{least}-to-{greatest}"),
        _ => widths.iter().map(usize::to_string).collect::<Vec<_>>().join("-"),
    }
}

fn refuse<T>(problem: &str, remedy: &str) -> Result<T> {
    Err(Error::invalid("strategy", problem, remedy))
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
        refused(
            r#"{"name": "local", "width": 1}"#,
            "width is given beside name = \"local\"; leave the name or width out",
        );
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
    fn what_is_followed_and_groups_go_with_every_name_and_width() {
        let follows = |json: &str, stages: usize, step: u64| -> Vec<Vec<(usize, f64)>> {
            let plans = config(json).build().unwrap().plans(stages).unwrap();
            (0..stages).map(|k| plans.at(step).follows(k).to_vec()).collect()
        };
        let same = |json: &str, expected: Interlock| {
            let plan = expected.plan(4).unwrap();
            let expected: Vec<_> = (0..4).map(|k| plan.follows(k).to_vec()).collect();
            assert_eq!(follows(json, 4, 1), expected, "{json}");
        };
        same(r#"{"name": "local", "follow": "mean"}"#, Interlock::width(1));
        same(r#"{"follow": "mean"}"#, Interlock::width(2).mean());
        same(r#"{"follow": "last"}"#, Interlock::width(2));
        same("{}", Interlock::width(2).group(2).mean());
        same(r#"{"name": "groups"}"#, Interlock::width(2).group(2).mean());
        same(r#"{"name": "groups", "group": 1}"#, Interlock::width(2).mean());
        same(r#"{"name": "groups", "follow": "last", "group": 3}"#, Interlock::width(2).group(3));
        assert_eq!(follows("{}", 1, 0), [[(0, 1.0)]]);
        same(r#"{"name": "end_to_end", "follow": "mean"}"#, Interlock::width(4).mean());
        same(r#"{"width": 3, "follow": "mean"}"#, Interlock::width(3).mean());
        same(r#"{"widths": [1, 3, 2, 1], "follow": "mean"}"#, Interlock::widths([1, 3, 2, 1]).mean());
        same(r#"{"follow": [0.7, 0.3]}"#, Interlock::weights([0.7, 0.3]));
        same(r#"{"follow": [0, 1]}"#, Interlock::width(2));
        same(r#"{"name": "interlock", "follow": [0.7, 0.3]}"#, Interlock::weights([0.7, 0.3]));
        same(r#"{"name": "local", "group": 2}"#, Interlock::width(1).group(2));
        same(r#"{"group": 2, "follow": "mean"}"#, Interlock::width(2).group(2).mean());
        same(r#"{"group": 4}"#, Interlock::width(4));
        same(
            r#"{"follows": [[0.2, 0, 0.8], [1], [0, 1], [1]]}"#,
            Interlock::weights_of_stages([vec![0.2, 0.0, 0.8], vec![1.0], vec![0.0, 1.0], vec![1.0]]),
        );
        // End-to-end steps follow the last loss alone.
        let mixed = r#"{"width": 2, "follow": "mean", "group": 2, "end_to_end_every": 2}"#;
        assert_eq!(follows(mixed, 4, 1)[0], [(1, 0.5), (3, 0.5)]);
        assert_eq!(follows(mixed, 4, 2), vec![vec![(3, 1.0)]; 4]);
        let phases = r#"{"follow": "mean", "width_schedule": [{"from_step": 0, "width": 2},
            {"from_step": 5, "width": 2, "follow": "last"}, {"from_step": 9, "follow": [0.25, 0.75]}]}"#;
        assert_eq!(
            [0, 5, 9].map(|step| follows(phases, 3, step)[0].clone()),
            [vec![(0, 0.5), (1, 0.5)], vec![(1, 1.0)], vec![(0, 0.25), (1, 0.75)]]
        );
        let adaptive = r#"{"follow": "mean", "group": 2, "adaptive": {"every": 2, "window": 1, "below": 0.0}}"#;
        let strategy = config(adaptive).build().unwrap();
        let plans = strategy.plans(4).unwrap();
        assert_eq!([0, 1, 2, 3].map(|k| plans.at(0).measures(k)), [Some(3), Some(3), None, None]);
        let mut adapt = strategy.adapt(4).unwrap().unwrap();
        assert_eq!([0, 1, 2, 3].map(|k| adapt.may_need(k)), [false, true, false, true]);
        let change = adapt.observe(0, &[Some(-1.0), Some(1.0), None, None]).unwrap().unwrap();
        assert_eq!((change.plan.follows(0), change.plan.follows(1)), (&[(1, 0.5), (3, 0.5)][..], &[(1, 1.0)][..]));

        let label = |json: &str| config(json).label();
        assert_eq!(label(r#"{"width": 3, "follow": "mean"}"#), "interlock-3-mean");
        assert_eq!(label(r#"{"name": "local", "group": 2}"#), "local-group-2");
        assert_eq!(
            (label("{}"), label(r#"{"name": "groups", "follow": "last"}"#)),
            ("groups".into(), "groups-last".into())
        );
        assert_eq!(label(r#"{"group": 2}"#), "pairwise-group-2");
        assert_eq!(label(r#"{"widths": [3, 1, 2, 1]}"#), "interlock-3-1-2-1");
        assert_eq!(label(r#"{"name": "interlock", "widths": [1, 4, 2, 1, 1, 1, 1, 1, 1]}"#), "interlock-1-to-4");
        assert_eq!(label(r#"{"follow": [0.7, 0.3], "group": 2}"#), "weights-0.7-0.3-group-2");
    }

    #[test]
    fn a_list_of_weights_sets_the_width() {
        let refused = |json: &str| {
            let strategy = config(json);
            let error = strategy.build().and_then(|strategy| strategy.plan(3)).unwrap_err();
            assert!(error.is_refusal());
            error.to_string()
        };
        for list in [r#""follow": [1]"#, r#""follows": [[1], [1], [1]]"#] {
            for (other, key) in [
                (r#""name": "local""#, "name"),
                (r#""width": 1"#, "width"),
                (r#""widths": [1, 1, 1]"#, "widths"),
                (r#""width_schedule": [{"from_step": 0, "width": 1}]"#, "width_schedule"),
                (r#""adaptive": {"every": 1, "window": 1, "below": 0.0}"#, "adaptive"),
            ] {
                let error = refused(&format!("{{{list}, {other}}}"));
                assert!(error.starts_with(&format!("strategy: {key} is given beside a list of weights in")), "{error}");
            }
        }
        assert!(refused(r#"{"follow": "mean", "follows": [[1]]}"#).contains("both follow and follows"));
        assert!(refused(r#"{"follows": [[1]]}"#).starts_with("strategy.follows: 1 lists of weights for 3 stages"));
        assert!(refused(r#"{"follow": []}"#).starts_with("strategy.follow: 0 weights for stage 0"));
        assert!(refused(r#"{"follow": [0.5, -0.5]}"#).contains("weight -0.5 at distance 1"));
        assert!(refused(r#"{"group": 0}"#).starts_with("strategy.group: blocks of 0 stages"));
        let beside = r#"{"width_schedule": [{"from_step": 0, "width": 1, "follow": [1]}]}"#;
        assert!(refused(beside).contains("a width beside a list of weights from step 0 on"));
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
