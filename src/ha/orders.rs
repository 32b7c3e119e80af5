//! What an operator has asked of this node alone: restart, reload, reinitialize. Pure; the agent carries the orders from
//! tick to tick and answers whoever asked.
//!
//! Invariants: a restart is announced in the store (state `restarting`, the lock kept) before anything is stopped, so that
//! nobody takes it for a failure. A copy is given up for a fresh one only while at least two others are whole, unless a
//! person insists; what it is replaced by comes first, what was there goes to the quarantine.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::clock::Moment;
use crate::dcs::{Member, MemberState, ReplicationState, Role};
use crate::postgres::StopMode;
use crate::postgres::status::Answer;

use super::Phase;
use super::fitness;
use super::lead::{FAILED_STARTS, NOW, PROMPTLY};
use super::manual::{self, Due};
use super::publish::streams;
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::upstreams::clone_source;
use super::view::{Instance, Job, Lease, View, upstream};

/// A stop that was planned gets this long before it becomes an immediate one (`primary_stop_timeout` may say less).
const PLANNED_STOP: Duration = Duration::from_secs(60);
/// An order that could not be begun in this time (the store does not answer, so it cannot be announced) has failed.
const BEGUN_WITHIN: Duration = Duration::from_secs(10);

/// A copy whose own copy does not start either is not replaced again before.
const COPY_AGAIN: Duration = Duration::from_secs(3600);

/// What is asked for and not done yet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Orders {
    /// A restart, now.
    pub restart: Option<Restart>,
    /// A restart, later.
    pub scheduled: Option<Scheduled>,
    /// Another copy in the place of this one.
    pub reinitialize: Option<Reinitialize>,
    /// Read the configuration again.
    pub reload: Option<Reload>,
}

/// Which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// [`Orders::restart`].
    Restart,
    /// [`Orders::reinitialize`].
    Reinitialize,
    /// [`Orders::reload`].
    Reload,
}

/// A reload that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reload;

/// When a restart is really to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conditions {
    /// Only in this role.
    pub role: Option<Role>,
    /// Only while the server is older than this (`server_version_num`), and the words that it was asked in.
    pub older_than: Option<(u32, String)>,
    /// Only if a setting waits for it.
    pub pending: Pending,
}

/// Whether a restart needs a setting that waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pending {
    /// No.
    #[default]
    Any,
    /// Yes.
    Required,
}

/// A restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restart {
    /// When it is really to be done.
    pub conditions: Conditions,
    /// How long the start may take, instead of `primary_start_timeout`.
    pub timeout: Option<Duration>,
    /// How far it is.
    pub stage: Stage,
    /// When it reached that.
    pub since: Moment,
}

/// How far a restart is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing has been stopped.
    Asked,
    /// PostgreSQL is down; it is started as after a crash.
    Stopped,
}

/// A restart at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// When, as it was asked for.
    pub at: String,
    /// When it is really to be done.
    pub conditions: Conditions,
    /// How long the start may take.
    pub timeout: Option<Duration>,
    /// The postmaster that is meant: one that was started since is as good as restarted.
    pub postmaster_started: Option<i64>,
}

/// Another copy in the place of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reinitialize {
    /// Whether a person insists.
    pub insistence: Insistence,
    /// Whose data is copied.
    pub source: Source,
    /// Whether it has been accepted.
    pub stage: Accepted,
}

/// Whose data a copy is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A replica that offers itself (`clonefrom`), as for any other copy, or the leader's.
    Usual,
    /// The leader's: `from_leader`.
    Leader,
}

/// Whether a person insists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insistence {
    /// Only if it is safe and nothing else is under way.
    Careful,
    /// `force`.
    Forced,
}

impl Insistence {
    /// What `force` says; nothing where it could mean either.
    pub fn said(force: Option<&Value>) -> Option<Self> {
        Some(if means_yes(force)? { Self::Forced } else { Self::Careful })
    }
}

impl Source {
    /// What `from_leader` says; nothing where it could mean either.
    pub fn said(from_leader: Option<&Value>) -> Option<Self> {
        Some(if means_yes(from_leader)? { Self::Leader } else { Self::Usual })
    }
}

/// Patroni's words for yes and no, in any case, and 1 and 0. Nothing for anything else: it could mean either.
fn means_yes(said: Option<&Value>) -> Option<bool> {
    let word = match said {
        None | Some(Value::Null) => return Some(false),
        Some(Value::String(word)) => word.to_ascii_lowercase(),
        Some(other @ (Value::Bool(_) | Value::Number(_))) => other.to_string(),
        Some(Value::Array(_) | Value::Object(_)) => return None,
    };
    match word.as_str() {
        "true" | "on" | "yes" | "1" => Some(true),
        "false" | "off" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Whether an order has been accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Not yet.
    No,
    /// Whoever asked has been told.
    Yes,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// It is done (or, for a copy, begun).
    Done,
    /// The conditions do not hold.
    Conditions,
    /// Something else is under way.
    Busy(Job),
    /// PostgreSQL is starting.
    StillStarting,
    /// It was tried, and has failed.
    Failed,
    /// This node leads.
    Leads,
    /// Nobody leads.
    NoLeader,
    /// Too few whole copies would remain.
    TooFewCopies,
}

impl Orders {
    /// PostgreSQL has been stopped.
    pub fn stopped(&mut self, now: Moment) {
        if let Some(restart) = &mut self.restart {
            (restart.stage, restart.since) = (Stage::Stopped, now);
        }
    }

    /// A copy is complete: of the order for it the start is left, as of a restart.
    pub fn copied(&mut self, now: Moment) {
        if self.reinitialize.take().is_some() {
            let (conditions, timeout) = Default::default();
            self.restart = Some(Restart { conditions, timeout, stage: Stage::Stopped, since: now });
        }
    }

    /// Whether an order may start and stop PostgreSQL in maintenance mode, too.
    pub fn moves_postgres(&self) -> bool {
        self.restart.is_some() || self.reinitialize.is_some_and(|r| r.stage == Accepted::Yes)
    }

    /// The scheduled restart is an order from now on.
    pub fn take_up_schedule(&mut self, now: Moment) {
        if let Some(Scheduled { conditions, timeout, .. }) = self.scheduled.take() {
            self.restart = Some(Restart { conditions, timeout, stage: Stage::Asked, since: now });
        }
    }

    /// The order is settled.
    pub fn settle(&mut self, order: Order) {
        match order {
            Order::Restart => self.restart = None,
            Order::Reinitialize => self.reinitialize = None,
            Order::Reload => self.reload = None,
        }
    }
}

impl Scheduled {
    /// As it stands in the member key.
    pub fn to_json(&self) -> Value {
        let mut page = json!({ "schedule": self.at });
        let mut set = |key: &str, value: Value| {
            if let Some(page) = page.as_object_mut() {
                page.insert(key.to_owned(), value);
            }
        };
        if let Some(role) = self.conditions.role {
            set("role", json!(role));
        }
        if let Some((_, words)) = &self.conditions.older_than {
            set("postgres_version", json!(words));
        }
        if self.conditions.pending == Pending::Required {
            set("restart_pending", json!(true));
        }
        if let Some(timeout) = self.timeout {
            set("timeout", json!(timeout.as_secs()));
        }
        if let Some(at) = self.postmaster_started.and_then(|at| Timestamp::from_microsecond(at).ok()) {
            set("postmaster_start_time", json!(at.strftime("%Y-%m-%d %H:%M:%S%.6f+00:00").to_string()));
        }
        page
    }
}

/// When the loop must look at a scheduled restart.
pub fn next_deadline(view: &View) -> Option<Moment> {
    let scheduled = view.memory.orders.scheduled.as_ref()?;
    match manual::due(view, Some(&scheduled.at)) {
        Due::At(at) => Some(manual::moment_of(view, at)),
        Due::Now | Due::Past => None,
    }
}

/// What the orders ask for now; none when everything else goes on as it would.
pub fn decide(view: &View) -> Option<Decision> {
    let orders = &view.memory.orders;
    if view.phase == Phase::Stopping {
        return None;
    }
    if orders.reload.is_some() {
        let actions = vec![Action::Reload, Action::Settle(Order::Reload, Settled::Done)];
        return Some(Decision { actions, reason: Reason::Reloading, wake: NOW });
    }
    let due = orders.scheduled.as_ref().and_then(|s| schedule(view, s));
    due.or_else(|| orders.reinitialize.and_then(|order| reinitialize(view, order)))
        .or_else(|| orders.restart.as_ref().and_then(|order| restart(view, order)))
}

fn schedule(view: &View, scheduled: &Scheduled) -> Option<Decision> {
    let running = view.local.sql.as_ref().map(|answer| answer.started_at_micros);
    let another = running.is_some() && running != scheduled.postmaster_started;
    let action = match manual::due(view, Some(&scheduled.at)) {
        Due::At(_) if !another => return None,
        Due::Now if !another => Action::TakeUpSchedule,
        Due::At(_) | Due::Now | Due::Past => Action::DropSchedule,
    };
    Some(Decision { actions: vec![action], reason: Reason::Restarting, wake: NOW })
}

fn settle(order: Order, how: Settled) -> Option<Decision> {
    let reason = match order {
        Order::Restart => Reason::Restarting,
        Order::Reinitialize => Reason::Reinitializing,
        Order::Reload => Reason::Reloading,
    };
    Some(Decision { actions: vec![Action::Settle(order, how)], reason, wake: NOW })
}

fn restart(view: &View, order: &Restart) -> Option<Decision> {
    match order.stage {
        Stage::Asked => begin_restart(view, order),
        Stage::Stopped => end_restart(view, order),
    }
}

fn begin_restart(view: &View, order: &Restart) -> Option<Decision> {
    if let Some(job) = view.doing.map(|d| d.job).filter(|job| job.holds_postgres()) {
        // What it has announced is its own stop.
        return if job == Job::Stop && announced(view) {
            None
        } else {
            settle(Order::Restart, Settled::Busy(job))
        };
    }
    if view.now.since(order.since) > BEGUN_WITHIN {
        return settle(Order::Restart, Settled::Failed);
    }
    let act = |action| Some(Decision { actions: vec![action], reason: Reason::Restarting, wake: PROMPTLY });
    match view.instance() {
        Instance::Silent => settle(Order::Restart, Settled::StillStarting),
        Instance::Ending => None,
        // It is down: what is left of a restart is the start.
        Instance::Down => act(Action::RestartStopped),
        Instance::Primary(answer, _) | Instance::Standby(answer, _) => {
            if !holds(view, &order.conditions, answer) {
                return settle(Order::Restart, Settled::Conditions);
            }
            if !announced(view) {
                // The member key says so at the end of this tick.
                return Some(Decision { actions: vec![], reason: Reason::Restarting, wake: PROMPTLY });
            }
            let mode = StopMode::Fast { patience: patience(view) };
            act(Action::Begin(match view.instance() {
                Instance::Primary(..) => Task::StopAfterCheckpoint(mode),
                Instance::Standby(..) | Instance::Silent | Instance::Ending | Instance::Down => {
                    Task::Stop(mode)
                }
            }))
        }
    }
}

/// Whether the member key says `restarting`.
fn announced(view: &View) -> bool {
    let own = view.snapshot().and_then(|s| s.member(&view.me));
    own.is_some_and(|m| m.state == MemberState::Restarting)
}

/// How long a planned stop of this instance may take.
fn patience(view: &View) -> Duration {
    let limit = view.rules.primary_stop_timeout;
    let limited = view.rules.sync_mode != crate::types::SyncMode::Off && !limit.is_zero();
    if limited { limit.min(PLANNED_STOP) } else { PLANNED_STOP }
}

fn end_restart(view: &View, order: &Restart) -> Option<Decision> {
    let failed = view.memory.failures.get(&Job::Start).is_some_and(|f| f.last >= order.since);
    let late = view.now.since(order.since) > order.timeout.unwrap_or(view.rules.primary_start_timeout);
    match view.instance() {
        Instance::Primary(..) | Instance::Standby(..) => settle(Order::Restart, Settled::Done),
        Instance::Down | Instance::Silent | Instance::Ending if failed || late => {
            settle(Order::Restart, Settled::Failed)
        }
        Instance::Down | Instance::Silent | Instance::Ending => None,
    }
}

fn holds(view: &View, conditions: &Conditions, answer: &Answer) -> bool {
    let role = super::publish::role(view);
    conditions.role.is_none_or(|asked| asked == role)
        && conditions.older_than.as_ref().is_none_or(|(version, _)| answer.server_version < *version)
        && (conditions.pending == Pending::Any || !answer.pending_restart.is_empty())
}

fn reinitialize(view: &View, order: Reinitialize) -> Option<Decision> {
    let snapshot = view.snapshot()?;
    let leader = snapshot.leader_name();
    if view.lease != Lease::None || leader == Some(&view.me) {
        return settle(Order::Reinitialize, Settled::Leads);
    }
    let leader = leader.and_then(|name| snapshot.member(name)).and_then(upstream);
    let (None, Some(leader)) = (snapshot.leader.as_ref().and_then(|l| view.expired_leader(l)), leader) else {
        return match order.stage {
            Accepted::No => settle(Order::Reinitialize, Settled::NoLeader),
            Accepted::Yes => None,
        };
    };
    let busy = view.doing.map(|d| d.job).filter(|job| job.holds_postgres());
    let act = |task| {
        let reason = Reason::Reinitializing;
        Some(Decision {
            actions: vec![Action::Begin(task)],
            reason,
            wake: Wake::Soon(Duration::from_millis(100)),
        })
    };
    match (order.stage, busy, view.instance()) {
        (Accepted::No, Some(job), _) if order.insistence == Insistence::Careful => {
            settle(Order::Reinitialize, Settled::Busy(job))
        }
        (Accepted::No, _, _) if order.insistence == Insistence::Careful && !may_be_given_up(view) => {
            settle(Order::Reinitialize, Settled::TooFewCopies)
        }
        (Accepted::No, _, _) => Some(Decision {
            actions: vec![Action::AcceptReinitialize],
            reason: Reason::Reinitializing,
            wake: NOW,
        }),
        (Accepted::Yes, Some(Job::Stop | Job::Clone), _) => None,
        (Accepted::Yes, _, Instance::Down) if view.may_try(Job::Clone) => {
            act(Task::Clone(match order.source {
                Source::Usual => clone_source(view, leader),
                Source::Leader => leader,
            }))
        }
        (Accepted::Yes, _, Instance::Down) => None,
        (
            Accepted::Yes,
            _,
            Instance::Ending | Instance::Silent | Instance::Primary(..) | Instance::Standby(..),
        ) => act(Task::Stop(StopMode::Immediate)),
    }
}

/// Whether at least two whole copies remain. One that is not whole itself is no loss.
fn may_be_given_up(view: &View) -> bool {
    let whole_itself = match view.instance() {
        Instance::Standby(answer, _) => streams(answer),
        Instance::Primary(..) => true,
        Instance::Down | Instance::Silent | Instance::Ending => false,
    };
    !whole_itself || whole_others(view) >= 2
}

/// How many others run and have, or stream, everything.
fn whole_others(view: &View) -> usize {
    let whole = |m: &&Member| {
        let replicates = m.role == Role::Primary || m.replication_state == Some(ReplicationState::Streaming);
        m.name != view.me && m.state == MemberState::Running && replicates
    };
    view.snapshot().map_or(0, |s| s.members.iter().filter(whole).count())
}

/// Whether a copy that does not start is to be replaced: after many tries that no full or failing disk explains, while at
/// least two others are whole, and not again soon: what is wrong may not be the data.
pub(super) fn is_beyond_help(view: &View) -> bool {
    let n = view.n_failures(Job::Start);
    let fresh = view.memory.copied.is_some_and(|at| view.now.since(at) < COPY_AGAIN);
    n >= FAILED_STARTS && !fresh && !fitness::disk_is_to_blame(view) && whole_others(view) >= 2
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn force_is_said_in_patronis_words() {
        for (value, expected) in [
            (json!(null), Some(Insistence::Careful)),
            (json!(0), Some(Insistence::Careful)),
            (json!("Off"), Some(Insistence::Careful)),
            (json!(true), Some(Insistence::Forced)),
            (json!(1), Some(Insistence::Forced)),
            (json!("YES"), Some(Insistence::Forced)),
            (json!("maybe"), None),
            (json!(2), None),
        ] {
            assert_eq!(Insistence::said(Some(&value)), expected, "{value}");
        }
    }
}
