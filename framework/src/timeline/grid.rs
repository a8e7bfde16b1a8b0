//! A timeline as text: one row for each stage, one column for each unit of time.
//!
//! ```text
//! F0 F1 .  .    W0.1 .  .    W1.1 - U
//! .  F0 H0 B0.1 F1   H1 B1.1 U    . .
//! ```
//!
//! `.` is a unit in which a stage is idle, `-` one in which an action continues. Actions that take less than half a unit stand before the one that
//! fills it, as in `H0+B0.1` or `U+`.

mod cell;
#[cfg(test)]
mod tests;

pub(crate) use cell::GridCell;

use std::{fmt, str::FromStr};

use super::{Span, Timeline};
use crate::{Error, Result};

/// The most slots of a grid: with more, the unit of time is far too small to read the text.
const MOST_SLOTS: usize = 1 << 20;

/// One unit of time of one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GridSlot {
    /// The actions at its beginning that take no time, or much less than a unit.
    pub at_once: Vec<GridCell>,
    /// The action that fills it.
    pub then: SlotFill,
}

/// The content of a unit of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SlotFill {
    /// Nothing.
    #[default]
    Idle,
    /// An action that begins.
    Begins(GridCell),
    /// The action of the previous slot.
    Continues,
}

impl fmt::Display for GridSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cell in &self.at_once {
            write!(f, "{cell}+")?;
        }
        match self.then {
            SlotFill::Idle if self.at_once.is_empty() => f.write_str("."),
            SlotFill::Idle => Ok(()),
            SlotFill::Begins(cell) => cell.fmt(f),
            SlotFill::Continues => f.write_str("-"),
        }
    }
}

impl GridSlot {
    fn read(word: &str) -> Option<Self> {
        let (at_once, then) = word.rsplit_once('+').map_or((None, word), |(at_once, then)| (Some(at_once), then));
        let at_once = at_once.map_or(Some(Vec::new()), |cells| cells.split('+').map(GridCell::read).collect())?;
        let then = match then {
            "" if !at_once.is_empty() => SlotFill::Idle,
            "." if at_once.is_empty() => SlotFill::Idle,
            "-" if at_once.is_empty() => SlotFill::Continues,
            cell => SlotFill::Begins(GridCell::read(cell)?),
        };
        Some(Self { at_once, then })
    }
}

/// The action of every stage in every unit of time. It prints as aligned text, which parses back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimelineGrid {
    /// Rows of equal length, at least 1.
    rows: Vec<Vec<GridSlot>>,
}

impl TimelineGrid {
    /// Returns the training actions of `timeline` in units of `unit` seconds. An action goes from the unit nearest to its start to the one nearest to
    /// its end. Steps are counted from the first one in the timeline; evaluations are left out.
    ///
    /// # Errors
    /// If the unit is not above 0 or so small that the text would be unreadable, or actions of a stage overlap.
    pub(crate) fn of(timeline: &Timeline, unit: f64) -> Result<Self> {
        let refuse = |problem: String, right: &str| Err(Error::invalid("grid", problem, right));
        if !(unit > 0.0 && unit.is_finite()) {
            return refuse(format!("a unit of {unit} s"), "use a unit of time above 0");
        }
        let mut spans: Vec<&Span> = timeline.spans.iter().filter(|span| span.action.trains()).collect();
        spans.sort_by(|a, b| a.start.total_cmp(&b.start).then(a.end.total_cmp(&b.end)));
        let first_step = spans.iter().map(|span| span.action.step()).min().unwrap_or_default();
        let mut rows = vec![vec![GridSlot::default()]; timeline.stages];
        for span in spans {
            let (start, end) = ((span.start / unit).round(), (span.end / unit).round());
            let what = || format!("{} of stage {} from {} s to {} s", span.action, span.stage, span.start, span.end);
            let Some(row) = rows.get_mut(span.stage).filter(|_| start >= 0.0 && start <= end) else {
                return refuse(what(), "actions end after they begin, at times from 0 on, on stages that are there");
            };
            if end >= (MOST_SLOTS / timeline.stages) as f64 {
                return refuse(format!("{end} units of {unit} s"), "use a larger unit of time");
            }
            let (start, end) = (start as usize, end as usize);
            row.resize_with(row.len().max(end).max(start + 1), GridSlot::default);
            if row[start..].iter().any(|slot| slot.then != SlotFill::Idle) {
                return refuse(what(), "a stage does one thing after the other");
            }
            let cell = GridCell::new(&span.action, first_step);
            match &mut row[start..end] {
                [] => row[start].at_once.push(cell),
                [first, rest @ ..] => {
                    first.then = SlotFill::Begins(cell);
                    rest.iter_mut().for_each(|slot| slot.then = SlotFill::Continues);
                }
            }
        }
        let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
        rows.iter_mut().for_each(|row| row.resize_with(columns, GridSlot::default));
        Ok(Self { rows })
    }

    /// Returns the number of stages.
    pub(crate) fn stages(&self) -> usize {
        self.rows.len()
    }

    /// Returns the slots of each stage, equally many for every stage.
    pub(crate) fn rows(&self) -> &[Vec<GridSlot>] {
        &self.rows
    }
}

impl fmt::Display for TimelineGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(GridSlot::to_string).collect()).collect();
        let columns = rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> =
            (0..columns).map(|c| rows.iter().map(|row| row[c].len()).max().unwrap_or_default()).collect();
        for (k, row) in rows.iter().enumerate() {
            let line: Vec<String> = row.iter().zip(&widths).map(|(slot, &width)| format!("{slot:<width$}")).collect();
            let line = line.join(" ");
            write!(f, "{}{}", if k > 0 { "\n" } else { "" }, line.trim_end())?;
        }
        Ok(())
    }
}

impl FromStr for TimelineGrid {
    type Err = Error;

    /// # Errors
    /// If a word is no action, a `-` has nothing to continue, or the rows differ in length; the message names line and column, counted from 1. Blank
    /// lines are skipped.
    fn from_str(text: &str) -> Result<Self> {
        let mut rows: Vec<Vec<GridSlot>> = Vec::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let refuse = |column: usize, problem: String, right: String| {
                Err(Error::invalid("grid", format!("line {number}, column {column}: {problem}"), right))
            };
            let (mut row, mut column) = (Vec::new(), 1);
            for word in line.trim_end().split(char::is_whitespace) {
                match GridSlot::read(word) {
                    _ if word.is_empty() => {}
                    Some(GridSlot { then: SlotFill::Continues, .. })
                        if row.last().is_none_or(|before: &GridSlot| before.then == SlotFill::Idle) =>
                    {
                        let right = "put . where a stage is idle".to_owned();
                        return refuse(column, "nothing is there to go on".to_owned(), right);
                    }
                    Some(slot) => row.push(slot),
                    None => {
                        let right = format!("{}; . is idle, - goes on, H0+B0.2 takes no time for H0", cell::NOTATION);
                        return refuse(column, format!("{word:?} is no action"), right);
                    }
                }
                column += word.chars().count() + 1;
            }
            if let Some(first) = rows.first()
                && first.len() != row.len()
            {
                let problem = format!("{} slots, the first stage has {}", row.len(), first.len());
                let right = "give every stage as many, with . where it is idle".to_owned();
                return refuse(column.saturating_sub(1), problem, right);
            }
            rows.push(row);
        }
        Ok(Self { rows })
    }
}
