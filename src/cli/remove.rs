//! `pgherd remove`: what a cluster has left in the store goes, as by patronictl's verb of that name. Its data directories stay.
//!
//! Invariant: there is no way around the questions. The cluster of this very environment is never removed while a member of it
//! lives: without its keys a standby that lacks commits could be elected, and what is left over belongs to the dead.

use std::time::Duration;

use anyhow::bail;
use camino::Utf8PathBuf;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ctl::ask::typed;
use super::ctl::{Json, say};
use super::{Printed, credentials};
use crate::config::Config;
use crate::config::patroni::Agent;
use crate::dcs::etcd::{EtcdConfig, EtcdStore, ReadyKey};
use crate::dcs::{Dcs as _, Error, Snapshot};
use crate::node::machine;

/// Nothing is written under a lease here.
const NO_LEASE: Duration = Duration::from_secs(30);
/// What patronictl asks to be typed.
const AWARE: &str = "Yes I am aware";

/// Options of `remove`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The cluster (this node's, if nothing is said)
    #[arg(value_name = "CLUSTER")]
    pub cluster: Option<String>,
    /// In the etcd that this configuration of Patroni's names, instead of this node's
    #[arg(long, value_name = "FILE")]
    pub file: Option<Utf8PathBuf>,
    /// How the outcome is told.
    #[command(flatten)]
    pub json: Json,
}

/// Where a cluster's keys are.
#[derive(Debug)]
pub struct Place {
    store: EtcdConfig,
    endpoints: Vec<String>,
    /// Whose environment this is.
    own: String,
}

impl Place {
    /// The etcd of this node.
    ///
    /// # Errors
    /// The keys cannot be derived.
    pub fn of_node(config: &Config) -> anyhow::Result<Self> {
        let shown = credentials::own_bundle(config)?.etcd_client;
        let store = EtcdConfig {
            scope: config.app.clone(),
            namespace: "service".to_owned(),
            tls: Some(watch::channel(shown).1),
            login: None,
            ready: ReadyKey::NotNeeded,
            ttl: NO_LEASE,
        };
        let at = std::net::SocketAddr::new(config.local_address(), config.bound.etcd_client);
        Ok(Self { store, endpoints: vec![format!("https://{at}")], own: config.app.clone() })
    }

    /// The etcd of an agent's file.
    ///
    /// # Errors
    /// A file that it names cannot be read.
    pub fn of_agent(config: &Agent) -> anyhow::Result<Self> {
        let store = machine::store_config(config)?;
        Ok(Self { store, endpoints: config.etcd.endpoints.clone(), own: config.scope.clone() })
    }
}

/// Asks, and removes.
///
/// # Errors
/// The store cannot be reached, there is no such cluster, it is in use, or somebody did not mean it.
pub async fn run(args: &Args, place: Place) -> anyhow::Result<Printed> {
    let scope = args.cluster.clone().unwrap_or_else(|| place.own.clone());
    if scope.is_empty() || scope.contains('/') {
        bail!("{scope:?} is no name of a cluster");
    }
    let is_own = scope == place.own;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let endpoints = watch::channel(place.endpoints).1;
    let config = EtcdConfig { scope: scope.clone(), ..place.store };
    let store = EtcdStore::new(config, endpoints, &mut tasks, stop.clone());
    let (seen, n) = (store.snapshot().await?, store.n_keys().await?);
    if n == 0 {
        bail!("there is nothing of a cluster {scope} in the store");
    }
    if let Some(why) = is_own.then(|| in_use(&seen)).flatten() {
        bail!("{why}");
    }
    for (what, word) in questions(&scope, &seen) {
        typed(&what, &word)?;
    }
    let removed = store.remove_scope(&seen).await.map_err(|error| {
        let what = told(&error);
        anyhow::Error::new(error).context(what)
    })?;
    let n = removed.unwrap_or(n);
    stop.cancel();
    say(
        args.json,
        &format!("{scope} is gone from the store: {n} keys"),
        &json!({ "removed": scope, "keys": n }),
    )
}

/// What became of a removal that failed.
fn told(error: &Error) -> &'static str {
    match error {
        Error::Conflict { .. } | Error::Rejected(_) => "nothing was removed",
        Error::Unreachable(_) => "whether it was removed is unknown: ask again",
    }
}

/// Why the cluster that this environment is of must stay.
fn in_use(seen: &Snapshot) -> Option<String> {
    let mut names: Vec<&str> = seen.members.iter().map(|member| member.name.as_str()).collect();
    // A leader whose own entry has not been written yet lives as well.
    let leader = seen.leader_name().map(crate::types::NodeName::as_str);
    names.extend(leader.filter(|name| seen.members.iter().all(|member| member.name.as_str() != *name)));
    (!names.is_empty()).then(|| {
        let names = names.join(", ");
        format!("{names}: alive, and their data is safe by these keys only: stop them first")
    })
}

/// What is asked, and the answer that it takes.
fn questions(scope: &str, seen: &Snapshot) -> Vec<(String, String)> {
    let mut all = vec![
        ("Type the name of the cluster that shall be removed: ".to_owned(), scope.to_owned()),
        (
            format!("Everything that the store knows of {scope} will be deleted.\nType {AWARE} to go on: "),
            AWARE.to_owned(),
        ),
    ];
    if let Some(leader) = seen.leader_name() {
        // Not shown: who does not know it takes this cluster for another one.
        all.push((format!("{scope} is led. Type the leader's name to go on: "), leader.to_string()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::dcs::{Leader, Readiness};
    use crate::types::{LeaseId, NodeName, Revision};

    #[test]
    fn a_leader_without_an_entry_of_its_own_is_alive() {
        let name = NodeName::from("n0");
        let mut seen = Snapshot {
            taken: clock::now(),
            readiness: Readiness::Ready,
            initialize: None,
            leader: Some(Leader { name, lease: LeaseId(1), revision: Revision(9) }),
            members: Vec::new(),
            config: None,
            status: None,
            history: None,
            sync: None,
            failover: None,
            failsafe: None,
        };
        assert!(in_use(&seen).is_some_and(|why| why.contains("alive")));
        seen.leader = None;
        assert_eq!(in_use(&seen), None);
    }
}
