//! What would happen if the primary died now: who takes over, how soon, and what could be lost, or why nobody can. Pure.
//!
//! It is the real race, run ahead of time: for each member a view in which the leader is gone and everybody holds still where
//! the store last saw them. So it cannot promise what the race would refuse. Positions in the store are up to a
//! `loop_wait` old; the leader itself knows better what each standby has flushed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::dcs::{Member, MemberState, Role, Snapshot};
use crate::postgres::status::Kind;
use crate::types::{Lsn, NodeName, SyncMode, Timeline};

use super::race;
use super::rules::Tags;
use super::view::{Candidate, Lease, Memory, Motion, Poll, PollAnswer, View};

/// From the end of the lease to the first write elsewhere: vote, lock and promotion.
const ELECTION: Duration = Duration::from_millis(300);

/// What would happen if the primary died now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forecast {
    /// Nobody leads, or the store does not say who.
    Unknown,
    /// Another member takes over.
    Succeeded {
        /// Who.
        by: NodeName,
        /// Writable there after this, if the primary's whole machine is lost.
        within: Duration,
        /// So many bytes of acknowledged WAL would be missing there; 0 where commits wait for standbys.
        at_risk: u64,
    },
    /// Nobody can. By member, why not; empty when there is no other member.
    Stuck(BTreeMap<NodeName, String>),
}

/// The forecast from what this node sees.
pub fn forecast(view: &View) -> Forecast {
    let Some(snapshot) = view.snapshot() else { return Forecast::Unknown };
    let Some(leader) = snapshot.leader_name() else { return Forecast::Unknown };
    let others: Vec<_> = snapshot.members.iter().filter(|m| m.name != *leader).collect();
    let claims: BTreeMap<_, _> =
        others.iter().filter_map(|m| Some((m.name.clone(), claim(view, m)?))).collect();
    let mut whys = BTreeMap::new();
    let mut best: Option<(Timeline, Lsn, &NodeName)> = None;
    for member in &others {
        let Some(mine) = claims.get(&member.name) else {
            whys.insert(member.name.clone(), format!("it is no running replica ({:?})", member.state));
            continue;
        };
        match race::verdict(&as_if(view, member), snapshot, &answers(view, member, &claims), place(mine)) {
            Ok(()) => best = best.max(Some((mine.timeline, mine.position, &member.name))),
            Err(reason) => drop(whys.insert(member.name.clone(), reason.to_string())),
        }
    }
    best.map_or(Forecast::Stuck(whys), |(_, position, name)| Forecast::Succeeded {
        by: name.clone(),
        within: lease_left(view) + ELECTION,
        at_risk: at_risk(view, snapshot, position),
    })
}

/// What a member would answer when it is asked for its position; `None` when it does not run as a replica.
fn claim(view: &View, member: &Member) -> Option<Candidate> {
    let replica = member.state == MemberState::Running && member.role == Role::Replica;
    let tags = Tags::from_json(&member.tags);
    let published = member.xlog_location.filter(|_| replica)?;
    let position = flushed(view, &member.name).map_or(published, |flushed| flushed.max(published));
    Some(Candidate {
        timeline: member.timeline?,
        position,
        motion: Motion::Frozen,
        eligibility: tags.failover.into(),
        priority: tags.failover_priority,
    })
}

/// What the local primary knows to be durable on a standby.
fn flushed(view: &View, name: &NodeName) -> Option<Lsn> {
    match &view.local.sql.as_ref()?.kind {
        Kind::Primary { standbys, .. } => standbys.iter().find(|s| s.name == *name)?.flushed,
        Kind::Standby { .. } => None,
    }
}

fn place(claim: &Candidate) -> (Timeline, Lsn) {
    (claim.timeline, claim.position)
}

/// The view that this member would have in the vote.
fn as_if(view: &View, member: &Member) -> View {
    let mut rules = view.rules.clone();
    rules.tags = Tags::from_json(&member.tags);
    View {
        me: member.name.clone(),
        rules,
        lease: Lease::None,
        doing: None,
        memory: Memory::default(),
        ..view.clone()
    }
}

/// What the others would tell this member: where they are. The leader says nothing any more.
fn answers(view: &View, me: &Member, claims: &BTreeMap<NodeName, Candidate>) -> Poll {
    let others = claims.iter().filter(|(name, _)| **name != me.name);
    let answers = others.map(|(name, claim)| (name.clone(), PollAnswer::Standby(*claim)));
    Poll { at: view.now, answers: answers.collect() }
}

/// What is left of the leader's lease: what a lost machine costs before the vote may begin.
fn lease_left(view: &View) -> Duration {
    match (view.lease, &view.memory.observed) {
        // Under a watchdog it counts for less than others have to wait.
        (Lease::Held { sent, ttl }, _) => view.now.until(sent + ttl.max(view.rules.timing.ttl)),
        (Lease::None | Lease::Lost, Some(observed)) => view.now.until(observed.since + view.rules.timing.ttl),
        (Lease::None | Lease::Lost, None) => view.rules.timing.ttl,
    }
}

/// Where commits wait for standbys, whoever wins has them all: the race sees to that.
fn at_risk(view: &View, snapshot: &Snapshot, position: Lsn) -> u64 {
    let confirmed = match view.rules.sync_mode {
        SyncMode::Off => false,
        SyncMode::On | SyncMode::Quorum => snapshot.sync.is_some(),
    };
    if confirmed {
        return 0;
    }
    let published = snapshot.status.as_ref().and_then(|s| s.value.optime).unwrap_or_default();
    let own = view.local.sql.as_ref().map_or(Lsn(0), |answer| match answer.kind {
        Kind::Primary { lsn, .. } => lsn,
        Kind::Standby { .. } => Lsn(0),
    });
    published.max(own).bytes_ahead_of(position)
}
