//! When clients are let in after a start: not before what the crash has made visible is safe. Pure.
//!
//! A commit that waits for standbys is seen by nobody else. After a crash (and after a shutdown, which lets such commits go) it
//! is seen by everybody, while the standbys may lack it: what a client reads there would vanish with the next failover. So a
//! primary whose commits wait for standbys starts with its door closed: only our own connections and those of standbys. It
//! is opened when nobody can be elected who lacks the end of what was recovered: as many of the set in force have flushed it
//! as a commit needs, or the `sync` key is closed in this node's name. The second is what happens within `retry_timeout` when no standby comes
//! ([`super::lead`]), so nobody waits for ever. A promotion needs no closed door, since it begins with a closed key.
//!
//! The same holds for such data when it is started as a standby before its whole history was compared with a leader's: readers
//! wait until it streams the leader's own timeline, which its data is a part of then, or it leads itself. That is remembered on
//! the volume, for the control file of a standby does not tell what it was before.
//!
//! What is absent: agent mode, in which pg_hba.conf is the administrator's.

use std::time::Duration;

use crate::clock::Moment;
use crate::dcs::Snapshot;
use crate::postgres::status::{Answer, Control, ControlState, Kind};
use crate::postgres::{StartAs, Upstream};
use crate::record::{Bootstrap, Record};
use crate::types::{Lsn, NodeName, SyncMode};

use super::lead::{NOW, PROMPTLY};
use super::lineage;
use super::publish;
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::remote;
use super::rules::Mode;
use super::sync::{Names, closed};
use super::tags::Streaming;
use super::view::{Instance, SyncWrite, View};

/// Standbys come back in a moment, nothing tells when one has confirmed, and clients wait: looked at so often...
const ALERT: Wake = Wake::Soon(Duration::from_millis(5));
/// ... for so long.
const AT_FIRST: Duration = Duration::from_secs(1);
/// Nothing tells when a standby streams, and readers have others to go to.
const UNTIL_IT_STREAMS: Wake = Wake::Soon(Duration::from_millis(300));

/// The door is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Since when; from the first answer of the primary on, since that.
    pub since: Moment,
    /// What must be confirmed: the end of the log as the primary first told it; nobody but us has written since.
    pub end: Option<Lsn>,
}

/// The decision, with the door closed before a start that needs it, and opened as soon as that is safe.
pub(super) fn also_mind(view: &View, mut decision: Decision) -> Decision {
    let start = decision.actions.iter().position(|action| matches!(action, Action::Start(..)));
    if let Some(at) = start {
        let before = decision.actions.get(at).and_then(|start| before_start(view, start));
        decision.actions.splice(at..at, before);
        return decision;
    }
    let Some(closed) = view.memory.closed else { return decision };
    // Nobody is let in just before a stop, and no stop waits for a disk.
    if decision.actions.iter().any(stops) {
        return decision;
    }
    match view.instance() {
        Instance::Standby(answer, _) if is_part_of_the_leaders(view, answer) => open(&mut decision),
        Instance::Standby(..) => decision.wake = sooner(decision.wake, UNTIL_IT_STREAMS),
        Instance::Primary(answer, _) => match missing(view, answer, closed) {
            None => open(&mut decision),
            Some(who) => decision = wait(view, decision, closed, who),
        },
        Instance::Down | Instance::Silent | Instance::Ending => {}
    }
    decision
}

/// Clients, proxies and `/primary` hear of it at the next look.
fn open(decision: &mut Decision) {
    decision.actions.insert(0, Action::OpenDoor);
    decision.wake = NOW;
}

/// Whether clients wait for the next look: the others are told by then, not before.
pub fn hurries(decision: &Decision) -> bool {
    matches!(decision.reason, Reason::ClientsWait(_)) && decision.wake == ALERT
}

fn stops(action: &Action) -> bool {
    matches!(action, Action::Begin(Task::Stop(_) | Task::StopAfterCheckpoint(_) | Task::HandOver { .. }))
}

fn before_start(view: &View, start: &Action) -> Option<Action> {
    let Action::Start(how, names) = start else { return None };
    match how {
        StartAs::Primary if must_wait(view, names) => Some(Action::CloseDoor),
        StartAs::Standby(whom) if may_hold_unconfirmed(view, whom.as_ref()) => Some(Action::CloseDoor),
        StartAs::Primary | StartAs::Standby(_) => view.memory.closed.map(|_closed| Action::OpenDoor),
    }
}

fn must_wait(view: &View, names: &str) -> bool {
    view.rules.mode == Mode::Node
        && view.volume.bootstrap == Bootstrap::Settled
        && Names::parse(names).need > 0
        && !is_only_candidate(view)
}

/// Whether a standby may hold commits that nobody has confirmed, and that no leader's history was compared with. Before the store
/// was read, nobody knows that commits wait for no standby.
fn may_hold_unconfirmed(view: &View, whom: Option<&Upstream>) -> bool {
    let may_hold = |control: &Control| {
        // Whoever is to follow somebody was compared with the leader, up to its last record: that is known after a shutdown only.
        let judged = whom.is_some() && control.state == ControlState::ShutDown;
        view.volume.unconfirmed || !(lineage::was_standby(control) || judged)
    };
    view.rules.mode == Mode::Node
        && (view.rules.sync_mode != SyncMode::Off || view.rules.server.is_none())
        && view.control().is_some_and(may_hold)
}

/// What of that is to outlive a restart.
pub fn remember(view: &View, action: &Action, record: &mut Record) {
    if let Action::Start(StartAs::Standby(whom), _) = action {
        record.unconfirmed |= may_hold_unconfirmed(view, whom.as_ref());
    } else if *action == Action::OpenDoor {
        record.unconfirmed = false;
    }
}

/// Whether it streams what the leader writes now: it is let on to that timeline only where its own history is part of it. (On the
/// one before, it may stream up to its end and then find out.) Whoever never streams has replayed so much. In a cluster that follows
/// another one that is the timeline that its leader says it is on; the leader itself streams from there.
fn is_part_of_the_leaders(view: &View, answer: &Answer) -> bool {
    let others = |snapshot: &Snapshot| snapshot.leader_name().filter(|leader| **leader != view.me).cloned();
    let follows_another = remote::of(view).is_some();
    let says = |s: &Snapshot| {
        let leader = others(s)?;
        if follows_another { s.member(&leader)?.timeline } else { lineage::written_by(s, &leader) }
    };
    let is_the_leaders = view.snapshot().and_then(says) == Some(answer.timeline);
    let receives = publish::streams(answer) || view.rules.tags.stream == Streaming::Never;
    view.memory.frozen.is_none() && receives && (is_the_leaders || (follows_another && view.leads()))
}

/// Whether nobody else can be elected whatever happens.
fn is_only_candidate(view: &View) -> bool {
    let key = view.snapshot().and_then(|snapshot| snapshot.sync.as_ref());
    view.memory.sync_write == SyncWrite::Settled && key.is_some_and(|key| key.value == closed(&view.me))
}

/// Who has not confirmed what was recovered, as long as that matters.
fn missing(view: &View, answer: &Answer, closed: Closed) -> Option<Vec<NodeName>> {
    let Kind::Primary { standbys, .. } = &answer.kind else { return None };
    let in_force = Names::parse(&answer.sync_names);
    if in_force.need == 0 || is_only_candidate(view) {
        return None;
    }
    let has = |name: &NodeName| {
        closed.end.is_some_and(|end| standbys.iter().any(|s| s.name == *name && s.flushed >= Some(end)))
    };
    let (confirmed, missing): (Vec<_>, Vec<_>) = in_force.names.into_iter().partition(has);
    let enough = u32::try_from(confirmed.len()).is_ok_and(|confirmed| confirmed >= in_force.need);
    (!enough).then_some(missing)
}

fn wait(view: &View, mut decision: Decision, closed: Closed, who: Vec<NodeName>) -> Decision {
    let at_first = view.now.since(closed.since) < AT_FIRST;
    let soon = if at_first { ALERT } else { PROMPTLY };
    if at_first {
        // Nobody has written since the crash, so the status is no news; and who of the set has not come back yet is about to.
        decision.actions.retain(|action| !matches!(action, Action::PutStatus(_) | Action::SetSyncNames(_)));
    }
    let wake = sooner(decision.wake, soon);
    let is_the_news = matches!(decision.reason, Reason::Leading | Reason::CommitsWait(_));
    let reason = if is_the_news { Reason::ClientsWait(who) } else { decision.reason };
    Decision { reason, wake, ..decision }
}

fn sooner(wanted: Wake, soon: Wake) -> Wake {
    match (wanted, soon) {
        (Wake::Soon(wanted), Wake::Soon(soon)) => Wake::Soon(wanted.min(soon)),
        (Wake::Loop, other) | (other, Wake::Loop) => other,
    }
}
