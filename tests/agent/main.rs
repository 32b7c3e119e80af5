//! Agent mode on this machine: a plain etcd, real servers, and Patroni itself where it can be had.
//!
//! What is started here is what an administrator starts: a program with a YAML file. What is looked at is what others see:
//! REST, SQL, the keys in etcd. Stock Patroni comes from the Python package index, into a virtual environment that is kept;
//! where there is no Python or no index, the cases that need it say so and pass.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "test code: a panic is how a case fails"
)]

#[expect(dead_code, reason = "shared with the tests of clusters, which ask more")]
#[path = "../support/client.rs"]
mod client;
#[expect(dead_code, reason = "shared with the tests of clusters, which ask more")]
#[path = "../support/wait.rs"]
mod wait;
#[expect(dead_code, reason = "shared with the tests of clusters, which ask more")]
#[path = "../support/writer.rs"]
mod writer;

#[expect(dead_code, reason = "shared with the tests of clusters, which ask more")]
#[path = "../support/patroni.rs"]
mod patroni;

mod alone;
mod callbacks;
mod failsafe;
mod file;
mod methods;
mod mixed;
mod slots;
mod stand;
mod takeover;
mod watchdog;
