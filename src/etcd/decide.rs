//! What to do about this node's etcd: a pure function of the View.
//!
//! Invariants: at most one change of membership at a time; a member is started on an empty directory only after it
//! was added under a new number, or after a won ballot; data is put aside only while another store with a quorum is
//! in sight. Every Decision says why. Absent: majority loss, cold start and two clusters are *held with a reason*.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Moment;
use crate::etcd::ballot;
use crate::etcd::decision::{Action, Decision, Reason};
use crate::etcd::prune;
use crate::etcd::view::{ClusterKey, Dir, Ending, Member, MemberId, PrimaryHere, StoreView, View, Vote};
use crate::peer::{NodeStatus, StorePart};
use crate::supervisor::UnitState;

/// How long a learner may take to be promoted before it gives its place back: it blocks every other join.
pub const LEARNER_LIMIT: Duration = Duration::from_secs(300);

/// How long a running etcd may be without a quorum before the status page calls it a loss.
const QUORUM_PATIENCE: Duration = Duration::from_secs(300);

/// Least time between two hand-overs of raft leadership.
const MOVE_EVERY: Duration = Duration::from_secs(30);

/// Decides. Never fails and never waits: at worst it says `Hold` and why.
pub fn decide(view: &View) -> Decision {
    match view.local.unit {
        UnitState::Running { .. } => running(view),
        UnitState::Stopping { .. } | UnitState::Draining { .. } => Decision::wait(Reason::Ending),
        UnitState::Down { .. } | UnitState::Backoff { .. } => match view.local.dir {
            Dir::Data => stopped_with_data(view),
            Dir::Empty => without_data(view),
        },
    }
}

/// etcd runs.
fn running(view: &View) -> Decision {
    let Some(store) = view.fresh_store() else {
        return not_readable(view);
    };
    let Some(own) = view.own_member(store) else {
        return not_a_member(view, store);
    };
    let Some(cluster) = &store.cluster else {
        return register(view, store, own);
    };
    if let Err(reason) = ballot::may_join(&view.record, cluster.epoch, &cluster.uuid) {
        return bound_elsewhere(store, reason);
    }
    match own.vote {
        Vote::Learner => learner(view, own),
        Vote::Voter => voter(view, store, own, cluster),
    }
}

/// Running without a quorum in sight.
fn not_readable(view: &View) -> Decision {
    let since = view.local.silent_since.map_or(Duration::ZERO, |s| view.now.since(s));
    if since < QUORUM_PATIENCE && view.record.cluster_uuid.is_none() {
        return Decision::wait(Reason::Starting);
    }
    let action = if since < QUORUM_PATIENCE { Action::Wait } else { Action::Hold };
    Decision::new(action, Reason::NoQuorum { since })
}

/// etcd runs, and the store that was read does not list this volume's name: either our entry has no name yet (it has
/// just started), or the read came from another cluster, or we were removed and etcd is about to end by itself.
fn not_a_member(view: &View, store: &StoreView) -> Decision {
    match (&view.record.cluster_uuid, &store.cluster) {
        (Some(ours), Some(theirs)) if *ours != theirs.uuid => {
            Decision::hold_or_wait(Reason::TwoClusters { ours: ours.clone(), theirs: theirs.uuid.clone() })
        }
        _ => Decision::wait(Reason::Starting),
    }
}

/// Founded, not registered: only the node that won the ballot, in the same run, knows who promised.
fn register(view: &View, store: &StoreView, own: &Member) -> Decision {
    let alone = store.members.len() == 1;
    let ballot = view.memory.ballot.as_ref().filter(|b| Some(&b.promise) == view.record.promised.as_ref());
    match ballot.map(|b| (b, ballot::count(view, b))) {
        Some((b, Ok(won))) if alone => Decision::new(
            Action::Register { epoch: b.promise.epoch, promisers: won.promisers, need: won.need },
            Reason::BallotWon,
        ),
        // Nobody joins what is not registered, so nothing is lost by starting over under a later epoch.
        // A store that was once seen registered is a living one whose key somebody has deleted: that is for a person.
        _ if alone && own.is_voter() && view.record.cluster_uuid.is_none() => {
            Decision::new(Action::QuarantineData, Reason::Abandoned)
        }
        _ if view.record.cluster_uuid.is_some() => Decision::hold_or_wait(Reason::OtherName),
        _ => Decision::wait(Reason::Unregistered),
    }
}

/// A member of a store that its own promise forbids. A founder whom nobody has joined starts over; anything else is
/// for a person.
fn bound_elsewhere(store: &StoreView, reason: Reason) -> Decision {
    if store.ready.is_none() && store.members.len() == 1 {
        return Decision::new(Action::QuarantineData, Reason::Abandoned);
    }
    Decision::hold_or_wait(reason)
}

fn learner(view: &View, own: &Member) -> Decision {
    let seen = view.memory.members.get(&own.id).filter(|(_, vote)| *vote == Vote::Learner);
    if seen.is_some_and(|(at, _)| view.now.since(*at) > LEARNER_LIMIT) {
        return Decision::new(Action::RemoveLearner(own.id), Reason::LearnerLate);
    }
    if impatient(view) {
        return Decision::wait(Reason::Patience);
    }
    Decision::new(Action::Promote(own.id), Reason::Learner)
}

/// The steady state, and the duties of the raft leader's node.
fn voter(view: &View, store: &StoreView, own: &Member, cluster: &ClusterKey) -> Decision {
    let voters = store.voters().count();
    if !own.peer_urls.contains(&view.peer_url) {
        return Decision::new(Action::UpdatePeerUrl(own.id), Reason::AddressChanged);
    }
    if store.leader != Some(own.id) {
        let reason =
            if store.ready.is_none() { gate(view, store, cluster) } else { Reason::Steady { voters } };
        return Decision::new(Action::Rest, reason);
    }
    if store.ready.is_none() {
        return ready_gate(view, store, cluster);
    }
    if view.primary == PrimaryHere::Yes
        && due(view.now, view.memory.moved_at, MOVE_EVERY)
        && let Some(to) = successor(view, store, own)
    {
        return Decision::new(Action::MoveLeader(to), Reason::LeaderWithPrimary);
    }
    prune::decide(view, store).unwrap_or_else(|held| Decision {
        action: Action::Rest,
        reason: Reason::Steady { voters },
        held,
    })
}

fn ready_gate(view: &View, store: &StoreView, cluster: &ClusterKey) -> Decision {
    let reason = gate(view, store, cluster);
    if reason == Reason::GateOpen {
        return Decision::new(Action::WriteReady { epoch: cluster.epoch }, reason);
    }
    // A learner that never comes along would keep the gate shut.
    prune::decide_learners(view, store).unwrap_or_else(|| Decision::wait(reason))
}

/// Counts the promisers that belong to the store: voters by their name, clients by their own word for this very store
/// (a client has written the epoch to disk before it says so). A learner is on its way and does not count yet.
fn gate(view: &View, store: &StoreView, cluster: &ClusterKey) -> Reason {
    let voters = store.voters().filter(|m| m.has_started()).map(|m| m.name.clone());
    let here = |s: &NodeStatus| {
        s.store.part == StorePart::Client && s.store.cluster_uuid.as_ref() == Some(&cluster.uuid)
    };
    let clients = view.answering().filter(|(_, s)| here(s)).map(|(_, s)| s.node_id.0.clone());
    let belong: BTreeSet<String> = voters.chain(clients).collect();
    let have = cluster.promisers.iter().filter(|p| belong.contains(&p.0)).count();
    if have >= cluster.need { Reason::GateOpen } else { Reason::NotReady { have, need: cluster.need } }
}

/// Another voter whose node answers and says that it is one.
fn successor(view: &View, store: &StoreView, own: &Member) -> Option<MemberId> {
    let alive = |m: &&Member| m.address.is_some_and(|a| view.answers(a).is_some_and(|s| s.store.quorum));
    store.voters().filter(|m| m.id != own.id).find(alive).map(|m| m.id)
}

/// Data, and etcd does not run.
fn stopped_with_data(view: &View) -> Decision {
    if view.memory.probed_at.is_none() {
        return Decision::wait(Reason::Probing);
    }
    let Some(store) = view.fresh_store() else {
        return match view.local.ending {
            Some(Ending::Removed | Ending::DataLost) => Decision::hold_or_wait(if view.sees_quorum() {
                Reason::Reading
            } else {
                Reason::DataLostAlone
            }),
            Some(Ending::Other) | None => start_with_data(view),
        };
    };
    let Some(cluster) = &store.cluster else {
        return start_with_data(view);
    };
    let put_aside = |reason| Decision::new(Action::QuarantineData, reason);
    match ballot::may_join(&view.record, cluster.epoch, &cluster.uuid) {
        Ok(()) => {}
        Err(reason) => return Decision::hold_or_wait(reason),
    }
    if view.record.cluster_uuid.is_some() && cluster.epoch > view.record.epoch {
        return put_aside(Reason::LaterStore { epoch: cluster.epoch });
    }
    match view.local.ending {
        Some(Ending::Removed) => put_aside(Reason::Expelled),
        Some(Ending::DataLost) => put_aside(Reason::DataLost),
        Some(Ending::Other) | None if view.own_member(store).is_none() && !unnamed_self(view, store) => {
            put_aside(Reason::Expelled)
        }
        Some(Ending::Other) | None => start_with_data(view),
    }
}

/// Our entry has no name yet: added, started once without ever getting through.
fn unnamed_self(view: &View, store: &StoreView) -> bool {
    store.members.iter().any(|m| !m.has_started() && m.peer_urls.contains(&view.peer_url))
}

fn start_with_data(view: &View) -> Decision {
    if view.local.retry_at.is_some_and(|at| at > view.now) {
        return Decision::wait(Reason::Backoff);
    }
    Decision::new(Action::StartWithData, Reason::HasData)
}

/// No data: join what is there, or found.
fn without_data(view: &View) -> Decision {
    if let Some(store) = view.fresh_store() {
        return join(view, store);
    }
    if view.sees_quorum() {
        return Decision::wait(Reason::Reading);
    }
    if ballot::remembers(&view.record, &view.data) {
        return Decision::hold_or_wait(Reason::Remembers);
    }
    if view.memory.probed_at.is_none() {
        return Decision::wait(Reason::Probing);
    }
    ballot::decide(view)
}

fn join(view: &View, store: &StoreView) -> Decision {
    let Some(cluster) = &store.cluster else {
        return Decision::wait(Reason::Unregistered);
    };
    if let Err(reason) = ballot::may_join(&view.record, cluster.epoch, &cluster.uuid) {
        return Decision::hold_or_wait(reason);
    }
    if impatient(view) {
        return Decision::wait(Reason::Patience);
    }
    let unstarted = |id| store.member(id).is_some_and(|m| !m.has_started());
    if let Some(joined) = view.local.joined.as_ref().filter(|j| unstarted(j.member_id)) {
        return if view.local.retry_at.is_some_and(|at| at > view.now) {
            Decision::wait(Reason::Backoff)
        } else {
            Decision::new(Action::StartJoined(joined.clone()), Reason::Added)
        };
    }
    if let Some(stale) = stale_self(view, store) {
        return Decision::new(Action::RemoveStaleSelf(stale.id), Reason::StaleEntry);
    }
    if let Some(other) = store.members.iter().find(|m| !m.is_voter()) {
        let who = other.address.map_or_else(|| other.id.to_string(), |a| a.to_string());
        return Decision::wait(Reason::OtherLearner(who));
    }
    let voters = store.voters().count();
    if voters >= view.voters_wanted() {
        return Decision::new(Action::BeClient, Reason::EnoughVoters { voters });
    }
    Decision::new(Action::AddLearner, Reason::FreePlace)
}

/// An entry with this node's peer URL or name, while this volume has no etcd data: whoever it was cannot run any more
/// (an address is one node), and starting under its number would be a voter without memory.
fn stale_self<'a>(view: &View, store: &'a StoreView) -> Option<&'a Member> {
    store.members.iter().find(|m| m.peer_urls.contains(&view.peer_url) || m.name == view.record.node_id.0)
}

fn impatient(view: &View) -> bool {
    view.memory.patience.is_some_and(|until| until > view.now)
}

/// Whether `every` has passed since the last time.
fn due(now: Moment, last: Option<Moment>, every: Duration) -> bool {
    last.is_none_or(|at| now.since(at) >= every)
}
