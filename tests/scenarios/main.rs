//! One scenario for every rule of `ha::decide`: what is known, what is decided, and why. One file per topic, in the order in
//! which `decide` asks; `scene` says what a node knows in a few words.

#![expect(clippy::unwrap_used, reason = "test helpers")]

mod proxy;
mod scene;

mod agent;
mod bootstrapping;
mod configuring;
mod door;
mod failsafe;
mod fencing;
mod fitness;
mod following;
mod forecasting;
mod leading;
mod manual;
mod orders;
mod racing;
mod remote;
mod replication;
mod reserve;
mod stopping;
mod trail;
mod turn;
mod watchdog;

use pgherd::ha::reason::Reason;

/// Every reason has words, and they end without a full stop.
#[test]
fn a_reason_is_a_sentence_for_a_log() {
    let missing = vec![scene::name("n2")];
    let text = Reason::VotesMissing { have: 0, need: 1, missing }.to_string();
    assert_eq!(text, "0 of 1 votes: an acknowledged commit may be on n2 only");
}
