//! Seconds that pieces of training steps take, on several devices at the same time.

use std::{
    collections::HashMap,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::chain::{Chain, Measured, Piece};
use crate::{Result, StageDevice, device::run_on};

/// Rounds that count, and the time that they take, both at least.
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(500);

/// How often handing over an empty piece of work is timed.
const EMPTY: usize = 101;

/// Devices that are measured at the same time.
pub(super) struct Together {
    start: Barrier,
    unfinished: AtomicUsize,
}

impl Together {
    pub(super) fn new(devices: usize) -> Self {
        Self { start: Barrier::new(devices), unfinished: AtomicUsize::new(devices) }
    }
}

/// Takes note that a device's measurement has ended, however it did.
struct Unfinished<'a>(&'a AtomicUsize);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The median seconds of each piece.
pub(super) struct Times {
    pieces: HashMap<(usize, Piece), f64>,
    pub(super) action: f64,
}

impl Times {
    /// Runs steps on `chain` until all devices that are measured `together` have been.
    pub(super) fn measure(chain: &mut Chain<'_>, together: &Together) -> Result<Self> {
        let unfinished = Unfinished(&together.unfinished);
        together.start.wait();
        let device = chain.device;
        run_on(device, || round(chain))?;
        let action = hand_over(device);
        run_on(device, || {
            chain.seen.clear();
            let start = Instant::now();
            let mut rounds = 0;
            while rounds < ROUNDS || start.elapsed() < TIME {
                round(chain)?;
                rounds += 1;
            }
            let seconds = |seen: &Vec<_>| median(seen.iter().map(|seen: &Measured| seen.seconds).collect());
            let pieces = chain.seen.drain().map(|(piece, seen)| (piece, seconds(&seen))).collect();
            drop(unfinished);
            // The others are to be measured beside a device that works.
            while together.unfinished.load(Ordering::Relaxed) > 0 {
                round(chain)?;
                chain.seen.clear();
            }
            Ok(Self { pieces, action })
        })
    }

    /// The seconds of one piece of unit `i`; 0 where it never was.
    pub(super) fn of(&self, i: usize, figure: Piece) -> f64 {
        self.pieces.get(&(i, figure)).copied().unwrap_or_default()
    }
}

fn round(chain: &mut Chain<'_>) -> Result<()> {
    chain.whole()?;
    chain.split()?;
    chain.needed()?;
    chain.probe()
}

fn hand_over(device: &dyn StageDevice) -> f64 {
    let once = || {
        let start = Instant::now();
        run_on(device, || ());
        start.elapsed().as_secs_f64()
    };
    median((0..EMPTY).map(|_| once()).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[half],
        _ => (values[half - 1] + values[half]) / 2.0,
    }
}
