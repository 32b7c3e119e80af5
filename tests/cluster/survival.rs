//! A primary that cannot do its work is replaced, and one that can is kept.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use pgherd::clock;

use crate::failure::{finish, wait_for_rows};
use crate::support::{Cluster, FORMED, Setup, eventually};

/// `NETWORK=local`.
const TTL: Duration = Duration::from_secs(10);

/// Every process of the node lives and its lease is renewed; only nobody can connect any more. The writer's session goes on
/// working, so that this is about new connections alone.
#[tokio::test]
async fn a_postmaster_that_stands_still_is_replaced_and_its_node_rejoins() {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let writer = cluster.writer();
    wait_for_rows(&cluster, leader, 50).await;

    let stopped = cluster.node(leader).postmaster().unwrap();
    kill(stopped, Signal::SIGSTOP).unwrap();
    let stopped_at = clock::now();
    // Half a TTL until it counts, a look every two seconds, and the hand-over.
    let new = cluster.writable(Some(leader), TTL).await;
    eprintln!("a stopped postmaster was replaced after {:?}", clock::now().since(stopped_at));

    finish(&cluster, new, writer).await;
    assert_eq!(cluster.all_stream(FORMED).await, new, "the old primary follows");
    assert_ne!(cluster.node(leader).postmaster(), Some(stopped));
}

/// Every connection that is allowed is taken, by sessions that do nothing: the server says no to clients, and works.
#[tokio::test]
async fn a_primary_with_every_slot_taken_is_kept() {
    let setup = Setup::three().env("POSTGRES_PARAMETERS", "max_connections=25");
    let mut cluster = Cluster::formed(setup).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let before = cluster.node(leader).postmaster();
    let mut crowd = Vec::new();
    let full = eventually(Duration::from_secs(20), async || {
        match crate::support::client::connect(&cluster.target(leader)).await {
            Ok(client) => {
                crowd.push(client);
                None
            }
            Err(_refused) => Some(()),
        }
    });
    assert!(full.await.is_some(), "the server takes everybody");
    // Longer than any patience of the probe.
    let replaced = eventually(TTL * 3, async || {
        let elsewhere = cluster.numbers().into_iter().filter(|node| *node != leader);
        for node in elsewhere {
            if cluster.is_writable(node).await {
                return Some(node);
            }
        }
        None
    });
    assert_eq!(replaced.await, None, "another node leads");
    drop(crowd);
    assert_eq!(cluster.all_stream(FORMED).await, leader);
    assert_eq!(cluster.node(leader).postmaster(), before);
}

/// What Patroni loses writes by: the agent dies, PostgreSQL goes on under nobody.
async fn node_killed_alone(mode: &str) {
    let mut cluster = Cluster::formed(Setup::three().env("SYNCHRONOUS_MODE", mode)).await;
    let mut leader = cluster.all_stream(FORMED).await;
    let writer = cluster.writer();
    wait_for_rows(&cluster, leader, 50).await;
    for _round in 0..5 {
        kill(cluster.node(leader).node_process(), Signal::SIGKILL).unwrap();
        leader = cluster.all_stream(FORMED).await;
        wait_for_rows(&cluster, leader, 50).await;
    }
    finish(&cluster, leader, writer).await;
}

#[tokio::test]
async fn a_node_process_killed_alone_loses_no_acknowledged_write_in_quorum_mode() {
    node_killed_alone("quorum").await;
}

#[tokio::test]
async fn a_node_process_killed_alone_loses_no_acknowledged_write_in_asynchronous_mode() {
    node_killed_alone("off").await;
}

/// The store stands still for much longer than a lease; every node lives and says so. Nobody stops, and nothing is lost.
#[tokio::test]
async fn a_primary_outlives_the_store_while_every_member_agrees() {
    let mut cluster = Cluster::formed(Setup::three().env("FAILSAFE_MODE", "true")).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let before = cluster.node(leader).postmaster();
    let writer = cluster.writer();
    wait_for_rows(&cluster, leader, 50).await;
    // The key that names whom to ask is written at the leader's next look after the last member has come.
    let named = eventually(FORMED, async || (cluster.failsafe_members(leader).await == 3).then_some(()));
    assert!(named.await.is_some(), "the failsafe key does not name all three");

    let silenced_at = clock::now();
    let stores: Vec<_> = cluster.numbers().into_iter().map(|n| cluster.node(n).etcd()).collect();
    stores.iter().for_each(|etcd| kill(*etcd, Signal::SIGSTOP).unwrap());
    let old = cluster.node(leader).watch_postgres();
    let gone = eventually(TTL * 3, async || old.is_gone().then_some(()));
    assert!(gone.await.is_none(), "the primary stopped after {:?}", clock::now().since(silenced_at));
    wait_for_rows(&cluster, leader, 50).await;
    stores.iter().for_each(|etcd| kill(*etcd, Signal::SIGCONT).unwrap());

    assert_eq!(cluster.all_stream(FORMED).await, leader);
    finish(&cluster, leader, writer).await;
    assert_eq!(cluster.node(leader).postmaster(), before, "it was not restarted");
}

/// One member that does not answer could have been elected: the primary stops before its lease ends, as without failsafe.
#[tokio::test]
async fn a_primary_without_a_store_stops_when_one_member_does_not_agree() {
    let mut cluster = Cluster::formed(Setup::three().env("FAILSAFE_MODE", "true")).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let stores: Vec<_> = cluster.numbers().into_iter().map(|n| cluster.node(n).etcd()).collect();
    let silent = cluster.numbers().into_iter().find(|n| *n != leader).unwrap();
    let member = cluster.node(silent).node_process();
    kill(member, Signal::SIGSTOP).unwrap();
    stores.iter().for_each(|etcd| kill(*etcd, Signal::SIGSTOP).unwrap());
    let old = cluster.node(leader).watch_postgres();
    let third = cluster.numbers().into_iter().find(|n| *n != leader && *n != silent).unwrap();
    let bound = eventually(TTL, async || cluster.node(third).has_promised().then_some(()));
    assert!(bound.await.is_some(), "the third member was not asked");
    let stopped =
        eventually(TTL, async || (old.is_gone() || !cluster.is_writable(leader).await).then(clock::now));
    assert!(stopped.await.is_some(), "the primary goes on");
    let free = eventually(TTL / 2, async || (!cluster.node(third).has_promised()).then_some(()));
    assert!(free.await.is_some(), "a promise that its leader cannot use still binds");
    stores.iter().for_each(|etcd| kill(*etcd, Signal::SIGCONT).unwrap());
    kill(member, Signal::SIGCONT).unwrap();
    cluster.all_stream(FORMED).await;
}
