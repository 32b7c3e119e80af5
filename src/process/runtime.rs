//! The runtime of a process that runs services.
//!
//! Invariant: that no thread can be started (the container's processes have run out) is no end of the process. The runtime
//! panics when it has no thread for a file or a name, so one is there from the beginning, and none is ever given back.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Longer than any process lives. The threads that are kept sleep, and wake nobody.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// One thread for everything but files and names: children are bound to the thread that forked them.
///
/// # Errors
/// The kernel has no descriptors or threads left.
pub fn runtime() -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_all().thread_keep_alive(FOR_EVER).build()?;
    // Asked of the system first, whose answer may be no: the runtime would not take that for one.
    let is_possible = std::thread::Builder::new().spawn(|| {})?;
    is_possible.join().unwrap_or_default();
    drop(runtime.spawn_blocking(|| {}));
    Ok(runtime)
}
