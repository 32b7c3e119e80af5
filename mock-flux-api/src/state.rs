//! What the answers are made of. Plain data: nothing here does IO.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::Fault;

/// Everything that can be set.
#[derive(Debug, Clone, Serialize)]
pub struct State {
    /// The application that is known; `None` knows every name.
    pub app: Option<String>,
    /// The desired size that the specification tells.
    pub instances: usize,
    /// The rows, in the order in which they came.
    pub nodes: Vec<Node>,
    /// How the answers are broken.
    pub fault: Fault,
    /// What `/hostinfo` and `/echo` say.
    pub hostinfo: Hostinfo,
    /// Why the file was refused last; `None` when it is good or there is none.
    pub file_error: Option<String>,
    /// How often the list was asked for.
    pub asked: u64,
}

impl Default for State {
    /// Three instances wanted, none there, nothing broken.
    fn default() -> Self {
        Self {
            app: None,
            instances: 3,
            nodes: Vec::new(),
            fault: Fault::None,
            hostinfo: Hostinfo::Source,
            file_error: None,
            asked: 0,
        }
    }
}

impl State {
    /// Adds a row; one of the same address is replaced.
    pub fn add(&mut self, node: Node) {
        self.nodes.retain(|known| known.ip != node.ip);
        self.nodes.push(node);
    }

    /// Removes the rows of an address and says how many there were.
    pub fn remove(&mut self, ip: IpAddr) -> usize {
        let before = self.nodes.len();
        self.nodes.retain(|node| node.ip != ip);
        before - self.nodes.len()
    }

    /// Replaces the list; nodes that stay keep their start time.
    pub fn replace(&mut self, nodes: Vec<Node>) {
        let known = std::mem::take(&mut self.nodes);
        for mut node in nodes {
            if let Some(same) = known.iter().find(|old| old.ip == node.ip) {
                node.running_since = same.running_since;
            }
            self.add(node);
        }
    }
}

/// One row. Printed as the real API prints it: with the port of the node's own API when it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its public address.
    pub ip: IpAddr,
    /// The port of the node's own API; none means the default.
    pub port: Option<u16>,
    /// Since when its container runs.
    pub running_since: Timestamp,
}

impl From<IpAddr> for Node {
    fn from(ip: IpAddr) -> Self {
        Self { ip, port: None, running_since: Timestamp::now() }
    }
}

/// A text that is no address, with or without a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address, with or without a port")]
pub struct NotANode(pub String);

impl FromStr for Node {
    type Err = NotANode;

    fn from_str(text: &str) -> Result<Self, NotANode> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::from(ip));
        }
        let addr: SocketAddr = text.parse().map_err(|_no_address| NotANode(text.to_owned()))?;
        Ok(Self { port: Some(addr.port()), ..Self::from(addr.ip()) })
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What `/hostinfo` and `/echo` say about the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hostinfo {
    /// The source address of the connection.
    Source,
    /// `status: error`, as the real service does while it has no geo data.
    Error,
    /// Always this address.
    Fixed(IpAddr),
}

/// A text that is neither `source`, nor `error`, nor an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither source, nor error, nor an address")]
pub struct NotAHostinfo(String);

impl FromStr for Hostinfo {
    type Err = NotAHostinfo;

    fn from_str(text: &str) -> Result<Self, NotAHostinfo> {
        match text {
            "source" => Ok(Self::Source),
            "error" => Ok(Self::Error),
            other => other.parse().map(Self::Fixed).map_err(|_no_address| NotAHostinfo(text.to_owned())),
        }
    }
}

impl fmt::Display for Hostinfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source => f.write_str("source"),
            Self::Error => f.write_str("error"),
            Self::Fixed(ip) => ip.fmt(f),
        }
    }
}

impl Serialize for Hostinfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
