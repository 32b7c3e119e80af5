//! The task behind a unit: turns what happens into events, and the machine's actions into system calls.
//!
//! Invariant: no action waits. Everything that takes time comes back as an event.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::unit::{Action, At, Event, Generation, Machine};
use super::{CrashLoop, Error, LastLines, Rung, UnitSpec, UnitState};
use crate::clock::{self, Moment};
use crate::log;
use crate::process::{
    self, Child, Command, End, Exit, Fate, Feed, InitLink, Kin, Look, News, PidHandle, Streams, VolumeLock,
    Waiting,
};

/// How long the last lines of a service that is gone may take: its pipes are closed, so they are only read out.
const LAST_LINES_PATIENCE: Duration = Duration::from_millis(50);

/// How long they may take when nobody waits for a restart: a full pipe on a busy machine.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);

/// What is shown of a crash loop.
const LINES_REPEATED: usize = 10;

/// What a handle asks for.
#[derive(Debug)]
pub(super) enum Request {
    Start(Box<Command>, oneshot::Sender<Result<u32, Error>>),
    Adopt(PidHandle, oneshot::Sender<Result<(), Error>>),
    Stop(Option<Vec<Rung>>, oneshot::Sender<Option<Exit>>),
    Signal(nix::sys::signal::Signal),
    Settle(oneshot::Sender<()>),
}

/// Who sees to what a service leaves behind when its main process has ended.
#[derive(Debug)]
pub(super) enum Orphans {
    /// `init`, whose children they become. Every process of the service keeps the lock.
    Inits { init: InitLink, lock: Option<VolumeLock> },
    /// We ourselves.
    Ours(Kin),
}

/// The main process.
#[derive(Debug)]
enum Main {
    Child(Child),
    /// Somebody else's child; none when it has been seen to end.
    Adopted(u32, Option<PidHandle>),
}

impl Main {
    fn pid(&self) -> u32 {
        match self {
            Self::Child(child) => child.pid(),
            Self::Adopted(pid, _) => *pid,
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) -> Result<(), process::Error> {
        match self {
            Self::Child(child) => child.signal(signal),
            Self::Adopted(_, Some(process)) => process.signal(signal),
            Self::Adopted(_, None) => Ok(()),
        }
    }

    async fn next_end(&mut self) -> End {
        match self {
            Self::Child(child) => child.next_end().await,
            Self::Adopted(_, process) => {
                let Some(running) = process else { return std::future::pending().await };
                running.ended().await;
                *process = None;
                End::Exited(UNKNOWN_EXIT)
            }
        }
    }
}

/// The exit of a process that is not our child.
const UNKNOWN_EXIT: Exit = Exit::Code(255);

/// What woke the task.
enum Woken {
    Event(Event),
    Request(Request),
    Closed,
}

/// The state of one unit's task.
#[derive(Debug)]
pub(super) struct Task {
    spec: UnitSpec,
    machine: Machine,
    orphans: Orphans,
    publish: watch::Sender<UnitState>,
    lines: LastLines,
    starts: Arc<AtomicU64>,
    command: Option<Command>,
    child: Option<Main>,
    pumps: JoinSet<()>,
    stops: Vec<oneshot::Sender<Option<Exit>>>,
    chance: StdRng,
    crashes: CrashLoop,
    /// How often it has ended, when that is to be said once its lines are here.
    looping: Option<u32>,
}

impl Task {
    pub(super) fn new(
        spec: UnitSpec,
        orphans: Orphans,
        publish: watch::Sender<UnitState>,
        (lines, starts): (LastLines, Arc<AtomicU64>),
    ) -> Self {
        Self {
            machine: Machine::new(spec.restart),
            spec,
            orphans,
            publish,
            lines,
            starts,
            command: None,
            child: None,
            pumps: JoinSet::new(),
            stops: Vec::new(),
            chance: StdRng::from_os_rng(),
            crashes: CrashLoop::default(),
            looping: None,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        loop {
            match self.wait(&mut inbox).await {
                Woken::Event(event) => self.apply_event(event).await,
                Woken::Request(request) => self.apply_request(request).await,
                Woken::Closed => return,
            }
        }
    }

    /// Exits first: somebody may be waiting to restart the database.
    async fn wait(&mut self, inbox: &mut mpsc::Receiver<Request>) -> Woken {
        let generation = self.machine.generation();
        let deadline = self.machine.deadline();
        tokio::select! {
            biased;
            event = next_end(self.child.as_mut(), generation) => Woken::Event(event),
            () = sleep_until(deadline) => Woken::Event(Event::TimePassed),
            request = inbox.recv() => request.map_or(Woken::Closed, Woken::Request),
            // Finished pumps are collected, or they would pile up over many restarts.
            Some(_ended) = self.pumps.join_next() => Woken::Event(Event::TimePassed),
        }
    }

    async fn apply_event(&mut self, event: Event) {
        match &event {
            Event::Exited { exit, .. } => {
                tracing::info!(unit = self.spec.name, ?exit, "the process ended");
                if matches!(*self.publish.borrow(), UnitState::Running { .. }) {
                    self.looping = self.crashes.ended(clock::now()).or(self.looping);
                }
            }
            Event::Gone { .. } => {
                let all = async { while self.pumps.join_next().await.is_some() {} };
                if tokio::time::timeout(LAST_LINES_PATIENCE, all).await.is_err() {
                    tracing::debug!(unit = self.spec.name, "its last lines are late");
                }
            }
            Event::StartAsked
            | Event::Adopted { .. }
            | Event::StopAsked { .. }
            | Event::Started { .. }
            | Event::StartFailed { .. }
            | Event::TimePassed => {}
        }
        if let Err(error) = self.step(event) {
            tracing::warn!(unit = self.spec.name, error = &error as &dyn std::error::Error, "restart failed");
        }
        // Its lines are complete when everything of it is gone, which may be known before or after its exit.
        let draining = matches!(*self.publish.borrow(), UnitState::Draining { .. });
        if !draining && let Some(ends) = self.looping.take() {
            self.show_last_lines(ends);
        }
    }

    async fn settle(&mut self, reply: oneshot::Sender<()>) {
        let all = async { while self.pumps.join_next().await.is_some() {} };
        if tokio::time::timeout(SETTLE_PATIENCE, all).await.is_err() {
            tracing::warn!(
                unit = self.spec.name,
                "somebody holds its output: its last lines are not waited for"
            );
        }
        // A caller that no longer waits has its own reasons.
        reply.send(()).ok();
    }

    async fn apply_request(&mut self, request: Request) {
        match request {
            Request::Start(command, reply) => {
                // A caller that no longer waits sees the state instead.
                drop(reply.send(self.start(*command)));
            }
            Request::Adopt(process, reply) => {
                drop(reply.send(self.adopt(process)));
            }
            Request::Stop(ladder, reply) => {
                let ladder = ladder.unwrap_or_else(|| self.spec.stop.clone());
                if self.is_idle() {
                    self.step_quietly(Event::StopAsked { ladder });
                    reply.send(None).ok();
                    return;
                }
                self.stops.push(reply);
                self.step_quietly(Event::StopAsked { ladder });
            }
            Request::Signal(signal) => self.signal(signal),
            Request::Settle(reply) => self.settle(reply).await,
        }
    }

    fn is_idle(&self) -> bool {
        match *self.publish.borrow() {
            UnitState::Down { .. } | UnitState::Backoff { .. } => true,
            UnitState::Running { .. } | UnitState::Stopping { .. } | UnitState::Draining { .. } => false,
        }
    }

    fn start(&mut self, command: Command) -> Result<u32, Error> {
        let name = self.spec.name;
        if let Some(doing) = self.machine.refusal() {
            return Err(Error::Busy { name, doing });
        }
        let lock = match &self.orphans {
            Orphans::Inits { lock, .. } => lock.clone(),
            Orphans::Ours(_) => None,
        };
        self.command = Some(Command { lock, ..command });
        self.step(Event::StartAsked).map_err(|source| Error::Start { name, source })?;
        self.child.as_ref().map(Main::pid).ok_or(Error::Busy { name, doing: "starting" })
    }

    fn adopt(&mut self, process: PidHandle) -> Result<(), Error> {
        let name = self.spec.name;
        if let Some(doing) = self.machine.refusal() {
            return Err(Error::Busy { name, doing });
        }
        let pid = process.pid();
        self.child = Some(Main::Adopted(pid, Some(process)));
        tracing::info!(unit = name, pid, "took charge of a running process");
        self.step(Event::Adopted { pid }).map_err(|source| Error::Start { name, source })
    }

    fn step_quietly(&mut self, event: Event) {
        if let Err(error) = self.step(event) {
            tracing::warn!(unit = self.spec.name, %error, "start failed");
        }
    }

    /// Applies an event and everything that follows from it at once; an error is that of a spawn.
    fn step(&mut self, event: Event) -> Result<(), process::Error> {
        let mut outcome = Ok(());
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let at = At { now: clock::now(), jitter: self.chance.random() };
            for action in self.machine.step(event, at) {
                match action {
                    Action::Spawn { generation } => match self.spawn() {
                        Ok(pid) => events.push(Event::Started { generation, pid }),
                        Err(error) => {
                            events.push(Event::StartFailed { generation });
                            outcome = Err(error);
                        }
                    },
                    Action::Signal(signal) => self.signal(signal),
                    Action::Sweep => events.extend(self.sweep()),
                    Action::Complain { waited } => {
                        tracing::error!(
                            unit = self.spec.name,
                            ?waited,
                            "something of it does not die of SIGKILL"
                        );
                    }
                }
            }
        }
        self.publish_state();
        outcome
    }

    /// Has orphans killed. Where that is our own work we see it when none is left.
    fn sweep(&self) -> Option<Event> {
        match &self.orphans {
            Orphans::Inits { init, .. } => {
                init.sweep();
                None
            }
            Orphans::Ours(kin) if kin.kill() == 0 => {
                Some(Event::Gone { generation: self.machine.generation() })
            }
            Orphans::Ours(_) => None,
        }
    }

    fn spawn(&mut self) -> Result<u32, process::Error> {
        let Some(command) = &self.command else {
            // The machine restarts only what was started before.
            return Err(process::Error::FindProgram { name: self.spec.name.to_owned(), dirs: String::new() });
        };
        let (child, streams) = process::spawn(command)?;
        let pid = child.pid();
        if let (Orphans::Inits { init, .. }, Fate::EndsWithUs(signal)) = (&self.orphans, command.fate) {
            init.watch(pid, signal);
        }
        let failed = |source| process::Error::Start { program: command.program.clone(), source };
        // Nobody could read what it prints: it is dropped, and killed.
        let (read, fed) = self.read(streams).map_err(failed)?;
        if let Some(read) = read {
            self.pumps.spawn(async move { read.await.unwrap_or_default() });
        }
        if let Some(feed) = fed {
            self.pumps.spawn(feed.write());
        }
        self.child = Some(Main::Child(child));
        self.starts.fetch_add(1, Ordering::Relaxed);
        tracing::info!(unit = self.spec.name, pid, "started");
        Ok(pid)
    }

    /// Has a thread read what it prints; gives back the end of that, and what it is to be fed.
    fn read(&self, streams: Streams) -> io::Result<(Option<oneshot::Receiver<()>>, Option<Feed>)> {
        let Some([stdout, stderr]) = streams.output else { return Ok((None, streams.stdin)) };
        let name = self.spec.name;
        let look = |kind| -> Look {
            let kept = self.lines.clone();
            let mut lines = log::Lines::new(name, kind);
            Box::new(move |news| {
                match news {
                    News::Bytes(bytes) => {
                        kept.keep(kind, bytes);
                        lines.push(bytes);
                    }
                    News::Quiet => lines.flush(),
                }
                if lines.is_waiting() { Waiting::ForAnEnd } else { Waiting::ForBytes }
            })
        };
        let both = (stdout.into_nonblocking_fd()?, stderr.into_nonblocking_fd()?);
        Ok((Some(process::read_aside(name, both, look)?), streams.stdin))
    }

    /// All of it stands in the log already, but perhaps hours ago or between the lines of others.
    fn show_last_lines(&self, ends: u32) {
        let name = self.spec.name;
        tracing::warn!(unit = name, ends, "keeps ending by itself; its last lines were:");
        for line in self.lines.to_vec().iter().rev().take(LINES_REPEATED).rev() {
            tracing::warn!(unit = name, "> {line}");
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let Some(child) = &self.child else { return };
        tracing::debug!(unit = self.spec.name, pid = child.pid(), %signal, "signalling");
        if let Err(error) = child.signal(signal) {
            // It ended a moment ago; its exit is on the way.
            tracing::debug!(unit = self.spec.name, %error, "not signalled");
        }
    }

    fn publish_state(&mut self) {
        let Some(state) = self.machine.published() else { return };
        self.publish.send_if_modified(|published| {
            let changed = *published != state;
            *published = state;
            changed
        });
        if let UnitState::Down { last } = state {
            for stop in self.stops.drain(..) {
                // A caller that no longer waits sees the state instead.
                stop.send(last).ok();
            }
        }
    }
}

async fn next_end(child: Option<&mut Main>, generation: Generation) -> Event {
    let Some(child) = child else { return std::future::pending().await };
    match child.next_end().await {
        End::Exited(exit) => Event::Exited { generation, exit },
        End::Gone => Event::Gone { generation },
    }
}

async fn sleep_until(deadline: Option<Moment>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(clock::now().until(deadline)).await,
        None => std::future::pending().await,
    }
}
