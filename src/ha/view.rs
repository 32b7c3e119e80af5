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
use crate::types::{Host, Lsn, NodeId, NodeName, Revision, SlotName, SystemId, Timeline, TimelineHistory};

use super::Phase;
use super::configure::Configured;
use super::door::Closed;
use super::failsafe::Roll;
use super::fitness::Vitals;
use super::manual::{self, HandOver};
use super::orders::{self, Orders};
use super::promises::Promise;
use super::rules::{Failover, Rules};

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

/// A long action, run beside the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// initdb.
    Initdb,
    /// Roles, database and init scripts of a new cluster.
    FinishBootstrap,
    /// A base backup.
    Clone,
    /// pg_rewind.
    Rewind,
    /// Asking a program of the operator's whether this node may be promoted.
    Approval,
    /// A promotion.
    Promote,
    /// A stop.
    Stop,
    /// A stop of the leader for a request, until another member has everything.
    HandOver,
    /// Asking the other members for their positions.
    Poll,
    /// Asking every listed node whether it has data.
    Survey,
    /// Asking the leader for its timeline history.
    Compare,
    /// A start of PostgreSQL (not run beside the loop; it fails when it ends before it has answered).
    Start,
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
    /// The leader that was followed before the store knew what it writes.
    pub followed: Option<Followed>,
    /// The same, if a timeline that this leader began is in the local data.
    pub taken: Option<Followed>,
    /// Data from before pgherd that lies aside.
    pub adopted: Option<Adopted>,
    /// The data was a primary's, and no leader's history is known to hold it ([`super::door`]).
    pub unconfirmed: bool,
}

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
    /// Since when each slot has been without a user.
    pub unused_slots: BTreeMap<SlotName, Moment>,
    /// Since when this standby has been asking to be dropped from the synchronous set, because it stops.
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
    /// The last stop for a request, and how it ended.
    pub handover: Option<HandOver>,
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
                | Job::Compare => 1,
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
