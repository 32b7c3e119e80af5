//! A new cluster whose data an administrator's own command brings: `bootstrap.method` of agent mode.
//!
//! Invariants: the data directory of such an attempt counts as empty until all of it has succeeded; recovery is over before any
//! server listens, so what is published as the cluster's identifier is what it will serve. What is absent: initdb, and the
//! roles and databases, which are made afterwards as in every new cluster.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::SecretString;
use tracing::info;

use super::adopt::superuser_sql;
use super::clone::{COPY_LIMIT, clear_marker, make_dir, remove_tree, set_marker};
use super::launch::{RECOVERY_SIGNAL, STANDBY_SIGNAL, remove_signal_files};
use super::method::{SEARCH_PATH, Told};
use super::{Config, Error, Machine, Shared, conf, control};
use crate::process::{self, Command, Mode};
use crate::types::SystemId;

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
    set_marker(shared, control::ORIGIN_MARKER)?;
    // What an attempt that was cut short has left.
    remove_tree(data_dir).await?;
    make_dir(shared, data_dir)?;
    info!(method = origin.name, "a command makes the new cluster");
    match by_command(shared, machine, origin).await {
        Ok(system_id) => {
            clear_marker(shared, control::ORIGIN_MARKER)?;
            info!(%system_id, "the command has made the new cluster");
            Ok(system_id)
        }
        Err(error) => {
            remove_tree(data_dir).await?;
            clear_marker(shared, control::ORIGIN_MARKER)?;
            Err(error)
        }
    }
}

async fn by_command(shared: &Shared, machine: &Machine, origin: &Origin) -> Result<SystemId, Error> {
    let config = &shared.config;
    let usual = [("scope", machine.cluster_name.as_str()), ("datadir", config.data_dir.as_str())];
    let command = Command::new(&origin.name, origin.program.as_str())
        .args(origin.args.iter().cloned())
        .args(origin.told.args(&usual))
        .env("PATH", format!("{}:{SEARCH_PATH}", config.bin_dir))
        .env("LC_ALL", "C")
        .run_as(&config.run_as);
    control::run(&command, "the command of bootstrap.method", COPY_LIMIT).await?;
    recover(shared, machine, &origin.recovery).await?;
    Ok(control::read(shared, &config.data_dir).await?.system_id)
}

/// A single-user server recovers, ends on a timeline of its own, and gives the superuser the password that the file says.
async fn recover(shared: &Shared, machine: &Machine, recovery: &Recovery) -> Result<(), Error> {
    let config = &shared.config;
    let data_dir = &config.data_dir;
    make_dir(shared, &config.run_dir)?;
    let mut settings = config.run_dir.join("origin.conf");
    conf::write(config, &settings, "")?;
    let mut parameters = Vec::new();
    match recovery {
        Recovery::Local => remove_signal_files(data_dir)?,
        Recovery::AsItIs => {
            // A single-user server cannot be a standby; what is wanted is the end of the recovery.
            let standby = data_dir.join(STANDBY_SIGNAL);
            if standby.exists() {
                std::fs::rename(&standby, data_dir.join(RECOVERY_SIGNAL))
                    .map_err(Error::file("rename", &standby))?;
            }
            settings = restored_settings(config, machine).unwrap_or(settings);
        }
        Recovery::By(wanted) => {
            remove_signal_files(data_dir)?;
            let signal = data_dir.join(RECOVERY_SIGNAL);
            process::write_atomic(&signal, b"", &config.run_as, Mode::Private)
                .map_err(|source| Error::Write { path: signal, source })?;
            parameters.extend(wanted.iter().map(|(name, value)| format!("{name}={value}")));
        }
    }
    // Whatever the target says of what follows: this is to become a primary.
    let fixed = ["recovery_target_action=promote", "shared_preload_libraries=", "archive_mode=off"];
    let quiet = ["hot_standby=off", "log_statement=none"];
    parameters.extend(fixed.into_iter().chain(quiet).map(str::to_owned));
    let command = Command::new("postgres", config.bin_dir.join("postgres"))
        .args(["--single", "-D", data_dir.as_str(), "-c"])
        .arg(format!("config_file={settings}"))
        .args(parameters.into_iter().flat_map(|parameter| ["-c".to_owned(), parameter]))
        .arg("template1")
        // restore_command finds its program.
        .env("PATH", format!("{}:{SEARCH_PATH}", config.bin_dir))
        .stdin(SecretString::from(superuser_sql(config)))
        .run_as(&config.run_as);
    control::run(&command, "postgres --single", COPY_LIMIT).await.map(|_output| ())
}

/// What the command may have set up recovery in, beside postgresql.auto.conf.
fn restored_settings(config: &Config, machine: &Machine) -> Option<Utf8PathBuf> {
    let usual = config.config_dir().join("postgresql.conf");
    machine.custom_conf.clone().into_iter().chain([usual]).find(|path: &Utf8PathBuf| Utf8Path::exists(path))
}
