//! The agent's hands: one line for each [`Action`], and no rule.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use crate::clock::{self, Moment};
use crate::dcs::{self, Claim, Dcs, Key, Precondition};
use crate::log;
use crate::postgres::{Reserve, StartAs, Upstream};
use crate::record::{Bootstrap, Record};
use crate::types::{Chain, Lsn, NodeName, SlotName, Timeline};

use super::Error;
use super::agent::{Agent, Next, Youth};
use super::configure::Configured;
use super::door::{self, Closed};
use super::jobs;
use super::lineage;
use super::publish;
use super::reason::{Action, Decision, Task, Wake};
use super::reserve::Stock;
use super::rules::Mode;
use super::slots::Move;
use super::turn::Copies;
use super::view::{Doing, Instance, Job, Lease, Name, ShutdownMark, SyncWrite, View};
use super::watchdog::{Need, Watch};

/// After an action that failed the loop looks again after this long, not sooner.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// The same while something is about to change: during a vote every moment counts.
const AFTER_FAILURE_SOON: Duration = Duration::from_millis(100);
/// Hex digits of the node id that make a name that is taken another one.
const NAME_SUFFIX: usize = 4;
/// A request for the leader key that was not answered may arrive for so many TTLs: by then no store still holds it.
const OUTCOME_OPEN_TTLS: u32 = 2;
/// All that a release may take of the time for an orderly stop.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);
/// A release whose outcome is unknown is asked for so often: nobody else leads before the lease runs out otherwise.
const RELEASES: usize = 5;
/// Between two of them.
const RELEASE_RETRY: Duration = Duration::from_millis(100);

/// When to look again after an action that failed.
fn after_failure(wake: Wake) -> Wake {
    match wake {
        Wake::Loop => Wake::Soon(AFTER_FAILURE),
        Wake::Soon(soon) => Wake::Soon(soon.max(AFTER_FAILURE_SOON)),
    }
}

/// What an answer says of a write over a revision, and of all before it.
fn sync_write<T>(put: &Result<T, dcs::Error>) -> SyncWrite {
    match put {
        Ok(_) | Err(dcs::Error::Conflict { .. }) => SyncWrite::Settled,
        Err(dcs::Error::Unreachable(_) | dcs::Error::Rejected(_)) => SyncWrite::MayArrive,
    }
}

/// A postmaster that takes connections.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// The last that was seen to.
    pub(super) seen: Option<u32>,
    /// The others are being told so.
    telling: JoinSet<()>,
}

impl<D: Dcs> Agent<D> {
    /// Performs the actions in order, up to the first that fails, and writes the member key.
    pub(super) async fn act(&mut self, view: &View, decision: Decision) -> Next {
        let (mut wake, hurries) = (decision.wake, door::hurries(&decision));
        let mut finished = false;
        self.disarm_if_harmless(view);
        for action in decision.actions {
            finished |= action == Action::Finish;
            if let Err(error) = self.perform_in_time(view, action.clone()).await {
                self.complain(&action, &error);
                wake = after_failure(wake);
                break;
            }
        }
        if view.snapshot().is_some() && !hurries {
            self.put_member(view).await;
        }
        if finished { Next::End } else { Next::Wait(wake) }
    }

    /// Once a change of words: a failure that repeats itself is no news.
    fn complain(&mut self, action: &Action, error: &Error) {
        let text = Chain(error).to_string();
        if text == self.last_failure {
            return debug!(?action, error = %text, "an action failed again");
        }
        warn!(?action, error = %text, "an action failed");
        self.last_failure = text;
    }

    /// While leading, nothing may take the loop beyond the moment of its own demotion.
    async fn perform_in_time(&mut self, view: &View, action: Action) -> Result<(), Error> {
        let Some(left) = view.demote_at().map(|at| clock::now().until(at)).filter(|_| view.leads()) else {
            return self.perform(view, action).await;
        };
        let left = if action.waits_for_store() { left.min(self.store_patience()) } else { left };
        timeout(left, self.perform(view, action)).await.unwrap_or(Err(Error::OutOfTime))
    }

    /// The server takes connections: the standbys are told while it is asked for the first time.
    pub(super) fn announce(&mut self, pid: u32, view: &View) {
        self.open.seen = Some(pid);
        let member = publish::open_member(view, &self.config.addresses);
        let (store, patience) = (Arc::clone(&self.deps.store), self.store_patience());
        self.open.telling.spawn(async move {
            match timeout(patience, store.put_member(&member)).await {
                Ok(Ok(())) => {}
                // It is written again after the next look, which finds out what this means.
                Ok(Err(error)) => debug!(%error, "the member key was not written"),
                Err(_elapsed) => debug!(?patience, "the member key was not written in time"),
            }
        });
    }

    async fn put_member(&mut self, view: &View) {
        // What was seen before must not be written over what was seen since.
        while self.open.telling.join_next().await.is_some() {}
        let member = publish::member(view, &self.config.addresses);
        let patience = self.store_patience();
        match timeout(patience, self.deps.store.put_member(&member)).await {
            Ok(Ok(())) => self.name_is_ours(),
            Ok(Err(dcs::Error::Conflict { .. })) => self.name_is_taken(view.now).await,
            Ok(Err(error)) => debug!(%error, "the member key was not written"),
            Err(_elapsed) => debug!(?patience, "the member key was not written in time"),
        }
    }

    fn name_is_ours(&mut self) {
        (self.memory.name, self.name_taken) = (Name::Claimed, None);
    }

    /// Another node holds our name. After a volume was lost that is this node's own past, and ends with its lease; a name
    /// that is held for longer is somebody's, and this node takes another at its next start.
    async fn name_is_taken(&mut self, now: Moment) {
        self.memory.name = Name::Unclaimed;
        let since = *self.name_taken.get_or_insert(now);
        if now.since(since) <= 2 * self.rules.timing.ttl {
            return;
        }
        // A name that an administrator has given is not changed: this process ends.
        if let Mode::Agent { .. } = self.config.rules.mode {
            error!(target: log::CRITICAL, "Can't start; there is already a node named '{}' running", self.config.me);
            self.renamed.cancel();
        } else {
            let suffix: String = self.config.node_id.0.chars().take(NAME_SUFFIX).collect();
            let name = NodeName(format!("{}-{suffix}", self.config.me));
            warn!(taken = %self.config.me, ours = %name, "the name is held by another node: starting again under another");
            match self.deps.record.update(|record| record.node_name = Some(name)).await {
                Ok(_) => self.renamed.cancel(),
                Err(error) => warn!(error = %Chain(&error), "the cluster record was not written"),
            }
        }
    }

    /// The deadman has nothing to stop where nothing can take writes.
    fn disarm_if_harmless(&self, view: &View) {
        let harmless = matches!(view.instance(), Instance::Down | Instance::Standby(..));
        if harmless && view.lease == Lease::None {
            self.deps.init.disarm();
        }
    }

    #[expect(
        clippy::too_many_lines,
        clippy::cognitive_complexity,
        reason = "one line or two for each action"
    )]
    async fn perform(&mut self, view: &View, action: Action) -> Result<(), Error> {
        if lineage::needs_disk(&action) {
            let remember = |record: &mut Record| {
                lineage::remember(view, &action, record);
                door::remember(view, &action, record);
            };
            self.deps.record.update(remember).await?;
        }
        let store = Arc::clone(&self.deps.store);
        match action {
            Action::Acquire(claim) => self.acquire(claim).await?,
            Action::Forget => {
                self.lease.forget().await;
                self.deps.promises.sit_down();
            }
            Action::Release => self.release().await,
            Action::ClaimInitialize(when) => {
                store.put(Key::Initialize, String::new(), when).await?;
            }
            Action::PutInitialize(id) => {
                store.put(Key::Initialize, id.to_string(), Precondition::None).await?;
            }
            Action::PutConfig => {
                let known = self.kept.as_ref().unwrap_or(&self.config.founding);
                let config = publish::founding(view, known).to_string();
                store.put(Key::Config, config, Precondition::Absent).await?;
            }
            Action::PutSync(sync, when) => {
                self.memory.sync_write = SyncWrite::MayArrive;
                let put = store.put(Key::Sync, serde_json::to_string(&sync)?, when).await;
                self.memory.sync_write = sync_write(&put);
                put?;
            }
            Action::DeleteSync(revision) => {
                store.delete(Key::Sync, Precondition::Unchanged(revision)).await?
            }
            Action::ClearFailover(revision) => {
                store.put(Key::Failover, "{}".to_owned(), Precondition::Unchanged(revision)).await?;
            }
            Action::PutStatus(lsn) => self.put_status(view, lsn).await?,
            Action::PutShutdown(optime, shutdown) => {
                let Some(snapshot) = view.snapshot() else { return Ok(()) };
                let status = publish::status_at_shutdown(snapshot, optime, &shutdown);
                self.memory.shutdown_mark = ShutdownMark::MayStand;
                store.put(Key::Status, serde_json::to_string(&status)?, Precondition::None).await?;
            }
            Action::PutHistory(timeline) => self.put_history(view, timeline).await?,
            Action::Start(how, names) => self.start(&how, &names).await?,
            Action::CloseDoor => {
                self.deps.postgres.close_door();
                self.memory.closed = Some(Closed { since: view.now, end: None });
            }
            Action::OpenDoor => {
                self.deps.postgres.open_door().await?;
                self.memory.closed = None;
            }
            Action::Follow(upstream) => {
                self.deps.postgres.follow(upstream.as_ref()).await?;
                self.memory.follows(upstream);
            }
            Action::Freeze => {
                // Whatever becomes of the vote, it must be told again whom to follow.
                self.memory.following = None;
                self.deps.postgres.freeze().await?;
                self.memory.frozen = Some(clock::now());
            }
            Action::SetSyncNames(names) => {
                self.deps.postgres.set_sync_names(&names).await?;
            }
            Action::Configure(part) => {
                self.deps.postgres.configure(part).await?;
                let stored = self.rules.server.clone().unwrap_or_default();
                self.memory.configured = Some(Configured { stored, part });
            }
            Action::ChangeSlots(plan) => {
                self.deps.postgres.change_slots(&plan).await?;
                self.move_copies(plan.follow);
            }
            Action::PutFailsafe(members, when) => {
                self.memory.roll.writes(&members);
                store.put(Key::Failsafe, serde_json::to_string(&members)?, when).await?;
            }
            Action::DeleteFailsafe(revision) => {
                store.delete(Key::Failsafe, Precondition::Unchanged(revision)).await?
            }
            Action::AskMembers => self.ask_members(view),
            Action::Begin(task) => self.begin(view, task).await?,
            Action::Reload => self.reread(),
            Action::TakeUpSchedule => self.memory.orders.take_up_schedule(view.now),
            Action::DropSchedule => self.memory.orders.scheduled = None,
            Action::RestartStopped => self.memory.orders.stopped(view.now),
            Action::AcceptReinitialize => self.accept_reinitialize(),
            Action::Settle(order, how) => self.settle(order, how),
            Action::GiveAway => self.memory.give_away = Some(view.now),
            Action::PrepareCopies(from, names) => self.prepare_copies(from, names),
            Action::LayInReserve(reserve) => self.lay_in_reserve(reserve),
            Action::GiveReserve => {
                // A file that cannot be removed must not keep the server from being started.
                self.memory.reserve = Stock::Given;
                self.laying_in = JoinSet::new();
                self.deps.postgres.give_reserve().await?;
            }
            Action::ArmWatchdog => self.arm_watchdog().await?,
            Action::DisarmWatchdog => {
                self.memory.watchdog = Watch::Idle;
                self.lease.disarm().await?;
            }
            Action::Finish => {}
        }
        Ok(())
    }

    async fn arm_watchdog(&mut self) -> Result<(), Error> {
        match self.lease.arm().await {
            Ok(device) => self.memory.watchdog = Watch::Armed(device),
            Err(error) => {
                self.memory.watchdog.refused(Chain(&error).to_string(), clock::now());
                self.complain_of_watchdog();
            }
        }
        Ok(())
    }

    pub(super) fn look_at_watchdog(&mut self, now: Moment) {
        let ttl = self.rules.timing.ttl;
        if self.rules.watchdog.need == Need::Off || !self.memory.watchdog.wants_a_look(now, ttl) {
            return;
        }
        let seen = self.deps.watchdog.look().map_err(|error| Chain(&error).to_string());
        self.memory.watchdog.looked(seen, now);
        self.complain_of_watchdog();
    }

    /// Once a change of words, as everything that goes wrong.
    fn complain_of_watchdog(&mut self) {
        let Watch::Failed { why, .. } = &self.memory.watchdog else { return };
        if self.watchdog_trouble != *why {
            warn!(why, "there is no watchdog: nothing stops PostgreSQL when this machine hangs");
            self.watchdog_trouble.clone_from(why);
        }
    }

    /// The promises first: one that was given a moment ago binds, and nothing is promised while the outcome is open.
    async fn acquire(&mut self, claim: Claim) -> Result<(), Error> {
        let now = clock::now();
        self.deps.promises.stand(now, now + OUTCOME_OPEN_TTLS * self.rules.timing.ttl)?;
        match self.deps.store.acquire_leader(&self.config.me, claim).await {
            Ok(held) => {
                self.lease.hold(held).await;
                Ok(())
            }
            Err(error @ (dcs::Error::Conflict { .. } | dcs::Error::Rejected(_))) => {
                self.deps.promises.sit_down();
                Err(error.into())
            }
            Err(error @ dcs::Error::Unreachable(_)) => Err(error.into()),
        }
    }

    /// Nothing waits for it: the log between two places may take long to decode.
    fn move_copies(&mut self, copies: BTreeMap<SlotName, (String, Lsn)>) {
        for (slot, (database, to)) in copies {
            self.memory.moving.insert(slot.clone(), Move::UnderWay);
            let (postgres, unwanted) = (self.deps.postgres.clone(), self.unwanted.clone());
            self.moving.spawn(async move {
                let moved = postgres.move_copy(&slot, (&database, to), &unwanted).await;
                (slot, moved)
            });
        }
    }

    fn prepare_copies(&mut self, from: Upstream, names: BTreeSet<SlotName>) {
        self.memory.copies = Copies::UnderWay;
        let postgres = self.deps.postgres.clone();
        self.preparing.spawn(async move { postgres.prepare_copies(&from, &names).await });
    }

    /// On a thread of its own, and for as long as anybody wants it.
    fn lay_in_reserve(&mut self, reserve: Reserve) {
        self.memory.reserve = Stock::OnItsWay;
        let postgres = self.deps.postgres.clone();
        self.laying_in.spawn(async move { postgres.lay_in_reserve(reserve).await });
    }

    fn ask_members(&mut self, view: &View) {
        let Lease::Held { ttl, .. } = view.lease else { return };
        // The question speaks of whole seconds.
        let ttl = Duration::from_secs(ttl.as_secs());
        let asked = clock::now();
        self.memory.roll.ask(asked);
        let others = self.memory.roll.others(&self.config.me);
        let known = self.last_snapshot.as_ref().map(|(snapshot, _)| snapshot);
        let ping = publish::ping(view, known, &self.config.addresses, (asked, ttl));
        let client = self.deps.client.clone();
        self.rounds.spawn(async move {
            let promised = jobs::ask_for_promises(client, others, &ping).await;
            jobs::Round { asked, ttl, ping, promised }
        });
    }

    /// The lease is forgotten first: from here on this node does not lead, whatever becomes of the request.
    async fn release(&mut self) {
        self.lease.forget().await;
        self.deps.promises.sit_down();
        if timeout(RELEASE_LIMIT, self.release_key()).await.is_err() {
            warn!("the leader key was not given back in time: it ends with its lease");
        }
    }

    async fn release_key(&self) {
        for _attempt in 0..RELEASES {
            match self.deps.store.release_leader(&self.config.me).await {
                Ok(()) => return info!("gave the leader key back"),
                Err(error) => warn!(%error, "the leader key was not given back"),
            }
            tokio::time::sleep(RELEASE_RETRY).await;
        }
    }

    async fn put_status(&mut self, view: &View, lsn: Lsn) -> Result<(), Error> {
        let status = publish::status(view, lsn);
        if publish::is_news(view, &status) {
            self.deps.store.put(Key::Status, serde_json::to_string(&status)?, Precondition::None).await?;
            self.memory.shutdown_mark = ShutdownMark::Absent;
        }
        Ok(())
    }

    async fn put_history(&self, view: &View, timeline: Timeline) -> Result<(), Error> {
        let Some(snapshot) = view.snapshot() else { return Ok(()) };
        let (text, written) = self.deps.postgres.local_history(timeline).await?;
        let written = written.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string();
        let history = publish::history(view, snapshot, &text, &written);
        if snapshot.history.as_ref().is_some_and(|stored| stored.value == history) {
            return Ok(());
        }
        self.deps.store.put(Key::History, serde_json::to_string(&history)?, Precondition::None).await?;
        Ok(())
    }

    async fn start(&mut self, how: &StartAs, names: &str) -> Result<(), Error> {
        let started = self.deps.postgres.start(how, names).await;
        if let Err(error) = started {
            self.memory.failed(Job::Start, clock::now(), Chain(&error).to_string());
            return Err(error.into());
        }
        self.young = Youth::Started;
        self.counts.starts += 1;
        self.memory.following = match how {
            StartAs::Standby(upstream) => upstream.clone(),
            StartAs::Primary => None,
        };
        Ok(())
    }

    /// Begins a long action. Only a stop may replace one that is under way: `decide` sees to that.
    async fn begin(&mut self, view: &View, task: Task) -> Result<(), Error> {
        let job = task.job();
        if matches!(job, Job::Stop | Job::HandOver | Job::CopySlots) {
            self.young = Youth::Over;
        }
        self.jobs.abort_all();
        self.jobs = JoinSet::new();
        if job.holds_postgres() {
            // Whoever reads from a copy next must not wait for it, nor must the end of the server.
            std::mem::take(&mut self.unwanted).cancel();
        }
        if job == Job::CopySlots {
            self.memory.copies = Copies::Unknown;
        }
        self.before(view, job).await?;
        self.doing = Some(Doing { job, since: clock::now() });
        let context = jobs::Context {
            postgres: self.deps.postgres.clone(),
            client: self.deps.client.clone(),
            members: self.others(),
            others: self.addresses_of_others(),
        };
        self.jobs.spawn(jobs::run(task, context));
        Ok(())
    }

    /// What must be on disk before a job begins.
    async fn before(&mut self, view: &View, job: Job) -> Result<(), Error> {
        let record = &self.deps.record;
        match job {
            // A crash right after initdb must not leave a cluster without its roles.
            Job::Initdb => record.update(|record| record.bootstrap = Bootstrap::Pending).await?,
            // A crash right after a promotion must not leave a private timeline that looks like the cluster's.
            Job::Promote => record.update(|record| lineage::begin(view, record)).await?,
            Job::Clone | Job::Rewind => {
                self.memory.source = lineage::source(view);
                return Ok(());
            }
            Job::FinishBootstrap
            | Job::Stop
            | Job::HandOver
            | Job::Poll
            | Job::Survey
            | Job::Approval
            | Job::Compare
            | Job::CopySlots
            | Job::Start => return Ok(()),
        };
        Ok(())
    }

    fn others(&self) -> BTreeMap<NodeName, String> {
        let members = self.last_snapshot.iter().flat_map(|(snapshot, _)| &snapshot.members);
        members.filter(|m| m.name != self.config.me).map(|m| (m.name.clone(), m.api_url.clone())).collect()
    }

    /// Every address at which another node may be: listed, a member's, or a voter's that this volume remembers.
    fn addresses_of_others(&self) -> Option<BTreeSet<IpAddr>> {
        let peers = self.deps.peers.borrow();
        peers.fetched_at?;
        let members = self.last_snapshot.iter().flat_map(|(snapshot, _)| &snapshot.members);
        let members =
            members.filter_map(|m| super::view::upstream(m).and_then(|upstream| upstream.address.address()));
        let voters = self.deps.record.read().voters.into_iter().map(|voter| voter.address);
        let known = peers.addrs.iter().copied().chain(members).chain(voters);
        Some(known.filter(|ip| *ip != self.config.address).collect())
    }
}
