//! A timer that two processes share: `node` moves it, `init` sleeps until it comes. Moving it wakes nobody.
//!
//! Invariant: the timer's period is the time between its being set and its coming, so whoever looks at it later knows both.
//! Absent: any repetition. Who finds that it has come acts, and sets it anew or not at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_gettime,
    timerfd_settime,
};

use crate::clock::{self, Moment};

/// The shortest period: one of zero would say that there is none.
const SHORTEST: Duration = Duration::from_millis(1);

/// What says that a timer is not set, and that it does not repeat.
const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// An alarm of this machine, on `CLOCK_BOOTTIME`.
#[derive(Debug)]
pub struct Alarm {
    timer: OwnedFd,
}

/// A timer that is not set, on `CLOCK_BOOTTIME`, which also counts while the machine is suspended.
///
/// # Errors
/// The process has no descriptors left.
pub(super) fn timer() -> io::Result<OwnedFd> {
    Ok(timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?)
}

/// Sets a timer to a moment and, if there is a period, to that much later again and again.
pub(super) fn set(timer: impl AsFd, at: Moment, period: Option<Duration>) -> io::Result<()> {
    // Zero would unset it.
    let it_value = timespec(Duration::from_nanos(at.0.max(1)));
    let times = Itimerspec { it_value, it_interval: period.map_or(NEVER, timespec) };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &times)?;
    Ok(())
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// What an alarm is (or was) set to. Read back, both moments are right to a few microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// When it was set.
    pub made: Moment,
    /// When it comes.
    pub at: Moment,
}

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { timer: timer()? })
    }

    /// The alarm that somebody else has made.
    ///
    /// # Errors
    /// The descriptor is no timer.
    pub(super) fn of(timer: OwnedFd) -> io::Result<Self> {
        timerfd_gettime(&timer)?;
        Ok(Self { timer })
    }

    /// Sets it, or moves it.
    ///
    /// # Errors
    /// None that is known: the kernel refuses only impossible numbers.
    pub fn set(&self, to: Setting) -> io::Result<()> {
        set(&self.timer, to.at, Some(to.made.until(to.at).max(SHORTEST)))
    }

    /// Unsets it.
    ///
    /// # Errors
    /// None that is known.
    pub fn unset(&self) -> io::Result<()> {
        let times = Itimerspec { it_value: NEVER, it_interval: NEVER };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times)?;
        Ok(())
    }

    /// What it is set to, while it has not come.
    pub fn setting(&self) -> Option<Setting> {
        let (left, period) = self.state()?;
        let at = clock::now() + left;
        Some(Setting { made: at - period, at })
    }

    /// What it was set to, once, after it has come.
    pub fn take_due(&self) -> Option<Setting> {
        let mut times = [0; 8];
        // An error says that it has not come.
        nix::unistd::read(&self.timer, &mut times).ok()?;
        let times = u32::try_from(u64::from_ne_bytes(times)).unwrap_or(u32::MAX);
        let (left, period) = self.state()?;
        let at = clock::now() + left - period.saturating_mul(times);
        Some(Setting { made: at - period, at })
    }

    /// How long until it comes next, and its period.
    fn state(&self) -> Option<(Duration, Duration)> {
        let times = timerfd_gettime(&self.timer).ok().filter(|times| times.it_value != NEVER)?;
        Some((times.it_value.try_into().ok()?, times.it_interval.try_into().ok()?))
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn is_near(a: Moment, b: Moment) -> bool {
        a.since(b).max(b.since(a)) < 20 * MS
    }

    #[test]
    fn what_it_was_set_to_can_be_read_before_and_after() {
        let alarm = Alarm::new().unwrap();
        assert_eq!((alarm.setting(), alarm.take_due()), (None, None));
        let made = clock::now();
        let at = made + 50 * MS;
        alarm.set(Setting { made: made - 100 * MS, at }).unwrap();
        let read = alarm.setting().unwrap();
        assert!(is_near(read.at, at) && is_near(read.made, made - 100 * MS), "{read:?}");
        assert_eq!(alarm.take_due(), None, "it has not come");
        let mut fds = [PollFd::new(alarm.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(5000_u16)).unwrap();
        assert!(clock::now() >= at);
        let due = alarm.take_due().unwrap();
        assert!(is_near(due.at, at) && is_near(due.made, made - 100 * MS), "{due:?} for {at:?}");
        assert_eq!(alarm.take_due(), None, "it is told once");
        alarm.unset().unwrap();
        assert_eq!(alarm.setting(), None);
    }

    #[test]
    fn a_moment_that_has_passed_comes_at_once() {
        let alarm = Alarm::new().unwrap();
        alarm.set(Setting { made: clock::now(), at: Moment(1) }).unwrap();
        assert!(alarm.take_due().is_some());
    }

    #[test]
    fn a_descriptor_that_is_no_timer_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Alarm::of(file.into()).is_err());
    }
}
