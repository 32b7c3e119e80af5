//! Who may exist: a list of addresses, polled from a location API or from DNS, or fixed. A hint, never a proof.
//!
//! Invariant: what was once a good list is only ever replaced by another good list. A failure, an empty answer and
//! silence let it grow old (`fetched_at` stands still) and say why (`failing`); what a list of that age may still be
//! used for is decided by those who use it. The list says who *may* exist: that somebody is missing from it removes
//! nobody, and that somebody is in it proves no life.
//!
//! The own address is found here too ([`own_address`]): a node that is wrong about it would take another node's
//! place, so every source but the operator's own word must be confirmed by the list.
//!
//! What is absent: any removal, any judgement of age, and calls to our own public address, which
//! many networks do not carry (hairpin).

mod dns;
mod fixed;
mod flux;
mod http;
mod own;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Moment;

pub use own::{Choice, Evidence, Rule, choose};

/// The platform's service that tells a container the address of its host.
pub const HOSTINFO_URL: &str = "http://fluxnode.service:16101/hostinfo";

/// Services that answer with the caller's address as plain text. Two of them must agree, so there are three.
pub const ECHO_URLS: [&str; 3] =
    ["https://api.ipify.org", "https://ipv4.icanhazip.com", "https://checkip.amazonaws.com"];

/// Where the list comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `GET {url}/apps/location/{app}`.
    Flux {
        /// The API's base, `http` or `https`.
        url: String,
        /// The application's name on the platform.
        app: String,
    },
    /// The addresses of a name, or of a service's targets when it begins with `_`.
    Dns {
        /// `DISCOVERY_DNS_NAME`.
        name: String,
        /// `DISCOVERY_DNS_SERVER`; the system's without.
        server: Option<SocketAddr>,
    },
    /// A list that never changes.
    Static(BTreeSet<IpAddr>),
}

/// What discovery needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the list comes from.
    pub source: Source,
    /// `ADVERTISE_ADDRESS`.
    pub advertise: Option<IpAddr>,
    /// `FLUX_NODE_HOST_IP`.
    pub node_host_ip: Option<IpAddr>,
    /// `CLUSTER_SIZE`.
    pub cluster_size: Option<usize>,
    /// How often the API is asked while all is well; every second until the first good answer.
    pub poll_every: Duration,
    /// The `hostinfo` service, [`HOSTINFO_URL`] on the platform; `None` is not asked. Overridable so that tests and the
    /// demo never leave loopback.
    pub hostinfo_url: Option<String>,
    /// HTTPS echo services, [`ECHO_URLS`] by default; an empty list asks nobody. Plain HTTP is accepted on loopback
    /// only: anyone on the way could answer it.
    pub echo_urls: Vec<String>,
    /// Limits and intervals that only tests change.
    pub timeouts: Timeouts,
}

/// Limits and intervals that only tests change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection. A node of the platform that answers at all does so within one round trip of the planet.
    pub connect: Duration,
    /// For one whole request. The slowest good answers of the real API took a few seconds.
    pub request: Duration,
    /// Between two requests while the first list is awaited: a first start should not wait for us.
    pub quick: Duration,
    /// For how long after the start a list that is shorter than the desired size is asked for at the quick pace: rows
    /// appear within the first minute or two, or the platform has no room and then there is no hurry.
    pub hurry: Duration,
    /// Between two good answers of the specification: it changes when the owner edits it.
    pub specification: Duration,
    /// Between a failed request for the specification and the next.
    pub specification_retry: Duration,
    /// Between two rounds of questions about the own address; a change of the list starts one at once.
    pub own_address_retry: Duration,
    /// For one peer to say which address it sees.
    pub ask_peer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            request: Duration::from_secs(10),
            quick: Duration::from_secs(1),
            hurry: Duration::from_secs(120),
            specification: Duration::from_secs(600),
            specification_retry: Duration::from_secs(30),
            own_address_retry: Duration::from_secs(5),
            ask_peer: Duration::from_secs(3),
        }
    }
}

/// The last good list, and how good it is. A failure or an empty answer ages it and never replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peers {
    /// Every listed address, our own included when it is listed.
    pub addrs: BTreeSet<IpAddr>,
    /// When the request that brought this list was sent; `None` before the first good answer.
    pub fetched_at: Option<Moment>,
    /// Good answers so far (a rule that wants n consecutive answers counts with this).
    pub answers: u64,
    /// Why the last request brought nothing, in words for status and log; `None` when it did.
    pub failing: Option<String>,
    /// Desired number of nodes: `CLUSTER_SIZE`, else the platform's specification or the length of a fixed list, else
    /// `None` (then 3 is assumed).
    pub desired_size: Option<usize>,
}

/// Starts polling; the task ends when `stop` is cancelled.
pub fn spawn(config: Config, tasks: &mut JoinSet<()>, stop: CancellationToken) -> watch::Receiver<Peers> {
    let desired_size = config.cluster_size;
    let (sender, receiver) = watch::channel(Peers { desired_size, ..Peers::default() });
    let publisher = Publisher { sender };
    match config.source.clone() {
        Source::Static(addrs) => {
            let list = fixed::List::publish(addrs, config.poll_every, publisher);
            tasks.spawn(async move {
                stop.run_until_cancelled(list.keep_fresh()).await;
            });
        }
        Source::Dns { name, server } => {
            let poller = dns::Poller::new(name, server, config, publisher);
            tasks.spawn(async move {
                stop.run_until_cancelled(poller.run()).await;
            });
        }
        Source::Flux { url, app } => {
            let poller = flux::Poller::new(url, app, config, publisher);
            tasks.spawn(async move {
                stop.run_until_cancelled(poller.run()).await;
            });
        }
    }
    receiver
}

/// Finds this node's own address by the order of [`Rule`]; waits, with a reason in the log, until one source gives an
/// address that the list confirms. `ask_peers` asks one listed peer which source address it sees; it is cut off after
/// [`Timeouts::ask_peer`].
pub async fn own_address<F, Fut>(config: &Config, peers: watch::Receiver<Peers>, ask_peers: F) -> IpAddr
where
    F: Fn(IpAddr) -> Fut + Send,
    Fut: Future<Output = Option<IpAddr>> + Send,
{
    own::find(config, peers, ask_peers).await
}

/// The one place that changes [`Peers`], and says so in the log when it is news.
#[derive(Debug)]
struct Publisher {
    sender: watch::Sender<Peers>,
}

impl Publisher {
    fn peers(&self) -> Peers {
        self.sender.borrow().clone()
    }

    /// A good answer to a request that was sent at `asked_at`.
    fn good(&self, addrs: BTreeSet<IpAddr>, asked_at: Moment) {
        let old = self.peers();
        if old.addrs != addrs {
            info!(peers = ?addrs, "the list of peers changed");
        }
        if old.failing.is_some() {
            info!(peers = addrs.len(), "the list of peers is fresh again");
        }
        self.sender.send_modify(|peers| {
            peers.addrs = addrs;
            peers.fetched_at = Some(asked_at);
            peers.answers += 1;
            peers.failing = None;
        });
    }

    /// No good answer: what is known stays and grows old.
    fn failed(&self, reason: String) {
        let reason = Some(reason);
        self.sender.send_if_modified(|peers| {
            let is_news = peers.failing != reason;
            if is_news {
                warn!(reason, kept = peers.addrs.len(), "no list of peers: the last one stays");
                peers.failing = reason;
            }
            is_news
        });
    }

    fn desired_size(&self, size: usize) {
        self.sender.send_if_modified(|peers| {
            let is_news = peers.desired_size != Some(size);
            if is_news {
                info!(size, "the desired size changed");
                peers.desired_size = Some(size);
            }
            is_news
        });
    }
}

/// An address that a node can have, from a text with or without a port (`203.0.113.7:16127`, `[2001:db8::1]:16127`).
fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip()))?;
    Some(ip).map(|ip: IpAddr| ip.to_canonical()).filter(can_be_a_node)
}

/// Private and loopback addresses can: a cluster may live in one network or on one machine.
fn can_be_a_node(ip: &IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || is_broadcast)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_its_port() {
        let read = |text| parse_address(text).map(|ip| ip.to_string());
        for text in ["203.0.113.7", " 203.0.113.7:16137\n", "::ffff:203.0.113.7", "[::ffff:203.0.113.7]:1"] {
            assert_eq!(read(text).as_deref(), Some("203.0.113.7"), "{text}");
        }
        for text in ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:16127"] {
            assert_eq!(read(text).as_deref(), Some("2001:db8::1"), "{text}");
        }
    }

    #[test]
    fn what_no_node_can_have_is_no_address() {
        let wrong =
            ["", "node1", "203.0.113", "203.0.113.7:", "0.0.0.0", "[::]:1", "224.0.0.1", "255.255.255.255"];
        for text in wrong {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }
}
