//! From raw values to [`Config`]: each group of variables in one function, the rules between variables after it.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use camino::Utf8PathBuf;
use secrecy::{SecretSlice, SecretString};
use zeroize::Zeroizing;

use super::guard;
use super::passphrase::{self, Strength};
use super::reader::Reader;
use super::remote;
use super::timing::{self, Network, TimingChoice};
use super::{Config, Database, Errors, Ha, Log, Proxy, RestartNode, Tls, Warning, parse};
use crate::api::access::{Access, Basic};
use crate::discovery::{self, Source};
use crate::ha::callbacks::{Event, Programs};
use crate::ha::rules::{Outlast, Strictness, Tags};
use crate::ha::tags::contradictions;
use crate::log;
use crate::postgres::ClientTls;
use crate::proxy;
use crate::types::{Ports, SyncMode};

const DEFAULT_APP: &str = "myapp-postgres";
const FLUX_API: &str = "https://api.runonflux.io";
/// A Unix socket's path has at most 107 bytes; PostgreSQL adds `/.s.PGSQL.65535.lock`.
const RUN_DIR_LIMIT: usize = 87;
/// How often DNS is asked: an answer is one packet.
const DNS_EVERY: Duration = Duration::from_secs(10);
/// Below this neither a checkpoint nor a hand-over has time.
const SHORTEST_STOP: Duration = Duration::from_secs(2);

pub(super) fn config(
    vars: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(Config, Vec<Warning>), Errors> {
    let mut reader = Reader::new(vars);
    let config = everything(&mut reader);
    reader.near_misses();
    match config {
        Some(config) if reader.errors.is_empty() => Ok((config, reader.warnings)),
        Some(_) | None => Err(Errors(reader.errors)),
    }
}

/// Who has not said it is taken at the platform's word.
fn app(r: &mut Reader) -> String {
    let app = match r.parsed("APP_NAME", parse::app) {
        Some(said) => {
            if let Some(told) = r.text("FLUX_APP_NAME").filter(|told| *told != said) {
                r.warn("APP_NAME", format_args!("is {said}, and the platform calls this application {told}"));
            }
            said
        }
        None => r.parsed("FLUX_APP_NAME", parse::app).unwrap_or_else(|| DEFAULT_APP.to_owned()),
    };
    if app == DEFAULT_APP {
        r.warn(
            "APP_NAME",
            format_args!("is {app}, which other clusters use too; a name of its own is safer"),
        );
    }
    app
}

/// `None` only after an error has been noted.
fn everything(r: &mut Reader) -> Option<Config> {
    let app = app(r);
    let listen = r.parsed("LISTEN_ADDRESS", parse::listen).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let run_dir = run_dir(r);
    let data_volume =
        r.parsed("DATA_VOLUME", parse::directory).unwrap_or_else(|| "/var/lib/postgresql/data".into());
    let bound = ports(r, ["POSTGRES_PORT", "PATRONI_API_PORT", "ETCD_CLIENT_PORT", "ETCD_PEER_PORT"]);
    let advertised = ports(
        r,
        ["HOST_POSTGRES_PORT", "HOST_PATRONI_API_PORT", "HOST_ETCD_CLIENT_PORT", "HOST_ETCD_PEER_PORT"],
    );
    let timing = timing(r);
    let discovery = discovery(r, &app, listen, timing.network);
    let ha = ha(r);
    let log = log(r);
    let stop_budget = stop_budget(r);
    let restart_node = match r.parsed("RESTART_NODE", parse::switch) {
        Some(false) => RestartNode::Exit,
        Some(true) | None => RestartNode::Restart,
    };
    let node_name = r.parsed("NODE_NAME", parse::node_name);
    let search_path =
        r.search_path().split(':').filter(|dir| dir.starts_with('/')).map(Utf8PathBuf::from).collect();
    let database = database(r, &data_volume);
    if ha.remote.is_some() && database.as_ref().is_some_and(|database| database.import.is_some()) {
        r.wrong(
            "STANDBY_HOST",
            "set beside IMPORT_URL; expected one of them: a new cluster has one beginning",
        );
    }
    let tls = tls(r, &app, database.as_ref());
    let rest = rest(r);
    let proxy = proxy(r, bound, tls.as_ref().map_or(ClientTls::Offered, |tls| tls.clients));
    warn_of_publicity(r, &discovery);
    let (timing, discovery, database, tls) = (Some(timing), discovery?, database?, tls?);
    Some(Config {
        app,
        listen,
        bound,
        advertised,
        run_dir,
        data_volume,
        node_name,
        discovery,
        timing: timing?,
        ha,
        tls,
        database,
        proxy,
        rest,
        log,
        stop_budget,
        restart_node,
        search_path,
    })
}

fn run_dir(r: &mut Reader) -> Utf8PathBuf {
    let dir = r.parsed("RUN_DIR", parse::directory).unwrap_or_else(|| "/run/pgherd".into());
    if dir.as_str().len() > RUN_DIR_LIMIT {
        let n = dir.as_str().len();
        r.wrong(
            "RUN_DIR",
            format_args!("{n} bytes; expected at most {RUN_DIR_LIMIT} (a Unix socket lies in it)"),
        );
    }
    dir
}

/// Four ports, in the order of [`Ports`]; two services cannot share one.
fn ports(r: &mut Reader, names: [&'static str; 4]) -> Ports {
    let [postgres, api, etcd_client, etcd_peer] = names;
    let mut seen: Vec<(&str, u16)> = Vec::new();
    let mut port = |name, default| {
        let port = r.parsed(name, parse::port).unwrap_or(default);
        if let Some((other, _)) = seen.iter().find(|(_, taken)| *taken == port) {
            r.wrong(name, format_args!("{port}, like {other}; expected four different ports"));
        }
        seen.push((name, port));
        port
    };
    Ports {
        postgres: port(postgres, 5432),
        api: port(api, 8008),
        etcd_client: port(etcd_client, 2379),
        etcd_peer: port(etcd_peer, 2380),
    }
}

fn timing(r: &mut Reader) -> TimingChoice {
    let choice = TimingChoice {
        network: r.parsed("NETWORK", parse::network).unwrap_or(Network::Auto),
        ttl: r.parsed("TTL", parse::duration),
        loop_wait: r.parsed("LOOP_WAIT", parse::duration),
        retry_timeout: r.parsed("RETRY_TIMEOUT", parse::duration),
        prune_after: r.parsed("PRUNE_AFTER", parse::duration),
    };
    if let Err(why) = choice.check() {
        r.wrong("TTL, LOOP_WAIT, RETRY_TIMEOUT", why);
    }
    choice
}

fn discovery(r: &mut Reader, app: &str, listen: IpAddr, network: Network) -> Option<discovery::Config> {
    let url = r.parsed("FLUX_API_URL", parse::url).unwrap_or_else(|| FLUX_API.to_owned());
    let named = Named {
        peers: r.parsed("DISCOVERY_PEERS", parse::addresses),
        dns_name: r.parsed("DISCOVERY_DNS_NAME", parse::dns_name),
        dns_server: r.parsed("DISCOVERY_DNS_SERVER", parse::socket_address),
    };
    let advertise = r.parsed("ADVERTISE_ADDRESS", parse::address);
    let node_host_ip = r.parsed("FLUX_NODE_HOST_IP", parse::address_maybe_port);
    let cluster_size = r.parsed("CLUSTER_SIZE", parse::count).and_then(|n| usize::try_from(n).ok());
    let nearby = advertise.is_some_and(|ip| timing::is_private(&ip))
        || timing::is_private(&listen)
        || on_loopback(&url);
    let hostinfo_url = r.parsed("HOSTINFO_URL", parse::url);
    let echo_urls = r.parsed("ECHO_URLS", parse::urls);
    let source = source(r, url, app, named)?;
    // A test or a demo with its own location API must not ask the platform or the internet where it is.
    let platform = matches!(&source, Source::Flux { url, .. } if !on_loopback(url));
    let public = || discovery::ECHO_URLS.map(str::to_owned).to_vec();
    Some(discovery::Config {
        advertise,
        node_host_ip,
        cluster_size,
        poll_every: match &source {
            Source::Dns { .. } => DNS_EVERY,
            Source::Flux { .. } | Source::Static(_) => poll_every(network, nearby.into()),
        },
        source,
        hostinfo_url: hostinfo_url.or_else(|| platform.then(|| discovery::HOSTINFO_URL.to_owned())),
        echo_urls: echo_urls.unwrap_or_else(|| if platform { public() } else { Vec::new() }),
        timeouts: discovery::Timeouts::default(),
    })
}

/// What the sources that are not the platform's need.
struct Named {
    peers: Option<std::collections::BTreeSet<IpAddr>>,
    dns_name: Option<String>,
    dns_server: Option<std::net::SocketAddr>,
}

fn source(r: &mut Reader, url: String, app: &str, named: Named) -> Option<Source> {
    let kind = r.text("DISCOVERY").unwrap_or_else(|| "flux".to_owned());
    if kind != "static" && named.peers.is_some() {
        r.warn("DISCOVERY_PEERS", "has no effect without DISCOVERY=static");
    }
    if kind != "dns" && named.dns_name.is_some() {
        r.warn("DISCOVERY_DNS_NAME", "has no effect without DISCOVERY=dns");
    }
    match kind.as_str() {
        "flux" => Some(Source::Flux { url, app: app.to_owned() }),
        "static" => match named.peers.filter(|peers| !peers.is_empty()) {
            Some(peers) => Some(Source::Static(peers)),
            None => {
                r.wrong("DISCOVERY_PEERS", "not set; expected the nodes' IP addresses (DISCOVERY=static)");
                None
            }
        },
        "dns" => match named.dns_name {
            Some(name) => Some(Source::Dns { name, server: named.dns_server }),
            None => {
                r.wrong("DISCOVERY_DNS_NAME", "not set; expected a host or service name (DISCOVERY=dns)");
                None
            }
        },
        _ => {
            r.wrong(
                "DISCOVERY",
                format_args!("{}; expected one of flux, dns, static", super::reader::shape(&kind)),
            );
            None
        }
    }
}

/// Whether the surroundings speak of one machine or one data centre.
#[derive(Clone, Copy)]
enum Surroundings {
    Nearby,
    Unknown,
}

impl From<bool> for Surroundings {
    fn from(nearby: bool) -> Self {
        if nearby { Self::Nearby } else { Self::Unknown }
    }
}

/// How often the location API is asked. The list itself, which decides `NETWORK=auto`, is not known yet; a private
/// address of our own or a location API on loopback is a good enough guess, because a wrong one only costs requests.
fn poll_every(network: Network, surroundings: Surroundings) -> Duration {
    let seconds = match (network, surroundings) {
        (Network::Local, _) | (Network::Auto, Surroundings::Nearby) => 5,
        (Network::Auto, Surroundings::Unknown) | (Network::Regional | Network::Global, _) => 30,
    };
    Duration::from_secs(seconds)
}

/// Whether a URL's host is loopback.
fn on_loopback(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let bare = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// On Flux anybody can read an ordinary application's environment: the passwords are then no secrets.
fn warn_of_publicity(r: &mut Reader, discovery: &Option<discovery::Config>) {
    let flux = discovery
        .as_ref()
        .is_some_and(|d| matches!(&d.source, Source::Flux { url, .. } if !on_loopback(url)));
    if flux {
        r.warn(
            "POSTGRES_SUPERUSER_PASSWORD",
            "Flux publishes the environment of every application that is not an Enterprise one; its passwords and \
             passphrase are then known to all",
        );
    }
}

fn ha(r: &mut Reader) -> Ha {
    Ha {
        sync_mode: r.parsed("SYNCHRONOUS_MODE", parse::sync_mode).unwrap_or(SyncMode::Quorum),
        strictness: r.parsed("SYNCHRONOUS_MODE_STRICT", parse::strictness).unwrap_or(Strictness::Degrade),
        outlast: match r.parsed("FAILSAFE_MODE", parse::switch) {
            Some(true) => Outlast::AllAgree,
            Some(false) | None => Outlast::Never,
        },
        sync_node_count: r.parsed("SYNCHRONOUS_NODE_COUNT", parse::count).unwrap_or(1),
        maximum_lag_on_failover: r.parsed("MAXIMUM_LAG_ON_FAILOVER", parse::bytes).unwrap_or(1 << 20),
        tags: tags(r),
        callbacks: callbacks(r),
        pre_promote: r.parsed("PRE_PROMOTE", parse::program),
        watchdog: guard::watchdog(r),
        watchdog_device: guard::watchdog_device(r),
        reserve: guard::reserve(r),
        remote: remote::remote(r),
        remote_app: r.parsed("STANDBY_APP_NAME", parse::app),
    }
}

/// From the environment only: see `ha::callbacks`.
fn callbacks(r: &mut Reader) -> Programs {
    let named = |(event, variable)| Some((event, r.parsed(variable, parse::program)?.into()));
    Event::ALL.into_iter().filter_map(named).collect()
}

/// `None` when it is switched off; what was said about it then is read all the same, so that a mistake shows before it
/// is switched on.
fn proxy(r: &mut Reader, bound: Ports, clients: ClientTls) -> Option<Proxy> {
    let enabled = r.parsed("PROXY_ENABLED", parse::switch).unwrap_or(false);
    let taken = [bound.postgres, bound.api, bound.etcd_client, bound.etcd_peer];
    let mut seen = if enabled { taken.to_vec() } else { Vec::new() };
    let mut port = |name, default| {
        let port = r.parsed(name, parse::port).unwrap_or(default);
        if seen.contains(&port) {
            r.wrong(name, format_args!("{port}; expected a port that nothing else of this node uses"));
        }
        seen.push(port);
        port
    };
    let ports = proxy::Ports {
        read_write: port("PROXY_RW_PORT", 5000),
        read_only: port("PROXY_RO_PORT", 5001),
        stats: port("PROXY_STATS_PORT", 7000),
    };
    let socket_dir = r.parsed("PROXY_SOCKET_DIR", parse::directory);
    let max_lag = r.parsed("PROXY_MAX_LAG", parse::bytes).unwrap_or(16 << 20);
    check_socket_dir(r, socket_dir.as_ref(), clients);
    enabled.then_some(Proxy { ports, socket_dir, max_lag })
}

fn check_socket_dir(r: &mut Reader, dir: Option<&Utf8PathBuf>, clients: ClientTls) {
    let Some(dir) = dir else { return };
    let n = dir.as_str().len();
    if n > RUN_DIR_LIMIT {
        r.wrong("PROXY_SOCKET_DIR", format_args!("{n} bytes; expected at most {RUN_DIR_LIMIT}"));
    }
    if clients == ClientTls::Required {
        r.wrong(
            "PROXY_SOCKET_DIR",
            "set together with SSL_ENABLED=true; expected one of them, since clients speak no TLS over a Unix socket and \
             PostgreSQL would refuse them",
        );
    }
}

/// This node's tags: a variable for each that has a meaning, `TAGS` for all others.
fn tags(r: &mut Reader) -> Tags {
    let mut tags = serde_json::Map::new();
    let mut put = |name: &str, value: Option<serde_json::Value>| {
        tags.extend(value.map(|value| (name.to_owned(), value)));
    };
    put("nofailover", r.parsed("TAG_NOFAILOVER", parse::switch).map(Into::into));
    put("failover_priority", r.parsed("TAG_FAILOVER_PRIORITY", parse::priority).map(Into::into));
    put("noloadbalance", r.parsed("TAG_NOLOADBALANCE", parse::switch).map(Into::into));
    put("clonefrom", r.parsed("TAG_CLONEFROM", parse::switch).map(Into::into));
    put("nosync", r.parsed("TAG_NOSYNC", parse::switch).map(Into::into));
    put("sync_priority", r.parsed("TAG_SYNC_PRIORITY", parse::priority).map(Into::into));
    put("nostream", r.parsed("TAG_NOSTREAM", parse::switch).map(Into::into));
    put("replicatefrom", r.parsed("TAG_REPLICATEFROM", parse::node_name).map(|name| name.0.into()));
    tags.extend(r.parsed("TAGS", parse::tags).unwrap_or_default());
    for contradiction in contradictions(&tags) {
        r.warn("TAG_NOFAILOVER, TAG_NOSYNC", contradiction);
    }
    Tags::from_json(&tags)
}

fn log(r: &mut Reader) -> Log {
    Log {
        format: log_format(r),
        level: r.parsed("LOG_LEVEL", parse::log_level).unwrap_or(tracing::Level::INFO),
    }
}

pub(super) fn log_format(r: &mut Reader) -> log::Format {
    r.parsed("LOG_FORMAT", parse::log_format).unwrap_or(log::Format::Text)
}

fn stop_budget(r: &mut Reader) -> Duration {
    let budget = r.parsed("SHUTDOWN_TIMEOUT", parse::duration).unwrap_or(Duration::from_secs(9));
    if budget < SHORTEST_STOP {
        r.wrong("SHUTDOWN_TIMEOUT", format_args!("{budget:?}; expected at least {SHORTEST_STOP:?}"));
    }
    budget
}

fn database(r: &mut Reader, volume: &Utf8PathBuf) -> Option<Database> {
    let data_dir = data_dir(r, volume);
    let superuser_password = password(r, "POSTGRES_SUPERUSER_PASSWORD");
    let replication_password = password(r, "POSTGRES_REPLICATION_PASSWORD");
    let postgres = || "postgres".to_owned();
    let superuser = r.parsed("POSTGRES_USER", parse::superuser).unwrap_or_else(postgres);
    let name = r.parsed("POSTGRES_DB", parse::sql_name).unwrap_or_else(postgres);
    let initdb_args = r.parsed("POSTGRES_INITDB_ARGS", parse::arguments).unwrap_or_default();
    let parameters = r.parsed("POSTGRES_PARAMETERS", parse::parameters).unwrap_or_default();
    let hba = r.parsed("POSTGRES_HBA", parse::hba).unwrap_or_default();
    let bin_dir = r.parsed("PG_BINDIR", parse::directory);
    let import = import(r);
    Some(Database {
        data_dir,
        bin_dir,
        superuser_password: superuser_password?,
        replication_password: replication_password?,
        superuser,
        name,
        initdb_args,
        parameters,
        hba,
        import,
    })
}

fn import(r: &mut Reader) -> Option<crate::postgres::Source> {
    let url = r.secret("IMPORT_URL")?;
    let parsed = std::str::from_utf8(&url).map_err(|_binary| "text").and_then(crate::postgres::Source::parse);
    parsed.map_err(|expected| r.wrong("IMPORT_URL", format_args!("expected {expected}"))).ok()
}

/// PGDATA lies beneath the volume (the quarantine is a rename) and apart from our own directories there (a base backup
/// copies all of PGDATA, a rewind deletes what the source has not).
fn data_dir(r: &mut Reader, volume: &Utf8PathBuf) -> Utf8PathBuf {
    let usual = volume.join("pgdata");
    let Some(dir) = r.parsed("PGDATA", parse::directory) else { return usual };
    if dir == *volume {
        r.warn(
            "PGDATA",
            format_args!("is the volume itself; {usual} is used, and data at the root is moved there"),
        );
        return usual;
    }
    let ours = ["etcd", "pgherd"].map(|name| volume.join(name));
    if !dir.starts_with(volume) {
        r.wrong("PGDATA", format_args!("{dir}; expected a directory beneath DATA_VOLUME, which is {volume}"));
    } else if ours.iter().any(|own| dir.starts_with(own)) {
        r.wrong("PGDATA", format_args!("{dir}; expected a directory that is not pgherd's own"));
    }
    dir
}

/// Both or neither.
fn rest(r: &mut Reader) -> Access {
    let before = r.errors.len();
    let user = r.text("RESTAPI_USERNAME").filter(|user| !user.is_empty());
    let secret = r.secret("RESTAPI_PASSWORD");
    let password = secret.and_then(|value| String::from_utf8(value.to_vec()).ok()).map(SecretString::from);
    match (user, password) {
        (Some(user), _) if user.contains(':') => {
            r.wrong(
                "RESTAPI_USERNAME",
                "it holds a colon; expected a name that basic authentication can carry",
            );
        }
        (Some(user), Some(password)) => {
            return Access { basic: Some(Basic { user, password }), demands: None };
        }
        (Some(_), None) if r.errors.len() == before => {
            r.wrong("RESTAPI_PASSWORD", "not set; expected a password, because RESTAPI_USERNAME is set");
        }
        (None, Some(_)) => {
            r.wrong("RESTAPI_USERNAME", "not set; expected a name, because RESTAPI_PASSWORD is set");
        }
        (Some(_), None) | (None, None) => {}
    }
    Access::default()
}

fn password(r: &mut Reader, name: &'static str) -> Option<SecretString> {
    let before = r.errors.len();
    let Some(value) = r.secret(name) else {
        if r.errors.len() == before {
            r.wrong(name, format_args!("not set; expected a password (or {name}_FILE)"));
        }
        return None;
    };
    let n = value.len();
    let Ok(text) = std::str::from_utf8(&value) else {
        r.wrong(name, format_args!("{n} bytes that are not UTF-8; expected text"));
        return None;
    };
    // No password file, connection string or protocol message can carry these.
    if text.contains(['\0', '\n', '\r']) {
        r.wrong(name, format_args!("{n} bytes with a line break or NUL among them; expected one line"));
        return None;
    }
    Some(SecretString::from(text.to_owned()))
}

fn tls(r: &mut Reader, app: &str, database: Option<&Database>) -> Option<Tls> {
    let enabled = r.parsed("SSL_ENABLED", parse::switch).unwrap_or(false);
    let validity_days = r.parsed("SSL_CERT_VALIDITY_DAYS", parse::validity_days).unwrap_or(3650);
    let (extra_addresses, extra_names) = r.parsed("SSL_EXTRA_SANS", parse::sans).unwrap_or_default();
    let weak_is_fine = r.parsed("SSL_ALLOW_WEAK_PASSPHRASE", parse::switch).unwrap_or(false);
    let before = r.errors.len();
    let passphrase = r.secret("SSL_PASSPHRASE");
    match &passphrase {
        None if enabled && r.errors.len() == before => {
            r.wrong("SSL_PASSPHRASE", "not set; expected a passphrase, because SSL_ENABLED is true");
        }
        None => {}
        Some(passphrase) => {
            let severity = if weak_is_fine { Severity::Warning } else { Severity::Error };
            check_passphrase(r, passphrase, &others(app, database), severity);
        }
    }
    Some(Tls {
        clients: if enabled { ClientTls::Required } else { ClientTls::Offered },
        passphrase: passphrase.map(|p| SecretSlice::from(p.to_vec())),
        validity_days,
        extra_addresses,
        extra_names,
    })
}

/// What a passphrase must not contain.
fn others(app: &str, database: Option<&Database>) -> Vec<Zeroizing<Vec<u8>>> {
    use secrecy::ExposeSecret as _;
    let bytes = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
    let passwords = database.into_iter().flat_map(|d| [&d.superuser_password, &d.replication_password]);
    let mut all: Vec<_> = passwords.map(|p| bytes(p.expose_secret())).collect();
    all.push(bytes(app));
    all
}

#[derive(Clone, Copy)]
enum Severity {
    Error,
    Warning,
}

fn check_passphrase(r: &mut Reader, passphrase: &[u8], others: &[Zeroizing<Vec<u8>>], severity: Severity) {
    const NAME: &str = "SSL_PASSPHRASE";
    let n = passphrase.len();
    let others: Vec<&[u8]> = others.iter().map(|other| other.as_slice()).collect();
    match (passphrase::judge(passphrase, &others), severity) {
        (Strength::Good, _) => {}
        (Strength::Short, _) => r.warn(NAME, format_args!("{n} bytes; 20 or more random ones are safe")),
        (Strength::Weak(why), Severity::Warning) => r.warn(NAME, format_args!("{n} bytes, weak: {why}")),
        (Strength::Weak(why), Severity::Error) => r.wrong(
            NAME,
            format_args!(
                "{n} bytes, weak: {why}; expected 20 or more random ones, or SSL_ALLOW_WEAK_PASSPHRASE=true"
            ),
        ),
    }
    let is_blank = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_whitespace);
    if is_blank(passphrase.first()) || is_blank(passphrase.last()) {
        r.warn(NAME, "begins or ends with a blank, which counts");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VARIABLES;

    #[test]
    fn the_table_lists_what_is_read_and_nothing_else() {
        let mut reader = Reader::new(std::iter::empty());
        assert!(everything(&mut reader).is_none());
        let listed: Vec<&str> = VARIABLES.iter().map(|v| v.name).collect();
        for name in reader.asked() {
            assert!(listed.contains(name), "{name} is read and not in the table");
        }
        for name in listed {
            assert!(reader.asked().contains(name), "{name} is in the table and not read");
        }
    }

    #[test]
    fn loopback_is_recognised_in_a_url() {
        for yes in ["http://127.0.1.9:80/x", "http://localhost:1", "https://[::1]:9", "http://u:p@127.0.0.1"]
        {
            assert!(on_loopback(yes), "{yes}");
        }
        for no in ["https://api.runonflux.io", "http://127.0.0.1.example.org", "http://[2001:db8::1]", "x"] {
            assert!(!on_loopback(no), "{no}");
        }
    }

    #[test]
    fn polling_is_quick_where_it_costs_nothing() {
        let seconds = |network, surroundings| poll_every(network, surroundings).as_secs();
        assert_eq!(seconds(Network::Auto, Surroundings::Nearby), 5);
        assert_eq!(seconds(Network::Auto, Surroundings::Unknown), 30);
        assert_eq!(seconds(Network::Local, Surroundings::Unknown), 5);
        assert_eq!(seconds(Network::Global, Surroundings::Nearby), 30);
    }
}
