//! Requests to stop, as signals.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tracing::warn;

/// Some ask us and our whole process group: what comes so soon after a request is the same one.
const SAME_REQUEST: Duration = Duration::from_millis(500);

/// The signals that ask for a stop.
pub(super) struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    asked: Asked,
}

/// Whether a request has been heard: a node that stops by itself has had none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    No,
    Yes,
}

impl StopSignals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("could not listen for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            quit: on(SignalKind::quit())?,
            asked: Asked::No,
        })
    }

    /// SIGQUIT too asks for an order: PostgreSQL's immediate shutdown does not wait until standbys have everything, and a key that is
    /// given back after it would cost what they lack.
    pub(super) async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.quit.recv() => {}
        }
        self.asked = Asked::Yes;
    }

    /// A second request sets the deadline to now.
    pub(super) async fn second(&mut self) {
        if self.asked == Asked::No {
            self.first().await;
        }
        let echoes = async {
            loop {
                self.first().await;
            }
        };
        timeout(SAME_REQUEST, echoes).await.unwrap_or(());
        self.first().await;
        warn!("asked to stop again: stopping at once");
    }
}
