//! The trail of decisions on the volume: it outlives the process.
//!
//! Written beside the loop, which must not wait for a disk. What cannot be written is kept in memory only.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::process::Lines;
use crate::record;
use crate::types::Chain;

use super::trail::{self, Step, Trail};

/// The file with the trail of decisions, beside the record.
const TRAIL: &str = "decisions.jsonl";

/// What was decided in the lives before this one. A trail that cannot be read is no reason not to run.
pub(super) fn resume(record: &record::Keeper) -> (Trail, Option<Lines>) {
    match record.lines(TRAIL, trail::KEPT) {
        Ok((lines, last)) => (Trail::resumed(&last), Some(lines)),
        Err(error) => {
            warn!(error = %Chain(&error), "the trail of decisions is not kept");
            (Trail::default(), None)
        }
    }
}

/// Writes steps down until the agent has ended. Beside the loop, which must not wait for a disk.
pub(super) async fn write(lines: Lines, mut steps: mpsc::Receiver<Arc<Step>>) {
    let written = tokio::task::spawn_blocking(move || {
        let mut lines = lines;
        while let Some(step) = steps.blocking_recv() {
            let text = serde_json::to_string(step.as_ref()).unwrap_or_default();
            if let Err(error) = lines.append(&text) {
                debug!(error = %Chain(&error), "a step of the trail was not written");
            }
        }
    });
    if let Err(error) = written.await {
        warn!(%error, "the trail of decisions is no longer written");
    }
}
