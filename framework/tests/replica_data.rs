//! With several replicas, the first rank of each reads its own part of every batch, or rank 0 reads all: the bits are the same.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/bits.rs"]
mod bits;
#[path = "common/models.rs"]
mod common;
#[path = "common/group.rs"]
mod group;
#[path = "common/on_ranks.rs"]
mod on_ranks;

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use common::Spiral;
use interlock::{
    Adaptive, Batch, CrossEntropy, DataFrom, Dataset, EndToEnd, Error, FailuresConfig, Groups, Interlock, Key, Loss,
    PendingScore, Result, Targets, TrainerBuilder, candle_core::Tensor,
};
use on_ranks::{DATA, fit, four, near, on};

/// What a rank does when it is asked for a batch.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Fewer,
    OtherTargets,
    /// Its methods do not agree.
    OtherThanAlone,
    Fails,
    Panics,
    Blocks,
}

/// Notes which examples are read, and which targets.
#[derive(Clone)]
struct Noting {
    fault: Fault,
    read: Arc<Mutex<[Vec<usize>; 2]>>,
}

impl Noting {
    fn new(fault: Fault) -> Self {
        Self { fault, read: Arc::default() }
    }

    fn read(&self) -> [Vec<usize>; 2] {
        self.read.lock().unwrap().clone()
    }
}

impl Dataset for Noting {
    fn len(&self) -> usize {
        if self.fault == Fault::Fewer { 21 } else { DATA.len() }
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        self.read.lock().unwrap()[0].extend(numbers);
        match self.fault {
            Fault::Fails => return Err(Error::Data("the disk is gone".to_owned())),
            Fault::Panics => panic!("the user's panic"),
            Fault::Blocks => thread::sleep(Duration::from_secs(3600)),
            _ => {}
        }
        let batch = DATA.batch(numbers, augment)?;
        match self.fault {
            Fault::OtherTargets | Fault::OtherThanAlone => Ok(Batch { targets: batch.targets.zeros_like()?, ..batch }),
            _ => Ok(batch),
        }
    }

    fn targets(&self, numbers: &[usize], augment: Option<Key>) -> Result<Tensor> {
        self.read.lock().unwrap()[1].extend(numbers);
        let targets = DATA.batch(numbers, augment)?.targets;
        if self.fault == Fault::OtherTargets { Ok(targets.zeros_like()?) } else { Ok(targets) }
    }
}

/// Two replicas, in which something may take so many seconds.
fn two_within(stall_timeout: Option<f64>) -> TrainerBuilder {
    let failures = FailuresConfig { stall_timeout, ..FailuresConfig::default() };
    four().batch_size(8).steps(6).replicas(2).failures(failures)
}

fn two() -> TrainerBuilder {
    two_within(None)
}

/// Trains two replicas of two ranks each, on these data at rank 0 and at the first rank of the second replica. Returns what the fit and the ranks end with.
fn fit_on(data: [&Noting; 2], builder: impl Fn() -> TrainerBuilder + Sync) -> (Result<bits::Bits>, Vec<Result<()>>) {
    let ranks = near(4);
    let builder = &builder;
    thread::scope(|scope| {
        let others = ranks[1..].iter().map(|ranks| {
            let data = data[1].clone();
            scope.spawn(move || match ranks.rank() {
                2 => builder().ranks(ranks).serve_with(|| Ok(data)),
                _ => builder().ranks(ranks).serve_with(|| -> Result<Noting> { unreachable!("it reads nothing") }),
            })
        });
        let others: Vec<_> = others.collect();
        let mut trainer = builder().ranks(&ranks[0]).build().unwrap();
        let fitted = trainer.fit(data[0].clone()).and_then(|_| trainer.snapshot());
        drop(trainer);
        (fitted.map(|weights| bits::bits(&weights)), others.into_iter().map(|other| other.join().unwrap()).collect())
    })
}

#[test]
fn the_bits_do_not_depend_on_who_reads() {
    for micro_batches in [1, 2, 3] {
        for (size, count) in [(2, 2), (3, 3), (6, 2)] {
            let builder = || {
                let builder = four().batch_size(10).steps(7).strategy(Groups).in_flight(3);
                builder.replicas(count).micro_batches(micro_batches)
            };
            let (own, others) = on(&near(size), builder, fit);
            assert!(others.iter().all(Result::is_ok), "{others:?}");
            let (sent, _) = on(&near(size), || builder().data_from(DataFrom::First), fit);
            assert!(own == sent, "{size} ranks, {count} replicas, {micro_batches} micro-batches");
        }
    }
    let adaptive = Adaptive { every: 2, window: 1, below: 2.0, width: 1, max_width: None };
    let builder = || {
        let builder = four().batch_size(7).drop_last(true).steps(8).strategy(adaptive.clone()).replicas(2);
        // The first stage of a replica is on its second rank.
        builder.stages_of_ranks(vec![vec![1, 3], vec![0, 2]])
    };
    let (own, others) = on(&near(4), builder, fit);
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    let (sent, _) = on(&near(4), || builder().data_from(DataFrom::First), fit);
    assert!(own == sent);
}

#[test]
fn each_rank_reads_the_examples_of_its_replica() {
    let data = [Noting::new(Fault::None), Noting::new(Fault::None)];
    let (fitted, others) = fit_on([&data[0], &data[1]], || two().micro_batches(2).strategy(Interlock::width(2)));
    fitted.unwrap();
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    let [[mut first, targets], [second, none]] = data.map(|data| data.read());
    // What is tried before the first step.
    let tried = first.len() - 24;
    assert_eq!((second.len(), none.len()), (24, 0));
    assert_eq!(targets, second);
    // Two epochs of 24 examples, half of them here and half there.
    let mut all = [first.split_off(tried), second].concat();
    all.sort_unstable();
    assert_eq!(all, (0..48).map(|i| i / 2).collect::<Vec<_>>());
}

#[test]
fn data_that_cannot_be_read_on_another_rank_end_the_run_and_name_the_replica() {
    for (fault, expected) in [
        (Fault::Fewer, "21 training examples on this rank, 24 on rank 0; give all ranks the same data, or let rank 0"),
        (Fault::OtherTargets, "other targets on this rank than on rank 0; give all ranks"),
        (Fault::OtherThanAlone, "methods `targets` and `batch` return other targets"),
        (Fault::Fails, "the disk is gone"),
        (Fault::Panics, "the user's panic"),
        (Fault::Blocks, "it has not ended after 1 s (failures.stall_timeout)"),
    ] {
        let limit = (fault == Fault::Blocks).then_some(1.0);
        let start = Instant::now();
        let (fitted, others) = fit_on([&Noting::new(Fault::None), &Noting::new(fault)], || two_within(limit));
        let error = fitted.unwrap_err().to_string();
        assert!(error.starts_with("data of replica 1, step 0") && error.contains(expected), "{error}");
        assert!(others.iter().all(Result::is_err), "{others:?}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn data_that_cannot_be_opened_on_another_rank_refuse_the_run() {
    let refused = |open: fn() -> Result<Spiral>| {
        let ranks = near(2);
        let two = || two_within(Some(1.0));
        thread::scope(|scope| {
            let other = scope.spawn(|| two().ranks(&ranks[1]).serve_with(open).unwrap_err().to_string());
            let error = two().ranks(&ranks[0]).build().err().unwrap();
            assert_eq!(other.join().unwrap(), error.to_string());
            error
        })
    };
    let error = refused(|| Err(Error::invalid("data.path", "no such file", "give another")));
    assert!(error.is_refusal());
    assert_eq!(error.to_string(), "rank 1, build: data.path: no such file; give another");
    // However long it takes, the others know that this rank does something.
    let error = refused(|| {
        thread::sleep(Duration::from_secs(3));
        panic!("the user's panic")
    });
    assert!(error.to_string().contains("the user's panic"), "{error}");
    let ranks = near(2);
    let without = thread::scope(|scope| {
        scope.spawn(|| two().ranks(&ranks[1]).serve());
        two().ranks(&ranks[0]).build().err().unwrap().to_string()
    });
    assert!(without.contains("this rank has the first stage of a replica and no data; call serve_with"), "{without}");
}

/// The common loss, which waits until a rank has read two batches.
struct AfterTwo(Noting);

impl Loss for AfterTwo {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        CrossEntropy::default().count(targets)
    }

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
        CrossEntropy::default().score(output, targets)
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        let start = Instant::now();
        while self.0.read()[0].len() < 8 {
            if start.elapsed() > Duration::from_secs(10) {
                return Err(Error::Data("only one batch has been read".to_owned()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        CrossEntropy::default().differentiate(output, targets, total)
    }
}

#[test]
fn other_ranks_read_ahead_of_the_credits_of_their_stages() {
    let (ranks, data) = (near(2), Noting::new(Fault::None));
    let builder = || two().strategy(EndToEnd).in_flight(1);
    thread::scope(|scope| {
        let (of_other, loss) = (data.clone(), AfterTwo(data.clone()));
        let other = scope.spawn(|| builder().loss(loss).ranks(&ranks[1]).serve_with(|| Ok(of_other)));
        let mut trainer = builder().ranks(&ranks[0]).build().unwrap();
        trainer.fit(DATA).unwrap();
        drop(trainer);
        other.join().unwrap().unwrap();
    });
    assert_eq!(data.read()[0].len(), 24);
}
