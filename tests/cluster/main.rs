//! Whole clusters: what a user is promised, tried on real processes.
//!
//! Each case starts a cluster of its own (see `support`), does one thing to it, and waits for what must follow, with a
//! deadline. The deadlines are those of the promise where the promise is a number of seconds.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "test code: a panic is how a case fails"
)]

#[expect(dead_code, reason = "shared with the tests of agent mode, which run the daemon")]
#[path = "../support/patroni.rs"]
mod patroni;
#[path = "../support/mod.rs"]
mod support;

mod clients;
mod door;
mod failure;
mod formation;
mod helpers;
mod membership;
mod operator;
mod patronictl;
mod proxy;
mod restart;
mod slots;
mod standby;
mod survival;
