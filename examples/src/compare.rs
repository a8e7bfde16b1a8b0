//! `interlock compare`: trains once for each combination of the varied values and each seed, and compares the results.

mod finished;
mod vary;

use std::path::Path;

use interlock::{Report, Stopper, tools::files};
use serde::{Deserialize, Serialize};

use crate::{
    arguments::Compare,
    config::{ConfigOf, Prepared},
    events::number,
    exit::Exit,
    interrupt::{self, Next},
    program::Program,
    progress::note_emulation,
    run_folder,
    table::{Measure, scored, table},
    terminal::{Terminal, Verbosity, note, say},
};
use finished::Finished;
use vary::Combination;

/// The columns of `compare.csv` after those of the varied keys: the fields of [`RunResult`].
const COLUMNS: [&str; 6] = ["seed", "accuracy", "perplexity", "loss", "examples_per_second", "head_parameters"];

/// One run.
#[derive(Clone, Debug, Serialize)]
struct ComparedRun {
    #[serde(flatten)]
    combination: Combination,
    #[serde(flatten)]
    result: RunResult,
}

/// The results of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RunResult {
    seed: u64,
    accuracy: Option<f64>,
    perplexity: Option<f64>,
    #[serde(deserialize_with = "number")]
    loss: f64,
    examples_per_second: f64,
    head_parameters: usize,
}

/// All runs of one combination.
#[derive(Clone, Debug, Serialize)]
struct ComparedRow {
    #[serde(flatten)]
    combination: Combination,
    runs: usize,
    mean: f64,
    /// The sample standard deviation; 0 for a single run.
    spread: f64,
    examples_per_second: f64,
    head_parameters: usize,
}

/// The contents of `compare.json`.
#[derive(Clone, Debug, Serialize)]
struct Comparison {
    measure: &'static str,
    rows: Vec<ComparedRow>,
    runs: Vec<ComparedRun>,
}

pub(crate) fn run<P: Program>(arguments: &Compare) -> Result<(), Exit> {
    let seeds = arguments.seeds.unwrap_or(1);
    if seeds == 0 {
        return Err(Exit::Refused("--seeds 0: no run is asked for; use 1 or more".to_owned()));
    }
    if arguments.widths.is_empty() && arguments.vary.is_empty() && arguments.seeds.is_none() {
        let problem = "compare: there is nothing to compare; give --widths 1,2, --vary 'KEY=[VALUE, …]' or --seeds N";
        return Err(Exit::Refused(problem.to_owned()));
    }
    let configs = vary::combinations::<P>(arguments)?;
    let (first, config) = &configs[0];
    if let Some(out) = arguments.out.as_ref().filter(|out| !Finished::continues_in(out)) {
        run_folder::refuse_existing(out)?;
    }
    // All have the same measure: a product with images and text has a model of images on text, which is refused.
    let mut measure = Measure::Accuracy;
    let mut notes = Vec::new();
    for each in &configs {
        measure = check::<P>(each, &mut notes)?;
    }
    notes.dedup();
    notes.iter().for_each(|line| note(line));

    let out = match arguments.out.as_ref().filter(|out| Finished::continues_in(out)) {
        Some(out) => out.clone(),
        None => run_folder::create(arguments.out.as_deref(), &format!("{}-compare", config.name))?,
    };
    let all = configs.iter().flat_map(|(_, config)| (0..seeds).map(move |i| with_seed::<P>(config, i)));
    let texts = all.map(|config| config.to_toml()).collect::<interlock::Result<Vec<_>>>()?;
    let mut finished = Finished::open(&out, &texts)?;
    let (stopper, terminal) = (Stopper::new(), Terminal::new(Verbosity::Lines));
    let asked = stopper.clone();
    interrupt::on_signal(move |first| {
        if !first {
            return Next::End;
        }
        asked.stop();
        terminal
            .notice("stopping after the steps in progress, with the tables of what is finished; again, after two seconds, to end at once");
        Next::GoOn
    });
    // With --json, only JSON goes to stdout.
    let print = if arguments.json { note } else { say };
    let (mut runs, mut done) = (Vec::new(), Ok(()));
    let planned = configs
        .iter()
        .flat_map(|(combination, config)| (0..seeds).map(move |i| (combination, with_seed::<P>(config, i))));
    for ((combination, config), text) in planned.zip(texts) {
        let seed = config.seed;
        let trained = match finished.get(&text) {
            Some(result) => Ok(ComparedRun { combination: combination.clone(), result: result.clone() }),
            None => train::<P>(combination, &config, &stopper).and_then(|run| {
                finished.add(text, &run.result)?;
                Ok(run)
            }),
        };
        let run = match trained {
            Ok(run) => run,
            // The tables have what is finished.
            Err(exit) => {
                done = Err(exit);
                break;
            }
        };
        let labels: String = combination.labels.iter().map(|(column, label)| format!("{column} {label}  ")).collect();
        let (name, result, speed) =
            (scored(true, measure.name()), value(&run, measure), run.result.examples_per_second);
        print(&format!("{labels}seed {seed}  {name} {result:.4}  {speed:.1} examples/s"));
        runs.push(run);
    }
    let rows: Vec<ComparedRow> =
        configs.iter().filter_map(|(combination, _)| row(combination, &runs, measure)).collect();
    let columns: Vec<&str> = first.labels.iter().map(|(column, _)| column.as_str()).collect();
    // A run that was not stopped ends with an evaluation.
    let score = scored(true, measure.name());
    let results = ["runs", &score, "spread", "examples/s", "head parameters"];
    let mut shown = table(&[&columns[..], &results].concat()).named_by(columns.len().max(1));
    for row in &rows {
        let labels = row.combination.labels.iter().map(|(_, label)| label.clone());
        shown.add_row(labels.chain([
            row.runs.to_string(),
            format!("{:.4}", row.mean),
            format!("{:.4}", row.spread),
            format!("{:.1}", row.examples_per_second),
            row.head_parameters.to_string(),
        ]));
    }
    print(&shown.to_string());
    let comparison = Comparison { measure: measure.name(), rows, runs };
    run_folder::write_json(&out.join("compare.json"), &comparison).map_err(Exit::failed)?;
    write_csv(&out.join("compare.csv"), &columns, &comparison.runs)?;
    print(&format!("the tables are in {}", out.display()));
    if arguments.json {
        say(&serde_json::to_string(&comparison).map_err(Exit::failed)?);
    }
    done
}

/// Returns the configuration with the seed that follows its own by `after`.
fn with_seed<P: Program>(config: &ConfigOf<P>, after: u64) -> ConfigOf<P> {
    ConfigOf::<P> { seed: config.seed.wrapping_add(after), ..config.clone() }
}

/// Checks a configuration by building its stages, as a run does before it writes anything, and returns the measure of its data. Adds lines about them
/// to `notes`.
fn check<P: Program>(
    (combination, config): &(Combination, ConfigOf<P>),
    notes: &mut Vec<String>,
) -> Result<Measure, Exit> {
    let built = config.prepare_to_train(None).and_then(|Prepared { data, builder, .. }| {
        let mut trainer = builder.keep_best(None).build()?;
        trainer.check(data.split())?;
        notes.extend(data.notes);
        Ok(Measure::of(&data.description.kind))
    });
    match built {
        Ok(measure) => Ok(measure),
        Err(error) if error.is_refusal() => Err(Exit::Refused(format!("{}: {error}", combination.given))),
        Err(error) => Err(Exit::failed(error)),
    }
}

/// Trains once.
///
/// # Errors
/// If the run fails, or is stopped.
fn train<P: Program>(combination: &Combination, config: &ConfigOf<P>, stopper: &Stopper) -> Result<ComparedRun, Exit> {
    let report = fit::<P>(config, stopper)
        .map_err(|error| Exit::Failed(format!("{} seed {}: {error}", combination.given, config.seed)))?;
    if report.stopped {
        return Err(Exit::Stopped);
    }
    let result = RunResult {
        seed: config.seed,
        accuracy: report.final_scores.accuracy,
        perplexity: report.final_scores.perplexity,
        loss: report.final_scores.loss.unwrap_or(f64::NAN),
        examples_per_second: report.examples_per_second,
        head_parameters: report.stages.iter().map(|stage| stage.head_parameters).sum(),
    };
    Ok(ComparedRun { combination: combination.clone(), result })
}

fn fit<P: Program>(config: &ConfigOf<P>, stopper: &Stopper) -> interlock::Result<Report> {
    let prepared = config.prepare()?;
    note_emulation(&prepared.builder);
    let mut trainer = prepared.builder.keep_best(None).stop_on(stopper).build()?;
    trainer.fit(prepared.data.split())
}

fn value(run: &ComparedRun, measure: Measure) -> f64 {
    match measure {
        Measure::Accuracy => run.result.accuracy.unwrap_or(f64::NAN),
        Measure::Perplexity => run.result.perplexity.unwrap_or(f64::NAN),
    }
}

/// Returns the row of a combination, or none if no run of it has finished.
fn row(combination: &Combination, runs: &[ComparedRun], measure: Measure) -> Option<ComparedRow> {
    let selected: Vec<&ComparedRun> = runs.iter().filter(|run| run.combination.labels == combination.labels).collect();
    let head_parameters = selected.first()?.result.head_parameters;
    let count = selected.len() as f64;
    let mean = selected.iter().map(|run| value(run, measure)).sum::<f64>() / count;
    let squares: f64 = selected.iter().map(|run| (value(run, measure) - mean).powi(2)).sum();
    Some(ComparedRow {
        combination: combination.clone(),
        runs: selected.len(),
        mean,
        spread: if selected.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 },
        examples_per_second: selected.iter().map(|run| run.result.examples_per_second).sum::<f64>() / count,
        head_parameters,
    })
}

/// Writes a line for each run. `columns` are those of the varied keys.
fn write_csv(path: &Path, columns: &[&str], runs: &[ComparedRun]) -> Result<(), Exit> {
    let mut table = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    table.write_record([columns, &COLUMNS].concat()).map_err(Exit::failed)?;
    for run in runs {
        let labels: Vec<&str> = run.combination.labels.iter().map(|(_, label)| label.as_str()).collect();
        table.serialize((labels, &run.result)).map_err(Exit::failed)?;
    }
    let text = table.into_inner().map_err(Exit::failed)?;
    files::write(path, text).map_err(Exit::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_has_mean_and_sample_deviation() {
        let combination = |width: &str| Combination {
            width: Some(width.to_owned()),
            varied: toml::Table::new(),
            labels: vec![("width".to_owned(), width.to_owned())],
            given: format!("--widths {width}"),
        };
        let run = |width: &str, accuracy| ComparedRun {
            combination: combination(width),
            result: RunResult {
                seed: 0,
                accuracy: Some(accuracy),
                perplexity: None,
                loss: 0.0,
                examples_per_second: 10.0 * accuracy,
                head_parameters: 7,
            },
        };
        let runs = [run("1", 1.0), run("2", 9.0), run("1", 3.0)];
        assert!(row(&combination("3"), &runs, Measure::Accuracy).is_none());
        let row = row(&combination("1"), &runs, Measure::Accuracy).unwrap();
        assert_eq!((row.runs, row.mean, row.examples_per_second, row.head_parameters), (2, 2.0, 20.0, 7));
        assert!((row.spread - 2.0_f64.sqrt()).abs() < 1e-12);
    }
}
