//! When the loop looks again if nothing wakes it, or asks for a look, before; and what wakes it.
//!
//! A leader looks when it renews, and who follows it looks when that renewal is heard: one wake-up instead of two, and what a
//! standby sees is as young as it can be.

use std::time::Duration;

use crate::clock::Moment;

use super::Phase;
use super::view::{Instance, Lease, View};

/// What wakes the loop at some times and not at others. (A process that ends, a change in the store, a job that is done and a
/// letter always do.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// It shall stop, or start anew under another name.
    Stop,
    /// A renewal of the leader key was heard.
    Renewal,
    /// The postmaster takes connections.
    Opening,
}

/// Whether this wakes the loop now. `view` is what it has just acted on, `lease` what has come of that.
pub(super) fn heeds(call: Call, view: &View, lease: Lease) -> bool {
    match call {
        // Once is enough: it stays said, and would wake a loop that stops already for ever.
        Call::Stop => view.phase == Phase::Serving,
        // Whoever leads hears its own, and looks when it sends them.
        Call::Renewal => lease == Lease::None,
        // One that answers has been seen to.
        Call::Opening => view.instance() == Instance::Silent,
    }
}

/// The next regular look. `heard` is when the leader's last renewal was heard.
pub(super) fn next_look(loop_wait: Duration, lease: Lease, heard: Option<Moment>, now: Moment) -> Moment {
    match (lease, heard) {
        (Lease::Held { sent, .. }, _) if now < sent + loop_wait => sent + loop_wait,
        // The next renewal wakes it. A little later it looks anyway.
        (Lease::None, Some(heard)) if now < heard + loop_wait => heard + loop_wait + loop_wait / 4,
        (Lease::Held { .. } | Lease::Lost | Lease::None, _) => now + loop_wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_go_with_the_renewals() {
        let wait = Duration::from_secs(2);
        let now = Moment(0) + 100 * wait;
        let half = now - wait / 2;
        let held = |sent| Lease::Held { sent, ttl: 5 * wait };
        assert_eq!(next_look(wait, held(half), Some(now), now), half + wait);
        assert_eq!(
            next_look(wait, held(now - wait), None, now),
            now + wait,
            "a late renewal is not waited for"
        );
        assert_eq!(next_look(wait, Lease::None, Some(half), now), half + wait + wait / 4);
        assert_eq!(
            next_look(wait, Lease::None, Some(now - 2 * wait), now),
            now + wait,
            "nobody renews as we do"
        );
        assert_eq!(next_look(wait, Lease::None, None, now), now + wait);
        assert_eq!(next_look(wait, Lease::Lost, Some(half), now), now + wait);
    }
}
