//! The table of all metrics.

use metrics::Unit;

use super::Metric;

/// Values of the label `phase`: what a stage computes.
pub const PHASES: [&str; 6] =
    ["forward", "head", "input_gradient", "parameter_gradient", "both_gradients", "optimizer"];

/// Values of the label `kind` of [`STAGE_MEMORY`].
pub const MEMORY: [&str; 4] = ["parameters", "gradients", "optimizer", "activations"];

/// Values of the label `reason` of [`STAGE_RESTARTS`].
pub const RESTART_REASONS: [&str; 3] = ["panic", "error", "nonfinite"];

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident = $metric:expr;)*) => {
        $($(#[$doc])* pub const $name: Metric = $metric;)*

        /// All metrics, in the order of the table.
        pub const ALL: &[Metric] = &[$($name),*];
    };
}

table! {
    /// The program's version.
    BUILD_INFO = Metric::gauge_of(
        "interlock_build_info", Unit::Count, &["version", "revision"],
        "1, with the version of the program and the revision that it was built from",
    );
    /// The run, its model and its strategy.
    RUN_INFO = Metric::gauge_of(
        "interlock_run_info", Unit::Count, &["run_id", "model", "strategy"],
        "1, with the run, its model and its strategy",
    );
    /// A stage's rank and device, and the loss that it follows.
    STAGE_INFO = Metric::gauge_of(
        "interlock_stage_info", Unit::Count, &["stage", "rank", "device", "follows"],
        "1, with the rank that trains the stage (of the first replica; 0 in one process), its device, and the stage whose loss it follows (several joined by commas); 0 for losses followed earlier",
    );
    /// The number of stages.
    PIPELINE_STAGES = Metric::gauge_of("interlock_pipeline_stages", Unit::Count, &[], "Stages of the pipeline");
    /// The number of micro-batches of a batch.
    PIPELINE_MICROBATCHES = Metric::gauge_of(
        "interlock_pipeline_microbatches", Unit::Count, &[], "Micro-batches into which a batch is cut",
    );
    /// Interlock width.
    STAGE_INTERLOCK_WIDTH = Metric::gauge_of(
        "interlock_stage_interlock_width", Unit::Count, &["stage"],
        "Interlock width: the number of stages from this one to the farthest whose loss trains it, both included",
    );
    /// The state of the run.
    RUN_STATE = Metric::gauge_of(
        "interlock_run_state", Unit::Count, &["state"],
        "1 for what the run is doing (starting, training, evaluating, checkpointing, finished, failed), 0 for everything else",
    );

    /// The durations of phases.
    STAGE_PHASE_DURATION = Metric::histogram_of(
        "interlock_stage_phase_duration_seconds", &["stage", "phase"],
        "Duration of a stage's computation by phase, for one micro-batch (optimizer: one step)",
    );
    /// The times that messages wait.
    STAGE_QUEUE_WAIT = Metric::histogram_of(
        "interlock_stage_queue_wait_seconds", &["stage", "kind"],
        "Time from the arrival of an activation or gradient at a stage to the start of the computation that uses it",
    );
    /// Messages in a mailbox.
    STAGE_MAILBOX_MESSAGES = Metric::gauge_of(
        "interlock_stage_mailbox_messages", Unit::Count, &["stage"], "Messages in the mailbox of the stage",
    );
    /// Capacity of a mailbox.
    STAGE_MAILBOX_CAPACITY = Metric::gauge_of(
        "interlock_stage_mailbox_capacity", Unit::Count, &["stage"], "The most messages that the mailbox of the stage holds",
    );
    /// Micro-batches in a stage.
    STAGE_INFLIGHT_MICROBATCHES = Metric::gauge_of(
        "interlock_stage_inflight_microbatches", Unit::Count, &["stage"],
        "Micro-batches that the stage has run forward and not yet freed",
    );
    /// Micro-batches done.
    STAGE_MICROBATCHES = Metric::counter_of(
        "interlock_stage_microbatches_total", Unit::Count, &["stage"], "Training micro-batches that the stage has finished",
    );
    /// The time of a stage's last computation.
    STAGE_LAST_PROGRESS = Metric::gauge_of(
        "interlock_stage_last_progress_timestamp_seconds", Unit::Seconds, &["stage"],
        "When the stage last finished a computation, in seconds since 1970",
    );
    /// Restarts.
    STAGE_RESTARTS = Metric::counter_of(
        "interlock_stage_restarts_total", Unit::Count, &["stage", "reason"],
        "Failures of the stage after which all stages went back and the run went on, by what happened; only of runs that restart",
    );
    /// The memory of a stage.
    STAGE_MEMORY = Metric::gauge_of(
        "interlock_stage_memory_bytes", Unit::Bytes, &["stage", "kind"],
        "The most bytes that the stage held in its last step: parameters, gradients, optimizer state, and activations as its layers report them",
    );
    /// The simulated idle share of a stage.
    STAGE_PREDICTED_IDLE = Metric::gauge_of(
        "interlock_stage_predicted_idle_ratio", Unit::Percent, &["stage"],
        "Share of a step, 0 to 1, in which the stage is idle, simulated from its plan and the run's phase times so far",
    );

    /// Bytes over a boundary.
    BOUNDARY_BYTES = Metric::counter_of(
        "interlock_boundary_bytes_total", Unit::Bytes, &["src", "dst", "kind"],
        "Bytes sent from a stage to the next (activations, targets included) or to the previous one (gradients, and the readout that heads share)",
    );
    /// Messages over a boundary.
    BOUNDARY_MESSAGES = Metric::counter_of(
        "interlock_boundary_messages_total", Unit::Count, &["src", "dst", "kind"],
        "Activations, gradients and versions of the shared readout sent from stage to stage",
    );
    /// Time over a boundary.
    BOUNDARY_TRANSFER = Metric::histogram_of(
        "interlock_boundary_transfer_seconds", &["src", "dst", "kind"],
        "Time of an activation or a gradient to the receiver's mailbox and on to its device, without the wait in the mailbox",
    );

    /// Losses.
    LOSS = Metric::gauge_of(
        "interlock_loss", Unit::Count, &["stage", "split"],
        "Mean loss per target of the stage's head: of the last batch (train), at the last evaluation (validation)",
    );
    /// Accuracies.
    ACCURACY = Metric::gauge_of(
        "interlock_accuracy_ratio", Unit::Percent, &["stage", "split"],
        "Share of targets, 0 to 1, that the stage's head predicts right: of the last batch (train), at the last evaluation (validation)",
    );
    /// Norms of gradients.
    GRADIENT_NORM = Metric::gauge_of(
        "interlock_gradient_norm", Unit::Count, &["stage"],
        "Norm of the gradient of the stage's main parameters in the last step, before clipping",
    );
    /// Cosines between gradients.
    STAGE_ALIGNMENT = Metric::gauge_of(
        "interlock_stage_alignment", Unit::Count, &["stage"],
        "Cosine between the gradients of the loss that the stage follows and of the one that it measures, at the last step that measured one",
    );
    /// The learning rate.
    LEARNING_RATE = Metric::gauge_of(
        "interlock_learning_rate", Unit::Count, &[], "Learning rate of the last stage in the last step",
    );
    /// Infinities and NaN.
    NONFINITE = Metric::counter_of(
        "interlock_nonfinite_total", Unit::Count, &["stage", "kind"],
        "Losses, gradients, activations and parameters that were infinite or not a number; the first ends the run",
    );

    /// Examples.
    SAMPLES = Metric::counter_of("interlock_samples_total", Unit::Count, &[], "Training examples that every stage has finished");
    /// Tokens.
    TOKENS = Metric::counter_of(
        "interlock_tokens_total", Unit::Count, &[],
        "Training targets that count, where an example has several, such as the tokens of a text",
    );
    /// Steps made.
    STEPS = Metric::counter_of("interlock_steps_total", Unit::Count, &[], "Steps that every stage has finished in this process");
    /// The current step.
    CURRENT_STEP = Metric::gauge_of(
        "interlock_current_step", Unit::Count, &[],
        "Step under way, counted from 0 on: the updates that every stage has made since the model's first, also in runs that this one continues",
    );
    /// How long steps take.
    STEP_DURATION = Metric::histogram_of(
        "interlock_step_duration_seconds", &[],
        "Time from the end of a step in all stages to the end of the next, evaluations excluded",
    );

    /// The time of the last checkpoint.
    CHECKPOINT_LAST_SUCCESS = Metric::gauge_of(
        "interlock_checkpoint_last_success_timestamp_seconds", Unit::Seconds, &[],
        "When the last checkpoint was written, in seconds since 1970; at first, when the run began",
    );
    /// The longest time between checkpoints.
    CHECKPOINT_INTERVAL = Metric::gauge_of(
        "interlock_checkpoint_interval_seconds", Unit::Seconds, &[],
        "The longest time of training between two checkpoints, as configured",
    );
    /// The size of a checkpoint.
    CHECKPOINT_SIZE = Metric::gauge_of(
        "interlock_checkpoint_size_bytes", Unit::Bytes, &[], "Size of the last checkpoint",
    );
    /// How long checkpoints take.
    CHECKPOINT_DURATION = Metric::histogram_of(
        "interlock_checkpoint_duration_seconds", &[], "Time to write a checkpoint, while training goes on",
    );
    /// Checkpoints that failed.
    CHECKPOINT_FAILURES = Metric::counter_of(
        "interlock_checkpoint_failures_total", Unit::Count, &[],
        "Checkpoints and best weights that could not be written",
    );
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::metrics::MetricKind;

    #[test]
    fn names_are_unique_and_tell_kind_and_unit() {
        let mut seen = HashSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(
                name.starts_with("interlock_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{name}"
            );
            assert_eq!(metric.kind == MetricKind::Counter, name.ends_with("_total"), "{name}");
            if metric.kind == MetricKind::Histogram {
                assert!(name.ends_with("_seconds") && metric.unit == Unit::Seconds, "{name}");
            }
            assert_eq!(metric.unit == Unit::Bytes, name.contains("_bytes"), "{name}");
            assert_eq!(metric.unit == Unit::Percent, name.ends_with("_ratio"), "{name}");
        }
    }
}
