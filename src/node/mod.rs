//! The composition root: the only place that knows every room. It reads from top to bottom as the life of a node.
//!
//! Start-up: identity, peers, own address, keys, the coordination store, PostgreSQL's agent, the API. Shutdown is
//! [`shut_down`], a list in order: what is released late here is what others rely on longest.

mod adoption;
mod certificates;
pub mod machine;
mod proxy;
mod stop;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use camino::Utf8PathBuf;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Config, Identity, Network, Warning};
use crate::dcs::Role;
use crate::dcs::etcd::{EtcdConfig, EtcdStore, ReadyKey};
use crate::discovery::{self, Peers};
use crate::etcd::{self, PrimaryHere};
use crate::ha::callbacks::{self, Program};
use crate::ha::promises::Promises;
use crate::ha::publish::{self, Addresses};
use crate::ha::replication::Replication;
use crate::ha::reread::Reread;
use crate::ha::rules::{Mode, Rules};
use crate::ha::{self, agent};
use crate::peer::DataFacts;
use crate::postgres::{ClientTls, Postgres, Stored};
use crate::process::{self, InitLink, RunAs, Surroundings, Timer, VolumeLock};
use crate::record::Keeper;
use crate::supervisor::{Reports, Restart, Rung, Unit, UnitSpec};
use crate::types::{NodeId, NodeName, Timing};
use crate::{api, clock, log};

use self::certificates::{Certificates, derive};
use self::stop::StopSignals;

/// The account that etcd and PostgreSQL run as when we are root.
const ACCOUNT: &str = "postgres";
/// Kept of the stop budget for what comes after PostgreSQL: etcd hands raft leadership over in a fraction of this.
const AFTER_POSTGRES: Duration = Duration::from_secs(2);
/// How long PostgreSQL is waited for after SIGKILL. What survives that is in uninterruptible IO, and for `init`.
const KILL_PATIENCE: Duration = Duration::from_secs(1);
/// `init` takes a node that is silent for 60 s for a dead one.
const BEAT: Duration = Duration::from_secs(10);
/// How long a node that knows its voters waits for the location list.
const LIST_PATIENCE: Duration = Duration::from_secs(5);
/// A primary has settled after this long. As long as it carries raft leadership too, the loss of its machine costs the
/// store's election and a lease that begins anew, some two seconds more than the lease.
const SETTLED_PRIMARY: Duration = Duration::from_secs(3);
/// The first look at the data directory may start `pg_controldata` on a cold disk.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// Runs a node until it is asked to stop.
///
/// # Errors
/// Something that only a person can mend: a program is missing, a directory or a port cannot be used.
pub fn run(config: Config, warnings: Vec<Warning>) -> anyhow::Result<ExitCode> {
    process::take_name();
    process::raise_open_files();
    // The configuration has been read; the log's thread comes after.
    drop(process::take_environment());
    let _log = log::install(&log_config(&config)).context("could not start the log")?;
    Surroundings::look().tell();
    for Warning(warning) in warnings {
        warn!("{warning}");
    }
    let outcome = process::runtime().context("could not start the runtime")?.block_on(live(config));
    if let Err(error) = &outcome {
        error!(error = format!("{error:#}"), "the node cannot run");
    }
    outcome
}

async fn live(config: Config) -> anyhow::Result<ExitCode> {
    let init = InitLink::inherit();
    let mut background = JoinSet::new();
    background.spawn(beat(init.clone()));
    let reports = Reports::listen().context("could not listen for signals")?;
    let mut stop = StopSignals::listen()?;
    process::hear_requests();

    let (known, units) = watch::channel(Vec::new());
    background.spawn(reports.answer(units.clone(), init.clone()));
    let processes = api::Processes { units, init };
    let mut node = tokio::select! {
        node = start(config, processes, &mut background) => node?,
        // Nothing has been started that would need an order.
        () = stop.first() => return Ok(ExitCode::SUCCESS),
    };
    let all = [node.postgres.clone(), node.etcd.clone()].into_iter().chain(node.proxy.clone());
    known.send_replace(all.collect());
    tokio::select! {
        () = stop.first() => info!("asked to stop"),
        Some(ended) = background.join_next() => {
            error!(?ended, "a task of the node has ended by itself: stopping, init starts the node again");
        }
        Some(ended) = node.ha.join_next() => {
            error!(?ended, "the HA agent has ended by itself: stopping, init starts the node again");
        }
    }
    let postgres = node.postgres.clone();
    let ending = shut_down(node);
    tokio::pin!(ending);
    tokio::select! {
        code = &mut ending => Ok(code),
        () = stop.second() => {
            // The HA agent ends after its server: then it stops an armed watchdog, which resets the host otherwise.
            if timeout(KILL_PATIENCE, postgres.stop(Some(vec![]))).await.is_err() {
                warn!("PostgreSQL does not end");
            }
            bail!("asked to stop at once")
        }
    }
}

/// A running node: what the shutdown needs of it.
struct Node {
    /// The HA agent, alone in its set: it ends last of all agents that use the store.
    ha: JoinSet<()>,
    stop_ha: CancellationToken,
    stop_store: CancellationToken,
    stop_api: CancellationToken,
    postgres: Unit,
    etcd: Unit,
    proxy: Option<Unit>,
    budget: Duration,
}

/// In this order: PostgreSQL stops and the leader key is given back while the store still works; then the store's
/// local member, which hands raft leadership over; the proxy leads to the next primary and the API answers until the end.
async fn shut_down(mut node: Node) -> ExitCode {
    node.stop_ha.cancel();
    let for_postgres = node.budget.saturating_sub(AFTER_POSTGRES);
    let ended = timeout(for_postgres, node.ha.join_next()).await;
    // An agent that had ended before (`None`) or that panicked has not stopped anything in order.
    let in_order = matches!(ended, Ok(Some(Ok(()))));
    if !in_order {
        warn!(?for_postgres, ?ended, "PostgreSQL was not stopped in order: stopping it at once");
        if timeout(KILL_PATIENCE, node.postgres.stop(Some(vec![]))).await.is_err() {
            error!("something of PostgreSQL does not die of SIGKILL: etcd is stopped all the same");
        }
    }
    node.stop_store.cancel();
    node.etcd.stop(None).await;
    node.stop_api.cancel();
    if let Some(proxy) = node.proxy {
        proxy.stop(None).await;
    }
    info!("stopped");
    if in_order { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is settled before anything is started: where and who this node is.
struct Ground {
    config: Config,
    place: Place,
    peers: watch::Receiver<Peers>,
    certificates: Certificates,
    address: IpAddr,
    name: NodeName,
    network: Network,
    timing: Timing,
}

impl Ground {
    async fn settle(
        config: Config,
        background: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let place = Place::prepare(&config)?;
        let root = derive(&config).await?;
        let peers = discovery::spawn(config.discovery.clone(), background, stop);
        let certificates = Certificates::new(&config, &place, root)?;
        let address = find_address(&config, &place, &certificates, &peers).await?;
        let certificates = certificates.for_address(address)?;
        let name = settle_name(&config, &place.record, address).await?;
        let known = known_addresses(peers.clone(), &place.record, address).await;
        let (network, timing) = config.timing.resolve(&known);
        info!(%address, %name, node_id = %place.record.read().node_id, network = network.as_str(), ?timing, "who we are");
        if let Some(Warning(exposed)) = config.exposure(address) {
            warn!("{exposed}");
        }
        Ok(Self { config, place, peers, certificates, address, name, network, timing })
    }
}

/// The channels between the rooms, each named by what it carries.
struct Channels {
    status: watch::Sender<Option<ha::Status>>,
    data: watch::Sender<DataFacts>,
    primary: watch::Sender<PrimaryHere>,
    /// For the API.
    processes: api::Processes,
}

async fn start(
    config: Config,
    processes: api::Processes,
    background: &mut JoinSet<()>,
) -> anyhow::Result<Node> {
    let init = processes.init.clone();
    let mut ha_tasks = JoinSet::new();
    let (stop_ha, stop_store, stop_api) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let ground = Ground::settle(config, background, stop_store.clone()).await?;
    let record = ground.place.record.read();

    let lock = Some(ground.place.lock.clone());
    let unit = Unit::spawn_holding(lock, postgres_unit(), init.clone(), background);
    let postgres = Postgres::new(ground.config.postgres(ground.place.identity(&ground.name)), unit.clone());
    if ground.config.ha.reserve.is_none() {
        postgres.give_reserve().await?;
    }
    let adopted = adoption::adopt(&postgres, &ground.place.record).await?;
    let (found, parameters) = (ground.place.record.read(), &ground.config.database.parameters);
    let beginning = adoption::beginning(&postgres, &found, parameters).await?;
    let facts = publish::data_facts(&postgres.status(FIRST_LOOK).await, record.system_id, adopted);
    let channels = Channels {
        status: watch::channel(None).0,
        data: watch::channel(facts).0,
        primary: watch::channel(PrimaryHere::No).0,
        processes,
    };
    let client = ground.certificates.peer_client(&ground.config)?;
    let etcd_unit = Unit::spawn(etcd_unit(), init.clone(), background);
    let room = store_room(&ground, &channels, etcd_unit.clone(), background, stop_store.clone())?;
    let promises = Promises::open(ground.place.record.clone(), clock::now());
    let (desk, inbox) = ha::desk::open();
    let rooms = (&room, desk, promises.clone());
    serve_api(&ground, &channels, rooms, background, stop_api.clone()).await?;

    let told = channels.status.subscribe();
    let proxy = proxy::start(&ground, told, init.clone(), background, stop_api.clone())?;
    let endpoints = relay(background, room.status(), |status| status.endpoints.clone());
    background.spawn(tell_primary(channels.status.subscribe(), channels.primary));
    let store = EtcdStore::new(store_config(&ground), endpoints, background, stop_store.clone());
    let deps = agent::Deps {
        store: Arc::new(store),
        postgres,
        record: ground.place.record.clone(),
        promises,
        init,
        watchdog: ground.config.ha.watchdog_device.clone(),
        client,
        peers: ground.peers.clone(),
        inbox,
    };
    let programs = ground.config.ha.callbacks.clone();
    let called = callbacks::run(programs, ground.place.run_as.clone(), channels.status.subscribe());
    let outlets = agent::Outlets { status: channels.status, data: channels.data };
    let config = agent_config(&ground, record.node_id, beginning);
    agent::spawn(config, deps, outlets, &mut ha_tasks, stop_ha.clone());
    background.spawn(called);
    let budget = ground.config.stop_budget;
    background.spawn(ground.certificates.renew(unit.clone()));
    Ok(Node { ha: ha_tasks, stop_ha, stop_store, stop_api, postgres: unit, etcd: etcd_unit, proxy, budget })
}

fn store_room(
    ground: &Ground,
    channels: &Channels,
    unit: Unit,
    background: &mut JoinSet<()>,
    stop: CancellationToken,
) -> anyhow::Result<etcd::Handle> {
    let deps = etcd::Deps {
        unit,
        record: ground.place.record.clone(),
        peers: ground.peers.clone(),
        peer_client: ground.certificates.peer_client(&ground.config)?,
        data: channels.data.subscribe(),
        primary: channels.primary.subscribe(),
        tls: ground.certificates.credentials(),
    };
    Ok(etcd::spawn(etcd_config(ground), deps, background, stop))
}

async fn serve_api(
    ground: &Ground,
    channels: &Channels,
    (room, desk, promises): (&etcd::Handle, ha::desk::Desk, Promises),
    background: &mut JoinSet<()>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let node = api::NodeFacts {
        node_id: ground.place.record.read().node_id,
        name: ground.name.clone(),
        app: ground.config.app.clone(),
    };
    let state = api::State {
        node,
        ha: channels.status.subscribe(),
        store: room.status(),
        peers: ground.peers.clone(),
        data: channels.data.subscribe(),
        promises: Some(promises),
        etcd: Some(room.clone()),
        desk: Some(desk),
        access: ground.config.rest.clone(),
        whereabouts: api::Whereabouts::default(),
        certificates: ground.certificates.good_until(),
        processes: channels.processes.clone(),
    };
    let tls = Arc::clone(&ground.certificates.bundle.api_server);
    let bound = api::serve(api_config(&ground.config), state, Some(tls), background, stop).await?;
    info!(%bound, "the API listens");
    Ok(())
}

/// Where things are on this machine, and who runs them.
struct Place {
    run_as: RunAs,
    bin_dir: Utf8PathBuf,
    etcd: Utf8PathBuf,
    lock: VolumeLock,
    record: Keeper,
}

impl Place {
    fn prepare(config: &Config) -> anyhow::Result<Self> {
        let run_as =
            RunAs::account(ACCOUNT).context("could not look up the account that PostgreSQL runs as")?;
        let bin_dir = config.bin_dir().context(
            "PostgreSQL was not found in /usr/lib/postgresql/*/bin or PATH: install it, or set PG_BINDIR",
        )?;
        let etcd = config.program("etcd").context("etcd was not found in PATH: install it")?;
        for dir in [&config.data_volume, &config.run_dir, &config.tls_dir()] {
            process::make_private_dir(dir, &run_as).with_context(|| format!("could not prepare {dir}"))?;
        }
        let state_dir = config.state_dir();
        process::make_private_dir(&state_dir, &run_as)
            .with_context(|| format!("could not prepare {state_dir}"))?;
        let lock = VolumeLock::take(&state_dir.join(".lock"), &run_as)?;
        let record = Keeper::open(&config.state_dir(), &run_as)?;
        Ok(Self { run_as, bin_dir, etcd, lock, record })
    }

    fn identity(&self, name: &NodeName) -> Identity {
        Identity { name: name.clone(), run_as: self.run_as.clone(), bin_dir: self.bin_dir.clone() }
    }
}

/// Ends when there has been no location list at all for [`LIST_PATIENCE`].
async fn list_fails(mut peers: watch::Receiver<Peers>) {
    let listed = timeout(LIST_PATIENCE, peers.wait_for(|list| list.fetched_at.is_some())).await.is_ok();
    if listed {
        std::future::pending::<()>().await;
    }
}

async fn find_address(
    config: &Config,
    place: &Place,
    certificates: &Certificates,
    peers: &watch::Receiver<Peers>,
) -> anyhow::Result<IpAddr> {
    let remembered = place.record.read().last_address.filter(|_| !place.record.read().voters.is_empty());
    let client = certificates.peer_client(config)?;
    let ask = |peer| {
        let client = client.clone();
        async move { client.status(peer).await.ok()?.your_address }
    };
    let found = discovery::own_address(&config.discovery, peers.clone(), ask);
    let Some(remembered) = remembered else { return Ok(found.await) };
    tokio::select! {
        found = found => Ok(found),
        // A restart must work while the location API is down: what was confirmed before is good until it answers.
        () = list_fails(peers.clone()) => {
            warn!(%remembered, "no location list: going on with the address that this node had before");
            Ok(remembered)
        }
    }
}

/// The addresses that the timers are chosen by. A volume that has been part of a cluster does not wait for the location
/// API: its voters are as good, and a restart must work while the API is down.
async fn known_addresses(
    mut peers: watch::Receiver<Peers>,
    record: &Keeper,
    own: IpAddr,
) -> BTreeSet<IpAddr> {
    let voters = record.read().voters;
    let patience = if voters.is_empty() { Duration::MAX } else { LIST_PATIENCE };
    match timeout(patience, peers.wait_for(|list| list.fetched_at.is_some())).await {
        Ok(Ok(list)) => list.addrs.clone(),
        Ok(Err(_)) | Err(_) => voters.into_iter().map(|voter| voter.address).chain([own]).collect(),
    }
}

/// The display name: fixed at the first start, so that a change of address does not change who a member is.
async fn settle_name(config: &Config, record: &Keeper, address: IpAddr) -> anyhow::Result<NodeName> {
    let fresh = || NodeName(format!("node-{}", address.to_string().replace(['.', ':'], "-")));
    let name = record.read().node_name.or_else(|| config.node_name.clone()).unwrap_or_else(fresh);
    let settled = record.update(|record| {
        record.node_name = Some(name.clone());
        record.last_address = Some(address);
    });
    settled.await?;
    Ok(name)
}

fn log_config(config: &Config) -> log::Config {
    log::Config {
        format: config.log.format,
        level: config.log.level.to_string(),
        layout: log::Layout::default(),
        files: None,
    }
}

fn postgres_unit() -> UnitSpec {
    // Only the HA core starts PostgreSQL; every stop of it names its own ladder.
    UnitSpec { name: "postgres", restart: Restart::Never, stop: vec![] }
}

fn etcd_unit() -> UnitSpec {
    let stop = vec![Rung { signal: nix::sys::signal::Signal::SIGTERM, wait: AFTER_POSTGRES }];
    UnitSpec { name: "etcd", restart: Restart::Never, stop }
}

fn etcd_config(ground: &Ground) -> etcd::Config {
    let (config, clocks) = (&ground.config, ground.network.etcd());
    etcd::Config {
        program: ground.place.etcd.clone(),
        data_dir: config.etcd_dir(),
        tls_dir: config.tls_dir(),
        run_as: ground.place.run_as.clone(),
        app: config.app.clone(),
        address: ground.address,
        listen: config.listen.to_string(),
        bound: config.bound,
        advertised: config.advertised,
        token: ground.certificates.root.token(),
        metrics_url: None,
        timing: etcd::Timing {
            heartbeat: clocks.heartbeat,
            election: clocks.election,
            prune_after: config.timing.prune_after(ground.network),
        },
    }
}

fn store_config(ground: &Ground) -> EtcdConfig {
    EtcdConfig {
        scope: ground.config.app.clone(),
        namespace: "service".to_owned(),
        tls: Some(ground.certificates.credentials()),
        login: None,
        ready: ReadyKey::Key(format!("/pgherd/{}/ready", ground.config.app)),
        ttl: ground.timing.ttl,
    }
}

fn agent_config(ground: &Ground, node_id: NodeId, beginning: Stored) -> agent::Config {
    let rules = Rules { server: Some(beginning), ..rules(&ground.config, ground.timing) };
    agent::Config {
        scope: ground.config.app.clone(),
        me: ground.name.clone(),
        node_id,
        address: ground.address,
        addresses: addresses(&ground.config, ground.address),
        founding: rules.to_config(),
        rules,
        reread: Reread::nothing(),
    }
}

fn api_config(config: &Config) -> api::Config {
    let plain = match config.tls.clients {
        ClientTls::Offered => api::Plain::Accepted,
        ClientTls::Required => api::Plain::Refused,
    };
    api::Config::new(config.listen.to_string(), config.bound.api, plain)
}

fn addresses(config: &Config, address: IpAddr) -> Addresses {
    let scheme = match config.tls.clients {
        ClientTls::Offered => "http",
        ClientTls::Required => "https",
    };
    let at = |port| std::net::SocketAddr::new(address, port);
    let (postgres, api) = (at(config.advertised.postgres), at(config.advertised.api));
    Addresses {
        conn_url: format!("postgres://{postgres}/{}", config.database.name),
        api_url: format!("{scheme}://{api}/patroni"),
        proxy_url: None,
    }
}

fn rules(config: &Config, timing: Timing) -> Rules {
    let ha = &config.ha;
    Rules {
        timing,
        sync_mode: ha.sync_mode,
        strictness: ha.strictness,
        sync_node_count: ha.sync_node_count,
        maximum_lag_on_failover: ha.maximum_lag_on_failover,
        outlast: ha.outlast,
        pause: ha::rules::Pause::Off,
        primary_start_timeout: ha::rules::START_TIMEOUT,
        primary_stop_timeout: Duration::ZERO,
        tags: ha.tags.clone(),
        pre_promote: ha.pre_promote.clone().map(Program::from),
        replication: Replication::default(),
        watchdog: ha.watchdog,
        reserve: ha.reserve,
        mode: Mode::Node,
        server: None,
        remote: ha.remote.clone(),
    }
}

/// Tells the etcd room whether the primary is here: raft leadership is better kept elsewhere. Not at once: handing it over
/// costs a moment without a store, which a new leader has no time for.
async fn tell_primary(mut status: watch::Receiver<Option<ha::Status>>, primary: watch::Sender<PrimaryHere>) {
    let mut since = None;
    while status.changed().await.is_ok() {
        let now = clock::now();
        let here = match status.borrow_and_update().as_ref().map(|s| s.role) {
            Some(Role::Primary) if now.since(*since.get_or_insert(now)) >= SETTLED_PRIMARY => {
                PrimaryHere::Yes
            }
            Some(Role::Primary) => PrimaryHere::No,
            Some(
                Role::Promoted | Role::Replica | Role::StandbyLeader | Role::Demoted | Role::Uninitialized,
            )
            | None => {
                since = None;
                PrimaryHere::No
            }
        };
        primary.send_if_modified(|known| std::mem::replace(known, here) != here);
    }
    // The HA agent has ended: the node is stopping, and its other tasks go on until they are told to end.
    std::future::pending::<()>().await;
}

/// A channel that follows one part of another.
fn relay<A, B>(
    tasks: &mut JoinSet<()>,
    mut source: watch::Receiver<A>,
    part: impl Fn(&A) -> B + Send + 'static,
) -> watch::Receiver<B>
where
    A: Send + Sync + 'static,
    B: PartialEq + Clone + Send + Sync + 'static,
{
    let (sender, receiver) = watch::channel(part(&source.borrow()));
    tasks.spawn(async move {
        while source.changed().await.is_ok() {
            let value = part(&source.borrow_and_update());
            sender.send_if_modified(|known| std::mem::replace(known, value.clone()) != value);
        }
        // The etcd agent ends before the HA agent has given the key back: the last endpoints stay good.
        std::future::pending::<()>().await;
    });
    receiver
}

async fn beat(init: InitLink) {
    let mut timer = Timer::default();
    loop {
        init.beat();
        timer.pause(BEAT).await;
    }
}
