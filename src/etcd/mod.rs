//! The etcd service that we run, and its membership: ballot, join, prune. (The store we talk to is `dcs::etcd`.)
//!
//! [`view`] is what is known, [`decide`] (with [`ballot`] and [`prune`]) says what to do about it, `agent` observes
//! and acts. Invariants: at most one store per ballot epoch can become READY; a member never starts on an empty
//! directory under an old number; a node that answers is never removed; data is put aside, never deleted at once.
//!
//! Absent, and held with a reason instead: recovery of a store whose majority is lost, cold start without etcd's
//! data, a choice between two clusters, and the check of two distinct list sources on public networks.

pub mod ballot;
pub mod client;
pub mod decide;
pub mod decision;
pub mod prune;
pub mod view;

mod act;
mod agent;
mod observe;

#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod simulation;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use camino::Utf8PathBuf;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::dcs::etcd::Credentials;
use crate::discovery::Peers;
use crate::peer::{DataFacts, PeerClient, PromiseReply, PromiseRequest, StoreFacts};
use crate::process::RunAs;
use crate::record::Keeper;
use crate::supervisor::Unit;
use crate::types::Ports;

pub use view::PrimaryHere;

/// What this room needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// etcd.
    pub program: Utf8PathBuf,
    /// `<volume>/etcd`.
    pub data_dir: Utf8PathBuf,
    /// Where the certificates are.
    pub tls_dir: Utf8PathBuf,
    /// Whom etcd runs as.
    pub run_as: RunAs,
    /// `APP_NAME`.
    pub app: String,
    /// This node's address.
    pub address: IpAddr,
    /// `LISTEN_ADDRESS`.
    pub listen: String,
    /// Bound, and advertised.
    pub bound: Ports,
    /// The ports that others reach us by; the same on every node.
    pub advertised: Ports,
    /// The beginning of `--initial-cluster-token`.
    pub token: String,
    /// Where etcd serves metrics in clear text; a loopback URL.
    pub metrics_url: Option<String>,
    /// The clocks of the network profile.
    pub timing: Timing,
}

/// The clocks that depend on the network profile. The same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// `--heartbeat-interval`.
    pub heartbeat: Duration,
    /// `--election-timeout`.
    pub election: Duration,
    /// `PRUNE_AFTER`.
    pub prune_after: Duration,
}

/// What the room works with.
#[derive(Debug)]
pub struct Deps {
    /// The etcd process. Its rule must be [`crate::supervisor::Restart::Never`]: a restart without a decision could
    /// start an emptied directory under its old number.
    pub unit: Unit,
    /// What the volume remembers.
    pub record: Keeper,
    /// Who may exist.
    pub peers: watch::Receiver<Peers>,
    /// The way to other nodes.
    pub peer_client: PeerClient,
    /// What PostgreSQL's data directory holds.
    pub data: watch::Receiver<DataFacts>,
    /// Whether the primary is here.
    pub primary: watch::Receiver<PrimaryHere>,
    /// What to show to etcd and what to trust.
    pub tls: Credentials,
}

/// What this room publishes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// For `/v1/status`.
    pub facts: StoreFacts,
    /// Client URLs to use, best first (own voter, then the others).
    pub endpoints: Vec<String>,
    /// What was last decided and why, in words: "held: this volume remembers a cluster whose store is not in sight".
    pub doing: String,
    /// Addresses whose removal is held, with the reason.
    pub held: Vec<(IpAddr, String)>,
}

/// A promise request on its way to the agent's task.
#[derive(Debug)]
struct Ask {
    request: PromiseRequest,
    reply: oneshot::Sender<PromiseReply>,
}

/// How long a promise may take: one fsync, plus whatever synchronous step the agent is in.
const PROMISE_LIMIT: Duration = Duration::from_secs(2);

/// Candidates that wait for an answer; more at one time is a mistake or an attack.
const PROMISE_QUEUE: usize = 16;

/// A handle on the room.
#[derive(Debug, Clone)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    status: watch::Receiver<Status>,
}

impl Handle {
    /// What the room last published, now and from now on.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Answers a promise request: decided by the agent's task, written to disk before it answers.
    pub async fn promise(&self, request: PromiseRequest) -> PromiseReply {
        let (reply, answer) = oneshot::channel();
        let ask = self.asks.send(Ask { request, reply });
        let asked = async {
            ask.await.ok()?;
            answer.await.ok()
        };
        match timeout(PROMISE_LIMIT, asked).await {
            Ok(Some(reply)) => reply,
            // The promise may have been made nevertheless: the candidate counts only what it hears.
            Ok(None) | Err(_) => {
                PromiseReply::Refused { why: "this node's etcd agent does not answer".to_owned() }
            }
        }
    }
}

/// Starts the room. Its task ends when `stop` is cancelled and leaves etcd running; the owner of the unit stops it
/// (by SIGTERM, which hands raft leadership over).
pub fn spawn(config: Config, deps: Deps, tasks: &mut JoinSet<()>, stop: CancellationToken) -> Handle {
    let (asks, requests) = mpsc::channel(PROMISE_QUEUE);
    let (publish, status) = watch::channel(Status::default());
    let agent = agent::Agent::new(config, deps, requests, publish);
    tasks.spawn(agent.run(stop));
    Handle { asks, status }
}

/// The addresses known by any source, for a status page.
pub type Addresses = BTreeSet<IpAddr>;
