//! The delay line: a thread that delivers messages at a later time.
//!
//! Neither the sender nor the receiver waits. The thread does not know what it delivers.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    sync::{
        Arc,
        atomic::{self, AtomicUsize},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    Error, Result,
    device::{Link, link::Channel, sleep::wake_promptly},
};

/// Delivers one message, and reports a failure to do so.
type Deliver = Box<dyn FnOnce() + Send>;

enum DelayCommand {
    Deliver { due: Instant, deliver: Deliver },
    Stop,
}

/// The thread that delays messages. Dropping it stops the thread and discards what has not been delivered.
pub(super) struct DelayLine {
    orders: Sender<DelayCommand>,
    origin: Instant,
    thread: Option<JoinHandle<()>>,
    /// The number of messages that are on their way.
    under_way: Arc<AtomicUsize>,
}

/// One direction of one boundary, whose messages go through a delay line.
pub(super) struct Delayed {
    orders: Sender<DelayCommand>,
    origin: Instant,
    channel: Channel,
    under_way: Arc<AtomicUsize>,
}

impl DelayLine {
    pub(super) fn start() -> Result<Self> {
        let (orders, take) = channel();
        let thread = std::thread::Builder::new()
            .name("interlock-delays".to_owned())
            .spawn(move || run(&take))
            .map_err(|cause| Error::Thread { name: "interlock-delays", cause })?;
        Ok(Self { orders, origin: Instant::now(), thread: Some(thread), under_way: Arc::default() })
    }

    /// Returns whether a message is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.under_way.load(atomic::Ordering::Relaxed) > 0
    }

    /// Returns a direction whose messages are delayed by `link`.
    pub(super) fn direction(&self, link: Link) -> Delayed {
        let under_way = Arc::clone(&self.under_way);
        Delayed { orders: self.orders.clone(), origin: self.origin, channel: Channel::new(link), under_way }
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        // If the thread has already ended, there is nothing to stop.
        let _ = self.orders.send(DelayCommand::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Delayed {
    /// Calls `deliver` at the time at which a message of `bytes` bytes that is sent now arrives.
    ///
    /// # Errors
    /// If the arrival time is later than the clock can count, or the thread has ended.
    pub(super) fn send(&mut self, bytes: u64, deliver: impl FnOnce() + Send + 'static) -> Result<()> {
        let arrives = self.channel.send(self.origin.elapsed().as_secs_f64(), bytes);
        let due = Duration::try_from_secs_f64(arrives.max(0.0)).ok().and_then(|after| self.origin.checked_add(after));
        let due = due.ok_or_else(|| {
            Error::invalid(
                "link",
                format!("a message of {bytes} bytes would arrive {arrives:.1e} s after the start, later than the clock can count"),
                "use a shorter transfer-ms or a larger gbps",
            )
        })?;
        let under_way = Arc::clone(&self.under_way);
        under_way.fetch_add(1, atomic::Ordering::Relaxed);
        let deliver = move || {
            deliver();
            under_way.fetch_sub(1, atomic::Ordering::Relaxed);
        };
        let order = DelayCommand::Deliver { due, deliver: Box::new(deliver) };
        self.orders.send(order).map_err(|_| Error::Ended("the thread that delays messages".to_owned()))
    }
}

/// A delivery to be made. The one due first is the greatest; of several due at once, the one ordered first.
struct Waiting {
    due: Instant,
    number: u64,
    deliver: Deliver,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}

fn run(orders: &Receiver<DelayCommand>) {
    wake_promptly();
    let mut waiting: BinaryHeap<Waiting> = BinaryHeap::new();
    for number in 0.. {
        let order = loop {
            let Some(next) = waiting.peek() else { break orders.recv().unwrap_or(DelayCommand::Stop) };
            let left = next.due.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                if let Some(next) = waiting.pop() {
                    (next.deliver)();
                }
                continue;
            }
            match orders.recv_timeout(left) {
                Ok(order) => break order,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break DelayCommand::Stop,
            }
        };
        match order {
            DelayCommand::Deliver { due, deliver } => waiting.push(Waiting { due, number, deliver }),
            DelayCommand::Stop => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_made_when_due_in_order_of_each_link() {
        let line = DelayLine::start().unwrap();
        // A message of 1000 bytes leaves in 1 ms; the slow link has a long way besides.
        let (latency, bandwidth) = (0.02, 1e6);
        let mut slow = line.direction(Link { latency, bandwidth });
        let mut fast = line.direction(Link { latency: 0.0, bandwidth });
        let (tell, told) = channel();
        let start = Instant::now();
        for (link, name) in [(&mut slow, "slow"), (&mut fast, "fast")] {
            for number in 0..5 {
                let tell = tell.clone();
                link.send(1000, move || tell.send((name, number, Instant::now())).unwrap()).unwrap();
            }
        }
        let arrived: Vec<_> = (0..10).map(|_| told.recv().unwrap()).collect();
        for (name, latency) in [("slow", latency), ("fast", 0.0)] {
            let of_link: Vec<_> = arrived.iter().filter(|(of, ..)| *of == name).collect();
            for (at, (_, number, when)) in of_link.iter().enumerate() {
                assert_eq!(at, *number, "{name}");
                let least = latency + (at + 1) as f64 * 1e-3;
                assert!((*when - start).as_secs_f64() >= least, "{name} {number}");
            }
        }
    }

    #[test]
    fn messages_of_equal_dates_keep_their_order() {
        let line = DelayLine::start().unwrap();
        let mut link = line.direction(Link::IMMEDIATE);
        // The link is not free before this date, which is then that of all.
        link.channel.send(0.05, 0);
        let (tell, told) = channel();
        for number in 0..100 {
            let tell = tell.clone();
            link.send(0, move || tell.send(number).unwrap()).unwrap();
        }
        assert_eq!((0..100).map(|_| told.recv().unwrap()).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn it_stops_whatever_waits_and_then_refuses() {
        let line = DelayLine::start().unwrap();
        let mut link = line.direction(Link { latency: 1e6, ..Link::IMMEDIATE });
        let (tell, told) = channel::<()>();
        link.send(0, move || tell.send(()).unwrap()).unwrap();
        drop(line);
        // What waited has been forgotten with the sender in it.
        assert!(told.recv().is_err());
        let error = link.send(0, || {}).unwrap_err().to_string();
        assert!(error.contains("the thread that delays messages has ended"), "{error}");
    }

    #[test]
    fn a_message_that_never_arrives_is_an_error() {
        let line = DelayLine::start().unwrap();
        let error = line.direction(Link { latency: 0.0, bandwidth: 1e-300 }).send(1000, || {}).unwrap_err().to_string();
        assert!(error.contains("1000 bytes") && error.contains("later than the clock can count"), "{error}");
    }
}
