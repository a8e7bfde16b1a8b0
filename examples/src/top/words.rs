//! Writes numbers in few characters, with a dash for unknown ones.

/// The text for unknown or missing values.
pub(super) const NONE: &str = "-";

fn or_dash(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.filter(|value| !value.is_nan()).map_or_else(|| NONE.to_owned(), show)
}

/// Writes a loss or a norm with about four digits.
pub(super) fn number(value: Option<f64>) -> String {
    or_dash(value, |value| match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.001 => format!("{value:.0e}"),
        size if size < 10.0 => format!("{value:.3}"),
        size if size < 1000.0 => format!("{value:.1}"),
        size if size < 100_000.0 => format!("{value:.0}"),
        _ => format!("{value:.0e}"),
    })
}

/// Returns the name of a phase for readers, from its label.
pub(super) fn phase(label: &str) -> String {
    label.replace('_', " ")
}

/// Writes a whole number.
pub(super) fn count(value: Option<f64>) -> String {
    or_dash(value, |value| format!("{value:.0}"))
}

/// Writes a number a second.
pub(super) fn rate(value: Option<f64>) -> String {
    or_dash(value, |value| match value {
        value if value < 10.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    })
}

/// Writes a share from 0 to 1, in percent.
pub(super) fn percent(value: Option<f64>) -> String {
    or_dash(value, |value| format!("{:.0}", 100.0 * value))
}

/// Writes seconds in the unit that suits them.
pub(super) fn time(seconds: Option<f64>) -> String {
    or_dash(seconds, |seconds| match seconds {
        0.0 => "0 s".to_owned(),
        s if s < 1e-3 => format!("{:.0} µs", 1e6 * s),
        s if s < 0.01 => format!("{:.1} ms", 1e3 * s),
        s if s < 1.0 => format!("{:.0} ms", 1e3 * s),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 600.0 => format!("{s:.0} s"),
        s if s < 36_000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    })
}

/// Writes bytes in the unit that suits them.
pub(super) fn bytes(bytes: Option<f64>) -> String {
    or_dash(bytes, |bytes| {
        let mut value = bytes;
        for unit in ["B", "kB", "MB", "GB"] {
            if value < 999.5 {
                return match unit {
                    "B" => format!("{value:.0} {unit}"),
                    _ if value < 9.95 => format!("{value:.1} {unit}"),
                    _ => format!("{value:.0} {unit}"),
                };
            }
            value /= 1000.0;
        }
        format!("{value:.1} TB")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let all = |show: fn(Option<f64>) -> String, values: &[f64]| -> Vec<String> {
            values.iter().map(|&value| show(Some(value))).collect()
        };
        assert_eq!(all(number, &[0.0, 2.34567, 0.00012, 123.45, 1e9]), ["0", "2.346", "1e-4", "123.5", "1e9"]);
        assert_eq!(all(number, &[f64::NAN, f64::INFINITY, 12345.6]), ["-", "inf", "12346"]);
        assert_eq!(all(rate, &[0.0, 1.26, 712.4]), ["0.0", "1.3", "712"]);
        assert_eq!(all(percent, &[0.0, 0.756, 1.0]), ["0", "76", "100"]);
        assert_eq!(
            all(time, &[0.0, 2e-6, 0.0071, 0.25, 1.5, 59.9]),
            ["0 s", "2 µs", "7.1 ms", "250 ms", "1.5 s", "60 s"]
        );
        assert_eq!(all(time, &[3600.0, 86_400.0]), ["60 min", "24 h"]);
        assert_eq!(all(bytes, &[12.0, 1234.0, 56e6, 999.6e6, 3e12]), ["12 B", "1.2 kB", "56 MB", "1.0 GB", "3.0 TB"]);
        assert_eq!([number(None), count(None), rate(None), time(None), bytes(None)], [NONE; 5]);
    }
}
