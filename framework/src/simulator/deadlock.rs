//! Stages that wait for each other forever.

use crate::{
    error::{Deadlock, Wait},
    schedule::{Lack, StageSchedule},
};

/// The cycle of waits among stages that are all stuck.
pub(super) fn find<'a>(stages: impl Iterator<Item = &'a StageSchedule>) -> Deadlock {
    let stages: Vec<&StageSchedule> = stages.collect();
    let wait = |k: usize| {
        let lack = stages[k].lack();
        let on = match lack {
            Lack::Activation => k.checked_sub(1),
            Lack::Room | Lack::Gradient { .. } => Some(k + 1),
            // The norm comes when every stage has shared its own.
            Lack::Norm => (0..stages.len()).find(|&other| other != k && stages[other].lack() != Lack::Norm),
        };
        Wait { stage: k, on, what: lack.to_string() }
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
