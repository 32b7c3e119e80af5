//! Looking: at other nodes, at the local directory, and at the store through whatever voter answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use camino::Utf8Path;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::clock::{self, Moment};
use crate::etcd::client::Stores;
use crate::etcd::view::{Dir, Probe, StoreView};
use crate::peer::{NodeStatus, PeerClient};
use crate::types::{Chain, Ports};

/// A whole question to one peer. Two round trips around the globe and a TLS handshake.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// A connection attempt to a port of etcd; a port that is closed answers at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// What one peer answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// Its status.
    Status(Box<NodeStatus>),
    /// No status, but a port of its etcd is open.
    OpenPort,
    /// Nothing.
    Dark,
}

/// Asks every address at once.
pub(super) async fn probe(
    client: PeerClient,
    addresses: BTreeSet<IpAddr>,
    ports: Ports,
) -> Vec<(IpAddr, Moment, Answer)> {
    let mut asks = JoinSet::new();
    for address in addresses {
        let client = client.clone();
        asks.spawn(async move { (address, clock::now(), ask(&client, address, ports).await) });
    }
    let mut answers = Vec::new();
    while let Some(done) = asks.join_next().await {
        answers.extend(done.ok());
    }
    answers
}

async fn ask(client: &PeerClient, address: IpAddr, ports: Ports) -> Answer {
    if let Ok(Ok(status)) = timeout(ASK_LIMIT, client.status(address)).await {
        return Answer::Status(Box::new(status));
    }
    for port in [ports.etcd_peer, ports.etcd_client] {
        if is_open(SocketAddr::new(address, port)).await {
            return Answer::OpenPort;
        }
    }
    Answer::Dark
}

async fn is_open(socket: SocketAddr) -> bool {
    matches!(timeout(CONNECT_LIMIT, TcpStream::connect(socket)).await, Ok(Ok(_)))
}

/// Writes the answers into the memory of peers; addresses that were not asked any more are forgotten.
pub(super) fn note(probes: &mut BTreeMap<IpAddr, Probe>, answers: Vec<(IpAddr, Moment, Answer)>) {
    let asked: BTreeSet<IpAddr> = answers.iter().map(|(a, _, _)| *a).collect();
    probes.retain(|a, _| asked.contains(a));
    for (address, at, answer) in answers {
        let probe = probes.entry(address).or_default();
        match answer {
            Answer::Status(status) => {
                *probe = Probe { status: Some(*status), answered_at: Some(at), dark_since: None };
            }
            Answer::OpenPort => probe.dark_since = None,
            Answer::Dark => probe.dark_since = probe.dark_since.or(Some(at)),
        }
    }
}

/// What lies in the data directory.
pub(super) fn dir(data_dir: &Utf8Path) -> Dir {
    // etcd makes `member/` before anything else.
    if data_dir.join("member").exists() { Dir::Data } else { Dir::Empty }
}

/// Reads the store through the first of these endpoints that has a quorum behind it.
pub(super) async fn read(stores: &mut Stores, urls: &[String]) -> Option<(String, StoreView)> {
    for url in urls {
        if !stores.knows(url) && !port_is_open(url).await {
            stores.forget(url);
            continue;
        }
        let Ok(mut store) = stores.at(url).await else { continue };
        match store.read(clock::now()).await {
            Ok(view) => return Some((url.clone(), view)),
            Err(error) => {
                tracing::debug!(%url, error = %Chain(&error), "no linearizable read");
                stores.forget(url);
            }
        }
    }
    None
}

/// The library waits for a connection until the call's time is over, even when the port is closed; a look at the port
/// tells at once.
async fn port_is_open(url: &str) -> bool {
    let socket = url.split_once("://").and_then(|(_, rest)| rest.parse::<SocketAddr>().ok());
    match socket {
        Some(socket) => is_open(socket).await,
        None => true,
    }
}
