//! A store that is away: the leader goes on by the promises of all, and nobody's slot stands still.

use nix::sys::signal::Signal;

use crate::stand::{By, SOON, Stand};
use crate::wait::eventually;

/// The lease of the stand, and what comes before anybody notices.
const BEYOND_THE_LEASE: std::time::Duration = std::time::Duration::from_secs(25);

/// The members are known by host names, and the third streams from the second.
#[tokio::test]
async fn a_leader_outlasts_the_store_and_moves_the_slots_of_cascades() {
    let mut stand = Stand::new("false", None).await;
    for member in [1, 2, 3] {
        stand.amend(member, ("    ttl: 20\n", "    ttl: 20\n    failsafe_mode: true\n"));
        // Whoever calls over loopback comes from 127.0.0.1, which no member has for an address.
        let (own, port) = (format!("{}:8008", stand.ip(member)), 8100 + u16::from(member));
        let named = format!("connect_address: localhost:{port}\n");
        stand.amend(member, (&format!("connect_address: {own}\n"), &named));
        if member > 1 {
            let listen = format!("listen: 127.0.0.1:{port}\n");
            stand.amend(member, (&format!("listen: {own}\n"), &listen));
        }
    }
    stand.amend(3, ("\ntags:\n", "\ntags:\n  replicatefrom: n2\n"));
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    stand.start(2, By::Pgherd);
    stand.streams(1, 2).await;
    stand.start(3, By::Pgherd);
    stand.streams(1, 3).await;
    let all_named = eventually(SOON, async || {
        let keys = stand.keys("/service/demo/failsafe").await?;
        keys.values().next().is_some_and(|value| value.contains("n3")).then_some(())
    });
    assert!(all_named.await.is_some(), "{}", stand.log(1));
    stand.sql(1, "CREATE TABLE t (n int); SELECT 1").await;
    let used = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'n3' AND active";
    let cascades = eventually(SOON, async || (stand.sql(2, used).await == "1").then_some(()));
    assert!(cascades.await.is_some(), "{}", stand.log(2));

    stand.signal_etcd(Signal::SIGSTOP);
    tokio::time::sleep(BEYOND_THE_LEASE).await;
    assert!(stand.is_primary(1).await, "{}", stand.log(1));
    stand.sql(1, "INSERT INTO t SELECT generate_series(1, 1000); SELECT 1").await;
    let end = stand.sql(1, "SELECT pg_current_wal_flush_lsn()").await;
    let beyond = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'n3' AND restart_lsn >= '{end}'"
    );
    let moved = eventually(SOON, async || (stand.sql(1, &beyond).await == "1").then_some(())).await;
    assert!(moved.is_some(), "n3's slot does not reach {end}: {}", stand.log(1));
    stand.signal_etcd(Signal::SIGCONT);
    stand.streams(1, 3).await;
    assert!(stand.is_primary(1).await, "{}", stand.log(1));
    stand.end().await;
}
