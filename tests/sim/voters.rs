//! The model of etcd: stores that were founded, their members, who leads them and when they answer; and what an action of
//! `etcd::decide` does to them.

use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::etcd::ballot::may_promise;
use pgherd::etcd::decision::Action;
use pgherd::etcd::view::{Ballot, ClusterKey, Joined, Member, MemberId, Reply, StoreView, Vote};
use pgherd::peer::Promise;
use pgherd::types::Epoch;

use crate::agent::address;
use crate::etcd::{node_at, url};
use crate::world::World;

/// An election takes so long.
const ELECTION: u64 = 1_200_000;

/// What has stood for so long has been seen by everybody who looks.
const SEEN: u64 = 10_000_000;

/// A store that somebody has founded.
pub(crate) struct Founded {
    pub(crate) cluster: Option<ClusterKey>,
    ready: Option<Epoch>,
    members: Vec<Member>,
    leader: Option<MemberId>,
    /// From when on the leader answers.
    elected: u64,
}

impl Founded {
    pub(crate) fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.iter().find(|m| m.id == id)
    }

    pub(crate) fn read(&self, store: usize, now: Moment) -> StoreView {
        StoreView {
            read_at: now,
            cluster_id: store as u64,
            members: self.members.clone(),
            leader: self.leader,
            cluster: self.cluster.clone(),
            ready: self.ready,
        }
    }

    fn voters(&self) -> Vec<(MemberId, usize)> {
        let voters = self.members.iter().filter(|m| m.is_voter());
        voters.filter_map(|m| Some((m.id, node_at(m.address?)))).collect()
    }
}

impl World {
    /// Whether etcd's process runs on this node, whatever its agent does.
    pub(crate) fn etcd_runs(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.etcd.process.is_alive() && !node.off && !node.paused
    }

    /// Whether that member runs where it is listed.
    fn member_runs(&self, store: usize, (id, n): (MemberId, usize)) -> bool {
        self.etcd_runs(n) && self.nodes[n].etcd.data == Some((store, id))
    }

    /// The voters that this one reaches, itself included, if it runs.
    fn reached_by(&self, store: usize, from: (MemberId, usize)) -> usize {
        let voters = self.founded[store].voters();
        let reached = |to: &&(MemberId, usize)| to.1 == from.1 || self.both_ways(from.1, to.1);
        let runs = self.member_runs(store, from);
        voters.iter().filter(reached).filter(|v| runs && self.member_runs(store, **v)).count()
    }

    fn could_lead(&self, store: usize) -> Option<(MemberId, usize)> {
        let voters = self.founded[store].voters();
        let most = voters.len() / 2;
        let old = self.founded[store].leader;
        let able: Vec<_> = voters.into_iter().filter(|v| self.reached_by(store, *v) > most).collect();
        able.iter().copied().find(|(id, _)| Some(*id) == old).or_else(|| able.first().copied())
    }

    /// Whether the store answers this node: a majority of its voters runs, is connected, and one of them can be reached.
    pub(crate) fn store_serves(&mut self, n: usize, store: usize) -> bool {
        let leads = self.could_lead(store);
        let id = leads.map(|(id, _)| id);
        if id.is_some() && id != self.founded[store].leader {
            self.founded[store].leader = id;
            self.founded[store].elected = self.now + ELECTION;
            if self.ready_store() == Some(store) {
                self.store.restart_leases(self.now + ELECTION);
            }
        }
        let Some((_, leader)) = leads.filter(|_| self.now >= self.founded[store].elected) else {
            return false;
        };
        let voters = self.founded[store].voters();
        voters.into_iter().any(|v| {
            let near = v.1 == n || self.both_ways(n, v.1);
            near && self.member_runs(store, v) && (v.1 == leader || self.both_ways(v.1, leader))
        })
    }

    /// The one that the cluster's keys are in.
    pub(crate) fn ready_store(&self) -> Option<usize> {
        self.founded.iter().position(|store| store.ready.is_some())
    }

    /// What is not as it should be in the calm: all the voters that are wanted run, and nobody else is listed.
    pub(crate) fn store_unwell(&self) -> Option<String> {
        let Some(store) = self.ready_store() else { return Some("no store is READY".into()) };
        let members = &self.founded[store].members;
        let gone = |m: &&Member| {
            !m.is_voter() || m.address.is_none_or(|a| !self.member_runs(store, (m.id, node_at(a))))
        };
        if let Some(member) = members.iter().find(gone) {
            return Some(format!("the store lists {} at {:?}, no running voter", member.id, member.address));
        }
        let wanted = self.nodes[0].etcd.view.voters_wanted();
        (members.len() != wanted).then(|| format!("the store has {} voters of {wanted}", members.len()))
    }

    /// Whether the store lives on without the data of this node.
    pub(crate) fn store_can_miss(&self, n: usize) -> bool {
        let Some(store) = self.ready_store() else { return false };
        let voters = self.founded[store].voters();
        let held = |(id, v): &&(MemberId, usize)| *v != n && self.nodes[*v].etcd.data == Some((store, *id));
        voters.iter().filter(held).count() > voters.len() / 2
    }

    pub(crate) fn change_store(&mut self, n: usize, action: Action) {
        match action {
            Action::Wait | Action::Rest | Action::Hold | Action::BeClient | Action::UpdatePeerUrl(_) => {}
            Action::AskPromises { epoch, electorate } => {
                let seed = self.nodes[n].etcd.view.record.node_id.clone();
                self.ask_promises(n, Promise { epoch, seed, electorate });
            }
            Action::Found { .. } => self.found(n),
            Action::StartWithData => self.start_etcd(n),
            Action::StartJoined(joined) => {
                let store = self.founded.iter().position(|s| s.member(joined.member_id).is_some());
                self.nodes[n].etcd.data = store.map(|store| (store, joined.member_id));
                self.start_etcd(n);
            }
            Action::QuarantineData => self.quarantine_etcd(n),
            change @ (Action::Register { .. }
            | Action::WriteReady { .. }
            | Action::AddLearner
            | Action::Promote(_)
            | Action::RemoveStaleSelf(_)
            | Action::Remove(_)
            | Action::RemoveLearner(_)
            | Action::MoveLeader(_)) => self.write_store(n, change),
        }
    }

    fn ask_promises(&mut self, n: usize, promise: Promise) {
        let asked_at = self.clock(n);
        let mut replies = std::collections::BTreeMap::new();
        for to in promise.electorate.clone() {
            let other = node_at(to);
            let there = other == n || (self.answers(n, other) && !self.rng.chance(30));
            let reply = if there { self.promise_store(other, &promise) } else { Reply::Silent };
            // An answer may be lost after the promise was made.
            let lost = other != n && self.rng.chance(30);
            replies.insert(to, if lost { Reply::Silent } else { reply });
        }
        self.nodes[n].etcd.view.memory.ballot = Some(Ballot { promise, asked_at, replies });
    }

    fn promise_store(&mut self, n: usize, promise: &Promise) -> Reply {
        let now = self.clock(n);
        let view = &mut self.nodes[n].etcd.view;
        view.now = now;
        if let Err(refusal) = may_promise(view, promise) {
            return Reply::Refused { why: refusal.to_string() };
        }
        let before = view.record.promised.replace(promise.clone());
        Reply::Promised { facts: Box::new(self.node_status(n)), before }
    }

    fn next_member(&mut self, n: usize, vote: Vote) -> Member {
        self.last_member += 1;
        let name = if vote == Vote::Voter {
            self.nodes[n].etcd.view.record.node_id.0.clone()
        } else {
            String::new()
        };
        Member {
            id: MemberId(self.last_member),
            name,
            peer_urls: vec![url(n)],
            address: Some(address(n)),
            vote,
        }
    }

    fn found(&mut self, n: usize) {
        let member = self.next_member(n, Vote::Voter);
        let (id, elected) = (member.id, self.now + 300_000);
        self.founded.push(Founded {
            cluster: None,
            ready: None,
            leader: Some(id),
            members: vec![member],
            elected,
        });
        self.nodes[n].etcd.data = Some((self.founded.len() - 1, id));
        self.log(n, || "founds a store".into());
        self.start_etcd(n);
    }

    /// The member that starts tells its name, if it is one.
    pub(crate) fn names_member(&mut self, store: usize, own: MemberId, name: String) -> bool {
        let entry = self.founded[store].members.iter_mut().find(|m| m.id == own);
        let known = entry.is_some();
        entry.into_iter().for_each(|member| member.name.clone_from(&name));
        known
    }

    /// A change that the store itself takes, if it answers, and may refuse.
    #[expect(clippy::too_many_lines, reason = "one arm for each change")]
    fn write_store(&mut self, n: usize, change: Action) {
        let now = self.clock(n);
        let store = self.nodes[n].etcd.view.store.as_ref().map(|s| s.cluster_id as usize);
        let Some(store) = store.filter(|store| self.store_serves(n, *store)) else {
            return self.be_patient(n);
        };
        self.log(n, || format!("asks the store: {change}"));
        match change {
            Action::Register { epoch, promisers, need } => {
                let ids =
                    promisers.into_iter().map(|a| self.nodes[node_at(a)].etcd.view.record.node_id.clone());
                let (uuid, promisers) = (format!("store-{store}"), ids.collect());
                let seed = self.nodes[n].etcd.view.record.node_id.clone();
                self.founded[store].cluster.get_or_insert(ClusterKey { uuid, epoch, seed, promisers, need });
            }
            Action::WriteReady { epoch } => {
                self.founded[store].ready = Some(epoch);
                if self.founded.iter().filter(|s| s.ready.is_some()).count() > 1 {
                    self.violate("two-stores", format!("n{n} opens a second store"));
                }
            }
            Action::AddLearner => {
                let wanted = self.nodes[n].etcd.view.voters_wanted();
                let members = &self.founded[store].members;
                if members.len() >= wanted || members.iter().any(|m| !m.is_voter()) {
                    return self.be_patient(n);
                }
                let member = self.next_member(n, Vote::Learner);
                let joined = Joined { member_id: member.id, initial_cluster: url(n) };
                self.founded[store].members.push(member);
                self.nodes[n].etcd.view.local.joined = Some(joined);
            }
            Action::Promote(id) => {
                let leader = self.could_lead(store);
                let there = leader.is_some_and(|(_, l)| l == n || self.both_ways(l, n));
                if !there || !self.member_runs(store, (id, n)) {
                    return self.be_patient(n);
                }
                let member = self.founded[store].members.iter_mut().find(|m| m.id == id);
                member.into_iter().for_each(|m| m.vote = Vote::Voter);
                self.nodes[n].etcd.view.local.joined = None;
            }
            Action::RemoveStaleSelf(id) | Action::Remove(id) | Action::RemoveLearner(id) => {
                self.check_removal(n, (store, id));
                self.founded[store].members.retain(|m| m.id != id);
                self.nodes[n].etcd.view.memory.changed_at = Some(now);
            }
            Action::MoveLeader(to) => {
                self.nodes[n].etcd.view.memory.moved_at = Some(now);
                self.founded[store].leader = Some(to);
                self.founded[store].elected = self.now + 50_000;
            }
            Action::Wait
            | Action::Rest
            | Action::Hold
            | Action::BeClient
            | Action::AskPromises { .. }
            | Action::Found { .. }
            | Action::StartJoined(_)
            | Action::StartWithData
            | Action::UpdatePeerUrl(_)
            | Action::QuarantineData => {}
        }
        if self.could_lead(store).is_none() {
            self.violate("etcd-below-quorum", format!("n{n} has taken the store's quorum"));
        }
    }

    /// A schedule says that the store has its quorum now.
    pub(crate) fn check_store_answers(&mut self) {
        let store = self.ready_store();
        if store.is_none_or(|store| self.could_lead(store).is_none()) {
            self.violate(
                "store-silent",
                "the store has no quorum where the schedule says that it has".into(),
            );
        }
    }

    /// Whoever runs and answers, and has done so for long enough to be seen, is no member to remove.
    fn check_removal(&mut self, n: usize, (store, id): (usize, MemberId)) {
        let members = self.founded[store].voters();
        let Some(member) = members.into_iter().find(|(of, _)| *of == id) else { return };
        let steady = self.now > self.last_fault + SEEN;
        if steady && member.1 != n && self.member_runs(store, member) && self.answers(n, member.1) {
            self.violate("etcd-live-removed", format!("n{n} removes n{}, which is alive", member.1));
        }
    }

    pub(crate) fn be_patient(&mut self, n: usize) {
        let until = self.clock(n) + Duration::from_secs(1);
        self.nodes[n].etcd.view.memory.patience = Some(until);
    }
}
