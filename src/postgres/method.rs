//! Copies that an administrator's own command makes: `create_replica_methods` of agent mode.
//!
//! Invariant: a directory that such a command has half filled is never taken for data: a marker of its own stands from before the
//! command begins until what it has made was looked at.

use tracing::warn;

use super::clone::{COPY_LIMIT, by_base_backup, make_dir, put_aside, put_wal_aside, remove_tree};
use super::{Config, Error, Machine, Premises, Shared, Upstream, conf, control, lock, marker};
use crate::process::{Command, RunAs};
use crate::types::Chain;

/// Where a command finds programs, after those of the server's version.
pub(super) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a replica gets its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// pg_basebackup.
    Basebackup,
    /// The administrator's command.
    Custom(Method),
}

impl ReplicaMethod {
    /// The command, if it needs no member to copy from.
    pub fn alone(&self) -> Option<&Method> {
        match self {
            Self::Custom(method) if method.source == Source::Anywhere => Some(method),
            Self::Custom(_) | Self::Basebackup => None,
        }
    }
}

/// A command that makes a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method {
    /// Its name in the file.
    pub name: String,
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// What it is told besides.
    pub told: Told,
    /// What becomes of the data that is there.
    pub old_data: OldData,
    /// Where the data comes from.
    pub source: Source,
}

/// Where a command has its data from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From the member that it is told.
    Member,
    /// From elsewhere, if it must (`no_leader`).
    Anywhere,
}

/// What a command is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Nothing (`no_params` of a replica's method).
    Nothing,
    /// These keys and values (`no_params` of a method of `bootstrap`).
    Keys(Vec<(String, String)>),
    /// Where the data goes and where it comes from, and these keys and values.
    Everything(Vec<(String, String)>),
}

impl Told {
    /// As arguments, behind these.
    pub(super) fn args(&self, usual: &[(&str, &str)]) -> Vec<String> {
        let (usual, keys) = match self {
            Self::Nothing => (&[][..], &[][..]),
            Self::Keys(keys) => (&[][..], keys.as_slice()),
            Self::Everything(keys) => (usual, keys.as_slice()),
        };
        let keys = keys.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        usual.iter().copied().chain(keys).map(|(key, value)| format!("--{key}={value}")).collect()
    }
}

/// What becomes of the data that is there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldData {
    /// It is put aside: the command finds an empty directory.
    PutAside,
    /// The command begins with it (`keep_data`).
    Kept,
}

/// The ways to copy from there, in the order in which they are tried. Of another cluster's data `standby_cluster` says how.
pub(super) fn chosen(shared: &Shared, machine: &Machine, upstream: &Upstream) -> Vec<ReplicaMethod> {
    if upstream.foreign.is_none() {
        return machine.replica_methods.clone();
    }
    let names = lock(&shared.configuration).remote_methods();
    let known = |name: &String| match name.as_str() {
        "basebackup" => Some(ReplicaMethod::Basebackup),
        _ => {
            let method = machine.methods.iter().find(|method| method.name == *name).cloned();
            if method.is_none() {
                warn!(
                    name,
                    "standby_cluster.create_replica_methods names a method that the file does not have"
                );
            }
            method.map(ReplicaMethod::Custom)
        }
    };
    names.iter().filter_map(known).collect()
}

/// Tries each method in turn until one works. The caller has set the marker.
pub(super) async fn copy(
    shared: &Shared,
    upstream: &Upstream,
    methods: &[ReplicaMethod],
) -> Result<(), Error> {
    let Some((method, others)) = methods.split_first() else { return by_base_backup(shared, upstream).await };
    let made = match method {
        ReplicaMethod::Basebackup => by_base_backup(shared, upstream).await,
        ReplicaMethod::Custom(method) => by_command(shared, Some(upstream), method).await,
    };
    match made {
        Err(error) if !others.is_empty() => {
            warn!(error = %Chain(&error), "a way to copy the data has failed: trying the next");
            Box::pin(copy(shared, upstream, others)).await
        }
        Ok(()) | Err(_) => made,
    }
}

/// Tries each method that needs nobody, until one works.
pub(super) async fn copy_alone(shared: &Shared) -> Result<(), Error> {
    let methods = match &shared.config.premises {
        Premises::Container => &[][..],
        Premises::Machine(machine) => &machine.replica_methods,
    };
    let mut failed = Error::NoMethod;
    for method in methods.iter().filter_map(ReplicaMethod::alone) {
        match by_command(shared, None, method).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                warn!(method = method.name, error = %Chain(&error), "a way to copy the data has failed");
                failed = error;
            }
        }
    }
    Err(failed)
}

async fn by_command(shared: &Shared, upstream: Option<&Upstream>, method: &Method) -> Result<(), Error> {
    let data_dir = &shared.config.data_dir;
    match method.old_data {
        OldData::PutAside => put_aside(shared).await?,
        OldData::Kept => put_wal_aside(shared).await,
    }
    make_place(shared)?;
    // From here on PGDATA is neither what it was nor a copy, whatever is found in it.
    marker::set(shared, marker::FILL).await?;
    let command = command(&shared.config, upstream, method);
    let made = match control::run(&command, "a command for replicas", COPY_LIMIT).await {
        Ok(_output) => {
            make_dir(shared, data_dir)?;
            control::read(shared, data_dir).await.map(|_control| ())
        }
        Err(error) => Err(error),
    };
    if made.is_err() && method.old_data == OldData::PutAside {
        remove_tree(data_dir).await?;
    }
    made
}

/// Many a command makes the directory itself, and takes one that is there for somebody's data. Where it runs under another account
/// than ours, only we may make it.
pub(super) fn make_place(shared: &Shared) -> Result<(), Error> {
    match shared.config.run_as {
        RunAs::Same => Ok(()),
        RunAs::Account(_) => make_dir(shared, &shared.config.data_dir),
    }
}

fn command(config: &Config, upstream: Option<&Upstream>, method: &Method) -> Command {
    let scope = match &config.premises {
        Premises::Machine(machine) => machine.cluster_name.as_str(),
        Premises::Container => config.name.as_str(),
    };
    let connstring = upstream.map(|upstream| conf::conninfo(config, upstream, "pgherd_clone"));
    let connstring = connstring.unwrap_or_default();
    let usual = [
        ("scope", scope),
        ("role", "replica"),
        ("datadir", config.data_dir.as_str()),
        ("connstring", connstring.as_str()),
    ];
    Command::new(&method.name, method.program.as_str())
        .args(method.args.iter().cloned())
        .args(method.told.args(&usual))
        .env("PATH", format!("{}:{SEARCH_PATH}", config.bin_dir))
        .env("PGPASSFILE", conf::passfile(config).as_str())
        .env("LC_ALL", "C")
        .of_administrator(&config.run_as)
}
