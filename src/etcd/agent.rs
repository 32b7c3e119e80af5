//! The loop: observe, decide, act, publish. One task owns everything; promises are answered between and during the
//! steps, so that two candidates that ask each other do not wait for each other.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};

use crate::clock::{self, Moment};
use crate::etcd::ballot;
use crate::etcd::client::Stores;
use crate::etcd::decide;
use crate::etcd::decision::{Action, Decision};
use crate::etcd::view::{Dir, Ending, Listing, Local, Memory, PrimaryHere, StoreView, View, Vote};
use crate::etcd::{Ask, Config, Deps, Status, observe};
use crate::peer::{NodeStatus, Promise, PromiseReply, PromiseRequest, StoreFacts, StorePart};
use crate::process::Timer;
use crate::record::Keeper;
use crate::templates::{EtcdVersion, url_host};
use crate::types::{Chain, Epoch, NodeName};

/// Between ticks while something is expected to change within a moment.
const EAGER: Duration = Duration::from_millis(200);

/// How long a wait is eager; after that it is patient.
const EAGER_FOR: Duration = Duration::from_secs(15);

/// Between ticks while joining or in a ballot.
const PATIENT: Duration = Duration::from_secs(1);

/// Between ticks of a steady node: list and health, one read.
const STEADY: Duration = Duration::from_secs(10);

/// How long a store with fewer voters than wanted is looked at every second: others are usually joining.
const GROWING_FOR: Duration = Duration::from_secs(60);

/// Between two rounds of questions to the peers of a steady node; it costs a request per peer.
const PROBE_STEADY: Duration = Duration::from_secs(60);

/// The same while a member looks gone: evidence is collected, and an answer must be fresh to count.
const PROBE_ALERT: Duration = Duration::from_secs(4);

/// How restarts of etcd are spaced after it has failed.
const RETRY: clock::Backoff =
    clock::Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) };

/// A run of etcd that lasted so long forgets earlier failures.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// What must stay at hand while a future is awaited: enough to answer a promise.
pub(super) struct Core {
    pub(super) app: String,
    pub(super) view: View,
    pub(super) record: Keeper,
    pub(super) facts: StoreFacts,
    requests: mpsc::Receiver<Ask>,
}

impl Core {
    /// Waits for `work` and answers promises meanwhile.
    pub(super) async fn attend<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(ask) = self.requests.recv() => self.answer(ask).await,
            }
        }
    }

    async fn answer(&mut self, ask: Ask) {
        let reply = self.promise(&ask.request).await;
        if ask.reply.send(reply).is_err() {
            debug!("the candidate did not wait for its answer");
        }
    }

    /// Decides on a promise; what is promised is on disk before this returns.
    pub(super) async fn promise(&mut self, request: &PromiseRequest) -> PromiseReply {
        let promise = &request.promise;
        self.view.now = clock::now();
        if let Err(refusal) = ballot::may_promise(&self.view, promise) {
            info!(epoch = promise.epoch.0, seed = %promise.seed, %refusal, "refused a promise");
            return PromiseReply::Refused { why: refusal.to_string() };
        }
        let before = self.view.record.promised.clone();
        match self.remember(promise).await {
            Ok(()) => {
                info!(epoch = promise.epoch.0, seed = %promise.seed, "promised");
                PromiseReply::Promised { facts: Box::new(self.own_status()), before }
            }
            Err(why) => PromiseReply::Refused { why },
        }
    }

    async fn remember(&mut self, promise: &Promise) -> Result<(), String> {
        let kept = self.record.update(|r| r.promised = Some(promise.clone())).await;
        self.view.record = kept.map_err(|error| {
            warn!(error = %Chain(&error), "could not write a promise");
            "this node cannot write its record".to_owned()
        })?;
        self.facts.promised = Some(promise.clone());
        Ok(())
    }

    /// This node in its own words, as `/v1/status` says it.
    fn own_status(&self) -> NodeStatus {
        let view = &self.view;
        let age = view.peers.fetched_at.map(|at| view.now.since(at).as_secs());
        NodeStatus {
            node_id: view.record.node_id.clone(),
            name: view
                .record
                .node_name
                .clone()
                .unwrap_or_else(|| NodeName::from(view.record.node_id.0.as_str())),
            app: self.app.clone(),
            your_address: None,
            store: self.facts.clone(),
            data: view.data.clone(),
            listed: view.peers.addrs.clone(),
            list_age_seconds: age,
        }
    }
}

/// See the module.
pub(super) struct Agent {
    pub(super) config: Config,
    pub(super) deps: Deps,
    pub(super) core: Core,
    pub(super) stores: Stores,
    pub(super) version: Option<EtcdVersion>,
    publish: watch::Sender<Status>,
    pace: Pace,
    failures: u32,
    pub(super) rng: StdRng,
}

/// When what was done last.
struct Pace {
    probed_at: Option<Moment>,
    /// Since when the agent has been saying the same thing.
    said_at: Moment,
    /// The endpoint of the last read.
    read_from: Option<String>,
}

impl Agent {
    pub(super) fn new(
        config: Config,
        deps: Deps,
        requests: mpsc::Receiver<Ask>,
        publish: watch::Sender<Status>,
    ) -> Self {
        let now = clock::now();
        let stores = Stores::new(&config.app, deps.tls.clone());
        let view = View {
            now,
            address: config.address,
            peer_url: format!("https://{}:{}", url_host(config.address), config.advertised.etcd_peer),
            prune_after: config.timing.prune_after,
            record: deps.record.read(),
            data: deps.data.borrow().clone(),
            primary: *deps.primary.borrow(),
            peers: deps.peers.borrow().clone(),
            listing: Listing::default(),
            probes: std::collections::BTreeMap::new(),
            local: Local::new(*deps.unit.state().borrow(), observe::dir(&config.data_dir)),
            store: None,
            memory: Memory::default(),
        };
        let facts = StoreFacts { promised: view.record.promised.clone(), ..StoreFacts::default() };
        let core = Core { app: config.app.clone(), view, record: deps.record.clone(), facts, requests };
        let pace = Pace { probed_at: None, said_at: now, read_from: None };
        Self {
            config,
            deps,
            core,
            stores,
            version: None,
            publish,
            pace,
            failures: 0,
            rng: StdRng::from_os_rng(),
        }
    }

    /// Runs until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let span = tracing::info_span!("etcd");
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work().instrument(span) => {}
        }
    }

    async fn work(&mut self) {
        let mut unit = self.deps.unit.state();
        let mut peers = self.deps.peers.clone();
        let mut primary = self.deps.primary.clone();
        let mut timer = Timer::default();
        loop {
            let pause = Box::pin(self.tick()).await;
            let woken = async {
                tokio::select! {
                    () = timer.pause(pause) => Woken::Timer,
                    Ok(()) = peers.changed() => Woken::Peers,
                    Ok(()) = unit.changed() => Woken::Other,
                    Ok(()) = primary.changed() => Woken::Other,
                }
            };
            match self.core.attend(woken).await {
                // Discovery also tells of answers that changed nothing.
                Woken::Peers if self.core.view.peers.addrs != self.deps.peers.borrow().addrs => {
                    self.pace.probed_at = None;
                }
                Woken::Peers | Woken::Timer | Woken::Other => {}
            }
        }
    }

    async fn tick(&mut self) -> Duration {
        self.observe_here();
        if self.probe_is_due() {
            self.probe().await;
        }
        Box::pin(self.read_store()).await;
        self.observe_here();
        let decision = decide::decide(&self.core.view);
        self.adopt(&decision).await;
        self.say(&decision);
        let pause = self.pause(&decision);
        Box::pin(self.act(decision.action)).await.unwrap_or(pause)
    }

    /// Everything that is at hand without waiting.
    fn observe_here(&mut self) {
        let view = &mut self.core.view;
        view.now = clock::now();
        view.record = self.deps.record.read();
        view.data = self.deps.data.borrow().clone();
        view.primary = *self.deps.primary.borrow();
        view.peers = self.deps.peers.borrow().clone();
        let members = view.store.iter().flat_map(|s| s.members.iter().filter_map(|m| m.address)).collect();
        view.listing.observe(&view.peers, view.address, &members);
        let best = ballot::candidate(view);
        if view.memory.candidate.is_none_or(|(a, _)| a != best) {
            view.memory.candidate = Some((best, view.now));
        }
        self.observe_unit();
    }

    /// The process: a run that has ended is classified once, by its own last words.
    fn observe_unit(&mut self) {
        let now = self.core.view.now;
        let local = &mut self.core.view.local;
        let before = local.unit;
        local.unit = *self.deps.unit.state().borrow();
        local.dir = observe::dir(&self.config.data_dir);
        let ran_since = before.running_since();
        if ran_since.is_some() && local.unit.running_since() != ran_since {
            let lines = self.deps.unit.last_lines();
            let ending = Ending::from_lines(lines.iter().map(String::as_str));
            let lasted = ran_since.map_or(Duration::ZERO, |since| now.since(since));
            self.failures = if lasted > HEALTHY_AFTER { 0 } else { self.failures.saturating_add(1) };
            local.retry_at = Some(now + RETRY.delay(self.failures, self.rng.random()));
            local.ending = Some(ending);
            self.core.view.store = None;
            warn!(?ending, "etcd has ended");
        }
    }

    fn probe_is_due(&self) -> bool {
        let Some(last) = self.pace.probed_at else { return true };
        let view = &self.core.view;
        let since = view.now.since(last);
        if view.fresh_store().is_none_or(|s| s.ready.is_none()) {
            return since >= EAGER;
        }
        let dark = view.probes.values().any(|p| p.dark_since.is_some());
        let alert = dark || !view.listing.absent.is_empty() || self.wants_successor();
        since >= if alert { PROBE_ALERT } else { PROBE_STEADY }
    }

    /// The primary and raft leadership are both here: somebody alive is looked for.
    fn wants_successor(&self) -> bool {
        let view = &self.core.view;
        let leads = |s: &StoreView| {
            s.voters().count() > 1 && s.leader.is_some() && s.leader == view.own_member(s).map(|m| m.id)
        };
        view.primary == PrimaryHere::Yes && view.fresh_store().is_some_and(leads)
    }

    async fn probe(&mut self) {
        let view = &self.core.view;
        let members = view.store.iter().flat_map(|s| s.members.iter().filter_map(|m| m.address));
        let voters = view.record.voters.iter().map(|v| v.address);
        let electorate = view.record.promised.iter().flat_map(|p| p.electorate.iter().copied());
        let all: BTreeSet<IpAddr> =
            view.peers.addrs.iter().copied().chain(members).chain(voters).chain(electorate).collect();
        let others = all.into_iter().filter(|a| *a != view.address).collect();
        let asking = observe::probe(self.deps.peer_client.clone(), others, self.config.advertised);
        let answers = self.core.attend(asking).await;
        observe::note(&mut self.core.view.probes, answers);
        let now = clock::now();
        self.pace.probed_at = Some(now);
        self.core.view.memory.probed_at = Some(now);
    }

    async fn read_store(&mut self) {
        let urls = self.urls_to_read();
        let reading = Box::pin(observe::read(&mut self.stores, &urls));
        let found = self.core.attend(reading).await;
        let now = clock::now();
        let view = &mut self.core.view;
        view.now = now;
        match found {
            Some((url, store)) => {
                let seen = &mut view.memory.members;
                seen.retain(|id, _| store.member(*id).is_some());
                for member in &store.members {
                    let entry = seen.entry(member.id).or_insert((now, member.vote));
                    if entry.1 != member.vote {
                        *entry = (now, member.vote);
                    }
                }
                self.pace.read_from = Some(url);
                view.local.silent_since = None;
                view.store = Some(store);
            }
            None => {
                let since = view.local.silent_since.or(Some(now));
                view.local.silent_since = since.filter(|_| view.local.unit.running_since().is_some());
            }
        }
    }

    /// Own etcd first, then the endpoint that answered last, then every voter that anybody in sight vouches for.
    fn urls_to_read(&self) -> Vec<String> {
        let mut urls = self.own_url().into_iter().chain(self.pace.read_from.clone()).collect::<Vec<_>>();
        urls.extend(self.voter_urls());
        let mut seen = BTreeSet::new();
        urls.retain(|url| seen.insert(url.clone()));
        urls
    }

    /// The endpoint of the last good read.
    pub(super) fn read_from(&self) -> Option<String> {
        self.pace.read_from.clone()
    }

    pub(super) fn own_url(&self) -> Option<String> {
        self.core.view.local.unit.running_since()?;
        Some(format!("https://{}:{}", local_host(&self.config.listen), self.config.bound.etcd_client))
    }

    /// The client URLs of the other voters, from the freshest source that there is.
    fn voter_urls(&self) -> Vec<String> {
        let view = &self.core.view;
        let vouched = view.answering().filter(|(_, s)| s.store.quorum);
        let mut voters: Vec<_> = match view.fresh_store() {
            Some(store) => store.voter_list(),
            None => vouched.flat_map(|(_, s)| s.store.voters.clone()).collect(),
        };
        voters.extend(view.record.voters.iter().filter(|_| view.fresh_store().is_none()).cloned());
        let mut seen = BTreeSet::from([view.address]);
        let dark = |a: &IpAddr| view.probes.get(a).is_some_and(|p| p.dark_since.is_some());
        let mut addresses: Vec<_> = voters.iter().map(|v| v.address).filter(|a| seen.insert(*a)).collect();
        addresses.sort_by_key(dark);
        let url = |a: &IpAddr| format!("https://{}:{}", url_host(*a), self.config.advertised.etcd_client);
        addresses.iter().map(url).collect()
    }

    /// Writes down the cluster that this node belongs to, as soon as it does.
    async fn adopt(&mut self, decision: &Decision) {
        let belongs = match &decision.action {
            Action::Rest
            | Action::BeClient
            | Action::StartJoined(_)
            | Action::Promote(_)
            | Action::Remove(_)
            | Action::MoveLeader(_)
            | Action::UpdatePeerUrl(_) => true,
            Action::Wait
            | Action::Hold
            | Action::AskPromises { .. }
            | Action::Found { .. }
            | Action::Register { .. }
            | Action::WriteReady { .. }
            | Action::AddLearner
            | Action::StartWithData
            | Action::RemoveStaleSelf(_)
            | Action::RemoveLearner(_)
            | Action::QuarantineData => false,
        };
        let Some(store) = self.core.view.fresh_store().filter(|_| belongs) else { return };
        let Some(cluster) = &store.cluster else { return };
        let (voters, id) = (store.voter_list(), format!("{:x}", store.cluster_id));
        let member = self.core.view.own_member(store).map(|m| m.id.to_string());
        let (uuid, epoch, address) = (cluster.uuid.clone(), cluster.epoch, self.config.address);
        let kept = self.deps.record.update(|r| {
            r.epoch = epoch;
            r.cluster_uuid = Some(uuid);
            r.etcd_cluster_id = Some(id);
            r.member_id = member;
            r.voters = voters;
            r.last_address = Some(address);
        });
        match kept.await {
            Ok(record) => self.core.view.record = record,
            Err(error) => warn!(error = %Chain(&error), "could not write the cluster record"),
        }
    }

    /// Publishes, and logs what is new.
    fn say(&mut self, decision: &Decision) {
        let facts = self.facts(decision);
        self.core.facts = facts.clone();
        let doing = decision.to_string();
        let held = decision.held.iter().map(|(a, why)| (*a, why.to_string())).collect();
        let own = matches!(facts.part, StorePart::Voter).then(|| self.own_url()).flatten();
        let endpoints = own.into_iter().chain(self.voter_urls()).collect();
        let before = self.publish.borrow().doing.clone();
        if kind(&before) != kind(&doing) {
            info!("{doing}");
            self.pace.said_at = self.core.view.now;
        }
        let status = Status { facts, endpoints, doing, held };
        self.publish.send_if_modified(|published| {
            let changed = *published != status;
            *published = status;
            changed
        });
    }

    fn facts(&self, decision: &Decision) -> StoreFacts {
        let view = &self.core.view;
        let record = &view.record;
        let store = view.fresh_store();
        let registered = store.filter(|s| s.cluster.is_some());
        let own = store.and_then(|s| view.own_member(s));
        StoreFacts {
            epoch: own_epoch(view),
            cluster_uuid: record.cluster_uuid.clone(),
            etcd_cluster_id: record.etcd_cluster_id.clone(),
            member_id: own.map(|m| m.id.to_string()).or_else(|| record.member_id.clone()),
            part: match (view.local.unit.running_since(), own.map(|m| m.vote), view.local.dir) {
                (Some(_), Some(Vote::Voter), _) => StorePart::Voter,
                (Some(_), Some(Vote::Learner), _) => StorePart::Learner,
                (Some(_), None, _) | (None, _, Dir::Data) => StorePart::Data,
                (None, _, Dir::Empty) if decision.action == Action::BeClient => StorePart::Client,
                (None, _, Dir::Empty) => StorePart::None,
            },
            quorum: registered.is_some(),
            promised: record.promised.clone(),
            voters: registered.map_or_else(|| record.voters.clone(), StoreView::voter_list),
        }
    }

    fn pause(&self, decision: &Decision) -> Duration {
        let waited = self.core.view.now.since(self.pace.said_at);
        let unready = self.core.view.fresh_store().is_some_and(|s| s.ready.is_none());
        let alert = !self.core.view.listing.absent.is_empty();
        let growing =
            self.core.view.fresh_store().is_some_and(|s| s.voters().count() < self.core.view.voters_wanted());
        let settled = matches!(decision.action, Action::Rest | Action::BeClient) && !unready;
        match (settled, waited) {
            (true, _) if growing && waited < GROWING_FOR => PATIENT,
            (true, _) if alert => PROBE_ALERT,
            (true, _) => STEADY,
            (false, waited) if waited < EAGER_FOR => EAGER,
            (false, _) => PATIENT,
        }
    }
}

enum Woken {
    Timer,
    Peers,
    Other,
}

/// The epoch of the store this node belongs to, or founds right now.
fn own_epoch(view: &View) -> Epoch {
    let member = |s: &&StoreView| view.own_member(s).is_some();
    let store = view.fresh_store().filter(member).and_then(|s| s.cluster.as_ref());
    store.map_or(view.record.epoch, |c| c.epoch)
}

/// Where a local client reaches what listens on `listen`.
fn local_host(listen: &str) -> String {
    match listen.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(ip) => url_host(ip),
        Err(_) => listen.to_owned(),
    }
}

/// A sentence without its numbers: what counts down is not news.
fn kind(doing: &str) -> String {
    doing.chars().filter(|c| !c.is_ascii_digit()).collect()
}
