//! The start: what must be true of PGDATA before the postmaster is executed.
//!
//! A `postmaster.pid` that a dead postmaster left behind is not unlinked (that has races): PostgreSQL is told to
//! ignore the recorded pid. A postmaster that lives is never adopted and never fought: the start fails (supervision
//! 4.3).

use std::time::Duration;

use camino::Utf8Path;
use nix::sys::signal::Signal;
use tokio::time::timeout;
use tracing::{info, warn};

use super::conf::{self, Found, Settings};
use super::method::SEARCH_PATH;
use super::settings::Part;
use super::status::DataDir;
use super::{Config, Door, Error, Premises, Shared, StartAs, StopMode, configure, control, lock, marker};
use crate::clock;
use crate::process::{self, Command, Kin, Kinship, PidHandle};
use crate::supervisor::UnitState;
use crate::types::Chain;

/// `postgres -C` reads two files.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// A server that starts is looked at this often at first, and then every hundredth of the time that it takes: its file is small, and
/// clients wait.
const OPENING: Duration = Duration::from_millis(5);
/// How much more readily the kernel ends a backend than the postmaster when memory runs out.
const EXPENDABLE_BACKEND: i32 = 300;

/// Why a directory with a `backup_label` is not used as one that has been a primary.
pub(super) const UNSTARTED_COPY: &str = "a base backup that has never been started as a standby";

/// See [`super::Postgres::adopt_running`].
pub(super) async fn adopt_running(shared: &Shared) -> Result<Option<u32>, Error> {
    let data_dir = &shared.config.data_dir;
    let Some(text) = read_if_there(&data_dir.join("postmaster.pid"))? else { return Ok(None) };
    let Some(pid) = first_pid(&text).and_then(|pid| u32::try_from(pid).ok()) else { return Ok(None) };
    // Held first, looked at afterwards: the number may become another process's at any moment.
    let Ok(process) = PidHandle::open(pid) else { return Ok(None) };
    if kin(data_dir).is(pid) == Kinship::Stranger {
        return Ok(None);
    }
    // Nothing of this may change before somebody decides so: commits wait for the standbys that are named there.
    let sync_names = in_force(shared, "synchronous_standby_names").await?;
    let found = Found {
        conninfo: in_force(shared, "primary_conninfo").await?,
        slot: in_force(shared, "primary_slot_name").await?,
    };
    *lock(&shared.settings) = Settings { upstream: None, sync_names, found: Some(found), door: Door::Open };
    shared.unit.adopt(process).await.map_err(|source| Error::Start { source })?;
    // Somebody else has put the data in service since: what commands left unfinished is over. A single-user server, whose
    // number is negative, serves nobody: it may be part of such an attempt.
    if !text.trim_start().starts_with('-') {
        for name in [marker::FILL, marker::ORIGIN] {
            marker::clear(shared, name).await?;
        }
    }
    Ok(Some(pid))
}

impl super::Postgres {
    /// Returns when the server that runs takes connections: it says so in its pid file. Its pid; never when it is `known`.
    pub async fn opened(&self, known: Option<u32>) -> u32 {
        let path = self.shared.config.data_dir.join("postmaster.pid");
        loop {
            let UnitState::Running { pid, since } = *self.process().borrow() else { break };
            if known == Some(pid) {
                break;
            }
            let path = path.clone();
            let text = conf::off_thread(move || read_if_there(&path)).await.ok().flatten();
            // What a server before this one has left behind says the same of another.
            if text.as_deref().and_then(open_pid) == Some(pid) {
                return pid;
            }
            tokio::time::sleep(OPENING.max(clock::now().since(since) / 100)).await;
        }
        std::future::pending().await
    }
}

/// The pid in a pid file whose eighth line says that connections are taken.
fn open_pid(text: &str) -> Option<u32> {
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok()?;
    (lines.nth(6)?.trim() == "ready").then_some(pid)
}

/// What the files say of a setting: a server that does not answer yet goes by it as well.
async fn in_force(shared: &Shared, name: &'static str) -> Result<String, Error> {
    let command = server(shared).args(["-C", name]).quiet();
    let output = control::run(&command, "postgres -C", READ_LIMIT).await?;
    Ok(output.stdout.trim_end_matches('\n').to_owned())
}

/// Runs the administrator's `before_stop` within half of what a stop in order may take, and gives what is left of that: no stop
/// takes longer because of it, and one at once does not wait for it.
pub(super) async fn before_stop(shared: &Shared, mode: StopMode) -> StopMode {
    let (Premises::Machine(machine), StopMode::Fast { patience }) = (&shared.config.premises, mode) else {
        return mode;
    };
    let Some((program, args)) = machine.before_stop.split_first() else { return mode };
    match *shared.unit.state().borrow() {
        UnitState::Running { .. } => {}
        UnitState::Down { .. }
        | UnitState::Backoff { .. }
        | UnitState::Stopping { .. }
        | UnitState::Draining { .. } => return mode,
    }
    let command = Command::new("before_stop", program.as_str())
        .args(args.iter().cloned())
        .env("PATH", format!("{}:{SEARCH_PATH}", shared.config.bin_dir))
        .of_administrator(&shared.config.run_as);
    StopMode::Fast { patience: half_for(&command, patience).await }
}

/// Runs it for at most half of the time, and gives what is left. At the end of its half it is killed at once, without a
/// signal and patience of its own: a lease may be ending, and the server is still writable.
async fn half_for(command: &Command, patience: Duration) -> Duration {
    let began = clock::now();
    match timeout(patience / 2, control::run(command, "before_stop", patience)).await {
        Ok(Ok(_output)) => info!("before_stop has ended"),
        Ok(Err(error)) => warn!(error = %Chain(&error), "before_stop has failed: stopping all the same"),
        Err(_late) => warn!("before_stop has had its half of the time: it is killed"),
    }
    patience.saturating_sub(clock::now().since(began))
}

/// See [`super::Postgres::start`].
pub(super) async fn start(shared: &Shared, how: &StartAs, sync_names: &str) -> Result<(), Error> {
    require_cluster(shared).await?;
    refuse_unfinished_copy(shared, how)?;
    let config = shared.config.clone();
    let role = how.clone();
    let stale = conf::off_thread(move || {
        let stale = stale_pid(&config.data_dir)?;
        forget_socket(&config)?;
        set_signal_files(&config, &role)?;
        Ok(stale)
    })
    .await?;
    let upstream = match how {
        StartAs::Primary => None,
        StartAs::Standby(upstream) => upstream.clone(),
    };
    let part = match how {
        StartAs::Primary => Part::Primary,
        StartAs::Standby(_) => Part::Replica,
    };
    let effective = configure::for_start(shared, part).await?;
    let door = lock(&shared.settings).door;
    let settings = Settings { upstream, sync_names: sync_names.to_owned(), found: None, door };
    conf::write_all(shared, settings, &effective).await?;
    shared.link.close();
    let fixed =
        effective.command_line().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    let command = ignoring(stale, server(shared).args(fixed));
    let command = match shared.config.premises {
        Premises::Container => command.death_signal(Signal::SIGQUIT),
        Premises::Machine(_) => command.outliving_us(),
    };
    shared.unit.start(command).await.map(|_pid| ()).map_err(|source| Error::Start { source })
}

/// The server's command line; a start adds what must be equal on every member, and everything stands in postgresql.conf.
pub(super) fn server(shared: &Shared) -> Command {
    let config = &shared.config;
    let elsewhere = (config.config_dir() != &config.data_dir)
        .then(|| format!("--config_file={}", config.config_dir().join("postgresql.conf")));
    Command::new("postgres", config.bin_dir.join("postgres"))
        .args(["-D", config.data_dir.as_str()])
        .args(elsewhere)
        // When memory runs out the kernel is to take a backend: the postmaster's end would be everybody's.
        .env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj")
        .env("PG_OOM_ADJUST_VALUE", process::oom_score_above(EXPENDABLE_BACKEND).to_string())
        .run_as(&config.run_as)
}

/// Has the server take the recorded pid for its grandparent, which it ignores.
pub(super) fn ignoring(stale: Option<i32>, command: Command) -> Command {
    match stale {
        Some(pid) => command.env("PG_GRANDPARENT_PID", pid.to_string()),
        None => command,
    }
}

/// A directory that is not a complete cluster is never started, whoever asks.
pub(super) async fn require_cluster(shared: &Shared) -> Result<super::Control, Error> {
    let path = shared.config.data_dir.clone();
    match control::classify(shared).await {
        DataDir::Cluster(control) => Ok(control),
        DataDir::Incomplete { why } => Err(Error::Incomplete { why }),
        DataDir::Empty => Err(Error::NoCluster { path, why: "it is empty".to_owned() }),
        DataDir::Unreadable { why } => Err(Error::NoCluster { path, why }),
    }
}

/// A copy that has never replayed up to the end of its backup may become a standby, but not a primary: it would go on
/// writing the timeline of the server that it was taken from.
fn refuse_unfinished_copy(shared: &Shared, how: &StartAs) -> Result<(), Error> {
    match how {
        StartAs::Primary if has_backup_label(&shared.config) => {
            Err(Error::Incomplete { why: UNSTARTED_COPY })
        }
        StartAs::Primary | StartAs::Standby(_) => Ok(()),
    }
}

/// Whether the directory is a base backup that no server has been started from.
pub(super) fn has_backup_label(config: &Config) -> bool {
    config.data_dir.join("backup_label").exists()
}

/// The pid in `postmaster.pid`, when no postmaster of this directory lives under it. A file without a pid is removed:
/// PostgreSQL refuses to start over it, and whoever wrote it did not live to finish it.
pub(super) fn stale_pid(data_dir: &Utf8Path) -> Result<Option<i32>, Error> {
    let path = data_dir.join("postmaster.pid");
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    let Some(pid) = first_pid(&text) else {
        return std::fs::remove_file(&path).map(|()| None).map_err(Error::file("remove", &path));
    };
    if postmaster_lives(pid, data_dir) { Err(Error::ForeignPostmaster { pid }) } else { Ok(Some(pid)) }
}

/// The first line is the pid, negative when it is a single-user server.
fn first_pid(text: &str) -> Option<i32> {
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    pid.checked_abs().filter(|pid| *pid > 0)
}

fn read_if_there(path: &Utf8Path) -> Result<Option<String>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// Whether `pid` is a living server in `data_dir`. What cannot be learned counts as "yes": a thread or a process of
/// another kind has another name, so only a server's own secrets can be hidden from us.
fn postmaster_lives(pid: i32, data_dir: &Utf8Path) -> bool {
    u32::try_from(pid).is_ok_and(|pid| kin(data_dir).is(pid) != Kinship::Stranger)
}

/// The postmaster of a data directory and its backends.
pub fn kin(data_dir: &Utf8Path) -> Kin {
    Kin { names: &["postgres", "postmaster"], dir: data_dir.to_owned() }
}

/// The socket's lock file outlives a killed postmaster too, and PostgreSQL can be told of one stale pid only. The
/// directory is ours alone and no server of ours runs, so a lock of nobody's is removed.
fn forget_socket(config: &Config) -> Result<(), Error> {
    // On a machine the sockets' directory is everybody's; PostgreSQL itself sorts out what lies there.
    let Premises::Container = config.premises else { return Ok(()) };
    let lock = config.run_dir.join(format!(".s.PGSQL.{}.lock", config.port));
    let Some(text) = read_if_there(&lock)? else { return Ok(()) };
    // The second line is the data directory of the server that made it.
    let data_dir = text.lines().nth(1).unwrap_or("").to_owned();
    match first_pid(&text) {
        Some(pid) if postmaster_lives(pid, Utf8Path::new(&data_dir)) => Err(Error::ForeignPostmaster { pid }),
        Some(_) | None => std::fs::remove_file(&lock).map_err(Error::file("remove", &lock)),
    }
}

/// Makes a server a standby.
pub(super) const STANDBY_SIGNAL: &str = "standby.signal";
/// Has it recover from an archive.
pub(super) const RECOVERY_SIGNAL: &str = "recovery.signal";

/// `standby.signal` says what the server is to be. It is made (or removed) durably before the server runs.
fn set_signal_files(config: &Config, how: &StartAs) -> Result<(), Error> {
    let standby = config.data_dir.join(STANDBY_SIGNAL);
    match how {
        StartAs::Primary => remove_signal_files(&config.data_dir),
        StartAs::Standby(_) => conf::write(config, &standby, "").map(|_changed| ()),
    }
}

/// Removes both signal files, durably.
pub(super) fn remove_signal_files(data_dir: &Utf8Path) -> Result<(), Error> {
    for name in [STANDBY_SIGNAL, RECOVERY_SIGNAL] {
        let path = data_dir.join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => sync_dir(data_dir)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("remove", &path)(error)),
        }
    }
    Ok(())
}

/// Makes renames and removals in a directory durable.
pub(super) fn sync_dir(path: &Utf8Path) -> Result<(), Error> {
    std::fs::File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::file("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_pid_file(text: &str) -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        std::fs::File::create(path.join("postmaster.pid"))
            .and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()))
            .unwrap();
        (dir, path)
    }

    #[test]
    fn a_pid_file_without_a_pid_is_removed() {
        for text in ["", "\n", "garbage\n/data\n", "0\n"] {
            let (_keep, dir) = with_pid_file(text);
            assert_eq!(stale_pid(&dir).unwrap(), None, "{text:?}");
            assert!(!dir.join("postmaster.pid").exists(), "{text:?}");
        }
    }

    #[test]
    fn a_pid_of_another_kind_of_process_is_stale() {
        let own = std::process::id();
        for text in [format!("{own}\n/data\n"), format!("-{own}\n"), "2147483646\n".to_owned()] {
            let (_keep, dir) = with_pid_file(&text);
            assert!(stale_pid(&dir).unwrap().is_some(), "{text:?}");
            assert!(dir.join("postmaster.pid").exists(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_stubborn_before_stop_has_half_of_the_time_and_no_more() {
        let script = "trap '' INT TERM; while :; do sleep 0.02; done";
        let stubborn = Command::new("before_stop", "/bin/sh").args(["-c", script]);
        let left = half_for(&stubborn, Duration::from_secs(1)).await;
        assert!((Duration::from_millis(200)..=Duration::from_millis(500)).contains(&left), "{left:?}");
        let quick = Command::new("before_stop", "/bin/true");
        assert!(half_for(&quick, Duration::from_secs(9)).await > Duration::from_secs(5));
    }

    #[test]
    fn no_pid_file_is_nothing_to_ignore() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stale_pid(Utf8Path::from_path(dir.path()).unwrap()).unwrap(), None);
    }
}
