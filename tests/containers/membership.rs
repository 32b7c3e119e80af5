//! A cluster that grows and shrinks as the location API says, and one whose primary has no room left.

use std::time::Duration;

use super::engine::{docker, try_docker};
use super::fault::Fault;
use super::outage::{NODES, READ_WRITE};
use super::stack::{FORMED, Stack};
use super::writer::Writer;
use super::{client, engine_for_all, eventually, shout};

const FOUR: [u8; 4] = [1, 2, 3, 4];
/// `PRUNE_AFTER` of a local network, and the period of the review.
const PRUNED: Duration = Duration::from_secs(240);
/// A measurement every ten seconds, and a hand-over.
const NOTICED: Duration = Duration::from_secs(60);

/// The keys with which etcd of a node can be asked, out of its container.
fn keys(container: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    docker(&["cp", &format!("{container}:/run/pgherd/tls/."), dir.path().to_str().unwrap()]);
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_listed_joins_and_takes_the_vote_of_one_that_is_gone() {
    let Some(_turn) = engine_for_all().await else { return };
    let stack = Stack::up(8);
    let primary = stack.whole(&NODES, FORMED).await;
    let keys = keys(&stack.container(primary));
    let voters = async || client::etcd_voters(&stack.address(primary), keys.path()).await;
    let writer = Writer::start(vec![stack.target(primary, READ_WRITE)]);
    stack.add(4);
    stack.list(4).await;
    assert_eq!(stack.whole(&FOUR, FORMED).await, primary);

    let leaver = NODES.into_iter().find(|node| *node != primary).unwrap();
    let (gone, new) = (stack.address(leaver), stack.address(4));
    stack.delist(leaver).await;
    Fault::Stop.strike(&stack, leaver);
    let moved = async || voters().await.filter(|all| !all.contains(&gone) && all.contains(&new));
    assert!(eventually(PRUNED, moved).await.is_some(), "{:?}", voters().await);
    let stay: Vec<u8> = FOUR.into_iter().filter(|node| *node != leaver).collect();
    assert_eq!(stack.whole(&stay, FORMED).await, primary);
    let rows = stack.cluster(primary).await.unwrap();
    assert!(rows.iter().all(|(name, ..)| *name != format!("node{leaver}")), "{rows:?}");
    let report = writer.finish(stack.target(primary, 5432)).await;
    assert!(report.lost.is_empty(), "{:?}", report.lost);
    shout(&format!("a node came and another went: {:?} without a write", report.longest_outage()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_without_room_hands_over_and_comes_back() {
    let Some(_turn) = engine_for_all().await else { return };
    let stack = Stack::up_with(9, &["-f", "docker-compose.yml", "-f", "tests/containers/small-volumes.yml"]);
    let primary = stack.whole(&NODES, FORMED).await;
    let others: Vec<u8> = NODES.into_iter().filter(|node| *node != primary).collect();
    let writer = Writer::start(vec![stack.target(others[0], READ_WRITE)]);
    let rows = "SELECT 1 FROM writes HAVING count(*) > 50";
    assert!(eventually(FORMED, async || stack.sql(primary, rows).await.ok()).await.is_some());

    let container = stack.container(primary);
    // Until there is no room: its end is what is wanted.
    let fill = "dd if=/dev/zero of=/var/lib/postgresql/data/filler bs=64k";
    assert!(try_docker(&["exec", &container, "sh", "-c", fill]).is_err(), "the volume is not full");
    let next = stack.writable(&others, NOTICED).await;
    let rows = stack.sql(next, "SELECT max(id)::text FROM writes").await.unwrap();
    let more = format!("SELECT 1 FROM writes HAVING max(id) > {rows} + 20");
    assert!(eventually(FORMED, async || stack.sql(next, &more).await.ok()).await.is_some());
    let report = writer.finish(stack.target(next, 5432)).await;
    shout(&format!("a full disk of the primary's: {:?} without a write", report.longest_outage()));
    assert!(report.lost.is_empty(), "acknowledged and gone: {:?}", report.lost);

    docker(&["exec", &container, "rm", "/var/lib/postgresql/data/filler"]);
    assert_ne!(stack.whole(&NODES, FORMED).await, primary);
}
