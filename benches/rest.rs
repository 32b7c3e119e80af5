//! What the REST API gives beside stock Patroni's: requests per second and the slowest one in a hundred at 16 connections, by
//! `wrk`, in one run on one machine; and whether memory stays flat over many requests.
//!
//! `cargo bench --bench rest [-- SECONDS [REQUESTS]]`: so long for each page (5), so many for the memory (1,000,000). Both are
//! members of one cluster on one etcd, with the same file; each page is asked of a member that answers it with 200.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a program that measures on a developer's machine: a panic is how it fails"
)]

#[expect(dead_code, reason = "shared with the tests of agent mode, which ask more")]
#[path = "../tests/support/client.rs"]
mod client;
#[expect(dead_code, reason = "shared with the tests of clusters, which ask more")]
#[path = "../tests/support/patroni.rs"]
mod patroni;
#[expect(dead_code, reason = "shared with the tests of agent mode, which do more")]
#[path = "../tests/agent/stand.rs"]
mod stand;
#[expect(dead_code, reason = "shared with the tests of agent mode, which ask more")]
#[path = "../tests/support/wait.rs"]
mod wait;
#[expect(dead_code, reason = "shared with the tests of agent mode, which write")]
#[path = "../tests/support/writer.rs"]
mod writer;

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Map, Value, json};

use patroni::Patroni;
use stand::{By, Stand};

/// As many as a busy load balancer opens.
const CONNECTIONS: &str = "-c16";
const OURS: u8 = 1;
const THEIRS: u8 = 2;

/// What `wrk` saw.
#[derive(Debug, Clone, Copy)]
struct Seen {
    per_second: f64,
    p99_seconds: f64,
    requests: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let seconds = numbers.first().copied().unwrap_or(5);
    let many = numbers.get(1).copied().unwrap_or(1_000_000);
    let Some(theirs) = Patroni::installed() else { return };
    let mut stand = Stand::new("false", Some(theirs)).await;
    stand.start(OURS, By::Pgherd);
    stand.leads(OURS).await;
    stand.start(THEIRS, By::Patroni);
    stand.streams(OURS, 2).await;
    let ask = |member: u8, page: &str| wrk(&format!("http://{}:8008/{page}", stand.ip(member)), seconds);

    let mut ours: BTreeMap<&str, Seen> =
        ["primary", "cluster", "metrics"].into_iter().map(|page| (page, ask(OURS, page))).collect();
    let mut theirs = BTreeMap::from([("replica", ask(THEIRS, "replica"))]);
    let memory = memory(&stand, many);
    stand.switchover(OURS, THEIRS).await;
    stand.leads(THEIRS).await;
    stand.streams(THEIRS, 2).await;
    ours.insert("replica", ask(OURS, "replica"));
    theirs.extend(["primary", "cluster", "metrics"].into_iter().map(|page| (page, ask(THEIRS, page))));

    let pages = ours.iter().map(|(page, seen)| ((*page).to_owned(), beside(*seen, theirs[page])));
    println!("{:#}", json!({ "pages": pages.collect::<Map<String, Value>>(), "memory": memory }));
    stand.end().await;
}

fn beside(ours: Seen, theirs: Seen) -> Value {
    let round = |value: f64| (value * 100.0).round() / 100.0;
    json!({
        "requests_per_second": { "pgherd": ours.per_second.round(), "patroni": theirs.per_second.round() },
        "times_as_many": round(ours.per_second / theirs.per_second),
        "p99_milliseconds": { "pgherd": round(ours.p99_seconds * 1e3), "patroni": round(theirs.p99_seconds * 1e3) },
        "p99_part": round(ours.p99_seconds / theirs.p99_seconds),
    })
}

/// Resident memory of our process before and after many requests, after it has been warm.
fn memory(stand: &Stand, many: u64) -> Value {
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", stand.pid(OURS))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let (before, mut asked, mut kib) = (resident(), 0, Vec::new());
    let pages = ["primary", "cluster", "metrics", "replica?lag=1MB"];
    for page in pages.iter().cycle() {
        asked += wrk(&format!("http://{}:8008/{page}", stand.ip(OURS)), 10).requests;
        kib.push(resident());
        if asked >= many {
            break;
        }
    }
    json!({ "requests": asked, "resident_kib_before": before, "resident_kib_after_each_ten_seconds": kib })
}

fn wrk(url: &str, seconds: u64) -> Seen {
    let output = Command::new("wrk")
        .args(["-t2", CONNECTIONS, "--latency", &format!("-d{seconds}s"), url])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    eprintln!("{text}");
    let word_after = |key: &str| {
        let line =
            text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().next().unwrap().to_owned()
    };
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    Seen {
        per_second: word_after("Requests/sec:").parse().unwrap(),
        p99_seconds: duration(&word_after("99%")),
        requests: requests.unwrap(),
    }
}

/// `310.00us`, `1.20ms`, `2.1s`.
fn duration(text: &str) -> f64 {
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap();
    let factor = match &text[unit..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        other => panic!("{other}"),
    };
    text[..unit].parse::<f64>().unwrap() * factor
}
