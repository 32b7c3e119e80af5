//! What guards a node against its own end: the watchdog, and the reserve of room.

use std::time::Duration;

use super::parse;
use super::reader::Reader;
use crate::ha::watchdog::{Guard, Margin};
use crate::postgres::Reserve;
use crate::process::{WatchdogDevice, WatchdogDriver};

/// The deadman fires a second before the lease ends; the watchdog is for when it hangs too.
const MARGIN: Duration = Duration::from_secs(1);
/// Four segments of WAL: a recovery needs one or two.
const RESERVE: u64 = 64 << 20;

pub(super) fn watchdog(r: &mut Reader) -> Guard {
    let margin = r.parsed("WATCHDOG_SAFETY_MARGIN", parse::duration).unwrap_or(MARGIN);
    let need = r.parsed("WATCHDOG_MODE", parse::watchdog).unwrap_or_default();
    Guard { need, margin: Margin::Of(margin) }
}

pub(super) fn watchdog_device(r: &mut Reader) -> WatchdogDevice {
    let path = r.parsed("WATCHDOG_DEVICE", parse::directory);
    WatchdogDevice {
        driver: WatchdogDriver::Kernel,
        path: path.unwrap_or_else(|| WatchdogDevice::USUAL.into()),
    }
}

pub(super) fn reserve(r: &mut Reader) -> Option<Reserve> {
    let bytes = r.parsed("RESERVE", parse::bytes).unwrap_or(RESERVE);
    (bytes > 0).then_some(Reserve { bytes })
}
