//! Nodes come and go, and the location API lies.

use std::time::Duration;

use crate::support::{Cluster, FORMED, Setup, eventually};

/// How often the membership of etcd is reviewed.
const PRUNE_PERIOD: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_fourth_node_joins_and_streams() {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let fourth = cluster.add_node();
    cluster.all_stream(FORMED).await;
    assert!(!cluster.is_writable(fourth).await);
    assert_eq!(cluster.members().await.len(), 4);
}

/// One cluster for three questions, because each of them is mostly waiting: who is only delisted stays; who is only
/// unlisted by a failing API stays; who is delisted and gone leaves.
#[tokio::test]
async fn only_who_is_delisted_and_gone_is_removed() {
    let mut cluster = Cluster::formed(Setup::three().env("PRUNE_AFTER", "10s")).await;
    let leader = cluster.all_stream(FORMED).await;
    let replicas: Vec<u8> = cluster.numbers().into_iter().filter(|node| *node != leader).collect();
    let all = cluster.etcd_voters(leader).await.unwrap();
    assert_eq!(all.len(), 3);

    for kind in ["empty", "error", "http500"] {
        cluster.fault(kind).await;
    }
    stays(&cluster, leader, 3, PRUNE_PERIOD + Duration::from_secs(15)).await;
    cluster.fault("none").await;

    cluster.delist(replicas[0]);
    stays(&cluster, leader, 3, PRUNE_PERIOD + Duration::from_secs(15)).await;
    assert_eq!(cluster.all_stream(FORMED).await, leader, "a delisted node that lives goes on streaming");

    cluster.node(replicas[0]).terminate();
    cluster.node(replicas[0]).exit_code(Duration::from_secs(30)).await;
    let gone = cluster.address(replicas[0]);
    let left = eventually(PRUNE_PERIOD * 3, async || {
        cluster.etcd_voters(leader).await.filter(|members| !members.contains(&gone))
    });
    assert_eq!(left.await.expect("the departed node stays a member").len(), 2);
    assert_eq!(cluster.all_stream(FORMED).await, leader);
}

/// Watches that nobody is removed for as long as it takes to be sure.
async fn stays(cluster: &Cluster, node: u8, members: usize, time: Duration) {
    let fewer =
        eventually(time, async || cluster.etcd_voters(node).await.filter(|seen| seen.len() != members));
    let fewer = fewer.await;
    assert!(fewer.is_none(), "only these are left: {fewer:?}");
}
