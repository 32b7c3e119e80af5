//! What is different where the server is an administrator's and not ours: agent mode, which runs what Patroni ran.
//!
//! In a container the socket, the certificates, the access rules and the roles are pgherd's. On a machine they are what
//! Patroni's file and the server's own files say: pgherd writes there what Patroni writes there, so that either can go on where
//! the other has ended.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use secrecy::SecretString;

use super::method::{Method, ReplicaMethod};
use super::origin::Origin;
use super::{Config, Error, Postgres, clone, conf, lock, settings};

/// Patroni's copy of the dynamic configuration, in the data directory.
pub const DYNAMIC: &str = "patroni.dynamic.json";

/// Whose the server is.
#[derive(Debug, Clone)]
pub enum Premises {
    /// A container's: everything about it is pgherd's.
    Container,
    /// A machine's.
    Machine(Box<Machine>),
}

/// What an administrator's file says of the server.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where postgresql.conf and its kin are.
    pub config_dir: Utf8PathBuf,
    /// Included instead of the file that initdb or a package made.
    pub custom_conf: Option<Utf8PathBuf>,
    /// `cluster_name`: the scope.
    pub cluster_name: String,
    /// How this process reaches the server.
    pub local: Local,
    /// Where the passwords of libpq's clients are written.
    pub passfile: Utf8PathBuf,
    /// Lines of pg_ident.conf, until something else is asked for.
    pub ident: Vec<String>,
    /// What libpq is told of the replication role beyond its name.
    pub replication_options: BTreeMap<String, String>,
    /// The role that pg_rewind connects as.
    pub rewind: Login,
    /// Lines that a new cluster's pg_hba.conf gets at its end.
    pub bootstrap_hba: Vec<String>,
    /// How replicas get their data, in the order in which it is tried; none: by pg_basebackup.
    pub replica_methods: Vec<ReplicaMethod>,
    /// Every command that a list of methods may name.
    pub methods: Vec<Method>,
    /// Options of pg_basebackup.
    pub basebackup: Vec<String>,
    /// What makes a new cluster in the place of initdb.
    pub origin: Option<Origin>,
    /// Run before every stop in order, in words; it cannot prevent it.
    pub before_stop: Vec<String>,
    /// Run once after the birth of a cluster, with the connection URL as its last argument.
    pub bootstrap_script: Vec<String>,
}

/// What an administrator's file says of the server's settings: it may change while the server runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSettings {
    /// Parameters.
    pub parameters: BTreeMap<String, String>,
    /// Lines of pg_hba.conf.
    pub hba: Vec<String>,
    /// Lines of pg_ident.conf.
    pub ident: Vec<String>,
}

/// A role, its password, and how libpq is to connect as it.
#[derive(Debug, Clone)]
pub struct Login {
    /// The role.
    pub user: String,
    /// Empty: none is sent.
    pub password: SecretString,
    /// `sslmode`, `sslrootcert` and their kin, in libpq's words.
    pub options: BTreeMap<String, String>,
}

/// How this process reaches its own server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// By this host.
    Tcp(String),
    /// Through the socket in this directory.
    Socket(Utf8PathBuf),
}

/// What only agent mode asks of it.
impl Postgres {
    /// Keeps the dynamic configuration in the data directory, where it is an administrator's: Patroni, and an agent of ours, go by it
    /// when the store has lost it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn keep_dynamic(&self, config: serde_json::Value) -> Result<(), Error> {
        match &self.shared.config.premises {
            Premises::Container => Ok(()),
            Premises::Machine(_) => conf::write_dynamic(&self.shared, &config).await,
        }
    }

    /// Takes what this node asks for by itself, in the place of what it has asked for so far.
    pub fn ask(&self, node: NodeSettings) {
        lock(&self.shared.configuration).ask(node);
    }

    /// A copy by the methods of the file that need no member to copy from.
    ///
    /// # Errors
    /// PostgreSQL runs; none of them works.
    pub async fn copy_alone(&self) -> Result<(), Error> {
        clone::copy_alone(&self.shared).await
    }
}

impl Config {
    /// Who else than the cluster may set something.
    pub(super) fn owner(&self) -> settings::Owner {
        match self.premises {
            Premises::Container => settings::Owner::Pgherd,
            Premises::Machine(_) => settings::Owner::Administrator,
        }
    }

    /// Where postgresql.conf and its kin are.
    pub(super) fn config_dir(&self) -> &Utf8PathBuf {
        match &self.premises {
            Premises::Container => &self.data_dir,
            Premises::Machine(machine) => &machine.config_dir,
        }
    }

    /// What this node asks for by itself at first.
    pub(super) fn node_settings(&self) -> NodeSettings {
        let ident = match &self.premises {
            Premises::Container => Vec::new(),
            Premises::Machine(machine) => machine.ident.clone(),
        };
        NodeSettings { parameters: self.parameters.clone(), hba: self.hba.clone(), ident }
    }

    /// How this process reaches the server.
    pub(super) fn local(&self) -> Local {
        match &self.premises {
            Premises::Container => Local::Socket(self.run_dir.clone()),
            Premises::Machine(machine) => machine.local.clone(),
        }
    }
}
