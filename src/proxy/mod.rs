//! The ports that always lead to the right server: HAProxy, told by this node who leads.
//!
//! Invariant: a connection to the read-write port reaches the member that holds the leader key, or nobody. A member that
//! loses the key loses its sessions at once; connections that come while nobody leads are held for a few seconds and then
//! refused. HAProxy's own health checks are the second belt: they catch what the store does not know yet.
//!
//! HAProxy is started once with an empty list of servers and is told the rest through its command socket ([`decide`] says
//! what), so that members come and go without a reload. What is absent: any look into what passes through (TLS goes from
//! the client to PostgreSQL), pooling, and a reload.

mod agent;
pub mod decide;
mod socket;
pub mod view;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use camino::Utf8PathBuf;

use crate::process::{self, RunAs};

pub use agent::{Deps, spawn};

/// What the proxy is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// `haproxy`.
    pub program: Utf8PathBuf,
    /// The account that it runs as.
    pub run_as: RunAs,
    /// Where its rendered files and its command socket lie.
    pub run_dir: Utf8PathBuf,
    /// `LISTEN_ADDRESS`.
    pub listen: IpAddr,
    /// What it listens on.
    pub ports: Ports,
    /// `PROXY_SOCKET_DIR`: where the read-write port is a Unix socket too.
    pub socket_dir: Option<Utf8PathBuf>,
    /// How many bytes a replica may be behind to be given readers.
    pub max_lag: u64,
    /// How long a server may take to accept a connection.
    pub connect: Duration,
    /// How health checks speak to the members' APIs.
    pub checks: Checks,
    /// How this node's own PostgreSQL and API are reached from here: a node cannot count on reaching itself by the address
    /// that others use.
    pub own: Own,
}

/// The ports of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// `PROXY_RW_PORT`.
    pub read_write: u16,
    /// `PROXY_RO_PORT`.
    pub read_only: u16,
    /// `PROXY_STATS_PORT`.
    pub stats: u16,
}

/// How health checks speak to the members' APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Plain HTTP.
    Plain,
    /// HTTPS. The certificate is not verified: an answer is a yes or a no, and sessions verify for themselves.
    Tls,
}

/// This node as seen from this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// Its PostgreSQL.
    pub postgres: SocketAddr,
    /// Its API's port.
    pub api: u16,
}

/// Why the proxy does not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A template.
    #[error("the proxy's configuration could not be rendered")]
    Render(#[from] crate::templates::Error),
    /// A file or a directory.
    #[error("the proxy's files could not be written")]
    Write(#[from] process::Error),
    /// The process.
    #[error("the proxy could not be started")]
    Start(#[from] crate::supervisor::Error),
    /// The command socket.
    #[error("the proxy's command socket {path} could not be used")]
    Socket {
        /// Where it lies.
        path: Utf8PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No answer.
    #[error("the proxy did not answer {command:?} in time")]
    Silent {
        /// What it was told.
        command: String,
    },
    /// It understood and refuses.
    #[error("the proxy refuses {command:?}: {answer}")]
    Refused {
        /// What it was told.
        command: String,
        /// What it said.
        answer: String,
    },
}
