//! Readiness as a service tells it itself: a line on a descriptor that it was given (the way of s6 and its kin).
//!
//! Invariant: each generation of a service writes into the same pipe, which keeps its other end for as long as the service may
//! write: nobody is hurt by telling twice, or when nobody listens any more.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// The numbers that a service may be given its descriptor under.
pub const NOTICE_FDS: RangeInclusive<RawFd> = 3..=9;

/// The service's end, under the number that it expects. Clones share the one pipe.
#[derive(Debug, Clone)]
pub struct Notice {
    pipe: Arc<Pipe>,
    number: RawFd,
}

#[derive(Debug)]
struct Pipe {
    write: OwnedFd,
    /// Nobody reads from it; without it a write would be a SIGPIPE once we have stopped listening.
    _read: OwnedFd,
}

/// The end on which a service is heard.
#[derive(Debug)]
pub struct Notices {
    pipe: pipe::Receiver,
}

impl Notice {
    /// A pipe for a service that tells on the descriptor `number`, one of [`NOTICE_FDS`].
    ///
    /// # Errors
    /// There is no pipe to be had.
    pub fn open(number: RawFd) -> io::Result<(Self, Notices)> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let pipe = Pipe { write, _read: read.try_clone()? };
        let notices = Notices { pipe: pipe::Receiver::from_owned_fd(read)? };
        Ok((Self { pipe: Arc::new(pipe), number }, notices))
    }

    /// Our descriptor, and its number in the child.
    pub(super) fn handed_down(&self) -> (RawFd, RawFd) {
        (self.pipe.write.as_raw_fd(), self.number)
    }
}

impl Notices {
    /// Waits for the end of a line. May be cancelled and called again.
    pub async fn line(&mut self) {
        let mut bytes = [0; 64];
        loop {
            match self.pipe.read(&mut bytes).await {
                Ok(n) if bytes.get(..n).is_some_and(|read| read.contains(&b'\n')) => return,
                Ok(1..) => {}
                // We hold the other end ourselves, so there is neither an end nor an error.
                Ok(0) | Err(_) => std::future::pending().await,
            }
        }
    }
}

/// Takes the numbers that services may ask for, so that nothing which a child needs before its `exec` gets one of them.
/// Call it before anything else opens a descriptor.
///
/// # Errors
/// There are no more descriptors.
pub fn reserve_notice_fds() -> io::Result<()> {
    let nothing = OwnedFd::from(std::fs::File::open("/dev/null")?);
    for number in NOTICE_FDS {
        if is_open(number) {
            continue;
        }
        // The lowest that is free and not below: this very number, or another once in use already.
        let taken = fcntl(&nothing, FcntlArg::F_DUPFD_CLOEXEC(number))?;
        debug_assert_eq!(taken, number, "the number was free a moment ago");
    }
    if NOTICE_FDS.contains(&nothing.as_raw_fd()) {
        // It holds one of the numbers itself.
        let _kept_open = nothing.into_raw_fd();
    }
    Ok(())
}

#[expect(unsafe_code, reason = "a number need not be an open descriptor: that is the question")]
fn is_open(number: RawFd) -> bool {
    // SAFETY: a plain system call on integers.
    unsafe { nix::libc::fcntl(number, nix::libc::F_GETFD) >= 0 }
}
