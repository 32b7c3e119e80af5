//! Copies of logical slots, for which a standby starts its server again: one standby after the other, and none that is needed. Pure.
//!
//! Whoever is to restart says so in its member key and looks again: it goes when it sees its own word there and nobody else's. Of two
//! that see each other the first by name stays and the other takes its word back. So no two go at once, without a lock: the word of
//! whoever speaks later was not there yet when the first looked, and the later one sees the first's. Meanwhile it asks to be counted on
//! by nobody, as a standby that stops does (`leaving`). Nothing is said before all that is needed for a copy is known to be here.
//!
//! Patroni restarts every standby in the same cycle. What would need no restart: a slot that a standby makes itself (PostgreSQL 16) begins
//! where the standby is, before which its reader would miss changes, so only the server's own failover slots (17) do that, and these are
//! left to themselves.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Moment;
use crate::dcs::{Member, MemberState, ReplicationState, Role, Snapshot};
use crate::postgres::Upstream;
use crate::postgres::status::Answer;
use crate::types::{Lsn, NodeName, SlotName};

use super::Phase;
use super::decide::{begin, idle};
use super::lead::PROMPTLY;
use super::leaving::awaits_dismissal;
use super::manual;
use super::publish::streams;
use super::reason::{Action, Decision, Reason, Task};
use super::slots;
use super::sync::Electors;
use super::view::{Instance, Job, Lease, View};

/// What was found out is good for so long, and what cannot be copied is not asked for again before.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// What is known of the leader's logical slots that this standby lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Copies {
    /// Nothing.
    #[default]
    Unknown,
    /// It is being found out.
    UnderWay,
    /// The leader has these, and their WAL is here.
    Ready {
        /// Which.
        names: BTreeSet<SlotName>,
        /// Since when.
        at: Moment,
    },
    /// They could not be copied, as was found at this moment.
    Failed(Moment),
}

/// Whether this standby may start its server again.
#[derive(Debug, PartialEq, Eq)]
enum Turn<'a> {
    /// This member comes first.
    After(&'a NodeName),
    /// It says that it will, and waits until that is heard.
    Announced,
    /// Now.
    Ours,
}

/// A standby has the slots that it would need as the leader.
pub(super) fn keep_slots(
    view: &View,
    snapshot: &Snapshot,
    (answer, at): (&Answer, Lsn),
    leader: Upstream,
) -> Decision {
    let missing = slots::to_copy(view, snapshot, answer);
    let from = leader.name.clone();
    match ready(view, &missing) {
        Some(names) if streams(answer) && view.may_try(Job::CopySlots) => match turn(view, snapshot) {
            Turn::After(other) => Decision {
                reason: Reason::AwaitingTurn(other.clone()),
                ..change_slots(view, snapshot, (answer, at), from)
            },
            Turn::Announced => idle(Reason::CopyingSlots(from), PROMPTLY),
            Turn::Ours => begin(Task::CopySlots { from: leader, names }, Reason::CopyingSlots(from)),
        },
        None if streams(answer) && !missing.is_empty() && is_due(view) => {
            let mut decision = change_slots(view, snapshot, (answer, at), from);
            decision.actions.push(Action::PrepareCopies(leader, missing));
            decision
        }
        Some(_) | None => change_slots(view, snapshot, (answer, at), from),
    }
}

/// As far as that needs no copy.
pub(super) fn change_slots(
    view: &View,
    snapshot: &Snapshot,
    (answer, at): (&Answer, Lsn),
    leader: NodeName,
) -> Decision {
    let plan = slots::of_follower(view, snapshot, answer, at);
    let actions = plan.map(Action::ChangeSlots).into_iter().collect();
    Decision { actions, reason: Reason::Following(leader), wake: manual::alertness(view, snapshot) }
}

/// Whether nobody shall count on this standby, since it is about to start its server again.
pub(super) fn is_announced(view: &View) -> bool {
    if view.doing.is_some_and(|doing| doing.job == Job::CopySlots) {
        return true;
    }
    let (Instance::Standby(answer, _), Some(snapshot)) = (view.instance(), view.snapshot()) else {
        return false;
    };
    let follows =
        snapshot.leader.as_ref().is_some_and(|l| l.name != view.me && view.expired_leader(l).is_none());
    let is_free = view.phase == Phase::Serving && view.doing.is_none() && view.lease == Lease::None;
    follows
        && is_free
        && streams(answer)
        && view.may_try(Job::CopySlots)
        && ready(view, &slots::to_copy(view, snapshot, answer)).is_some()
        && !matches!(turn(view, snapshot), Turn::After(_))
}

/// Those that are missing and can be copied.
fn ready(view: &View, missing: &BTreeSet<SlotName>) -> Option<BTreeSet<SlotName>> {
    match &view.memory.copies {
        Copies::Ready { names, at } if view.now.since(*at) < GOOD_FOR => {
            Some(names.intersection(missing).cloned().collect())
                .filter(|names: &BTreeSet<_>| !names.is_empty())
        }
        Copies::Ready { .. } | Copies::Unknown | Copies::UnderWay | Copies::Failed(_) => None,
    }
}

fn is_due(view: &View) -> bool {
    match &view.memory.copies {
        Copies::Unknown | Copies::Ready { .. } => true,
        Copies::UnderWay => false,
        Copies::Failed(at) => view.now.since(*at) >= GOOD_FOR,
    }
}

fn turn<'a>(view: &View, snapshot: &'a Snapshot) -> Turn<'a> {
    let says_so = |member: &Member| member.state == MemberState::Restarting;
    let announced = snapshot.member(&view.me).is_some_and(says_so);
    let voters = snapshot.sync.as_ref().map(|sync| Electors::of(&sync.value).voters).unwrap_or_default();
    let comes_first = |member: &&Member| match member.state {
        MemberState::Restarting => !announced || member.name < view.me,
        MemberState::Starting | MemberState::Stopping => true,
        // It was started again a moment ago, and is counted on before it confirms anything.
        MemberState::Running => {
            member.role == Role::Replica
                && voters.contains(&member.name)
                && member.replication_state != Some(ReplicationState::Streaming)
        }
        MemberState::Initializing
        | MemberState::InitdbFailed
        | MemberState::CreatingReplica
        | MemberState::StartFailed
        | MemberState::Stopped
        | MemberState::Crashed
        | MemberState::Unknown => false,
    };
    let others = || snapshot.members.iter().filter(|member| member.name != view.me);
    match others().find(comes_first) {
        Some(member) => Turn::After(&member.name),
        None if !announced || others().any(says_so) || awaits_dismissal(view) => Turn::Announced,
        None => Turn::Ours,
    }
}
