//! The sections of the page.

use interlock::tools::{
    timeline::{Drawing, escape},
    trainer::FinalReport,
};

use super::{
    super::{run::Run, words},
    DASH, four,
    html::{Cell, pairs, table},
    or_dash, strategy,
};
use crate::{environment::Environment, plot::Plot, run_folder::Status, table::Measure};

/// Describes the training in a line.
pub(super) fn setting(run: &Run) -> String {
    let mut words = vec![strategy(run)];
    match run.stages() {
        0 => {}
        1 => words.push("1 stage".to_owned()),
        stages => words.push(format!("{stages} stages")),
    }
    let config = &run.config;
    words.push(match config.micro_batches {
        1 => format!("batches of {}", config.batch_size),
        pieces => format!("batches of {} in {pieces} micro-batches", config.batch_size),
    });
    words.push(format!("seed {}", config.seed));
    words.join(" · ")
}

/// Returns the folder of the run, and the time of its start.
pub(super) fn folder_and_start(run: &Run) -> String {
    let begun = run.environment.as_ref().map(|environment| format!(", begun {}", environment.started));
    format!("{}{}", run.path.display(), begun.unwrap_or_default())
}

/// Returns a banner about the state of a run that has not finished, or an empty text for a finished one. With `named` it contains the run's name,
/// for a page of several runs.
pub(super) fn banner(run: &Run, named: bool) -> String {
    let name = if named { format!(" {}", run.label) } else { String::new() };
    let (class, heading, text) = match (&run.status, &run.failed) {
        (Status::Finished, _) => return String::new(),
        (_, Some(failed)) => {
            let position = [
                failed.stage.map(|stage| format!("stage {stage}")).or_else(|| failed.origin.clone()),
                failed.step.map(|step| format!("step {step}")),
                failed.micro_batch.map(|index| format!("micro-batch {index}")),
                failed.phase.clone(),
            ];
            let position = position.into_iter().flatten().collect::<Vec<_>>().join(", ");
            let colon = if position.is_empty() { "" } else { ": " };
            ("banner bad", format!("The run{name} failed"), format!("{position}{colon}{}", failed.cause))
        }
        (Status::Failed { cause }, None) => ("banner bad", format!("The run{name} failed"), cause.clone()),
        (Status::Stopped { steps }, None) => {
            ("banner", format!("The run{name} was stopped"), format!("After {steps} steps, with its values saved."))
        }
        (Status::Running, None) => (
            "banner",
            format!("The run{name} has not finished"),
            "It is still running, or was killed. This page shows what it has written so far.".to_owned(),
        ),
    };
    format!("<div class=\"{class}\"><b>{}</b>{}</div>\n", escape(&heading), escape(&text))
}

/// Returns a table of several runs, with one row for each.
pub(super) fn summary(runs: &[Run]) -> String {
    let all: Vec<Vec<Named>> = runs.iter().map(|run| results(run, runs)).collect();
    // The columns in which some run has a value.
    let shown: Vec<usize> = (0..all[0].len()).filter(|&n| all.iter().any(|results| results[n].1 != DASH)).collect();
    let header = std::iter::once(Cell::text("run")).chain(shown.iter().map(|&n| Cell::number(all[0][n].0))).chain([
        Cell::text("strategy"),
        Cell::number("stages"),
        Cell::number("seed"),
        Cell::text("state"),
    ]);
    let row = |(n, run): (usize, &Run)| {
        let results = &all[n];
        let state = match run.status {
            Status::Running => "not finished",
            Status::Finished => "finished",
            Status::Stopped { .. } => "stopped",
            Status::Failed { .. } => "failed",
        };
        let stages = or_dash((run.stages() > 0).then(|| run.stages().to_string()));
        let settings = [
            Cell::text(strategy(run)),
            Cell::number(stages),
            Cell::number(run.config.seed.to_string()),
            Cell::text(state),
        ];
        let results = shown.iter().map(|&n| Cell::number(results[n].1.clone()));
        std::iter::once(Cell::text(run.label.clone()).keyed(n)).chain(results).chain(settings).collect()
    };
    let rows: Vec<_> = runs.iter().enumerate().map(row).collect();
    table(&header.collect::<Vec<_>>(), &rows)
}

/// A result of a run, with its name.
type Named = (&'static str, String);

/// Returns the names and the values of scores on the validation set, or of those on the last training batch. A missing value is a dash.
fn named(run: &Run, names: [&'static str; 3], scores: Option<FinalReport>) -> [Named; 3] {
    let of = |value: fn(&FinalReport) -> Option<f64>| scores.as_ref().and_then(value);
    let perplexity = of(|scores| scores.perplexity).filter(|_| run.measure == Measure::Perplexity);
    let values = [
        of(|scores| scores.accuracy).map(words::percent),
        perplexity.map(|perplexity| format!("{perplexity:.3}")),
        of(|scores| scores.loss).map(four),
    ];
    std::array::from_fn(|n| (names[n], or_dash(values[n].clone())))
}

const VALIDATION: [&str; 3] = ["validation accuracy", "validation perplexity", "validation loss"];
const LAST_BATCH: [&str; 3] =
    ["accuracy, last training batch", "perplexity, last training batch", "loss, last training batch"];

/// Returns the scores of the last stage on the validation set.
fn on_validation(run: &Run) -> [Named; 3] {
    named(run, VALIDATION, run.validation_scores())
}

/// Returns the scores of the last stage on the last training batch.
fn on_last_batch(run: &Run) -> [Named; 3] {
    named(run, LAST_BATCH, run.training_scores())
}

/// Returns the speed and the length of a run.
fn speed(run: &Run) -> [Named; 3] {
    [
        ("examples/s", or_dash(run.examples_per_second().map(|rate| format!("{rate:.1}")))),
        ("training time", words::duration(run.train_seconds())),
        ("steps", words::count(run.steps.len() as u64)),
    ]
}

/// Returns the results of a run among `runs`, in the same order for all of them. Scores on training batches are never among those of evaluations: they
/// have columns of their own, if a run was not evaluated. If a run was evaluated before its last step, a column says after which steps.
fn results(run: &Run, runs: &[Run]) -> Vec<Named> {
    let is_evaluated = |run: &Run| run.evaluated_after().is_some();
    let mut results = Vec::new();
    if runs.iter().any(is_evaluated) {
        let scores = on_validation(run).into_iter().map(|(name, value)| match name == measured(run) {
            true if !is_evaluated(run) => (name, "not evaluated".to_owned()),
            _ => (name, value),
        });
        results.extend(scores);
        if runs.iter().any(|run| run.evaluated_after().is_some_and(|steps| steps != run.last_step())) {
            results.push(("evaluated after step", or_dash(run.evaluated_after().map(words::count))));
        }
    }
    if !runs.iter().all(is_evaluated) {
        results.extend(on_last_batch(run));
    }
    results.extend(speed(run));
    results
}

/// Returns the name of the validation score by which a run is judged.
fn measured(run: &Run) -> &'static str {
    match run.measure {
        Measure::Accuracy => VALIDATION[0],
        Measure::Perplexity => VALIDATION[1],
    }
}

/// Returns the results of one run in large print.
pub(super) fn cards(run: &Run) -> String {
    let (scores, note) = match run.evaluated_after() {
        Some(steps) if steps == run.last_step() => (on_validation(run), String::new()),
        Some(steps) => (on_validation(run), format!(" at the last evaluation, after step {}", words::count(steps))),
        None => (on_last_batch(run), "; the run was not evaluated".to_owned()),
    };
    let first = usize::from(run.measure == Measure::Perplexity);
    let mut results: Vec<Named> = scores.into_iter().chain(speed(run)).collect();
    // The measure of the run comes first.
    results.swap(0, first);
    let results = results.into_iter().filter(|(_, value)| value != DASH);
    let card = |(n, (name, value)): (usize, Named)| {
        let class = if n == 0 { "card first" } else { "card" };
        format!("<div class=\"{class}\"><b>{}</b><span>{}</span></div>\n", escape(&value), escape(name))
    };
    let cards: String = results.enumerate().map(card).collect();
    format!(
        "<div class=\"cards\">\n{cards}</div>\n<p class=\"faint note\">Scores are those of the last stage{note}.</p>\n"
    )
}

/// Returns the section of the plots.
pub(super) fn plots(plots: &[Plot]) -> String {
    if plots.is_empty() {
        return "<h2>Curves</h2>\n<p class=\"faint\">No step has been finished.</p>\n".to_owned();
    }
    let figures: String = plots.iter().map(|plot| format!("<figure>{}</figure>\n", plot.to_inline_svg())).collect();
    format!("<h2>Curves</h2>\n<div class=\"plots\">\n{figures}</div>\n")
}

/// Returns the section with the table of the stages.
pub(super) fn stages(run: &Run) -> String {
    let Some(started) = &run.started else { return String::new() };
    let header = [
        Cell::text("stage"),
        Cell::text("device"),
        Cell::number("parameters"),
        Cell::number("of the head"),
        Cell::number("follows losses"),
        Cell::number("validation loss"),
        Cell::number("validation accuracy"),
        Cell::number("busy"),
    ];
    let seconds = run.train_seconds();
    // The plan of the last step; a later one may not have begun.
    let plans = run.plans();
    let made = run.steps.last().map_or(0, |step| step.step);
    let phase = plans.iter().rev().find(|phase| phase.from_step <= made);
    let row = |(k, stage): (usize, &crate::events::Stage)| {
        let head = run.evaluations.last().and_then(|evaluated| evaluated.heads.iter().find(|head| head.stage == k));
        let follows = phase.and_then(|phase| phase.follows.get(k));
        let busy: f64 = run.steps.iter().filter_map(|step| step.stages.get(k)).map(|stage| stage.busy_seconds).sum();
        vec![
            Cell::text(stage.stage.to_string()),
            Cell::text(stage.device.clone()),
            Cell::number(words::count(stage.parameters as u64)),
            Cell::number(words::count(stage.head_parameters as u64)),
            Cell::number(or_dash(follows.map(ToString::to_string))),
            Cell::number(or_dash(head.map(|head| four(head.loss)))),
            Cell::number(or_dash(head.and_then(|head| head.accuracy).map(words::percent))),
            Cell::number(or_dash((seconds > 0.0).then(|| words::percent(busy / seconds)))),
        ]
    };
    let rows: Vec<_> = started.stages.iter().enumerate().map(row).collect();
    format!("<h2>Stages</h2>\n{}", table(&header, &rows))
}

/// Returns the section of the timeline, or an empty text if it was not recorded.
pub(super) fn timeline(run: &Run) -> String {
    let Some(timeline) = run.timeline_to_show() else { return String::new() };
    let svg = timeline.to_svg(&Drawing { title: "What each stage did when, in the last steps", ..Drawing::default() });
    format!("<h2>Timeline</h2>\n<div class=\"sheet timeline\">{svg}</div>\n")
}

/// Returns the section with the text of the configuration.
pub(super) fn configuration(run: &Run) -> String {
    let text = escape(run.config_text.trim_end());
    format!("<h2>Configuration</h2>\n<div class=\"sheet\"><pre>{text}</pre></div>\n")
}

/// Returns the section about program and machine of a run, or an empty text if they are not known.
pub(super) fn environment(run: &Run) -> String {
    let Some(environment) = &run.environment else { return String::new() };
    let values = facts_of(environment);
    let rows: Vec<(&str, String)> = ENVIRONMENT.into_iter().zip(values).collect();
    format!("<h2>Environment</h2>\n{}", pairs(&rows))
}

/// Returns the section with programs and machines of several runs, side by side.
pub(super) fn environments(runs: &[Run]) -> String {
    let known: Vec<(usize, &Run, Vec<String>)> = runs
        .iter()
        .enumerate()
        .filter_map(|(n, run)| Some((n, run, facts_of(run.environment.as_ref()?).to_vec())))
        .collect();
    if known.is_empty() {
        return String::new();
    }
    let names = known.iter().map(|(n, run, _)| Cell::text(run.label.clone()).keyed(*n));
    let header: Vec<Cell> = std::iter::once(Cell::text("")).chain(names).collect();
    let row = |(n, name): (usize, &str)| {
        let values = known.iter().map(|(_, _, facts)| Cell::text(facts[n].clone()));
        std::iter::once(Cell::text(name)).chain(values).collect()
    };
    let rows: Vec<_> = ENVIRONMENT.into_iter().enumerate().map(row).collect();
    format!("<h2>Environments</h2>\n{}", table(&header, &rows))
}

/// The names of the values of an environment.
const ENVIRONMENT: [&str; 8] =
    ["program", "command", "begun", "system", "processor", "cores", "vector instructions", "memory"];

/// Returns the values of an environment, in the order of [`ENVIRONMENT`].
fn facts_of(environment: &Environment) -> [String; 8] {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    [
        format!("interlock {}, revision {}", environment.version, environment.revision),
        environment.command_line(),
        environment.started.clone(),
        format!("{}, {}", environment.os, environment.architecture),
        or_dash(environment.cpu.clone()),
        environment.cores.to_string(),
        environment.instructions.clone(),
        or_dash(environment.memory_bytes.map(gib)),
    ]
}
