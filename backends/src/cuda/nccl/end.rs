//! One end of a channel: how it joins the other end, and how it finishes.

use std::{
    mem,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use candle_core::cuda::cudarc::{
    driver::CudaStream,
    nccl::{
        result::{self, NcclError},
        sys,
    },
};
use interlock::{Error, Result};

use super::{NcclId, refused};
use crate::cuda::{CudaStageDevice, copy_stream::CopyStream, transfer::failed};

/// Formats a limit in seconds.
fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

/// Returns the result of `call`, or none if it takes longer than `limit`.
///
/// NCCL's calls that wait for the other process cannot be cancelled. They run on a thread of their own, which goes on alone after `limit`; its result
/// is dropped.
fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || drop(sender.send(call()))).map_err(|error| {
        Error::invalid("NCCL", format!("there is no thread for {what}: {error}"), "let this process have more threads")
    })?;
    match receiver.recv_timeout(limit) {
        Ok(result) => Ok(Some(result)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::invalid("NCCL", format!("{what} panicked"), "see the panic's own message on stderr"))
        }
    }
}

/// A communicator. Dropping it aborts it, so that the other end does not go on waiting for this one.
struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL lets any thread use a communicator, one at a time; this one has a single owner.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Ends the communicator in order. Waits until the network has taken everything sent, and, on the same machine, until the other end ends too.
    fn destroy(self) -> std::result::Result<(), NcclError> {
        let communicator = self.0;
        mem::forget(self);
        // SAFETY: nobody uses the communicator any more, and nobody ends it a second time.
        unsafe { result::comm_destroy(communicator) }.map(|_| ())
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // If this fails, NCCL has already shut down.
        // SAFETY: nobody uses the communicator any more.
        let _ = unsafe { result::comm_abort(self.0) };
    }
}

/// One end of a channel.
pub(super) struct ChannelEnd {
    /// Some until the channel ends.
    communicator: Option<Communicator>,
    pub(super) copies: CopyStream,
}

pub(super) const SENDER: i32 = 0;
pub(super) const RECEIVER: i32 = 1;

/// The longest time that an end waits when it is dropped.
const DROP_LIMIT: Duration = Duration::from_secs(10);
/// The time between two checks whether every transfer is done.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl ChannelEnd {
    /// Joins as `rank`, and waits `limit` for the other end.
    pub(super) fn join(device: &CudaStageDevice, id: NcclId, rank: i32, limit: Duration) -> Result<Self> {
        let stream = device.landing.device().cuda_stream().context().new_stream().map_err(failed)?;
        let here = Arc::clone(&stream);
        match within(limit, "joining", move || join_communicator(&here, id, rank))? {
            Some(communicator) => Ok(Self { communicator: Some(communicator?), copies: CopyStream::new(stream) }),
            None => Err(Error::invalid(
                "NCCL",
                format!("the other process did not join within {}", seconds(limit)),
                "start both processes with the same id, one as sender and one as receiver",
            )),
        }
    }

    /// Ends the channel: in order once every transfer is done, else after `limit` by aborting those that are left. A second call does nothing.
    pub(super) fn finish(&mut self, limit: Duration) -> Result<()> {
        let Some(communicator) = self.communicator.take() else { return Ok(()) };
        let start = Instant::now();
        let done = self.is_done_within(limit);
        let in_order = matches!(done, Ok(true));
        let stream = Arc::clone(self.stream());
        let leave = move || {
            let left = match in_order {
                true => communicator.destroy(),
                false => {
                    drop(communicator);
                    Ok(())
                }
            };
            // NCCL may use the stream until here.
            drop(stream);
            left
        };
        // Both destroying and aborting may wait for the other process, even if no transfer is left.
        let left = within(limit.saturating_sub(start.elapsed()), "ending the channel", leave);
        match (done?, left?) {
            (true, Some(left)) => left.map_err(|error| refused("ending the channel", error)),
            (true, None) => Err(Error::invalid(
                "NCCL",
                format!("the other process did not finish the channel within {}", seconds(limit)),
                "finish both ends of each channel, and several channels in the same order in both processes",
            )),
            (false, _) => Err(Error::invalid(
                "NCCL",
                format!("not every transfer was done within {}", seconds(limit)),
                "see that the other process is alive, and that it receives all that is sent and no more",
            )),
        }
    }

    /// Waits at most `limit` for everything queued on the channel's stream so far. Returns whether it is done.
    fn is_done_within(&self, limit: Duration) -> Result<bool> {
        let start = Instant::now();
        let last = self.stream().record_event(None).map_err(failed)?;
        while !last.try_is_complete().map_err(failed)? {
            if start.elapsed() >= limit {
                return Ok(false);
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(true)
    }

    pub(super) fn communicator(&self) -> sys::ncclComm_t {
        match &self.communicator {
            Some(communicator) => communicator.0,
            None => unreachable!("the channel is used after it has ended"),
        }
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        self.copies.stream()
    }

    /// Runs `calls` as one group of the communicator's operations.
    pub(super) fn group(&self, what: &str, calls: impl FnOnce() -> std::result::Result<(), NcclError>) -> Result<()> {
        self.stream().context().bind_to_thread().map_err(failed)?;
        let grouped = || {
            result::group_start()?;
            let called = calls();
            let ended = result::group_end();
            called.and(ended.map(|_| ()))
        };
        grouped().map_err(|error| refused(what, error))?;
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is alive, and NCCL writes its state.
        unsafe { sys::ncclCommGetAsyncError(self.communicator(), &raw mut state) }
            .result()
            .and_then(|_| state.result())
            .map(|_| ())
            .map_err(|error| refused(what, error))
    }
}

fn join_communicator(stream: &Arc<CudaStream>, id: NcclId, rank: i32) -> Result<Communicator> {
    stream.context().bind_to_thread().map_err(failed)?;
    let mut communicator = std::ptr::null_mut();
    let id = sys::ncclUniqueId { internal: id.0.map(|byte| std::ffi::c_char::from_ne_bytes([byte])) };
    // SAFETY: NCCL writes a communicator of two ranks, of which this is one.
    unsafe { result::comm_init_rank(&raw mut communicator, 2, id, rank) }.map_err(|error| refused("joining", error))?;
    Ok(Communicator(communicator))
}

impl Drop for ChannelEnd {
    fn drop(&mut self) {
        // `drop` cannot return the error.
        let _ = self.finish(DROP_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_formatted_in_seconds_below_a_second_too() {
        for (milliseconds, wanted) in [(60_000, "60 s"), (1500, "1.5 s"), (250, "0.25 s"), (1, "0.001 s")] {
            assert_eq!(seconds(Duration::from_millis(milliseconds)), wanted);
        }
    }

    #[test]
    fn result_after_the_limit_is_dropped() {
        let (start, started) = mpsc::channel::<()>();
        let (result, dropped) = mpsc::channel::<()>();
        let late = within(Duration::from_millis(1), "waiting", move || {
            let _ = started.recv();
            result
        });
        assert!(matches!(late, Ok(None)));
        drop(start);
        assert_eq!(dropped.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn panic_is_not_reported_as_a_timeout() {
        let error = within(Duration::from_secs(60), "joining", || -> u8 { panic!("on purpose") }).expect_err("a panic");
        assert!(error.to_string().contains("joining panicked"), "{error}");
    }
}
