//! When a member of the store may be removed: rules for the raft leader's node, one member at a time.
//!
//! Invariants: a node that answers is never removed, whatever the list says; absence counts only from a fresh list
//! that names this node; the voters that are left after a removal and answer are a majority of the new list; this node
//! never removes itself. An empty, failed or partial list removes nobody.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::etcd::decision::{Action, Decision, Reason};
use crate::etcd::view::{LIST_FRESH, Member, StoreView, View, Vote};

/// How long a delisted member must have been dark: this, or `PRUNE_AFTER` when that is shorter.
const DARK_FOR: Duration = Duration::from_secs(60);

/// Counted answers without the address before absence is believed.
const ANSWERS: u32 = 5;

/// A listed member that is dark, while a joiner waits for the place: etcd lets nobody join three voters of which one is
/// down, and its row may stay for two hours.
const LISTED_WITH_JOINER: Duration = Duration::from_secs(600);

/// A listed member that is dark, and nobody waits.
const LISTED_ALONE: Duration = Duration::from_secs(3600);

/// A learner that has never started blocks every other join.
const UNSTARTED_FOR: Duration = Duration::from_secs(120);

/// A learner that does not catch up: twice its own limit would be too long for the others.
const STUCK_FOR: Duration = Duration::from_secs(330);

/// Least time between two removals: each is judged on what the last one left.
const EVERY: Duration = Duration::from_secs(60);

/// What speaks for a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// Delisted and dark for long enough.
    Departed(IpAddr),
    /// Listed, and dark for very long.
    Dead(IpAddr),
    /// Another node answers at its address.
    Replaced(IpAddr),
    /// A learner that never started or never caught up.
    StuckLearner,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Departed(a) => write!(f, "{a} is delisted and does not answer"),
            Self::Dead(a) => write!(f, "{a} is listed but has not answered for too long"),
            Self::Replaced(a) => write!(f, "another node answers at {a}"),
            Self::StuckLearner => f.write_str("the learner did not come along"),
        }
    }
}

/// Why a member that looks gone is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// The list is old or missing, or does not name this node.
    StalePeers,
    /// Not listed, but it answers.
    Alive,
    /// Not gone for long enough.
    TooSoon {
        /// Time left.
        left: Duration,
    },
    /// The rest would not be a majority.
    Quorum,
    /// Another change is under way or was made a moment ago.
    OneAtATime,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StalePeers => f.write_str("the peer list is not fresh"),
            Self::Alive => f.write_str("not listed, but it answers"),
            Self::TooSoon { left } => write!(f, "too soon, {} s left", left.as_secs()),
            Self::Quorum => f.write_str("the rest would not be a majority"),
            Self::OneAtATime => f.write_str("one change at a time"),
        }
    }
}

/// Removes one member, or tells who is kept and why.
///
/// # Errors
/// Nobody is to be removed: the members that look gone, with what keeps them.
pub fn decide(view: &View, store: &StoreView) -> Result<Decision, Vec<(IpAddr, Held)>> {
    if let Some(decision) = decide_learners(view, store) {
        return Ok(decision);
    }
    let mut held = Vec::new();
    for member in store.voters() {
        let Some(address) = member.address else { continue };
        if member.name == view.record.node_id.0 {
            continue;
        }
        match judge(view, store, member, address) {
            Verdict::Fine => {}
            Verdict::Keep(why) => held.push((address, why)),
            Verdict::Remove(evidence) => {
                return Ok(Decision {
                    action: Action::Remove(member.id),
                    reason: Reason::Removal(evidence),
                    held,
                });
            }
        }
    }
    Err(held)
}

/// Removes a learner that blocks the others; a learner does not count for any quorum.
pub fn decide_learners(view: &View, store: &StoreView) -> Option<Decision> {
    let stuck = |m: &&Member| {
        let limit = if m.has_started() { STUCK_FOR } else { UNSTARTED_FOR };
        let seen = view.memory.members.get(&m.id).filter(|(_, vote)| *vote == Vote::Learner);
        !m.is_voter() && seen.is_some_and(|(at, _)| view.now.since(*at) > limit)
    };
    let learner = store.members.iter().find(stuck)?;
    Some(Decision::new(Action::RemoveLearner(learner.id), Reason::Removal(Evidence::StuckLearner)))
}

enum Verdict {
    Fine,
    Keep(Held),
    Remove(Evidence),
}

fn judge(view: &View, store: &StoreView, member: &Member, address: IpAddr) -> Verdict {
    let listed = view.peers.addrs.contains(&address);
    if let Some(status) = view.answers(address) {
        let replaced = status.node_id.0 != member.name && member.has_started();
        return match (replaced, listed) {
            (true, _) => guarded(view, store, member, Evidence::Replaced(address)),
            (false, true) => Verdict::Fine,
            (false, false) => Verdict::Keep(Held::Alive),
        };
    }
    let Some(dark) = view.probes.get(&address).and_then(|p| p.dark_since).map(|at| view.now.since(at)) else {
        // Some port of its etcd answers, or nobody has looked yet.
        return if listed { Verdict::Fine } else { Verdict::Keep(Held::Alive) };
    };
    if !list_is_good(view) {
        return Verdict::Keep(Held::StalePeers);
    }
    let (left, evidence) = if listed {
        let limit = if joiner_waits(view, store) { LISTED_WITH_JOINER } else { LISTED_ALONE };
        (limit.saturating_sub(dark), Evidence::Dead(address))
    } else {
        let dark_left = DARK_FOR.min(view.prune_after).saturating_sub(dark);
        (absence_left(view, address).max(dark_left), Evidence::Departed(address))
    };
    if left > Duration::ZERO {
        return Verdict::Keep(Held::TooSoon { left });
    }
    guarded(view, store, member, evidence)
}

/// How much longer the address must be missing from the list.
fn absence_left(view: &View, address: IpAddr) -> Duration {
    match view.listing.absent.get(&address) {
        None => view.prune_after.max(Duration::from_secs(1)),
        Some(absence) => {
            let left = view.prune_after.saturating_sub(view.now.since(absence.since));
            let counted = absence.answers >= ANSWERS;
            if counted { left } else { left.max(Duration::from_secs(1)) }
        }
    }
}

/// Whether the list may speak against a member at all.
fn list_is_good(view: &View) -> bool {
    let fresh = view.peers.fetched_at.is_some_and(|at| view.now.since(at) <= LIST_FRESH);
    fresh && view.peers.addrs.contains(&view.address)
}

/// A listed node that is alive, is no member and would have a place if the dead one were gone.
fn joiner_waits(view: &View, store: &StoreView) -> bool {
    let is_member = |a: IpAddr| store.members.iter().any(|m| m.address == Some(a));
    view.answering().any(|(a, _)| view.peers.addrs.contains(&a) && !is_member(a))
}

/// The guards that hold for every removal of a voter.
fn guarded(view: &View, store: &StoreView, member: &Member, evidence: Evidence) -> Verdict {
    let learner = store.members.iter().any(|m| !m.is_voter());
    let recent = view.memory.changed_at.is_some_and(|at| view.now.since(at) < EVERY);
    if learner || recent {
        return Verdict::Keep(Held::OneAtATime);
    }
    let rest: Vec<_> = store.voters().filter(|m| m.id != member.id).collect();
    let alive = |m: &&&Member| {
        m.name == view.record.node_id.0
            || m.address.is_some_and(|a| view.answers(a).is_some_and(|s| s.node_id.0 == m.name))
    };
    if rest.iter().filter(alive).count() < rest.len() / 2 + 1 {
        return Verdict::Keep(Held::Quorum);
    }
    Verdict::Remove(evidence)
}
