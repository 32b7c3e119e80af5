//! What an operator asks of the leadership (the `failover` key): at the leader, and in a race.
//!
//! Invariant: a leader stops for a request only when somebody fit has answered, and gives the lock up only when that one has
//! everything that was ever written (its shutdown checkpoint included); otherwise it starts again as the primary. What the
//! leader left behind is written beside its position ([`Shutdown`]), so that whoever has it needs no vote. Only a failover
//! to a named member, in a cluster that nobody leads, may lose what was acknowledged: a person has decided that.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::clock::Moment;
use crate::dcs::{Claim, Failover, Member, ReplicationState, Shutdown, Snapshot, Versioned};
use crate::postgres::status::{Answer, Control, ControlState, Kind};
use crate::types::{Lsn, NodeName, Revision, SyncMode, Timeline};

use super::lead::NOW;
use super::race::{active_sync, ahead};
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::rules::Pause;
use super::sync::Electors;
use super::tags::{self, Streaming, Tags};
use super::view::{Candidate, Eligibility, Job, POLL_AGE, Poll, PollAnswer, View};

/// A standby that may have to take over looks so often: its position is what the leader that stops waits for.
const ALERT: Wake = Wake::Soon(Duration::from_millis(20));
/// A walreceiver that has lost its connection tries again after `wal_retrieve_retry_interval`, five seconds: time for a second try.
const RECONNECTS: Duration = Duration::from_secs(10);
/// Bytes of a shutdown checkpoint's record after its start: a header of 24, 2, and a body of at least 88. What comes after
/// it (alignment, a page header) holds nothing.
const CHECKPOINT_RECORD: u64 = 114;

/// A stop for a request, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    /// The revision of the request.
    pub request: Revision,
    /// Whether somebody has everything.
    pub end: HandOverEnd,
}

/// How the stop of a leader that was to hand over ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandOverEnd {
    /// This member has everything, the shutdown checkpoint included.
    Reached(NodeName),
    /// Nobody was seen to have it in time, or it was no clean shutdown; in words.
    Missed(String),
}

/// Why a request is not carried out; the key is then cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Its time has passed by more than one and a half `loop_wait`, or cannot be read.
    Stale,
    /// It names another leader.
    NotTheLeader(NodeName),
    /// It names this node as the candidate.
    AlreadyLeads,
    /// It names nobody, which is not enough in maintenance mode.
    NobodyNamed,
    /// Nobody can take over: each member, and what is wrong with it.
    NobodyFit(Vec<(NodeName, Unfit)>),
    /// It was tried: nobody had everything in time.
    Missed(String),
}

/// Why a member cannot take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// It does not answer, or no PostgreSQL runs there.
    Silent,
    /// Tagged `nofailover`.
    NoFailover,
    /// It must be guarded by a watchdog to lead, and cannot be.
    Unguarded,
    /// It is no synchronous standby.
    NotSynchronous,
    /// It is so many bytes behind.
    Lag(u64),
    /// It is on another timeline.
    OtherTimeline,
    /// It does not stream: it would miss the end.
    NotStreaming,
    /// Tagged `nostream`: the shutdown checkpoint, which is in no archive, never reaches it.
    NoStream,
}

/// When a request is to be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Now.
    Now,
    /// At this time.
    At(Timestamp),
    /// It was to be carried out some time ago, or nobody knows when.
    Past,
}

/// When something scheduled (or not) is due. What is late by more than one and a half `loop_wait` is not done any more:
/// nobody expects it then.
pub fn due(view: &View, scheduled: Option<&str>) -> Due {
    let Some(text) = scheduled else { return Due::Now };
    let Ok(at) = text.parse::<Timestamp>() else { return Due::Past };
    match Duration::try_from(view.wall.duration_since(at)) {
        Err(_not_yet) => Due::At(at),
        Ok(late) if late > view.rules.timing.loop_wait.mul_f64(1.5) => Due::Past,
        Ok(_) => Due::Now,
    }
}

/// A moment of the wall clock on this node's own clock, as long as nobody sets the wall clock: the loop looks again then.
pub fn moment_of(view: &View, at: Timestamp) -> Moment {
    view.now + Duration::try_from(at.duration_since(view.wall)).unwrap_or_default()
}

/// When the loop must look at a scheduled request.
pub fn next_deadline(view: &View) -> Option<Moment> {
    let request = view.snapshot()?.failover.as_ref()?;
    match due(view, request.value.scheduled_at.as_deref()) {
        Due::At(at) => Some(moment_of(view, at)),
        Due::Now | Due::Past => None,
    }
}

/// A request that is to be carried out now.
fn current<'a>(view: &View, snapshot: &'a Snapshot) -> Option<&'a Versioned<Failover>> {
    let request = snapshot.failover.as_ref()?;
    (due(view, request.value.scheduled_at.as_deref()) == Due::Now).then_some(request)
}

/// What a leading primary does about a request; none when there is none to act on.
pub fn at_leader(view: &View, snapshot: &Snapshot, answer: &Answer) -> Option<Decision> {
    let request = snapshot.failover.as_ref()?;
    match judged(view, snapshot, answer, request) {
        Verdict::Waits => None,
        Verdict::Ask => Some(ask(view)),
        Verdict::Refused(refusal) => Some(Decision {
            actions: vec![Action::ClearFailover(request.revision)],
            reason: Reason::RequestRefused(refusal),
            wake: NOW,
        }),
        Verdict::HandOver(to) => {
            let names = to.iter().cloned().collect();
            let actions = vec![Action::Begin(Task::HandOver { to, request: request.revision })];
            Some(Decision { actions, reason: Reason::HandingOver(names), wake: NOW })
        }
    }
}

/// What is to be made of a request.
pub(super) enum Verdict {
    Waits,
    Ask,
    Refused(Refusal),
    HandOver(BTreeSet<NodeName>),
}

/// What is to be made of a request, at whoever leads.
pub(super) fn judged(
    view: &View,
    snapshot: &Snapshot,
    answer: &Answer,
    request: &Versioned<Failover>,
) -> Verdict {
    let Versioned { value, revision } = request;
    match due(view, value.scheduled_at.as_deref()) {
        Due::At(_) => return Verdict::Waits,
        Due::Past => return Verdict::Refused(Refusal::Stale),
        Due::Now => {}
    }
    if let Some(name) = value.leader.as_ref().filter(|name| **name != view.me) {
        return Verdict::Refused(Refusal::NotTheLeader(name.clone()));
    }
    if value.member.as_ref() == Some(&view.me) {
        return Verdict::Refused(Refusal::AlreadyLeads);
    }
    if value.member.is_none() && view.rules.pause == Pause::On {
        return Verdict::Refused(Refusal::NobodyNamed);
    }
    match view.memory.handover.as_ref().filter(|tried| tried.request == *revision) {
        Some(HandOver { end: HandOverEnd::Missed(why), .. }) => {
            return Verdict::Refused(Refusal::Missed(why.clone()));
        }
        // The lock could not be given up while the target had everything: now this node has written more.
        Some(HandOver { end: HandOverEnd::Reached(_), .. }) => {
            return Verdict::Refused(Refusal::Missed("the lock could not be given back".to_owned()));
        }
        None => {}
    }
    let Some(poll) = view.memory.poll.as_ref().filter(|poll| view.now.since(poll.at) < POLL_AGE) else {
        return Verdict::Ask;
    };
    match successors(view, snapshot, answer, (value, poll)) {
        Ok(to) => Verdict::HandOver(to),
        Err(unfit) if is_waited_for(view, *revision, &unfit) => Verdict::Ask,
        Err(unfit) => Verdict::Refused(Refusal::NobodyFit(unfit)),
    }
}

/// A restart of the leader cuts off everybody, and they come back by themselves.
fn is_waited_for(view: &View, request: Revision, unfit: &[(NodeName, Unfit)]) -> bool {
    let asked = view.memory.requested.filter(|(revision, _)| *revision == request);
    let patient = asked.is_none_or(|(_, since)| view.now.since(since) < RECONNECTS);
    patient && unfit.iter().any(|(_, why)| *why == Unfit::NotStreaming)
}

/// The request that is to be carried out now.
pub(super) fn request_of(view: &View) -> Option<Revision> {
    current(view, view.snapshot()?).map(|request| request.revision)
}

/// The others are asked how far they are.
pub(super) fn ask(view: &View) -> Decision {
    let actions = if view.may_try(Job::Poll) { vec![Action::Begin(Task::Poll)] } else { vec![] };
    Decision { actions, reason: Reason::AskingSuccessors, wake: Wake::Soon(Duration::from_millis(100)) }
}

/// Who can take over from this leader, or what is wrong with each.
fn successors(
    view: &View,
    snapshot: &Snapshot,
    answer: &Answer,
    (request, poll): (&Failover, &Poll),
) -> Result<BTreeSet<NodeName>, Vec<(NodeName, Unfit)>> {
    let asked_for = |m: &&Member| m.name != view.me && request.member.as_ref().is_none_or(|n| *n == m.name);
    let (mut fit, mut unfit) = (BTreeSet::new(), Vec::new());
    for member in snapshot.members.iter().filter(asked_for) {
        match fitness(view, snapshot, answer, (request, poll, member)) {
            Ok(()) => {
                fit.insert(member.name.clone());
            }
            Err(why) => unfit.push((member.name.clone(), why)),
        }
    }
    if fit.is_empty() { Err(unfit) } else { Ok(fit) }
}

fn fitness(
    view: &View,
    snapshot: &Snapshot,
    answer: &Answer,
    (request, poll, member): (&Failover, &Poll, &Member),
) -> Result<(), Unfit> {
    if priority(member) == 0 {
        return Err(Unfit::NoFailover);
    }
    // In quorum mode anybody may be elected, and a failover (by its nature) may go to anybody who has everything.
    let electors = active_sync(view, snapshot).map(Electors::of).unwrap_or_default();
    let named_only = view.rules.sync_mode == SyncMode::On && !electors.voters.is_empty();
    if named_only && request.leader.is_some() && !electors.voters.contains(&member.name) {
        return Err(Unfit::NotSynchronous);
    }
    let candidate = match poll.answers.get(&member.name) {
        Some(PollAnswer::Standby(candidate)) => candidate,
        Some(PollAnswer::Primary | PollAnswer::Down | PollAnswer::Unreachable) | None => {
            return Err(Unfit::Silent);
        }
    };
    match candidate.eligibility {
        Eligibility::NoFailover => return Err(Unfit::NoFailover),
        Eligibility::Unguarded => return Err(Unfit::Unguarded),
        Eligibility::Eligible => {}
    }
    if candidate.timeline != answer.timeline {
        return Err(Unfit::OtherTimeline);
    }
    if Streaming::of(&member.tags) == Streaming::Never {
        return Err(Unfit::NoStream);
    }
    if !receives(snapshot, answer, member) {
        return Err(Unfit::NotStreaming);
    }
    let lag = lag(answer, member, candidate);
    if lag > view.rules.maximum_lag_on_failover { Err(Unfit::Lag(lag)) } else { Ok(()) }
}

/// Whether what this leader writes reaches a member as it is written: from here, or through members that stream from here. For a
/// standby leader nothing is stopped, so it does not matter.
fn receives(snapshot: &Snapshot, answer: &Answer, member: &Member) -> bool {
    let Kind::Primary { standbys, .. } = &answer.kind else { return true };
    let from_here = |m: &Member| standbys.iter().any(|s| s.name == m.name && s.state == "streaming");
    let mut at = Some(member);
    // Members that feed each other in a circle are fed by nobody.
    for _hop in &snapshot.members {
        let Some(member) = at else { return false };
        if from_here(member) {
            return true;
        }
        let streams = member.replication_state == Some(ReplicationState::Streaming);
        let feeder = tags::replicate_from(&member.tags).filter(|_| streams);
        at = feeder.and_then(|name| snapshot.member(&name));
    }
    false
}

/// How far a candidate is behind: by what the primary sees of it, since its own answer is from its last look.
fn lag(answer: &Answer, member: &Member, candidate: &Candidate) -> u64 {
    let (lsn, standbys) = match &answer.kind {
        Kind::Primary { lsn, standbys } => (lsn, standbys),
        Kind::Standby { received, replayed, .. } => {
            return received.max(replayed).bytes_ahead_of(candidate.position);
        }
    };
    let flushed = standbys.iter().filter(|s| s.name == member.name).filter_map(|s| s.flushed).max();
    lsn.bytes_ahead_of(candidate.position.max(flushed.unwrap_or_default()))
}

/// A member's effective `failover_priority`: 0 when it must not lead.
pub fn priority(member: &Member) -> u32 {
    Tags::from_json(&member.tags).failover_priority
}

/// Down, with the lock, after a stop for a request: give the lock up if somebody has everything and the request still stands.
pub fn after_stop(view: &View, snapshot: &Snapshot, control: &Control) -> Option<Decision> {
    let tried = view.memory.handover.as_ref()?;
    let stands = snapshot.failover.as_ref().is_some_and(|request| request.revision == tried.request);
    match &tried.end {
        HandOverEnd::Reached(name) if stands => Some(Decision {
            actions: left_behind(view, control).into_iter().chain([Action::Release]).collect(),
            reason: Reason::HandedOver(name.clone()),
            wake: NOW,
        }),
        HandOverEnd::Reached(_) | HandOverEnd::Missed(_) => None,
    }
}

/// What a primary that was shut down cleanly leaves behind; to be written before the lock is given up.
pub fn left_behind(view: &View, control: &Control) -> Option<Action> {
    let end = end_of_shutdown(control).filter(|_| view.leads())?;
    let shutdown = Shutdown { leader: view.me.clone(), timeline: control.timeline, end };
    Some(Action::PutShutdown(control.checkpoint, shutdown))
}

/// Up to where a standby must have received to have everything of a primary that was shut down cleanly.
pub fn end_of_shutdown(control: &Control) -> Option<Lsn> {
    match control.state {
        ControlState::ShutDown => Some(Lsn(control.checkpoint.0.saturating_add(CHECKPOINT_RECORD))),
        ControlState::StartingUp
        | ControlState::ShutDownInRecovery
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InArchiveRecovery
        | ControlState::InProduction
        | ControlState::Unknown => None,
    }
}

/// Whether this standby has everything that the last leader left behind when it gave the lock up: nobody can be ahead of it
/// then, and no vote is needed. Not for whoever another member comes before.
pub fn inherits(view: &View, snapshot: &Snapshot, claim: Claim, mine: (Timeline, Lsn)) -> bool {
    let Some(shutdown) = snapshot.status.as_ref().and_then(|s| s.value.shutdown.as_ref()) else {
        return false;
    };
    // A leader that came after it has closed the `sync` key before it could write.
    let latest =
        active_sync(view, snapshot).is_none_or(|sync| sync.leader.as_ref() == Some(&shutdown.leader));
    let whole = shutdown.timeline == mine.0 && mine.1 >= shutdown.end;
    claim == Claim::Vacant && latest && whole && comes_first(view, snapshot)
}

fn comes_first(view: &View, snapshot: &Snapshot) -> bool {
    let request = current(view, snapshot).map(|request| &request.value);
    if let Some(candidate) = request.and_then(|r| r.member.as_ref()) {
        return *candidate == view.me;
    }
    if request.is_some_and(|r| r.leader.as_ref() == Some(&view.me)) {
        return false;
    }
    let of = |member: &Member| (member.name != view.me).then(|| priority(member));
    let own = snapshot.member(&view.me).map_or(1, priority);
    snapshot.members.iter().filter_map(of).all(|other| other <= own)
}

/// Whether a person has named this node for a failover that nobody leads any more: it then leads whatever it lacks.
pub fn is_forced(view: &View, snapshot: &Snapshot) -> bool {
    let named =
        |r: &Versioned<Failover>| r.value.leader.is_none() && r.value.member.as_ref() == Some(&view.me);
    current(view, snapshot).is_some_and(named)
}

/// Whether a request that is to be carried out names this node.
pub fn names(view: &View, snapshot: &Snapshot) -> bool {
    current(view, snapshot).is_some_and(|r| r.value.member.as_ref() == Some(&view.me))
}

/// Whether the leader that is to be replaced has stopped, and said up to where it went.
pub fn has_left(view: &View, snapshot: &Snapshot) -> bool {
    let left = snapshot.status.as_ref().and_then(|s| s.value.shutdown.as_ref()).map(|end| &end.leader);
    left.is_some() && current(view, snapshot).and_then(|r| r.value.leader.as_ref()) == left
}

/// Whether somebody has asked for another leader: lag then is no reason to stay behind.
pub fn is_requested(view: &View, snapshot: &Snapshot) -> bool {
    current(view, snapshot).is_some()
}

/// To whom this node leaves the lead because a request says so. Only ever to a member that can win, and not for long: it may
/// lack votes that only it knows of, and a request is not worth an outage.
pub fn yields_to(view: &View, snapshot: &Snapshot, poll: &Poll, mine: (Timeline, Lsn)) -> Option<NodeName> {
    let patience = view.rules.timing.retry_timeout;
    if view.memory.frozen.is_some_and(|since| view.now.since(since) >= patience) {
        return None;
    }
    let request = &current(view, snapshot)?.value;
    // With an empty set nobody but the last leader can win.
    let elected = |name: &NodeName| {
        active_sync(view, snapshot)
            .is_none_or(|sync| Electors::of(sync).voters.contains(name) || sync.leader.as_ref() == Some(name))
    };
    let can_win = |name: &NodeName| match poll.answers.get(name) {
        Some(PollAnswer::Standby(other)) => {
            let forced = request.leader.is_none() && request.member.as_ref() == Some(name);
            other.eligibility == Eligibility::Eligible
                && (forced
                    || (elected(name) && (ahead(other, mine) || (other.timeline, other.position) == mine)))
        }
        Some(PollAnswer::Primary | PollAnswer::Down | PollAnswer::Unreachable) | None => false,
    };
    let named = request.member.iter().find(|name| **name != view.me && can_win(name)).cloned();
    let asked_to_go = request.leader.as_ref() == Some(&view.me);
    named.or_else(|| poll.answers.keys().find(|name| asked_to_go && can_win(name)).cloned())
}

/// How soon a standby of a leader looks again: at once and often while the leader may be stopping for it.
pub fn alertness(view: &View, snapshot: &Snapshot) -> Wake {
    let request = current(view, snapshot).map(|request| &request.value);
    let meant = request.is_some_and(|r| r.member.as_ref().is_none_or(|name| *name == view.me));
    if meant { ALERT } else { Wake::Loop }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale => f.write_str("its time has passed"),
            Self::NotTheLeader(name) => write!(f, "it names the leader {name}, who does not lead"),
            Self::AlreadyLeads => f.write_str("the candidate leads already"),
            Self::NobodyNamed => f.write_str("it names no candidate, and the cluster is paused"),
            Self::NobodyFit(who) if who.is_empty() => f.write_str("there is no such member"),
            Self::NobodyFit(who) => {
                let list: Vec<_> = who.iter().map(|(name, why)| format!("{name} {why}")).collect();
                f.write_str(&list.join(", "))
            }
            Self::Missed(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("does not answer as a standby"),
            Self::NoFailover => f.write_str("is tagged nofailover"),
            Self::Unguarded => f.write_str("has no watchdog that it could lead with"),
            Self::NotSynchronous => f.write_str("is no synchronous standby"),
            Self::Lag(bytes) => write!(f, "is {bytes} bytes behind"),
            Self::OtherTimeline => f.write_str("is on another timeline"),
            Self::NotStreaming => f.write_str("does not stream"),
            Self::NoStream => f.write_str("is tagged nostream"),
        }
    }
}
