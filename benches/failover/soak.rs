//! One cluster that is struck again and again, at random: no confirmed write may be missing, and whoever was struck must be
//! back without a person.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use pgherd::clock;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::{Cluster, Setup};
use crate::{REPAIR, rows, summary};

/// A copy of the leader's data included, on a busy machine.
const BACK: Duration = Duration::from_secs(180);
/// Blows fall at any moment of this long after the cluster was whole, so in the first seconds of a start as well.
const PAUSE: Duration = Duration::from_secs(4);

/// What is ended without a word.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Postmaster,
    Agent,
    Store,
    Node,
}

/// So many blows; `seed` repeats their choice, not their moments.
pub(crate) async fn blows(count: u32, seed: u64) -> Value {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::formed(Setup::three().env("SYNCHRONOUS_MODE", "quorum")).await;
    let (mut lost, mut rejoined, mut times) = (0, 0, Vec::new());
    for n in 1..=count {
        let writer = cluster.writer();
        let leader = cluster.can_fail_over(BACK).await;
        rows(&cluster, leader, 20).await;
        tokio::time::sleep(PAUSE.mul_f64(dice.random())).await;
        // The leader as often as all others.
        let victim = if dice.random() { leader } else { dice.random_range(1..=3) };
        let blow = [Blow::Postmaster, Blow::Agent, Blow::Store, Blow::Node][dice.random_range(0..4)];
        let at = clock::now();
        strike(&mut cluster, victim, blow);
        if dice.random_bool(0.25) {
            // Before anything has settled, somebody else's postmaster as well.
            tokio::time::sleep(Duration::from_millis(dice.random_range(0..2_000))).await;
            strike(&mut cluster, dice.random_range(1..=3), Blow::Postmaster);
        }
        let new = cluster.writable(None, REPAIR).await;
        rows(&cluster, new, 20).await;
        if cluster.node(victim).is_gone() {
            cluster.start_node(victim);
        }
        let leader = cluster.can_fail_over(BACK).await;
        times.push(clock::now().since(at));
        rejoined += 1;
        let report = writer.finish(cluster.target(leader)).await;
        lost += report.lost.len();
        let confirmed = report.acknowledged.len();
        let outage = report.longest_outage().as_secs_f64();
        eprintln!(
            "{n}: {blow:?} of n{victim}: {confirmed} confirmed, {} lost, outage {outage:.3} s",
            report.lost.len()
        );
    }
    json!({ "seed": seed, "blows": count, "lost": lost, "whole_again": rejoined, "whole_after_seconds": summary(times) })
}

/// What is down already is left alone.
fn strike(cluster: &mut Cluster, victim: u8, blow: Blow) {
    if cluster.node(victim).is_gone() {
        return;
    }
    let node = cluster.node(victim);
    let pid = match blow {
        Blow::Postmaster => node.postmaster(),
        Blow::Agent => Some(node.process("node")),
        Blow::Store => Some(node.etcd()),
        Blow::Node => {
            node.kill_tree();
            node.reap();
            None
        }
    };
    if let Some(pid) = pid {
        kill(pid, Signal::SIGKILL).ok();
    }
}
