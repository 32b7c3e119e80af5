//! What a crash makes visible is read by nobody before the standbys have it.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Cluster, FORMED, Setup, client, eventually};

/// Less than a primary waits before it goes on without standbys (`NETWORK=local`: 4 s).
const HELD: Duration = Duration::from_millis(1500);
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn after_a_crash_nobody_reads_what_the_standbys_do_not_have() {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.can_fail_over(FORMED).await;
    cluster.sql(leader, "CREATE TABLE seen (n int); SELECT 1").await.unwrap();
    let standbys: Vec<u8> = cluster.numbers().into_iter().filter(|node| *node != leader).collect();
    let receivers = stop_receivers(&cluster, &standbys).await;

    // A commit that nobody confirms: nobody sees it.
    let client = client::connect(&cluster.target(leader)).await.unwrap();
    let commit = tokio::spawn(async move { client.execute("INSERT INTO seen VALUES (1)", &[]).await });
    let waits = "SELECT pid::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let waiting = eventually(SOON, async || cluster.sql(leader, waits).await.ok()).await;
    assert!(waiting.is_some(), "the commit does not wait");
    let count = "SELECT count(*)::text FROM seen";
    assert_eq!(cluster.sql(leader, count).await.unwrap(), "0");

    let old = cluster.node(leader).postmaster().unwrap();
    kill(old, Signal::SIGKILL).unwrap();
    let held = eventually(SOON, async || why(&cluster, leader).contains("clients wait until").then_some(()));
    assert!(held.await.is_some(), "{}", why(&cluster, leader));
    assert!(commit.await.unwrap().is_err(), "its connection is gone");
    let read = eventually(HELD, async || cluster.sql(leader, count).await.ok()).await;
    assert_eq!(read, None, "a client reads what could vanish");

    receivers.iter().for_each(|pid| kill(*pid, Signal::SIGCONT).unwrap());
    let read = eventually(SOON, async || cluster.sql(leader, count).await.ok()).await;
    assert_eq!(read.as_deref(), Some("1"));
    assert!(somebody_has(&cluster, &standbys, count).await, "nobody else has what was read");
    assert_eq!(cluster.all_stream(FORMED).await, leader);
}

/// It is received before clients are let in, and replayed moments later.
async fn somebody_has(cluster: &Cluster, standbys: &[u8], count: &str) -> bool {
    let has = eventually(Duration::from_secs(2), async || {
        for standby in standbys {
            if cluster.sql(*standby, count).await.is_ok_and(|n| n == "1") {
                return Some(());
            }
        }
        None
    });
    has.await.is_some()
}

async fn stop_receivers(cluster: &Cluster, standbys: &[u8]) -> Vec<Pid> {
    let mut receivers = Vec::new();
    for standby in standbys {
        let pid = cluster.sql(*standby, "SELECT pid::text FROM pg_stat_wal_receiver").await.unwrap();
        let pid = Pid::from_raw(pid.parse().unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        receivers.push(pid);
    }
    receivers
}

fn why(cluster: &Cluster, node: u8) -> String {
    String::from_utf8_lossy(&cluster.exec(node, &["why"]).stdout).into_owned()
}
