//! `interlock train`: trains a model, and keeps the run in a folder.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use interlock::{
    Report, Stopper, Trainer,
    tools::{model::PartitionConfig, timeline::Timeline, transport::Built},
};
use interlock_models::data::Data;

use crate::{
    arguments::Train,
    config::{self, ConfigOf, Devices, PlacementChoice, Prepared},
    events::EventLog,
    exit::Exit,
    exporter::Exporter,
    interrupt::{self, Next},
    log, plan,
    program::{ModelSection, Program},
    progress::{Progress, emulation},
    ranks::ranks,
    report::words,
    resume::Found,
    run_folder::{self, RunFolder, Status},
    serve::{Shared, serve, targets},
    table::{self, Measure},
    terminal::{Terminal, Verbosity, finish as finish_printing, say},
    trace::{self, TraceFile},
};

pub(crate) fn run<P: Program>(arguments: &Train) -> Result<(), Exit> {
    if let Some(ranks) = ranks().filter(|ranks| ranks.rank() > 0) {
        return serve::<P>(arguments, ranks);
    }
    let (resumed, again) = match Found::<P>::of(arguments)? {
        Found::Nothing => (None, None),
        Found::Again(folder) => (None, Some(folder)),
        Found::Run(resumed) => (Some(resumed), None),
        Found::Finished(folder) => {
            say(&format!(
                "the run in {} has finished; to train longer, give more steps or epochs",
                folder.path().display()
            ));
            return Shared::nothing().send();
        }
    };
    let mut config = match &resumed {
        Some(resumed) => resumed.config.clone(),
        None => config::load::<P>(arguments.source.config.as_deref(), &arguments.source.sets)?,
    };
    config.devices = Devices::of_arguments(&arguments.devices).unwrap_or(config.devices);
    config.check_ranks()?;
    if let (Some(out), None, None) = (&arguments.out, &resumed, &again) {
        run_folder::refuse_existing(out)?;
    }
    if let Some(report) = &arguments.report {
        run_folder::refuse_no_place("--report", report)?;
    }
    let traces = arguments.trace.iter().map(|path| TraceFile::new(path)).collect::<interlock::Result<Vec<_>>>()?;
    let is_placed = config.placement == PlacementChoice::Auto;
    let units = match ranks().filter(|_| is_placed) {
        Some(ranks) if arguments.auto || config.partition.units_per_stage.is_none() => {
            Some(plan::best_partition_on_ranks::<P>(&config, ranks)?)
        }
        None if arguments.auto => Some(plan::best_partition::<P>(&config)?),
        _ => None,
    };
    if units.is_some() {
        config.partition = PartitionConfig { stages: None, units_per_stage: units };
    }
    let Prepared { data, builder, initial_values, .. } =
        config.prepare_to_train(resumed.as_ref().map(|resumed| &resumed.checkpoint))?;
    if let Some(resumed) = &resumed {
        resumed.check_data(&data)?;
    }
    let description = serde_json::to_string_pretty(&data.description).map_err(Exit::failed)?;
    Shared::run(config.to_toml()?, &data.description).send()?;
    let builder = builder.attach(run_folder::CONFIG, config.to_toml()?).attach(run_folder::DATA, description);
    // Before the stages are built, since they register their metrics then.
    let exporter = arguments.metrics.map(|address| Exporter::start(address, &config.name)).transpose()?;
    let targets = match (ranks(), arguments.metrics) {
        (Some(ranks), Some(address)) => targets(&ranks.hosts(), address)?,
        _ => None,
    };
    let trace_steps = arguments.trace_steps.unwrap_or(trace::STEPS);
    let terminal = Terminal::new(Verbosity::new(arguments.plain, arguments.quiet));
    emulation(&builder).into_iter().for_each(|line| terminal.notice(line));
    let log = log::start(arguments.log_format.unwrap_or_default(), &terminal);
    exporter.iter().for_each(|exporter| exporter.announce(&terminal));
    for line in &data.notes {
        terminal.notice(line);
        tracing::info!("{line}");
    }
    // Before the folder is made, so that nothing is left behind if a stage cannot be built, or batches are too small for it.
    let mut trainer = builder.record(trace_steps.max(trace::STEPS)).build()?;
    trainer.check(data.split())?;
    let after = resumed.as_ref().map(|_| trainer.steps());
    // From now on a signal stops the run with all that it has, so that no folder is left half begun.
    let written = Written::default();
    stop_on_signals(&terminal, &written, trainer.stopper());
    let (folder, events) = match resumed {
        Some(resumed) => {
            let folder = resumed.folder;
            // First of all, since it may fail while everything is still there.
            let events = folder.event_log(&config.name, arguments.tensorboard, after).map_err(Exit::failed)?;
            folder.continue_with(&config).map_err(Exit::failed)?;
            terminal.say(&format!("continues the run in {} after {} steps", folder.path().display(), trainer.steps()));
            (folder, events)
        }
        None => {
            let folder = match again {
                Some(folder) => folder,
                None => RunFolder::lock(&run_folder::create(arguments.out.as_deref(), &config.name)?)?,
            };
            let folder = folder.begin(&config, &data.description).map_err(Exit::failed)?;
            let events = folder.event_log(&config.name, arguments.tensorboard, None).map_err(Exit::failed)?;
            (folder, events)
        }
    };
    trainer.checkpoint_to(folder.path(), &config.checkpoint)?;
    if let Some(exporter) = &exporter {
        exporter.name_run(&folder.name(), config.model.kind(), &config.strategy.label());
    }
    folder.write_targets(targets.as_ref()).map_err(Exit::failed)?;
    if let (Some(values), Some(path)) = (initial_values, &config.init_from) {
        terminal.say(&format!("starts from {}: {values}", path.display()));
    }
    let _ = written.set(folder.clone());
    let trained = log.write_to(&folder.log()).and_then(|()| {
        let run = TrainingRun::<P> { config: &config, folder: &folder, terminal: &terminal, events };
        run.train(trainer, &data)
    });
    let ended = end::<P>(arguments, &config, &folder, &traces, &terminal, trained);
    if let Some(exporter) = &exporter {
        exporter.linger(Duration::from_secs(arguments.metrics_linger));
    }
    // Nobody serves them any more. If the folder is gone, there is nothing to remove.
    let _ = folder.write_targets(None);
    ended
}

/// Writes the results of a run to the files that the command line names, or reports its failure.
fn end<P: Program>(
    arguments: &Train,
    config: &ConfigOf<P>,
    folder: &RunFolder,
    traces: &[TraceFile],
    terminal: &Terminal,
    trained: interlock::Result<(Report, Option<Timeline>)>,
) -> Result<(), Exit> {
    match trained {
        Ok((report, timeline)) => {
            if let Some(path) = &arguments.report {
                run_folder::write_output_json(path, &report).map_err(Exit::failed)?;
            }
            if let Some(timeline) = &timeline {
                for file in traces {
                    file.write(timeline, arguments.trace_steps.unwrap_or(trace::STEPS), &config.name)
                        .map_err(Exit::failed)?;
                    terminal.say(&format!("the timeline is in {}", file.path().display()));
                }
            }
            if report.stopped { Err(Exit::Stopped) } else { Ok(()) }
        }
        Err(error) => {
            let cause = error.to_string();
            terminal.hide_bar();
            log::failed(&cause);
            folder.end(&Status::Failed { cause: cause.clone() }).map_err(Exit::failed)?;
            Err(Exit::Failed(format!("{cause}\nthe run is kept, marked as failed, in {}", folder.path().display())))
        }
    }
}

/// The folder that is written, once it is there.
type Written = Arc<OnceLock<RunFolder>>;

/// Makes signals stop the run.
fn stop_on_signals(terminal: &Terminal, written: &Written, stopper: Stopper) {
    let (terminal, written) = (terminal.clone(), Arc::clone(written));
    interrupt::on_signal(move |first| {
        if first && !written.get().is_some_and(RunFolder::has_ended) {
            stopper.stop();
            terminal.notice(
                "stopping after the steps in progress, with the run saved; again, after two seconds, to end at once",
            );
            return Next::GoOn;
        }
        if let Some(folder) = written.get() {
            // Nothing else is saved. If this cannot be written either, the run stays marked as running.
            let _ = folder.end(&Status::Failed { cause: "interrupted before it was saved".to_owned() });
            terminal.hide_bar();
            terminal.notice(&format!("ended; the files of the run are in {}", folder.path().display()));
        }
        Next::End
    });
}

/// A run to train, with its folder and terminal.
struct TrainingRun<'a, P: Program> {
    config: &'a ConfigOf<P>,
    folder: &'a RunFolder,
    terminal: &'a Terminal,
    events: EventLog,
}

impl<P: Program> TrainingRun<'_, P> {
    /// Trains, and writes a failure as the last event.
    fn train(&self, trainer: Trainer, data: &Data) -> interlock::Result<(Report, Option<Timeline>)> {
        let trained = self.train_watched(trainer, data);
        if let Err(error) = &trained {
            self.events.failed(error);
        }
        trained
    }

    fn train_watched(&self, mut trainer: Trainer, data: &Data) -> interlock::Result<(Report, Option<Timeline>)> {
        let Self { config, folder, terminal, .. } = *self;
        let measure = Measure::of(&data.description.kind);
        trainer.callback(Progress::new(terminal, measure));
        trainer.callback(log::Log);
        trainer.callback(self.events.clone());
        terminal.say(&format!(
            "{}: model {} ({}), strategy {}, {} training and {} validation examples, seed {}",
            config.name,
            config.model.kind(),
            parameters(trainer.stages()),
            words::strategy(&config.strategy),
            data.train.len(),
            data.validation.len(),
            config.seed
        ));
        let devices: Vec<&str> = trainer.stages().iter().map(|stage| &*stage.device).collect();
        terminal.say(&format!("stages on {}; units {:?}", devices.join(", "), trainer.partition().units_per_stage()));
        let heads: Vec<bool> = trainer.stages().iter().map(|stage| stage.head_parameters > 0).collect();
        terminal.say(&format!("{}\n", without_missing_heads(&trainer.plans().to_string(), &heads)));
        let report = trainer.fit(data.split());
        let timeline = trainer.timeline();
        // The weights come first: a file that cannot be written later must not lose them.
        let report = match report {
            Ok(report) => {
                folder.write_weights(&trainer.snapshot()?)?;
                report
            }
            Err(error) => {
                self.save_after_failure(&trainer, timeline.as_ref());
                return Err(error);
            }
        };
        if let Some(best) = trainer.best().filter(|_| config.checkpoint.keep == 0) {
            folder.write_best(&best)?;
        }
        folder.finish(&report)?;
        timeline.as_ref().map_or(Ok(()), |timeline| folder.write_timeline(timeline))?;
        if let Some(state) = trainer.strategy_state()? {
            folder.write_strategy(&state)?;
        }
        print_results(&report, measure, terminal);
        terminal.say(&format!("the run is in {}", folder.path().display()));
        // All is saved: now there is time for a terminal that is paused. What could not be written is reported at the end. Files that the command line names
        // may be stdout too, and come after this.
        let _ = finish_printing();
        Ok((report, timeline))
    }
}

impl<P: Program> TrainingRun<'_, P> {
    /// Writes what a failed run has: its last weights, and the timeline, which may show why it failed. What cannot be written is a warning, since the
    /// failure is what matters.
    fn save_after_failure(&self, trainer: &Trainer, timeline: Option<&Timeline>) {
        if let Some((steps, weights)) = trainer.last_weights() {
            match self.folder.write_weights(&weights) {
                Ok(()) => self.terminal.notice(&format!("the weights after {steps} steps are saved")),
                Err(error) => tracing::warn!("the last weights could not be saved: {error}"),
            }
        }
        if let Some(Err(error)) = timeline.map(|timeline| self.folder.write_timeline(timeline)) {
            tracing::warn!("the timeline could not be saved: {error}");
        }
    }
}

/// Returns the numbers of parameters of all stages, and of their heads if they have any.
fn parameters(stages: &[Built]) -> String {
    let count = |of: fn(&Built) -> usize| stages.iter().map(of).sum::<usize>() as u64;
    let (main, heads) = (count(|stage| stage.parameters), count(|stage| stage.head_parameters));
    match heads {
        0 => format!("{} parameters", words::count(main)),
        heads => format!("{} parameters, and {} in heads", words::count(main), words::count(heads)),
    }
}

/// Returns a table of plans without the probe heads that are not built; `heads` says whether each stage has a head.
fn without_missing_heads(table: &str, heads: &[bool]) -> String {
    let row = |line: &str| -> String {
        let stage = line.split_whitespace().next().and_then(|first| first.parse::<usize>().ok());
        match line.strip_suffix("probe").filter(|_| stage.is_some_and(|k| heads.get(k) == Some(&false))) {
            Some(cells) => format!("{cells}-"),
            None => line.to_owned(),
        }
    };
    table.lines().map(row).collect::<Vec<_>>().join("\n")
}

/// Prints the results of a run.
fn print_results(report: &Report, measure: Measure, terminal: &Terminal) {
    if report.stopped {
        let scores = match (report.evaluated, report.steps) {
            (_, 0) => "",
            (true, _) => "; scores of an evaluation after the last of them",
            (false, _) => "; scores of the last training batch",
        };
        terminal.say(&format!("stopped after {} steps{scores}", report.steps));
    }
    if let Some(reason) = &report.stop_reason {
        terminal.say(&format!("ended after {} steps; {reason}", report.steps));
    }
    terminal.say(&table::stages(report, measure).to_string());
    let result = match measure {
        Measure::Accuracy => report.final_scores.accuracy,
        Measure::Perplexity => report.final_scores.perplexity,
    };
    if let Some(result) = result {
        terminal.say(&format!(
            "{} of the last stage: {result:.4}   {:.1} examples/s   {:.1} s of training",
            table::scored(report.evaluated, measure.name()),
            report.examples_per_second,
            report.train_seconds
        ));
    }
}

#[cfg(test)]
mod tests {
    use interlock::GradientPlan;

    use super::without_missing_heads;

    #[test]
    fn heads_that_are_not_built_have_no_probe() {
        let table = GradientPlan::new(vec![1, 1, 2]).unwrap().to_string();
        assert!(table.lines().nth(1).unwrap().ends_with("probe"), "{table}");
        assert_eq!(without_missing_heads(&table, &[true, true, false]), table);
        let shown = without_missing_heads(&table, &[false, true, false]);
        let heads: Vec<&str> = shown.lines().map(|line| line.split_whitespace().last().unwrap()).collect();
        assert_eq!(heads, ["head", "-", "needed", "last"]);
    }
}
