//! WAL that only this server has is put aside before the data is changed into another's.
//!
//! A former primary may hold what nobody else does: segments that were never archived, and the end of a history that the
//! cluster has left. pg_rewind removes them, and a quarantined directory goes one day. They are copied to
//! `<state directory>/kept-wal/<time>`, named in the log and by `pgherd doctor`, for whoever has to fill a gap in an archive
//! or to find out what was lost. Nothing here is ever read again by us.
//!
//! Bounds: of one directory no more than [`AT_MOST`] bytes and never more than a part of the free room, the oldest first
//! (an archive needs what follows on its end); the newest [`KEEP`] are kept.

use std::collections::BTreeMap;
use std::io::Read as _;

use camino::{Utf8Path, Utf8PathBuf};
use tracing::{info, warn};

use super::clone::{entries, make_dir, remove_tree};
use super::status::{Control, ControlState};
use super::{Error, Shared, conf, room};
use crate::clock;
use crate::types::Lsn;

/// Where, beneath the state directory.
pub const PLACE: &str = "kept-wal";
/// How many are kept.
const KEEP: usize = 2;
/// Of one history.
const AT_MOST: u64 = 1 << 30;
/// No more than this part of what is free on the volume.
const ROOM_PART: u64 = 10;

/// Puts aside what is not archived and what lies beyond `from`, or beyond the last checkpoint. A server that was a standby
/// has nothing of its own but what it was to archive.
pub(super) async fn put_aside(shared: &Shared, control: &Control, from: Option<Lsn>) -> Result<(), Error> {
    let pg_wal = shared.config.data_dir.join("pg_wal");
    let own = wrote_by_itself(control).then(|| from.unwrap_or(control.checkpoint));
    let files = conf::off_thread({
        let pg_wal = pg_wal.clone();
        move || worth_keeping(&pg_wal, own)
    })
    .await?;
    if files.is_empty() {
        return Ok(());
    }
    let place = shared.config.state_dir.join(PLACE);
    make_dir(shared, &place)?;
    let target = place.join(clock::wall().strftime("%Y%m%dT%H%M%S.%6fZ").to_string());
    make_dir(shared, &target)?;
    let (kept, total) = conf::off_thread({
        let target = target.clone();
        move || copy(&pg_wal, &files, &target).map(|kept| (kept, files.len()))
    })
    .await?;
    if kept == 0 {
        warn!(total, "there is no room to put aside the WAL that only this node has");
        // An empty one would take the place of one that is not.
        return remove_tree(&target).await;
    }
    info!(path = %target, files = kept, "put WAL aside that only this node has");
    if kept < total {
        warn!(left_out = total - kept, "there is too little room for all of it");
    }
    prune(&place).await
}

/// Whether the last server here was a primary. What it wrote since its last checkpoint may be nobody else's.
fn wrote_by_itself(control: &Control) -> bool {
    match control.state {
        ControlState::ShutDown
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction => true,
        ControlState::StartingUp
        | ControlState::ShutDownInRecovery
        | ControlState::InArchiveRecovery
        | ControlState::Unknown => false,
    }
}

/// The files that are still to be archived and the segments that reach beyond `own`, with their sizes, the oldest first.
fn worth_keeping(pg_wal: &Utf8Path, own: Option<Lsn>) -> Result<BTreeMap<String, u64>, Error> {
    let mut files = BTreeMap::new();
    let ready = entries(&pg_wal.join("archive_status"))?;
    for name in ready.iter().filter_map(|path| path.file_name()?.strip_suffix(".ready")) {
        if let Ok(meta) = pg_wal.join(name).metadata() {
            files.insert(name.to_owned(), meta.len());
        }
    }
    for path in entries(pg_wal)?.into_iter().filter(|path| path.is_file()) {
        let (Some(name), Ok(meta)) = (path.file_name(), path.metadata()) else { continue };
        let start = start_of(name, meta.len());
        let beyond = own.zip(start).is_some_and(|(own, start)| start.0.saturating_add(meta.len()) > own.0);
        if beyond && start == written_for(&path) {
            files.insert(name.to_owned(), meta.len());
        }
    }
    Ok(files)
}

/// The position at which a segment of this name and size begins; `None` when it is none.
fn start_of(name: &str, size: u64) -> Option<Lsn> {
    let part = |range| name.get(range).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    if name.len() != 24 || size == 0 {
        return None;
    }
    let _timeline = part(0..8)?;
    Some(Lsn((part(8..16)? << 32) + part(16..24)?.checked_mul(size)?))
}

/// The position that the first page of a segment says it is of: one that was made or recycled for later says another.
fn written_for(path: &Utf8Path) -> Option<Lsn> {
    let mut header = [0; 16];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header)).ok()?;
    // xlp_magic (2 bytes), xlp_info (2), xlp_tli (4), xlp_pageaddr (8), in the machine's order.
    header.last_chunk().map(|address| Lsn(u64::from_ne_bytes(*address)))
}

/// Copies as many as there is room for; how many.
fn copy(from: &Utf8Path, files: &BTreeMap<String, u64>, to: &Utf8Path) -> Result<usize, Error> {
    let room = room::of(to).map_or(AT_MOST, |room| AT_MOST.min(room.free / ROOM_PART));
    let (mut kept, mut bytes) = (0, 0);
    for (name, size) in files {
        bytes += size;
        if bytes > room {
            break;
        }
        let (source, target) = (from.join(name), to.join(name));
        std::fs::copy(&source, &target).map_err(Error::file("copy", &source))?;
        std::fs::File::open(&target)
            .and_then(|file| file.sync_all())
            .map_err(Error::file("sync", &target))?;
        kept += 1;
    }
    super::launch::sync_dir(to)?;
    Ok(kept)
}

async fn prune(place: &Utf8Path) -> Result<(), Error> {
    // The names are timestamps: sorted, the oldest come first.
    let kept = entries(place)?;
    let surplus: Vec<Utf8PathBuf> = kept.iter().take(kept.len().saturating_sub(KEEP)).cloned().collect();
    for path in surplus {
        info!(%path, "removing WAL that was put aside before");
        remove_tree(&path).await?;
    }
    Ok(())
}

/// Where pg_rewind says that the histories part.
pub(super) fn divergence(said: &str) -> Option<Lsn> {
    let rest = said.split_once("diverged at WAL location ")?.1;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;

    /// A directory of WAL in which segments are written for these numbers.
    fn pg_wal(segments: &[(&str, u64)], ready: &[&str]) -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        std::fs::create_dir(path.join("archive_status")).unwrap();
        let write = |name: &str, bytes: &[u8]| {
            std::fs::File::create(path.join(name))
                .and_then(|mut f| std::io::Write::write_all(&mut f, bytes))
                .unwrap();
        };
        for (name, address) in segments {
            let mut bytes = vec![0; usize::try_from(SEGMENT).unwrap()];
            bytes[8..16].copy_from_slice(&address.to_ne_bytes());
            write(name, &bytes);
        }
        write("00000002.history", b"1\t0/500000\t\n");
        for name in ready {
            write(&format!("archive_status/{name}.ready"), b"");
        }
        (dir, path)
    }

    fn names(kept: &BTreeMap<String, u64>) -> Vec<&str> {
        kept.keys().map(String::as_str).collect()
    }

    #[test]
    fn what_is_not_archived_and_what_lies_beyond_the_fork_is_worth_keeping() {
        let segment = |n: u64| format!("0000000100000000{n:08X}");
        let (first, second, third, recycled) = (segment(4), segment(5), segment(6), segment(7));
        let written =
            [(&*first, 4 * SEGMENT), (&second, 5 * SEGMENT), (&third, 6 * SEGMENT), (&recycled, SEGMENT)];
        let (_keep, dir) = pg_wal(&written, &[&first, "00000002.history", "000000010000000000000001"]);
        let kept = worth_keeping(&dir, Some(Lsn(6 * SEGMENT + 100))).unwrap();
        assert_eq!(names(&kept), [&first, &third, "00000002.history"]);
        let standby = worth_keeping(&dir, None).unwrap();
        assert_eq!(names(&standby), [&first, "00000002.history"]);
        let target = tempfile::tempdir().unwrap();
        let target = Utf8Path::from_path(target.path()).unwrap();
        assert_eq!(copy(&dir, &kept, target).unwrap(), 3);
        assert_eq!(std::fs::read(target.join(&third)).unwrap(), std::fs::read(dir.join(&third)).unwrap());
    }

    #[test]
    fn the_fork_is_where_pg_rewind_says() {
        let said = "pg_rewind: servers diverged at WAL location 0/3000148 on timeline 1\npg_rewind: rewinding from ...";
        assert_eq!(divergence(said), Some(Lsn(0x0300_0148)));
        assert_eq!(divergence("pg_rewind: no rewind required"), None);
    }
}
