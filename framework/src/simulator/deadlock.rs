//! Stages that wait for each other forever.

use crate::{
    error::{Deadlock, Wait},
    schedule::{StageSchedule, WaitingFor},
};

/// Returns the cycle of waits among stages that are all stuck.
pub(super) fn find<'a>(stages: impl Iterator<Item = &'a StageSchedule>) -> Deadlock {
    let stages: Vec<&StageSchedule> = stages.collect();
    let wait = |k: usize| {
        let what = stages[k].waiting_for();
        let on = match what {
            WaitingFor::Activation => k.checked_sub(1),
            WaitingFor::Credit | WaitingFor::Gradient { .. } | WaitingFor::Readout => Some(k + 1),
            // Other replicas are not simulated.
            WaitingFor::Replicas => None,
            // The norm arrives when every stage has reported its own.
            WaitingFor::Norm => {
                (0..stages.len()).find(|&other| other != k && stages[other].waiting_for() != WaitingFor::Norm)
            }
        };
        Wait { stage: k, on, what: what.to_string() }
    };
    let mut seen: Vec<Wait> = Vec::new();
    let mut at = Some(0);
    while let Some(k) = at.filter(|&k| k < stages.len()) {
        if let Some(begin) = seen.iter().position(|wait| wait.stage == k) {
            return Deadlock { cycle: seen.split_off(begin) };
        }
        let next = wait(k);
        at = next.on;
        seen.push(next);
    }
    Deadlock { cycle: seen }
}
