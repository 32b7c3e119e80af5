//! What the process remembers from tick to tick, brought up to date with what was just seen. Pure.

use crate::clock::Moment;
use crate::dcs::Snapshot;
use crate::postgres;
use crate::postgres::status::Kind;
use crate::types::NodeName;

use super::publish::streams;
use super::sync::Names;
use super::view::{Failures, Instance, Job, Memory, Observed, View};

impl Memory {
    /// Takes in a snapshot that arrived at `arrived`.
    pub fn saw_store(&mut self, me: &NodeName, snapshot: &Snapshot, arrived: Moment) {
        for member in &snapshot.members {
            self.seen_members.insert(member.name.clone(), arrived);
        }
        let other = snapshot.leader.as_ref().filter(|leader| leader.name != *me);
        self.observed = other.map(|leader| match self.observed.take() {
            Some(known) if known.revision == leader.revision => known,
            Some(_) | None => Observed { revision: leader.revision, since: arrived },
        });
    }

    /// Takes in what the local instance is; called with the view that is about to be decided on.
    pub fn saw_instance(&mut self, view: &View) {
        match view.instance() {
            Instance::Primary(answer, lsn) => {
                let in_force = Names::parse(&answer.sync_names);
                let starved = in_force.need > 0 && !has_streaming(&view.local);
                self.sync_starved = starved.then_some(self.sync_starved.unwrap_or(view.now));
                // Whoever has flushed this has everything that was acknowledged before the set in force.
                self.sync_barrier = if in_force.need > 0 { self.sync_barrier.or(Some(lsn)) } else { None };
                self.sync_names = Some(answer.sync_names.clone());
                (self.frozen, self.following, self.not_streaming) = (None, None, None);
                self.answered();
            }
            Instance::Standby(answer, _) => {
                let stalled = !streams(answer) && self.frozen.is_none();
                self.not_streaming = stalled.then_some(self.not_streaming.unwrap_or(view.now));
                (self.sync_barrier, self.sync_starved, self.sync_names) = (None, None, None);
                self.answered();
            }
            Instance::Down => {
                (self.frozen, self.following, self.not_streaming) = (None, None, None);
                (self.sync_barrier, self.sync_starved) = (None, None);
            }
            Instance::Silent | Instance::Ending => {}
        }
    }

    fn answered(&mut self) {
        self.failures.remove(&Job::Start);
    }

    /// A job ended well: its failures are forgotten.
    pub fn succeeded(&mut self, job: Job) {
        self.failures.remove(&job);
    }

    /// A job failed, once more.
    pub fn failed(&mut self, job: Job, at: Moment, why: String) {
        let n = self.failures.get(&job).map_or(0, |f| f.n).saturating_add(1);
        self.failures.insert(job, Failures { n, last: at, why });
    }
}

fn has_streaming(local: &postgres::Status) -> bool {
    local.sql.as_ref().is_some_and(|answer| match &answer.kind {
        Kind::Primary { standbys, .. } => standbys.iter().any(|s| s.state == "streaming"),
        Kind::Standby { .. } => false,
    })
}
