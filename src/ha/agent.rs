//! The loop: observe, decide, act. One task owns all of it; everything else only wakes it.
//!
//! There is no rule in this file. An arm of [`Agent::perform`] that needs an `if` belongs in `decide`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::{self, Moment};
use crate::dcs::{Dcs, Snapshot};
use crate::discovery::Peers;
use crate::peer::{DataFacts, PeerClient};
use crate::postgres::status::DataDir;
use crate::postgres::{self, Check, Door, Postgres, Pulse};
use crate::process::{InitLink, Timer, WatchdogDevice};
use crate::record::{self, Record};
use crate::types::{Chain, NodeId, NodeName, SlotName, Timing};

use super::act::Open;
use super::arming::Arming;
use super::configure::with_settings;
use super::decide::decide;
use super::desk::{Inbox, Waiting};
use super::failsafe;
use super::fitness;
use super::forecast::forecast;
use super::jobs::{self, Done};
use super::journal;
use super::lease;
use super::lineage;
use super::memory;
use super::orders::Scheduled;
use super::pace::{self, Call};
use super::promises::Promises;
use super::publish::{self, Addresses};
use super::reason::{Decision, Wake};
use super::reread::Reread;
use super::rules::{Pause, Rules};
use super::trail::{Step, Trail};
use super::view::{Doing, Instance, Job, Later, Lease, Memory, Store, UpstreamWal, View, Volume};
use super::watchdog;
use super::{Phase, Status};

/// The local instance must answer a status query within this time, or counts as silent for this tick.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// The store must answer a read within this time; while leading never beyond the moment of demotion.
const STORE_PATIENCE: Duration = Duration::from_secs(4);
/// The shortest time that is left to a read, so that a store that has come back is seen.
const STORE_AT_LEAST: Duration = Duration::from_millis(100);
/// So many steps may wait for the disk; more are kept in memory only.
const UNWRITTEN: usize = 64;

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
    /// The dynamic configuration that a cluster founded here begins with.
    pub founding: serde_json::Value,
    /// An administrator's file, to be read again.
    pub reread: Reread,
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
    /// Where promises and attempts to lead meet.
    pub promises: Promises,
    /// The deadman.
    pub init: InitLink,
    /// What resets this machine when everything hangs.
    pub watchdog: WatchdogDevice,
    /// Calls to other nodes.
    pub client: PeerClient,
    /// Who may exist.
    pub peers: watch::Receiver<Peers>,
    /// What operators ask for.
    pub inbox: Inbox,
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
    let (pause, pause_seen) = watch::channel(Pause::Off);
    let mut lease_tasks = JoinSet::new();
    let lease = lease::spawn(
        lease::Deps {
            store: Arc::clone(&deps.store),
            me: config.me.clone(),
            init: deps.init.clone(),
            process: deps.postgres.process(),
            timing: timing_seen,
            pause: pause_seen,
            arming: Arming::new(deps.watchdog.clone(), config.rules.watchdog, deps.postgres.process()),
        },
        &mut lease_tasks,
    );
    let (trail, lines) = journal::resume(&deps.record);
    let (new_steps, steps) = mpsc::channel(UNWRITTEN);
    if let Some(lines) = lines {
        tasks.spawn(journal::write(lines, steps));
    }
    let agent = Agent {
        trail,
        new_steps,
        rules: Rules { server: None, ..config.rules.clone() },
        memory: Memory::default(),
        last_snapshot: None,
        silent_since: None,
        doing: None,
        jobs: JoinSet::new(),
        checkpoint: JoinSet::new(),
        errands: JoinSet::new(),
        moving: JoinSet::new(),
        unwanted: CancellationToken::new(),
        preparing: JoinSet::new(),
        laying_in: JoinSet::new(),
        waiting: Waiting::new(),
        last_started: None,
        open: Open::default(),
        pause,
        signs: JoinSet::new(),
        rounds: JoinSet::new(),
        young: Youth::Over,
        last_failure: String::new(),
        watchdog_trouble: String::new(),
        complaints: Vec::new(),
        kept: None,
        last_reason: String::new(),
        name_taken: None,
        renamed: CancellationToken::new(),
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
pub(super) struct Counts {
    pub(super) starts: u64,
    pub(super) promotions: u64,
}

pub(super) struct Agent<D> {
    pub(super) config: Config,
    pub(super) deps: Deps<D>,
    pub(super) lease: lease::Keeper,
    /// Ends with the agent.
    _lease_tasks: JoinSet<()>,
    pub(super) rules: Rules,
    pub(super) memory: Memory,
    /// The last snapshot and the wall clock when it was read.
    pub(super) last_snapshot: Option<(Snapshot, i64)>,
    pub(super) silent_since: Option<Moment>,
    pub(super) doing: Option<Doing>,
    pub(super) jobs: JoinSet<Done>,
    /// The checkpoint after a promotion: it may take long, and nothing waits for it here.
    pub(super) checkpoint: JoinSet<Result<(), postgres::Error>>,
    /// Signs of life that were asked for: nothing waits for them, the next look takes in what has come.
    signs: JoinSet<(Check, Pulse)>,
    /// Rounds of questions to the members.
    pub(super) rounds: JoinSet<jobs::Round>,
    /// Writes that nothing waits for here: what an operator has asked for, what need not be remembered any more.
    pub(super) errands: JoinSet<()>,
    /// Copies of logical slots on their way, and what ends them all.
    pub(super) moving: JoinSet<(SlotName, Result<(), postgres::Error>)>,
    pub(super) unwanted: CancellationToken,
    /// What is asked and made before logical slots are copied.
    pub(super) preparing: JoinSet<Result<BTreeSet<SlotName>, postgres::Error>>,
    /// The reserve of room on its way to the disk.
    pub(super) laying_in: JoinSet<Result<(), postgres::Error>>,
    /// Who waits for which order.
    pub(super) waiting: Waiting,
    /// When the postmaster that last answered was started.
    pub(super) last_started: Option<i64>,
    /// The postmaster that was last seen to take connections.
    pub(super) open: Open,
    /// Maintenance mode, for the lease task.
    pause: watch::Sender<Pause>,
    pub(super) young: Youth,
    pub(super) last_failure: String,
    /// What was last said of the watchdog.
    pub(super) watchdog_trouble: String,
    /// What in the stored configuration cannot be used, as last said.
    complaints: Vec<String>,
    /// What the data directory holds of the configuration.
    pub(super) kept: Option<serde_json::Value>,
    pub(super) last_reason: String,
    trail: Trail,
    /// The steps that are to be written down.
    new_steps: mpsc::Sender<Arc<Step>>,
    /// Since when another node holds our name.
    pub(super) name_taken: Option<Moment>,
    /// Cancelled when this node must start again under another name.
    pub(super) renamed: CancellationToken,
    pub(super) counts: Counts,
    pub(super) outlets: Outlets,
    /// What the lease task goes by.
    pub(super) timing: watch::Sender<Timing>,
}

/// Whether a start is still on probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Youth {
    /// PostgreSQL was started a short while ago: if it ends now, the start has failed.
    Started,
    /// It has held, or was ended on purpose, or nothing was started.
    Over,
}

/// Whether the loop goes on.
pub(super) enum Next {
    Wait(Wake),
    End,
}

impl<D: Dcs> Agent<D> {
    async fn run(mut self, stop: CancellationToken) {
        let mut timer = Timer::default();
        let mut phase = Phase::Serving;
        let mut process = self.deps.postgres.process();
        let mut changes = self.deps.store.changes();
        let mut renewals = self.deps.store.renewals();
        loop {
            process.borrow_and_update();
            changes.borrow_and_update();
            renewals.borrow_and_update();
            let view = self.observe(phase).await;
            let decision = with_settings(&view, decide(&view));
            self.tell(&view, &decision).await;
            self.ask_for_signs(&view);
            let Next::Wait(wake) = self.act(&view, decision).await else { return };
            let (next, lease) = (self.next_look(&view, wake), self.lease.state());
            let heeds = |call| pace::heeds(call, &view, lease);
            tokio::select! {
                () = stop.cancelled(), if heeds(Call::Stop) => phase = Phase::Stopping,
                () = self.renamed.cancelled(), if heeds(Call::Stop) => phase = Phase::Stopping,
                Ok(()) = process.changed() => {}
                Ok(()) = changes.changed() => {}
                () = self.lease.changed() => {}
                Some(round) = self.rounds.join_next() => self.take_in_promises(round).await,
                Some(done) = self.jobs.join_next() => self.take_in(done).await,
                Some(done) = self.checkpoint.join_next() => self.checkpoint_ended(done),
                letter = self.deps.inbox.next() => self.receive(letter),
                Some(_ended) = self.errands.join_next() => {}
                Some(moved) = self.moving.join_next() => self.copy_moved(moved),
                Some(ready) = self.preparing.join_next() => self.copies_ready(ready),
                Some(laid_in) = self.laying_in.join_next() => self.reserve_laid_in(laid_in),
                Ok(()) = renewals.changed(), if heeds(Call::Renewal) => {}
                pid = self.deps.postgres.opened(self.open.seen), if heeds(Call::Opening) => self.announce(pid, &view),
                () = timer.at(next) => {}
            }
        }
    }

    /// When to look again if nothing wakes the loop before.
    fn next_look(&self, view: &View, wake: Wake) -> Moment {
        let now = clock::now();
        let heard = self.deps.store.renewals().borrow().map(|renewal| renewal.heard);
        let wanted = match wake {
            Wake::Loop => pace::next_look(self.rules.timing.loop_wait, self.lease.state(), heard, now),
            Wake::Soon(soon) => now + soon,
        };
        view.next_deadline().map_or(wanted, |at| wanted.min(at))
    }

    /// Looks at the store and at the instance, both at once, and makes the view of this moment.
    async fn observe(&mut self, phase: Phase) -> View {
        let patience = self.store_patience();
        let (store, postgres) = (Arc::clone(&self.deps.store), self.deps.postgres.clone());
        let looking =
            async { tokio::join!(timeout(patience, store.snapshot()), postgres.status(STATUS_PATIENCE)) };
        tokio::pin!(looking);
        let (snapshot, local) = loop {
            tokio::select! {
                seen = &mut looking => break seen,
                // A silent store takes all the time it is given; what the members promise meanwhile must count at once.
                Some(round) = self.rounds.join_next() => self.take_in_promises(round).await,
            }
        };
        let arrived = clock::now();
        self.take_in_signs(arrived);
        let store = match snapshot {
            Ok(Ok(snapshot)) => self.store_answered(snapshot, arrived).await,
            Ok(Err(error)) => self.store_silent(error.to_string(), arrived),
            Err(_elapsed) => self.store_silent(format!("no answer within {patience:?}"), arrived),
        };
        self.memory.promised = self.deps.promises.promised(arrived).await;
        self.look_at_watchdog(arrived);
        let record = self.deps.record.read();
        let mut view = View {
            now: arrived,
            wall: clock::wall(),
            me: self.config.me.clone(),
            node_id: self.config.node_id.clone(),
            phase,
            rules: self.rules.clone(),
            store,
            lease: self.lease.state(),
            local,
            doing: self.doing,
            volume: Volume {
                system_id: record.system_id,
                bootstrap: record.bootstrap,
                promoted: record.promoted,
                promoted_as: record.promoted_as,
                later: Later::MayBe,
                taken: record.followed.clone().filter(|f| self.deps.postgres.has_history_after(f.known)),
                followed: record.followed,
                adopted: record.adopted,
                unconfirmed: record.unconfirmed,
            },
            memory: self.memory.clone(),
        };
        let knows_later = |timeline| self.deps.postgres.has_history_after(timeline);
        if view.timeline().is_some_and(|timeline| !knows_later(timeline)) {
            view.volume.later = Later::NotSeen;
        }
        self.last_started =
            view.local.sql.as_ref().map(|answer| answer.started_at_micros).or(self.last_started);
        self.watch_start(&view);
        self.memory.saw_instance(&view);
        view.memory = self.memory.clone();
        view
    }

    pub(super) fn store_patience(&self) -> Duration {
        let Lease::Held { sent, ttl } = self.lease.state() else { return STORE_PATIENCE };
        let now = clock::now();
        let left = now.until(sent + ttl - super::view::demote_margin(ttl));
        let left = failsafe::patience(self.lease.state(), self.rules.outlast, now, left);
        left.clamp(STORE_AT_LEAST, STORE_PATIENCE)
    }

    async fn store_answered(&mut self, snapshot: Snapshot, arrived: Moment) -> Store {
        self.silent_since = None;
        self.deps.promises.saw_store(&snapshot).await;
        let renewal = self.deps.store.renewals().borrow().map(|r| (r.revision, r.heard));
        self.memory.saw_store(&self.config.me, &snapshot, arrived, renewal);
        if let Some(config) = &snapshot.config {
            self.use_config(&config.value);
        }
        self.last_snapshot = Some((snapshot.clone(), clock::wall().as_second()));
        Store::Fresh(Box::new(snapshot))
    }

    fn store_silent(&mut self, why: String, arrived: Moment) -> Store {
        Store::Silent { since: *self.silent_since.get_or_insert(arrived), why }
    }

    fn use_config(&mut self, stored: &serde_json::Value) {
        let (rules, complaints) = self.config.rules.with_config(stored);
        if complaints != self.complaints {
            for complaint in &complaints {
                warn!(complaint, "a stored setting is not used");
            }
            self.complaints = complaints;
        }
        if rules == self.rules {
            return;
        }
        if rules.timing.ttl != self.rules.timing.ttl {
            self.memory.ttl_before = Some((self.rules.timing.ttl, clock::now()));
        }
        // The lease task hears of a shorter TTL before anything can be renewed for it.
        self.timing.send_replace(rules.timing);
        self.deps.store.set_ttl(rules.timing.ttl);
        if rules.pause != self.rules.pause {
            self.pause.send_replace(rules.pause);
            // What was found out before an operator worked on the cluster is found out again.
            self.memory.ancestry = None;
        }
        if let Some(stored) = &rules.server {
            self.deps.postgres.intend(stored.clone());
        }
        self.rules = rules;
    }

    fn ask_for_signs(&mut self, view: &View) {
        for (check, patience) in fitness::due(view) {
            self.memory.vitals.ask(check, clock::now());
            let postgres = self.deps.postgres.clone();
            self.signs.spawn(async move { (check, postgres.check(check, patience).await) });
        }
    }

    fn take_in_signs(&mut self, now: Moment) {
        while let Some(sign) = self.signs.try_join_next() {
            match sign {
                Ok((check, pulse)) => self.memory.vitals.hear(check, &pulse, now),
                Err(error) => warn!(%error, "a check of PostgreSQL was not done"),
            }
        }
    }

    async fn take_in_promises(&mut self, round: Result<jobs::Round, tokio::task::JoinError>) {
        match round {
            Ok(jobs::Round { asked, ttl, ping, promised }) => {
                let positions = promised.iter().filter_map(|(name, at)| Some((name.clone(), (*at)?)));
                self.memory.roll.positions.extend(positions);
                let promised = promised.into_keys().collect();
                match self.memory.roll.hear(asked, &self.config.me, &promised) {
                    failsafe::Outcome::Agreed => self.lease.extend(asked, ttl).await,
                    failsafe::Outcome::Refused(_) => {
                        let others = self.memory.roll.others(&self.config.me);
                        self.errands.spawn(jobs::withdraw(self.deps.client.clone(), others, ping));
                    }
                }
            }
            Err(error) => warn!(%error, "the members were not asked"),
        }
    }

    /// A start that did not hold is a failed start; one that was ended on purpose is none.
    fn watch_start(&mut self, view: &View) {
        match view.instance() {
            Instance::Primary(..) | Instance::Standby(..) | Instance::Silent => {
                if memory::ran_for(view) >= memory::HEALTHY {
                    self.young = Youth::Over;
                }
            }
            Instance::Down => {
                if std::mem::replace(&mut self.young, Youth::Over) == Youth::Started {
                    self.memory.failed(Job::Start, view.now, self.deps.postgres.last_words());
                }
            }
            Instance::Ending => {}
        }
        if self.memory.not_streaming.is_some() && self.deps.postgres.misses_wal() {
            self.memory.upstream_wal = UpstreamWal::Removed;
        }
    }

    /// Publishes the status and logs what has changed.
    async fn tell(&mut self, view: &View, decision: &Decision) {
        let mark = match view.rules.pause {
            Pause::On => "PAUSE: ",
            Pause::Off => "",
        };
        let reason = format!("{mark}{}", decision.reason);
        if reason != self.last_reason {
            info!("{mark}{}", publish::line(&self.config.me, &decision.reason));
            self.last_reason.clone_from(&reason);
        }
        let at = format!("{:.3}", clock::wall());
        let news = self.trail.note(view, decision, &at);
        if let Some(Err(unwritten)) = news.map(|step| self.new_steps.try_send(step)) {
            debug!(%unwritten, "a step of the trail was not written");
        }
        let status = Status {
            doing: view.doing,
            looks_again: self.next_look(view, decision.wake),
            trail: self.trail.clone(),
            forecast: forecast(view),
            scope: self.config.scope.clone(),
            name: self.config.me.clone(),
            role: publish::role(view),
            postgres: view.local.clone(),
            snapshot: self.last_snapshot.as_ref().map(|(snapshot, _)| snapshot.clone()),
            store_seen: self.last_snapshot.as_ref().map(|(_, at)| *at),
            lease_until: view.demote_at(),
            lease_margin: view.demote_at().map(|at| view.now.until(at)),
            deadman_margin: self.deps.init.least_margin(),
            ticked: view.now,
            reason,
            state: publish::state(view),
            position: lineage::position(view),
            timing: self.rules.timing,
            sync_mode: self.rules.sync_mode,
            maximum_lag_on_failover: self.rules.maximum_lag_on_failover,
            tags: self.rules.tags.to_json(),
            phase: view.phase,
            door: view.memory.closed.map_or(Door::Open, |_since| Door::Closed),
            failsafe: failsafe::facts(view),
            watchdog: watchdog::health(view),
            vitals: view.memory.vitals.clone(),
            n_starts: self.counts.starts,
            n_promotions: self.counts.promotions,
            primary_start_timeout: self.rules.primary_start_timeout,
            scheduled_restart: view.memory.orders.scheduled.as_ref().map(Scheduled::to_json),
            complaints: self.complaints.iter().cloned().chain(self.deps.postgres.complaints()).collect(),
        };
        self.outlets.status.send_replace(Some(status));
        self.tell_data(view).await;
    }

    async fn tell_data(&mut self, view: &View) {
        self.note_cluster(view).await;
        self.keep_config(view);
        self.forget(view);
        let facts = publish::data_facts(&view.local, view.volume.system_id, view.volume.adopted);
        self.outlets.data.send_if_modified(|known| std::mem::replace(known, facts.clone()) != facts);
    }

    /// The data directory holds the configuration that its cluster had last.
    fn keep_config(&mut self, view: &View) {
        let whole = matches!(view.local.data, DataDir::Cluster(_));
        let stored = view.snapshot().and_then(|snapshot| snapshot.config.as_ref()).filter(|_| whole);
        let Some(config) = stored.map(|config| &config.value).filter(|c| self.kept.as_ref() != Some(*c))
        else {
            return;
        };
        self.kept = Some(config.clone());
        let (postgres, config) = (self.deps.postgres.clone(), config.clone());
        self.errands.spawn(async move {
            if let Err(error) = postgres.keep_dynamic(config).await {
                warn!(error = %Chain(&error), "the configuration was not kept beside the data");
            }
        });
    }

    /// What has settled since need not be remembered. Nothing waits for the disk here: the next look comes back to it.
    fn forget(&mut self, view: &View) {
        let known = self.deps.record.read();
        let mut left = known.clone();
        lineage::forget(view, &mut left);
        if left == known || !self.errands.is_empty() {
            return;
        }
        let keeper = self.deps.record.clone();
        self.errands.spawn(async move {
            let forget = |record: &mut Record| {
                if *record == known {
                    *record = left;
                }
            };
            if let Err(error) = keeper.update(forget).await {
                warn!(error = %Chain(&error), "the cluster record was not written");
            }
        });
    }

    /// What the volume holds of this cluster is remembered, so that it is never taken for an empty one later.
    async fn note_cluster(&self, view: &View) {
        let cluster = view.cluster_system_id();
        let local = view.control().map(|c| c.system_id);
        let news = local.is_some() && local == cluster && view.volume.system_id != local;
        if !news {
            return;
        }
        if let Err(error) = self.deps.record.update(|record| record.system_id = local).await {
            warn!(error = %Chain(&error), "the cluster record was not written");
        }
    }
}
