//! What is done while the store does not answer. Pure.
//!
//! Nothing changes: a primary goes on until its lease ends, a standby follows on, and what is down with whole data is started
//! read-only so that it can be read. A standby that follows nobody (it has been started again) follows the leader to which it
//! has promised not to take its place, for that one says how it is reached; whatever else would be needed waits for the store.

use std::time::Duration;

use crate::clock::Moment;
use crate::postgres::status::{Answer, Control};
use crate::postgres::{StartAs, Upstream};
use crate::record::Bootstrap;
use crate::types::Lsn;

use super::decide::{act, compare, idle, start_standby};
use super::lead;
use super::lineage::{self, Lineage, known_ancestry, standby_timeline};
use super::reason::{Action, Decision, Reason, Wake};
use super::remote;
use super::slots;
use super::upstreams::feeder;
use super::view::{Instance, Job, ShutdownMark, View};

/// For what becomes known within moments.
const HALF_A_SECOND: Duration = Duration::from_millis(500);

pub(super) fn decide(view: &View, since: Moment, why: &str) -> Decision {
    let reason = Reason::StoreSilent(why.to_owned());
    // A node that starts does not see the store at once: its lock may still be its own, and its primary goes on in place then.
    let for_good = view.now.since(since) >= view.rules.timing.retry_timeout;
    let whole = view.control().filter(|_| view.volume.bootstrap == Bootstrap::Settled);
    match (view.instance(), whole) {
        (Instance::Down, Some(control))
            if lineage::was_standby(control) || !view.leads() || remote::of(view).is_some() =>
        {
            if for_good {
                start(view, control, reason)
            } else {
                idle(reason, Wake::Soon(HALF_A_SECOND))
            }
        }
        // Whoever sees that mark leads without a vote: it is taken back before anything more is written.
        (Instance::Down, Some(_)) if view.memory.shutdown_mark == ShutdownMark::MayStand => {
            idle(Reason::ShutdownMarkStands, Wake::Soon(HALF_A_SECOND))
        }
        // Without the store only what was in force before is known to be safe to start with.
        (Instance::Down, Some(_)) if lead::names_are_known(view) => {
            let names = lead::names_at_start(view, None);
            act(vec![Action::Start(StartAs::Primary, names)], Reason::CrashRestart)
        }
        (Instance::Standby(answer, position), _) if view.memory.following.is_none() => {
            follow(view, (answer, position), reason)
        }
        (Instance::Standby(answer, position), _) => {
            let plan = slots::under_promise(view, answer, position);
            let actions = plan.map(Action::ChangeSlots).into_iter().collect();
            Decision { actions, reason, wake: Wake::Loop }
        }
        (Instance::Primary(answer, lsn), _) => {
            let plan = slots::by_promises(view, answer, lsn);
            let actions = plan.map(Action::ChangeSlots).into_iter().collect();
            Decision { actions, reason, wake: Wake::Loop }
        }
        (Instance::Down | Instance::Silent | Instance::Ending, _) => idle(reason, Wake::Loop),
    }
}

/// Read-only, and streaming where that is known to be possible.
fn start(view: &View, control: &Control, reason: Reason) -> Decision {
    let Some(leader) = promised_leader(view) else { return start_standby(view, None, reason) };
    match known_ancestry(view, &leader) {
        None if view.n_failures(Job::Compare) == 0 => compare(view, leader),
        Some(ancestry)
            if !lineage::is_of_another(view, control.reached(), ancestry)
                && lineage::of_stopped(control, ancestry) == Lineage::Part =>
        {
            start_standby(view, Some(leader), reason)
        }
        Some(_) | None => start_standby(view, None, reason),
    }
}

fn follow(view: &View, (answer, position): (&Answer, Lsn), reason: Reason) -> Decision {
    let Some(leader) = promised_leader(view) else { return idle(reason, Wake::Loop) };
    let timeline = standby_timeline(view, answer);
    match known_ancestry(view, &leader) {
        None => compare(view, leader),
        Some(ancestry)
            if !lineage::is_of_another(view, timeline, ancestry)
                && lineage::of_running(timeline, position, ancestry) == Lineage::Part =>
        {
            act(vec![Action::Follow(Some(leader))], reason)
        }
        Some(_) => idle(reason, Wake::Loop),
    }
}

/// The leader that goes on with this node's promise, if this node streams from anybody.
fn promised_leader(view: &View) -> Option<Upstream> {
    let promise = view.memory.promised.as_ref().filter(|promise| view.now < promise.until)?;
    feeder(view, promise.upstream.as_ref()?)
}
