//! The progress of a run as text.

use std::time::Duration;

/// The progress of a stage.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StageFacts {
    /// The last loss of its head; none without a head.
    pub(super) loss: Option<f64>,
    /// The share of the window in which it did not compute.
    pub(super) idle: Option<f64>,
}

/// The progress of a run.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) epoch: f64,
    pub(super) examples_per_second: Option<f64>,
    /// The estimated time to the end.
    pub(super) left: Option<Duration>,
    pub(super) stages: Vec<StageFacts>,
}

/// The largest number of stages that a line shows completely.
const MAX_STAGES: usize = 12;
/// The number of stages that a line shows if there are more.
const SHOWN_STAGES: usize = 7;
/// The width of a stage's column in the table below a bar.
const COLUMN: usize = 8;

/// The largest width of the bar.
const BAR: usize = 24;
/// The width of the text beside the bar, without the numbers of steps: `/ steps`, the time, and a summary such as
/// `epoch 3.4  712 examples/s  1:02:05 left`.
const BESIDE_BAR: usize = 2 + 7 + 2 + 8 + 2 + 44;

/// Returns the width of the bar for a terminal of this many columns and a number of steps of this many digits, so that the line does not
/// wrap.
pub(super) fn bar_width(columns: usize, digits: usize) -> usize {
    columns.saturating_sub(BESIDE_BAR + 2 * digits + 1).clamp(1, BAR)
}

impl Facts {
    /// Returns the text beside the bar, or after the step in a line.
    pub(super) fn summary(&self) -> String {
        let mut parts = vec![format!("epoch {:.1}", self.epoch)];
        parts.extend(self.examples_per_second.map(|rate| format!("{rate:.0} examples/s")));
        parts.extend(self.left.map(|left| format!("{} left", clock(left))));
        parts.join("  ")
    }

    /// Returns loss and idle share of the stages in one line; if there are many stages, of some of them.
    pub(super) fn stages_in_words(&self) -> String {
        let whole = self.stages.len() <= MAX_STAGES;
        let list = |show: &dyn Fn(&StageFacts) -> String| {
            some_of(&self.stages.iter().map(show).enumerate().collect::<Vec<_>>())
        };
        let mut text = format!("losses {}", list(&|stage| loss(stage.loss)));
        match (self.extremes(), whole) {
            (Some(_), true) => text += &format!("  idle {} %", list(&|stage| percent(stage.idle))),
            (Some(extremes), false) => text += &format!("  {extremes}"),
            (None, _) => {}
        }
        text
    }

    /// Returns the same as a table of at most this many columns. If stages are left out, a line with the extremes follows.
    pub(super) fn stages_in_table(&self, columns: usize) -> String {
        let max = (columns.saturating_sub(6) / COLUMN).max(1);
        let picked = picked(self.stages.len(), max);
        let row = |name: &str, cell: &dyn Fn(usize) -> String| {
            let cells: String = picked.iter().map(|&k| format!("{:>COLUMN$}", cell(k))).collect();
            format!("{name:<5}{cells}")
        };
        let mut rows = vec![
            row("stage", &|k| k.to_string()),
            row("loss", &|k| loss(self.stages[k].loss)),
            row("idle", &|k| match self.stages[k].idle {
                Some(_) => percent(self.stages[k].idle) + " %",
                None => "-".to_owned(),
            }),
        ];
        if picked.len() < self.stages.len() {
            rows.extend(self.extremes().map(|extremes| format!("all {}: {extremes}", self.stages.len())));
        }
        rows.join("\n")
    }

    /// Returns the least, greatest and mean idle share, or none before the first step.
    fn extremes(&self) -> Option<String> {
        let idle: Vec<(usize, f64)> =
            self.stages.iter().enumerate().filter_map(|(k, stage)| Some((k, stage.idle?))).collect();
        let least = idle.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let most = idle.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let mean = idle.iter().map(|(_, share)| share).sum::<f64>() / idle.len() as f64;
        let share = |share: f64| percent(Some(share));
        Some(format!(
            "idle {} % (stage {}) to {} % (stage {}), {} % in the mean",
            share(least.1),
            least.0,
            share(most.1),
            most.0,
            share(mean)
        ))
    }
}

/// Returns the texts of all stages in one line; if there are many, of some with their numbers.
pub(super) fn some_of(stages: &[(usize, String)]) -> String {
    let whole = stages.len() <= MAX_STAGES;
    let show = |&i: &usize| match &stages[i] {
        (_, text) if whole => text.clone(),
        (k, text) => format!("{k}:{text}"),
    };
    let max = if whole { MAX_STAGES } else { SHOWN_STAGES };
    picked(stages.len(), max).iter().map(show).collect::<Vec<_>>().join(" ")
}

/// Returns the numbers below `count`; if there are more than `max`, the first, the last, and others evenly between them.
fn picked(count: usize, max: usize) -> Vec<usize> {
    match max {
        _ if count <= max => (0..count).collect(),
        0 | 1 => vec![count - 1],
        max => (0..max).map(|i| (i * (count - 1) + (max - 1) / 2) / (max - 1)).collect(),
    }
}

fn loss(loss: Option<f64>) -> String {
    match loss {
        Some(loss) if loss.abs() < 100.0 => format!("{loss:.3}"),
        Some(loss) if loss.abs() < 10_000.0 => format!("{loss:.1}"),
        Some(loss) => format!("{loss:.1e}"),
        None => "-".to_owned(),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}", 100.0 * share))
}

/// Formats a time, such as `0:07`, `12:34` or `1:02:03`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(stages: usize) -> Facts {
        let stage = |k: usize| StageFacts {
            loss: (k != 1).then_some(2.5 - k as f64 / 100.0),
            idle: Some(k as f64 / stages as f64),
        };
        Facts {
            epoch: 3.44,
            examples_per_second: Some(712.4),
            left: Some(Duration::from_secs(3725)),
            stages: (0..stages).map(stage).collect(),
        }
    }

    #[test]
    fn few_stages_are_all_shown() {
        let facts = facts(4);
        assert_eq!(facts.summary(), "epoch 3.4  712 examples/s  1:02:05 left");
        assert_eq!(facts.stages_in_words(), "losses 2.500 - 2.480 2.470  idle 0 25 50 75 %");
        insta::assert_snapshot!(facts.stages_in_table(100), @r"
        stage       0       1       2       3
        loss    2.500       -   2.480   2.470
        idle      0 %    25 %    50 %    75 %
        ");
    }

    #[test]
    fn bar_and_text_beside_it_fit_in_80_columns() {
        let facts = Facts { epoch: 123.4, examples_per_second: Some(123_456.0), ..facts(4) };
        let line = format!("{}  12345/12345 steps  01:02:03  {}", "-".repeat(bar_width(80, 5)), facts.summary());
        assert!(line.len() <= 80, "{}: {line}", line.len());
        assert_eq!([bar_width(200, 3), bar_width(10, 3)], [BAR, 1]);
    }

    #[test]
    fn some_of_many_stages_are_shown_with_the_extremes() {
        let facts = facts(64);
        let table = facts.stages_in_table(100);
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
        insta::assert_snapshot!(table, @r"
        stage       0       6      13      19      25      32      38      44      50      57      63
        loss    2.500   2.440   2.370   2.310   2.250   2.180   2.120   2.060   2.000   1.930   1.870
        idle      0 %     9 %    20 %    30 %    39 %    50 %    59 %    69 %    78 %    89 %    98 %
        all 64: idle 0 % (stage 0) to 98 % (stage 63), 49 % in the mean
        ");
        assert!(facts.stages_in_words().ends_with("63:1.870  idle 0 % (stage 0) to 98 % (stage 63), 49 % in the mean"));
        for columns in [0, 10, 14, 22, 40] {
            let first = facts.stages_in_table(columns);
            assert!(first.lines().next().unwrap().ends_with("63"), "{first}");
        }
    }

    #[test]
    fn unknown_values_are_left_out() {
        let facts = Facts { examples_per_second: None, left: None, stages: vec![StageFacts::default(); 2], ..facts(2) };
        assert_eq!(facts.summary(), "epoch 3.4");
        assert_eq!(facts.stages_in_words(), "losses - -");
        assert!(facts.stages_in_table(100).contains("idle        -       -"));
    }

    #[test]
    fn stages_are_picked_evenly_and_at_most_once() {
        assert_eq!(picked(3, 4), [0, 1, 2]);
        assert_eq!(picked(64, 2), [0, 63]);
        assert_eq!(picked(10, 4), [0, 3, 6, 9]);
        for (count, max) in [(64, 11), (12, 11), (1000, 7), (5, 4)] {
            let picked = picked(count, max);
            assert!(picked.len() == max && picked.windows(2).all(|two| two[0] < two[1]), "{picked:?}");
            assert_eq!((picked[0], picked[max - 1]), (0, count - 1));
        }
    }
}
