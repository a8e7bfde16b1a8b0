//! `interlock train`.

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex},
};

use interlock::{Report, partition::PartitionConfig, timeline::Timeline, trainer::Split};
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    arguments::Train,
    config::{Prepared, RunConfig},
    exit::Exit,
    plan,
    progress::{Progress, Verbosity, say},
    run_folder::{self, RunFolder, Status},
    table::{self, Measure},
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
    if trace.is_some() {
        prepared.builder = prepared.builder.record(arguments.trace_steps.unwrap_or(trace::STEPS));
    }
    let verbosity = match arguments {
        Train { quiet: true, .. } => Verbosity::Quiet,
        Train { plain: false, .. } if std::io::stderr().is_terminal() => Verbosity::Bar,
        _ => Verbosity::Lines,
    };
    let folder = RunFolder::create(out, &config, &prepared.data.description)?;
    match train(&config, prepared, &folder, verbosity) {
        Ok((report, timeline)) => {
            if let Some(path) = &arguments.report {
                run_folder::write_json(path, &report).map_err(Exit::failed)?;
            }
            if let (Some(file), Some(timeline)) = (&trace, &timeline) {
                file.write(timeline, &config.name).map_err(Exit::failed)?;
                if verbosity != Verbosity::Quiet {
                    say(&format!("what stages did when lies in {}", file.path().display()));
                }
            }
            Ok(())
        }
        Err(error) => {
            let cause = error.to_string();
            tracing::error!("{cause}");
            folder.set_status(&Status::Failed { cause: cause.clone() }).map_err(Exit::failed)?;
            Err(Exit::Failed(format!("{cause}\nthe run is kept, marked as failed, in {}", folder.path().display())))
        }
    }
}

fn train(
    config: &RunConfig,
    prepared: Prepared,
    folder: &RunFolder,
    verbosity: Verbosity,
) -> interlock::Result<(Report, Option<Timeline>)> {
    log_to(folder)?;
    let measure = Measure::of(&prepared.data.description.kind);
    let mut trainer = prepared.builder.observer(Progress::new(verbosity, measure)).observer(Log).build()?;
    if verbosity != Verbosity::Quiet {
        let (data, devices) = (&prepared.data, trainer.stages().iter().map(|s| s.device.clone()).collect::<Vec<_>>());
        say(&format!(
            "{}: {} training and {} validation examples, seed {}",
            config.name,
            data.train.len(),
            data.validation.len(),
            config.seed
        ));
        say(&format!("stages on {}; units {:?}", devices.join(", "), trainer.partition().units_per_stage()));
        say(&format!("{}\n", trainer.plans()));
    }
    let split = Split { train: &*prepared.data.train, validation: Some(&*prepared.data.validation) };
    let report = trainer.fit(split)?;
    if let Some(state) = trainer.strategy_state()? {
        folder.write_strategy(&state)?;
    }
    folder.finish(&trainer.snapshot_by_stage()?, trainer.best(), &report)?;
    if verbosity != Verbosity::Quiet {
        say(&table::stages(&report, measure).to_string());
        let result = match measure {
            Measure::Accuracy => report.finally.accuracy,
            Measure::Perplexity => report.finally.perplexity,
        };
        say(&format!(
            "{} of the last stage: {:.4}   {:.1} examples/s   {:.1} s of training",
            measure.name(),
            result.unwrap_or(f64::NAN),
            report.examples_per_second,
            report.train_seconds
        ));
        say(&format!("the run lies in {}", folder.path().display()));
    }
    Ok((report, trainer.timeline()))
}

/// Sends log lines to the run's log, and to stderr as `RUST_LOG` says (warnings where it says nothing).
fn log_to(folder: &RunFolder) -> interlock::Result<()> {
    let path = folder.log();
    let file = std::fs::File::create(&path).map_err(|e| interlock::Error::file(&path, e))?;
    let to_file =
        fmt::layer().with_ansi(false).with_writer(Mutex::new(Arc::new(file))).with_filter(EnvFilter::new("info"));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let to_terminal = fmt::layer().with_writer(std::io::stderr).with_filter(filter);
    // A second run of the same process (tests) keeps the first one's log.
    let _ = tracing_subscriber::registry().with(to_file).with(to_terminal).try_init();
    Ok(())
}

/// Writes what happens to the log.
struct Log;

impl interlock::trainer::Observer for Log {
    fn observe(&mut self, event: &interlock::TrainEvent<'_>) {
        use interlock::TrainEvent as E;
        match event {
            E::Started { first_step, last_step, steps_per_epoch, plans, .. } => {
                tracing::info!(
                    "steps {first_step} to {last_step}, {steps_per_epoch} an epoch; gradient plan:\n{plans}"
                );
            }
            E::PlanChanged { from_step, plan } => tracing::info!("from step {from_step} on, gradient plan:\n{plan}"),
            E::StageStep(step) => {
                let loss = step.score.map(|s| s.mean_loss());
                tracing::debug!(
                    stage = step.stage,
                    step = step.step,
                    loss,
                    lr = step.updated.lr,
                    gradient_norm = step.updated.gradient_norm,
                    alignment = step.alignment,
                    busy = step.busy_seconds
                );
            }
            E::Evaluated { steps, evaluation, improved } => {
                for head in evaluation.heads() {
                    let (loss, accuracy) = (head.score.mean_loss(), head.score.accuracy());
                    tracing::info!(steps, head = head.stage, loss, accuracy, improved, "evaluated");
                }
            }
            E::Finished { report } => {
                tracing::info!(
                    loss = report.finally.loss,
                    examples_per_second = report.examples_per_second,
                    "finished"
                );
            }
            _ => {}
        }
    }
}
