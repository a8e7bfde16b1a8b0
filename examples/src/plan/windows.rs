//! The windows to plan for.

use clap::ValueEnum;
use interlock::{
    Error, Result,
    tools::strategy::{FollowConfig, StrategyConfig, StrategyName},
};
use serde::Serialize;

use crate::arguments::Width;

/// The losses of its window that a stage follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Follow {
    /// The last loss of the window
    Last,
    /// The mean of all losses in the window
    Mean,
}

/// Width, group and followed losses, as the command line gives them; none is the configuration's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Windows {
    pub(crate) width: Option<Width>,
    pub(crate) group: Option<usize>,
    pub(crate) follow: Option<Follow>,
}

impl Windows {
    /// What the configuration says.
    pub(super) const CONFIGURED: Self = Self { width: None, group: None, follow: None };
    /// End-to-end, whatever the configuration says.
    pub(super) const END_TO_END: Self =
        Self { width: Some(Width::EndToEnd), group: Some(1), follow: Some(Follow::Last) };

    /// Returns the strategy, given that of the configuration.
    ///
    /// # Errors
    /// If what is followed is given without a width where the configuration gives weights.
    pub(crate) fn strategy(self, configured: &StrategyConfig) -> Result<StrategyConfig> {
        let has_list = configured.follows.is_some() || matches!(configured.follow, Some(FollowConfig::Weights(_)));
        let phases = configured.width_schedule.iter().flatten();
        if self.width.is_none() && self.follow.is_some() && phases.into_iter().any(|phase| phase.follow.is_some()) {
            let problem = "entries of the configuration's width_schedule say what stages follow";
            return Err(Error::invalid("--follow", problem, "give --widths too, or leave follow out of the entries"));
        }
        if has_list && self.width.is_none() && self.follow.is_some() {
            let problem = "the configuration gives weights, which set the widths";
            return Err(Error::invalid("--follow", problem, "give --widths too"));
        }
        let followed = configured.follow.clone().filter(|_| !has_list);
        let of_width = StrategyConfig { follow: followed, group: configured.group, ..StrategyConfig::default() };
        let base = match self.width {
            Some(Width::Number(width)) => StrategyConfig { width: Some(width), ..of_width },
            Some(Width::EndToEnd) => StrategyConfig { name: Some(StrategyName::EndToEnd), ..of_width },
            None => configured.clone(),
        };
        let follow = self.follow.map(|follow| match follow {
            Follow::Last => FollowConfig::Last,
            Follow::Mean => FollowConfig::Mean,
        });
        Ok(StrategyConfig { group: self.group.or(base.group), follow: follow.or(base.follow), ..base })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_configuration() {
        let configured: StrategyConfig =
            serde_json::from_str(r#"{"name": "local", "group": 2, "follow": "mean"}"#).unwrap();
        let strategy = |windows: Windows| serde_json::to_value(windows.strategy(&configured).unwrap()).unwrap();
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(strategy(Windows::CONFIGURED), serde_json::to_value(&configured).unwrap());
        let wide = Windows { width: Some(Width::Number(3)), ..Windows::CONFIGURED };
        assert_eq!(strategy(wide), json(r#"{"width": 3, "group": 2, "follow": "mean"}"#));
        let other = Windows { group: Some(4), follow: Some(Follow::Last), ..Windows::CONFIGURED };
        assert_eq!(strategy(other), json(r#"{"name": "local", "group": 4, "follow": "last"}"#));
        assert_eq!(strategy(Windows::END_TO_END), json(r#"{"name": "end_to_end", "group": 1, "follow": "last"}"#));
        let list: StrategyConfig = serde_json::from_str(r#"{"follow": [1, 0]}"#).unwrap();
        assert!(wide.strategy(&list).unwrap().follow.is_none());
        let phases = r#"{"width_schedule": [{"from_step": 0, "width": 2, "follow": "mean"}]}"#;
        let error = other.strategy(&serde_json::from_str(phases).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("--follow: entries of the configuration's width_schedule"), "{error}");
        assert!(
            other.strategy(&list).unwrap_err().to_string().starts_with("--follow: the configuration gives weights")
        );
    }
}
