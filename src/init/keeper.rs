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
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv};

use super::family;
use super::foreign::end_leftovers;
use super::system::{Ears, Voice, adopt_orphans, reserve_link_number};
use super::{CONFIGURATION_ERROR, InitOptions, RestartNode};
use crate::clock::{self, Backoff, Moment};
use crate::process::{
    InitLink, LINK_FD, MESSAGE_BYTES, Message, PidHandle, Plan, Terminal, hide_memory, take_environment,
};

/// PostgreSQL dies of SIGQUIT in less than 100 ms, unless one of its processes is stopped: then nothing but SIGKILL helps.
const QUIT_PATIENCE: Duration = Duration::from_millis(300);
/// Orphans are killed again this often: one that forks while it is being killed leaves another.
const SWEEP_EVERY: Duration = Duration::from_millis(5);
/// How often a process that does not die of SIGKILL is spoken of.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);
/// When we are to end anyway, a process in uninterruptible sleep is waited for no longer than this.
const LAST_PATIENCE: Duration = Duration::from_secs(10);
/// Between two starts of `node`.
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(30) };
/// A `node` that has lived this long was healthy: the delay starts afresh.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// Services that are told when `node` dies: it has three.
const WATCHED_MAX: usize = 16;

pub(super) fn run(options: InitOptions, voice: &Voice) -> io::Result<u8> {
    let ears = Ears::open()?;
    adopt_orphans()?;
    hide_memory();
    // We must not pin a file system that somebody wants to unmount.
    std::env::set_current_dir("/")?;
    let _reserved = reserve_link_number()?;
    let mut keeper = Keeper::new(options, voice);
    keeper.start_node(clock::now());
    let code = loop {
        if let Some(code) = keeper.turn(clock::now()) {
            break code;
        }
        ears.wait(&keeper.watched_fds(), keeper.alarm())?;
        while let Some(signal) = ears.next_signal() {
            keeper.hear(signal);
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
    /// `None` once `node` has closed its end: it is about to die.
    link: Option<OwnedFd>,
    last_word: Moment,
}

/// A service of `node`, and what it gets when `node` dies.
#[derive(Debug)]
struct Watched {
    process: PidHandle,
    signal: Signal,
}

/// What must be dead, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Deadline {
    pid: u32,
    at: Moment,
    armed: Moment,
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
    deadline: Option<Deadline>,
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
            deadline: None,
            failures: 0,
            code: 0,
        }
    }

    /// One turn of the loop: reap, read, act. Returns the exit code when this is the end.
    fn turn(&mut self, now: Moment) -> Option<u8> {
        self.read_link(now);
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

    /// When the next turn is due even if nothing happens.
    fn alarm(&self) -> Option<Moment> {
        match self.phase {
            Phase::Serving => {
                let silence = self.node.as_ref().map(|node| node.last_word + self.options.silence_limit);
                self.deadline.map(|deadline| deadline.at).into_iter().chain(silence).min()
            }
            Phase::Fencing { until } | Phase::Waiting { until } => Some(until),
            Phase::Quenching { until } => Some(until),
            Phase::Clearing { next, .. } => Some(next),
        }
    }

    /// The link, and while PostgreSQL is being fenced its end.
    fn watched_fds(&self) -> Vec<BorrowedFd<'_>> {
        let link = self.node.iter().filter_map(|node| node.link.as_ref()).map(AsFd::as_fd);
        match self.phase {
            Phase::Fencing { .. } => link.chain(self.postgres().map(AsFd::as_fd)).collect(),
            Phase::Serving | Phase::Quenching { .. } | Phase::Clearing { .. } | Phase::Waiting { .. } => {
                link.collect()
            }
        }
    }

    /// What must not outlive the deadline: the armed process, and any other that is PostgreSQL by its death signal. (`node`
    /// may have been frozen between the start of a new one and its arming.)
    fn postgres(&self) -> impl Iterator<Item = &PidHandle> {
        let armed = self.deadline.map(|deadline| deadline.pid);
        let is_postgres = move |watched: &&Watched| {
            watched.signal == Signal::SIGQUIT || Some(watched.process.pid()) == armed
        };
        self.watched
            .iter()
            .filter(is_postgres)
            .map(|watched| &watched.process)
            .filter(|process| !process.has_ended())
    }

    /// A signal to us: `node` decides what it means, as long as there is one.
    fn hear(&mut self, signal: Signal) {
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
        self.deadline = None;
        self.phase = Phase::Serving;
        match spawn_node(&self.options, &self.environment) {
            Ok((pid, link)) => {
                self.voice.say(&format!("started node, pid {pid}"));
                self.node = Some(Node { pid, since: now, link: Some(link), last_word: now });
            }
            Err(error) => {
                self.voice.say(&format!("could not start node: {error}"));
                self.code = super::NOT_EXECUTABLE;
                self.phase = clearing(now);
            }
        }
    }

    /// Reads what `node` says. Messages of a `node` that is to die are read too, but not believed.
    fn read_link(&mut self, now: Moment) {
        let mut bytes = [0; MESSAGE_BYTES];
        while let Some(node) = &mut self.node {
            let Some(link) = &node.link else { return };
            let n = match recv(link.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => {
                    node.link = None;
                    return;
                }
                Ok(n) => n,
                Err(_nothing_yet) => return,
            };
            node.last_word = now;
            let pid = node.pid;
            if self.phase == Phase::Serving
                && let Some(message) = bytes.get(..n).and_then(Message::from_bytes)
            {
                self.obey(message, pid, now);
            }
        }
    }

    fn obey(&mut self, message: Message, node: u32, now: Moment) {
        match message {
            Message::Beat => {}
            Message::Arm { pid, deadline } => {
                self.watch(pid, Signal::SIGQUIT, node);
                self.deadline = Some(Deadline { pid, at: deadline, armed: now });
            }
            Message::Disarm => self.deadline = None,
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
        match PidHandle::open(pid) {
            Ok(process) if family::parent_of(pid) == Some(node) && self.watched.len() < WATCHED_MAX => {
                self.watched.push(Watched { process, signal });
            }
            Ok(_stranger) => self.voice.say(&format!("process {pid} is not node's child: not watched")),
            // It has ended already.
            Err(_ended) => {}
        }
    }

    fn reap(&mut self, now: Moment) {
        while let Some((pid, code)) = family::reap_next() {
            if let Some(node) = self.node.take_if(|node| node.pid == pid) {
                self.node_ended(&node, code, now);
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
        let (pid, last_word) = (node.pid, node.last_word);
        if let Some(deadline) = self.deadline.filter(|deadline| now >= deadline.at) {
            let late = now.since(deadline.at);
            if self.postgres().next().is_none() && last_word > deadline.armed {
                // It has died, and a living node knows: nothing to stop but what it may have left.
                self.deadline = None;
                family::sweep(Some(pid));
                return;
            }
            self.start_fencing(now);
            self.voice.say(&format!("the lease's deadline has passed: stopping postgres ({late:?} late)"));
        } else if now.since(last_word) >= self.options.silence_limit {
            self.start_fencing(now);
            self.voice.say("node is silent: stopping everything");
        }
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
        if self.wish == Wish::End && now.since(since) >= LAST_PATIENCE {
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

    fn next_life(&mut self, now: Moment) -> Option<u8> {
        let asked = self.wish == Wish::End || self.code == CONFIGURATION_ERROR;
        if asked || self.options.restart == RestartNode::Exit {
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
fn spawn_node(options: &InitOptions, environment: &[(OsString, OsString)]) -> io::Result<(u32, OwnedFd)> {
    let (theirs, ours) = InitLink::pair()?;
    let fd = theirs.raw_fd().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
    let mut command = std::process::Command::new(&options.program);
    command.args(&options.args).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    Plan::own(Signal::SIGKILL, Terminal::Detached).keep(fd, LINK_FD).install(&mut command);
    Ok((command.spawn()?.id(), ours))
}
