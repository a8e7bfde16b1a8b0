//! With a stage that is ten times slower than the others, nothing piles up. Alone in its file, since it counts what the whole process holds.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;
#[path = "common/held.rs"]
mod held;

use std::time::{Duration, Instant};

use common::{Dense, Paced, Spiral};
use held::held;
use interlock::{CheckpointConfig, Control, FailuresConfig, Interlock, ModelSpec, Result, TrainEvent, Trainer, Unit};

struct Net;

impl ModelSpec for Net {
    fn units(&self) -> Result<Vec<Unit>> {
        let unit = |(i, (inputs, outputs)): (usize, (usize, usize))| {
            let pace = Duration::from_micros(if i == 2 { 1000 } else { 100 });
            Unit::new(format!("layers.{i}"), [outputs], move |vb| {
                Ok(Paced(Dense::new(&vb, inputs, outputs, i < 3)?, pace))
            })
            .with_flops((inputs * outputs) as f64)
        };
        Ok([(2, 64), (64, 64), (64, 64), (64, 3)].into_iter().enumerate().map(unit).collect())
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok(Unit::new("0", [3], move |vb| Dense::new(&vb, 64, 3, false)).with_flops(192.0))
    }
}

/// Stops after a time, and notes what the process holds when a tenth of it is over.
struct Until {
    began: Instant,
    time: Duration,
    early: Option<[usize; 3]>,
    late: std::sync::mpsc::Sender<[[usize; 3]; 2]>,
}

impl interlock::Callback for Until {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        let TrainEvent::StepDone { .. } = event else { return Ok(Control::Continue) };
        let passed = self.began.elapsed();
        if passed > self.time / 10 {
            self.early.get_or_insert_with(held);
        }
        match self.early {
            Some(early) if passed >= self.time => {
                let _ = self.late.send([early, held()]);
                Ok(Control::Stop("it is over".to_owned()))
            }
            _ => Ok(Control::Continue),
        }
    }
}

#[test]
fn behind_a_slow_stage_nothing_piles_up() {
    let seconds = std::env::var("INTERLOCK_SOAK_SLOW_SECONDS").map_or(6, |seconds| seconds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (late, seen) = std::sync::mpsc::channel();
    let checkpoints = CheckpointConfig { every_steps: Some(50), keep: 2, ..CheckpointConfig::default() };
    let failures = FailuresConfig { snapshot_every: 10, ..FailuresConfig::default() };
    let mut trainer = Trainer::builder(Net)
        .strategy(Interlock::width(2))
        .probes()
        .stages(4)
        .batch_size(24)
        .micro_batches(4)
        .steps(u64::MAX)
        .checkpoint(folder.path(), checkpoints)
        .failures(failures)
        .callback(Until { began: Instant::now(), time: Duration::from_secs(seconds), early: None, late })
        .build()
        .unwrap();
    let report = trainer.fit(Spiral { examples: 240 }).unwrap();
    let [early, late] = seen.recv().unwrap();
    println!(
        "{} steps in {seconds} s: {early:?} threads, descriptors and bytes after a tenth, {late:?} at the end",
        report.steps
    );
    assert!(late[0] <= early[0] + 4 && late[1] <= early[1] + 8, "{early:?}, {late:?}");
    // The allocator may keep a little more.
    assert!(late[2] < early[2] + (8 << 20), "{early:?}, {late:?}");
    assert!(report.steps > 10);
}
