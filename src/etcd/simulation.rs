//! A random search for two READY stores: the pure rules of the ballot against a model of nodes, partitions, crashes,
//! wipes, replacements and a location list that drops living nodes and hides some from some.
//!
//! What is modelled is only what the rules cannot see: messages that are lost, promises that are (or are not) on disk,
//! etcd's quorum. Every question, promise, count, founding and joining is decided by the real functions.

#![expect(
    clippy::fn_params_excessive_bools,
    clippy::struct_excessive_bools,
    clippy::wildcard_enum_match_arm,
    reason = "a model, not the program"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::clock::Moment;
use crate::discovery::Peers;
use crate::etcd::ballot::{count, may_join, may_promise};
use crate::etcd::decide::decide;
use crate::etcd::decision::Action;
use crate::etcd::scenarios::{fresh, ip};
use crate::etcd::view::{Ballot, ClusterKey, Dir, Listing, Probe, Reply, StoreView, View};
use crate::peer::{NodeStatus, Promise, PromiseRequest, StoreFacts, StorePart};
use crate::record::Record;
use crate::types::{Epoch, NodeId, NodeName};

/// A step of the world: longer than any window of the rules in some steps, shorter in most.
const STEPS: usize = 80;

#[derive(Debug, Clone)]
struct Node {
    record: Record,
    ballot: Option<Ballot>,
    /// The store whose data lies on its volume.
    store: Option<usize>,
    listing: Listing,
    up: bool,
    part: u8,
}

#[derive(Debug)]
struct Store {
    document: ClusterKey,
    /// By address and volume: a wiped voter is another volume, and its entry stays until the quorum replaces it.
    voters: BTreeSet<(u8, NodeId)>,
    ready: bool,
    under_r0: bool,
}

struct World {
    rng: StdRng,
    now: Moment,
    nodes: BTreeMap<u8, Node>,
    stores: Vec<Store>,
    listed: BTreeSet<u8>,
    next: u8,
    born: u32,
    size: usize,
}

impl World {
    fn new(seed: u64, size: u8) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            now: Moment(0) + Duration::from_secs(10_000),
            nodes: BTreeMap::new(),
            stores: Vec::new(),
            listed: (1..=size).collect(),
            next: size + 1,
            born: 0,
            size: usize::from(size),
        };
        for n in 1..=size {
            let node = world.blank();
            world.nodes.insert(n, node);
        }
        world
    }

    fn blank(&mut self) -> Node {
        self.born += 1;
        Node {
            record: Record::new(NodeId(format!("volume{}", self.born))),
            ballot: None,
            store: None,
            listing: Listing::default(),
            up: true,
            part: 0,
        }
    }

    fn pick(&mut self) -> u8 {
        let all: Vec<_> = self.nodes.keys().copied().collect();
        all[self.rng.random_range(0..all.len())]
    }

    fn reach(&self, a: u8, b: u8) -> bool {
        match (self.nodes.get(&a), self.nodes.get(&b)) {
            (Some(a), Some(b)) => a.up && b.up && a.part == b.part,
            _ => false,
        }
    }

    /// The voters of a store that run and reach each other, in the largest group.
    fn quorum(&self, store: usize) -> BTreeSet<u8> {
        let mut groups: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
        for (v, volume) in &self.stores[store].voters {
            let runs = |n: &&Node| n.up && n.store == Some(store) && n.record.node_id == *volume;
            if let Some(node) = self.nodes.get(v).filter(runs) {
                groups.entry(node.part).or_default().insert(*v);
            }
        }
        let best = groups.into_values().max_by_key(BTreeSet::len).unwrap_or_default();
        if best.len() > self.stores[store].voters.len() / 2 { best } else { BTreeSet::new() }
    }

    fn store_in_sight(&self, n: u8) -> Option<usize> {
        (0..self.stores.len()).find(|s| self.quorum(*s).iter().any(|v| self.reach(n, *v)))
    }

    /// What this node's list says now: everybody's, with some rows missing now and then.
    fn list(&mut self, partial: bool) -> BTreeSet<IpAddr> {
        let rows: Vec<_> = self.listed.iter().copied().collect();
        rows.into_iter().filter(|_| !partial || self.rng.random_bool(0.8)).map(ip).collect()
    }

    fn status(&self, n: u8, listed: BTreeSet<IpAddr>) -> NodeStatus {
        let node = &self.nodes[&n];
        let in_sight = node.store.filter(|s| self.quorum(*s).contains(&n));
        NodeStatus {
            node_id: node.record.node_id.clone(),
            name: NodeName::from("n"),
            app: "app".to_owned(),
            your_address: None,
            store: StoreFacts {
                epoch: node.record.epoch,
                cluster_uuid: node.record.cluster_uuid.clone(),
                part: if node.store.is_some() { StorePart::Voter } else { StorePart::None },
                quorum: in_sight.is_some(),
                promised: node.record.promised.clone(),
                ..StoreFacts::default()
            },
            data: crate::peer::DataFacts::default(),
            listed,
            list_age_seconds: Some(1),
        }
    }

    fn view(&mut self, n: u8, partial: bool) -> View {
        let addrs = self.list(partial);
        let others: Vec<u8> = self.nodes.keys().copied().filter(|o| *o != n).collect();
        let mut view = fresh();
        view.now = self.now;
        view.address = ip(n);
        view.probes = BTreeMap::new();
        for other in others {
            let probe = if self.reach(n, other) {
                let listed = self.list(partial);
                Probe {
                    status: Some(self.status(other, listed)),
                    answered_at: Some(self.now),
                    dark_since: None,
                }
            } else {
                Probe { dark_since: Some(self.now - Duration::from_secs(700)), ..Probe::default() }
            };
            view.probes.insert(ip(other), probe);
        }
        let node = &self.nodes[&n];
        view.record = node.record.clone();
        view.memory.ballot.clone_from(&node.ballot);
        view.memory.candidate = Some((ip(n), self.now - Duration::from_secs(100)));
        view.listing = node.listing.clone();
        view.peers = Peers {
            addrs,
            fetched_at: Some(self.now),
            answers: self.now.0,
            failing: None,
            desired_size: Some(self.size),
        };
        view.listing.observe(&view.peers, ip(n), &BTreeSet::new());
        // The slow case's windows have passed or not, at random: that is only a matter of patience, never of safety.
        view.listing.changed_at = self.rng.random_bool(0.5).then(|| self.now - Duration::from_secs(100));
        view.local.dir = if node.store.is_some() { Dir::Data } else { Dir::Empty };
        view.store = self.store_in_sight(n).map(|s| self.read(s));
        view
    }

    fn read(&self, store: usize) -> StoreView {
        StoreView {
            read_at: self.now,
            cluster_id: store as u64,
            members: Vec::new(),
            leader: None,
            cluster: Some(self.stores[store].document.clone()),
            ready: self.stores[store].ready.then_some(self.stores[store].document.epoch),
        }
    }

    /// One node looks at the world and does what the rules say.
    fn turn(&mut self, n: u8) {
        if !self.nodes[&n].up || self.nodes[&n].store.is_some() {
            return;
        }
        let partial = self.rng.random_bool(0.3);
        let view = self.view(n, partial);
        if let Some(store) = self.store_in_sight(n) {
            self.join(n, store);
            return;
        }
        match decide(&view).action {
            Action::AskPromises { epoch, electorate } => self.ask(n, epoch, electorate, partial),
            Action::Found { epoch } => self.found(n, epoch, &view),
            _ => {}
        }
        let listing = view.listing;
        self.nodes.get_mut(&n).unwrap().listing = listing;
    }

    fn ask(&mut self, n: u8, epoch: Epoch, electorate: BTreeSet<IpAddr>, partial: bool) {
        let promise = Promise { epoch, seed: self.nodes[&n].record.node_id.clone(), electorate };
        let request = PromiseRequest { promise: promise.clone() };
        let mut replies = BTreeMap::new();
        let asked: Vec<u8> =
            self.nodes.keys().copied().filter(|o| promise.electorate.contains(&ip(*o))).collect();
        for other in asked {
            let lost = other != n && (!self.reach(n, other) || self.rng.random_bool(0.05));
            let reply = if lost { Reply::Silent } else { self.answer(other, &request, partial) };
            // An answer may be lost after the promise was made.
            let reply = if other != n && self.rng.random_bool(0.05) { Reply::Silent } else { reply };
            replies.insert(ip(other), reply);
        }
        let ballot = Ballot { promise, asked_at: self.now, replies };
        self.nodes.get_mut(&n).unwrap().ballot = Some(ballot);
    }

    fn answer(&mut self, n: u8, request: &PromiseRequest, partial: bool) -> Reply {
        let view = self.view(n, partial);
        if let Err(refusal) = may_promise(&view, &request.promise) {
            return Reply::Refused { why: refusal.to_string() };
        }
        let before = view.record.promised.clone();
        self.nodes.get_mut(&n).unwrap().record.promised = Some(request.promise.clone());
        Reply::Promised { facts: Box::new(self.status(n, view.peers.addrs)), before }
    }

    fn found(&mut self, n: u8, epoch: Epoch, view: &View) {
        let ballot = self.nodes[&n].ballot.clone().unwrap();
        let won = count(view, &ballot).unwrap();
        let id = |reply: &Reply| match reply {
            Reply::Promised { facts, .. } => Some(facts.node_id.clone()),
            Reply::Refused { .. } | Reply::Silent => None,
        };
        let everybody = view.peers.addrs.iter().all(|a| won.promisers.contains(a));
        let document = ClusterKey {
            uuid: format!("uuid{}", self.stores.len()),
            epoch,
            seed: self.nodes[&n].record.node_id.clone(),
            promisers: ballot.replies.values().filter_map(id).collect(),
            need: won.need,
        };
        let voters = BTreeSet::from([(n, document.seed.clone())]);
        self.stores.push(Store { document, voters, ready: false, under_r0: everybody });
        self.belong(n, self.stores.len() - 1);
    }

    fn join(&mut self, n: u8, store: usize) {
        let document = &self.stores[store].document;
        if may_join(&self.nodes[&n].record, document.epoch, &document.uuid).is_ok() {
            let volume = self.nodes[&n].record.node_id.clone();
            let voters = &mut self.stores[store].voters;
            voters.retain(|(address, _)| *address != n);
            voters.insert((n, volume));
            self.belong(n, store);
        }
    }

    fn belong(&mut self, n: u8, store: usize) {
        let document = self.stores[store].document.clone();
        let node = self.nodes.get_mut(&n).unwrap();
        node.store = Some(store);
        node.record.epoch = document.epoch;
        node.record.cluster_uuid = Some(document.uuid.clone());
        let counts = |(_, id): &&(u8, NodeId)| document.promisers.contains(id);
        let have = self.stores[store].voters.iter().filter(counts).count();
        self.stores[store].ready |= have >= document.need;
    }

    fn step(&mut self) {
        let wait = if self.rng.random_bool(0.1) { 700 } else { 6 };
        self.now = self.now + Duration::from_secs(wait);
        let n = self.pick();
        match self.rng.random_range(0..100) {
            0..6 => {
                let parts = [1, 1, 2, 3][self.rng.random_range(0..4)];
                for node in self.nodes.values_mut() {
                    node.part = self.rng.random_range(0..parts);
                }
            }
            6..12 => self.nodes.get_mut(&n).unwrap().up ^= true,
            12..15 => {
                // The volume is lost: another identity at the same address.
                let blank = self.blank();
                self.nodes.insert(n, blank);
            }
            15..18 => {
                // Destroyed, and replaced at another address, which may be listed.
                self.nodes.remove(&n);
                self.listed.remove(&n);
                let (blank, new) = (self.blank(), self.next);
                self.next += 1;
                self.nodes.insert(new, blank);
                if self.rng.random_bool(0.8) {
                    self.listed.insert(new);
                }
            }
            18..21 => {
                if !self.listed.remove(&n) {
                    self.listed.insert(n);
                }
            }
            21..24 => self.prune(),
            _ => self.turn(n),
        }
    }

    /// A store with a quorum removes a voter whose machine is gone.
    fn prune(&mut self) {
        for store in 0..self.stores.len() {
            if !self.quorum(store).is_empty() {
                let gone =
                    self.stores[store].voters.iter().find(|(v, _)| !self.nodes.contains_key(v)).cloned();
                if let Some(gone) = gone {
                    self.stores[store].voters.remove(&gone);
                }
            }
        }
    }

    fn ready_with_quorum(&self) -> usize {
        (0..self.stores.len()).filter(|s| self.stores[*s].ready && !self.quorum(*s).is_empty()).count()
    }
}

fn search(size: u8, runs: u64) -> (usize, usize) {
    let (mut founded, mut ready) = (0, 0);
    for seed in 0..runs {
        let mut world = World::new(seed * 31 + u64::from(size), size);
        for _ in 0..STEPS {
            world.step();
            assert!(world.ready_with_quorum() <= 1, "two READY stores: size {size}, seed {seed}");
        }
        assert!(
            world.stores.iter().all(|s| s.under_r0),
            "a founding without everybody: size {size}, seed {seed}"
        );
        founded += world.stores.len();
        ready += world.stores.iter().filter(|s| s.ready).count();
    }
    (founded, ready)
}

#[test]
fn no_two_ready_stores() {
    for (size, runs) in [(1, 400), (3, 2000), (5, 1500)] {
        let (founded, ready) = search(size, runs);
        // The search must reach what it is about.
        let runs = usize::try_from(runs).unwrap();
        assert!(founded > runs / 5, "size {size}: only {founded} stores founded");
        assert!(ready > runs / 8, "size {size}: only {ready} stores ready");
    }
}
