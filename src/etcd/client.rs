//! The cluster API of etcd over gRPC: the read that membership decides on, and the changes it makes.
//!
//! Each call names one endpoint: whether another one is asked is the agent's business, because a change with an
//! unknown outcome must not be repeated blindly. etcd's member list is not linearizable before 3.5 (and the client
//! library asks for the local one), so a linearizable read through the same endpoint comes before it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, MemberAddOptions, PutOptions, Txn, TxnOp};
use tokio::time::timeout;

use crate::clock::Moment;
use crate::dcs::etcd::{Credentials, connect_options};
use crate::etcd::view::{ClusterKey, Joined, Member, MemberId, StoreView, Vote};
use crate::types::Epoch;

/// One call. Some round trips around the globe plus an election of the slowest profile would be more: then the
/// outcome is unknown and the next tick looks again.
const CALL: Duration = Duration::from_secs(3);

/// The read of a steady node. It is a hot path of start-up (endpoints are tried in order), so it gives up earlier.
const READ: Duration = Duration::from_secs(2);

/// The lease behind the membership lock: longer than any change, short enough to outlive a crashed holder.
const LOCK_TTL_SECONDS: i64 = 60;

/// Why a call brought nothing, by what the caller can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer in time or no quorum: the outcome of a change is unknown.
    #[error("{url} did not answer")]
    Silent {
        /// Which endpoint.
        url: String,
        /// What the library said; `None` when time ran out.
        #[source]
        source: Option<etcd_client::Error>,
    },
    /// etcd wants patience: unhealthy cluster, another learner, a learner behind.
    #[error("etcd wants patience")]
    NotNow(#[source] etcd_client::Error),
    /// The member does not exist (any more), or exists already.
    #[error("the member list has changed")]
    Changed(#[source] etcd_client::Error),
    /// Another node is changing the membership.
    #[error("another node holds the membership lock")]
    Locked,
    /// etcd refuses.
    #[error("etcd refuses")]
    Refused(#[source] etcd_client::Error),
    /// The answer lacks something that etcd always sends.
    #[error("{url} gave an incomplete answer")]
    Incomplete {
        /// Which endpoint.
        url: String,
    },
}

impl Error {
    fn from_etcd(url: &str, source: etcd_client::Error) -> Self {
        const NOT_NOW: [&str; 4] =
            ["unhealthy cluster", "too many learner", "in sync with leader", "not enough started members"];
        const CHANGED: [&str; 4] = [
            "member not found",
            "Peer URLs already exists",
            "member ID already exist",
            "only promote a learner",
        ];
        let text = source.to_string();
        if NOT_NOW.iter().any(|t| text.contains(t)) {
            return Self::NotNow(source);
        }
        if CHANGED.iter().any(|t| text.contains(t)) {
            return Self::Changed(source);
        }
        // FAILED_PRECONDITION, INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED: it understood, and no.
        let understood = |e: &etcd_client::Error| matches!(e, etcd_client::Error::GRpcStatus(status) if [3, 7, 9, 16].contains(&i32::from(status.code())));
        if understood(&source) {
            return Self::Refused(source);
        }
        Self::Silent { url: url.to_owned(), source: Some(source) }
    }
}

/// Connections to the voters, one an endpoint.
pub struct Stores {
    prefix: String,
    credentials: Credentials,
    clients: BTreeMap<String, Client>,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Stores {
    /// No connection yet.
    pub fn new(app: &str, credentials: Credentials) -> Self {
        Self { prefix: format!("/pgherd/{app}/"), credentials, clients: BTreeMap::new() }
    }

    /// Whether there is a connection to this endpoint that has not failed.
    pub fn knows(&self, url: &str) -> bool {
        self.clients.contains_key(url)
    }

    /// Forgets the connection to an endpoint that failed: a restarted member is reached sooner by a new one.
    pub fn forget(&mut self, url: &str) {
        self.clients.remove(url);
    }

    /// A connection to this endpoint (it is made lazily by the library: this does not wait for the network).
    ///
    /// # Errors
    /// The URL or the TLS material cannot be used.
    pub async fn at(&mut self, url: &str) -> Result<Store, Error> {
        if self.credentials.has_changed().unwrap_or(false) {
            // A connection that was made with a certificate reconnects with it.
            self.clients.clear();
        }
        let client = match self.clients.get(url) {
            Some(client) => client.clone(),
            None => {
                let options = connect_options(Some(&self.credentials.borrow_and_update()), READ);
                let connect = Client::connect([url], Some(options));
                let client = bounded(url, READ, connect).await?;
                self.clients.insert(url.to_owned(), client.clone());
                client
            }
        };
        Ok(Store { url: url.to_owned(), prefix: self.prefix.clone(), client })
    }
}

/// One endpoint.
pub struct Store {
    url: String,
    prefix: String,
    client: Client,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("url", &self.url).finish_non_exhaustive()
    }
}

async fn bounded<T>(
    url: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(|source| Error::from_etcd(url, source)),
        Err(_elapsed) => Err(Error::Silent { url: url.to_owned(), source: None }),
    }
}

impl Store {
    /// Reads everything that membership is decided on. `sent` is the present.
    ///
    /// # Errors
    /// No quorum behind this endpoint, or it is a learner, or it does not answer.
    pub async fn read(&mut self, sent: Moment) -> Result<StoreView, Error> {
        let all = GetOptions::new().with_prefix();
        let keys = bounded(&self.url, READ, self.client.get(self.prefix.as_str(), Some(all))).await?;
        let list = bounded(&self.url, READ, self.client.member_list()).await?;
        let status = bounded(&self.url, READ, self.client.status()).await?;
        let value = |name: &str| {
            let key = format!("{}{name}", self.prefix);
            keys.kvs().iter().find(|kv| kv.key() == key.as_bytes()).map(etcd_client::KeyValue::value)
        };
        let ready = value("ready").and_then(|v| std::str::from_utf8(v).ok()).and_then(|v| v.parse().ok());
        Ok(StoreView {
            read_at: sent,
            cluster_id: list.header().map_or(0, etcd_client::ResponseHeader::cluster_id),
            members: list.members().iter().map(member).collect(),
            leader: (status.leader() != 0).then(|| MemberId(status.leader())),
            cluster: value("cluster").and_then(|v| serde_json::from_slice(v).ok()),
            ready: ready.map(Epoch),
        })
    }

    /// Takes the membership lock for one change. Its lease ends by itself after a minute.
    ///
    /// # Errors
    /// Somebody else holds it, or no answer.
    pub async fn lock(&mut self, owner: &str) -> Result<Lock, Error> {
        let lease = bounded(&self.url, CALL, self.client.lease_grant(LOCK_TTL_SECONDS, None)).await?.id();
        let key = format!("{}mlock", self.prefix);
        let txn = Txn::new()
            .when([Compare::version(key.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.as_str(), owner, Some(PutOptions::new().with_lease(lease)))]);
        let taken = bounded(&self.url, CALL, self.client.txn(txn)).await;
        match taken {
            Ok(answer) if answer.succeeded() => Ok(Lock { lease }),
            Ok(_) => {
                self.unlock(Lock { lease }).await;
                Err(Error::Locked)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the lock back. When that fails the lease does it within a minute.
    pub async fn unlock(&mut self, lock: Lock) {
        if let Err(error) = bounded(&self.url, CALL, self.client.lease_revoke(lock.lease)).await {
            tracing::debug!(url = self.url, %error, "the membership lock is left to its lease");
        }
    }

    /// Adds this node as a learner. The answer is the only source of `--initial-cluster`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_learner(&mut self, name: &str, peer_url: &str) -> Result<Joined, Error> {
        let options = MemberAddOptions::new().with_is_learner();
        let added =
            bounded(&self.url, CALL, self.client.member_add([peer_url.to_owned()], Some(options))).await?;
        let id = added.member().map(etcd_client::Member::id);
        let Some(id) = id else {
            return Err(Error::Incomplete { url: self.url.clone() });
        };
        let entry = |m: &etcd_client::Member| {
            let name = if m.id() == id { name.to_owned() } else { member_name(m) };
            m.peer_urls().iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>()
        };
        let cluster: Vec<_> = added.member_list().iter().flat_map(entry).collect();
        Ok(Joined { member_id: MemberId(id), initial_cluster: cluster.join(",") })
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NotNow`] while it is behind.
    pub async fn promote(&mut self, id: MemberId) -> Result<(), Error> {
        bounded(&self.url, CALL, self.client.member_promote(id.0)).await.map(|_| ())
    }

    /// Removes a member.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove(&mut self, id: MemberId) -> Result<(), Error> {
        bounded(&self.url, CALL, self.client.member_remove(id.0)).await.map(|_| ())
    }

    /// Changes where a member is reached by its peers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update(&mut self, id: MemberId, peer_url: &str) -> Result<(), Error> {
        bounded(&self.url, CALL, self.client.member_update(id.0, [peer_url.to_owned()])).await.map(|_| ())
    }

    /// Hands raft leadership to a voter; only the leader's own endpoint takes this.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn move_leader(&mut self, to: MemberId) -> Result<(), Error> {
        bounded(&self.url, CALL, self.client.move_leader(to.0)).await.map(|_| ())
    }

    /// Writes the founding document and the epoch, once.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn register(&mut self, document: &ClusterKey) -> Result<(), Error> {
        let text = serde_json::to_string(document).unwrap_or_default();
        let key = format!("{}cluster", self.prefix);
        let txn = Txn::new().when([Compare::version(key.as_str(), CompareOp::Equal, 0)]).and_then([
            TxnOp::put(key.as_str(), text, None),
            TxnOp::put(format!("{}epoch", self.prefix), document.epoch.to_string(), None),
        ]);
        bounded(&self.url, CALL, self.client.txn(txn)).await.map(|_| ())
    }

    /// Writes the READY key, once, in the store of this epoch only.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn write_ready(&mut self, epoch: Epoch) -> Result<(), Error> {
        let key = format!("{}ready", self.prefix);
        let own_epoch = Compare::value(format!("{}epoch", self.prefix), CompareOp::Equal, epoch.to_string());
        let txn = Txn::new()
            .when([Compare::version(key.as_str(), CompareOp::Equal, 0), own_epoch])
            .and_then([TxnOp::put(key.as_str(), epoch.to_string(), None)]);
        bounded(&self.url, CALL, self.client.txn(txn)).await.map(|_| ())
    }
}

/// The membership lock, held.
#[derive(Debug)]
pub struct Lock {
    lease: i64,
}

fn member(m: &etcd_client::Member) -> Member {
    Member {
        id: MemberId(m.id()),
        name: m.name().to_owned(),
        peer_urls: m.peer_urls().to_vec(),
        address: m.peer_urls().first().and_then(|url| url_address(url)),
        vote: if m.is_learner() { Vote::Learner } else { Vote::Voter },
    }
}

/// A member that has not started has no name; etcd compares only the URLs, so any unique name will do.
fn member_name(m: &etcd_client::Member) -> String {
    if m.name().is_empty() { format!("unstarted-{:x}", m.id()) } else { m.name().to_owned() }
}

/// The address in `https://host:port`.
fn url_address(url: &str) -> Option<IpAddr> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    authority.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_urls() {
        assert_eq!(url_address("https://203.0.113.7:2380"), Some(IpAddr::from([203, 0, 113, 7])));
        assert_eq!(url_address("https://[2001:db8::7]:2380/"), "2001:db8::7".parse().ok());
        assert_eq!(url_address("https://node-1:2380"), None);
        assert_eq!(url_address("203.0.113.7:2380"), None);
    }
}
