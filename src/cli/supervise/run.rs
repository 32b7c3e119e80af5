//! The life of a supervised list: start in order, live, follow the list when it is read again, stop in the reverse order.
//!
//! Each service has one task that brings it up and waits for its end; everything else is decided in [`Life::serve`],
//! [`Life::reload`] and [`Life::stop`]. Invariants: once a stop has begun nothing is started any more; a service that was
//! written anew starts only after its predecessor and all that came of it are gone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8Path;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::spec::{self, OnEnd, Probe, Service};
use crate::clock;
use crate::process::{self, Command, Exit, InitLink, Notice, Notices};
use crate::supervisor::{Reports, Restart, Rung, Unit, UnitSpec, UnitState, duration_of};
use crate::types::Chain;

/// `init` takes us for dead after 60 s of silence.
const BEAT: Duration = Duration::from_secs(10);
/// How often a service that is not ready is looked at.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// What one look may take.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// The only rung of a stop that must be quick.
const HASTE: Duration = Duration::from_millis(300);
/// How a service ends that had to be killed.
const KILLED_EXIT: Exit = Exit::Signal(9);
/// What a service that cannot be executed counts as; a shell says so too.
const NOT_EXECUTED: Exit = Exit::Code(127);
/// What has not died of SIGKILL for so long (a process in uninterruptible IO, a frozen group) is left behind.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// The exit code when something does not become ready in time.
const NOT_READY: u8 = 1;
/// The exit code when a service had to be killed at an ordered stop, 128 + SIGKILL.
const KILLED: u8 = 137;

/// Runs the services of this file until they end or a signal asks for it; returns the exit code.
pub(super) async fn run(file: &Utf8Path, services: Vec<Service>) -> anyhow::Result<u8> {
    let init = InitLink::inherit();
    let mut ears = Ears::listen()?;
    let reports = Reports::listen().context("could not listen for signals")?;
    process::hear_requests();
    let mut background = JoinSet::new();
    background.spawn(beat(init.clone()));
    let mut life = Life::new(init.clone());
    life.follow(services);
    background.spawn(reports.answer(life.units.subscribe(), init));
    let code = life.serve(file, &mut ears).await;
    life.stop(&mut ears, code).await
}

async fn beat(init: InitLink) {
    loop {
        init.beat();
        sleep(BEAT).await;
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Stop,
    StopQuickly,
    Reload,
}

struct Ears {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Ears {
    fn listen() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("could not listen for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            quit: on(SignalKind::quit())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.quit.recv() => Asked::StopQuickly,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }
}

/// One service, its unit, and whether it has been ready.
#[derive(Clone)]
struct Member {
    service: Service,
    unit: Unit,
    ready: watch::Sender<bool>,
}

/// A member, and what runs for it.
struct Held {
    member: Member,
    /// The task of its unit; without it there is no unit.
    _task: JoinSet<()>,
    /// Of [`live`].
    life: AbortHandle,
}

/// A member that stops, whether it is replaced or not.
struct Leaving {
    held: Held,
    /// Set when it and all that came of it are gone.
    gone: watch::Sender<bool>,
}

/// How the life of a service ended.
enum Ended {
    Exited(Exit),
    /// It could not be executed, and that is not tried again.
    NeverStarted(Exit),
    /// It runs, or does not, but others have waited for it in vain.
    NotReady,
}

struct Life {
    init: InitLink,
    members: Vec<Held>,
    lives: JoinSet<(&'static str, Ended)>,
    /// Whether a service of this name has been ready since it was last started anew.
    ready: BTreeMap<&'static str, watch::Sender<bool>>,
    /// What is no longer in the list, until it is down.
    leaving: Vec<Leaving>,
    farewells: JoinSet<()>,
    /// Every unit that there is, for whoever asks how they are.
    units: watch::Sender<Vec<Unit>>,
}

/// What we end with.
enum Code {
    /// Of the services' own doing.
    Given(u8),
    /// A signal asked for the end.
    Asked(Asked),
}

impl Life {
    fn new(init: InitLink) -> Self {
        Self {
            init,
            members: Vec::new(),
            lives: JoinSet::new(),
            ready: BTreeMap::new(),
            leaving: Vec::new(),
            farewells: JoinSet::new(),
            units: watch::Sender::new(Vec::new()),
        }
    }

    /// Until somebody asks for the end, a service takes everybody along, or nothing is left.
    async fn serve(&mut self, file: &Utf8Path, ears: &mut Ears) -> Code {
        let mut worst = 0;
        loop {
            let ended = tokio::select! {
                ended = self.lives.join_next_with_id() => ended,
                asked = ears.next() => match asked {
                    Asked::Stop | Asked::StopQuickly => return Code::Asked(asked),
                    Asked::Reload => {
                        self.reload(file);
                        continue;
                    }
                },
            };
            let Some(ended) = ended else { return Code::Given(worst) };
            // A life that was ended by a new list says nothing.
            let Ok((life, (name, ended))) = ended else { continue };
            let Some(held) = self.members.iter().find(|held| held.life.id() == life) else { continue };
            let on_end = held.member.service.on_end;
            match ended {
                Ended::NotReady => return Code::Given(NOT_READY),
                Ended::NeverStarted(_) if on_end == OnEnd::Stay && self.is_needed(name) => {
                    tracing::error!(unit = name, "was never started, and others need it");
                    return Code::Given(NOT_READY);
                }
                Ended::Exited(exit) | Ended::NeverStarted(exit) => {
                    let code = code_of(exit);
                    tracing::info!(unit = name, code, "has ended for good");
                    match on_end {
                        OnEnd::ExitContainer => return Code::Given(code),
                        OnEnd::Stay if code != 0 => worst = code,
                        OnEnd::Stay => {}
                    }
                }
            }
        }
    }

    /// Whether another service waits for this one.
    fn is_needed(&self, name: &str) -> bool {
        let name_at = |place: &usize| self.members.get(*place).map(|held| held.member.service.name);
        let mut needed = self.members.iter().flat_map(|held| &held.member.service.after);
        needed.any(|place| name_at(place) == Some(name))
    }

    /// Reads the list again. One that cannot be used changes nothing.
    fn reload(&mut self, file: &Utf8Path) {
        match spec::read(file) {
            Ok(services) => self.follow(services),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the list cannot be used; everything stays as it was");
            }
        }
    }

    /// Runs these services from now on: what is new starts, what is written otherwise stops and starts, what is gone
    /// stops, and everything else only gets the signal by which it reads its own configuration again.
    fn follow(&mut self, services: Vec<Service>) {
        let names: Vec<_> = services.iter().map(|service| service.name).collect();
        let wanted = |held: &Held| services.iter().find(|service| service.name == held.member.service.name);
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.members)
            .into_iter()
            .partition(|held| wanted(held).is_some_and(|service| held.member.service.is_written_as(service)));
        for held in &gone {
            let unit = held.member.service.name;
            match wanted(held) {
                Some(_) => tracing::info!(unit, "is written otherwise in the list: it starts anew"),
                None => tracing::info!(unit, "is no longer in the list: it stops"),
            }
        }
        self.dismiss(gone);
        let mut kept: BTreeMap<_, _> =
            kept.into_iter().map(|held| (held.member.service.name, held)).collect();
        for service in services {
            match kept.remove(service.name) {
                Some(mut held) => {
                    if let Some(signal) = service.reload {
                        held.member.unit.signal(signal);
                    }
                    // Its place among the others may be another.
                    held.member.service = service;
                    self.members.push(held);
                }
                None => self.take_on(service, &names),
            }
        }
        self.units.send_replace(self.all_units());
    }

    /// Brings a service to life, once everything that had its name before is gone.
    fn take_on(&mut self, service: Service, names: &[&'static str]) {
        let before = self.leaving.iter().filter(|leaving| leaving.held.member.service.name == service.name);
        let before: Vec<_> = before.map(|leaving| leaving.gone.subscribe()).collect();
        let mut ready = |name| self.ready.entry(name).or_default().clone();
        let needed = service.after.iter().filter_map(|place| names.get(*place));
        let needed: Vec<_> = needed.map(|name| ready(*name).subscribe()).collect();
        let ready = ready(service.name);
        ready.send_replace(false);
        let mut task = JoinSet::new();
        let spec = UnitSpec { name: service.name, restart: service.restart, stop: service.stop.clone() };
        let unit = Unit::spawn(spec, self.init.clone(), &mut task);
        let member = Member { service, unit, ready };
        let living = member.clone();
        let life = self.lives.spawn(async move {
            for mut gone in before {
                if gone.wait_for(|gone| *gone).await.is_err() {
                    // The stop has begun.
                    std::future::pending::<()>().await;
                }
            }
            (living.service.name, live(&living, needed).await)
        });
        self.members.push(Held { member, _task: task, life });
    }

    /// Stops them, the deepest first.
    fn dismiss(&mut self, mut gone: Vec<Held>) {
        self.leaving.retain(|leaving| !*leaving.gone.borrow());
        gone.sort_by_key(|held| Reverse(held.member.service.depth));
        let mut goers = Vec::new();
        for held in gone {
            held.life.abort();
            let gone = watch::Sender::new(false);
            goers.push((held.member.service.depth, held.member.unit.clone(), gone.clone()));
            self.leaving.push(Leaving { held, gone });
        }
        self.farewells.spawn(async move {
            for same_depth in goers.chunk_by(|one, other| one.0 == other.0) {
                let mut stops = JoinSet::new();
                for (_depth, unit, gone) in same_depth {
                    let (unit, gone) = (unit.clone(), gone.clone());
                    stops.spawn(async move {
                        unit.stop(None).await;
                        unit.settle().await;
                        gone.send_replace(true);
                    });
                }
                stops.join_all().await;
            }
        });
    }

    fn all_units(&self) -> Vec<Unit> {
        let leaving = self.leaving.iter().map(|leaving| &leaving.held);
        self.members.iter().chain(leaving).map(|held| held.member.unit.clone()).collect()
    }

    /// The deepest first: nobody loses what it needs before it has ended itself. What was leaving already goes first.
    async fn stop(mut self, ears: &mut Ears, code: Code) -> anyhow::Result<u8> {
        self.lives.shutdown().await;
        let mut hasty = matches!(code, Code::Asked(Asked::StopQuickly));
        let mut killed = false;
        let top = self.members.iter().map(|held| held.member.service.depth + 1).max().unwrap_or(0);
        let leaving = self.leaving.iter().map(|leaving| &leaving.held);
        let leaving = leaving.map(|held| (top + held.member.service.depth, &held.member));
        let members = self.members.iter().map(|held| (held.member.service.depth, &held.member));
        let stages: Vec<_> = leaving.chain(members).collect();
        let deepest = stages.iter().map(|(depth, _member)| *depth).max().unwrap_or(0);
        for depth in (0..=deepest).rev() {
            let mut stops = JoinSet::new();
            for (_, member) in stages.iter().filter(|(stage, _)| *stage == depth) {
                let ladder = if hasty { haste() } else { member.service.stop.clone() };
                stops.spawn(end(member.unit.clone(), ladder));
            }
            loop {
                tokio::select! {
                    stopped = stops.join_next() => match stopped {
                        Some(exit) => killed |= matches!(exit, Ok(Some(KILLED_EXIT))),
                        None => break,
                    },
                    asked = ears.next() => match asked {
                        Asked::Stop | Asked::Reload => tracing::info!("stopping already"),
                        Asked::StopQuickly => {
                            hasty = true;
                            // A stop that nobody waits for any more goes on; what ends it sooner replaces it.
                            stops.abort_all();
                            for unit in self.all_units() {
                                stops.spawn(end(unit, haste()));
                            }
                        }
                    },
                }
            }
        }
        for unit in self.all_units() {
            unit.settle().await;
        }
        tracing::info!("stopped");
        Ok(match code {
            Code::Given(code) => code,
            Code::Asked(_) if killed => KILLED,
            Code::Asked(_) => 0,
        })
    }
}

/// Stops a unit by this ladder; how it ended, or that it had to be killed and does not die even so.
async fn end(unit: Unit, ladder: Vec<Rung>) -> Option<Exit> {
    let limit = duration_of(&ladder).saturating_add(KILL_PATIENCE);
    let stopped = timeout(limit, unit.stop(Some(ladder))).await;
    stopped.unwrap_or_else(|_elapsed| {
        tracing::error!(unit = unit.name(), "does not die of SIGKILL: it is left behind");
        Some(KILLED_EXIT)
    })
}

fn haste() -> Vec<Rung> {
    vec![Rung { signal: Signal::SIGTERM, wait: HASTE }]
}

fn code_of(exit: Exit) -> u8 {
    let code = match exit {
        Exit::Code(code) => code,
        Exit::Signal(number) => 128 + number,
    };
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

/// One service: wait for what it needs, start, become ready, end.
async fn live(member: &Member, needed: Vec<watch::Receiver<bool>>) -> Ended {
    for mut ready in needed {
        if ready.wait_for(|ready| *ready).await.is_err() {
            // The stop has begun.
            std::future::pending::<()>().await;
        }
    }
    let (command, mut told) = match equip(&member.service) {
        Ok(equipped) => equipped,
        Err(error) => {
            tracing::error!(unit = member.service.name, %error, "not started");
            return Ended::NeverStarted(NOT_EXECUTED);
        }
    };
    if let Some(exit) = start(member, &command).await {
        return Ended::NeverStarted(exit);
    }
    let service = &member.service;
    let early = tokio::select! {
        biased;
        ready = timeout(service.ready_within, until_ready(service, told.as_mut())) => match ready {
            Ok(()) => None,
            Err(_elapsed) => {
                tracing::error!(unit = service.name, within = ?service.ready_within, "did not become ready");
                return Ended::NotReady;
            }
        },
        exit = down(&member.unit) => Some(exit),
    };
    if let Some(exit) = early
        && !has_become_ready(service, told.as_mut()).await
    {
        tracing::error!(unit = service.name, ?exit, "has ended for good and was never ready");
        return match service.on_end {
            OnEnd::ExitContainer => Ended::Exited(exit),
            // Who needs it would wait for ever.
            OnEnd::Stay => Ended::NotReady,
        };
    }
    member.ready.send_replace(true);
    tokio::select! {
        exit = down(&member.unit) => Ended::Exited(exit),
        never = hear_out(told) => match never {},
    }
}

/// A last look at one that has ended: what made it ready may be the last thing that it did.
async fn has_become_ready(service: &Service, told: Option<&mut Notices>) -> bool {
    match (&service.ready, told) {
        (None, _) => true,
        (Some(_), Some(told)) => timeout(Duration::ZERO, told.line()).await.is_ok(),
        (Some(probe), None) => is_ready(service, probe).await,
    }
}

/// Waits until it has ended and is not started again by itself.
async fn down(unit: &Unit) -> Exit {
    let mut state = unit.state();
    let down = state.wait_for(|state| matches!(state, UnitState::Down { .. })).await;
    match down.map(|state| *state) {
        Ok(UnitState::Down { last }) => last.unwrap_or(NOT_EXECUTED),
        // The stop has begun.
        _ => std::future::pending().await,
    }
}

/// What it is started with, and where it is heard when it tells by itself that it is ready.
fn equip(service: &Service) -> io::Result<(Command, Option<Notices>)> {
    let mut command = service.command.clone();
    let Some(Probe::Fd(number)) = service.ready else { return Ok((command, None)) };
    let (notice, notices) = Notice::open(number)?;
    command.notice = Some(notice);
    Ok((command, Some(notices)))
}

/// Its next life tells, too; a pipe that nobody reads would kill it.
async fn hear_out(told: Option<Notices>) -> Infallible {
    let Some(mut told) = told else { return std::future::pending().await };
    loop {
        told.line().await;
    }
}

/// Executes it; what cannot be executed is tried again when its rule is to be restarted.
async fn start(member: &Member, command: &Command) -> Option<Exit> {
    let name = member.service.name;
    let mut attempts = 0;
    let mut failures = VecDeque::new();
    loop {
        let Err(error) = member.unit.start(command.clone()).await else { return None };
        tracing::error!(unit = name, error = %Chain(&error), "not started");
        let is_given_up = match member.service.restart {
            Restart::Never => true,
            Restart::Always { .. } => false,
            Restart::Limited { burst, .. } => burst.is_reached(&mut failures, clock::now()),
        };
        if is_given_up {
            return Some(not_executed(&error));
        }
        sleep(member.service.backoff.delay(attempts, 1.0)).await;
        attempts = attempts.saturating_add(1);
    }
}

/// 127 when it is missing, 126 when it cannot be executed.
fn not_executed(error: &crate::supervisor::Error) -> Exit {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() != io::ErrorKind::NotFound) {
            return Exit::Code(126);
        }
        cause = error.source();
    }
    NOT_EXECUTED
}

async fn until_ready(service: &Service, told: Option<&mut Notices>) {
    match (&service.ready, told) {
        (None, _) => {}
        (Some(_), Some(told)) => told.line().await,
        (Some(probe), None) => {
            while !is_ready(service, probe).await {
                sleep(PROBE_EVERY).await;
            }
        }
    }
}

async fn is_ready(service: &Service, probe: &Probe) -> bool {
    match probe {
        // It is heard, not asked.
        Probe::Fd(_) => false,
        Probe::File(path) => path.exists(),
        Probe::Tcp(address) => {
            matches!(timeout(PROBE_LIMIT, TcpStream::connect(address)).await, Ok(Ok(_connected)))
        }
        Probe::Exec(words) => {
            let Some((program, args)) = words.split_first() else { return false };
            let run_as = &service.command.run_as;
            let mut command = Command::new(service.name, program.as_str()).args(args).run_as(run_as).quiet();
            command.env.clone_from(&service.command.env);
            let output = process::run(&command, PROBE_LIMIT).await;
            output.is_ok_and(|output| output.exit.is_success())
        }
    }
}
