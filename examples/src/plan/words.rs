//! A plan as text.

use comfy_table::Table;

use super::{Follow, PlanRow};
use crate::table::{dash, table};

/// Returns the name of a row: stages, width, group and followed losses where they were given, and micro-batches.
pub(super) fn name(row: &PlanRow) -> String {
    let micro = if row.micro_batches == 1 { "micro-batch" } else { "micro-batches" };
    let width = row.width.parse::<usize>().map_or_else(|_| row.width.clone(), |width| format!("width {width}"));
    let group = row.group.map_or_else(String::new, |group| format!(", groups of {group}"));
    let follow = row.follow.map_or_else(String::new, |follow| format!(", by {}", follow_name(follow)));
    format!("{} stages, {width}{group}{follow}, {} {micro}", row.stages, row.micro_batches)
}

/// Writes numbers of units with equal neighbours combined: `3 2×5`.
pub(super) fn units(units: &[usize]) -> String {
    let runs = units.chunk_by(|a, b| a == b);
    let words: Vec<String> =
        runs.map(|run| if run.len() == 1 { run[0].to_string() } else { format!("{}×{}", run[0], run.len()) }).collect();
    words.join(" ")
}

fn follow_name(follow: Follow) -> &'static str {
    match follow {
        Follow::Last => "last",
        Follow::Mean => "mean",
    }
}

pub(super) fn table_of(rows: &[PlanRow], recommended: Option<usize>) -> Table {
    let grouped = rows.iter().any(|row| row.group.is_some());
    let followed = rows.iter().any(|row| row.follow.is_some());
    let optional = |heading: &'static str, given: bool| given.then_some(heading);
    let before = ["", "stages", "width"].map(Some);
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
    let mut all = table(&headings);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20).to_string();
    for (at, row) in rows.iter().enumerate() {
        let memory = |of: fn(&Vec<u64>) -> u64| row.memory_bytes.as_ref().map_or_else(dash, |bytes| mib(of(bytes)));
        let mark = match (Some(at) == recommended, &row.refused) {
            (true, _) => "▸",
            (_, Some(_)) => "✗",
            _ => "",
        };
        let before = [mark.to_owned(), row.stages.to_string(), row.width.clone()].map(Some);
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
    let praise = match (recommended, fastest) {
        (true, true) => "recommended, and the fastest",
        (true, false) => {
            "recommended: its stages follow the farthest losses of those that are about as fast as the fastest"
        }
        _ => "the fastest",
    };
    let proof = if row.proven { "no cut is faster" } else { "the best cut found" };
    let name = name(row);
    format!("{name}: {praise}; units {} ({proof}); time of a step: {}", units(&row.units_per_stage), row.reason)
}
