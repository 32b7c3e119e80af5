//! The way to etcd: which endpoint is asked, for how long, and what its errors mean.
//!
//! One cached connection per endpoint. A call asks the endpoints in the order that membership published them, the
//! ones that failed lately last, until one answers or the call's time is over. A frozen endpoint therefore costs one
//! [`ATTEMPT`] once, and is then out of the way for [`SHUNNED`].

use std::collections::HashMap;
use std::error::Error as _;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, ResponseHeader};
use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use super::{Credentials, Login, connect_options};
use crate::clock::{self, Moment};
use crate::dcs::Error;

/// How long one endpoint may take: some round trips around the globe and a slow fsync, and still two attempts within
/// the shortest `retry_timeout` (4 s).
pub(super) const ATTEMPT: Duration = Duration::from_millis(1500);
/// How long a call may take over all endpoints: two that are frozen. Refusals cost nothing and are not counted.
const CALL: Duration = Duration::from_secs(3);
/// How long an endpoint that failed is asked last. Short: the best endpoint is our own voter.
const SHUNNED: Duration = Duration::from_secs(10);

/// gRPC status codes by which etcd says "I understood, and no": asking another endpoint gives the same answer.
/// INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, OUT_OF_RANGE, UNAUTHENTICATED.
const REFUSALS: &[i32] = &[3, 5, 7, 8, 9, 11, 16];
/// gRPC status code UNAUTHENTICATED: where we have logged in, the token has expired, and a new connection brings another.
const UNAUTHENTICATED: i32 = 16;
/// gRPC status code NOT_FOUND.
const NOT_FOUND: i32 = 5;

/// Where an answer comes from, to tell a member that lags behind one that was already heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The etcd cluster.
    pub cluster: u64,
    /// The member's raft term.
    pub term: u64,
}

impl Stamp {
    /// Of a reply without a header.
    pub(super) const UNKNOWN: Self = Self { cluster: 0, term: 0 };

    /// The stamp of a reply; etcd always sends a header.
    pub(super) fn of(header: Option<&ResponseHeader>) -> Self {
        header.map_or(Self::UNKNOWN, |h| Self { cluster: h.cluster_id(), term: h.raft_term() })
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The lease that the request named does not exist: make another and ask again.
    LeaseLost,
    /// Anything else.
    Store(Error),
}

/// A reply, and whether an earlier attempt of the same call may have been carried out too.
#[derive(Debug)]
pub(super) struct Answer<T> {
    /// The reply.
    pub reply: T,
    /// An endpoint asked before this one failed with an unknown outcome.
    pub repeated: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    endpoints: watch::Receiver<Vec<String>>,
    login: Option<Login>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    credentials: Option<Credentials>,
    clients: HashMap<String, Client>,
    failed: HashMap<String, Moment>,
    newest: Option<Stamp>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("failed", &self.failed)
            .field("newest", &self.newest)
            .finish_non_exhaustive()
    }
}

impl State {
    /// A connection that was made with a certificate reconnects with it: after a renewal they are made anew.
    fn take_in_new_credentials(&mut self) {
        let Some(credentials) = &mut self.credentials else { return };
        if credentials.has_changed().unwrap_or(false) {
            credentials.borrow_and_update();
            self.clients.clear();
        }
    }

    fn options(&self) -> ConnectOptions {
        let shown = self.credentials.as_ref().map(|c| c.borrow());
        // `require_leader`: a member that is cut off from its leader says so at once, and ends its watches.
        connect_options(shown.as_deref(), ATTEMPT).with_require_leader(true)
    }
}

impl Link {
    pub(super) fn new(
        credentials: Option<Credentials>,
        login: Option<Login>,
        endpoints: watch::Receiver<Vec<String>>,
    ) -> Self {
        Self { endpoints, login, state: Mutex::new(State { credentials, ..State::default() }) }
    }

    /// Asks until one endpoint answers.
    pub(super) async fn call<T, F>(
        &self,
        attempt: impl Fn(Client) -> F + Send + Sync,
    ) -> Result<Answer<T>, Fault>
    where
        T: Send,
        F: Future<Output = Result<(T, Stamp), etcd_client::Error>> + Send,
    {
        let began = clock::now();
        let mut failures = Vec::new();
        for url in self.order(began) {
            let left = CALL.saturating_sub(clock::now().since(began));
            if left.is_zero() {
                break;
            }
            let client = match self.client(&url).await {
                Ok(client) => client,
                // One URL that cannot be used says nothing of the others.
                Err(Fault::Store(error)) => {
                    failures.push(format!("{url}: {error}"));
                    continue;
                }
                Err(Fault::LeaseLost) => return Err(Fault::LeaseLost),
            };
            // Boxed: the library's futures are 20 KiB, and every caller's would be as large.
            let why = match timeout(left.min(ATTEMPT), Box::pin(attempt(client))).await {
                Ok(Ok((reply, stamp))) if self.is_current(stamp) => {
                    return Ok(Answer { reply, repeated: !failures.is_empty() });
                }
                Ok(Ok(_stale)) => "it lags behind: its raft term went back".to_owned(),
                Ok(Err(error)) if self.login.is_some() && is_logged_out(&error) => error.to_string(),
                Ok(Err(error)) => unanswered(&error)?,
                Err(_elapsed) => "no answer in time".to_owned(),
            };
            debug!(url, why, "an etcd endpoint failed");
            self.shun(&url);
            failures.push(format!("{url}: {why}"));
        }
        let why = if failures.is_empty() { "no endpoint is known".to_owned() } else { failures.join("; ") };
        Err(Fault::Store(Error::Unreachable(why)))
    }

    /// The endpoints, the most promising first.
    pub(super) fn order(&self, now: Moment) -> Vec<String> {
        let mut urls = self.endpoints.borrow().clone();
        let mut state = self.lock();
        state.clients.retain(|url, _client| urls.contains(url));
        state.failed.retain(|url, at| urls.contains(url) && now.since(*at) < SHUNNED);
        // The sort is stable: among those that did not fail the published order stays.
        urls.sort_by_key(|url| state.failed.get(url).copied());
        urls
    }

    /// A connection to this endpoint; made lazily, so this does not wait for the network.
    pub(super) async fn client(&self, url: &str) -> Result<Client, Fault> {
        let (known, options) = {
            let mut state = self.lock();
            state.take_in_new_credentials();
            (state.clients.get(url).cloned(), state.options())
        };
        if let Some(client) = known {
            return Ok(client);
        }
        let options = match &self.login {
            Some(login) => options.with_user(login.user.as_str(), login.password.expose_secret()),
            None => options,
        };
        // Only a login asks the network.
        let late = |_elapsed| Fault::Store(Error::Unreachable(format!("{url}: no answer in time")));
        let made = timeout(ATTEMPT, Box::pin(Client::connect([url], Some(options)))).await.map_err(late)?;
        let client = made.map_err(|error| Fault::Store(Error::Rejected(format!("{url}: {error}"))))?;
        self.lock().clients.insert(url.to_owned(), client.clone());
        Ok(client)
    }

    /// Asks this endpoint last for a while, and by a new connection.
    pub(super) fn shun(&self, url: &str) {
        let mut state = self.lock();
        state.clients.remove(url);
        state.failed.insert(url.to_owned(), clock::now());
    }

    /// The list of endpoints, to wait for its changes.
    pub(super) fn endpoints(&self) -> watch::Receiver<Vec<String>> {
        self.endpoints.clone()
    }

    /// Whether this answer is not older than one that was already heard. Raft terms only grow: a smaller one comes
    /// from a member that missed an election, and what it says was true in the past. Another cluster id is another
    /// store (a ballot founded it), with terms of its own.
    fn is_current(&self, stamp: Stamp) -> bool {
        if stamp == Stamp::UNKNOWN {
            return true;
        }
        let mut state = self.lock();
        let current = state.newest.is_none_or(|n| n.cluster != stamp.cluster || n.term <= stamp.term);
        if current {
            state.newest = Some(stamp);
        }
        current
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_logged_out(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    status.code() as i32 == UNAUTHENTICATED
}

/// The words for an endpoint that did not answer; an error when etcd answered and refused.
fn unanswered(error: &etcd_client::Error) -> Result<String, Fault> {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return Ok(error.to_string());
    };
    let code = status.code() as i32;
    if code == NOT_FOUND && status.message().contains("lease not found") {
        return Err(Fault::LeaseLost);
    }
    if REFUSALS.contains(&code) {
        return Err(Fault::Store(Error::Rejected(status.message().to_owned())));
    }
    // Everything else, foremost UNAVAILABLE ("no leader", "request timed out", "transport error"): outcome unknown.
    // The causes are worth their words: "transport error" alone does not tell a refused port from a wrong certificate.
    let mut words = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(urls: &[&str]) -> Link {
        Link::new(None, None, watch::channel(urls.iter().map(|&u| u.to_owned()).collect()).1)
    }

    #[test]
    fn a_term_that_went_back_is_stale_unless_the_cluster_is_another() {
        let link = link(&[]);
        assert!(link.is_current(Stamp { cluster: 1, term: 7 }));
        assert!(!link.is_current(Stamp { cluster: 1, term: 6 }));
        assert!(link.is_current(Stamp { cluster: 1, term: 7 }));
        assert!(link.is_current(Stamp { cluster: 2, term: 2 }));
        assert!(!link.is_current(Stamp { cluster: 2, term: 1 }));
    }

    #[test]
    fn an_endpoint_that_failed_is_asked_last_for_a_while() {
        let link = link(&["a", "b", "c"]);
        link.shun("a");
        assert_eq!(link.order(clock::now()), ["b", "c", "a"]);
        assert_eq!(link.order(clock::now() + SHUNNED), ["a", "b", "c"]);
    }
}
