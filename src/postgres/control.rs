//! What the data directory is: empty, interrupted, unreadable, or a cluster with its control file.
//!
//! pg_controldata is run rather than the control file read, because the layout of the file differs between versions;
//! its output is kept until the file changes, so that a node that waits costs nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::marker::{self, Whose};
use super::settings::{Floors, Part, Stored};
use super::status::{Control, ControlState, DataDir};
use super::{Error, Shared, inherit, lock, settings};
use crate::process::{self, Command};
use crate::types::{Lsn, Timeline};

/// pg_controldata reads one file of 8 KiB; `postgres -V` reads nothing. Only a stuck disk takes longer.
const CONTROL_LIMIT: Duration = Duration::from_secs(5);

/// Why data that is there is not used after an attempt of `bootstrap.method` that was cut short.
const NOT_WHAT_WAS_BEGUN: &str = "a command of bootstrap.method did not finish, and the data directory is another one since: \
                                  if it is whole, remove the file bootstrap-in-progress";

/// The last reading, and of which file.
#[derive(Debug, Default)]
pub(super) struct Cache {
    known: Option<(Identity, Control)>,
    /// The major version of the binaries, once asked.
    major: Option<u32>,
}

/// What changes whenever the file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// While the server runs: what was read before it was started, whatever the control file has become since.
pub(super) async fn last_known(shared: &Shared) -> DataDir {
    let known = lock(&shared.control).known.as_ref().map(|(_, control)| control.clone());
    match known {
        Some(control) => DataDir::Cluster(control),
        None => classify(shared).await,
    }
}

/// Looks at the data directory.
pub(super) async fn classify(shared: &Shared) -> DataDir {
    match is_empty(&shared.config.data_dir) {
        Err(why) => DataDir::Unreadable { why: why.to_string() },
        Ok(true) if marker::found(shared, marker::CLONE).is_some() => {
            DataDir::Incomplete { why: "a clone did not finish" }
        }
        Ok(true) => DataDir::Empty,
        Ok(false) => match unfinished(shared) {
            Some(found) => found,
            None => match cluster(shared).await {
                Ok(control) => DataDir::Cluster(control),
                Err(why) => DataDir::Unreadable { why },
            },
        },
    }
}

/// What markers say of a directory that is not empty.
fn unfinished(shared: &Shared) -> Option<DataDir> {
    let incomplete = |why| Some(DataDir::Incomplete { why });
    match marker::found(shared, marker::ORIGIN) {
        // It has never served anybody.
        Some(Whose::This) => return Some(DataDir::Empty),
        // The command may have exchanged the directory, and so may a person with a backup.
        Some(Whose::Another | Whose::Unsaid) => return incomplete(NOT_WHAT_WAS_BEGUN),
        None => {}
    }
    // Whichever directory it is: the command may have exchanged it, and a volume that was moved, or whose device has another number
    // since the machine was started again, holds the same half of a rewind.
    if marker::found(shared, marker::FILL).is_some() {
        return incomplete("a copy did not finish");
    }
    marker::found(shared, marker::REWIND).and_then(|_whose| incomplete("a rewind did not finish"))
}

/// Whether a directory is absent or has no entries.
pub(super) fn is_empty(path: &Utf8Path) -> Result<bool, std::io::Error> {
    match path.read_dir_utf8() {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// The control data of PGDATA, or why it is none of ours to use.
async fn cluster(shared: &Shared) -> Result<Control, String> {
    let data_dir = &shared.config.data_dir;
    let file = data_dir.join("global/pg_control");
    let identity = identity(&file).map_err(|e| format!("{file}: {e}"))?;
    if let Some((of, control)) = lock(&shared.control).known.as_ref()
        && *of == identity
    {
        return Ok(control.clone());
    }
    check_version(shared).await?;
    let control = read(shared, data_dir).await.map_err(|e| with_source(&e))?;
    lock(&shared.control).known = Some((identity, control.clone()));
    Ok(control)
}

/// An error and its cause in one line: this text goes into a status, not into an error chain.
fn with_source(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

fn identity(file: &Utf8Path) -> Result<Identity, std::io::Error> {
    let meta = file.metadata()?;
    Ok(Identity { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
}

/// Refuses a data directory of another major version, naming both.
async fn check_version(shared: &Shared) -> Result<(), String> {
    let file = shared.config.data_dir.join("PG_VERSION");
    let text = std::fs::read_to_string(&file).map_err(|e| format!("{file}: {e}"))?;
    let of_data: u32 = text.trim().parse().map_err(|_not_a_number| format!("{file}: {:?}", text.trim()))?;
    let of_binaries = major(shared).await.map_err(|e| with_source(&e))?;
    if of_data == of_binaries {
        return Ok(());
    }
    Err(format!(
        "the data is of PostgreSQL {of_data}, the programs are of PostgreSQL {of_binaries}: \
         use the image with the tag :{of_data}"
    ))
}

/// The major version of the programs.
pub(super) async fn major(shared: &Shared) -> Result<u32, Error> {
    if let Some(major) = lock(&shared.control).major {
        return Ok(major);
    }
    let command = Command::new("postgres", shared.config.bin_dir.join("postgres")).arg("-V").quiet();
    let output = run(&command, "postgres -V", CONTROL_LIMIT).await?;
    let major = parse_version(&output.stdout)
        .ok_or_else(|| Error::Unparsable { what: "postgres -V", text: output.stdout.clone() })?;
    lock(&shared.control).major = Some(major);
    Ok(major)
}

/// `postgres (PostgreSQL) 15.18 (Debian ...)`, `18beta1`.
fn parse_version(text: &str) -> Option<u32> {
    let word = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Where the state of a slot says which database it is of: behind four numbers and a name. Zero for a physical one.
const SLOT_DATABASE: std::ops::Range<usize> = 80..84;

/// What the data does not do with less of: slots and prepared transactions on disk, and for a standby what the server has
/// whose WAL it replays.
pub(super) async fn floors(shared: &Shared, part: Part) -> Result<Floors, Error> {
    let data_dir = &shared.config.data_dir;
    let slots = entries(&data_dir.join("pg_replslot"))?;
    let prepared = entries(&data_dir.join("pg_twophase"))?;
    let mut floors =
        Floors { least: BTreeMap::new(), n_logical_slots: count(slots.iter().filter(is_logical)) };
    if part != Part::Primary {
        let text = output(shared, data_dir).await?;
        let floor =
            |(name, label): &(&str, &'static str)| Some(((*name).to_owned(), value(&text, label).ok()?));
        floors.least.extend(settings::FLOORS.iter().filter_map(floor));
    }
    for (name, found) in [
        ("max_replication_slots", count(slots.iter())),
        ("max_prepared_transactions", count(prepared.iter())),
    ] {
        let least = floors.least.entry(name.to_owned()).or_default();
        *least = found.max(*least);
    }
    Ok(floors)
}

/// What a new cluster begins with that begins with this data.
pub(super) async fn beginning(
    shared: &Shared,
    data_dir: &Utf8Path,
    parameters: &BTreeMap<String, String>,
) -> Result<Stored, Error> {
    let text = output(shared, data_dir).await?;
    Ok(inherit::beginning(parameters, |label| field(&text, label).ok()))
}

fn count<T>(all: impl Iterator<Item = T>) -> u32 {
    u32::try_from(all.count()).unwrap_or(u32::MAX)
}

fn entries(dir: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Error> {
    let paths = dir.read_dir_utf8().and_then(|all| all.map(|entry| Ok(entry?.into_path())).collect());
    paths.map_err(Error::file("read", dir))
}

fn is_logical(slot: &&Utf8PathBuf) -> bool {
    let state = std::fs::read(slot.join("state")).unwrap_or_default();
    state.get(SLOT_DATABASE).is_some_and(|database| database != [0; 4])
}

/// Where the last checkpoint is, on which timeline, and how long a file of the log is; as of now, whether a server runs or not.
pub(super) async fn last_checkpoint(shared: &Shared) -> Result<(Lsn, Timeline, u64), Error> {
    let text = output(shared, &shared.config.data_dir).await?;
    let read = || -> Result<_, &'static str> {
        let control = parse(&text)?;
        Ok((control.checkpoint, control.timeline, value(&text, "Bytes per WAL segment")?))
    };
    read().map_err(|label| Error::Unparsable { what: "pg_controldata", text: label.to_owned() })
}

/// Runs pg_controldata on a directory.
pub(super) async fn read(shared: &Shared, data_dir: &Utf8Path) -> Result<Control, Error> {
    let text = output(shared, data_dir).await?;
    parse(&text).map_err(|label| Error::Unparsable { what: "pg_controldata", text: label.to_owned() })
}

async fn output(shared: &Shared, data_dir: &Utf8Path) -> Result<String, Error> {
    let command = Command::new("pg_controldata", shared.config.bin_dir.join("pg_controldata"))
        .arg(data_dir.as_str())
        .env("LC_ALL", "C")
        .run_as(&shared.config.run_as)
        .quiet();
    let output = run(&command, "pg_controldata", CONTROL_LIMIT).await?;
    // A wrong checksum is only a warning to pg_controldata (on either stream, by version), and everything it then
    // prints may be garbage.
    if output.stdout.contains("CRC") || output.stderr.contains("CRC") {
        let text = "the checksum of the control file is wrong".to_owned();
        return Err(Error::Unparsable { what: "pg_controldata", text });
    }
    Ok(output.stdout)
}

/// Runs a tool that must succeed.
pub(super) async fn run(
    command: &Command,
    tool: &'static str,
    limit: Duration,
) -> Result<process::Output, Error> {
    let output = process::run(command, limit).await.map_err(|source| Error::Run { tool, source })?;
    if output.exit.is_success() {
        return Ok(output);
    }
    Err(failed(tool, &output))
}

/// A failure, with the line that tells most.
pub(super) fn failed(tool: &str, output: &process::Output) -> Error {
    let line = complaint(&output.stderr).or_else(|| complaint(&output.stdout));
    Error::Failed { tool: tool.to_owned(), exit: output.exit, line: line.unwrap_or("").to_owned() }
}

/// The last line that says "error", else the last line: after an error the tools still tell what they tidy up.
pub(super) fn complaint(text: &str) -> Option<&str> {
    let is_error =
        |line: &&str| ["error:", "ERROR:", "FATAL:", "PANIC:"].iter().any(|word| line.contains(word));
    text.lines().rfind(is_error).or_else(|| text.lines().rfind(|line| !line.trim().is_empty()))
}

/// Reads pg_controldata's output; the error is the label that is missing or wrong.
fn parse(text: &str) -> Result<Control, &'static str> {
    Ok(Control {
        system_id: value(text, "Database system identifier")?,
        state: parse_state(field(text, "Database cluster state")?),
        timeline: Timeline(value(text, "Latest checkpoint's TimeLineID")?),
        checkpoint: value(text, "Latest checkpoint location")?,
        min_recovery_end: value::<Lsn>(text, "Minimum recovery ending location")?,
        min_recovery_timeline: Timeline(value(text, "Min recovery ending loc's timeline")?),
    })
}

fn value<T: std::str::FromStr>(text: &str, label: &'static str) -> Result<T, &'static str> {
    field(text, label)?.parse().map_err(|_wrong| label)
}

fn field<'a>(text: &'a str, label: &'static str) -> Result<&'a str, &'static str> {
    let of_line = |line: &'a str| line.strip_prefix(label)?.strip_prefix(':');
    text.lines().find_map(of_line).map(str::trim).ok_or(label)
}

fn parse_state(words: &str) -> ControlState {
    match words {
        "starting up" => ControlState::StartingUp,
        "shut down" => ControlState::ShutDown,
        "shut down in recovery" => ControlState::ShutDownInRecovery,
        "shutting down" => ControlState::ShuttingDown,
        "in crash recovery" => ControlState::InCrashRecovery,
        "in archive recovery" => ControlState::InArchiveRecovery,
        "in production" => ControlState::InProduction,
        _other_versions => ControlState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SystemId;

    const SAMPLE: &str = "\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7575001234567890123
Database cluster state:               in archive recovery
pg_control last modified:             Sat Nov 21 10:46:33 2026
Latest checkpoint location:           0/3000060
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's TimeLineID:       2
Latest checkpoint's PrevTimeLineID:   1
Minimum recovery ending location:     0/30001C8
Min recovery ending loc's timeline:   3
Backup start location:                0/0
";

    #[test]
    fn controldata_is_read_by_its_labels() {
        let expected = Control {
            system_id: SystemId(7_575_001_234_567_890_123),
            state: ControlState::InArchiveRecovery,
            timeline: Timeline(2),
            checkpoint: Lsn(0x300_0060),
            min_recovery_end: Lsn(0x300_01C8),
            min_recovery_timeline: Timeline(3),
        };
        assert_eq!(parse(SAMPLE), Ok(expected));
    }

    #[test]
    fn a_missing_label_is_named() {
        let cut = SAMPLE.replace("Latest checkpoint location", "Letzte Position");
        assert_eq!(parse(&cut), Err("Latest checkpoint location"));
        let wrong = SAMPLE.replace("0/3000060", "nowhere");
        assert_eq!(parse(&wrong), Err("Latest checkpoint location"));
    }

    #[test]
    fn the_line_that_tells_most_is_kept() {
        let text = "initdb: error: no such locale\ninitdb: removing contents of data directory\n\n";
        assert_eq!(complaint(text), Some("initdb: error: no such locale"));
        assert_eq!(complaint("one\ntwo\n \n"), Some("two"));
        assert_eq!(complaint(""), None);
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_version("postgres"), None);
    }
}
