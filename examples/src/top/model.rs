//! Computes the values to show from two scrapes of a process.

use std::collections::BTreeSet;

use interlock::tools::metrics::{MEMORY, Metric, PHASES, table};

use super::scrape::{Sample, Scrape};

/// The values of a pipeline.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct View {
    pub(super) pipeline: String,
    pub(super) run: String,
    pub(super) model: String,
    pub(super) strategy: String,
    /// The state of the run; "starting" if it reports none yet.
    pub(super) state: String,
    pub(super) step: Option<f64>,
    pub(super) micro_batches: Option<f64>,
    pub(super) learning_rate: Option<f64>,
    pub(super) examples_per_second: Option<f64>,
    pub(super) tokens_per_second: Option<f64>,
    /// The mean seconds of the steps that ended between the scrapes.
    pub(super) step_seconds: Option<f64>,
    pub(super) stages: Vec<StageView>,
    pub(super) boundaries: Vec<BoundaryView>,
}

/// The values of a stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct StageView {
    pub(super) index: usize,
    pub(super) device: String,
    /// The stages whose losses it follows, separated by commas.
    pub(super) follows: Option<String>,
    pub(super) width: Option<f64>,
    pub(super) loss: Option<f64>,
    pub(super) validation_loss: Option<f64>,
    pub(super) accuracy: Option<f64>,
    pub(super) validation_accuracy: Option<f64>,
    pub(super) gradient_norm: Option<f64>,
    pub(super) alignment: Option<f64>,
    /// The share of the time between the scrapes in which it computed.
    pub(super) busy: Option<f64>,
    /// The busy share in a simulation of the schedule.
    pub(super) simulated_busy: Option<f64>,
    /// The shares of its computing time, in the order of [`PHASES`]; empty if it computed nothing.
    pub(super) phases: Vec<f64>,
    /// The number of messages in its mailbox, and the mailbox's capacity.
    pub(super) mailbox: Option<(f64, f64)>,
    pub(super) in_flight: Option<f64>,
    /// The mean seconds that activations waited.
    pub(super) activation_wait: Option<f64>,
    /// The mean seconds that gradients waited.
    pub(super) gradient_wait: Option<f64>,
    /// Bytes, in the order of [`MEMORY`].
    pub(super) memory: Vec<f64>,
    /// Seconds since it last finished a computation.
    pub(super) since_progress: Option<f64>,
    pub(super) not_finite: f64,
}

/// The traffic over a boundary in one direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Traffic {
    pub(super) messages_per_second: Option<f64>,
    pub(super) bytes_per_second: Option<f64>,
    /// The mean seconds of a transfer.
    pub(super) transfer: Option<f64>,
}

/// The values of the boundary between two stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BoundaryView {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) activations: Traffic,
    pub(super) gradients: Traffic,
}

/// Two scrapes of a process.
struct Interval<'a> {
    before: Option<&'a Scrape>,
    now: &'a Scrape,
    seconds: f64,
}

impl View {
    /// Computes the values from two scrapes. Without `before`, or if the process was started after it, there are no rates.
    pub(super) fn new(before: Option<&Scrape>, now: &Scrape) -> Self {
        let seconds = before.map_or(0.0, |before| now.at.saturating_duration_since(before.at).as_secs_f64());
        let interval = Interval { before: before.filter(|_| seconds > 0.0), now, seconds };
        let text = |sample: Option<&Sample>, label: &str| sample.and_then(|s| s.label(label)).unwrap_or("").to_owned();
        let run = now.all(table::RUN_INFO.name).first();
        let state = now.all(table::RUN_STATE.name).iter().find(|sample| sample.value == 1.0);
        let whole = |metric: &Metric| now.get(metric, &[]);
        Self {
            pipeline: text(now.all(table::BUILD_INFO.name).first(), "pipeline"),
            run: text(run, "run_id"),
            model: text(run, "model"),
            strategy: text(run, "strategy"),
            state: state.and_then(|s| s.label("state")).unwrap_or("starting").to_owned(),
            step: whole(&table::CURRENT_STEP),
            micro_batches: whole(&table::PIPELINE_MICROBATCHES),
            learning_rate: whole(&table::LEARNING_RATE),
            examples_per_second: interval.rate(&table::SAMPLES, &[]),
            tokens_per_second: interval.rate(&table::TOKENS, &[]).filter(|rate| *rate > 0.0),
            step_seconds: interval.mean(&table::STEP_DURATION, &[]),
            stages: stages(now).into_iter().map(|k| interval.stage(k)).collect(),
            boundaries: boundaries(now).into_iter().map(|(from, to)| interval.boundary(from, to)).collect(),
        }
    }

    /// Returns the last stage's loss of the last batch.
    pub(super) fn loss(&self) -> Option<f64> {
        self.stages.last().and_then(|stage| stage.loss)
    }
}

/// Returns the numbers of the stages that have metrics.
fn stages(now: &Scrape) -> BTreeSet<usize> {
    let samples = now.all(table::STAGE_INFO.name).iter();
    samples.filter_map(|sample| sample.label("stage")?.parse().ok()).collect()
}

/// Returns the pairs of neighbouring stages, the upstream one first.
fn boundaries(now: &Scrape) -> BTreeSet<(usize, usize)> {
    let samples = now.all(table::BOUNDARY_MESSAGES.name).iter();
    let ends = samples.filter_map(|sample| {
        let end = |label: &str| sample.label(label)?.parse::<usize>().ok();
        Some((end("src")?, end("dst")?))
    });
    ends.map(|(src, dst)| (src.min(dst), src.max(dst))).collect()
}

impl Interval<'_> {
    /// Returns the increase of a counter, or none if it is smaller than before: then another process has answered.
    fn increase(&self, metric: &Metric, labels: &[(&str, &str)]) -> Option<f64> {
        let (before, now) = (self.before?, self.now.get(metric, labels)?);
        // A counter that did not exist before started at 0.
        Some(now - before.get(metric, labels).unwrap_or(0.0)).filter(|increase| *increase >= 0.0)
    }

    fn rate(&self, metric: &Metric, labels: &[(&str, &str)]) -> Option<f64> {
        self.increase(metric, labels).map(|increase| increase / self.seconds)
    }

    /// Returns the increase of the sum and of the count of a histogram.
    fn recorded(&self, metric: &Metric, labels: &[(&str, &str)]) -> Option<(f64, f64)> {
        let (sum, count) = self.now.sum_and_count(metric, labels)?;
        let (sum_before, count_before) = self.before?.sum_and_count(metric, labels).unwrap_or((0.0, 0.0));
        (count >= count_before).then_some((sum - sum_before, count - count_before))
    }

    /// Returns the mean of the values recorded between the scrapes.
    fn mean(&self, metric: &Metric, labels: &[(&str, &str)]) -> Option<f64> {
        self.recorded(metric, labels).filter(|(_, count)| *count > 0.0).map(|(sum, count)| sum / count)
    }

    fn stage(&self, k: usize) -> StageView {
        let (now, name) = (self.now, k.to_string());
        let of = [("stage", name.as_str())];
        let get = |metric: &Metric| now.get(metric, &of);
        let split = |metric: &Metric, split: &str| now.get(metric, &[of[0], ("split", split)]);
        let wait = |kind: &str| self.mean(&table::STAGE_QUEUE_WAIT, &[of[0], ("kind", kind)]);
        let info = now.of_stage(table::STAGE_INFO.name, &name).max_by(|a, b| a.value.total_cmp(&b.value));
        let times: Vec<f64> = PHASES
            .iter()
            .map(|phase| self.recorded(&table::STAGE_PHASE_DURATION, &[of[0], ("phase", phase)]))
            .map(|recorded| recorded.map_or(0.0, |(sum, _)| sum.max(0.0)))
            .collect();
        let computed: f64 = times.iter().sum();
        StageView {
            index: k,
            device: info.and_then(|info| info.label("device")).unwrap_or("").to_owned(),
            follows: info.and_then(|info| Some(info.label("follows")?.to_owned())),
            width: get(&table::STAGE_INTERLOCK_WIDTH),
            loss: split(&table::LOSS, "train"),
            validation_loss: split(&table::LOSS, "validation"),
            accuracy: split(&table::ACCURACY, "train"),
            validation_accuracy: split(&table::ACCURACY, "validation"),
            gradient_norm: get(&table::GRADIENT_NORM),
            alignment: get(&table::STAGE_ALIGNMENT),
            busy: self.recorded(&table::STAGE_PHASE_DURATION, &of).map(|_| (computed / self.seconds).clamp(0.0, 1.0)),
            simulated_busy: get(&table::STAGE_PREDICTED_IDLE).map(|idle| 1.0 - idle),
            phases: match computed > 0.0 {
                true => times.iter().map(|time| time / computed).collect(),
                false => Vec::new(),
            },
            mailbox: get(&table::STAGE_MAILBOX_MESSAGES).zip(get(&table::STAGE_MAILBOX_CAPACITY)),
            in_flight: get(&table::STAGE_INFLIGHT_MICROBATCHES),
            activation_wait: wait("activation"),
            gradient_wait: wait("gradient"),
            memory: MEMORY
                .iter()
                .map(|kind| now.get(&table::STAGE_MEMORY, &[of[0], ("kind", kind)]).unwrap_or(0.0))
                .collect(),
            since_progress: get(&table::STAGE_LAST_PROGRESS).filter(|at| *at > 0.0).map(|at| (now.unix - at).max(0.0)),
            not_finite: get(&table::NONFINITE).unwrap_or(0.0),
        }
    }

    fn boundary(&self, from: usize, to: usize) -> BoundaryView {
        let traffic = |src: usize, dst: usize, kind: &str| {
            let (src, dst) = (src.to_string(), dst.to_string());
            let labels = [("src", src.as_str()), ("dst", dst.as_str()), ("kind", kind)];
            Traffic {
                messages_per_second: self.rate(&table::BOUNDARY_MESSAGES, &labels),
                bytes_per_second: self.rate(&table::BOUNDARY_BYTES, &labels),
                transfer: self.mean(&table::BOUNDARY_TRANSFER, &labels),
            }
        };
        BoundaryView {
            from,
            to,
            activations: traffic(from, to, "activation"),
            gradients: traffic(to, from, "gradient"),
        }
    }
}
