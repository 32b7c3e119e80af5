//! The configuration: raw environment in, typed [`Config`] out.
//!
//! Invariant: every mistake is reported at once, with the variable, the shape of its value and what is expected; no
//! message and no `Debug` output holds a secret. This is the only module that reads the environment, and each
//! variable stands in one table ([`VARIABLES`]) from which README's is printed.
//! What is absent: the dynamic configuration, which lives in the store after bootstrap.

mod guard;
mod parse;
mod passphrase;
pub mod patroni;
mod programs;
mod read;
mod reader;
mod remote;
mod timing;
mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use camino::Utf8PathBuf;
use secrecy::{SecretSlice, SecretString};

use crate::api::access::Access;
use crate::ha::callbacks::Programs;
use crate::ha::remote::Remote;
use crate::ha::rules::{Outlast, Strictness, Tags};
use crate::ha::watchdog::Guard;
use crate::postgres::ClientTls;
use crate::process::WatchdogDevice;
use crate::tls::REPLICATION_ROLE;
use crate::types::{NodeName, Ports, SyncMode};
use crate::{discovery, log, postgres, proxy};

pub use programs::newest_postgres;
pub use timing::{EtcdTiming, Network, TimingChoice};
pub use variables::{Kind, VARIABLES, Variable, markdown_table};

/// Where the official image keeps scripts for the first start.
const INIT_SCRIPTS: &str = "/docker-entrypoint-initdb.d";

/// Everything that the environment says.
#[derive(Debug, Clone)]
pub struct Config {
    /// `APP_NAME`: the scope in the store and the name in the location API.
    pub app: String,
    /// `LISTEN_ADDRESS`: what every port is bound to.
    pub listen: IpAddr,
    /// The ports that are bound.
    pub bound: Ports,
    /// The ports that other nodes and clients reach (`HOST_*`).
    pub advertised: Ports,
    /// `RUN_DIR`.
    pub run_dir: Utf8PathBuf,
    /// `DATA_VOLUME`.
    pub data_volume: Utf8PathBuf,
    /// `NODE_NAME`.
    pub node_name: Option<NodeName>,
    /// Who may exist, and who we are.
    pub discovery: discovery::Config,
    /// `NETWORK`, `TTL`, `LOOP_WAIT`, `RETRY_TIMEOUT`, `PRUNE_AFTER`: resolved when the addresses are known.
    pub timing: TimingChoice,
    /// How the cluster behaves at bootstrap (afterwards the store says).
    pub ha: Ha,
    /// Certificates.
    pub tls: Tls,
    /// What PostgreSQL is told; [`Config::postgres`] makes the instance's configuration of it.
    pub database: Database,
    /// `PROXY_*`; `None`: no proxy.
    pub proxy: Option<Proxy>,
    /// `RESTAPI_USERNAME` and `RESTAPI_PASSWORD`.
    pub rest: Access,
    /// Log output.
    pub log: Log,
    /// `SHUTDOWN_TIMEOUT`: all that an orderly stop may take.
    pub stop_budget: Duration,
    /// `RESTART_NODE`.
    pub restart_node: RestartNode,
    /// `PATH`, where programs are looked for.
    pub search_path: Vec<Utf8PathBuf>,
}

/// `SYNCHRONOUS_MODE` and its kin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ha {
    /// `SYNCHRONOUS_MODE`.
    pub sync_mode: SyncMode,
    /// `SYNCHRONOUS_MODE_STRICT`.
    pub strictness: Strictness,
    /// `SYNCHRONOUS_NODE_COUNT`.
    pub sync_node_count: u32,
    /// `FAILSAFE_MODE`.
    pub outlast: Outlast,
    /// `MAXIMUM_LAG_ON_FAILOVER`, in bytes.
    pub maximum_lag_on_failover: u64,
    /// `TAG_NOFAILOVER` and the other tags.
    pub tags: Tags,
    /// `CALLBACK_ON_START` and its kin.
    pub callbacks: Programs,
    /// `PRE_PROMOTE`.
    pub pre_promote: Option<Utf8PathBuf>,
    /// `WATCHDOG_MODE` and `WATCHDOG_SAFETY_MARGIN`.
    pub watchdog: Guard,
    /// `WATCHDOG_DEVICE`.
    pub watchdog_device: WatchdogDevice,
    /// `RESERVE`.
    pub reserve: Option<postgres::Reserve>,
    /// `STANDBY_HOST` and its kin.
    pub remote: Option<Remote>,
    /// `STANDBY_APP_NAME`.
    pub remote_app: Option<String>,
}

/// `PROXY_*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// What it listens on.
    pub ports: proxy::Ports,
    /// `PROXY_SOCKET_DIR`.
    pub socket_dir: Option<Utf8PathBuf>,
    /// `PROXY_MAX_LAG`, in bytes.
    pub max_lag: u64,
}

/// What `init` does when `node` has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartNode {
    /// Start it again.
    Restart,
    /// End with its exit code.
    Exit,
}

/// `SSL_*`.
#[derive(Debug, Clone)]
pub struct Tls {
    /// `SSL_ENABLED`.
    pub clients: ClientTls,
    /// `SSL_PASSPHRASE` as raw bytes; without one the keys come from the two passwords.
    pub passphrase: Option<SecretSlice<u8>>,
    /// `SSL_CERT_VALIDITY_DAYS` (CA).
    pub validity_days: u32,
    /// Addresses of `SSL_EXTRA_SANS`.
    pub extra_addresses: Vec<IpAddr>,
    /// Names of `SSL_EXTRA_SANS`.
    pub extra_names: Vec<String>,
}

/// `POSTGRES_*` and `PGDATA`.
#[derive(Debug, Clone)]
pub struct Database {
    /// `PGDATA`.
    pub data_dir: Utf8PathBuf,
    /// `PG_BINDIR`.
    pub bin_dir: Option<Utf8PathBuf>,
    /// `POSTGRES_SUPERUSER_PASSWORD`.
    pub superuser_password: SecretString,
    /// `POSTGRES_REPLICATION_PASSWORD`.
    pub replication_password: SecretString,
    /// `POSTGRES_USER`.
    pub superuser: String,
    /// `POSTGRES_DB`.
    pub name: String,
    /// `POSTGRES_INITDB_ARGS`.
    pub initdb_args: Vec<String>,
    /// `POSTGRES_PARAMETERS`.
    pub parameters: BTreeMap<String, String>,
    /// `POSTGRES_HBA`.
    pub hba: Vec<String>,
    /// `IMPORT_URL`.
    pub import: Option<postgres::Source>,
}

/// `LOG_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// `LOG_FORMAT`.
    pub format: log::Format,
    /// `LOG_LEVEL`.
    pub level: tracing::Level,
}

/// What is known of this node only after start-up, for [`Config::postgres`].
#[derive(Debug, Clone)]
pub struct Identity {
    /// The member's name.
    pub name: NodeName,
    /// The account that PostgreSQL runs as.
    pub run_as: crate::process::RunAs,
    /// Where `postgres` is ([`Config::bin_dir`]).
    pub bin_dir: Utf8PathBuf,
}

impl Config {
    /// Reads the process's own environment.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_env() -> Result<(Self, Vec<Warning>), Errors> {
        Self::read(std::env::vars_os())
    }

    /// How lines look where the rest of the environment cannot be used.
    pub fn log_format() -> log::Format {
        read::log_format(&mut reader::Reader::new(std::env::vars_os()))
    }

    /// Reads an environment.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn read(vars: impl Iterator<Item = (OsString, OsString)>) -> Result<(Self, Vec<Warning>), Errors> {
        read::config(vars)
    }

    /// `<RUN_DIR>/tls`: where etcd's and PostgreSQL's certificates and keys are written.
    pub fn tls_dir(&self) -> Utf8PathBuf {
        self.run_dir.join("tls")
    }

    /// `<DATA_VOLUME>/pgherd`: node id, record, quarantine. Beside PGDATA, never in it.
    pub fn state_dir(&self) -> Utf8PathBuf {
        self.data_volume.join("pgherd")
    }

    /// `<DATA_VOLUME>/etcd`.
    pub fn etcd_dir(&self) -> Utf8PathBuf {
        self.data_volume.join("etcd")
    }

    /// What a local client connects to: the listen address, or loopback when it is a wildcard.
    pub fn local_address(&self) -> IpAddr {
        match self.listen {
            IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            listen @ (IpAddr::V4(_) | IpAddr::V6(_)) => listen,
        }
    }

    /// What anybody on the internet can reach without TLS, when that is so: told at every start.
    pub fn exposure(&self, address: IpAddr) -> Option<Warning> {
        match self.tls.clients {
            ClientTls::Required => None,
            ClientTls::Offered if timing::is_private(&address) => None,
            ClientTls::Offered => Some(Warning(format!(
                "SSL_ENABLED: false on the public address {address}: clients of PostgreSQL (port {}) may log in without \
                 TLS, and the status API (port {}) answers in clear text",
                self.advertised.postgres, self.advertised.api
            ))),
        }
    }

    /// Where `postgres` is: `PG_BINDIR`, else the newest of `/usr/lib/postgresql/*/bin`, else beside the `postgres` of
    /// `PATH`.
    pub fn bin_dir(&self) -> Option<Utf8PathBuf> {
        let beside = || Some(self.program("postgres")?.parent()?.to_owned());
        self.database.bin_dir.clone().or_else(newest_postgres).or_else(beside)
    }

    /// A program of `PATH`.
    pub fn program(&self, name: &str) -> Option<Utf8PathBuf> {
        programs::find(&self.search_path, name)
    }

    /// The instance's configuration.
    pub fn postgres(&self, identity: Identity) -> postgres::Config {
        let database = &self.database;
        postgres::Config {
            bin_dir: identity.bin_dir,
            data_dir: database.data_dir.clone(),
            state_dir: self.state_dir(),
            run_dir: self.run_dir.clone(),
            tls_dir: self.tls_dir(),
            run_as: identity.run_as,
            listen: self.listen.to_string(),
            port: self.bound.postgres,
            advertised_port: self.advertised.postgres,
            name: identity.name,
            superuser_password: database.superuser_password.clone(),
            replication_password: database.replication_password.clone(),
            superuser: database.superuser.clone(),
            database: database.name.clone(),
            replication_user: REPLICATION_ROLE.to_owned(),
            initdb_args: database.initdb_args.clone(),
            parameters: database.parameters.clone(),
            hba: database.hba.clone(),
            tls_required: self.tls.clients,
            init_scripts: INIT_SCRIPTS.into(),
            premises: postgres::Premises::Container,
            import: database.import.clone(),
            foreign_login: match &self.ha.remote_app {
                Some(_) => postgres::ForeignLogin::Certificate,
                None => postgres::ForeignLogin::Password,
            },
        }
    }
}

/// The person's editor: the system's variables, hence not in the table.
pub fn editor() -> String {
    let named = ["VISUAL", "EDITOR"].iter().filter_map(|name| std::env::var_os(name)?.into_string().ok());
    named.into_iter().find(|editor| !editor.trim().is_empty()).unwrap_or_else(|| "vi".to_owned())
}

/// The variables of the table that are set, with `hidden` in the place of every secret.
pub fn set_variables(hidden: &str) -> BTreeMap<&'static str, String> {
    let set = VARIABLES.iter().filter_map(|variable| {
        let value = std::env::var_os(variable.name)?;
        let shown = match variable.kind {
            Kind::Plain => value.to_string_lossy().into_owned(),
            Kind::Secret => hidden.to_owned(),
        };
        Some((variable.name, shown))
    });
    set.collect()
}

/// Something odd that does not stop the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(pub String);

/// Every mistake found, one a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Errors(pub Vec<String>);
