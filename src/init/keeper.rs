//! The keeper of `node`: one loop over signals, the link, and the clock.
//!
//! | phase | `node` | left by |
//! |---|---|---|
//! | `Serving` | runs | its death -> `Quenching`; the deadline or its silence -> `Fencing` |
//! | `Fencing` | runs, cannot be trusted | PostgreSQL is dead, or 300 ms -> everything is killed -> `Clearing` |
//! | `Quenching` | dead | every child is gone, or 300 ms -> `Clearing` |
//! | `Clearing` | dead | every child is gone -> `Waiting`, or the end |
//! | `Waiting` | dead | the backoff's end -> `Serving`; a request to stop -> the end |

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv};

use super::family;
use super::foreign::end_leftovers;
use super::system::{Ears, Voice, adopt_orphans, has_hung_up, reserve_link_numbers};
use super::{CONFIGURATION_ERROR, InitOptions, RestartNode};
use crate::clock::{self, Backoff, Moment};
use crate::process::{
    InitEnd, InitLink, MESSAGE_BYTES, Message, PidHandle, Plan, Setting, Terminal, hide_memory,
    take_environment,
};

/// PostgreSQL dies of SIGQUIT in less than 100 ms, unless one of its processes is stopped: then nothing but SIGKILL helps.
const QUIT_PATIENCE: Duration = Duration::from_millis(300);
/// Orphans are killed again this often: one that forks while it is being killed leaves another.
const SWEEP_EVERY: Duration = Duration::from_millis(5);
/// How often a process that does not die of SIGKILL is spoken of.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);
/// When we are to end anyway, a process in uninterruptible sleep is waited for no longer than this.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// Between two starts of `node`.
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(30) };
/// A `node` that has lived this long was healthy: the delay starts afresh.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// A word that came so soon after the deadline was armed may be the arming itself: moments read back from a shared alarm
/// are not exact.
const SAME_WORD: Duration = Duration::from_millis(50);
/// Services that are told when `node` dies: it has three, a list of units may have more. Each costs a descriptor.
const WATCHED_MAX: usize = 512;

pub(super) fn run(options: InitOptions, voice: &Voice) -> io::Result<u8> {
    let ears = Ears::open()?;
    adopt_orphans()?;
    hide_memory();
    // We must not pin a file system that somebody wants to unmount.
    std::env::set_current_dir("/")?;
    let _reserved = reserve_link_numbers()?;
    let mut keeper = Keeper::new(options, voice);
    keeper.start_node(clock::now());
    let code = loop {
        if let Some(code) = keeper.turn(clock::now()) {
            break code;
        }
        ears.wait(&keeper.watched_fds(), keeper.alarm())?;
        while let Some(heard) = ears.next_signal() {
            // A real-time signal has no name; nobody here has a use for one.
            if let Some(signal) = heard.signal() {
                keeper.hear(signal);
            }
        }
    };
    end_leftovers(&ears)?;
    Ok(code)
}

/// What the keeper is doing; see the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Fencing { until: Moment },
    Quenching { until: Moment },
    Clearing { since: Moment, next: Moment, complain: Moment },
    Waiting { until: Moment },
}

/// Whether we have been asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Live,
    End,
}

/// A running `node`.
#[derive(Debug)]
struct Node {
    pid: u32,
    since: Moment,
    link: InitEnd,
    hearing: Hearing,
}

/// Whether more may come from `node`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hearing {
    Open,
    /// It has closed its end: it is about to die.
    Closed,
}

/// A service of `node`, and what it gets when `node` dies.
#[derive(Debug)]
struct Watched {
    process: PidHandle,
    signal: Signal,
}

#[derive(Debug)]
struct Keeper<'a> {
    options: InitOptions,
    /// What `node` gets: ours, secrets included, which are no longer in ours.
    environment: Vec<(OsString, OsString)>,
    voice: &'a Voice,
    phase: Phase,
    wish: Wish,
    node: Option<Node>,
    watched: Vec<Watched>,
    failures: u32,
    /// How the last `node` ended.
    code: u8,
}

impl<'a> Keeper<'a> {
    fn new(options: InitOptions, voice: &'a Voice) -> Self {
        Self {
            options,
            environment: take_environment(),
            voice,
            phase: Phase::Serving,
            wish: Wish::Live,
            node: None,
            watched: Vec::new(),
            failures: 0,
            code: 0,
        }
    }

    /// One turn of the loop: reap, read, act. Returns the exit code when this is the end.
    fn turn(&mut self, now: Moment) -> Option<u8> {
        self.read_link();
        self.reap(now);
        match self.phase {
            Phase::Serving => self.guard(now),
            Phase::Fencing { until } => self.fence(until, now),
            Phase::Quenching { until } => self.quench(until, now),
            Phase::Clearing { .. } => return self.clear(now),
            Phase::Waiting { .. } if self.wish == Wish::End => return Some(self.code),
            Phase::Waiting { until } if now >= until => self.start_node(now),
            Phase::Waiting { .. } => {}
        }
        None
    }

    /// When the next turn is due even if nothing happens. While `node` serves nothing is: the alarms that it moves wake us.
    fn alarm(&self) -> Option<Moment> {
        match self.phase {
            Phase::Serving => None,
            Phase::Fencing { until } | Phase::Waiting { until } => Some(until),
            Phase::Quenching { until } => Some(until),
            Phase::Clearing { next, .. } => Some(next),
        }
    }

    /// The link and its alarms, and while PostgreSQL is being fenced its end.
    fn watched_fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = Vec::new();
        let Some(node) = &self.node else { return fds };
        match node.hearing {
            Hearing::Open => fds.push(node.link.socket.as_fd()),
            Hearing::Closed => {}
        }
        match self.phase {
            Phase::Serving => fds.extend([node.link.lease.as_fd(), node.link.silence.as_fd()]),
            Phase::Fencing { .. } => fds.extend(self.postgres().map(AsFd::as_fd)),
            Phase::Quenching { .. } | Phase::Clearing { .. } | Phase::Waiting { .. } => {}
        }
        fds
    }

    /// What must not outlive the deadline: whatever is PostgreSQL by its death signal.
    fn postgres(&self) -> impl Iterator<Item = &PidHandle> {
        let all = self.watched.iter().filter(|watched| watched.signal == Signal::SIGQUIT);
        all.map(|watched| &watched.process).filter(|process| !process.has_ended())
    }

    /// A signal to us: `node` decides what it means, as long as there is one.
    fn hear(&mut self, signal: Signal) {
        // Whoever has closed our terminal is gone, and nobody could say so any more.
        let signal = if signal == Signal::SIGHUP && has_hung_up() { Signal::SIGTERM } else { signal };
        if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) {
            self.wish = Wish::End;
            self.pass_on(signal);
        }
        if matches!(signal, Signal::SIGHUP | Signal::SIGUSR1) {
            self.pass_on(signal);
        }
        // SIGCHLD has woken us, which is all it is for. The others would stop PID 1, or mean nothing to it.
    }

    fn pass_on(&self, signal: Signal) {
        if let Some(node) = &self.node {
            family::signal_child(node.pid, signal);
        }
    }

    fn start_node(&mut self, now: Moment) {
        self.watched.clear();
        self.phase = Phase::Serving;
        match spawn_node(&self.options, &self.environment) {
            Ok((pid, link)) => {
                self.voice.say(&format!("started node, pid {pid}"));
                self.node = Some(Node { pid, since: now, link, hearing: Hearing::Open });
            }
            Err(error) => {
                self.voice.say(&format!("could not start node: {error}"));
                self.code = super::NOT_EXECUTABLE;
                self.phase = clearing(now);
            }
        }
    }

    /// Reads what `node` says. Messages of a `node` that is to die are read too, but not believed.
    fn read_link(&mut self) {
        let mut bytes = [0; MESSAGE_BYTES];
        while let Some(node) = self.node.as_mut().filter(|node| node.hearing == Hearing::Open) {
            let n = match recv(node.link.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => {
                    node.hearing = Hearing::Closed;
                    return;
                }
                Ok(n) => n,
                Err(_nothing_yet) => return,
            };
            let pid = node.pid;
            if self.phase == Phase::Serving
                && let Some(message) = bytes.get(..n).and_then(Message::from_bytes)
            {
                self.obey(message, pid);
            }
        }
    }

    fn obey(&mut self, message: Message, node: u32) {
        match message {
            Message::Watch { pid, signal } => {
                self.watch(pid, Signal::try_from(signal).unwrap_or(Signal::SIGKILL), node);
            }
            Message::Sweep => {
                family::sweep(Some(node));
            }
        }
    }

    /// Takes hold of a service. The check of its parent comes after: from then on the pid cannot mean another process.
    fn watch(&mut self, pid: u32, signal: Signal, node: u32) {
        if self.watched.iter().any(|watched| watched.process.pid() == pid && !watched.process.has_ended()) {
            return;
        }
        self.watched.retain(|watched| !watched.process.has_ended());
        // One that has ended already has no parent any more.
        let Some((process, parent)) = PidHandle::open(pid).ok().zip(family::parent_of(pid)) else { return };
        if parent != node {
            self.voice.say(&format!("process {pid} is not node's child: not watched"));
        } else if self.watched.len() >= WATCHED_MAX {
            self.voice.say(&format!("process {pid} is one too many: not watched"));
        } else {
            self.watched.push(Watched { process, signal });
        }
    }

    fn reap(&mut self, now: Moment) {
        while let Some((pid, code)) = family::reap_next() {
            if let Some(node) = self.node.take_if(|node| node.pid == pid) {
                self.node_ended(&node, code, now);
            } else if let Some(node) = &self.node {
                node.link.reaped.add_one();
            }
        }
    }

    fn node_ended(&mut self, node: &Node, code: u8, now: Moment) {
        self.voice.say(&format!("node ended with code {code}"));
        self.code = code;
        if now.since(node.since) >= HEALTHY_AFTER {
            self.failures = 0;
        }
        match self.phase {
            Phase::Serving | Phase::Fencing { .. } => {
                // The kernel has sent them as well; this is for a service that has changed its credentials.
                for watched in &self.watched {
                    watched.process.signal(watched.signal).ok();
                }
                self.phase = Phase::Quenching { until: now + QUIT_PATIENCE };
            }
            Phase::Quenching { .. } | Phase::Clearing { .. } | Phase::Waiting { .. } => {}
        }
    }

    /// Looks whether the lease's deadline has come, or `node` has been silent for too long.
    fn guard(&mut self, now: Moment) {
        let Some(node) = &self.node else { return };
        if let Some(deadline) = node.link.lease.take_due() {
            self.deadline_came(deadline, now);
        } else if node.link.silence.take_due().is_some() {
            self.start_fencing(now);
            self.voice.say("node is silent: stopping everything");
        }
    }

    fn deadline_came(&mut self, deadline: Setting, now: Moment) {
        let Some(node) = &self.node else { return };
        let spoken = node.link.silence.setting().is_some_and(|word| word.made > deadline.made + SAME_WORD);
        if self.postgres().next().is_none() && spoken {
            // It has died, and a living node knows: nothing to stop but what it may have left.
            let pid = node.pid;
            // Otherwise it would come again.
            node.link.lease.unset().ok();
            family::sweep(Some(pid));
            return;
        }
        self.start_fencing(now);
        let late = clock::now().since(deadline.at);
        self.voice.say(&format!("the lease's deadline has passed: stopping postgres ({late:?} late)"));
    }

    fn start_fencing(&mut self, now: Moment) {
        for process in self.postgres() {
            process.signal(Signal::SIGQUIT).ok();
        }
        self.phase = Phase::Fencing { until: now + QUIT_PATIENCE };
    }

    /// `node` cannot be trusted, so it goes too, whatever PostgreSQL did. Its children become ours and are swept.
    fn fence(&mut self, until: Moment, now: Moment) {
        if self.postgres().next().is_some() && now < until {
            return;
        }
        for watched in &self.watched {
            watched.process.signal(Signal::SIGKILL).ok();
        }
        self.pass_on(Signal::SIGKILL);
        self.phase = clearing(now);
    }

    fn quench(&mut self, until: Moment, now: Moment) {
        if now >= until || !family::any_left() {
            self.phase = clearing(now);
        }
    }

    /// Kills until nothing is left; then comes the end, or the wait for the next start.
    fn clear(&mut self, now: Moment) -> Option<u8> {
        let Phase::Clearing { since, complain, .. } = self.phase else { return None };
        if !family::any_left() {
            return self.next_life(now);
        }
        family::kill_all();
        if self.is_the_end() && now.since(since) >= LAST_PATIENCE {
            return Some(self.code);
        }
        let mut complain = complain;
        if now >= complain {
            self.voice.say(&format!("processes {:?} do not die of SIGKILL", family::children()));
            complain = now + COMPLAIN_EVERY;
        }
        self.phase = Phase::Clearing { since, next: now + SWEEP_EVERY, complain };
        None
    }

    /// Whether no `node` is to come after this one.
    fn is_the_end(&self) -> bool {
        let asked = self.wish == Wish::End || self.code == CONFIGURATION_ERROR;
        asked || self.options.restart == RestartNode::Exit
    }

    fn next_life(&mut self, now: Moment) -> Option<u8> {
        if self.is_the_end() {
            return Some(self.code);
        }
        // Equal jitter by the clock's last digits: this process has no other use for chance.
        let jitter = f64::from(u32::try_from(now.0 % 1000).unwrap_or(0)) / 1000.0;
        let delay = BACKOFF.delay(self.failures, jitter);
        self.failures = self.failures.saturating_add(1);
        self.voice.say(&format!("starting node again in {delay:?}"));
        self.phase = Phase::Waiting { until: now + delay };
        None
    }
}

fn clearing(now: Moment) -> Phase {
    Phase::Clearing { since: now, next: now, complain: now + COMPLAIN_EVERY }
}

#[expect(clippy::disallowed_methods, reason = "init is the other module that spawns")]
fn spawn_node(options: &InitOptions, environment: &[(OsString, OsString)]) -> io::Result<(u32, InitEnd)> {
    let (theirs, ours) = InitLink::pair(options.silence_limit)?;
    let mut command = std::process::Command::new(&options.program);
    command.args(&options.args).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    let plan = Plan::own(Signal::SIGKILL, Terminal::Detached).hold_requests();
    let plan = theirs.handed_down().into_iter().fold(plan, |plan, (fd, number)| plan.keep(fd, number));
    plan.install(&mut command);
    Ok((command.spawn()?.id(), ours))
}
