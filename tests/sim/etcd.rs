//! The etcd of each node under the real `etcd::decide`: what its agent sees, remembers and publishes (`etcd::agent`). What a store
//! does with the actions is in `voters`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::discovery::Peers;
use pgherd::etcd::ballot;
use pgherd::etcd::decide::decide;
use pgherd::etcd::decision::{Action, Decision};
use pgherd::etcd::view::{Dir, Listing, Local, MemberId, Memory, PrimaryHere, Probe, StoreView, View, Vote};
use pgherd::peer::{DataFacts, NodeStatus, StoreFacts, StorePart, Voter};
use pgherd::record::Record;
use pgherd::supervisor::UnitState;
use pgherd::types::NodeId;

use crate::agent::address;
use crate::etcd_process::Process;
use crate::world::{Ev, World, name};

/// `PRUNE_AFTER`: short, for a run is.
const PRUNE_AFTER: Duration = Duration::from_secs(15);
/// How often the location list is asked.
const POLL: Duration = Duration::from_secs(5);
/// Between two rounds of questions, as `etcd::agent` spaces them: while there is no store, while somebody looks gone, else.
const EAGER: Duration = Duration::from_millis(200);
const ALERT: Duration = Duration::from_secs(4);
const STEADY: Duration = Duration::from_secs(60);

/// The etcd of one node.
pub(crate) struct Here {
    /// On its volume: the store and its number there.
    pub(crate) data: Option<(usize, MemberId)>,
    pub(crate) process: Process,
    pub(crate) view: View,
    pub(crate) facts: StoreFacts,
    probed: Option<Moment>,
    last: String,
}

impl Here {
    pub(crate) fn new(n: usize, generation: u32, nodes: usize) -> Self {
        let id = NodeId(format!("{:016x}", n * 16 + generation as usize));
        Self {
            data: None,
            process: Process::new(),
            view: view(n, Record::new(id), nodes),
            facts: StoreFacts::default(),
            probed: None,
            last: String::new(),
        }
    }
}

pub(crate) fn url(n: usize) -> String {
    format!("https://{}:2380", address(n))
}

/// A life that begins: it has its record and nothing else.
fn view(n: usize, record: Record, nodes: usize) -> View {
    View {
        now: Moment(0),
        address: address(n),
        peer_url: url(n),
        prune_after: PRUNE_AFTER,
        record,
        data: DataFacts::default(),
        primary: PrimaryHere::No,
        peers: Peers { desired_size: Some(nodes), ..Peers::default() },
        listing: Listing::default(),
        probes: BTreeMap::new(),
        local: Local::new(UnitState::Down { last: None }, Dir::Empty),
        store: None,
        memory: Memory::default(),
    }
}

impl World {
    pub(crate) fn etcd_boots(&mut self, n: usize) {
        let nodes = self.schedule.nodes;
        let here = &mut self.nodes[n].etcd;
        let record = here.view.record.clone();
        let facts = StoreFacts { promised: record.promised.clone(), ..StoreFacts::default() };
        *here = Here { facts, view: view(n, record, nodes), data: here.data, ..Here::new(n, 0, nodes) };
        let inc = self.nodes[n].agent.inc;
        self.at(10_000, Ev::Etcd(n, inc));
    }

    /// One tick of the agent: looks, decides, does it.
    pub(crate) fn etcd_tick(&mut self, n: usize, inc: u64) {
        if !self.current(n, inc) {
            return;
        }
        self.look_here(n);
        if self.probe_is_due(n) {
            self.probe(n);
        }
        self.read_store(n);
        self.look_here(n);
        let decision = decide(&self.nodes[n].etcd.view);
        self.adopt(n, &decision);
        self.nodes[n].etcd.facts = self.store_facts(n, &decision);
        let said = decision.reason.to_string();
        let kind: String = said.chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.timeline.is_some() && self.nodes[n].etcd.last != kind {
            self.nodes[n].etcd.last = kind;
            self.log(n, || format!("etcd: {said}"));
        }
        let settled = matches!(decision.action, Action::Rest | Action::BeClient);
        let view = &self.nodes[n].etcd.view;
        let full = view
            .fresh_store()
            .is_some_and(|s| s.ready.is_some() && s.voters().count() >= view.voters_wanted());
        let alert = !view.listing.absent.is_empty();
        let pause = match (settled, full, alert) {
            (true, true, false) => 10_000_000,
            (true, true, true) => 4_000_000,
            (true, false, _) => 1_000_000,
            (false, ..) => self.rng.range(200_000, 1_000_000),
        };
        self.change_store(n, decision.action);
        self.at(pause, Ev::Etcd(n, inc));
    }

    fn look_here(&mut self, n: usize) {
        let (now, primary) = (self.clock(n), self.is_primary(n));
        let listed =
            self.api_up.then(|| self.members().filter(|i| !self.hidden.contains(i)).map(address).collect());
        let removed =
            self.nodes[n].etcd.data.is_some_and(|(store, id)| self.founded[store].member(id).is_none());
        let data = self.nodes[n].agent.data_page;
        if removed {
            self.etcd_leaves(n);
        }
        self.look_at_etcd(n);
        let here = &mut self.nodes[n].etcd;
        let view = &mut here.view;
        view.now = now;
        view.data = DataFacts { system_id: data, ..DataFacts::default() };
        view.primary = if primary { PrimaryHere::Yes } else { PrimaryHere::No };
        let due = view.peers.fetched_at.is_none_or(|at| now.since(at) >= POLL);
        if let Some(addrs) = listed.filter(|_| due) {
            let answers = view.peers.answers + 1;
            view.peers = Peers { addrs, fetched_at: Some(now), answers, ..view.peers.clone() };
        }
        let members = view.store.iter().flat_map(|s| s.members.iter().filter_map(|m| m.address)).collect();
        view.listing.observe(&view.peers, view.address, &members);
        let best = ballot::candidate(view);
        if view.memory.candidate.is_none_or(|(a, _)| a != best) {
            view.memory.candidate = Some((best, now));
        }
        view.local.dir = if here.data.is_some() { Dir::Data } else { Dir::Empty };
    }

    fn probe_is_due(&self, n: usize) -> bool {
        let here = &self.nodes[n].etcd;
        let view = &here.view;
        let Some(last) = here.probed else { return true };
        let alert = view.probes.values().any(|p| p.dark_since.is_some()) || !view.listing.absent.is_empty();
        let leads = |s: &StoreView| s.leader.is_some() && s.leader == view.own_member(s).map(|m| m.id);
        let moves = view.primary == PrimaryHere::Yes && view.fresh_store().is_some_and(leads);
        let every = match view.fresh_store().and_then(|s| s.ready) {
            None => EAGER,
            Some(_) if alert || moves => ALERT,
            Some(_) => STEADY,
        };
        view.now.since(last) >= every
    }

    /// Whether the agent of this node answers another's question.
    pub(crate) fn answers(&self, n: usize, other: usize) -> bool {
        let node = &self.nodes[other];
        self.both_ways(n, other) && node.agent.alive && !node.frozen && !node.paused
    }

    fn probe(&mut self, n: usize) {
        let now = self.clock(n);
        for other in self.members().filter(|other| *other != n) {
            let status = self.answers(n, other).then(|| self.node_status(other));
            let open = self.both_ways(n, other) && self.etcd_runs(other);
            let probe = self.nodes[n].etcd.view.probes.entry(address(other)).or_default();
            match status {
                Some(status) => {
                    *probe = Probe { status: Some(status), answered_at: Some(now), dark_since: None }
                }
                None if open => probe.dark_since = None,
                None => probe.dark_since = probe.dark_since.or(Some(now)),
            }
        }
        let here = &mut self.nodes[n].etcd;
        (here.probed, here.view.memory.probed_at) = (Some(now), Some(now));
    }

    /// Through the etcd here, or a voter that somebody vouches for.
    fn read_store(&mut self, n: usize) {
        let now = self.clock(n);
        let known = |store: &usize| {
            let here = &self.nodes[n].etcd;
            let runs =
                |v: &Voter| self.nodes[node_at(v.address)].etcd.data.is_some_and(|(of, _)| of == *store);
            let own = here.view.local.unit.running_since().is_some()
                && here.data.is_some_and(|(of, _)| of == *store);
            let vouched =
                here.view.answering().filter(|(_, s)| s.store.quorum).flat_map(|(_, s)| &s.store.voters);
            own || vouched.chain(&here.view.record.voters).any(runs)
        };
        let stores: Vec<usize> = (0..self.founded.len()).filter(known).collect();
        let found = stores.into_iter().find(|store| self.store_serves(n, *store));
        let read = found.map(|store| self.founded[store].read(store, now));
        let here = &mut self.nodes[n].etcd;
        let view = &mut here.view;
        let Some(store) = read else {
            let since = view.local.silent_since.or(Some(now));
            view.local.silent_since = since.filter(|_| view.local.unit.running_since().is_some());
            return;
        };
        let seen = &mut view.memory.members;
        seen.retain(|id, _| store.member(*id).is_some());
        for member in &store.members {
            let entry = seen.entry(member.id).or_insert((now, member.vote));
            if entry.1 != member.vote {
                *entry = (now, member.vote);
            }
        }
        view.local.silent_since = None;
        view.store = Some(store);
    }

    /// What belongs is written down.
    fn adopt(&mut self, n: usize, decision: &Decision) {
        let belongs = matches!(
            decision.action,
            Action::Rest
                | Action::BeClient
                | Action::StartJoined(_)
                | Action::Promote(_)
                | Action::Remove(_)
                | Action::MoveLeader(_)
                | Action::UpdatePeerUrl(_)
        );
        let view = &mut self.nodes[n].etcd.view;
        let Some(store) = view.fresh_store().filter(|_| belongs) else { return };
        let Some(cluster) = store.cluster.clone() else { return };
        let voters = store.voter_list();
        let record = &mut view.record;
        (record.epoch, record.cluster_uuid, record.voters) = (cluster.epoch, Some(cluster.uuid), voters);
    }

    fn store_facts(&self, n: usize, decision: &Decision) -> StoreFacts {
        let here = &self.nodes[n].etcd;
        let view = &here.view;
        let store = view.fresh_store();
        let own = store.and_then(|s| view.own_member(s));
        let registered = store.filter(|s| s.cluster.is_some());
        let epoch =
            own.and(registered).and_then(|s| s.cluster.as_ref()).map_or(view.record.epoch, |c| c.epoch);
        StoreFacts {
            epoch,
            cluster_uuid: view.record.cluster_uuid.clone(),
            part: match (view.local.unit.running_since(), own.map(|m| m.vote), view.local.dir) {
                (Some(_), Some(Vote::Voter), _) => StorePart::Voter,
                (Some(_), Some(Vote::Learner), _) => StorePart::Learner,
                (Some(_), None, _) | (None, _, Dir::Data) => StorePart::Data,
                (None, _, Dir::Empty) if decision.action == Action::BeClient => StorePart::Client,
                (None, _, Dir::Empty) => StorePart::None,
            },
            quorum: registered.is_some(),
            promised: view.record.promised.clone(),
            voters: registered.map_or_else(|| view.record.voters.clone(), StoreView::voter_list),
            ..StoreFacts::default()
        }
    }

    /// A node in its own words.
    pub(crate) fn node_status(&self, n: usize) -> NodeStatus {
        let here = &self.nodes[n].etcd;
        let view = &here.view;
        let promised = view.record.promised.clone();
        NodeStatus {
            node_id: view.record.node_id.clone(),
            name: name(n),
            app: "app".to_owned(),
            your_address: None,
            store: StoreFacts { promised, ..here.facts.clone() },
            data: DataFacts { system_id: self.nodes[n].agent.data_page, ..DataFacts::default() },
            listed: view.peers.addrs.clone(),
            list_age_seconds: view.peers.fetched_at.map(|at| self.clock(n).since(at).as_secs()),
        }
    }
}

/// The node at this address.
pub(crate) fn node_at(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(v4) => v4.octets()[3] as usize,
        IpAddr::V6(_) => unreachable!("addresses of the simulator are v4"),
    }
}
