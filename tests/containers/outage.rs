//! Faults of the primary's container, seen by a client of another node's read-write port.

use std::time::Duration;

use pgherd::clock;

use super::client;
use super::engine::docker;
use super::fault::{Fault, health};
use super::stack::{FORMED, Stack};
use super::writer::Writer;
use super::{engine, engine_for_all, eventually, shout};

pub(crate) const READ_WRITE: u16 = 5000;
pub(crate) const READ_ONLY: u16 = 5001;
pub(crate) const NODES: [u8; 3] = [1, 2, 3];
/// `NETWORK=local`.
pub(crate) const TTL: Duration = Duration::from_secs(10);
/// What is promised after the lease has run out.
const AFTER_TTL: Duration = Duration::from_secs(2);
/// What a client needs on top to find out that nobody answers any more.
const UNNOTICED: Duration = Duration::from_secs(3);
/// Told from a wait for the lease: what an idle machine needs is reported, and promised to be less than a second.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(4);

/// Strikes the primary while somebody writes through another node's port; then heals it, and waits until all is whole.
async fn strike(stack: &Stack, fault: Fault, limit: Duration) {
    let primary = stack.whole(&NODES, FORMED).await;
    let others: Vec<u8> = NODES.into_iter().filter(|node| *node != primary).collect();
    let writer = Writer::start(vec![stack.target(others[0], READ_WRITE)]);
    let rows = "SELECT 1 FROM writes HAVING count(*) > 50";
    let flows = eventually(FORMED, async || stack.sql(primary, rows).await.ok()).await;
    assert!(flows.is_some(), "nothing is written through the port of node{}", others[0]);

    fault.strike(stack, primary);
    let next = stack.writable(&others, limit * 2).await;
    let rows = stack.sql(next, "SELECT max(id)::text FROM writes").await.unwrap();
    let more = format!("SELECT 1 FROM writes HAVING max(id) > {rows} + 20");
    assert!(eventually(FORMED, async || stack.sql(next, &more).await.ok()).await.is_some());
    let report = writer.finish(stack.target(next, 5432)).await;
    let outage = report.longest_outage();
    shout(&format!("{fault:?} of the primary's container: {outage:?} without a write"));
    assert!(report.lost.is_empty(), "{fault:?}: acknowledged and gone: {:?}", report.lost);
    assert!(outage <= limit, "{fault:?}: {outage:?} without a write");
    fault.heal(stack, primary);
    let leader = stack.whole(&NODES, FORMED).await;
    assert_ne!(leader, primary, "{fault:?}: the old primary leads again");
    stack.sql(leader, "DROP TABLE writes; SELECT 1").await.unwrap();
}

#[tokio::test]
async fn compose_brings_up_a_cluster_with_ports_that_lead_to_the_primary_and_the_replicas() {
    let Some(_turn) = engine().await else { return };
    let began = clock::now();
    let stack = Stack::up(1);
    let primary = stack.whole(&NODES, FORMED).await;
    shout(&format!("compose up to a primary with two replicas: {:?}", clock::now().since(began)));

    let table = docker(&["exec", &stack.container(1), "pgherd", "list"]);
    for node in NODES {
        assert!(table.contains(&format!("node{node}")), "{table}");
        let healthy = async || (health(&stack.container(node)).as_deref() == Some("healthy")).then_some(());
        assert!(eventually(FORMED, healthy).await.is_some(), "node{node} is not healthy");
    }
    let through = async |port, query| client::ask(&stack.target(primary, port), query).await.unwrap();
    assert_eq!(through(READ_WRITE, "SELECT pg_is_in_recovery()::text").await, "false");
    assert_eq!(through(READ_ONLY, "SELECT pg_is_in_recovery()::text").await, "true");
}

// The writer must not stand still while a command of the engine runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_containers_outlives_its_primary() {
    let Some(_turn) = engine_for_all().await else { return };
    let stack = Stack::up(3);
    strike(&stack, Fault::Stop, AT_ONCE).await;
    strike(&stack, Fault::Kill, TTL + AFTER_TTL).await;
    strike(&stack, Fault::Pause, TTL + AFTER_TTL + UNNOTICED).await;
    strike(&stack, Fault::Unplug, TTL + AFTER_TTL + UNNOTICED).await;
}

// The writer must not stand still while a command of the engine runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_cut_off_one_way_is_replaced() {
    let Some(_turn) = engine_for_all().await else { return };
    let stack = Stack::up(2);
    for fault in [Fault::Deaf, Fault::Mute] {
        if fault.is_possible() {
            strike(&stack, fault, TTL + AFTER_TTL + TTL).await;
        } else {
            shout(&format!("{fault:?} SKIPPED: it needs root, nsenter and iptables"));
        }
    }
}
