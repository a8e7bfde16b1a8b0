//! Writes settings and numbers as text.

use interlock::tools::strategy::{FollowConfig, StrategyConfig, StrategyName, WidthPhaseConfig};

/// Describes a strategy.
pub(crate) fn strategy(config: &StrategyConfig) -> String {
    let base = windows(config);
    // A schedule says it for each of its entries.
    let mean = mean(config.width_schedule.is_none() && config.follows_mean());
    let blocks = match config.group() {
        1 => String::new(),
        group => format!(", in blocks of {group} stages"),
    };
    base + mean + &blocks + &every(config.end_to_end_every)
}

fn mean(follows: bool) -> &'static str {
    if follows { ", following the mean of the window" } else { "" }
}

fn every(steps: Option<u64>) -> String {
    steps.map_or_else(String::new, |n| format!(", end-to-end every {n} steps"))
}

fn windows(config: &StrategyConfig) -> String {
    if let Some(phases) = &config.width_schedule {
        let phase = |phase: &WidthPhaseConfig| {
            let followed = match phase.follow.as_ref().or(config.follow.as_ref()) {
                Some(FollowConfig::Weights(list)) => weights(list),
                follow => {
                    width(phase.width, phase.widths.as_ref()).unwrap_or_default()
                        + mean(follow == Some(&FollowConfig::Mean))
                }
            };
            format!("{followed}{} from step {}", every(phase.end_to_end_every), phase.from_step)
        };
        return phases.iter().map(phase).collect::<Vec<_>>().join("; ");
    }
    if let Some(FollowConfig::Weights(list)) = &config.follow {
        return weights(list);
    }
    if let Some(lists) = &config.follows {
        return lists.iter().map(|list| weights(list)).collect::<Vec<_>>().join("; ");
    }
    if let Some(adaptive) = &config.adaptive {
        return format!("adaptive from width {}, below a cosine of {}", adaptive.width, adaptive.below);
    }
    let named = || match config.name() {
        StrategyName::Local => "local (width 1)".to_owned(),
        StrategyName::EndToEnd => "end-to-end".to_owned(),
        StrategyName::Adaptive => "adaptive".to_owned(),
        StrategyName::Groups => "groups (width 2)".to_owned(),
        StrategyName::Pairwise | StrategyName::Interlock => "pairwise (width 2)".to_owned(),
    };
    width(config.width, config.widths.as_ref()).unwrap_or_else(named)
}

fn width(one: Option<usize>, each: Option<&Vec<usize>>) -> Option<String> {
    match (one, each) {
        (Some(width), _) => Some(format!("width {width}")),
        (None, Some(widths)) => Some(format!("widths {}", list(widths))),
        (None, None) => None,
    }
}

fn weights(weights: &[f64]) -> String {
    format!("weights {}", list(weights))
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// Writes a length of time, such as `12.3 s` or `1 h 2 min`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {:.0} s", (s / 60.0) as u64, (s % 60.0).floor()),
        s => format!("{} h {} min", (s / 3600.0) as u64, (s % 3600.0 / 60.0) as u64),
    }
}

/// Writes a count with separated thousands.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a share in per cent.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_and_numbers_become_text() {
        let text = |json: &str| strategy(&serde_json::from_str(json).unwrap());
        assert_eq!(text("{}"), "groups (width 2), following the mean of the window, in blocks of 2 stages");
        assert_eq!(text(r#"{"name":"groups","follow":"last"}"#), "groups (width 2), in blocks of 2 stages");
        assert_eq!(text(r#"{"name":"pairwise"}"#), "pairwise (width 2)");
        assert_eq!(text(r#"{"name":"end_to_end"}"#), "end-to-end");
        assert_eq!(text(r#"{"widths":[1,2],"end_to_end_every":5}"#), "widths 1, 2, end-to-end every 5 steps");
        let phases = r#"{"width_schedule":[{"from_step":0,"width":1},{"from_step":9,"widths":[2,1]}]}"#;
        assert_eq!(text(phases), "width 1 from step 0; widths 2, 1 from step 9");
        let phases = r#"{"follow":"mean","width_schedule":[{"from_step":0,"width":2},{"from_step":5,"width":2,"follow":"last"}]}"#;
        assert_eq!(text(phases), "width 2, following the mean of the window from step 0; width 2 from step 5");
        let mean = r#"{"name":"local","group":2,"follow":"mean","end_to_end_every":3}"#;
        let expected =
            "local (width 1), following the mean of the window, in blocks of 2 stages, end-to-end every 3 steps";
        assert_eq!(text(mean), expected);
        assert_eq!(text(r#"{"follow":[0.7,0.3]}"#), "weights 0.7, 0.3");
        assert_eq!(text(r#"{"follows":[[0,1],[1]]}"#), "weights 0, 1; weights 1");
        let adaptive = r#"{"adaptive":{"every":5,"window":2,"below":0.5}}"#;
        assert_eq!(text(adaptive), "adaptive from width 1, below a cosine of 0.5");
        assert_eq!([12.34, 75.0, 3725.0].map(duration), ["12.3 s", "1 min 15 s", "1 h 2 min"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
