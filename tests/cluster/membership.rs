//! Nodes come and go, and the location API lies.

use std::time::Duration;

use crate::support::{Cluster, FORMED, Setup, eventually};

/// How long a node is absent before it is removed, in these tests.
const PRUNE_AFTER: Duration = Duration::from_secs(10);
/// When a wrong removal would have come: the membership is reviewed every ten seconds, and at once when the list changes.
const SURE: Duration = Duration::from_secs(35);
/// How long a right one may take: a node that is silent is asked again only once a minute.
const REMOVED: Duration = Duration::from_secs(180);

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
    let mut cluster =
        Cluster::formed(Setup::three().env("PRUNE_AFTER", &format!("{}s", PRUNE_AFTER.as_secs()))).await;
    let leader = cluster.all_stream(FORMED).await;
    let replicas: Vec<u8> = cluster.numbers().into_iter().filter(|node| *node != leader).collect();
    let all = cluster.etcd_voters(leader).await.unwrap();
    assert_eq!(all.len(), 3);

    for kind in ["empty", "error", "http500"] {
        cluster.fault(kind).await;
    }
    stays(&cluster, leader, 3, SURE).await;
    cluster.fault("none").await;

    cluster.delist(replicas[0]);
    stays(&cluster, leader, 3, SURE).await;
    assert_eq!(cluster.all_stream(FORMED).await, leader, "a delisted node that lives goes on streaming");

    cluster.node(replicas[0]).terminate();
    cluster.node(replicas[0]).exit_code(Duration::from_secs(30)).await;
    let gone = cluster.address(replicas[0]);
    let left = eventually(REMOVED, async || {
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
