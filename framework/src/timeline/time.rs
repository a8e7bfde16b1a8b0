//! Times in readable units, and the ticks of an axis.

use std::ops::Range;

/// Returns a unit for times as large as `seconds`, and its length in seconds.
fn unit(seconds: f64) -> (&'static str, f64) {
    match seconds.abs() {
        s if s < 1e-6 => ("ns", 1e-9),
        s if s < 1e-3 => ("µs", 1e-6),
        s if s < 1.0 => ("ms", 1e-3),
        _ => ("s", 1.0),
    }
}

/// Formats a length of time with three digits, such as `12.3 ms`.
pub(super) fn in_words(seconds: f64) -> String {
    if seconds == 0.0 {
        return "0 s".to_owned();
    }
    let (name, length) = unit(seconds);
    let value = seconds / length;
    let decimals = match value.abs() {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {name}")
}

/// Returns the unit of a window's axis.
fn unit_of(window: &Range<f64>) -> (&'static str, f64) {
    unit(window.start.abs().max(window.end.abs()))
}

/// Formats a time in a window, to a ten-thousandth of the window, in the unit of its axis.
pub(super) fn moment(seconds: f64, window: &Range<f64>) -> String {
    rounded(seconds, unit_of(window), (window.end - window.start) / 1e4)
}

fn rounded(seconds: f64, (name, length): (&str, f64), resolution: f64) -> String {
    let decimals = (-(resolution / length).log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{:.decimals$} {name}", seconds / length)
}

/// Returns about `count` ticks at round times within `window`, with their labels, all in one unit.
pub(super) fn ticks(window: &Range<f64>, count: usize) -> Vec<(f64, String)> {
    let length = window.end - window.start;
    if !(length > 0.0 && length.is_finite()) {
        return vec![(window.start, in_words(window.start))];
    }
    let rough = length / count.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let unit = unit_of(window);
    let (first, last) = ((window.start / step).ceil() as i64, (window.end / step).floor() as i64);
    (first..=last)
        .map(|n| {
            let time = n as f64 * step;
            (time, rounded(time, unit, step))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_three_digits() {
        let found = [0.0, 3.2e-9, 1.5e-6, 12.34e-6, 0.271e-3, 0.0123, 0.9999, 1.0, 75.26, 3600.0].map(in_words);
        assert_eq!(
            found,
            ["0 s", "3.20 ns", "1.50 µs", "12.3 µs", "271 µs", "12.3 ms", "1000 ms", "1.00 s", "75.3 s", "3600 s"]
        );
    }

    #[test]
    fn moments_have_as_many_digits_as_they_need() {
        assert_eq!(moment(75.26174, &(70.0..80.0)), "75.262 s");
        assert_eq!(moment(0.0123, &(0.0..0.05)), "12.300 ms");
        assert_eq!(moment(123.0, &(0.0..1e5)), "123 s");
        assert_eq!(moment(0.5, &(0.5..0.5)), "500.000000000 ms");
    }

    #[test]
    fn ticks_are_at_round_times() {
        let found = |window: Range<f64>, count| -> Vec<String> {
            ticks(&window, count).into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(found(0.0..1e-3, 4), ["0.0 ms", "0.5 ms", "1.0 ms"]);
        assert_eq!(found(10.31..10.332, 5), ["10.310 s", "10.315 s", "10.320 s", "10.325 s", "10.330 s"]);
        assert_eq!(found(0.0..47e-6, 5), ["0 µs", "10 µs", "20 µs", "30 µs", "40 µs"]);
        assert_eq!(found(0.0..700.0, 8), ["0 s", "100 s", "200 s", "300 s", "400 s", "500 s", "600 s", "700 s"]);
        assert_eq!(found(3.0..3.0, 5), ["3.00 s"]);
        assert_eq!(found(0.0..f64::INFINITY, 5), ["0 s"]);
    }
}
