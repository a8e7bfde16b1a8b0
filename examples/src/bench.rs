//! `interlock bench`: measures the cost of steps, units, the runtime and messages on this machine.

pub(crate) mod cpu;
mod empty;
mod mailbox;
mod runtime;
mod threads;
mod units;
mod workload;

pub(crate) use workload::{Workload, WorkloadName};

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use interlock::{Callback, Control, Length, Recompute, TrainEvent, TrainerBuilder};
use serde::Serialize;

use crate::{
    arguments::{Bench, BenchStep, Dtype, PrecisionName, Threads, Width, WindowOptions},
    config::Devices,
    exit::Exit,
    exporter::Exporter,
    memory,
    plan::Follow,
    program::Program,
    terminal::{Terminal, Verbosity, say},
};
use workload::RandomBatches;

pub(crate) fn run<P: Program>(arguments: &Bench) -> Result<(), Exit> {
    match arguments {
        Bench::Step(arguments) => step(arguments),
        Bench::Units(arguments) => units::run::<P>(arguments),
        Bench::Runtime(arguments) => runtime::run(arguments),
        Bench::Mailbox(arguments) => mailbox::run(arguments),
    }
}

/// Checks that a batch of `examples` can be divided into this many micro-batches. `of` names the batch in the error.
fn check_micro_batches(micro_batches: usize, of: &str, examples: usize) -> Result<(), Exit> {
    match (1..=examples).contains(&micro_batches) {
        true => Ok(()),
        false => Err(Exit::Refused(format!(
            "--micro-batches {micro_batches}: a batch of {of} has {examples} examples; use 1 to {examples}"
        ))),
    }
}

/// Steps before the clock starts: they allocate buffers and wake threads.
const WARM_UP: u64 = 2;

/// The output of `bench step`.
#[derive(Serialize)]
struct StepResult {
    workload: &'static str,
    batch: usize,
    width: usize,
    group: usize,
    follow: Follow,
    stages: usize,
    /// None if devices were named.
    threads: Option<Threads>,
    /// The device of each stage.
    devices: Vec<String>,
    micro_batches: usize,
    recompute: bool,
    precision: PrecisionName,
    dtype: Dtype,
    step_seconds: f64,
    examples_per_second: f64,
    /// Seconds a step that each stage's device worked, by the device's own clock if it is asynchronous.
    device_seconds: Vec<f64>,
    /// Seconds of CPU time a step of the stages' own threads together: the cost of the runtime. The work itself runs on the devices' threads.
    runtime_seconds: Option<f64>,
    /// The peak of resident memory, above that of the idle program.
    peak_memory_mib: Option<f64>,
    /// The last stage's losses in the steps before the clock started.
    losses: Vec<f64>,
}

fn step(arguments: &BenchStep) -> Result<(), Exit> {
    let idle = memory::resident();
    let workload = Workload::named(arguments.workload).of_batch(arguments.batch);
    check_micro_batches(arguments.micro_batches, workload.name, workload.batch)?;
    if let Some(address) = arguments.metrics {
        Exporter::start(address, workload.name)?.announce(&Terminal::new(Verbosity::Lines));
    }
    let recorder = StepRecorder::new(arguments.stages());
    let mut trainer = trainer(arguments, &workload)?.callback(recorder.clone()).build()?;
    let batches = RandomBatches::new(&workload)?;
    trainer.fit(batches.clone()).map_err(Exit::failed)?;
    trainer.set_length(Length::Steps(arguments.steps));
    let losses = recorder.take().losses;
    let before = threads::stage_seconds();
    let start = Instant::now();
    trainer.fit(batches).map_err(Exit::failed)?;
    let runtime = threads::stage_seconds().zip(before).map(|(now, before)| now - before);
    let steps = arguments.steps as f64;
    let step_seconds = start.elapsed().as_secs_f64() / steps;
    let result = StepResult {
        workload: workload.name,
        batch: workload.batch,
        width: arguments.width,
        group: arguments.windows.group,
        follow: arguments.windows.follow,
        stages: arguments.stages(),
        threads: arguments.devices.is_empty().then_some(arguments.threads),
        devices: trainer.stages().iter().map(|stage| stage.device.clone()).collect(),
        micro_batches: arguments.micro_batches,
        recompute: arguments.recompute,
        precision: arguments.precision,
        dtype: arguments.dtype.unwrap_or_else(|| arguments.precision.into()),
        step_seconds,
        examples_per_second: workload.batch as f64 / step_seconds,
        device_seconds: recorder.take().device_seconds.iter().map(|sum| sum / steps).collect(),
        runtime_seconds: runtime.map(|seconds| seconds / steps),
        peak_memory_mib: memory::peak().zip(idle).map(|(peak, idle)| peak - idle),
        losses,
    };
    say(&match arguments.json {
        true => serde_json::to_string(&result).map_err(Exit::failed)?,
        false => result.in_words(),
    });
    Ok(())
}

/// Returns a builder for the steps before the clock starts.
fn trainer(arguments: &BenchStep, workload: &Workload) -> Result<TrainerBuilder, Exit> {
    let stages = arguments.stages();
    let devices = Devices::of_arguments(&arguments.devices).unwrap_or_else(|| match arguments.threads {
        Threads::Auto => Devices::Auto,
        Threads::Each(threads) => Devices::Named(vec![format!("cpu:threads={threads}"); stages]),
    });
    let units = match arguments.units_per_stage.as_slice() {
        [] => workload.cut(stages)?,
        units => units.to_vec(),
    };
    let builder = workload
        .trainer(arguments.width, stages)?
        .strategy_boxed(arguments.windows.strategy(Width::Number(arguments.width))?)
        .units_per_stage(units)
        .micro_batches(arguments.micro_batches)
        .recompute(if arguments.recompute { Recompute::All } else { Recompute::None })
        .steps(WARM_UP);
    Ok(devices.give_to(with_dtype(builder, arguments.dtype), arguments.precision.into())?)
}

/// Sets the dtype, if one is given.
fn with_dtype(builder: TrainerBuilder, dtype: Option<Dtype>) -> TrainerBuilder {
    match dtype {
        Some(dtype) => builder.dtype(dtype.into()),
        None => builder,
    }
}

impl StepResult {
    fn in_words(&self) -> String {
        format!(
            "{}: {} stages on {}, width {}{}: {:.1} ms a step, {:.1} examples/s, peak memory {}",
            self.workload,
            self.stages,
            self.devices.join(", "),
            self.width,
            WindowOptions { group: self.group, follow: self.follow }.label(),
            self.step_seconds * 1e3,
            self.examples_per_second,
            self.peak_memory_mib.map_or_else(|| "unknown".to_owned(), |mib| format!("{mib:.0} MiB")),
        )
    }
}

/// An observer that gathers what steps report. Clones share it.
#[derive(Clone)]
struct StepRecorder(Arc<Mutex<StepRecords>>);

/// The gathered values.
struct StepRecords {
    /// The last stage's loss in each step.
    losses: Vec<f64>,
    /// Seconds that each stage's device worked, all steps together.
    device_seconds: Vec<f64>,
}

impl StepRecords {
    fn nothing(stages: usize) -> Self {
        Self { losses: Vec::new(), device_seconds: vec![0.0; stages] }
    }
}

impl StepRecorder {
    fn new(stages: usize) -> Self {
        Self(Arc::new(Mutex::new(StepRecords::nothing(stages))))
    }

    /// Returns what was reported since the last call.
    fn take(&self) -> StepRecords {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing = StepRecords::nothing(records.device_seconds.len());
        std::mem::replace(&mut records, nothing)
    }
}

impl Callback for StepRecorder {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> interlock::Result<Control> {
        if let TrainEvent::StepDone { stages, .. } = event {
            let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let last = stages.last().and_then(|stage| stage.score);
            records.losses.extend(last.map(|score| score.mean_loss()));
            for (sum, stage) in records.device_seconds.iter_mut().zip(*stages) {
                *sum += stage.busy_seconds();
            }
        }
        Ok(Control::Continue)
    }
}
