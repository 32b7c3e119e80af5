//! The list from DNS: every address of a name, or of every target of a service.
//!
//! A name that begins with `_` is a service (SRV, as `_pgherd._tcp.example.org`), of which only the targets count: every node
//! of a cluster has the same ports. Any other name stands for its A and AAAA records, which the system's own resolver
//! finds unless a server was named. No answer, an answer without an address and an error are all the same failure: the
//! last good list stays and ages. What is absent: the desired size, which DNS does not know.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::timeout;

use super::{Config, Publisher, can_be_a_node, flux};
use crate::clock::{self, Moment};
use crate::process::Timer;
use crate::types::Chain;

/// More targets than a cluster can have nodes: what lies beyond is not asked for.
const MOST_TARGETS: usize = 100;

/// Why a question brought no address.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the name servers of this machine are not known")]
    Setup(#[source] NetError),
    #[error("no answer for {name}")]
    Ask { name: String, source: NetError },
    #[error("no answer for {name}")]
    AskSystem { name: String, source: std::io::Error },
    #[error("no whole answer for {name} within {seconds} s")]
    Slow { name: String, seconds: f64 },
    #[error("{name} has no address that a node can have")]
    NoAddress { name: String },
}

/// Asks and publishes, one question at a time.
#[derive(Debug)]
pub(super) struct Poller {
    name: String,
    server: Option<SocketAddr>,
    config: Config,
    publisher: Publisher,
    started: Moment,
    failures: u32,
    rng: StdRng,
}

impl Poller {
    pub(super) fn new(
        name: String,
        server: Option<SocketAddr>,
        config: Config,
        publisher: Publisher,
    ) -> Self {
        let (started, rng) = (clock::now(), StdRng::from_os_rng());
        Self { name, server, config, publisher, started, failures: 0, rng }
    }

    /// Asks for ever.
    pub(super) async fn run(mut self) {
        let mut timer = Timer::default();
        loop {
            let asked_at = clock::now();
            match self.ask().await {
                Ok(addrs) => {
                    self.failures = 0;
                    self.publisher.good(addrs, asked_at);
                }
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    self.publisher.failed(Chain(&error).to_string());
                }
            }
            let (peers, polling_for) = (self.publisher.peers(), clock::now().since(self.started));
            let pause = flux::pause(&peers, self.failures, polling_for, &self.config, self.rng.random());
            timer.pause(pause).await;
        }
    }

    async fn ask(&self) -> Result<BTreeSet<IpAddr>, Error> {
        let limit = self.config.timeouts.request;
        let found = timeout(limit, self.addresses())
            .await
            .map_err(|_elapsed| Error::Slow { name: self.name.clone(), seconds: limit.as_secs_f64() })??;
        let found: BTreeSet<IpAddr> =
            found.into_iter().map(|ip| ip.to_canonical()).filter(can_be_a_node).collect();
        if found.is_empty() {
            return Err(Error::NoAddress { name: self.name.clone() });
        }
        Ok(found)
    }

    async fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        match (self.name.starts_with('_'), self.server) {
            (false, None) => system_lookup(&self.name).await,
            (false, Some(_)) => lookup(&self.resolver()?, &self.name).await,
            (true, _) => targets(&self.resolver()?, &self.name).await,
        }
    }

    /// A new one for each round: `/etc/resolv.conf` may change, and no answer may be an old one.
    fn resolver(&self) -> Result<TokioResolver, Error> {
        let mut builder = match self.server {
            None => TokioResolver::builder_tokio().map_err(Error::Setup)?,
            Some(server) => {
                let mut udp = ConnectionConfig::udp();
                udp.port = server.port();
                let mut known = NameServerConfig::udp(server.ip());
                known.connections = vec![udp];
                let config = ResolverConfig::from_name_servers(vec![known]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        builder.options_mut().cache_size = 0;
        builder.build().map_err(Error::Setup)
    }
}

async fn system_lookup(name: &str) -> Result<Vec<IpAddr>, Error> {
    let found = tokio::net::lookup_host((name, 0)).await;
    let found = found.map_err(|source| Error::AskSystem { name: name.to_owned(), source })?;
    Ok(found.map(|address| address.ip()).collect())
}

async fn lookup(resolver: &TokioResolver, name: &str) -> Result<Vec<IpAddr>, Error> {
    let found = resolver.lookup_ip(name).await;
    let found = found.map_err(|source| Error::Ask { name: name.to_owned(), source })?;
    Ok(found.iter().collect())
}

/// The addresses of a service's targets. One target that has none fails the whole: a list that is short for that reason
/// would look like a departure.
async fn targets(resolver: &TokioResolver, service: &str) -> Result<Vec<IpAddr>, Error> {
    let found = resolver.srv_lookup(service).await;
    let found = found.map_err(|source| Error::Ask { name: service.to_owned(), source })?;
    let names = found.answers().iter().filter_map(|record| {
        let RData::SRV(srv) = &record.data else { return None };
        Some(srv.target.to_string())
    });
    let mut addresses = Vec::new();
    for name in names.take(MOST_TARGETS) {
        addresses.extend(lookup(resolver, &name).await?);
    }
    Ok(addresses)
}
