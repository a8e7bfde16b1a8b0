//! The versions of a shared readout by step.

/// Returns the version of the last stage's matrix that heads use at `step`: the step before which the matrix was so. It may be from before the run's
/// first step; then heads use the first.
pub(crate) fn version_at(refresh: u64, step: u64) -> u64 {
    refresh * (step / refresh).saturating_sub(1)
}

/// Returns the least refresh interval with which stage `k` of `stages` never waits for a version, with `in_flight` credits at each boundary and
/// `micro_batches` a step.
///
/// When a stage has sent all micro-batches of its first `s` steps, the next one has freed all but `in_flight` of them, and so on to the last stage,
/// which has then freed all but `(stages - 1 - k) · in_flight`. It made its updates before those steps, and their messages have overtaken no credit.
pub(crate) fn least_refresh(k: usize, stages: usize, in_flight: usize, micro_batches: usize) -> u64 {
    1 + ((stages - 1 - k) * in_flight / micro_batches.max(1)) as u64
}
