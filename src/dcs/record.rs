//! The values below `/service/<scope>/`, in Patroni's exact shapes: compact JSON, fields in
//! Patroni's order, unknown fields ignored when read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{Lsn, NodeName, Room, SlotName, SystemId, Timeline};

/// The `initialize` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialize {
    /// Somebody is running initdb.
    InProgress,
    /// The cluster exists.
    Done(SystemId),
    /// The value is neither empty nor a system identifier: the leader writes it again.
    Invalid,
}

/// What PostgreSQL is doing, in Patroni's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// initdb runs.
    #[serde(rename = "initializing new cluster")]
    Initializing,
    /// initdb failed.
    #[serde(rename = "initdb failed")]
    InitdbFailed,
    /// A base backup is being taken.
    #[serde(rename = "creating replica")]
    CreatingReplica,
    /// Accepting connections.
    #[serde(rename = "running")]
    Running,
    /// Started, not yet accepting connections.
    #[serde(rename = "starting")]
    Starting,
    /// The start failed.
    #[serde(rename = "start failed")]
    StartFailed,
    /// Restarting.
    #[serde(rename = "restarting")]
    Restarting,
    /// Stopping.
    #[serde(rename = "stopping")]
    Stopping,
    /// Stopped on purpose.
    #[serde(rename = "stopped")]
    Stopped,
    /// Ended without having been asked to.
    #[serde(rename = "crashed")]
    Crashed,
    /// A state that only other versions know.
    #[serde(other, rename = "unknown")]
    Unknown,
}

/// A member's role, in Patroni's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Takes writes.
    #[serde(alias = "master")]
    Primary,
    /// Follows.
    Replica,
    /// Leads a cluster that follows another cluster.
    StandbyLeader,
    /// Was primary, is being turned into a replica.
    Demoted,
    /// Is being promoted.
    Promoted,
    /// Has no data yet.
    #[serde(other)]
    Uninitialized,
}

/// Whether and how a standby receives WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicationState {
    /// Connected to its upstream.
    #[serde(rename = "streaming")]
    Streaming,
    /// Reading from the archive.
    #[serde(rename = "in archive recovery")]
    InArchiveRecovery,
    /// A state that only other versions know.
    #[serde(other, rename = "unknown")]
    Unknown,
}

/// `members/<name>`. The name is the key's last segment and is not part of the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The member's name (from the key).
    #[serde(skip)]
    pub name: NodeName,
    /// `postgres://HOST:PORT/DB`; other tools cut it at `/` and `:`.
    pub conn_url: String,
    /// `http[s]://HOST:PORT/patroni`.
    pub api_url: String,
    /// What PostgreSQL is doing.
    pub state: MemberState,
    /// Its role.
    pub role: Role,
    /// Patroni's version that we speak, `X.Y.Z`.
    pub version: String,
    /// Like `conn_url`, of a pooler in front of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgherd_version: Option<String>,
    /// The volume's identity; absent for a stock Patroni node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// `false` from the promotion until the checkpoint after it; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_after_promote: Option<bool>,
    /// Tags that differ from their defaults.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub tags: serde_json::Map<String, serde_json::Value>,
    /// A setting waits for a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_restart: Option<bool>,
    /// Which settings, with the values before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_restart_reason: Option<serde_json::Value>,
    /// Primary: the current position. Replica: the further of received and replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xlog_location: Option<Lsn>,
    /// Replica: replayed up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lsn: Option<Lsn>,
    /// Replica: received up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_lsn: Option<Lsn>,
    /// Replica: how it receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_state: Option<ReplicationState>,
    /// The timeline it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// The restart that is scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_restart: Option<serde_json::Value>,
    /// The node has noticed maintenance mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<bool>,
    /// The room on the member's volume (ours).
    #[serde(default, rename = "pgherd_room", skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
}

/// `status`: null parts are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The leader's current position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optime: Option<Lsn>,
    /// Positions of slots, one named after the leader itself included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<BTreeMap<SlotName, Lsn>>,
    /// Slots of members seen during the last `member_slots_ttl`, sorted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_slots: Option<Vec<SlotName>>,
    /// How the last leader ended; gone as soon as somebody else is about to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<Shutdown>,
}

/// The end of everything that a leader ever wrote, when it was shut down cleanly and has given the lock up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// Who led.
    pub leader: NodeName,
    /// On this timeline.
    pub timeline: Timeline,
    /// Up to here; its shutdown checkpoint included.
    pub end: Lsn,
}

/// `history`: rows of `[timeline, lsn, reason, timestamp?, new_leader?]`, kept as they are.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(pub Vec<Vec<serde_json::Value>>);

impl Eq for History {}

impl History {
    /// The cluster's timeline for readers: the last entry's plus one, 1 when there is none.
    pub fn cluster_timeline(&self) -> Timeline {
        let last = self.0.last().and_then(|row| row.first()).and_then(serde_json::Value::as_u64);
        Timeline(last.and_then(|t| u32::try_from(t).ok()).map_or(1, |t| t.saturating_add(1)))
    }
}

impl History {
    /// Who was promoted to this timeline, as far as it was written down.
    pub fn beginner_of(&self, timeline: Timeline) -> Option<NodeName> {
        let before = u64::from(timeline.0.checked_sub(1)?);
        let row =
            self.0.iter().find(|row| row.first().and_then(serde_json::Value::as_u64) == Some(before))?;
        row.get(4)?.as_str().map(NodeName::from)
    }
}

/// `sync`: who is synchronous. Present only while a synchronous mode is on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sync {
    /// The leader that wrote it.
    pub leader: Option<NodeName>,
    /// How many of the voters (the leader not counted) an election needs; 0 in priority mode.
    #[serde(default)]
    pub quorum: u32,
    /// Sorted, comma-separated names, or null.
    pub sync_standby: Option<String>,
}

impl Sync {
    /// The standbys named, sorted.
    pub fn standbys(&self) -> Vec<NodeName> {
        let text = self.sync_standby.as_deref().unwrap_or("");
        text.split(',').map(str::trim).filter(|n| !n.is_empty()).map(NodeName::from).collect()
    }

    /// The key for this leader, quorum and set of standbys.
    pub fn new(leader: &NodeName, quorum: u32, standbys: &[NodeName]) -> Self {
        let mut names: Vec<_> = standbys.iter().map(NodeName::as_str).collect();
        names.sort_unstable();
        let sync_standby = (!names.is_empty()).then(|| names.join(","));
        Self { leader: Some(leader.clone()), quorum, sync_standby }
    }
}

/// `failover`: a request. Cleared by writing `{}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Failover {
    /// Set: a switchover away from this leader. Absent: a failover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<NodeName>,
    /// The candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<NodeName>,
    /// When, ISO 8601.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<String>,
}

/// `failsafe`: every member's `api_url`.
pub type Failsafe = BTreeMap<NodeName, String>;
