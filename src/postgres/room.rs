//! The room on the volume: how much is free where PGDATA and its WAL lie, and whether anything can be written there.

use std::time::Duration;

use camino::Utf8Path;
use nix::sys::statvfs::{FsFlags, statvfs};
use tokio::time::timeout;

use super::{Posture, Pulse, Shared};
use crate::types::{Access, Room};

/// A slot whose standby never comes back keeps no more WAL than this part of the volume: a tenth,
const SLOT_PART: u64 = 10;
/// but enough for a standby that was away for a moment, and twice what is kept without a slot,
const SLOT_AT_LEAST: u64 = 256 << 20;
/// and no more than a standby could ever catch up with.
const SLOT_AT_MOST: u64 = 64 << 30;

/// `max_slot_wal_keep_size` for the volume that holds the WAL. A size that cannot be learned counts as 40 GiB.
pub(super) fn slot_limit(data_dir: &Utf8Path) -> String {
    let room = of(&data_dir.join("pg_wal")).or_else(|| of(data_dir));
    slot_limit_of(room.map_or(40 << 30, |room| room.total))
}

fn slot_limit_of(total: u64) -> String {
    format!("{}MB", (total / SLOT_PART).clamp(SLOT_AT_LEAST, SLOT_AT_MOST) >> 20)
}

/// Asks the kernel, on a thread of its own: a dead disk may keep the question for ever.
pub(super) async fn measure(shared: &Shared, patience: Duration) -> Pulse {
    let config = &shared.config;
    let (data, wal) = (config.data_dir.clone(), config.data_dir.join("pg_wal"));
    let volume = config.state_dir.clone();
    let asked = tokio::task::spawn_blocking(move || {
        // Before initdb only the volume is there.
        let data = of(&data).or_else(|| of(&volume))?;
        Some(of(&wal).map_or(data, |wal| data.tighter(wal)))
    });
    match timeout(patience, asked).await {
        Ok(Ok(Some(room))) => Pulse::Measured(room),
        Ok(Ok(None) | Err(_)) => Pulse::Gone,
        Err(_elapsed) => Pulse::Silent(Posture::Alive),
    }
}

pub(super) fn of(path: &Utf8Path) -> Option<Room> {
    let said = statvfs(path.as_std_path()).ok()?;
    let access = if said.flags().contains(FsFlags::ST_RDONLY) { Access::ReadOnly } else { Access::Writable };
    let unit = said.fragment_size();
    Some(Room {
        free: said.blocks_available().saturating_mul(unit),
        total: said.blocks().saturating_mul(unit),
        access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_a_tenth_of_the_volume_within_bounds() {
        assert_eq!(slot_limit_of(40 << 30), "4096MB");
        assert_eq!(slot_limit_of(1 << 30), "256MB");
        assert_eq!(slot_limit_of(10 << 40), "65536MB");
    }

    #[test]
    fn a_real_file_system_has_room() {
        let room = of(Utf8Path::new("/tmp")).unwrap();
        assert!(room.total >= room.free && room.total > 0, "{room:?}");
        assert_eq!(of(Utf8Path::new("/nowhere")), None);
    }
}
