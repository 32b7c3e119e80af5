//! Agent mode: the second composition. The same HA loop, PostgreSQL and API in the place of a Patroni process, with somebody
//! else's etcd and an administrator's server.
//!
//! There is no `init` here: the process keeps its pid, and PostgreSQL goes on when it dies. A server that runs already is
//! taken over. Nobody leads before the store has been heard and no other process of this name answers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::net::lookup_host;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::api::access::{Access, Basic};
use crate::config::Warning;
use crate::config::patroni::{Agent, VerifyClient};
use crate::dcs::etcd::{EtcdConfig, EtcdStore, Login, ReadyKey};
use crate::dcs::{Dcs as _, Snapshot};
use crate::discovery::Peers;
use crate::ha::desk::{Ask, Desk, Reply};
use crate::ha::promises::Promises;
use crate::ha::publish::{self, Addresses};
use crate::ha::remote::Remote;
use crate::ha::replication::Replication;
use crate::ha::reread::{Fresh, Reread};
use crate::ha::rules::{Mode, Outlast, Pause, Rules, START_TIMEOUT, Strictness, Unled};
use crate::ha::tags::{Tags, contradictions};
use crate::ha::{self, agent, callbacks};
use crate::peer::PeerClient;
use crate::postgres::{self, ClientTls, Machine, NodeSettings, Postgres, Premises, Stored};
use crate::process::{self, InitLink, RunAs, VolumeLock};
use crate::record::Keeper;
use crate::supervisor::{Reports, Unit};
use crate::tls::{self, EtcdClient, Identity};
use crate::types::{NodeId, NodeName, SyncMode, Timing};
use crate::{api, clock, etcd, log};

use super::{ACCOUNT, FIRST_LOOK, StopSignals, postgres_unit};

/// A clean stop is over within this time: PostgreSQL's, and what is given back after it.
const STOP_BUDGET: Duration = Duration::from_secs(13);
/// What is left to do once PostgreSQL is gone.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Between two attempts to reach the store at the start.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// A loop that does not take a request within this time is busy with something that matters more.
const RELOAD_PATIENCE: Duration = Duration::from_secs(15);
/// What the answer to a question for the addresses of a host may take, at the start.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(5);
/// An address of a host as a network: all its bits count, of either family.
const HOST_BITS: u8 = 128;
/// Patroni's durations when nothing is said.
const DEFAULTS: Timing = Timing {
    ttl: Duration::from_secs(30),
    loop_wait: Duration::from_secs(10),
    retry_timeout: Duration::from_secs(10),
};
/// Patroni's `maximum_lag_on_failover` when nothing is said, in bytes.
const MAXIMUM_LAG: u64 = 1_048_576;

/// Runs until it is asked to stop.
///
/// # Errors
/// Something that only a person can mend: a program is missing, a directory or a port cannot be used, another process of
/// this name runs.
pub fn run(file: Option<Utf8PathBuf>, config: Agent, warnings: Vec<Warning>) -> anyhow::Result<ExitCode> {
    let source = Source { file, vars: process::take_environment() };
    let _log = log::install(&config.log).context("could not start the log")?;
    process::Surroundings::look().tell();
    for Warning(warning) in warnings {
        warn!("{warning}");
    }
    let outcome = process::runtime().context("could not start the runtime")?.block_on(live(config, source));
    if let Err(error) = &outcome {
        error!(error = format!("{error:#}"), "the agent cannot run");
    }
    outcome
}

/// Where the configuration comes from, to be read again.
struct Source {
    file: Option<Utf8PathBuf>,
    vars: Vec<(OsString, OsString)>,
}

impl Source {
    /// Reads it, and says what of a change counts only from the next start on.
    fn reread(&self, running: &Agent) -> Option<Fresh> {
        let read = Agent::read(self.file.as_deref(), self.vars.iter().cloned());
        let (fresh, warnings) = match read {
            Ok(fresh) => fresh,
            Err(errors) => {
                error!(%errors, "the file cannot be used: everything stays as it is");
                return None;
            }
        };
        for Warning(warning) in warnings {
            warn!("{warning}");
        }
        let next = running.reloaded(&fresh);
        for section in next.differences(&fresh) {
            warn!(section, "has changed in the file: that takes effect at the next start");
        }
        say_what_is_odd(&next);
        info!("read the file again");
        let rules = rules(&next);
        let server = next.postgres;
        let server = NodeSettings { parameters: server.parameters, hba: server.hba, ident: server.ident };
        Some(Fresh { rules, server })
    }

    /// Whenever the loop wants it.
    fn into_reread(self, running: Agent) -> Reread {
        Reread::by(move || self.reread(&running))
    }
}

/// SIGHUP is the same as `POST /reload`.
async fn reload_on_hangup(desk: Desk) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return std::future::pending().await };
    while hangup.recv().await.is_some() {
        if let Reply::Unavailable = desk.ask(Ask::Reload, RELOAD_PATIENCE).await {
            warn!("the HA loop is busy: SIGHUP is not answered yet");
        }
    }
}

async fn live(config: Agent, source: Source) -> anyhow::Result<ExitCode> {
    let mut stop = StopSignals::listen()?;
    // Unheard, SIGHUP and SIGUSR1 would end the agent, and PostgreSQL would go on without anybody who renews its lease.
    let reports = Reports::listen().context("could not listen for signals")?;
    let mut background = JoinSet::new();
    let mut running = tokio::select! {
        running = start(config, source, &mut background) => running?,
        // Nothing has been changed yet.
        _ = stop.first() => return Ok(ExitCode::SUCCESS),
    };
    let (_fixed, units) = watch::channel(vec![running.postgres.clone()]);
    background.spawn(reports.answer(units, InitLink::dead()));
    tokio::select! {
        _ = stop.first() => info!("asked to stop"),
        Some(ended) = background.join_next() => error!(?ended, "a task of the agent has ended by itself: stopping"),
        Some(ended) = running.ha.join_next() => {
            error!(?ended, "the HA loop has ended by itself");
            return Ok(ExitCode::FAILURE);
        }
    }
    let ending = shut_down(running);
    tokio::pin!(ending);
    loop {
        tokio::select! {
            code = &mut ending => return Ok(code),
            // PostgreSQL outlives this process: to end before it would leave a primary whose lease nobody renews.
            _ = stop.first() => info!("asked to stop again: the server stops first"),
        }
    }
}

/// What the shutdown needs of a running agent.
struct Running {
    ha: JoinSet<()>,
    stop_ha: CancellationToken,
    stop_rest: CancellationToken,
    postgres: Unit,
}

/// PostgreSQL stops (or is left alone, in maintenance mode) and the leader key is given back while everything else works.
async fn shut_down(mut running: Running) -> ExitCode {
    running.stop_ha.cancel();
    let ended = timeout(STOP_BUDGET, running.ha.join_next()).await;
    let in_order = matches!(ended, Ok(Some(Ok(()))));
    if !in_order {
        warn!(?ended, "PostgreSQL was not stopped in order: stopping it at once");
        if timeout(LAST_WORDS, running.postgres.stop(Some(vec![]))).await.is_err() {
            error!("something of PostgreSQL does not die of SIGKILL");
        }
        // With the server gone it ends by itself, and tells the watchdog so.
        if timeout(LAST_WORDS, running.ha.join_next()).await.is_err() {
            warn!("the HA loop does not end");
        }
    }
    running.stop_rest.cancel();
    info!("stopped");
    if in_order { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Where things are on this machine, and who runs them.
struct Place {
    run_as: RunAs,
    bin_dir: Utf8PathBuf,
    /// Held for as long as the agent lives; PostgreSQL, which outlives it, does not hold it.
    _lock: VolumeLock,
    record: Keeper,
}

impl Place {
    async fn prepare(config: &Agent) -> anyhow::Result<Self> {
        let run_as =
            RunAs::account(ACCOUNT).context("could not look up the account that PostgreSQL runs as")?;
        let bin_dir = config.bin_dir().context("PostgreSQL was not found: set postgresql.bin_dir")?;
        let state_dir = config.state_dir();
        process::make_private_dir(&state_dir, &run_as)
            .with_context(|| format!("could not prepare {state_dir}, which lies beside the data"))?;
        let lock = VolumeLock::take(&state_dir.join(".lock"), &run_as)?;
        let record = Keeper::open(&state_dir, &run_as)?;
        record.update(|record| record.node_name = Some(config.name.clone())).await?;
        Ok(Self { run_as, bin_dir, _lock: lock, record })
    }
}

async fn start(config: Agent, source: Source, background: &mut JoinSet<()>) -> anyhow::Result<Running> {
    let place = Place::prepare(&config).await?;
    say_what_is_odd(&config);
    let (stop_ha, stop_rest) = (CancellationToken::new(), CancellationToken::new());
    let client = peer_client(&config)?;
    let endpoints = watch::channel(config.etcd.endpoints.clone()).1;
    let store = Arc::new(EtcdStore::new(store_config(&config)?, endpoints, background, stop_rest.clone()));
    let snapshot = first_snapshot(&store).await;
    require_unique(&config.name, &snapshot, &client).await?;

    let (unit, postgres) = server(&config, &place, snapshot, background).await?;
    let record = place.record.read();
    let facts = publish::data_facts(&postgres.status(FIRST_LOOK).await, record.system_id, None);
    let (status, data) = (watch::channel(None).0, watch::channel(facts).0);
    let (desk, inbox) = ha::desk::open();
    background.spawn(reload_on_hangup(desk.clone()));
    let peers = watch::channel(Peers { fetched_at: Some(clock::now()), ..Peers::default() }).1;
    let (name, app) = (config.name.clone(), config.scope.clone());
    let facts = api::NodeFacts { node_id: record.node_id.clone(), name, app };
    let promises = Promises::open(place.record.clone(), clock::now());
    let state = api::State {
        node: facts,
        ha: status.subscribe(),
        store: watch::channel(etcd::Status::default()).1,
        peers: peers.clone(),
        data: data.subscribe(),
        etcd: None,
        desk: Some(desk),
        access: with_addresses(config.api.access.clone()).await,
        whereabouts: api::Whereabouts::default(),
        certificates: watch::channel(None).1,
        processes: api::Processes { units: watch::channel(vec![unit.clone()]).1, init: InitLink::dead() },
        promises: Some(promises.clone()),
    };
    serve_api(&config, state, background, stop_rest.clone()).await?;
    let deps = agent::Deps {
        store,
        postgres,
        record: place.record.clone(),
        promises,
        init: InitLink::dead(),
        watchdog: config.watchdog_device.clone(),
        client,
        peers,
        inbox,
    };
    let mut ha = JoinSet::new();
    let called = callbacks::run(config.postgres.callbacks.clone(), place.run_as.clone(), status.subscribe());
    background.spawn(called);
    agent::spawn(
        agent_config(&config, record.node_id, source.into_reread(config.clone())),
        deps,
        agent::Outlets { status, data },
        &mut ha,
        stop_ha.clone(),
    );
    background.spawn(hold(place, stop_rest.clone()));
    Ok(Running { ha, stop_ha, stop_rest, postgres: unit })
}

/// The server, with what the store says of it; one that runs already is taken over.
async fn server(
    config: &Agent,
    place: &Place,
    snapshot: Snapshot,
    background: &mut JoinSet<()>,
) -> anyhow::Result<(Unit, Postgres)> {
    let kin = postgres::kin(&config.postgres.data_dir);
    let unit = Unit::spawn_alone(kin, postgres_unit(), background);
    let postgres = Postgres::new(postgres_config(config, place)?, unit.clone());
    // A cluster that is founded here starts with what it is founded with.
    let dynamic = snapshot.config.map_or_else(|| founding(config), |stored| stored.value);
    postgres.intend(Stored::of(&dynamic).under(&config.postgres.rules));
    if let Some(pid) = postgres.adopt_running().await? {
        info!(pid, "PostgreSQL runs already: going on with it");
    }
    Ok((unit, postgres))
}

/// Keeps what must be kept until the end.
async fn hold(place: Place, stop: CancellationToken) {
    stop.cancelled().await;
    drop(place);
}

fn say_what_is_odd(config: &Agent) {
    for conflict in contradictions(&config.tags) {
        warn!("{conflict}");
    }
}

/// Waits for the store: without it nothing may be decided.
async fn first_snapshot(store: &EtcdStore) -> Snapshot {
    let mut said = false;
    loop {
        match store.snapshot().await {
            Ok(snapshot) => return snapshot,
            Err(error) if said => tracing::debug!(%error, "waiting for the store"),
            Err(error) => warn!(%error, "waiting for the store"),
        }
        said = true;
        tokio::time::sleep(STORE_RETRY).await;
    }
}

/// Two processes of one name would take each other's leader key for their own.
async fn require_unique(name: &NodeName, snapshot: &Snapshot, client: &PeerClient) -> anyhow::Result<()> {
    let Some(member) = snapshot.member(name) else { return Ok(()) };
    if client.is_alive(&member.api_url).await {
        error!(target: log::CRITICAL, "Can't start; there is already a node named '{name}' running");
        bail!("another process of this name answers at {}", member.api_url);
    }
    Ok(())
}

/// The access rules with the addresses of the hosts that they name.
async fn with_addresses(mut access: Access) -> Access {
    if let Some(places) = access.demands.as_mut().and_then(|demands| demands.from.as_mut()) {
        // At once: a lease may be ending meanwhile.
        let lookups: JoinSet<_> = places.hosts.iter().cloned().map(addresses_of).collect();
        places.networks.extend(lookups.join_all().await.into_iter().flatten());
    }
    access
}

async fn addresses_of(host: String) -> Vec<(IpAddr, u8)> {
    match timeout(RESOLVE_PATIENCE, lookup_host((host.as_str(), 0))).await {
        Ok(Ok(found)) => found.map(|at| (at.ip(), HOST_BITS)).collect(),
        Ok(Err(error)) => {
            warn!(%host, %error, "a host of restapi.allowlist has no address: it is not let in");
            Vec::new()
        }
        Err(_elapsed) => {
            warn!(%host, "no answer where a host of restapi.allowlist is: it is not let in");
            Vec::new()
        }
    }
}

async fn serve_api(
    config: &Agent,
    state: api::State,
    background: &mut JoinSet<()>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let tls = match &config.api.tls {
        None => None,
        Some(files) => {
            let identity = identity(&files.certificate, &files.key)?;
            let ca = files.ca.as_deref().map(read).transpose()?;
            let clients = match (files.clients, ca) {
                (VerifyClient::Never, _) | (_, None) => tls::machine::ClientCertificates::Ignored,
                (VerifyClient::ForChanges, Some(ca)) => tls::machine::ClientCertificates::Accepted(ca),
                (VerifyClient::Always, Some(ca)) => tls::machine::ClientCertificates::Required(ca),
            };
            Some(Arc::new(tls::machine::server(&identity, clients)?))
        }
    };
    let plain = if tls.is_some() { api::Plain::Refused } else { api::Plain::Accepted };
    let listen =
        if config.api.listen.host == "*" { "0.0.0.0".to_owned() } else { config.api.listen.host.clone() };
    let place =
        api::Config { listen, port: config.api.listen.port, plain, headers: config.api.headers.clone() };
    let bound = api::serve(place, state, tls, background, stop).await?;
    info!(%bound, "the API listens");
    Ok(())
}

fn read(path: &Utf8Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("could not read {path}"))
}

fn identity(certificate: &Utf8Path, key: &Utf8Path) -> anyhow::Result<Identity> {
    Ok(Identity { certificate: read(certificate)?, key: Zeroizing::new(read(key)?) })
}

fn peer_client(config: &Agent) -> anyhow::Result<PeerClient> {
    let calls = &config.calls;
    let shown =
        calls.certificate.as_ref().map(|(certificate, key)| identity(certificate, key)).transpose()?;
    let ca = calls.ca.as_deref().map(read).transpose()?;
    let tls = tls::machine::client(ca.as_deref(), shown.as_ref())?;
    let client = PeerClient::new(Arc::new(tls), config.api.connect.port)?;
    // What changes something at another member needs what it needs here.
    Ok(match &config.api.access.basic {
        Some(Basic { user, password }) => client.with_login(user, password.clone()),
        None => client,
    })
}

/// How to reach the store that the file names.
///
/// # Errors
/// A certificate or a key cannot be read.
pub fn store_config(config: &Agent) -> anyhow::Result<EtcdConfig> {
    let etcd = &config.etcd;
    let tls = match &etcd.ca {
        None => None,
        Some(ca) => {
            let shown = etcd.certificate.as_ref().map(|(certificate, key)| identity(certificate, key));
            let client = EtcdClient { ca: read(ca)?, identity: shown.transpose()? };
            Some(watch::channel(client).1)
        }
    };
    let login = etcd.login.clone().map(|(user, password)| Login { user, password });
    Ok(EtcdConfig {
        scope: config.scope.clone(),
        namespace: config.namespace.clone(),
        tls,
        login,
        ready: ReadyKey::NotNeeded,
        ttl: DEFAULTS.ttl,
    })
}

fn agent_config(config: &Agent, node_id: NodeId, reread: Reread) -> agent::Config {
    let scheme = if config.api.tls.is_some() { "https" } else { "http" };
    agent::Config {
        scope: config.scope.clone(),
        me: config.name.clone(),
        node_id,
        // Only the list of a location API is compared with it, and there is none.
        address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        addresses: Addresses {
            conn_url: format!("postgres://{}/{}", config.postgres.connect, config.postgres.database),
            api_url: format!("{scheme}://{}/patroni", config.api.connect),
            proxy_url: config
                .postgres
                .proxy
                .as_ref()
                .map(|proxy| format!("postgres://{proxy}/{}", config.postgres.database)),
        },
        rules: rules(config),
        founding: founding(config),
        reread,
    }
}

/// What a store without a configuration gets: what the cluster of the data here had last, else what the file has for a new one.
fn founding(config: &Agent) -> serde_json::Value {
    let kept = std::fs::read_to_string(config.postgres.data_dir.join(postgres::DYNAMIC));
    let kept =
        kept.ok().and_then(|text| serde_json::from_str(&text).ok()).filter(serde_json::Value::is_object);
    kept.unwrap_or_else(|| serde_json::Value::Object(config.bootstrap.dcs.clone()))
}

/// Patroni's defaults: everything else is in the store.
fn rules(config: &Agent) -> Rules {
    Rules {
        timing: DEFAULTS,
        sync_mode: SyncMode::Off,
        strictness: Strictness::Degrade,
        sync_node_count: 1,
        maximum_lag_on_failover: MAXIMUM_LAG,
        outlast: Outlast::Never,
        pause: Pause::Off,
        primary_start_timeout: START_TIMEOUT,
        primary_stop_timeout: Duration::ZERO,
        tags: Tags::from_json(&config.tags),
        server: None,
        pre_promote: config.postgres.pre_promote.clone(),
        replication: Replication::default(),
        watchdog: config.watchdog,
        reserve: None,
        mode: Mode::Agent { local: config.postgres.rules.clone(), unled: unled(config) },
        remote: Remote::of(&founding(config)).0,
    }
}

fn unled(config: &Agent) -> Unled {
    let alone = config.postgres.replica_methods.iter().any(|method| method.alone().is_some());
    if alone { Unled::Copies } else { Unled::Waits }
}

fn postgres_config(config: &Agent, place: &Place) -> anyhow::Result<postgres::Config> {
    let server = &config.postgres;
    let run_dir = config.state_dir().join("run");
    process::make_private_dir(&run_dir, &place.run_as)
        .with_context(|| format!("could not prepare {run_dir}"))?;
    let machine = Machine {
        config_dir: server.config_dir.clone(),
        custom_conf: server.custom_conf.clone(),
        cluster_name: config.scope.clone(),
        local: server.local.clone(),
        passfile: server.pgpass.clone().unwrap_or_else(|| run_dir.join("pgpass")),
        ident: server.ident.clone(),
        replication_options: server.replication.options.clone(),
        rewind: server.rewind.clone(),
        bootstrap_hba: config.bootstrap.hba.clone(),
        replica_methods: server.replica_methods.clone(),
        methods: server.methods.clone(),
        basebackup: server.basebackup.clone(),
        origin: config.bootstrap.origin.clone(),
        before_stop: server.before_stop.clone(),
        bootstrap_script: config.bootstrap.script.clone(),
    };
    Ok(postgres::Config {
        bin_dir: place.bin_dir.clone(),
        data_dir: server.data_dir.clone(),
        state_dir: config.state_dir(),
        tls_dir: run_dir.clone(),
        run_dir,
        run_as: place.run_as.clone(),
        listen: server.listen.clone(),
        port: server.port,
        advertised_port: server.connect.port,
        name: config.name.clone(),
        superuser_password: server.superuser.password.clone(),
        replication_password: server.replication.password.clone(),
        superuser: server.superuser.user.clone(),
        database: server.database.clone(),
        replication_user: server.replication.user.clone(),
        initdb_args: config.bootstrap.initdb.clone(),
        parameters: BTreeMap::clone(&server.parameters),
        hba: server.hba.clone(),
        tls_required: ClientTls::Offered,
        init_scripts: Utf8PathBuf::new(),
        import: None,
        foreign_login: postgres::ForeignLogin::Password,
        premises: Premises::Machine(Box::new(machine)),
    })
}
