//! The time of day.

use std::time::SystemTime;

/// Seconds since the beginning of 1970, as a monitoring system counts time.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
