//! The watchdog in the hands of the lease's task, which alone knows that a renewal has succeeded.
//!
//! Invariant: whatever the device is told, it then fires no later than the lease ends that it was told under; and while it
//! counts, a lease counts for no longer than it waits.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::clock::{self, Moment};
use crate::process::{self, Watchdog, WatchdogDevice};
use crate::supervisor::UnitState;
use crate::types::{Chain, Timing};

use super::Error;
use super::view::Lease;
use super::watchdog::{Device, Guard, Waits, after_a_stop, covers, within};

/// The device, and what is wanted of it.
#[derive(Debug)]
pub(super) struct Arming {
    device: WatchdogDevice,
    guard: Guard,
    /// Whose server it watches over.
    process: watch::Receiver<UnitState>,
    armed: Option<Armed>,
}

#[derive(Debug)]
struct Armed {
    watchdog: Watchdog,
    device: Device,
    /// For how long a lease counts.
    limit: Duration,
}

impl Arming {
    pub(super) fn new(device: WatchdogDevice, guard: Guard, process: watch::Receiver<UnitState>) -> Self {
        Self { device, guard, process, armed: None }
    }

    /// Sets it going under a lease that is held.
    pub(super) fn arm(&mut self, lease: Lease, timing: &Timing) -> Result<Device, Error> {
        let Lease::Held { sent, ttl } = lease else { return Err(Error::OutOfTime) };
        let wanted = self.guard.timeout(timing)?;
        let first = within(sent + ttl, wanted, clock::now()).ok_or(Error::OutOfTime)?;
        let watchdog = self.device.arm(first).map_err(Error::Watchdog)?;
        let waits =
            if watchdog.timeout() == first { Waits::AsTold } else { Waits::Fixed(watchdog.timeout()) };
        let device = Device { waits, farewell: watchdog.farewell() };
        match self.accept(device.waits, sent + ttl, timing) {
            Ok(limit) => {
                let stop = after_a_stop(device.farewell);
                info!(device = %self.device.path, waits = ?watchdog.timeout(), "the watchdog counts, and {stop}");
                self.armed = Some(Armed { watchdog, device, limit });
                Ok(device)
            }
            Err(error) => {
                watchdog.disarm().map_err(Error::Watchdog)?;
                Err(error)
            }
        }
    }

    /// For how long a lease may count under it.
    fn accept(&self, waits: Waits, end: Moment, timing: &Timing) -> Result<Duration, Error> {
        let wanted = self.guard.timeout(timing)?;
        let Waits::Fixed(fixed) = waits else { return Ok(wanted) };
        let limit = self.guard.accept(wanted, fixed, timing)?;
        if covers(fixed, limit, clock::now().until(end)) { Ok(limit) } else { Err(Error::OutOfTime) }
    }

    /// Stops it: nothing here can take writes any more.
    pub(super) fn disarm(&mut self) -> Result<(), Error> {
        let Some(armed) = self.armed.take() else { return Ok(()) };
        let waits = armed.watchdog.timeout();
        let stopped = armed.watchdog.disarm().map_err(Error::Watchdog);
        match &stopped {
            Ok(()) => info!(device = %self.device.path, "the watchdog is stopped"),
            Err(_) => error!(
                device = %self.device.path, ?waits,
                "the watchdog does not stop: this machine is reset, unless this node leads again in time"
            ),
        }
        stopped
    }

    /// For how long of its time a lease counts.
    pub(super) fn limit(&self, ttl: Duration) -> Duration {
        self.armed.as_ref().map_or(ttl, |armed| ttl.min(armed.limit))
    }

    /// The lease was renewed, and ends then.
    pub(super) fn renewed(&mut self, end: Moment, timing: &Timing) {
        let Some(armed) = &mut self.armed else { return };
        armed.retime(&self.guard, timing);
        let now = clock::now();
        let told = match (armed.device.waits, within(end, armed.limit, now)) {
            (Waits::Fixed(fixed), _) if covers(fixed, armed.limit, now.until(end)) => armed.watchdog.ping(),
            (Waits::AsTold, Some(waits)) if waits == armed.watchdog.timeout() => armed.watchdog.ping(),
            (Waits::AsTold, Some(waits)) => {
                armed.watchdog.wait_for(waits).and_then(|()| armed.watchdog.ping())
            }
            (Waits::Fixed(_), _) | (Waits::AsTold, None) => {
                return debug!("a renewal that came so late is worth nothing to the watchdog");
            }
        };
        heard(told);
    }

    /// The durations have changed: a shorter wait counts at once, a longer one from the next renewal on.
    pub(super) fn retimed(&mut self, end: Moment, timing: &Timing) {
        let Some(armed) = &mut self.armed else { return };
        let before = armed.limit;
        armed.retime(&self.guard, timing);
        let shorter = (armed.limit < before).then(|| within(end, armed.limit, clock::now())).flatten();
        if let Some(waits) = shorter {
            heard(armed.watchdog.wait_for(waits));
        }
    }
}

impl Drop for Arming {
    /// A stop that has no time left for the loop ends with the server down all the same. One that left it running goes on counting.
    fn drop(&mut self) {
        if !matches!(*self.process.borrow(), UnitState::Down { .. }) {
            return;
        }
        if let Err(error) = self.disarm() {
            warn!(error = %Chain(&error), "the watchdog does not hear");
        }
    }
}

impl Armed {
    /// Durations under which it is of no use have it stopped in a moment: until then it waits on as before.
    fn retime(&mut self, guard: &Guard, timing: &Timing) {
        if let (Waits::AsTold, Ok(wanted)) = (self.device.waits, guard.timeout(timing)) {
            self.limit = wanted;
        }
    }
}

/// A device that does not hear resets the machine: there is nothing else to be done about it here.
fn heard(told: Result<(), process::Error>) {
    if let Err(error) = told {
        warn!(error = %Chain(&error), "the watchdog does not hear");
    }
}
