//! Something dies, and nothing that was acknowledged is lost.

use std::cell::Cell;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use pgherd::clock;

use crate::support::writer::Report;
use crate::support::{Cluster, FORMED, Setup, eventually};

/// `NETWORK=local`.
const TTL: Duration = Duration::from_secs(10);
/// What is promised after the lease has run out.
const AFTER_TTL: Duration = Duration::from_secs(2);
/// Told from a wait for the lease; how fast it really is, `make bench` measures.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A cluster under a writer whose commits are confirmed by two nodes.
async fn written_to() -> (Cluster, u8, crate::support::writer::Writer) {
    let cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let writer = cluster.writer();
    wait_for_rows(&cluster, leader, 50).await;
    (cluster, leader, writer)
}

/// Waits until the writer has got this many rows more into the table.
pub(crate) async fn wait_for_rows(cluster: &Cluster, node: u8, more: i64) {
    let count = async || cluster.sql(node, "SELECT count(*) FROM writes").await.ok()?.parse::<i64>().ok();
    let before = count().await.unwrap_or(0);
    let enough =
        eventually(Duration::from_secs(20), async || count().await.filter(|now| *now >= before + more));
    assert!(enough.await.is_some(), "the writer does not get on");
}

/// Lets the writer go on for a while after the repair, and stops it.
pub(crate) async fn finish(cluster: &Cluster, primary: u8, writer: crate::support::writer::Writer) -> Report {
    wait_for_rows(cluster, primary, 20).await;
    let report = writer.finish(cluster.target(primary)).await;
    assert!(report.lost.is_empty(), "acknowledged and gone: {:?}", report.lost);
    report
}

#[tokio::test]
async fn a_killed_postmaster_is_restarted_in_place() {
    let (mut cluster, leader, writer) = written_to().await;
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    let before = cluster.sql(leader, timeline).await.unwrap();
    let old = cluster.node(leader).postmaster().unwrap();

    let killed_at = clock::now();
    nix::sys::signal::kill(old, nix::sys::signal::Signal::SIGKILL).unwrap();
    let back = eventually(Duration::from_secs(10), async || {
        (cluster.node(leader).postmaster()? != old && cluster.is_writable(leader).await).then_some(())
    });
    assert!(back.await.is_some(), "the postmaster does not come back");

    let report = finish(&cluster, leader, writer).await;
    assert!(report.outage_at(killed_at) <= AT_ONCE, "outage {:?}", report.outage_at(killed_at));
    assert_eq!(cluster.sql(leader, timeline).await.unwrap(), before, "a new timeline means a failover");
    assert_eq!(cluster.all_stream(FORMED).await, leader);
}

#[tokio::test]
async fn a_killed_node_is_replaced_within_the_lease_and_rejoins() {
    let (mut cluster, leader, writer) = written_to().await;
    let killed_at = clock::now();
    cluster.node(leader).kill_tree();
    cluster.node(leader).reap();

    let new = cluster.writable(Some(leader), TTL + AFTER_TTL).await;
    let report = finish(&cluster, new, writer).await;
    assert!(report.outage_at(killed_at) <= TTL + AFTER_TTL, "outage {:?}", report.outage_at(killed_at));

    cluster.start_node(leader);
    assert_ne!(cluster.all_stream(FORMED).await, leader);
}

/// The first that is elected may not be promoted: another one is, within the time that it stands back.
#[tokio::test]
async fn a_node_that_pre_promote_refuses_leaves_the_lead_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let (program, asked) = (dir.path().join("allowed"), dir.path().join("asked"));
    let script = format!("#!/bin/sh\nmkdir {} 2>/dev/null && exit 3\nexit 0\n", asked.display());
    std::fs::write(&program, script).unwrap();
    let open =
        |path: &std::path::Path| std::fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    [dir.path(), &program].into_iter().for_each(open);
    let setup = Setup::three().env("PRE_PROMOTE", program.to_str().unwrap());
    let mut cluster = Cluster::formed(setup).await;
    let leader = cluster.can_fail_over(FORMED).await;
    assert!(!asked.exists(), "a new cluster is nobody's promotion");

    cluster.node(leader).kill_tree();
    cluster.node(leader).reap();
    let new = cluster.writable(Some(leader), TTL + AFTER_TTL + AT_ONCE).await;
    assert!(asked.exists() && new != leader);
}

#[tokio::test]
async fn a_terminated_primary_hands_over() {
    let (mut cluster, leader, writer) = written_to().await;
    let told_at = clock::now();
    cluster.node(leader).terminate();
    let new = cluster.writable(Some(leader), Duration::from_secs(10)).await;
    assert_eq!(cluster.node(leader).exit_code(Duration::from_secs(30)).await, Some(0));
    let report = finish(&cluster, new, writer).await;
    assert!(report.outage_at(told_at) <= AT_ONCE, "outage {:?}", report.outage_at(told_at));

    cluster.start_node(leader);
    assert_ne!(cluster.all_stream(FORMED).await, leader);
}

#[tokio::test]
async fn a_frozen_primary_is_stopped_before_anybody_takes_over() {
    let (mut cluster, leader, writer) = written_to().await;
    let frozen = cluster.node(leader).node_process();
    nix::sys::signal::kill(frozen, nix::sys::signal::Signal::SIGSTOP).unwrap();

    // Two watchers, each with its own clock reading: the one that asks by SQL may be slow. When the old primary's
    // PostgreSQL is gone, even its own restarted node may be the next one.
    let old = cluster.node(leader).watch_postgres();
    let stopped = Cell::new(None);
    let watch = async {
        let gone = eventually(TTL * 2, async || old.is_gone().then(clock::now)).await;
        stopped.set(gone);
    };
    let next = eventually(TTL * 3, async || {
        for node in cluster.numbers() {
            if (node != leader || stopped.get().is_some()) && cluster.is_writable(node).await {
                return Some((node, clock::now()));
            }
        }
        None
    });
    let ((), next) = tokio::join!(watch, next);
    let stopped_at = stopped.get().expect("the frozen primary still runs");
    let (new, writable_at) = next.expect("nobody is writable");
    assert!(stopped_at < writable_at, "two primaries for {:?}", stopped_at.since(writable_at));

    finish(&cluster, new, writer).await;
    // `init` has replaced the frozen process, and the cluster is whole.
    assert_eq!(cluster.all_stream(FORMED).await, new);
    assert_ne!(cluster.node(leader).node_process(), frozen);
}

/// The worst place for raft's leader: with it goes the store, for an election, and the lease must not become longer for it.
#[tokio::test]
async fn a_node_that_leads_the_store_too_is_replaced_within_its_lease() {
    let (mut cluster, leader, writer) = written_to().await;
    cluster.lead_store(leader).await;
    let forecast = cluster.forecast(leader).await.expect("somebody could take over");

    let killed_at = clock::now();
    cluster.node(leader).kill_tree();
    cluster.node(leader).reap();
    let new = cluster.writable(Some(leader), TTL + AFTER_TTL + AT_ONCE).await;
    let report = finish(&cluster, new, writer).await;
    let outage = report.outage_at(killed_at);
    assert!(outage <= forecast + AT_ONCE, "{outage:?}, forecast {forecast:?}");
}
