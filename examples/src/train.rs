//! `interlock train`.

use std::time::Duration;

use interlock::{
    Report,
    model::partition::PartitionConfig,
    timeline::Timeline,
    trainer::{Split, Stopper},
};

use crate::{
    arguments::Train,
    config::{Prepared, RunConfig},
    events::EventLog,
    exit::Exit,
    exporter::Exporter,
    interrupt::{self, Next},
    log, plan,
    progress::Progress,
    run_folder::{self, RunFolder, Status},
    table::{self, Measure},
    terminal::{Terminal, Verbosity},
    trace::{self, TraceFile},
};

pub(crate) fn run(arguments: &Train) -> Result<(), Exit> {
    let mut config = RunConfig::load(arguments.source.config.as_deref(), &arguments.source.sets)?;
    let out = arguments.out.clone().unwrap_or_else(|| run_folder::fresh(&config.name));
    run_folder::refuse_existing(&out)?;
    if let Some(report) = &arguments.report {
        run_folder::refuse_no_place("--report", report)?;
    }
    let trace = arguments.trace.as_deref().map(TraceFile::new).transpose()?;
    if arguments.auto {
        config.partition = PartitionConfig { stages: None, units_per_stage: Some(plan::best_partition(&config)?) };
    }
    let mut prepared = config.prepare()?;
    // Before the stages are built, which tell it what they do.
    let exporter = arguments.metrics.map(|address| Exporter::start(address, &config.name)).transpose()?;
    let trace_steps = arguments.trace_steps.unwrap_or(trace::STEPS);
    prepared.builder = prepared.builder.record(trace_steps.max(trace::STEPS));
    let terminal = Terminal::new(Verbosity::new(arguments.plain, arguments.quiet));
    let folder = RunFolder::create(out, &config, &prepared.data.description)?;
    if let Some(exporter) = &exporter {
        exporter.name_run(&folder.name(), config.model.kind(), &config.strategy.label());
    }
    let trained = begin(&folder, arguments, &terminal).and_then(|stopper| {
        prepared.builder = prepared.builder.stop_on(&stopper);
        let run = Run { config: &config, folder: &folder, terminal: &terminal, tensorboard: arguments.tensorboard };
        run.train(prepared)
    });
    let ended = end(arguments, &config, &folder, trace.as_ref(), &terminal, trained);
    if let Some(exporter) = &exporter {
        exporter.linger(Duration::from_secs(arguments.metrics_linger));
    }
    ended
}

/// Writes what a run came to where the command line says, or how it failed.
fn end(
    arguments: &Train,
    config: &RunConfig,
    folder: &RunFolder,
    trace: Option<&TraceFile>,
    terminal: &Terminal,
    trained: interlock::Result<(Report, Option<Timeline>)>,
) -> Result<(), Exit> {
    match trained {
        Ok((report, timeline)) => {
            if let Some(path) = &arguments.report {
                run_folder::write_json(path, &report).map_err(Exit::failed)?;
            }
            if let (Some(file), Some(timeline)) = (trace, &timeline) {
                file.write(timeline, arguments.trace_steps.unwrap_or(trace::STEPS), &config.name)
                    .map_err(Exit::failed)?;
                terminal.say(&format!("what stages did when lies in {}", file.path().display()));
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

/// Starts the log, and has Ctrl-C end the run.
fn begin(folder: &RunFolder, arguments: &Train, terminal: &Terminal) -> interlock::Result<Stopper> {
    log::start(&folder.log(), arguments.log_format.unwrap_or_default(), terminal)?;
    let stopper = Stopper::new();
    let (asked, terminal, folder) = (stopper.clone(), terminal.clone(), folder.clone());
    interrupt::on_signal(move |first| {
        if first && !folder.has_ended() {
            asked.stop();
            terminal.notice("stopping after the steps under way, with the run saved; again to end at once");
            return Next::GoOn;
        }
        // What was not saved by now is not; where even this cannot be written the run stays marked as running.
        let _ = folder.end(&Status::Failed { cause: "interrupted before it was saved".to_owned() });
        terminal.hide_bar();
        terminal.notice(&format!("ended; what there is of the run lies in {}", folder.path().display()));
        Next::End
    })?;
    Ok(stopper)
}

/// A run that has a folder.
struct Run<'a> {
    config: &'a RunConfig,
    folder: &'a RunFolder,
    terminal: &'a Terminal,
    tensorboard: bool,
}

impl Run<'_> {
    /// Trains; a failure is the last event.
    fn train(&self, prepared: Prepared) -> interlock::Result<(Report, Option<Timeline>)> {
        let events = self.folder.event_log(&self.config.name, self.tensorboard)?;
        let trained = self.train_watched(prepared, &events);
        if let Err(error) = &trained {
            events.failed(error);
        }
        trained
    }

    fn train_watched(&self, prepared: Prepared, events: &EventLog) -> interlock::Result<(Report, Option<Timeline>)> {
        let Self { config, folder, terminal, .. } = *self;
        let measure = Measure::of(&prepared.data.description.kind);
        let mut trainer = prepared
            .builder
            .observer(Progress::new(terminal, measure))
            .observer(log::Log)
            .observer(events.clone())
            .build()?;
        let (data, devices) = (&prepared.data, trainer.stages().iter().map(|s| s.device.clone()).collect::<Vec<_>>());
        terminal.say(&format!(
            "{}: {} training and {} validation examples, seed {}",
            config.name,
            data.train.len(),
            data.validation.len(),
            config.seed
        ));
        terminal.say(&format!("stages on {}; units {:?}", devices.join(", "), trainer.partition().units_per_stage()));
        terminal.say(&format!("{}\n", trainer.plans()));
        let split = Split { train: &*prepared.data.train, validation: Some(&*prepared.data.validation) };
        let report = trainer.fit(split);
        let timeline = trainer.timeline();
        // Of a run that failed too: it may show why.
        let kept = timeline.as_ref().map_or(Ok(()), |timeline| folder.write_timeline(timeline));
        let report = report?;
        kept?;
        if let Some(state) = trainer.strategy_state()? {
            folder.write_strategy(&state)?;
        }
        folder.finish(&trainer.snapshot()?, trainer.best(), &report)?;
        tell(&report, measure, terminal);
        terminal.say(&format!("the run lies in {}", folder.path().display()));
        Ok((report, timeline))
    }
}

/// Prints what a run came to.
fn tell(report: &Report, measure: Measure, terminal: &Terminal) {
    if report.stopped {
        let scores = match (report.evaluated, report.steps) {
            (_, 0) => "",
            (true, _) => "; scores of an evaluation after the last of them",
            (false, _) => "; scores of the last training batch",
        };
        terminal.say(&format!("stopped after {} steps{scores}", report.steps));
    }
    terminal.say(&table::stages(report, measure).to_string());
    let result = match measure {
        Measure::Accuracy => report.final_scores.accuracy,
        Measure::Perplexity => report.final_scores.perplexity,
    };
    if let Some(result) = result {
        terminal.say(&format!(
            "{} of the last stage: {result:.4}   {:.1} examples/s   {:.1} s of training",
            measure.name(),
            report.examples_per_second,
            report.train_seconds
        ));
    }
}
