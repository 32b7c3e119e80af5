//! The loop: observe, decide, act. One task owns all of it; everything else only wakes it.
//!
//! There is no rule in this file. An arm of [`Agent::perform`] that needs an `if` belongs in `decide`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::{self, Moment};
use crate::dcs::{Dcs, Key, Precondition, Snapshot};
use crate::discovery::Peers;
use crate::peer::{DataFacts, PeerClient};
use crate::postgres::{Postgres, StartAs};
use crate::process::InitLink;
use crate::record::{self, Bootstrap};
use crate::types::{Chain, Lsn, NodeId, NodeName, Timeline, Timing};

use super::decide::decide;
use super::jobs::{self, Done, Outcome};
use super::lease;
use super::publish::{self, Addresses};
use super::reason::{Action, Decision, Task, Wake};
use super::rules::Rules;
use super::view::{Checkpoint, Doing, Instance, Job, Lease, Memory, Store, View, Volume};
use super::{Error, Phase, Position, Status};

/// The local instance must answer a status query within this time, or counts as silent for this tick.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// The store must answer a read within this time; while leading never beyond the moment of demotion.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(4);
/// The shortest time that is left to a read, so that a store that has come back is seen.
const SNAPSHOT_AT_LEAST: Duration = Duration::from_millis(100);
/// After an action that failed the loop looks again after this long, not sooner.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// A release whose outcome is unknown is asked for so often: nobody else leads before the lease runs out otherwise.
const RELEASES: usize = 5;
/// The checkpoint after a promotion writes every dirty page.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(600);
/// Between two of them.
const RELEASE_RETRY: Duration = Duration::from_millis(100);

/// What the agent is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// The scope (`APP_NAME`).
    pub scope: String,
    /// This member's name.
    pub me: NodeName,
    /// This volume.
    pub node_id: NodeId,
    /// This node's own address.
    pub address: IpAddr,
    /// How others reach it.
    pub addresses: Addresses,
    /// The environment's rules; the store's win from the bootstrap on.
    pub rules: Rules,
}

/// What the agent works with.
#[derive(Debug)]
pub struct Deps<D> {
    /// The coordination store.
    pub store: Arc<D>,
    /// The local instance.
    pub postgres: Postgres,
    /// The cluster record.
    pub record: record::Keeper,
    /// The deadman.
    pub init: InitLink,
    /// Calls to other nodes.
    pub client: PeerClient,
    /// Who may exist.
    pub peers: watch::Receiver<Peers>,
}

/// What others see of the agent.
#[derive(Debug)]
pub struct Outlets {
    /// The status after each tick; none before the first.
    pub status: watch::Sender<Option<Status>>,
    /// What this node says of its data to other nodes.
    pub data: watch::Sender<DataFacts>,
}

/// Starts the agent. When `stop` is cancelled it stops PostgreSQL, gives the leader key back and ends.
pub fn spawn<D: Dcs>(
    config: Config,
    deps: Deps<D>,
    outlets: Outlets,
    tasks: &mut JoinSet<()>,
    stop: CancellationToken,
) {
    let (timing, timing_seen) = watch::channel(config.rules.timing);
    let mut lease_tasks = JoinSet::new();
    let lease = lease::spawn(
        lease::Deps {
            store: Arc::clone(&deps.store),
            me: config.me.clone(),
            init: deps.init.clone(),
            process: deps.postgres.process(),
            timing: timing_seen,
        },
        &mut lease_tasks,
    );
    let agent = Agent {
        rules: config.rules.clone(),
        memory: Memory::default(),
        last_snapshot: None,
        silent_since: None,
        doing: None,
        jobs: JoinSet::new(),
        checkpoint: JoinSet::new(),
        unanswered_start: None,
        last_reason: String::new(),
        counts: Counts::default(),
        lease,
        _lease_tasks: lease_tasks,
        timing,
        outlets,
        config,
        deps,
    };
    tasks.spawn(agent.run(stop));
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    starts: u64,
    promotions: u64,
}

struct Agent<D> {
    config: Config,
    deps: Deps<D>,
    lease: lease::Keeper,
    /// Ends with the agent.
    _lease_tasks: JoinSet<()>,
    rules: Rules,
    memory: Memory,
    /// The last snapshot and the wall clock when it was read.
    last_snapshot: Option<(Snapshot, i64)>,
    silent_since: Option<Moment>,
    doing: Option<Doing>,
    jobs: JoinSet<Done>,
    /// The checkpoint after a promotion: it may take long, and nothing waits for it here.
    checkpoint: JoinSet<Result<(), crate::postgres::Error>>,
    /// PostgreSQL was started and has not answered yet.
    unanswered_start: Option<Moment>,
    last_reason: String,
    counts: Counts,
    outlets: Outlets,
    /// What the lease task goes by.
    timing: watch::Sender<Timing>,
}

/// Whether the loop goes on.
enum Next {
    Wait(Wake),
    End,
}

impl<D: Dcs> Agent<D> {
    async fn run(mut self, stop: CancellationToken) {
        let mut phase = Phase::Serving;
        let mut process = self.deps.postgres.process();
        let mut changes = self.deps.store.changes();
        loop {
            process.borrow_and_update();
            changes.borrow_and_update();
            let view = self.observe(phase).await;
            let decision = decide(&view);
            self.tell(&view, &decision);
            let Next::Wait(wake) = self.act(&view, decision).await else { return };
            let pause = self.pause(&view, wake);
            tokio::select! {
                () = stop.cancelled(), if phase == Phase::Serving => phase = Phase::Stopping,
                Ok(()) = process.changed() => {}
                Ok(()) = changes.changed() => {}
                () = self.lease.changed() => {}
                Some(done) = self.jobs.join_next() => self.take_in(done),
                Some(done) = self.checkpoint.join_next() => self.checkpoint_ended(done),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn pause(&self, view: &View, wake: Wake) -> Duration {
        let wanted = match wake {
            Wake::Loop => self.rules.timing.loop_wait,
            Wake::Soon(soon) => soon,
        };
        view.next_deadline().map_or(wanted, |at| wanted.min(clock::now().until(at)))
    }

    /// Looks at the store and at the instance, both at once, and makes the view of this moment.
    async fn observe(&mut self, phase: Phase) -> View {
        let patience = self.snapshot_patience();
        let (snapshot, local) = tokio::join!(
            timeout(patience, self.deps.store.snapshot()),
            self.deps.postgres.status(STATUS_PATIENCE)
        );
        let arrived = clock::now();
        let store = match snapshot {
            Ok(Ok(snapshot)) => self.store_answered(snapshot, arrived),
            Ok(Err(error)) => self.store_silent(error.to_string(), arrived),
            Err(_elapsed) => self.store_silent(format!("no answer within {patience:?}"), arrived),
        };
        let record = self.deps.record.read();
        let mut view = View {
            now: arrived,
            me: self.config.me.clone(),
            node_id: self.config.node_id.clone(),
            phase,
            rules: self.rules.clone(),
            store,
            lease: self.lease.state(),
            local,
            doing: self.doing,
            volume: Volume { system_id: record.system_id, bootstrap: record.bootstrap },
            memory: self.memory.clone(),
        };
        self.watch_start(&view);
        self.memory.saw_instance(&view);
        view.memory = self.memory.clone();
        view
    }

    fn snapshot_patience(&self) -> Duration {
        let Lease::Held { sent } = self.lease.state() else { return SNAPSHOT_PATIENCE };
        let ttl = self.rules.timing.ttl;
        let left = clock::now().until(sent + ttl - super::view::demote_margin(ttl));
        left.clamp(SNAPSHOT_AT_LEAST, SNAPSHOT_PATIENCE)
    }

    fn store_answered(&mut self, snapshot: Snapshot, arrived: Moment) -> Store {
        self.silent_since = None;
        self.memory.saw_store(&self.config.me, &snapshot, arrived);
        if let Some(config) = &snapshot.config {
            self.use_config(&config.value);
        }
        self.last_snapshot = Some((snapshot.clone(), clock::wall().as_second()));
        Store::Fresh(Box::new(snapshot))
    }

    fn store_silent(&mut self, why: String, arrived: Moment) -> Store {
        let since = *self.silent_since.get_or_insert(arrived);
        Store::Silent { since, why }
    }

    fn use_config(&mut self, stored: &serde_json::Value) {
        let (rules, complaints) = self.config.rules.with_config(stored);
        if rules == self.rules {
            return;
        }
        for complaint in complaints {
            warn!(complaint, "a stored setting is not used");
        }
        self.deps.store.set_ttl(rules.timing.ttl);
        self.timing.send_replace(rules.timing);
        self.rules = rules;
    }

    /// A start that ended before it answered is a failed start.
    fn watch_start(&mut self, view: &View) {
        match view.instance() {
            Instance::Primary(..) | Instance::Standby(..) => self.unanswered_start = None,
            Instance::Down => {
                if self.unanswered_start.take().is_some() {
                    let why = self.deps.postgres.last_words();
                    self.memory.failed(Job::Start, view.now, why);
                }
            }
            Instance::Silent | Instance::Ending => {}
        }
    }

    /// Publishes the status and logs what has changed.
    fn tell(&mut self, view: &View, decision: &Decision) {
        let reason = decision.reason.to_string();
        if reason != self.last_reason {
            info!(member = %self.config.me, %reason, "decided");
            self.last_reason.clone_from(&reason);
        }
        let status = Status {
            scope: self.config.scope.clone(),
            name: self.config.me.clone(),
            role: publish::role(view),
            postgres: view.local.clone(),
            snapshot: self.last_snapshot.as_ref().map(|(snapshot, _)| snapshot.clone()),
            store_seen: self.last_snapshot.as_ref().map(|(_, at)| *at),
            lease_until: view.demote_at(),
            lease_margin: view.demote_at().map(|at| view.now.until(at)),
            ticked: view.now,
            reason,
            state: publish::state(view),
            position: view.memory.frozen.map_or(Position::Moving, |_since| Position::Frozen),
            timing: self.rules.timing,
            sync_mode: self.rules.sync_mode,
            maximum_lag_on_failover: self.rules.maximum_lag_on_failover,
            tags: self.rules.tags.to_json(),
            phase: view.phase,
            n_starts: self.counts.starts,
            n_promotions: self.counts.promotions,
        };
        self.outlets.status.send_replace(Some(status));
        self.tell_data(view);
    }

    fn tell_data(&self, view: &View) {
        self.note_cluster(view);
        let facts = publish::data_facts(&view.local, view.volume.system_id);
        self.outlets.data.send_if_modified(|known| std::mem::replace(known, facts.clone()) != facts);
    }

    /// What the volume holds of this cluster is remembered, so that it is never taken for an empty one later.
    fn note_cluster(&self, view: &View) {
        let cluster = view.cluster_system_id();
        let local = view.control().map(|c| c.system_id);
        if local.is_some() && local == cluster && view.volume.system_id != local {
            if let Err(error) = self.deps.record.update(|record| record.system_id = local) {
                warn!(error = %Chain(&error), "the cluster record was not written");
            }
        }
    }

    /// Performs the actions in order, up to the first that fails, and writes the member key.
    async fn act(&mut self, view: &View, decision: Decision) -> Next {
        let mut wake = decision.wake;
        let mut finished = false;
        self.disarm_if_harmless(view);
        for action in decision.actions {
            finished |= action == Action::Finish;
            if let Err(error) = self.perform(view, action.clone()).await {
                warn!(?action, error = %Chain(&error), "an action failed");
                wake = Wake::Soon(AFTER_FAILURE);
                break;
            }
        }
        if view.snapshot().is_some() {
            let member = publish::member(view, &self.config.addresses);
            if let Err(error) = self.deps.store.put_member(&member).await {
                debug!(%error, "the member key was not written");
            }
        }
        if finished { Next::End } else { Next::Wait(wake) }
    }

    /// The deadman has nothing to stop where nothing can take writes.
    fn disarm_if_harmless(&self, view: &View) {
        let harmless = matches!(view.instance(), Instance::Down | Instance::Standby(..));
        if harmless && view.lease == Lease::None {
            self.deps.init.disarm();
        }
    }

    async fn perform(&mut self, view: &View, action: Action) -> Result<(), Error> {
        let store = Arc::clone(&self.deps.store);
        match action {
            Action::Acquire(claim) => {
                let held = store.acquire_leader(&self.config.me, claim).await?;
                self.lease.hold(held).await;
            }
            Action::Release => self.release().await,
            Action::ClaimInitialize(when) => {
                store.put(Key::Initialize, String::new(), when).await?;
            }
            Action::PutInitialize(id) => {
                store.put(Key::Initialize, id.to_string(), Precondition::None).await?;
            }
            Action::PutConfig => {
                let config = self.config.rules.to_config().to_string();
                store.put(Key::Config, config, Precondition::Absent).await?;
            }
            Action::PutSync(sync, when) => {
                store.put(Key::Sync, serde_json::to_string(&sync)?, when).await?;
            }
            Action::DeleteSync(revision) => {
                store.delete(Key::Sync, Precondition::Unchanged(revision)).await?
            }
            Action::PutStatus(lsn) => self.put_status(view, lsn).await?,
            Action::PutHistory(timeline) => self.put_history(view, timeline).await?,
            Action::Start(how, names) => self.start(&how, &names).await?,
            Action::Follow(upstream) => {
                self.deps.postgres.follow(Some(&upstream)).await?;
                (self.memory.following, self.memory.frozen) = (Some(upstream), None);
            }
            Action::Freeze => {
                self.deps.postgres.freeze().await?;
                self.memory.frozen = Some(clock::now());
            }
            Action::SetSyncNames(names) => {
                self.deps.postgres.set_sync_names(&names).await?;
            }
            Action::SetSlots(wanted) => self.deps.postgres.set_slots(&wanted).await?,
            Action::Begin(task) => self.begin(task)?,
            Action::Finish => {}
        }
        Ok(())
    }

    /// The lease is forgotten first: from here on this node does not lead, whatever becomes of the request.
    async fn release(&mut self) {
        self.lease.forget().await;
        for _attempt in 0..RELEASES {
            match self.deps.store.release_leader(&self.config.me).await {
                Ok(()) => return info!("gave the leader key back"),
                Err(error) => warn!(%error, "the leader key was not given back"),
            }
            tokio::time::sleep(RELEASE_RETRY).await;
        }
    }

    async fn put_status(&self, view: &View, lsn: Lsn) -> Result<(), Error> {
        let status = publish::status(view, lsn);
        let stored = view.snapshot().and_then(|s| s.status.as_ref());
        if stored.is_none_or(|s| s.value != status) {
            self.deps.store.put(Key::Status, serde_json::to_string(&status)?, Precondition::None).await?;
        }
        Ok(())
    }

    async fn put_history(&self, view: &View, timeline: Timeline) -> Result<(), Error> {
        let Some(snapshot) = view.snapshot() else { return Ok(()) };
        let text = self.deps.postgres.local_history(timeline).await?;
        let history = publish::history(view, snapshot, &text, &clock::wall().to_string());
        self.deps.store.put(Key::History, serde_json::to_string(&history)?, Precondition::None).await?;
        Ok(())
    }

    async fn start(&mut self, how: &StartAs, names: &str) -> Result<(), Error> {
        let started = self.deps.postgres.start(how, names).await;
        if let Err(error) = started {
            self.memory.failed(Job::Start, clock::now(), Chain(&error).to_string());
            return Err(error.into());
        }
        self.unanswered_start = Some(clock::now());
        self.counts.starts += 1;
        self.memory.following = match how {
            StartAs::Standby(upstream) => upstream.clone(),
            StartAs::Primary => None,
        };
        Ok(())
    }

    /// Begins a long action. Only a stop may replace one that is under way: `decide` sees to that.
    fn begin(&mut self, task: Task) -> Result<(), Error> {
        let job = task.job();
        self.jobs.abort_all();
        self.jobs = JoinSet::new();
        self.before(job)?;
        self.doing = Some(Doing { job, since: clock::now() });
        let context = jobs::Context {
            postgres: self.deps.postgres.clone(),
            client: self.deps.client.clone(),
            members: self.others(),
            listed: self.listed(),
        };
        self.jobs.spawn(jobs::run(task, context));
        Ok(())
    }

    /// What must be on disk before a job begins.
    fn before(&self, job: Job) -> Result<(), Error> {
        if job == Job::Initdb {
            // Before initdb: a crash right after it must not leave a cluster without its roles.
            self.deps.record.update(|record| record.bootstrap = Bootstrap::Pending)?;
        }
        Ok(())
    }

    fn others(&self) -> BTreeMap<NodeName, String> {
        let members = self.last_snapshot.iter().flat_map(|(snapshot, _)| &snapshot.members);
        members.filter(|m| m.name != self.config.me).map(|m| (m.name.clone(), m.api_url.clone())).collect()
    }

    fn listed(&self) -> Vec<IpAddr> {
        let peers = self.deps.peers.borrow();
        peers.addrs.iter().copied().filter(|ip| *ip != self.config.address).collect()
    }

    fn take_in(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let Some(doing) = self.doing.take() else { return };
        let now = clock::now();
        let done = done.unwrap_or_else(|error| Done { job: doing.job, result: Err(Error::JobEnded(error)) });
        match done.result {
            Ok(outcome) => {
                debug!(job = ?done.job, took = ?now.since(doing.since), "done");
                self.memory.succeeded(done.job);
                if let Err(error) = self.remember(outcome, now) {
                    warn!(error = %Chain(&error), "the cluster record was not written");
                }
            }
            Err(error) => {
                warn!(job = ?done.job, error = %Chain(&error), "failed");
                self.memory.failed(done.job, now, Chain(&error).to_string());
            }
        }
    }

    fn checkpoint_ended(&mut self, done: Result<Result<(), crate::postgres::Error>, tokio::task::JoinError>) {
        // PostgreSQL makes one of its own soon: the worst that a failure here costs is a rewind that is tried twice.
        self.memory.checkpoint = Checkpoint::Made;
        match done {
            Ok(Ok(())) => debug!("made the checkpoint after the promotion"),
            Ok(Err(error)) => warn!(error = %Chain(&error), "no checkpoint after the promotion"),
            Err(error) => warn!(%error, "no checkpoint after the promotion"),
        }
    }

    fn remember(&mut self, outcome: Outcome, now: Moment) -> Result<(), record::Error> {
        match outcome {
            Outcome::Stopped | Outcome::Initialised => {}
            Outcome::Bootstrapped => {
                self.deps.record.update(|record| record.bootstrap = Bootstrap::Settled)?;
            }
            Outcome::Cloned => {
                self.memory.ancestry = None;
                self.memory.succeeded(Job::Rewind);
                self.deps.record.update(|record| record.bootstrap = Bootstrap::Settled)?;
            }
            Outcome::Rewound => self.memory.ancestry = None,
            Outcome::Promoted => {
                self.counts.promotions += 1;
                self.memory.checkpoint = Checkpoint::Owed;
                let postgres = self.deps.postgres.clone();
                self.checkpoint.spawn(async move { postgres.checkpoint(CHECKPOINT_PATIENCE).await });
            }
            Outcome::Polled(answers) => self.memory.poll = Some(super::view::Poll { at: now, answers }),
            Outcome::Surveyed(answers) => self.memory.survey = Some(super::view::Survey { at: now, answers }),
            Outcome::Compared(ancestry) => self.memory.ancestry = Some(ancestry),
        }
        Ok(())
    }
}
