//! A sleep on `CLOCK_BOOTTIME`, for what must happen at a moment.
//!
//! The runtime's own timers count on the clock that stands still while a virtual machine is suspended, and a sleep of seconds wakes
//! the process once for each level of their wheel that it passes. This one ends on time, in one wake-up. Absent: limits on
//! answers; those are the runtime's.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

use super::{alarm, child};
use crate::clock::{self, Moment};

/// One sleep at a time.
#[derive(Debug)]
pub struct Timer {
    fd: AsyncFd<OwnedFd>,
}

impl Timer {
    /// Inside a runtime.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: child::watchable(alarm::timer()?)? })
    }

    /// Ends when that moment has come; at once when it has passed. Whoever stops waiting leaves nothing behind but one wake-up.
    pub async fn at(&mut self, moment: Moment) {
        if alarm::set(self.fd.get_ref(), moment, None).is_err() {
            // The kernel refuses only impossible numbers.
            tokio::time::sleep(clock::now().until(moment)).await;
            return;
        }
        // Readiness may be left from an earlier sleep: the clock says what it is worth.
        while let Ok(mut ready) = self.fd.readable().await {
            if clock::now() >= moment {
                return;
            }
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn it_ends_when_its_moment_has_come_and_not_before() {
        let mut timer = Timer::new().unwrap();
        for _again in 0..3 {
            let at = clock::now() + 20 * MS;
            timer.at(at).await;
            assert!(clock::now() >= at);
        }
        timer.at(Moment(0)).await;
    }

    #[tokio::test]
    async fn a_sleep_that_was_given_up_does_not_end_the_next_one() {
        let mut timer = Timer::new().unwrap();
        assert!(timeout(MS, timer.at(clock::now() + 10 * MS)).await.is_err());
        tokio::time::sleep(20 * MS).await;
        let at = clock::now() + 20 * MS;
        timer.at(at).await;
        assert!(clock::now() >= at);
    }
}
