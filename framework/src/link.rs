//! How long what a stage sends is on its way.

/// One direction of one boundary: messages leave one after another, and several may be on their way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Seconds from leaving to arriving.
    pub latency: f64,
    /// Bytes a second that leave; may be infinite.
    pub bandwidth: f64,
}

impl Default for Link {
    /// A link that takes no time.
    fn default() -> Self {
        Self { latency: 0.0, bandwidth: f64::INFINITY }
    }
}

/// A link in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    link: Link,
    free: f64,
}

impl Line {
    /// A link that nothing has used yet.
    pub fn new(link: Link) -> Self {
        Self { link, free: 0.0 }
    }

    /// When `bytes` that are sent at `now` arrive, in seconds of the same clock.
    pub fn send(&mut self, now: f64, bytes: u64) -> f64 {
        self.free = self.free.max(now) + bytes as f64 / self.link.bandwidth;
        self.free + self.link.latency
    }
}
