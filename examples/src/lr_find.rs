//! `interlock lr-find`: trains for a few steps while the learning rate rises, and suggests a rate.

mod sweep;

use std::{
    iter::successors,
    sync::mpsc::{Sender, channel},
};

use interlock::{Callback, Control, Error, HeadsTrained, LrScheduleConfig, TrainEvent, tools::files};
use serde::Serialize;

use crate::{
    arguments::LrFind,
    config::{self, ConfigOf, Devices, Prepared, Setting},
    exit::Exit,
    plot::{Axis, Line, Plot, Series},
    program::Program,
    progress::{Progress, note_emulation},
    run_folder,
    table::{Measure, dash, table},
    terminal::{Terminal, Verbosity, note, say},
};
use sweep::{Rates, Suggestion, Sweep};

/// The keys of the length of a run.
const LENGTHS: [&str; 2] = ["epochs", "steps"];

/// What is found about the loss of one stage's head.
#[derive(Clone, Debug, Serialize)]
struct HeadRates {
    stage: usize,
    #[serde(flatten)]
    suggestion: Suggestion,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
struct SweepStep {
    lr: f64,
    /// The losses by stage, before the update; none where a stage has no head.
    losses: Vec<Option<f64>>,
}

/// The result, as JSON.
#[derive(Clone, Debug, Serialize)]
struct Found {
    /// The rate at which the mean of the heads' losses falls fastest, or none if it never falls.
    lr: Option<f64>,
    heads: Vec<HeadRates>,
    steps: Vec<SweepStep>,
    /// Whether the sweep ended early because a loss rose far or was not finite.
    diverged: bool,
}

pub(crate) fn run<P: Program>(arguments: &LrFind) -> Result<(), Exit> {
    let rates = Rates::new(arguments.from, arguments.to, arguments.steps)?;
    if let Some(path) = &arguments.plot {
        run_folder::refuse_no_place("--plot", path)?;
    }
    if let Some(length) = Setting::sets(&arguments.source.sets)?.iter().find(|set| LENGTHS.contains(&&*set.key)) {
        let right = format!("use --steps, such as --steps {}", arguments.steps);
        return Err(Error::invalid(&length.given, "lr-find has a length of its own", right).into());
    }
    let mut config = config::load::<P>(arguments.source.config.as_deref(), &arguments.source.sets)?;
    config.devices = Devices::of_arguments(&arguments.devices).unwrap_or(config.devices);
    let found = find::<P>(config, rates, arguments.json)?;
    if let Some(path) = &arguments.plot {
        files::write_output(path, plot(&found).to_svg()).map_err(Exit::failed)?;
    }
    match arguments.json {
        true => say(&serde_json::to_string(&found).map_err(Exit::failed)?),
        false => print(&found),
    }
    Ok(())
}

/// Sends the losses of each step, until one of them diverges.
struct Recorder {
    rates: Rates,
    sweep: Sweep,
    steps: Sender<SweepStep>,
}

impl Callback for Recorder {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> interlock::Result<Control> {
        let TrainEvent::StepDone { step, stages, .. } = event else { return Ok(Control::Continue) };
        let losses: Vec<Option<f64>> = stages.iter().map(|stage| stage.score.map(|score| score.mean_loss())).collect();
        if self.sweep.add(&losses) {
            return Ok(Control::Stop("a loss has diverged".to_owned()));
        }
        // The receiver is there until the end of the run.
        let _ = self.steps.send(SweepStep { lr: self.rates.at(*step), losses });
        Ok(Control::Continue)
    }
}

/// Trains with rising rates. With `quiet`, shows no progress.
fn find<P: Program>(mut config: ConfigOf<P>, rates: Rates, quiet: bool) -> Result<Found, Exit> {
    // What would change the rates, end the steps early, or train heads whose losses no stage follows.
    config.lr_schedule = LrScheduleConfig::default();
    config.early_stopping = None;
    config.ema = None;
    config.heads.train = HeadsTrained::Needed;
    let base = config.optimizer.lr;
    let Prepared { data, builder, .. } = config.prepare_to_train(None)?;
    note_emulation(&builder);
    data.notes.iter().for_each(|line| note(line));
    let (sender, steps) = channel();
    let terminal = Terminal::new(Verbosity::new(false, quiet));
    let mut trainer = builder
        .lr_schedule(move |step: u64| rates.at(step) / base)
        .steps(rates.steps)
        .keep_best(None)
        .callback(Recorder { rates, sweep: Sweep::default(), steps: sender })
        .callback(Progress::new(&terminal, Measure::of(&data.description.kind)))
        .build()?;
    let trained = trainer.fit(data.train);
    terminal.hide_bar();
    // With the trainer goes the sender, which ends the steps.
    drop(trainer);
    let diverged = match trained {
        Ok(report) => report.stop_reason.is_some(),
        Err(error) if is_not_finite(&error) => true,
        Err(error) => return Err(error.into()),
    };
    let steps: Vec<SweepStep> = steps.into_iter().collect();
    let stages = steps.first().map_or(0, |step| step.losses.len());
    let head = |stage: usize| {
        let curve: Option<Vec<(f64, f64)>> = steps.iter().map(|step| Some((step.lr, step.losses[stage]?))).collect();
        Some(HeadRates { stage, suggestion: Suggestion::of(&curve?) })
    };
    let heads: Vec<HeadRates> = (0..stages).filter_map(head).collect();
    let mean = |step: &SweepStep| (step.lr, step.losses.iter().flatten().sum::<f64>() / heads.len() as f64);
    let lr = Suggestion::of(&steps.iter().map(mean).collect::<Vec<_>>()).steepest;
    Ok(Found { lr, heads, steps, diverged })
}

/// Returns whether the run failed because a value was not finite.
fn is_not_finite(error: &Error) -> bool {
    let causes = successors(Some(error as &dyn std::error::Error), |error| (**error).source());
    causes.filter_map(|error| error.downcast_ref()).any(|error| matches!(error, Error::NotFinite(..)))
}

fn print(found: &Found) {
    let show = |rate: Option<f64>| rate.map_or_else(dash, |rate| format!("{rate:.1e}"));
    let mut shown = table(&["head of stage", "loss falls fastest at", "loss is lowest at"]).aligned_right();
    for HeadRates { stage, suggestion } in &found.heads {
        shown.add_row([stage.to_string(), show(suggestion.steepest), show(suggestion.lowest)]);
    }
    say(&shown.to_string());
    if found.diverged {
        let last = found.steps.last().map_or(0.0, |step| step.lr);
        say(&format!("ended early: above a rate of {last:.1e} the losses diverge"));
    }
    say(&match found.lr {
        Some(rate) => format!("suggested: optimizer.lr = {rate:.1e}"),
        None => {
            "the losses do not fall: nothing is suggested; use more --steps, a lower --from or a higher --to".to_owned()
        }
    });
}

/// Returns the plot of the losses over the rates.
fn plot(found: &Found) -> Plot {
    let curve = |(colour, HeadRates { stage, .. }): (usize, &HeadRates)| Series {
        name: format!("stage {stage}"),
        colour,
        line: Line::Plain,
        points: found.steps.iter().filter_map(|step| Some((step.lr, step.losses[*stage]?))).collect(),
    };
    Plot {
        name: "lr_find".to_owned(),
        title: "Training loss of each head while the learning rate rises".to_owned(),
        x: Axis { logarithmic: true, ..Axis::new("learning rate") },
        y: Axis::new("loss (mean a target)"),
        series: found.heads.iter().enumerate().map(curve).collect(),
    }
}
