//! A plan as text.

use super::{Follow, NEARLY_AS_FAST, PlanRow};
use crate::table::{Table, dash, table};

/// Returns the name of a row: stages, width, group and followed losses where they were given, and micro-batches.
pub(super) fn name(row: &PlanRow) -> String {
    let micro = if row.micro_batches == 1 { "micro-batch" } else { "micro-batches" };
    let width = row.width.parse::<usize>().map_or_else(|_| row.width.clone(), |width| format!("width {width}"));
    let group = row.group.map_or_else(String::new, |group| format!(", groups of {group}"));
    let follow = row.follow.map_or_else(String::new, |follow| format!(", by {}", follow_name(follow)));
    let replicas = if row.replicas > 1 { format!(" × {} replicas", row.replicas) } else { String::new() };
    format!("{} stages{replicas}, {width}{group}{follow}, {} {micro}", row.stages, row.micro_batches)
}

/// The most stages whose units are listed one by one.
const LISTED: usize = 16;

/// Writes the number of units of each stage: `1, 1, 1, 2`. Of many stages, equal neighbours are combined: `2 (31 stages), 3`.
pub(super) fn units(units: &[usize]) -> String {
    let alike = |run: &[usize]| match run {
        [one] => one.to_string(),
        run => format!("{} ({} stages)", run[0], run.len()),
    };
    let words: Vec<String> = match units.len() > LISTED {
        true => units.chunk_by(|a, b| a == b).map(alike).collect(),
        false => units.iter().map(usize::to_string).collect(),
    };
    words.join(", ")
}

fn follow_name(follow: Follow) -> &'static str {
    match follow {
        Follow::Last => "last",
        Follow::Mean => "mean",
    }
}

/// The number of columns from `units a stage` on.
const RESULTS: usize = 8;

pub(super) fn table_of(rows: &[PlanRow], recommended: Option<usize>) -> Table {
    let grouped = rows.iter().any(|row| row.group.is_some());
    let followed = rows.iter().any(|row| row.follow.is_some());
    let optional = |heading: &'static str, given: bool| given.then_some(heading);
    let replicated = rows.iter().any(|row| row.replicas > 1);
    let before = [Some(""), Some("stages"), optional("replicas", replicated), Some("width")];
    let given = [optional("group", grouped), optional("follow", followed)];
    let after = [
        "micro-batches",
        "units a stage",
        "in flight",
        "ms a step",
        "examples/s",
        "idle",
        "MiB, largest",
        "MiB, all",
        "of end-to-end",
    ]
    .map(Some);
    let headings: Vec<&str> = before.into_iter().chain(given).chain(after).flatten().collect();
    // A row is named by its mark, and by what was asked for: stages, replicas, width, group, losses and micro-batches.
    let mut all = table(&headings).named_by(headings.len() - RESULTS);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20).to_string();
    for (at, row) in rows.iter().enumerate() {
        let memory = |of: fn(&Vec<u64>) -> u64| row.memory_bytes.as_ref().map_or_else(dash, |bytes| mib(of(bytes)));
        let mark = match (Some(at) == recommended, &row.refused) {
            (true, _) => "▸",
            (_, Some(_)) => "✗",
            _ => "",
        };
        let replicas = replicated.then(|| row.replicas.to_string());
        let before = [Some(mark.to_owned()), Some(row.stages.to_string()), replicas, Some(row.width.clone())];
        let given = [row.group.map(|group| group.to_string()), row.follow.map(|follow| follow_name(follow).to_owned())];
        let after = [
            row.micro_batches.to_string(),
            units(&row.units_per_stage),
            row.in_flight.to_string(),
            format!("{:.1}", 1e3 * row.step_seconds),
            format!("{:.1}", row.examples_per_second),
            format!("{:.0} %", 100.0 * row.idle),
            memory(|bytes| bytes.iter().max().copied().unwrap_or(0)),
            memory(|bytes| bytes.iter().sum()),
            format!("{:.2}", row.against_end_to_end),
        ]
        .map(Some);
        all.add_row(before.into_iter().chain(given).chain(after).flatten());
    }
    all
}

/// Returns the line about a row that is recommended or the fastest.
pub(super) fn verdict(row: &PlanRow, recommended: bool, fastest: bool) -> String {
    let almost =
        format!("recommended: the widest of the rows within {:.0} % of the fastest", 100.0 * (1.0 - NEARLY_AS_FAST));
    let praise = match (recommended, fastest) {
        (true, true) => "recommended, and the fastest",
        (true, false) => &almost,
        _ => "the fastest",
    };
    let proof = if row.proven { "no partition is faster" } else { "the best partition found" };
    let name = name(row);
    format!(
        "{name}: {praise}; units of each stage: {} ({proof}); time of a step: {}",
        units(&row.units_per_stage),
        row.reason
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_listed_and_many_equal_ones_are_counted() {
        assert_eq!(units(&[1, 1, 1, 2]), "1, 1, 1, 2");
        assert_eq!(units(&[2; 16]), vec!["2"; 16].join(", "));
        let many = [&[2; 31][..], &[3], &[2; 32]].concat();
        assert_eq!(units(&many), "2 (31 stages), 3, 2 (32 stages)");
    }
}
