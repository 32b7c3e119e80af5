//! The simulated agent: around the real `decide` and the real memory it does what `ha::agent`, `ha::lease` and `ha::jobs`
//! do with a runtime, step by step in virtual time. It has no rule of its own.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::dcs::{Precondition, Snapshot};
use pgherd::ha::Phase;
use pgherd::ha::decide::decide;
use pgherd::ha::publish::{self, Addresses};
use pgherd::ha::reason::{Action, Task, Wake};
use pgherd::ha::rules::{Failover, Rules, Strictness, Tags};
use pgherd::ha::view::{
    Ancestry, Candidate, Checkpoint, DEADMAN_MARGIN, Doing, Eligibility, Instance, Job, Lease, Memory,
    Motion, Name, Poll, PollAnswer, Store, Survey, SurveyAnswer, View, Volume, demote_margin,
};
use pgherd::postgres::status::Status;
use pgherd::postgres::{StartAs, StopMode, Upstream};
use pgherd::record::Bootstrap;
use pgherd::types::{NodeId, Revision, SyncMode, SystemId, Timeline, Timing};

use crate::faults::{Mode, Schedule};
use crate::postgres::State;
use crate::store::{Answer, Document, Request};
use crate::world::{Ev, World, name};

const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(3);
const SNAPSHOT_AT_LEAST: Duration = Duration::from_millis(100);
const CALL: Duration = Duration::from_secs(3);
const RELEASES: usize = 5;

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Observe,
    Act,
    Lease,
}

/// What became of a request.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    Answer(Box<Answer>),
    Unknown,
    Done,
    Failed(#[expect(dead_code, reason = "shown in the timeline")] String),
}

/// An operation on the local instance.
#[derive(Debug, Clone)]
pub(crate) enum LocalOp {
    Start(Option<Option<usize>>, String),
    Follow(usize),
    Freeze,
    Frozen(u64),
    Names(String),
    Slots,
    ReleaseAgain,
}

enum Stage {
    Gone,
    Observing { op: u64, snapshot: Option<Option<Box<Snapshot>>>, local: Option<Status> },
    Acting(Box<Acting>),
    Waiting { id: u64 },
}

struct Acting {
    view: View,
    queue: VecDeque<Action>,
    current: Option<Action>,
    wake: Wake,
    finished: bool,
    op: u64,
    sent: Moment,
    releases: usize,
    member_put: bool,
}

enum Out {
    Stopped,
    Initialised,
    Bootstrapped,
    Cloned,
    Rewound,
    Promoted,
    Polled(BTreeMap<pgherd::types::NodeName, PollAnswer>),
    Surveyed(BTreeMap<IpAddr, SurveyAnswer>),
    Compared(Ancestry),
}

/// The process of one node.
pub(crate) struct Agent {
    pub(crate) inc: u64,
    alive: bool,
    phase: Phase,
    environment: Rules,
    rules: Rules,
    memory: Memory,
    others: Vec<usize>,
    config: Option<Revision>,
    silent_since: Option<Moment>,
    doing: Option<Doing>,
    job: u64,
    task: Option<Task>,
    source: Option<(usize, u32)>,
    said: BTreeMap<usize, (PollAnswer, Option<SystemId>)>,
    asked: Vec<usize>,
    finished: Option<(Job, Result<Out, String>)>,
    unanswered_start: bool,
    lease: Lease,
    renewing: Option<(u64, Moment)>,
    renewal: u64,
    forget: bool,
    woken: bool,
    stage: Stage,
    op: u64,
    last_reason: String,
    page: Option<PollAnswer>,
    data_page: Option<SystemId>,
    restart: bool,
    /// The lease that is being released: the same in every attempt, and never used again.
    released: Option<pgherd::types::LeaseId>,
}

fn rules(schedule: &Schedule) -> Rules {
    let seconds = |n| Duration::from_secs(n);
    let (loop_wait, retry_timeout) = if schedule.ttl <= 10 { (2, 4) } else { (3, 6) };
    let (sync_mode, strictness) = match schedule.mode {
        Mode::Quorum => (SyncMode::Quorum, Strictness::Degrade),
        Mode::Priority => (SyncMode::On, Strictness::Degrade),
        Mode::Strict => (SyncMode::Quorum, Strictness::Strict),
        Mode::Off => (SyncMode::Off, Strictness::Degrade),
    };
    Rules {
        timing: Timing {
            ttl: seconds(schedule.ttl),
            loop_wait: seconds(loop_wait),
            retry_timeout: seconds(retry_timeout),
        },
        sync_mode,
        strictness,
        sync_node_count: if schedule.nodes == 5 && schedule.seed.is_multiple_of(2) { 2 } else { 1 },
        maximum_lag_on_failover: 1_048_576,
        tags: Tags { failover: Failover::Allowed },
    }
}

fn address(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, n as u8))
}

fn addresses(n: usize) -> Addresses {
    Addresses {
        conn_url: format!("postgres://10.0.0.{n}:5432/postgres"),
        api_url: format!("http://10.0.0.{n}:8008/patroni"),
    }
}

fn index(upstream: &Upstream) -> usize {
    match upstream.address {
        IpAddr::V4(v4) => v4.octets()[3] as usize,
        IpAddr::V6(_) => unreachable!("addresses of the simulator are v4"),
    }
}

impl Agent {
    pub(crate) fn new(_n: usize, schedule: &Schedule) -> Self {
        Self {
            inc: 0,
            alive: false,
            phase: Phase::Serving,
            environment: rules(schedule),
            rules: rules(schedule),
            memory: Memory { name: Name::Claimed, ..Memory::default() },
            others: Vec::new(),
            config: None,
            silent_since: None,
            doing: None,
            job: 0,
            task: None,
            source: None,
            said: BTreeMap::new(),
            asked: Vec::new(),
            finished: None,
            unanswered_start: false,
            lease: Lease::None,
            renewing: None,
            renewal: 0,
            forget: false,
            woken: false,
            stage: Stage::Gone,
            op: 0,
            last_reason: String::new(),
            page: None,
            data_page: None,
            restart: false,
            released: None,
        }
    }
}

impl World {
    fn agent(&mut self, n: usize) -> &mut Agent {
        &mut self.nodes[n].agent
    }

    fn current(&self, n: usize, inc: u64) -> bool {
        let agent = &self.nodes[n].agent;
        agent.alive && agent.inc == inc
    }

    fn next_op(&mut self, n: usize) -> u64 {
        let agent = self.agent(n);
        agent.op += 1;
        agent.op
    }

    // ---- life

    pub(crate) fn boot(&mut self, n: usize, inc: u64) {
        if self.nodes[n].agent.inc != inc || self.nodes[n].agent.alive || self.nodes[n].off {
            return;
        }
        if self.nodes[n].pg.state != State::Down {
            return self.at(100_000, Ev::Boot(n, inc));
        }
        let mut agent = Agent::new(n, &self.schedule);
        (agent.inc, agent.alive) = (inc, true);
        agent.data_page = self.files(n).map(|f| f.control.system_id).or(self.nodes[n].disk.system_id);
        self.nodes[n].agent = agent;
        self.nodes[n].deadman = None;
        self.store.forget_lease(&name(n));
        self.log(n, || "starts".into());
        self.observe(n);
    }

    pub(crate) fn end_agent(&mut self, n: usize) {
        let agent = self.agent(n);
        agent.inc += 1;
        (agent.alive, agent.stage) = (false, Stage::Gone);
        self.nodes[n].frozen = false;
    }

    pub(crate) fn reboot(&mut self, n: usize, delay: u64) {
        let inc = self.nodes[n].agent.inc;
        self.at(delay, Ev::Boot(n, inc));
    }

    pub(crate) fn ask_to_stop(&mut self, n: usize) {
        if self.agent(n).alive {
            self.agent(n).phase = Phase::Stopping;
            self.woken(n);
        }
    }

    /// A node that is stopping starts again when it has stopped.
    pub(crate) fn wants_restart(&mut self, n: usize) {
        self.agent(n).restart = true;
    }

    fn finish(&mut self, n: usize) {
        self.log(n, || "has stopped".into());
        let restart = self.agent(n).restart || self.is_calm();
        self.end_agent(n);
        self.nodes[n].off = !restart;
        if self.nodes[n].pg.state != State::Down {
            self.violate("ends-before-stop", format!("n{n} ends while its PostgreSQL runs"));
        }
        if restart {
            self.reboot(n, 500_000);
        }
    }

    pub(crate) fn deadman(&mut self, n: usize, generation: u64) {
        let Some((pid, deadline)) = self.nodes[n].deadman else { return };
        if self.nodes[n].deadman_gen != generation || self.clock(n) < deadline {
            return;
        }
        self.nodes[n].deadman = None;
        if self.nodes[n].pg.pid == pid && self.nodes[n].pg.state != State::Down {
            self.log(n, || "the deadman stops PostgreSQL".into());
            self.end_agent(n);
            self.pg_stop(n, None);
            self.reboot(n, 1_000_000);
        }
    }

    fn arm(&mut self, n: usize) {
        let Lease::Held { sent, ttl } = self.nodes[n].agent.lease else { return };
        if self.nodes[n].pg.state == State::Down || !self.schedule.deadman {
            return;
        }
        if self.clock(n) >= sent + ttl - demote_margin(ttl) {
            return;
        }
        let deadline = sent + ttl - DEADMAN_MARGIN;
        self.nodes[n].deadman = Some((self.nodes[n].pg.pid, deadline));
        self.nodes[n].deadman_gen += 1;
        let (delay, generation) = (self.until(n, deadline), self.nodes[n].deadman_gen);
        self.at(delay, Ev::Deadman(n, generation));
    }

    // ---- the lease task

    fn hold(&mut self, n: usize, sent: Moment) {
        let agent = self.agent(n);
        agent.woken |= !matches!(agent.lease, Lease::Held { .. });
        agent.lease = Lease::Held { sent, ttl: agent.rules.timing.ttl };
        agent.renewal += 1;
        let (inc, renewal, wait) = (agent.inc, agent.renewal, agent.rules.timing.loop_wait);
        self.arm(n);
        let delay = self.until(n, sent + wait);
        self.at(delay, Ev::Renewal(n, inc, renewal));
    }

    pub(crate) fn renew(&mut self, n: usize, inc: u64, renewal: u64) {
        if !self.current(n, inc) || self.nodes[n].agent.renewal != renewal {
            return;
        }
        let op = self.next_op(n);
        let sent = self.clock(n);
        self.agent(n).renewing = Some((op, sent));
        self.ask_store(n, (Slot::Lease, op), Request::Renew, CALL);
    }

    fn renewed(&mut self, n: usize, sent: Moment, result: &Ended) {
        self.agent(n).renewing = None;
        let (inc, renewal) = (self.nodes[n].agent.inc, self.nodes[n].agent.renewal);
        match result {
            Ended::Answer(answer) if matches!(**answer, Answer::Done) => self.hold(n, sent),
            Ended::Answer(_) | Ended::Failed(_) | Ended::Done => {
                self.log(n, || "the lease is lost".into());
                self.agent(n).lease = Lease::Lost;
                self.woken(n);
            }
            Ended::Unknown => self.at(200_000, Ev::Renewal(n, inc, renewal)),
        }
        if std::mem::take(&mut self.agent(n).forget) {
            self.forgotten(n);
        }
    }

    fn forget(&mut self, n: usize) {
        if self.agent(n).renewing.is_some() {
            self.agent(n).forget = true;
        } else {
            self.forgotten(n);
        }
    }

    fn send_release(&mut self, n: usize) {
        let lease = self.nodes[n].agent.released.or_else(|| self.store.lease_of(&name(n)));
        self.agent(n).released = lease;
        self.send_act(n, Request::Release(lease));
    }

    fn forgotten(&mut self, n: usize) {
        let agent = self.agent(n);
        agent.lease = Lease::None;
        agent.renewal += 1;
        match self.acting(n).and_then(|acting| acting.current.clone()) {
            Some(Action::Release) => self.send_release(n),
            Some(_) | None => self.act(n),
        }
    }

    // ---- observe

    pub(crate) fn woken(&mut self, n: usize) {
        self.agent(n).woken = true;
        if matches!(self.agent(n).stage, Stage::Waiting { .. }) {
            self.tick(n);
        }
    }

    pub(crate) fn wake(&mut self, n: usize, inc: u64, id: u64) {
        if self.current(n, inc) && matches!(self.agent(n).stage, Stage::Waiting { id: waits } if waits == id)
        {
            self.tick(n);
        }
    }

    fn tick(&mut self, n: usize) {
        if let Some((job, result)) = self.agent(n).finished.take() {
            self.take_in(n, job, result);
        }
        self.observe(n);
    }

    fn observe(&mut self, n: usize) {
        self.agent(n).woken = false;
        let op = self.next_op(n);
        let patience = match self.nodes[n].agent.lease {
            Lease::Held { sent, ttl } => self
                .clock(n)
                .until(sent + ttl - demote_margin(ttl))
                .clamp(SNAPSHOT_AT_LEAST, SNAPSHOT_PATIENCE),
            Lease::None | Lease::Lost => SNAPSHOT_PATIENCE,
        };
        self.agent(n).stage = Stage::Observing { op, snapshot: None, local: None };
        self.ask_store(n, (Slot::Observe, op), Request::Snapshot, patience);
        let inc = self.nodes[n].agent.inc;
        let takes =
            if self.rng.chance(20) { self.rng.range(20_000, 900_000) } else { self.rng.range(500, 6_000) };
        self.at(takes, Ev::LocalStatus(n, inc, op));
    }

    pub(crate) fn local_status(&mut self, n: usize, inc: u64, at: u64) {
        if !self.current(n, inc) {
            return;
        }
        let status = self.pg_status(n);
        if let Stage::Observing { op, local, .. } = &mut self.agent(n).stage
            && *op == at
        {
            *local = Some(status);
            self.observed(n);
        }
    }

    pub(crate) fn op_done(&mut self, n: usize, inc: u64, (slot, of): (Slot, u64), result: Ended) {
        if !self.current(n, inc) {
            return;
        }
        match (slot, &mut self.agent(n).stage) {
            (Slot::Lease, _) => {
                if let Some((op, sent)) = self.agent(n).renewing
                    && op == of
                {
                    self.renewed(n, sent, &result);
                }
            }
            (Slot::Observe, Stage::Observing { op, snapshot, .. }) if *op == of && snapshot.is_none() => {
                *snapshot = Some(match result {
                    Ended::Answer(answer) => match *answer {
                        Answer::Snapshot(snapshot) => Some(snapshot),
                        Answer::Done | Answer::Conflict => None,
                    },
                    Ended::Unknown | Ended::Done | Ended::Failed(_) => None,
                });
                self.observed(n);
            }
            (Slot::Act, Stage::Acting(acting)) if acting.op == of => self.acted(n, result),
            (Slot::Observe | Slot::Act, _) => {}
        }
    }

    fn observed(&mut self, n: usize) {
        let Stage::Observing { snapshot: Some(_), local: Some(_), .. } = self.agent(n).stage else { return };
        let now = self.clock(n);
        let stage = std::mem::replace(&mut self.agent(n).stage, Stage::Gone);
        let Stage::Observing { snapshot: Some(snapshot), local: Some(local), .. } = stage else { return };
        let store = self.saw_store(n, snapshot, now);
        let disk = &self.nodes[n].disk;
        let volume = Volume { system_id: disk.system_id, bootstrap: disk.bootstrap, promoted: disk.promoted };
        let node_id = NodeId(format!("{:016x}", n * 16 + disk.generation as usize));
        let agent = &mut self.nodes[n].agent;
        let mut view = View {
            now,
            me: name(n),
            node_id,
            phase: agent.phase,
            rules: agent.rules.clone(),
            store,
            lease: agent.lease,
            local,
            doing: agent.doing,
            volume,
            memory: agent.memory.clone(),
        };
        match view.instance() {
            Instance::Primary(..) | Instance::Standby(..) => agent.unanswered_start = false,
            Instance::Down if std::mem::take(&mut agent.unanswered_start) => {
                agent.memory.failed(Job::Start, now, "it ended".into());
            }
            Instance::Down | Instance::Silent | Instance::Ending => {}
        }
        agent.memory.saw_instance(&view);
        view.memory = agent.memory.clone();
        self.decided(n, view);
    }

    fn saw_store(&mut self, n: usize, snapshot: Option<Box<Snapshot>>, now: Moment) -> Store {
        let agent = &mut self.nodes[n].agent;
        let Some(snapshot) = snapshot else {
            return Store::Silent { since: *agent.silent_since.get_or_insert(now), why: "no answer".into() };
        };
        agent.silent_since = None;
        agent.memory.saw_store(&name(n), &snapshot, now, None);
        if let Some(config) = snapshot.config.as_ref().filter(|c| Some(c.revision) != agent.config) {
            agent.config = Some(config.revision);
            agent.rules = agent.environment.with_config(&config.value).0;
        }
        let number = |m: &pgherd::dcs::Member| m.name.as_str()[1..].parse().expect("n0, n1, ...");
        agent.others = snapshot.members.iter().map(number).filter(|i| *i != n).collect();
        Store::Fresh(snapshot)
    }

    fn decided(&mut self, n: usize, view: View) {
        let decision = decide(&view);
        if self.timeline.is_some() {
            let reason = decision.reason.to_string();
            if reason != self.agent(n).last_reason {
                self.agent(n).last_reason.clone_from(&reason);
                self.log(n, || format!("decides: {reason}"));
            }
        }
        self.tell_others(n, &view);
        if matches!(view.instance(), Instance::Down | Instance::Standby(..)) && view.lease == Lease::None {
            self.nodes[n].deadman = None;
        }
        self.agent(n).stage = Stage::Acting(Box::new(Acting {
            queue: decision.actions.iter().cloned().collect(),
            current: None,
            wake: decision.wake,
            finished: decision.actions.contains(&Action::Finish),
            op: 0,
            sent: Moment(0),
            releases: 0,
            member_put: false,
            view,
        }));
        self.act(n);
    }

    fn tell_others(&mut self, n: usize, view: &View) {
        let running = publish::state(view) == pgherd::dcs::MemberState::Running;
        let page = match view.instance() {
            Instance::Primary(..) if running => PollAnswer::Primary,
            Instance::Standby(answer, position) if running => PollAnswer::Standby(Candidate {
                timeline: answer.timeline,
                position,
                motion: if view.memory.frozen.is_some() { Motion::Frozen } else { Motion::Streaming },
                eligibility: Eligibility::Eligible,
            }),
            Instance::Primary(..) | Instance::Standby(..) => PollAnswer::Down,
            Instance::Down | Instance::Silent | Instance::Ending => PollAnswer::Down,
        };
        let local = view.control().map(|c| c.system_id);
        if local.is_some() && local == view.cluster_system_id() {
            self.nodes[n].disk.system_id = local;
        }
        let facts = publish::data_facts(&view.local, view.volume.system_id);
        let agent = self.agent(n);
        (agent.page, agent.data_page) = (Some(page), facts.system_id);
    }

    // ---- act

    fn acting(&mut self, n: usize) -> Option<&mut Acting> {
        match &mut self.agent(n).stage {
            Stage::Acting(acting) => Some(acting),
            Stage::Gone | Stage::Observing { .. } | Stage::Waiting { .. } => None,
        }
    }

    fn send_act(&mut self, n: usize, request: Request) {
        let op = self.next_op(n);
        let now = self.clock(n);
        let Some(acting) = self.acting(n) else { return };
        (acting.op, acting.sent) = (op, now);
        self.ask_store(n, (Slot::Act, op), request, CALL);
    }

    fn local(&mut self, n: usize, what: LocalOp, from: u64, to: u64) {
        let op = self.next_op(n);
        let inc = self.nodes[n].agent.inc;
        let Some(acting) = self.acting(n) else { return };
        acting.op = op;
        let takes = self.rng.range(from, to);
        self.at(takes, Ev::Local(n, inc, op, Box::new(what)));
    }

    fn act(&mut self, n: usize) {
        let Some(acting) = self.acting(n) else { return };
        match acting.queue.pop_front() {
            Some(action) => {
                acting.current = Some(action.clone());
                self.perform(n, action);
            }
            None => self.put_member(n),
        }
    }

    fn put_member(&mut self, n: usize) {
        let Some(acting) = self.acting(n) else { return };
        acting.current = None;
        if acting.view.snapshot().is_none() || std::mem::replace(&mut acting.member_put, true) {
            return self.acted_all(n);
        }
        let member = publish::member(&acting.view, &addresses(n));
        self.send_act(n, Request::Member(Box::new(member)));
    }

    fn acted_all(&mut self, n: usize) {
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

    fn perform(&mut self, n: usize, action: Action) {
        let put = |document, when| Request::Put(Box::new(document), when);
        match action {
            Action::Acquire(claim) => self.send_act(n, Request::Acquire(claim)),
            Action::Release | Action::Forget => {
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
                self.log(n, || format!("writes the sync key: {:?} of {:?}", sync.quorum, sync.sync_standby));
                self.send_act(n, put(Document::Sync(sync), when));
            }
            Action::DeleteSync(revision) => self.send_act(n, Request::DeleteSync(revision)),
            Action::PutStatus(lsn) => {
                let Some(acting) = self.acting(n) else { return };
                let status = publish::status(&acting.view, lsn);
                let stored = acting.view.snapshot().and_then(|s| s.status.as_ref());
                if stored.is_some_and(|s| s.value == status) {
                    return self.act(n);
                }
                self.send_act(n, put(Document::Status(status), Precondition::None));
            }
            Action::PutHistory(timeline) => self.put_history(n, timeline),
            Action::Start(how, names) => {
                let upstream = match how {
                    StartAs::Primary => None,
                    StartAs::Standby(upstream) => Some(upstream.as_ref().map(index)),
                };
                self.local(n, LocalOp::Start(upstream, names), 10_000, 80_000);
            }
            Action::Follow(upstream) => self.local(n, LocalOp::Follow(index(&upstream)), 3_000, 30_000),
            Action::Freeze => self.local(n, LocalOp::Freeze, 3_000, 30_000),
            Action::SetSyncNames(names) => self.local(n, LocalOp::Names(names), 3_000, 40_000),
            Action::SetSlots(wanted) => {
                self.nodes[n].pg.slots = wanted.into_iter().collect();
                self.local(n, LocalOp::Slots, 1_000, 10_000);
            }
            Action::Begin(task) => {
                self.begin(n, task);
                self.act(n);
            }
            Action::Finish => self.act(n),
        }
    }

    fn put_history(&mut self, n: usize, timeline: Timeline) {
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
    fn acted(&mut self, n: usize, result: Ended) {
        let Some(acting) = self.acting(n) else { return };
        let sent = acting.sent;
        let ok = match &result {
            Ended::Done => true,
            Ended::Answer(answer) => matches!(**answer, Answer::Done),
            Ended::Unknown | Ended::Failed(_) => false,
        };
        match (acting.current.clone(), ok) {
            (None, _) => return self.acted_all(n),
            (Some(Action::Acquire(_)), true) => self.hold(n, sent),
            (Some(Action::Release), false) if acting.releases + 1 < RELEASES => {
                acting.releases += 1;
                return self.local(n, LocalOp::ReleaseAgain, 100_000, 100_001);
            }
            (Some(Action::Release), _) => {}
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
            LocalOp::Start(upstream, names) => self.start_postgres(n, upstream, &names),
            LocalOp::Follow(to) => {
                if self.nodes[n].pg.conn.is_some_and(|c| c.to != to) {
                    self.disconnect(n);
                }
                self.nodes[n].pg.upstream = Some(to);
                let memory = &mut self.agent(n).memory;
                memory.frozen = None;
                let upstream = self.upstream(n, to);
                self.agent(n).memory.following = upstream;
                Ok(())
            }
            LocalOp::Names(names) if self.nodes[n].pg.state == State::Ready => {
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
    fn frozen(&self, n: usize) -> Option<()> {
        let pg = &self.nodes[n].pg;
        let replayed = self.files(n).map(|f| f.replayed)?;
        let still = pg.received.is_none_or(|received| replayed >= received);
        (pg.state == State::Ready && !pg.primary && still).then_some(())
    }

    /// The upstream as this node was told.
    fn upstream(&mut self, n: usize, to: usize) -> Option<Upstream> {
        let acting = self.acting(n)?;
        let member = acting.view.snapshot()?.member(&name(to))?;
        pgherd::ha::view::upstream(member)
    }

    fn start_postgres(
        &mut self,
        n: usize,
        upstream: Option<Option<usize>>,
        names: &str,
    ) -> Result<(), String> {
        let now = self.clock(n);
        if let Err(why) = self.pg_start(n, upstream, names) {
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

    // ---- jobs

    fn begin(&mut self, n: usize, task: Task) {
        let now = self.clock(n);
        let job = task.job();
        if job == Job::Initdb {
            self.nodes[n].disk.bootstrap = Bootstrap::Pending;
        }
        if job == Job::Promote {
            let branch = self.nodes[n].disk.files.as_ref().map(|files| files.branch);
            let present = branch.map(|b| self.branches[b].tli);
            self.nodes[n].disk.promoted = present.map(|timeline| Timeline(timeline + 1));
        }
        let others = (0..self.nodes.len()).filter(|i| *i != n).collect();
        let agent = self.agent(n);
        agent.job += 1;
        (agent.finished, agent.doing) = (None, Some(Doing { job, since: now }));
        (agent.task, agent.source) = (Some(task.clone()), None);
        agent.said.clear();
        agent.asked = if job == Job::Poll { agent.others.clone() } else { others };
        let (inc, id) = (agent.inc, agent.job);
        let work = |takes, step| (takes, Ev::Work(n, inc, id, step));
        let (takes, event) = match task {
            Task::Initdb => work(self.rng.range(300_000, 2_000_000), 0),
            Task::FinishBootstrap => work(self.rng.range(50_000, 600_000), 0),
            Task::Clone(_) | Task::Rewind(_) => work(self.rng.range(5_000, 60_000), 0),
            Task::Compare(_) => work(self.rng.range(5_000, 40_000), 0),
            Task::Promote => {
                self.at(10_000_000, Ev::Work(n, inc, id, 1));
                work(self.rng.range(3_000, 30_000), 0)
            }
            Task::StopAfterCheckpoint(_) => work(self.rng.range(20_000, 2_000_000), 0),
            Task::Stop(_) => work(0, 0),
            Task::Poll | Task::Survey => {
                for to in self.nodes[n].agent.asked.clone() {
                    if self.reaches(n, to) {
                        let delay = self.latency(n, to);
                        self.at(delay, Ev::Ask(n, inc, id, to));
                    }
                }
                work(2_000_000, 0)
            }
        };
        self.at(takes, event);
    }

    pub(crate) fn work(&mut self, n: usize, inc: u64, job: u64, step: u8) {
        let valid =
            self.current(n, inc) && self.nodes[n].agent.job == job && self.nodes[n].agent.doing.is_some();
        let Some(task) =
            self.nodes[n].agent.task.clone().filter(|_| valid && self.nodes[n].agent.finished.is_none())
        else {
            return;
        };
        match task {
            Task::Initdb => {
                self.pg_initdb(n);
                self.ends(n, Ok(Out::Initialised));
            }
            Task::FinishBootstrap if self.accepts(n) => self.ends(n, Ok(Out::Bootstrapped)),
            Task::FinishBootstrap => self.ends(n, Err("no answer".into())),
            Task::Clone(up) => self.copy(n, index(&up), step),
            Task::Rewind(up) => self.rewind(n, index(&up), step),
            Task::Compare(up) => self.compare(n, &up, step),
            Task::Promote if step == 0 => {
                let pid = self.nodes[n].pg.pid;
                self.at(0, Ev::Promote(n, pid));
            }
            Task::Promote => self.ends(n, Err("it is no primary yet".into())),
            Task::Stop(mode) | Task::StopAfterCheckpoint(mode) => {
                let patience = match mode {
                    StopMode::Fast { patience } => Some(patience.as_micros() as u64),
                    StopMode::Immediate => None,
                };
                self.pg_stop(n, patience);
                self.log(n, || "stops PostgreSQL".into());
                self.at(0, Ev::Process(n));
            }
            Task::Poll | Task::Survey => self.all_said(n),
        }
    }

    /// Whether the source can be worked with, and is still the process that it was.
    fn source(&mut self, n: usize, from: usize) -> Result<(), String> {
        let up = &self.nodes[from];
        let there = up.pg.state == State::Ready && !up.paused && up.disk.files.is_some();
        if !there || !self.both_ways(n, from) {
            return Err("the source does not answer".into());
        }
        let pid = self.nodes[from].pg.pid;
        let known = self.agent(n).source.get_or_insert((from, pid)).1;
        if known == pid { Ok(()) } else { Err("the source has restarted".into()) }
    }

    fn copy(&mut self, n: usize, from: usize, step: u8) {
        if self.nodes[n].pg.state != State::Down {
            return self.ends(n, Err("PostgreSQL still runs".into()));
        }
        if let Err(why) = self.source(n, from) {
            return self.ends(n, Err(why));
        }
        if step == 0 {
            if self.nodes[n].disk.files.is_none() {
                self.nodes[n].disk.incomplete = Some("a clone did not finish");
            }
            return self.later(n, 300_000, 5_000_000);
        }
        let result = self.pg_clone(n, from).map(|()| Out::Cloned);
        self.check_copies(n);
        self.ends(n, result);
    }

    fn rewind(&mut self, n: usize, from: usize, step: u8) {
        if self.nodes[n].pg.state != State::Down {
            return self.ends(n, Err("PostgreSQL still runs".into()));
        }
        if let Err(why) = self.source(n, from) {
            return self.ends(n, Err(why));
        }
        if step == 0 {
            self.nodes[n].disk.incomplete = Some("a rewind did not finish");
            return self.later(n, 100_000, 2_000_000);
        }
        let result = self.pg_rewind(n, from).map(|()| Out::Rewound);
        self.check_copies(n);
        self.ends(n, result);
    }

    fn later(&mut self, n: usize, from: u64, to: u64) {
        let (inc, job) = (self.nodes[n].agent.inc, self.nodes[n].agent.job);
        let takes = self.rng.range(from, to);
        self.at(takes, Ev::Work(n, inc, job, 1));
    }

    fn compare(&mut self, n: usize, up: &Upstream, step: u8) {
        let from = index(up);
        if self.source(n, from).is_err() {
            let refused = self.both_ways(n, from) && !self.nodes[from].paused;
            if step == 0 && !refused {
                return self.later(n, 5_000_000, 5_000_001);
            }
            return self.ends(n, Err("no answer".into()));
        }
        let Some(branch) = self.files(from).map(|f| f.branch) else {
            return self.ends(n, Err("no answer".into()));
        };
        let (timeline, history) = (Timeline(self.tli(branch)), self.history(branch));
        let at = self.clock(n);
        self.ends(n, Ok(Out::Compared(Ancestry { leader: up.name.clone(), at, timeline, history })));
    }

    pub(crate) fn asked(&mut self, n: usize, inc: u64, job: u64, to: usize) {
        let agent = &self.nodes[to].agent;
        if !agent.alive || !self.reaches(to, n) {
            return;
        }
        let page = agent.page.clone().unwrap_or(PollAnswer::Unreachable);
        let id = agent.data_page;
        let delay = self.latency(to, n);
        self.at(delay, Ev::Said(n, inc, job, to, page, id));
    }

    pub(crate) fn said(
        &mut self,
        (n, inc, job): (usize, u64, u64),
        from: usize,
        answer: PollAnswer,
        id: Option<SystemId>,
    ) {
        if !self.current(n, inc) || self.nodes[n].agent.job != job || self.nodes[n].agent.finished.is_some() {
            return;
        }
        let agent = self.agent(n);
        agent.said.insert(from, (answer, id));
        if agent.said.len() == agent.asked.len() {
            self.all_said(n);
        }
    }

    fn all_said(&mut self, n: usize) {
        let agent = self.agent(n);
        if agent.finished.is_some() {
            return;
        }
        let said = std::mem::take(&mut agent.said);
        let asked = agent.asked.clone();
        let out = if agent.doing.is_some_and(|d| d.job == Job::Poll) {
            let answer = |i: &usize| said.get(i).map_or(PollAnswer::Unreachable, |(a, _)| a.clone());
            Out::Polled(asked.iter().map(|i| (name(*i), answer(i))).collect())
        } else {
            let answer = |i: &usize| match said.get(i) {
                None => SurveyAnswer::Silent,
                Some((_, id)) => id.map_or(SurveyAnswer::NoData, SurveyAnswer::Data),
            };
            Out::Surveyed(asked.iter().map(|i| (address(*i), answer(i))).collect())
        };
        self.ends(n, Ok(out));
    }

    fn ends(&mut self, n: usize, result: Result<Out, String>) {
        let agent = self.agent(n);
        let Some(doing) = agent.doing else { return };
        agent.finished = Some((doing.job, result));
        if matches!(self.agent(n).stage, Stage::Waiting { .. }) {
            self.tick(n);
        }
    }

    fn take_in(&mut self, n: usize, job: Job, result: Result<Out, String>) {
        let now = self.clock(n);
        let agent = self.agent(n);
        agent.doing = None;
        let out = match result {
            Ok(out) => out,
            Err(why) => {
                agent.memory.failed(job, now, why.clone());
                return self.log(n, || format!("{job:?} failed: {why}"));
            }
        };
        agent.memory.succeeded(job);
        match out {
            Out::Stopped | Out::Initialised => {}
            Out::Bootstrapped => self.nodes[n].disk.bootstrap = Bootstrap::Settled,
            Out::Cloned => {
                agent.memory.ancestry = None;
                agent.memory.succeeded(Job::Rewind);
                self.nodes[n].disk.bootstrap = Bootstrap::Settled;
                self.nodes[n].disk.promoted = None;
            }
            Out::Rewound => {
                agent.memory.ancestry = None;
                self.nodes[n].disk.promoted = None;
            }
            Out::Promoted => agent.memory.checkpoint = Checkpoint::Owed,
            Out::Polled(answers) => agent.memory.poll = Some(Poll { at: now, answers }),
            Out::Surveyed(answers) => agent.memory.survey = Some(Survey { at: now, answers }),
            Out::Compared(ancestry) => agent.memory.ancestry = Some(ancestry),
        }
        self.process(n);
    }

    /// The local process has changed, or what was asked of it is done.
    pub(crate) fn process(&mut self, n: usize) {
        if !self.nodes[n].agent.alive {
            return;
        }
        self.arm(n);
        let pg = &self.nodes[n].pg;
        let (state, primary, made) = (pg.state, pg.primary, !pg.checkpoint_owed);
        let agent = self.agent(n);
        if agent.memory.checkpoint == Checkpoint::Owed && made {
            agent.memory.checkpoint = Checkpoint::Made;
        }
        let result = match agent.doing.map(|d| d.job).filter(|_| agent.finished.is_none()) {
            Some(Job::Stop) if state == State::Down => Some(Ok(Out::Stopped)),
            Some(Job::Promote) if state == State::Down => Some(Err("it has ended".to_owned())),
            Some(Job::Promote) if primary && state == State::Ready => Some(Ok(Out::Promoted)),
            Some(_) | None => None,
        };
        if let Some(result) = result {
            agent.finished = agent.doing.map(|d| (d.job, result));
        }
    }

    pub(crate) fn process_changed(&mut self, n: usize) {
        self.at(1_000, Ev::Process(n));
    }
}
