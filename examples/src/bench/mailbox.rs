//! `interlock bench mailbox`: measures the cost of passing an activation from one stage actor to the next.
//!
//! The benchmark evaluates a model of two stages that compute nothing, so each activation crosses the boundary between them once. The results
//! include everything that this takes: the stages' scheduling, the message from the coordinator to the first stage, credits, and the stages'
//! reports.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use candle_core::{CpuStorage, Device, Storage, Tensor};
use interlock::{
    Activation, Batch, Differentiable, EndToEnd, Error, Gradients, ModelSpec, Pass, Result, Saved, Trainer, Unit,
    Wants,
    tools::{
        actor::{Feed, Pipeline, PipelineEvent, PipelineSettings},
        schedule::{PolicyName, Purpose},
    },
};
use serde::Serialize;

use super::{cpu, empty::NoLoss};
use crate::{arguments::BenchMailbox, exit::Exit, memory, terminal::say};

/// The number of activations in flight.
const IN_FLIGHT: usize = 64;

/// The number of activations that are sent before the clock starts.
const WARM_UP: usize = 2_000;

/// The size of an address, in bytes. Every tensor begins with the address of its own first byte, which shows copies.
const ADDRESS_BYTES: usize = size_of::<u64>();

/// The output of `bench mailbox`.
#[derive(Serialize)]
struct MailboxResult {
    bytes: usize,
    /// The number of activations sent from the first stage to the second.
    messages: u32,
    in_flight: usize,
    messages_per_second: f64,
    wall_ns_per_message: f64,
    cpu_ns_per_message: Option<f64>,
    /// The number of all messages between actors for these activations, credits and reports included.
    messages_of_all_kinds: u64,
    /// Bytes of activations that arrived at a stage at another address than they were made at.
    bytes_copied: u64,
}

/// A unit that passes on its input, and counts the bytes of inputs that were copied since they were made.
struct CopyCounter {
    copied: Arc<AtomicU64>,
}

impl CopyCounter {
    fn check(&self, tensor: &Tensor) -> Result<()> {
        let (storage, layout) = tensor.storage_and_layout();
        let values = match &*storage {
            Storage::Cpu(CpuStorage::U8(values)) => values.get(layout.start_offset()..),
            _ => None,
        };
        let found = values.and_then(|values| Some((values.as_ptr() as u64, values.first_chunk::<ADDRESS_BYTES>()?)));
        let (address, made) =
            found.ok_or_else(|| Error::Internal("an activation does not contain an address".to_owned()))?;
        if address != u64::from_ne_bytes(*made) {
            self.copied.fetch_add(layout.shape().elem_count() as u64, Relaxed);
        }
        Ok(())
    }
}

impl Differentiable for CopyCounter {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        self.check(x.single()?)?;
        Ok((x.clone(), Saved::nothing()))
    }

    fn backward(&self, _: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        Ok(Gradients { input: wants.input.then(|| output_gradient.clone()), parameters: Vec::new() })
    }
}

/// A model of two such units.
struct Pair {
    bytes: usize,
    copied: Arc<AtomicU64>,
}

impl ModelSpec for Pair {
    fn units(&self) -> Result<Vec<Unit>> {
        let unit = || {
            let copied = Arc::clone(&self.copied);
            Unit::new("", [self.bytes], move |_| Ok(CopyCounter { copied: Arc::clone(&copied) }))
        };
        Ok(vec![unit(), unit()])
    }
}

pub(super) fn run(arguments: &BenchMailbox) -> Result<(), Exit> {
    let BenchMailbox { bytes, messages, .. } = *arguments;
    if bytes < ADDRESS_BYTES {
        return Err(Exit::Refused(format!(
            "--bytes {bytes}: an activation must contain an address; use {ADDRESS_BYTES} or more"
        )));
    }
    memory::check("--bytes", "four activations take", (bytes as u64).saturating_mul(4), "use fewer bytes")?;
    let copied = Arc::new(AtomicU64::new(0));
    let model = Pair { bytes, copied: Arc::clone(&copied) };
    let layout = Trainer::builder(model).stages(2).strategy(EndToEnd).loss(NoLoss).layout()?;
    let settings = PipelineSettings {
        micro_batches: 1,
        in_flight: Some(IN_FLIGHT),
        policy: PolicyName::default().into(),
        global_norm: false,
        first_step: 0,
        record: None,
        stall_timeout: None,
    };
    let pipeline = Pipeline::start(layout.blueprints, layout.plans, settings)?;
    let batches = (0..4).map(|_| batch(bytes)).collect::<Result<Vec<_>>>()?;
    let count = messages as usize;
    let send =
        |first, count| send(&pipeline, &batches, first, count, WARM_UP + messages as usize).map_err(Exit::failed);
    send(0, WARM_UP)?;
    let sent = pipeline.sent().total();
    let (start, cpu_start) = (Instant::now(), cpu::seconds());
    send(WARM_UP, count)?;
    let (seconds, cpu_end) = (start.elapsed().as_secs_f64(), cpu::seconds());
    let each = |seconds: f64| seconds * 1e9 / f64::from(messages);
    let result = MailboxResult {
        bytes,
        messages,
        in_flight: IN_FLIGHT,
        messages_per_second: f64::from(messages) / seconds,
        wall_ns_per_message: each(seconds),
        cpu_ns_per_message: cpu_start.zip(cpu_end).map(|(start, end)| each(end - start)),
        messages_of_all_kinds: pipeline.sent().total() - sent,
        bytes_copied: copied.load(Relaxed),
    };
    if arguments.json {
        say(&serde_json::to_string(&result).map_err(Exit::failed)?);
    } else {
        say(&format!(
            "{messages} activations of {bytes} bytes: {:.0}/s, {:.0} ns each and {} of CPU time, {} bytes copied",
            result.messages_per_second,
            result.wall_ns_per_message,
            result.cpu_ns_per_message.map_or_else(|| "an unknown amount".to_owned(), |ns| format!("{ns:.0} ns")),
            result.bytes_copied,
        ));
    }
    Ok(())
}

/// Makes a batch of one example of this many bytes. Its dtype is `u8`, so that stages do not check whether it is finite.
fn batch(bytes: usize) -> Result<Batch> {
    let mut values = vec![0_u8; bytes];
    let address = values.as_ptr() as u64;
    values[..ADDRESS_BYTES].copy_from_slice(&address.to_ne_bytes());
    let inputs = Tensor::from_vec(values, (1, bytes), &Device::Cpu)?;
    Ok(Batch { inputs: inputs.into(), targets: Tensor::zeros(1, candle_core::DType::U32, &Device::Cpu)? })
}

/// Sends activations through both stages, and waits until all have been scored.
fn send(pipeline: &Pipeline, batches: &[Batch], first_index: usize, count: usize, of: usize) -> Result<()> {
    let micro_batches = batches.iter().cycle().take(count).cloned().collect();
    pipeline.feed(Feed {
        purpose: Purpose::Evaluate,
        step: 0,
        micro_batches,
        elsewhere: Vec::new(),
        first_index,
        count: of,
        total: 1.0,
        capture: None,
    })?;
    let mut scored = 0;
    while scored < count {
        if let PipelineEvent::Scored { .. } = pipeline.next()? {
            scored += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_activations_are_counted_and_moved_ones_are_not() {
        let counter = CopyCounter { copied: Arc::default() };
        let Batch { inputs, .. } = batch(100).unwrap();
        let moved = inputs.clone();
        counter.forward(&moved, &Pass::eval()).unwrap();
        assert_eq!(counter.copied.load(Relaxed), 0);
        let copied = inputs.single().unwrap().copy().unwrap();
        counter.forward(&copied.into(), &Pass::eval()).unwrap();
        assert_eq!(counter.copied.load(Relaxed), 100);
        let other = Tensor::zeros((1, 100), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(counter.check(&other).is_err());
    }
}
