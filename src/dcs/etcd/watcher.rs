//! The hint that something changed: one prefix watch, on any endpoint.
//!
//! It only ever says "look again"; what is decided is decided on a linearizable read. So events that were missed
//! between two streams need no replay: each new stream counts as one change.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Event, EventType, WatchOptions, WatchResponse, WatchStream};
use rand::TryRngCore;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::link::{ATTEMPT, Link};
use crate::clock::{self, Backoff};
use crate::dcs::{Key, Renewal, rows};
use crate::types::Revision;

/// How often the stream is asked for a sign of life. etcd answers within a round trip.
const PROBE: Duration = Duration::from_secs(3);
/// After this long without any message the stream is given up. The loop runs every `loop_wait` in any case.
const SILENCE: Duration = Duration::from_secs(7);
/// Between streams. Short at first: a failed endpoint has a neighbour.
const RECONNECT: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(3) };

/// What the watch needs.
#[derive(Debug)]
pub(super) struct Watcher {
    pub link: Arc<Link>,
    pub prefix: String,
    pub changes: watch::Sender<u64>,
    pub renewals: watch::Sender<Option<Renewal>>,
}

impl Watcher {
    /// Watches until told to stop.
    pub(super) async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.watch_forever()).await;
    }

    async fn watch_forever(&self) {
        let mut failures = 0;
        loop {
            if let Some(url) = self.link.order(clock::now()).into_iter().next() {
                match Box::pin(self.watch_on(&url, &mut failures)).await {
                    Ended::EndpointsChanged => {}
                    Ended::Broken(why) => {
                        debug!(url, why, "the watch on etcd ended");
                        self.link.shun(&url);
                    }
                }
            }
            let jitter = rand::rngs::OsRng.try_next_u32().map_or(1.0, |n| f64::from(n) / f64::from(u32::MAX));
            let mut endpoints = self.link.endpoints();
            tokio::select! {
                () = sleep(RECONNECT.delay(failures, jitter)) => {}
                // Without any endpoint there is nothing to do before there is one.
                Ok(()) = endpoints.changed() => {}
            }
            failures = failures.saturating_add(1);
        }
    }

    /// One stream, until it breaks or its endpoint is no longer listed.
    async fn watch_on(&self, url: &str, failures: &mut u32) -> Ended {
        let mut endpoints = self.link.endpoints();
        let mut stream = match self.open(url).await {
            Ok(stream) => stream,
            Err(why) => return Ended::Broken(why),
        };
        *failures = 0;
        self.bump();
        let mut heard = clock::now();
        loop {
            tokio::select! {
                message = timeout(PROBE, stream.message()) => match message {
                    Ok(Ok(Some(reply))) if !reply.canceled() => {
                        heard = clock::now();
                        self.take(&reply);
                    }
                    Ok(Ok(_ended)) => return Ended::Broken("the server ended it".to_owned()),
                    Ok(Err(error)) => return Ended::Broken(error.to_string()),
                    Err(_quiet) if clock::now().since(heard) >= SILENCE => {
                        return Ended::Broken("it is silent".to_owned());
                    }
                    Err(_quiet) => match timeout(ATTEMPT, stream.request_progress()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => return Ended::Broken(error.to_string()),
                        Err(_elapsed) => return Ended::Broken("it takes no requests".to_owned()),
                    },
                },
                Ok(()) = endpoints.changed() => {
                    let listed = endpoints.borrow_and_update().iter().any(|known| known == url);
                    if !listed {
                        return Ended::EndpointsChanged;
                    }
                }
            }
        }
    }

    async fn open(&self, url: &str) -> Result<WatchStream, String> {
        let client = self.link.client(url).await.map_err(|_fault| "no connection can be made".to_owned())?;
        let options = WatchOptions::new().with_prefix().with_prev_key();
        let opened = timeout(ATTEMPT, client.watch_client().watch(self.prefix.as_str(), Some(options))).await;
        opened.map_err(|_elapsed| "no answer in time".to_owned())?.map_err(|error| error.to_string())
    }

    fn take(&self, reply: &WatchResponse) {
        for event in reply.events() {
            self.note_renewal(event);
        }
        if reply.events().iter().any(|event| self.is_news(event)) {
            self.bump();
        }
    }

    fn note_renewal(&self, event: &Event) {
        let leader = |kv: &&etcd_client::KeyValue| {
            kv.key().strip_prefix(self.prefix.as_bytes()) == Some(rows::LEADER.as_bytes())
        };
        if let (EventType::Put, Some(kv)) = (event.event_type(), event.kv().filter(leader)) {
            let revision = Revision(kv.mod_revision());
            self.renewals.send_replace(Some(Renewal { revision, heard: clock::now() }));
        }
    }

    /// Whether the HA loop wants to know. A renewal (a put of the same value) is not news, nor is how far a member has come; that
    /// one comes, goes or changes its state is.
    fn is_news(&self, event: &Event) -> bool {
        let Some(kv) = event.kv() else { return false };
        let key = kv.key().strip_prefix(self.prefix.as_bytes()).unwrap_or_default();
        if key.starts_with(rows::MEMBERS.as_bytes()) {
            return member_state(event.kv()) != member_state(event.prev_kv());
        }
        let wanted = [rows::LEADER, Key::Config.segment(), Key::Failover.segment(), Key::Sync.segment()];
        if !wanted.iter().any(|segment| segment.as_bytes() == key) {
            return false;
        }
        match event.event_type() {
            EventType::Delete => true,
            EventType::Put => event.prev_kv().is_none_or(|before| before.value() != kv.value()),
        }
    }

    fn bump(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The state in a member's row; none of a row that is not there.
fn member_state(row: Option<&etcd_client::KeyValue>) -> Option<String> {
    let row: serde_json::Value = serde_json::from_slice(row?.value()).ok()?;
    row.get("state")?.as_str().map(str::to_owned)
}

/// How a stream ended.
enum Ended {
    EndpointsChanged,
    Broken(String),
}
