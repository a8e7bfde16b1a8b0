//! `interlock plan`: simulates steps, and recommends a way to train.

mod on_ranks;
mod question;
mod subject;
mod windows;
mod words;

pub(crate) use on_ranks::best_partition_on_ranks;
pub(crate) use windows::{Follow, Windows};

use std::{cmp::Ordering, rc::Rc};

use interlock::{Error, Result};
use serde::Serialize;

use crate::{arguments::Plan, config::ConfigOf, exit::Exit, program::Program, terminal::say, trace::TraceFile};
use question::{Found, Question};
use subject::Subject;

/// The row of the greatest width is recommended among those that reach at least this share of the fastest row's examples a second: of two rows of
/// nearly the same speed, the wider one learns more.
const NEARLY_AS_FAST: f64 = 0.95;

/// The simulation of one way to train.
#[derive(Serialize)]
struct PlanRow {
    stages: usize,
    /// The width, as given on the command line.
    width: String,
    /// The stages in a block, if given on the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<usize>,
    /// The losses of its window that a stage follows, if given on the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    follow: Option<Follow>,
    replicas: usize,
    /// Of each replica.
    micro_batches: usize,
    units_per_stage: Vec<usize>,
    /// Whether no other partition has a shorter simulated step.
    proven: bool,
    in_flight: usize,
    step_seconds: f64,
    examples_per_second: f64,
    /// The share of time in which each stage does nothing, on average.
    idle: f64,
    /// The bytes of each stage; none if they could not be measured.
    memory_bytes: Option<Vec<u64>>,
    /// The time of its step, divided by that of end-to-end with as many stages and micro-batches.
    against_end_to_end: f64,
    /// The reason for the time of a step.
    reason: String,
    /// The reason why it would fail; none if it would not.
    refused: Option<String>,
    #[serde(skip)]
    found: Rc<Found>,
}

/// The output of `plan --json`.
#[derive(Serialize)]
struct Answer<'a> {
    rows: &'a [PlanRow],
    /// Indices of rows.
    recommended: Option<usize>,
    fastest: Option<usize>,
}

pub(crate) fn run<P: Program>(arguments: &Plan) -> Result<(), Exit> {
    let traces = arguments.trace.iter().map(|path| TraceFile::new(path)).collect::<Result<Vec<_>>>()?;
    let mut question = Question::new(Subject::<P>::new(arguments)?, arguments)?;
    let (mut rows, mut impossible) = (Vec::new(), Vec::new());
    for &stages in &question.stages.clone() {
        if question.replicas_of(stages).is_empty() {
            let problem = format!("{stages} do not divide the ranks (--ranks)");
            impossible.push(Error::invalid("--stages", problem, "try another number"));
        }
        for replicas in question.replicas_of(stages) {
            for &micro_batches in &question.micro_batches.clone() {
                for windows in question.windows.clone() {
                    match question.row(stages, (replicas, micro_batches), windows) {
                        Ok(row) => rows.push(row),
                        // Of several groups some may not fit some numbers of stages or some widths, and a batch may be too small for many replicas.
                        Err(error) if windows.group.is_some() && of_windows(&error) => impossible.push(error),
                        Err(error) if replicas > 1 && of_pieces(&error) => impossible.push(error),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }
    match impossible.pop() {
        Some(error) if rows.is_empty() => return Err(error.into()),
        last => impossible.extend(last),
    }
    if !arguments.json {
        impossible.iter().for_each(|error| say(&format!("left out: {error}")));
    }
    let fastest = best_row(&rows, |_| true);
    let enough = fastest.map_or(0.0, |at| NEARLY_AS_FAST * rows[at].examples_per_second);
    let widest = rows.iter().filter(|row| row.refused.is_none() && row.examples_per_second >= enough);
    let widest = widest.map(|row| row.found.widest).max();
    let recommended = best_row(&rows, |row| Some(row.found.widest) == widest && row.examples_per_second >= enough);
    if let Some(at) = recommended {
        for file in &traces {
            write(file, &rows[at])?;
        }
    }
    if arguments.json {
        let answer = Answer { rows: &rows, recommended, fastest };
        say(&serde_json::to_string(&answer).map_err(Exit::failed)?);
    } else {
        show(&rows, recommended, fastest);
        if recommended.is_some() {
            traces.iter().for_each(|file| say(&format!("the recommended schedule is in {}", file.path().display())));
        }
    }
    match recommended {
        Some(_) => Ok(()),
        None => Err(Exit::Failed("nothing that was tried would run".to_owned())),
    }
}

/// Whether a width or a group is too large for the number of stages.
fn of_windows(error: &Error) -> bool {
    matches!(error, Error::Invalid { subject, .. } if ["strategy.width", "strategy.group"].contains(&subject.as_str()))
}

/// Whether a batch cannot be cut into as many micro-batches.
fn of_pieces(error: &Error) -> bool {
    matches!(error, Error::Invalid { subject, .. } if ["micro_batches", "batch_size"].contains(&subject.as_str()))
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

/// Returns the row of the most examples a second among those that would run and that `among` accepts; of equal ones, the one of the least memory.
fn best_row(rows: &[PlanRow], among: impl Fn(&PlanRow) -> bool) -> Option<usize> {
    let memory = |row: &PlanRow| row.memory_bytes.as_ref().map_or(0, |bytes| bytes.iter().sum());
    let better = |a: &PlanRow, b: &PlanRow| match a.examples_per_second.total_cmp(&b.examples_per_second) {
        Ordering::Equal => memory(b).cmp(&memory(a)),
        other => other,
    };
    let fits = rows.iter().enumerate().filter(|(_, row)| row.refused.is_none() && among(row));
    fits.max_by(|(_, a), (_, b)| better(a, b)).map(|(at, _)| at)
}

fn write(file: &TraceFile, row: &PlanRow) -> Result<(), Exit> {
    let title = format!("{}, simulated: {}", words::name(row), row.found.cut.simulated.critical.bottleneck);
    file.write_simulated(&row.found.cut.simulated, &title).map_err(Exit::failed)
}

/// Returns the units of each stage in the best cut of the configured model, with its strategy and devices.
pub(crate) fn best_partition<P: Program>(config: &ConfigOf<P>) -> Result<Vec<usize>> {
    let arguments = Plan::default();
    let mut question = Question::new(Subject::<P>::of_run(config.clone(), true)?, &arguments)?;
    let stages = question.stages[0];
    let pieces = (question.replicas_of(stages)[0], question.micro_batches[0]);
    let row = question.row(stages, pieces, Windows::CONFIGURED)?;
    Ok(row.units_per_stage)
}
