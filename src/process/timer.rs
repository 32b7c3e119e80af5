//! A sleep on `CLOCK_BOOTTIME`, for what must happen at a moment.
//!
//! The runtime's own timers count on the clock that stands still while a virtual machine is suspended, and a sleep of seconds wakes
//! the process once for each level of their wheel that it passes. This one ends on time, in one wake-up. Absent: limits on
//! answers; those are the runtime's.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use super::{alarm, child};
use crate::clock::{self, Moment};

/// One sleep at a time. Without a descriptor for it, it is the runtime's sleep.
#[derive(Debug)]
pub struct Timer {
    fd: Option<AsyncFd<OwnedFd>>,
}

/// Inside a runtime.
impl Default for Timer {
    fn default() -> Self {
        Self { fd: alarm::timer().and_then(child::watchable).ok() }
    }
}

impl Timer {
    /// Ends when that moment has come; at once when it has passed. Whoever stops waiting leaves nothing behind but one wake-up.
    pub async fn at(&mut self, moment: Moment) {
        let set = |fd: &&mut AsyncFd<OwnedFd>| alarm::set(fd.get_ref(), moment, None).is_ok();
        let Some(fd) = self.fd.as_mut().filter(set) else {
            return tokio::time::sleep(clock::now().until(moment)).await;
        };
        // Readiness may be left from an earlier sleep: the clock says what it is worth.
        while let Ok(mut ready) = fd.readable().await {
            if clock::now() >= moment {
                return;
            }
            ready.clear_ready();
        }
    }

    /// Ends after that time.
    pub async fn pause(&mut self, time: Duration) {
        self.at(clock::now() + time).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn it_ends_when_its_moment_has_come_and_not_before() {
        let mut timer = Timer::default();
        for _again in 0..3 {
            let at = clock::now() + 20 * MS;
            timer.at(at).await;
            assert!(clock::now() >= at);
        }
        timer.at(Moment(0)).await;
    }

    #[tokio::test]
    async fn a_sleep_that_was_given_up_does_not_end_the_next_one() {
        let mut timer = Timer::default();
        assert!(timeout(MS, timer.at(clock::now() + 10 * MS)).await.is_err());
        tokio::time::sleep(20 * MS).await;
        let at = clock::now() + 20 * MS;
        timer.at(at).await;
        assert!(clock::now() >= at);
    }
}
