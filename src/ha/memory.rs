//! What the process remembers from tick to tick, brought up to date with what was just seen. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Moment;
use crate::dcs::{Leader, Snapshot};
use crate::postgres::status::Kind;
use crate::postgres::{self, Upstream};
use crate::record::Followed;
use crate::types::{Lsn, NodeName, Revision, SlotName};

use super::Phase;
use super::adoption;
use super::configure::Configured;
use super::door::Closed;
use super::failsafe::Roll;
use super::fitness::Vitals;
use super::manual::{self, HandOver};
use super::orders::Orders;
use super::pause;
use super::promises::Promise;
use super::publish::streams;
use super::reserve::Stock;
use super::slots::Move;
use super::sync::Names;
use super::turn::{self, Copies};
use super::upstreams;
use super::view::{Ancestry, Approval, Instance, Job, Lease, Poll, Survey, View};
use super::watchdog::Watch;

/// A start that has held for this long was a good one.
pub(super) const HEALTHY: Duration = Duration::from_secs(10);
/// By then every backend of a primary goes by a setting that one session has seen.
const SETTLED: Duration = Duration::from_millis(100);

/// What this process remembers from tick to tick.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The leader key as this node has watched it.
    pub observed: Option<Observed>,
    /// What the others said when they were last asked for their positions.
    pub poll: Option<Poll>,
    /// What every listed node said when it was last asked for data.
    pub survey: Option<Survey>,
    /// The leader's history as last asked for.
    pub ancestry: Option<Ancestry>,
    /// When maintenance mode was last seen to be on.
    pub paused: Option<Moment>,
    /// Since when the walreceiver is held.
    pub frozen: Option<Moment>,
    /// The position of the primary when its synchronous set last changed: who has not flushed this may miss commits that
    /// were acknowledged without it.
    pub sync_barrier: Option<Lsn>,
    /// Since when the setting in force has been seen.
    pub sync_since: Option<Moment>,
    /// The setting in force when the local primary last answered.
    pub sync_names: Option<String>,
    /// Since when no standby streams although the set names some.
    pub sync_starved: Option<Moment>,
    /// Since when no clients are let in, if they are not.
    pub closed: Option<Closed>,
    /// Whether the checkpoint after the last promotion has been made.
    pub checkpoint: Checkpoint,
    /// Failures in a row, by job.
    pub failures: BTreeMap<Job, Failures>,
    /// Whom the local standby was last told to follow.
    pub following: Option<Upstream>,
    /// How the copies of logical slots are being moved.
    pub moving: BTreeMap<SlotName, Move>,
    /// Which logical slots of the leader's can be copied.
    pub copies: Copies,
    /// Since when each slot has been without a user.
    pub unused_slots: BTreeMap<SlotName, Moment>,
    /// Since when this standby has been asking to be dropped from the synchronous set, because it stops or restarts.
    pub leaving: Option<Moment>,
    /// When each member's slot was last wanted: the member was in the store, or an earlier leader retained it.
    pub seen_slots: BTreeMap<SlotName, Moment>,
    /// The TTL before the last change of the configuration, and when that was.
    pub ttl_before: Option<(Duration, Moment)>,
    /// Whether the name in the store is this node's.
    pub name: Name,
    /// Whether the upstream still has what this standby needs.
    pub upstream_wal: UpstreamWal,
    /// Whose data is being copied, or rewound to.
    pub source: Option<Followed>,
    /// When the data was last copied from another member.
    pub copied: Option<Moment>,
    /// A standby that cannot connect: since when.
    pub not_streaming: Option<Moment>,
    /// What the running server was last brought to.
    pub configured: Option<Configured>,
    /// What `pre_promote` has said under this lease.
    pub approval: Approval,
    /// Who must agree before this primary outlives the store.
    pub roll: Roll,
    /// The leader that was promised not to be replaced.
    pub promised: Option<Promise>,
    /// Whether the local server can do a primary's work.
    pub vitals: Vitals,
    /// What is known of the watchdog.
    pub watchdog: Watch,
    /// What is known of the reserve of room.
    pub reserve: Stock,
    /// What an operator has asked of this node.
    pub orders: Orders,
    /// Whether PostgreSQL has run since this process started.
    pub life: Life,
    /// Where the server that runs comes from.
    pub origin: Origin,
    /// Whether the store may say that everything ended with this node.
    pub shutdown_mark: ShutdownMark,
    /// Whether the `sync` key in the store is the last that this node wrote.
    pub sync_write: SyncWrite,
    /// Since when the lock is to be given up as soon as PostgreSQL is down.
    pub give_away: Option<Moment>,
    /// The request for another leader that is to be carried out, and since when.
    pub requested: Option<(Revision, Moment)>,
    /// The last stop for a request, and how it ended.
    pub handover: Option<HandOver>,
    /// The `initialize` key that was taken by somebody who is not to be found, and since when it is known as that.
    pub forsaken: Option<(Revision, Moment)>,
}

/// Whether the display name is held by this node: two nodes of one name would take each other's leader key for theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Name {
    /// Not yet, or another node holds it.
    #[default]
    Unclaimed,
    /// It is.
    Claimed,
}

/// Whether PostgreSQL has run since this process started: what is down afterwards was ended by somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Life {
    /// Not yet.
    #[default]
    Fresh,
    /// It has answered.
    HasRun,
}

/// Where the running server comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// It has been running since before this process.
    #[default]
    Found,
    /// It has been down under this process.
    Started,
}

/// The mark of a clean shutdown in `status`, by which another node leads without a vote: whether this process has sent one and
/// has not written over it. What came of the request does not matter, since it may arrive late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShutdownMark {
    /// None of this process's.
    #[default]
    Absent,
    /// It was sent.
    MayStand,
}

/// What is known of this node's last write of the `sync` key: one that was not answered may arrive after the key was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncWrite {
    /// It may arrive yet. (Each is written over a revision: one that succeeds, or finds another revision, ends all before it.)
    #[default]
    MayArrive,
    /// It has arrived, or never will.
    Settled,
}

/// Whether the upstream still has the WAL that this standby needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamWal {
    /// As far as is known.
    #[default]
    Kept,
    /// Its server was seen to be away, and this standby has not streamed since.
    Away,
    /// It said that the segment has been removed: only a copy helps.
    Removed,
}

/// The checkpoint after a promotion. Until it is made the control file still shows the old timeline, and pg_rewind
/// (before version 16) takes that for "nothing to rewind".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpoint {
    /// Made, or never owed.
    #[default]
    Made,
    /// Under way.
    Owed,
}

/// Failures in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// How many.
    pub n: u32,
    /// When the last one was.
    pub last: Moment,
    /// What it said.
    pub why: String,
}

/// One state of the leader key, and since when this node has seen it unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The key's revision, which a renewal changes.
    pub revision: Revision,
    /// Whose renewals change it.
    pub holder: Holder,
    /// When the answer that showed it first *arrived*: no earlier than the renewal was committed, so that this plus the
    /// TTL is later than the holder's own deadline.
    pub since: Moment,
}

/// How the holder of a leader key renews it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// As we do: each renewal changes the key.
    Ours,
    /// A stock member, whose renewals change nothing, or nobody knows: a key that stands still says nothing.
    Other,
}

impl Memory {
    /// Takes in a snapshot that arrived at `arrived`, and the last renewal of the leader key that the watch has brought.
    pub fn saw_store(
        &mut self,
        me: &NodeName,
        snapshot: &Snapshot,
        arrived: Moment,
        renewal: Option<(Revision, Moment)>,
    ) {
        if self.seen_slots.is_empty() {
            // What the leader before retained is retained on.
            let retained = snapshot.status.iter().flat_map(|s| s.value.retain_slots.iter().flatten());
            self.seen_slots.extend(retained.map(|slot| (slot.clone(), arrived)));
        }
        for member in &snapshot.members {
            self.seen_slots.insert(member.name.slot_name(), arrived);
        }
        self.roll.saw_store(snapshot);
        let since =
            |key| self.forsaken.filter(|(known, _)| *known == key).map_or(arrived, |(_, since)| since);
        self.forsaken = adoption::forsaken(snapshot, me).map(|key| (key, since(key)));
        let other = snapshot.leader.as_ref().filter(|leader| leader.name != *me);
        self.observed = other.map(|leader| match self.observed.take() {
            Some(known) if known.revision == leader.revision => known,
            Some(_) | None => {
                // The watch may have brought the renewal before this snapshot did.
                let watched = renewal.filter(|(revision, _)| *revision == leader.revision);
                Observed {
                    revision: leader.revision,
                    holder: holder(snapshot, leader),
                    since: watched.map_or(arrived, |(_, at)| at.min(arrived)),
                }
            }
        });
    }

    /// Takes in what the local instance is; called with the view that is about to be decided on.
    pub fn saw_instance(&mut self, view: &View) {
        let leaves = view.phase == Phase::Stopping || turn::is_announced(view);
        self.leaving = leaves.then(|| self.leaving.unwrap_or(view.now));
        self.paused = if pause::is_on(view) { Some(view.now) } else { self.paused };
        self.saw_request(view);
        self.saw_slots(view);
        self.vitals.saw(view);
        if matches!(view.instance(), Instance::Primary(..) | Instance::Standby(..)) {
            self.life = Life::HasRun;
        }
        if view.lease == Lease::None {
            (self.give_away, self.approval) = (None, Approval::Open);
        }
        match view.instance() {
            Instance::Primary(answer, lsn) => {
                let in_force = Names::parse(&answer.sync_names);
                let starved = in_force.need > 0 && !has_streaming(&view.local, &in_force);
                self.sync_starved = starved.then_some(self.sync_starved.unwrap_or(view.now));
                if self.sync_names.as_ref() != Some(&answer.sync_names) {
                    // What the set before acknowledged may be on others than those of the new one.
                    (self.sync_since, self.sync_barrier) = (None, None);
                }
                self.note_barrier(&in_force, lsn, view.now);
                self.closed = self.closed.map(|c| match c.end {
                    Some(_) => c,
                    None => Closed { since: view.now, end: Some(lsn) },
                });
                self.sync_names = Some(answer.sync_names.clone());
                (self.frozen, self.following, self.not_streaming) = (None, None, None);
                self.answered(view);
            }
            Instance::Standby(answer, _) => {
                let stalled = !streams(answer) && self.frozen.is_none();
                self.not_streaming = stalled.then_some(self.not_streaming.unwrap_or(view.now));
                (self.sync_barrier, self.sync_since, self.sync_starved, self.sync_names) =
                    (None, None, None, None);
                let away = |snapshot| !upstreams::serves(snapshot, self.following.as_ref());
                if !stalled {
                    self.upstream_wal = UpstreamWal::Kept;
                    self.succeeded(Job::Rewind);
                } else if self.upstream_wal == UpstreamWal::Kept && view.snapshot().is_some_and(away) {
                    self.upstream_wal = UpstreamWal::Away;
                }
                self.answered(view);
            }
            Instance::Down => {
                self.origin = Origin::Started;
                self.configured = None;
                self.closed = self.closed.map(|c| Closed { end: None, ..c });
                (self.frozen, self.following, self.not_streaming) = (None, None, None);
                (self.sync_barrier, self.sync_since, self.sync_starved) = (None, None, None);
            }
            Instance::Silent | Instance::Ending => {}
        }
    }

    /// The standby was told whom to follow: it connects now.
    pub fn follows(&mut self, upstream: Option<Upstream>) {
        (self.following, self.frozen) = (upstream, None);
        if self.upstream_wal == UpstreamWal::Away {
            self.upstream_wal = UpstreamWal::Kept;
        }
    }

    fn saw_request(&mut self, view: &View) {
        let known = |request: &Revision| self.requested.filter(|(known, _)| known == request);
        if view.snapshot().is_some() {
            self.requested =
                manual::request_of(view).map(|request| known(&request).unwrap_or((request, view.now)));
        }
    }

    fn saw_slots(&mut self, view: &View) {
        let Some(answer) = &view.local.sql else { return };
        let unused = answer.slots.iter().filter(|slot| !slot.active);
        let since = |name| self.unused_slots.get(name).copied().unwrap_or(view.now);
        self.unused_slots = unused.map(|slot| (slot.name.clone(), since(&slot.name))).collect();
        let exists = |name: &SlotName| answer.slots.iter().any(|slot| slot.name == *name);
        self.moving.retain(|name, state| *state == Move::UnderWay || exists(name));
    }

    /// Whoever has flushed the barrier has everything that was acknowledged before the set in force. It is read a moment
    /// after the set was first seen: a session sees a new setting before every backend waits by it.
    fn note_barrier(&mut self, in_force: &Names, lsn: Lsn, now: Moment) {
        if in_force.need == 0 {
            (self.sync_since, self.sync_barrier) = (None, None);
            return;
        }
        let since = *self.sync_since.get_or_insert(now);
        if self.sync_barrier.is_none() && now.since(since) >= SETTLED {
            self.sync_barrier = Some(lsn);
        }
    }

    /// Starts that failed are forgotten when one has held.
    fn answered(&mut self, view: &View) {
        if ran_for(view) >= HEALTHY {
            self.failures.remove(&Job::Start);
        }
    }

    /// A job ended well: its failures are forgotten.
    pub fn succeeded(&mut self, job: Job) {
        self.failures.remove(&job);
    }

    /// The same by its kind: whether a rewind was of any use shows only when the standby streams.
    pub fn ended_well(&mut self, job: Job) {
        if job != Job::Rewind {
            self.succeeded(job);
        }
    }

    /// The data is another's: what failed with the data before is forgotten.
    pub fn copied_at(&mut self, now: Moment) {
        self.succeeded(Job::Rewind);
        self.succeeded(Job::Start);
        self.copied = Some(now);
    }

    /// A rewind has ended well, which is counted as a failure until the standby streams: pg_rewind (before version 16) finds
    /// nothing to do while the leader's control file shows the timeline before, and trying that for ever is being down for ever.
    pub fn rewound_at(&mut self, now: Moment) {
        self.ancestry = None;
        self.failed(Job::Rewind, now, "the history has still left the leader's after it".to_owned());
    }

    /// A job failed, once more.
    pub fn failed(&mut self, job: Job, at: Moment, why: String) {
        let n = self.failures.get(&job).map_or(0, |f| f.n).saturating_add(1);
        self.failures.insert(job, Failures { n, last: at, why });
    }
}

fn holder(snapshot: &Snapshot, leader: &Leader) -> Holder {
    let ours = snapshot.member(&leader.name).is_some_and(|m| m.pgherd_version.is_some());
    if ours { Holder::Ours } else { Holder::Other }
}

/// For how long the process has been running.
pub(super) fn ran_for(view: &View) -> Duration {
    view.local.process.running_since().map_or(Duration::ZERO, |since| view.now.since(since))
}

/// Whether one of those who are waited for streams. Others may: a cluster that follows this one, an archiver.
fn has_streaming(local: &postgres::Status, in_force: &Names) -> bool {
    local.sql.as_ref().is_some_and(|answer| match &answer.kind {
        Kind::Primary { standbys, .. } => {
            standbys.iter().any(|s| s.state == "streaming" && in_force.names.contains(&s.name))
        }
        Kind::Standby { .. } => false,
    })
}
