//! Virtual time, the network, faults, and what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::ha::view::PollAnswer;
use pgherd::postgres::Check;
use pgherd::supervisor::unit;
use pgherd::types::{Lsn, NodeName, SlotName, SystemId};

use crate::agent::{Agent, Ended, LocalOp, Slot};
use crate::etcd::Here;
use crate::faults::{Fault, MOST_NODES, Mode, Schedule, Voters};
use crate::history::Branch;
use crate::postgres::{Disk, Pg};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::store::{Request, Store};
use crate::voters::Founded;
use crate::watchdog::Dog;

/// After the faults have ended everything must be well within this time (microseconds).
const BOUND: u64 = 60_000_000;
/// A standby whose WAL is gone is given a minute before it is copied anew, and so is a list that has not settled before a store is founded.
const LONG_BOUND: u64 = 150_000_000;
const MINUTE: u64 = 60_000_000;

/// What wall clocks show at the beginning, in milliseconds.
pub(crate) const EPOCH: i64 = 1_800_000_000_000;

/// Something that happens at a time.
#[derive(Debug, Clone)]
pub(crate) enum Ev {
    Fault(usize),
    Calm,
    /// Maintenance ends.
    Resume,
    // The store and the way to it.
    Arrive(usize, u64, Slot, u64, Box<Request>),
    Done(usize, u64, Slot, u64, Ended),
    Hint(usize),
    // The agent.
    Boot(usize, u64),
    Wake(usize, u64, u64),
    Renewal(usize, u64, u64),
    LocalStatus(usize, u64, u64),
    Local(usize, u64, u64, Box<LocalOp>),
    Work(usize, u64, u64, u8),
    Ask(usize, u64, u64, usize),
    Said(usize, u64, u64, usize, PollAnswer, Option<SystemId>),
    Process(usize),
    Sign(usize, u64, Check),
    Copies(usize, u64, usize, BTreeSet<SlotName>),
    Ping(usize, u64, (Moment, Option<Lsn>), usize),
    Promise(usize, u64, Moment, usize),
    Withdrawn(usize, Moment, usize),
    RoundEnds(usize, u64, Moment),
    Deadman(usize, u64),
    Watchdog(usize, u64),
    Unit(usize, u64, unit::Event),
    Etcd(usize, u64),
    EtcdUnit(usize, u64, unit::Event),
    EtcdExit(usize, u32),
    EtcdGone(usize, u32),
    // PostgreSQL.
    PgReady(usize, u32),
    PgDown(usize, u32, bool),
    /// What had outlived the postmaster is gone.
    Gone(usize, u32),
    Promote(usize, u32),
    Promoted(usize, u32),
    Checkpoint(usize, u32),
    LocalReplayed(usize, u32),
    Connect(usize, u32),
    Pump(usize, u64),
    Deliver(usize, u64, usize, u64),
    Replayed(usize, u32, u64),
    Reply(usize, u32, usize, u64, u64),
    Write(usize),
}

impl Ev {
    /// The node whose agent takes this in, if it is the agent.
    fn agent(&self) -> Option<usize> {
        match self {
            Self::Done(n, ..)
            | Self::Hint(n)
            | Self::Boot(n, _)
            | Self::Wake(n, ..)
            | Self::Renewal(n, ..) => Some(*n),
            Self::LocalStatus(n, ..) | Self::Local(n, ..) | Self::Work(n, ..) | Self::Said(n, ..) => Some(*n),
            Self::Process(n) | Self::Sign(n, ..) | Self::Unit(n, ..) | Self::Etcd(n, _) => Some(*n),
            Self::EtcdUnit(n, ..) | Self::Copies(n, ..) => Some(*n),
            Self::Ask(_, _, _, to) | Self::Ping(_, _, _, to) | Self::Withdrawn(_, _, to) => Some(*to),
            Self::Promise(n, ..) | Self::RoundEnds(n, ..) => Some(*n),
            Self::Fault(_) | Self::Calm | Self::Resume | Self::Arrive(..) => None,
            Self::Deadman(..) | Self::PgReady(..) | Self::EtcdExit(..) | Self::EtcdGone(..) => None,
            Self::Watchdog(..) => None,
            Self::PgDown(..) | Self::Gone(..) | Self::Promote(..) => None,
            Self::Promoted(..) | Self::Checkpoint(..) => None,
            Self::LocalReplayed(..) | Self::Connect(..) | Self::Pump(..) | Self::Deliver(..) => None,
            Self::Replayed(..) | Self::Reply(..) | Self::Write(_) => None,
        }
    }

    /// The node on which it happens.
    fn machine(&self) -> Option<usize> {
        match self {
            Self::PgReady(n, _) | Self::PgDown(n, ..) | Self::Gone(n, _) | Self::Promote(n, _) => Some(*n),
            Self::EtcdExit(n, _) | Self::EtcdGone(n, _) => Some(*n),
            Self::Promoted(n, _) | Self::Checkpoint(n, _) | Self::LocalReplayed(n, _) => Some(*n),
            Self::Connect(n, _) | Self::Pump(n, _) | Self::Deliver(n, ..) => Some(*n),
            Self::Replayed(n, ..) | Self::Reply(n, ..) | Self::Deadman(n, _) => Some(*n),
            Self::Fault(_) | Self::Calm | Self::Resume | Self::Arrive(..) | Self::Write(_) => None,
            // It does not stand still with the machine.
            Self::Watchdog(..) => None,
            Self::Done(..) | Self::Hint(_) | Self::Boot(..) | Self::Wake(..) => self.agent(),
            Self::Renewal(..) | Self::LocalStatus(..) | Self::Local(..) | Self::Work(..) => self.agent(),
            Self::Ping(..) | Self::Promise(..) | Self::RoundEnds(..) | Self::Withdrawn(..) => self.agent(),
            Self::Ask(..) | Self::Said(..) | Self::Process(_) | Self::Sign(..) => self.agent(),
            Self::Copies(..) => self.agent(),
            Self::Unit(..) | Self::Etcd(..) | Self::EtcdUnit(..) => self.agent(),
        }
    }
}

pub(crate) struct Node {
    pub(crate) disk: Disk,
    pub(crate) pg: Pg,
    pub(crate) agent: Agent,
    pub(crate) etcd: Here,
    /// The whole machine stands still.
    pub(crate) paused: bool,
    /// The agent's process stands still.
    pub(crate) frozen: bool,
    pub(crate) deferred: Vec<Ev>,
    pub(crate) clock: (u64, i64),
    /// By how many seconds its wall clock is ahead.
    pub(crate) wall_ahead: i64,
    /// When PostgreSQL must have stopped.
    pub(crate) deadman: Option<Moment>,
    pub(crate) deadman_gen: u64,
    pub(crate) dog: Dog,
    pub(crate) store_out: bool,
    pub(crate) store_in: bool,
    pub(crate) slow: u64,
    /// Until somebody starts it again.
    pub(crate) off: bool,
    /// Nothing can be written.
    pub(crate) full: bool,
    /// What is written comes to its end after everybody has stopped waiting.
    pub(crate) slow_disk: bool,
    /// What happens when its agent is about to do this.
    pub(crate) trips: Vec<(Fault, String)>,
}

/// What must hold and does not.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
    pub(crate) at: u64,
}

pub(crate) struct World {
    pub(crate) now: u64,
    /// When, and where in `events`.
    queue: Queue,
    events: Vec<Option<Ev>>,
    free: Vec<usize>,
    pub(crate) rng: Rng,
    pub(crate) nodes: Vec<Node>,
    pub(crate) store: Store,
    pub(crate) store_up: bool,
    /// Stores that were founded, where the nodes run their own.
    pub(crate) founded: Vec<Founded>,
    pub(crate) last_member: u64,
    pub(crate) last_fault: u64,
    pub(crate) branches: Vec<Branch>,
    pub(crate) acked: BTreeMap<usize, u64>,
    /// What a client has read, by branch.
    pub(crate) read: BTreeMap<usize, u64>,
    /// Commits that the schedule asked for and that are not acknowledged yet.
    pub(crate) asked_for: BTreeSet<(usize, u64)>,
    pub(crate) last_ack: u64,
    /// Whether what is acknowledged is promised: a synchronous mode is on, and whoever leads has taken that in.
    pub(crate) promising: bool,
    pub(crate) clients: bool,
    /// The location list: whether it answers, and whom it leaves out.
    pub(crate) api_up: bool,
    pub(crate) hidden: BTreeSet<usize>,
    /// The voter that leads the store, and from when on it answers.
    store_leader: Option<usize>,
    store_elected: u64,
    pub(crate) last_conn: u64,
    pub(crate) cut: Vec<Vec<bool>>,
    pub(crate) cluster_existed: bool,
    pub(crate) schedule: Schedule,
    pub(crate) calm: bool,
    /// Since when nothing keeps the cluster from becoming well.
    pub(crate) calm_from: u64,
    pub(crate) timeline: Option<Vec<String>>,
    pub(crate) violation: Option<Violation>,
    pub(crate) left_out: Option<String>,
    pub(crate) n_events: u64,
    pub(crate) n_acks: u64,
    pub(crate) n_promotions: u64,
    /// How often another timeline of one number was found.
    pub(crate) n_differs: u64,
}

pub(crate) fn name(n: usize) -> NodeName {
    static NAMES: LazyLock<Vec<NodeName>> =
        LazyLock::new(|| (0..=MOST_NODES).map(|n| NodeName(format!("n{n}"))).collect());
    NAMES[n].clone()
}

/// What a run came to.
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    /// The first event that was left out, and why.
    pub(crate) left_out: Option<String>,
    pub(crate) timeline: Vec<String>,
    pub(crate) n_acks: u64,
    pub(crate) n_promotions: u64,
    pub(crate) n_differs: u64,
    pub(crate) n_events: u64,
}

/// Runs a schedule to its end, with or without a timeline for people.
pub(crate) fn run(schedule: &Schedule, told: bool) -> Outcome {
    let mut world = World::new(schedule.clone(), told);
    world.run();
    Outcome {
        violation: world.violation,
        left_out: world.left_out,
        timeline: world.timeline.unwrap_or_default(),
        n_acks: world.n_acks,
        n_promotions: world.n_promotions,
        n_differs: world.n_differs,
        n_events: world.n_events,
    }
}

impl World {
    fn new(schedule: Schedule, told: bool) -> Self {
        let mut rng = Rng::new(schedule.seed);
        let all = schedule.nodes + usize::from(schedule.standby);
        let nodes = (0..all).map(|n| Node::new(n, &schedule, &mut rng)).collect();
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            events: Vec::new(),
            free: Vec::new(),
            rng,
            nodes,
            store: Store::new(schedule.ttl * 1_000_000),
            store_up: true,
            founded: Vec::new(),
            last_member: 0,
            last_fault: 0,
            branches: Vec::new(),
            acked: BTreeMap::new(),
            read: BTreeMap::new(),
            asked_for: BTreeSet::new(),
            last_ack: 0,
            promising: schedule.mode != Mode::Off,
            clients: schedule.clients,
            api_up: true,
            hidden: BTreeSet::new(),
            store_leader: None,
            store_elected: 0,
            last_conn: 0,
            cut: vec![vec![false; all]; all],
            cluster_existed: false,
            calm: false,
            calm_from: schedule.calm * 1000,
            timeline: told.then(Vec::new),
            violation: None,
            left_out: None,
            n_events: 0,
            n_acks: 0,
            n_promotions: 0,
            n_differs: 0,
            schedule,
        };
        for n in 0..world.schedule.nodes {
            let start = world.rng.range(0, 400_000);
            world.at(start, Ev::Boot(n, 0));
            world.at(start, Ev::Write(n));
        }
        world.other_cluster();
        for (i, (at, _)) in world.schedule.faults.clone().iter().enumerate() {
            world.at(at * 1000, Ev::Fault(i));
        }
        let calm = world.schedule.calm * 1000;
        world.at(calm, Ev::Calm);
        world
    }

    fn run(&mut self) {
        let without_wal = self.schedule.faults.iter().any(|(_, fault)| matches!(fault, Fault::LoseWal(_)));
        let bound = if without_wal || self.schedule.voters == Voters::Ours { LONG_BOUND } else { BOUND };
        // Whoever is fed by somebody who was starved starves after it.
        let fed = self.schedule.tags.iter().any(|(_, tag, _)| tag == "replicatefrom");
        // What could not be copied is asked for again a minute later.
        let has_slots = |(_, fault): &(u64, Fault)| matches!(fault, Fault::Set(key, _) if key == "slots");
        let slots = self.schedule.faults.iter().any(has_slots);
        let late = [without_wal && self.schedule.standby, without_wal && fed, slots];
        let bound = bound + MINUTE * late.into_iter().map(u64::from).sum::<u64>();
        while let Some((at, slot)) = self.queue.pop() {
            let event = self.events[slot].take().expect("each is taken once");
            self.free.push(slot);
            self.now = at;
            self.n_events += 1;
            self.happen(event);
            if self.violation.is_some() {
                return;
            }
            if self.calm && self.unwell().is_none() {
                return;
            }
            if at > self.calm_from + bound {
                let why = self.unwell().unwrap_or_default();
                return self.violate("no-progress", why);
            }
        }
    }

    /// Everybody but the server of another cluster, which comes last.
    pub(crate) fn members(&self) -> std::ops::Range<usize> {
        0..self.schedule.nodes
    }

    /// In so many microseconds.
    pub(crate) fn at(&mut self, delay: u64, event: Ev) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(event);
        self.queue.push(self.now + delay, slot);
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each event")]
    fn happen(&mut self, event: Ev) {
        if let Some(n) = event.machine().filter(|n| self.nodes[*n].paused) {
            return self.nodes[n].deferred.push(event);
        }
        if let Some(n) = event.agent().filter(|n| self.nodes[*n].frozen) {
            return self.nodes[n].deferred.push(event);
        }
        match event {
            Ev::Fault(i) => {
                let fault = self.schedule.faults[i].1.clone();
                self.tell(|| format!("--- {fault}"));
                self.last_fault = self.now;
                self.fault(&fault);
            }
            Ev::Calm => self.mend(),
            Ev::Resume => self.resume_cluster(),
            Ev::Arrive(n, inc, slot, op, request) => self.arrive(n, inc, (slot, op), *request),
            Ev::Done(n, inc, slot, op, result) => self.op_done(n, inc, (slot, op), result),
            Ev::Hint(n) => self.woken(n),
            Ev::Boot(n, inc) => self.boot(n, inc),
            Ev::Wake(n, inc, id) => self.wake(n, inc, id),
            Ev::Renewal(n, inc, id) => self.renew(n, inc, id),
            Ev::LocalStatus(n, inc, op) => self.local_status(n, inc, op),
            Ev::Local(n, inc, op, what) => self.local_done(n, inc, op, *what),
            Ev::Work(n, inc, job, step) => self.work(n, inc, job, step),
            Ev::Ask(n, inc, job, to) => self.asked(n, inc, job, to),
            Ev::Said(n, inc, job, from, answer, id) => self.said((n, inc, job), from, answer, id),
            Ev::Ping(n, inc, asked, to) => self.pinged(n, inc, asked, to),
            Ev::Promise(n, inc, asked, from) => self.promise_came(n, inc, asked, from),
            Ev::RoundEnds(n, inc, asked) => self.round_ends(n, inc, asked),
            Ev::Withdrawn(n, asked, to) => self.withdrawn(n, asked, to),
            Ev::Process(n) => {
                self.process(n);
                self.woken(n);
            }
            Ev::Sign(n, inc, check) => self.sign(n, inc, check),
            Ev::Copies(n, inc, from, names) => self.copies_ready(n, inc, from, &names),
            Ev::Deadman(n, generation) => self.deadman(n, generation),
            Ev::Watchdog(n, generation) => self.watchdog(n, generation),
            Ev::PgReady(n, pid) => self.pg_ready(n, pid),
            Ev::PgDown(n, pid, true) if self.nodes[n].pg.hung => self.at(100_000, Ev::PgDown(n, pid, true)),
            Ev::PgDown(n, pid, clean) => self.pg_down(n, pid, clean),
            Ev::Gone(n, pid) => self.pg_gone(n, pid),
            Ev::Unit(n, inc, event) => self.unit_event(n, inc, event),
            Ev::Etcd(n, inc) => self.etcd_tick(n, inc),
            Ev::EtcdUnit(n, inc, event) => self.etcd_unit(n, inc, event),
            Ev::EtcdExit(n, pid) => self.etcd_exit(n, pid),
            Ev::EtcdGone(n, pid) => self.etcd_gone(n, pid),
            Ev::Promote(n, pid) => {
                let takes = self.rng.range(20_000, 400_000);
                self.at(takes, Ev::Promoted(n, pid));
            }
            Ev::Promoted(n, pid) => {
                self.pg_promoted(n, pid);
                self.process_changed(n);
            }
            Ev::Checkpoint(n, pid) => self.pg_checkpoint(n, pid),
            Ev::LocalReplayed(n, pid) => self.local_replayed(n, pid),
            Ev::Connect(n, pid) => self.pg_connect(n, pid),
            Ev::Pump(n, id) => self.pump(n, id),
            Ev::Deliver(n, id, branch, end) => self.deliver(n, id, branch, end),
            Ev::Replayed(n, pid, end) => self.replayed(n, pid, end),
            Ev::Reply(n, pid, from, id, end) => self.reply(n, pid, from, id, end),
            Ev::Write(n) => self.client_write(n),
        }
    }

    // ---- time and network

    /// The clock of a node: it runs a little faster or slower than time itself.
    pub(crate) fn clock(&self, n: usize) -> Moment {
        let (base, drift) = self.nodes[n].clock;
        let nanos = i128::from(self.now) * 1000 * i128::from(1_000_000 + drift) / 1_000_000;
        Moment(base + nanos as u64)
    }

    /// What a wall clock shows that is so many seconds ahead.
    pub(crate) fn wall(&self, ahead: i64) -> jiff::Timestamp {
        let now = (self.now / 1000) as i64;
        jiff::Timestamp::from_millisecond(EPOCH + now + ahead * 1000).expect("not far from now")
    }

    /// How long until the clock of a node shows this.
    pub(crate) fn until(&self, n: usize, at: Moment) -> u64 {
        let drift = i128::from(self.nodes[n].clock.1);
        let nanos = i128::from(at.0.saturating_sub(self.clock(n).0)) * 1_000_000 / (1_000_000 + drift);
        nanos as u64 / 1000 + 1
    }

    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cut[from][to]
    }

    pub(crate) fn both_ways(&self, a: usize, b: usize) -> bool {
        self.reaches(a, b) && self.reaches(b, a)
    }

    pub(crate) fn latency(&mut self, _from: usize, _to: usize) -> u64 {
        if self.rng.chance(3) { self.rng.range(20_000, 800_000) } else { self.rng.range(300, 12_000) }
    }

    /// Sends a request to the store; it is answered, or times out with an unknown outcome.
    pub(crate) fn ask_store(
        &mut self,
        n: usize,
        (slot, op): (Slot, u64),
        request: Request,
        patience: Duration,
    ) {
        let inc = self.nodes[n].agent.inc;
        let delay = self.store_delay(n);
        if self.nodes[n].store_out {
            self.at(delay, Ev::Arrive(n, inc, slot, op, Box::new(request)));
        }
        self.at(patience.as_micros() as u64, Ev::Done(n, inc, slot, op, Ended::Unknown));
    }

    fn store_delay(&mut self, n: usize) -> u64 {
        let slow = self.nodes[n].slow;
        let odd = if self.rng.chance(6) { self.rng.range(0, 6_000_000) } else { 0 };
        self.rng.range(500, 15_000) + odd + if slow > 0 { self.rng.range(0, slow * 1000) } else { 0 }
    }

    fn arrive(&mut self, n: usize, inc: u64, (slot, op): (Slot, u64), request: Request) {
        if !self.store_up || !self.quorum_serves(n) {
            return;
        }
        if let Request::Release(lease) = request
            && self.store.holds(&name(n), lease)
        {
            self.check_release(n);
        }
        let hints = self.store.hints;
        let before = self.store.leader().cloned();
        let answer = self.store.apply(&name(n), request, self.now);
        if self.store.leader() != before.as_ref() {
            let now = self.store.leader().cloned();
            self.tell(|| format!("the leader key: {before:?} -> {now:?}"));
        }
        if self.store.hints != hints {
            self.hint();
        }
        if self.nodes[n].store_in {
            let delay = self.store_delay(n);
            self.at(delay, Ev::Done(n, inc, slot, op, Ended::Answer(Box::new(answer))));
        }
    }

    /// Whether a majority of the voters runs, is connected, and can be reached from here. A voter keeps what it knows
    /// through a crash; one whose volume was lost comes back as another one at once (etcd's own rules are simulated in `src/etcd`).
    fn quorum_serves(&mut self, n: usize) -> bool {
        match self.schedule.voters {
            Voters::Outside => return true,
            Voters::Ours => return self.ready_store().is_some_and(|store| self.store_serves(n, store)),
            Voters::Nodes => {}
        }
        let voters = if self.schedule.nodes >= 5 { 5 } else { self.schedule.nodes.min(3) };
        let up = |v: usize| !self.nodes[v].off && !self.nodes[v].paused;
        let joined = |a: usize, b: usize| a == b || (up(a) && up(b) && self.both_ways(a, b));
        let leads = |v: usize| up(v) && (0..voters).filter(|o| joined(v, *o)).count() > voters / 2;
        if !self.store_leader.is_some_and(leads) {
            let next = (0..voters).find(|v| leads(*v));
            let first = self.store_elected == 0;
            if next != self.store_leader && next.is_some() && !first {
                self.store_elected = self.now + 1_200_000;
                self.store.restart_leases(self.now + 1_200_000);
            }
            self.store_elected = self.store_elected.max(1);
            self.store_leader = next;
        }
        let Some(leader) = self.store_leader.filter(|_| self.now >= self.store_elected) else { return false };
        (0..voters).any(|v| {
            let near = v == n || self.both_ways(n, v);
            let up = |v: usize| !self.nodes[v].off && !self.nodes[v].paused;
            near && up(v) && (v == leader || self.both_ways(v, leader))
        })
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm
    }

    // ---- the timeline for people

    pub(crate) fn tell(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(lines) = self.timeline.as_mut() {
            lines.push(format!("{:>8.3}s {}", now as f64 / 1e6, what()));
        }
    }

    pub(crate) fn log(&mut self, n: usize, what: impl FnOnce() -> String) {
        self.tell(|| format!("n{n} {}", what()));
    }
}

impl Node {
    fn new(n: usize, schedule: &Schedule, rng: &mut Rng) -> Self {
        Self {
            disk: Disk::default(),
            pg: Pg::default(),
            agent: Agent::new(n, schedule),
            etcd: Here::new(n, 0, schedule.nodes),
            paused: false,
            frozen: false,
            deferred: Vec::new(),
            clock: (rng.range(1_000_000, 9_000_000) * 1_000_000_000, rng.range(0, 1001) as i64 - 500),
            wall_ahead: 0,
            deadman: None,
            deadman_gen: 0,
            dog: Dog::default(),
            store_out: true,
            store_in: true,
            slow: 0,
            off: false,
            full: false,
            slow_disk: false,
            trips: Vec::new(),
        }
    }
}
