//! Replication slots: what one is, a plan of what to change, and the statements that change it.

mod copy;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use super::sql::{STATEMENT_LIMIT, Session, with_session};
use super::{Error, Shared};
use crate::types::{Lsn, SlotName};

/// What lies between the oldest WAL of a copy and where it is to be takes as long as it takes: one that is cut off begins anew at the
/// same place. It ends when it is not wanted any more.
const UNLIMITED: Duration = Duration::ZERO;
/// Between two requests to end a statement: one that comes before it has begun is not heeded.
const CANCEL_AGAIN: Duration = Duration::from_millis(100);

/// Names under which the dynamic configuration may have permanent slots; the first one found counts.
pub const PERMANENT_SLOTS: [&str; 3] = ["slots", "permanent_slots", "permanent_replication_slots"];

/// Whether a dynamic configuration names a permanent logical slot.
pub(super) fn any_logical(config: &Value) -> bool {
    let named = PERMANENT_SLOTS.iter().find_map(|key| config.get(*key)?.as_object());
    named.is_some_and(|slots| {
        slots.values().any(|slot| slot.get("type").is_some_and(|kind| kind == "logical"))
    })
}

/// A slot that is not temporary.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, named as PostgreSQL names them")]
pub struct Slot {
    /// Its name.
    pub name: SlotName,
    /// Physical or logical.
    pub kind: SlotKind,
    /// Whether somebody uses it.
    pub active: bool,
    /// The oldest WAL that it keeps.
    pub restart_lsn: Option<Lsn>,
    /// Up to where a logical slot's reader has confirmed.
    pub confirmed: Option<Lsn>,
    /// Whether the WAL that it is there for is.
    pub wal: SlotWal,
    /// Whether it holds back vacuum.
    pub horizon: Horizon,
    /// A failover slot of PostgreSQL 17, which looks after its copies itself.
    pub synchronised: bool,
}

/// What a slot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotKind {
    /// For a standby.
    Physical,
    /// For a reader of changes.
    Logical {
        /// The database that it reads.
        database: String,
        /// What decodes the changes.
        plugin: String,
    },
}

/// Whether a slot still has its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotWal {
    /// It has.
    Kept,
    /// It was removed (`max_slot_wal_keep_size`).
    Lost,
}

/// Whether a slot holds back vacuum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Horizon {
    /// It does not.
    Free,
    /// Its `xmin` is set, or a physical one's `catalog_xmin`.
    Held,
}

/// What to change. Dropped first, then made, then moved: a slot that is in both of the first two is made anew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotPlan {
    /// To be dropped, unless somebody has begun to use it.
    pub drop: BTreeSet<SlotName>,
    /// To be made.
    pub create: BTreeMap<SlotName, SlotKind>,
    /// Physical slots to be moved forward to here.
    pub advance: BTreeMap<SlotName, Lsn>,
    /// Copies of logical slots to be moved forward to here, each in its database ([`super::Postgres::move_copy`]).
    pub follow: BTreeMap<SlotName, (String, Lsn)>,
}

impl SlotPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.drop.is_empty() && self.create.is_empty() && self.advance.is_empty() && self.follow.is_empty()
    }
}

/// See [`super::Postgres::change_slots`].
pub(super) async fn change(shared: &Shared, plan: &SlotPlan) -> Result<(), Error> {
    with_session(shared, STATEMENT_LIMIT, "change the slots", async |session: std::sync::Arc<Session>| {
        drop_unused(&session, &plan.drop).await?;
        create_physical(&session, plan).await?;
        advance(&session, &plan.advance).await
    })
    .await?;
    for (name, kind) in &plan.create {
        match kind {
            SlotKind::Physical => {}
            SlotKind::Logical { database, plugin } => create_logical(shared, name, database, plugin).await?,
        }
    }
    Ok(())
}

async fn drop_unused(session: &Session, names: &BTreeSet<SlotName>) -> Result<(), Error> {
    if names.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = names.iter().map(|slot| slot.0.clone()).collect();
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                WHERE slot_name = ANY ($1::text[]) AND NOT active AND NOT temporary";
    session.query("drop slots", sql, &[&names]).await.map(|_rows| ())
}

async fn create_physical(session: &Session, plan: &SlotPlan) -> Result<(), Error> {
    let physical = plan.create.iter().filter(|(_, kind)| **kind == SlotKind::Physical);
    let names: Vec<_> = physical.map(|(slot, _)| slot.0.clone()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let sql = "SELECT pg_create_physical_replication_slot(wanted, true) FROM unnest($1::text[]) wanted
                WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = wanted)";
    session.query("create slots", sql, &[&names]).await.map(|_rows| ())
}

/// In the database that it will read: a logical slot belongs to one.
async fn create_logical(shared: &Shared, name: &SlotName, database: &str, plugin: &str) -> Result<(), Error> {
    let session = Session::open_in(&shared.config, database, STATEMENT_LIMIT).await?;
    let sql = "SELECT pg_create_logical_replication_slot($1::text, $2::text)
                WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1::text)";
    session.query("create a logical slot", sql, &[&name.0, &plugin]).await.map(|_rows| ())
}

async fn advance(session: &Session, positions: &BTreeMap<SlotName, Lsn>) -> Result<(), Error> {
    if positions.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = positions.keys().map(|slot| slot.0.clone()).collect();
    let targets: Vec<_> = positions.values().map(Lsn::to_string).collect();
    let sql = "SELECT pg_replication_slot_advance(s.slot_name, w.target::pg_lsn)
                 FROM unnest($1::text[], $2::text[]) AS w (name, target)
                 JOIN pg_replication_slots s ON s.slot_name = w.name
                WHERE s.slot_type = 'physical' AND NOT s.active AND s.restart_lsn < w.target::pg_lsn";
    session.query("advance slots", sql, &[&names, &targets]).await.map(|_rows| ())
}

/// See [`super::Postgres::move_copy`]. In the database that it reads. A copy whose WAL is gone is dropped: it is of no use, and the
/// leader's is copied again.
pub(super) async fn follow(
    shared: &Shared,
    name: &SlotName,
    (database, to): (&str, Lsn),
    unwanted: &CancellationToken,
) -> Result<(), Error> {
    let session = Session::open_in(&shared.config, database, UNLIMITED).await?;
    let sql = "SELECT pg_replication_slot_advance(slot_name, $2::text::pg_lsn) FROM pg_replication_slots
                WHERE slot_name = $1::text AND slot_type = 'logical' AND NOT active
                  AND confirmed_flush_lsn < $2::text::pg_lsn";
    let to = to.to_string();
    let values: [&(dyn ToSql + Sync); 2] = [&name.0, &to];
    let moving = session.query("move a copy of a logical slot", sql, &values);
    let ending = async {
        unwanted.cancelled().await;
        loop {
            session.cancel().await;
            tokio::time::sleep(CANCEL_AGAIN).await;
        }
    };
    let moved = tokio::select! {
        moved = moving => moved,
        never = ending => never,
    };
    match moved {
        Err(_cut_off) if unwanted.is_cancelled() => Ok(()),
        Err(Error::Sql { source, .. }) if source.code() == Some(&SqlState::UNDEFINED_FILE) => {
            drop_unused(&session, &BTreeSet::from([name.clone()])).await
        }
        moved => moved.map(|_rows| ()),
    }
}
