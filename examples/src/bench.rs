//! `interlock bench`: what things cost on this machine.

mod memory;
mod workload;

pub(crate) use workload::WorkloadName;

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
    progress::say,
};
use workload::{RandomBatches, Workload};

pub(crate) fn run(arguments: &Bench) -> Result<(), Exit> {
    match arguments {
        Bench::Step(arguments) => step(arguments),
    }
}

/// Steps that are run before the clock starts: buffers are made, threads are awake.
const WARM_UP: u64 = 2;

/// What `bench step` prints.
#[derive(Serialize)]
struct StepResult {
    workload: &'static str,
    width: usize,
    stages: usize,
    threads: Threads,
    /// Each stage's.
    devices: Vec<String>,
    micro_batches: usize,
    recompute: bool,
    dtype: Dtype,
    step_seconds: f64,
    examples_per_second: f64,
    /// The most memory resident at any time, above that of the idle program.
    peak_memory_mib: Option<f64>,
    /// The last stage's, of the steps before the clock started.
    losses: Vec<f64>,
}

fn step(arguments: &BenchStep) -> Result<(), Exit> {
    let BenchStep { workload, stages, width, threads, micro_batches, recompute, dtype, steps, .. } = *arguments;
    let idle = memory::resident();
    let workload = Workload::named(workload);
    if micro_batches == 0 || micro_batches > workload.batch {
        return Err(Exit::Refused(format!(
            "--micro-batches {micro_batches}: a batch of {} has {} examples; use 1 to {}",
            workload.name, workload.batch, workload.batch
        )));
    }
    let devices = match threads {
        Threads::Auto => Devices::Auto,
        Threads::Each(threads) => Devices::Named(vec![format!("cpu:threads={threads}"); stages]),
    };
    let losses: Arc<Mutex<Vec<f64>>> = Arc::default();
    let seen = Arc::clone(&losses);
    let which = if recompute { Recompute::All } else { Recompute::None };
    let builder = workload
        .trainer(stages, width)?
        .micro_batches(micro_batches)
        .recompute(which)
        .dtype(dtype.into())
        .steps(WARM_UP);
    let mut trainer = devices
        .give_to(builder)?
        .observer(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StepDone { stages, .. } = event {
                let last = stages.last().and_then(|stage| stage.score);
                seen.lock().unwrap_or_else(PoisonError::into_inner).extend(last.map(|score| score.mean_loss()));
            }
        })
        .build()?;
    let batches = RandomBatches::new(workload)?;
    trainer.fit(&batches).map_err(Exit::failed)?;
    trainer.set_length(Length::Steps(steps));
    let start = Instant::now();
    trainer.fit(&batches).map_err(Exit::failed)?;
    let step_seconds = start.elapsed().as_secs_f64() / steps as f64;
    let mut losses = std::mem::take(&mut *losses.lock().unwrap_or_else(PoisonError::into_inner));
    losses.truncate(WARM_UP as usize);
    let result = StepResult {
        workload: workload.name,
        width,
        stages,
        threads,
        devices: trainer.stages().iter().map(|stage| stage.device.clone()).collect(),
        micro_batches,
        recompute,
        dtype,
        step_seconds,
        examples_per_second: workload.batch as f64 / step_seconds,
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
