//! Time: points on `CLOCK_BOOTTIME` (which also counts while the machine is suspended), and the one backoff.
//!
//! A lease is judged on this clock and on no other: the wall clock jumps, and the monotonic clock stands still in
//! a suspended virtual machine. Deciding code never reads a clock; it is handed a [`Moment`].

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A point in time on `CLOCK_BOOTTIME`, in nanoseconds. Comparable within one boot of one machine only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// How long it is until `later`; zero when it has passed.
    pub fn until(self, later: Self) -> Duration {
        later.since(self)
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s", Duration::from_nanos(self.0).as_secs_f64())
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(nanos(rhs)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(rhs)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The present, on `CLOCK_BOOTTIME`.
pub fn now() -> Moment {
    // The call fails only for a clock that the kernel does not have; this one exists since Linux 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).map_or(Moment(0), |d| Moment(nanos(d)))
}

/// The wall clock, for people and for certificates; never compared between nodes.
pub fn wall() -> jiff::Timestamp {
    let since_epoch = clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from);
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(since_epoch.subsec_nanos()).unwrap_or(0);
    jiff::Timestamp::new(seconds, nanos).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// Exponential backoff with equal jitter: the delay lies between half and all of `base * 2^n`, at most `cap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay.
    pub base: Duration,
    /// The longest delay.
    pub cap: Duration,
}

impl Backoff {
    /// The delay before attempt `n` (0 = the first retry). `jitter` is a random number in `0.0..=1.0`.
    pub fn delay(&self, n: u32, jitter: f64) -> Duration {
        let full = self.base.saturating_mul(2_u32.saturating_pow(n.min(20))).min(self.cap);
        full / 2 + (full / 2).mul_f64(jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_cap_and_keeps_half() {
        let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(1) };
        let full: Vec<_> = (0..6).map(|n| backoff.delay(n, 1.0).as_millis()).collect();
        assert_eq!(full, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.delay(5, 0.0), Duration::from_millis(500));
    }

    #[test]
    fn boottime_moves_forward() {
        let first = now();
        assert!(first > Moment(0));
        assert!(now() >= first);
    }
}
