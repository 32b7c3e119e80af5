//! Doing: one function per action. Each is bounded in time, tries once and reports; the next tick looks again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::clock;
use crate::etcd::agent::Agent;
use crate::etcd::client::{self, Store};
use crate::etcd::decision::Action;
use crate::etcd::view::{Ballot, ClusterKey, Dir, Joined, MemberId, Reply};
use crate::peer::{PeerClient, Promise, PromiseReply, PromiseRequest};
use crate::process::{self, Command};
use crate::templates::{self, EtcdFlags, EtcdInitial, EtcdState, EtcdVersion, Template, url_host};
use crate::types::{Chain, Epoch, NodeId};

/// One question of a ballot, answer included.
const PROMISE_LIMIT: Duration = Duration::from_secs(3);

/// `etcd --version`.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// After "unhealthy cluster" or "too many learners": etcd wants members to have been connected for 5 s.
const PATIENCE: Duration = Duration::from_secs(1);

/// After "not in sync with leader": a learner is there within a second.
const SOON: Duration = Duration::from_millis(250);

/// After any other failure.
const AGAIN: Duration = Duration::from_secs(1);

/// Something that could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no endpoint of the store is known")]
    NoEndpoint,
    #[error(transparent)]
    Store(#[from] client::Error),
    #[error("could not run etcd")]
    Process(#[source] process::Error),
    #[error("could not start etcd")]
    Start(#[source] crate::supervisor::Error),
    #[error("could not render etcd's flags")]
    Flags(#[source] templates::Error),
    #[error("could not read the version in {0:?}")]
    Version(String),
    #[error("could not put etcd's data aside")]
    Quarantine(#[source] std::io::Error),
    #[error("the place was taken")]
    PlaceTaken,
}

impl Agent {
    /// Does it. `Some` is a pause that replaces the usual one.
    pub(super) async fn act(&mut self, action: Action) -> Option<Duration> {
        let text = action.to_string();
        let done = match action {
            Action::Wait | Action::Rest | Action::Hold | Action::BeClient => return None,
            Action::AskPromises { epoch, electorate } => {
                self.ask_promises(Promise { epoch, seed: self.core.view.record.node_id.clone(), electorate })
                    .await;
                Ok(())
            }
            Action::Found { epoch } => self.found(epoch).await,
            Action::Register { epoch, promisers, need } => {
                let promisers = promisers.iter().filter_map(|a| self.node_id_at(*a)).collect();
                let seed = self.core.view.record.node_id.clone();
                let uuid = random_id(&mut self.rng);
                self.register(ClusterKey { uuid, epoch, seed, promisers, need }).await
            }
            Action::WriteReady { epoch } => self.write_ready(epoch).await,
            Action::AddLearner => Box::pin(self.add_learner()).await,
            Action::StartJoined(joined) => self.start_joined(&joined).await,
            Action::Promote(id) => self.promote(id).await,
            Action::StartWithData => self.start(None).await,
            Action::RemoveStaleSelf(id) | Action::Remove(id) | Action::RemoveLearner(id) => {
                self.remove(id).await
            }
            Action::MoveLeader(to) => self.move_leader(to).await,
            Action::UpdatePeerUrl(id) => self.update_peer_url(id).await,
            Action::QuarantineData => self.quarantine().await,
        };
        match done {
            Ok(()) => Some(Duration::ZERO),
            Err(error) => Some(self.failed(&text, &error)),
        }
    }

    fn failed(&mut self, action: &str, error: &Error) -> Duration {
        let pause = match error {
            Error::Store(client::Error::NotNow(_)) if action.contains("voter") => SOON,
            Error::Store(client::Error::NotNow(_) | client::Error::Locked) | Error::PlaceTaken => PATIENCE,
            Error::Store(
                client::Error::Silent { .. }
                | client::Error::Changed(_)
                | client::Error::Refused(_)
                | client::Error::Incomplete { .. },
            ) => AGAIN,
            Error::NoEndpoint
            | Error::Process(_)
            | Error::Start(_)
            | Error::Flags(_)
            | Error::Version(_)
            | Error::Quarantine(_) => {
                warn!(action, error = %Chain(error), "could not do it");
                AGAIN
            }
        };
        tracing::debug!(action, error = %Chain(error), "not done");
        self.core.view.memory.patience = Some(clock::now() + pause);
        pause
    }

    /// The endpoint for changes: the one that the last read came from is alive and has a quorum.
    async fn store(&mut self) -> Result<Store, Error> {
        let url = self.read_from().ok_or(Error::NoEndpoint)?;
        Ok(self.stores.at(&url).await?)
    }

    async fn ask_promises(&mut self, promise: Promise) {
        let asked_at = clock::now();
        let request = PromiseRequest { promise: promise.clone() };
        let own = match self.core.promise(&request).await {
            PromiseReply::Promised { facts, before } => Reply::Promised { facts, before },
            PromiseReply::Refused { why } => Reply::Refused { why },
        };
        let me = self.config.address;
        let others = promise.electorate.iter().copied().filter(|a| *a != me).collect();
        let asking = ask_all(self.deps.peer_client.clone(), others, request);
        let mut replies = self.core.attend(asking).await;
        replies.insert(me, own);
        self.core.view.memory.ballot = Some(Ballot { promise, asked_at, replies });
    }

    fn node_id_at(&self, address: IpAddr) -> Option<NodeId> {
        let ballot = self.core.view.memory.ballot.as_ref()?;
        match ballot.replies.get(&address)? {
            Reply::Promised { facts, .. } => Some(facts.node_id.clone()),
            Reply::Refused { .. } | Reply::Silent => None,
        }
    }

    async fn found(&mut self, epoch: Epoch) -> Result<(), Error> {
        // From here on this node refuses other promises.
        self.core.view.local.dir = Dir::Data;
        let cluster = format!("{}={}", self.core.view.record.node_id, self.core.view.peer_url);
        self.start(Some((cluster, EtcdState::New, epoch))).await
    }

    async fn start_joined(&mut self, joined: &Joined) -> Result<(), Error> {
        let epoch = self.core.view.record.epoch;
        self.start(Some((joined.initial_cluster.clone(), EtcdState::Existing, epoch))).await
    }

    async fn start(&mut self, first: Option<(String, EtcdState, Epoch)>) -> Result<(), Error> {
        let version = self.version().await?;
        let command = self.command(version, first)?;
        process::make_private_dir(&self.config.data_dir, &self.config.run_as).map_err(Error::Process)?;
        let local = &mut self.core.view.local;
        (local.ending, local.silent_since) = (None, None);
        let starting = self.deps.unit.start(command);
        self.core.attend(starting).await.map_err(Error::Start)?;
        Ok(())
    }

    async fn version(&mut self) -> Result<EtcdVersion, Error> {
        if let Some(version) = self.version {
            return Ok(version);
        }
        let command =
            Command::new("etcd", self.config.program.clone()).arg("--version").run_as(&self.config.run_as);
        let running = process::run(&command, VERSION_LIMIT);
        let output = self.core.attend(running).await.map_err(Error::Process)?;
        let version = EtcdVersion::parse(&output.stdout).ok_or(Error::Version(output.stdout))?;
        info!(major = version.major, minor = version.minor, "found etcd");
        self.version = Some(version);
        Ok(version)
    }

    fn command(
        &self,
        version: EtcdVersion,
        first: Option<(String, EtcdState, Epoch)>,
    ) -> Result<Command, Error> {
        let config = &self.config;
        let token = |epoch: Epoch| format!("{}-{}-{epoch}", config.token, config.app);
        let first = first.map(|(cluster, state, epoch)| (cluster, state, token(epoch)));
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let context = EtcdFlags {
            version,
            name: &self.core.view.record.node_id.0,
            data_dir: &config.data_dir,
            tls_dir: &config.tls_dir,
            listen_host: &listen_host(&config.listen),
            advertise_host: &url_host(config.address),
            client_port: config.bound.etcd_client,
            peer_port: config.bound.etcd_peer,
            advertise_client_port: config.advertised.etcd_client,
            advertise_peer_port: config.advertised.etcd_peer,
            metrics_url: config.metrics_url.as_deref(),
            initial: first.as_ref().map(|(cluster, state, token)| EtcdInitial {
                cluster,
                state: *state,
                token,
            }),
            heartbeat_ms: millis(config.timing.heartbeat),
            election_ms: millis(config.timing.election),
        };
        let flags = templates::render(Template::EtcdFlags, &context).map_err(Error::Flags)?;
        let flags = flags.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(Command::new("etcd", config.program.clone())
            .args(flags)
            // The data is a few hundred kilobytes: a small heap keeps the resident set small too.
            .env("GOMEMLIMIT", "64MiB")
            .env("GOGC", "50")
            .env("GOMAXPROCS", "2")
            .run_as(&config.run_as)
            .death_signal(Signal::SIGTERM))
    }

    async fn register(&mut self, document: ClusterKey) -> Result<(), Error> {
        let mut store = self.store().await?;
        self.core.attend(store.register(&document)).await?;
        info!(epoch = document.epoch.0, uuid = document.uuid, need = document.need, "registered the store");
        Ok(())
    }

    async fn write_ready(&mut self, epoch: Epoch) -> Result<(), Error> {
        let mut store = self.store().await?;
        self.core.attend(store.write_ready(epoch)).await?;
        info!(epoch = epoch.0, "the store is ready");
        Ok(())
    }

    /// Under the lock the list is read again: several nodes may have seen the same free place.
    async fn add_learner(&mut self) -> Result<(), Error> {
        let mut store = self.store().await?;
        let name = self.core.view.record.node_id.0.clone();
        let (peer_url, wanted) = (self.core.view.peer_url.clone(), self.core.view.voters_wanted());
        let adding = async {
            let lock = store.lock(&name).await?;
            let added = match store.read(clock::now()).await {
                Ok(now) if now.members.len() >= wanted => Err(Error::PlaceTaken),
                Ok(_) => store.add_learner(&name, &peer_url).await.map_err(Error::Store),
                Err(error) => Err(error.into()),
            };
            store.unlock(lock).await;
            added
        };
        let joined = self.core.attend(adding).await?;
        info!(member = %joined.member_id, "added to the store as a learner");
        self.core.view.local.joined = Some(joined);
        Ok(())
    }

    async fn promote(&mut self, id: MemberId) -> Result<(), Error> {
        let mut store = self.store().await?;
        self.core.attend(store.promote(id)).await?;
        info!(member = %id, "this node's etcd is a voter");
        self.core.view.local.joined = None;
        Ok(())
    }

    async fn remove(&mut self, id: MemberId) -> Result<(), Error> {
        let mut store = self.store().await?;
        let name = self.core.view.record.node_id.0.clone();
        let removing = async {
            let lock = store.lock(&name).await?;
            let removed = store.remove(id).await;
            store.unlock(lock).await;
            removed
        };
        self.core.attend(removing).await?;
        info!(member = %id, "removed a member of the store");
        self.core.view.memory.changed_at = Some(clock::now());
        Ok(())
    }

    async fn move_leader(&mut self, to: MemberId) -> Result<(), Error> {
        self.core.view.memory.moved_at = Some(clock::now());
        let own = self.own_url().ok_or(Error::NoEndpoint)?;
        let mut store = self.stores.at(&own).await?;
        self.core.attend(store.move_leader(to)).await?;
        info!(member = %to, "handed raft leadership on");
        Ok(())
    }

    async fn update_peer_url(&mut self, id: MemberId) -> Result<(), Error> {
        let mut store = self.store().await?;
        let url = self.core.view.peer_url.clone();
        self.core.attend(store.update(id, &url)).await?;
        info!(member = %id, url, "told the store this node's new address");
        Ok(())
    }

    /// Stops etcd and renames its directory. One older copy is given up for it: it is of an older epoch.
    async fn quarantine(&mut self) -> Result<(), Error> {
        let stopping = self.deps.unit.stop(None);
        self.core.attend(stopping).await;
        let dir = &self.config.data_dir;
        let aside = format!("{dir}.old-{}-{}", self.core.view.record.epoch, clock::wall().as_second());
        for old in older_copies(dir.as_str()) {
            std::fs::remove_dir_all(&old).map_err(Error::Quarantine)?;
        }
        std::fs::rename(dir, &aside).map_err(Error::Quarantine)?;
        warn!(aside, "put etcd's data aside");
        let local = &mut self.core.view.local;
        local.dir = Dir::Empty;
        (local.joined, local.ending, local.retry_at) = (None, None, None);
        local.unit = *self.deps.unit.state().borrow();
        self.core.view.store = None;
        self.core.view.memory.ballot = None;
        Ok(())
    }
}

fn older_copies(dir: &str) -> Vec<std::path::PathBuf> {
    let path = std::path::Path::new(dir);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let prefix = format!("{}.old-", name.to_string_lossy());
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let old = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with(&prefix);
    entries.filter(old).map(|e| e.path()).collect()
}

async fn ask_all(
    client: PeerClient,
    others: Vec<IpAddr>,
    request: PromiseRequest,
) -> BTreeMap<IpAddr, Reply> {
    let mut asks = JoinSet::new();
    for address in others {
        let (client, request) = (client.clone(), request.clone());
        asks.spawn(async move {
            let reply = match timeout(PROMISE_LIMIT, client.promise(address, &request)).await {
                Ok(Ok(PromiseReply::Promised { facts, before })) => Reply::Promised { facts, before },
                Ok(Ok(PromiseReply::Refused { why })) => Reply::Refused { why },
                Ok(Err(_)) | Err(_) => Reply::Silent,
            };
            (address, reply)
        });
    }
    let mut replies = BTreeMap::new();
    while let Some(done) = asks.join_next().await {
        replies.extend(done.ok());
    }
    replies
}

/// `LISTEN_ADDRESS` as it stands in a URL.
fn listen_host(listen: &str) -> String {
    listen.trim_matches(['[', ']']).parse::<IpAddr>().map_or_else(|_| listen.to_owned(), url_host)
}

/// 128 random bits as hex text.
fn random_id(rng: &mut StdRng) -> String {
    format!("{:032x}", rng.random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listen_address_stands_in_a_url() {
        assert_eq!(listen_host("0.0.0.0"), "0.0.0.0");
        assert_eq!(listen_host("::"), "[::]");
    }
}
