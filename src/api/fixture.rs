//! Hand-made statuses for tests: a cluster of three, n0 leading, n1 in the quorum, n2 not.
//!
//! `tests/api.rs` includes this file too; hence the plain `crate::` paths, which it provides.

use std::time::Duration;

use serde_json::json;

use crate::clock::Moment;
use crate::dcs::{
    Initialize, Leader, Member, MemberState, Readiness, ReplicationState, Role, Snapshot, Sync, Versioned,
};
use crate::ha;
use crate::ha::forecast::Forecast;
use crate::ha::trail::Trail;
use crate::postgres::status::{Answer, Control, ControlState, DataDir, Kind, Standby};
use crate::postgres::{self, Door};
use crate::supervisor::UnitState;
use crate::types::{LeaseId, Lsn, NodeName, Revision, SyncMode, SystemId, Timeline, Timing};

/// The leader's position.
pub(crate) const END: u64 = 0x300_0148;
/// 2026-11-20 15:54:17.002193 UTC.
const STARTED: i64 = 1_795_190_057_002_193;

/// A step of the trail, as the file has it.
const PROMOTED: &str = r#"{"at":"2026-11-20T15:54:16Z","kind":"promoting","reason":"the lock is ours: promoting","actions":["begin promote"],"inputs":{"leader":"n0"}}"#;

fn versioned<T>(value: T) -> Versioned<T> {
    Versioned { value, revision: Revision(7) }
}

/// A member as its key in the store has it.
pub(crate) fn member(name: &str, role: Role, at: Option<u64>) -> Member {
    let replica = role == Role::Replica;
    let host = format!("127.0.1.{}", name.trim_start_matches('n').parse::<u8>().unwrap_or(200) + 1);
    Member {
        name: NodeName::from(name),
        conn_url: format!("postgres://{host}:5432/postgres"),
        api_url: format!("http://{host}:8008/patroni"),
        state: MemberState::Running,
        role,
        version: "4.1.4".into(),
        proxy_url: None,
        pgherd_version: None,
        node_id: None,
        checkpoint_after_promote: None,
        tags: serde_json::Map::new(),
        pending_restart: None,
        pending_restart_reason: None,
        scheduled_restart: None,
        xlog_location: at.map(Lsn),
        replay_lsn: at.filter(|_at| replica).map(Lsn),
        receive_lsn: at.filter(|_at| replica).map(Lsn),
        replication_state: replica.then_some(ReplicationState::Streaming),
        timeline: Some(Timeline(1)),
        pause: None,
        room: None,
    }
}

/// The store's view of the three.
pub(crate) fn snapshot(now: Moment) -> Snapshot {
    let n0 = NodeName::from("n0");
    Snapshot {
        taken: now,
        readiness: Readiness::Ready,
        initialize: Some(versioned(Initialize::Done(SystemId(7_710_000_000_000_000_001)))),
        leader: Some(Leader { name: n0.clone(), lease: LeaseId(1), revision: Revision(9) }),
        members: vec![
            member("n0", Role::Primary, Some(END)),
            member("n1", Role::Replica, Some(END)),
            member("n2", Role::Replica, Some(END - 0x100)),
        ],
        config: Some(versioned(json!({"ttl": 20, "custom": {"kept": true}}))),
        status: Some(versioned(crate::dcs::Status { optime: Some(Lsn(END)), ..Default::default() })),
        history: None,
        sync: Some(versioned(Sync::new(&n0, 1, &[NodeName::from("n1")]))),
        failover: None,
        failsafe: None,
    }
}

/// n0, leading.
pub(crate) fn primary(now: Moment) -> ha::Status {
    ha::Status {
        scope: "demo".into(),
        name: NodeName::from("n0"),
        role: Role::Primary,
        postgres: instance(now, Kind::Primary { lsn: Lsn(END), standbys: vec![standby("n1", "quorum")] }),
        snapshot: Some(snapshot(now)),
        store_seen: Some(1_795_190_084),
        lease_until: Some(now + Duration::from_secs(17)),
        ticked: now,
        reason: "nothing to do: we lead and all is well".into(),
        state: MemberState::Running,
        position: ha::Position::Moving,
        timing: Timing {
            ttl: Duration::from_secs(20),
            loop_wait: Duration::from_secs(3),
            retry_timeout: Duration::from_secs(6),
        },
        sync_mode: SyncMode::Quorum,
        maximum_lag_on_failover: 1_048_576,
        tags: serde_json::Map::new(),
        phase: ha::Phase::Serving,
        door: Door::Open,
        failsafe: ha::failsafe::Facts::default(),
        watchdog: ha::watchdog::Health::Sound,
        vitals: ha::fitness::Vitals::default(),
        primary_start_timeout: Duration::from_secs(300),
        scheduled_restart: None,
        n_starts: 1,
        n_promotions: 2,
        complaints: Vec::new(),
        lease_margin: Some(Duration::from_millis(16_500)),
        deadman_margin: Some(Duration::from_millis(18_250)),
        doing: None,
        looks_again: now + Duration::from_secs(3),
        trail: Trail::resumed(&[PROMOTED.to_owned()]),
        forecast: Forecast::Succeeded {
            by: NodeName::from("n1"),
            within: Duration::from_millis(17_300),
            at_risk: 0,
        },
    }
}

/// n1 or n2, following; `behind` bytes after the leader.
pub(crate) fn replica(name: &str, behind: u64, now: Moment) -> ha::Status {
    let at = Lsn(END - behind);
    let kind = Kind::Standby {
        received: at,
        replayed: at,
        replayed_at_micros: Some(STARTED + 1_000_000),
        replay_paused: false,
        replication: Some(ReplicationState::Streaming),
        upstream_host: Some("127.0.1.1".into()),
    };
    ha::Status {
        name: NodeName::from(name),
        role: Role::Replica,
        postgres: instance(now, kind),
        lease_until: None,
        lease_margin: None,
        deadman_margin: None,
        ..primary(now)
    }
}

fn instance(now: Moment, kind: Kind) -> postgres::Status {
    postgres::Status {
        at: now,
        process: UnitState::Running { pid: 4711, since: now },
        data: DataDir::Cluster(Control {
            system_id: SystemId(7_710_000_000_000_000_001),
            state: ControlState::InProduction,
            timeline: Timeline(1),
            checkpoint: Lsn(0x300_0028),
            min_recovery_end: Lsn(0),
            min_recovery_timeline: Timeline(0),
        }),
        sql: Some(Answer {
            server_version: 150_018,
            started_at_micros: STARTED,
            loaded_at_micros: 1,
            timeline: Timeline(1),
            kind,
            sync_names: String::new(),
            slots: Vec::new(),
            pending_restart: Vec::new(),
            weakened: Vec::new(),
        }),
        silence: None,
    }
}

fn standby(name: &str, sync_state: &str) -> Standby {
    Standby {
        name: NodeName::from(name),
        user: "replicator".into(),
        client: Some("127.0.1.2".into()),
        state: "streaming".into(),
        sync_state: sync_state.into(),
        sync_priority: 1,
        sent: Some(Lsn(END)),
        flushed: Some(Lsn(END)),
        replayed: Some(Lsn(END)),
        confirmed: Some(Lsn(END)),
    }
}

/// The same with PostgreSQL gone.
pub(crate) fn down(status: ha::Status) -> ha::Status {
    let process = UnitState::Down { last: Some(crate::process::Exit::Signal(9)) };
    let postgres = postgres::Status { process, sql: None, ..status.postgres };
    ha::Status { state: MemberState::Crashed, postgres, ..status }
}

/// The same with another dynamic configuration.
pub(crate) fn configured(mut status: ha::Status, config: serde_json::Value) -> ha::Status {
    if let Some(snapshot) = &mut status.snapshot {
        snapshot.config = Some(versioned(config));
    }
    status
}

/// The same with these tags.
pub(crate) fn tagged(mut status: ha::Status, tags: &serde_json::Value) -> ha::Status {
    status.tags = tags.as_object().cloned().unwrap_or_default();
    status
}
