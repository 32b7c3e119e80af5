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

/// How soon everything is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    InOrder,
    /// SIGQUIT: PostgreSQL does not wait for its checkpoint. The key and etcd are still given up in order.
    Immediate,
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

    pub(super) async fn first(&mut self) -> Haste {
        let haste = tokio::select! {
            _ = self.terminate.recv() => Haste::InOrder,
            _ = self.interrupt.recv() => Haste::InOrder,
            _ = self.quit.recv() => Haste::Immediate,
        };
        self.asked = Asked::Yes;
        haste
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
