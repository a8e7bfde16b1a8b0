//! Rising rates, and what the losses at them suggest.

use std::ops::Range;

use interlock::{Error, Result};
use serde::Serialize;

/// A loss has diverged if it is this many times its value in the first step.
const DIVERGED: f64 = 2.0;

/// The rates of a sweep: from one to another by equal factors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    from: f64,
    to: f64,
    pub(super) steps: u64,
}

impl Rates {
    /// # Errors
    /// If the rates do not rise, or the steps are too few for a suggestion.
    pub(super) fn new(from: f64, to: f64, steps: u64) -> Result<Self> {
        if !(from > 0.0 && from.is_finite()) {
            return Err(Error::invalid("--from", from.to_string(), "use a number above 0"));
        }
        if !(to > from && to.is_finite()) {
            return Err(Error::invalid("--to", to.to_string(), format!("use a number above {from}, which is --from")));
        }
        if steps < 20 {
            return Err(Error::invalid("--steps", steps.to_string(), "use 20 or more"));
        }
        Ok(Self { from, to, steps })
    }

    /// Returns the rate of a step.
    pub(super) fn at(self, step: u64) -> f64 {
        self.from * (self.to / self.from).powf(step as f64 / (self.steps - 1) as f64)
    }
}

/// The losses of a sweep's steps, until one diverges.
#[derive(Clone, Debug, Default)]
pub(super) struct Sweep {
    first: Vec<Option<f64>>,
    diverged: bool,
}

impl Sweep {
    /// Adds the losses of a step, by stage, and returns whether one has diverged, now or before.
    pub(super) fn add(&mut self, losses: &[Option<f64>]) -> bool {
        if self.first.is_empty() {
            self.first = losses.to_vec();
        }
        let far = |(first, now): (&Option<f64>, &Option<f64>)| {
            first.zip(*now).is_some_and(|(first, now)| now > DIVERGED * first)
        };
        self.diverged |= self.first.iter().zip(losses).any(far);
        self.diverged
    }
}

/// The rates that one loss suggests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Suggestion {
    /// The rate at which the loss falls fastest by the logarithm of the rate; none if it never falls.
    pub(super) steepest: Option<f64>,
    /// The rate at which the loss is lowest.
    pub(super) lowest: Option<f64>,
}

impl Suggestion {
    /// Returns the suggestion of a curve of rates and losses. Slopes and means are over a tenth of the points, which evens out the noise of batches.
    pub(super) fn of(curve: &[(f64, f64)]) -> Self {
        let reach = (curve.len() / 20).max(2);
        let windows = || (reach..curve.len().saturating_sub(reach)).map(|n| (n, &curve[n - reach..=n + reach]));
        let mean = |window: &[(f64, f64)]| window.iter().map(|(_, loss)| loss).sum::<f64>() / window.len() as f64;
        let lowest = least(windows().map(|(n, window)| (n, mean(window))));
        // Where the loss has risen and falls again, it is noise.
        let falling: Range<usize> = 0..lowest.map_or(0, |(n, _)| n + 1);
        let slopes = windows().filter(|(n, _)| falling.contains(n)).map(|(n, window)| (n, slope(window)));
        let steepest = least(slopes).filter(|(_, slope)| *slope < 0.0);
        let rate = |found: Option<(usize, f64)>| found.map(|(n, _)| curve[n].0);
        Self { steepest: rate(steepest), lowest: rate(lowest) }
    }
}

/// Returns the first entry with the least value.
fn least(values: impl Iterator<Item = (usize, f64)>) -> Option<(usize, f64)> {
    values.reduce(|least, each| if each.1 < least.1 { each } else { least })
}

/// Returns the slope of the straight line that fits losses over the logarithms of their rates best.
fn slope(window: &[(f64, f64)]) -> f64 {
    let count = window.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| window.iter().map(of).sum::<f64>() / count;
    let (rate, loss) = (mean(|(rate, _)| rate.ln()), mean(|(_, loss)| *loss));
    let (mut products, mut squares) = (0.0, 0.0);
    for (r, l) in window {
        products += (r.ln() - rate) * (l - loss);
        squares += (r.ln() - rate).powi(2);
    }
    products / squares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_by_equal_factors_to_the_last_step() {
        let rates = Rates::new(1e-4, 1.0, 21).unwrap();
        assert_eq!((rates.at(0), rates.at(20)), (1e-4, 1.0));
        assert!((rates.at(10) - 1e-2).abs() < 1e-12);
        for (from, to, steps, says) in [
            (0.0, 1.0, 100, "--from"),
            (f64::NAN, 1.0, 100, "--from"),
            (0.1, 0.1, 100, "--to"),
            (0.1, 1.0, 19, "--steps"),
        ] {
            assert!(Rates::new(from, to, steps).unwrap_err().to_string().starts_with(says));
        }
    }

    /// A loss that falls from 2.3 to 1.3 around the rate 0.01, rises from about 0.3 on, and has noise.
    fn curve() -> Vec<(f64, f64)> {
        let rates = Rates::new(1e-5, 10.0, 100).unwrap();
        let loss = |step: u64| {
            let rate = rates.at(step);
            let noise = if step.is_multiple_of(2) { 0.03 } else { -0.03 };
            2.3 - 1.0 / (1.0 + (0.01 / rate).powi(2)) + (rate / 2.0).powi(2) + noise
        };
        (0..100).map(|step| (rates.at(step), loss(step))).collect()
    }

    #[test]
    fn steepest_and_lowest_points_are_found_in_noise() {
        let Suggestion { steepest, lowest } = Suggestion::of(&curve());
        let (steepest, lowest) = (steepest.unwrap(), lowest.unwrap());
        assert!((0.007..0.014).contains(&steepest), "{steepest}");
        assert!((0.08..0.4).contains(&lowest), "{lowest}");
    }

    #[test]
    fn loss_that_never_falls_has_no_steepest_point() {
        let rising: Vec<(f64, f64)> = curve().iter().map(|(rate, _)| (*rate, 2.3 + rate)).collect();
        assert_eq!(Suggestion::of(&rising).steepest, None);
        assert_eq!(Suggestion::of(&rising[..4]), Suggestion { steepest: None, lowest: None });
    }

    #[test]
    fn loss_of_any_head_may_diverge() {
        let mut sweep = Sweep::default();
        assert!(!sweep.add(&[Some(2.3), None, Some(2.0)]));
        assert!(!sweep.add(&[Some(1.0), None, Some(4.0)]));
        assert!(sweep.add(&[Some(4.7), None, Some(1.0)]));
        assert!(sweep.add(&[Some(1.0), None, Some(1.0)]));
    }
}
