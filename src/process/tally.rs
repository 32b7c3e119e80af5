//! A count that two processes share: `init` adds to it, `node` takes what has come since. Neither ever waits, and nobody is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// See the module.
#[derive(Debug)]
pub struct Tally(OwnedFd);

impl Tally {
    /// A count of nothing.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_value_and_flags(0, flags)?.into()))
    }

    /// The count that somebody else has made.
    pub(super) fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// One more.
    pub fn add_one(&self) {
        // It fails at 2^64 only.
        nix::unistd::write(&self.0, &1_u64.to_ne_bytes()).ok();
    }

    /// What has come since this was last asked.
    pub fn take(&self) -> u64 {
        let mut bytes = [0; 8];
        match nix::unistd::read(&self.0, &mut bytes) {
            Ok(8) => u64::from_ne_bytes(bytes),
            // Nothing has come.
            Ok(_) | Err(_) => 0,
        }
    }
}

impl AsFd for Tally {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
