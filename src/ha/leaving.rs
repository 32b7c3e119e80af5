//! A standby that stops: commits that would wait for it in vain must not, so the leader drops it from the synchronous set first.
//!
//! It asks by its tags (Patroni's way: `nosync` and `sync_priority: 0`), and waits only when those who stay could not confirm
//! a commit without it, and never for long.

use std::time::Duration;

use crate::dcs::{MemberState, Snapshot};

use super::sync::Electors;
use super::view::View;

/// The leader looks at the members once a `loop_wait`; two steps of the set take moments.
const BEYOND_LOOP: Duration = Duration::from_secs(1);

/// Whether this standby, which is stopping, waits to be dropped from the synchronous set.
pub fn awaits_dismissal(view: &View) -> bool {
    let asked = view.memory.leaving.map_or(Duration::ZERO, |since| view.now.since(since));
    let patient = asked < view.rules.timing.loop_wait + BEYOND_LOOP;
    patient && view.snapshot().is_some_and(|snapshot| is_needed(view, snapshot))
}

fn is_needed(view: &View, snapshot: &Snapshot) -> bool {
    let leader = snapshot.leader_name().filter(|name| **name != view.me);
    let served =
        leader.and_then(|name| snapshot.member(name)).is_some_and(|m| m.state == MemberState::Running);
    let electors = snapshot.sync.as_ref().map(|sync| Electors::of(&sync.value)).unwrap_or_default();
    // So many must confirm that all but `quorum` of the voters do: without this one none may be missing.
    served && electors.quorum == 0 && electors.voters.contains(&view.me)
}
