//! A View in a few words: the scenarios say only what matters to their rule.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use pgherd::clock::Moment;
use pgherd::dcs::{
    Failsafe, History, Initialize, Leader, Member, MemberState, Readiness, ReplicationState, Role, Snapshot,
    Status as LeaderStatus, Sync, Versioned,
};
use pgherd::ha::Phase;
use pgherd::ha::decide::decide;
use pgherd::ha::reason::{Action, Decision, Reason};
use pgherd::ha::replication::Replication;
use pgherd::ha::rules::{Failover, Mode, Outlast, Rules, Strictness, Tags};
use pgherd::ha::view::{
    Ancestry, Candidate, Doing, Eligibility, Holder, Job, Later, Lease, Memory, Motion, Name, Observed, Poll,
    PollAnswer, Store, Survey, SurveyAnswer, SyncWrite, View, Volume,
};
use pgherd::ha::watchdog::Guard;
use pgherd::postgres::status::{Answer, Control, ControlState, DataDir, Kind, Standby};
use pgherd::postgres::{self, Check, Containment, Pulse, Slot, Stored, Upstream};
use pgherd::record::{Bootstrap, Followed};
use pgherd::supervisor::UnitState;
use pgherd::types::{
    Access, LeaseId, Lsn, NodeId, NodeName, Revision, Room, SlotName, SyncMode, SystemId, Timeline,
    TimelineHistory, Timing,
};

/// The cluster's identifier.
pub(crate) const CLUSTER: SystemId = SystemId(7_711_000_000_000_000_001);
/// Now, in every scenario.
pub(crate) const NOW: Moment = Moment(10_000_000_000_000);
/// The position of everybody unless said otherwise.
pub(crate) const POSITION: Lsn = Lsn(0x500_0000);

/// The same, as a number to calculate with.
pub(crate) const HERE: u64 = POSITION.0;

/// The one action that was decided.
pub(crate) fn only(decision: Decision) -> Action {
    let [action] =
        decision.actions.try_into().unwrap_or_else(|actions| panic!("{actions:?}: {}", decision.reason));
    action
}

/// The reason of a decision that does nothing.
pub(crate) fn nothing_because(decision: Decision) -> Reason {
    assert_eq!(decision.actions, [], "{}", decision.reason);
    decision.reason
}

pub(crate) fn name(name: &str) -> NodeName {
    NodeName::from(name)
}

/// Seconds before [`NOW`].
pub(crate) fn ago(seconds: u64) -> Moment {
    NOW - Duration::from_secs(seconds)
}

/// A scenario under construction. It starts as `n0`, a stopped node with data of the cluster, in a cluster that `n1`
/// leads and `n2` follows.
#[derive(Debug, Clone)]
pub(crate) struct Scene(pub(crate) View);

impl Scene {
    /// The start of every scenario.
    pub(crate) fn new() -> Self {
        let timing = Timing {
            ttl: Duration::from_secs(10),
            loop_wait: Duration::from_secs(2),
            retry_timeout: Duration::from_secs(4),
        };
        let rules = Rules {
            timing,
            sync_mode: SyncMode::Off,
            strictness: Strictness::Degrade,
            watchdog: Guard::OFF,
            reserve: None,
            mode: Mode::Node,
            remote: None,
            sync_node_count: 1,
            maximum_lag_on_failover: 1_048_576,
            outlast: Outlast::Never,
            pause: pgherd::ha::rules::Pause::Off,
            primary_start_timeout: pgherd::ha::rules::START_TIMEOUT,
            primary_stop_timeout: Duration::ZERO,
            tags: Tags::default(),
            pre_promote: None,
            replication: Replication::default(),
            server: Some(Stored::initial(&BTreeMap::new())),
        };
        let view = View {
            now: NOW,
            wall: "2026-11-20T12:00:00Z".parse().unwrap(),
            me: NodeName::from("n0"),
            node_id: NodeId("00000000000000a0".into()),
            phase: Phase::Serving,
            rules,
            store: Store::Fresh(Box::new(snapshot())),
            lease: Lease::None,
            local: local(UnitState::Down { last: None }, cluster_data(ControlState::ShutDown), None),
            doing: None,
            volume: Volume {
                system_id: Some(CLUSTER),
                bootstrap: Bootstrap::Settled,
                promoted: None,
                promoted_as: None,
                later: Later::MayBe,
                followed: None,
                taken: None,
                adopted: None,
                unconfirmed: false,
            },
            memory: Memory { name: Name::Claimed, sync_write: SyncWrite::Settled, ..Memory::default() },
        };
        Self(view)
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut View)) -> Self {
        change(&mut self.0);
        self
    }

    pub(crate) fn snapshot(self, change: impl FnOnce(&mut Snapshot)) -> Self {
        self.with(|view| match &mut view.store {
            Store::Fresh(snapshot) => change(snapshot),
            Store::Silent { .. } => panic!("the store is silent in this scene"),
        })
    }

    pub(crate) fn decide(&self) -> Decision {
        decide(&self.0)
    }

    pub(crate) fn stopping(self) -> Self {
        self.with(|v| v.phase = Phase::Stopping)
    }

    pub(crate) fn leaving_for(self, time: Duration) -> Self {
        self.with(|v| v.memory.leaving = Some(NOW - time))
    }

    pub(crate) fn doing(self, job: Job) -> Self {
        self.with(|v| v.doing = Some(Doing { job, since: ago(1) }))
    }

    pub(crate) fn store_silent(self) -> Self {
        self.store_silent_for(4)
    }

    pub(crate) fn store_silent_for(self, seconds: u64) -> Self {
        self.with(|v| v.store = Store::Silent { since: ago(seconds), why: "no quorum".into() })
    }

    /// The lease was last renewed so many seconds ago.
    pub(crate) fn lease(self, seconds: u64) -> Self {
        self.with(|v| v.lease = Lease::Held { sent: ago(seconds), ttl: v.rules.timing.ttl })
    }

    pub(crate) fn lease_lost(self) -> Self {
        self.with(|v| v.lease = Lease::Lost)
    }

    /// The key names this node, and the lease is fresh.
    pub(crate) fn leads(self) -> Self {
        self.leader("n0").lease(0)
    }

    pub(crate) fn leader(self, name: &str) -> Self {
        let name = NodeName::from(name);
        self.snapshot(|s| s.leader = Some(Leader { name, lease: LeaseId(7), revision: Revision(9) }))
    }

    pub(crate) fn no_leader(self) -> Self {
        self.snapshot(|s| s.leader = None)
    }

    /// The leader key has stood still for so many seconds.
    pub(crate) fn observed(self, seconds: u64) -> Self {
        self.with(|v| {
            v.memory.observed =
                Some(Observed { revision: Revision(9), holder: Holder::Ours, since: ago(seconds) })
        })
    }

    pub(crate) fn empty(self) -> Self {
        self.with(|v| {
            v.local.data = DataDir::Empty;
            v.volume.system_id = None;
        })
    }

    pub(crate) fn data(self, state: ControlState) -> Self {
        self.with(|v| v.local.data = cluster_data(state))
    }

    /// The last checkpoint lies on this timeline.
    pub(crate) fn data_of(self, system_id: SystemId) -> Self {
        self.with(|v| {
            if let DataDir::Cluster(control) = &mut v.local.data {
                control.system_id = system_id;
            }
        })
    }

    pub(crate) fn unreadable(self) -> Self {
        self.with(|v| v.local.data = DataDir::Unreadable { why: "another version".into() })
    }

    pub(crate) fn incomplete(self) -> Self {
        self.with(|v| v.local.data = DataDir::Incomplete { why: "a clone did not finish" })
    }

    pub(crate) fn silent_process(self) -> Self {
        self.with(|v| v.local.process = RUNNING)
    }

    /// Runs as a primary with these standbys streaming, under this setting.
    pub(crate) fn primary(self, sync_names: &str, standbys: &[&str]) -> Self {
        let rows = standbys.iter().map(|name| streaming(name)).collect();
        let kind = Kind::Primary { lsn: POSITION, standbys: rows };
        self.with(|v| {
            v.local =
                local(RUNNING, cluster_data(ControlState::InProduction), Some(answer(kind, sync_names)));
            v.memory.sync_barrier = Some(Lsn(POSITION.0 - 0x100));
        })
    }

    /// Runs as a standby at this position, following `n1`.
    pub(crate) fn standby(self, position: u64) -> Self {
        let kind = Kind::Standby {
            received: Lsn(position),
            replayed: Lsn(position),
            replayed_at_micros: None,
            replay_paused: false,
            replication: Some(ReplicationState::Streaming),
            upstream_host: None,
        };
        self.with(|v| {
            v.local = local(RUNNING, cluster_data(ControlState::InArchiveRecovery), Some(answer(kind, "")));
            v.memory.following = Some(upstream("n1"));
        })
    }

    /// The same standby further on.
    pub(crate) fn standby_at(self, position: u64) -> Self {
        let slots = self.0.local.sql.as_ref().unwrap().slots.clone();
        self.standby(position).slots(&slots)
    }

    /// A standby that holds its position for a vote, with the others' answers.
    pub(crate) fn votes(self, position: u64, answers: &[(&str, PollAnswer)]) -> Self {
        let answers = answers.iter().map(|(name, answer)| (NodeName::from(*name), answer.clone())).collect();
        self.standby(position).with(|v| {
            v.memory.frozen = Some(ago(1));
            v.memory.poll = Some(Poll { at: NOW, answers });
        })
    }

    pub(crate) fn sync_mode(self, mode: SyncMode) -> Self {
        self.with(|v| v.rules.sync_mode = mode)
    }

    pub(crate) fn sync_key(self, leader: &str, quorum: u32, standbys: &[&str]) -> Self {
        let names: Vec<_> = standbys.iter().map(|n| NodeName::from(*n)).collect();
        let value = Sync::new(&NodeName::from(leader), quorum, &names);
        self.snapshot(|s| s.sync = Some(versioned(value)))
    }

    pub(crate) fn nofailover(self) -> Self {
        self.with(|v| v.rules.tags.failover = Failover::Never)
    }

    pub(crate) fn tagged(self, tags: serde_json::Value) -> Self {
        self.with(|v| v.rules.tags = Tags::from_json(tags.as_object().unwrap()))
    }

    /// The stored configuration, and what it says of replication.
    pub(crate) fn config(self, config: serde_json::Value) -> Self {
        let read = self.0.rules.with_config(&config).0;
        self.with(|v| {
            (v.rules.replication, v.rules.pause, v.rules.remote) =
                (read.replication, read.pause, read.remote);
        })
        .snapshot(|s| s.config = Some(versioned(config)))
    }

    pub(crate) fn slots(self, slots: &[Slot]) -> Self {
        self.with(|v| v.local.sql.as_mut().unwrap().slots = slots.to_vec())
    }

    /// Where the leader says that slots are.
    pub(crate) fn published_slots(self, slots: &[(&str, u64)]) -> Self {
        let slots = slots.iter().map(|(name, at)| (SlotName((*name).into()), Lsn(*at))).collect();
        let status = LeaderStatus { slots: Some(slots), ..LeaderStatus::default() };
        self.snapshot(|s| s.status = Some(versioned(status)))
    }

    /// Whose slots the leader retains.
    pub(crate) fn retained_slots(self, slots: &[&str]) -> Self {
        let slots = slots.iter().map(|name| SlotName((*name).into())).collect();
        let status = LeaderStatus { retain_slots: Some(slots), ..LeaderStatus::default() };
        self.snapshot(|s| s.status = Some(versioned(status)))
    }

    /// What a standby of the local primary has flushed.
    pub(crate) fn flushed(self, name: &str, at: u64) -> Self {
        self.with(|v| match &mut v.local.sql.as_mut().unwrap().kind {
            Kind::Primary { standbys, .. } => {
                let standby = standbys.iter_mut().find(|s| s.name.as_str() == name).unwrap();
                (standby.flushed, standby.confirmed) = (Some(Lsn(at)), Some(Lsn(at)));
            }
            Kind::Standby { .. } => panic!("no primary in this scene"),
        })
    }

    /// Changes what a member publishes.
    pub(crate) fn member(self, name: &str, change: impl FnOnce(&mut Member)) -> Self {
        let name = NodeName::from(name);
        self.snapshot(|s| change(s.members.iter_mut().find(|m| m.name == name).unwrap()))
    }

    pub(crate) fn initialize(self, value: Option<Initialize>) -> Self {
        self.snapshot(|s| s.initialize = value.map(versioned))
    }

    pub(crate) fn optime(self, lsn: u64) -> Self {
        let status = LeaderStatus { optime: Some(Lsn(lsn)), ..LeaderStatus::default() };
        self.snapshot(|s| s.status = Some(versioned(status)))
    }

    /// The cluster is on timeline 2, forked from 1 at this position; this node's memory of the leader says so too.
    pub(crate) fn forked_at(self, end: u64) -> Self {
        let row = vec![1.into(), end.into(), "".into()];
        let text = format!("1\t{}\tno recovery target specified\n", Lsn(end));
        let ancestry = Ancestry {
            leader: NodeName::from("n1"),
            at: ago(1),
            system_id: None,
            timeline: Timeline(2),
            history: TimelineHistory::parse(&text).unwrap(),
            contains_ours: Containment::Unshown,
        };
        let leader = |s: &mut Snapshot| s.members.first_mut().unwrap().timeline = Some(Timeline(2));
        self.snapshot(|s| s.history = Some(versioned(History(vec![row]))))
            .snapshot(leader)
            .with(|v| v.memory.ancestry = Some(ancestry))
    }

    /// Timeline 1 was the cluster's when this node began to follow this leader, of which it has taken in timeline 2.
    pub(crate) fn followed(self, leader: &str) -> Self {
        let followed = Some(Followed { leader: leader.into(), known: Timeline(1) });
        self.with(|v| (v.volume.followed, v.volume.taken) = (followed.clone(), followed))
    }

    /// The store knows who began timelines 2, 3, ...; an empty name stands for one that it never heard.
    pub(crate) fn begun_by(self, names: &[&str]) -> Self {
        let row = |(i, name): (usize, &&str)| {
            let name = Some(*name).filter(|name| !name.is_empty());
            vec![(i + 1).into(), HERE.into(), "".into(), "then".into(), name.into()]
        };
        let rows = names.iter().enumerate().map(row).collect();
        self.snapshot(|s| s.history = Some(versioned(History(rows))))
    }

    /// The data has been on this timeline, whatever its last checkpoint says.
    pub(crate) fn reached(self, timeline: Timeline) -> Self {
        self.with(|v| {
            if let DataDir::Cluster(control) = &mut v.local.data {
                (control.min_recovery_timeline, control.min_recovery_end) = (timeline, POSITION);
            }
        })
    }

    pub(crate) fn same_timeline(self) -> Self {
        let leader = NodeName::from("n1");
        let history = TimelineHistory::default();
        let ancestry = Ancestry {
            leader,
            at: ago(1),
            system_id: None,
            timeline: Timeline(1),
            history,
            contains_ours: Containment::Unshown,
        };
        self.with(|v| v.memory.ancestry = Some(ancestry))
    }

    /// Whoever follows streams.
    pub(crate) fn others_stream(self) -> Self {
        let streaming = Some(ReplicationState::Streaming);
        self.snapshot(|s| s.members.iter_mut().for_each(|m| m.replication_state = streaming))
    }

    pub(crate) fn failed(self, job: Job, n: u32, seconds: u64) -> Self {
        self.with(|v| {
            for _ in 0..n {
                v.memory.failed(job, ago(seconds), "why".into());
            }
        })
    }

    pub(crate) fn not_streaming(self, seconds: u64) -> Self {
        self.with(|v| v.memory.not_streaming = Some(ago(seconds)))
    }

    /// A standby whose walreceiver has no connection.
    pub(crate) fn connecting(self) -> Self {
        self.with(|v| match v.local.sql.as_mut().map(|answer| &mut answer.kind) {
            Some(Kind::Standby { replication, .. }) => *replication = None,
            Some(Kind::Primary { .. }) | None => unreachable!("not a standby"),
        })
    }

    pub(crate) fn surveyed(self, answers: &[(&str, SurveyAnswer)]) -> Self {
        let answers: BTreeMap<IpAddr, _> = answers.iter().map(|(ip, a)| (ip.parse().unwrap(), *a)).collect();
        self.with(|v| v.memory.survey = Some(Survey { at: ago(1), answers }))
    }

    /// The `failsafe` key in the store.
    pub(crate) fn failsafe(self, members: &[&str]) -> Self {
        let key: Failsafe = members
            .iter()
            .map(|name| (NodeName::from(*name), format!("http://192.0.2.{}:8008/patroni", &name[1..])))
            .collect();
        self.snapshot(|s| s.failsafe = Some(versioned(key)))
    }

    /// This node is a member too.
    pub(crate) fn member_too(self, name: &str) -> Self {
        self.snapshot(|s| s.members.insert(0, member(name, Role::Primary)))
    }

    /// A sign of life was asked for so many seconds ago, and this came.
    pub(crate) fn sign(self, check: Check, seconds: u64, pulse: &Pulse) -> Self {
        self.with(|v| {
            v.memory.vitals.ask(check, ago(seconds));
            v.memory.vitals.hear(check, pulse, NOW);
        })
    }

    /// What a tick does before it decides: memory takes in what the instance is.
    pub(crate) fn seen(self) -> Self {
        self.with(|v| {
            let view = v.clone();
            v.memory.saw_instance(&view);
        })
    }

    /// So much later, in a world that stands still.
    pub(crate) fn later(self, seconds: u64) -> Self {
        self.with(|v| v.now = v.now + Duration::from_secs(seconds))
    }

    /// The volume of a member, in MiB.
    pub(crate) fn room_of(self, name: &str, free: u64) -> Self {
        let room = room(free);
        self.snapshot(|s| {
            let member = s.members.iter_mut().find(|m| m.name.as_str() == name).unwrap();
            member.room = Some(room);
        })
    }

    pub(crate) fn pending_bootstrap(self) -> Self {
        self.with(|v| v.volume.bootstrap = Bootstrap::Pending)
    }
}

const RUNNING: UnitState = UnitState::Running { pid: 4242, since: Moment(1) };

/// A volume of 100 GiB with so many MiB left.
pub(crate) fn room(free: u64) -> Room {
    Room { free: free << 20, total: 100 << 30, access: Access::Writable }
}

/// The position has been held for so many seconds, and everybody was asked just now.
pub(crate) fn frozen_for(scene: Scene, seconds: u64) -> Scene {
    scene.with(|v| v.memory.frozen = Some(ago(seconds)))
}

/// How to reach a member of the scene.
pub(crate) fn upstream(name: &str) -> Upstream {
    let last = name.trim_start_matches('n');
    Upstream {
        name: NodeName::from(name),
        node_id: Some(NodeId(format!("00000000000000a{last}"))),
        address: format!("192.0.2.{last}").as_str().into(),
        port: 5432,
        foreign: None,
    }
}

/// An eligible standby that holds still.
pub(crate) fn still(position: u64) -> PollAnswer {
    candidate(1, position, Motion::Frozen)
}

pub(crate) fn candidate(timeline: u32, position: u64, motion: Motion) -> PollAnswer {
    PollAnswer::Standby(Candidate {
        timeline: Timeline(timeline),
        position: Lsn(position),
        motion,
        eligibility: Eligibility::Eligible,
        priority: 1,
    })
}

pub(crate) fn versioned<T>(value: T) -> Versioned<T> {
    Versioned { value, revision: Revision(3) }
}

fn snapshot() -> Snapshot {
    Snapshot {
        taken: NOW,
        readiness: Readiness::Ready,
        initialize: Some(versioned(Initialize::Done(CLUSTER))),
        leader: Some(Leader { name: NodeName::from("n1"), lease: LeaseId(7), revision: Revision(9) }),
        members: vec![member("n1", Role::Primary), member("n2", Role::Replica)],
        config: Some(versioned(serde_json::json!({}))),
        status: None,
        history: None,
        sync: None,
        failover: None,
        failsafe: None::<Versioned<Failsafe>>,
    }
}

fn member(name: &str, role: Role) -> Member {
    let Upstream { address, port, node_id, .. } = upstream(name);
    Member {
        name: NodeName::from(name),
        conn_url: format!("postgres://{address}:{port}/postgres"),
        api_url: format!("http://{address}:8008/patroni"),
        state: MemberState::Running,
        role,
        version: "4.1.4".into(),
        proxy_url: None,
        pgherd_version: Some("0.1.0".into()),
        node_id: node_id.map(|id| id.0),
        checkpoint_after_promote: None,
        tags: serde_json::Map::new(),
        pending_restart: None,
        pending_restart_reason: None,
        scheduled_restart: None,
        xlog_location: Some(POSITION),
        replay_lsn: None,
        receive_lsn: None,
        replication_state: None,
        timeline: Some(Timeline(1)),
        pause: None,
        room: None,
    }
}

fn cluster_data(state: ControlState) -> DataDir {
    DataDir::Cluster(Control {
        system_id: CLUSTER,
        state,
        timeline: Timeline(1),
        checkpoint: Lsn(POSITION.0 - 0x80),
        min_recovery_end: Lsn(0),
        min_recovery_timeline: Timeline(0),
    })
}

fn local(process: UnitState, data: DataDir, sql: Option<Answer>) -> postgres::Status {
    postgres::Status { at: NOW, process, data, sql, silence: None }
}

fn answer(kind: Kind, sync_names: &str) -> Answer {
    Answer {
        server_version: 150_018,
        started_at_micros: 1,
        loaded_at_micros: 1,
        timeline: Timeline(1),
        kind,
        sync_names: sync_names.into(),
        slots: vec![],
        pending_restart: vec![],
        weakened: vec![],
    }
}

fn streaming(name: &str) -> Standby {
    Standby {
        name: NodeName::from(name),
        user: "replicator".into(),
        client: None,
        state: "streaming".into(),
        sync_state: "quorum".into(),
        sync_priority: 1,
        sent: Some(POSITION),
        flushed: Some(POSITION),
        replayed: Some(POSITION),
        confirmed: Some(POSITION),
    }
}
