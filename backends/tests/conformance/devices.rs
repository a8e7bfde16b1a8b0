//! The devices under test.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use interlock::{StageDevice, tools::device::for_stage};
use interlock_backends::Backends;

/// The environment variable that names them.
const VARIABLE: &str = "INTERLOCK_TEST_DEVICES";

/// Without it.
const DEFAULT: &str = "cpu,cpu:threads=1,cpu:layers=candle";

/// The devices under test, opened once.
pub(crate) fn all() -> &'static [Arc<dyn StageDevice>] {
    static OPENED: OnceLock<Vec<Arc<dyn StageDevice>>> = OnceLock::new();
    OPENED.get_or_init(|| {
        let names = std::env::var(VARIABLE).unwrap_or_else(|_| {
            println!("skipped: every device but {DEFAULT}; name others in {VARIABLE}");
            DEFAULT.to_owned()
        });
        match Backends::default().open_all(&names) {
            Ok(devices) => devices,
            Err(error) => panic!("{VARIABLE} names a device that does not open: {error}"),
        }
    })
}

/// Every pair of devices, each with itself included; of two that are the same, two of its streams.
pub(crate) fn pairs() -> Vec<[Arc<dyn StageDevice>; 2]> {
    let from = || all().iter().map(|device| for_stage(device).expect("a stream"));
    from().flat_map(|a| from().map(move |b| [Arc::clone(&a), b])).collect()
}

static TURN: RwLock<()> = RwLock::new(());

/// Keeps tests away that must have the devices to themselves.
pub(crate) fn beside_others() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps all other tests away: a device's memory is counted as a whole.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}
