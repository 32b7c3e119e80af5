//! The whole cluster as JSON (`/cluster`), in Patroni's keys and order. Pure: from the last snapshot to a value.

use serde_json::{Map, Value, json};

use super::NodeFacts;
use super::status::{SyncPart, is_paused, is_standby_cluster, known_view, part_of, system_id, to_json};
use crate::clock::Moment;
use crate::dcs::{Failover, Member, Snapshot};
use crate::ha;
use crate::types::Lsn;

/// Every member with its role and its lag, as of the last snapshot. Behind Patroni's keys: when that snapshot was
/// read, which database cluster it is and, once the snapshot is too old to speak for the cluster, its age.
pub fn cluster_json(status: &ha::Status, now: Moment) -> Value {
    let mut page = Map::new();
    let members = status.snapshot.iter().flat_map(|s| s.members.iter().map(|m| member(status, s, m)));
    page.insert("members".into(), members.collect());
    if is_paused(status) {
        page.insert("pause".into(), true.into());
    }
    if let Some(at) = status.snapshot.as_ref().and_then(scheduled_switchover) {
        page.insert("scheduled_switchover".into(), at);
    }
    page.insert("scope".into(), status.scope.clone().into());
    page.insert("dcs_last_seen".into(), status.store_seen.unwrap_or(0).into());
    if let Some(system_id) = system_id(status) {
        page.insert("database_system_identifier".into(), to_json(system_id));
    }
    if let Some(snapshot) = &status.snapshot
        && known_view(status, now).is_none()
    {
        page.insert("stale_seconds".into(), now.since(snapshot.taken).as_secs().into());
    }
    Value::Object(page)
}

/// The cluster as a node sees it whose HA loop has not run yet.
pub fn newborn_json(node: &NodeFacts) -> Value {
    json!({ "members": [], "scope": node.app, "dcs_last_seen": 0 })
}

fn member(status: &ha::Status, snapshot: &Snapshot, member: &Member) -> Value {
    let leads = snapshot.leader_name() == Some(&member.name);
    let mut row = Map::new();
    row.insert("name".into(), to_json(&member.name));
    row.insert("role".into(), role(status, snapshot, member).into());
    let replication = member.replication_state.filter(|_state| !leads);
    row.insert("state".into(), replication.map_or_else(|| to_json(member.state), to_json));
    row.insert("api_url".into(), member.api_url.clone().into());
    if let Some((host, port)) = address(&member.conn_url) {
        row.insert("host".into(), host.into());
        row.insert("port".into(), port.into());
    }
    if let Some(timeline) = member.timeline {
        row.insert("timeline".into(), to_json(timeline));
    }
    if member.pending_restart == Some(true) {
        row.insert("pending_restart".into(), true.into());
    }
    if let Some(reason) = &member.pending_restart_reason {
        row.insert("pending_restart_reason".into(), reason.clone());
    }
    if let Some(scheduled) = &member.scheduled_restart {
        row.insert("scheduled_restart".into(), scheduled.clone());
    }
    if !member.tags.is_empty() {
        row.insert("tags".into(), Value::Object(member.tags.clone()));
    }
    if !leads {
        insert_lags(&mut row, snapshot, member);
    }
    Value::Object(row)
}

fn role(status: &ha::Status, snapshot: &Snapshot, member: &Member) -> &'static str {
    if snapshot.leader_name() == Some(&member.name) {
        return if is_standby_cluster(status) { "standby_leader" } else { "leader" };
    }
    match part_of(snapshot, status.sync_mode, &member.name) {
        SyncPart::None => "replica",
        SyncPart::Sync => "sync_standby",
        SyncPart::Quorum => "quorum_standby",
    }
}

/// How far behind `/status` each of a member's positions is.
fn insert_lags(row: &mut Map<String, Value>, snapshot: &Snapshot, member: &Member) {
    let end = snapshot.status.as_ref().and_then(|s| s.value.optime);
    let mut insert = |lag: &str, lsn: &str, at: Option<Lsn>| {
        let unknown = || Value::from("unknown");
        let behind = end.zip(at).map(|(end, at)| end.bytes_ahead_of(at));
        row.insert(lag.into(), behind.map_or_else(unknown, Value::from));
        row.insert(lsn.into(), at.map_or_else(unknown, |at| at.to_string().into()));
    };
    insert("receive_lag", "receive_lsn", member.receive_lsn);
    insert("replay_lag", "replay_lsn", member.replay_lsn);
    insert("lag", "lsn", member.xlog_location);
}

/// Host and port of `postgres://HOST:PORT/DB`; an IPv6 host without its brackets.
fn address(conn_url: &str) -> Option<(&str, u16)> {
    let (_scheme, rest) = conn_url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let (host, port) = authority.rsplit_once(':')?;
    let host = host.rsplit_once('@').map_or(host, |(_user, host)| host);
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    Some((bare, port.parse().ok()?))
}

fn scheduled_switchover(snapshot: &Snapshot) -> Option<Value> {
    let Failover { leader, member, scheduled_at } = &snapshot.failover.as_ref()?.value;
    let mut page = Map::new();
    page.insert("at".into(), scheduled_at.clone()?.into());
    if let Some(from) = leader {
        page.insert("from".into(), to_json(from));
    }
    if let Some(to) = member {
        page.insert("to".into(), to_json(to));
    }
    Some(Value::Object(page))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::{END, configured, member as fixture_member, primary};
    use crate::dcs::{MemberState, Role, Versioned};
    use crate::types::{NodeName, Revision, SyncMode};

    const NOW: Moment = Moment(1_000_000_000_000);

    #[test]
    fn a_cluster_of_three_has_patronis_keys_in_patronis_order() {
        assert_eq!(
            cluster_json(&primary(NOW), NOW).to_string(),
            "{\"members\":[\
             {\"name\":\"n0\",\"role\":\"leader\",\"state\":\"running\",\
             \"api_url\":\"http://127.0.1.1:8008/patroni\",\"host\":\"127.0.1.1\",\"port\":5432,\"timeline\":1},\
             {\"name\":\"n1\",\"role\":\"quorum_standby\",\"state\":\"streaming\",\
             \"api_url\":\"http://127.0.1.2:8008/patroni\",\"host\":\"127.0.1.2\",\"port\":5432,\"timeline\":1,\
             \"receive_lag\":0,\"receive_lsn\":\"0/3000148\",\"replay_lag\":0,\"replay_lsn\":\"0/3000148\",\
             \"lag\":0,\"lsn\":\"0/3000148\"},\
             {\"name\":\"n2\",\"role\":\"replica\",\"state\":\"streaming\",\
             \"api_url\":\"http://127.0.1.3:8008/patroni\",\"host\":\"127.0.1.3\",\"port\":5432,\"timeline\":1,\
             \"receive_lag\":256,\"receive_lsn\":\"0/3000048\",\"replay_lag\":256,\"replay_lsn\":\"0/3000048\",\
             \"lag\":256,\"lsn\":\"0/3000048\"}],\
             \"scope\":\"demo\",\"dcs_last_seen\":1795190084,\
             \"database_system_identifier\":\"7710000000000000001\"}"
        );
    }

    #[test]
    fn what_is_not_known_is_said_so() {
        let mut status = primary(NOW);
        let snapshot = status.snapshot.as_mut().unwrap();
        let mut cloning = fixture_member("n2", Role::Uninitialized, None);
        cloning.state = MemberState::CreatingReplica;
        cloning.timeline = None;
        snapshot.members[2] = cloning;
        let page = cluster_json(&status, NOW);
        let row = &page["members"][2];
        assert_eq!(row["state"], "creating replica");
        assert_eq!((&row["lag"], &row["lsn"]), (&json!("unknown"), &json!("unknown")));
        assert!(row.get("timeline").is_none());
        status.snapshot = None;
        assert_eq!(cluster_json(&status, NOW)["members"], json!([]));
    }

    #[test]
    fn a_view_that_is_too_old_tells_its_age() {
        let status = primary(NOW);
        let at = |seconds| cluster_json(&status, NOW + std::time::Duration::from_secs(seconds));
        assert!(at(19).get("stale_seconds").is_none());
        assert_eq!(at(42)["stale_seconds"], 42);
    }

    #[test]
    fn a_replica_ahead_of_the_status_key_does_not_lag() {
        let mut status = primary(NOW);
        status.snapshot.as_mut().unwrap().members[1] = fixture_member("n1", Role::Replica, Some(END + 9));
        assert_eq!(cluster_json(&status, NOW)["members"][1]["lag"], 0);
    }

    #[test]
    fn roles_follow_the_mode_and_the_kind_of_cluster() {
        let mut status = configured(primary(NOW), json!({"standby_cluster": {"host": "x"}, "pause": true}));
        status.sync_mode = SyncMode::On;
        status.snapshot.as_mut().unwrap().failover = Some(Versioned {
            value: Failover {
                leader: Some(NodeName::from("n0")),
                member: None,
                scheduled_at: Some("2026-12-01T03:00:00+00:00".into()),
            },
            revision: Revision(1),
        });
        let page = cluster_json(&status, NOW);
        assert_eq!(page["members"][0]["role"], "standby_leader");
        assert_eq!(page["members"][1]["role"], "sync_standby");
        assert_eq!(page["pause"], true);
        assert_eq!(page["scheduled_switchover"], json!({"at": "2026-12-01T03:00:00+00:00", "from": "n0"}));
        status.sync_mode = SyncMode::Off;
        assert_eq!(cluster_json(&status, NOW)["members"][1]["role"], "replica");
    }

    #[test]
    fn addresses_are_cut_from_connection_urls() {
        assert_eq!(address("postgres://10.0.0.1:5432/postgres"), Some(("10.0.0.1", 5432)));
        assert_eq!(address("postgres://[2001:db8::7]:6432/db"), Some(("2001:db8::7", 6432)));
        assert_eq!(address("postgres://user@host:1/db?x=1"), Some(("host", 1)));
        assert_eq!(address("nonsense"), None);
    }
}
