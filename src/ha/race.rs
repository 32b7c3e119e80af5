//! The leader race: may this node lead, now that nobody does?
//!
//! Ancestry before position, positions that no longer move, and never on less than what was acknowledged: with a
//! synchronous set in force, so many of its voters must be asked that every acknowledged commit is on one of them or
//! here (R + W > N). Otherwise the answer is no, with the name of whoever is missing.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::dcs::{Claim, Snapshot, Sync};
use crate::types::{Lsn, NodeName, SyncMode, Timeline};

use super::failsafe;
use super::fitness;
use super::lead::{self, NOW};
use super::lineage;
use super::manual;
use super::pause;
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::rules::Failover;
use super::sync::Electors;
use super::view::{Candidate, Eligibility, Job, Motion, POLL_AGE, Poll, PollAnswer, View};
use super::watchdog;

/// How soon a race that waits for others looks again.
const RACE_INTERVAL: Duration = Duration::from_millis(200);

/// The decision of a running standby in a cluster that nobody leads. `claim` says how the key is to be taken.
pub fn race(view: &View, snapshot: &Snapshot, claim: Claim, mine: (Timeline, Lsn)) -> Decision {
    if let Some(reason) = barred(view, snapshot, mine.0) {
        return wait(reason);
    }
    // Also where nobody else could be elected: the set of the last leader may have been empty when it handed over.
    if manual::inherits(view, snapshot, claim, mine) {
        return act(Action::Acquire(claim), Reason::Winning);
    }
    if let Some(reason) = unfit(view, snapshot, mine) {
        return wait(reason);
    }
    let Some(frozen) = view.memory.frozen else {
        return act(Action::Freeze, Reason::Freezing);
    };
    let fresh = |poll: &&Poll| poll.at >= frozen && view.now.since(poll.at) < POLL_AGE;
    let Some(poll) = view.memory.poll.as_ref().filter(fresh) else {
        return ask(view);
    };
    match judge(view, snapshot, poll, mine) {
        Ok(()) => act(Action::Acquire(claim), Reason::Winning),
        // Another round, at this pace: whoever is missing may come, whoever is ahead may take the lock.
        Err(reason) if view.now.since(poll.at) >= RACE_INTERVAL => Decision { reason, ..ask(view) },
        Err(reason) => wait(reason),
    }
}

/// Whether this node could lead if these were the answers and nobody's position moved any more: the race without its
/// steps, for a forecast of it.
pub fn verdict(view: &View, snapshot: &Snapshot, poll: &Poll, mine: (Timeline, Lsn)) -> Result<(), Reason> {
    unfit(view, snapshot, mine).map_or_else(|| judge(view, snapshot, poll, mine), Err)
}

fn ask(view: &View) -> Decision {
    if view.may_try(Job::Poll) {
        act(Action::Begin(Task::Poll), Reason::Polling)
    } else {
        wait(Reason::Polling)
    }
}

fn act(action: Action, reason: Reason) -> Decision {
    Decision { actions: vec![action], reason, wake: NOW }
}

fn wait(reason: Reason) -> Decision {
    Decision { actions: vec![], reason, wake: Wake::Soon(RACE_INTERVAL) }
}

/// Why this node cannot lead whatever it has.
fn barred(view: &View, snapshot: &Snapshot, timeline: Timeline) -> Option<Reason> {
    if view.rules.tags.failover == Failover::Never {
        return Some(Reason::NoFailover);
    }
    let barred = failsafe::barred(view, snapshot).or_else(|| watchdog::barred(view));
    let barred = barred.or_else(|| pause::barred(view, snapshot));
    if let Some(reason) = barred.or_else(|| lead::not_approved(view)) {
        return Some(reason);
    }
    let cluster = snapshot.history.as_ref().map_or(Timeline(0), |h| h.value.cluster_timeline());
    if timeline < cluster {
        return Some(Reason::BehindTimeline { mine: timeline, cluster });
    }
    lineage::foreign(view, snapshot, timeline)
        .map(|(timeline, began)| Reason::AnotherTimeline { timeline, began })
}

/// Why this node cannot lead whatever the others say.
fn unfit(view: &View, snapshot: &Snapshot, (timeline, position): (Timeline, Lsn)) -> Option<Reason> {
    if let Some(reason) = barred(view, snapshot, timeline) {
        return Some(reason);
    }
    if manual::is_forced(view, snapshot) {
        return None;
    }
    if let Some(sync) = active_sync(view, snapshot) {
        let entitled = sync.standbys();
        let entitled_to_run = match view.rules.sync_mode {
            // In quorum mode a standby outside the set may win with one vote more.
            SyncMode::Quorum => !entitled.is_empty(),
            SyncMode::On | SyncMode::Off => entitled.contains(&view.me),
        };
        if !entitled_to_run && sync.leader.as_ref() != Some(&view.me) {
            return Some(Reason::NotSynchronous(entitled.into_iter().chain(sync.leader.clone()).collect()));
        }
    }
    // With a synchronous set in force the votes decide: whoever wins has every acknowledged commit, however far it is
    // behind on what was not.
    if active_sync(view, snapshot).is_some() || manual::is_requested(view, snapshot) {
        return None;
    }
    let optime = snapshot.status.as_ref().and_then(|s| s.value.optime).unwrap_or_default();
    let lag = optime.bytes_ahead_of(position);
    (lag > view.rules.maximum_lag_on_failover).then_some(Reason::LagTooLarge(lag))
}

/// The `sync` key, when a synchronous mode is on and somebody has written it.
pub fn active_sync<'a>(view: &View, snapshot: &'a Snapshot) -> Option<&'a Sync> {
    match view.rules.sync_mode {
        SyncMode::Off => None,
        SyncMode::On | SyncMode::Quorum => {
            snapshot.sync.as_ref().map(|s| &s.value).filter(|sync| sync.leader.is_some())
        }
    }
}

/// Why somebody may have led since this node was the primary of this timeline. Whoever leads closes the `sync` key in its own
/// name before it writes, and its timeline is in the history soon after: the history alone would be too late.
pub fn led_since(view: &View, snapshot: &Snapshot, timeline: Timeline) -> Option<Reason> {
    let cluster = snapshot.history.as_ref().map_or(Timeline(0), |h| h.value.cluster_timeline());
    if timeline < cluster {
        return Some(Reason::BehindTimeline { mine: timeline, cluster });
    }
    let closed_by = active_sync(view, snapshot).and_then(|sync| sync.leader.as_ref());
    let other = closed_by.filter(|name| **name != view.me)?;
    Some(Reason::NotSynchronous(vec![other.clone()]))
}

/// Whether the answers allow this node to lead.
fn judge(view: &View, snapshot: &Snapshot, poll: &Poll, mine: (Timeline, Lsn)) -> Result<(), Reason> {
    let sync = active_sync(view, snapshot);
    let electors = sync.map(Electors::of).unwrap_or_default();
    if let Some(name) = poll.answers.iter().find_map(|(n, a)| (*a == PollAnswer::Primary).then_some(n)) {
        return Err(Reason::PrimaryAlive(name.clone()));
    }
    if manual::is_forced(view, snapshot) {
        return Ok(());
    }
    if let Some(name) = manual::yields_to(view, snapshot, poll, mine) {
        return Err(Reason::LeftTo(name));
    }
    if sync.is_some_and(|s| s.leader.as_ref() == Some(&view.me)) {
        // The last leader has every acknowledged commit. Whoever is ahead of it holds what nobody was promised, and may
        // not lead itself: to wait for it would be to wait for ever.
        return Ok(());
    }
    for (name, answer) in &poll.answers {
        match answer {
            PollAnswer::Standby(other) if rivals(view, &electors, name, other) && ahead(other, mine) => {
                return Err(Reason::Behind(name.clone()));
            }
            PollAnswer::Primary | PollAnswer::Standby(_) | PollAnswer::Down | PollAnswer::Unreachable => {}
        }
    }
    if let Some(name) = fitness::roomier(view, snapshot, poll, mine) {
        return Err(Reason::Fuller(name.clone()));
    }
    if let Some(reason) = outranked(view, poll, &electors, mine) {
        return Err(reason);
    }
    // In priority mode the quorum is zero but while the set changes from one standby to another.
    if sync.is_none() { Ok(()) } else { votes(view, poll, &electors, mine) }
}

/// At equal positions the higher `failover_priority` leads. It is a wish, not a right: who has it may be unable to take the
/// lock, and is passed over after a moment.
fn outranked(view: &View, poll: &Poll, electors: &Electors, mine: (Timeline, Lsn)) -> Option<Reason> {
    let own = view.rules.tags.failover_priority;
    let waited = view.memory.frozen.is_some_and(|since| view.now.since(since) >= view.rules.timing.loop_wait);
    // With voters only those can be sure of the votes that this node would get.
    let counts = |name: &NodeName| electors.voters.is_empty() || electors.voters.contains(name);
    let above = |(name, answer): (&NodeName, &PollAnswer)| match answer {
        PollAnswer::Standby(c)
            if c.eligibility == Eligibility::Eligible
                && c.priority > own
                && counts(name)
                && (c.timeline, c.position) == mine =>
        {
            Some(Reason::Outranked { name: name.clone(), theirs: c.priority, mine: own })
        }
        PollAnswer::Standby(_) | PollAnswer::Primary | PollAnswer::Down | PollAnswer::Unreachable => None,
    };
    if waited { None } else { poll.answers.iter().find_map(above) }
}

/// A member that may not lead does not stand in the way, unless it is a voter: then it holds acknowledged commits. In
/// priority mode only the named standbys may lead.
fn rivals(view: &View, electors: &Electors, name: &NodeName, other: &Candidate) -> bool {
    let voter = electors.voters.contains(name);
    let named_only = view.rules.sync_mode == SyncMode::On && !electors.voters.is_empty();
    voter || (other.eligibility == Eligibility::Eligible && !named_only)
}

/// Whether a candidate is further than this.
pub fn ahead(other: &Candidate, mine: (Timeline, Lsn)) -> bool {
    (other.timeline, other.position) > mine
}

/// Counts the voters that are asked, hold still and are not ahead. A node outside the set needs one vote more, since
/// its own copy confirmed nothing.
fn votes(view: &View, poll: &Poll, electors: &Electors, mine: (Timeline, Lsn)) -> Result<(), Reason> {
    let given = |name: &&NodeName| match poll.answers.get(*name) {
        Some(PollAnswer::Standby(c)) => c.motion == Motion::Frozen && !ahead(c, mine),
        Some(PollAnswer::Primary | PollAnswer::Down | PollAnswer::Unreachable) | None => false,
    };
    let others: BTreeSet<_> = electors.voters.iter().filter(|name| **name != view.me).collect();
    let have = others.iter().copied().filter(given).count();
    let need = electors.quorum + u32::from(!electors.voters.contains(&view.me));
    let have = u32::try_from(have).unwrap_or(u32::MAX);
    if have >= need {
        return Ok(());
    }
    let missing = others.into_iter().filter(|name| !given(name)).cloned().collect();
    Err(Reason::VotesMissing { have, need, missing })
}
