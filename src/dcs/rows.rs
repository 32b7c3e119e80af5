//! From the keys and values below a scope to a [`Snapshot`]. No IO but a line of the log, and the same for every store.
//!
//! A value that cannot be parsed counts as absent (`initialize`: as [`Initialize::Invalid`]): one damaged key must
//! not stop the HA loop of a whole cluster. It is logged at debug, since it is read again in every loop.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use tracing::debug;

use super::{
    Failover, Failsafe, History, Initialize, Key, Leader, Member, Readiness, Snapshot, Status, Sync,
    Versioned,
};
use crate::clock::Moment;
use crate::types::{LeaseId, Lsn, NodeName, Revision, SystemId};

/// The leader key's last segment.
pub(super) const LEADER: &str = "leader";
/// What members' keys begin with.
pub(super) const MEMBERS: &str = "members/";
/// Where versions before 2.1 kept the leader's position; read only while `status` is absent.
const LEGACY_OPTIME: &str = "optime/leader";

/// One key below the scope.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// The key without the scope's prefix.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Its version.
    pub revision: Revision,
    /// Its lease; zero when it has none.
    pub lease: LeaseId,
}

impl Row {
    fn text(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.value);
        text.inspect_err(|_not_text| debug!(key = self.key, "a value that is not text counts as absent")).ok()
    }

    fn json<T: DeserializeOwned>(&self) -> Option<T> {
        let parsed = serde_json::from_slice(&self.value);
        parsed
            .inspect_err(
                |error| debug!(key = self.key, %error, "a value that is no such JSON counts as absent"),
            )
            .ok()
    }

    fn versioned<T>(&self, value: T) -> Versioned<T> {
        Versioned { value, revision: self.revision }
    }
}

/// Puts the rows of one read together.
pub(super) fn snapshot(taken: Moment, readiness: Readiness, rows: &[Row]) -> Snapshot {
    let mut members: Vec<_> = rows.iter().filter_map(member).collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Snapshot {
        taken,
        readiness,
        initialize: find(rows, Key::Initialize.segment()).map(|row| row.versioned(initialize(row))),
        leader: find(rows, LEADER).and_then(leader),
        members,
        config: document::<serde_json::Value>(rows, Key::Config),
        status: document::<Status>(rows, Key::Status).or_else(|| legacy_status(rows)),
        history: document::<History>(rows, Key::History),
        sync: document::<Sync>(rows, Key::Sync),
        failover: find(rows, Key::Failover.segment()).and_then(failover),
        failsafe: document::<Failsafe>(rows, Key::Failsafe),
    }
}

fn find<'a>(rows: &'a [Row], key: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.key == key)
}

fn document<T: DeserializeOwned>(rows: &[Row], key: Key) -> Option<Versioned<T>> {
    find(rows, key.segment()).and_then(|row| Some(row.versioned(row.json()?)))
}

fn initialize(row: &Row) -> Initialize {
    match row.text() {
        Some("") => Initialize::InProgress,
        Some(text) => SystemId::from_str(text).map_or(Initialize::Invalid, Initialize::Done),
        None => Initialize::Invalid,
    }
}

/// An empty leader key names nobody, but it is there: nobody can create it. It is kept with an empty name so that
/// an observer can time it out like any other leader that does not renew.
fn leader(row: &Row) -> Option<Leader> {
    let name = String::from_utf8_lossy(&row.value);
    Some(Leader { name: NodeName::from(name.as_ref()), lease: row.lease, revision: row.revision })
}

fn member(row: &Row) -> Option<Member> {
    let name = row.key.strip_prefix(MEMBERS).filter(|name| !name.is_empty() && !name.contains('/'))?;
    Some(Member { name: NodeName::from(name), ..row.json()? })
}

/// `{}` and an empty value are a request that was cleared; `leader:candidate` is its form of old.
fn failover(row: &Row) -> Option<Versioned<Failover>> {
    let text = row.text()?.trim();
    let request = if text.starts_with('{') || text.is_empty() {
        serde_json::from_str(text).unwrap_or_default()
    } else {
        let (leader, candidate) = text.split_once(':').unwrap_or((text, ""));
        let name = |part: &str| (!part.trim().is_empty()).then(|| NodeName::from(part.trim()));
        Failover { leader: name(leader), member: name(candidate), scheduled_at: None }
    };
    (request != Failover::default()).then(|| row.versioned(request))
}

fn legacy_status(rows: &[Row]) -> Option<Versioned<Status>> {
    let row = find(rows, LEGACY_OPTIME)?;
    let optime = Lsn(row.text()?.trim().parse().ok()?);
    Some(row.versioned(Status { optime: Some(optime), slots: None, retain_slots: None, shutdown: None }))
}
