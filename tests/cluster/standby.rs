//! Two clusters, one of which follows the other: on real processes, from the copy to the day on which they change parts.

use std::path::PathBuf;
use std::time::Duration;

use crate::patroni::Patroni;
use crate::patronictl::Tool;
use crate::support::{Cluster, FORMED, Setup, eventually};

/// For what takes moments.
const SOON: Duration = Duration::from_secs(30);

/// The name of the application that both clusters and their certificates are of.
const APP: &str = "test";

fn of(nodes: u8, followed: Option<String>) -> Setup {
    let setup = Setup { nodes, ..Setup::three() }.env("STANDBY_APP_NAME", APP);
    let setup = setup.env("SSL_ENABLED", "true").env("SSL_PASSPHRASE", "p8fK-2mZq-7TxV-w3Lr-9cHd");
    followed.into_iter().fold(setup, |setup, host| setup.env("STANDBY_HOST", &host))
}

/// The part that a node's own page says it plays.
async fn part(cluster: &Cluster, node: u8) -> Option<String> {
    Some(cluster.page(node, "patroni").await?.1["role"].as_str()?.to_owned())
}

/// Waits until a node of the cluster leads it as a standby and every other one streams from it.
async fn follows(cluster: &Cluster) -> u8 {
    let nodes = cluster.numbers();
    let settled = eventually(FORMED, async || {
        let members = cluster.members().await;
        let streaming = members.iter().filter(|m| m.role == "replica" && m.state == "streaming").count();
        for node in &nodes {
            let leads = part(cluster, *node).await.as_deref() == Some("standby_leader");
            if leads && streaming + 1 == nodes.len() {
                return Some(*node);
            }
        }
        None
    });
    match settled.await {
        Some(node) => node,
        None => panic!("no standby leader with streaming replicas: {:#?}", cluster.members().await),
    }
}

/// Waits until a query has this answer on a node.
async fn shows(cluster: &Cluster, node: u8, query: &str, expected: &str) {
    let mut last = String::new();
    let seen = eventually(SOON, async || {
        last = cluster.sql(node, query).await.unwrap_or_else(|error| format!("{error}"));
        (last == expected).then_some(())
    });
    let seen = seen.await;
    assert!(seen.is_some(), "{query} on node {node}: {last}, expected {expected}");
}

fn succeeds(output: &std::process::Output) {
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn a_cluster_follows_another_one_takes_over_and_is_followed_in_turn() {
    let first = Cluster::start(of(1, None)).await;
    assert_eq!(first.all_stream(FORMED).await, 1);
    first.sql(1, "CREATE TABLE t AS SELECT 1 AS x; SELECT 1").await.unwrap();
    let id = "SELECT system_identifier::text FROM pg_control_system()";
    let identity = first.sql(1, id).await.unwrap();

    let mut second = Cluster::beside(&first, of(2, Some(first.address(1))));
    let leader = follows(&second).await;
    let other = 3 - leader;
    for node in [leader, other] {
        shows(&second, node, "SELECT max(x)::text FROM t", "1").await;
        assert_eq!(second.sql(node, id).await.unwrap(), identity);
        assert!(
            second.sql(node, "CREATE TABLE w (); SELECT 1").await.is_err(),
            "a standby cluster takes no writes"
        );
    }
    for (path, expected) in
        [("standby-leader", 200), ("leader", 200), ("read-only", 200), ("primary", 503), ("replica", 503)]
    {
        assert_eq!(second.page(leader, path).await.unwrap().0, expected, "{path}");
    }
    // What confirms commits there is not what is called the same here.
    let named = "SELECT string_agg(application_name, ',') FROM pg_stat_replication";
    shows(&first, 1, named, &format!("pgherd_standby_n{leader}")).await;

    // The lead changes hands in it without a stop, and without a promotion.
    let to = format!("n{other}");
    succeeds(&second.exec(leader, &["switchover", "--candidate", &to, "--force"]));
    assert_eq!(follows(&second).await, other);
    first.sql(1, "INSERT INTO t VALUES (2); SELECT 1").await.unwrap();
    shows(&second, leader, "SELECT max(x)::text FROM t", "2").await;

    // Its death is no reason for another part, and none for a promotion.
    let postmaster = second.node(other).postmaster().unwrap();
    nix::sys::signal::kill(postmaster, nix::sys::signal::Signal::SIGKILL).unwrap();
    first.sql(1, "INSERT INTO t VALUES (3); SELECT 1").await.unwrap();
    for node in [other, leader] {
        shows(&second, node, "SELECT max(x)::text FROM t", "3").await;
    }
    assert_eq!(follows(&second).await, other);
    assert_ne!(second.node(other).postmaster(), Some(postmaster));
    let orphans = second.metric(other, "pgherd_reaped_orphans_total").await;
    assert!(orphans.is_some_and(|n| n >= 2.0), "its backends were nobody's children: {orphans:?}");

    they_change_parts((&first, 1), (&second, other), (By::Pgherd, 4)).await;
    // And back: now it is a timeline of the second one's own that must be shown to be in the first one's log.
    let by = Patroni::installed().and_then(|patroni| patroni.program("patronictl", None));
    let by = by.map_or(By::Pgherd, By::Patronictl);
    they_change_parts((&second, other), (&first, 1), (by, 5)).await;
    shows(&second, leader, "SELECT string_agg(x::text, ',' ORDER BY x) FROM t", "1,2,3,4,5").await;
}

/// Who is told to.
enum By {
    Pgherd,
    Patronictl(PathBuf),
}

/// The one stops taking writes, the other begins to, and the one follows it: nothing is lost, and nothing is copied.
async fn they_change_parts((from, old): (&Cluster, u8), (to, new): (&Cluster, u8), (by, row): (By, u32)) {
    let host = to.address(new);
    let insert = format!("INSERT INTO t VALUES ({row}); SELECT 1");
    let demote = ["demote-cluster", "--host", &host, "--force"];
    match &by {
        By::Pgherd => succeeds(&from.exec(old, &demote)),
        By::Patronictl(program) => {
            drop(Tool::new((from, old), program.clone()).says(&demote, &["cluster is successfully demoted"]))
        }
    }
    assert!(from.sql(old, &insert).await.is_err());
    match &by {
        By::Pgherd => succeeds(&to.exec(new, &["promote-cluster", "--force"])),
        By::Patronictl(program) => {
            let promote = ["promote-cluster", "--force"];
            let tool = Tool::new((to, new), program.clone());
            tool.says(&promote, &["cluster is successfully promoted"]);
            let (code, again) = tool.asked(&promote, "");
            assert!(code == Some(1) && again.contains("already in the required state"), "{again}");
        }
    }
    assert!(to.is_writable(new).await);
    to.sql(new, &insert).await.unwrap();
    shows(from, old, "SELECT max(x)::text FROM t", &row.to_string()).await;
    assert_eq!(part(from, old).await.as_deref(), Some("standby_leader"));
    assert!(!from.exec(old, &demote).status.success(), "it is one already");
}
