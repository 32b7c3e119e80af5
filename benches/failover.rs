//! What a failure costs: outage and lost writes per kind of failure under a steady writer (one insert per 10 ms), the
//! time until a new cluster streams, and what an idle replica's own two processes use.
//!
//! `cargo bench --bench failover [-- RUNS] [NAME...]` prints one line per run and one JSON object at the end; names of faults,
//! of modes, `bare`, `formed` and `idle` choose a part; `soak` strikes one cluster RUNS times at random (only when named;
//! `SEED=n` repeats the choice). Faults are the ends of processes, so sockets are closed by
//! the kernel; a lost machine adds the clients' own timeouts. `bare` is PostgreSQL alone: SIGKILL, start, first insert.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a program that measures on a developer's machine: a panic is how it fails"
)]

#[path = "failover/bare.rs"]
mod bare;
#[path = "failover/soak.rs"]
mod soak;
#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the harness of the cluster tests; a measurement needs a part of it")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgherd::clock;
use serde_json::{Value, json};

use support::{Cluster, FORMED, Setup, eventually};

/// Long enough for a lease to run out, with room.
const REPAIR: Duration = Duration::from_secs(60);
/// What a formation leaves to do (etcd's last voters, slots, the first checkpoint) is done after this time.
const SETTLED: Duration = Duration::from_secs(30);
/// How long idle processes are watched.
const IDLE: Duration = Duration::from_secs(30);

/// What is done to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL of the postmaster.
    KillPostgres,
    /// SIGKILL of every process of the node.
    KillNode,
    /// The same while its etcd leads the store.
    KillNodeWithStore,
    /// SIGKILL of our own `node` process alone.
    KillAgent,
    /// SIGTERM of `init`.
    StopNode,
    /// `POST /switchover`.
    Switchover,
}

/// The faults by name, in the order in which they are measured.
const FAULTS: &[(&str, Fault)] = &[
    ("kill_postgres", Fault::KillPostgres),
    ("switchover", Fault::Switchover),
    ("stop_node", Fault::StopNode),
    ("kill_node", Fault::KillNode),
    ("kill_node_with_store", Fault::KillNodeWithStore),
    ("kill_agent", Fault::KillAgent),
];
/// How commits wait, as `SYNCHRONOUS_MODE` has it.
const MODES: &[&str] = &["quorum", "off"];

/// One fault: what it cost.
#[derive(Debug)]
struct Cost {
    /// How long no write was confirmed.
    outage: Duration,
    /// Confirmed writes that are gone.
    lost: usize,
    /// What the node itself said before it: the rest of the lease and the time for an election.
    promised: Option<Duration>,
}

/// `[RUNS] [NAME...]`: so many of each, of these faults and modes only.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let runs = words.iter().find_map(|word| word.parse().ok()).unwrap_or(3);
    let wanted = |name: &str, all: &[&str]| {
        !words.iter().any(|word| all.contains(&word.as_str())) || words.iter().any(|word| word == name)
    };
    let faults: Vec<&str> =
        FAULTS.iter().map(|(name, _)| *name).chain(["formed", "idle", "bare", "soak"]).collect();
    let mut result = serde_json::Map::new();
    for mode in MODES.iter().filter(|mode| wanted(mode, MODES)) {
        for (name, fault) in FAULTS.iter().filter(|(name, _)| wanted(name, &faults)) {
            let costs = measure(name, *fault, mode, runs).await;
            result.insert(format!("{name} {mode}"), report(&costs));
        }
    }
    if wanted("bare", &faults) {
        result.insert("bare crash recovery".to_owned(), summary(bare::crash_recoveries(runs).await));
    }
    if wanted("formed", &faults) {
        result.insert("formed".to_owned(), summary(formations(runs).await));
    }
    if wanted("idle", &faults) {
        result.insert("idle".to_owned(), footprint().await);
    }
    if words.iter().any(|word| word == "soak") {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(rand::random);
        result.insert("soak".to_owned(), soak::blows(runs, seed).await);
    }
    println!("{:#}", Value::Object(result));
}

fn report(costs: &[Cost]) -> Value {
    let outages = costs.iter().map(|cost| cost.outage).collect();
    let mut report = json!({
        "outage_seconds": summary(outages),
        "lost": costs.iter().map(|cost| cost.lost).sum::<usize>(),
    });
    let late = costs.iter().filter_map(|cost| Some(cost.outage.as_secs_f64() - cost.promised?.as_secs_f64()));
    if let Some(worst) = late.reduce(f64::max) {
        report["beyond_lease_and_300_ms"] = json!(round(worst));
    }
    report
}

/// One cluster, one fault after the other, each on a cluster that is whole again.
async fn measure(name: &str, fault: Fault, mode: &str, runs: u32) -> Vec<Cost> {
    let mut cluster = Cluster::formed(Setup::three().env("SYNCHRONOUS_MODE", mode)).await;
    let mut costs = Vec::new();
    for _run in 0..runs {
        if mode == "quorum" {
            cluster.can_fail_over(REPAIR).await
        } else {
            cluster.all_stream(REPAIR).await
        };
        // A postmaster that has not run for ten seconds counts as one that does not hold.
        tokio::time::sleep(Duration::from_secs(11)).await;
        let cost = strike(&mut cluster, fault).await;
        eprintln!("{name} {mode}: {cost:?}");
        costs.push(cost);
    }
    costs
}

async fn strike(cluster: &mut Cluster, fault: Fault) -> Cost {
    let leader = cluster.all_stream(REPAIR).await;
    let writer = cluster.writer();
    rows(cluster, leader, 100).await;
    let mut promised = None;
    if fault == Fault::KillNodeWithStore {
        cluster.lead_store(leader).await;
    }
    if matches!(fault, Fault::KillNode | Fault::KillNodeWithStore) {
        promised = cluster.forecast(leader).await;
    }
    let at = clock::now();
    let new = inflict(cluster, fault, leader).await;
    rows(cluster, new, 50).await;
    let report = writer.finish(cluster.target(new)).await;
    if cluster.node(leader).is_gone() {
        cluster.start_node(leader);
    }
    Cost { outage: report.outage_at(at), lost: report.lost.len(), promised }
}

/// Does it, and waits for a node that takes writes.
async fn inflict(cluster: &mut Cluster, fault: Fault, leader: u8) -> u8 {
    match fault {
        Fault::KillPostgres => {
            kill(cluster.node(leader).postmaster().unwrap(), Signal::SIGKILL).unwrap();
            cluster.writable(None, REPAIR).await
        }
        Fault::KillNode | Fault::KillNodeWithStore => {
            cluster.node(leader).kill_tree();
            cluster.node(leader).reap();
            cluster.writable(Some(leader), REPAIR).await
        }
        Fault::KillAgent => {
            kill(cluster.node(leader).process("node"), Signal::SIGKILL).unwrap();
            cluster.writable(None, REPAIR).await
        }
        Fault::StopNode => {
            cluster.node(leader).terminate();
            let new = cluster.writable(Some(leader), REPAIR).await;
            assert_eq!(cluster.node(leader).exit_code(REPAIR).await, Some(0));
            new
        }
        Fault::Switchover => {
            switch_over(cluster, leader).await;
            cluster.writable(Some(leader), REPAIR).await
        }
    }
}

/// Asks a leader to hand over to whomever is fit.
async fn switch_over(cluster: &Cluster, leader: u8) {
    let url = format!("http://{}:8008/switchover", cluster.address(leader));
    let body = json!({ "leader": format!("n{leader}") });
    let client = reqwest::Client::builder().no_proxy().timeout(REPAIR).build().unwrap();
    let answer = client.post(url).json(&body).send().await.unwrap();
    assert!(answer.status().is_success(), "{} {:?}", answer.status(), answer.text().await);
}

/// Waits until the writer has got so many more rows into the table.
async fn rows(cluster: &Cluster, node: u8, more: i64) {
    let count = async || cluster.sql(node, "SELECT count(*) FROM writes").await.ok()?.parse::<i64>().ok();
    let before = count().await.unwrap_or(0);
    let enough = eventually(REPAIR, async || count().await.filter(|now| *now >= before + more)).await;
    assert!(enough.is_some(), "the writer does not get on");
}

/// From the start of the processes until one leads and two stream.
async fn formations(runs: u32) -> Vec<Duration> {
    let mut times = Vec::new();
    for _run in 0..runs {
        let cluster = Cluster::formed(Setup::three()).await;
        times.push(clock::now().since(cluster.started));
        eprintln!("formed: {:.3} s", times.last().unwrap().as_secs_f64());
    }
    times
}

/// Memory, processor time and wake-ups of `init` and `node` in a cluster that nobody uses.
async fn footprint() -> Value {
    let mut cluster = Cluster::formed(Setup::three()).await;
    cluster.all_stream(FORMED).await;
    tokio::time::sleep(SETTLED).await;
    let leader = cluster.all_stream(FORMED).await;
    let replica = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    let processes = [("leader", leader), ("replica", replica)].map(|(role, node)| {
        ["init", "node"].map(|word| (format!("{role}'s {word}"), cluster.node(node).process(word)))
    });
    let processes = processes.as_flattened();
    let look = || -> Vec<_> { processes.iter().map(|(_, pid)| (ticks(*pid), wake_ups(*pid))).collect() };
    let before = look();
    tokio::time::sleep(IDLE).await;
    let per_second = |now: u64, then: u64| round((now - then) as f64 / IDLE.as_secs_f64());
    let mut report = serde_json::Map::new();
    for (((what, pid), now), then) in processes.iter().zip(look()).zip(before) {
        let figures = json!({
            "rss_mib": round(resident_kib(*pid) as f64 / 1024.0),
            // A tick is a hundredth of a second, so ticks per second are percent of a core.
            "cpu_percent": per_second(now.0, then.0),
            "wake_ups_per_second": per_second(woken(&now.1, &then.1), 0),
        });
        report.insert(what.clone(), figures);
    }
    Value::Object(report)
}

/// How often each of its threads has gone to sleep by itself: each time something had woken it.
fn wake_ups(pid: Pid) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(Result::ok);
    let count = |text: String| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    threads
        .filter_map(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).ok()?;
            Some((thread.file_name().into_string().ok()?, count(status)?))
        })
        .collect()
}

/// How often since then. What a thread did that has ended meanwhile is not known.
fn woken(now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>) -> u64 {
    now.iter().map(|(thread, n)| n - then.get(thread).unwrap_or(&0)).sum()
}

fn resident_kib(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// User and system time of the process itself: its children are PostgreSQL and etcd.
fn ticks(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let words: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    words[11..=12].iter().map(|word| word.parse::<u64>().unwrap()).sum()
}

fn summary(mut times: Vec<Duration>) -> Value {
    times.sort();
    let at = |index: usize| round(times[index].as_secs_f64());
    json!({ "median": at(times.len() / 2), "min": at(0), "max": at(times.len() - 1), "n": times.len() })
}

fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
