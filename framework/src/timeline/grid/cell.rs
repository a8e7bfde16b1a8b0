//! One action of a grid, as text and back.

use std::{fmt, str::FromStr};

use crate::{
    Error, Result,
    schedule::{Action, ActionKind},
};

/// The remedy in messages.
pub(super) const NOTATION: &str =
    "use F0, H0, I0.2, W0.2 or B0.2 (micro-batch 0, loss 2), W0 (a sum of losses), N or U; F0@1 of the next step";

/// An action without what only the stage needs: its kind, step, micro-batch and loss.
///
/// It prints as [`Action`] does, and parses back. From the second step on, the step's number follows it: `F0`, `F0@1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GridCell {
    kind: ActionKind,
    micro: Option<usize>,
    loss: Option<usize>,
    step: u64,
}

impl GridCell {
    /// The cell of an action, its step counted from `first_step`.
    pub(crate) fn new(action: &Action, first_step: u64) -> Self {
        Self {
            kind: action.kind(),
            micro: action.micro_batch_index(),
            loss: action.loss(),
            step: action.step().saturating_sub(first_step),
        }
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> ActionKind {
        self.kind
    }

    /// The micro-batch, unless it concerns the whole step.
    pub(crate) fn micro_batch_index(&self) -> Option<usize> {
        self.micro
    }

    /// The stage whose loss it is, if it is a backward pass of one loss.
    pub(crate) fn loss(&self) -> Option<usize> {
        self.loss
    }

    /// The step, counted from the first of the grid.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let kind = ActionKind::of_letter(text.chars().next()?)?;
        let (numbers, step) = match text[1..].split_once('@') {
            Some((numbers, step)) => (numbers, number(step)?),
            None => (&text[1..], 0),
        };
        let (micro, loss) = match numbers.split_once('.') {
            Some((micro, loss)) => (Some(number(micro)?), Some(number(loss)?)),
            None if numbers.is_empty() => (None, None),
            None => (Some(number(numbers)?), None),
        };
        // The parameter gradient of a sum has no loss.
        let is_sum = kind == ActionKind::ParameterGradient && loss.is_none();
        let fits = micro.is_some() == kind.has_micro() && (is_sum || loss.is_some() == kind.has_loss());
        fits.then_some(Self { kind, micro, loss, step })
    }
}

/// Parses a number of digits only, without a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

impl fmt::Display for GridCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.letter())?;
        if let Some(micro) = self.micro {
            write!(f, "{micro}")?;
        }
        if let Some(loss) = self.loss {
            write!(f, ".{loss}")?;
        }
        if self.step > 0 {
            write!(f, "@{}", self.step)?;
        }
        Ok(())
    }
}

impl FromStr for GridCell {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::read(text).ok_or_else(|| Error::invalid("action", format!("{text:?} is none"), NOTATION))
    }
}
