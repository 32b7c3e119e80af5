//! The coordination store as the HA core sees it: one snapshot, one leader key under a lease, a few documents.
//!
//! Keys, values and transactions are Patroni's, so that `patronictl` and stock
//! Patroni nodes can share the scope. Nothing above this module knows which store it is: errors say what the caller
//! can do, and no backend's type leaves. What is absent: any decision, and retries (but for the next endpoint).

pub mod etcd;
pub mod memory;
pub mod record;
mod rows;

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Moment;
use crate::types::{LeaseId, NodeName, Revision};

pub use record::{
    Failover, Failsafe, History, Initialize, Member, MemberState, ReplicationState, Role, Shutdown, Status,
    Sync,
};

/// What went wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer in time, or no quorum: the outcome is unknown; ask again before the deadline.
    #[error("the store did not answer: {0}")]
    Unreachable(String),
    /// A precondition did not hold: somebody else was faster; read again.
    #[error("{what} was changed by somebody else")]
    Conflict {
        /// The key or the transaction that lost.
        what: &'static str,
    },
    /// The store understood and refuses: trying again will not help.
    #[error("the store refuses: {0}")]
    Rejected(String),
}

/// One of the documents below `/service/<scope>/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Empty while somebody bootstraps, then the system identifier.
    Initialize,
    /// The dynamic configuration.
    Config,
    /// The leader's position and the slots'.
    Status,
    /// Timeline history of the cluster.
    History,
    /// Who is synchronous.
    Sync,
    /// A requested switchover or failover.
    Failover,
    /// Who must agree before a primary outlives the store.
    Failsafe,
}

impl Key {
    /// The last segment of the key's path.
    pub fn segment(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Config => "config",
            Self::Status => "status",
            Self::History => "history",
            Self::Sync => "sync",
            Self::Failover => "failover",
            Self::Failsafe => "failsafe",
        }
    }
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing: last writer wins.
    None,
    /// The key does not exist.
    Absent,
    /// The key is still at this revision.
    Unchanged(Revision),
}

/// A value with the revision that it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// Its version, for [`Precondition::Unchanged`].
    pub revision: Revision,
}

/// The leader key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Who holds it.
    pub name: NodeName,
    /// The lease it is attached to.
    pub lease: LeaseId,
    /// Changes at each renewal by a pgherd node, which is what observers time.
    pub revision: Revision,
}

/// Whether anybody may lead in this store yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The ballot that made this store has not been confirmed by enough members: nobody may lead.
    NotReady,
    /// The READY key exists (or the store is somebody else's, as in agent mode).
    Ready,
}

/// Everything below the scope, read at one revision by a linearizable read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// When the read was *sent*: what it says was true at some moment after this.
    pub taken: Moment,
    /// Whether anybody may lead.
    pub readiness: Readiness,
    /// `initialize`.
    pub initialize: Option<Versioned<Initialize>>,
    /// `leader`.
    pub leader: Option<Leader>,
    /// `members/*`, sorted by name.
    pub members: Vec<Member>,
    /// `config`, as it stands (unknown keys survive).
    pub config: Option<Versioned<serde_json::Value>>,
    /// `status`.
    pub status: Option<Versioned<Status>>,
    /// `history`.
    pub history: Option<Versioned<History>>,
    /// `sync`.
    pub sync: Option<Versioned<Sync>>,
    /// `failover`.
    pub failover: Option<Versioned<Failover>>,
    /// `failsafe`.
    pub failsafe: Option<Versioned<Failsafe>>,
}

impl Snapshot {
    /// The member of this name.
    pub fn member(&self, name: &NodeName) -> Option<&Member> {
        self.members.iter().find(|m| m.name == *name)
    }

    /// The name of the leader.
    pub fn leader_name(&self) -> Option<&NodeName> {
        self.leader.as_ref().map(|l| &l.name)
    }
}

/// How to become the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The key must not exist.
    Vacant,
    /// The key has stood at this revision for a whole TTL on the observer's own clock: replace it if it still does.
    Expired(Revision),
}

/// Proof of a successful acquisition or renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// When the successful request was *sent*: the right to lead lasts until this plus the TTL, whatever the answer
    /// took. It is earlier, and may not move for a while, when the lease behind the key could not be proven alive as
    /// lately as the key was written: the end of the lease ends the key.
    pub sent: Moment,
    /// The time to live of the lease behind it.
    pub ttl: Duration,
    /// The key's revision after it.
    pub revision: Revision,
}

/// A write of the leader key as the watch has brought it: for timing its holder, not for deciding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The key's revision after it.
    pub revision: Revision,
    /// When this node heard of it: no earlier than it was committed.
    pub heard: Moment,
}

/// A coordination store. Two stores implement it: etcd, and one in memory for the simulator and for tests.
///
/// Every call is bounded in time by the implementation and does not retry by itself beyond switching to another
/// endpoint: the caller decides whether an unknown outcome is worth another try.
pub trait Dcs: Send + std::marker::Sync + 'static {
    /// Reads the whole scope at one revision.
    fn snapshot(&self) -> impl Future<Output = Result<Snapshot, Error>> + Send;

    /// Takes the leader key under this node's lease. Never succeeds in a store that is not ready.
    /// [`Error::Conflict`] when somebody else was faster.
    fn acquire_leader(&self, me: &NodeName, claim: Claim)
    -> impl Future<Output = Result<Held, Error>> + Send;

    /// Renews the leader key by compare-and-swap through consensus, and the lease beside it.
    /// [`Error::Conflict`] when the key is no longer ours: this node has lost the leadership.
    fn renew_leader(&self, me: &NodeName) -> impl Future<Output = Result<Held, Error>> + Send;

    /// Deletes the leader key if it is ours. To be called only after PostgreSQL has stopped.
    fn release_leader(&self, me: &NodeName) -> impl Future<Output = Result<(), Error>> + Send;

    /// Writes `members/<name>` under this node's lease, which is refreshed at the same time. A name belongs to one node id
    /// as long as that node's lease lives: [`Error::Conflict`] when another node holds it. Nobody takes or adopts the
    /// leader key in a name that another node holds.
    fn put_member(&self, member: &Member) -> impl Future<Output = Result<(), Error>> + Send;

    /// Deletes `members/<name>`.
    fn delete_member(&self, name: &NodeName) -> impl Future<Output = Result<(), Error>> + Send;

    /// Writes a document as text.
    fn put(
        &self,
        key: Key,
        value: String,
        when: Precondition,
    ) -> impl Future<Output = Result<Revision, Error>> + Send;

    /// Deletes a document.
    fn delete(&self, key: Key, when: Precondition) -> impl Future<Output = Result<(), Error>> + Send;

    /// A counter that moves whenever `leader`, `config`, `failover` or `sync` may have changed: "look again". It is
    /// a hint; a missed change costs at most one `loop_wait`.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The last write of the leader key that the watch has brought. A hint like [`Dcs::changes`], which it does not move.
    fn renewals(&self) -> watch::Receiver<Option<Renewal>>;

    /// Uses another time to live for the lease from now on: the old lease is forgotten, a new one is made.
    fn set_ttl(&self, ttl: Duration);
}
