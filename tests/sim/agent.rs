//! The simulated agent: around the real `decide` and the real memory it does what `ha::agent`, `ha::lease` and `ha::jobs`
//! do with a runtime, step by step in virtual time. It has no rule of its own.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::dcs::Snapshot;
use pgherd::ha::decide::decide;
use pgherd::ha::failsafe;
use pgherd::ha::fitness;
use pgherd::ha::lineage;
use pgherd::ha::publish::{self, Addresses};
use pgherd::ha::reason::{Action, Task, Wake};
use pgherd::ha::replication::Replication;
use pgherd::ha::rules::{Outlast, Pause, Rules, Strictness, Tags};
use pgherd::ha::view::{
    Candidate, Doing, Eligibility, Instance, Job, Later, Lease, Memory, Motion, Name, PollAnswer, Store,
    UpstreamWal, View, Volume, demote_margin,
};
use pgherd::ha::watchdog::{Guard, Margin};
use pgherd::ha::{Phase, Position};
use pgherd::postgres::status::Status;
use pgherd::postgres::{Check, Posture, Pulse, Upstream};
use pgherd::supervisor::Restart;
use pgherd::supervisor::unit::Machine;
use pgherd::types::{Access, NodeId, Revision, Room, SyncMode, SystemId, Timeline, Timing};

use crate::etcd_process::Process;
use crate::failsafe::{Asking, Promises};
use crate::faults::{Mode, Schedule, Voters};
use crate::jobs::Out;
use crate::postgres::State;
use crate::remote;
use crate::store::{Answer, Request};
use crate::world::{Ev, World, name};

pub(crate) const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(3);
pub(crate) const SNAPSHOT_AT_LEAST: Duration = Duration::from_millis(100);
pub(crate) const CALL: Duration = Duration::from_secs(3);
pub(crate) const RELEASES: usize = 5;

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
    Follow(Option<usize>),
    Freeze,
    Frozen(u64),
    Names(String),
    Slots,
    OpenDoor,
    ReleaseAgain,
    /// The record was not written in time.
    TooSlow,
}

pub(crate) enum Stage {
    Gone,
    Observing { op: u64, asked: Moment, snapshot: Option<Option<Box<Snapshot>>>, local: Option<Status> },
    Acting(Box<Acting>),
    Waiting { id: u64 },
}

pub(crate) struct Acting {
    pub(crate) view: View,
    pub(crate) queue: VecDeque<Action>,
    pub(crate) current: Option<Action>,
    pub(crate) wake: Wake,
    pub(crate) finished: bool,
    pub(crate) op: u64,
    pub(crate) sent: Moment,
    pub(crate) releases: usize,
    pub(crate) member_put: bool,
}

/// The process of one node.
pub(crate) struct Agent {
    pub(crate) inc: u64,
    pub(crate) alive: bool,
    pub(crate) phase: Phase,
    pub(crate) environment: Rules,
    pub(crate) rules: Rules,
    /// PostgreSQL's, as this life of the agent knows it.
    pub(crate) unit: Machine,
    pub(crate) memory: Memory,
    pub(crate) others: Vec<usize>,
    pub(crate) config: Option<Revision>,
    pub(crate) silent_since: Option<Moment>,
    pub(crate) doing: Option<Doing>,
    pub(crate) job: u64,
    pub(crate) task: Option<Task>,
    pub(crate) source: Option<(usize, u32)>,
    pub(crate) said: BTreeMap<usize, (PollAnswer, Option<SystemId>)>,
    pub(crate) asked: Vec<usize>,
    pub(crate) finished: Option<(Job, Result<Out, String>)>,
    pub(crate) unanswered_start: bool,
    pub(crate) lease: Lease,
    pub(crate) renewing: Option<(u64, Moment)>,
    pub(crate) renewal: u64,
    pub(crate) woken: bool,
    pub(crate) stage: Stage,
    pub(crate) op: u64,
    pub(crate) last_reason: String,
    pub(crate) page: Option<PollAnswer>,
    pub(crate) data_page: Option<SystemId>,
    pub(crate) restart: bool,
    pub(crate) promises: Promises,
    pub(crate) asking: Option<Asking>,
    /// The question whose answers last moved the lease.
    pub(crate) extended: Option<Moment>,
    /// For how long a lease counts under the watchdog that is armed.
    pub(crate) guarded_for: Option<Duration>,
    /// The lease that is being released: the same in every attempt, and never used again.
    pub(crate) released: Option<pgherd::types::LeaseId>,
}

pub(crate) fn tags(n: usize, schedule: &Schedule) -> Tags {
    let own = schedule.tags.iter().filter(|(of, _, value)| *of == n && !value.is_null());
    Tags::from_json(&own.map(|(_, tag, value)| (tag.clone(), value.clone())).collect())
}

pub(crate) fn rules(schedule: &Schedule) -> Rules {
    let seconds = |n| Duration::from_secs(n);
    let (loop_wait, retry_timeout) = match schedule.ttl {
        // Whatever is asked for, the rule holds that makes a lease one.
        ttl @ 0..10 => (1, (ttl - 1) / 2),
        10 => (2, 4),
        _ => (3, 6),
    };
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
        watchdog: Guard { need: schedule.watchdog, margin: Margin::Of(seconds(1)) },
        reserve: None,
        mode: pgherd::ha::rules::Mode::Node,
        remote: remote::followed(schedule),
        sync_node_count: schedule.synchronous_node_count,
        maximum_lag_on_failover: 1_048_576,
        outlast: if schedule.failsafe { Outlast::AllAgree } else { Outlast::Never },
        pause: Pause::Off,
        primary_start_timeout: pgherd::ha::rules::START_TIMEOUT,
        primary_stop_timeout: Duration::ZERO,
        tags: Tags::default(),
        pre_promote: None,
        replication: Replication::default(),
        server: None,
    }
}

pub(crate) fn address(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, n as u8))
}

pub(crate) fn addresses(n: usize) -> Addresses {
    Addresses {
        conn_url: format!("postgres://10.0.0.{n}:5432/postgres"),
        api_url: format!("http://10.0.0.{n}:8008/patroni"),
        proxy_url: None,
    }
}

pub(crate) fn index(upstream: &Upstream) -> usize {
    match upstream.address.address() {
        Some(IpAddr::V4(v4)) => v4.octets()[3] as usize,
        Some(IpAddr::V6(_)) | None => unreachable!("addresses of the simulator are v4"),
    }
}

impl Agent {
    pub(crate) fn new(n: usize, schedule: &Schedule) -> Self {
        let rules = Rules { tags: tags(n, schedule), ..rules(schedule) };
        Self {
            inc: 0,
            alive: false,
            phase: Phase::Serving,
            environment: rules.clone(),
            rules,
            unit: Machine::new(Restart::Never),
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
            woken: false,
            stage: Stage::Gone,
            op: 0,
            last_reason: String::new(),
            page: None,
            data_page: None,
            restart: false,
            promises: Promises::default(),
            asking: None,
            extended: None,
            guarded_for: None,
            released: None,
        }
    }
}

impl World {
    pub(crate) fn agent(&mut self, n: usize) -> &mut Agent {
        &mut self.nodes[n].agent
    }

    pub(crate) fn current(&self, n: usize, inc: u64) -> bool {
        let agent = &self.nodes[n].agent;
        agent.alive && agent.inc == inc
    }

    pub(crate) fn next_op(&mut self, n: usize) -> u64 {
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
        self.store.set_ttl(&name(n), self.schedule.ttl * 1_000_000);
        self.open_promises(n);
        if self.schedule.voters == Voters::Ours {
            self.etcd_boots(n);
        }
        self.log(n, || "starts".into());
        self.observe(n);
    }

    pub(crate) fn end_agent(&mut self, n: usize) {
        let agent = self.agent(n);
        agent.inc += 1;
        (agent.alive, agent.stage) = (false, Stage::Gone);
        self.nodes[n].frozen = false;
        self.nodes[n].etcd.process = Process::new();
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

    pub(crate) fn finish(&mut self, n: usize) {
        self.log(n, || "has stopped".into());
        let restart = self.agent(n).restart || self.is_calm();
        self.leave_watchdog(n);
        self.end_agent(n);
        self.nodes[n].off = !restart;
        if self.nodes[n].pg.state != State::Down {
            self.violate("ends-before-stop", format!("n{n} ends while its PostgreSQL runs"));
        }
        if restart {
            self.reboot(n, 500_000);
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

    pub(crate) fn tick(&mut self, n: usize) {
        if let Some((job, result)) = self.agent(n).finished.take() {
            self.take_in(n, job, result);
        }
        self.observe(n);
    }

    pub(crate) fn observe(&mut self, n: usize) {
        self.agent(n).woken = false;
        let op = self.next_op(n);
        let (lease, now) = (self.nodes[n].agent.lease, self.clock(n));
        let patience = match lease {
            Lease::Held { sent, ttl } => {
                let left = now.until(sent + ttl - demote_margin(ttl));
                let left = failsafe::patience(lease, self.nodes[n].agent.rules.outlast, now, left);
                left.clamp(SNAPSHOT_AT_LEAST, SNAPSHOT_PATIENCE)
            }
            Lease::None | Lease::Lost => SNAPSHOT_PATIENCE,
        };
        self.agent(n).stage = Stage::Observing { op, asked: now, snapshot: None, local: None };
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
                        Answer::Done | Answer::Held(_) | Answer::Conflict => None,
                    },
                    Ended::Unknown | Ended::Done | Ended::Failed(_) => None,
                });
                self.observed(n);
            }
            (Slot::Act, Stage::Acting(acting)) if acting.op == of => self.acted(n, result),
            (Slot::Observe | Slot::Act, _) => {}
        }
    }

    pub(crate) fn observed(&mut self, n: usize) {
        let Stage::Observing { snapshot: Some(_), local: Some(_), .. } = self.agent(n).stage else { return };
        let now = self.clock(n);
        let stage = std::mem::replace(&mut self.agent(n).stage, Stage::Gone);
        let Stage::Observing { asked, snapshot: Some(snapshot), local: Some(local), .. } = stage else {
            return;
        };
        let snapshot = snapshot.map(|snapshot| Box::new(Snapshot { taken: asked, ..*snapshot }));
        let store = self.saw_store(n, snapshot, now);
        self.look_at_promises(n, &store);
        let volume = self.volume(n);
        let wall = self.wall(self.nodes[n].wall_ahead);
        let node_id = NodeId(format!("{:016x}", n * 16 + self.nodes[n].disk.generation as usize));
        let misses_wal = self.nodes[n].pg.misses_wal;
        let agent = &mut self.nodes[n].agent;
        let mut view = View {
            now,
            wall,
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
        if agent.memory.not_streaming.is_some() && misses_wal {
            agent.memory.upstream_wal = UpstreamWal::Removed;
        }
        agent.memory.saw_instance(&view);
        view.memory = agent.memory.clone();
        let inc = agent.inc;
        for (check, patience) in fitness::due(&view) {
            self.agent(n).memory.vitals.ask(check, now);
            let hung = self.nodes[n].pg.hung && check != Check::Measure;
            let takes = if hung { patience.as_micros() as u64 } else { 5_000 };
            self.at(takes, Ev::Sign(n, inc, check));
        }
        self.decided(n, view);
    }

    /// What the volume remembers.
    fn volume(&self, n: usize) -> Volume {
        let disk = &self.nodes[n].disk;
        // The newest history file that lies in the data directory is that of the timeline that it is on.
        let newest = Timeline(disk.files.as_ref().map_or(0, |f| self.tli(f.branch)));
        let told = disk.files.as_ref().map_or(Timeline(0), |f| f.control.reached());
        let told = told.max(Timeline(self.nodes[n].pg.reported));
        Volume {
            system_id: disk.system_id,
            bootstrap: disk.bootstrap,
            promoted: disk.promoted,
            promoted_as: None,
            later: if newest > told { Later::MayBe } else { Later::NotSeen },
            taken: disk.followed.clone().filter(|f| newest > f.known),
            followed: disk.followed.clone(),
            adopted: None,
            unconfirmed: disk.unconfirmed,
        }
    }

    /// A sign of life that was asked for.
    pub(crate) fn sign(&mut self, n: usize, inc: u64, check: Check) {
        if !self.current(n, inc) {
            return;
        }
        let now = self.clock(n);
        let (full, accepts) = (self.nodes[n].full, self.is_primary(n));
        let room = Room { free: if full { 0 } else { 10 << 30 }, total: 20 << 30, access: Access::default() };
        let pg = &self.nodes[n].pg;
        let pulse = match (check, pg.state) {
            (Check::Measure, _) => Pulse::Measured(room),
            (Check::Knock | Check::Write, State::Down | State::Draining) => Pulse::Gone,
            (Check::Knock | Check::Write, _) if pg.hung => Pulse::Silent(Posture::Alive),
            (Check::Knock, State::Ready) => Pulse::Answered,
            (Check::Write, State::Ready) if accepts => Pulse::Wrote,
            (Check::Knock | Check::Write, State::Ready | State::Starting | State::Stopping) => {
                Pulse::Declined("starting or ending".into())
            }
        };
        self.agent(n).memory.vitals.hear(check, &pulse, now);
    }

    /// The agent has read that maintenance begins, or ends.
    fn maintenance(&mut self, n: usize, pause: Pause) {
        self.agent(n).memory.ancestry = None;
        match pause {
            Pause::On => self.nodes[n].deadman = None,
            Pause::Off => self.arm_again(n),
        }
    }

    pub(crate) fn saw_store(&mut self, n: usize, snapshot: Option<Box<Snapshot>>, now: Moment) -> Store {
        let agent = &mut self.nodes[n].agent;
        let Some(snapshot) = snapshot else {
            return Store::Silent { since: *agent.silent_since.get_or_insert(now), why: "no answer".into() };
        };
        agent.silent_since = None;
        agent.memory.saw_store(&name(n), &snapshot, now, None);
        if let Some(config) = snapshot.config.as_ref().filter(|c| Some(c.revision) != agent.config) {
            agent.config = Some(config.revision);
            let (before, pause) = (agent.rules.timing.ttl, agent.rules.pause);
            agent.rules = agent.environment.with_config(&config.value).0;
            // Settings of the server are the real server's business.
            agent.rules.server = None;
            let ttl = agent.rules.timing.ttl;
            let changed = (agent.rules.pause != pause).then_some(agent.rules.pause);
            if ttl != before {
                agent.memory.ttl_before = Some((before, now));
                self.store.set_ttl(&name(n), ttl.as_micros() as u64);
                self.shorten(n);
            }
            changed.into_iter().for_each(|pause| self.maintenance(n, pause));
        }
        let number = |m: &pgherd::dcs::Member| m.name.as_str()[1..].parse().expect("n0, n1, ...");
        self.agent(n).others = snapshot.members.iter().map(number).filter(|i| *i != n).collect();
        Store::Fresh(snapshot)
    }

    pub(crate) fn decided(&mut self, n: usize, view: View) {
        let decision = decide(&view);
        if self.timeline.is_some() {
            let reason = decision.reason.to_string();
            if reason != self.agent(n).last_reason {
                self.agent(n).last_reason.clone_from(&reason);
                self.log(n, || format!("decides: {reason}"));
            }
        }
        self.forget_what_has_settled(n, &view);
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

    fn forget_what_has_settled(&mut self, n: usize, view: &View) {
        let disk = &mut self.nodes[n].disk;
        disk.record(view, |record| lineage::forget(view, record));
    }

    pub(crate) fn tell_others(&mut self, n: usize, view: &View) {
        let running = publish::state(view) == pgherd::dcs::MemberState::Running;
        let page = match view.instance() {
            Instance::Primary(..) if running => PollAnswer::Primary,
            Instance::Standby(..) if lineage::position(view) == Position::Foreign => PollAnswer::Down,
            Instance::Standby(answer, position) if running => PollAnswer::Standby(Candidate {
                timeline: answer.timeline,
                position,
                motion: if view.memory.frozen.is_some() { Motion::Frozen } else { Motion::Streaming },
                eligibility: Eligibility::Eligible,
                priority: view.rules.tags.failover_priority,
            }),
            Instance::Primary(..) | Instance::Standby(..) => PollAnswer::Down,
            Instance::Down | Instance::Silent | Instance::Ending => PollAnswer::Down,
        };
        let local = view.control().map(|c| c.system_id);
        if local.is_some() && local == view.cluster_system_id() {
            self.nodes[n].disk.system_id = local;
        }
        let facts = publish::data_facts(&view.local, view.volume.system_id, None);
        let agent = self.agent(n);
        (agent.page, agent.data_page) = (Some(page), facts.system_id);
    }
}
