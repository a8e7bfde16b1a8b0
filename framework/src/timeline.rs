//! Timelines: the actions of all stages with their times, from a run or a simulation. They can be drawn ([`Timeline::to_svg`]) or written for trace
//! viewers ([`Timeline::to_trace`]).

mod escape;
#[cfg(test)]
mod grid;
mod svg;
mod time;
mod trace;

pub use escape::escape;
#[cfg(test)]
pub(crate) use grid::TimelineGrid;
pub use svg::Drawing;

use std::{collections::BTreeSet, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{plan::MOST_STAGES, schedule::Action};

/// One action of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The stage, counted from 0.
    pub stage: usize,
    /// The action.
    pub action: Action,
    /// When it began, in seconds since the timeline's beginning.
    pub start: f64,
    /// When it was done.
    pub end: f64,
}

impl Span {
    /// Returns whether a part of it lies within `window`.
    fn is_in(&self, window: &Range<f64>) -> bool {
        let instant = self.start == self.end && (window.start..=window.end).contains(&self.start);
        (self.start < window.end && self.end > window.start && self.start <= self.end) || instant
    }

    /// Returns the part of it that lies within `window`.
    fn within(&self, window: &Range<f64>) -> Range<f64> {
        self.start.max(window.start)..self.end.min(window.end)
    }
}

/// The latest time of a timeline, in seconds: 31,000 years. Differences of such times are still exact to a tenth of a millisecond.
const LATEST: f64 = 1e12;

/// The actions of every stage, in the order in which they ended. A run saves those of its last steps as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredTimeline")]
pub struct Timeline {
    /// The number of stages.
    pub stages: usize,
    /// Every action.
    pub spans: Vec<Span>,
}

/// A timeline as it is read, before it is checked.
#[derive(Deserialize)]
struct StoredTimeline {
    stages: usize,
    spans: Vec<Span>,
}

impl TryFrom<StoredTimeline> for Timeline {
    type Error = String;

    fn try_from(StoredTimeline { stages, spans }: StoredTimeline) -> Result<Self, String> {
        if stages > MOST_STAGES {
            return Err(format!("it has {stages} stages; a run has at most {MOST_STAGES}"));
        }
        if let Some(Span { stage, .. }) = spans.iter().find(|span| span.stage >= stages) {
            return Err(format!("an action is of stage {stage}, there are {stages} stages"));
        }
        let is_time = |time: f64| time.abs() <= LATEST;
        if let Some(Span { start, end, .. }) = spans.iter().find(|span| !is_time(span.start) || !is_time(span.end)) {
            return Err(format!("an action is from {start:e} to {end:e} s; times are at most {LATEST:e} s"));
        }
        Ok(Self { stages, spans })
    }
}

impl Timeline {
    /// Returns the time from the start of the first action to the end of the last, in seconds; 0 to 0 if there is none.
    pub fn extent(&self) -> Range<f64> {
        extent(&self.spans)
    }

    /// Returns the time from the start of the first action to the end of the last in the last `steps` training steps, in seconds.
    pub fn last_steps(&self, steps: usize) -> Range<f64> {
        extent(self.of_last(steps))
    }

    /// Returns the training actions of the last `steps` steps only, with times counted from the start of the first of them.
    #[must_use]
    pub fn cut_to_last_steps(&self, steps: usize) -> Self {
        let begin = self.last_steps(steps).start;
        let moved = |span: &Span| Span { start: span.start - begin, end: span.end - begin, ..*span };
        Self { stages: self.stages, spans: self.of_last(steps).map(moved).collect() }
    }

    /// Returns the training actions of the last `steps` steps.
    fn of_last(&self, steps: usize) -> impl Iterator<Item = &Span> {
        let trained = || self.spans.iter().filter(|span| span.action.trains());
        let numbers: BTreeSet<u64> = trained().map(|span| span.action.step()).collect();
        let first = numbers.into_iter().rev().take(steps).next_back();
        trained().filter(move |span| first.is_some_and(|first| span.action.step() >= first))
    }

    /// Returns the share of `window` in which each stage computed, from 0 to 1. Actions of a stage do not overlap.
    pub fn busy(&self, window: &Range<f64>) -> Vec<f64> {
        let mut busy = vec![0.0; self.stages];
        for span in self.spans.iter().filter(|span| span.is_in(window)) {
            if let Some(busy) = busy.get_mut(span.stage) {
                let Range { start, end } = span.within(window);
                *busy += (end - start) / (window.end - window.start).max(f64::MIN_POSITIVE);
            }
        }
        busy
    }
}

fn extent<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Range<f64> {
    let whole = spans
        .into_iter()
        .fold(f64::INFINITY..f64::NEG_INFINITY, |whole, span| whole.start.min(span.start)..whole.end.max(span.end));
    if whole.start <= whole.end { whole } else { 0.0..0.0 }
}

#[cfg(test)]
mod tests;
