//! What the process remembers from tick to tick, brought up to date with what was just seen. Pure.

use std::time::Duration;

use crate::clock::Moment;
use crate::dcs::{Leader, Snapshot};
use crate::postgres;
use crate::postgres::status::Kind;
use crate::supervisor::UnitState;
use crate::types::{Lsn, NodeName, Revision};

use super::Phase;
use super::door::Closed;
use super::publish::streams;
use super::sync::Names;
use super::view::{
    Approval, Failures, Holder, Instance, Job, Lease, Life, Memory, Observed, Origin, UpstreamWal, View,
};

/// A start that has held for this long was a good one.
pub(super) const HEALTHY: Duration = Duration::from_secs(10);
/// By then every backend of a primary goes by a setting that one session has seen.
const SETTLED: Duration = Duration::from_millis(100);

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
        self.leaving = (view.phase == Phase::Stopping).then(|| self.leaving.unwrap_or(view.now));
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
                if !stalled {
                    self.upstream_wal = UpstreamWal::Kept;
                    self.succeeded(Job::Rewind);
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

    fn saw_slots(&mut self, view: &View) {
        let Some(answer) = &view.local.sql else { return };
        let unused = answer.slots.iter().filter(|slot| !slot.active);
        let since = |name| self.unused_slots.get(name).copied().unwrap_or(view.now);
        self.unused_slots = unused.map(|slot| (slot.name.clone(), since(&slot.name))).collect();
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
    match view.local.process {
        UnitState::Running { since, .. } => view.now.since(since),
        UnitState::Down { .. }
        | UnitState::Stopping { .. }
        | UnitState::Draining { .. }
        | UnitState::Backoff { .. } => Duration::ZERO,
    }
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
