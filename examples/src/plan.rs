//! `interlock plan`.

mod question;
mod subject;
mod words;

use std::{cmp::Ordering, rc::Rc};

use interlock::Result;
use serde::Serialize;

use crate::{arguments::Plan, config::RunConfig, exit::Exit, progress::say, trace::TraceFile};
use question::{Found, Question};
use subject::Subject;

/// The widest of the ways that are about as fast as the fastest is recommended, since it learns most. About as fast means: at least this share
/// of its examples a second.
const ABOUT: f64 = 0.95;

/// The prediction for one way to train.
#[derive(Serialize)]
struct PlanRow {
    stages: usize,
    /// As given on the command line.
    width: String,
    micro_batches: usize,
    units_per_stage: Vec<usize>,
    /// Whether no other cut is predicted to be faster.
    proven: bool,
    in_flight: usize,
    step_seconds: f64,
    examples_per_second: f64,
    /// The share of time in which each stage does nothing, on average.
    idle: f64,
    /// The bytes of each stage; none if they could not be measured.
    memory_bytes: Option<Vec<u64>>,
    /// Its step over that of end-to-end with as many stages and micro-batches.
    against_end_to_end: f64,
    /// What determines the time of a step.
    reason: String,
    /// Why it would fail; none if it would not.
    refused: Option<String>,
    #[serde(skip)]
    found: Rc<Found>,
}

/// What `plan --json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    replicas: usize,
    rows: &'a [PlanRow],
    /// Indices of rows.
    recommended: Option<usize>,
    fastest: Option<usize>,
}

pub(crate) fn run(arguments: &Plan) -> Result<(), Exit> {
    let traces = arguments.trace.iter().map(|path| TraceFile::new(path)).collect::<Result<Vec<_>>>()?;
    let mut question = Question::new(Subject::new(arguments)?, arguments)?;
    let mut rows = Vec::new();
    for &stages in &question.stages.clone() {
        for &micro_batches in &question.micro_batches.clone() {
            for width in question.widths.clone() {
                rows.push(question.row(stages, micro_batches, width)?);
            }
        }
    }
    let fastest = best(&rows, |_| true);
    let enough = fastest.map_or(0.0, |at| ABOUT * rows[at].examples_per_second);
    let widest = rows.iter().filter(|row| row.refused.is_none() && row.examples_per_second >= enough);
    let widest = widest.map(|row| row.found.widest).max();
    let recommended = best(&rows, |row| Some(row.found.widest) == widest && row.examples_per_second >= enough);
    if let Some(at) = recommended {
        for file in &traces {
            write(file, &rows[at])?;
        }
    }
    if arguments.json {
        let answer = Answer { replicas: arguments.replicas, rows: &rows, recommended, fastest };
        say(&serde_json::to_string(&answer).map_err(Exit::failed)?);
    } else {
        show(&rows, recommended, fastest);
        if recommended.is_some() {
            traces.iter().for_each(|file| say(&format!("the recommended schedule is in {}", file.path().display())));
        }
    }
    match recommended {
        Some(_) => Ok(()),
        None => Err(Exit::Failed("nothing that was tried would fit".to_owned())),
    }
}

/// Prints all rows, and the reasons for the recommended, the fastest and the failing ones.
fn show(rows: &[PlanRow], recommended: Option<usize>, fastest: Option<usize>) {
    say(&words::table_of(rows, recommended).to_string());
    for (at, row) in rows.iter().enumerate() {
        if let Some(refused) = &row.refused {
            say(&format!("{}: would fail: {refused}", words::name(row)));
        } else if Some(at) == recommended || Some(at) == fastest {
            say(&words::verdict(row, Some(at) == recommended, Some(at) == fastest));
        }
    }
}

/// The row of most examples a second among those that fit and that `among` takes; of equals the one that holds least.
fn best(rows: &[PlanRow], among: impl Fn(&PlanRow) -> bool) -> Option<usize> {
    let memory = |row: &PlanRow| row.memory_bytes.as_ref().map_or(0, |bytes| bytes.iter().sum());
    let better = |a: &PlanRow, b: &PlanRow| match a.examples_per_second.total_cmp(&b.examples_per_second) {
        Ordering::Equal => memory(b).cmp(&memory(a)),
        other => other,
    };
    let fits = rows.iter().enumerate().filter(|(_, row)| row.refused.is_none() && among(row));
    fits.max_by(|(_, a), (_, b)| better(a, b)).map(|(at, _)| at)
}

fn write(file: &TraceFile, row: &PlanRow) -> Result<(), Exit> {
    let title = format!("{}, predicted: {}", words::name(row), row.found.cut.simulated.critical.bottleneck);
    file.write_simulated(&row.found.cut.simulated, &title).map_err(Exit::failed)
}

/// The units of each stage that the planner finds best for the configuration as it is, on its devices.
pub(crate) fn best_partition(config: &RunConfig) -> Result<Vec<usize>> {
    let arguments = Plan { replicas: 1, ..Plan::default() };
    let mut question = Question::new(Subject::of_run(config.clone())?, &arguments)?;
    let (stages, micro_batches) = (question.stages[0], question.micro_batches[0]);
    let row = question.row(stages, micro_batches, None)?;
    Ok(row.units_per_stage)
}
