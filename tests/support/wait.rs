//! Waiting, and the programs that tests start.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pgherd::clock;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until there is something to see, at most for `limit`.
pub(crate) async fn eventually<T>(limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let deadline = clock::now() + limit;
    loop {
        if let Some(seen) = look().await {
            return Some(seen);
        }
        if clock::now() > deadline {
            return None;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The mock, built beside us. A plain `cargo test` builds no binaries of other packages, so ask for it once.
pub(crate) fn mock() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let build = || {
        let beside = Path::new(env!("CARGO_BIN_EXE_pgherd")).with_file_name("mock-flux-api");
        if !beside.exists() {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--package", "mock-flux-api"]).current_dir(env!("CARGO_MANIFEST_DIR"));
            if beside.parent().is_some_and(|dir| dir.ends_with("release")) {
                cargo.arg("--release");
            }
            assert!(cargo.status().unwrap().success(), "cannot build mock-flux-api");
        }
        beside
    };
    BUILT.get_or_init(build).clone()
}
