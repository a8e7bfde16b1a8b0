//! Interlock widths, and what goes with them, on the command line.

use clap::Args;
use interlock::{Result, Strategy, tools::strategy::StrategyConfig};

use crate::plan::{Follow, Windows};

/// An interlock width on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Width {
    /// A number.
    Number(usize),
    /// As wide as there are stages.
    EndToEnd,
}

impl Width {
    /// Returns the width as a number, for this many stages.
    pub(crate) fn of(self, stages: usize) -> usize {
        match self {
            Self::Number(width) => width,
            Self::EndToEnd => stages,
        }
    }
}

/// Groups and what stages follow, beside a width.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct WindowOptions {
    /// Number of stages in a block; the width counts blocks
    #[arg(long, default_value_t = 1, value_name = "G")]
    pub(crate) group: usize,
    /// Losses of its window that a stage follows
    #[arg(long, value_enum, default_value_t = Follow::Last)]
    pub(crate) follow: Follow,
}

impl WindowOptions {
    /// Returns the strategy of this width.
    pub(crate) fn strategy(self, width: Width) -> Result<Box<dyn Strategy>> {
        let windows = Windows { width: Some(width), group: Some(self.group), follow: Some(self.follow) };
        windows.strategy(&StrategyConfig::default())?.build()
    }

    /// Returns what to print after a width: nothing for the defaults.
    pub(crate) fn label(self) -> String {
        let follow = if self.follow == Follow::Mean { ", mean" } else { "" };
        let group = if self.group == 1 { String::new() } else { format!(", groups of {}", self.group) };
        format!("{follow}{group}")
    }
}

impl std::str::FromStr for Width {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "e2e" => Ok(Self::EndToEnd),
            number => {
                number.parse().map(Self::Number).map_err(|_| format!("{number:?} is not a width; use 1, 2, … or e2e"))
            }
        }
    }
}

impl std::fmt::Display for Width {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::EndToEnd => f.write_str("e2e"),
        }
    }
}
