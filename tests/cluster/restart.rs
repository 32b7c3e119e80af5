//! Everything stops, and starts again.

use std::time::Duration;

use crate::support::{Cluster, FORMED, Setup};

const SYSTEM_ID: &str = "SELECT system_identifier FROM pg_control_system()";

#[tokio::test]
async fn a_cluster_that_was_killed_comes_back_with_its_data() {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.all_stream(FORMED).await;
    cluster.sql(leader, "CREATE TABLE t AS SELECT 42 AS x; SELECT x FROM t").await.unwrap();
    let before = cluster.sql(leader, SYSTEM_ID).await.unwrap();

    let nodes = cluster.numbers();
    for node in &nodes {
        cluster.node(*node).kill_tree();
    }
    for node in &nodes {
        cluster.node(*node).reap();
    }
    for node in &nodes {
        cluster.start_node(*node);
    }

    let leader = cluster.writable(None, FORMED).await;
    assert_eq!(cluster.sql(leader, "SELECT x FROM t").await.unwrap(), "42");
    cluster.all_stream(FORMED).await;
    for node in nodes {
        assert_eq!(cluster.sql(node, SYSTEM_ID).await.unwrap(), before, "node {node} has other data");
    }
}

#[tokio::test]
async fn a_node_that_lost_its_process_but_not_its_volume_does_not_clone_again() {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.all_stream(FORMED).await;
    let replica = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    cluster.node(replica).terminate();
    assert_eq!(cluster.node(replica).exit_code(Duration::from_secs(30)).await, Some(0));
    // What the member last said of itself may stand for a while: only after that does "streams" mean that it is back.
    assert_eq!(cluster.all_stream(FORMED).await, leader);
    cluster.sql(leader, "CREATE TABLE late AS SELECT 1 AS x; SELECT x FROM late").await.unwrap();

    let data_dir = cluster.node(replica).data_dir_identity();
    cluster.start_node(replica);
    assert_eq!(cluster.all_stream(FORMED).await, leader);
    assert_eq!(cluster.node(replica).data_dir_identity(), data_dir, "the data directory is another one");
    assert_eq!(cluster.sql(replica, "SELECT x FROM late").await.unwrap(), "1");
}
