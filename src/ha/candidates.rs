//! Who may confirm commits, and who is chosen first.

use std::cmp::Reverse;

use crate::dcs::{Member, MemberState, Role, Snapshot};
use crate::postgres::status::Standby;
use crate::types::{NodeName, SyncMode};

use super::sync::Names;
use super::tags::{Failover, Streaming, Tags};
use super::upstreams;
use super::view::View;

/// The standbys that may confirm commits, in the order in which they are chosen: whoever may lead before whoever may not, by
/// `sync_priority`, then whoever does already (a set that changes for nothing costs an election its certainty), then by what
/// they have.
pub fn confirming<'a>(
    view: &View,
    snapshot: &Snapshot,
    standbys: &'a [Standby],
    in_force: &Names,
) -> Vec<&'a Standby> {
    let rank = |standby: &Standby| priority(snapshot, &standby.name);
    let able =
        |standby: &&Standby| standby.name != view.me && standby.state == "streaming" && rank(standby) > 0;
    let mut able: Vec<_> = standbys.iter().filter(able).collect();
    let first = able.iter().filter_map(|s| s.confirmed).max().unwrap_or_default();
    if let Some(limit) = view.rules.replication.maximum_lag_on_syncnode {
        able.retain(|s| first.bytes_ahead_of(s.confirmed.unwrap_or_default()) <= limit);
    }
    let order = |s: &&Standby| {
        let sitting = in_force.names.contains(&s.name);
        (
            Reverse(leads(snapshot, &s.name)),
            Reverse(rank(s)),
            Reverse(sitting),
            Reverse(s.confirmed),
            s.name.clone(),
        )
    };
    able.sort_by_key(order);
    let kept = n_kept(view, snapshot, able.iter().map(|s| &s.name));
    able.truncate(kept);
    able
}

/// How many of these, in their order, are chosen from. In quorum mode who may not lead confirms only where there are too few
/// others: a commit that nobody else has would leave nobody who could be elected.
fn n_kept<'a>(view: &View, snapshot: &Snapshot, names: impl Iterator<Item = &'a NodeName> + Clone) -> usize {
    let n_leading = names.clone().filter(|name| leads(snapshot, name)).count();
    match view.rules.sync_mode {
        SyncMode::Quorum => n_leading.max(usize::try_from(view.rules.sync_node_count).unwrap_or(usize::MAX)),
        SyncMode::Off | SyncMode::On => names.count(),
    }
}

/// Whether a member may ever lead.
fn leads(snapshot: &Snapshot, name: &NodeName) -> bool {
    snapshot.member(name).is_some_and(may_lead)
}

fn may_lead(member: &Member) -> bool {
    Tags::from_json(&member.tags).failover == Failover::Allowed
}

/// Zero for who never confirms: tagged so, without streaming, or no member at all.
fn priority(snapshot: &Snapshot, name: &NodeName) -> u32 {
    snapshot.member(name).map_or(0, member_priority)
}

fn member_priority(member: &Member) -> u32 {
    let tags = Tags::from_json(&member.tags);
    match tags.stream {
        Streaming::Never => 0,
        Streaming::Allowed => tags.sync_priority,
    }
}

/// Whether a member may ever confirm commits.
fn may_confirm(member: &Member) -> bool {
    member_priority(member) > 0
}

/// Whether a member is to confirm commits in quorum mode as soon as it can.
pub fn is_awaited(member: &Member) -> bool {
    may_confirm(member) && may_lead(member)
}

/// The members that will follow this one in a moment and may confirm commits, in the order in which they are chosen.
pub fn expected(view: &View, snapshot: &Snapshot) -> Vec<NodeName> {
    let follows =
        |m: &&Member| m.name != view.me && m.state == MemberState::Running && m.role == Role::Replica;
    let confirms = |m: &&Member| may_confirm(m) && !upstreams::is_fed_by_another(view, snapshot, m);
    let mut members: Vec<_> = snapshot.members.iter().filter(follows).filter(confirms).collect();
    members.sort_by_key(|m| (Reverse(may_lead(m)), Reverse(member_priority(m)), m.name.clone()));
    let kept = n_kept(view, snapshot, members.iter().map(|m| &m.name));
    members.truncate(kept);
    members.into_iter().map(|m| m.name.clone()).collect()
}
