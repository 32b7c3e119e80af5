//! The life of one service as a pure machine: what happened and when, in; what to do, out.
//!
//! Invariants: at most one generation is alive; the next one starts only after the last descendant of the previous one is
//! gone; a stop is accepted in every state and always ends; an event of an older generation changes nothing.
//! Absent on purpose: processes, clocks and chance: time and jitter are arguments.

use std::collections::VecDeque;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{AfterSuccess, Restart, Rung, UnitState};
use crate::clock::Moment;
use crate::process::Exit;

/// Orphans are killed again this often: one that forks while it is being killed leaves another.
const SWEEP_EVERY: Duration = Duration::from_millis(5);
/// After this long only an uninterruptible process can be left; to hurry would only cost.
const SWEEP_HURRIED_FOR: Duration = Duration::from_secs(1);
/// How often such a process is swept, and
const SWEEP_SLOWLY: Duration = Duration::from_millis(200);
/// how often it is spoken of.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
/// What a service that cannot be executed "exits" with, as a shell would say.
const NOT_EXECUTED: Exit = Exit::Code(127);

/// One life of the service, from exec to the end of its last descendant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Generation(pub u64);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it to run. Ignored unless [`Machine::refusal`] is `None`.
    StartAsked,
    /// Somebody wants it down, by this ladder.
    StopAsked { ladder: Vec<Rung> },
    /// It was executed.
    Started { generation: Generation, pid: u32 },
    /// It runs already, started by somebody else. Ignored unless [`Machine::refusal`] is `None`.
    Adopted { pid: u32 },
    /// It could not be executed.
    StartFailed { generation: Generation },
    /// The main process ended.
    Exited { generation: Generation, exit: Exit },
    /// The process and every descendant are gone.
    Gone { generation: Generation },
    /// The machine's deadline has come (or may have).
    TimePassed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Execute it; answer with `Started` or `StartFailed`.
    Spawn { generation: Generation },
    /// Signal the main process.
    Signal(Signal),
    /// Have `init` kill every orphan.
    Sweep,
    /// Tell that something of it has refused to die for this long.
    Complain { waited: Duration },
}

/// When, and a random number in `0.0..=1.0` for a delay that may have to be chosen.
#[derive(Debug, Clone, Copy)]
pub struct At {
    pub now: Moment,
    pub jitter: f64,
}

/// What follows when everything is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    StayDown,
    RestartAt(Moment),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Down {
        last: Option<Exit>,
    },
    Starting {
        stop: Option<Vec<Rung>>,
        cause: Cause,
    },
    Running {
        pid: u32,
        since: Moment,
    },
    Stopping {
        pid: u32,
        climb: Climb,
    },
    /// SIGKILL has been sent. What does not die of it (uninterruptible IO, a frozen group) is spoken of.
    Killing {
        pid: u32,
        sweep: Sweep,
    },
    Draining {
        last: Exit,
        after: After,
        sweep: Sweep,
    },
    Backoff {
        until: Moment,
        last: Exit,
    },
}

/// Who wanted a start: a failure goes back to a caller, or to the backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Asked { last: Option<Exit> },
    Restart,
}

/// Where a stop is on its ladder; without a rung left, SIGKILL comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Climb {
    left: Vec<Rung>,
    next: Moment,
}

/// The killing of orphans, and the wait for the end of what was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sweep {
    since: Moment,
    next: Moment,
    complain: Moment,
}

/// A service's machine.
#[derive(Debug, Clone)]
pub struct Machine {
    restart: Restart,
    state: State,
    generation: Generation,
    /// The current generation has already closed its liveness pipe (a service may close what it does not know).
    gone: bool,
    failures: u32,
    /// When it ended unasked, as far back as its rule looks.
    ends: VecDeque<Moment>,
}

impl Machine {
    /// A service that has not run yet.
    pub fn new(restart: Restart) -> Self {
        let state = State::Down { last: None };
        let ends = VecDeque::new();
        Self { restart, state, generation: Generation::default(), gone: true, failures: 0, ends }
    }

    /// Why it cannot be started now; `None` when it can.
    pub fn refusal(&self) -> Option<&'static str> {
        match self.state {
            State::Down { .. } | State::Backoff { .. } => None,
            State::Starting { .. } => Some("starting"),
            State::Running { .. } => Some("running"),
            State::Stopping { .. } | State::Killing { .. } => Some("stopping"),
            State::Draining { .. } => Some("draining"),
        }
    }

    /// What the world may see; `None` in the instant between a decision to start and its result.
    pub fn published(&self) -> Option<UnitState> {
        match &self.state {
            State::Down { last } => Some(UnitState::Down { last: *last }),
            State::Starting { .. } => None,
            State::Running { pid, since } => Some(UnitState::Running { pid: *pid, since: *since }),
            State::Stopping { pid, .. } | State::Killing { pid, .. } => {
                Some(UnitState::Stopping { pid: *pid })
            }
            State::Draining { last, .. } => Some(UnitState::Draining { last: *last }),
            State::Backoff { until, last } => Some(UnitState::Backoff { until: *until, last: *last }),
        }
    }

    /// The generation that is alive, or was last.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// When [`Event::TimePassed`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        match &self.state {
            State::Down { .. } | State::Starting { .. } | State::Running { .. } => None,
            State::Stopping { climb, .. } => Some(climb.next),
            State::Killing { sweep, .. } | State::Draining { sweep, .. } => Some(sweep.next),
            State::Backoff { until, .. } => Some(*until),
        }
    }

    /// Applies one event.
    pub fn step(&mut self, event: Event, at: At) -> Vec<Action> {
        match event {
            Event::StartAsked => self.start_asked(),
            Event::StopAsked { ladder } => self.stop_asked(ladder, at.now),
            Event::Started { generation, pid } if generation == self.generation => self.started(pid, at.now),
            Event::Adopted { pid } => self.adopted(pid, at.now),
            Event::StartFailed { generation } if generation == self.generation => self.start_failed(at),
            Event::Exited { generation, exit } if generation == self.generation => self.exited(exit, at),
            Event::Gone { generation } if generation == self.generation => self.everything_gone(at.now),
            Event::Started { .. } | Event::StartFailed { .. } | Event::Exited { .. } | Event::Gone { .. } => {
                Vec::new()
            }
            Event::TimePassed => self.time_passed(at.now),
        }
    }

    fn start_asked(&mut self) -> Vec<Action> {
        self.ends.clear();
        match self.state {
            State::Down { last } => self.spawn(Cause::Asked { last }),
            State::Backoff { last, .. } => self.spawn(Cause::Asked { last: Some(last) }),
            State::Starting { .. }
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Draining { .. } => Vec::new(),
        }
    }

    fn adopted(&mut self, pid: u32, now: Moment) -> Vec<Action> {
        match self.state {
            State::Down { .. } | State::Backoff { .. } => {
                self.generation = Generation(self.generation.0 + 1);
                self.gone = false;
                self.state = State::Running { pid, since: now };
            }
            State::Starting { .. }
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Draining { .. } => {}
        }
        Vec::new()
    }

    fn spawn(&mut self, cause: Cause) -> Vec<Action> {
        self.generation = Generation(self.generation.0 + 1);
        self.gone = false;
        self.state = State::Starting { stop: None, cause };
        vec![Action::Spawn { generation: self.generation }]
    }

    fn started(&mut self, pid: u32, now: Moment) -> Vec<Action> {
        let State::Starting { stop, .. } = &mut self.state else { return Vec::new() };
        let stop = stop.take();
        self.state = State::Running { pid, since: now };
        stop.map_or_else(Vec::new, |ladder| self.stop_asked(ladder, now))
    }

    fn start_failed(&mut self, at: At) -> Vec<Action> {
        let State::Starting { stop, cause } = &self.state else { return Vec::new() };
        self.gone = true;
        self.state = match (cause, stop) {
            (Cause::Asked { last }, Some(_) | None) => State::Down { last: *last },
            (Cause::Restart, Some(_)) => State::Down { last: Some(NOT_EXECUTED) },
            (Cause::Restart, None) => match self.next_start(NOT_EXECUTED, at) {
                After::StayDown => State::Down { last: Some(NOT_EXECUTED) },
                After::RestartAt(until) => State::Backoff { until, last: NOT_EXECUTED },
            },
        };
        Vec::new()
    }

    /// When the service is due again; each call counts as one more failure. The first restart does not wait: a service
    /// that was healthy is missed at once, and only one that keeps failing must be slowed.
    fn next_start(&mut self, last: Exit, at: At) -> After {
        let backoff = match self.restart {
            Restart::Never => return After::StayDown,
            Restart::Always { backoff, .. } => backoff,
            Restart::Limited { success: AfterSuccess::StayDown, .. } if last.is_success() => {
                return After::StayDown;
            }
            Restart::Limited { backoff, burst, .. } => {
                if burst.is_reached(&mut self.ends, at.now) {
                    return After::StayDown;
                }
                backoff
            }
        };
        let delay = match self.failures.checked_sub(1) {
            Some(n) => backoff.delay(n, at.jitter),
            None => Duration::ZERO,
        };
        self.failures = self.failures.saturating_add(1);
        After::RestartAt(at.now + delay)
    }

    fn stop_asked(&mut self, ladder: Vec<Rung>, now: Moment) -> Vec<Action> {
        match &mut self.state {
            State::Down { .. } | State::Killing { .. } => Vec::new(),
            State::Starting { stop, .. } => {
                stop.get_or_insert(ladder);
                Vec::new()
            }
            State::Running { pid, .. } => {
                let pid = *pid;
                self.climb(pid, ladder, now)
            }
            State::Stopping { pid, climb } => {
                if duration_of(&ladder) >= climb.patience_left(now) {
                    return Vec::new();
                }
                let pid = *pid;
                self.climb(pid, ladder, now)
            }
            State::Draining { after, .. } => {
                *after = After::StayDown;
                Vec::new()
            }
            State::Backoff { last, .. } => {
                self.state = State::Down { last: Some(*last) };
                Vec::new()
            }
        }
    }

    /// The next rung, or SIGKILL when there is none.
    fn climb(&mut self, pid: u32, mut ladder: Vec<Rung>, now: Moment) -> Vec<Action> {
        if ladder.is_empty() {
            self.state = State::Killing { pid, sweep: Sweep::begun(now) };
            return vec![Action::Signal(Signal::SIGKILL), Action::Sweep];
        }
        let rung = ladder.remove(0);
        self.state = State::Stopping { pid, climb: Climb { left: ladder, next: now + rung.wait } };
        vec![Action::Signal(rung.signal)]
    }

    fn exited(&mut self, exit: Exit, at: At) -> Vec<Action> {
        let after = match (&self.state, self.restart) {
            (
                State::Running { since, .. },
                Restart::Always { healthy_after, .. } | Restart::Limited { healthy_after, .. },
            ) => {
                if at.now.since(*since) >= healthy_after {
                    self.failures = 0;
                }
                self.next_start(exit, at)
            }
            (State::Running { .. }, Restart::Never) | (State::Stopping { .. } | State::Killing { .. }, _) => {
                After::StayDown
            }
            (
                State::Down { .. } | State::Starting { .. } | State::Draining { .. } | State::Backoff { .. },
                _,
            ) => {
                return Vec::new();
            }
        };
        let now = at.now;
        self.state = State::Draining { last: exit, after, sweep: Sweep::begun(now) };
        if self.gone { self.drained(now) } else { vec![Action::Sweep] }
    }

    fn everything_gone(&mut self, now: Moment) -> Vec<Action> {
        self.gone = true;
        self.drained(now)
    }

    fn drained(&mut self, now: Moment) -> Vec<Action> {
        let State::Draining { last, after, .. } = self.state else { return Vec::new() };
        match after {
            After::StayDown => self.state = State::Down { last: Some(last) },
            After::RestartAt(until) if now < until => self.state = State::Backoff { until, last },
            After::RestartAt(_past) => return self.spawn(Cause::Restart),
        }
        Vec::new()
    }

    fn time_passed(&mut self, now: Moment) -> Vec<Action> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match &mut self.state {
            State::Down { .. } | State::Starting { .. } | State::Running { .. } => Vec::new(),
            State::Stopping { pid, climb } => {
                let (pid, ladder) = (*pid, std::mem::take(&mut climb.left));
                self.climb(pid, ladder, now)
            }
            State::Killing { sweep, .. } | State::Draining { sweep, .. } => sweep.again(now),
            State::Backoff { .. } => self.spawn(Cause::Restart),
        }
    }
}

impl Climb {
    fn patience_left(&self, now: Moment) -> Duration {
        now.until(self.next).saturating_add(duration_of(&self.left))
    }
}

/// How long a ladder takes at most before SIGKILL.
pub fn duration_of(ladder: &[Rung]) -> Duration {
    ladder.iter().fold(Duration::ZERO, |sum, rung| sum.saturating_add(rung.wait))
}

impl Sweep {
    fn begun(now: Moment) -> Self {
        Self { since: now, next: now + SWEEP_EVERY, complain: now + SWEEP_HURRIED_FOR }
    }

    fn again(&mut self, now: Moment) -> Vec<Action> {
        let waited = now.since(self.since);
        self.next = now + if waited < SWEEP_HURRIED_FOR { SWEEP_EVERY } else { SWEEP_SLOWLY };
        if now < self.complain {
            return vec![Action::Sweep];
        }
        self.complain = now + COMPLAIN_EVERY;
        vec![Action::Sweep, Action::Complain { waited }]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Backoff;
    use crate::supervisor::Burst;

    const BACKOFF: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(30) };
    const HEALTHY: Duration = Duration::from_secs(60);
    const ALWAYS: Restart = Restart::Always { backoff: BACKOFF, healthy_after: HEALTHY };

    fn at(seconds: f64) -> At {
        At { now: Moment::default() + Duration::from_secs_f64(seconds), jitter: 1.0 }
    }

    fn ladder() -> Vec<Rung> {
        let rung = |signal, seconds| Rung { signal, wait: Duration::from_secs(seconds) };
        vec![rung(Signal::SIGINT, 4), rung(Signal::SIGQUIT, 1)]
    }

    fn running(restart: Restart) -> Machine {
        let mut machine = Machine::new(restart);
        machine.step(Event::StartAsked, at(0.0));
        machine.step(Event::Started { generation: Generation(1), pid: 7 }, at(0.0));
        machine
    }

    fn crash(machine: &mut Machine, seconds: f64) -> Vec<Action> {
        let generation = machine.generation();
        machine.step(Event::Exited { generation, exit: Exit::Code(1) }, at(seconds));
        machine.step(Event::Gone { generation }, at(seconds))
    }

    #[test]
    fn what_somebody_else_started_is_stopped_like_our_own() {
        let mut machine = Machine::new(Restart::Never);
        assert_eq!(machine.step(Event::Adopted { pid: 9 }, at(0.0)), []);
        assert_eq!(machine.refusal(), Some("running"));
        let stop = Event::StopAsked { ladder: ladder() };
        assert_eq!(machine.step(stop, at(1.0)), [Action::Signal(Signal::SIGINT)]);
        let generation = machine.generation();
        let exited = Event::Exited { generation, exit: Exit::Code(0) };
        assert_eq!(machine.step(exited, at(1.1)), [Action::Sweep]);
        assert_eq!(machine.step(Event::Gone { generation }, at(1.2)), []);
        assert_eq!(machine.published(), Some(UnitState::Down { last: Some(Exit::Code(0)) }));
    }

    #[test]
    fn a_stop_climbs_its_ladder_and_ends_with_sigkill_and_sweeps() {
        let mut machine = running(Restart::Never);
        let stop = Event::StopAsked { ladder: ladder() };
        assert_eq!(machine.step(stop, at(1.0)), [Action::Signal(Signal::SIGINT)]);
        assert_eq!(machine.step(Event::TimePassed, at(4.9)), []);
        assert_eq!(machine.step(Event::TimePassed, at(5.0)), [Action::Signal(Signal::SIGQUIT)]);
        let last = machine.step(Event::TimePassed, at(6.0));
        assert_eq!(last, [Action::Signal(Signal::SIGKILL), Action::Sweep]);
        let exited = Event::Exited { generation: Generation(1), exit: Exit::Signal(9) };
        assert_eq!(machine.step(exited, at(6.0)), [Action::Sweep]);
        assert_eq!(machine.refusal(), Some("draining"));
        assert_eq!(machine.step(Event::TimePassed, at(6.005)), [Action::Sweep]);
        machine.step(Event::Gone { generation: Generation(1) }, at(6.01));
        assert_eq!(machine.published(), Some(UnitState::Down { last: Some(Exit::Signal(9)) }));
    }

    #[test]
    fn a_second_stop_may_hasten_but_not_delay() {
        let mut machine = running(Restart::Never);
        machine.step(Event::StopAsked { ladder: ladder() }, at(0.0));
        assert_eq!(machine.step(Event::StopAsked { ladder: ladder() }, at(0.0)), []);
        let quick = vec![Rung { signal: Signal::SIGQUIT, wait: Duration::from_millis(300) }];
        let hastened = machine.step(Event::StopAsked { ladder: quick }, at(1.0));
        assert_eq!(hastened, [Action::Signal(Signal::SIGQUIT)]);
        assert_eq!(machine.deadline(), Some(at(1.3).now));
    }

    #[test]
    fn a_death_of_its_own_is_swept_at_once_and_opens_the_gate_only_when_all_are_gone() {
        let mut machine = running(Restart::Never);
        let exited = Event::Exited { generation: Generation(1), exit: Exit::Signal(9) };
        assert_eq!(machine.step(exited, at(1.0)), [Action::Sweep]);
        assert_eq!(machine.step(Event::StartAsked, at(1.0)), [], "the gate is closed");
        assert_eq!(machine.published(), Some(UnitState::Draining { last: Exit::Signal(9) }));
        machine.step(Event::Gone { generation: Generation(1) }, at(1.1));
        assert_eq!(machine.step(Event::StartAsked, at(1.1)), [Action::Spawn { generation: Generation(2) }]);
    }

    #[test]
    fn a_main_process_that_does_not_die_of_sigkill_is_spoken_of_and_not_asked_again() {
        let mut machine = running(Restart::Never);
        machine.step(Event::StopAsked { ladder: Vec::new() }, at(0.0));
        assert_eq!(machine.step(Event::StopAsked { ladder: ladder() }, at(0.1)), [], "SIGKILL is the last");
        let mut complaints = 0;
        while let Some(deadline) = machine.deadline().filter(|deadline| *deadline < at(62.0).now) {
            let actions = machine.step(Event::TimePassed, At { now: deadline, jitter: 0.0 });
            complaints += actions.iter().filter(|action| matches!(action, Action::Complain { .. })).count();
        }
        assert_eq!((complaints, machine.refusal()), (3, Some("stopping")));
        let exited = Event::Exited { generation: Generation(1), exit: Exit::Signal(9) };
        assert_eq!(machine.step(exited, at(63.0)), [Action::Sweep]);
        machine.step(Event::Gone { generation: Generation(1) }, at(63.0));
        assert_eq!(machine.published(), Some(UnitState::Down { last: Some(Exit::Signal(9)) }));
    }

    #[test]
    fn descendants_that_do_not_die_are_swept_for_ever_and_spoken_of_seldom() {
        let mut machine = running(Restart::Never);
        let exited = Event::Exited { generation: Generation(1), exit: Exit::Signal(9) };
        machine.step(exited, at(0.0));
        let (mut sweeps, mut complaints) = (0, 0);
        while let Some(deadline) = machine.deadline().filter(|deadline| *deadline < at(62.0).now) {
            for action in machine.step(Event::TimePassed, At { now: deadline, jitter: 0.0 }) {
                match action {
                    Action::Sweep => sweeps += 1,
                    Action::Complain { .. } => complaints += 1,
                    Action::Spawn { .. } | Action::Signal(_) => panic!("{action:?}"),
                }
            }
        }
        assert_eq!(complaints, 3);
        assert!((400..600).contains(&sweeps), "{sweeps}");
    }

    #[test]
    fn a_crash_loop_is_slowed_and_health_forgives() {
        let mut machine = running(ALWAYS);
        let mut now = 0.0;
        let mut delays = Vec::new();
        for _ in 0..11 {
            crash(&mut machine, now);
            if delays.is_empty() {
                // The first restart does not wait.
                assert_eq!(machine.published(), None, "starting");
                delays.push(0);
                let generation = machine.generation();
                machine.step(Event::Started { generation, pid: 8 }, at(now));
                continue;
            }
            let Some(UnitState::Backoff { until, .. }) = machine.published() else { panic!("{machine:?}") };
            delays.push(at(now).now.until(until).as_millis());
            now += at(now).now.until(until).as_secs_f64();
            let generation = Generation(machine.generation().0 + 1);
            assert_eq!(machine.step(Event::TimePassed, at(now)), [Action::Spawn { generation }]);
            machine.step(Event::Started { generation, pid: 8 }, at(now));
        }
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000]);
        let generation = Generation(machine.generation().0 + 1);
        assert_eq!(crash(&mut machine, now + 60.0), [Action::Spawn { generation }], "health forgives");
    }

    #[test]
    fn a_limited_service_gives_up_and_may_succeed() {
        let limited = |restarts| Restart::Limited {
            backoff: BACKOFF,
            healthy_after: HEALTHY,
            success: AfterSuccess::StayDown,
            burst: Burst { restarts, within: Duration::from_secs(10) },
        };
        let mut machine = running(limited(2));
        let mut lives = 1;
        let mut now = 0.0;
        while machine.published() != Some(UnitState::Down { last: Some(Exit::Code(1)) }) {
            crash(&mut machine, now);
            now += 0.3;
            machine.step(Event::TimePassed, at(now));
            let generation = machine.generation();
            if machine.published().is_none() {
                machine.step(Event::Started { generation, pid: 8 }, at(now));
                lives += 1;
            }
        }
        assert_eq!(lives, 3, "two restarts");
        let mut machine = running(limited(2));
        for n in 1..6 {
            crash(&mut machine, 11.0 * f64::from(n));
            machine.step(Event::TimePassed, at(11.0 * f64::from(n) + 5.0));
            let generation = machine.generation();
            machine.step(Event::Started { generation, pid: 8 }, at(11.0 * f64::from(n) + 5.0));
        }
        assert_eq!(machine.refusal(), Some("running"), "seldom enough");
        let generation = machine.generation();
        machine.step(Event::Exited { generation, exit: Exit::Code(0) }, at(70.0));
        machine.step(Event::Gone { generation }, at(70.0));
        assert_eq!(machine.published(), Some(UnitState::Down { last: Some(Exit::Code(0)) }));
    }

    #[test]
    fn a_restart_that_cannot_be_executed_is_tried_again_later() {
        let mut machine = running(ALWAYS);
        crash(&mut machine, 0.0);
        machine.step(Event::StartFailed { generation: Generation(2) }, at(0.0));
        assert_eq!(machine.published(), Some(UnitState::Backoff { until: at(0.1).now, last: NOT_EXECUTED }));
        assert_eq!(machine.step(Event::TimePassed, at(0.1)), [Action::Spawn { generation: Generation(3) }]);
    }

    #[test]
    fn a_stop_during_backoff_is_immediate_and_final() {
        let mut machine = running(ALWAYS);
        crash(&mut machine, 0.0);
        machine.step(Event::Started { generation: Generation(2), pid: 8 }, at(0.0));
        crash(&mut machine, 0.0);
        machine.step(Event::StopAsked { ladder: ladder() }, at(0.01));
        assert_eq!(machine.published(), Some(UnitState::Down { last: Some(Exit::Code(1)) }));
        assert_eq!(machine.step(Event::TimePassed, at(99.0)), []);
    }

    #[test]
    fn a_service_that_closes_the_liveness_pipe_still_has_to_exit() {
        let mut machine = running(Restart::Never);
        machine.step(Event::Gone { generation: Generation(1) }, at(1.0));
        assert_eq!(machine.refusal(), Some("running"));
        let exited = Event::Exited { generation: Generation(1), exit: Exit::Code(0) };
        assert_eq!(machine.step(exited, at(2.0)), []);
        assert_eq!(machine.published(), Some(UnitState::Down { last: Some(Exit::Code(0)) }));
    }

    /// What may happen in the world, in any order.
    #[derive(Debug, Clone, Copy)]
    enum Happening {
        Start,
        Stop,
        StopQuickly,
        MainDies,
        OrphansDie,
        ExecFails,
        OldNews,
        Pass(u64),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            3 => Just(Happening::Start),
            2 => Just(Happening::Stop),
            1 => Just(Happening::StopQuickly),
            3 => Just(Happening::MainDies),
            3 => Just(Happening::OrphansDie),
            1 => Just(Happening::ExecFails),
            1 => Just(Happening::OldNews),
            4 => (0_u64..3000).prop_map(Happening::Pass),
        ]
    }

    /// A world with one service: what really runs, beside what the machine believes.
    struct World {
        machine: Machine,
        now: Moment,
        main: Option<Generation>,
        orphans: Option<Generation>,
        exec_fails: bool,
    }

    impl World {
        fn tell(&mut self, event: Event) {
            let mut events = vec![event];
            while let Some(event) = events.pop() {
                for action in self.machine.step(event, At { now: self.now, jitter: 0.5 }) {
                    match action {
                        Action::Spawn { generation } if self.exec_fails => {
                            self.exec_fails = false;
                            events.push(Event::StartFailed { generation });
                        }
                        Action::Spawn { generation } => {
                            assert_eq!((self.main, self.orphans), (None, None), "two generations");
                            (self.main, self.orphans) = (Some(generation), Some(generation));
                            events.push(Event::Started { generation, pid: 1 });
                        }
                        Action::Signal(Signal::SIGKILL) => {
                            let killed = self.main.take();
                            let exit = Exit::Signal(9);
                            events.extend(killed.map(|generation| Event::Exited { generation, exit }));
                        }
                        Action::Sweep if self.main.is_none() => {
                            let gone = self.orphans.take();
                            events.extend(gone.map(|generation| Event::Gone { generation }));
                        }
                        Action::Signal(_) | Action::Sweep | Action::Complain { .. } => {}
                    }
                }
            }
        }

        fn happen(&mut self, what: Happening) {
            match what {
                Happening::Start => self.tell(Event::StartAsked),
                Happening::Stop => self.tell(Event::StopAsked { ladder: ladder() }),
                Happening::StopQuickly => self.tell(Event::StopAsked { ladder: Vec::new() }),
                Happening::MainDies => {
                    if let Some(generation) = self.main.take() {
                        self.tell(Event::Exited { generation, exit: Exit::Code(1) });
                    }
                }
                Happening::OrphansDie if self.main.is_none() => {
                    if let Some(generation) = self.orphans.take() {
                        self.tell(Event::Gone { generation });
                    }
                }
                Happening::OrphansDie => {}
                Happening::ExecFails => self.exec_fails = true,
                Happening::OldNews => {
                    let generation = Generation(self.machine.generation().0.wrapping_sub(1));
                    let before = self.machine.published();
                    self.tell(Event::Exited { generation, exit: Exit::Code(9) });
                    self.tell(Event::Gone { generation });
                    self.tell(Event::StartFailed { generation });
                    assert_eq!(self.machine.published(), before);
                }
                Happening::Pass(ms) => {
                    self.now = self.now + Duration::from_millis(ms);
                    self.tell(Event::TimePassed);
                }
            }
        }
    }

    const LIMITED: Restart = Restart::Limited {
        backoff: BACKOFF,
        healthy_after: HEALTHY,
        success: AfterSuccess::Restart,
        burst: Burst { restarts: 5, within: Duration::from_secs(10) },
    };

    proptest! {
        /// Lives that end by themselves, each after so many milliseconds: the delay before the next one is what the number of
        /// short lives in a row says, whatever came before.
        #[test]
        fn backoff_grows_with_every_short_life_and_health_resets_it(
            lives in prop::collection::vec(prop_oneof![0_u64..59_000, 60_000_u64..90_000], 1..40),
            jitter in 0.0..=1.0,
        ) {
            let mut machine = running(ALWAYS);
            let (mut now, mut short) = (Moment::default(), 0);
            for life in lives {
                let life = Duration::from_millis(life);
                now = now + life;
                short = if life >= HEALTHY { 0 } else { short };
                let generation = machine.generation();
                machine.step(Event::Exited { generation, exit: Exit::Code(1) }, At { now, jitter });
                machine.step(Event::Gone { generation }, At { now, jitter });
                if short > 0 {
                    let until = now + BACKOFF.delay(short - 1, jitter);
                    let waits = UnitState::Backoff { until, last: Exit::Code(1) };
                    prop_assert_eq!(machine.published(), Some(waits));
                    now = until;
                    machine.step(Event::TimePassed, At { now, jitter });
                }
                let generation = machine.generation();
                machine.step(Event::Started { generation, pid: 8 }, At { now, jitter });
                prop_assert_eq!(machine.published(), Some(UnitState::Running { pid: 8, since: now }));
                short += 1;
            }
        }

        #[test]
        fn never_two_generations_and_every_stop_ends(
            restart in prop_oneof![Just(Restart::Never), Just(ALWAYS), Just(LIMITED)],
            happenings in prop::collection::vec(happening(), 1..80),
        ) {
            let machine = Machine::new(restart);
            let mut world = World { machine, now: Moment(1), main: None, orphans: None, exec_fails: false };
            for what in happenings {
                world.happen(what);
            }
            world.tell(Event::StopAsked { ladder: ladder() });
            let mut turns = 0;
            while let Some(deadline) = world.machine.deadline() {
                world.now = deadline.max(world.now);
                world.tell(Event::TimePassed);
                turns += 1;
                prop_assert!(turns < 10, "the stop does not end: {:?}", world.machine);
            }
            let down = matches!(world.machine.published(), Some(UnitState::Down { .. }));
            prop_assert!(down, "{:?}", world.machine);
            prop_assert_eq!((world.main, world.orphans), (None, None));
        }
    }
}
