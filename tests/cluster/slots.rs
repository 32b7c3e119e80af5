//! Permanent logical slots on three nodes, and the end of the primary.

use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::support::{Cluster, FORMED, Setup, eventually};

/// What has been read since the last time, in the rows' own words.
const READ: &str = "SELECT coalesce(string_agg(substring(data FROM 'n\\[integer\\]:(\\d+)'), ','), '')
                      FROM pg_logical_slot_get_changes('feed', NULL, NULL) WHERE data LIKE 'table%'";
const FEED: &str = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots
                          WHERE slot_name = 'feed' AND slot_type = 'logical'";
const KEEP: &str = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'keep'";

/// Three nodes with a slot of each kind that is to be on all of them; who leads.
async fn with_slots(setup: Setup) -> (Cluster, u8) {
    let cluster = Cluster::formed(setup.env("POSTGRES_PARAMETERS", "wal_level=logical")).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let feed = json!({"type": "logical", "database": "postgres", "plugin": "test_decoding"});
    let config = json!({"slots": {"feed": feed, "keep": {"type": "physical"}}});
    let url = format!("http://{}:8008/config", cluster.address(leader));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.patch(url).body(config.to_string()).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    in_sync(&cluster, leader, FEED).await;
    assert_eq!(cluster.all_stream(FORMED).await, leader);
    (cluster, leader)
}

#[tokio::test]
async fn a_logical_slot_is_on_every_node_and_goes_on_where_the_primary_was_killed() {
    let (mut cluster, leader) = with_slots(Setup::three()).await;
    for sql in ["CREATE TABLE t (n int)", "INSERT INTO t SELECT generate_series(1, 3)"] {
        cluster.sql(leader, &format!("{sql}; SELECT 1")).await.unwrap();
    }
    assert_eq!(cluster.sql(leader, READ).await.unwrap(), "1,2,3");
    in_sync(&cluster, leader, FEED).await;
    cluster.can_fail_over(FORMED).await;
    cluster.sql(leader, "INSERT INTO t VALUES (4); SELECT 1").await.unwrap();
    cluster.node(leader).kill_tree();
    let heir = cluster.writable(Some(leader), FORMED).await;
    cluster.sql(heir, "INSERT INTO t VALUES (5); SELECT 1").await.unwrap();
    assert_eq!(cluster.sql(heir, READ).await.unwrap(), "4,5");
}

#[tokio::test]
async fn slots_are_moved_while_the_store_is_away() {
    let (mut cluster, leader) = with_slots(Setup::three().env("FAILSAFE_MODE", "true")).await;
    let named = eventually(FORMED, async || (cluster.failsafe_members(leader).await == 3).then_some(()));
    assert!(named.await.is_some(), "the failsafe key does not name all three");
    let stores: Vec<_> = cluster.numbers().into_iter().map(|n| cluster.node(n).etcd()).collect();
    stores.iter().for_each(|etcd| kill(*etcd, Signal::SIGSTOP).unwrap());
    cluster.sql(leader, "CREATE TABLE t (n int); SELECT 1").await.unwrap();
    cluster.sql(leader, READ).await.unwrap();
    cluster.sql(leader, "SELECT pg_replication_slot_advance('keep', pg_current_wal_lsn())").await.unwrap();
    for slot in [FEED, KEEP] {
        in_sync(&cluster, leader, slot).await;
    }
    let outlasts = eventually(FORMED, async || {
        let active = cluster.metric(leader, "patroni_failsafe_mode_is_active").await?;
        (active > 0.5).then_some(())
    });
    assert!(outlasts.await.is_some(), "the store was not away");
    stores.iter().for_each(|etcd| kill(*etcd, Signal::SIGCONT).unwrap());
    assert_eq!(cluster.all_stream(FORMED).await, leader);
}

/// Waits until every standby has a copy that is where the slot is.
async fn in_sync(cluster: &Cluster, leader: u8, slot: &str) {
    for node in cluster.numbers() {
        let same = eventually(FORMED, async || {
            let copy = cluster.sql(node, slot).await.ok()?;
            (copy == cluster.sql(leader, slot).await.ok()?).then_some(())
        });
        assert!(same.await.is_some(), "node {node} has no copy that is in sync");
    }
}
