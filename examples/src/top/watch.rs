//! One endpoint over time: the last looks at it, what they tell, and whether it still answers.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{model::View, scrape::Scrape};

/// Rates are those of at least so long, so that a phase that takes longer than an interval is not one moment idle and one moment more than busy.
const WINDOW: Duration = Duration::from_secs(5);
/// Values that are kept of what is drawn over time.
const HISTORY: usize = 512;

/// Why there is no news.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) since: Instant,
    pub(super) problem: String,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) address: String,
    /// What the last looks tell.
    pub(super) view: View,
    /// There where the last look failed.
    pub(super) trouble: Option<Trouble>,
    /// The last stage's loss and the examples a second at every look.
    pub(super) losses: VecDeque<f64>,
    pub(super) speeds: VecDeque<f64>,
    /// The first is the one that rates count from.
    looks: VecDeque<Scrape>,
}

impl Watch {
    pub(super) fn new(address: &str, first: Scrape) -> Self {
        let mut watch = Self {
            address: address.to_owned(),
            view: View::default(),
            trouble: None,
            losses: VecDeque::new(),
            speeds: VecDeque::new(),
            looks: VecDeque::new(),
        };
        watch.take(Ok(first));
        watch
    }

    /// Takes what a look found; where it found nothing the last values stay.
    pub(super) fn take(&mut self, look: Result<Scrape, String>) {
        let scrape = match look {
            Ok(scrape) => scrape,
            Err(problem) => {
                let since = self.trouble.take().map_or_else(Instant::now, |trouble| trouble.since);
                self.trouble = Some(Trouble { since, problem });
                return;
            }
        };
        if self.trouble.take().is_some() {
            // The next answer may be of another run, so rates start again.
            self.looks.clear();
        }
        while self.looks.get(1).is_some_and(|second| scrape.at.saturating_duration_since(second.at) >= WINDOW) {
            self.looks.pop_front();
        }
        self.view = View::new(self.looks.front(), &scrape);
        self.looks.push_back(scrape);
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
