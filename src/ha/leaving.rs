//! A standby that stops, or is started again by itself: nobody shall count on it any more, neither commits that would wait for it in vain nor readers whom the
//! proxies of other nodes lead to it.
//!
//! It says that it is stopping, and goes on for as long as it takes the others to hear that. The leader drops it from the synchronous set
//! on its tags (Patroni's way: `nosync` and `sync_priority: 0`); that is waited for only when those who stay could not confirm
//! a commit without it, and never for long.

use std::time::Duration;

use crate::dcs::{MemberState, Snapshot};

use super::sync::Electors;
use super::view::View;

/// The leader looks at the members once a `loop_wait`; two steps of the set take moments.
const BEYOND_LOOP: Duration = Duration::from_secs(1);

/// A watch of the store, and an order to a proxy: both take a few milliseconds, on a busy machine some tens.
const FAREWELL: Duration = Duration::from_millis(200);

/// Whether this standby, which is leaving, waits until nobody counts on it.
pub fn awaits_dismissal(view: &View) -> bool {
    let Some(snapshot) = view.snapshot() else { return false };
    let said = view.memory.leaving.map_or(Duration::ZERO, |since| view.now.since(since));
    let is_heard = said >= FAREWELL || !has_company(view, snapshot);
    let is_patient = said < view.rules.timing.loop_wait + BEYOND_LOOP;
    !is_heard || (is_patient && is_needed(view, snapshot))
}

fn has_company(view: &View, snapshot: &Snapshot) -> bool {
    snapshot.members.iter().any(|member| member.name != view.me && member.state == MemberState::Running)
}

fn is_needed(view: &View, snapshot: &Snapshot) -> bool {
    let leader = snapshot.leader_name().filter(|name| **name != view.me);
    let served =
        leader.and_then(|name| snapshot.member(name)).is_some_and(|m| m.state == MemberState::Running);
    let electors = snapshot.sync.as_ref().map(|sync| Electors::of(&sync.value)).unwrap_or_default();
    // So many must confirm that all but `quorum` of the voters do: without this one none may be missing.
    served && electors.quorum == 0 && electors.voters.contains(&view.me)
}
