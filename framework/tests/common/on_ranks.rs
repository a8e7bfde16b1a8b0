//! Trainings on several ranks of one process, and what they come to.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{thread, time::Duration};

use interlock::{Result, Trainer, TrainerBuilder, ranks::Ranks};
use serde_json::Value;

use crate::{
    bits::{Bits, bits},
    common::{Perceptron, Spiral},
    group::group,
};

pub const DATA: Spiral = Spiral { examples: 24 };
pub const LONG: Duration = Duration::from_secs(60);

/// What a run comes to: the weights, the tensors of its state, and the state without wall seconds.
pub type Outcome = (Bits, Bits, Value);

/// Ranks whose messages arrive at once.
pub fn near(size: usize) -> Vec<Ranks> {
    group(size, LONG, |_, _| Duration::ZERO).0
}

/// What a run comes to: the weights, the state without wall seconds, and the scores.
fn everything(trainer: &Trainer) -> Outcome {
    let state = trainer.state().unwrap();
    let mut values = serde_json::to_value(&state).unwrap();
    values["best"]["seconds"] = Value::Null;
    values["fit"] = Value::Null;
    (bits(&trainer.snapshot().unwrap()), bits(&state.tensors), values)
}

/// Runs `work` on rank 0 while the others serve. Returns what each of the others ended with, too.
pub fn on<T>(
    ranks: &[Ranks],
    builder: impl Fn() -> TrainerBuilder + Sync,
    work: impl FnOnce(TrainerBuilder) -> T,
) -> (T, Vec<Result<()>>) {
    thread::scope(|scope| {
        let others = ranks[1..].iter().map(|ranks| scope.spawn(|| builder().ranks(ranks).serve_with(|| Ok(DATA))));
        let others: Vec<_> = others.collect();
        let done = work(builder().ranks(&ranks[0]));
        (done, others.into_iter().map(|other| other.join().unwrap()).collect())
    })
}

pub fn four() -> TrainerBuilder {
    Trainer::builder(Perceptron { layers: 5, fault: None }).stages(4).batch_size(6).seed(7).steps(9)
}

pub fn fit(builder: TrainerBuilder) -> Outcome {
    let mut trainer = builder.build().unwrap();
    trainer.fit((DATA, DATA)).unwrap();
    everything(&trainer)
}
