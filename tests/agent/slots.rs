//! Permanent logical slots on every member: a reader goes on after a failover.

use crate::stand::{By, SOON, Stand};
use crate::wait::eventually;

const SLOTS: &str =
    r#"{"slots": {"feed": {"type": "logical", "database": "postgres", "plugin": "test_decoding"}}}"#;
/// What has been read since the last time, in the rows' own words.
const READ: &str = "SELECT coalesce(string_agg(substring(data FROM 'n\\[integer\\]:(\\d+)'), ','), '')
                      FROM pg_logical_slot_get_changes('feed', NULL, NULL) WHERE data LIKE 'table%'";
const CONFIRMED: &str = "SELECT coalesce(max(confirmed_flush_lsn::text), '') FROM pg_replication_slots
                          WHERE slot_name = 'feed' AND slot_type = 'logical'";

/// Waits until the copy is where the slot is.
async fn in_sync(stand: &Stand, leader: u8, member: u8) {
    let same = eventually(SOON, async || {
        // The server is stopped once, for the copy.
        let copy = crate::client::ask(&stand.target(member), CONFIRMED).await.ok()?;
        (!copy.is_empty() && copy == stand.sql(leader, CONFIRMED).await).then_some(())
    });
    assert!(same.await.is_some(), "n{member} has no copy that is in sync: {}", stand.log(member));
}

#[tokio::test]
async fn the_reader_of_a_logical_slot_goes_on_after_a_failover() {
    let mut stand = Stand::new("false", None).await;
    for member in [1, 2] {
        stand.amend(member, ("max_connections: 50", "max_connections: 50\n        wal_level: logical"));
    }
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    stand.start(2, By::Pgherd);
    stand.streams(1, 2).await;
    let url = format!("http://{}:8008/config", stand.ip(1));
    assert_eq!(stand.http.patch(url).body(SLOTS).send().await.unwrap().status().as_u16(), 200);
    in_sync(&stand, 1, 2).await;
    stand.streams(1, 2).await;
    assert_eq!(stand.sql(2, "SHOW hot_standby_feedback").await, "on");
    let held = "SELECT coalesce(bool_and(catalog_xmin IS NOT NULL), false)::text FROM pg_replication_slots
                 WHERE slot_name = 'n2'";
    let feedback = eventually(SOON, async || (stand.sql(1, held).await == "true").then_some(())).await;
    assert!(feedback.is_some(), "the primary is not told what the copy needs");

    stand.sql(1, "CREATE TABLE t (n int); SELECT 1").await;
    stand.sql(1, "INSERT INTO t SELECT generate_series(1, 3); SELECT 1").await;
    assert_eq!(stand.sql(1, READ).await, "1,2,3");
    in_sync(&stand, 1, 2).await;
    stand.sql(1, "ALTER TABLE t ADD COLUMN m int; SELECT 1").await;
    stand.sql(1, "INSERT INTO t (n) VALUES (4); SELECT 1").await;
    let replayed =
        eventually(SOON, async || (stand.sql(2, "SELECT count(*) FROM t").await == "4").then_some(()));
    assert!(replayed.await.is_some());

    stand.stop(1).await;
    stand.leads(2).await;
    let writes =
        eventually(SOON, async || (stand.sql(2, "SELECT pg_is_in_recovery()").await == "f").then_some(()));
    assert!(writes.await.is_some(), "{}", stand.log(2));
    stand.sql(2, "INSERT INTO t (n) VALUES (5); SELECT 1").await;
    assert_eq!(stand.sql(2, READ).await, "4,5", "nothing is lost, and nothing told twice");
    stand.start(1, By::Pgherd);
    stand.streams(2, 2).await;
    in_sync(&stand, 2, 1).await;
    stand.end().await;
}
