//! `interlock bench units`: measures the time and memory of each unit of a model.

use std::{collections::BTreeSet, fmt::Write as _};

use interlock::{
    Batch, Precision, TrainerBuilder,
    tools::planner::{DeviceCosts, HeadCosts, Profile},
};

use super::{Workload, check_micro_batches, with_dtype};
use crate::{
    Program,
    arguments::BenchUnits,
    config::{self, Devices},
    exit::Exit,
    run_folder::{refuse_no_place, write_output_json},
    table::{Table, table},
    terminal::say,
};

pub(super) fn run<P: Program>(arguments: &BenchUnits) -> Result<(), Exit> {
    let (builder, batch) = prepare::<P>(arguments)?;
    if let Some(path) = &arguments.out {
        refuse_no_place("--out", path)?;
    }
    let profile = builder.profile(&batch, Some(&crate::ALLOCATOR))?;
    if let Some(path) = &arguments.out {
        write_output_json(path, &profile).map_err(Exit::failed)?;
    }
    say(&match arguments.json {
        true => serde_json::to_string(&profile).map_err(Exit::failed)?,
        false => show(&profile),
    });
    Ok(())
}

/// Returns the builder of the model to measure, and a micro-batch for it.
fn prepare<P: Program>(arguments: &BenchUnits) -> Result<(TrainerBuilder, Batch), Exit> {
    let BenchUnits { source, workload, devices, micro_batches, precision, dtype, .. } = arguments;
    let named = Devices::of_arguments(devices);
    let (builder, batch, micro_batches) = match workload {
        Some(name) => {
            let workload = Workload::named(*name);
            let micro_batches = micro_batches.unwrap_or(1);
            check_micro_batches(micro_batches, workload.name, workload.batch)?;
            // One stage, since the units are measured one by one and the cut does not matter.
            let builder = with_dtype(workload.trainer(1, 1)?.stages(1), *dtype);
            let precision = precision.map_or(Precision::F32, Precision::from);
            let builder = named.unwrap_or(Devices::Auto).give_to(builder, precision)?;
            (builder, workload.random_batch(0)?, micro_batches)
        }
        None => {
            let mut config = config::load::<P>(source.config.as_deref(), &source.sets)?;
            config.devices = named.unwrap_or(config.devices);
            let micro_batches = micro_batches.unwrap_or(config.micro_batches);
            let prepared = config.prepare_to_train(None)?;
            let examples = config.batch_size.min(prepared.data.train.len());
            check_micro_batches(micro_batches, &config.name, examples)?;
            let numbers: Vec<usize> = (0..examples).collect();
            (prepared.builder, prepared.data.train.batch(&numbers, None)?, micro_batches)
        }
    };
    let first = batch.split(micro_batches)?.into_iter().next();
    Ok((builder, first.ok_or_else(|| Exit::Failed("the batch is empty".to_owned()))?))
}

fn show(profile: &Profile) -> String {
    let mut text = String::new();
    for costs in &profile.devices {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{}: micro-batches of {} examples; loss {}, overhead of an action {}, scratch memory {}",
            costs.device,
            profile.examples,
            milliseconds(costs.loss),
            milliseconds(costs.action),
            mebibytes(costs.scratch_bytes),
        );
        let _ = writeln!(text, "{}", units(costs));
    }
    text.push_str("Times in ms. Add: one gradient to a weighted sum. Head: if a stage follows its loss / as a probe. Memory in MiB.");
    text
}

fn units(costs: &DeviceCosts) -> Table {
    // Each description of a head has a column of times and one of memory.
    let archs: BTreeSet<&String> = costs.units.iter().flat_map(|unit| unit.heads.keys()).collect();
    let names = |arch: &&String| (format!("head {arch}"), format!("transient, head {arch}"));
    let (times, transients): (Vec<String>, Vec<String>) = archs.iter().map(names).unzip();
    let passes = ["unit", "forward", "input", "then parameters", "both", "parameters only", "add", "send", "update"];
    let headings = passes
        .into_iter()
        .chain(times.iter().map(String::as_str))
        .chain(["output", "parameters", "saved", "pending", "transient"])
        .chain(transients.iter().map(String::as_str));
    let mut rows = table(&headings.collect::<Vec<_>>()).aligned_right();
    for (i, unit) in costs.units.iter().enumerate() {
        let heads: Vec<Option<&HeadCosts>> = archs.iter().map(|&arch| unit.heads.get(arch)).collect();
        let times = [
            unit.forward,
            unit.input_gradient,
            unit.parameter_gradient,
            unit.both,
            unit.parameters_only,
            unit.add,
            unit.send,
            unit.update,
        ];
        let of_head = |head: &HeadCosts| format!("{} / {}", number(head.needed), number(head.probe));
        let bytes = [
            Some(unit.output_bytes),
            Some(unit.parameter_bytes),
            unit.saved_bytes,
            unit.pending_bytes,
            unit.transient_bytes,
        ];
        rows.add_row(
            [format!("{i} {}", unit.name)]
                .into_iter()
                .chain(times.map(number))
                .chain(heads.iter().map(|head| head.map_or_else(none, of_head)))
                .chain(bytes.map(mebibytes))
                .chain(heads.iter().map(|head| mebibytes(head.and_then(|head| head.transient_bytes)))),
        );
    }
    rows
}

fn none() -> String {
    "-".to_owned()
}

fn number(seconds: f64) -> String {
    format!("{:.2}", seconds * 1e3)
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}

/// Formats bytes in MiB, or a dash for a value that was not measured.
fn mebibytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(none, |bytes| format!("{:.2}", bytes as f64 / f64::from(1 << 20)))
}
