//! Copies from another node: pg_basebackup, pg_rewind.
//!
//! A copy is made beside PGDATA and swapped in when it is complete; what it replaces goes to the quarantine. A
//! marker in the state directory (never in PGDATA: both tools would copy or delete it) tells that PGDATA is missing
//! because of a clone, or half rewound.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tracing::{info, warn};

use super::launch::{
    UNSTARTED_COPY, has_backup_label, ignoring, remove_signal_files, require_cluster, stale_pid, sync_dir,
};
use super::settings::Part;
use super::status::{ControlState, DataDir};
use super::{Error, Premises, Shared, Upstream, conf, configure, control, lock, marker, method, salvage};
use crate::clock;
use crate::process::{self, Command};
use crate::supervisor::UnitState;

/// A bound for the sake of having one: a copy of terabytes may take a day, and a dead peer is noticed by TCP (see
/// `conf::conninfo`) long before.
pub(super) const COPY_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How many old data directories are kept.
const QUARANTINE_KEEP: usize = 2;

/// See [`super::Postgres::clone_from`].
pub(super) async fn clone_from(shared: &Shared, upstream: &Upstream) -> Result<(), Error> {
    begin(shared).await?;
    match &shared.config.premises {
        Premises::Container => by_base_backup(shared, upstream).await?,
        Premises::Machine(machine) => {
            let methods = method::chosen(shared, machine, upstream);
            method::copy(shared, upstream, &methods).await?;
        }
    }
    complete(shared).await
}

/// See [`super::Postgres::copy_alone`].
pub(super) async fn copy_alone(shared: &Shared) -> Result<(), Error> {
    begin(shared).await?;
    method::copy_alone(shared).await?;
    complete(shared).await
}

async fn begin(shared: &Shared) -> Result<(), Error> {
    require_down(shared)?;
    conf::write_passfile(&shared.config)?;
    remove_leftovers(shared).await?;
    marker::set(shared, marker::CLONE).await
}

async fn complete(shared: &Shared) -> Result<(), Error> {
    for name in [marker::REWIND, marker::FILL, marker::ORIGIN, marker::CLONE] {
        marker::clear(shared, name).await?;
    }
    if let Err(error) = prune_quarantine(shared).await {
        warn!(%error, "old data directories stay in the quarantine");
    }
    Ok(())
}

/// A copy that is made beside PGDATA, and moved into its place when it is complete.
pub(super) async fn by_base_backup(shared: &Shared, upstream: &Upstream) -> Result<(), Error> {
    let copy = beside_data_dir(shared, "clone");
    let made = base_backup(shared, upstream, &copy).await;
    if let Err(error) = made {
        // The next clone would remove it too; now it gives the space back at once.
        if let Err(left) = remove_tree(&copy).await {
            warn!(%left, path = %copy, "an unfinished copy stays until the next clone");
        }
        return Err(error);
    }
    put_aside(shared).await?;
    put_in_place(shared, &copy)
}

/// The whole directory goes to the quarantine, which holds on to it for a while; a failure costs no more than that.
pub(super) async fn put_wal_aside(shared: &Shared) {
    // A half rewound directory has had its WAL put aside before.
    let DataDir::Cluster(found) = control::classify(shared).await else { return };
    if let Err(error) = salvage::put_aside(shared, &found, None).await {
        warn!(%error, "WAL that only this node has is in the quarantine alone");
    }
}

async fn base_backup(shared: &Shared, upstream: &Upstream, copy: &Utf8Path) -> Result<(), Error> {
    let config = &shared.config;
    make_dir(shared, copy)?;
    // Not our member name: while it streams WAL it would be taken for the synchronous standby of that name.
    let conninfo = conf::conninfo(config, upstream, "pgherd_clone");
    let more: &[String] = match &config.premises {
        Premises::Container => &[],
        Premises::Machine(machine) => &machine.basebackup,
    };
    let command = Command::new("pg_basebackup", config.bin_dir.join("pg_basebackup"))
        .args(["-D", copy.as_str(), "-d", conninfo.as_str()])
        .args(["--wal-method=stream", "--checkpoint=fast", "--no-password"])
        .args(more.iter().cloned())
        .env("LC_ALL", "C")
        .run_as(&config.run_as);
    control::run(&command, "pg_basebackup", COPY_LIMIT).await?;
    control::read(shared, copy).await.map(|_control| ())
}

/// Moves the old directory away, if there is anything in it. A crash after it leaves PGDATA absent and the marker.
pub(super) async fn put_aside(shared: &Shared) -> Result<(), Error> {
    put_wal_aside(shared).await;
    let data_dir = &shared.config.data_dir;
    match control::is_empty(data_dir).map_err(Error::file("read", data_dir))? {
        true => Ok(()),
        false => quarantine(shared),
    }
}

/// Makes a finished directory PGDATA, which must be absent or empty.
pub(super) fn put_in_place(shared: &Shared, fresh: &Utf8Path) -> Result<(), Error> {
    let data_dir = &shared.config.data_dir;
    std::fs::rename(fresh, data_dir).map_err(Error::file("rename", fresh))?;
    sync_parent(data_dir)
}

fn quarantine(shared: &Shared) -> Result<(), Error> {
    let data_dir = &shared.config.data_dir;
    let place = quarantine_dir(shared);
    make_dir(shared, &place)?;
    let target = place.join(clock::wall().strftime("%Y%m%dT%H%M%S.%6fZ").to_string());
    std::fs::rename(data_dir, &target).map_err(Error::file("rename", data_dir))?;
    info!(path = %target, "moved the old data directory to the quarantine");
    sync_dir(&place)
}

fn quarantine_dir(shared: &Shared) -> Utf8PathBuf {
    shared.config.state_dir.join("quarantine")
}

/// Removes all but the newest; only called when PGDATA is a complete copy.
pub(super) async fn prune_quarantine(shared: &Shared) -> Result<(), Error> {
    let place = quarantine_dir(shared);
    // The names are timestamps: sorted, the oldest come first.
    let kept = entries(&place)?;
    let n_surplus = kept.len().saturating_sub(QUARANTINE_KEEP);
    for path in kept.iter().take(n_surplus) {
        info!(%path, "removing an old data directory from the quarantine");
        remove_tree(path).await?;
    }
    Ok(())
}

/// The entries of a directory in the order of their names; none when it does not exist.
pub(super) fn entries(dir: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Error> {
    let entries = match dir.read_dir_utf8() {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", dir)(error)),
    };
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|e| e.path().to_owned())).collect();
    let mut paths = paths.map_err(Error::file("read", dir))?;
    paths.sort_unstable();
    Ok(paths)
}

/// A fresh name for a directory that will become PGDATA.
pub(super) fn beside_data_dir(shared: &Shared, purpose: &str) -> Utf8PathBuf {
    Utf8PathBuf::from(format!(
        "{}.{purpose}-{:08x}",
        shared.config.data_dir,
        StdRng::from_os_rng().next_u32()
    ))
}

/// Removes what interrupted clones and initdbs left beside PGDATA. They never became PGDATA, so nothing is lost.
pub(super) async fn remove_leftovers(shared: &Shared) -> Result<(), Error> {
    let data_dir = &shared.config.data_dir;
    let (Some(parent), Some(name)) = (data_dir.parent(), data_dir.file_name()) else { return Ok(()) };
    for path in entries(parent)? {
        let suffix = path.file_name().and_then(|n| n.strip_prefix(name));
        if suffix.is_some_and(is_leftover) {
            info!(%path, "removing an unfinished copy");
            remove_tree(&path).await?;
        }
    }
    Ok(())
}

/// Exactly what [`beside_data_dir`] appends.
fn is_leftover(suffix: &str) -> bool {
    let id = suffix.strip_prefix(".clone-").or_else(|| suffix.strip_prefix(".new-"));
    id.is_some_and(|id| id.len() == 8 && id.chars().all(|c| c.is_ascii_hexdigit()))
}

pub(super) async fn remove_tree(path: &Utf8Path) -> Result<(), Error> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes a directory for PostgreSQL's account.
pub(super) fn make_dir(shared: &Shared, path: &Utf8Path) -> Result<(), Error> {
    let write = |source| Error::Write { path: path.to_owned(), source };
    process::make_private_dir(path, &shared.config.run_as).map_err(write)
}

fn sync_parent(path: &Utf8Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), sync_dir)
}

/// Nothing here may touch a directory that a server uses.
pub(super) fn require_down(shared: &Shared) -> Result<(), Error> {
    match *shared.unit.state().borrow() {
        UnitState::Down { .. } | UnitState::Backoff { .. } => {
            stale_pid(&shared.config.data_dir).map(|_stale| ())
        }
        UnitState::Running { .. } | UnitState::Stopping { .. } | UnitState::Draining { .. } => {
            Err(Error::StillRunning)
        }
    }
}

/// See [`super::Postgres::rewind`].
pub(super) async fn rewind(shared: &Shared, upstream: &Upstream) -> Result<(), Error> {
    require_down(shared)?;
    let found = require_cluster(shared).await?;
    let effective = configure::for_start(shared, Part::Primary).await?;
    lock(&shared.configuration).not_started();
    conf::write_all(shared, conf::Settings::default(), &effective).await?;
    match found.state {
        ControlState::ShutDown | ControlState::ShutDownInRecovery => {}
        ControlState::StartingUp
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InArchiveRecovery
        | ControlState::InProduction
        | ControlState::Unknown => recover_alone(shared).await?,
    }
    // A trial run finds an unreachable upstream or missing WAL while PGDATA is still whole.
    let said = pg_rewind(shared, upstream, &["--dry-run"]).await?;
    let control = require_cluster(shared).await?;
    salvage::put_aside(shared, &control, salvage::divergence(&said)).await?;
    marker::set(shared, marker::REWIND).await?;
    pg_rewind(shared, upstream, &[]).await?;
    marker::clear(shared, marker::REWIND).await
}

/// Crash recovery by a single-user server: pg_rewind needs a clean shutdown.
async fn recover_alone(shared: &Shared) -> Result<(), Error> {
    let config = &shared.config;
    if has_backup_label(config) {
        return Err(Error::Incomplete { why: UNSTARTED_COPY });
    }
    // A single-user server refuses to be a standby.
    remove_signal_files(&config.data_dir)?;
    let command = Command::new("postgres", config.bin_dir.join("postgres"))
        .args(["--single", "-D", config.data_dir.as_str(), "-c"])
        .arg(format!("config_file={}", config.config_dir().join("postgresql.conf")))
        // What it writes is about to be rewound: it is nothing to archive.
        .args(["-c", "archive_mode=on", "-c", "archive_command=false"])
        .arg("template1")
        .run_as(&config.run_as);
    let command = ignoring(stale_pid(&config.data_dir)?, command);
    control::run(&command, "postgres --single", COPY_LIMIT).await.map(|_output| ())
}

/// Returns what it says of it.
async fn pg_rewind(shared: &Shared, upstream: &Upstream, extra: &[&str]) -> Result<String, Error> {
    let config = &shared.config;
    let source = conf::rewind_conninfo(config, upstream);
    let command = Command::new("pg_rewind", config.bin_dir.join("pg_rewind"))
        .arg(format!("--target-pgdata={}", config.data_dir))
        .arg(format!("--source-server={source}"))
        .args(extra.iter().copied())
        .env("LC_ALL", "C")
        .run_as(&config.run_as);
    let output = control::run(&command, "pg_rewind", COPY_LIMIT).await?;
    // Version 14 and newer say it on standard error.
    Ok(output.stdout + &output.stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_leftovers_are_recognised() {
        assert!(is_leftover(".clone-0123abcd"));
        assert!(is_leftover(".new-0123abcd"));
        for other in ["", "-old", ".clone-", ".clone-0123abc", ".new-0123abcx", ".backup-0123abcd"] {
            assert!(!is_leftover(other), "{other}");
        }
    }
}
