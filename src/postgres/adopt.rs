//! Data from before pgherd: a volume of the predecessor or of the official image becomes the data of a new cluster.
//!
//! Such a volume has PostgreSQL's files at its root (or in PGDATA, and no record of any cluster). At the start they are moved
//! aside by rename, into `<volume>/pgherd/adopted`: from then on this node has *no* data, so that a new cluster can be founded,
//! and initdb, on the node that founds it, takes them instead of making new ones. `PG_VERSION` is moved last and back
//! first: whatever a crash leaves behind is seen, and the next start goes on. The list of what was moved stays in
//! `adopted.list` for the way back ([`restore`]).
//!
//! What is absent: any upgrade. Data of another major version is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_protocol::password::scram_sha_256;
use secrecy::{ExposeSecret, SecretString};
use tracing::info;

use super::clone::{make_dir, put_in_place};
use super::conf;
use super::launch::{ignoring, remove_signal_files, stale_pid, sync_dir};
use super::{Config, Error, Shared, Stored, control};
use crate::peer::Adopted;
use crate::process::{self, Command, Mode, RunAs};
use crate::types::SystemId;

/// What on the root of a volume is not PostgreSQL's.
const NOT_DATA: [&str; 3] = ["pgherd", "etcd", "lost+found"];
/// Moved last, back first: who has it has everything.
const VERSION: &str = "PG_VERSION";
/// Crash recovery may have to replay all of `max_wal_size`.
const RECOVERY_LIMIT: Duration = Duration::from_secs(3600);

fn place(config: &Config) -> Utf8PathBuf {
    config.state_dir.join("adopted")
}

fn list(config: &Config) -> Utf8PathBuf {
    config.state_dir.join("adopted.list")
}

/// Takes what is there from before, and tells what there is. `fresh` says that this volume remembers no cluster: only then
/// is a PGDATA with data in it somebody else's.
pub(super) async fn take(shared: &Shared, fresh: Memory) -> Result<Option<Adopted>, Error> {
    let config = &shared.config;
    let Some(volume) = config.state_dir.parent() else { return Ok(None) };
    let at_root = volume.join(VERSION).exists();
    let in_place = fresh == Memory::OfNoCluster && config.data_dir.join(VERSION).exists();
    match (at_root, in_place) {
        (true, true) => {
            let why = format!("{volume} and {} both hold a database", config.data_dir);
            return Err(Error::NotAdopted { why });
        }
        (true, false) => {
            require_version(shared, &volume.join(VERSION)).await?;
            move_aside(shared, volume)?;
        }
        (false, true) => {
            require_version(shared, &config.data_dir.join(VERSION)).await?;
            move_aside(shared, &config.data_dir)?;
        }
        (false, false) => {}
    }
    if !place(config).join(VERSION).exists() {
        return Ok(None);
    }
    let control = control::read(shared, &place(config)).await?;
    Ok(Some(Adopted { system_id: control.system_id, timeline: control.timeline, lsn: control.checkpoint }))
}

/// What a new cluster begins with that begins with the data that lies aside.
pub(super) async fn beginning(
    shared: &Shared,
    parameters: &BTreeMap<String, String>,
) -> Result<Stored, Error> {
    control::beginning(shared, &place(&shared.config), parameters).await
}

/// Whether a volume remembers a cluster of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// It has belonged to one: what is in PGDATA is ours.
    OfACluster,
    /// It has not.
    OfNoCluster,
}

async fn require_version(shared: &Shared, file: &Utf8Path) -> Result<(), Error> {
    let text = std::fs::read_to_string(file).map_err(Error::file("read", file))?;
    let theirs = text.trim();
    let ours = control::major(shared).await?.to_string();
    if theirs == ours {
        return Ok(());
    }
    let why = format!(
        "the volume holds data of PostgreSQL {theirs} and this image has PostgreSQL {ours}: use the image with the tag :{theirs}"
    );
    Err(Error::NotAdopted { why })
}

/// Renames every entry, and has them belong to the account that PostgreSQL runs as.
fn move_aside(shared: &Shared, from: &Utf8Path) -> Result<(), Error> {
    let config = &shared.config;
    let place = place(config);
    let mine =
        config.data_dir.strip_prefix(from).ok().and_then(|rest| rest.iter().next()).unwrap_or_default();
    let names: Vec<String> = entries(from)?
        .into_iter()
        .filter(|name| !NOT_DATA.contains(&name.as_str()) && (name.as_str() != mine || mine.is_empty()))
        .collect();
    make_dir(shared, &place)?;
    let text: String = names.iter().map(|name| format!("{}\n", from.join(name))).collect();
    // A run that was interrupted has written the whole list before it moved anything.
    if !list(config).exists() {
        process::write_atomic(&list(config), text.as_bytes(), &RunAs::Same, Mode::Private)
            .map_err(|source| Error::Write { path: list(config), source })?;
    }
    for name in last(names, VERSION) {
        let old = from.join(&name);
        std::fs::rename(&old, place.join(&name)).map_err(Error::file("rename", &old))?;
    }
    sync_dir(&place)?;
    sync_dir(from)?;
    process::give_tree(&place, &config.run_as)
        .map_err(|source| Error::Write { path: place.clone(), source })?;
    info!(%from, to = %place, "moved the data from before pgherd aside: a new cluster begins with it");
    Ok(())
}

fn entries(dir: &Utf8Path) -> Result<Vec<String>, Error> {
    let entries = dir.read_dir_utf8().map_err(Error::file("read", dir))?;
    let names: Result<Vec<String>, _> = entries.map(|entry| Ok(entry?.file_name().to_owned())).collect();
    names.map_err(Error::file("read", dir))
}

/// The same names, with this one at the end.
fn last(mut names: Vec<String>, name: &str) -> Vec<String> {
    names.sort_by_key(|other| other == name);
    names
}

/// Makes adopted data PGDATA, if there is any: for the node that founds the cluster, instead of initdb.
pub(super) async fn found(shared: &Shared) -> Result<Option<SystemId>, Error> {
    let config = &shared.config;
    let place = place(config);
    if !place.join(VERSION).exists() {
        return Ok(None);
    }
    if place.join("backup_label").exists() {
        let why = format!("{place} is a base backup that was never started: start it once with what made it");
        return Err(Error::NotAdopted { why });
    }
    // What was a standby leads now; a single-user server would refuse to be one.
    remove_signal_files(&place)?;
    ensure_superuser(shared, &place).await?;
    let control = control::read(shared, &place).await?;
    super::bootstrap::note_adopted(config, control.system_id)?;
    put_in_place(shared, &place)?;
    info!(system_id = %control.system_id, "the cluster begins with the data from before pgherd");
    Ok(Some(control.system_id))
}

/// The superuser that pgherd logs in as may have another password in old data, or be unknown there. No server listens while
/// that is so: a single-user server replays what a crash has left, and takes the statements from its standard input.
async fn ensure_superuser(shared: &Shared, place: &Utf8Path) -> Result<(), Error> {
    let config = &shared.config;
    make_dir(shared, &config.run_dir)?;
    let settings = config.run_dir.join("adopt.conf");
    // The old files may name libraries and directories that are not here.
    conf::write(config, &settings, "shared_preload_libraries = ''\n")?;
    let command = Command::new("postgres", config.bin_dir.join("postgres"))
        .args(["--single", "-D", place.as_str(), "-c"])
        .arg(format!("config_file={settings}"))
        .args([
            "-c",
            "shared_preload_libraries=",
            "-c",
            "archive_mode=off",
            "-c",
            "log_statement=none",
            "template1",
        ])
        .stdin(SecretString::from(superuser_sql(config)))
        .run_as(&config.run_as)
        .quiet();
    let command = ignoring(stale_pid(place)?, command);
    control::run(&command, "postgres --single", RECOVERY_LIMIT).await.map(|_output| ())
}

/// One statement a line, as a single-user server wants it. It sees a verifier, never the password.
pub(super) fn superuser_sql(config: &Config) -> String {
    let role = escape_identifier(&config.superuser);
    let name = escape_literal(&config.superuser);
    let password = match config.superuser_password.expose_secret() {
        // An administrator's server trusts whoever reaches it.
        "" => String::new(),
        secret => format!(" PASSWORD {}", escape_literal(&scram_sha_256(secret.as_bytes()))),
    };
    let create = escape_literal(&format!("CREATE ROLE {role}"));
    format!(
        "DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {name}) THEN EXECUTE {create}; END IF; END $do$\n\
         ALTER ROLE {role} SUPERUSER LOGIN{password}\n"
    )
}

/// Puts everything back where it was before pgherd: for going back to what made it. Returns how many entries were moved.
///
/// # Errors
/// There is no list of what was moved, or something lies where an entry belongs.
pub fn restore(state_dir: &Utf8Path, data_dir: &Utf8Path) -> Result<usize, Error> {
    let list = state_dir.join("adopted.list");
    let text = std::fs::read_to_string(&list).map_err(Error::file("read", &list))?;
    let aside = state_dir.join("adopted");
    let holder = if aside.join(VERSION).exists() { aside.as_path() } else { data_dir };
    let Some(root) = text.lines().next().and_then(|line| Utf8Path::new(line).parent()) else { return Ok(0) };
    if root == data_dir && holder == data_dir {
        return Ok(0);
    }
    let names = entries(holder)?;
    for name in &names {
        let target = root.join(name);
        if target.exists() {
            return Err(Error::NotAdopted { why: format!("{target} is in the way") });
        }
    }
    let n = names.len();
    for name in last(names, VERSION).into_iter().rev() {
        let old = holder.join(&name);
        std::fs::rename(&old, root.join(&name)).map_err(Error::file("rename", &old))?;
    }
    sync_dir(root)?;
    std::fs::remove_file(&list).map_err(Error::file("remove", &list))?;
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_moves_last() {
        let names = ["PG_VERSION", "base", "global"].map(str::to_owned).to_vec();
        assert_eq!(last(names, VERSION), ["base", "global", "PG_VERSION"]);
    }

    #[test]
    fn what_was_moved_goes_back() {
        let volume = tempfile::tempdir().unwrap();
        let volume = Utf8Path::from_path(volume.path()).unwrap();
        let (state, data) = (volume.join("pgherd"), volume.join("pgdata"));
        for dir in [&state, &data, &data.join("base")] {
            std::fs::create_dir(dir).unwrap();
        }
        let put = |path: Utf8PathBuf, text: &str| {
            process::write_atomic(&path, text.as_bytes(), &RunAs::Same, Mode::Private).unwrap();
        };
        put(data.join(VERSION), "17\n");
        assert!(restore(&state, &data).is_err(), "nothing was adopted here");
        put(state.join("adopted.list"), &format!("{volume}/PG_VERSION\n{volume}/base\n"));
        assert_eq!(restore(&state, &data).unwrap(), 2);
        assert!(volume.join("base").is_dir() && volume.join(VERSION).is_file());
        assert!(restore(&state, &data).is_err(), "once");
    }
}
