//! The bytes in use, read from a device or a meter.

use crate::StageDevice;

/// A meter of the memory that the program uses.
pub trait MemoryMeter: Sync {
    /// Returns the bytes in use now.
    fn in_use(&self) -> u64;

    /// Returns the most bytes in use at any time since the last call.
    fn take_peak(&self) -> u64;
}

/// The source of memory readings.
#[derive(Clone, Copy)]
pub(super) enum MemoryReader<'a> {
    Device(&'a dyn StageDevice),
    Meter(&'a dyn MemoryMeter),
}

impl<'a> MemoryReader<'a> {
    pub(super) fn of(device: &'a dyn StageDevice, meter: Option<&'a dyn MemoryMeter>) -> Option<Self> {
        match device.hooks().memory_in_use() {
            Some(_) => Some(Self::Device(device)),
            None => meter.map(Self::Meter),
        }
    }

    pub(super) fn in_use(self) -> i64 {
        let bytes = match self {
            Self::Device(device) => device.hooks().memory_in_use().unwrap_or_default(),
            Self::Meter(meter) => meter.in_use(),
        };
        i64::try_from(bytes).unwrap_or(i64::MAX)
    }

    /// Returns the bytes in use now, and begins to watch the peak.
    pub(super) fn begin(self) -> i64 {
        self.peak();
        self.in_use()
    }

    /// Returns the most bytes in use since [`Self::begin`]; none for a device, which reports only the present.
    pub(super) fn peak(self) -> Option<i64> {
        match self {
            Self::Device(_) => None,
            Self::Meter(meter) => Some(i64::try_from(meter.take_peak()).unwrap_or(i64::MAX)),
        }
    }
}

/// The bytes in use before and after a piece of work.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryUse {
    pub(super) before: i64,
    pub(super) after: i64,
    /// The most in between, if known.
    pub(super) peak: Option<i64>,
}
