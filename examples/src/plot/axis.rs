//! The ends and ticks of axes.

use super::Axis;

/// An axis with ends and ticks for its values.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    logarithmic: bool,
    /// Values and their labels.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Scale {
    /// Chooses ends and about `count` ticks for values between `least` and `most`; with `margin`, the axis extends a little beyond them.
    pub(super) fn new(axis: &Axis, least: f64, most: f64, count: usize, margin: bool) -> Self {
        let (mut from, mut to) = (axis.from.map_or(least, |v| v.min(least)), axis.to.map_or(most, |v| v.max(most)));
        let logarithmic = axis.logarithmic && from > 0.0;
        if logarithmic {
            if to / from < 10.0 {
                let middle = (from * to).sqrt();
                (from, to) = (middle / 10.0_f64.sqrt(), middle * 10.0_f64.sqrt());
            }
            let (from, to) = (from / 1.1, to * 1.1);
            return Self { from, to, logarithmic, ticks: powers(from, to) };
        }
        if to - from <= (from.abs() + to.abs()) * 1e-9 {
            let half = if axis.whole || from == 0.0 { 1.0 } else { from.abs() * 0.1 };
            // A given lower end stays.
            (from, to) = (axis.from.map_or(from - half, |v| v.max(from - half)), to + half);
        }
        if margin {
            let margin = (to - from) * 0.05;
            from = if axis.from.is_some_and(|v| v <= from) { from } else { from - margin };
            to = if axis.to.is_some_and(|v| v >= to) { to } else { to + margin };
        }
        Self { from, to, logarithmic, ticks: even(axis, from, to, count) }
    }

    /// Returns the position of a value between the ends, from 0 to 1.
    pub(super) fn share(&self, value: f64) -> f64 {
        match self.logarithmic {
            true => (value / self.from).ln() / (self.to / self.from).ln(),
            false => (value - self.from) / (self.to - self.from),
        }
    }
}

/// Returns ticks at round distances.
fn even(axis: &Axis, from: f64, to: f64, count: usize) -> Vec<(f64, String)> {
    let rough = (to - from) / count.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let mut step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    if axis.whole {
        step = step.max(1.0);
    }
    let (first, last) = ((from / step - 1e-9).ceil() as i64, (to / step + 1e-9).floor() as i64);
    let write = |value: f64| match axis.percent {
        true => format!("{} %", decimal(value * 100.0, step * 100.0)),
        false => decimal(value, step),
    };
    (first..=last).map(|n| n as f64 * step).map(|value| (value, write(value))).collect()
}

/// Returns ticks at powers of ten, and between them if those are few.
fn powers(from: f64, to: f64) -> Vec<(f64, String)> {
    let (first, last) = (from.log10().floor() as i32, to.log10().ceil() as i32);
    let factors: &[f64] = if to / from < 200.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let every = ((last - first) / 8).max(1);
    let within = (first..=last)
        .filter(|n| n.rem_euclid(every) == 0)
        .flat_map(|n| factors.iter().map(move |factor| (factor, n)))
        .filter(|(factor, n)| (from..=to).contains(&(*factor * 10_f64.powi(*n))));
    let write = |factor: f64, n: i32| match n {
        -4..=4 => decimal(factor * 10_f64.powi(n), 10_f64.powi(n)),
        _ => format!("{factor:.0}e{n}"),
    };
    within.map(|(factor, n)| (factor * 10_f64.powi(n), write(*factor, n))).collect()
}

/// Writes a multiple of `step` with as many decimals as needed and separated thousands.
fn decimal(value: f64, step: f64) -> String {
    if value == 0.0 && step < 1e-6 {
        return "0".to_owned();
    }
    if value != 0.0 && (value.abs() >= 1e7 || step < 1e-6) {
        return format!("{value:.1e}");
    }
    let decimals = (-(step.log10() + 1e-9).floor()).clamp(0.0, 9.0) as usize;
    let text = format!("{:.decimals$}", value.abs());
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), String::new()), |(w, r)| (w, format!(".{r}")));
    let mut grouped = String::new();
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if value < 0.0 && text.contains(|c: char| ('1'..='9').contains(&c)) { "−" } else { "" };
    format!("{sign}{grouped}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, least: f64, most: f64) -> Vec<String> {
        Scale::new(axis, least, most, 5, true).ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_written_in_full() {
        let plain = Axis::new("x");
        assert_eq!(labels(&plain, 0.0, 1500.0), ["0", "500", "1,000", "1,500"]);
        assert_eq!(labels(&plain, -0.2, 0.21), ["−0.2", "−0.1", "0.0", "0.1", "0.2"]);
        let percent = Axis { percent: true, from: Some(0.0), to: Some(1.0), ..Axis::default() };
        assert_eq!(labels(&percent, 0.3, 0.6), ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]);
        let whole = Axis { whole: true, ..Axis::default() };
        assert_eq!(labels(&whole, 2.0, 2.0), ["1", "2", "3"]);
        let log = Axis { logarithmic: true, ..Axis::default() };
        assert_eq!(labels(&log, 0.01, 0.5), ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]);
        assert_eq!(labels(&log, 1e-9, 1.0).len(), 10);
        assert_eq!(labels(&plain, 0.0, 0.0), ["−1.0", "−0.5", "0.0", "0.5", "1.0"]);
        assert_eq!(labels(&plain, 0.0, 4e19), ["0", "1.0e19", "2.0e19", "3.0e19", "4.0e19"]);
        assert_eq!(labels(&plain, 0.0, 4e-9)[..2], ["0", "1.0e-9"]);
        // Without a positive value the axis is linear.
        assert_eq!(labels(&log, 0.0, 4.0), ["0", "1", "2", "3", "4"]);
    }

    #[test]
    fn every_value_lies_on_the_axis() {
        for axis in [Axis::new("x"), Axis { logarithmic: true, ..Axis::default() }] {
            for (least, most) in [(1.0, 1.0), (1e-12, 1e12), (0.1, 0.2), (5.0, 5.0 + 1e-12), (0.0, 0.0)] {
                let scale = Scale::new(&axis, least, most, 5, true);
                for value in [least, most].iter().chain(scale.ticks.iter().map(|(value, _)| value)) {
                    let share = scale.share(*value);
                    assert!((-1e-6..=1.0 + 1e-6).contains(&share), "{value} lies at {share}, {scale:?}");
                }
                assert!(scale.ticks.len() < 30);
            }
        }
    }
}
