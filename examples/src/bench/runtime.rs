//! `interlock bench runtime`: measures steps of real actors whose stages sleep for given times, or pass on their input, in which case only
//! transfers between devices take time.
//!
//! The time of a step is measured in the steady state. Stages are not in the same step at the same time: activations fill the pipeline in the
//! first steps, and a stage runs ahead of downstream stages as far as gradients and credits allow. After that, all stages advance at the same
//! rate, that of the slowest cycle of stages that wait for each other. So a step counts as done when the last stage to do so has finished it.
//! The clock starts at such an instant after the pipeline has filled, and stops at another while it is still full: as many steps as fill the
//! pipeline follow the timed ones.

use std::{sync::Arc, time::Instant};

use candle_core::{DType, Device, Tensor};
use interlock::{
    Batch, GradientPlan, ModelSpec, Result, Sequential, Trainer, TrainerBuilder, Unit,
    tools::{
        actor::{Feed, Feeder, Pipeline, PipelineEvent},
        device::Link,
        schedule::{PolicyName, Purpose},
        simulator::{HOP, Scenario, StageCosts, least_in_flight, simulate},
        trainer::Layout,
        transport::StageStep,
    },
};
use interlock_backends::{Backends, device_names};
use serde::Serialize;

use super::{cpu, empty::NoLoss};
use crate::{
    arguments::{BenchRuntime, Schedule, WindowOptions},
    exit::Exit,
    memory,
    plan::Follow,
    ranks::ranks,
    terminal::say,
};

/// The output of `bench runtime`.
#[derive(Serialize)]
struct RuntimeResult {
    stages: u16,
    width: String,
    group: usize,
    follow: Follow,
    micro_batches: usize,
    schedule: Schedule,
    in_flight: usize,
    /// Stage `k` is pinned to device `k mod` their number.
    devices: Vec<String>,
    bytes: usize,
    steps: u64,
    /// In the steady state.
    step_seconds: f64,
    /// Seconds a step that each stage's device worked, without transfers, by the device's own clock if it is asynchronous.
    device_seconds: Vec<f64>,
    /// The work of the busiest stage in a step: no schedule can make steps shorter.
    lower_bound_seconds: f64,
    /// The simulated time of a step with the same stages, costs and links.
    simulated_step_seconds: f64,
    /// The reason for this time, by the simulator.
    reason: String,
    /// Activations, gradients and credits between actors, the coordinator included, and one report for each stage. Of several ranks, those that rank 0
    /// sends.
    messages_per_step: u64,
    cpu_seconds_per_step: Option<f64>,
    cpu_seconds_per_message: Option<f64>,
}

/// A model of units without parameters, each with this many `f32` outputs.
struct Units {
    count: usize,
    elements: usize,
}

impl ModelSpec for Units {
    fn units(&self) -> Result<Vec<Unit>> {
        let unit = || Unit::new("", [self.elements], |_| Ok(Sequential::default()));
        Ok((0..self.count).map(|_| unit()).collect())
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok(Unit::new("", [self.elements], |_| Ok(Sequential::default())))
    }
}

pub(super) fn run(arguments: &BenchRuntime) -> Result<(), Exit> {
    let devices = stage_devices(arguments);
    let builder = builder(arguments, &devices)?;
    let builder = match ranks() {
        // Rank 0 measures.
        Some(ranks) if ranks.rank() > 0 => return Ok(builder.ranks(ranks).serve()?),
        Some(ranks) => builder.ranks(ranks),
        None => builder,
    };
    let layout = builder.layout()?;
    let (plan, micro_batches) = (Arc::clone(layout.plans.at(0)), arguments.micro_batches);
    let scenario = scenario(arguments, &layout)?;
    let simulated = simulate(&scenario)?;
    let pipeline = builder.pipeline()?;
    let measured = measure(&pipeline, arguments, &plan)?;
    let result = RuntimeResult {
        stages: arguments.stages,
        width: arguments.width.to_string(),
        group: arguments.windows.group,
        follow: arguments.windows.follow,
        micro_batches,
        schedule: arguments.schedule,
        in_flight: pipeline.in_flight(),
        devices,
        bytes: arguments.bytes,
        steps: arguments.steps,
        step_seconds: measured.step_seconds,
        device_seconds: measured.device_seconds,
        lower_bound_seconds: simulated.lower_bound(&scenario),
        simulated_step_seconds: simulated.step_seconds,
        reason: simulated.critical.to_string(),
        messages_per_step: measured.messages,
        cpu_seconds_per_step: measured.cpu_seconds,
        cpu_seconds_per_message: measured.cpu_seconds.map(|seconds| seconds / measured.messages as f64),
    };
    say(&match arguments.json {
        true => serde_json::to_string(&result).map_err(Exit::failed)?,
        false => result.in_words(),
    });
    Ok(())
}

/// The measurement of a step in the steady state.
struct Measured {
    step_seconds: f64,
    /// The seconds a step that each stage's device worked.
    device_seconds: Vec<f64>,
    messages: u64,
    cpu_seconds: Option<f64>,
}

/// Times the steps that `arguments` asks for, while the pipeline is full.
fn measure(pipeline: &Pipeline, arguments: &BenchRuntime, plan: &GradientPlan) -> Result<Measured, Exit> {
    let fill = steps_to_fill(plan);
    let (first, last) = (fill - 1, fill - 1 + arguments.steps);
    let steps = last + 1 + fill;
    let mut marks = Vec::new();
    let before = pipeline.sent();
    let mut device_seconds = vec![0.0; usize::from(arguments.stages)];
    train(pipeline, &batch(arguments)?, arguments.micro_batches, steps, |step, stages| {
        if (first + 1..=last).contains(&step) {
            for (sum, stage) in device_seconds.iter_mut().zip(stages) {
                *sum += stage.busy_seconds();
            }
        }
        if step == first || step == last {
            marks.push((Instant::now(), cpu::seconds()));
        }
    })
    .map_err(Exit::failed)?;
    let [(start, cpu_start), (end, cpu_end)] = marks[..] else {
        return Err(Exit::Failed("internal error: a timed step was reported twice or never".to_owned()));
    };
    let timed = arguments.steps as f64;
    Ok(Measured {
        step_seconds: (end - start).as_secs_f64() / timed,
        device_seconds: device_seconds.into_iter().map(|sum| sum / timed).collect(),
        messages: (pipeline.sent().total() - before.total()) / steps,
        cpu_seconds: cpu_start.zip(cpu_end).map(|(start, end)| (end - start) / timed),
    })
}

impl RuntimeResult {
    fn in_words(&self) -> String {
        let cpu = match self.cpu_seconds_per_step.zip(self.cpu_seconds_per_message) {
            Some((step, message)) => format!("{:.2} ms of CPU time ({:.1} µs a message)", step * 1e3, message * 1e6),
            None => "unknown CPU time".to_owned(),
        };
        format!(
            "{} stages on {}, width {}{}: {:.2} ms a step, simulated {:.2}, {:.2} ms of work for the busiest stage; \
             {} messages a step{}, {cpu}\nby the simulation: {}",
            self.stages,
            self.devices.join(", "),
            self.width,
            WindowOptions { group: self.group, follow: self.follow }.label(),
            self.step_seconds * 1e3,
            self.simulated_step_seconds * 1e3,
            self.lower_bound_seconds * 1e3,
            self.messages_per_step,
            if ranks().is_some() { " from rank 0" } else { "" },
            self.reason,
        )
    }
}

/// Returns the names of the stages' devices.
fn stage_devices(arguments: &BenchRuntime) -> Vec<String> {
    if !arguments.devices.is_empty() {
        return arguments.devices.iter().flat_map(|list| device_names(list)).collect();
    }
    let BenchRuntime { forward_ms, head_ms, input_gradient_ms, parameter_gradient_ms, transfer_ms, .. } = arguments;
    let gbps = arguments.gbps.map_or_else(String::new, |gbps| format!(",gbps={gbps}"));
    vec![format!(
        "emulated:forward-ms={forward_ms},head-ms={head_ms},input-gradient-ms={input_gradient_ms},\
         parameter-gradient-ms={parameter_gradient_ms},transfer-ms={transfer_ms}{gbps}"
    )]
}

fn builder(arguments: &BenchRuntime, devices: &[String]) -> Result<TrainerBuilder, Exit> {
    let (stages, bytes) = (usize::from(arguments.stages), arguments.bytes);
    if bytes == 0 || !bytes.is_multiple_of(4) {
        return Err(Exit::Refused(format!("--bytes {bytes}: activations are of f32; use a multiple of 4")));
    }
    let least = (bytes as u64).saturating_mul(arguments.micro_batches as u64);
    memory::check("--bytes", "the activations of a batch take", least, "use fewer bytes or micro-batches")?;
    let backends = Backends::default();
    Ok(Trainer::builder(Units { count: stages, elements: bytes / 4 })
        .stages(stages)
        .strategy_boxed(arguments.windows.strategy(arguments.width)?)
        .devices(devices.iter().map(|name| backends.open(name)).collect::<Result<Vec<_>>>()?)
        .loss(NoLoss)
        .batch_size(arguments.micro_batches.max(1))
        .micro_batches(arguments.micro_batches)
        .policy(arguments.schedule.into())
        .in_flight(arguments.in_flight))
}

/// Makes a batch of one example for each micro-batch.
fn batch(arguments: &BenchRuntime) -> Result<Batch> {
    let inputs = Tensor::zeros((arguments.micro_batches, arguments.bytes / 4), DType::F32, &Device::Cpu)?;
    let targets = Tensor::zeros(arguments.micro_batches, DType::U32, &Device::Cpu)?;
    Ok(Batch { inputs: inputs.into(), targets })
}

/// Trains with a batch always ready for the pipeline. Calls `done` when all stages have finished a step.
fn train(
    pipeline: &Pipeline,
    batch: &Batch,
    count: usize,
    steps: u64,
    mut done: impl FnMut(u64, &[StageStep]),
) -> Result<()> {
    let mut feeder = Feeder::new(0..steps, |step| {
        let micro_batches = batch.split(count)?;
        let total = micro_batches.len() as f64;
        Ok(Feed {
            purpose: Purpose::Train,
            step,
            micro_batches,
            elsewhere: Vec::new(),
            first_index: 0,
            count,
            total,
            capture: None,
        })
    });
    while let Some(event) = feeder.next(pipeline)? {
        if let PipelineEvent::StepDone { step, stages, .. } = event {
            done(step, &stages);
        }
    }
    Ok(())
}

/// Returns the number of steps until the pipeline is full and the last stage limits the first, with a margin: each stage waits for the stage whose
/// loss it follows, or at least for the credits of the next stage.
fn steps_to_fill(plan: &GradientPlan) -> u64 {
    let (mut stage, mut hops) = (0, 0);
    while stage + 1 < plan.stages() {
        stage = plan.farthest(stage).max(stage + 1);
        hops += 1;
    }
    4 + 2 * hops
}

/// Returns the same pipeline as a scenario for the simulator.
fn scenario(arguments: &BenchRuntime, layout: &Layout) -> Result<Scenario> {
    let BenchRuntime { forward_ms, head_ms, input_gradient_ms, parameter_gradient_ms, transfer_ms, .. } = *arguments;
    // Stages that pass on their input compute nothing.
    let scale = if arguments.devices.is_empty() { 1e-3 } else { 0.0 };
    let [forward, head, input, parameters, latency] =
        [forward_ms, head_ms, input_gradient_ms, parameter_gradient_ms, transfer_ms].map(|ms| ms * scale);
    let stages = layout.plans.stages();
    let costs = |k: usize| StageCosts {
        activation_bytes: arguments.bytes as u64,
        gradient_bytes: arguments.bytes as u64,
        // The last stage's loss costs nothing.
        ..StageCosts::of(forward, if k + 1 < stages { head } else { 0.0 }, input, parameters)
    };
    let bandwidth = arguments.gbps.map_or(f64::INFINITY, |gigabits| gigabits * 1e9 / 8.0);
    let plan = Arc::clone(layout.plans.at(0));
    let (policy, micro_batches) = (PolicyName::from(arguments.schedule).into(), arguments.micro_batches);
    let in_flight = match arguments.in_flight {
        Some(in_flight) => in_flight,
        None => least_in_flight(&plan, micro_batches, policy)?,
    };
    Ok(Scenario {
        links: vec![[Link { latency, bandwidth }; 2]; stages],
        micro_batches,
        in_flight,
        policy,
        hop: HOP,
        ..Scenario::new(plan, (0..stages).map(costs).collect())
    })
}

#[cfg(test)]
mod tests {
    use interlock::{Interlock, Strategy};

    use super::*;
    use crate::arguments::Width;

    fn arguments(stages: u16, width: Width, micro_batches: usize) -> BenchRuntime {
        BenchRuntime {
            stages,
            width,
            windows: WindowOptions { group: 1, follow: Follow::Last },
            micro_batches,
            devices: Vec::new(),
            forward_ms: 5.0,
            head_ms: 2.0,
            input_gradient_ms: 5.0,
            parameter_gradient_ms: 5.0,
            transfer_ms: 0.0,
            gbps: None,
            bytes: 64,
            schedule: Schedule::Interlock,
            in_flight: None,
            steps: 1,
            json: false,
        }
    }

    fn layout(arguments: &BenchRuntime) -> Layout {
        builder(arguments, &["emulated".to_owned()]).unwrap().layout().unwrap()
    }

    #[test]
    fn lower_bound_is_the_work_of_the_busiest_stage() {
        let busiest = |stages, width, micro_batches| {
            let arguments = arguments(stages, width, micro_batches);
            let scenario = scenario(&arguments, &layout(&arguments)).unwrap();
            (simulate(&scenario).unwrap().lower_bound(&scenario) * 1e6).round() / 1e6
        };
        // Stage 2 of 4 runs a forward pass, a head, and backward passes of losses 2 and 3, and follows loss 3.
        assert_eq!(busiest(4, Width::Number(3), 1), 0.022);
        // Stage 2 of 8 runs backward passes of losses 2, 3 and 4.
        assert_eq!(busiest(8, Width::Number(3), 2), 2.0 * 0.027);
        assert_eq!(busiest(8, Width::EndToEnd, 1), 0.015);
        assert_eq!(busiest(1, Width::EndToEnd, 1), 0.015);
    }

    #[test]
    fn groups_and_the_mean_of_a_window_have_their_own_steps() {
        let simulated = |stages, width, windows| {
            let arguments = BenchRuntime { windows, ..arguments(stages, Width::Number(width), 1) };
            let scenario = scenario(&arguments, &layout(&arguments)).unwrap();
            (simulate(&Scenario { hop: 0.0, ..scenario }).unwrap().step_seconds * 1e6).round() / 1e6
        };
        let windows = |group, follow| WindowOptions { group, follow };
        // Forward through both stages of a block, its head, back through both.
        assert_eq!([4, 64].map(|stages| simulated(stages, 1, windows(2, Follow::Last))), [0.027; 2]);
        let [last, mean] = [Follow::Last, Follow::Mean].map(|follow| simulated(16, 2, windows(1, follow)));
        assert_eq!(last, mean);
    }

    #[test]
    fn pipelines_of_narrow_widths_take_more_steps_to_fill() {
        let steps = |stages, width| steps_to_fill(&Interlock::width(width).plan(stages).unwrap());
        assert_eq!([steps(64, 64), steps(64, 3), steps(64, 1), steps(1, 1)], [6, 68, 130, 4]);
    }

    #[test]
    fn number_of_messages_follows_from_the_plan() {
        for (stages, width, micro_batches) in [(1, 1, 2), (4, 1, 1), (4, 3, 1), (4, 3, 3), (5, 5, 2), (8, 5, 1)] {
            let arguments = arguments(stages, Width::Number(width), micro_batches);
            let plan = Arc::clone(layout(&arguments).plans.at(0));
            let pipeline = builder(&arguments, &["emulated".to_owned()]).unwrap().pipeline().unwrap();
            let before = pipeline.sent();
            let steps = 5;
            train(&pipeline, &batch(&arguments).unwrap(), micro_batches, steps, |_, _| {}).unwrap();
            let sent = pipeline.sent();
            let (stages, micros) = (u64::from(stages), steps * micro_batches as u64);
            let crossing: usize = (0..plan.stages()).map(|k| plan.losses_sent_back(k).len()).sum();
            assert_eq!(sent.activations - before.activations, micros * stages);
            assert_eq!(sent.gradients - before.gradients, micros * crossing as u64);
            assert_eq!(sent.credits - before.credits, micros * stages);
            assert_eq!(sent.reports - before.reports, steps * stages);
            assert_eq!(sent.total() - before.total(), micros * (2 * stages + crossing as u64) + steps * stages);
        }
    }
}
