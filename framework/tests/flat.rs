//! Trainings one after another in a process leave nothing behind: no threads, no descriptors, no memory. Alone in its file, since it counts those of the
//! whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;
#[path = "common/held.rs"]
mod held;

use std::fs;

use common::{Fault, How, Perceptron, Spiral, When};
use held::held;
use interlock::{CheckpointConfig, FailuresConfig, Interlock, OnFailure, Trainer};

#[test]
fn trainings_in_one_process_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let data = Spiral { examples: 24 };
    let train = |number: u64| {
        // Every third one fails, every other third is restarted.
        let fault = Fault { unit: 1, head: false, when: When::Forward, how: How::Panic, step: 5 };
        let fault = Some(fault).filter(|_| !number.is_multiple_of(3));
        let on_failure = if number % 3 == 2 { OnFailure::Restart } else { OnFailure::Stop };
        let failures = FailuresConfig { on_failure, snapshot_every: 2, ..FailuresConfig::default() };
        let run = folder.path().join(number.to_string());
        let checkpoints = CheckpointConfig { every_steps: Some(4), keep: 1, ..CheckpointConfig::default() };
        let builder =
            Trainer::builder(Perceptron { layers: 4, fault }).stages(4).strategy(Interlock::width(2)).batch_size(6);
        let mut trainer = builder.failures(failures).checkpoint(&run, checkpoints).steps(8).build().unwrap();
        assert_eq!(trainer.fit((data, data)).is_ok(), number.is_multiple_of(3));
        drop(trainer);
        fs::remove_dir_all(run).unwrap();
    };
    let many = std::env::var("INTERLOCK_SOAK_TRAININGS").map_or(24, |count| count.parse().unwrap());
    (0..6).for_each(train);
    let [threads, descriptors, bytes] = held();
    (0..many).for_each(train);
    let [threads_then, descriptors_then, bytes_then] = held();
    println!("after {many} trainings: {threads_then} threads, {descriptors_then} descriptors, {bytes_then} bytes");
    assert_eq!([threads_then, descriptors_then], [threads, descriptors]);
    // The allocator may keep a little more; a copy of each training's stages would be more than that.
    assert!(bytes_then < bytes + (8 << 20), "{bytes} bytes before, {bytes_then} after");
}
