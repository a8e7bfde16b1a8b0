//! The devices under test.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use interlock::{StageDevice, tools::device::for_stage};
use interlock_backends::Backends;

/// The environment variable that names the devices.
const VARIABLE: &str = "INTERLOCK_TEST_DEVICES";

/// The devices if the variable is not set.
const DEFAULT: &str = "cpu,cpu:threads=1,cpu:layers=candle";

/// Returns the devices under test, which are opened once.
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

/// Returns every pair of devices. The pair of a device with itself has two of its streams.
pub(crate) fn pairs() -> Vec<[Arc<dyn StageDevice>; 2]> {
    let from = || all().iter().map(|device| for_stage(device).expect("a stream"));
    from().flat_map(|a| from().map(move |b| [Arc::clone(&a), b])).collect()
}

static TURN: RwLock<()> = RwLock::new(());

/// Keeps tests that call [`alone`] from running at the same time.
pub(crate) fn beside_others() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps all other tests from running at the same time, since memory is measured for a whole device.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}
