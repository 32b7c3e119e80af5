//! When clients are let in after a start: not before what the crash has made visible is safe. Pure.
//!
//! A commit that waits for standbys is seen by nobody else. After a crash (and after a shutdown, which lets such commits go) it
//! is seen by everybody, while the standbys may lack it: what a client reads there would vanish with the next failover. So a
//! primary whose commits wait for standbys starts with its door closed: only our own connections and those of standbys. It
//! is opened when nobody can be elected who lacks the end of what was recovered: as many of the set in force have flushed it
//! as a commit needs, or the `sync` key is closed in this node's name. The second is what happens within `retry_timeout` when no standby comes
//! ([`super::lead`]), so nobody waits for ever. A promotion needs no closed door, since it begins with a closed key.
//!
//! What is absent: agent mode, in which pg_hba.conf is the administrator's.

use std::time::Duration;

use crate::clock::Moment;
use crate::postgres::StartAs;
use crate::postgres::status::{Answer, Kind};
use crate::record::Bootstrap;
use crate::types::{Lsn, NodeName};

use super::lead::PROMPTLY;
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::rules::Mode;
use super::sync::{Names, closed};
use super::view::{Instance, SyncWrite, View};

/// Standbys reconnect within a tenth of a second, nothing tells when one has confirmed, and clients wait: looked at so often...
const ALERT: Wake = Wake::Soon(Duration::from_millis(5));
/// ... for so long.
const AT_FIRST: Duration = Duration::from_secs(1);

/// The door is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Since when.
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
        Instance::Standby(..) => decision.actions.insert(0, Action::OpenDoor),
        Instance::Primary(answer, _) => match missing(view, answer, closed) {
            None => decision.actions.insert(0, Action::OpenDoor),
            Some(who) => decision = wait(view, decision, closed, who),
        },
        Instance::Down | Instance::Silent | Instance::Ending => {}
    }
    decision
}

fn stops(action: &Action) -> bool {
    matches!(action, Action::Begin(Task::Stop(_) | Task::StopAfterCheckpoint(_) | Task::HandOver { .. }))
}

fn before_start(view: &View, start: &Action) -> Option<Action> {
    let Action::Start(how, names) = start else { return None };
    match how {
        StartAs::Primary if must_wait(view, names) => Some(Action::CloseDoor),
        StartAs::Primary | StartAs::Standby(_) => view.memory.closed.map(|_closed| Action::OpenDoor),
    }
}

fn must_wait(view: &View, names: &str) -> bool {
    view.rules.mode == Mode::Node
        && view.volume.bootstrap == Bootstrap::Settled
        && Names::parse(names).need > 0
        && !is_only_candidate(view)
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

fn wait(view: &View, decision: Decision, closed: Closed, who: Vec<NodeName>) -> Decision {
    let soon = if view.now.since(closed.since) < AT_FIRST { ALERT } else { PROMPTLY };
    let wake = match (decision.wake, soon) {
        (Wake::Soon(wanted), Wake::Soon(soon)) => Wake::Soon(wanted.min(soon)),
        (Wake::Loop, soon) | (_, soon @ Wake::Loop) => soon,
    };
    let is_the_news = matches!(decision.reason, Reason::Leading | Reason::CommitsWait(_));
    let reason = if is_the_news { Reason::ClientsWait(who) } else { decision.reason };
    Decision { reason, wake, ..decision }
}
