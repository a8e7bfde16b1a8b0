//! An endpoint over time: its last scrapes, the values from them, and whether it still answers.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{model::View, scrape::Scrape};

/// Rates are over at least this time. A phase is reported when it ends, so over less time, one that is longer than the interval between scrapes
/// would look idle first and more than busy then.
const WINDOW: Duration = Duration::from_secs(5);
/// The least time between two scrapes that are kept, so that few are.
const APART: Duration = Duration::from_secs(1);
/// The number of values to keep of each curve.
const HISTORY: usize = 512;

/// The time since which there is no answer, and the reason.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) since: Instant,
    pub(super) problem: String,
}

/// An endpoint.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) address: String,
    /// The values of the last scrapes.
    pub(super) view: View,
    /// Whether it has ever answered; until then there are no values.
    pub(super) answered: bool,
    /// Set if the last scrape failed.
    pub(super) trouble: Option<Trouble>,
    /// The last stage's loss at every scrape.
    pub(super) losses: VecDeque<f64>,
    /// The examples a second at every scrape.
    pub(super) speeds: VecDeque<f64>,
    /// The last scrapes; rates are computed from the first of them.
    scrapes: VecDeque<Scrape>,
}

impl Watch {
    /// Begins to watch an endpoint, which need not answer yet.
    pub(super) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            view: View::default(),
            answered: false,
            trouble: None,
            losses: VecDeque::new(),
            speeds: VecDeque::new(),
            scrapes: VecDeque::new(),
        }
    }

    /// Takes the result of a scrape. After a failure the last values stay.
    pub(super) fn take(&mut self, result: Result<Scrape, String>) {
        let scrape = match result {
            Ok(scrape) => scrape,
            Err(problem) => {
                let since = self.trouble.take().map_or_else(Instant::now, |trouble| trouble.since);
                self.trouble = Some(Trouble { since, problem });
                return;
            }
        };
        if self.trouble.take().is_some() {
            // This answer may be from another run, so rates start again.
            self.scrapes.clear();
        }
        while self.scrapes.get(1).is_some_and(|second| scrape.at.saturating_duration_since(second.at) >= WINDOW) {
            self.scrapes.pop_front();
        }
        let view = View::new(self.scrapes.front(), &scrape);
        if view.run != self.view.run {
            // The curves are those of one run.
            self.losses.clear();
            self.speeds.clear();
        }
        (self.view, self.answered) = (view, true);
        if self.scrapes.back().is_none_or(|last| scrape.at.saturating_duration_since(last.at) >= APART) {
            self.scrapes.push_back(scrape);
        }
        keep(&mut self.losses, self.view.loss());
        keep(&mut self.speeds, self.view.examples_per_second);
    }
}

fn keep(values: &mut VecDeque<f64>, value: Option<f64>) {
    values.extend(value.filter(|value| value.is_finite()));
    while values.len() > HISTORY {
        values.pop_front();
    }
}
