//! The versions of a shared readout by step.

use crate::{Error, Result};

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
fn least_refresh(k: usize, stages: usize, in_flight: usize, micro_batches: usize) -> u64 {
    1 + ((stages - 1 - k) * in_flight / micro_batches.max(1)) as u64
}

/// Checks that stage `k` of `stages`, the first whose head shares the readout, never waits for a version; then no other stage does.
///
/// # Errors
/// If the refresh interval is too short.
pub(crate) fn check_refresh(
    refresh: u64,
    k: usize,
    stages: usize,
    in_flight: usize,
    micro_batches: usize,
) -> Result<()> {
    let least = least_refresh(k, stages, in_flight, micro_batches);
    if refresh >= least {
        return Ok(());
    }
    Err(Error::invalid(
        "heads.readout_refresh",
        format!(
            "{refresh}, but with {in_flight} micro-batches in flight stage {k} may be so far ahead of the last stage that it waits"
        ),
        format!("use {least} or more, or fewer in flight (in_flight)"),
    ))
}
