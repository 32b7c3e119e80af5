//! What the etcd room knows when it decides: one plain value, filled by the agent, read by [`super::decide`].
//!
//! Invariant: everything that is remembered from tick to tick is a field here, so the same View gives the same
//! Decision on any node. Every observation carries when it was made; what is old is not used as if it were fresh.
//! Absent: IO, clocks, and any decision.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Moment;
use crate::discovery::Peers;
use crate::peer::{DataFacts, NodeStatus, Promise, Voter};
use crate::record::Record;
use crate::supervisor::UnitState;
use crate::types::{Epoch, NodeId};

/// How old a linearizable read may be and still prove a quorum: a steady node reads every 10 s and the read itself
/// may take a few seconds. This is the window behind `quorum` in `/v1/status`.
pub const STORE_FRESH: Duration = Duration::from_secs(15);

/// How old an answer of a peer may be and still tell what the peer is now.
pub const PROBE_FRESH: Duration = Duration::from_secs(5);

/// A peer list older than this says nothing about who is absent (six polls of the slowest profile).
pub const LIST_FRESH: Duration = Duration::from_secs(180);

/// How many members the store has when nobody says how many nodes are wanted.
const DEFAULT_SIZE: usize = 3;

/// etcd's number of one member: given at `MemberAdd`, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// One entry of etcd's member list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: MemberId,
    /// Its name, which is its node id; empty until it has started once.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// The address in its peer URL; `None` when that is a name.
    pub address: Option<IpAddr>,
    /// Whether it votes.
    pub vote: Vote,
}

impl Member {
    /// Whether it is a voter.
    pub fn is_voter(&self) -> bool {
        self.vote == Vote::Voter
    }

    /// Whether it has ever started.
    pub fn has_started(&self) -> bool {
        !self.name.is_empty()
    }
}

/// Whether a member votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    /// It votes and counts for the quorum.
    Voter,
    /// It only follows the log.
    Learner,
}

/// `/pgherd/<APP_NAME>/cluster`: written once, by the seed that founded the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKey {
    /// The store's identity.
    pub uuid: String,
    /// The ballot that founded it.
    pub epoch: Epoch,
    /// Who founded it.
    pub seed: NodeId,
    /// Who promised: only these count for READY.
    pub promisers: BTreeSet<NodeId>,
    /// How many of them must belong to the store before anybody may lead.
    pub need: usize,
}

/// What one linearizable read of the store brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreView {
    /// When the read was sent.
    pub read_at: Moment,
    /// etcd's cluster id.
    pub cluster_id: u64,
    /// The member list, behind a read barrier.
    pub members: Vec<Member>,
    /// The raft leader, as the answering member sees it.
    pub leader: Option<MemberId>,
    /// The founding document; `None` between the founding and its registration.
    pub cluster: Option<ClusterKey>,
    /// The READY key.
    pub ready: Option<Epoch>,
}

impl StoreView {
    /// The voters.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.is_voter())
    }

    /// The member with this number.
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.iter().find(|m| m.id == id)
    }

    /// The voters as the record and `/v1/status` name them.
    pub fn voter_list(&self) -> Vec<Voter> {
        let mut voters: Vec<_> = self
            .voters()
            .filter_map(|m| m.address.map(|address| Voter { node_id: NodeId(m.name.clone()), address }))
            .collect();
        voters.sort();
        voters
    }
}

/// What lies in etcd's data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dir {
    /// Nothing that a member could start from.
    Empty,
    /// The data of a member.
    Data,
}

/// How the last run of the local etcd ended, read from its last fatal line: its exit code says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The cluster has removed this member for good.
    Removed,
    /// What is on disk is not what this member has promised to others.
    DataLost,
    /// Anything else: port in use, disk full, stopped by a person.
    Other,
}

impl Ending {
    /// Reads the last lines of a run, oldest first.
    pub fn from_lines<'a>(lines: impl DoubleEndedIterator<Item = &'a str>) -> Self {
        const REMOVED: &str = "permanently removed from the cluster";
        const DATA_LOST: [&str; 4] = [
            "crc mismatch",
            "is out of range",
            "snap: no available snapshot",
            "failed to recover v3 backend",
        ];
        lines
            .rev()
            .find_map(|line| match line {
                l if l.contains(REMOVED) => Some(Self::Removed),
                l if DATA_LOST.iter().any(|text| l.contains(text)) => Some(Self::DataLost),
                _ => None,
            })
            .unwrap_or(Self::Other)
    }
}

/// An etcd that has been added as a learner and not been started yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its number.
    pub member_id: MemberId,
    /// `--initial-cluster`, made from the answer to `MemberAdd`.
    pub initial_cluster: String,
}

/// The etcd of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Its process.
    pub unit: UnitState,
    /// Its data.
    pub dir: Dir,
    /// How it ended last; `None` when it has not ended since this program started.
    pub ending: Option<Ending>,
    /// Not to be started before this moment (it has just failed).
    pub retry_at: Option<Moment>,
    /// Added, not yet started.
    pub joined: Option<Joined>,
    /// Since when it has been running without the store being readable.
    pub silent_since: Option<Moment>,
}

impl Local {
    /// What is known of an etcd before anything was tried.
    pub fn new(unit: UnitState, dir: Dir) -> Self {
        Self { unit, dir, ending: None, retry_at: None, joined: None, silent_since: None }
    }
}

/// What is known of another node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probe {
    /// Its last answer.
    pub status: Option<NodeStatus>,
    /// When that answer was asked for.
    pub answered_at: Option<Moment>,
    /// Since when nothing at all has answered: neither `/v1/status` nor any port of its etcd.
    pub dark_since: Option<Moment>,
}

impl Probe {
    /// Its answer, if it is fresh.
    pub fn fresh(&self, now: Moment) -> Option<&NodeStatus> {
        let at = self.answered_at?;
        self.status.as_ref().filter(|_| now.since(at) <= PROBE_FRESH)
    }
}

/// What became of the question to one node of an electorate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It promised.
    Promised {
        /// What it knew at that moment.
        facts: Box<NodeStatus>,
        /// What bound it before.
        before: Option<Promise>,
    },
    /// It did not.
    Refused {
        /// In its words.
        why: String,
    },
    /// It did not answer.
    Silent,
}

/// A ballot that this node has called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ballot {
    /// What was asked for.
    pub promise: Promise,
    /// When.
    pub asked_at: Moment,
    /// The answers, this node's own among them.
    pub replies: BTreeMap<IpAddr, Reply>,
}

/// Since when, and in how many answers, an address has been missing from the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absence {
    /// The first counted answer without it. Never earlier than this program's start.
    pub since: Moment,
    /// Counted answers without it.
    pub answers: u32,
}

/// The memory of the peer list.
///
/// An answer counts as evidence of absence only when it names this node and at least half of what was listed within
/// the last three minutes: empty, partial and failed answers never count. The rule that asks for two distinct sources
/// on public networks is not implemented: the list has one source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Addresses that should be listed and are not.
    pub absent: BTreeMap<IpAddr, Absence>,
    /// When each address was last listed.
    pub listed_at: BTreeMap<IpAddr, Moment>,
    /// When the list last changed.
    pub changed_at: Option<Moment>,
    answers: u64,
    last: BTreeSet<IpAddr>,
}

impl Listing {
    /// Takes one look at the list. `members` are the addresses in etcd's member list, which are expected in it.
    pub fn observe(&mut self, peers: &Peers, me: IpAddr, members: &BTreeSet<IpAddr>) {
        let Some(at) = peers.fetched_at else { return };
        if peers.answers == self.answers {
            return;
        }
        self.answers = peers.answers;
        if self.last != peers.addrs || self.changed_at.is_none() {
            self.changed_at = Some(at);
            self.last.clone_from(&peers.addrs);
        }
        let counts = self.counts(&peers.addrs, me, at);
        self.listed_at.extend(peers.addrs.iter().map(|a| (*a, at)));
        self.absent.retain(|a, _| !peers.addrs.contains(a) && members.contains(a));
        if counts {
            for address in members.difference(&peers.addrs) {
                let entry = self.absent.entry(*address).or_insert(Absence { since: at, answers: 0 });
                entry.answers = entry.answers.saturating_add(1);
            }
        }
    }

    fn counts(&self, addrs: &BTreeSet<IpAddr>, me: IpAddr, at: Moment) -> bool {
        let accepted = self.listed_at.iter().filter(|(_, seen)| at.since(**seen) <= LIST_FRESH);
        let (mut known, mut kept) = (0_usize, 0_usize);
        for (address, _) in accepted {
            known = known.saturating_add(1);
            kept = kept.saturating_add(usize::from(addrs.contains(address)));
        }
        addrs.contains(&me) && kept.saturating_mul(2) >= known
    }
}

/// Whether this node's PostgreSQL is the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrimaryHere {
    /// It is.
    Yes,
    /// It is not.
    #[default]
    No,
}

/// What is remembered from tick to tick and belongs nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// When every listed peer had been asked once.
    pub probed_at: Option<Moment>,
    /// The best candidate of the ballot, and since when it has been the best.
    pub candidate: Option<(IpAddr, Moment)>,
    /// The last ballot this node called.
    pub ballot: Option<Ballot>,
    /// When each member was first seen in the list, and as what.
    pub members: BTreeMap<MemberId, (Moment, Vote)>,
    /// The last change of membership that this node made.
    pub changed_at: Option<Moment>,
    /// The last time it handed raft leadership on.
    pub moved_at: Option<Moment>,
    /// Not to join, promote or change before this moment (etcd asked for patience).
    pub patience: Option<Moment>,
}

/// Everything that is known.
#[derive(Debug, Clone)]
pub struct View {
    /// The present.
    pub now: Moment,
    /// This node's address.
    pub address: IpAddr,
    /// The peer URL that others reach this node's etcd by.
    pub peer_url: String,
    /// How long an address must be absent before its member may be removed.
    pub prune_after: Duration,
    /// What the volume remembers.
    pub record: Record,
    /// What the data directory of PostgreSQL holds.
    pub data: DataFacts,
    /// Whether the primary is here.
    pub primary: PrimaryHere,
    /// The list of who may exist.
    pub peers: Peers,
    /// Its memory.
    pub listing: Listing,
    /// The other nodes.
    pub probes: BTreeMap<IpAddr, Probe>,
    /// The etcd of this node.
    pub local: Local,
    /// The last linearizable read, by whatever voter.
    pub store: Option<StoreView>,
    /// The rest.
    pub memory: Memory,
}

impl View {
    /// The store, when the last read of it is fresh: a quorum is there.
    pub fn fresh_store(&self) -> Option<&StoreView> {
        self.store.as_ref().filter(|s| self.now.since(s.read_at) <= STORE_FRESH)
    }

    /// The entry of this node in the member list: by the number that the record knows, while there is data for it.
    pub fn own_member<'a>(&self, store: &'a StoreView) -> Option<&'a Member> {
        store.members.iter().find(|m| m.name == self.record.node_id.0)
    }

    /// How many nodes are wanted.
    pub fn desired(&self) -> usize {
        self.peers.desired_size.unwrap_or(DEFAULT_SIZE).max(1)
    }

    /// How many voters are wanted: 1, 3 or 5. More only makes writes slower.
    pub fn voters_wanted(&self) -> usize {
        match self.desired() {
            0..=2 => 1,
            3..=4 => 3,
            _ => 5,
        }
    }

    /// Whether a node at this address has answered just now.
    pub fn answers(&self, address: IpAddr) -> Option<&NodeStatus> {
        self.probes.get(&address).and_then(|p| p.fresh(self.now))
    }

    /// Every peer that has answered just now.
    pub fn answering(&self) -> impl Iterator<Item = (IpAddr, &NodeStatus)> {
        self.probes.iter().filter_map(|(a, p)| p.fresh(self.now).map(|s| (*a, s)))
    }

    /// A quorum that this node can prove (its own read) or that a peer vouches for.
    pub fn sees_quorum(&self) -> bool {
        self.fresh_store().is_some() || self.answering().any(|(_, s)| s.store.quorum)
    }
}
