//! What a failure costs: outage and lost writes per kind of failure under a steady writer (one insert per 10 ms), the
//! time until a new cluster streams, and what an idle replica's own two processes use.
//!
//! `cargo bench --bench failover [-- RUNS]` prints one line per run and one JSON object at the end. Faults are the ends
//! of processes, so sockets are closed by the kernel; a lost machine adds the clients' own timeouts.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a program that measures on a developer's machine: a panic is how it fails"
)]

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the harness of the cluster tests; a measurement needs a part of it")]
mod support;

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgherd::clock;
use serde_json::{Value, json};

use support::{Cluster, FORMED, Setup, eventually};

/// Long enough for a lease to run out, with room.
const REPAIR: Duration = Duration::from_secs(60);
/// How long idle processes are watched.
const IDLE: Duration = Duration::from_secs(30);

/// What is done to the primary.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL of the postmaster.
    KillPostgres,
    /// SIGKILL of every process of the node.
    KillNode,
    /// SIGTERM of `init`.
    StopNode,
    /// `POST /switchover` at the leader.
    Switchover,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let runs = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(3);
    let mut result = serde_json::Map::new();
    for (name, fault) in [
        ("kill_postgres", Fault::KillPostgres),
        ("kill_node", Fault::KillNode),
        ("stop_node", Fault::StopNode),
        ("switchover", Fault::Switchover),
    ] {
        let mut outages = Vec::new();
        let mut lost = 0;
        for _run in 0..runs {
            let (outage, missing) = measure(fault).await;
            eprintln!("{name}: outage {:.3} s, {missing} acknowledged writes lost", outage.as_secs_f64());
            outages.push(outage);
            lost += missing;
        }
        result.insert(name.to_owned(), json!({ "outage_seconds": summary(outages), "lost": lost }));
    }
    result.insert("formed_seconds".to_owned(), summary(formations(runs).await));
    result.insert("idle_replica".to_owned(), footprint().await);
    println!("{}", Value::Object(result));
}

/// One cluster, one fault: how long no write was confirmed, and how many confirmed ones are gone.
async fn measure(fault: Fault) -> (Duration, usize) {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.all_stream(FORMED).await;
    let writer = cluster.writer();
    rows(&cluster, leader, 100).await;

    let at = clock::now();
    let new = match fault {
        Fault::KillPostgres => {
            kill(cluster.node(leader).postmaster().unwrap(), Signal::SIGKILL).unwrap();
            cluster.writable(None, REPAIR).await
        }
        Fault::KillNode => {
            cluster.node(leader).kill_tree();
            cluster.node(leader).reap();
            cluster.writable(Some(leader), REPAIR).await
        }
        Fault::Switchover => {
            switch_over(&cluster, leader).await;
            cluster.writable(Some(leader), REPAIR).await
        }
        Fault::StopNode => {
            cluster.node(leader).terminate();
            let new = cluster.writable(Some(leader), REPAIR).await;
            assert_eq!(cluster.node(leader).exit_code(REPAIR).await, Some(0));
            new
        }
    };
    rows(&cluster, new, 50).await;
    let report = writer.finish(cluster.target(new)).await;
    (report.outage_at(at), report.lost.len())
}

/// Asks the leader to hand over to anybody, and waits for its answer.
async fn switch_over(cluster: &Cluster, leader: u8) {
    let url = format!("http://{}:8008", cluster.address(leader));
    let client = reqwest::Client::builder().no_proxy().timeout(REPAIR).build().unwrap();
    let page = client.get(format!("{url}/patroni")).send().await.unwrap().text().await.unwrap();
    let page: Value = serde_json::from_str(&page).unwrap();
    let body = json!({ "leader": page["patroni"]["name"] }).to_string();
    let answer = client.post(format!("{url}/switchover")).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
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

/// Memory and processor time of `init` and `node` on a replica that nobody uses.
async fn footprint() -> Value {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.all_stream(FORMED).await;
    let replica = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    let pids = ["init", "node"].map(|word| cluster.node(replica).process(word));
    let before: u64 = pids.iter().map(|pid| ticks(*pid)).sum();
    tokio::time::sleep(IDLE).await;
    let used = pids.iter().map(|pid| ticks(*pid)).sum::<u64>() - before;
    let resident: u64 = pids.iter().map(|pid| resident_kib(*pid)).sum();
    // A tick is a hundredth of a second, so ticks per second are percent of a core.
    json!({ "rss_mib": round(resident as f64 / 1024.0), "cpu_percent": round(used as f64 / IDLE.as_secs_f64()) })
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
