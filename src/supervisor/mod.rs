//! Services that run for long: one [`Unit`] a service, a pure state machine ([`mod@unit`]) and a task that obeys it.
//!
//! Invariant: the task is the only owner of its child; everybody else sends requests and watches the published state.
//! Absent on purpose: dependencies between services, readiness and health checks. Who starts what when is decided in the
//! rooms above; each of them asks its own service how it is.

mod report;
mod task;
pub mod unit;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::clock::{Backoff, Moment};
use crate::log::Stream;
use crate::process::{Command, Exit, InitLink, Kin, PidHandle, VolumeLock};
pub use report::{Reports, describe};
use task::{Orphans, Request, Task};
pub use unit::duration_of;

/// Requests that may wait for the task. It answers each at once, so more than a few means that it has died.
const REQUESTS: usize = 16;
/// How much is remembered of what it printed, for a crash loop's report.
const BYTES_KEPT: usize = 16 * 1024;
/// How many lines of it are shown.
const LINES_SHOWN: usize = 40;

/// What to do when a service ends without having been asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Nothing: somebody else decides (PostgreSQL: the HA core).
    Never,
    /// Start it again, the first time at once, then after a delay that grows; it starts afresh after `healthy_after` of
    /// running.
    Always { backoff: Backoff, healthy_after: Duration },
    /// The same, but not for ever.
    Limited { backoff: Backoff, healthy_after: Duration, success: AfterSuccess, burst: Burst },
}

/// What an exit with code 0 means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterSuccess {
    /// The same as any other end.
    Restart,
    /// The work is done.
    StayDown,
}

/// When a service is given up: at more than so many restarts within this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    pub restarts: u32,
    pub within: Duration,
}

impl Burst {
    /// Notes an end among the earlier ones, and tells whether there have been too many in too short a time.
    pub fn is_reached(self, ends: &mut VecDeque<Moment>, now: Moment) -> bool {
        ends.push_back(now);
        while ends.front().is_some_and(|end| now.since(*end) > self.within) {
            ends.pop_front();
        }
        ends.len() > usize::try_from(self.restarts).unwrap_or(usize::MAX)
    }
}

/// One rung of a stop ladder: this signal, then wait so long for the process and every descendant to be gone. After the
/// last rung come SIGKILL and the sweep of orphans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    pub signal: Signal,
    pub wait: Duration,
}

/// A service's rules.
#[derive(Debug, Clone)]
pub struct UnitSpec {
    pub name: &'static str,
    pub restart: Restart,
    /// The default ladder.
    pub stop: Vec<Rung>,
}

/// What a service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    /// Not running, and every descendant of the last generation is gone.
    Down {
        last: Option<Exit>,
    },
    Running {
        pid: u32,
        since: Moment,
    },
    /// Asked to stop.
    Stopping {
        pid: u32,
    },
    /// The main process is gone, descendants are not: nothing may be started yet.
    Draining {
        last: Exit,
    },
    /// Waiting before the next start.
    Backoff {
        until: Moment,
        last: Exit,
    },
}

impl UnitState {
    /// Since when the main process runs, if it does and was not asked to stop.
    pub fn running_since(self) -> Option<Moment> {
        match self {
            Self::Running { since, .. } => Some(since),
            Self::Down { .. } | Self::Stopping { .. } | Self::Draining { .. } | Self::Backoff { .. } => None,
        }
    }
}

/// A handle on one service. The task behind it ends (and kills the service) when the set is shut down; it does not end
/// because handles are dropped.
#[derive(Debug, Clone)]
pub struct Unit {
    name: &'static str,
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<UnitState>,
    lines: LastLines,
    starts: Arc<AtomicU64>,
}

impl Unit {
    /// Starts the task of a unit (not the service) on `tasks`. The runtime must be the main thread's, see [`crate::process`].
    pub fn spawn(spec: UnitSpec, init: InitLink, tasks: &mut JoinSet<()>) -> Self {
        Self::spawn_holding(None, spec, init, tasks)
    }

    /// The same, for a service whose every process keeps the volume's lock.
    pub fn spawn_holding(
        lock: Option<VolumeLock>,
        spec: UnitSpec,
        init: InitLink,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        Self::spawn_with(Orphans::Inits { init, lock }, spec, tasks)
    }

    /// The same without an `init`: what the service leaves behind is found by where it works.
    pub fn spawn_alone(kin: Kin, spec: UnitSpec, tasks: &mut JoinSet<()>) -> Self {
        Self::spawn_with(Orphans::Ours(kin), spec, tasks)
    }

    fn spawn_with(orphans: Orphans, spec: UnitSpec, tasks: &mut JoinSet<()>) -> Self {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let (publish, state) = watch::channel(UnitState::Down { last: None });
        let lines = LastLines::default();
        let name = spec.name;
        // The task holds a sender of its own channel, so that the channel never closes.
        let keep_open = requests.clone();
        let starts = Arc::default();
        let task = Task::new(spec, orphans, publish, (lines.clone(), Arc::clone(&starts)));
        tasks.spawn(async move {
            task.run(inbox).await;
            drop(keep_open);
        });
        Self { name, requests, state, lines, starts }
    }

    /// Starts the service, when it is down (or waiting in backoff). Waits until `exec` has succeeded or failed.
    ///
    /// # Errors
    /// It is running, stopping or draining; or it cannot be executed.
    pub async fn start(&self, command: Command) -> Result<u32, Error> {
        let closed = || Error::Busy { name: self.name, doing: "shutting down" };
        let (reply, answer) = oneshot::channel();
        let request = Request::Start(Box::new(command), reply);
        self.requests.send(request).await.map_err(|_task_ended| closed())?;
        answer.await.unwrap_or_else(|_task_ended| Err(closed()))
    }

    /// Takes charge of a process that somebody else started as this service. It is watched, signalled and stopped like our
    /// own; with which code it ends is not ours to know.
    ///
    /// # Errors
    /// The service runs already.
    pub async fn adopt(&self, process: PidHandle) -> Result<(), Error> {
        let closed = || Error::Busy { name: self.name, doing: "shutting down" };
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Adopt(process, reply)).await.map_err(|_task_ended| closed())?;
        answer.await.unwrap_or_else(|_task_ended| Err(closed()))
    }

    /// Stops it by its own ladder, or by this one. Returns when the process and all its descendants are gone. Callable in
    /// every state; a second call may only hasten: a ladder that takes no less time than what is left is not taken.
    /// Returns the exit, `None` when nothing ran.
    pub async fn stop(&self, ladder: Option<Vec<Rung>>) -> Option<Exit> {
        let (reply, answer) = oneshot::channel();
        // When the task has ended, so has its child.
        self.requests.send(Request::Stop(ladder, reply)).await.ok()?;
        answer.await.ok().flatten()
    }

    /// Sends one signal to the main process, if there is one.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = self.requests.try_send(Request::Signal(signal)) {
            tracing::warn!(unit = self.name, %signal, %error, "the signal was not sent");
        }
    }

    /// Waits until all that a stopped service has printed is in the log: the process may end.
    pub async fn settle(&self) {
        let (reply, answer) = oneshot::channel();
        // When the task has ended there is nobody left to wait for.
        if self.requests.send(Request::Settle(reply)).await.is_ok() {
            answer.await.unwrap_or_default();
        }
    }

    /// What it is doing, now and from now on.
    pub fn state(&self) -> watch::Receiver<UnitState> {
        self.state.clone()
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How often it was started again after its first start, by whomever.
    pub fn n_restarts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// The last lines it logged (for a crash loop's report), oldest first.
    pub fn last_lines(&self) -> Vec<String> {
        self.lines.to_vec()
    }
}

/// The last bytes that a service printed, shared between its task and its handles. Lines are made of them when somebody
/// asks: to remember must cost nothing.
#[derive(Debug, Clone, Default)]
struct LastLines(Arc<Mutex<Tail>>);

#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    last: Option<Stream>,
}

impl LastLines {
    fn keep(&self, stream: Stream, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One stream's line must not go on in the other's.
        if tail.last.replace(stream) != Some(stream) && tail.bytes.back().is_some_and(|byte| *byte != b'\n') {
            tail.bytes.push_back(b'\n');
        }
        let bytes = bytes.get(bytes.len().saturating_sub(BYTES_KEPT)..).unwrap_or(bytes);
        let excess = (tail.bytes.len() + bytes.len()).saturating_sub(BYTES_KEPT);
        let excess = excess.min(tail.bytes.len());
        tail.bytes.drain(..excess);
        tail.bytes.extend(bytes);
    }

    fn to_vec(&self) -> Vec<String> {
        let bytes = Vec::from(self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes.clone());
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.len().saturating_sub(LINES_SHOWN);
        lines.into_iter().skip(first).map(str::to_owned).collect()
    }
}

/// Unasked ends that follow one another closely. Pure: it counts, and tells when it is time to speak of it.
#[derive(Debug, Default)]
struct CrashLoop {
    ends: u32,
    last: Moment,
}

/// Ends further apart than this are not a loop.
const LOOP_WINDOW: Duration = Duration::from_secs(60);
/// So many in a row are one.
const LOOP_ENDS: u32 = 4;

impl CrashLoop {
    /// Notes an end; returns how many there have been when that should be said: at 4, 8, 16 ...
    fn ended(&mut self, now: Moment) -> Option<u32> {
        if now.since(self.last) > LOOP_WINDOW {
            self.ends = 0;
        }
        self.last = now;
        self.ends = self.ends.saturating_add(1);
        (self.ends >= LOOP_ENDS && self.ends.is_power_of_two()).then_some(self.ends)
    }
}

/// Why a start did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name} is still {doing}")]
    Busy { name: &'static str, doing: &'static str },
    #[error("could not start {name}")]
    Start {
        name: &'static str,
        #[source]
        source: crate::process::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_bounded_and_streams_do_not_run_together() {
        let lines = LastLines::default();
        lines.keep(Stream::Stdout, b"one\ntw");
        lines.keep(Stream::Stderr, b"err\n");
        lines.keep(Stream::Stdout, b"o\n");
        assert_eq!(lines.to_vec(), ["one", "tw", "err", "o"]);
        lines.keep(Stream::Stdout, &vec![b'x'; 10 * BYTES_KEPT]);
        assert_eq!(lines.to_vec().concat().len(), BYTES_KEPT);
        for n in 0..100 {
            lines.keep(Stream::Stdout, format!("\n{n}").as_bytes());
        }
        let kept = lines.to_vec();
        assert_eq!((kept.len(), kept.last().map(String::as_str)), (LINES_SHOWN, Some("99")));
    }

    #[test]
    fn a_crash_loop_is_spoken_of_ever_more_seldom() {
        let mut crashes = CrashLoop::default();
        let said: Vec<_> = (0..20).filter_map(|n| crashes.ended(Moment(n + 1))).collect();
        assert_eq!(said, [4, 8, 16]);
        assert_eq!(crashes.ended(Moment(0) + Duration::from_secs(3600)), None);
    }
}
