//! The room on the volume: how much is free where PGDATA and its WAL lie, and whether anything can be written there.

use std::time::Duration;

use camino::Utf8Path;
use nix::sys::statvfs::{FsFlags, statvfs};
use tokio::time::timeout;

use super::{Posture, Pulse, Shared};
use crate::types::{Access, Room};

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

fn of(path: &Utf8Path) -> Option<Room> {
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
    fn a_real_file_system_has_room() {
        let room = of(Utf8Path::new("/tmp")).unwrap();
        assert!(room.total >= room.free && room.total > 0, "{room:?}");
        assert_eq!(of(Utf8Path::new("/nowhere")), None);
    }
}
