//! What this node writes for the others to read, and how it reads their answers. Patroni's words on both sides.

use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::Moment;
use crate::dcs::{History, Member, MemberState, ReplicationState, Role, Shutdown, Snapshot, Status};
use crate::peer::{Adopted, DataFacts};
use crate::postgres;
use crate::postgres::status::{Answer, Control, ControlState, DataDir, Kind};
use crate::record::Bootstrap;
use crate::types::{Lsn, NodeName, Room, SystemId, Timeline};

use super::Phase;
use super::failsafe::Ping;
use super::orders::Scheduled;
use super::pause;
use super::reason::Reason;
use super::remote;
use super::rules::Pause;
use super::slots;
use super::tags::Tags;
use super::turn;
use super::view::{
    Candidate, Checkpoint, Eligibility, Instance, Job, Lease, Motion, PollAnswer, ShutdownMark, View,
};

/// Patroni's version that we speak: peers and tools compare it as numbers.
pub const PATRONI_VERSION: &str = "4.1.4";

/// How other nodes and tools reach this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// `postgres://HOST:PORT/DB`.
    pub conn_url: String,
    /// `http[s]://HOST:PORT/patroni`.
    pub api_url: String,
    /// Where a pooler in front of the server is reached.
    pub proxy_url: Option<String>,
}

/// The long action under way, as a member state.
pub fn state(view: &View) -> MemberState {
    match view.doing.map(|d| d.job) {
        Some(Job::Initdb | Job::FinishBootstrap) => return MemberState::Initializing,
        Some(Job::Clone) => return MemberState::CreatingReplica,
        Some(Job::CopySlots) => return MemberState::Restarting,
        Some(Job::Stop) if view.memory.orders.restart.is_some() => return MemberState::Restarting,
        Some(Job::Stop | Job::HandOver) => return MemberState::Stopping,
        Some(
            Job::Rewind | Job::Approval | Job::Promote | Job::Poll | Job::Survey | Job::Compare | Job::Start,
        )
        | None => {}
    }
    if view.memory.orders.restart.is_some() || turn::is_announced(view) {
        return MemberState::Restarting;
    }
    match view.instance() {
        Instance::Down if view.phase == Phase::Stopping => MemberState::Stopped,
        // Until the roles exist nobody can copy it, and until the data is there nobody is to find the primary.
        Instance::Primary(..) | Instance::Silent | Instance::Down
            if view.volume.bootstrap == Bootstrap::Pending =>
        {
            MemberState::Initializing
        }
        // Before it does: readers are led elsewhere first.
        Instance::Standby(..) if view.phase == Phase::Stopping && !pause::goes_on_alone(view) => {
            MemberState::Stopping
        }
        Instance::Primary(..) | Instance::Standby(..) => MemberState::Running,
        Instance::Silent => MemberState::Starting,
        Instance::Ending => MemberState::Stopping,
        // Nobody starts it again: it is no accident that waits for its repair.
        Instance::Down if view.rules.pause == Pause::On => MemberState::Stopped,
        Instance::Down => match view.local.data {
            DataDir::Empty | DataDir::Incomplete { .. } => MemberState::Stopped,
            // It was stopped in order, by this node for a handover or by somebody.
            DataDir::Cluster(Control {
                state: ControlState::ShutDown | ControlState::ShutDownInRecovery,
                ..
            }) => MemberState::Stopped,
            DataDir::Unreadable { .. } | DataDir::Cluster(_) => MemberState::Crashed,
        },
    }
}

/// The role, in Patroni's words.
pub fn role(view: &View) -> Role {
    let leads_standbys = view.lease != Lease::None && remote::of(view).is_some();
    match view.instance() {
        Instance::Primary(..) => Role::Primary,
        Instance::Standby(..) if view.doing.is_some_and(|d| d.job == Job::Promote) => Role::Promoted,
        Instance::Standby(..) if leads_standbys => Role::StandbyLeader,
        Instance::Standby(..) => Role::Replica,
        Instance::Silent | Instance::Ending | Instance::Down => match (view.lease, &view.local.data) {
            (_, DataDir::Empty | DataDir::Incomplete { .. }) => Role::Uninitialized,
            (Lease::Held { .. } | Lease::Lost, _) if leads_standbys => Role::Replica,
            (Lease::Held { .. } | Lease::Lost, _) => Role::Primary,
            (Lease::None, DataDir::Cluster(_) | DataDir::Unreadable { .. }) => Role::Replica,
        },
    }
}

/// The dynamic configuration that is written where there is none. What the environment says of another cluster is for a cluster
/// that is to be made: one that has a primary is not made a standby by it.
pub fn founding(view: &View, founding: &Value) -> Value {
    let mut config = founding.clone();
    if let Some(config) = config.as_object_mut().filter(|_| remote::of(view).is_none()) {
        config.shift_remove("standby_cluster");
    }
    config
}

/// `members/<me>`.
pub fn member(view: &View, addresses: &Addresses) -> Member {
    let mut member = Member {
        name: view.me.clone(),
        conn_url: addresses.conn_url.clone(),
        api_url: addresses.api_url.clone(),
        state: state(view),
        role: role(view),
        version: PATRONI_VERSION.to_owned(),
        proxy_url: addresses.proxy_url.clone(),
        pgherd_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        node_id: Some(view.node_id.0.clone()),
        checkpoint_after_promote: (view.memory.checkpoint == Checkpoint::Owed).then_some(false),
        tags: tags(view),
        pending_restart: None,
        pending_restart_reason: None,
        scheduled_restart: view.memory.orders.scheduled.as_ref().map(Scheduled::to_json),
        xlog_location: None,
        replay_lsn: None,
        receive_lsn: None,
        replication_state: None,
        timeline: None,
        pause: (view.rules.pause == Pause::On).then_some(true),
        room: view.memory.vitals.room.map(Room::in_round_numbers),
    };
    if let Some(answer) = &view.local.sql {
        positions(&mut member, answer);
    }
    member
}

/// The same of a server that has said that it takes connections, and was not asked for anything else yet.
pub fn open_member(view: &View, addresses: &Addresses) -> Member {
    let member = member(view, addresses);
    let state = if member.state == MemberState::Starting { MemberState::Running } else { member.state };
    Member { state, ..member }
}

/// A standby that stops, or is started again by itself, asks not to be waited for.
fn tags(view: &View) -> serde_json::Map<String, Value> {
    if turn::is_announced(view) {
        return view.rules.tags.of_a_leaving_standby();
    }
    match (view.phase, view.instance()) {
        (Phase::Stopping, Instance::Standby(..)) => view.rules.tags.of_a_leaving_standby(),
        (
            Phase::Stopping | Phase::Serving,
            Instance::Standby(..)
            | Instance::Primary(..)
            | Instance::Silent
            | Instance::Ending
            | Instance::Down,
        ) => view.rules.tags.to_json(),
    }
}

fn positions(member: &mut Member, answer: &Answer) {
    member.timeline = Some(answer.timeline);
    member.pending_restart = (!answer.pending_restart.is_empty()).then_some(true);
    member.pending_restart_reason = pending_restart_reason(answer);
    match &answer.kind {
        Kind::Primary { lsn, .. } => member.xlog_location = Some(*lsn),
        Kind::Standby { received, replayed, replication, .. } => {
            member.xlog_location = Some(*received.max(replayed));
            member.receive_lsn = Some(*received);
            member.replay_lsn = Some(*replayed);
            member.replication_state = *replication;
        }
    }
}

/// `{"max_connections":{"old_value":"100","new_value":"120"}}`: what a restart would change.
pub fn pending_restart_reason(answer: &Answer) -> Option<Value> {
    let reasons: serde_json::Map<_, _> = answer
        .pending_restart
        .iter()
        .map(|s| (s.name.clone(), json!({ "old_value": s.old_value, "new_value": s.new_value })))
        .collect();
    (!reasons.is_empty()).then_some(Value::Object(reasons))
}

/// What this node tells the others of its data. A volume that remembers a cluster never says "no data".
pub fn data_facts(
    local: &postgres::Status,
    remembered: Option<SystemId>,
    adopted: Option<Adopted>,
) -> DataFacts {
    let control = match &local.data {
        DataDir::Cluster(control) => Some(control),
        DataDir::Empty | DataDir::Incomplete { .. } | DataDir::Unreadable { .. } => None,
    };
    let answered = local.sql.as_ref().map(|answer| match &answer.kind {
        Kind::Primary { lsn, .. } => *lsn,
        Kind::Standby { received, replayed, .. } => *received.max(replayed),
    });
    let unreadable = match &local.data {
        DataDir::Unreadable { why } => Some(why.clone()),
        DataDir::Cluster(_) | DataDir::Empty | DataDir::Incomplete { .. } => None,
    };
    DataFacts {
        unreadable,
        adopted: adopted.filter(|_aside| local.data == DataDir::Empty),
        system_id: control.map(|c| c.system_id).or(remembered),
        timeline: local.sql.as_ref().map(|a| a.timeline).or_else(|| control.map(Control::reached)),
        lsn: answered.or_else(|| control.map(|c| c.checkpoint)),
    }
}

/// `status`: the leader's position, and its slots'. When PostgreSQL is down only the position is known: the rest stays as it
/// was written.
pub fn status(view: &View, lsn: Lsn) -> Status {
    let written =
        view.snapshot().and_then(|s| s.status.as_ref()).map(|s| s.value.clone()).unwrap_or_default();
    let Some(answer) = &view.local.sql else {
        return Status { optime: Some(lsn), shutdown: None, ..written };
    };
    // A permanent slot is kept by the configuration, whoever is seen.
    let permanent = &view.rules.replication.permanent;
    let retained: Vec<_> = slots::seen(view).filter(|slot| !permanent.contains_key(*slot)).cloned().collect();
    Status {
        optime: Some(lsn),
        slots: Some(slots::positions(view, view.snapshot(), answer, lsn)),
        retain_slots: Some(retained).filter(|slots| !slots.is_empty()),
        shutdown: None,
    }
}

/// `status` of a leader that was shut down cleanly: what was there, and its end. A standby that lacks the shutdown
/// checkpoint alone is not behind `optime`.
pub fn status_at_shutdown(snapshot: &Snapshot, optime: Lsn, shutdown: &Shutdown) -> Status {
    let before = snapshot.status.as_ref().map(|s| s.value.clone()).unwrap_or_default();
    Status { optime: Some(optime), shutdown: Some(shutdown.clone()), ..before }
}

/// Whether `status` has to be written: also over a mark of this node's that has not arrived yet.
pub fn is_news(view: &View, status: &Status) -> bool {
    let stored = view.snapshot().and_then(|s| s.status.as_ref());
    view.memory.shutdown_mark == ShutdownMark::MayStand || stored.is_none_or(|s| s.value != *status)
}

/// What a leader tells the members whose promise it asks for; it counts on it for `ttl`. Its slots are those of the members
/// that it last knew.
pub fn ping(
    view: &View,
    known: Option<&Snapshot>,
    addresses: &Addresses,
    (asked, ttl): (Moment, Duration),
) -> Ping {
    let slots = view.local.sql.as_ref().and_then(|answer| match answer.kind {
        Kind::Primary { lsn, .. } => Some(slots::positions(view, known, answer, lsn)),
        Kind::Standby { .. } => None,
    });
    Ping {
        name: view.me.clone(),
        conn_url: addresses.conn_url.clone(),
        api_url: addresses.api_url.clone(),
        slots,
        ttl: Some(ttl.as_secs()),
        node_id: Some(view.node_id.clone()),
        to: None,
        question: Some(asked.0),
    }
}

/// The timeline that a promotion of the local standby begins.
pub fn next_timeline(view: &View) -> Option<Timeline> {
    view.timeline().map(|present| Timeline(present.0.saturating_add(1)))
}

/// `history` from the text of the local history file, keeping what is known of older rows (times and names).
pub fn history(view: &View, snapshot: &Snapshot, text: &str, at: &str) -> History {
    let stored = snapshot.history.as_ref().map(|h| h.value.0.clone()).unwrap_or_default();
    let known = |timeline: u64| {
        stored
            .iter()
            .find(|row| row.len() >= 5 && row.first().and_then(Value::as_u64) == Some(timeline))
            .cloned()
    };
    // The last fork is this node's doing. One that the store did not know of is that of the leader that was followed.
    let followed = |timeline: u64| {
        let source = view.volume.followed.as_ref().filter(|f| timeline >= u64::from(f.known.0));
        source.map_or(Value::Null, |f| json!(f.leader))
    };
    let row = |line: &str| -> Option<Vec<Value>> {
        let mut words = line.splitn(3, '\t');
        let timeline: u64 = words.next()?.trim().parse().ok()?;
        let end: Lsn = words.next()?.parse().ok()?;
        let reason = words.next().unwrap_or("").trim();
        let leader = if Some(line) == text.lines().last() { json!(view.me) } else { followed(timeline) };
        let fresh = vec![json!(timeline), json!(end), json!(reason), json!(at), leader];
        Some(known(timeline).unwrap_or(fresh))
    };
    let mut rows: Vec<_> = text.lines().filter_map(row).collect();
    let kept = view.rules.replication.max_timelines_history.unwrap_or(usize::MAX);
    rows.drain(..rows.len().saturating_sub(kept));
    History(rows)
}

/// What a member's status page says about its claim to lead. A page without a position counts as no answer.
pub fn poll_answer(page: &Value) -> PollAnswer {
    if page.get("state").and_then(Value::as_str) != Some("running") {
        return PollAnswer::Down;
    }
    let xlog = page.get("xlog").or_else(|| page.get("wal"));
    let position = |key: &str| xlog.and_then(|x| x.get(key)).and_then(Value::as_u64).map(Lsn);
    if position("location").is_some() {
        return PollAnswer::Primary;
    }
    // What is of another history than the cluster's stands in nobody's way.
    if page.pointer("/pgherd/position").and_then(Value::as_str) == Some("foreign") {
        return PollAnswer::Down;
    }
    let furthest = position("received_location").max(position("replayed_location"));
    let timeline = page.get("timeline").and_then(Value::as_u64).and_then(|t| u32::try_from(t).ok());
    let (Some(position), Some(timeline)) = (furthest, timeline) else {
        return PollAnswer::Unreachable;
    };
    let tags = page.get("tags").and_then(Value::as_object).map(Tags::from_json).unwrap_or_default();
    PollAnswer::Standby(Candidate {
        timeline: Timeline(timeline),
        position,
        motion: motion(page),
        eligibility: if page.get("watchdog_failed") == Some(&Value::Bool(true)) {
            Eligibility::Unguarded
        } else {
            tags.failover.into()
        },
        priority: tags.failover_priority,
    })
}

/// A pgherd node says whether it holds its walreceiver; of a stock node, one that streams can still move.
fn motion(page: &Value) -> Motion {
    let said = page.pointer("/pgherd/position").and_then(Value::as_str);
    let streams = page.get("replication_state").and_then(Value::as_str) == Some("streaming");
    match said {
        Some("frozen") => Motion::Frozen,
        Some(_) => Motion::Streaming,
        None if streams => Motion::Streaming,
        None => Motion::Frozen,
    }
}

/// Whether a standby receives right now.
pub fn streams(answer: &Answer) -> bool {
    match &answer.kind {
        Kind::Primary { .. } => true,
        Kind::Standby { replication, .. } => *replication == Some(ReplicationState::Streaming),
    }
}

/// A decision as a line of the log. Those who search logs know Patroni's words for a member that has nothing to do.
pub fn line(me: &NodeName, reason: &Reason) -> String {
    let steady = matches!(
        reason,
        Reason::Leading
            | Reason::CommitsWait(_)
            | Reason::ClientsWait(_)
            | Reason::Following(_)
            | Reason::LeadingStandby(_)
    );
    if steady { format!("no action. I am ({me}), {reason}") } else { reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_with_nothing_to_do_says_so_in_patronis_words() {
        let me = NodeName::from("n0");
        assert_eq!(line(&me, &Reason::Leading), "no action. I am (n0), the leader with the lock");
        let follows = line(&me, &Reason::Following("n1".into()));
        assert_eq!(follows, "no action. I am (n0), a secondary, and following a leader (n1)");
        assert_eq!(line(&me, &Reason::Starting), "PostgreSQL is starting");
    }

    #[test]
    fn a_status_page_becomes_a_claim() {
        let page = json!({"state": "running", "role": "replica", "timeline": 2, "tags": {"nofailover": true},
            "xlog": {"received_location": 80, "replayed_location": 90, "paused": false}});
        let expected = Candidate {
            timeline: Timeline(2),
            position: Lsn(90),
            motion: Motion::Frozen,
            eligibility: Eligibility::NoFailover,
            priority: 0,
        };
        assert_eq!(poll_answer(&page), PollAnswer::Standby(expected));
    }

    #[test]
    fn who_must_be_guarded_and_is_not_may_not_lead() {
        let page = json!({"state": "running", "timeline": 2, "watchdog_failed": true,
            "xlog": {"received_location": 80, "replayed_location": 90}});
        let claim = poll_answer(&page);
        assert!(
            matches!(claim, PollAnswer::Standby(c) if c.eligibility == Eligibility::Unguarded),
            "{claim:?}"
        );
    }

    #[test]
    fn a_page_that_streams_or_is_not_held_can_still_move() {
        let page = |extra: Value| {
            let mut page = json!({"state": "running", "timeline": 1, "xlog": {"received_location": 1}});
            page.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            match poll_answer(&page) {
                PollAnswer::Standby(candidate) => candidate.motion,
                other @ (PollAnswer::Unreachable | PollAnswer::Down | PollAnswer::Primary) => {
                    panic!("{other:?}")
                }
            }
        };
        assert_eq!(page(json!({"replication_state": "streaming"})), Motion::Streaming);
        assert_eq!(page(json!({"pgherd": {"position": "moving"}})), Motion::Streaming);
        assert_eq!(
            page(json!({"replication_state": "streaming", "pgherd": {"position": "frozen"}})),
            Motion::Frozen
        );
        assert_eq!(page(json!({})), Motion::Frozen);
    }

    #[test]
    fn a_primary_and_a_node_without_a_position_are_told_apart() {
        assert_eq!(poll_answer(&json!({"state": "running", "xlog": {"location": 5}})), PollAnswer::Primary);
        assert_eq!(poll_answer(&json!({"state": "running"})), PollAnswer::Unreachable);
        assert_eq!(poll_answer(&json!({"state": "starting"})), PollAnswer::Down);
    }
}
