//! Failsafe: a primary outlives the store when every member that could replace it says that it will not. Pure.
//!
//! The fence of a primary is its lease: [`Lease::Held`] with the moment it was sent, the demotion and the deadman that
//! count from there. Failsafe moves that fence, and by evidence only: while the store is silent the leader asks every
//! member of the `failsafe` key, and an answer from *all* of them is worth as much as a renewal that was sent when the
//! question was.
//!
//! Why two nodes can never serve:
//!
//! 1. Nobody leads without the leader key, and whoever takes the key for a standby goes through the [`Promises`](super::promises).
//! 2. An acceptance is a promise: from its arrival on, for a TTL, that member's `Promises` let nobody take the key. It arrives
//!    after the question was sent, so it ends no earlier than the leader's own right, which counts from the sending, with the
//!    margin that covers the drift of clocks in a lease. A member that is taking the key at that moment refuses; the promise
//!    and its length are on disk before it is given, so a restart does not forget it.
//! 3. A node that is not in the `failsafe` key of the store takes no key ([`barred`]). Only the leader writes it, and
//!    asks the members of what it read last *and* of all that it has tried to write since, so nobody who could lead is left out.
//!    That holds as long as the key stands, also when the mode was turned off meanwhile: a leader that does not see the store does
//!    not see that either. The way out is a person's word that the leader is gone: a failover that names the node.
//! 4. The first question is sent while the lease is good. Before the store could give the key to anybody else the leader has
//!    either every promise or has stopped; and then the same holds from one round to the next.
//! 5. A promise ends with its time, or with its leader: when the key is gone and the store says that everything ended with the
//!    leader that asked, after it asked ([`super::promises::Promise::is_over`]). A leader says so only when its server is down.
//! 6. A question that not everybody has answered with yes gives its leader nothing, and never will: the leader says so, and whoever
//!    has promised something in answer is bound by what bound it before ([`super::promises::Promises::withdraw`]). The
//!    questions before it, on which the leader may go on, are not touched by that.
//! 7. When the store is back and the key is gone, the leader takes it again as anybody would: if it is vacant. If it is
//!    another's it stops, whatever it was promised.
//!
//! A member that is silent, refuses, leads, or sees another leader ends the failsafe: the primary then stops as it would
//! without it. So failsafe helps against the loss of the *store*, not against a cut between the nodes. (Patroni's rule; the
//! promise is ours, and binds only members of ours. A stock member of the same scope asks the leader itself before it
//! takes the key, and finds that it is still alive.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Moment;
use crate::dcs::{Failsafe, Precondition, Role, Snapshot};
use crate::types::{Lsn, NodeId, NodeName, SlotName};

use super::manual;
use super::pause;
use super::reason::{Action, Decision, Reason, Wake};
use super::rules::Outlast;
use super::view::{Instance, Job, Lease, Store, View, demote_margin};

/// How often the members are asked while the store is silent: several times within the shortest lease.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Once the lease is what its silence costs, the store is waited for no longer than this part of the time until then: a loop
/// that waits asks nobody. Four such waits fit into what is left of the lease.
const BRIEFLY: u32 = 4;

/// What the leader knows of the failsafe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roll {
    /// The key as last read.
    stored: Failsafe,
    /// Everybody in every version that this node has tried to write and has not read back.
    tried: Failsafe,
    /// The last of those versions. Each is written over the one before by its revision, so that with this one read back none
    /// of the others can arrive any more.
    last: Option<Failsafe>,
    /// When the members were last asked, and whether the round still runs.
    asked: Option<(Moment, Round)>,
    /// What came of the last round.
    pub outcome: Option<Outcome>,
    /// How far those were who last said so with their promise.
    pub positions: BTreeMap<NodeName, Lsn>,
}

/// Whether a round of questions still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Open,
    Closed,
}

/// What others see of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// The rule in force.
    pub mode: Outlast,
    /// Whether it keeps somebody in office right now.
    pub activity: Activity,
}

/// Whether a failsafe is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// The store is there.
    #[default]
    Idle,
    /// This node leads on the promises of others, or has promised.
    Active,
}

/// What the status page says.
pub(super) fn facts(view: &View) -> Facts {
    let silent = matches!(view.store, Store::Silent { .. });
    let outlasts = silent && view.leads() && view.memory.roll.outcome == Some(Outcome::Agreed);
    let activity = if outlasts || view.memory.promised.is_some() { Activity::Active } else { Activity::Idle };
    Facts { mode: view.rules.outlast, activity }
}

/// What came of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every member has promised.
    Agreed,
    /// These have not.
    Refused(Vec<NodeName>),
}

/// `POST /failsafe`: what a leader tells the others when it asks them; `DELETE /failsafe` withdraws that question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Who leads.
    pub name: NodeName,
    /// Its `conn_url`.
    #[serde(default)]
    pub conn_url: String,
    /// Its `api_url`.
    #[serde(default)]
    pub api_url: String,
    /// Positions of slots, its own included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<BTreeMap<SlotName, Lsn>>,
    /// For how many seconds it counts on the promise (ours; a stock leader counts on the cluster's `ttl`).
    #[serde(default, rename = "pgherd_ttl", skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Whose volume it is, for whoever follows this leader (ours; a stock leader does not say).
    #[serde(default, rename = "pgherd_node_id", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// Who is asked: another node may have come to the address that the store has (ours; a stock leader does not say).
    #[serde(default, rename = "pgherd_to", skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeName>,
    /// Which of this leader's questions it is, so that it can be withdrawn (ours).
    #[serde(default, rename = "pgherd_question", skip_serializing_if = "Option::is_none")]
    pub question: Option<u64>,
}

impl Ping {
    /// Of a leader of which nothing else is known.
    pub fn of(name: NodeName) -> Self {
        Self {
            name,
            conn_url: String::new(),
            api_url: String::new(),
            slots: None,
            ttl: None,
            node_id: None,
            to: None,
            question: None,
        }
    }

    /// Where the leader's primary is.
    pub fn position(&self) -> Option<Lsn> {
        self.slots.as_ref()?.get(&self.name.slot_name()).copied()
    }
}

impl Roll {
    /// Takes in a snapshot.
    pub fn saw_store(&mut self, snapshot: &Snapshot) {
        self.stored = snapshot.failsafe.as_ref().map(|f| f.value.clone()).unwrap_or_default();
        if self.last.as_ref() == Some(&self.stored) {
            (self.tried, self.last) = (Failsafe::new(), None);
        }
        self.positions.clear();
    }

    /// The key is about to be written: from now on everybody in it must be asked too, whether the write arrives or not.
    pub fn writes(&mut self, members: &Failsafe) {
        self.tried.extend(members.clone());
        self.last = Some(members.clone());
    }

    /// A round has been begun.
    pub fn ask(&mut self, at: Moment) {
        self.asked = Some((at, Round::Open));
    }

    /// The round that was begun at this moment has ended: who has promised, and what that comes to.
    pub fn hear(&mut self, asked: Moment, me: &NodeName, promised: &BTreeSet<NodeName>) -> Outcome {
        self.asked = Some((asked, Round::Closed));
        let missing: Vec<_> = self.others(me).into_keys().filter(|name| !promised.contains(name)).collect();
        let agreed = missing.is_empty() && self.stored.contains_key(me);
        let outcome = if agreed { Outcome::Agreed } else { Outcome::Refused(missing) };
        self.outcome.insert(outcome).clone()
    }

    /// Whom to ask, with their `api_url`.
    pub fn others(&self, me: &NodeName) -> Failsafe {
        self.stored
            .iter()
            .chain(&self.tried)
            .filter(|(name, _)| *name != me)
            .map(|(n, u)| (n.clone(), u.clone()))
            .collect()
    }
}

/// The key that a leader keeps: every member, so that nobody who could lead is left out; none when the mode is off.
pub(super) fn key(view: &View, snapshot: &Snapshot) -> Option<Action> {
    let stored = snapshot.failsafe.as_ref();
    match (view.rules.outlast, stored) {
        (Outlast::Never, Some(stored)) => Some(Action::DeleteFailsafe(stored.revision)),
        (Outlast::Never, None) => None,
        (Outlast::AllAgree, stored) => {
            let wanted: Failsafe =
                snapshot.members.iter().map(|m| (m.name.clone(), m.api_url.clone())).collect();
            // What was tried is settled by a version that is read back.
            let news = stored.is_none_or(|stored| stored.value != wanted) || view.memory.roll.last.is_some();
            let when = stored.map_or(Precondition::Absent, |s| Precondition::Unchanged(s.revision));
            (news && wanted.contains_key(&view.me)).then_some(Action::PutFailsafe(wanted, when))
        }
    }
}

/// How long the loop may wait for the store, of the time that it has: a leader that can outlast it looks up when half of its
/// lease is over, for then it is time to ask the members.
pub fn patience(lease: Lease, mode: Outlast, now: Moment, usual: Duration) -> Duration {
    match (lease, mode) {
        (Lease::Held { sent, ttl }, Outlast::AllAgree) => {
            usual.min(now.until(sent + asks_after(ttl)).max(asks_after(ttl) / BRIEFLY))
        }
        (Lease::Held { .. }, Outlast::Never) | (Lease::None | Lease::Lost, _) => usual,
    }
}

/// The age of a lease at which the members are asked, whatever the store says.
fn asks_after(ttl: Duration) -> Duration {
    (ttl - demote_margin(ttl)) / 2
}

/// A leader whose store is silent also asks the members, whatever else it does. In maintenance mode nobody is asked: the
/// primary goes on without.
pub(super) fn also_ask(view: &View, mut decision: Decision) -> Decision {
    let roll = &view.memory.roll;
    let Lease::Held { sent, ttl } = view.lease else { return decision };
    let silent = matches!(view.store, Store::Silent { .. });
    // A store that can be read and not be written renews no lease either.
    let ages = view.now.since(sent) >= asks_after(ttl);
    // A promise that is asked for during a hand-over would bind the heir.
    let leaves = |job| matches!(job, Job::Stop | Job::HandOver);
    let ends = view.doing.is_some_and(|d| leaves(d.job)) || view.phase == super::Phase::Stopping;
    if !(silent || ages)
        || !view.leads()
        || ends
        || view.rules.outlast == Outlast::Never
        || pause::is_on(view)
        || !roll.stored.contains_key(&view.me)
    {
        return decision;
    }
    let due = roll.asked.is_none_or(|(at, round)| round == Round::Closed && view.now.since(at) >= ASK_EVERY);
    if due {
        // First: whatever else is done may wait for the store.
        decision.actions.insert(0, Action::AskMembers);
    }
    if matches!(decision.reason, Reason::StoreSilent(_)) && matches!(view.instance(), Instance::Primary(..)) {
        decision.wake = Wake::Soon(ASK_EVERY);
        decision.reason = match &roll.outcome {
            None => decision.reason,
            Some(Outcome::Agreed) => Reason::Outlasting(roll.others(&view.me).into_keys().collect()),
            Some(Outcome::Refused(who)) => Reason::NotAllowedToOutlast(who.clone()),
        };
    }
    decision
}

/// Why this node may not take the key: a promise binds it, or the leader does not know that it would have to be asked.
pub(super) fn barred(view: &View, snapshot: &Snapshot) -> Option<Reason> {
    if let Some(promise) = view.memory.promised.as_ref().filter(|promise| view.now < promise.until) {
        return Some(Reason::Promised(promise.leader.clone()));
    }
    if manual::is_forced(view, snapshot) {
        return None;
    }
    let key = snapshot.failsafe.as_ref().filter(|key| !key.value.is_empty())?;
    (!key.value.contains_key(&view.me)).then_some(Reason::NotInFailsafe)
}

/// Why a leader's question is answered with no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Failsafe mode is off here.
    Off,
    /// The question is for another member, which is not at this address any more.
    NotMeant,
    /// This node leads itself.
    Leading,
    /// This node knows another leader.
    AnotherLeads(NodeName),
    /// This node is taking the leader key at this moment, or may have taken it.
    Standing,
    /// It asks for longer than anybody is promised anything.
    TooLong,
    /// The promise could not be written down.
    NotWritten,
}

/// What this node answers to a leader's question as far as its own view goes; [`Promises`](super::promises) have the last word.
///
/// # Errors
/// Why not.
pub fn may_promise(status: &super::Status, ping: &Ping, now: Moment) -> Result<(), Refusal> {
    // A node that has just started does not know the cluster's configuration: its promise costs nothing.
    if status.failsafe.mode == Outlast::Never && status.snapshot.is_some() {
        return Err(Refusal::Off);
    }
    if ping.to.as_ref().is_some_and(|asked| *asked != status.name) {
        return Err(Refusal::NotMeant);
    }
    let leads = status.lease_until.is_some_and(|until| now < until);
    let writable = status.postgres.sql.as_ref().is_some_and(|answer| match answer.kind {
        crate::postgres::status::Kind::Primary { .. } => true,
        crate::postgres::status::Kind::Standby { .. } => false,
    });
    if leads || writable || status.role == Role::Promoted {
        return Err(Refusal::Leading);
    }
    // What the store said a while ago is no reason: its leader may be the one that asks, or gone.
    let recent = status.snapshot.as_ref().filter(|s| now.since(s.taken) < status.timing.ttl / 2);
    match recent.and_then(Snapshot::leader_name) {
        Some(leader) if *leader != ping.name => Err(Refusal::AnotherLeads(leader.clone())),
        Some(_) | None => Ok(()),
    }
}
