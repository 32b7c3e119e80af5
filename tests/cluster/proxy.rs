//! The ports that lead to the right server, with a real HAProxy on every node.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::support::client::{self, Target};
use crate::support::{Cluster, FORMED, Setup, eventually};

const READ_WRITE: u16 = 5000;
const READ_ONLY: u16 = 5001;
/// Told from a wait for the lease.
const AT_ONCE: Duration = Duration::from_secs(5);
/// What a change of the table may take to reach the proxy.
const SEEN: Duration = Duration::from_secs(15);

/// A name that every server's certificate carries: whoever comes through a proxy does not know whom it meets.
const COMMON_NAME: &str = "db.test";

fn through(cluster: &Cluster, node: u8, port: u16) -> Target {
    let target = cluster.target(node);
    let at = target.host.parse().ok();
    Target { host: COMMON_NAME.to_owned(), at, port, ..target }
}

/// Waits until a port of a node leads to this server.
async fn leads_to(cluster: &Cluster, node: u8, port: u16, server: u8) {
    let target = through(cluster, node, port);
    let wanted = cluster.address(server);
    let mut last = None;
    let found = eventually(SEEN, async || {
        last = Some(client::ask(&target, "SELECT host(inet_server_addr())").await);
        matches!(&last, Some(Ok(address)) if *address == wanted).then_some(())
    });
    assert!(found.await.is_some(), "port {port} of {node} does not lead to {wanted}: {last:?}");
}

#[tokio::test]
async fn the_read_write_port_follows_the_primary() {
    let mut cluster = Cluster::formed(Setup::three().env("PROXY_ENABLED", "true")).await;
    let leader = cluster.can_fail_over(FORMED).await;
    for node in cluster.numbers() {
        leads_to(&cluster, node, READ_WRITE, leader).await;
        let readers = through(&cluster, node, READ_ONLY);
        let reads = client::ask(&readers, "SELECT pg_is_in_recovery()::text");
        assert_eq!(reads.await.unwrap(), "true", "the read-only port of {node} leads to a replica");
    }

    let entry = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    let writer = cluster.writer_through(through(&cluster, entry, READ_WRITE));
    let session = client::connect(&through(&cluster, entry, READ_WRITE)).await.unwrap();
    let written = eventually(SEEN, async || cluster.sql(leader, "SELECT id FROM writes LIMIT 1").await.ok());
    assert!(written.await.is_some(), "nothing is written through the port");

    cluster.node(leader).terminate();
    let new = cluster.writable(Some(leader), AT_ONCE * 2).await;
    leads_to(&cluster, entry, READ_WRITE, new).await;
    assert!(session.batch_execute("SELECT 1").await.is_err(), "a session to the old primary lives on");
    let report = writer.finish(cluster.target(new)).await;
    assert!(report.lost.is_empty(), "acknowledged and gone: {:?}", report.lost);
    assert!(report.longest_outage() <= AT_ONCE, "outage {:?}", report.longest_outage());
    eprintln!("through the read-write port: {:?} without a write", report.longest_outage());
}

#[tokio::test]
async fn members_come_and_go_without_a_reload_and_a_dead_proxy_is_replaced() {
    let setup = Setup::three().env("PROXY_ENABLED", "true").env("SSL_ENABLED", "true");
    let setup = setup.env("SSL_PASSPHRASE", "p8fK-2mZq-7TxV-w3Lr-9cHd").env("SSL_EXTRA_SANS", COMMON_NAME);
    let mut cluster = Cluster::formed(setup).await;
    let leader = cluster.all_stream(FORMED).await;
    leads_to(&cluster, leader, READ_WRITE, leader).await;
    let proxy = cluster.node(leader).process("-db");

    let fourth = cluster.add_node();
    cluster.all_stream(FORMED).await;
    leads_to(&cluster, leader, READ_ONLY, fourth).await;
    assert_eq!(cluster.node(leader).process("-db"), proxy, "the proxy was started again");

    let replicas: Vec<u8> = cluster.numbers().into_iter().filter(|node| *node != leader).collect();
    for replica in replicas {
        cluster.node(replica).kill_tree();
        cluster.node(replica).reap();
    }
    leads_to(&cluster, leader, READ_ONLY, leader).await;

    kill(proxy, Signal::SIGKILL).unwrap();
    leads_to(&cluster, leader, READ_ONLY, leader).await;
    assert_ne!(cluster.node(leader).process("-db"), proxy);
}
