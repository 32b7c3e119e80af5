//! What a person gets who sends SIGUSR1: the state of every unit, in the log.
//!
//! SIGHUP is heard here too, by processes that have nothing to read again: unheard, either would end the process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{Unit, UnitState};
use crate::clock::{self, Moment};
use crate::process::{Exit, InitLink};

/// An ear for SIGUSR1, and a deaf one for SIGHUP. From its making on neither ends the process.
#[derive(Debug)]
pub struct Reports {
    asked: Signal,
    /// Heard and not answered.
    _hang_up: Signal,
}

impl Reports {
    /// Begins to listen.
    ///
    /// # Errors
    /// The runtime cannot.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { asked: signal(SignalKind::user_defined1())?, _hang_up: signal(SignalKind::hangup())? })
    }

    /// Answers each request with a line for every unit that there is then, until it is dropped.
    pub async fn answer(mut self, units: watch::Receiver<Vec<Unit>>, init: InitLink) {
        while self.asked.recv().await.is_some() {
            if units.borrow().is_empty() {
                tracing::info!("there is no unit yet");
            }
            for unit in units.borrow().iter() {
                tracing::info!(
                    unit = unit.name,
                    state = describe(*unit.state.borrow(), clock::now()),
                    "state"
                );
            }
            if let Some(margin) = init.least_margin() {
                tracing::info!(?margin, "the least time by which the deadman was outrun");
            }
        }
    }
}

/// A state in words.
pub fn describe(state: UnitState, now: Moment) -> String {
    match state {
        UnitState::Down { last: None } => "down".to_owned(),
        UnitState::Down { last: Some(exit) } => format!("down, {}", how(exit)),
        UnitState::Running { pid, since } => format!("running, pid {pid}, for {:.0?}", now.since(since)),
        UnitState::Stopping { pid } => format!("stopping, pid {pid}"),
        UnitState::Draining { last } => format!("draining, {}", how(last)),
        UnitState::Backoff { until, last } => format!("backoff for {:.1?}, {}", now.until(until), how(last)),
    }
}

fn how(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("ended with code {code}"),
        Exit::Signal(signal) => format!("ended by signal {signal}"),
    }
}
