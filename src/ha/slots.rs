//! Which slots this node should have: those of the members, on every node, so that a failover keeps the WAL that they
//! need; permanent ones; and none that belongs to nobody.
//!
//! A slot through which somebody streams from here is moved by its user; a copy is moved along what the leader publishes. A
//! copy holds back no vacuum. Only what nobody uses is dropped, never in maintenance mode; a slot that nobody has
//! asked for may be a consumer's that is away (a receiver of WAL, a backup): it has as long as an absent member's.
//!
//! A permanent logical slot exists on every standby that may lead, so that its reader goes on where it was. A standby cannot make
//! one: the leader's is copied, for which the server is stopped once, and moved behind its reader from then on. Failover slots of
//! PostgreSQL 17 are left to themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Moment;
use crate::dcs::{Member, Snapshot};
use crate::postgres::status::{Answer, Kind};
use crate::postgres::{Horizon, Slot, SlotKind, SlotPlan, SlotWal};
use crate::types::{Lsn, NodeName, SlotName};

use super::pause;
use super::remote;
use super::replication::{Clusters, UseSlots};
use super::tags::{self, Failover, Streaming};
use super::upstreams::has_server;
use super::view::View;

/// A copy of a logical slot is moved by so much at once, at the least: the log is decoded for that, and nobody can use the slot
/// meanwhile. Each stride is kept.
const STRIDE: u64 = 64 << 20;
/// A copy that could not be moved is left alone for so long.
const MOVE_AGAIN: Duration = Duration::from_secs(10);

/// A slot that should exist here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    kind: SlotKind,
    /// Where a copy should be; `None` for a slot whose user moves it.
    copied: Option<Lsn>,
}

/// What has come of the last attempt to move a copy of a logical slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// It is on its way: nobody can use it, and it is left alone.
    UnderWay,
    /// It failed at this moment.
    Failed(Moment),
}

/// What this node is to its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Leader,
    /// Of a cluster that follows another one.
    StandbyLeader,
    Follower,
}

/// What a primary changes about its slots: the logical ones that it lacks come last and apart, since a plugin or a
/// database that is missing must not cost anybody else's slot.
pub fn of_leader(view: &View, snapshot: &Snapshot, answer: &Answer, lsn: Lsn) -> Vec<SlotPlan> {
    let mut plan = plan(view, snapshot, answer, (Side::Leader, lsn));
    let (create, logical) =
        std::mem::take(&mut plan.create).into_iter().partition(|(_, kind)| *kind == SlotKind::Physical);
    plan.create = create;
    let mut plans = vec![plan, SlotPlan { create: logical, ..SlotPlan::default() }];
    plans.retain(|plan| !plan.is_empty());
    plans
}

/// What a standby leader changes: its replicas stream from it, and it can have no logical slot.
pub fn of_standby_leader(
    view: &View,
    snapshot: &Snapshot,
    answer: &Answer,
    position: Lsn,
) -> Option<SlotPlan> {
    let mut plan = plan(view, snapshot, answer, (Side::StandbyLeader, position));
    plan.create.retain(|_, kind| *kind == SlotKind::Physical);
    (!plan.is_empty()).then_some(plan)
}

/// What a standby changes about its slots, if anything.
pub fn of_follower(view: &View, snapshot: &Snapshot, answer: &Answer, position: Lsn) -> Option<SlotPlan> {
    let mut plan = plan(view, snapshot, answer, (Side::Follower, position));
    plan.create.retain(|_, kind| *kind == SlotKind::Physical);
    (!plan.is_empty()).then_some(plan)
}

/// What a standby moves while the store is silent, by what the leader says that it has promised: nothing is made or dropped.
pub fn under_promise(view: &View, answer: &Answer, position: Lsn) -> Option<SlotPlan> {
    let said = &view.memory.promised.as_ref()?.slots;
    let mut plan = SlotPlan::default();
    for slot in unused(view, answer).filter(|slot| !slot.synchronised) {
        let Some(at) = said.get(&slot.name) else { continue };
        match &slot.kind {
            SlotKind::Physical => {
                let to = (*at).min(position);
                let behind = slot.restart_lsn.is_some_and(|at| at < to);
                plan.advance.extend(behind.then(|| (slot.name.clone(), to)));
            }
            SlotKind::Logical { database, .. } => {
                let next = stride(view, slot, (*at).min(replayed(answer)));
                plan.follow.extend(next.map(|to| (slot.name.clone(), (database.clone(), to))));
            }
        }
    }
    (!plan.is_empty()).then_some(plan)
}

/// What a leader that goes on without the store moves: the copies for members that stream from others, by what each says with
/// its promise.
pub fn by_promises(view: &View, answer: &Answer, lsn: Lsn) -> Option<SlotPlan> {
    let said: BTreeMap<_, _> =
        view.memory.roll.positions.iter().map(|(name, at)| (name.slot_name(), (*at).min(lsn))).collect();
    let mut plan = SlotPlan::default();
    for slot in unused(view, answer).filter(|slot| slot.kind == SlotKind::Physical && !slot.synchronised) {
        let to = said.get(&slot.name).filter(|to| slot.restart_lsn.is_some_and(|at| at < **to));
        plan.advance.extend(to.map(|to| (slot.name.clone(), *to)));
    }
    (!plan.is_empty()).then_some(plan)
}

/// The logical slots that a standby lacks and the leader has.
pub fn to_copy(view: &View, snapshot: &Snapshot, answer: &Answer) -> BTreeSet<SlotName> {
    if pause::is_on(view) {
        return BTreeSet::new();
    }
    let missing = |name: &SlotName| answer.slots.iter().all(|slot| slot.name != *name);
    let wanted = permanent(view, snapshot, Side::Follower).into_iter();
    let lacking =
        wanted.filter(|(name, w)| w.kind != SlotKind::Physical && w.copied.is_some() && missing(name));
    lacking.map(|(name, _)| name).collect()
}

fn plan(view: &View, snapshot: &Snapshot, answer: &Answer, (side, position): (Side, Lsn)) -> SlotPlan {
    let wanted = wanted(view, snapshot, side);
    let paused = pause::is_on(view);
    let mut plan = SlotPlan::default();
    for slot in unused(view, answer) {
        match wanted.get(&slot.name) {
            Some(_) if side == Side::Follower && slot.synchronised => {}
            Some(wanted) if !paused && is_spoilt(slot, wanted, side) => plan.drop.extend([slot.name.clone()]),
            Some(Wanted { kind: SlotKind::Logical { database, .. }, copied }) => {
                let next = copied.and_then(|at| stride(view, slot, at.min(replayed(answer))));
                plan.follow.extend(next.map(|to| (slot.name.clone(), (database.clone(), to))));
            }
            Some(wanted) => {
                let target = wanted.copied.map(|at| at.min(position));
                let behind = target.filter(|target| slot.restart_lsn.is_some_and(|at| at < *target));
                plan.advance.extend(behind.map(|target| (slot.name.clone(), target)));
            }
            None if !paused && is_nobodys(view, snapshot, slot, side) => {
                plan.drop.extend([slot.name.clone()])
            }
            None => {}
        }
    }
    let missing = |name: &SlotName| plan.drop.contains(name) || answer.slots.iter().all(|s| s.name != *name);
    plan.create =
        wanted.into_iter().filter(|(name, _)| missing(name)).map(|(name, w)| (name, w.kind)).collect();
    plan
}

/// Those that nobody uses, and that are not being moved.
fn unused<'a>(view: &'a View, answer: &'a Answer) -> impl Iterator<Item = &'a Slot> {
    let moves = |slot: &Slot| view.memory.moving.get(&slot.name) == Some(&Move::UnderWay);
    answer.slots.iter().filter(move |slot| !slot.active && !moves(slot))
}

/// How far a standby has replayed: what lies beyond cannot be decoded.
fn replayed(answer: &Answer) -> Lsn {
    match answer.kind {
        Kind::Standby { replayed, .. } => replayed,
        Kind::Primary { lsn, .. } => lsn,
    }
}

/// The next place on the way of a copy. Each stride decodes anew what lies between the oldest WAL of the slot and where it is, which a
/// long transaction makes much: it goes on by as much again, so that the whole way costs no more than a few times its length.
fn stride(view: &View, slot: &Slot, target: Lsn) -> Option<Lsn> {
    let rests = match view.memory.moving.get(&slot.name) {
        Some(Move::Failed(at)) => view.now.since(*at) < MOVE_AGAIN,
        Some(Move::UnderWay) | None => false,
    };
    let at = slot.confirmed.filter(|at| *at < target && !rests)?;
    let decoded = slot.restart_lsn.map_or(0, |from| at.0.saturating_sub(from.0));
    Some(target.min(Lsn(at.0.saturating_add(decoded.max(STRIDE)))))
}

/// A slot that has lost its WAL helps nobody, and a copy that holds back vacuum harms everybody: both are made anew. A
/// logical slot of the leader's never is: whoever reads it must know. A copy is, also when it is of another one.
fn is_spoilt(slot: &Slot, wanted: &Wanted, side: Side) -> bool {
    let holds = wanted.copied.is_some() && slot.horizon == Horizon::Held;
    match (&slot.kind, &wanted.kind) {
        (SlotKind::Physical, SlotKind::Physical) => slot.wal == SlotWal::Lost || holds,
        (SlotKind::Logical { .. }, SlotKind::Logical { .. }) => {
            side == Side::Follower && (slot.wal == SlotWal::Lost || slot.kind != wanted.kind)
        }
        (SlotKind::Physical, SlotKind::Logical { .. }) | (SlotKind::Logical { .. }, SlotKind::Physical) => {
            side == Side::Follower
        }
    }
}

/// Whether a slot that was not asked for may go: a member's that it must not have at once, anybody else's when it was unused
/// for as long as an absent member's is kept.
fn is_nobodys(view: &View, snapshot: &Snapshot, slot: &Slot, side: Side) -> bool {
    if slot.synchronised || view.rules.replication.ignores(slot) {
        return false;
    }
    let members = snapshot.members.iter().map(|m| &m.name).chain([&view.me]);
    let unused = view.memory.unused_slots.get(&slot.name);
    let for_long =
        unused.is_some_and(|since| view.now.since(*since) >= view.rules.replication.member_slots_ttl);
    match (&slot.kind, side) {
        (SlotKind::Logical { .. }, Side::Follower | Side::StandbyLeader) => true,
        (SlotKind::Physical, _) => for_long || members.map(NodeName::slot_name).any(|name| name == slot.name),
        (SlotKind::Logical { .. }, Side::Leader) => for_long,
    }
}

fn wanted(view: &View, snapshot: &Snapshot, side: Side) -> BTreeMap<SlotName, Wanted> {
    let mut wanted = permanent(view, snapshot, side);
    wanted.extend(of_members(view, snapshot, side));
    wanted.remove(&view.me.slot_name());
    wanted
}

/// A node that never leads keeps no WAL for others than those that stream from it.
fn permanent(view: &View, snapshot: &Snapshot, side: Side) -> BTreeMap<SlotName, Wanted> {
    if side == Side::Follower && view.rules.tags.failover == Failover::Never {
        return BTreeMap::new();
    }
    let here = |clusters: Clusters| match clusters {
        Clusters::Any => true,
        Clusters::Primary => remote::of(view).is_none(),
        Clusters::Standby => remote::of(view).is_some(),
    };
    let slots = view.rules.replication.permanent.iter().filter(|(_, slot)| here(slot.clusters));
    let slots = slots.filter(|(_, slot)| side != Side::StandbyLeader || slot.kind == SlotKind::Physical);
    let copied = |name: &SlotName| match side {
        Side::Leader | Side::StandbyLeader => None,
        Side::Follower => published(snapshot, name),
    };
    slots
        .map(|(name, slot)| (name.clone(), Wanted { kind: slot.kind.clone(), copied: copied(name) }))
        .collect()
}

fn of_members(view: &View, snapshot: &Snapshot, side: Side) -> BTreeMap<SlotName, Wanted> {
    let replication = &view.rules.replication;
    if replication.slots == UseSlots::No {
        return BTreeMap::new();
    }
    let everybody = !replication.member_slots_ttl.is_zero();
    let leads_never = side == Side::Follower && view.rules.tags.failover == Failover::Never;
    let mut wanted = BTreeMap::new();
    for member in snapshot.members.iter().filter(|m| m.name != view.me) {
        let streams_from_here = streams_from(view, snapshot, member, side);
        if Streaming::of(&member.tags) == Streaming::Never
            || !(streams_from_here || (everybody && !leads_never))
        {
            continue;
        }
        let name = member.name.slot_name();
        let at = match side {
            Side::Leader | Side::StandbyLeader => member.receive_lsn,
            Side::Follower => published(snapshot, &name),
        };
        let copied = if streams_from_here { None } else { Some(at.unwrap_or_default()) };
        wanted.insert(name, Wanted { kind: SlotKind::Physical, copied });
    }
    if everybody && !leads_never {
        for name in retained(view, snapshot, side) {
            let copied = (side == Side::Follower).then(|| published(snapshot, &name).unwrap_or_default());
            wanted.entry(name).or_insert(Wanted { kind: SlotKind::Physical, copied });
        }
    }
    wanted
}

/// Absent members whose WAL is still kept: by the leader's own memory, and by its word on the others.
fn retained(view: &View, snapshot: &Snapshot, side: Side) -> BTreeSet<SlotName> {
    let without_slot = |m: &&Member| Streaming::of(&m.tags) == Streaming::Never;
    let never: BTreeSet<_> =
        snapshot.members.iter().filter(without_slot).map(|m| m.name.slot_name()).collect();
    let names: BTreeSet<_> = match side {
        Side::Leader | Side::StandbyLeader => seen(view).cloned().collect(),
        Side::Follower => {
            snapshot.status.iter().flat_map(|s| s.value.retain_slots.iter().flatten().cloned()).collect()
        }
    };
    names.difference(&never).cloned().collect()
}

/// The slots of members that were seen lately, the leader's own included.
pub fn seen(view: &View) -> impl Iterator<Item = &SlotName> {
    let ttl = view.rules.replication.member_slots_ttl;
    let recent = move |seen: &Moment| view.now.since(*seen) < ttl;
    view.memory.seen_slots.iter().filter(move |(_, seen)| recent(seen)).map(|(slot, _)| slot)
}

fn streams_from(view: &View, snapshot: &Snapshot, member: &Member, side: Side) -> bool {
    let leads = snapshot.leader_name() == Some(&member.name);
    // Whoever has no server feeds nobody: its members stream from the leader meanwhile.
    let feeds = |name: &NodeName| *name == view.me || snapshot.member(name).is_some_and(has_server);
    let feeder = tags::replicate_from(&member.tags).filter(feeds);
    match (feeder, side) {
        (Some(feeder), _) => feeder == view.me && !leads,
        (None, Side::Leader | Side::StandbyLeader) => true,
        (None, Side::Follower) => false,
    }
}

/// Where the leader says that a slot is.
fn published(snapshot: &Snapshot, name: &SlotName) -> Option<Lsn> {
    snapshot.status.as_ref()?.value.slots.as_ref()?.get(name).copied()
}

/// What a leader publishes of its slots: those of the members and the permanent ones, and itself under its own name.
pub fn positions(
    view: &View,
    snapshot: Option<&Snapshot>,
    answer: &Answer,
    lsn: Lsn,
) -> BTreeMap<SlotName, Lsn> {
    let ours = snapshot.map(|s| wanted(view, s, Side::Leader)).unwrap_or_default();
    let position = |slot: &Slot| match slot.kind {
        SlotKind::Physical => slot.restart_lsn,
        SlotKind::Logical { .. } => slot.confirmed,
    };
    // Who copies itself is not to be copied. Nor is what has another plugin than it should: no standby would keep the copy.
    let left_alone = |slot: &Slot| slot.synchronised && slot.kind != SlotKind::Physical;
    let is_ours = |slot: &Slot| ours.get(&slot.name).is_some_and(|wanted| wanted.kind == slot.kind);
    let slots = answer.slots.iter().filter(|slot| is_ours(slot) && !left_alone(slot));
    let slots = slots.filter_map(|slot| Some((slot.name.clone(), position(slot)?)));
    slots.chain([(view.me.slot_name(), lsn)]).collect()
}
