//! A running cluster of stock Patroni becomes one of pgherd node by node, and goes back the same way.

use std::time::Duration;

use crate::patroni::Patroni;
use crate::stand::{By, Stand};

/// A switchover, and the time that the writer takes to find the new primary.
const OUTAGE: Duration = Duration::from_secs(10);

/// Replaces the program of every member: the standbys first, then, after one switchover, the leader of before.
async fn replace_all(stand: &mut Stand, leader: u8, by: By) -> u8 {
    for member in (1..=3).filter(|member| *member != leader) {
        stand.stop(member).await;
        stand.start(member, by);
        stand.settled(leader, 3).await;
    }
    let next = stand.settled(leader, 3).await;
    stand.switchover(leader, next).await;
    stand.leads(next).await;
    stand.settled(next, 3).await;
    stand.stop(leader).await;
    stand.start(leader, by);
    stand.settled(next, 3).await;
    next
}

#[tokio::test]
async fn stock_patroni_is_taken_over_and_gone_back_to() {
    let Some(patroni) = Patroni::installed() else { return };
    let mut stand = Stand::new("true", Some(patroni)).await;
    for member in 1..=3 {
        stand.start(member, By::Patroni);
    }
    let leader = stand.leader_of(&[1, 2, 3]).await;
    stand.settled(leader, 3).await;
    let writer = stand.writer(&[1, 2, 3]);
    let leader = replace_all(&mut stand, leader, By::Pgherd).await;
    let leader = replace_all(&mut stand, leader, By::Patroni).await;
    let report = writer.finish(stand.target(leader)).await;
    assert_eq!(report.lost, std::collections::BTreeSet::new(), "in {}", stand.dir.display());
    assert!(report.longest_outage() < OUTAGE, "{:?}", report.longest_outage());
    stand.end().await;
}
