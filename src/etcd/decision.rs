//! The vocabulary of the etcd room's decisions: what to do, and why, in types and in plain words.
//!
//! Every Decision carries a Reason; its text is the log line, the status page and the answer to "why is nothing
//! happening". Absent: the rules themselves.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::etcd::prune::{self, Held};
use crate::etcd::view::{Joined, MemberId};
use crate::types::Epoch;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing: something is under way that will change the View.
    Wait,
    /// Nothing: all is as it should be.
    Rest,
    /// Nothing: only a person, or news from outside, can go on from here.
    Hold,
    /// Use the voters' etcd, run none.
    BeClient,
    /// Call a ballot.
    AskPromises {
        /// Its number.
        epoch: Epoch,
        /// Whom to ask, this node included.
        electorate: BTreeSet<IpAddr>,
    },
    /// Start an etcd that founds a store of one, on an empty directory.
    Found {
        /// The ballot that allows it.
        epoch: Epoch,
    },
    /// Write the founding document.
    Register {
        /// The ballot that was won.
        epoch: Epoch,
        /// The nodes that promised, by address.
        promisers: BTreeSet<IpAddr>,
        /// How many of them must join before READY.
        need: usize,
    },
    /// Write the READY key.
    WriteReady {
        /// The epoch it names.
        epoch: Epoch,
    },
    /// Ask etcd for a place as learner.
    AddLearner,
    /// Start the etcd that has been added, on an empty directory.
    StartJoined(Joined),
    /// Make this node's learner a voter.
    Promote(MemberId),
    /// Start the etcd that has data.
    StartWithData,
    /// Remove the entry that an earlier volume at this address left behind.
    RemoveStaleSelf(MemberId),
    /// Remove a voter that is gone.
    Remove(MemberId),
    /// Remove a learner that does not come along.
    RemoveLearner(MemberId),
    /// Hand raft leadership to this voter.
    MoveLeader(MemberId),
    /// Tell the store this node's new peer URL.
    UpdatePeerUrl(MemberId),
    /// Stop etcd and put its data aside.
    QuarantineData,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The peers have not all been asked yet.
    Probing,
    /// The process is stopping or its descendants linger.
    Ending,
    /// It has just failed.
    Backoff,
    /// It has started and does not serve yet.
    Starting,
    /// It runs, and the store has no quorum.
    NoQuorum {
        /// For how long.
        since: Duration,
    },
    /// Nobody has given a list yet.
    NoList,
    /// The list is old.
    StaleList {
        /// How old.
        age: Duration,
    },
    /// The list does not name this node.
    NotListed,
    /// A listed node does not answer.
    Silent(IpAddr),
    /// A peer remembers a cluster.
    PeerRemembers(IpAddr),
    /// A peer has etcd data and no quorum yet.
    PeerHasStore(IpAddr),
    /// This volume remembers a cluster whose store is not in sight.
    Remembers,
    /// Another node is the better candidate.
    OtherCandidate(IpAddr),
    /// The list is not what was wanted, and has not stood still long enough to be believed.
    ListUnsettled {
        /// Listed nodes.
        listed: usize,
        /// Wanted nodes.
        wanted: usize,
        /// Time left.
        left: Duration,
    },
    /// The last ballot was a moment ago.
    BallotPause {
        /// Time left.
        left: Duration,
    },
    /// Everybody is empty, and this node is the candidate.
    BallotCalled,
    /// Enough promises.
    BallotWon,
    /// Not enough promises.
    TooFewPromises {
        /// Promises.
        have: usize,
        /// Needed.
        need: usize,
    },
    /// A node would not promise.
    Refused {
        /// Who.
        by: IpAddr,
        /// Its words.
        why: String,
    },
    /// An earlier ballot may have founded a store that nobody here has seen.
    OldBallot {
        /// Which.
        epoch: Epoch,
        /// Who could tell.
        missing: IpAddr,
    },
    /// This node founded a store that nobody could join.
    Abandoned,
    /// The store has been founded and is not registered yet.
    Unregistered,
    /// This volume belongs to a cluster, and its store holds none of the name that it is asked for.
    OtherName,
    /// Too few promisers belong to the store.
    NotReady {
        /// Members among the promisers.
        have: usize,
        /// Needed.
        need: usize,
    },
    /// Enough promisers belong to it.
    GateOpen,
    /// A store is in sight and has not been read yet.
    Reading,
    /// The store in sight is older than this node's promise.
    OlderStore {
        /// Its epoch.
        epoch: Epoch,
        /// This node's.
        bound: Epoch,
    },
    /// Two stores.
    TwoClusters {
        /// The one this volume remembers.
        ours: String,
        /// The one in sight.
        theirs: String,
    },
    /// An entry with this node's address or name is not this volume's.
    StaleEntry,
    /// There are enough voters.
    EnoughVoters {
        /// How many.
        voters: usize,
    },
    /// Another learner is on its way.
    OtherLearner(String),
    /// etcd asked for patience.
    Patience,
    /// There is a free place.
    FreePlace,
    /// Added; the directory is empty.
    Added,
    /// The learner follows the log.
    Learner,
    /// The learner did not get there in time.
    LearnerLate,
    /// There is data, and nothing speaks against it.
    HasData,
    /// The store does not list this node any more.
    Expelled,
    /// The data on disk is damaged or too old, and the store goes on without it.
    DataLost,
    /// The same, and no store is in sight: the data is kept.
    DataLostAlone,
    /// A store of a later epoch is in sight.
    LaterStore {
        /// Its epoch.
        epoch: Epoch,
    },
    /// This node's address is not the one in the store.
    AddressChanged,
    /// All is well.
    Steady {
        /// Voters.
        voters: usize,
    },
    /// The primary runs here, and so does the raft leader.
    LeaderWithPrimary,
    /// A member is to be removed.
    Removal(prune::Evidence),
}

/// What to do, why, and what is not being done about members that look gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// Members that look gone and are kept.
    pub held: Vec<(IpAddr, Held)>,
}

impl Decision {
    /// Nothing is held.
    pub fn new(action: Action, reason: Reason) -> Self {
        Self { action, reason, held: Vec::new() }
    }

    /// Waits or holds, by whether the obstacle goes away by itself.
    pub fn hold_or_wait(reason: Reason) -> Self {
        let action = if reason.needs_help() { Action::Hold } else { Action::Wait };
        Self::new(action, reason)
    }

    /// Waits.
    pub fn wait(reason: Reason) -> Self {
        Self::new(Action::Wait, reason)
    }
}

impl Reason {
    /// Whether waiting alone will not do.
    fn needs_help(&self) -> bool {
        match self {
            Self::PeerRemembers(_)
            | Self::Remembers
            | Self::TwoClusters { .. }
            | Self::OlderStore { .. }
            | Self::DataLostAlone
            | Self::OldBallot { .. }
            | Self::OtherName
            | Self::NotListed => true,
            Self::Probing
            | Self::Ending
            | Self::Backoff
            | Self::Starting
            | Self::NoQuorum { .. }
            | Self::NoList
            | Self::StaleList { .. }
            | Self::Silent(_)
            | Self::PeerHasStore(_)
            | Self::OtherCandidate(_)
            | Self::ListUnsettled { .. }
            | Self::BallotPause { .. }
            | Self::BallotCalled
            | Self::BallotWon
            | Self::TooFewPromises { .. }
            | Self::Refused { .. }
            | Self::Abandoned
            | Self::Unregistered
            | Self::NotReady { .. }
            | Self::GateOpen
            | Self::Reading
            | Self::StaleEntry
            | Self::EnoughVoters { .. }
            | Self::OtherLearner(_)
            | Self::Patience
            | Self::FreePlace
            | Self::Added
            | Self::Learner
            | Self::LearnerLate
            | Self::HasData
            | Self::Expelled
            | Self::DataLost
            | Self::LaterStore { .. }
            | Self::AddressChanged
            | Self::Steady { .. }
            | Self::LeaderWithPrimary
            | Self::Removal(_) => false,
        }
    }
}

/// Seconds, for people.
struct Secs(Duration);

impl fmt::Display for Secs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_secs())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probing => f.write_str("asking the listed peers"),
            Self::Ending => f.write_str("etcd is ending"),
            Self::Backoff => f.write_str("etcd has just failed; a moment before the next start"),
            Self::Starting => f.write_str("etcd is starting"),
            Self::NoQuorum { since } => write!(f, "no quorum for {}", Secs(*since)),
            Self::NoList => f.write_str("no peer list yet"),
            Self::StaleList { age } => write!(f, "the peer list is {} old", Secs(*age)),
            Self::NotListed => f.write_str("the peer list does not name this node"),
            Self::Silent(a) => write!(f, "{a} is listed and does not answer"),
            Self::PeerRemembers(a) => write!(f, "{a} remembers a cluster whose store is not in sight"),
            Self::PeerHasStore(a) => write!(f, "{a} has etcd data; waiting for its quorum"),
            Self::Remembers => f.write_str("this volume remembers a cluster whose store is not in sight"),
            Self::OtherCandidate(a) => write!(f, "{a} is to found the store"),
            Self::ListUnsettled { listed, wanted, left } => {
                write!(f, "{listed} of {wanted} nodes are listed; {} until that is believed", Secs(*left))
            }
            Self::BallotPause { left } => write!(f, "{} until the next ballot", Secs(*left)),
            Self::BallotCalled => f.write_str("every listed node is empty, and this one is the candidate"),
            Self::BallotWon => f.write_str("the ballot is won"),
            Self::TooFewPromises { have, need } => write!(f, "{have} promises of {need}"),
            Self::Refused { by, why } => write!(f, "{by} does not promise: {why}"),
            Self::OldBallot { epoch, missing } => {
                write!(f, "ballot {epoch} may have founded a store; {missing} would know")
            }
            Self::Abandoned => f.write_str("nobody could join the store this node founded"),
            Self::Unregistered => f.write_str("the store is being founded"),
            Self::OtherName => f.write_str(
                "this volume belongs to a cluster, and the store holds none of this APP_NAME: give it the name that it had",
            ),
            Self::NotReady { have, need } => write!(f, "{have} of {need} promisers belong to the store"),
            Self::GateOpen => f.write_str("enough promisers belong to the store"),
            Self::Reading => f.write_str("a store is in sight and has not been read yet"),
            Self::OlderStore { epoch, bound } => {
                write!(f, "the store in sight is of epoch {epoch}, this node is bound to {bound}")
            }
            Self::TwoClusters { ours, theirs } => {
                write!(f, "two clusters: this volume remembers {ours}, in sight is {theirs}")
            }
            Self::StaleEntry => f.write_str("an earlier volume left its entry behind"),
            Self::EnoughVoters { voters } => write!(f, "there are {voters} voters"),
            Self::OtherLearner(who) => write!(f, "{who} is joining"),
            Self::Patience => f.write_str("etcd asks for a moment"),
            Self::FreePlace => f.write_str("there is a place for a voter"),
            Self::Added => f.write_str("this node has been added"),
            Self::Learner => f.write_str("this node is a learner"),
            Self::LearnerLate => f.write_str("this node did not catch up in time"),
            Self::HasData => f.write_str("there is data"),
            Self::Expelled => f.write_str("the store does not list this node any more"),
            Self::DataLost => f.write_str("the data on disk is damaged, and the store goes on without it"),
            Self::DataLostAlone => f.write_str("etcd cannot use its data, and no other store is in sight"),
            Self::LaterStore { epoch } => write!(f, "a store of epoch {epoch} is in sight"),
            Self::AddressChanged => f.write_str("this node's address has changed"),
            Self::Steady { voters } => write!(f, "{voters} voters"),
            Self::LeaderWithPrimary => f.write_str("the primary runs here"),
            Self::Removal(evidence) => evidence.fmt(f),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait => f.write_str("waiting"),
            Self::Rest => f.write_str("steady"),
            Self::Hold => f.write_str("held"),
            Self::BeClient => f.write_str("using the voters' etcd"),
            Self::AskPromises { epoch, .. } => write!(f, "calling ballot {epoch}"),
            Self::Found { epoch } => write!(f, "founding the store of epoch {epoch}"),
            Self::Register { epoch, .. } => write!(f, "registering epoch {epoch}"),
            Self::WriteReady { epoch } => write!(f, "declaring epoch {epoch} ready"),
            Self::AddLearner => f.write_str("asking for a place"),
            Self::StartJoined(_) => f.write_str("starting etcd as a learner"),
            Self::Promote(_) => f.write_str("asking to be made a voter"),
            Self::StartWithData => f.write_str("starting etcd with its data"),
            Self::RemoveStaleSelf(id) => write!(f, "removing the stale member {id}"),
            Self::Remove(id) => write!(f, "removing the member {id}"),
            Self::RemoveLearner(id) => write!(f, "removing the learner {id}"),
            Self::MoveLeader(id) => write!(f, "handing raft leadership to {id}"),
            Self::UpdatePeerUrl(_) => f.write_str("updating this node's peer address"),
            Self::QuarantineData => f.write_str("putting etcd's data aside"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, self.reason)
    }
}
