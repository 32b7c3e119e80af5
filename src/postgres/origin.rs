//! A new cluster whose data an administrator's own command brings: `bootstrap.method` of agent mode.
//!
//! Invariants: the data directory of such an attempt counts as empty until all of it has succeeded, and what an attempt finds is
//! put aside, never deleted; recovery is over before any server listens, so what is published as the cluster's identifier is what it will serve. What is absent: initdb, and the
//! roles and databases, which are made afterwards as in every new cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::SecretString;
use tracing::{info, warn};

use super::adopt::superuser_sql;
use super::clone::{COPY_LIMIT, entries, make_dir, prune_quarantine, put_aside, remove_tree};
use super::launch::{RECOVERY_SIGNAL, STANDBY_SIGNAL, remove_signal_files};
use super::method::{SEARCH_PATH, Told, make_place};
use super::settings::{Floors, Part};
use super::{Config, Error, Machine, Shared, conf, control, marker};
use crate::process::{self, Command, Mode};
use crate::types::SystemId;

/// How often it is looked for the directory that a command makes.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The section that `bootstrap.method` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its name.
    pub name: String,
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// What it is told besides.
    pub told: Told,
    /// What is recovered when it has ended.
    pub recovery: Recovery,
}

/// What is recovered from when the command has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Only the WAL that lies in the data directory.
    Local,
    /// What the command has set up (`keep_existing_recovery_conf`).
    AsItIs,
    /// An archive, by these parameters (`recovery_conf`).
    By(BTreeMap<String, String>),
}

/// Runs the command and the recovery.
pub(super) async fn make(shared: &Shared, machine: &Machine, origin: &Origin) -> Result<SystemId, Error> {
    let data_dir = &shared.config.data_dir;
    // What an attempt that was cut short has left, or what a person has brought since: who knows.
    put_aside(shared).await?;
    make_place(shared)?;
    let was_there = data_dir.exists();
    marker::set(shared, marker::ORIGIN).await?;
    info!(method = origin.name, "a command makes the new cluster");
    match by_command(shared, machine, origin).await {
        Ok(system_id) => {
            marker::clear(shared, marker::ORIGIN).await?;
            info!(%system_id, "the command has made the new cluster");
            if let Err(error) = prune_quarantine(shared).await {
                warn!(%error, "old data directories stay in the quarantine");
            }
            Ok(system_id)
        }
        Err(error) => {
            empty(data_dir).await?;
            if !was_there {
                remove_tree(data_dir).await?;
            }
            marker::clear(shared, marker::ORIGIN).await?;
            Err(error)
        }
    }
}

/// Removes what this attempt has made. The directory itself stays: it may be a file system, or in one that is not ours.
async fn empty(dir: &Utf8Path) -> Result<(), Error> {
    let dir = dir.to_owned();
    conf::off_thread(move || {
        for path in entries(&dir)? {
            // Links to tablespaces are in a directory of their own: what they lead to stays.
            let removed = match path.symlink_metadata() {
                Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
                Ok(_) => std::fs::remove_file(&path),
                Err(error) => Err(error),
            };
            removed.map_err(Error::file("remove", &path))?;
        }
        Ok(())
    })
    .await
}

/// The marker names the directory as soon as the command has made it.
async fn naming_directory<T>(
    shared: &Shared,
    run: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::pin!(run);
    let named = async {
        while !shared.config.data_dir.exists() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        marker::set(shared, marker::ORIGIN).await
    };
    tokio::select! {
        done = &mut run => return done,
        named = named => named?,
    }
    run.await
}

async fn by_command(shared: &Shared, machine: &Machine, origin: &Origin) -> Result<SystemId, Error> {
    let config = &shared.config;
    let usual = [("scope", machine.cluster_name.as_str()), ("datadir", config.data_dir.as_str())];
    let command = Command::new(&origin.name, origin.program.as_str())
        .args(origin.args.iter().cloned())
        .args(origin.told.args(&usual))
        .env("PATH", format!("{}:{SEARCH_PATH}", config.bin_dir))
        .env("LC_ALL", "C")
        .of_administrator(&config.run_as);
    naming_directory(shared, control::run(&command, "the command of bootstrap.method", COPY_LIMIT)).await?;
    make_dir(shared, &config.data_dir)?;
    marker::set(shared, marker::ORIGIN).await?;
    recover(shared, machine, &origin.recovery).await?;
    Ok(control::read(shared, &config.data_dir).await?.system_id)
}

/// A single-user server recovers, ends on a timeline of its own, and gives the superuser the password that the file says.
async fn recover(shared: &Shared, machine: &Machine, recovery: &Recovery) -> Result<(), Error> {
    let config = &shared.config;
    let data_dir = &config.data_dir;
    let defaults = settings_of(&control::floors(shared, Part::Replica).await?);
    let settings = {
        let (config, custom, recovery) = (config.clone(), machine.custom_conf.clone(), recovery.clone());
        conf::off_thread(move || prepare(&config, custom, &recovery, &defaults)).await?
    };
    let wanted = match recovery {
        Recovery::Local | Recovery::AsItIs => &BTreeMap::new(),
        Recovery::By(wanted) => wanted,
    };
    let wanted = wanted.iter().map(|(name, value)| format!("{name}={value}"));
    // Whatever the target says of what follows: this is to become a primary. The archive needs the history of the new timeline: the
    // server puts on its list what this one does not archive.
    let fixed = ["recovery_target_action=promote", "shared_preload_libraries="];
    let archive = ["archive_mode=on", "archive_command=false"];
    let quiet = ["hot_standby=off", "log_statement=none"];
    let parameters = wanted.chain(fixed.into_iter().chain(archive).chain(quiet).map(str::to_owned));
    let command = Command::new("postgres", config.bin_dir.join("postgres"))
        .args(["--single", "-D", data_dir.as_str(), "-c"])
        .arg(format!("config_file={settings}"))
        .args(parameters.flat_map(|parameter| ["-c".to_owned(), parameter]))
        .arg("template1")
        // restore_command finds its program.
        .env("PATH", format!("{}:{SEARCH_PATH}", config.bin_dir))
        .stdin(SecretString::from(superuser_sql(config)))
        .run_as(&config.run_as);
    control::run(&command, "postgres --single", COPY_LIMIT).await.map(|_output| ())
}

/// What the WAL was written under: a server with less does not replay it. Lines of postgresql.conf, which
/// postgresql.auto.conf may add to.
fn settings_of(floors: &Floors) -> String {
    let mut text: String = floors.least.iter().map(|(name, least)| format!("{name} = {least}\n")).collect();
    if floors.n_logical_slots > 0 {
        text.push_str("wal_level = logical\n");
    }
    text
}

/// Sets up what is recovered from, and gives the file of settings.
fn prepare(
    config: &Config,
    custom: Option<Utf8PathBuf>,
    recovery: &Recovery,
    defaults: &str,
) -> Result<Utf8PathBuf, Error> {
    let write = |path: Utf8PathBuf| |source| Error::Write { path, source };
    process::make_private_dir(&config.run_dir, &config.run_as).map_err(write(config.run_dir.clone()))?;
    let settings = config.run_dir.join("origin.conf");
    conf::write(config, &settings, defaults)?;
    let signal = config.data_dir.join(RECOVERY_SIGNAL);
    match recovery {
        Recovery::Local => remove_signal_files(&config.data_dir).map(|()| settings),
        Recovery::AsItIs => {
            // A single-user server cannot be a standby; what is wanted is the end of the recovery.
            let standby = config.data_dir.join(STANDBY_SIGNAL);
            if standby.exists() {
                std::fs::rename(&standby, &signal).map_err(Error::file("rename", &standby))?;
            }
            Ok(restored_settings(config, custom).unwrap_or(settings))
        }
        Recovery::By(_) => {
            remove_signal_files(&config.data_dir)?;
            process::write_atomic(&signal, b"", &config.run_as, Mode::Private).map_err(write(signal))?;
            Ok(settings)
        }
    }
}

/// What the command may have set up recovery in, beside postgresql.auto.conf.
fn restored_settings(config: &Config, custom: Option<Utf8PathBuf>) -> Option<Utf8PathBuf> {
    let usual = config.config_dir().join("postgresql.conf");
    custom.into_iter().chain([usual]).find(|path: &Utf8PathBuf| Utf8Path::exists(path))
}
