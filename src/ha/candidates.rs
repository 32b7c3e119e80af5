//! Who may confirm commits, and who is chosen first.

use std::cmp::Reverse;

use crate::dcs::{Member, MemberState, Role, Snapshot};
use crate::postgres::status::Standby;
use crate::types::NodeName;

use super::sync::Names;
use super::tags::{Streaming, Tags};
use super::upstreams;
use super::view::View;

/// The standbys that may confirm commits, in the order in which they are chosen: by `sync_priority`, then whoever does
/// already (a set that changes for nothing costs an election its certainty), then by what they have.
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
        (Reverse(rank(s)), Reverse(sitting), Reverse(s.confirmed), s.name.clone())
    };
    able.sort_by_key(order);
    able
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
pub fn may_confirm(member: &Member) -> bool {
    member_priority(member) > 0
}

/// The members that will follow this one in a moment and may confirm commits, in the order in which they are chosen.
pub fn expected(view: &View, snapshot: &Snapshot) -> Vec<NodeName> {
    let follows =
        |m: &&Member| m.name != view.me && m.state == MemberState::Running && m.role == Role::Replica;
    let confirms = |m: &&Member| may_confirm(m) && !upstreams::is_fed_by_another(view, snapshot, m);
    let mut members: Vec<_> = snapshot.members.iter().filter(follows).filter(confirms).collect();
    members.sort_by_key(|m| (Reverse(member_priority(m)), m.name.clone()));
    members.into_iter().map(|m| m.name.clone()).collect()
}
