//! What a leader does: become the primary, and keep what others rely on (status, history, slots, the synchronous set).

use std::time::Duration;

use crate::dcs::{Initialize, Member, MemberState, Precondition, Role, Snapshot};
use crate::postgres::StopMode;
use crate::postgres::status::{Answer, ControlState, Kind, Standby};
use crate::record::Bootstrap;
use crate::types::{Lsn, SyncMode, Timeline};

use super::candidates;
use super::failsafe;
use super::lineage;
use super::memory::ran_for;
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::rules::{START_TIMEOUT, Strictness};
use super::slots;
use super::sync::{self, Confirmer, Electors, Names, Policy, Progress, Step};
use super::upstreams;
use super::view::{Approval, Instance, Job, Life, PROMOTE_NEEDS, ShutdownMark, SyncWrite, View};

/// Something has just been changed: look at once.
pub const NOW: Wake = Wake::Soon(Duration::ZERO);
/// Something is about to change: look again soon.
pub const PROMPTLY: Wake = Wake::Soon(Duration::from_millis(50));
/// Something will change by itself within moments.
const SOON: Wake = Wake::Soon(Duration::from_millis(300));
/// After this many failed starts in a row the lock is given to another node, if there is one that runs.
pub const FAILED_STARTS: u32 = 5;
/// A standby that reconnects needs less.
const STARVED: Duration = Duration::from_secs(1);

/// The duties of a running primary with a valid lease.
pub fn duties(view: &View, snapshot: &Snapshot, answer: &Answer, lsn: Lsn) -> Decision {
    if view.volume.bootstrap == Bootstrap::Pending && view.may_try(Job::FinishBootstrap) {
        let actions = vec![Action::Begin(Task::FinishBootstrap)];
        return Decision { actions, reason: Reason::Bootstrapping, wake: PROMPTLY };
    }
    // A failure ends the list: first the set that commits wait for, then the keys that elections go by (they are written once),
    // then the slots of those who are to confirm, since one that cannot be made fails at every look.
    let sync = sync_step(view, snapshot, answer);
    let wake = match sync {
        Some(_) => PROMPTLY,
        None if settling(view, snapshot) => PROMPTLY,
        None if expects_standbys(view, snapshot, answer) => SOON,
        None => Wake::Loop,
    };
    let mut actions: Vec<_> = sync.into_iter().collect();
    actions.extend(keys(view, snapshot, answer.timeline).into_iter().flatten());
    actions.extend(failsafe::key(view, snapshot));
    actions.push(Action::PutStatus(lsn));
    actions.extend(slots::of_leader(view, snapshot, answer, lsn).into_iter().map(Action::ChangeSlots));
    Decision { actions, reason: reason(view, answer), wake }
}

/// Whether the store knows of the timeline that this primary writes; what is no primary writes none.
pub fn timeline_is_written(view: &View, snapshot: &Snapshot) -> bool {
    match view.instance() {
        Instance::Primary(answer, _) => lineage::known(snapshot) >= answer.timeline,
        Instance::Down | Instance::Silent | Instance::Ending | Instance::Standby(..) => true,
    }
}

/// Keys that every leader keeps: written again when somebody has deleted them.
fn keys(view: &View, snapshot: &Snapshot, timeline: Timeline) -> [Option<Action>; 3] {
    let known = matches!(snapshot.initialize.as_ref().map(|i| i.value), Some(Initialize::Done(_)));
    let identifier = view.control().map(|c| c.system_id).or(view.volume.system_id);
    let written = lineage::known(snapshot);
    // Patroni's rows have five columns; a row that lacks some was written before a name was known.
    let whole = snapshot.history.as_ref().and_then(|h| h.value.0.last()).is_none_or(|row| row.len() >= 5);
    [
        identifier.filter(|_| !known).map(Action::PutInitialize),
        snapshot.config.is_none().then_some(Action::PutConfig),
        (written != timeline || !whole).then_some(Action::PutHistory(timeline)),
    ]
}

/// A set that nobody confirms is a reason of its own: it is why clients hang.
fn reason(view: &View, answer: &Answer) -> Reason {
    let starved = view.memory.sync_starved.is_some_and(|since| view.now.since(since) >= STARVED);
    let names = Names::parse(&answer.sync_names);
    if starved { Reason::CommitsWait(names.members().cloned().collect()) } else { Reason::Leading }
}

/// The next step of the synchronous set.
fn sync_step(view: &View, snapshot: &Snapshot, answer: &Answer) -> Option<Action> {
    let Kind::Primary { standbys, .. } = &answer.kind else {
        return None;
    };
    let in_force = Names::parse(&answer.sync_names);
    let able = candidates::confirming(view, snapshot, standbys, &in_force);
    let confirmers: Vec<_> = able.into_iter().map(|s| confirmer(s, view)).collect();
    if confirmers.is_empty() && waits_for_somebody(view) {
        return None;
    }
    let key = snapshot.sync.as_ref();
    let own = key.filter(|key| key.value.leader.as_ref() == Some(&view.me));
    if let Some(own) = own.filter(|_| view.memory.sync_write == SyncWrite::MayArrive) {
        // Written again as it is: whatever is under way finds another revision, and what was read is what counts.
        return Some(Action::PutSync(own.value.clone(), Precondition::Unchanged(own.revision)));
    }
    match sync::next_step(&policy(view), &view.me, key.map(|k| &k.value), &in_force, &confirmers) {
        Step::None => None,
        Step::SetNames(text) => Some(Action::SetSyncNames(text)),
        Step::WriteKey(value) => {
            let when = key.map_or(Precondition::Absent, |k| Precondition::Unchanged(k.revision));
            Some(Action::PutSync(value, when))
        }
        Step::DeleteKey => key.map(|k| Action::DeleteSync(k.revision)),
    }
}

/// A standby that runs, or is about to, and does not confirm commits yet: nothing wakes the loop when it connects, and until
/// it counts nobody else can lead. (One that another standby feeds never will.)
fn expects_standbys(view: &View, snapshot: &Snapshot, answer: &Answer) -> bool {
    let in_force = Names::parse(&answer.sync_names).names;
    let coming = |m: &&Member| match m.state {
        MemberState::Running | MemberState::Starting => m.role == Role::Replica,
        MemberState::Initializing
        | MemberState::InitdbFailed
        | MemberState::CreatingReplica
        | MemberState::StartFailed
        | MemberState::Restarting
        | MemberState::Stopping
        | MemberState::Stopped
        | MemberState::Crashed
        | MemberState::Unknown => false,
    };
    view.rules.sync_mode == SyncMode::Quorum
        && snapshot
            .members
            .iter()
            .filter(coming)
            .filter(|m| !in_force.contains(&m.name) && candidates::is_awaited(m))
            .any(|m| !upstreams::is_fed_by_another(view, snapshot, m))
}

/// Commits wait for standbys already, and nobody can be elected on that yet: it is a matter of moments.
fn settling(view: &View, snapshot: &Snapshot) -> bool {
    let nobody = snapshot.sync.as_ref().is_some_and(|s| s.value.sync_standby.is_none());
    nobody && view.memory.sync_since.is_some() && view.memory.sync_starved.is_none()
}

/// Commits are let go only after the standbys have had time to come back: a restart of the primary cuts them all off.
fn waits_for_somebody(view: &View) -> bool {
    let starved = view.memory.sync_starved;
    view.rules.strictness == Strictness::Degrade
        && starved.is_some_and(|since| view.now.since(since) < view.rules.timing.retry_timeout)
}

fn policy(view: &View) -> Policy {
    Policy {
        mode: view.rules.sync_mode,
        strictness: view.rules.strictness,
        count: view.rules.sync_node_count,
    }
}

fn confirmer(standby: &Standby, view: &View) -> Confirmer {
    let caught_up = view.memory.sync_barrier.is_some_and(|barrier| standby.flushed >= Some(barrier));
    let progress = if caught_up { Progress::CaughtUp } else { Progress::Behind };
    Confirmer { name: standby.name.clone(), progress }
}

/// The lock is ours and the instance is a standby: promote it. Before that the `sync` key is closed, so that nobody can be
/// elected by what the leader before promised.
pub fn promote(view: &View, snapshot: &Snapshot) -> Decision {
    let left = view.demote_at().map_or(Duration::ZERO, |at| view.now.until(at));
    if left < PROMOTE_NEEDS {
        return Decision { actions: vec![], reason: Reason::LeaseTooShort, wake: PROMPTLY };
    }
    if let Some(decision) = approval(view) {
        return decision;
    }
    if !view.may_try(Job::Promote) {
        let why = view.memory.failures.get(&Job::Promote).map_or_else(String::new, |f| f.why.clone());
        return Decision { actions: vec![], reason: Reason::RetryLater(Job::Promote, why), wake: PROMPTLY };
    }
    // Also when it is this node's own, of a term before: the names of this term are other names.
    let mut actions: Vec<Action> = close(view, snapshot).into_iter().collect();
    if let (true, Instance::Standby(_, position)) = (outlives_shutdown(view, snapshot), view.instance()) {
        actions.push(Action::PutStatus(position));
    }
    actions.push(Action::SetSyncNames(sync::names_at_promotion(
        &policy(view),
        &candidates::expected(view, snapshot),
    )));
    actions.push(Action::Begin(Task::Promote));
    // Whoever was asked for, somebody leads now; while PostgreSQL is being promoted there is time for it.
    actions.extend(snapshot.failover.as_ref().map(|request| Action::ClearFailover(request.revision)));
    Decision { actions, reason: Reason::Promoting, wake: PROMPTLY }
}

/// Has the `sync` key say that nobody but this node can be elected.
fn close(view: &View, snapshot: &Snapshot) -> Option<Action> {
    let closed = sync::closed(&view.me);
    let stands = snapshot.sync.as_ref().map(|s| &s.value) == Some(&closed)
        && view.memory.sync_write == SyncWrite::Settled;
    let when = snapshot.sync.as_ref().map_or(Precondition::Absent, |s| Precondition::Unchanged(s.revision));
    (view.rules.sync_mode != SyncMode::Off && !stands).then_some(Action::PutSync(closed, when))
}

/// Before a start as the primary, when no `sync` key was ever written (a cluster that was just made): what is acknowledged before
/// the first standby confirms is on this node alone.
pub fn close_first(view: &View, snapshot: &Snapshot) -> Option<Action> {
    close(view, snapshot).filter(|_| snapshot.sync.is_none())
}

/// What is done before a promotion that `pre_promote` must let pass (Patroni's rule: a failure gives the key back, and this node
/// is no candidate for a TTL). It is asked before the `sync` key is closed: whoever leads instead is elected by that.
fn approval(view: &View) -> Option<Decision> {
    let program = view.rules.pre_promote.as_ref().filter(|_| view.memory.approval == Approval::Open)?;
    let (action, reason) = match not_approved(view) {
        Some(reason) => (Action::Release, reason),
        None => (Action::Begin(Task::Approval(program.clone())), Reason::AwaitingApproval),
    };
    Some(Decision { actions: vec![action], reason, wake: PROMPTLY })
}

/// Why this node is no candidate: `pre_promote` has said so a moment ago.
pub fn not_approved(view: &View) -> Option<Reason> {
    let failed = view.memory.failures.get(&Job::Approval)?;
    let recent = view.now.since(failed.last) < view.rules.timing.ttl;
    recent.then(|| Reason::NotApproved(failed.why.clone()))
}

/// The lock is ours and the instance does not answer yet: it may be in crash recovery. For so long, and no longer if another
/// node can lead.
pub fn starting(view: &View, snapshot: &Snapshot) -> Decision {
    let order = view.memory.orders.restart.as_ref();
    let limit = match order.map(|restart| restart.timeout) {
        Some(asked) => asked.unwrap_or(START_TIMEOUT),
        None => view.rules.primary_start_timeout,
    };
    if ran_for(view) < limit || !somebody_else_runs(view, snapshot) {
        return Decision { actions: vec![], reason: Reason::Starting, wake: PROMPTLY };
    }
    let actions = vec![Action::GiveAway, Action::Begin(Task::Stop(StopMode::Immediate))];
    Decision { actions, reason: Reason::StartTooSlow, wake: PROMPTLY }
}

/// Down, with the lock: whether it is given up rather than started again.
pub fn gives_away(view: &View, snapshot: &Snapshot) -> bool {
    let crashed = view.control().is_some_and(|control| control.state == ControlState::InProduction);
    let planned = view.memory.orders.restart.is_some() || view.memory.life == Life::Fresh;
    let at_once = view.rules.primary_start_timeout.is_zero() && crashed && !planned;
    view.memory.give_away.is_some() || (at_once && somebody_else_runs(view, snapshot))
}

/// Whether the store still says, or may say, that everything ended with a leader before: not once another one writes, so it is
/// taken back before that.
pub fn outlives_shutdown(view: &View, snapshot: &Snapshot) -> bool {
    let stands = snapshot.status.as_ref().is_some_and(|status| status.value.shutdown.is_some());
    stands || view.memory.shutdown_mark == ShutdownMark::MayStand
}

/// The names that a primary starts with. Never fewer than the election counts on: what was in force before the crash, else
/// what the `sync` key implies, so that not one commit is acknowledged that an elected standby could lack.
pub fn names_at_start(view: &View, snapshot: Option<&Snapshot>) -> String {
    if let Some(names) = &view.memory.sync_names {
        return names.clone();
    }
    let electors = snapshot.and_then(|s| s.sync.as_ref()).map(|s| Electors::of(&s.value)).unwrap_or_default();
    if electors.voters.is_empty() {
        return sync::names_at_promotion(&policy(view), &[]);
    }
    Names::implied_by(&electors).to_setting(view.rules.sync_mode)
}

/// Whether a primary can be started without asking the store for the names.
pub fn names_are_known(view: &View) -> bool {
    view.memory.sync_names.is_some() || view.rules.sync_mode == SyncMode::Off
}

/// Whether another member could lead in this node's place.
pub fn somebody_else_runs(view: &View, snapshot: &Snapshot) -> bool {
    let runs = |m: &Member| m.name != view.me && m.state == MemberState::Running && m.role == Role::Replica;
    snapshot.members.iter().any(runs)
}
