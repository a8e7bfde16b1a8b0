//! The metrics of a run: counters, gauges and histograms for a monitoring system.
//!
//! This crate only emits, through the `metrics` façade; a program installs a recorder that exports (Prometheus, say) before it
//! builds a [`Trainer`](crate::Trainer). Without a recorder nothing is stored, and a call costs next to nothing.
//!
//! [`table`] lists every metric once, with unit, labels and description: [`ALL`]. Handles are made when a stage's actor or a trainer
//! starts, and every counter is there from then on, at 0. Labels take values of small closed sets (stages, phases, kinds, states), never a
//! step or a micro-batch. A program that exports several pipelines tells them apart by a label of its own for all series, `pipeline`.

mod stage;
pub mod table;

pub(crate) use table::ALL;

pub(crate) use stage::{Direction, MailboxGauge, StageMetrics};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Unit, with_recorder};

/// Upper bounds of histogram buckets that suit every metric in seconds: 14, each four times the previous one, from 100 µs to 6,711 s. Give them
/// to an exporter as the buckets of names that end in `_seconds`.
pub const SECONDS_BUCKETS: [f64; 14] = {
    let mut ends = [1e-4; 14];
    let mut i = 1;
    while i < ends.len() {
        ends[i] = ends[i - 1] * 4.0;
        i += 1;
    }
    ends
};

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Counts up.
    Counter,
    /// Takes any value.
    Gauge,
    /// Collects values into buckets.
    Histogram,
}

/// The description of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its full name.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: Unit,
    /// The names of its labels, in the order in which handles take their values.
    pub labels: &'static [&'static str],
    /// What it measures.
    pub description: &'static str,
}

impl Metric {
    const fn counter_of(name: &'static str, unit: Unit, labels: &'static [&'static str], text: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, unit, labels, description: text }
    }

    const fn gauge_of(name: &'static str, unit: Unit, labels: &'static [&'static str], text: &'static str) -> Self {
        Self { name, kind: MetricKind::Gauge, unit, labels, description: text }
    }

    const fn histogram_of(name: &'static str, labels: &'static [&'static str], text: &'static str) -> Self {
        Self { name, kind: MetricKind::Histogram, unit: Unit::Seconds, labels, description: text }
    }

    fn key(&self, kind: MetricKind, values: &[&str]) -> Key {
        debug_assert!(self.kind == kind && self.labels.len() == values.len(), "{self:?} as {kind:?} with {values:?}");
        let labels = self.labels.iter().zip(values);
        Key::from_parts(self.name, labels.map(|(&name, &value)| Label::new(name, value.to_owned())).collect::<Vec<_>>())
    }

    /// Returns the handle of the counter with these label values. The counter exists from now on, at 0 if it is new.
    pub fn counter(&self, values: &[&str]) -> Counter {
        let counter = with_recorder(|r| r.register_counter(&self.key(MetricKind::Counter, values), &METADATA));
        // Some recorders show a counter only after its first increment.
        counter.increment(0);
        counter
    }

    /// Returns the handle of the gauge with these label values.
    pub fn gauge(&self, values: &[&str]) -> Gauge {
        with_recorder(|r| r.register_gauge(&self.key(MetricKind::Gauge, values), &METADATA))
    }

    /// Returns the handle of the histogram with these label values.
    pub fn histogram(&self, values: &[&str]) -> Histogram {
        with_recorder(|r| r.register_histogram(&self.key(MetricKind::Histogram, values), &METADATA))
    }
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// Tells the recorder the unit and the description of every metric; a program calls it once, after installing the recorder.
pub fn describe() {
    for metric in ALL {
        let (name, unit, text) = (metric.name.into(), Some(metric.unit), metric.description.into());
        with_recorder(|recorder| match metric.kind {
            MetricKind::Counter => recorder.describe_counter(name, unit, text),
            MetricKind::Gauge => recorder.describe_gauge(name, unit, text),
            MetricKind::Histogram => recorder.describe_histogram(name, unit, text),
        });
    }
}
