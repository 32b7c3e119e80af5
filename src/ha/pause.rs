//! Maintenance mode (`pause`): nothing is started, stopped or elected but what an operator asks for. Pure.
//!
//! What is decided as ever passes this gate last. A primary keeps running whatever becomes of the lock and of the store (its
//! deadman is off), so whoever resumes a cluster sees to it that no paused primary is cut off from the store.
//!
//! A container that ends takes its PostgreSQL with it, paused or not. So a node that is stopped shuts it down cleanly and
//! leaves the lock alone; a node that starts may start it once, in the part that it had, which nobody has stopped by hand.

use crate::dcs::Snapshot;
use crate::postgres::status::{Control, ControlState};

use super::manual;
use super::orders::Stage;
use super::race::led_since;
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::remote;
use super::rules::{Mode, Pause};
use super::view::{Instance, Life, View};

/// Whether the cluster is paused, as last known.
pub fn is_on(view: &View) -> bool {
    view.rules.pause == Pause::On
}

/// Whether this process ends and leaves PostgreSQL and the lock alone, as Patroni does: what has been paused is the
/// operator's, and on a machine it can go on.
pub fn goes_on_alone(view: &View) -> bool {
    is_on(view) && view.rules.mode != Mode::Node
}

/// Lets through what may be done in maintenance mode; everything, outside of it.
pub fn gate(view: &View, decision: Decision) -> Decision {
    if !is_on(view) {
        return decision;
    }
    if holds_what_it_does_not_use(view) {
        return Decision { actions: vec![Action::Release], reason: Reason::Paused, wake: Wake::Loop };
    }
    if decision.actions.iter().all(|action| allowed(view, action)) {
        let unlocked = matches!(view.instance(), Instance::Primary(..)) && !view.leads();
        let idle = decision.actions.is_empty() && unlocked;
        return if idle { Decision { reason: Reason::Paused, ..decision } } else { decision };
    }
    Decision { actions: vec![], reason: Reason::Paused, wake: Wake::Loop }
}

/// Why this node may not take the lock yet: a primary whose lease ran out in maintenance mode, when nothing stopped it, goes on until it
/// hears of the end. It has a TTL for that, unless it has stopped, or a person says so by a failover that names this node.
pub(super) fn barred(view: &View, snapshot: &Snapshot) -> Option<Reason> {
    let seen = view.memory.paused.filter(|_seen| !is_on(view))?;
    let may_go_on = view.now.since(seen) < view.rules.timing.ttl;
    let is_word = manual::is_forced(view, snapshot) || manual::has_left(view, snapshot);
    (may_go_on && !is_word).then_some(Reason::Resumed)
}

/// The lock is dropped by whoever is no primary, is not asked to become one and has nothing to start.
fn holds_what_it_does_not_use(view: &View) -> bool {
    let waits =
        view.memory.life == Life::Fresh || view.memory.orders.moves_postgres() || view.doing.is_some();
    let unused = match view.instance() {
        Instance::Down => true,
        Instance::Standby(..) => !is_candidate(view) && remote::of(view).is_none(),
        Instance::Primary(..) | Instance::Silent | Instance::Ending => false,
    };
    let mine = view.snapshot().is_some_and(|s| s.leader_name() == Some(&view.me));
    let handing_over = view.memory.handover.as_ref().is_some_and(|tried| {
        view.snapshot().and_then(|s| s.failover.as_ref()).is_some_and(|key| key.revision == tried.request)
    });
    view.leads() && mine && unused && !waits && !handing_over
}

/// A primary goes on without its lock here, so that the end of the lock says nothing: whoever is to replace it waits for what it
/// leaves behind when it has stopped. A failover names no leader: whoever asks for it answers for that.
fn is_candidate(view: &View) -> bool {
    let entitled = |snapshot: &&Snapshot| {
        view.leads() || manual::is_forced(view, snapshot) || manual::has_left(view, snapshot)
    };
    view.snapshot().filter(entitled).is_some_and(|snapshot| manual::names(view, snapshot))
}

/// Whether this node has just started and may start its server once. On a machine a server that is down was stopped by somebody,
/// who knows why.
fn is_fresh(view: &View) -> bool {
    view.memory.life == Life::Fresh && view.rules.mode == Mode::Node
}

/// Whether the server is down and a start is what is left of an operator's restart. (A copy that was asked for ends in the same
/// order: it looks like the primary that it was taken from, and is none.)
fn is_restarted(view: &View) -> bool {
    let order = view.memory.orders.restart.as_ref().filter(|order| order.stage == Stage::Stopped);
    order.is_some_and(|order| view.memory.copied.is_none_or(|copied| copied < order.since))
}

fn allowed(view: &View, action: &Action) -> bool {
    let asked = view.memory.orders.moves_postgres();
    let fresh = is_fresh(view);
    match action {
        Action::Start(..) => asked || fresh || view.memory.handover.is_some(),
        Action::Acquire(_) => match view.instance() {
            Instance::Primary(..) => true,
            Instance::Standby(..) => is_candidate(view),
            Instance::Down => fresh || is_restarted(view),
            Instance::Silent | Instance::Ending => false,
        },
        Action::Freeze => is_candidate(view) || view.leads(),
        Action::Begin(task) => match task {
            Task::Stop(_) | Task::StopAfterCheckpoint(_) | Task::Clone(_) | Task::CopyAlone => asked,
            Task::Rewind(_) => asked || fresh,
            Task::Initdb | Task::Survey | Task::CopySlots { .. } => false,
            Task::Approval(_) | Task::Promote => is_candidate(view),
            Task::FinishBootstrap | Task::HandOver { .. } | Task::Poll | Task::Compare(_) => true,
        },
        Action::Forget
        | Action::Release
        | Action::ClaimInitialize(_)
        | Action::PutInitialize(_)
        | Action::PutConfig
        | Action::PutSync(..)
        | Action::DeleteSync(_)
        | Action::ClearFailover(_)
        | Action::PutShutdown(..)
        | Action::PutStatus(_)
        | Action::PutHistory(_)
        | Action::PutFailsafe(..)
        | Action::DeleteFailsafe(_)
        | Action::AskMembers
        | Action::CloseDoor
        | Action::OpenDoor
        | Action::Follow(_)
        | Action::SetSyncNames(_)
        | Action::PrepareCopies(..)
        | Action::ChangeSlots(_)
        | Action::Configure(_)
        | Action::Reload
        | Action::TakeUpSchedule
        | Action::DropSchedule
        | Action::RestartStopped
        | Action::AcceptReinitialize
        | Action::Settle(..)
        | Action::GiveAway
        | Action::LayInReserve(_)
        | Action::GiveReserve
        | Action::ArmWatchdog
        | Action::DisarmWatchdog
        | Action::Finish => true,
    }
}

/// Whether a node that starts in maintenance mode goes on as the primary that it was: nobody can have led since. So does a server
/// that is down and that an operator has ordered to be restarted: whoever had stopped it by hand has let go of the lock.
pub fn was_the_primary(view: &View, snapshot: &Snapshot, control: &Control) -> bool {
    let primary = matches!(
        control.state,
        ControlState::ShutDown
            | ControlState::ShuttingDown
            | ControlState::InProduction
            | ControlState::InCrashRecovery
    );
    let asked = is_fresh(view) || is_restarted(view);
    is_on(view) && asked && primary && led_since(view, snapshot, control.reached()).is_none()
}
