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

#[path = "../support/mod.rs"]
mod support;

mod door;
mod failure;
mod formation;
mod helpers;
mod membership;
mod operator;
mod proxy;
mod restart;
mod survival;
