//! etcd's process under the real `supervisor::unit`: it starts, or does not; it ends when it is removed, killed or told to; what is
//! left of it is swept before another one is started.

use std::time::Duration;

use nix::sys::signal::Signal;
use pgherd::clock::Backoff;
use pgherd::etcd::view::Ending;
use pgherd::process::Exit;
use pgherd::supervisor::unit::{Action, At, Event, Machine};
use pgherd::supervisor::{Restart, Rung, UnitState};

use crate::world::{Ev, World};

/// How `etcd::agent` spaces its attempts.
const RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) };
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// SIGTERM, and SIGKILL for what is left.
const PATIENCE: Duration = Duration::from_secs(5);

/// What there is of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Gone,
    Alive,
    /// It ends by itself in a moment.
    Leaving,
    /// It has ended, and what it has left lives on.
    Remains,
}

/// etcd's process on one node.
pub(crate) struct Process {
    machine: Machine,
    life: Life,
    pid: u32,
    last_words: Ending,
    failures: u32,
    /// Its data is put aside as soon as it is down.
    pub(crate) puts_aside: bool,
}

impl Process {
    pub(crate) fn new() -> Self {
        Self {
            machine: Machine::new(Restart::Never),
            life: Life::Gone,
            pid: 0,
            last_words: Ending::Other,
            failures: 0,
            puts_aside: false,
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.life, Life::Alive | Life::Leaving)
    }

    fn state(&self) -> UnitState {
        self.machine.published().unwrap_or(UnitState::Down { last: None })
    }
}

impl World {
    /// What `etcd::agent` makes of the unit at each look: a run that has ended is classified once.
    pub(crate) fn look_at_etcd(&mut self, n: usize) {
        self.put_aside(n);
        let now = self.clock(n);
        let here = &mut self.nodes[n].etcd;
        let local = &mut here.view.local;
        let ran = local.unit.running_since();
        local.unit = here.process.state();
        if let Some(since) = ran.filter(|_| local.unit.running_since() != ran) {
            let lasted = now.since(since);
            let failures = if lasted > HEALTHY_AFTER { 0 } else { here.process.failures + 1 };
            here.process.failures = failures;
            local.retry_at = Some(now + RETRY.delay(failures, 0.5));
            local.ending = Some(here.process.last_words);
            here.view.store = None;
        }
    }

    /// It is started, with the number that its data has in a store.
    pub(crate) fn start_etcd(&mut self, n: usize) {
        let Some((store, own)) = self.nodes[n].etcd.data else { return };
        if self.nodes[n].etcd.process.machine.refusal().is_some() {
            return self.be_patient(n);
        }
        let local = &mut self.nodes[n].etcd.view.local;
        (local.ending, local.silent_since) = (None, None);
        self.etcd_step(n, Event::StartAsked);
        if !self.nodes[n].etcd.process.is_alive() {
            return self.be_patient(n);
        }
        let id = self.nodes[n].etcd.view.record.node_id.0.clone();
        if !self.names_member(store, own, id) {
            self.etcd_leaves(n);
        }
    }

    /// Its member is gone from the store: it says so and ends.
    pub(crate) fn etcd_leaves(&mut self, n: usize) {
        let process = &mut self.nodes[n].etcd.process;
        if process.life == Life::Alive {
            (process.life, process.last_words) = (Life::Leaving, Ending::Removed);
            let (pid, takes) = (process.pid, self.rng.range(50_000, 600_000));
            self.at(takes, Ev::EtcdExit(n, pid));
        }
    }

    pub(crate) fn crash_etcd(&mut self, n: usize) {
        let process = &mut self.nodes[n].etcd.process;
        if !process.is_alive() {
            return self.leave_out("no etcd of its own runs there".into());
        }
        process.last_words = Ending::Other;
        let pid = process.pid;
        self.etcd_exit(n, pid);
    }

    /// The directory is renamed once nothing of the process is left.
    pub(crate) fn quarantine_etcd(&mut self, n: usize) {
        self.nodes[n].etcd.process.puts_aside = true;
        let ladder = vec![Rung { signal: Signal::SIGTERM, wait: PATIENCE }];
        self.etcd_step(n, Event::StopAsked { ladder });
        self.put_aside(n);
    }

    fn put_aside(&mut self, n: usize) {
        let here = &mut self.nodes[n].etcd;
        let down = matches!(here.process.state(), UnitState::Down { .. });
        if !down || !std::mem::take(&mut here.process.puts_aside) {
            return;
        }
        (here.data, here.view.store) = (None, None);
        let local = &mut here.view.local;
        (local.joined, local.ending, local.retry_at) = (None, None, None);
        local.unit = here.process.state();
        here.view.memory.ballot = None;
        self.log(n, || "etcd's data is put aside".into());
    }

    pub(crate) fn etcd_unit(&mut self, n: usize, inc: u64, event: Event) {
        if self.current(n, inc) {
            self.etcd_step(n, event);
        }
    }

    fn etcd_step(&mut self, n: usize, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let at = At { now: self.clock(n), jitter: 0.5 };
            for action in self.nodes[n].etcd.process.machine.step(event, at) {
                match action {
                    Action::Spawn { generation } => {
                        let pid = self.spawn_etcd(n);
                        events.push(pid.map_or(Event::StartFailed { generation }, |pid| Event::Started {
                            generation,
                            pid,
                        }));
                    }
                    Action::Signal(signal) => {
                        let takes =
                            if signal == Signal::SIGKILL { 1_000 } else { self.rng.range(20_000, 900_000) };
                        let pid = self.nodes[n].etcd.process.pid;
                        self.at(takes, Ev::EtcdExit(n, pid));
                    }
                    Action::Sweep => {
                        let (pid, takes) = (self.nodes[n].etcd.process.pid, self.rng.range(200, 20_000));
                        self.at(takes, Ev::EtcdGone(n, pid));
                    }
                    Action::Complain { .. } => {}
                }
            }
        }
        if let Some(deadline) = self.nodes[n].etcd.process.machine.deadline() {
            let (delay, inc) = (self.until(n, deadline), self.nodes[n].agent.inc);
            self.at(delay, Ev::EtcdUnit(n, inc, Event::TimePassed));
        }
    }

    /// Now and then it cannot be executed.
    fn spawn_etcd(&mut self, n: usize) -> Option<u32> {
        if self.nodes[n].etcd.process.life != Life::Gone {
            self.violate("start-before-gone", format!("n{n} starts an etcd beside what is left of the last"));
        }
        if self.rng.chance(20) {
            return None;
        }
        let process = &mut self.nodes[n].etcd.process;
        (process.life, process.last_words) = (Life::Alive, Ending::Other);
        process.pid += 1;
        Some(process.pid)
    }

    /// The process has ended; its parent learns of it.
    pub(crate) fn etcd_exit(&mut self, n: usize, pid: u32) {
        let process = &mut self.nodes[n].etcd.process;
        if process.pid != pid || !process.is_alive() {
            return;
        }
        process.life = Life::Remains;
        let generation = process.machine.generation();
        let inc = self.nodes[n].agent.inc;
        self.log(n, || "etcd's process has ended".into());
        self.at(500, Ev::EtcdUnit(n, inc, Event::Exited { generation, exit: Exit::Code(1) }));
    }

    pub(crate) fn etcd_gone(&mut self, n: usize, pid: u32) {
        let process = &mut self.nodes[n].etcd.process;
        if process.pid != pid || process.life != Life::Remains {
            return;
        }
        process.life = Life::Gone;
        let generation = process.machine.generation();
        let inc = self.nodes[n].agent.inc;
        self.at(100, Ev::EtcdUnit(n, inc, Event::Gone { generation }));
    }
}
