//! The metrics of one stage.

use std::time::{Duration, SystemTime};

use metrics::{Counter, Gauge, Histogram};

use super::table::{self, PHASES};
use crate::schedule::ActionKind;

/// Returns the index in [`PHASES`] of an action's phase. A measured gradient is computed like a followed one.
fn phase(kind: ActionKind) -> usize {
    match kind {
        ActionKind::Forward => 0,
        ActionKind::Head => 1,
        ActionKind::InputGradient => 2,
        ActionKind::ParameterGradient | ActionKind::MeasuredGradient => 3,
        ActionKind::BothGradients | ActionKind::BothMeasured => 4,
        ActionKind::Share | ActionKind::Norm | ActionKind::Update => 5,
    }
}

/// Seconds since the beginning of 1970, as monitoring systems count time.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The direction of a message between two stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the next stage.
    Activation,
    /// To the previous stage.
    Gradient,
    /// To the previous stage: a version of the matrix that heads share with the last stage.
    Readout,
}

impl Direction {
    const fn name(self) -> &'static str {
        match self {
            Self::Activation => "activation",
            Self::Gradient => "gradient",
            Self::Readout => "readout",
        }
    }
}

/// The number of messages in a stage's mailbox: senders count up, the stage counts down.
#[derive(Clone)]
pub(crate) struct MailboxGauge(Gauge);

impl MailboxGauge {
    /// Returns the gauge of stage `k`, which has just started.
    pub(crate) fn new(k: usize) -> Self {
        let gauge = table::STAGE_MAILBOX_MESSAGES.gauge(&[&k.to_string()]);
        gauge.set(0.0);
        Self(gauge)
    }

    pub(crate) fn sent(&self) {
        self.0.increment(1.0);
    }

    pub(crate) fn taken(&self) {
        self.0.decrement(1.0);
    }
}

/// The counters of what a stage sends to one neighbour.
struct Outgoing {
    bytes: Counter,
    messages: Counter,
}

/// The handles of one stage's actor.
pub(crate) struct StageMetrics {
    phases: [Histogram; PHASES.len()],
    /// By [`Direction`]; nothing is timed of versions of the shared matrix, which are rare.
    waits: [Histogram; 2],
    /// The same; none if there is no such neighbour.
    incoming: [Option<Histogram>; 2],
    /// By [`Direction`]; none if there is no such neighbour, or nothing is sent.
    outgoing: [Option<Outgoing>; 3],
    in_flight: Gauge,
    micro_batches: Counter,
    progress: Gauge,
    gradients: Gauge,
    optimizer: Gauge,
    activations: Gauge,
    /// The most bytes of activations held in the present step.
    most_activations: usize,
}

impl StageMetrics {
    /// Returns the handles of stage `k` of `stages`. Its mailbox holds up to `mailbox` messages, its parameters take `parameter_bytes`. `readout` tells
    /// whether it sends versions of the shared matrix of heads.
    pub(crate) fn new(k: usize, stages: usize, mailbox: usize, parameter_bytes: usize, readout: bool) -> Self {
        let stage = k.to_string();
        let neighbour = |of: Option<usize>| of.filter(|&j| j < stages).map(|j| j.to_string());
        let (previous, next) = (neighbour(k.checked_sub(1)), neighbour(Some(k + 1)));
        let outgoing = |to: &Option<String>, way: Direction| {
            let to = to.as_deref()?;
            let labels = [&*stage, to, way.name()];
            Some(Outgoing {
                bytes: table::BOUNDARY_BYTES.counter(&labels),
                messages: table::BOUNDARY_MESSAGES.counter(&labels),
            })
        };
        let incoming = |from: &Option<String>, way: Direction| {
            Some(table::BOUNDARY_TRANSFER.histogram(&[from.as_deref()?, &stage, way.name()]))
        };
        let memory = |kind: &str, bytes: usize| {
            let gauge = table::STAGE_MEMORY.gauge(&[&stage, kind]);
            gauge.set(bytes as f64);
            gauge
        };
        let _ = memory("parameters", parameter_bytes);
        table::STAGE_MAILBOX_CAPACITY.gauge(&[&stage]).set(mailbox as f64);
        for kind in crate::error::NonFinite::ALL {
            // Creates the counter, at 0.
            let _ = table::NONFINITE.counter(&[&stage, kind.name()]);
        }
        let (in_flight, progress) =
            (table::STAGE_INFLIGHT_MICROBATCHES.gauge(&[&stage]), table::STAGE_LAST_PROGRESS.gauge(&[&stage]));
        in_flight.set(0.0);
        progress.set(unix_seconds());
        Self {
            phases: PHASES.map(|phase| table::STAGE_PHASE_DURATION.histogram(&[&stage, phase])),
            waits: [Direction::Activation, Direction::Gradient]
                .map(|way| table::STAGE_QUEUE_WAIT.histogram(&[&stage, way.name()])),
            outgoing: [
                outgoing(&next, Direction::Activation),
                outgoing(&previous, Direction::Gradient),
                readout.then(|| outgoing(&previous, Direction::Readout)).flatten(),
            ],
            incoming: [incoming(&previous, Direction::Activation), incoming(&next, Direction::Gradient)],
            in_flight,
            micro_batches: table::STAGE_MICROBATCHES.counter(&[&stage]),
            progress,
            gradients: memory("gradients", 0),
            optimizer: memory("optimizer", 0),
            activations: memory("activations", 0),
            most_activations: 0,
        }
    }

    /// Records that an action is done, or given to the device, and that the stage holds `held` bytes of activations.
    pub(crate) fn acted(&mut self, held: usize) {
        self.progress.set(unix_seconds());
        self.most_activations = self.most_activations.max(held);
    }

    /// Records the time of an action.
    pub(crate) fn took(&self, kind: ActionKind, time: Duration) {
        self.phases[phase(kind)].record(time);
    }

    /// Records the number of micro-batches that the stage holds.
    pub(crate) fn holds(&self, live: usize) {
        self.in_flight.set(live as f64);
    }

    /// Counts a training micro-batch that has been freed.
    pub(crate) fn freed(&self) {
        self.micro_batches.increment(1);
    }

    /// Records the end of a step: the bytes of its gradients, and of the optimizer's state after its update.
    pub(crate) fn updated(&mut self, gradient_bytes: usize, optimizer_bytes: usize) {
        self.gradients.set(gradient_bytes as f64);
        self.optimizer.set(optimizer_bytes as f64);
        self.activations.set(std::mem::take(&mut self.most_activations) as f64);
    }

    /// Counts a message of `bytes` bytes to a neighbour.
    pub(crate) fn sent(&self, way: Direction, bytes: usize) {
        if let Some(outgoing) = &self.outgoing[way as usize] {
            outgoing.bytes.increment(bytes as u64);
            outgoing.messages.increment(1);
        }
    }

    /// Records the time that a message from a neighbour took to reach this stage's device.
    pub(crate) fn arrived(&self, way: Direction, took: Duration) {
        if let Some(incoming) = &self.incoming[way as usize] {
            incoming.record(took);
        }
    }

    /// Records how long a message waited before the stage computed with it.
    pub(crate) fn waited(&self, way: Direction, time: Duration) {
        self.waits[way as usize].record(time);
    }
}
