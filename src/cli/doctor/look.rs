//! The facts, one question after another; a question without an answer is a fact, too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use reqwest::Method;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::judge::{Door, Facts, Greeting, Memory, Slot};
use crate::cli::Api;
use crate::cli::ctl::client::{Cluster, Errand, Member, Picture};
use crate::cli::ctl::query::Session;
use crate::clock;
use crate::config::Config;
use crate::peer::{NodeStatus, StorePart};
use crate::postgres::salvage;

/// A round trip across the world with lost packets.
const DOOR_PATIENCE: Duration = Duration::from_secs(4);
/// Where a container's memory limit stands: cgroup v2, and v1.
const LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
/// The database that every server has.
const DATABASE: &str = "postgres";
const SLOTS: &str = "SELECT slot_name, active::text, coalesce(wal_status, ''), \
    coalesce(greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0), 0)::bigint::text FROM pg_replication_slots";
const MEMORY: &str = "SELECT pg_size_bytes(current_setting('shared_buffers'))::text, current_setting('max_connections'), \
    pg_size_bytes(current_setting('work_mem'))::text";
const MD5: &str = "SELECT rolname FROM pg_authid WHERE rolpassword LIKE 'md5%' ORDER BY 1";

/// Looks at everything; or tells why this node's API does not answer.
///
/// # Errors
/// The node's secrets cannot be used.
pub(super) async fn look(config: &Config) -> anyhow::Result<Result<Facts, String>> {
    let cluster = Cluster::new(&Api { url: None }, Some(config), Errand::Act)?;
    let picture = match cluster.picture().await {
        Ok(picture) => picture,
        Err(error) => return Ok(Err(format!("{error:#}"))),
    };
    let page = async |path: &str| cluster.get(path).await.unwrap_or(Value::Null);
    let own = page("/patroni").await;
    let others = others(&picture, &own);
    let (greetings, with_etcd) = greetings(&cluster, &others).await;
    Ok(Ok(Facts {
        own,
        why: page("/why").await,
        metrics: metrics(&cluster).await,
        doors: doors(config, &others, &with_etcd).await,
        greetings,
        slots: slots(config, &picture).await.map_err(|error| format!("{error:#}")),
        memory: memory(config).await.map_err(|error| format!("{error:#}")),
        // Who does not answer has been asked for its memory too, and says why there.
        md5: md5(config).await.unwrap_or_default(),
        cluster: picture.page,
        kept_wal: kept_wal(config),
    }))
}

async fn metrics(cluster: &Cluster) -> BTreeMap<String, f64> {
    let answer = cluster.call(None, (Method::GET, "/metrics"), None).await;
    answer.map(|answer| first_samples(&answer.text)).unwrap_or_default()
}

/// The first sample of every metric.
fn first_samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        if let Some(value) = line.rsplit(' ').next().and_then(|value| value.parse().ok()) {
            samples.entry(name.to_owned()).or_insert(value);
        }
    }
    samples
}

/// Every member but this node, whose own address may not be reachable from within.
fn others<'a>(picture: &'a Picture, own: &Value) -> Vec<&'a Member> {
    let name = own.pointer("/patroni/name").and_then(Value::as_str);
    picture.members.iter().filter(|member| Some(member.name()) != name).collect()
}

/// Every port of these members. Those of etcd are taken to be the same on every node, as the variables have it; not every node
/// runs one.
async fn doors(config: &Config, members: &[&Member], with_etcd: &BTreeSet<String>) -> Vec<Door> {
    let mut attempts = JoinSet::new();
    for member in members {
        let Some((host, postgres)) = member.address() else { continue };
        let api = member.api_port().unwrap_or(config.advertised.api);
        let of_etcd = [
            ("etcd for clients", config.advertised.etcd_client),
            ("etcd for peers", config.advertised.etcd_peer),
        ];
        let of_etcd = of_etcd.into_iter().filter(|_| with_etcd.contains(member.name()));
        for (what, port) in [("PostgreSQL", postgres), ("the API", api)].into_iter().chain(of_etcd) {
            let (member, host) = (member.name().to_owned(), host.clone());
            attempts.spawn(async move {
                let reached = knock(&host, port).await;
                Door { member, what, address: format!("{host}:{port}"), reached }
            });
        }
    }
    attempts.join_all().await
}

async fn knock(host: &str, port: u16) -> Result<Duration, String> {
    let began = clock::now();
    match timeout(DOOR_PATIENCE, TcpStream::connect((host, port))).await {
        Ok(Ok(_connected)) => Ok(clock::now().since(began)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err(format!("no answer in {DOOR_PATIENCE:?}")),
    }
}

/// Each of these members is asked what only members may ask; and which of them run an etcd.
async fn greetings(cluster: &Cluster, members: &[&Member]) -> (Vec<Greeting>, BTreeSet<String>) {
    let (mut greetings, mut with_etcd) = (Vec::new(), BTreeSet::new());
    for member in members {
        let name = member.name().to_owned();
        let greeted = greet(cluster, member).await.map_err(|error| format!("{error:#}"));
        // Of one that does not answer it is not known; most do.
        if greeted.as_ref().map_or(true, |(_, part)| matches!(part, StorePart::Learner | StorePart::Voter)) {
            with_etcd.insert(name.clone());
        }
        greetings.push(Greeting { member: name, ahead: greeted.map(|(ahead, _part)| ahead) });
    }
    (greetings, with_etcd)
}

async fn greet(cluster: &Cluster, member: &Member) -> anyhow::Result<(Option<f64>, StorePart)> {
    let began = clock::wall();
    let answer = cluster.call(Some(member), (Method::GET, "/v1/status"), None).await?;
    anyhow::ensure!(answer.is_success(), "{} {}", answer.code, answer.text);
    let middle = (began.as_millisecond() + clock::wall().as_millisecond()) as f64 / 2000.0;
    // The header tells whole seconds, cut off: on average half of one has passed.
    let status: NodeStatus = serde_json::from_str(&answer.text).context("it answers like no node of ours")?;
    Ok((answer.date.map(|date| date.as_second() as f64 + 0.5 - middle), status.store.part))
}

async fn slots(config: &Config, picture: &Picture) -> anyhow::Result<Vec<Slot>> {
    let leader = picture.leader().context("there is no primary to ask")?;
    let (host, port) = leader.address().context("the primary has not said how it is reached")?;
    let rows = Session::open(config, (&host, port), DATABASE).await?.rows(SLOTS).await?;
    let slot = |row: Vec<String>| {
        let [name, active, wal, keeps] = row.try_into().ok()?;
        Some(Slot { name, active: active == "true", wal, keeps: keeps.parse().ok()? })
    };
    Ok(rows.into_iter().filter_map(slot).collect())
}

/// Asks this node's own server.
async fn here(config: &Config, query: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let own = (&*config.local_address().to_string(), config.bound.postgres);
    Session::open(config, own, DATABASE).await?.rows(query).await
}

async fn md5(config: &Config) -> anyhow::Result<Vec<String>> {
    Ok(here(config, MD5).await?.into_iter().flatten().collect())
}

async fn memory(config: &Config) -> anyhow::Result<Memory> {
    let rows = here(config, MEMORY).await?;
    let numbers: Option<Vec<u64>> =
        rows.into_iter().next().and_then(|row| row.iter().map(|cell| cell.parse().ok()).collect());
    let [buffers, connections, work] = numbers
        .and_then(|numbers| numbers.try_into().ok())
        .context("PostgreSQL does not tell its settings")?;
    Ok(Memory { limit: memory_limit(), buffers, connections, work })
}

/// In the order of their times.
fn kept_wal(config: &Config) -> Vec<String> {
    let place = config.state_dir().join(salvage::PLACE);
    let entries = place.read_dir_utf8().into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<String> = entries.map(|entry| entry.into_path().into_string()).collect();
    paths.sort_unstable();
    paths
}

/// What this container may use, or what the machine has.
fn memory_limit() -> u64 {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        kib.trim().trim_end_matches(" kB").parse::<u64>().ok()?.checked_mul(1024)
    });
    LIMITS.iter().filter_map(|path| number(path)).chain(machine).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read() {
        let text = "# HELP a b\na{scope=\"x y\",n=\"1\"} 2.5\na{scope=\"z\"} 3\nb 1e3\nc NaN\nnonsense\n";
        let samples = first_samples(text);
        assert_eq!((samples["a"], samples["b"]), (2.5, 1000.0));
        assert!(samples["c"].is_nan() && !samples.contains_key("nonsense"));
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_limit() > 1 << 20);
    }
}
