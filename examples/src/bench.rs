//! `interlock bench`: what things cost on this machine.

mod cpu;
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

use interlock::{TrainEvent, stage::Recompute, trainer::Length};
use serde::Serialize;

use crate::{
    arguments::{Bench, BenchStep, Dtype, Threads},
    config::Devices,
    exit::Exit,
    exporter::Exporter,
    memory,
    progress::say,
};
use workload::RandomBatches;

pub(crate) fn run(arguments: &Bench) -> Result<(), Exit> {
    match arguments {
        Bench::Step(arguments) => step(arguments),
        Bench::Units(arguments) => units::run(arguments),
        Bench::Runtime(arguments) => runtime::run(arguments),
        Bench::Mailbox(arguments) => mailbox::run(arguments),
    }
}

/// Refuses numbers of micro-batches into which a batch of `examples` cannot be cut.
fn check_micro_batches(micro_batches: usize, of: &str, examples: usize) -> Result<(), Exit> {
    match (1..=examples).contains(&micro_batches) {
        true => Ok(()),
        false => Err(Exit::Refused(format!(
            "--micro-batches {micro_batches}: a batch of {of} has {examples} examples; use 1 to {examples}"
        ))),
    }
}

/// Steps that are run before the clock starts: buffers are made, threads are awake.
const WARM_UP: u64 = 2;

/// What `bench step` prints.
#[derive(Serialize)]
struct StepResult {
    workload: &'static str,
    batch: usize,
    width: usize,
    stages: usize,
    /// None where devices were named.
    threads: Option<Threads>,
    /// Each stage's.
    devices: Vec<String>,
    micro_batches: usize,
    recompute: bool,
    dtype: Dtype,
    step_seconds: f64,
    examples_per_second: f64,
    /// Seconds a step that each stage's device worked; by the device's own clock where it works behind the host's back.
    device_seconds: Vec<f64>,
    /// Seconds a step that the stages' threads computed, all together: the runtime's own cost. The work is done by the devices' threads.
    runtime_seconds: Option<f64>,
    /// The most memory resident at any time, above that of the idle program.
    peak_memory_mib: Option<f64>,
    /// The last stage's, of the steps before the clock started.
    losses: Vec<f64>,
}

/// What the steps told.
struct Seen {
    losses: Vec<f64>,
    /// Of each stage, all steps together.
    device_seconds: Vec<f64>,
}

fn step(arguments: &BenchStep) -> Result<(), Exit> {
    let BenchStep { workload, batch, width, threads, micro_batches, recompute, dtype, steps, .. } = *arguments;
    let units = &arguments.units_per_stage;
    let stages = if units.is_empty() { arguments.stages } else { units.len() };
    let idle = memory::resident();
    let workload = &Workload::named(workload).of_batch(batch);
    check_micro_batches(micro_batches, workload.name, workload.batch)?;
    if let Some(address) = arguments.metrics {
        Exporter::start(address, workload.name)?;
    }
    let threads = arguments.devices.is_empty().then_some(threads);
    let devices = match threads {
        None => Devices::Named(arguments.devices.clone()),
        Some(Threads::Auto) => Devices::Auto,
        Some(Threads::Each(threads)) => Devices::Named(vec![format!("cpu:threads={threads}"); stages]),
    };
    let seen: Arc<Mutex<Seen>> = Arc::new(Mutex::new(Seen { losses: Vec::new(), device_seconds: vec![0.0; stages] }));
    let watched = Arc::clone(&seen);
    let seen = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    let which = if recompute { Recompute::All } else { Recompute::None };
    let builder = workload
        .trainer(width, stages)?
        .units_per_stage(if units.is_empty() { workload.cut(stages)? } else { units.clone() })
        .micro_batches(micro_batches)
        .recompute(which)
        .dtype(dtype.into())
        .steps(WARM_UP);
    let mut trainer = devices
        .give_to(builder)?
        .observer(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StepDone { stages, .. } = event {
                let mut seen = watched.lock().unwrap_or_else(PoisonError::into_inner);
                let last = stages.last().and_then(|stage| stage.score);
                seen.losses.extend(last.map(|score| score.mean_loss()));
                for (sum, stage) in seen.device_seconds.iter_mut().zip(*stages) {
                    *sum += stage.busy_seconds();
                }
            }
        })
        .build()?;
    let batches = RandomBatches::new(workload)?;
    trainer.fit(&batches).map_err(Exit::failed)?;
    trainer.set_length(Length::Steps(steps));
    let losses = std::mem::take(&mut seen().losses);
    seen().device_seconds.fill(0.0);
    let before = threads::stage_seconds();
    let start = Instant::now();
    trainer.fit(&batches).map_err(Exit::failed)?;
    let runtime = threads::stage_seconds().zip(before).map(|(now, before)| now - before);
    let step_seconds = start.elapsed().as_secs_f64() / steps as f64;
    let device_seconds = seen().device_seconds.iter().map(|sum| sum / steps as f64).collect();
    let result = StepResult {
        workload: workload.name,
        batch: workload.batch,
        width,
        stages,
        threads,
        devices: trainer.stages().iter().map(|stage| stage.device.clone()).collect(),
        micro_batches,
        recompute,
        dtype,
        step_seconds,
        examples_per_second: workload.batch as f64 / step_seconds,
        device_seconds,
        runtime_seconds: runtime.map(|seconds| seconds / steps as f64),
        peak_memory_mib: memory::peak().zip(idle).map(|(peak, idle)| peak - idle),
        losses,
    };
    if arguments.json {
        say(&serde_json::to_string(&result).map_err(Exit::failed)?);
    } else {
        say(&format!(
            "{}: {stages} stages on {}, width {width}: {:.1} ms a step, {:.1} examples/s, peak memory {}",
            result.workload,
            result.devices.join(", "),
            step_seconds * 1e3,
            result.examples_per_second,
            result.peak_memory_mib.map_or_else(|| "unknown".to_owned(), |mib| format!("{mib:.0} MiB")),
        ));
    }
    Ok(())
}
