//! Stages that wait for each other forever.

use std::fmt;

use crate::schedule::{Lack, StageSchedule};

/// One stage's wait for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The stage that waits.
    pub stage: usize,
    /// The stage that it waits for; none where it waits for the next batch, which is not fed while the first stage has no room.
    pub on: Option<usize>,
    /// What it waits for.
    pub lack: Lack,
}

/// Nothing can happen any more, and the work is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// The waits that close a circle, or end where nothing comes from outside.
    pub cycle: Vec<Wait>,
}

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, wait) in self.cycle.iter().enumerate() {
            let and = if i == 0 { "" } else { ", " };
            match wait.on {
                Some(on) => write!(f, "{and}stage {} waits for {} of stage {on}", wait.stage, wait.lack)?,
                None => write!(f, "{and}stage {} waits for {}", wait.stage, wait.lack)?,
            }
        }
        Ok(())
    }
}

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
        Wait { stage: k, on, lack }
    };
    let mut seen: Vec<Wait> = Vec::new();
    let mut at = Some(0);
    while let Some(k) = at.filter(|&k| k < stages.len()) {
        if let Some(begin) = seen.iter().position(|wait| wait.stage == k) {
            return Deadlock { cycle: seen.split_off(begin) };
        }
        let next = wait(k);
        seen.push(next);
        at = next.on;
    }
    Deadlock { cycle: seen }
}
