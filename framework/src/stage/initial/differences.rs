//! How initial values differ from a model, as errors and warnings tell it.

use std::fmt::{self, Write};

use super::HEADS;
use crate::{Error, Result};

/// The most names of a kind that a message lists.
const LISTED: usize = 5;

/// A head as messages name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadName {
    pub(crate) stage: usize,
    /// The unit that it follows, if it is known.
    pub(crate) unit: Option<usize>,
}

impl fmt::Display for HeadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HEADS}.{}", self.stage)?;
        self.unit.map_or(Ok(()), |unit| write!(f, " after unit {unit}"))
    }
}

/// The differences between initial values and a model that are allowed. Heads that the model does not have always are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllowedDifferences {
    /// Main parameters and buffers of the model without a value, which start from the seed.
    pub(crate) missing: Missing,
    /// Values whose names are not in the model, which are not used.
    pub(crate) unknown: bool,
    /// Heads of the model without values of their shapes, which start from the seed.
    pub(crate) heads: bool,
}

/// How many of a model's main parameters and buffers may have no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    None,
    /// At most half.
    Half,
    All,
}

impl Default for AllowedDifferences {
    fn default() -> Self {
        Self { missing: Missing::None, unknown: false, heads: true }
    }
}

/// How initial values differ from a model. Every list is sorted.
#[derive(Debug, Default)]
pub(crate) struct ValueDifferences {
    /// What was done to weights of another program.
    pub(crate) notes: Vec<String>,
    /// Names of main parameters and buffers with a value of their shape.
    pub(crate) matched: Vec<String>,
    /// Names of main parameters and buffers without a value.
    pub(crate) missing: Vec<String>,
    /// Names of main parameters and buffers that start from the seed as they were asked to.
    pub(crate) skipped: Vec<String>,
    pub(crate) unknown: Vec<String>,
    /// Name, shape of the value, and shape in the model.
    pub(crate) misshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Names of tensors that are no floats, each with its dtype.
    pub(crate) not_floats: Vec<String>,
    /// Names of tensors with an infinity or a NaN.
    pub(crate) not_finite: Vec<String>,
    /// Heads of the model for which there are no values at their unit, or of other names or shapes.
    pub(crate) fresh_heads: Vec<HeadName>,
    /// Heads for which there are values that are not used.
    pub(crate) unused_heads: Vec<HeadName>,
    /// Heads whose values were found by the stage's number, because it is not known which units they followed.
    pub(crate) heads_by_stage: Vec<HeadName>,
}

impl ValueDifferences {
    /// Refuses the differences that are not allowed.
    ///
    /// # Errors
    /// [`Error::Invalid`], with a table of what fits and what does not.
    pub(crate) fn refuse(&self, subject: &str, allowed: AllowedDifferences) -> Result<()> {
        let missing = match allowed.missing {
            Missing::None => !self.missing.is_empty(),
            Missing::Half => 2 * self.matched.len() < self.tensors(),
            Missing::All => false,
        };
        let unusable = [self.misshaped.len(), self.not_floats.len(), self.not_finite.len()] != [0; 3];
        let main = missing || unusable || (!allowed.unknown && !self.unknown.is_empty());
        let remedy = match (main, !allowed.heads && !self.fresh_heads.is_empty()) {
            (false, false) => return Ok(()),
            (false, true) => "give weights that were trained with these heads at the same units",
            _ if missing && allowed.missing == Missing::Half => {
                "give weights of this model; where fewer than half are meant, set allow_missing"
            }
            _ if unusable => "give the weights of this model, or start these from the seed with skip_initial_values",
            _ => "give the weights of this model (allow_missing and allow_unknown allow other names)",
        };
        Err(Error::invalid(subject, self.fit(), format!("{remedy}{}", self.table())))
    }

    /// Returns how many of the model's tensors have their values, in words, with the notes.
    pub(crate) fn summary(&self) -> String {
        [&[self.fit()], &*self.notes].concat().join("; ")
    }

    /// Warns of all that differs, and logs that nothing does.
    pub(crate) fn log(&self, subject: &str) {
        let has_same_names = self.missing.is_empty() && self.unknown.is_empty();
        match has_same_names && self.fresh_heads.is_empty() && self.unused_heads.is_empty() {
            true => tracing::info!("{subject}: {}", self.summary()),
            false => tracing::warn!("{subject}: {}{}", self.summary(), self.table()),
        }
        self.warn_of_heads_by_stage(subject);
    }

    /// Warns of heads that were found by the stage's number.
    pub(crate) fn warn_of_heads_by_stage(&self, subject: &str) {
        if !self.heads_by_stage.is_empty() {
            let what = "they do not say which units their heads followed, so heads were found by the stage's number";
            tracing::warn!("{subject}: {what}: {}", list(self.heads_by_stage.iter()));
        }
    }

    /// Returns the number of the model's main parameters and buffers.
    fn tensors(&self) -> usize {
        let unusable = self.misshaped.len() + self.not_floats.len() + self.not_finite.len();
        self.matched.len() + self.missing.len() + unusable
    }

    fn fit(&self) -> String {
        format!("they fit {} of the model's {} tensors", self.matched.len(), self.tensors())
    }

    /// Returns a line for each kind of tensor that there is.
    fn table(&self) -> String {
        let misshaped = self.misshaped.iter();
        let misshaped = misshaped.map(|(name, found, wanted)| format!("{name} (is {found:?}, must be {wanted:?})"));
        let mut table = String::new();
        let mut row = |what: &str, count: usize, names: String| {
            if count > 0 {
                let _ = write!(table, "\n  {what:<25} {count:>4}  {names}");
            }
        };
        row("fit", self.matched.len(), list(self.matched.iter()));
        row("from the seed as asked", self.skipped.len(), list(self.skipped.iter()));
        row("missing", self.missing.len(), list(self.missing.iter()));
        row("not in the model", self.unknown.len(), list(self.unknown.iter()));
        row("of another shape", self.misshaped.len(), list(misshaped));
        row("no floats", self.not_floats.len(), list(self.not_floats.iter()));
        row("with infinities or NaN", self.not_finite.len(), list(self.not_finite.iter()));
        row("heads without values", self.fresh_heads.len(), list(self.fresh_heads.iter()));
        row("heads that are not used", self.unused_heads.len(), list(self.unused_heads.iter()));
        table
    }
}

/// Lists names for a message.
fn list(names: impl ExactSizeIterator<Item = impl fmt::Display>) -> String {
    let more = names.len().saturating_sub(LISTED);
    let listed: Vec<String> = names.take(LISTED).map(|name| name.to_string()).collect();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    listed.join(", ") + &rest
}
