//! The calls of MPI.

use std::{ffi::c_int, mem::MaybeUninit};

use interlock::{Error, Result, ranks::Host};
use mpi::{
    Threading,
    environment::Universe,
    ffi::{self, MPI_Comm, MPI_Request},
    traits::AsRaw,
};

use crate::core_count;

/// The most bytes of one message; longer ones are cut. MPI counts in 32 bits.
pub(super) const PIECE: usize = 1 << 30;

/// MPI, started, and a communicator of this program's own. Dropping it ends MPI, together with all ranks.
pub(super) struct World {
    own: MPI_Comm,
    pub(super) rank: usize,
    pub(super) size: usize,
    /// The host of each rank.
    pub(super) hosts: Vec<Host>,
    _universe: Universe,
}

/// The most bytes of the name of a host, with the zeros that fill it up.
const NAME: usize = ffi::MPI_MAX_PROCESSOR_NAME as usize;

/// What MPI says of a message that has arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub(super) bytes: usize,
}

impl From<ffi::MPI_Status> for Arrived {
    fn from(status: ffi::MPI_Status) -> Self {
        let mut bytes = 0;
        // SAFETY: the places are of the types that MPI reads and writes.
        unsafe { ffi::MPI_Get_count(&raw const status, ffi::RSMPI_UINT8_T, &raw mut bytes) };
        Self { bytes: bytes.try_into().unwrap_or(0) }
    }
}

/// A message that is being sent or received. Its memory must stay where it is until a test says that it is done.
#[repr(transparent)]
pub(super) struct Request(MPI_Request);

/// Returns the error of a call; none if it succeeded.
fn check(code: c_int, what: &str) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: the text has the length that MPI asks for.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut length) };
    let text = String::from_utf8_lossy(&text[..usize::try_from(length).unwrap_or(0).min(text.len())]).into_owned();
    Err(Error::other(format!("MPI, {what}: {text}")))
}

impl World {
    /// Starts MPI for calls from this thread.
    pub(super) fn start() -> Result<Self> {
        let refuse = |problem: &str| Error::invalid("MPI", problem, "see the output of the launcher");
        let (universe, threading) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| refuse("it has been started already, or cannot be"))?;
        if threading < Threading::Funneled {
            return Err(refuse("it was built for programs of one thread"));
        }
        let world = universe.world().as_raw();
        let (mut own, mut rank, mut size) = (world, 0, 0);
        // SAFETY: MPI has been started, and the places are of the types that it writes.
        unsafe {
            check(ffi::MPI_Comm_dup(world, &raw mut own), "a communicator")?;
            check(ffi::MPI_Comm_set_errhandler(own, ffi::RSMPI_ERRORS_RETURN), "errors")?;
            check(ffi::MPI_Comm_rank(own, &raw mut rank), "the rank")?;
            check(ffi::MPI_Comm_size(own, &raw mut size), "the number of ranks")?;
        }
        let number = |n: c_int| usize::try_from(n).map_err(|_| refuse("it has no ranks"));
        let (rank, size) = (number(rank)?, number(size)?);
        let (mut name, mut length, mut names) = ([0_u8; NAME], 0, vec![0_u8; NAME * size]);
        let (own_cores, mut cores) = (core_count() as u64, vec![0_u64; size]);
        // SAFETY: the places have room for one name and one number, and for those of each rank.
        unsafe {
            check(ffi::MPI_Get_processor_name(name.as_mut_ptr().cast(), &raw mut length), "the host")?;
            let (bytes, kind) = (NAME as c_int, ffi::RSMPI_UINT8_T);
            let (from, to) = (name.as_ptr().cast(), names.as_mut_ptr().cast());
            check(ffi::MPI_Allgather(from, bytes, kind, to, bytes, kind, own), "the hosts")?;
            let (from, to, kind) = ((&raw const own_cores).cast(), cores.as_mut_ptr().cast(), ffi::RSMPI_UINT64_T);
            check(ffi::MPI_Allgather(from, 1, kind, to, 1, kind, own), "the cores of hosts")?;
        }
        let host = |(name, cores): (&[u8], u64)| Host {
            name: String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned(),
            cores: usize::try_from(cores).unwrap_or(usize::MAX),
        };
        Ok(Self { own, rank, size, hosts: names.chunks(NAME).zip(cores).map(host).collect(), _universe: universe })
    }

    /// Begins to send a message.
    ///
    /// # Safety
    /// The `bytes` bytes at `from` must stay there unchanged until the request is done.
    pub(super) unsafe fn send(&self, from: *const u8, bytes: usize, to: usize, tag: c_int) -> Result<Request> {
        let mut request = MaybeUninit::uninit();
        // SAFETY: as the caller promises; the counts fit.
        let code = unsafe {
            ffi::MPI_Isend(
                from.cast(),
                bytes as c_int,
                ffi::RSMPI_UINT8_T,
                to as c_int,
                tag,
                self.own,
                request.as_mut_ptr(),
            )
        };
        check(code, "sending")?;
        // SAFETY: a call that succeeds writes the request.
        Ok(Request(unsafe { request.assume_init() }))
    }

    /// Begins to receive a message of at most `bytes` bytes from a rank.
    ///
    /// # Safety
    /// The `bytes` bytes at `to` must be there, and nobody else may read or write them, until the request is done.
    pub(super) unsafe fn receive(&self, to: *mut u8, bytes: usize, from: usize, tag: c_int) -> Result<Request> {
        let from = from as c_int;
        let mut request = MaybeUninit::uninit();
        // SAFETY: as the caller promises; the counts fit.
        let code = unsafe {
            ffi::MPI_Irecv(to.cast(), bytes as c_int, ffi::RSMPI_UINT8_T, from, tag, self.own, request.as_mut_ptr())
        };
        check(code, "receiving")?;
        // SAFETY: a call that succeeds writes the request.
        Ok(Request(unsafe { request.assume_init() }))
    }

    /// Begins to wait for all ranks to come to this point.
    pub(super) fn meet(&self) -> Result<Request> {
        let mut request = MaybeUninit::uninit();
        // SAFETY: MPI runs, and a call that succeeds writes the request.
        check(unsafe { ffi::MPI_Ibarrier(self.own, request.as_mut_ptr()) }, "the end")?;
        // SAFETY: as above.
        Ok(Request(unsafe { request.assume_init() }))
    }

    /// Ends all ranks with this code.
    pub(super) fn abort(&self, code: c_int) -> ! {
        // SAFETY: MPI runs.
        unsafe { ffi::MPI_Abort(self.own, code) };
        std::process::exit(code)
    }
}

impl Request {
    /// Returns what has arrived, if the message is done; of one that was sent, it means nothing.
    pub(super) fn test(&mut self) -> Result<Option<Arrived>> {
        let (mut done, mut status) = (0, MaybeUninit::<ffi::MPI_Status>::zeroed());
        // SAFETY: the request is of this process, and the places are of the types that MPI writes.
        check(unsafe { ffi::MPI_Test(&raw mut self.0, &raw mut done, status.as_mut_ptr()) }, "a message")?;
        if done == 0 {
            return Ok(None);
        }
        // SAFETY: MPI has written it; zeros are valid too.
        Ok(Some(unsafe { status.assume_init() }.into()))
    }

    /// Returns which of these messages is done, and what has arrived. The place of a request that is done or has failed is empty afterwards, and is skipped.
    ///
    /// # Errors
    /// If one of them fails; with its place.
    pub(super) fn test_any(requests: &mut [Self]) -> Result<Option<(usize, Arrived)>, (usize, Error)> {
        // Open MPI looks at the requests first and moves messages then: only the second call finds what has come since the last one.
        match Self::test_any_once(requests) {
            Ok(None) => Self::test_any_once(requests),
            found => found,
        }
    }

    fn test_any_once(requests: &mut [Self]) -> Result<Option<(usize, Arrived)>, (usize, Error)> {
        let (mut at, mut done, mut status) = (-1, 0, MaybeUninit::<ffi::MPI_Status>::zeroed());
        let count = requests.len() as c_int;
        // SAFETY: the requests are of this process and lie one after another, and the places are of the types that MPI writes.
        let code = unsafe {
            ffi::MPI_Testany(count, requests.as_mut_ptr().cast(), &raw mut at, &raw mut done, status.as_mut_ptr())
        };
        // The place is negative if there is none.
        let at = usize::try_from(at).ok().filter(|at| *at < requests.len());
        match (check(code, "a message"), at) {
            // SAFETY: as in `test`.
            (Ok(()), at) => Ok(at.filter(|_| done != 0).map(|at| (at, unsafe { status.assume_init() }.into()))),
            (Err(error), Some(at)) => {
                requests[at] = Self::none();
                Err((at, error))
            }
            (Err(_), None) => Self::test_each(requests),
        }
    }

    /// As [`Self::test_any`], one by one.
    fn test_each(requests: &mut [Self]) -> Result<Option<(usize, Arrived)>, (usize, Error)> {
        for (at, request) in requests.iter_mut().enumerate().filter(|(_, request)| !request.is_none()) {
            match request.test() {
                Ok(None) => {}
                Ok(Some(arrived)) => return Ok(Some((at, arrived))),
                Err(error) => {
                    *request = Self::none();
                    return Err((at, error));
                }
            }
        }
        Ok(None)
    }

    /// A request of nothing.
    fn none() -> Self {
        // SAFETY: a constant of MPI.
        Self(unsafe { ffi::RSMPI_REQUEST_NULL })
    }

    /// Returns whether it is a request of nothing.
    pub(super) fn is_none(&self) -> bool {
        self.0 == Self::none().0
    }

    /// Gives up a message that is being received.
    ///
    /// # Errors
    /// If MPI refuses.
    pub(super) fn cancel(mut self) -> Result<()> {
        // SAFETY: the request is of this process; after both calls its memory is not written to any more.
        unsafe {
            check(ffi::MPI_Cancel(&raw mut self.0), "cancelling")?;
            check(ffi::MPI_Wait(&raw mut self.0, ffi::RSMPI_STATUS_IGNORE), "cancelling")
        }
    }
}

/// Returns the pieces of `bytes` bytes, each with its offset.
pub(super) fn pieces(bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..bytes).step_by(PIECE).map(move |at| (at, PIECE.min(bytes - at)))
}
