//! Services that run for long: one [`Unit`] a service, a pure state machine ([`mod@unit`]) and a task that obeys it.
//!
//! Invariant: the task is the only owner of its child; everybody else sends requests and watches the published state.
//! Absent on purpose: dependencies between services, readiness and health checks. Who starts what when is decided in the
//! rooms above; each of them asks its own service how it is.

mod task;
pub mod unit;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::clock::{Backoff, Moment};
use crate::process::{Command, Exit, InitLink};
use task::{Request, Task};

/// Requests that may wait for the task. It answers each at once, so more than a few means that it has died.
const REQUESTS: usize = 16;
/// How many lines are remembered for a crash loop's report.
const LINES_KEPT: usize = 40;
/// How much of each.
const LINE_KEPT_BYTES: usize = 1024;

/// What to do when a service ends without having been asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Nothing: somebody else decides (PostgreSQL: the HA core).
    Never,
    /// Start it again after a delay that grows; it starts afresh after `healthy_after` of running.
    Always { backoff: Backoff, healthy_after: Duration },
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

/// A handle on one service. The task behind it ends (and kills the service) when the set is shut down; it does not end
/// because handles are dropped.
#[derive(Debug, Clone)]
pub struct Unit {
    name: &'static str,
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<UnitState>,
    lines: LastLines,
}

impl Unit {
    /// Starts the task of a unit (not the service) on `tasks`. The runtime must be the main thread's, see [`crate::process`].
    pub fn spawn(spec: UnitSpec, init: InitLink, tasks: &mut JoinSet<()>) -> Self {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let (publish, state) = watch::channel(UnitState::Down { last: None });
        let lines = LastLines::default();
        let name = spec.name;
        // The task holds a sender of its own channel, so that the channel never closes.
        let keep_open = requests.clone();
        let task = Task::new(spec, init, publish, lines.clone());
        tasks.spawn(async move {
            task.run(inbox).await;
            drop(keep_open);
        });
        Self { name, requests, state, lines }
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

    /// What it is doing, now and from now on.
    pub fn state(&self) -> watch::Receiver<UnitState> {
        self.state.clone()
    }

    /// The last lines it logged (for a crash loop's report), oldest first.
    pub fn last_lines(&self) -> Vec<String> {
        self.lines.to_vec()
    }
}

/// The last lines of a service, shared between its task and its handles.
#[derive(Debug, Clone, Default)]
struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    fn keep(&self, line: &[u8]) {
        let line = line.get(..LINE_KEPT_BYTES).unwrap_or(line);
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_KEPT {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(line).into_owned());
    }

    fn to_vec(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
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
