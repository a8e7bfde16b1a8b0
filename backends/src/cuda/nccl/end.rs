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

/// Returns a limit as text.
fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

/// What `call` gives, if it does within `limit`.
///
/// NCCL's calls that wait for the other process cannot be ended from outside: they have a thread of their own, which is left behind where they last
/// too long. What they give then is dropped.
fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new().spawn(move || drop(tell.send(call()))).map_err(|error| {
        Error::invalid("NCCL", format!("there is no thread for {what}: {error}"), "let this process have more threads")
    })?;
    match told.recv_timeout(limit) {
        Ok(given) => Ok(Some(given)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::invalid("NCCL", format!("{what} panicked"), "see the panic's own message on stderr"))
        }
    }
}

/// A communicator. It is aborted when this is dropped, so that no other end believes that somebody is here.
struct Joined(sys::ncclComm_t);

// SAFETY: NCCL lets any thread use a communicator, one at a time; this is used through one owner.
unsafe impl Send for Joined {}

impl Joined {
    /// Ends it in order. Waits until the network has taken what was sent, and on the same machine for the other end to end as well.
    fn destroy(self) -> std::result::Result<(), NcclError> {
        let communicator = self.0;
        mem::forget(self);
        // SAFETY: nobody uses the communicator any more, and nobody ends it a second time.
        unsafe { result::comm_destroy(communicator) }.map(|_| ())
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // Where this fails, NCCL is gone already.
        // SAFETY: nobody uses the communicator any more.
        let _ = unsafe { result::comm_abort(self.0) };
    }
}

/// One end of a channel.
pub(super) struct ChannelEnd {
    /// Always there until the channel ends.
    joined: Option<Joined>,
    pub(super) copies: CopyStream,
}

pub(super) const SENDER: i32 = 0;
pub(super) const RECEIVER: i32 = 1;

/// How long an end waits when it is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time between two looks whether every transfer is done.
const LOOK: Duration = Duration::from_millis(1);

impl ChannelEnd {
    /// Joins as `rank`, and waits `limit` for the other end.
    pub(super) fn join(device: &CudaStageDevice, id: NcclId, rank: i32, limit: Duration) -> Result<Self> {
        let stream = device.landing.device().cuda_stream().context().new_stream().map_err(failed)?;
        let here = Arc::clone(&stream);
        match within(limit, "joining", move || communicator(&here, id, rank))? {
            Some(joined) => Ok(Self { joined: Some(joined?), copies: CopyStream::new(stream) }),
            None => Err(Error::invalid(
                "NCCL",
                format!("the other process did not join within {}", seconds(limit)),
                "start both processes with the same id, one as sender and one as receiver",
            )),
        }
    }

    /// Ends the channel: in order once every transfer is done, else after `limit` by aborting those that are left. A second call does nothing.
    pub(super) fn finish(&mut self, limit: Duration) -> Result<()> {
        let Some(joined) = self.joined.take() else { return Ok(()) };
        let start = Instant::now();
        let through = self.is_through(limit);
        let in_order = matches!(through, Ok(true));
        let stream = Arc::clone(self.stream());
        let leave = move || {
            let left = match in_order {
                true => joined.destroy(),
                false => {
                    drop(joined);
                    Ok(())
                }
            };
            // Until here NCCL may have work on it.
            drop(stream);
            left
        };
        // Either may wait for the other process, even where there is nothing left to cut off.
        let left = within(limit.saturating_sub(start.elapsed()), "ending the channel", leave);
        match (through?, left?) {
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

    /// Waits at most `limit` for everything that the channel's stream has been given so far. Returns whether it is done.
    fn is_through(&self, limit: Duration) -> Result<bool> {
        let start = Instant::now();
        let last = self.stream().record_event(None).map_err(failed)?;
        while !last.try_is_complete().map_err(failed)? {
            if start.elapsed() >= limit {
                return Ok(false);
            }
            thread::sleep(LOOK);
        }
        Ok(true)
    }

    pub(super) fn communicator(&self) -> sys::ncclComm_t {
        match &self.joined {
            Some(joined) => joined.0,
            None => unreachable!("an end is not used after its way has ended"),
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

fn communicator(stream: &Arc<CudaStream>, id: NcclId, rank: i32) -> Result<Joined> {
    stream.context().bind_to_thread().map_err(failed)?;
    let mut communicator = std::ptr::null_mut();
    let id = sys::ncclUniqueId { internal: id.0.map(|byte| std::ffi::c_char::from_ne_bytes([byte])) };
    // SAFETY: NCCL writes a communicator of two ranks, of which this is one.
    unsafe { result::comm_init_rank(&raw mut communicator, 2, id, rank) }.map_err(|error| refused("joining", error))?;
    Ok(Joined(communicator))
}

impl Drop for ChannelEnd {
    fn drop(&mut self) {
        // There is nobody to tell where this fails.
        let _ = self.finish(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_below_a_second_are_told() {
        for (milliseconds, wanted) in [(60_000, "60 s"), (1500, "1.5 s"), (250, "0.25 s"), (1, "0.001 s")] {
            assert_eq!(seconds(Duration::from_millis(milliseconds)), wanted);
        }
    }

    #[test]
    fn what_comes_too_late_is_dropped() {
        let (go, told_to_go) = mpsc::channel::<()>();
        let (given, dropped) = mpsc::channel::<()>();
        let late = within(Duration::from_millis(1), "waiting", move || {
            let _ = told_to_go.recv();
            given
        });
        assert!(matches!(late, Ok(None)));
        drop(go);
        assert_eq!(dropped.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_panic_is_not_taken_for_being_late() {
        let error = within(Duration::from_secs(60), "joining", || -> u8 { panic!("on purpose") }).expect_err("a panic");
        assert!(error.to_string().contains("joining panicked"), "{error}");
    }
}
