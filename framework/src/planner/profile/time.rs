//! The seconds that pieces of training steps take on several devices at the same time.

use std::{
    collections::HashMap,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::chain::{Chain, Piece, PieceRun};
use crate::{Result, StageDevice, device::run_on};

/// The least number of rounds that count, and the least time that they take.
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(500);

/// The number of times that handing over an empty piece of work is timed.
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

/// Notes that a device's measurement has ended, also after an error or a panic.
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
    /// Runs steps on `chain` until all devices measured `together` are done.
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
            let seconds = |seen: &Vec<_>| median(seen.iter().map(|seen: &PieceRun| seen.seconds).collect());
            let pieces = chain.seen.drain().map(|(piece, seen)| (piece, seconds(&seen))).collect();
            drop(unfinished);
            // Keeps the device busy until the others have been measured.
            while together.unfinished.load(Ordering::Relaxed) > 0 {
                round(chain)?;
                chain.seen.clear();
            }
            Ok(Self { pieces, action })
        })
    }

    /// The seconds of one piece of unit `i`; 0 if it never ran.
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
