//! Whom a standby streams from and whom a new one copies: the leader, unless a tag says otherwise.

use crate::dcs::{Member, MemberState, Role, Snapshot};
use crate::postgres::Upstream;
use crate::types::NodeName;

use super::tags::{self, CloneSource, Streaming, Tags};
use super::view::{Job, UpstreamWal, View, upstream};

/// A chain of `replicatefrom` is followed for so long: a cluster is small, and a longer one is a circle.
const LONGEST_CHAIN: usize = 32;

/// Whom this standby streams from: nobody when it is tagged `nostream`, the member of its tag `replicatefrom` while that
/// has a server, else the leader. Histories are compared with the leader's in any case.
pub fn feeder(view: &View, leader: &Upstream) -> Option<Upstream> {
    match view.rules.tags.stream {
        Streaming::Never => None,
        Streaming::Allowed => Some(cascade(view).unwrap_or_else(|| leader.clone())),
    }
}

fn cascade(view: &View) -> Option<Upstream> {
    let wanted = view.rules.tags.replicate_from.as_ref()?;
    let snapshot = view.snapshot()?;
    // What it has removed the leader may still have.
    let removed = view.memory.upstream_wal == UpstreamWal::Removed;
    let feeds = !removed && *wanted != view.me && !comes_back(snapshot, wanted, &view.me);
    snapshot.member(wanted).filter(|member| feeds && has_server(member)).and_then(upstream)
}

/// Whether this member streams from another standby, so that this leader sees nothing of it.
pub(super) fn is_fed_by_another(view: &View, snapshot: &Snapshot, member: &Member) -> bool {
    let feeds = |name: &NodeName| {
        *name != view.me
            && *name != member.name
            && snapshot.member(name).is_some_and(has_server)
            && !comes_back(snapshot, name, &member.name)
    };
    tags::replicate_from(&member.tags).is_some_and(|name| feeds(&name))
}

/// Two that stream from each other would be cut off from the leader.
fn comes_back(snapshot: &Snapshot, from: &NodeName, me: &NodeName) -> bool {
    let mut at = from.clone();
    for _step in 0..LONGEST_CHAIN {
        // The leader streams from nobody.
        if snapshot.leader_name() == Some(&at) {
            return false;
        }
        match snapshot.member(&at).and_then(|member| Tags::from_json(&member.tags).replicate_from) {
            Some(next) if next == *me => return true,
            // Whoever names itself streams from the leader.
            Some(next) if next != at => at = next,
            Some(_) | None => return false,
        }
    }
    true
}

/// Whether its server takes connections, as far as the store knows.
pub(super) fn serves(snapshot: &Snapshot, upstream: Option<&Upstream>) -> bool {
    let member = upstream.and_then(|upstream| snapshot.member(&upstream.name));
    member.is_some_and(|member| member.state == MemberState::Running)
}

/// Whether it has a server, or will have one in a moment.
pub(super) fn has_server(member: &Member) -> bool {
    match member.state {
        MemberState::Running | MemberState::Starting | MemberState::Restarting => true,
        MemberState::Initializing
        | MemberState::InitdbFailed
        | MemberState::CreatingReplica
        | MemberState::StartFailed
        | MemberState::Stopping
        | MemberState::Stopped
        | MemberState::Crashed
        | MemberState::Unknown => false,
    }
}

/// Whom to copy: one of the running replicas that are tagged `clonefrom`, another at each try and the leader after them,
/// else the leader. Which one comes first is a matter of this node's id, so that many new nodes do not copy the same.
pub fn clone_source(view: &View, leader: Upstream) -> Upstream {
    let Some(snapshot) = view.snapshot() else { return leader };
    let timeline = snapshot.member(&leader.name).and_then(|member| member.timeline);
    let offers = |member: &&Member| {
        member.name != leader.name
            && member.name != view.me
            && member.state == MemberState::Running
            && member.role == Role::Replica
            && member.timeline == timeline
            && Tags::from_json(&member.tags).clone == CloneSource::Preferred
    };
    let offers: Vec<_> = snapshot.members.iter().filter(offers).filter_map(upstream).collect();
    let tried = usize::try_from(view.n_failures(Job::Clone)).unwrap_or(usize::MAX);
    let first: usize = view.node_id.0.bytes().map(usize::from).sum();
    let next = if tried < offers.len() { (first + tried).checked_rem(offers.len()) } else { None };
    next.and_then(|i| offers.get(i).cloned()).unwrap_or(leader)
}
