//! The time that a message takes from one device to another.
//!
//! Each direction of each boundary between stages is a serial link. Messages leave one after another; each takes `bytes / bandwidth` seconds to
//! leave, and arrives `latency` seconds after it has left:
//!
//! ```text
//! leaves  = max(free, now) + bytes / bandwidth        free = leaves
//! arrives = leaves + latency
//! ```
//!
//! A link keeps neither sender nor receiver busy. Actors hold real messages back by it; simulations count with it.

use crate::{Error, Result};

/// The delay of a device's messages to its neighbours, in addition to the program's own time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// The seconds between leaving and arriving.
    pub latency: f64,
    /// The bytes that leave in a second; infinite if the size of a message does not matter.
    pub bandwidth: f64,
}

impl Link {
    /// A link without delay: messages arrive when they are sent.
    pub const IMMEDIATE: Self = Self { latency: 0.0, bandwidth: f64::INFINITY };

    /// Returns whether messages arrive when they are sent.
    pub fn is_immediate(&self) -> bool {
        *self == Self::IMMEDIATE
    }

    /// # Errors
    /// If the latency is negative or not finite, or the bandwidth is not above 0; `device` is the name of the device whose link this is.
    pub fn validate(&self, device: &str) -> Result<()> {
        let refuse = |problem: String, right: &str| Err(Error::invalid(format!("device {device}"), problem, right));
        if !self.latency.is_finite() || self.latency < 0.0 {
            return refuse(format!("its link has a latency of {} s", self.latency), "use 0 or more");
        }
        if self.bandwidth.is_nan() || self.bandwidth <= 0.0 {
            return refuse(format!("its link carries {} bytes/s", self.bandwidth), "use more than 0");
        }
        Ok(())
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::IMMEDIATE
    }
}

/// One direction of one boundary: a link, and the time at which it is free again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channel {
    link: Link,
    free: f64,
}

impl Channel {
    /// A channel that has sent nothing yet.
    pub(crate) fn new(link: Link) -> Self {
        Self { link, free: f64::NEG_INFINITY }
    }

    /// Returns the time at which a message of `bytes` bytes arrives if it is handed over at `now`. Times are seconds from any fixed instant. Calls
    /// come in order of `now`; messages arrive in the order of the calls.
    pub(crate) fn send(&mut self, now: f64, bytes: u64) -> f64 {
        self.free = self.free.max(now) + bytes as f64 / self.link.bandwidth;
        self.free + self.link.latency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_leave_one_after_another_and_travel_side_by_side() {
        // 4 bytes a second, half a second on the way.
        let mut channel = Channel::new(Link { latency: 0.5, bandwidth: 4.0 });
        assert_eq!(channel.send(1.0, 8), 3.5);
        // The first is leaving until 3.
        assert_eq!(channel.send(1.0, 4), 4.5);
        assert_eq!(channel.send(3.5, 2), 5.0);
        // Free since 4.5.
        assert_eq!(channel.send(10.0, 0), 10.5);
        assert_eq!(channel.send(10.0, 1), 10.75);
    }

    #[test]
    fn without_bandwidth_only_the_way_counts() {
        let mut channel = Channel::new(Link { latency: 0.25, ..Link::IMMEDIATE });
        assert_eq!([channel.send(0.0, u64::MAX), channel.send(0.0, 1), channel.send(2.0, 0)], [0.25, 0.25, 2.25]);
        let mut channel = Channel::new(Link::default());
        assert_eq!([channel.send(-3.0, 1 << 40), channel.send(5.0, 7)], [-3.0, 5.0]);
        assert!(Link::default().is_immediate() && !Link { latency: 0.25, ..Link::IMMEDIATE }.is_immediate());
    }

    #[test]
    fn links_that_cannot_be_are_refused() {
        for (latency, bandwidth, words) in [
            (-1.0, 1.0, "a latency of -1 s; use 0 or more"),
            (f64::NAN, 1.0, "a latency of NaN s"),
            (f64::INFINITY, 1.0, "a latency of inf s"),
            (0.0, 0.0, "carries 0 bytes/s; use more than 0"),
            (0.0, -2.0, "carries -2 bytes/s"),
            (0.0, f64::NAN, "carries NaN bytes/s"),
        ] {
            let error = Link { latency, bandwidth }.validate("slow").unwrap_err().to_string();
            assert!(error.starts_with("device slow: ") && error.contains(words), "{error}");
        }
        assert!(Link { latency: 0.0, bandwidth: 1e-9 }.validate("slow").is_ok());
    }
}
