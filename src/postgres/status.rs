//! What is known of the instance at one moment: the types, and the one function that looks.
//!
//! Looking is cheap: pg_controldata is run only while no postmaster runs and the control file has changed; a running
//! server is asked everything in one statement over one connection that stays open.

use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use super::{Error, Shared, Slot, control, lock, pedigree, sql};
use crate::clock::{self, Moment};
use crate::dcs::ReplicationState;
use crate::supervisor::UnitState;
use crate::types::{Chain, Lsn, NodeName, SystemId, Timeline};

/// The instance at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// When it was looked at.
    pub at: Moment,
    /// The process.
    pub process: UnitState,
    /// The data directory. While the server runs, a cluster's control data is as of the last time it was down.
    pub data: DataDir,
    /// What it answered to SQL; `None` when it did not (down, starting, or too slow).
    pub sql: Option<Answer>,
    /// Why it did not answer, in words (`the database system is starting up`); `None` when it does not run.
    pub silence: Option<String>,
}

/// The data directory.
#[derive(Debug, Clone, PartialEq)]
pub enum DataDir {
    /// Absent or empty.
    Empty,
    /// A clone or a rewind did not finish: only good for another clone.
    Incomplete {
        /// What was interrupted.
        why: &'static str,
    },
    /// There is something, but no control file that can be read.
    Unreadable {
        /// What is wrong.
        why: String,
    },
    /// A cluster.
    Cluster(Control),
}

/// What pg_controldata says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// "Database system identifier".
    pub system_id: SystemId,
    /// "Database cluster state".
    pub state: ControlState,
    /// "Latest checkpoint's TimeLineID".
    pub timeline: Timeline,
    /// "Latest checkpoint location".
    pub checkpoint: Lsn,
    /// "Minimum recovery ending location" (zero on a primary).
    pub min_recovery_end: Lsn,
    /// "Min recovery ending loc's timeline" (zero on a primary).
    pub min_recovery_timeline: Timeline,
}

impl Control {
    /// The newest timeline that the data is known to be on: a promotion shows itself in the second of the two at once, in the
    /// first only with its checkpoint.
    pub fn reached(&self) -> Timeline {
        self.timeline.max(self.min_recovery_timeline)
    }
}

/// "Database cluster state".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlState {
    /// "starting up"
    StartingUp,
    /// "shut down": a primary, cleanly.
    ShutDown,
    /// "shut down in recovery": a standby, cleanly.
    ShutDownInRecovery,
    /// "shutting down"
    ShuttingDown,
    /// "in crash recovery"
    InCrashRecovery,
    /// "in archive recovery": a standby, running or killed.
    InArchiveRecovery,
    /// "in production": a primary, running or killed.
    InProduction,
    /// Words that only other versions know.
    Unknown,
}

/// The answer to the one SQL round trip.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `server_version_num`.
    pub server_version: u32,
    /// Microseconds since the Unix epoch.
    pub started_at_micros: i64,
    /// When the configuration was last read; microseconds since the Unix epoch.
    pub loaded_at_micros: i64,
    /// The timeline it writes, or (a standby) has received or replayed.
    pub timeline: Timeline,
    /// Primary or standby, with what belongs to that.
    pub kind: Kind,
    /// `synchronous_standby_names`.
    pub sync_names: String,
    /// Physical and logical slots.
    pub slots: Vec<Slot>,
    /// Roles and databases for which commits wait for less than the cluster promises (`synchronous_commit`).
    pub weakened: Vec<String>,
    /// Settings that wait for a restart.
    pub pending_restart: Vec<PendingSetting>,
}

/// A setting that waits for a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingSetting {
    /// Its name.
    pub name: String,
    /// What is in force.
    pub old_value: String,
    /// What will be.
    pub new_value: String,
}

/// Which side of replication it is on.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Takes writes.
    Primary {
        /// `pg_current_wal_flush_lsn()`.
        lsn: Lsn,
        /// Who streams from it.
        standbys: Vec<Standby>,
    },
    /// In recovery.
    Standby {
        /// `pg_last_wal_receive_lsn()`, and zero when nothing was streamed since the start.
        received: Lsn,
        /// `pg_last_wal_replay_lsn()`.
        replayed: Lsn,
        /// The last replayed commit, in microseconds since the Unix epoch.
        replayed_at_micros: Option<i64>,
        /// Replay is paused.
        replay_paused: bool,
        /// How it receives.
        replication: Option<ReplicationState>,
        /// `host` of the `primary_conninfo` it runs with; `None` when it follows nobody.
        upstream_host: Option<String>,
    },
}

/// A row of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq)]
pub struct Standby {
    /// `application_name`.
    pub name: NodeName,
    /// The role it streams as.
    pub user: String,
    /// Its address; `None` over the Unix socket.
    pub client: Option<String>,
    /// `streaming`, `catchup`, `startup`, `backup`, `stopping`.
    pub state: String,
    /// `async`, `potential`, `sync`, `quorum`.
    pub sync_state: String,
    /// Its place in the priority list; 0 when it is asynchronous.
    pub sync_priority: i32,
    /// Sent to it.
    pub sent: Option<Lsn>,
    /// Durable there.
    pub flushed: Option<Lsn>,
    /// Visible there.
    pub replayed: Option<Lsn>,
    /// How far commits need not wait for it: visible with `synchronous_commit=remote_apply`, else durable.
    pub confirmed: Option<Lsn>,
}

/// The highest timeline that one postmaster has reported. PostgreSQL forgets that of a walreceiver when this ends, while the
/// control file lags behind: without this memory a frozen standby would seem to be on an older timeline.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Streamed {
    postmaster: u32,
    timeline: Option<Timeline>,
    /// What had been replayed when it was last asked for the timeline of that, and what came of it.
    asked: Option<(Lsn, Reply)>,
}

/// What came of that question.
#[derive(Debug, Clone, Copy)]
enum Reply {
    /// The timeline.
    Told,
    /// Nothing, at that moment.
    Nothing(Moment),
}

/// A question is a program that is started: one that brought nothing is not repeated at once.
const ASKED_AGAIN: Duration = Duration::from_secs(1);

impl Streamed {
    /// Remembers `timeline` for this postmaster and returns the highest one that it has reported.
    fn highest(&mut self, postmaster: u32, timeline: Timeline) -> Timeline {
        if self.postmaster != postmaster {
            *self = Self { postmaster, timeline: None, asked: None };
        }
        let highest = self.timeline.map_or(timeline, |known| known.max(timeline));
        self.timeline = Some(highest);
        highest
    }
}

/// Looks. See [`super::Postgres::status`].
pub(super) async fn observe(shared: &Shared, patience: Duration) -> Status {
    let at = clock::now();
    let process = *shared.unit.state().borrow();
    let data = match process {
        UnitState::Running { .. } | UnitState::Stopping { .. } => control::last_known(shared).await,
        UnitState::Down { .. } | UnitState::Draining { .. } | UnitState::Backoff { .. } => {
            control::classify(shared).await
        }
    };
    let (sql, silence) = match process {
        UnitState::Running { pid, .. } | UnitState::Stopping { pid } => ask(shared, pid, patience).await,
        UnitState::Down { .. } | UnitState::Draining { .. } | UnitState::Backoff { .. } => (None, None),
    };
    Status { at, process, data, sql, silence }
}

async fn ask(shared: &Shared, pid: u32, patience: Duration) -> (Option<Answer>, Option<String>) {
    let until = clock::now() + patience;
    match sql::observe(shared, patience).await {
        Ok(mut answer) => {
            answer.timeline = match answer.kind {
                Kind::Primary { .. } => answer.timeline,
                Kind::Standby { replication, replayed, .. } => {
                    let known = lock(&shared.streamed).highest(pid, answer.timeline);
                    if replication == Some(ReplicationState::Streaming) {
                        known
                    } else {
                        of_replayed(shared, (pid, known, replayed), until).await
                    }
                }
            };
            (Some(answer), None)
        }
        Err(error) => (None, Some(sql::in_words(&error))),
    }
}

/// The timeline of a standby that does not stream: it may have gone on by itself, with WAL that it had already.
async fn of_replayed(
    shared: &Shared,
    (pid, known, replayed): (u32, Timeline, Lsn),
    until: Moment,
) -> Timeline {
    let is_settled = match lock(&shared.streamed).asked {
        Some((at, Reply::Told)) => at == replayed,
        Some((_, Reply::Nothing(asked))) => clock::now().since(asked) < ASKED_AGAIN,
        None => false,
    };
    if is_settled || !pedigree::goes_on_after(&shared.config.data_dir, known) {
        return known;
    }
    let left = clock::now().until(until);
    let too_slow = Error::TimedOut { what: "ask for the timeline that is replayed", after: left };
    let told = timeout(left, pedigree::replayed(shared)).await.unwrap_or(Err(too_slow));
    let mut streamed = lock(&shared.streamed);
    match told {
        Ok(timeline) => {
            streamed.asked = Some((replayed, Reply::Told));
            streamed.highest(pid, timeline)
        }
        Err(error) => {
            debug!(error = %Chain(&error), "the timeline that is replayed is not known");
            streamed.asked = Some((replayed, Reply::Nothing(clock::now())));
            known
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streamed_timeline_is_remembered_for_one_postmaster() {
        let mut streamed = Streamed::default();
        assert_eq!(streamed.highest(7, Timeline(3)), Timeline(3));
        assert_eq!(streamed.highest(7, Timeline(2)), Timeline(3));
        assert_eq!(streamed.highest(8, Timeline(2)), Timeline(2));
    }
}
