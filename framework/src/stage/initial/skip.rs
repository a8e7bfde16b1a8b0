//! Names that start from the seed although there are values for them.

use glob::Pattern;

use crate::{Error, Result, names::nearest};

/// Patterns of names.
pub(super) struct Skip(Vec<Pattern>);

impl Skip {
    /// Reads patterns with `*`, `?` and `[…]`.
    ///
    /// # Errors
    /// If one is no pattern.
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        let parse = |pattern: &String| {
            Pattern::new(pattern).map_err(|e| {
                let problem = format!("skip_initial_values: {pattern:?}: {} at character {}", e.msg, e.pos);
                Error::invalid("initial values", problem, "use names with *, ? and [...]")
            })
        };
        Ok(Self(patterns.iter().map(parse).collect::<Result<_>>()?))
    }

    /// Returns whether a pattern matches this name.
    pub(super) fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// Checks that each pattern matches one of these names.
    ///
    /// # Errors
    /// If one does not; the message has the names that are most like it.
    pub(super) fn check(&self, names: &[&str]) -> Result<()> {
        match self.0.iter().find(|pattern| !names.iter().any(|name| pattern.matches(name))) {
            Some(pattern) => {
                let like = nearest(pattern.as_str(), names.iter().copied(), 3).join(", ");
                let problem = format!("skip_initial_values: no name matches {:?}", pattern.as_str());
                Err(Error::invalid("initial values", problem, format!("the names most like it are {like}")))
            }
            None => Ok(()),
        }
    }
}
