//! `interlock compare`: trains once for each width and seed, and compares the results.

use interlock::{
    Split, Stopper,
    tools::{
        files,
        strategy::{StrategyConfig, StrategyName},
    },
};
use serde::Serialize;

use crate::{
    arguments::{Compare, Width},
    config::RunConfig,
    exit::Exit,
    interrupt::{self, Next},
    progress::{note, say},
    run_folder,
    table::{Measure, table},
    terminal::{Terminal, Verbosity},
};

/// The results of one run.
#[derive(Clone, Debug, Serialize)]
struct ComparedRun {
    width: String,
    seed: u64,
    accuracy: Option<f64>,
    perplexity: Option<f64>,
    loss: f64,
    examples_per_second: f64,
}

/// All runs of one width.
#[derive(Clone, Debug, Serialize)]
struct WidthRow {
    width: String,
    runs: usize,
    mean: f64,
    /// The sample standard deviation; 0 for a single run.
    spread: f64,
    examples_per_second: f64,
}

/// The contents of `compare.json`.
#[derive(Clone, Debug, Serialize)]
struct Comparison {
    measure: &'static str,
    rows: Vec<WidthRow>,
    runs: Vec<ComparedRun>,
}

pub(crate) fn run(arguments: &Compare) -> Result<(), Exit> {
    let base = RunConfig::load(arguments.source.config.as_deref(), &arguments.source.sets)?;
    if arguments.seeds == 0 {
        return Err(Exit::Refused("--seeds 0: no run is asked for; use 1 or more".to_owned()));
    }
    let out = arguments.out.clone().unwrap_or_else(|| run_folder::fresh(&format!("{}-compare", base.name)));
    run_folder::refuse_existing(&out)?;
    let configs: Vec<(Width, RunConfig)> = arguments
        .widths
        .iter()
        .flat_map(|&width| (0..arguments.seeds).map(move |i| (width, i)))
        .map(|(width, i)| (width, RunConfig { seed: base.seed + i, strategy: strategy(width), ..base.clone() }))
        .collect();
    let mut measure = Measure::Accuracy;
    for (_, config) in &configs {
        measure = Measure::of(&config.prepare()?.data.description.kind);
    }

    files::create_folder(&out).map_err(Exit::failed)?;
    let (stopper, terminal) = (Stopper::new(), Terminal::new(Verbosity::Lines));
    let asked = stopper.clone();
    interrupt::on_signal(move |first| {
        if !first {
            return Next::End;
        }
        asked.stop();
        terminal
            .notice("stopping after the steps under way, with the tables of what is finished; again to end at once");
        Next::GoOn
    })?;
    // With --json, only JSON goes to stdout.
    let print = if arguments.json { note } else { say };
    let mut runs = Vec::new();
    let mut stopped = false;
    for (width, config) in &configs {
        let Some(one) = train(*width, config, &stopper).map_err(Exit::failed)? else {
            stopped = true;
            break;
        };
        let result = value(&one, measure);
        let name = measure.name();
        print(&format!(
            "width {width}  seed {}  {name} {result:.4}  {:.1} examples/s",
            one.seed, one.examples_per_second
        ));
        runs.push(one);
    }
    let rows: Vec<WidthRow> =
        arguments.widths.iter().filter_map(|width| row(&width.to_string(), &runs, measure)).collect();
    let mut shown = table(&["width", "runs", measure.name(), "spread", "examples/s"]);
    for row in &rows {
        shown.add_row([
            row.width.clone(),
            row.runs.to_string(),
            format!("{:.4}", row.mean),
            format!("{:.4}", row.spread),
            format!("{:.1}", row.examples_per_second),
        ]);
    }
    print(&shown.to_string());
    let comparison = Comparison { measure: measure.name(), rows, runs };
    run_folder::write_json(&out.join("compare.json"), &comparison).map_err(Exit::failed)?;
    write_csv(&out.join("compare.csv"), &comparison.runs)?;
    print(&format!("the tables are in {}", out.display()));
    if arguments.json {
        say(&serde_json::to_string(&comparison).map_err(Exit::failed)?);
    }
    if stopped { Err(Exit::Stopped) } else { Ok(()) }
}

fn strategy(width: Width) -> StrategyConfig {
    match width {
        Width::Number(width) => StrategyConfig { width: Some(width), ..StrategyConfig::default() },
        Width::EndToEnd => StrategyConfig { name: Some(StrategyName::EndToEnd), ..StrategyConfig::default() },
    }
}

/// Trains once. Returns none if the run was stopped.
fn train(width: Width, config: &RunConfig, stopper: &Stopper) -> interlock::Result<Option<ComparedRun>> {
    let prepared = config.prepare()?;
    let mut trainer = prepared.builder.keep_best(None).stop_on(stopper).build()?;
    let report = trainer.fit(Split { train: &*prepared.data.train, validation: Some(&*prepared.data.validation) })?;
    Ok((!report.stopped).then(|| ComparedRun {
        width: width.to_string(),
        seed: config.seed,
        accuracy: report.final_scores.accuracy,
        perplexity: report.final_scores.perplexity,
        loss: report.final_scores.loss.unwrap_or(f64::NAN),
        examples_per_second: report.examples_per_second,
    }))
}

fn value(run: &ComparedRun, measure: Measure) -> f64 {
    match measure {
        Measure::Accuracy => run.accuracy.unwrap_or(f64::NAN),
        Measure::Perplexity => run.perplexity.unwrap_or(f64::NAN),
    }
}

/// Returns the row of `width`, or none if no run of this width has finished.
fn row(width: &str, runs: &[ComparedRun], measure: Measure) -> Option<WidthRow> {
    let selected: Vec<&ComparedRun> = runs.iter().filter(|run| run.width == width).collect();
    if selected.is_empty() {
        return None;
    }
    let count = selected.len() as f64;
    let mean = selected.iter().map(|run| value(run, measure)).sum::<f64>() / count;
    let squares: f64 = selected.iter().map(|run| (value(run, measure) - mean).powi(2)).sum();
    Some(WidthRow {
        width: width.to_owned(),
        runs: selected.len(),
        mean,
        spread: if selected.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 },
        examples_per_second: selected.iter().map(|run| run.examples_per_second).sum::<f64>() / count,
    })
}

fn write_csv(path: &std::path::Path, runs: &[ComparedRun]) -> Result<(), Exit> {
    let mut table = csv::Writer::from_writer(Vec::new());
    for run in runs {
        table.serialize(run).map_err(Exit::failed)?;
    }
    let text = table.into_inner().map_err(Exit::failed)?;
    files::write(path, text).map_err(Exit::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_has_mean_and_sample_deviation() {
        let run = |width: &str, accuracy| ComparedRun {
            width: width.to_owned(),
            seed: 0,
            accuracy: Some(accuracy),
            perplexity: None,
            loss: 0.0,
            examples_per_second: 10.0 * accuracy,
        };
        let runs = [run("1", 1.0), run("2", 9.0), run("1", 3.0)];
        assert!(row("3", &runs, Measure::Accuracy).is_none());
        let row = row("1", &runs, Measure::Accuracy).unwrap();
        assert_eq!((row.runs, row.mean, row.examples_per_second), (2, 2.0, 20.0));
        assert!((row.spread - 2.0_f64.sqrt()).abs() < 1e-12);
    }
}
