//! Copies of logical slots: a standby cannot make one, so the state of the leader's is put into its data directory while no server
//! runs there.
//!
//! Invariant: a slot appears whole or not at all. It is written under a name that a starting server takes for an unfinished one
//! and removes, and renamed when it is on disk. Nothing is stopped before everything that is needed has been read, and nothing
//! is copied whose WAL this standby does not have. What is absent: failover slots of PostgreSQL 17, which copy themselves.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use tracing::info;

use crate::postgres::launch::{self, sync_dir};
use crate::postgres::{Config, Error, Postgres, Shared, StopMode, Upstream, conf, control, pedigree};
use crate::process::{self, Mode};
use crate::types::{Lsn, SlotName};

/// A slot's state on disk: behind four numbers its name, and behind four more where its WAL begins.
const NAME: std::ops::Range<usize> = 16..80;
const RESTART_LSN: std::ops::Range<usize> = 96..104;
/// What a starting server removes: a slot that was being made when it ended.
const UNFINISHED: &str = ".tmp";

/// A slot as the leader has it.
#[derive(Debug)]
struct State {
    slot: SlotName,
    bytes: Vec<u8>,
    restart_lsn: Lsn,
}

impl Postgres {
    /// Sees to it that these logical slots of the leader's can be copied, while the server goes on. Says which of them.
    ///
    /// # Errors
    /// None can: the leader has none of them, or this standby lacks their WAL.
    pub async fn prepare_copies(
        &self,
        from: &Upstream,
        names: &BTreeSet<SlotName>,
    ) -> Result<BTreeSet<SlotName>, Error> {
        // What cannot be copied costs no restart point.
        self.copyable(from, names).await?;
        // One that is made now removes what the one of the stop would remove between two looks.
        self.checkpoint(RESTART_POINT).await?;
        Ok(self.copyable(from, names).await?.into_iter().map(|state| state.slot).collect())
    }

    /// Copies these logical slots from the leader, and stops the server for it. Returns when they are on disk.
    ///
    /// # Errors
    /// None of them can be copied (nothing was stopped then), or they cannot be written.
    pub async fn copy_slots(
        &self,
        from: &Upstream,
        names: &BTreeSet<SlotName>,
        mode: StopMode,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let states = self.copyable(from, names).await?;
        let (_, _, segment_size) = control::last_checkpoint(shared).await?;
        let ladder = launch::before_stop(shared, mode).await.ladder();
        shared.unit.stop(Some(ladder)).await;
        shared.link.close();
        let states = with_wal(shared, states, segment_size)?;
        let config = shared.config.clone();
        conf::off_thread(move || states.iter().try_for_each(|state| put(&config, state))).await
    }

    /// The states of those that the leader has and whose WAL is here.
    async fn copyable(&self, from: &Upstream, names: &BTreeSet<SlotName>) -> Result<Vec<State>, Error> {
        let states = read(&self.shared, from, names).await?;
        let (_, _, segment_size) = control::last_checkpoint(&self.shared).await?;
        with_wal(&self.shared, states, segment_size)
    }
}

/// A standby's restart point writes every dirty page.
const RESTART_POINT: std::time::Duration = std::time::Duration::from_secs(600);

/// By psql, like everything that is asked of another server, and by the role that may read its files.
async fn read(shared: &Shared, from: &Upstream, names: &BTreeSet<SlotName>) -> Result<Vec<State>, Error> {
    conf::write_passfile(&shared.config)?;
    let list: Vec<_> = names.iter().map(|name| format!("'{}'", name.0)).collect();
    let ask = format!(
        "SELECT slot_name, encode(pg_read_binary_file('pg_replslot/' || slot_name || '/state'), 'hex')
           FROM pg_replication_slots
          WHERE slot_type = 'logical' AND NOT temporary AND NOT pg_is_in_recovery() AND slot_name IN ({})",
        list.join(", ")
    );
    let text = pedigree::psql(shared, &conf::rewind_conninfo(&shared.config, from), &ask).await?;
    let states = text.lines().map(|row| parse(row).ok_or(row));
    let states: Vec<_> = states.collect::<Result<_, _>>().map_err(unreadable)?;
    match names.first() {
        Some(name) if states.is_empty() => {
            Err(Error::SlotNotCopied { slot: name.clone(), why: "the leader does not have it" })
        }
        Some(_) | None => Ok(states),
    }
}

fn unreadable(row: &str) -> Error {
    Error::Unparsable { what: "the state of a slot", text: row.chars().take(80).collect() }
}

/// `name|state in hexadecimal digits`
fn parse(row: &str) -> Option<State> {
    let (name, digits) = row.split_once('|')?;
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = pairs.map(byte).collect::<Option<_>>()?;
    let inside = bytes.get(NAME)?;
    if inside.split(|byte| *byte == 0).next()? != name.as_bytes() {
        return None;
    }
    // As the processor has it: a standby's is of the same kind as its primary's.
    let restart_lsn = Lsn(u64::from_ne_bytes(bytes.get(RESTART_LSN)?.try_into().ok()?));
    Some(State { slot: SlotName(name.to_owned()), bytes, restart_lsn })
}

/// A slot without its WAL would help nobody, and would be copied again and again.
fn with_wal(shared: &Shared, states: Vec<State>, segment_size: u64) -> Result<Vec<State>, Error> {
    let dir = shared.config.data_dir.join("pg_wal");
    let files = dir.read_dir_utf8().map_err(Error::file("read", &dir))?;
    let here: BTreeSet<String> =
        files.filter_map(|file| Some(file.ok()?.file_name().get(8..)?.to_owned())).collect();
    let has = |state: &State| here.contains(&pedigree::segment_name(state.restart_lsn, segment_size));
    let (whole, without): (Vec<_>, Vec<_>) = states.into_iter().partition(has);
    match without.into_iter().next() {
        Some(state) if whole.is_empty() => {
            Err(Error::SlotNotCopied { slot: state.slot, why: "its WAL is not here any more" })
        }
        Some(_) | None => Ok(whole),
    }
}

fn put(config: &Config, state: &State) -> Result<(), Error> {
    let dir = config.data_dir.join("pg_replslot");
    let (made, unfinished) = (dir.join(&state.slot.0), dir.join(format!("{}{UNFINISHED}", state.slot.0)));
    let failed = |path: &Utf8Path| {
        let path: Utf8PathBuf = path.to_owned();
        move |source| Error::Write { path, source }
    };
    process::make_private_dir(&unfinished, &config.run_as).map_err(failed(&unfinished))?;
    let file = unfinished.join("state");
    process::write_atomic(&file, &state.bytes, &config.run_as, Mode::Private).map_err(failed(&file))?;
    std::fs::rename(&unfinished, &made).map_err(Error::file("rename", &unfinished))?;
    sync_dir(&dir)?;
    info!(slot = %state.slot.0, from = %state.restart_lsn, "copied a logical slot of the leader's");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, restart: u64) -> String {
        let mut bytes = [0_u8; 200];
        bytes[16..16 + name.len()].copy_from_slice(name.as_bytes());
        bytes[RESTART_LSN].copy_from_slice(&restart.to_ne_bytes());
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name}|{digits}")
    }

    #[test]
    fn a_state_is_read_and_one_of_another_slot_is_none() {
        let state = parse(&row("feed", 0x500_0028)).unwrap();
        assert_eq!(
            (state.slot.0.as_str(), state.restart_lsn, state.bytes.len()),
            ("feed", Lsn(0x500_0028), 200)
        );
        assert!(parse(&row("feed", 1).replacen("feed", "food", 1)).is_none());
        assert!(parse("feed|00").is_none() && parse("feed|xy").is_none() && parse("feed").is_none());
    }
}
