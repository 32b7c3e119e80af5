//! The image and the compose file, as a user runs them: few cases and slow ones.
//!
//! `make test` runs what fits into a few minutes; `make test-containers` (`CONTAINERS=all`) runs everything. Without a Docker
//! engine, or without a base image, every case says so and passes; with `CONTAINERS=all` that is a failure.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "test code: a panic is how a case fails"
)]

mod adoption;
#[expect(dead_code, reason = "what only the clusters without containers ask")]
#[path = "../support/client.rs"]
mod client;
mod delay;
mod engine;
mod fault;
mod image;
mod membership;
mod outage;
mod service;
mod stack;
mod tasks;
#[path = "../support/wait.rs"]
mod wait;
#[expect(dead_code, reason = "what only the clusters without containers ask")]
#[path = "../support/writer.rs"]
mod writer;

use std::path::PathBuf;

use engine::Engine;
use tokio::sync::{Mutex, MutexGuard};
pub(crate) use wait::{eventually, mock};

/// Two clusters at once would fight for two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Which cases are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// What fits into `make test`.
    Few,
    /// Everything.
    All,
}

impl Wanted {
    fn get() -> Self {
        if std::env::var("CONTAINERS").is_ok_and(|value| value == "all") { Self::All } else { Self::Few }
    }
}

/// The right to use the engine; `None`, with one loud line, when there is nothing to use.
async fn engine() -> Option<MutexGuard<'static, ()>> {
    let turn = ONE_AT_A_TIME.lock().await;
    match Engine::get() {
        Engine::Ready => Some(turn),
        Engine::Missing(why) => {
            assert_ne!(Wanted::get(), Wanted::All, "the container tests cannot run: {why}");
            shout(&format!("CONTAINER TESTS SKIPPED: {why}"));
            None
        }
    }
}

/// The same for the cases that only `CONTAINERS=all` runs.
async fn engine_for_all() -> Option<MutexGuard<'static, ()>> {
    match Wanted::get() {
        Wanted::All => engine().await,
        Wanted::Few => {
            shout("not run here (make test-containers runs it)");
            None
        }
    }
}

/// A line that the harness does not capture.
fn shout(line: &str) {
    use std::io::Write as _;
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    writeln!(std::io::stderr(), "{name}: {line}").ok();
}

/// The binary that the image takes: the one under test, or a release build (`PGHERD_BIN`), for measurements.
fn pgherd() -> PathBuf {
    std::env::var_os("PGHERD_BIN").map_or_else(|| env!("CARGO_BIN_EXE_pgherd").into(), PathBuf::from)
}
