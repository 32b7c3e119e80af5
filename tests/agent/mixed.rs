//! One agent and two stock Patroni nodes in one scope, under a writer that never stops.

use crate::patroni::{Patroni, all_cases};
use crate::stand::{By, Stand};

/// Switchovers in both directions and the death of either kind of leader: nothing that was acknowledged is lost.
async fn a_mixed_cluster_loses_nothing(sync: &'static str) {
    let Some(patroni) = Patroni::installed() else { return };
    let mut stand = Stand::new(sync, Some(patroni)).await;
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    stand.start(2, By::Patroni);
    stand.start(3, By::Patroni);
    let standby = stand.settled(1, 3).await;
    let writer = stand.writer(&[1, 2, 3]);

    stand.switchover(1, standby).await;
    stand.leads(standby).await;
    stand.settled(standby, 3).await;
    stand.synchronous(standby, 1).await;
    stand.switchover(standby, 1).await;
    stand.leads(1).await;
    stand.settled(1, 3).await;

    // Another agent takes the server over: not for a moment does a commit wait for nobody.
    let said_before = stand.whole_log(1).len();
    stand.kill(1);
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    stand.settled(1, 3).await;
    let said = stand.whole_log(1).split_off(said_before);
    assert!(said.contains("took charge of a running process"), "{said}");
    assert!(!said.contains("\"synchronous_standby_names\" changed to"), "{said}");

    stand.kill_all_of(1);
    let leader = stand.leader_of(&[2, 3]).await;
    stand.start(1, By::Pgherd);
    stand.settled(leader, 3).await;
    stand.synchronous(leader, 1).await;

    stand.kill_all_of(leader);
    let next = stand.leader_of(&[1, 5 - leader]).await;
    stand.start(leader, By::Patroni);
    stand.settled(next, 3).await;

    let report = writer.finish(stand.target(next)).await;
    assert_eq!(report.lost, std::collections::BTreeSet::new(), "in {}", stand.dir.display());
    assert!(report.acknowledged.len() > 300, "{} writes", report.acknowledged.len());
    stand.end().await;
}

#[tokio::test]
async fn with_a_synchronous_standby() {
    a_mixed_cluster_loses_nothing("true").await;
}

/// The same with the other way of waiting. `AGENT=all` runs it: `make test` has a bounded time.
#[tokio::test]
async fn with_quorum_commit() {
    if all_cases() {
        a_mixed_cluster_loses_nothing("quorum").await;
    }
}

/// Without a promise about acknowledged commits: everything else holds as well.
#[tokio::test]
async fn with_nobody_waited_for() {
    if !all_cases() {
        return;
    }
    let Some(patroni) = Patroni::installed() else { return };
    let mut stand = Stand::new("false", Some(patroni)).await;
    stand.start(1, By::Pgherd);
    stand.leads(1).await;
    stand.start(2, By::Patroni);
    stand.start(3, By::Patroni);
    stand.streams(1, 3).await;

    // A switchover waits until its successor has everything, whoever asks and whoever is asked.
    let writer = stand.writer(&[1, 2, 3]);
    for (from, to) in [(1, 2), (2, 1)] {
        stand.switchover(from, to).await;
        stand.leads(to).await;
        stand.streams(to, 3).await;
    }
    let report = writer.finish(stand.target(1)).await;
    assert_eq!(report.lost, std::collections::BTreeSet::new(), "in {}", stand.dir.display());

    // The death of either kind of leader: somebody else leads, and the dead one follows when it is back.
    stand.kill_all_of(1);
    let leader = stand.leader_of(&[2, 3]).await;
    stand.start(1, By::Pgherd);
    stand.streams(leader, 3).await;
    stand.kill_all_of(leader);
    let next = stand.leader_of(&[1, 5 - leader]).await;
    stand.start(leader, By::Patroni);
    stand.streams(next, 3).await;
    stand.end().await;
}
