//! Calls from node to node: what each node tells of itself, and the promises of the membership ballot.
//!
//! Always over mutual TLS with the internal CA, on the API port. The peer is addressed
//! by its IP and verified by the CA alone: an address may be new, the CA is what makes a node one of ours.

//!
//! Nothing here retries or decides: one question, one bounded answer. For a caller that prunes members the difference
//! that counts is [`Error::Unreachable`] (nothing answered) against the others (somebody is alive there).

use std::collections::BTreeSet;
use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::{Epoch, Lsn, NodeId, NodeName, SystemId, Timeline};

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The volume's identity.
    pub node_id: NodeId,
    /// The member's display name.
    pub name: NodeName,
    /// The application this node belongs to.
    pub app: String,
    /// The caller's address as this node sees it.
    pub your_address: Option<IpAddr>,
    /// What the node knows of the store.
    pub store: StoreFacts,
    /// What the node knows of its data.
    pub data: DataFacts,
    /// The addresses that this node's location list holds.
    pub listed: BTreeSet<IpAddr>,
    /// Seconds since that list was confirmed; `None` when it never was.
    pub list_age_seconds: Option<u64>,
}

/// A node's part in the coordination store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoreFacts {
    /// The generation it belongs to; zero when to none.
    pub epoch: Epoch,
    /// Its cluster's identity, made by the ballot that founded it.
    pub cluster_uuid: Option<String>,
    /// etcd's cluster id as hex text.
    pub etcd_cluster_id: Option<String>,
    /// This node's member id as hex text.
    pub member_id: Option<String>,
    /// What its local etcd is.
    pub part: StorePart,
    /// Whether the node has seen a quorum by a linearizable read within the last few seconds.
    pub quorum: bool,
    /// The promise that binds it.
    pub promised: Option<Promise>,
    /// The voters it last saw by a linearizable read.
    pub voters: Vec<Voter>,
}

/// What the local etcd of a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorePart {
    /// No data, not running.
    #[default]
    None,
    /// Data on disk, not (yet) part of a quorum.
    Data,
    /// A learner.
    Learner,
    /// A voter.
    Voter,
    /// Runs no etcd, uses the voters'.
    Client,
}

/// One voter of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Voter {
    /// Its member name in etcd.
    pub node_id: NodeId,
    /// Where its node is.
    pub address: IpAddr,
}

/// Data from before pgherd, which lies aside until a cluster begins with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Which database cluster it is.
    pub system_id: SystemId,
    /// The timeline of its last checkpoint.
    pub timeline: Timeline,
    /// Where that was.
    pub lsn: Lsn,
}

impl Adopted {
    /// How far it goes: the later timeline first.
    pub fn reach(self) -> (Timeline, Lsn) {
        (self.timeline, self.lsn)
    }
}

/// A node's data directory in a few words.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DataFacts {
    /// The database cluster it belongs to; `None` means *no data* (and no record of any).
    pub system_id: Option<SystemId>,
    /// The timeline it is on.
    pub timeline: Option<Timeline>,
    /// The last position it knows of.
    pub lsn: Option<Lsn>,
    /// Why the data directory cannot be read; it may hold anything then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// Data from before pgherd; not data of a member, so a ballot does not mind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// A promise: from this epoch on, only this seed may found a store with this electorate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The ballot.
    pub epoch: Epoch,
    /// Who may found.
    pub seed: NodeId,
    /// The addresses that the seed asked.
    pub electorate: BTreeSet<IpAddr>,
}

/// `POST /v1/promise`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromiseRequest {
    /// What is asked for.
    pub promise: Promise,
}

/// The answer to a [`PromiseRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum PromiseReply {
    /// Promised, and written to disk before this was said.
    Promised {
        /// The facts at that moment.
        facts: Box<NodeStatus>,
        /// The promise that bound the node before.
        before: Option<Promise>,
    },
    /// Not promised.
    Refused {
        /// Why, in words for a log.
        why: String,
    },
}

/// The longest a question may take, connecting included: a peer that is slower than this decides nothing in time.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The largest answer that is read: a status with a hundred addresses is below 8 KiB.
const BODY_LIMIT: usize = 64 * 1024;
/// How much of a refusal's text is kept for the log.
const REASON_LIMIT: usize = 200;
/// Both answers to a promise request: promised (200) and refused (200 or 409), each with a [`PromiseReply`].
const PROMISE_CODES: &[u16] = &[200, 409];

/// Why a question to another node has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client could not be set up: the TLS configuration does not fit.
    #[error("cannot set up the client for other nodes")]
    Setup(#[source] reqwest::Error),
    /// No answer: no TCP, no TLS, or silence for two seconds. The only error that speaks for absence.
    #[error("{url} does not answer")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// An answer, and it is no: the node is alive.
    #[error("{url} refuses with status {status}: {reason}")]
    Rejected {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the body.
        reason: String,
    },
    /// An answer that cannot be understood (broken off, too long, not the JSON expected): the node is alive.
    #[error("{url} gave an answer that cannot be used: {what}")]
    Garbled {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Asks other nodes. Cheap to clone; all clones share one pool of connections.
#[derive(Debug, Clone)]
pub struct PeerClient {
    http: reqwest::Client,
    api_port: u16,
    /// What members ask for where a certificate does not do (agent mode).
    login: Option<(String, SecretString)>,
}

impl PeerClient {
    /// A client that shows our certificate and trusts servers as `tls` says (`tls::Bundle::peer_client`).
    ///
    /// # Errors
    /// The TLS configuration is not usable.
    pub fn new(tls: Arc<rustls::ClientConfig>, api_port: u16) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(Arc::unwrap_or_clone(tls))
            .timeout(TIMEOUT)
            .connect_timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // Polls are seconds apart; one warm connection per peer saves the handshake, more would only idle.
            .pool_max_idle_per_host(1)
            .build()
            .map_err(Error::Setup)?;
        Ok(Self { http, api_port, login: None })
    }

    /// The same, with a user and a password for what changes something at another member.
    #[must_use]
    pub fn with_login(mut self, user: &str, password: SecretString) -> Self {
        self.login = Some((user.to_owned(), password));
        self
    }

    fn change(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, url);
        match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password.expose_secret())),
            None => request,
        }
    }

    /// What the node at this address tells of itself.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self, address: IpAddr) -> Result<NodeStatus, Error> {
        let url = self.url(address, "/v1/status");
        let (code, body) = self.exchange(&url, self.http.get(&url)).await?;
        accepted(&url, code, &[200], &body)?;
        decode(&url, &body)
    }

    /// Asks the node at this address for a promise. A refusal is an answer, not an error.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Unreachable`] the promise may have been made nevertheless.
    pub async fn promise(&self, address: IpAddr, request: &PromiseRequest) -> Result<PromiseReply, Error> {
        let url = self.url(address, "/v1/promise");
        let (code, body) = self.exchange(&url, self.http.post(&url).json(request)).await?;
        accepted(&url, code, PROMISE_CODES, &body)?;
        decode(&url, &body)
    }

    /// Patroni's status of a member at its `api_url`, for elections: whatever the status code (a replica that is not
    /// healthy answers 503 with a full body), as long as it is a JSON object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leader_poll(&self, api_url: &str) -> Result<serde_json::Value, Error> {
        let (_code, body) = self.exchange(api_url, self.http.get(api_url)).await?;
        let value: serde_json::Map<String, serde_json::Value> = decode(api_url, &body)?;
        Ok(value.into())
    }

    /// Asks the member at this `api_url` to promise a leader that it will not take its place; how far it says that it is.
    ///
    /// # Errors
    /// See [`Error`]; a refusal is [`Error::Rejected`]. After any error the promise may have been made nevertheless.
    pub async fn failsafe(&self, api_url: &str, ping: &impl Serialize) -> Result<Option<Lsn>, Error> {
        self.at_failsafe(Method::POST, api_url, ping).await
    }

    /// Tells the member at this `api_url` that what it was asked for by [`PeerClient::failsafe`] is of no use any more.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Rejected`] when it has promised something else since, and by a stock node, which knows no such
    /// thing.
    pub async fn withdraw(&self, api_url: &str, ping: &impl Serialize) -> Result<(), Error> {
        self.at_failsafe(Method::DELETE, api_url, ping).await.map(|_position| ())
    }

    /// Over mutual TLS, which every node speaks on that port whatever its `api_url` says; an agent or a stock node gets what its
    /// URL says.
    async fn at_failsafe(
        &self,
        method: Method,
        api_url: &str,
        ping: &impl Serialize,
    ) -> Result<Option<Lsn>, Error> {
        let url = format!("{}/failsafe", api_url.strip_suffix("/patroni").unwrap_or(api_url));
        let ours = url.replacen("http://", "https://", 1);
        let ask = |at: &str| self.change(method.clone(), at).json(ping);
        let response = match self.send(&ours, ask(&ours)).await {
            Err(Error::Unreachable { source, .. }) if ours != url && !source.is_timeout() => {
                self.send(&url, ask(&url)).await?
            }
            answered => answered?,
        };
        let position = response.headers().get("lsn").and_then(|lsn| lsn.to_str().ok()?.parse().ok()).map(Lsn);
        let (code, body) = read(&url, response).await?;
        accepted(&url, code, &[200], &body).map(|()| position)
    }

    /// Whether anything answers at the API of this `api_url`.
    pub async fn is_alive(&self, api_url: &str) -> bool {
        let base = api_url.trim_end_matches('/').trim_end_matches("/patroni");
        self.http.get(format!("{base}/liveness")).send().await.is_ok()
    }

    fn url(&self, address: IpAddr, path: &str) -> String {
        // SocketAddr puts the brackets around an IPv6 address.
        format!("https://{}{path}", SocketAddr::new(address, self.api_port))
    }

    async fn send(&self, url: &str, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Error> {
        request.send().await.map_err(|error| unanswered(url, error.without_url()))
    }

    /// Sends, and reads a bounded body.
    async fn exchange(&self, url: &str, request: reqwest::RequestBuilder) -> Result<(u16, Vec<u8>), Error> {
        read(url, self.send(url, request).await?).await
    }
}

async fn read(url: &str, mut response: reqwest::Response) -> Result<(u16, Vec<u8>), Error> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > BODY_LIMIT => {
                return Err(garbled(url, format!("it is longer than {BODY_LIMIT} bytes")));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok((response.status().as_u16(), body)),
            Err(broken) => return Err(garbled(url, broken.without_url().to_string())),
        }
    }
}

/// Tells silence from an answer that is not HTTP, and from a URL that cannot be asked at all (`api_url` is text that
/// others wrote): only silence speaks for absence.
fn unanswered(url: &str, error: reqwest::Error) -> Error {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return garbled(url, inner.to_string());
        }
        cause = inner.source();
    }
    if error.is_builder() {
        return garbled(url, error.to_string());
    }
    Error::Unreachable { url: url.to_owned(), source: error }
}

fn accepted(url: &str, status: u16, codes: &[u16], body: &[u8]) -> Result<(), Error> {
    if codes.contains(&status) {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(body).chars().take(REASON_LIMIT).collect();
    Err(Error::Rejected { url: url.to_owned(), status, reason })
}

fn decode<T: DeserializeOwned>(url: &str, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|wrong| garbled(url, wrong.to_string()))
}

fn garbled(url: &str, what: String) -> Error {
    Error::Garbled { url: url.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn client() -> PeerClient {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        PeerClient::new(Arc::new(tls), 8008).unwrap()
    }

    /// Answers one request with this text and gives the URL to ask.
    async fn answer(tasks: &mut tokio::task::JoinSet<()>, text: String) -> String {
        let listener = TcpListener::bind("127.0.14.1:0").await.unwrap();
        let url = format!("http://{}/patroni", listener.local_addr().unwrap());
        tasks.spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _n = socket.read(&mut request).await.unwrap();
            // The reader may hang up on an answer that is too long.
            drop(socket.write_all(text.as_bytes()).await);
        });
        url
    }

    fn http(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_poll_takes_the_body_whatever_the_code() {
        let mut tasks = tokio::task::JoinSet::new();
        let url = answer(&mut tasks, http("503 Service Unavailable", r#"{"timeline":3}"#)).await;
        assert_eq!(client().leader_poll(&url).await.unwrap()["timeline"], 3);
    }

    /// A member that speaks no TLS, and asks for a login: agent mode, or stock.
    #[tokio::test]
    async fn a_question_and_its_withdrawal_go_the_same_way() {
        let client = client().with_login("admin", SecretString::from("hush"));
        for method in [Method::POST, Method::DELETE] {
            let listener = TcpListener::bind("127.0.14.1:0").await.unwrap();
            let url = format!("http://{}/patroni", listener.local_addr().unwrap());
            let mut member = tokio::task::JoinSet::new();
            member.spawn(async move {
                let mut request = vec![0; 1024];
                // The first comes with TLS.
                drop(listener.accept().await.unwrap());
                let (mut socket, _) = listener.accept().await.unwrap();
                let n = socket.read(&mut request).await.unwrap();
                socket.write_all(http("200 OK", "").as_bytes()).await.unwrap();
                request.truncate(n);
                String::from_utf8_lossy(&request).to_ascii_lowercase()
            });
            client.at_failsafe(method.clone(), &url, &"ping").await.unwrap();
            let request = member.join_next().await.unwrap().unwrap();
            let line = format!("{method} /failsafe http/1.1").to_ascii_lowercase();
            assert!(request.starts_with(&line) && request.contains("authorization: basic"), "{request}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_nonsense_is_garbled() {
        let mut tasks = tokio::task::JoinSet::new();
        let listener = TcpListener::bind("127.0.14.1:0").await.unwrap();
        let dead = format!("http://{}/patroni", listener.local_addr().unwrap());
        drop(listener);
        assert!(matches!(client().leader_poll(&dead).await, Err(Error::Unreachable { .. })));

        let nonsense = answer(&mut tasks, http("200 OK", "<html>")).await;
        assert!(matches!(client().leader_poll(&nonsense).await, Err(Error::Garbled { .. })));
        let smtp = answer(&mut tasks, "220 mail.example.org ESMTP\r\n".to_owned()).await;
        assert!(matches!(client().leader_poll(&smtp).await, Err(Error::Garbled { .. })));
        assert!(matches!(client().leader_poll("not a url").await, Err(Error::Garbled { .. })));
        let huge = answer(&mut tasks, http("200 OK", &" ".repeat(BODY_LIMIT + 1))).await;
        assert!(matches!(client().leader_poll(&huge).await, Err(Error::Garbled { .. })));
    }

    #[tokio::test]
    async fn silence_is_unreachable_within_the_limit() {
        let listener = TcpListener::bind("127.0.14.1:0").await.unwrap();
        let mut mute = client();
        mute.api_port = listener.local_addr().unwrap().port();
        let began = crate::clock::now();
        let status = mute.status("127.0.14.1".parse().unwrap()).await;
        assert!(matches!(status, Err(Error::Unreachable { .. })), "{status:?}");
        assert!(crate::clock::now().since(began) < TIMEOUT * 2);
    }

    #[test]
    fn an_unexpected_code_is_a_refusal_of_a_living_node() {
        let refused = accepted("https://x/v1/status", 403, &[200], b"no");
        assert!(matches!(refused, Err(Error::Rejected { status: 403, .. })));
        assert_eq!(client().url("::1".parse().unwrap(), "/v1/status"), "https://[::1]:8008/v1/status");
    }
}
