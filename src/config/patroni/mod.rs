//! Patroni's configuration file, read for agent mode: raw YAML and `PATRONI_*` variables in, a typed [`Agent`] out.
//!
//! Invariants: every mistake is reported at once, with the path of the key and what is expected; a key that Patroni knows
//! and pgherd does not use is named in a warning, one that must not be ignored in an error ([`keys`]), and so is one that
//! nobody knows; no message holds a secret.
//! What is absent: the dynamic configuration. `bootstrap.dcs` goes to the store as it stands.

mod headers;
mod keys;
mod logging;
mod overlay;
mod read;
mod section;

use std::collections::BTreeMap;
use std::ffi::OsString;

use axum::http::HeaderMap;
use camino::{Utf8Path, Utf8PathBuf};
use secrecy::SecretString;
use serde_json::{Map, Value};

use super::{Errors, Warning};
use crate::api::access::Access;
use crate::ha::callbacks::{Program, Programs};
use crate::ha::watchdog::Guard;
use crate::log;
use crate::postgres::method::{Method, ReplicaMethod};
use crate::postgres::origin::Origin;
use crate::postgres::{Local, Login};
use crate::process::WatchdogDevice;
use crate::types::NodeName;

/// Everything that the file and the `PATRONI_*` variables say.
#[derive(Debug, Clone)]
pub struct Agent {
    /// `name`.
    pub name: NodeName,
    /// `scope`: the cluster.
    pub scope: String,
    /// `namespace`: where in the store the clusters are.
    pub namespace: String,
    /// `restapi`.
    pub api: Api,
    /// `ctl`: what is shown to the REST API of other members.
    pub calls: Calls,
    /// `etcd3`.
    pub etcd: Etcd,
    /// `bootstrap`.
    pub bootstrap: Bootstrap,
    /// `postgresql`.
    pub postgres: Postgres,
    /// `tags`, as they stand.
    pub tags: Map<String, Value>,
    /// `watchdog`: whether a leader needs it, and by how much it is earlier than the lease.
    pub watchdog: Guard,
    /// `watchdog.device` and `watchdog.driver`.
    pub watchdog_device: WatchdogDevice,
    /// `log`.
    pub log: log::Config,
    /// `PATH`, where programs are looked for.
    search_path: String,
}

/// An address as it is written in the file: a name or an IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// `restapi`.
#[derive(Debug, Clone)]
pub struct Api {
    /// `listen`.
    pub listen: HostPort,
    /// `connect_address`.
    pub connect: HostPort,
    /// `certfile` and `keyfile`; `None`: plain HTTP.
    pub tls: Option<ApiTls>,
    /// `authentication`, `allowlist` and their kin.
    pub access: Access,
    /// `http_extra_headers` and their kin.
    pub headers: HeaderMap,
}

/// The API's certificate, and whom it asks for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiTls {
    /// `certfile`.
    pub certificate: Utf8PathBuf,
    /// `keyfile`, or `certfile` again.
    pub key: Utf8PathBuf,
    /// `cafile`.
    pub ca: Option<Utf8PathBuf>,
    /// `verify_client`.
    pub clients: VerifyClient,
}

/// `restapi.verify_client`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyClient {
    /// No certificate is asked for.
    #[default]
    Never,
    /// For what changes something.
    ForChanges,
    /// For everything.
    Always,
}

/// `ctl`: how the API of another member is called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Calls {
    /// `cacert`.
    pub ca: Option<Utf8PathBuf>,
    /// `certfile` and `keyfile`.
    pub certificate: Option<(Utf8PathBuf, Utf8PathBuf)>,
}

/// `etcd3`.
#[derive(Debug, Clone)]
pub struct Etcd {
    /// URLs made of `host`, `hosts` or `url`.
    pub endpoints: Vec<String>,
    /// `cacert`.
    pub ca: Option<Utf8PathBuf>,
    /// `cert` and `key`.
    pub certificate: Option<(Utf8PathBuf, Utf8PathBuf)>,
    /// `username` and `password`.
    pub login: Option<(String, SecretString)>,
}

/// `bootstrap`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bootstrap {
    /// `dcs`: what a new cluster begins with in the store.
    pub dcs: Map<String, Value>,
    /// `initdb`, as arguments.
    pub initdb: Vec<String>,
    /// `pg_hba`: for a new cluster, when `postgresql.pg_hba` says nothing.
    pub hba: Vec<String>,
    /// `method`: the command that makes a new cluster in the place of initdb.
    pub origin: Option<Origin>,
    /// `post_bootstrap` or `post_init`, in words: a command that gets the connection URL.
    pub script: Vec<String>,
}

/// `postgresql`.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// The hosts of `listen`, as `listen_addresses` has them.
    pub listen: String,
    /// The port of `listen`.
    pub port: u16,
    /// `connect_address`.
    pub connect: HostPort,
    /// `data_dir`.
    pub data_dir: Utf8PathBuf,
    /// `config_dir`, or `data_dir`.
    pub config_dir: Utf8PathBuf,
    /// `bin_dir`.
    pub bin_dir: Option<Utf8PathBuf>,
    /// `pgpass`.
    pub pgpass: Option<Utf8PathBuf>,
    /// `database`.
    pub database: String,
    /// `authentication.superuser`.
    pub superuser: Login,
    /// `authentication.replication`.
    pub replication: Login,
    /// `authentication.rewind`, or the superuser.
    pub rewind: Login,
    /// `parameters` that a node may set for itself.
    pub parameters: BTreeMap<String, String>,
    /// `pg_hba`.
    pub hba: Vec<String>,
    /// `pg_ident`.
    pub ident: Vec<String>,
    /// `custom_conf`: included instead of the file that initdb made.
    pub custom_conf: Option<Utf8PathBuf>,
    /// What else this file says of the server, which wins over the store: `use_pg_rewind` and its kin.
    pub rules: Map<String, Value>,
    /// How this process reaches the server.
    pub local: Local,
    /// `callbacks`.
    pub callbacks: Programs,
    /// `create_replica_methods`, and the sections that they name.
    pub replica_methods: Vec<ReplicaMethod>,
    /// Every section that names a command: `standby_cluster` in the store may name it.
    pub methods: Vec<Method>,
    /// `basebackup`, as arguments.
    pub basebackup: Vec<String>,
    /// `pre_promote`.
    pub pre_promote: Option<Program>,
    /// `before_stop`, in words.
    pub before_stop: Vec<String>,
    /// `proxy_address`.
    pub proxy: Option<HostPort>,
}

impl Agent {
    /// Reads the file (or every `*.yml` of a directory, in the order of their names) and the process's environment.
    ///
    /// # Errors
    /// Every mistake in them.
    pub fn from_file(path: Option<&Utf8Path>) -> Result<(Self, Vec<Warning>), Errors> {
        Self::read(path, std::env::vars_os())
    }

    /// The same with this environment.
    ///
    /// # Errors
    /// Every mistake.
    pub fn read(
        path: Option<&Utf8Path>,
        vars: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Vec<Warning>), Errors> {
        let (ours, others): (Vec<_>, Vec<_>) = vars.partition(|(name, _)| name != "PATH");
        let search_path = others.into_iter().find_map(|(_, value)| value.into_string().ok());
        let mut section = overlay::load(path, ours.into_iter())?;
        let agent = read::agent(&mut section);
        let (mut agent, warnings) = section.finish(agent)?;
        agent.search_path = search_path.unwrap_or_default();
        Ok((agent, warnings))
    }

    /// Where pgherd keeps what it must remember, beside the data: `<data_dir>.pgherd`.
    pub fn state_dir(&self) -> Utf8PathBuf {
        Utf8PathBuf::from(format!("{}.pgherd", self.postgres.data_dir))
    }

    /// This one with what counts at once of another reading of the file; everything else counts at a start only.
    pub fn reloaded(&self, fresh: &Self) -> Self {
        let Postgres { parameters, hba, ident, rules, pre_promote, .. } = fresh.postgres.clone();
        let postgres = Postgres { parameters, hba, ident, rules, pre_promote, ..self.postgres.clone() };
        Self { tags: fresh.tags.clone(), postgres, ..self.clone() }
    }

    /// The sections in which another reading of the file differs.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let [ours, theirs] = [self.sections(), other.sections()];
        ours.iter().zip(&theirs).filter(|(our, their)| our != their).map(|((name, _), _)| *name).collect()
    }

    fn sections(&self) -> [(&'static str, String); 9] {
        [
            ("name, scope or namespace", format!("{:?}", (&self.name, &self.scope, &self.namespace))),
            ("log", format!("{:?}", self.log)),
            ("restapi", format!("{:?}", self.api)),
            ("ctl", format!("{:?}", self.calls)),
            ("etcd3", format!("{:?}", self.etcd)),
            ("bootstrap", format!("{:?}", self.bootstrap)),
            ("postgresql", format!("{:?}", self.postgres)),
            ("watchdog", format!("{:?}", (&self.watchdog, &self.watchdog_device))),
            ("tags", format!("{:?}", self.tags)),
        ]
    }

    /// Where `postgres` is: `bin_dir`, else beside the one of `PATH`, else the newest of the usual places.
    pub fn bin_dir(&self) -> Option<Utf8PathBuf> {
        let path: Vec<_> = self.search_path.split(':').map(Utf8PathBuf::from).collect();
        let beside = || Some(super::programs::find(&path, "postgres")?.parent()?.to_owned());
        self.postgres.bin_dir.clone().or_else(beside).or_else(super::programs::newest_postgres)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Agent {
        let vars = [("PATRONI_CONFIGURATION", text)].map(|(name, value)| (name.into(), value.into()));
        Agent::read(None, vars.into_iter()).unwrap_or_else(|errors| panic!("{errors}")).0
    }

    #[test]
    fn what_counts_at_a_start_only_stays_as_it_runs() {
        const RUNNING: &str = "
            {scope: s, name: n, restapi: {listen: '127.0.0.1:1', connect_address: '127.0.0.1:1'},
             etcd3: {host: '127.0.0.1:2'}, bootstrap: {dcs: {ttl: 30}}, watchdog: {mode: 'off'}, tags: {nosync: true},
             postgresql: {listen: '127.0.0.1:3', connect_address: '127.0.0.1:3', data_dir: /d,
               authentication: {superuser: {username: a}, replication: {username: b}}}}";
        let running = read(RUNNING);
        assert_eq!(running.reloaded(&running).differences(&running), Vec::<&str>::new());
        let fresh = read(
            &RUNNING
                .replace("ttl: 30", "ttl: 40")
                .replace("mode: 'off'", "mode: required")
                .replace("nosync: true", "nosync: false")
                .replace("scope: s", "scope: s, log: {level: DEBUG}")
                .replace(
                    "data_dir: /d",
                    "data_dir: /d, parameters: {work_mem: 5MB}, create_replica_methods: [own], own: {command: x, no_leader: 1}",
                ),
        );
        let next = running.reloaded(&fresh);
        assert_eq!(next.differences(&fresh), ["log", "bootstrap", "postgresql", "watchdog"]);
        assert_eq!(next.tags, fresh.tags);
        assert_eq!(next.postgres.parameters, fresh.postgres.parameters);
        assert_eq!(next.watchdog, running.watchdog);
        assert!(next.postgres.replica_methods.is_empty() && !fresh.postgres.replica_methods.is_empty());
    }
}
