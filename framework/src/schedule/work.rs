//! The work of a stage, by kind of action.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ActionKind;

/// The work of a stage in one step, or in several: seconds and actions by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageWork {
    seconds: [f64; ActionKind::ALL.len()],
    actions: [u64; ActionKind::ALL.len()],
    /// Bytes of the largest activation that it sent to the next stage.
    pub activation_bytes: u64,
    /// Bytes of the largest gradient that it sent to the previous stage.
    pub gradient_bytes: u64,
}

impl StageWork {
    /// Adds one action.
    pub fn add(&mut self, kind: ActionKind, took: Duration) {
        self.seconds[kind as usize] += took.as_secs_f64();
        self.actions[kind as usize] += 1;
    }

    /// Returns the seconds of all actions of a kind.
    pub fn seconds(&self, kind: ActionKind) -> f64 {
        self.seconds[kind as usize]
    }

    /// Returns the number of actions of a kind.
    pub fn actions(&self, kind: ActionKind) -> u64 {
        self.actions[kind as usize]
    }

    /// Returns the mean seconds of one action of a kind; 0 if there was none.
    pub fn mean_seconds(&self, kind: ActionKind) -> f64 {
        self.seconds(kind) / self.actions(kind).max(1) as f64
    }

    /// Returns the seconds of all actions.
    pub fn total_seconds(&self) -> f64 {
        self.seconds.iter().sum()
    }
}

impl std::ops::AddAssign for StageWork {
    fn add_assign(&mut self, other: Self) {
        for kind in ActionKind::ALL {
            self.seconds[kind as usize] += other.seconds(kind);
            self.actions[kind as usize] += other.actions(kind);
        }
        self.activation_bytes = self.activation_bytes.max(other.activation_bytes);
        self.gradient_bytes = self.gradient_bytes.max(other.gradient_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_add_up_by_kind() {
        let mut step = StageWork { activation_bytes: 5, ..StageWork::default() };
        step.add(ActionKind::Forward, Duration::from_millis(250));
        step.add(ActionKind::Forward, Duration::from_millis(750));
        step.add(ActionKind::Update, Duration::from_millis(125));
        let mut both = StageWork { activation_bytes: 3, gradient_bytes: 7, ..StageWork::default() };
        both += step;
        both += step;
        assert_eq!((both.seconds(ActionKind::Forward), both.actions(ActionKind::Forward)), (2.0, 4));
        assert_eq!((both.mean_seconds(ActionKind::Forward), both.mean_seconds(ActionKind::Head)), (0.5, 0.0));
        assert_eq!(both.total_seconds(), 2.25);
        assert_eq!((both.activation_bytes, both.gradient_bytes), (5, 7));
    }
}
