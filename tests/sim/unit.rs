//! PostgreSQL's processes under the real `supervisor::unit`: what its task does with the machine's actions, and what processes
//! do when they are signalled. Whoever outlives the postmaster is gone some milliseconds after a sweep, now and then a second.

use nix::sys::signal::Signal;

use pgherd::process::Exit;
use pgherd::supervisor::UnitState;
use pgherd::supervisor::unit::{Action, At, Event};

use crate::postgres::State;
use crate::world::{Ev, World};

/// What nobody sweeps ends by itself when it looks for its postmaster.
const UNSWEPT: u64 = 5_000_000;

impl World {
    /// What the unit says of itself.
    pub(crate) fn unit_state(&self, n: usize) -> UnitState {
        self.nodes[n].agent.unit.published().unwrap_or(UnitState::Down { last: None })
    }

    pub(crate) fn unit_is_down(&self, n: usize) -> bool {
        matches!(self.unit_state(n), UnitState::Down { .. })
    }

    /// Something happened to the process of this life of the agent.
    pub(crate) fn unit_event(&mut self, n: usize, inc: u64, event: Event) {
        if !self.current(n, inc) {
            return;
        }
        let before = self.unit_state(n);
        self.unit_step(n, event, |_, _| Err("it is not restarted by itself".into())).ok();
        if self.unit_state(n) != before {
            self.process(n);
            self.woken(n);
        }
    }

    /// Applies an event and everything that follows from it at once; an error is that of a spawn.
    pub(crate) fn unit_step(
        &mut self,
        n: usize,
        event: Event,
        mut spawn: impl FnMut(&mut Self, usize) -> Result<u32, String>,
    ) -> Result<(), String> {
        let mut outcome = Ok(());
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let at = At { now: self.clock(n), jitter: 0.5 };
            for action in self.agent(n).unit.step(event, at) {
                match action {
                    Action::Spawn { generation } => {
                        self.check_spawn(n);
                        match spawn(self, n) {
                            Ok(pid) => events.push(Event::Started { generation, pid }),
                            Err(why) => {
                                events.push(Event::StartFailed { generation });
                                outcome = Err(why);
                            }
                        }
                    }
                    Action::Signal(signal) => self.pg_signal(n, signal),
                    Action::Sweep => self.sweep(n),
                    Action::Complain { .. } => {}
                }
            }
        }
        if let Some(deadline) = self.nodes[n].agent.unit.deadline() {
            let (delay, inc) = (self.until(n, deadline), self.nodes[n].agent.inc);
            self.at(delay, Ev::Unit(n, inc, Event::TimePassed));
        }
        outcome
    }

    fn check_spawn(&mut self, n: usize) {
        if self.nodes[n].pg.state != State::Down {
            self.violate(
                "start-before-gone",
                format!("n{n} starts a server beside what is left of the last"),
            );
        }
    }

    /// A process of the server is signalled; one that hangs takes it in when it goes on.
    pub(crate) fn pg_signal(&mut self, n: usize, signal: Signal) {
        let shutdown = if self.rng.chance(100) { 10_000_000 } else { self.rng.range(30_000, 400_000) };
        let quit = self.rng.range(20_000, 400_000);
        let pg = &mut self.nodes[n].pg;
        if matches!(pg.state, State::Down | State::Draining) {
            return;
        }
        let pid = pg.pid;
        if signal == Signal::SIGKILL {
            return self.at(1_000, Ev::PgDown(n, pid, false));
        }
        if pg.hung {
            pg.pending = Some(signal);
            return;
        }
        let starts = pg.state == State::Starting;
        pg.state = State::Stopping;
        pg.waiters.clear();
        let orderly = signal == Signal::SIGINT;
        self.at(if orderly { shutdown } else { quit }, Ev::PgDown(n, pid, orderly && !starts));
    }

    /// `init` stops a server whose agent is gone, or too late: SIGQUIT, and what is left after 300 ms.
    pub(crate) fn init_stops(&mut self, n: usize) {
        self.pg_signal(n, Signal::SIGQUIT);
        let pid = self.nodes[n].pg.pid;
        self.at(300_000, Ev::PgDown(n, pid, false));
    }

    /// The postmaster has ended: its parent learns of it.
    pub(crate) fn pg_exited(&mut self, n: usize, clean: bool) {
        let pid = self.nodes[n].pg.pid;
        self.at(UNSWEPT, Ev::Gone(n, pid));
        let agent = &self.nodes[n].agent;
        if !agent.alive {
            return self.sweep(n);
        }
        let exit = if clean { Exit::Code(0) } else { Exit::Signal(9) };
        let (inc, generation) = (agent.inc, agent.unit.generation());
        self.at(500, Ev::Unit(n, inc, Event::Exited { generation, exit }));
    }

    /// `init` kills every orphan.
    fn sweep(&mut self, n: usize) {
        if self.nodes[n].pg.state != State::Draining || std::mem::replace(&mut self.nodes[n].pg.swept, true) {
            return;
        }
        let takes =
            if self.rng.chance(30) { self.rng.range(50_000, 1_500_000) } else { self.rng.range(200, 3_000) };
        let pid = self.nodes[n].pg.pid;
        self.at(takes, Ev::Gone(n, pid));
    }

    /// Nothing of that server is left.
    pub(crate) fn pg_gone(&mut self, n: usize, pid: u32) {
        if self.nodes[n].pg.pid != pid || self.nodes[n].pg.state != State::Draining {
            return;
        }
        self.nodes[n].pg.state = State::Down;
        let agent = &self.nodes[n].agent;
        let (inc, generation) = (agent.inc, agent.unit.generation());
        self.at(100, Ev::Unit(n, inc, Event::Gone { generation }));
    }
}
