//! The API port: REST in Patroni's words, metrics, and the calls from node to node.
//!
//! Invariant: every answer comes from memory. A handler reads what the rooms have published on watch channels and
//! maps it with a pure function; it never asks PostgreSQL or the store, so a health check costs microseconds and
//! cannot hang on what it is checking. Because memory can be old, whatever was published carries when that was, and
//! health refuses to vouch for a loop that stands still or for a lease that has run out.
//!
//! One port speaks TLS and, while `SSL_ENABLED=false`, plain HTTP too: the first byte of a connection tells
//! (`listener`). Node-to-node calls (`/v1/...`) need a client certificate of the internal CA.
//!
//! What changes something (`PATCH /config`, `POST /switchover`, ...) is checked against memory and handed to the HA loop, which
//! alone acts; the handler waits for what becomes of it. `POST /failsafe` gives a leader a promise, without the loop.

pub mod access;
mod actions;
pub mod cluster;
mod failsafe;
#[cfg(test)]
mod fixture;
pub mod health;
mod listener;
pub mod metrics;
pub mod openapi;
mod places;
mod routes;
pub mod status;
mod whereabouts;
pub mod why;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::HeaderMap;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::whereabouts::Whereabouts;

use crate::peer::DataFacts;
use crate::process::InitLink;
use crate::supervisor::Unit;
use crate::types::{NodeId, NodeName};
use crate::{discovery, etcd, ha};

/// Where the API listens.
#[derive(Debug, Clone)]
pub struct Config {
    /// `LISTEN_ADDRESS`.
    pub listen: String,
    /// `PATRONI_API_PORT`; 0 lets the system choose (tests).
    pub port: u16,
    /// Whether plain HTTP is served beside TLS.
    pub plain: Plain,
    /// What every answer carries besides its own headers.
    pub headers: HeaderMap,
}

impl Config {
    /// Without headers besides those of each answer.
    pub fn new(listen: String, port: u16, plain: Plain) -> Self {
        Self { listen, port, plain, headers: HeaderMap::new() }
    }
}

/// Whether a connection that does not start with a TLS handshake is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// `SSL_ENABLED=false`.
    Accepted,
    /// `SSL_ENABLED=true`: answered with 400 and a sentence that says why.
    Refused,
}

/// What does not change about this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The volume's identity.
    pub node_id: NodeId,
    /// The member's name.
    pub name: NodeName,
    /// `APP_NAME`: Patroni's scope.
    pub app: String,
}

/// What the API may look at.
#[derive(Debug, Clone)]
pub struct State {
    /// This node.
    pub node: NodeFacts,
    /// The HA loop's last word; `None` before its first tick.
    pub ha: watch::Receiver<Option<ha::Status>>,
    /// The etcd room's last word.
    pub store: watch::Receiver<etcd::Status>,
    /// The location list.
    pub peers: watch::Receiver<discovery::Peers>,
    /// This volume's data in a few words.
    pub data: watch::Receiver<DataFacts>,
    /// Who gives a leader the promise not to take its place; without it `POST /failsafe` says no.
    pub promises: Option<ha::promises::Promises>,
    /// Who answers promises; without it `POST /v1/promise` says 503.
    pub etcd: Option<etcd::Handle>,
    /// Where an operator's requests go; without it they are answered with 503.
    pub desk: Option<ha::desk::Desk>,
    /// Who may ask for something.
    pub access: access::Access,
    /// Where members are; [`serve`] has it looked up.
    pub whereabouts: Whereabouts,
    /// When the first of this node's certificates ends; `None`: somebody else looks after them.
    pub certificates: watch::Receiver<Option<jiff::Timestamp>>,
    /// What this node runs.
    pub processes: Processes,
}

/// What a node runs, for its metrics.
#[derive(Debug, Clone)]
pub struct Processes {
    /// Its services.
    pub units: watch::Receiver<Vec<Unit>>,
    /// Who reaps what is nobody's child any more.
    pub init: InitLink,
}

impl Default for Processes {
    /// Nothing.
    fn default() -> Self {
        Self { units: watch::channel(Vec::new()).1, init: InitLink::dead() }
    }
}

/// Binds the port, then serves it on `tasks` until `stop` is cancelled. Returns the bound address. Without a TLS
/// configuration only plain HTTP is spoken.
///
/// # Errors
/// The address cannot be bound: somebody else has the port, or the address is not ours.
pub async fn serve(
    config: Config,
    state: State,
    tls: Option<Arc<rustls::ServerConfig>>,
    tasks: &mut JoinSet<()>,
    stop: CancellationToken,
) -> Result<SocketAddr, Error> {
    let bind = |source| Error::Bind { address: format!("{}:{}", config.listen, config.port), source };
    let listener = TcpListener::bind((config.listen.as_str(), config.port)).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let whereabouts = Whereabouts::watched(state.ha.clone(), tasks, stop.clone());
    let state = State { whereabouts, ..state };
    let (router, headers) = (routes::router(state), Arc::new(config.headers));
    let server = listener::Server { router, tls, plain: config.plain, headers };
    tasks.spawn(listener::run(listener, server, stop));
    Ok(address)
}

/// Why the API does not listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port could not be bound.
    #[error("could not listen on {address} for the API")]
    Bind {
        /// Address and port.
        address: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}
