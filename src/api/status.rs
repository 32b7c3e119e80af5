//! This member as JSON, in Patroni's keys and order (`/patroni` and every health path), and the facts that the
//! other pages of the API share. Pure: from a published [`ha::Status`] and a moment to a value.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::NodeFacts;
use crate::clock::Moment;
use crate::dcs::{Initialize, MemberState, Role, Snapshot};
use crate::ha;
use crate::ha::failsafe::Activity;
use crate::ha::publish::pending_restart_reason;
use crate::ha::watchdog::Health;
use crate::postgres::status::{Answer, Control, DataDir, Kind, Standby};
use crate::types::{Lsn, NodeName, SyncMode, SystemId};

/// The version of Patroni whose outside language we speak; other tools parse it as three numbers.
pub use crate::ha::publish::PATRONI_VERSION;

/// The status of this member.
pub fn member_json(status: &ha::Status, now: Moment) -> Value {
    let mut page = Map::new();
    page.insert("state".into(), to_json(status.state));
    if let Some(answer) = &status.postgres.sql {
        insert_instance(&mut page, status, answer);
    } else {
        page.insert("role".into(), to_json(role(status)));
    }
    insert_cluster(&mut page, status, now);
    insert_member(&mut page, status);
    page.insert("pgherd".into(), about_pgherd(status));
    Value::Object(page)
}

/// The status of a node whose HA loop has not run yet.
pub fn newborn_json(node: &NodeFacts) -> Value {
    json!({
        "state": to_json(MemberState::Stopped),
        "role": to_json(Role::Uninitialized),
        "cluster_unlocked": true,
        "dcs_last_seen": 0,
        "patroni": about(&node.app, &node.name),
    })
}

/// What can only be said when PostgreSQL has answered.
fn insert_instance(page: &mut Map<String, Value>, status: &ha::Status, answer: &Answer) {
    page.insert("postmaster_start_time".into(), timestamp(answer.started_at_micros));
    page.insert("role".into(), to_json(role(status)));
    page.insert("server_version".into(), answer.server_version.into());
    page.insert("xlog".into(), positions(&answer.kind));
    match sync_part(status) {
        SyncPart::None => None,
        SyncPart::Sync => page.insert("sync_standby".into(), true.into()),
        SyncPart::Quorum => page.insert("quorum_standby".into(), true.into()),
    };
    page.insert("timeline".into(), to_json(answer.timeline));
    match &answer.kind {
        Kind::Standby { replication: Some(replication), .. } => {
            page.insert("replication_state".into(), to_json(replication));
        }
        Kind::Primary { standbys, .. } if !standbys.is_empty() => {
            page.insert("replication".into(), standbys.iter().map(standby).collect());
        }
        Kind::Standby { replication: None, .. } | Kind::Primary { .. } => {}
    }
}

/// What is known of the cluster and of this member's place in it.
fn insert_cluster(page: &mut Map<String, Value>, status: &ha::Status, now: Moment) {
    if is_paused(status) {
        page.insert("pause".into(), true.into());
    }
    if is_unlocked(status, now) {
        page.insert("cluster_unlocked".into(), true.into());
    }
    match status.failsafe.activity {
        Activity::Active => page.insert("failsafe_mode_is_active".into(), true.into()),
        Activity::Idle => None,
    };
    page.insert("dcs_last_seen".into(), status.store_seen.unwrap_or(0).into());
}

/// What this member says of itself, whatever becomes of PostgreSQL.
fn insert_member(page: &mut Map<String, Value>, status: &ha::Status) {
    if !status.tags.is_empty() {
        page.insert("tags".into(), Value::Object(status.tags.clone()));
    }
    if let Some(system_id) = system_id(status) {
        page.insert("database_system_identifier".into(), to_json(system_id));
    }
    if is_restart_pending(status) {
        page.insert("pending_restart".into(), true.into());
    }
    if let Some(reason) = status.postgres.sql.as_ref().and_then(pending_restart_reason) {
        page.insert("pending_restart_reason".into(), reason);
    }
    page.insert("patroni".into(), about(&status.scope, &status.name));
    if let Some(mut scheduled) = status.scheduled_restart.clone() {
        // Which postmaster is meant is for the member key alone.
        scheduled.as_object_mut().and_then(|scheduled| scheduled.remove("postmaster_start_time"));
        page.insert("scheduled_restart".into(), scheduled);
    }
    match status.watchdog {
        Health::Failed => page.insert("watchdog_failed".into(), true.into()),
        Health::Sound => None,
    };
}

fn about(scope: &str, name: &NodeName) -> Value {
    json!({ "version": PATRONI_VERSION, "scope": scope, "name": name })
}

/// Our own additions, behind everything that Patroni's readers know.
fn about_pgherd(status: &ha::Status) -> Value {
    let mut page = Map::new();
    page.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    page.insert("reason".into(), status.reason.clone().into());
    page.insert("position".into(), position(status.position).into());
    if !status.complaints.is_empty() {
        page.insert("complaints".into(), status.complaints.clone().into());
    }
    let weakened = status.postgres.sql.as_ref().map(|answer| &answer.weakened);
    if let Some(weakened) = weakened.filter(|names| !names.is_empty()) {
        page.insert("weakened_commits".into(), weakened.clone().into());
    }
    if let Some(silence) = &status.postgres.silence {
        page.insert("silence".into(), silence.clone().into());
    }
    Value::Object(page)
}

/// Whether a vote on the local position would be a vote on something that still moves.
fn position(position: ha::Position) -> &'static str {
    match position {
        ha::Position::Moving => "moving",
        ha::Position::Frozen => "frozen",
        ha::Position::Foreign => "foreign",
    }
}

fn positions(kind: &Kind) -> Value {
    match kind {
        Kind::Primary { lsn, .. } => json!({ "location": lsn }),
        Kind::Standby { received, replayed, replayed_at_micros, replay_paused, .. } => json!({
            "received_location": received,
            "replayed_location": replayed,
            "replayed_timestamp": replayed_at_micros.map_or(Value::Null, timestamp),
            "paused": replay_paused,
        }),
    }
}

fn standby(row: &Standby) -> Value {
    json!({
        "usename": row.user,
        "application_name": row.name,
        "client_addr": row.client,
        "state": row.state,
        "sync_state": row.sync_state,
        "sync_priority": row.sync_priority,
    })
}

/// `YYYY-MM-DD HH:MM:SS.ffffff+00:00`, which is not quite ISO 8601 but is what Patroni says.
fn timestamp(micros: i64) -> Value {
    jiff::Timestamp::from_microsecond(micros)
        .map_or(Value::Null, |t| t.strftime("%Y-%m-%d %H:%M:%S%.6f+00:00").to_string().into())
}

/// A value of ours as JSON. Every type given to it serialises to a string or a number, so nothing is lost.
pub(super) fn to_json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// This member's role: what PostgreSQL says it is comes first, for a client cares where writes work.
pub fn role(status: &ha::Status) -> Role {
    match (status.postgres.sql.as_ref().map(|answer| &answer.kind), status.role) {
        (Some(Kind::Primary { .. }), _) => Role::Primary,
        (Some(Kind::Standby { .. }), Role::StandbyLeader) => Role::StandbyLeader,
        (Some(Kind::Standby { .. }), _) => Role::Replica,
        (None, role) => role,
    }
}

/// The snapshot, if it is recent enough to speak for the cluster: read within the last `ttl`.
pub fn known_view(status: &ha::Status, now: Moment) -> Option<&Snapshot> {
    status.snapshot.as_ref().filter(|snapshot| now.since(snapshot.taken) < status.timing.ttl)
}

/// Whether nobody leads, as far as is known.
pub fn is_unlocked(status: &ha::Status, now: Moment) -> bool {
    known_view(status, now).is_none_or(|snapshot| snapshot.leader.is_none())
}

/// Whether the dynamic configuration, as last read, says so: `pause`, `failsafe_mode`.
pub fn is_set(status: &ha::Status, key: &str) -> bool {
    config(status).and_then(|config| config.get(key)).and_then(Value::as_bool).unwrap_or(false)
}

/// Maintenance mode.
pub fn is_paused(status: &ha::Status) -> bool {
    is_set(status, "pause")
}

/// Whether this cluster follows another one.
pub fn is_standby_cluster(status: &ha::Status) -> bool {
    config(status).is_some_and(ha::remote::is_declared)
}

fn config(status: &ha::Status) -> Option<&Value> {
    Some(&status.snapshot.as_ref()?.config.as_ref()?.value)
}

/// Whether a setting waits for a restart.
pub fn is_restart_pending(status: &ha::Status) -> bool {
    status.postgres.sql.as_ref().is_some_and(|answer| !answer.pending_restart.is_empty())
}

/// The leader's last known position: the further of `/status` and the leader's own member key.
pub fn leader_position(snapshot: &Snapshot) -> Option<Lsn> {
    let published = snapshot.status.as_ref().and_then(|s| s.value.optime);
    let own = snapshot.leader_name().and_then(|name| snapshot.member(name)).and_then(|m| m.xlog_location);
    published.max(own)
}

/// The identity of the data: the data directory's, else what the store says.
pub fn system_id(status: &ha::Status) -> Option<SystemId> {
    match &status.postgres.data {
        DataDir::Cluster(Control { system_id, .. }) => Some(*system_id),
        DataDir::Empty | DataDir::Incomplete { .. } | DataDir::Unreadable { .. } => {
            match status.snapshot.as_ref()?.initialize.as_ref()?.value {
                Initialize::Done(system_id) => Some(system_id),
                Initialize::InProgress | Initialize::Invalid => None,
            }
        }
    }
}

/// A replica's part in the synchronous set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPart {
    /// Commits do not wait for it.
    None,
    /// Named, in priority mode.
    Sync,
    /// Named, in quorum mode.
    Quorum,
}

/// This member's part in the synchronous set.
pub fn sync_part(status: &ha::Status) -> SyncPart {
    match (role(status), &status.snapshot) {
        (Role::Replica, Some(snapshot)) => part_of(snapshot, status.sync_mode, &status.name),
        (
            Role::Replica
            | Role::Primary
            | Role::StandbyLeader
            | Role::Demoted
            | Role::Promoted
            | Role::Uninitialized,
            _,
        ) => SyncPart::None,
    }
}

/// A member's part in the synchronous set. Names compare without regard to case, as Patroni does.
pub fn part_of(snapshot: &Snapshot, mode: SyncMode, name: &NodeName) -> SyncPart {
    let same = |other: &NodeName| other.as_str().eq_ignore_ascii_case(name.as_str());
    let named = snapshot.sync.as_ref().is_some_and(|sync| sync.value.standbys().iter().any(same));
    match mode {
        SyncMode::On if named => SyncPart::Sync,
        SyncMode::Quorum if named => SyncPart::Quorum,
        SyncMode::Off | SyncMode::On | SyncMode::Quorum => SyncPart::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::{configured, down, primary, replica, tagged};
    use crate::dcs::ReplicationState;
    use crate::postgres::status::PendingSetting;
    use std::time::Duration;

    const NOW: Moment = Moment(1_000_000_000_000);

    /// As captured on a real cluster, plus our own object at the end.
    #[test]
    fn a_primary_has_patronis_keys_in_patronis_order() {
        assert_eq!(
            member_json(&primary(NOW), NOW).to_string(),
            "{\"state\":\"running\",\"postmaster_start_time\":\"2026-11-20 15:54:17.002193+00:00\",\
             \"role\":\"primary\",\"server_version\":150018,\"xlog\":{\"location\":50331976},\"timeline\":1,\
             \"replication\":[{\"usename\":\"replicator\",\"application_name\":\"n1\",\
             \"client_addr\":\"127.0.1.2\",\"state\":\"streaming\",\"sync_state\":\"quorum\",\"sync_priority\":1}],\
             \"dcs_last_seen\":1795190084,\"database_system_identifier\":\"7710000000000000001\",\
             \"patroni\":{\"version\":\"4.1.4\",\"scope\":\"demo\",\"name\":\"n0\"},\
             \"pgherd\":{\"version\":\"0.1.0\",\"reason\":\"nothing to do: we lead and all is well\",\"position\":\"moving\"}}"
        );
    }

    #[test]
    fn a_replica_has_its_positions_and_its_part() {
        assert_eq!(
            member_json(&replica("n1", 0, NOW), NOW).to_string(),
            "{\"state\":\"running\",\"postmaster_start_time\":\"2026-11-20 15:54:17.002193+00:00\",\
             \"role\":\"replica\",\"server_version\":150018,\"xlog\":{\"received_location\":50331976,\
             \"replayed_location\":50331976,\"replayed_timestamp\":\"2026-11-20 15:54:18.002193+00:00\",\
             \"paused\":false},\"quorum_standby\":true,\"timeline\":1,\"replication_state\":\"streaming\",\
             \"dcs_last_seen\":1795190084,\"database_system_identifier\":\"7710000000000000001\",\
             \"patroni\":{\"version\":\"4.1.4\",\"scope\":\"demo\",\"name\":\"n1\"},\
             \"pgherd\":{\"version\":\"0.1.0\",\"reason\":\"nothing to do: we lead and all is well\",\"position\":\"moving\"}}"
        );
    }

    fn keys(page: &Value) -> Vec<&str> {
        page.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn the_rarer_keys_stand_where_patroni_has_them() {
        let status =
            tagged(configured(replica("n1", 0, NOW), json!({"pause": true})), &json!({"nosync": true}));
        let mut status = ha::Status { sync_mode: SyncMode::On, watchdog: Health::Failed, ..status };
        status.snapshot.as_mut().unwrap().leader = None;
        let answer = status.postgres.sql.as_mut().unwrap();
        answer.pending_restart.push(PendingSetting {
            name: "max_connections".into(),
            old_value: "100".into(),
            new_value: "120".into(),
        });
        status.scheduled_restart =
            Some(json!({"schedule": "2033-01-01T10:00:00Z", "postmaster_start_time": "x"}));
        let page = member_json(&status, NOW);
        assert_eq!(page["scheduled_restart"], json!({"schedule": "2033-01-01T10:00:00Z"}));
        assert_eq!(
            keys(&page),
            [
                "state",
                "postmaster_start_time",
                "role",
                "server_version",
                "xlog",
                "sync_standby",
                "timeline",
                "replication_state",
                "pause",
                "cluster_unlocked",
                "dcs_last_seen",
                "tags",
                "database_system_identifier",
                "pending_restart",
                "pending_restart_reason",
                "patroni",
                "scheduled_restart",
                "watchdog_failed",
                "pgherd"
            ]
        );
    }

    #[test]
    fn without_postgres_the_page_is_short() {
        let page = member_json(&down(primary(NOW)), NOW);
        assert_eq!(
            keys(&page),
            ["state", "role", "dcs_last_seen", "database_system_identifier", "patroni", "pgherd"]
        );
        assert_eq!(page["state"], "crashed");
    }

    #[test]
    fn unknown_values_are_null_or_absent() {
        let mut status = replica("n2", 0, NOW);
        if let Some(Answer { kind: Kind::Standby { replayed_at_micros, replication, .. }, .. }) =
            &mut status.postgres.sql
        {
            *replayed_at_micros = None;
            *replication = None;
        }
        let page = member_json(&status, NOW);
        assert_eq!(page["xlog"]["replayed_timestamp"], Value::Null);
        assert!(page.get("replication_state").is_none() && page.get("quorum_standby").is_none());
    }

    #[test]
    fn a_view_older_than_the_ttl_does_not_count() {
        let status = primary(NOW);
        assert!(!is_unlocked(&status, NOW + Duration::from_secs(19)));
        assert!(is_unlocked(&status, NOW + Duration::from_secs(20)));
    }

    #[test]
    fn replication_words_are_patronis() {
        assert_eq!(to_json(ReplicationState::InArchiveRecovery), "in archive recovery");
        assert_eq!(to_json(Role::StandbyLeader), "standby_leader");
    }
}
