//! The ballot that founds a store, as pure rules: when to call it, when to promise, when it has been won.
//!
//! Safety rests on four sentences. A node promises an epoch to one seed only, on disk, before it says so. A seed
//! founds only when a majority of everybody that anybody has heard of promised, and (since nobody knows a cluster)
//! every listed node is among them and has no data. A promise whose outcome is unknown binds until its whole
//! electorate or its seed is at hand. Nobody may lead before enough promisers belong to the founded store.
//!
//! Absent: recovery of a store whose majority is lost, and cold start over existing data. A node that remembers a
//! cluster neither calls a ballot nor promises: it holds, and says why.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::clock::Moment;
use crate::etcd::decision::{Action, Decision, Reason};
use crate::etcd::view::{Ballot, Dir, LIST_FRESH, Reply, View};
use crate::peer::{DataFacts, NodeStatus, Promise, StoreFacts, StorePart};
use crate::record::Record;
use crate::types::Epoch;

/// How long the list must have stood still before an incomplete or overfull one is believed.
pub const STABLE_FOR: Duration = Duration::from_secs(60);

/// Time between two ballots of one candidate, and between the rounds that confirm a candidate.
pub const ROUND: Duration = Duration::from_secs(10);

/// How long a candidate must have been the best of all that answer (three rounds), in the slow case.
pub const CANDIDATE_FOR: Duration = Duration::from_secs(20);

/// How long the promises of a ballot are good for a founding: after this the world may have moved on.
pub const BALLOT_FRESH: Duration = Duration::from_secs(30);

/// How long an address of an old electorate must have been dark and delisted to count as gone.
pub const GONE_AFTER: Duration = Duration::from_secs(600);

/// Why a promise is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is bound by a later ballot.
    #[error("bound to ballot {0}")]
    Later(Epoch),
    /// It has promised this ballot to somebody else.
    #[error("ballot {0} is promised to another seed")]
    OtherSeed(Epoch),
    /// There is a store with a quorum.
    #[error("a store with a quorum is in sight")]
    Quorum,
    /// It belongs, or has belonged, to a cluster.
    #[error("this node remembers a cluster")]
    KnowsCluster,
    /// Its etcd runs or has data.
    #[error("this node has etcd data")]
    EtcdData,
}

/// Whether this node may make that promise.
///
/// # Errors
/// It may not, and why.
pub fn may_promise(view: &View, asked: &Promise) -> Result<(), Refusal> {
    if let Some(bound) = &view.record.promised {
        if asked.epoch < bound.epoch {
            return Err(Refusal::Later(bound.epoch));
        }
        if asked.epoch == bound.epoch && asked.seed != bound.seed {
            return Err(Refusal::OtherSeed(bound.epoch));
        }
    }
    if asked.epoch <= view.record.epoch {
        return Err(Refusal::Later(view.record.epoch));
    }
    if view.sees_quorum() {
        return Err(Refusal::Quorum);
    }
    if view.local.dir == Dir::Data {
        return Err(Refusal::EtcdData);
    }
    if remembers(&view.record, &view.data) {
        return Err(Refusal::KnowsCluster);
    }
    Ok(())
}

/// Whether this volume has ever belonged to a cluster.
pub fn remembers(record: &Record, data: &DataFacts) -> bool {
    data.system_id.is_some()
        || data.unreadable.is_some()
        || record.system_id.is_some()
        || record.cluster_uuid.is_some()
}

/// Whether a node's own words speak of a cluster.
pub fn speaks_of_a_cluster(status: &NodeStatus) -> bool {
    status.data.system_id.is_some() || status.data.unreadable.is_some() || knows_store(&status.store)
}

/// A peer with etcd data brings its store back by itself; one that only remembers does not.
fn remembering(address: IpAddr, status: &NodeStatus) -> Reason {
    match status.store.part {
        StorePart::Data | StorePart::Learner | StorePart::Voter => Reason::PeerHasStore(address),
        StorePart::None | StorePart::Client => Reason::PeerRemembers(address),
    }
}

fn knows_store(store: &StoreFacts) -> bool {
    let part = match store.part {
        StorePart::None => false,
        StorePart::Data | StorePart::Learner | StorePart::Voter | StorePart::Client => true,
    };
    part || store.cluster_uuid.is_some() || store.epoch > Epoch(0)
}

/// What to do without a store, without data and without any memory of a cluster.
pub fn decide(view: &View) -> Decision {
    match plan(view) {
        Ok(action) => action,
        Err(reason) => Decision::hold_or_wait(reason),
    }
}

fn plan(view: &View) -> Result<Decision, Reason> {
    if let Some(won) = outcome(view) {
        return won;
    }
    let electorate = electorate(view)?;
    let nodes = everyone_is_empty(view, &electorate)?;
    let candidate = candidate(view);
    if candidate != view.address {
        return Err(Reason::OtherCandidate(candidate));
    }
    if let Some(last) = &view.memory.ballot {
        let spent = view.now.since(last.asked_at);
        if spent < ROUND {
            return Err(Reason::BallotPause { left: ROUND.saturating_sub(spent) });
        }
    }
    if !is_quick(view, &electorate, &nodes) {
        settled(view)?;
    }
    let epoch = next_epoch(view, &nodes);
    Ok(Decision::new(Action::AskPromises { epoch, electorate }, Reason::BallotCalled))
}

/// Who would be asked: the list. This node must be on it, and the list must be fresh. A cluster of one needs no list.
fn electorate(view: &View) -> Result<BTreeSet<IpAddr>, Reason> {
    let me = BTreeSet::from([view.address]);
    if view.desired() == 1 && view.peers.addrs.is_subset(&me) {
        return Ok(me);
    }
    let Some(fetched) = view.peers.fetched_at else {
        return Err(Reason::NoList);
    };
    if view.now.since(fetched) > LIST_FRESH {
        return Err(Reason::StaleList { age: view.now.since(fetched) });
    }
    if !view.peers.addrs.contains(&view.address) {
        return Err(Reason::NotListed);
    }
    Ok(view.peers.addrs.clone())
}

/// Every listed node answers and knows of no cluster; also the check that makes a ballot worth calling: promises that
/// cannot lead to a founding only bind nodes.
fn everyone_is_empty<'a>(
    view: &'a View,
    electorate: &BTreeSet<IpAddr>,
) -> Result<Vec<&'a NodeStatus>, Reason> {
    if let Some((address, status)) = view.answering().find(|(_, s)| speaks_of_a_cluster(s)) {
        return Err(remembering(address, status));
    }
    let mut nodes = Vec::new();
    for address in electorate.iter().filter(|a| **a != view.address) {
        nodes.push(view.answers(*address).ok_or(Reason::Silent(*address))?);
    }
    Ok(nodes)
}

/// The best candidate of all that answer: all are equal (no data), so the lowest address.
pub fn candidate(view: &View) -> IpAddr {
    let listed = |a: &IpAddr| view.peers.addrs.contains(a);
    let others = view.answering().map(|(a, _)| a).filter(listed);
    others.chain([view.address]).min().unwrap_or(view.address)
}

/// Nothing is in doubt: the list has the wanted size and every node has the same list.
fn is_quick(view: &View, electorate: &BTreeSet<IpAddr>, nodes: &[&NodeStatus]) -> bool {
    electorate.len() == view.desired() && nodes.iter().all(|n| n.listed == *electorate)
}

fn settled(view: &View) -> Result<(), Reason> {
    let left = |since: Option<Moment>, needed: Duration| {
        since.map_or(needed, |s| needed.saturating_sub(view.now.since(s)))
    };
    let candidate_since = view.memory.candidate.filter(|(a, _)| *a == view.address).map(|(_, s)| s);
    let left = left(view.listing.changed_at, STABLE_FOR).max(left(candidate_since, CANDIDATE_FOR));
    if left > Duration::ZERO {
        return Err(Reason::ListUnsettled { listed: view.peers.addrs.len(), wanted: view.desired(), left });
    }
    Ok(())
}

/// One more than any epoch that anybody in sight has heard of.
fn next_epoch(view: &View, nodes: &[&NodeStatus]) -> Epoch {
    let promised = |p: &Option<Promise>| p.as_ref().map_or(0, |p| p.epoch.0);
    let heard = nodes.iter().map(|n| n.store.epoch.0.max(promised(&n.store.promised)));
    let own = view.record.epoch.0.max(promised(&view.record.promised));
    Epoch(heard.fold(own, u64::max).saturating_add(1))
}

/// The result of the last ballot, while it is fresh and this node is still bound to it. `None` once it is spent.
fn outcome(view: &View) -> Option<Result<Decision, Reason>> {
    let ballot = view.memory.ballot.as_ref()?;
    let spent = view.now.since(ballot.asked_at) > BALLOT_FRESH;
    if spent || view.record.promised.as_ref() != Some(&ballot.promise) {
        return None;
    }
    match count(view, ballot) {
        Ok(_) => Some(Ok(Decision::new(Action::Found { epoch: ballot.promise.epoch }, Reason::BallotWon))),
        Err(reason) if view.now.since(ballot.asked_at) < ROUND => Some(Err(reason)),
        Err(_) => None,
    }
}

/// What a won ballot means for the store it founds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Won {
    /// Who promised, by address.
    pub promisers: BTreeSet<IpAddr>,
    /// How many of them must belong to the store before READY.
    pub need: usize,
}

/// Counts a ballot by the rules R0, R1, R2b.
///
/// # Errors
/// It is not won, and what is missing.
pub fn count(view: &View, ballot: &Ballot) -> Result<Won, Reason> {
    let promised = |r: &Reply| match r {
        Reply::Promised { .. } => true,
        Reply::Refused { .. } | Reply::Silent => false,
    };
    let promisers: BTreeSet<IpAddr> =
        ballot.replies.iter().filter(|(_, r)| promised(r)).map(|(a, _)| *a).collect();
    let mut heard_of: BTreeSet<IpAddr> = view.peers.addrs.union(&promisers).copied().collect();
    let mut pending = Vec::new();
    let mut nodes = BTreeSet::new();
    for (address, reply) in &ballot.replies {
        match reply {
            Reply::Promised { facts, before } => {
                if speaks_of_a_cluster(facts) {
                    return Err(remembering(*address, facts));
                }
                heard_of.extend(facts.listed.iter());
                nodes.insert(facts.node_id.clone());
                pending.extend(before.iter().filter(|b| b.epoch < ballot.promise.epoch));
            }
            Reply::Refused { why } => return Err(Reason::Refused { by: *address, why: why.clone() }),
            Reply::Silent => {}
        }
    }
    let majority = heard_of.len().max(view.desired()) / 2 + 1; // R1
    if promisers.len() < majority || !promisers.contains(&view.address) {
        return Err(Reason::TooFewPromises { have: promisers.len(), need: majority });
    }
    if let Some(missing) = heard_of.difference(&promisers).next() {
        return Err(Reason::Silent(*missing)); // R0
    }
    for old in pending {
        let open = |a: &&IpAddr| !promisers.contains(*a) && !is_gone(view, **a);
        if let Some(missing) = old.electorate.iter().find(open).filter(|_| !nodes.contains(&old.seed)) {
            return Err(Reason::OldBallot { epoch: old.epoch, missing: *missing }); // R2b
        }
    }
    Ok(Won { promisers, need: majority })
}

/// Delisted and dark for so long that nobody can be there any more.
fn is_gone(view: &View, address: IpAddr) -> bool {
    let dark = view.probes.get(&address).and_then(|p| p.dark_since);
    let listed_at = view.listing.listed_at.get(&address);
    let delisted = listed_at.is_none_or(|at| view.now.since(*at) >= GONE_AFTER);
    delisted && dark.is_some_and(|since| view.now.since(since) >= GONE_AFTER)
}

/// Whether this node may belong to the store of that epoch and identity (S2: never to one older than its promise).
///
/// # Errors
/// It may not, and why.
pub fn may_join(record: &Record, epoch: Epoch, uuid: &str) -> Result<(), Reason> {
    let bound = record.promised.as_ref().map_or(Epoch(0), |p| p.epoch).max(record.epoch);
    if epoch < bound {
        return Err(Reason::OlderStore { epoch, bound });
    }
    match &record.cluster_uuid {
        Some(own) if own != uuid => Err(Reason::TwoClusters { ours: own.clone(), theirs: uuid.to_owned() }),
        Some(_) | None => Ok(()),
    }
}
