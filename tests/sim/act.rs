//! The simulated agent's actions, one by one: each takes its time, and can fail or stay without an answer.

use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::dcs::{Failover, Precondition, Shutdown};
use pgherd::ha::door::{self, Closed};
use pgherd::ha::lineage;
use pgherd::ha::orders::{Accepted, Order, Orders, Settled};
use pgherd::ha::publish;
use pgherd::ha::reason::{Action, Task, Wake};
use pgherd::ha::remote::Remote;
use pgherd::ha::view::{Job, ShutdownMark, SyncWrite, View};
use pgherd::postgres::{StartAs, Upstream};
use pgherd::record::{Bootstrap, Record};
use pgherd::supervisor::unit;
use pgherd::types::{Lsn, Timeline};

use crate::agent::{Acting, CALL, Ended, LocalOp, RELEASES, Slot, Stage, addresses, index};
use crate::postgres::State;
use crate::store::{Answer, Document, Request};
use crate::world::{Ev, Node, World, name};

/// So long `record::Keeper` waits for the disk.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

impl World {
    /// What the record of the node becomes while it acts.
    fn record(&mut self, n: usize, change: impl FnOnce(&View, &mut Record)) {
        let Node { agent, disk, .. } = &mut self.nodes[n];
        if let Stage::Acting(acting) = &agent.stage {
            disk.record(&acting.view, |record| change(&acting.view, record));
        }
    }

    /// What must be on disk before the action. Says whether that is news: else nothing is written.
    fn write_record(&mut self, n: usize, action: &Action) -> bool {
        let was = self.nodes[n].disk.memory();
        self.record(n, |view, record| {
            let before = record.clone();
            lineage::remember(view, action, record);
            door::remember(view, action, record);
            assert!(
                lineage::needs_disk(action) || *record == before,
                "nothing waits for the disk of {action:?}"
            );
            if *action == Action::Begin(Task::Promote) {
                lineage::begin(view, record);
            }
        });
        if *action == Action::Begin(Task::Initdb) {
            self.nodes[n].disk.bootstrap = Bootstrap::Pending;
        }
        self.nodes[n].disk.memory() != was
    }

    /// As long as anybody waits for it; a leader no longer than it leads.
    fn wait_for_the_record(&mut self, n: usize) {
        let now = self.clock(n);
        let leads = self.acting(n).and_then(|a| a.view.demote_at().filter(|_| a.view.leads()));
        let until = leads.map_or(RECORD_PATIENCE, |at| now.until(at).min(RECORD_PATIENCE));
        let until = until.as_micros() as u64;
        self.log(n, || "its record is written too slowly".into());
        self.local(n, LocalOp::TooSlow, until, until + 1);
    }

    pub(crate) fn acting(&mut self, n: usize) -> Option<&mut Acting> {
        match &mut self.agent(n).stage {
            Stage::Acting(acting) => Some(acting),
            Stage::Gone | Stage::Observing { .. } | Stage::Waiting { .. } => None,
        }
    }

    pub(crate) fn send_act(&mut self, n: usize, request: Request) {
        let op = self.next_op(n);
        let now = self.clock(n);
        let Some(acting) = self.acting(n) else { return };
        (acting.op, acting.sent) = (op, now);
        self.ask_store(n, (Slot::Act, op), request, CALL);
    }

    pub(crate) fn local(&mut self, n: usize, what: LocalOp, from: u64, to: u64) {
        let op = self.next_op(n);
        let inc = self.nodes[n].agent.inc;
        let Some(acting) = self.acting(n) else { return };
        acting.op = op;
        let takes = self.rng.range(from, to);
        self.at(takes, Ev::Local(n, inc, op, Box::new(what)));
    }

    pub(crate) fn act(&mut self, n: usize) {
        let Some(acting) = self.acting(n) else { return };
        match acting.queue.pop_front() {
            Some(action) => {
                acting.current = Some(action.clone());
                self.perform(n, action);
            }
            None => self.put_member(n),
        }
    }

    pub(crate) fn put_member(&mut self, n: usize) {
        let Some(acting) = self.acting(n) else { return };
        acting.current = None;
        if acting.view.snapshot().is_none() || std::mem::replace(&mut acting.member_put, true) {
            return self.acted_all(n);
        }
        let member = publish::member(&acting.view, &addresses(n));
        self.send_act(n, Request::Member(Box::new(member)));
    }

    pub(crate) fn acted_all(&mut self, n: usize) {
        let stage = std::mem::replace(&mut self.agent(n).stage, Stage::Gone);
        let Stage::Acting(acting) = stage else { return };
        if acting.finished {
            return self.finish(n);
        }
        let op = self.next_op(n);
        let now = self.clock(n);
        let agent = &mut self.nodes[n].agent;
        agent.stage = Stage::Waiting { id: op };
        if agent.woken || agent.finished.is_some() {
            return self.tick(n);
        }
        let wanted = match acting.wake {
            Wake::Loop => agent.rules.timing.loop_wait,
            Wake::Soon(soon) => soon,
        };
        let pause = acting.view.next_deadline().map_or(wanted, |at| wanted.min(now.until(at)));
        let inc = agent.inc;
        self.at(pause.as_micros() as u64 + 1, Ev::Wake(n, inc, op));
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each action")]
    pub(crate) fn perform(&mut self, n: usize, action: Action) {
        if !self.nodes[n].trips.is_empty() && self.trips(n, &word(&action)) {
            return;
        }
        if self.write_record(n, &action) && self.nodes[n].slow_disk {
            return self.wait_for_the_record(n);
        }
        let put = |document, when| Request::Put(Box::new(document), when);
        match action {
            Action::Acquire(claim) if self.stand(n) => self.send_act(n, Request::Acquire(claim)),
            Action::Acquire(_) => self.acted(n, Ended::Failed("a promise binds".into())),
            Action::PutFailsafe(members, when) => {
                self.agent(n).memory.roll.writes(&members);
                self.send_act(n, put(Document::Failsafe(members), when));
            }
            Action::DeleteFailsafe(revision) => self.send_act(n, Request::DeleteFailsafe(revision)),
            Action::AskMembers => {
                self.ask_members(n);
                self.act(n);
            }
            Action::Release | Action::Forget => {
                self.sit_down(n);
                self.agent(n).released = None;
                self.forget(n);
            }
            Action::ClaimInitialize(when) => self.send_act(n, put(Document::Initialize(None), when)),
            Action::PutInitialize(id) => {
                self.cluster_existed = true;
                self.send_act(n, put(Document::Initialize(Some(id)), Precondition::None));
            }
            Action::PutConfig => {
                let config = self.agent(n).environment.to_config();
                self.send_act(n, put(Document::Config(config), Precondition::Absent));
            }
            Action::PutSync(sync, when) => {
                self.agent(n).memory.sync_write = SyncWrite::MayArrive;
                self.log(n, || format!("writes the sync key: {:?} of {:?}", sync.quorum, sync.sync_standby));
                self.send_act(n, put(Document::Sync(sync), when));
            }
            Action::DeleteSync(revision) => self.send_act(n, Request::DeleteSync(revision)),
            Action::ClearFailover(revision) => {
                let request = Document::Failover(Failover::default());
                self.send_act(n, put(request, Precondition::Unchanged(revision)));
            }
            Action::PutShutdown(optime, shutdown) => self.put_shutdown(n, optime, &shutdown),
            Action::PutStatus(lsn) => self.put_status(n, lsn),
            Action::PutHistory(timeline) => self.put_history(n, timeline),
            Action::Start(how, names) => {
                let upstream = match how {
                    StartAs::Primary => None,
                    StartAs::Standby(upstream) => Some(upstream.as_ref().map(index)),
                };
                self.local(n, LocalOp::Start(upstream, names), 10_000, 80_000);
            }
            Action::CloseDoor => {
                let since = self.clock(n);
                self.agent(n).memory.closed = Some(Closed { since, end: None });
                self.nodes[n].pg.closed = true;
                self.act(n);
            }
            Action::OpenDoor => self.local(n, LocalOp::OpenDoor, 1_000, 20_000),
            Action::Follow(upstream) => {
                self.local(n, LocalOp::Follow(upstream.as_ref().map(index)), 3_000, 30_000)
            }
            Action::Freeze => self.freeze(n),
            Action::SetSyncNames(names) => self.local(n, LocalOp::Names(names), 3_000, 40_000),
            Action::ChangeSlots(plan) => self.change_slots(n, plan),
            Action::PrepareCopies(from, names) => self.prepare_copies(n, index(&from), names),
            // Settings are the real server's business.
            Action::Configure(_part) => self.act(n),
            Action::Begin(task) => {
                self.begin(n, task);
                self.act(n);
            }
            Action::GiveAway => self.give_away(n),
            Action::ArmWatchdog => self.arm_watchdog(n),
            Action::DisarmWatchdog => self.disarm_watchdog(n),
            Action::Settle(order, how) => self.settle(n, order, &how),
            Action::RestartStopped => self.note(n, Orders::stopped),
            Action::AcceptReinitialize => self.note(n, |orders, _now| accept(orders)),
            // Nobody asks for these here.
            Action::Reload
            | Action::TakeUpSchedule
            | Action::DropSchedule
            | Action::LayInReserve(_)
            | Action::GiveReserve
            | Action::Finish => self.act(n),
        }
    }

    fn put_shutdown(&mut self, n: usize, optime: Lsn, shutdown: &Shutdown) {
        let Some(acting) = self.acting(n) else { return };
        let Some(snapshot) = acting.view.snapshot() else { return self.act(n) };
        let status = publish::status_at_shutdown(snapshot, optime, shutdown);
        self.log(n, || format!("leaves everything up to {} behind", shutdown.end));
        self.agent(n).memory.shutdown_mark = ShutdownMark::MayStand;
        self.send_act(n, Request::Put(Box::new(Document::Status(status)), Precondition::None));
    }

    fn put_status(&mut self, n: usize, lsn: Lsn) {
        let Some(acting) = self.acting(n) else { return };
        let status = publish::status(&acting.view, lsn);
        if !publish::is_news(&acting.view, &status) {
            return self.act(n);
        }
        self.send_act(n, Request::Put(Box::new(Document::Status(status)), Precondition::None));
    }

    fn freeze(&mut self, n: usize) {
        self.agent(n).memory.following = None;
        self.local(n, LocalOp::Freeze, 3_000, 30_000);
    }

    fn settle(&mut self, n: usize, order: Order, how: &Settled) {
        self.log(n, || format!("an order is settled: {order:?}, {how:?}"));
        self.note(n, |orders, _now| orders.settle(order));
    }

    fn note(&mut self, n: usize, change: impl FnOnce(&mut Orders, Moment)) {
        let now = self.clock(n);
        change(&mut self.agent(n).memory.orders, now);
        self.act(n);
    }

    fn give_away(&mut self, n: usize) {
        self.agent(n).memory.give_away = Some(self.clock(n));
        self.act(n);
    }

    pub(crate) fn put_history(&mut self, n: usize, timeline: Timeline) {
        let Some(branch) = self.files(n).map(|f| f.branch) else { return self.act(n) };
        let of = self.history(branch).0;
        let lines = of.iter().filter(|f| f.timeline < timeline);
        let text: String =
            lines.map(|f| format!("{}\t{}\tno recovery target specified\n", f.timeline, f.end)).collect();
        let Some(acting) = self.acting(n) else { return };
        let Some(snapshot) = acting.view.snapshot() else { return self.act(n) };
        let history = publish::history(&acting.view, snapshot, &text, "now");
        self.send_act(n, Request::Put(Box::new(Document::History(history)), Precondition::None));
    }

    /// An action has ended.
    pub(crate) fn acted(&mut self, n: usize, result: Ended) {
        let Some(acting) = self.acting(n) else { return };
        let sent = acting.sent;
        let held = match &result {
            Ended::Answer(answer) => match **answer {
                Answer::Held(ttl) => Some(ttl),
                Answer::Done | Answer::Conflict | Answer::Snapshot(_) => None,
            },
            Ended::Done | Ended::Unknown | Ended::Failed(_) => None,
        };
        let ok = match &result {
            Ended::Done => true,
            Ended::Answer(answer) => matches!(**answer, Answer::Done | Answer::Held(_)),
            Ended::Unknown | Ended::Failed(_) => false,
        };
        if !ok && matches!((&acting.current, &result), (Some(Action::Acquire(_)), Ended::Answer(_))) {
            self.sit_down(n);
        }
        let told = matches!(&result, Ended::Done | Ended::Answer(_));
        if told && matches!(self.acting(n).and_then(|a| a.current.clone()), Some(Action::PutSync(..))) {
            self.agent(n).memory.sync_write = SyncWrite::Settled;
        }
        let Some(acting) = self.acting(n) else { return };
        match (acting.current.clone(), ok) {
            (None, _) => return self.acted_all(n),
            (Some(Action::Acquire(_)), true) => held.into_iter().for_each(|ttl| self.hold(n, sent, ttl)),
            (Some(Action::Release), false) if acting.releases + 1 < RELEASES => {
                acting.releases += 1;
                return self.local(n, LocalOp::ReleaseAgain, 100_000, 100_001);
            }
            (Some(Action::Release), _) => {}
            (Some(Action::PutStatus(_)), true) => {
                self.agent(n).memory.shutdown_mark = ShutdownMark::Absent;
            }
            (Some(_), true) => {}
            (Some(action), false) => {
                acting.wake = Wake::Soon(Duration::from_secs(1));
                acting.queue.clear();
                self.log(n, || format!("failed: {action:?}: {result:?}"));
            }
        }
        self.act(n);
    }

    pub(crate) fn local_done(&mut self, n: usize, inc: u64, op: u64, what: LocalOp) {
        let waits = self.current(n, inc) && self.acting(n).is_some_and(|a| a.op == op);
        if !waits {
            return;
        }
        let result = match what {
            LocalOp::ReleaseAgain => return self.send_release(n),
            LocalOp::Slots => Ok(()),
            LocalOp::TooSlow => Err("the record was not written in time".to_owned()),
            LocalOp::OpenDoor => {
                self.agent(n).memory.closed = None;
                self.nodes[n].pg.closed = false;
                self.saw_own(n);
                Ok(())
            }
            LocalOp::Start(upstream, names) => self.start_postgres(n, upstream, &names),
            LocalOp::Follow(to) => {
                if self.nodes[n].pg.conn.is_some_and(|c| Some(c.to) != to) {
                    self.disconnect(n);
                }
                self.nodes[n].pg.upstream = to;
                let upstream = to.and_then(|to| self.upstream(n, to));
                self.agent(n).memory.follows(upstream);
                Ok(())
            }
            LocalOp::Names(names) if self.nodes[n].pg.state == State::Ready && !self.nodes[n].pg.hung => {
                self.set_names(n, &names);
                Ok(())
            }
            LocalOp::Names(_) => Err("it does not answer".to_owned()),
            LocalOp::Freeze => {
                self.disconnect(n);
                self.nodes[n].pg.upstream = None;
                return self.local(n, LocalOp::Frozen(0), 10_000, 60_000);
            }
            LocalOp::Frozen(tries) => match self.frozen(n) {
                None if tries < 50 => return self.local(n, LocalOp::Frozen(tries + 1), 20_000, 20_001),
                None => Err("it does not stand still".to_owned()),
                Some(()) => {
                    self.agent(n).memory.frozen = Some(self.clock(n));
                    Ok(())
                }
            },
        };
        self.acted(n, result.map_or_else(Ended::Failed, |()| Ended::Done));
    }

    /// The wait of `Postgres::freeze`: what was received is replayed.
    pub(crate) fn frozen(&self, n: usize) -> Option<()> {
        let pg = &self.nodes[n].pg;
        let replayed = self.files(n).map(|f| f.replayed)?;
        // A standby that has received nothing since its start knows its position only at the end of its own log.
        let still = pg.received.map_or(pg.local_replay, |received| replayed >= received);
        (pg.state == State::Ready && !pg.hung && !pg.primary && still).then_some(())
    }

    /// The upstream as this node was told.
    pub(crate) fn upstream(&mut self, n: usize, to: usize) -> Option<Upstream> {
        let remote = self.remote();
        let view = &self.acting(n)?.view;
        let member = view.snapshot().and_then(|snapshot| snapshot.member(&name(to)));
        let promised = || view.memory.promised.as_ref()?.upstream.clone();
        let elsewhere = || view.rules.remote.as_ref().and_then(Remote::upstream);
        if Some(to) == remote {
            return elsewhere();
        }
        member.and_then(pgherd::ha::view::upstream).or_else(promised)
    }

    pub(crate) fn start_postgres(
        &mut self,
        n: usize,
        upstream: Option<Option<usize>>,
        names: &str,
    ) -> Result<(), String> {
        let now = self.clock(n);
        let refusal = self.nodes[n].agent.unit.refusal().map(|doing| Err(doing.to_owned()));
        let start = |world: &mut Self, n| world.pg_start(n, upstream, names);
        if let Err(why) = refusal.unwrap_or_else(|| self.unit_step(n, unit::Event::StartAsked, start)) {
            self.agent(n).memory.failed(Job::Start, now, why.clone());
            return Err(why);
        }
        let following = upstream.flatten().and_then(|to| self.upstream(n, to));
        let agent = self.agent(n);
        (agent.unanswered_start, agent.memory.following) = (true, following);
        self.log(n, || format!("starts PostgreSQL (primary: {}, names '{names}')", upstream.is_none()));
        self.at(1_000, Ev::Process(n));
        Ok(())
    }
}

fn accept(orders: &mut Orders) {
    if let Some(order) = &mut orders.reinitialize {
        order.stage = Accepted::Yes;
    }
}

/// The name of an action, or of the job that it begins, as schedules write it.
fn word(action: &Action) -> String {
    let name = if let Action::Begin(task) = action { format!("{task:?}") } else { format!("{action:?}") };
    let name: String = name.chars().take_while(char::is_ascii_alphanumeric).collect();
    let name = name.to_lowercase();
    match name.as_str() {
        "stopaftercheckpoint" => "stop".to_owned(),
        "changeslots" => "setslots".to_owned(),
        _ => name,
    }
}
