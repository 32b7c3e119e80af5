//! Everything the HA core knows at one moment: the only input of [`super::decide`].
//!
//! Invariant: all memory is here. The same View gives the same Decision on any node at any time, so a rule that
//! must remember something adds a field, and the agent carries it from tick to tick.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::clock::{Backoff, Moment};
use crate::dcs::{Initialize, Leader, Member, Snapshot};
use crate::peer::Adopted;
use crate::postgres::status::{Answer, Control, DataDir, Kind};
use crate::postgres::{self, Containment, Upstream};
use crate::record::{Bootstrap, Followed};
use crate::supervisor::UnitState;
use crate::types::{Host, Lsn, NodeId, NodeName, SystemId, Timeline, TimelineHistory};

use super::Phase;
pub use super::job::Job;
use super::manual;
use super::orders;
use super::rules::{Failover, Rules};

pub use super::memory::{
    Checkpoint, Failures, Holder, Life, Memory, Name, Observed, Origin, ShutdownMark, SyncWrite, UpstreamWal,
};

/// `node` stops a primary this long before its lease can expire, `init` (the deadman) [`DEADMAN_MARGIN`] before. The
/// difference covers an immediate shutdown: 0.3 s at worst with a stopped backend, measured.
const DEMOTE_MARGIN_LOCAL: Duration = Duration::from_secs(3);
/// The same across continents, where a renewal may be under way for longer.
const DEMOTE_MARGIN_GLOBAL: Duration = Duration::from_secs(5);
/// `init` stops the postmaster this long before the lease can expire.
pub const DEADMAN_MARGIN: Duration = Duration::from_secs(1);
/// From this TTL on the wider margin applies (the presets are 10, 15 and 20 s).
const GLOBAL_TTL: Duration = Duration::from_secs(20);
/// A promotion is begun only with this much of the lease left before the demotion.
pub const PROMOTE_NEEDS: Duration = Duration::from_secs(1);
/// Answers of other members are good for this long.
pub const POLL_AGE: Duration = Duration::from_secs(2);
/// How failed jobs are spaced. A clone of a large database that failed is not tried again at once.
pub const JOB_BACKOFF: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) };

/// What is known at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// When.
    pub now: Moment,
    /// This member.
    pub me: NodeName,
    /// This volume.
    pub node_id: NodeId,
    /// The wall clock, for what an operator has scheduled. Nothing else may depend on it.
    pub wall: jiff::Timestamp,
    /// Working or stopping.
    pub phase: Phase,
    /// The rules in force.
    pub rules: Rules,
    /// The coordination store.
    pub store: Store,
    /// The leader lease.
    pub lease: Lease,
    /// The local instance.
    pub local: postgres::Status,
    /// The long action under way.
    pub doing: Option<Doing>,
    /// What the volume remembers.
    pub volume: Volume,
    /// What this process remembers.
    pub memory: Memory,
}

/// The coordination store as last seen.
#[derive(Debug, Clone, PartialEq)]
pub enum Store {
    /// It answered in this tick.
    Fresh(Box<Snapshot>),
    /// It did not answer.
    Silent {
        /// Since when.
        since: Moment,
        /// In words.
        why: String,
    },
}

/// The leader lease, as the renewal task knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Not ours.
    None,
    /// Ours: the last successful renewal was *sent* at this moment, for so long.
    Held {
        /// When it was sent.
        sent: Moment,
        /// The time to live that it was sent with; the configuration may have changed since.
        ttl: Duration,
    },
    /// It was ours, and a renewal has found the key with somebody else or gone.
    Lost,
}

/// What `pre_promote` has said of a promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Approval {
    /// Nothing yet.
    #[default]
    Open,
    /// This node may be promoted.
    Given,
}

/// The job under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doing {
    /// Which.
    pub job: Job,
    /// Since when.
    pub since: Moment,
}

/// Whether the data knows of a timeline after the one that it is on: a promotion writes its history before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Later {
    /// For all that is known.
    #[default]
    MayBe,
    /// It has no history of one, so not a record either.
    NotSeen,
}

/// What the volume remembers (the cluster record).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Volume {
    /// The database cluster that this volume belongs, or belonged, to.
    pub system_id: Option<SystemId>,
    /// initdb is done, what follows it is not.
    pub bootstrap: Bootstrap,
    /// The timeline that this node was last promoted to.
    pub promoted: Option<Timeline>,
    /// The name it had then.
    pub promoted_as: Option<NodeName>,
    /// Whether the data knows of a timeline after the one that it is on.
    pub later: Later,
    /// The leader that was followed before the store knew what it writes.
    pub followed: Option<Followed>,
    /// The same, if a timeline that this leader began is in the local data.
    pub taken: Option<Followed>,
    /// Data from before pgherd that lies aside.
    pub adopted: Option<Adopted>,
    /// The data was a primary's, and no leader's history is known to hold it ([`super::door`]).
    pub unconfirmed: bool,
}

/// The answers of one round of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// When it ended.
    pub at: Moment,
    /// Who answered what.
    pub answers: BTreeMap<NodeName, PollAnswer>,
}

/// One member's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollAnswer {
    /// No answer.
    Unreachable,
    /// It answered, and PostgreSQL does not run there.
    Down,
    /// It takes writes.
    Primary,
    /// It is a standby.
    Standby(Candidate),
}

/// A standby's claim to the leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The timeline it is on.
    pub timeline: Timeline,
    /// The further of received and replayed.
    pub position: Lsn,
    /// Whether that can still move.
    pub motion: Motion,
    /// Whether it may lead.
    pub eligibility: Eligibility,
    /// Its `failover_priority`.
    pub priority: u32,
}

/// Whether a position can still move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    /// Its walreceiver is stopped.
    Frozen,
    /// It may be receiving.
    Streaming,
}

/// Whether a member may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eligibility {
    /// It may.
    Eligible,
    /// Tagged `nofailover`.
    NoFailover,
    /// It must be guarded to lead, and cannot be.
    Unguarded,
}

impl From<Failover> for Eligibility {
    fn from(failover: Failover) -> Self {
        match failover {
            Failover::Allowed => Self::Eligible,
            Failover::Never => Self::NoFailover,
        }
    }
}

/// What every listed node said about data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// When it ended.
    pub at: Moment,
    /// By address.
    pub answers: BTreeMap<IpAddr, SurveyAnswer>,
}

/// One node's answer to "have you data?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SurveyAnswer {
    /// No answer: it may have.
    Silent,
    /// It has a data directory that it cannot read: it may hold anything.
    Unreadable,
    /// No data and no record of any.
    NoData,
    /// Data of this cluster.
    Data(SystemId),
    /// No member's data, but data from before pgherd.
    Adopted(Adopted),
}

/// A leader's timeline and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestry {
    /// Whose.
    pub leader: NodeName,
    /// When it was asked.
    pub at: Moment,
    /// Its database system.
    pub system_id: Option<SystemId>,
    /// The timeline it is on.
    pub timeline: Timeline,
    /// Its forks.
    pub history: TimelineHistory,
    /// Whether it holds our log, as far as it was asked for that.
    pub contains_ours: Containment,
}

/// What the local process is, in the words that the rules need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Instance<'a> {
    /// No process, no descendant.
    Down,
    /// A process that does not answer yet, or no longer.
    Silent,
    /// Asked to stop, or dying.
    Ending,
    /// Takes writes.
    Primary(&'a Answer, Lsn),
    /// Follows.
    Standby(&'a Answer, Lsn),
}

impl View {
    /// What the local process is.
    pub fn instance(&self) -> Instance<'_> {
        match self.local.process {
            UnitState::Down { .. } | UnitState::Backoff { .. } => Instance::Down,
            UnitState::Stopping { .. } | UnitState::Draining { .. } => Instance::Ending,
            UnitState::Running { .. } => match self.local.sql.as_ref() {
                None => Instance::Silent,
                Some(answer) => match answer.kind {
                    Kind::Primary { lsn, .. } => Instance::Primary(answer, lsn),
                    Kind::Standby { received, replayed, .. } => {
                        Instance::Standby(answer, received.max(replayed))
                    }
                },
            },
        }
    }

    /// The store's content, when it answered.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        match &self.store {
            Store::Fresh(snapshot) => Some(snapshot),
            Store::Silent { .. } => None,
        }
    }

    /// The timeline that the data is on, by the server's word and the control file's, whichever is further.
    pub fn timeline(&self) -> Option<Timeline> {
        let said = self.local.sql.as_ref().map(|answer| answer.timeline);
        said.max(self.control().map(Control::reached))
    }

    /// The control data, when the data directory holds a cluster.
    pub fn control(&self) -> Option<&Control> {
        match &self.local.data {
            DataDir::Cluster(control) => Some(control),
            DataDir::Empty | DataDir::Incomplete { .. } | DataDir::Unreadable { .. } => None,
        }
    }

    /// The system identifier in the store.
    pub fn cluster_system_id(&self) -> Option<SystemId> {
        match self.snapshot()?.initialize.as_ref()?.value {
            Initialize::Done(id) => Some(id),
            Initialize::InProgress | Initialize::Invalid => None,
        }
    }

    /// When this node must have begun to stop its primary, if nothing renews the lease before.
    pub fn demote_at(&self) -> Option<Moment> {
        let Lease::Held { sent, ttl } = self.lease else { return None };
        Some(sent + ttl - demote_margin(ttl))
    }

    /// Whether the lease is ours and good for now.
    pub fn leads(&self) -> bool {
        self.demote_at().is_some_and(|deadline| self.now < deadline)
    }

    /// The leader key of another node that has stood still for a whole TTL on this node's clock: its holder has stopped
    /// its primary before now. Only a pgherd leader renews in a way that can be observed.
    pub fn expired_leader<'a>(&self, leader: &'a Leader) -> Option<&'a Leader> {
        let observed = self.memory.observed.as_ref().filter(|seen| seen.holder == Holder::Ours)?;
        let stood = self.now.since(observed.since);
        (observed.revision == leader.revision && stood >= self.takeover_after()).then_some(leader)
    }

    /// How long another's key must stand still: the TTL, or for a while after a change the longer of the old and the new,
    /// since the holder may not have heard of it.
    fn takeover_after(&self) -> Duration {
        let ttl = self.rules.timing.ttl;
        match self.memory.ttl_before {
            Some((before, at)) if self.now.since(at) < before + ttl => ttl.max(before),
            Some(_) | None => ttl,
        }
    }

    /// Whether a job that has failed may be tried again.
    pub fn may_try(&self, job: Job) -> bool {
        self.memory.failures.get(&job).is_none_or(|f| {
            let free = match job {
                // A first crash is restarted at once.
                Job::Start if f.n <= 1 => return true,
                Job::Start => 2,
                Job::Initdb
                | Job::FinishBootstrap
                | Job::Clone
                | Job::Rewind
                | Job::Approval
                | Job::Promote
                | Job::Stop
                | Job::HandOver
                | Job::Poll
                | Job::Survey
                | Job::Compare
                | Job::CopySlots => 1,
            };
            // Equal jitter without randomness: nodes differ in what they do, not in when they retry.
            self.now.since(f.last) >= JOB_BACKOFF.delay(f.n.saturating_sub(free), 0.5)
        })
    }

    /// How often a job has failed in a row.
    pub fn n_failures(&self, job: Job) -> u32 {
        self.memory.failures.get(&job).map_or(0, |f| f.n)
    }

    /// When the loop must run again whatever else happens: the lease's demotion, or the expiry of another's key.
    pub fn next_deadline(&self) -> Option<Moment> {
        let takeover = self.memory.observed.as_ref().map(|o| o.since + self.takeover_after());
        [self.demote_at(), takeover, manual::next_deadline(self), orders::next_deadline(self)]
            .into_iter()
            .flatten()
            .filter(|at| *at > self.now)
            .min()
    }
}

/// How long before the end of its lease a primary is stopped.
pub fn demote_margin(ttl: Duration) -> Duration {
    if ttl >= GLOBAL_TTL { DEMOTE_MARGIN_GLOBAL } else { DEMOTE_MARGIN_LOCAL.min(ttl / 2) }
}

/// How to reach a member's PostgreSQL; `None` when its `conn_url` cannot be read.
pub fn upstream(member: &Member) -> Option<Upstream> {
    upstream_at(&member.name, member.node_id.clone().map(NodeId), &member.conn_url)
}

/// The same of a member by what it says of itself.
pub fn upstream_at(name: &NodeName, node_id: Option<NodeId>, conn_url: &str) -> Option<Upstream> {
    let rest = conn_url.strip_prefix("postgres://").or_else(|| conn_url.strip_prefix("postgresql://"))?;
    let authority = rest.split('/').next()?;
    let (host, port) = authority.rsplit_once(':')?;
    let address = Some(Host::from(host)).filter(|_| !host.is_empty())?;
    Some(Upstream { name: name.clone(), node_id, address, port: port.parse().ok()?, foreign: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demotion_comes_before_the_deadman_and_both_before_the_end() {
        for seconds in [4, 10, 15, 20, 30] {
            let ttl = Duration::from_secs(seconds);
            assert!(demote_margin(ttl) > DEADMAN_MARGIN, "ttl {seconds}");
            assert!(demote_margin(ttl) < ttl);
        }
    }
}
