//! One PostgreSQL instance, 14 to 18, without any policy: what it is asked, it does, or it says why not.
//!
//! Invariants: PGDATA is complete or absent (initdb and pg_basebackup work beside it and rename), or marked as
//! [`DataDir::Incomplete`]; no data directory is deleted while it may be the only copy (it is quarantined); the
//! postmaster never listens before the rendered `pg_hba.conf` is in place; no password is ever part of an argument
//! list, an environment or an SQL statement.
//!
//! What is absent: any decision (who leads, whom to follow, when to give up: that is `ha`), and retries. A postmaster that
//! another process started is taken over on a machine only ([`machine`]).
//! The bootstrap superuser is `POSTGRES_USER`; a role `postgres` exists only when that is its name. The database `postgres` does.

mod adopt;
mod bootstrap;
mod clone;
mod conf;
mod configure;
mod control;
mod error;
mod hba;
mod import;
mod inherit;
mod launch;
pub mod machine;
mod marker;
pub mod method;
pub mod origin;
mod pedigree;
mod probe;
mod recovery;
mod reserve;
mod room;
pub mod salvage;
pub mod settings;
mod slots;
mod sql;
pub mod status;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use camino::Utf8PathBuf;
use nix::sys::signal::Signal;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::peer::Adopted;
use crate::process::RunAs;
use crate::supervisor::{Rung, Unit, UnitState};
use crate::types::{Host, Lsn, NodeId, NodeName, SlotName, SystemId, Timeline};

pub use adopt::{Memory, restore};
pub use error::Error;
pub use hba::Door;
pub use import::Source;
pub use launch::kin;
pub use machine::{DYNAMIC, Local, Login, Machine, NodeSettings, Premises};
pub use pedigree::{Containment, Pedigree};
pub use probe::{Check, Posture, Pulse};
pub use reserve::Reserve;
pub use settings::{Part, Stored};
pub use slots::{Horizon, PERMANENT_SLOTS, Slot, SlotKind, SlotPlan, SlotWal};
pub use status::{Answer, Control, ControlState, DataDir, Kind, PendingSetting, Standby, Status};

/// How long an immediate shutdown may take before SIGKILL: measured 57 ms; a stopped backend is what the sweep is for.
const IMMEDIATE_WAIT: Duration = Duration::from_millis(300);
/// How long the rung after a fast shutdown that took too long may last.
const QUIT_WAIT: Duration = Duration::from_millis(700);

/// What an instance needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where `postgres`, `initdb`, ... are.
    pub bin_dir: Utf8PathBuf,
    /// PGDATA.
    pub data_dir: Utf8PathBuf,
    /// `<volume>/pgherd`: quarantine, markers. On the same file system as PGDATA.
    pub state_dir: Utf8PathBuf,
    /// `RUN_DIR`: the Unix socket and pgpass.
    pub run_dir: Utf8PathBuf,
    /// Where the TLS files are.
    pub tls_dir: Utf8PathBuf,
    /// The account that PostgreSQL and its tools run as; it owns PGDATA.
    pub run_as: RunAs,
    /// `listen_addresses`.
    pub listen: String,
    /// The bound port.
    pub port: u16,
    /// The port that other nodes reach.
    pub advertised_port: u16,
    /// This member's name: `application_name` and `cluster_name`.
    pub name: NodeName,
    /// The password of `superuser`.
    pub superuser_password: SecretString,
    /// The password of `replication_user`.
    pub replication_password: SecretString,
    /// `POSTGRES_USER`: the bootstrap superuser's name, as in the official image.
    pub superuser: String,
    /// `POSTGRES_DB`.
    pub database: String,
    /// `replicator`, as in the predecessor.
    pub replication_user: String,
    /// `POSTGRES_INITDB_ARGS`, split; they come last, so they win.
    pub initdb_args: Vec<String>,
    /// `POSTGRES_PARAMETERS`.
    pub parameters: BTreeMap<String, String>,
    /// `POSTGRES_HBA`: extra lines, before ours.
    pub hba: Vec<String>,
    /// `SSL_ENABLED`: clients must use TLS.
    pub tls_required: ClientTls,
    /// `/docker-entrypoint-initdb.d`.
    pub init_scripts: Utf8PathBuf,
    /// Whose the server is.
    pub premises: Premises,
    /// `IMPORT_URL`: what a new cluster begins with.
    pub import: Option<Source>,
    /// Towards the cluster that this one follows.
    pub foreign_login: ForeignLogin,
}

/// Whether clients must use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientTls {
    /// With or without.
    Offered,
    /// Only with.
    Required,
}

/// Whom a standby follows or a copy is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its member name (for people).
    pub name: NodeName,
    /// Set: `host=<node_id>.pgherd.internal hostaddr=<address> sslmode=verify-full`, with our client certificate.
    /// Absent (a stock node): `host=<address> sslmode=prefer`.
    pub node_id: Option<NodeId>,
    /// Where it is.
    pub address: Host,
    /// The port that it advertises.
    pub port: u16,
    /// Set: it is no member, but a server of the cluster that this one follows.
    pub foreign: Option<Foreign>,
}

/// What is particular about a server of another cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The slot that exists for us there.
    pub slot: Option<SlotName>,
}

/// How this node shows itself to the cluster that it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForeignLogin {
    /// By the replication role's password.
    #[default]
    Password,
    /// Also by a certificate of that cluster, whose authority is known: `remote-ca.crt` and `remote-replicator.{crt,key}`.
    Certificate,
}

/// How to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAs {
    /// As a primary (crash recovery included).
    Primary,
    /// As a standby of this upstream; of nobody when there is none to follow yet.
    Standby(Option<Upstream>),
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// SIGINT, then SIGQUIT after this long, then SIGKILL.
    Fast {
        /// How long the clean shutdown may take.
        patience: Duration,
    },
    /// SIGQUIT, 300 ms, SIGKILL and sweep.
    Immediate,
}

impl StopMode {
    /// The signals, and how long each has.
    pub fn ladder(self) -> Vec<Rung> {
        match self {
            Self::Fast { patience } => vec![
                Rung { signal: Signal::SIGINT, wait: patience },
                Rung { signal: Signal::SIGQUIT, wait: QUIT_WAIT },
            ],
            Self::Immediate => vec![Rung { signal: Signal::SIGQUIT, wait: IMMEDIATE_WAIT }],
        }
    }
}

/// A handle on the instance. Cloneable; clones share the one SQL connection.
#[derive(Debug, Clone)]
pub struct Postgres {
    shared: Arc<Shared>,
}

/// What the clones of a handle share.
#[derive(Debug)]
struct Shared {
    config: Config,
    unit: Unit,
    /// The one persistent SQL connection.
    link: sql::Link,
    /// Whom to follow and who confirms commits: what the HA core sets.
    settings: Mutex<conf::Settings>,
    /// Everything else that the server is told.
    configuration: Mutex<configure::Configuration>,
    /// The last reading of the control file.
    control: Mutex<control::Cache>,
    /// The highest timeline that this postmaster's walreceiver has reported.
    streamed: Mutex<status::Streamed>,
}

/// Locks for a moment; never across an await. A panic elsewhere leaves nothing half done in these small values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Postgres {
    /// `unit` is a unit with `Restart::Never`.
    pub fn new(config: Config, unit: Unit) -> Self {
        let (settings, configuration, control) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (link, streamed) = (sql::Link::default(), Mutex::default());
        Self { shared: Arc::new(Shared { link, settings, configuration, control, streamed, config, unit }) }
    }

    /// The process, now and from now on.
    pub fn process(&self) -> watch::Receiver<UnitState> {
        self.shared.unit.state()
    }

    /// Everything about the instance: process, data directory (pg_controldata, while it does not run), and one SQL
    /// round trip with a deadline of `patience` when it runs. Never fails: what could not be learned is said in the
    /// status.
    pub async fn status(&self, patience: Duration) -> Status {
        status::observe(&self.shared, patience).await
    }

    /// Moves data from before pgherd aside, and tells what there is of it.
    ///
    /// # Errors
    /// It is of another major version, or cannot be moved.
    pub async fn adopt(&self, memory: Memory) -> Result<Option<Adopted>, Error> {
        adopt::take(&self.shared, memory).await
    }

    /// What a new cluster begins with that begins with the data from before pgherd.
    ///
    /// # Errors
    /// Its control file cannot be read.
    pub async fn beginning(&self, parameters: &BTreeMap<String, String>) -> Result<Stored, Error> {
        adopt::beginning(&self.shared, parameters).await
    }

    /// initdb into a temporary directory beside PGDATA, then rename: PGDATA is complete or absent. The replication
    /// role, `POSTGRES_DB` and the init scripts come from [`Postgres::finish_bootstrap`].
    ///
    /// # Errors
    /// PGDATA is neither absent nor empty, or a clone was begun here before; initdb fails.
    pub async fn initdb(&self) -> Result<SystemId, Error> {
        bootstrap::initdb(&self.shared).await
    }

    /// On the first primary, once: replication role, database, init scripts. Idempotent; a script that has succeeded
    /// never runs again in the same cluster.
    ///
    /// # Errors
    /// SQL fails; a script fails (the error names it).
    pub async fn finish_bootstrap(&self) -> Result<(), Error> {
        bootstrap::finish(&self.shared).await
    }

    /// Renders the configuration and starts the postmaster; returns when it was executed, not when it is ready.
    ///
    /// # Errors
    /// PGDATA is not a complete cluster, another postmaster lives in it, a file cannot be written, or the process
    /// cannot be executed.
    pub async fn start(&self, how: &StartAs, sync_names: &str) -> Result<(), Error> {
        launch::start(&self.shared, how, sync_names).await
    }

    /// Takes charge of a postmaster that runs on the data directory already, if there is one; its pid (agent mode).
    ///
    /// # Errors
    /// The pid file cannot be read.
    pub async fn adopt_running(&self) -> Result<Option<u32>, Error> {
        launch::adopt_running(&self.shared).await
    }

    /// Returns when the postmaster and every backend are gone.
    ///
    /// # Errors
    /// None at present: the ladder ends with SIGKILL and the sweep.
    pub async fn stop(&self, mode: StopMode) -> Result<(), Error> {
        let ladder = launch::before_stop(&self.shared, mode).await.ladder();
        self.shared.unit.stop(Some(ladder)).await;
        self.shared.link.close();
        Ok(())
    }

    /// Lets only ourselves and standbys in, from the next start on. (Not in agent mode, where the rules are not ours.)
    pub fn close_door(&self) {
        lock(&self.shared.settings).door = Door::Closed;
    }

    /// Lets clients in.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn open_door(&self) -> Result<(), Error> {
        conf::open_door(&self.shared).await
    }

    /// Follows this upstream, without a restart, and connects to it now.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub async fn follow(&self, upstream: Option<&Upstream>) -> Result<(), Error> {
        conf::follow(&self.shared, upstream.cloned()).await
    }

    /// Stops the walreceiver so that the position no longer moves (a frozen vote); [`Postgres::follow`] resumes.
    ///
    /// # Errors
    /// The walreceiver is still there, or received WAL is still being replayed, after one second.
    pub async fn freeze(&self) -> Result<(), Error> {
        conf::change(&self.shared, |settings| settings.stream_from(None)).await?;
        sql::wait_until_frozen(&self.shared).await
    }

    /// Asks for promotion and returns when the instance takes writes.
    ///
    /// # Errors
    /// It still does not after `patience`; the promotion may yet succeed.
    pub async fn promote(&self, patience: Duration) -> Result<(), Error> {
        sql::promote(&self.shared, patience).await?;
        lock(&self.shared.settings).stream_from(None);
        Ok(())
    }

    /// A checkpoint, on a connection of its own so that status does not wait behind it.
    ///
    /// # Errors
    /// It did not finish within `patience` (it is then cancelled).
    pub async fn checkpoint(&self, patience: Duration) -> Result<(), Error> {
        sql::checkpoint(&self.shared, patience).await
    }

    /// Sets `synchronous_standby_names`, reloads, and returns when the new value is in force.
    ///
    /// # Errors
    /// The configuration cannot be written, or the value is not in force after two seconds.
    pub async fn set_sync_names(&self, names: &str) -> Result<(), Error> {
        conf::change(&self.shared, |settings| names.clone_into(&mut settings.sync_names)).await?;
        sql::wait_for_sync_names(&self.shared, names).await
    }

    /// Takes what the store says of PostgreSQL for the next start and for the next [`Postgres::configure`].
    pub fn intend(&self, stored: Stored) {
        lock(&self.shared.configuration).intend(stored);
    }

    /// Brings the running server to the settings that are wanted for this part: writes what has changed, and reloads then.
    /// A setting that the server refuses is left out and said in [`Postgres::complaints`].
    ///
    /// # Errors
    /// A file cannot be written, or the server does not say what it makes of `pg_hba.conf`.
    pub async fn configure(&self, part: Part) -> Result<(), Error> {
        configure::apply(&self.shared, part).await
    }

    /// Which settings are not used, and why.
    pub fn complaints(&self) -> Vec<String> {
        lock(&self.shared.configuration).complaints()
    }

    /// The account that the server runs as.
    pub fn run_as(&self) -> &RunAs {
        &self.shared.config.run_as
    }

    /// Moves a copy of a logical slot in its database up to here, which decodes what lies in between, however long that takes.
    /// One that has lost its WAL is dropped. Once it is `unwanted` it stays where it is, free for whoever uses it.
    ///
    /// # Errors
    /// The server is down or ends; somebody uses the slot.
    pub async fn move_copy(
        &self,
        slot: &SlotName,
        place: (&str, Lsn),
        unwanted: &CancellationToken,
    ) -> Result<(), Error> {
        slots::follow(&self.shared, slot, place, unwanted).await
    }

    /// Drops, makes and moves slots, but for copies of logical ones. Whatever somebody has begun to use stays as it is.
    ///
    /// # Errors
    /// SQL fails (all slots are taken, a plugin is missing, the server is down).
    pub async fn change_slots(&self, plan: &SlotPlan) -> Result<(), Error> {
        slots::change(&self.shared, plan).await
    }

    /// pg_basebackup into a temporary directory, then a swap: the old PGDATA goes to the quarantine only when the copy
    /// is complete.
    ///
    /// # Errors
    /// PostgreSQL runs; the copy fails (an old PGDATA is then untouched).
    pub async fn clone_from(&self, upstream: &Upstream) -> Result<(), Error> {
        clone::clone_from(&self.shared, upstream).await
    }

    /// pg_rewind with a marker around it. PostgreSQL must be down; crash recovery in single-user mode is done here when
    /// it was not shut down cleanly.
    ///
    /// # Errors
    /// Before the marker: PGDATA is unchanged (apart from crash recovery). After it: [`DataDir::Incomplete`].
    pub async fn rewind(&self, upstream: &Upstream) -> Result<(), Error> {
        clone::rewind(&self.shared, upstream).await
    }

    /// One sign of life, asked for on a connection of its own; there is always an answer within `patience`.
    pub async fn check(&self, what: Check, patience: Duration) -> Pulse {
        probe::check(&self.shared, what, patience).await
    }

    /// What the control file says now, whether a server runs or not; none when it cannot be read.
    pub async fn control(&self) -> Option<Control> {
        match control::classify(&self.shared).await {
            DataDir::Cluster(control) => Some(control),
            DataDir::Empty | DataDir::Incomplete { .. } | DataDir::Unreadable { .. } => None,
        }
    }

    /// What the process said last: the reason of an early end, most often. "is shut down", which follows it, is none.
    pub fn last_words(&self) -> String {
        let lines = self.shared.unit.last_lines().join("\n");
        control::complaint(&lines).unwrap_or("it said nothing").to_owned()
    }

    /// Whether the standby was lately told that WAL which it needs has been removed upstream.
    pub fn misses_wal(&self) -> bool {
        self.shared.unit.last_lines().iter().any(|line| line.contains("has already been removed"))
    }

    /// Whether the data knows of the timeline after this one: a standby fetches its history before any of its WAL.
    pub fn has_history_after(&self, timeline: Timeline) -> bool {
        pedigree::goes_on_after(&self.shared.config.data_dir, timeline)
    }

    /// The text of the local history file of this timeline and when it was written; empty for the first, which has none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn local_history(&self, timeline: Timeline) -> Result<(String, jiff::Timestamp), Error> {
        if timeline <= Timeline(1) {
            return Ok((String::new(), clock::wall()));
        }
        let path = pedigree::history_file(&self.shared.config.data_dir, timeline);
        let text = tokio::fs::read_to_string(&path).await.map_err(Error::file("read", &path))?;
        let written = tokio::fs::metadata(&path).await.and_then(|file| file.modified());
        let written = written.map_err(Error::file("read", &path))?;
        Ok((text, jiff::Timestamp::try_from(written).unwrap_or_else(|_out_of_range| clock::wall())))
    }

    /// Asks an upstream for its timeline and the history of that timeline, over a replication connection.
    ///
    /// # Errors
    /// No answer within five seconds, or one that cannot be read.
    pub async fn upstream_history(&self, upstream: &Upstream) -> Result<Pedigree, Error> {
        pedigree::ask(&self.shared, upstream).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_send<T: Send>(_future: impl FnOnce(&'static Postgres) -> T) {}

    #[test]
    fn every_operation_may_run_as_a_task() {
        assert_send(|pg| pg.status(Duration::ZERO));
        assert_send(|pg| pg.initdb());
        assert_send(|pg| pg.finish_bootstrap());
        assert_send(|pg| pg.start(&StartAs::Primary, ""));
        assert_send(|pg| pg.freeze());
        assert_send(|pg| pg.promote(Duration::ZERO));
        assert_send(|pg| pg.set_sync_names(""));
    }

    #[test]
    fn ladders_end_in_what_cannot_be_refused() {
        let signals = |mode: StopMode| mode.ladder().iter().map(|rung| rung.signal).collect::<Vec<_>>();
        let patience = Duration::from_secs(9);
        assert_eq!(signals(StopMode::Fast { patience }), [Signal::SIGINT, Signal::SIGQUIT]);
        assert_eq!(signals(StopMode::Immediate), [Signal::SIGQUIT]);
        assert_eq!(StopMode::Fast { patience }.ladder()[0].wait, patience);
    }
}
