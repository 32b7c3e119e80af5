//! What a client must not notice, or hardly: a replica that stops, a slow network, an upgrade, a drill.

use std::time::Duration;

use pgherd::clock::{self, Moment};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::{self, Target};
use super::delay::Slow;
use super::engine::{IMAGE, IMAGE_NEXT, build_next, docker};
use super::fault::{Fault, can_filter};
use super::outage::{AT_ONCE, NODES, READ_ONLY, READ_WRITE, TTL};
use super::stack::{FORMED, Stack};
use super::writer::{Report, Writer};
use super::{engine_for_all, eventually, shout};

/// What is not noticed: a commit that waited for the other standby.
const UNNOTICED: Duration = Duration::from_secs(1);
/// Between two connections of a reader.
const PERIOD: Duration = Duration::from_millis(20);
/// What a network far away adds to every packet.
const DELAY: Duration = Duration::from_millis(100);
/// Longer than any lease.
const LONG: Duration = Duration::from_secs(30);

/// A client that asks over a new connection each time, as a web server does.
struct Reader {
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<(Moment, String)>>,
}

impl Reader {
    fn start(target: Target) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !*stopped.borrow() {
                if let Err(error) = client::ask(&target, "SELECT 1").await {
                    failures.push((clock::now(), error.to_string()));
                }
                tokio::time::sleep(PERIOD).await;
            }
            failures
        });
        Self { stop, task }
    }

    /// What went wrong, and when.
    async fn finish(self) -> Vec<(Moment, String)> {
        self.stop.send(true).ok();
        self.task.await.unwrap()
    }
}

/// Waits until the writer has written, and for how long it takes until it has written some more.
async fn flows(stack: &Stack, node: u8) {
    let count = async |query: &str| stack.sql(node, query).await.ok();
    let max = "SELECT coalesce(max(id), 0)::text FROM writes";
    let before = eventually(FORMED, async || count(max).await).await.unwrap();
    let more = format!("SELECT 1 FROM writes HAVING max(id) > {before} + 50");
    assert!(eventually(FORMED, async || count(&more).await).await.is_some(), "nothing is written");
}

fn nothing_lost(report: &Report, what: &str, limit: Duration) {
    let outage = report.longest_outage();
    shout(&format!("{what}: {outage:?} without a write"));
    assert!(report.lost.is_empty(), "{what}: acknowledged and gone: {:?}", report.lost);
    assert!(outage <= limit, "{what}: {outage:?} without a write");
}

// The clients must not stand still while a command of the engine runs.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_that_a_replica_stops() {
    let Some(_turn) = engine_for_all().await else { return };
    let stack = Stack::up(4);
    let primary = stack.whole(&NODES, FORMED).await;
    let replicas: Vec<u8> = NODES.into_iter().filter(|node| *node != primary).collect();
    // Whoever uses the node that stays; of the other one even the port is gone.
    let writer = Writer::start(vec![stack.target(replicas[0], READ_WRITE)]);
    let reader = Reader::start(stack.target(replicas[0], READ_ONLY));
    flows(&stack, primary).await;
    Fault::Stop.strike(&stack, replicas[1]);
    flows(&stack, primary).await;
    tokio::time::sleep(TTL / 2).await;
    Fault::Stop.heal(&stack, replicas[1]);
    assert_eq!(stack.whole(&NODES, FORMED).await, primary);
    let failures = reader.finish().await;
    nothing_lost(&writer.finish(stack.target(primary, 5432)).await, "stop of a replica", UNNOTICED);
    assert!(failures.is_empty(), "readers noticed: {failures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_changes_nothing_but_the_time_that_a_commit_takes() {
    let Some(_turn) = engine_for_all().await else { return };
    if !can_filter() {
        shout("SKIPPED: it needs root, nsenter and iptables");
        return;
    }
    let stack = Stack::up(5);
    let primary = stack.whole(&NODES, FORMED).await;
    let other = NODES.into_iter().find(|node| *node != primary).unwrap();
    let writer = Writer::start(vec![stack.target(other, READ_WRITE)]);
    flows(&stack, primary).await;
    let slow = match Slow::begin(&stack.container(primary), DELAY) {
        Ok(slow) => slow,
        Err(error) => return shout(&format!("SKIPPED: no packet queues in this kernel: {error}")),
    };
    let moved = eventually(LONG, async || {
        let members = stack.cluster(other).await?;
        let leads = members.iter().find(|(_, role, _)| role == "leader").map(|(name, ..)| name.clone());
        (leads != Some(format!("node{primary}"))).then_some(members)
    });
    assert!(moved.await.is_none(), "a network of {DELAY:?} moved the primary");
    flows(&stack, primary).await;
    nothing_lost(
        &writer.finish(stack.target(other, READ_WRITE)).await,
        "100 ms on the primary's network",
        UNNOTICED,
    );
    // An orderly change is none the less one.
    docker(&[
        "exec",
        &stack.container(other),
        "pgherd",
        "switchover",
        "--candidate",
        &format!("node{other}"),
        "--force",
    ]);
    assert_eq!(stack.whole(&NODES, FORMED).await, other);
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_comes_in_node_by_node() {
    let Some(_turn) = engine_for_all().await else { return };
    build_next();
    let stack = Stack::up(6);
    let primary = stack.whole(&NODES, FORMED).await;
    let replicas: Vec<u8> = NODES.into_iter().filter(|node| *node != primary).collect();
    let through = |node: &u8| stack.target(*node, READ_WRITE);
    let writer = Writer::start(NODES.iter().map(through).collect());
    flows(&stack, primary).await;
    let image = |node: u8| docker(&["inspect", "-f", "{{.Config.Image}}", &stack.container(node)]);
    assert_eq!(image(primary), IMAGE);
    for node in replicas.iter().copied().chain([primary]) {
        stack.upgrade(node, IMAGE_NEXT);
        stack.whole(&NODES, FORMED).await;
        assert_eq!(image(node), IMAGE_NEXT);
    }
    let leader = stack.whole(&NODES, FORMED).await;
    assert_ne!(leader, primary, "the last one to be upgraded led");
    nothing_lost(&writer.finish(stack.target(leader, 5432)).await, "upgrade of every node", AT_ONCE);
    docker(&["image", "rm", "-f", IMAGE_NEXT]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_measures_a_failover_and_leaves_nothing() {
    let Some(_turn) = engine_for_all().await else { return };
    let stack = Stack::up(7);
    let primary = stack.whole(&NODES, FORMED).await;
    for asked in NODES {
        let before = stack.whole(&NODES, FORMED).await;
        let report = docker(&["exec", &stack.container(asked), "pgherd", "drill", "failover"]);
        shout(&report.replace('\n', "; "));
        assert!(report.contains(&format!("node{before} -> node")), "{report}");
        assert!(report.contains(" 0 of them are lost"), "{report}");
        assert_ne!(stack.whole(&NODES, FORMED).await, before);
    }
    let left = "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'pgherd_drill'";
    assert_eq!(stack.sql(primary, left).await.unwrap(), "0");
}
