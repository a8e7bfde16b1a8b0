//! The speed of the last steps, and the idle shares of the stages.

use std::{collections::VecDeque, time::Duration};

/// The work done from the start to a point in time.
#[derive(Clone, Debug, Default)]
struct Mark {
    at: Duration,
    examples: u64,
    /// Seconds that each stage computed.
    busy: Vec<f64>,
}

/// The steps in a window of time.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    /// In order of time, from the start of the window to its end.
    marks: VecDeque<Mark>,
}

/// The number of parts of a window; marks in the same part are merged.
const PARTS: u32 = 50;

impl Pace {
    pub(super) fn new(window: Duration, stages: usize) -> Self {
        let start = Mark { busy: vec![0.0; stages], ..Mark::default() };
        Self { window, marks: VecDeque::from([start]) }
    }

    /// Adds a step of this many examples that ended at this time, with the seconds that each stage computed.
    pub(super) fn add(&mut self, at: Duration, examples: u64, busy: impl IntoIterator<Item = f64>) {
        let mut mark = self.marks.back().cloned().unwrap_or_default();
        mark.at = at;
        mark.examples += examples;
        mark.busy.iter_mut().zip(busy).for_each(|(sum, seconds)| *sum += seconds);
        let near = |a: &Mark, b: &Mark| b.at.saturating_sub(a.at) < self.window / PARTS;
        if self.marks.len() > 1 && near(&self.marks[self.marks.len() - 2], &mark) {
            self.marks.pop_back();
        }
        self.marks.push_back(mark);
        // The first mark is the beginning of the window, and the others lie in it. There are always at least two.
        while self.marks.len() > 2 && at.saturating_sub(self.marks[1].at) >= self.window {
            self.marks.pop_front();
        }
    }

    /// Returns both ends of the window and the seconds between them, or none before the first step.
    fn ends(&self) -> Option<(&Mark, &Mark, f64)> {
        let (first, last) = (self.marks.front()?, self.marks.back()?);
        let seconds = last.at.saturating_sub(first.at).as_secs_f64();
        (seconds > 0.0).then_some((first, last, seconds))
    }

    pub(super) fn examples_per_second(&self) -> Option<f64> {
        self.ends().map(|(first, last, seconds)| (last.examples - first.examples) as f64 / seconds)
    }

    /// Returns the share of the time in which stage `k` did not compute.
    pub(super) fn idle(&self, k: usize) -> Option<f64> {
        self.ends().map(|(first, last, seconds)| (1.0 - (last.busy[k] - first.busy[k]) / seconds).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_the_window_counts() {
        let mut pace = Pace::new(3 * SECOND, 2);
        assert_eq!((pace.examples_per_second(), pace.idle(0)), (None, None));
        // Ten steps of a second, then five with twice the examples, in which stage 0 is idle for three quarters of the time.
        for step in 1..=10 {
            pace.add(step * SECOND, 8, [1.0, 0.5]);
        }
        assert_eq!((pace.examples_per_second(), pace.idle(0), pace.idle(1)), (Some(8.0), Some(0.0), Some(0.5)));
        for step in 11..=15 {
            pace.add(step * SECOND, 16, [0.25, 1.0]);
        }
        assert_eq!((pace.examples_per_second(), pace.idle(0), pace.idle(1)), (Some(16.0), Some(0.75), Some(0.0)));
    }

    #[test]
    fn step_longer_than_the_window_counts_as_a_whole() {
        let mut pace = Pace::new(SECOND, 1);
        pace.add(10 * SECOND, 20, [5.0]);
        assert_eq!((pace.examples_per_second(), pace.idle(0)), (Some(2.0), Some(0.5)));
        pace.add(30 * SECOND, 20, [5.0]);
        assert_eq!((pace.examples_per_second(), pace.idle(0)), (Some(1.0), Some(0.75)));
    }

    #[test]
    fn many_short_steps_take_little_memory() {
        let mut pace = Pace::new(SECOND, 1);
        for step in 1..=100_000 {
            pace.add(step * SECOND / 10_000, 1, [0.000_05]);
        }
        assert!(pace.marks.len() <= 2 * PARTS as usize + 2, "{}", pace.marks.len());
        assert!((pace.examples_per_second().unwrap() - 10_000.0).abs() < 1.0);
        assert!((pace.idle(0).unwrap() - 0.5).abs() < 1e-6);
    }
}
