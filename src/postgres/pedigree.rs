//! The question whose history is which: an upstream is asked for its timelines, and whether its log holds ours.
//!
//! A timeline's number is no identity. Towards a member the record and the history in the store tell who began one, as a rule; of
//! another cluster nothing is known but what it says. So its log is read at our own last checkpoint: the record there carries the
//! time, the counters and a checksum, and whoever has the same bytes at the same place has everything before them.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::ExposeSecret as _;

use super::bootstrap::SecretFile;
use super::{Error, Local, Shared, Upstream, conf, control};
use crate::process::Command;
use crate::types::{Lsn, SystemId, Timeline, TimelineHistory};

/// All questions together; an upstream that cannot answer in this time is not fit to be followed.
const LIMIT: Duration = Duration::from_secs(5);
/// A checkpoint's record: its header and the whole of what it says.
const RECORD: u64 = 114;

/// What an upstream says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pedigree {
    /// Its database system.
    pub system_id: SystemId,
    /// The timeline it is on.
    pub timeline: Timeline,
    /// Its forks.
    pub history: TimelineHistory,
    /// Whether it has what is here.
    pub contains_ours: Containment,
}

/// Whether an upstream's log has been shown to hold ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Containment {
    /// It has not: it was not asked, it cannot tell, or it does not say that it has come this way.
    #[default]
    Unshown,
    /// It has, up to our last checkpoint, which is on this timeline. (The control file that was read before the start may be of a
    /// timeline before.)
    Shown(Timeline),
    /// By its history it came this way, and something else is there: its timeline has the number of ours, and no more.
    Differs,
}

/// See [`super::Postgres::upstream_history`].
pub(super) async fn ask(shared: &Shared, upstream: &Upstream) -> Result<Pedigree, Error> {
    conf::write_passfile(&shared.config)?;
    let what = "ask the upstream for its history";
    let asked = async {
        let identity = replication_command(shared, upstream, "IDENTIFY_SYSTEM").await?;
        let (system_id, timeline, end) = parse_identity(&identity)
            .ok_or_else(|| Error::Unparsable { what: "IDENTIFY_SYSTEM", text: identity.clone() })?;
        let history = history_of(shared, upstream, timeline).await?;
        Ok((Pedigree { system_id, timeline, history, contains_ours: Containment::Unshown }, end))
    };
    // Each host before the one that answers may cost each question a connection's time.
    let hosts = upstream.address.to_string().matches(',').count();
    let limit = LIMIT * u32::try_from(1 + hosts * 2).unwrap_or(u32::MAX);
    let too_slow = Error::TimedOut { what, after: limit };
    let (pedigree, end) = tokio::time::timeout(limit, asked).await.unwrap_or(Err(too_slow))?;
    // A server that lets standbys in and no sessions has told what is needed.
    let compared = tokio::time::timeout(limit / 2, containment(shared, upstream, (&pedigree, end))).await;
    Ok(Pedigree { contains_ours: compared.unwrap_or_default(), ..pedigree })
}

async fn history_of(
    shared: &Shared,
    upstream: &Upstream,
    timeline: Timeline,
) -> Result<TimelineHistory, Error> {
    if timeline == Timeline(1) {
        return Ok(TimelineHistory::default());
    }
    let text = replication_command(shared, upstream, &format!("TIMELINE_HISTORY {timeline}")).await?;
    // The row is the file's name, a bar, and the file.
    let file = text.split_once('|').map_or("", |(_, file)| file);
    TimelineHistory::parse(file).map_err(|e| Error::Unparsable { what: "a timeline history", text: e.text })
}

/// Whether the bytes at our last checkpoint are the same there. What cannot be read shows nothing.
async fn containment(shared: &Shared, upstream: &Upstream, theirs: (&Pedigree, Lsn)) -> Containment {
    same_bytes(shared, upstream, theirs).await.unwrap_or_else(|error| {
        tracing::debug!(error = %crate::types::Chain(&error), "the upstream's log was not read");
        Containment::Unshown
    })
}

/// Whether a server with this history, which has come to `end`, says that it has what is at this place of this timeline.
fn came_by(theirs: &Pedigree, end: Lsn, (timeline, at): (Timeline, Lsn)) -> bool {
    let of_timeline =
        theirs.history.end_of(timeline).or_else(|| (timeline == theirs.timeline).then_some(end));
    of_timeline.is_some_and(|of_timeline| at.0.saturating_add(RECORD) <= of_timeline.min(end).0)
}

/// How far a server's log has come, whatever it is.
const POSITION: &str = "CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
                        ELSE pg_current_wal_flush_lsn() END";

async fn same_bytes(
    shared: &Shared,
    upstream: &Upstream,
    (pedigree, end): (&Pedigree, Lsn),
) -> Result<Containment, Error> {
    let data_dir = &shared.config.data_dir;
    let (at, timeline, segment_size) = control::last_checkpoint(shared).await?;
    if !came_by(pedigree, end, (timeline, at)) {
        return Ok(Containment::Unshown);
    }
    let place = Place::of(at, segment_size);
    let path = data_dir.join("pg_wal").join(place.file(timeline));
    let ours = conf::off_thread(move || place.read(&path)).await?;
    // A promotion goes on in a file of its own, which begins with what the old one held.
    let read = |of: Timeline| {
        format!("pg_read_binary_file('pg_wal/{}', {}, {}, true)", place.file(of), place.offset, place.length)
    };
    // Behind a list of hosts or a balancer this may be another server than the one that was asked before, and one that has not
    // come so far may have an old file under this name.
    let past = Lsn(at.0.saturating_add(RECORD));
    let sql = format!(
        "SELECT CASE WHEN {POSITION} >= '{past}' THEN encode(coalesce({}, {}), 'hex') END",
        read(timeline),
        read(pedigree.timeline)
    );
    let conninfo = conf::rewind_conninfo(&shared.config, upstream);
    let text = psql(shared, &conninfo, &sql).await?;
    Ok(match text.trim() {
        "" => Containment::Unshown,
        same if same == ours => Containment::Shown(timeline),
        _ => Containment::Differs,
    })
}

/// A piece of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    segment: u64,
    per_id: u64,
    offset: u64,
    length: u64,
}

impl Place {
    fn of(at: Lsn, segment_size: u64) -> Self {
        let size = segment_size.max(1);
        let offset = at.0 % size;
        Self {
            segment: at.0 / size,
            per_id: ((1_u64 << 32) / size).max(1),
            offset,
            length: RECORD.min(size - offset),
        }
    }

    fn file(self, timeline: Timeline) -> String {
        format!("{:08X}{:08X}{:08X}", timeline.0, self.segment / self.per_id, self.segment % self.per_id)
    }

    /// As hexadecimal digits.
    fn read(self, path: &Utf8Path) -> Result<String, Error> {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or_default()];
        let read = std::fs::File::open(path).and_then(|file| file.read_exact_at(&mut bytes, self.offset));
        read.map_err(Error::file("read", path))?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// What the files of the log that hold this place are called, behind their timeline.
pub(super) fn segment_name(at: Lsn, segment_size: u64) -> String {
    Place::of(at, segment_size).file(Timeline(0)).split_off(8)
}

/// The timeline that a standby replays which receives nothing: no SQL function tells it, and the control file lags behind. Where a
/// database is named, the rules that let our sessions in let this one in.
pub(super) async fn replayed(shared: &Shared) -> Result<Timeline, Error> {
    let config = &shared.config;
    let line = conf::pgpass_line(&config.superuser, config.superuser_password.expose_secret());
    let passfile = SecretFile::write(config, "identity.pgpass", &line)?;
    let host = match config.local() {
        Local::Socket(dir) => dir.into_string(),
        Local::Tcp(host) => host,
    };
    let parts = [
        ("host", host),
        ("port", config.port.to_string()),
        ("user", config.superuser.clone()),
        ("dbname", "postgres".to_owned()),
        ("replication", "database".to_owned()),
        ("application_name", "pgherd".to_owned()),
        ("passfile", passfile.0.to_string()),
    ];
    let identity = psql(shared, &conf::quoted(&parts), "IDENTIFY_SYSTEM").await?;
    let told = parse_identity(&identity);
    told.map(|(_, timeline, _)| timeline).ok_or(Error::Unparsable { what: "IDENTIFY_SYSTEM", text: identity })
}

/// Whether the data knows of the timeline after this one: a standby fetches its history before any of its WAL.
pub(super) fn goes_on_after(data_dir: &Utf8Path, timeline: Timeline) -> bool {
    history_file(data_dir, Timeline(timeline.0.saturating_add(1))).exists()
}

/// Where a data directory keeps the history of a timeline.
pub(super) fn history_file(data_dir: &Utf8Path, timeline: Timeline) -> Utf8PathBuf {
    data_dir.join(format!("pg_wal/{:08X}.history", timeline.0))
}

/// By psql, which speaks the replication protocol and reads the same certificates as the walreceiver.
async fn replication_command(shared: &Shared, upstream: &Upstream, ask: &str) -> Result<String, Error> {
    let conninfo = conf::conninfo(&shared.config, upstream, "pgherd_history");
    psql(shared, &format!("{conninfo} replication=true"), ask).await
}

pub(super) async fn psql(shared: &Shared, conninfo: &str, ask: &str) -> Result<String, Error> {
    let config = &shared.config;
    let command = Command::new("psql", config.bin_dir.join("psql"))
        .args(["-XAtw", "-F", "|", "-d", conninfo, "-c", ask])
        .env("LC_ALL", "C")
        .run_as(&config.run_as)
        .quiet();
    control::run(&command, "psql", LIMIT).await.map(|output| output.stdout)
}

/// `systemid|timeline|xlogpos|dbname`
fn parse_identity(row: &str) -> Option<(SystemId, Timeline, Lsn)> {
    let mut words = row.trim().split('|');
    let mut next = || words.next();
    Some((next()?.parse().ok()?, Timeline(next()?.parse().ok()?), next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read() {
        let read = parse_identity("7575001234567890123|2|0/3000148|\n");
        assert_eq!(read, Some((SystemId(7_575_001_234_567_890_123), Timeline(2), Lsn(0x300_0148))));
        assert_eq!(parse_identity(""), None);
    }

    #[test]
    fn a_place_is_looked_at_only_where_the_history_came_by_it() {
        let history = TimelineHistory::parse("1\t0/5000000\tx\n").unwrap();
        let (system_id, contains_ours) = (SystemId(1), Containment::Unshown);
        let theirs = Pedigree { system_id, timeline: Timeline(2), history, contains_ours };
        let came = |timeline, at| came_by(&theirs, Lsn(0x600_0000), (Timeline(timeline), Lsn(at)));
        assert!(came(1, 0x4ff_0000) && came(2, 0x5ff_0000));
        assert!(!came(1, 0x500_0000), "they have left it before");
        assert!(!came(2, 0x5ff_fff0), "they are not there yet");
        assert!(!came(3, 0x100_0000));
    }

    #[test]
    fn a_piece_of_the_log_has_a_file_and_a_place_in_it() {
        let place = Place::of(Lsn(0x2_0300_0028), 16 << 20);
        assert_eq!(place.file(Timeline(0x1b)), "0000001B0000000200000003");
        assert_eq!((place.offset, place.length), (0x28, RECORD));
        let last = Place::of(Lsn(0x3ff_ffd0), 64 << 20);
        assert_eq!((last.file(Timeline(1)).as_str(), last.length), ("000000010000000000000000", 0x30));
    }
}
