//! What to do now: one pure function over the [`View`], its rules in the order of their weight.
//!
//! Safety first (a primary without a lease stops), then a stop that was asked for, then whoever leads, then whoever
//! follows, then nobody leading. It never fails and never waits: for every View there is a Decision, at worst one that
//! does nothing and says why.

use std::time::Duration;

use crate::dcs::{Claim, Initialize, Leader, MemberState, Readiness, Role, Snapshot};
use crate::postgres::settings::Divergence;
use crate::postgres::status::{Answer, Control, DataDir};
use crate::postgres::{StartAs, StopMode, Upstream};
use crate::record::Bootstrap;
use crate::types::Lsn;

use super::Phase;
use super::adoption::{self, Founding};
use super::door;
use super::failsafe;
use super::fitness;
use super::lead::{self, NOW, PROMPTLY};
use super::leaving::awaits_dismissal;
use super::lineage::{self, Kin, Lineage};
use super::manual;
use super::orders;
use super::pause;
use super::race::{led_since, race};
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::remote;
use super::reserve;
use super::rules::{Mode, Unled};
use super::silence;
use super::turn;
use super::upstreams::{self, clone_source, feeder};
use super::view::{Ancestry, Instance, Job, Lease, Name, Store, UpstreamWal, View, upstream};
use super::watchdog;

/// A primary whose lease is ending gets this long for a clean shutdown (it then needs no rewind); it ends before the
/// deadman's moment with the immediate one that follows.
const DEMOTE_PATIENCE: Duration = Duration::from_secs(1);
/// A stop that was asked for gets this long before it becomes an immediate one.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(4);
/// A survey is good for this long.
const SURVEY_AGE: Duration = Duration::from_secs(5);
/// A standby that does not stream for this long compares its history with the leader's.
pub(super) const STALLED: Duration = Duration::from_secs(2);
/// After this many failed rewinds the data is copied anew (the old directory is kept aside).
pub(super) const REWINDS: u32 = 2;
/// A standby that was told that its WAL is gone, and has not streamed for this long, is copied anew.
const STARVED: Duration = Duration::from_secs(60);
/// For what becomes known within moments.
const HALF_A_SECOND: Duration = Duration::from_millis(500);

/// The decision for this view.
pub fn decide(view: &View) -> Decision {
    match view.phase {
        Phase::Serving => {
            let decision = door::also_mind(view, pause::gate(view, failsafe::also_ask(view, ungated(view))));
            reserve::also_keep(view, watchdog::also_guard(view, decision))
        }
        Phase::Stopping => watchdog::also_guard(view, ungated(view)),
    }
}

fn ungated(view: &View) -> Decision {
    let first = fence(view).filter(|_| !pause::is_on(view)).or_else(|| lapsed(view));
    if let Some(decision) = first.or_else(|| fitness::stop_hangs(view)).or_else(|| orders::decide(view)) {
        return decision;
    }
    match (view.phase, view.doing.map(|d| d.job)) {
        (Phase::Stopping, Some(Job::Stop)) => idle(Reason::Busy(Job::Stop), Wake::Loop),
        // Whatever else is under way gives way to a stop: a half-made copy is marked as such.
        (Phase::Stopping, _) => stopping(view),
        // A comparison with a leader that is gone must not hold up the vote.
        (Phase::Serving, Some(Job::Compare)) if leaderless(view) => serving(view),
        // Nor must a copy of its slots, as long as the server was not stopped for it.
        (Phase::Serving, Some(Job::CopySlots))
            if leaderless(view) && matches!(view.instance(), Instance::Standby(..)) =>
        {
            serving(view)
        }
        // Nor does a question whose answer is of no use any more.
        (Phase::Serving, Some(Job::Approval)) if view.lease == Lease::None => serving(view),
        (Phase::Serving, Some(job)) => idle(Reason::Busy(job), Wake::Loop),
        (Phase::Serving, None) => serving(view),
    }
}

/// A primary, or what may be one, that has no right to go on. This rule stands above everything else.
fn fence(view: &View) -> Option<Decision> {
    let writable = match view.instance() {
        Instance::Primary(..) => true,
        // It may come up as a primary: what the store says of another leader holds for it as well.
        Instance::Silent => view.lease != Lease::None || lineage::was_found_writable(view),
        Instance::Down | Instance::Ending | Instance::Standby(..) => false,
    };
    if !writable || view.doing.is_some_and(|d| d.job == Job::Stop) {
        return None;
    }
    let other = view.snapshot().and_then(Snapshot::leader_name).filter(|name| **name != view.me);
    if let Some(name) = other {
        return Some(stop(StopMode::Immediate, Reason::AnotherLeads(name.clone())));
    }
    if view.lease == Lease::Lost {
        return Some(stop(StopMode::Immediate, Reason::LeaseEnding));
    }
    if view.leads() || reclaimable(view) {
        return None;
    }
    Some(stop(StopMode::Fast { patience: DEMOTE_PATIENCE }, Reason::LeaseEnding))
}

/// A lease that has run out or was lost, and nothing that could take writes: it is forgotten before anything else is done,
/// so that what is started next is not taken for a primary without a right to be one.
fn lapsed(view: &View) -> Option<Decision> {
    let harmless = matches!(view.instance(), Instance::Down | Instance::Standby(..));
    let held = view.lease != Lease::None;
    (harmless && held && !view.leads()).then(|| act(vec![Action::Forget], Reason::LeaseEnding))
}

/// Whether nobody leads, or the leader's key has stood still for too long.
fn leaderless(view: &View) -> bool {
    view.snapshot().is_some_and(|s| match &s.leader {
        None => true,
        Some(leader) => leader.name != view.me && view.expired_leader(leader).is_some(),
    })
}

/// A primary found running without a lease of this process (it was adopted, or the key was deleted under it) keeps
/// running only while it can take the key at once.
fn reclaimable(view: &View) -> bool {
    let vacant = |s: &Snapshot| match (&s.leader, &view.rules.mode) {
        (None, Mode::Node | Mode::Agent { .. }) => s.readiness == Readiness::Ready,
        // It has gone on without an agent, and nobody has taken its key: the agent before this one was killed.
        (Some(leader), Mode::Agent { .. }) => leader.name == view.me,
        (Some(_), Mode::Node) => false,
    };
    view.lease == Lease::None && view.snapshot().is_some_and(vacant) && watchdog::barred(view).is_none()
}

fn stopping(view: &View) -> Decision {
    if pause::goes_on_alone(view) {
        return Decision { actions: vec![Action::Finish], reason: Reason::Paused, wake: PROMPTLY };
    }
    let patient = StopMode::Fast { patience: STOP_PATIENCE };
    match view.instance() {
        Instance::Primary(..) => begin(Task::StopAfterCheckpoint(patient), Reason::Stopping),
        Instance::Standby(..) if awaits_dismissal(view) => idle(Reason::AwaitingDismissal, PROMPTLY),
        Instance::Standby(..) | Instance::Silent => begin(Task::Stop(patient), Reason::Stopping),
        Instance::Ending => idle(Reason::Ending, PROMPTLY),
        Instance::Down => {
            // PostgreSQL and every descendant are gone: only now may another node lead.
            let gives_up = view.lease != Lease::None && !pause::is_on(view);
            let release = gives_up.then_some(Action::Release);
            let end = view
                .snapshot()
                .filter(|_| gives_up)
                .and_then(|_fresh| manual::left_behind(view, view.control()?));
            let actions = end.into_iter().chain(release).chain([Action::Finish]).collect();
            Decision { actions, reason: Reason::Stopped, wake: PROMPTLY }
        }
    }
}

fn serving(view: &View) -> Decision {
    if view.instance() == Instance::Ending {
        return idle(Reason::Ending, PROMPTLY);
    }
    let snapshot = match &view.store {
        Store::Fresh(snapshot) => snapshot,
        Store::Silent { since, why } => return silence::decide(view, *since, why),
    };
    if view.memory.name == Name::Unclaimed {
        return idle(Reason::ClaimingName, PROMPTLY);
    }
    if let Some(decision) = wrong_data(view, snapshot) {
        return decision;
    }
    match &snapshot.leader {
        Some(leader) if leader.name == view.me => leader_key_is_mine(view, snapshot, leader),
        Some(leader) => match view.expired_leader(leader) {
            None => follow(view, snapshot, leader),
            Some(expired) => no_leader(view, snapshot, Claim::Expired(expired.revision)),
        },
        None => no_leader(view, snapshot, Claim::Vacant),
    }
}

/// Data that cannot be used in this cluster: hold, and never touch it.
fn wrong_data(view: &View, snapshot: &Snapshot) -> Option<Decision> {
    let cluster = match snapshot.initialize.as_ref().map(|i| i.value) {
        Some(Initialize::Done(id)) => id,
        Some(Initialize::InProgress | Initialize::Invalid) | None => return None,
    };
    let local = view.control()?.system_id;
    // A cluster whose making was cut short here has never served anybody: it gives way to the one that was made.
    let unborn = view.volume.bootstrap == Bootstrap::Pending && view.instance() == Instance::Down;
    let led = snapshot.leader_name().is_some_and(|name| *name != view.me);
    if local == cluster || (unborn && led && view.lease == Lease::None) {
        return None;
    }
    let reason = Reason::SystemIdMismatch { local, cluster };
    let release = view.lease != Lease::None && view.instance() == Instance::Down;
    Some(Decision {
        actions: release.then_some(Action::Release).into_iter().collect(),
        reason,
        wake: Wake::Loop,
    })
}

/// The key names this node.
fn leader_key_is_mine(view: &View, snapshot: &Snapshot, leader: &Leader) -> Decision {
    if view.lease == Lease::None {
        // The key of this node's life before this one (same volume, same name; nobody has taken it): take it over by its
        // revision. Data that is gone cannot lead, and the key then runs out by itself.
        return match view.local.data {
            DataDir::Cluster(_) => take(Claim::Expired(leader.revision)),
            // A new cluster was about to be made here.
            DataDir::Empty if view.cluster_system_id().is_none() => {
                bootstrap(view, snapshot, Claim::Expired(leader.revision))
            }
            DataDir::Empty | DataDir::Incomplete { .. } | DataDir::Unreadable { .. } => {
                idle(Reason::WaitingForLeader, Wake::Loop)
            }
        };
    }
    if !view.leads() {
        return idle(Reason::LeaseEnding, PROMPTLY);
    }
    if let Some(remote) = remote::of(view) {
        return remote::at_leader(view, snapshot, remote);
    }
    if let Some(decision) = watchdog::unguarded(view).or_else(|| fitness::unfit(view, snapshot)) {
        return decision;
    }
    match (view.instance(), &view.local.data) {
        (Instance::Primary(answer, lsn), _) => manual::at_leader(view, snapshot, answer)
            .unwrap_or_else(|| fitness::told(view, lead::duties(view, snapshot, answer, lsn))),
        (Instance::Standby(..), _) => lead::promote(view, snapshot),
        (Instance::Silent, _) => lead::starting(view, snapshot),
        (Instance::Ending, _) => idle(Reason::Ending, PROMPTLY),
        (Instance::Down, _) if lead::gives_away(view, snapshot) => {
            act(vec![Action::Release], Reason::StartTooSlow)
        }
        // A standby that died between the lock and its promotion: started as a primary it would go on writing the timeline
        // that it was to end.
        (Instance::Down, DataDir::Cluster(control)) if lineage::was_standby(control) => {
            start_standby(view, None, Reason::StartToVote)
        }
        (Instance::Down, DataDir::Cluster(control)) => manual::after_stop(view, snapshot, control)
            .unwrap_or_else(|| start_to_lead(view, snapshot, control)),
        (Instance::Down, DataDir::Empty) => make_cluster(view, snapshot),
        (Instance::Down, DataDir::Incomplete { .. } | DataDir::Unreadable { .. }) => {
            act(vec![Action::Release], Reason::NothingToLead)
        }
    }
}

/// Down, with the lock: a crash (or the start after initdb). In place and without a new timeline, since nobody else can
/// have led in between.
fn start_to_lead(view: &View, snapshot: &Snapshot, control: &Control) -> Decision {
    let n = view.n_failures(Job::Start);
    if n >= lead::FAILED_STARTS && lead::somebody_else_runs(view, snapshot) {
        return act(vec![Action::Release], Reason::CrashLoop(n));
    }
    if !view.may_try(Job::Start) {
        return retry_later(view, Job::Start);
    }
    let known = snapshot.initialize.as_ref().is_some_and(|i| matches!(i.value, Initialize::Done(_)));
    // The identifier is published before the first write can be accepted: from then on nobody makes a second cluster.
    let publish = (!known).then_some(Action::PutInitialize(control.system_id));
    // Whoever finds the cluster there finds its configuration, and may change it.
    let config = (!known && snapshot.config.is_none()).then_some(Action::PutConfig);
    // What a leader left behind is not all there is once this one writes.
    let outdated = lead::outlives_shutdown(view, snapshot).then_some(Action::PutStatus(control.checkpoint));
    let start = Action::Start(StartAs::Primary, lead::names_at_start(view, Some(snapshot)));
    let alone = lead::close_first(view, snapshot);
    let actions = publish.into_iter().chain(config).chain(alone).chain(outdated).chain([start]).collect();
    let reason = match view.volume.bootstrap {
        Bootstrap::Pending => Reason::Bootstrapping,
        Bootstrap::Settled => Reason::CrashRestart,
    };
    Decision { actions, reason, wake: PROMPTLY }
}

/// No data, with the lock: only as the maker of a new cluster.
fn make_cluster(view: &View, snapshot: &Snapshot) -> Decision {
    let claim = match adoption::founding(view, snapshot) {
        Founding::Open(claim) => claim,
        Founding::Elsewhere => return act(vec![Action::Release], Reason::WaitingForLeader),
        Founding::Done => return act(vec![Action::Release], Reason::NothingToLead),
    };
    if let Some(reason) = adoption::fresh_cluster_refused(view) {
        return act(vec![Action::Release], reason);
    }
    if !view.may_try(Job::Initdb) {
        return retry_later(view, Job::Initdb);
    }
    let actions = claim.into_iter().chain([Action::Begin(Task::Initdb)]).collect();
    Decision { actions, reason: Reason::Bootstrapping, wake: PROMPTLY }
}

/// Nobody leads (or the leader's key has run out).
fn no_leader(view: &View, snapshot: &Snapshot, claim: Claim) -> Decision {
    if snapshot.readiness == Readiness::NotReady {
        return idle(Reason::StoreNotReady, PROMPTLY);
    }
    if let Some(decision) = remote::without_leader(view, snapshot, claim) {
        return decision;
    }
    match (view.instance(), &view.local.data) {
        (Instance::Standby(answer, position), _) => {
            race(view, snapshot, claim, (lineage::standby_timeline(view, answer), position))
        }
        (Instance::Primary(answer, _), _) => retake(view, snapshot, answer),
        (Instance::Silent, _) => idle(Reason::Starting, PROMPTLY),
        (Instance::Ending, _) => idle(Reason::Ending, PROMPTLY),
        (Instance::Down, DataDir::Cluster(control)) if pause::was_the_primary(view, snapshot, control) => {
            take(claim)
        }
        (Instance::Down, DataDir::Cluster(_)) => match view.volume.bootstrap {
            // initdb was finished here and nobody has used it: take the lock and go on.
            Bootstrap::Pending => take(claim),
            Bootstrap::Settled if fitness::stands_back(view) => idle(Reason::StandingBack, Wake::Loop),
            Bootstrap::Settled => start_standby(view, None, Reason::StartToVote),
        },
        (Instance::Down, DataDir::Empty) => bootstrap(view, snapshot, claim),
        (Instance::Down, DataDir::Incomplete { .. }) if remote::is_unmade(view) => {
            bootstrap(view, snapshot, claim)
        }
        (Instance::Down, DataDir::Incomplete { .. }) => copy_alone(view),
        (Instance::Down, DataDir::Unreadable { why }) => {
            idle(Reason::DataUnreadable(why.clone()), Wake::Loop)
        }
    }
}

/// A running primary whose key was deleted under it: only if nobody can have led since.
fn retake(view: &View, snapshot: &Snapshot, answer: &Answer) -> Decision {
    match led_since(view, snapshot, answer.timeline) {
        Some(reason) => stop(StopMode::Immediate, reason),
        None => take(Claim::Vacant),
    }
}

/// Nobody leads and there is no data here: make a new cluster, if there has never been one.
fn bootstrap(view: &View, snapshot: &Snapshot, claim: Claim) -> Decision {
    match snapshot.initialize.as_ref().map(|i| i.value) {
        Some(Initialize::Done(_)) => return copy_alone(view),
        Some(Initialize::InProgress) if adoption::founded_elsewhere(view) => {
            return idle(Reason::WaitingForLeader, Wake::Loop);
        }
        Some(Initialize::InProgress | Initialize::Invalid) | None => {}
    }
    let surveyed = view.memory.survey.as_ref().is_some_and(|s| view.now.since(s.at) < SURVEY_AGE);
    if view.rules.tags.failover == super::rules::Failover::Never {
        return idle(Reason::NoFailover, Wake::Loop);
    }
    if !surveyed && view.rules.mode == Mode::Node {
        return if view.may_try(Job::Survey) {
            begin(Task::Survey, Reason::Surveying)
        } else {
            retry_later(view, Job::Survey)
        };
    }
    match adoption::fresh_cluster_refused(view) {
        Some(reason) => idle(reason, Wake::Soon(HALF_A_SECOND)),
        None => take(claim),
    }
}

/// Nobody leads, and there is no usable data here.
fn copy_alone(view: &View) -> Decision {
    match view.rules.mode {
        Mode::Agent { unled: Unled::Copies, .. } if view.may_try(Job::Clone) => {
            begin(Task::CopyAlone, Reason::CopyingAlone)
        }
        Mode::Agent { unled: Unled::Copies, .. } => retry_later(view, Job::Clone),
        Mode::Agent { unled: Unled::Waits, .. } | Mode::Node => idle(Reason::WaitingForLeader, Wake::Loop),
    }
}

/// Another node leads.
fn follow(view: &View, snapshot: &Snapshot, leader: &Leader) -> Decision {
    let member = snapshot.member(&leader.name);
    let Some(source) = member.and_then(upstream) else {
        return idle(Reason::WaitingForLeader, Wake::Loop);
    };
    let leads = |role: Role| matches!(role, Role::Primary | Role::StandbyLeader);
    let serving = member.is_some_and(|m| m.state == MemberState::Running && leads(m.role));
    match (view.instance(), &view.local.data) {
        // What cannot be read may be somebody's only copy of something else: only this cluster's own is replaced.
        (Instance::Down, DataDir::Unreadable { why })
            if view.volume.system_id != view.cluster_system_id() =>
        {
            idle(Reason::DataUnreadable(why.clone()), Wake::Loop)
        }
        (Instance::Down, _) if !serving => idle(Reason::WaitingForLeader, Wake::Soon(HALF_A_SECOND)),
        (Instance::Down, DataDir::Empty | DataDir::Incomplete { .. } | DataDir::Unreadable { .. }) => {
            copy(view, source)
        }
        (Instance::Down, DataDir::Cluster(_))
            if member.is_some_and(|m| m.checkpoint_after_promote == Some(false)) =>
        {
            idle(Reason::AwaitingCheckpoint(source.name), Wake::Soon(HALF_A_SECOND))
        }
        (Instance::Down, DataDir::Cluster(control))
            if Some(control.system_id) != view.cluster_system_id() =>
        {
            copy(view, source)
        }
        (Instance::Down, DataDir::Cluster(_)) if view.memory.upstream_wal == UpstreamWal::Removed => {
            copy(view, source)
        }
        (Instance::Down, DataDir::Cluster(_)) => rejoin(view, snapshot, source),
        (Instance::Standby(answer, position), _) => {
            keep_following(view, snapshot, source, (answer, position))
        }
        (Instance::Silent, _) => idle(Reason::Starting, PROMPTLY),
        (Instance::Ending, _) | (Instance::Primary(..), _) => idle(Reason::Ending, PROMPTLY),
    }
}

/// No usable data here: copy the leader's.
fn copy(view: &View, source: Upstream) -> Decision {
    if view.cluster_system_id().is_none() {
        return idle(Reason::WaitingForLeader, Wake::Soon(HALF_A_SECOND));
    }
    if !view.may_try(Job::Clone) {
        return retry_later(view, Job::Clone);
    }
    let source = clone_source(view, source);
    let reason = Reason::Cloning(source.name.clone());
    begin(Task::Clone(source), reason)
}

/// Down, with data: start as a standby if the local history is part of the leader's, else rewind, else copy.
fn rejoin(view: &View, snapshot: &Snapshot, source: Upstream) -> Decision {
    // What the leader said before its promotion is not its history.
    let published = snapshot.member(&source.name).and_then(|m| m.timeline);
    let current = |a: &&Ancestry| published.is_none_or(|timeline| timeline == a.timeline);
    let Some(ancestry) = lineage::known_ancestry(view, &source).filter(current) else {
        return compare(view, source);
    };
    let Some(control) = view.control() else {
        return idle(Reason::WaitingForLeader, Wake::Loop);
    };
    match lineage::kin_by_bytes(view, snapshot, control.reached(), ancestry) {
        Kin::Same => {}
        // pg_rewind goes by numbers: it would find nothing to rewind.
        Kin::Other => return copy(view, source),
        Kin::Open => return idle(Reason::WaitingForLeader, Wake::Soon(HALF_A_SECOND)),
    }
    match lineage::of_stopped(control, ancestry) {
        Lineage::Part if orders::is_beyond_help(view) => copy(view, source),
        Lineage::Part => {
            let reason = Reason::Following(source.name.clone());
            start_standby(view, feeder(view, &source), reason)
        }
        Lineage::Unknown | Lineage::Left if copies(view) || view.n_failures(Job::Rewind) >= REWINDS => {
            copy(view, source)
        }
        Lineage::Unknown | Lineage::Left if view.may_try(Job::Rewind) => {
            let reason = Reason::Diverged(source.name.clone());
            begin(Task::Rewind(source), reason)
        }
        Lineage::Unknown | Lineage::Left => retry_later(view, Job::Rewind),
    }
}

/// Whether the configuration wants a copy instead of a rewind.
pub(super) fn copies(view: &View) -> bool {
    view.rules.server.as_ref().is_some_and(|server| server.divergence() == Divergence::Copied)
}

pub(super) fn compare(view: &View, source: Upstream) -> Decision {
    if !view.may_try(Job::Compare) {
        return retry_later(view, Job::Compare);
    }
    let reason = Reason::Comparing(source.name.clone());
    begin(Task::Compare(source), reason)
}

/// A running standby: point it at the leader, and when it cannot connect, find out whether it still can.
fn keep_following(
    view: &View,
    snapshot: &Snapshot,
    source: Upstream,
    (answer, position): (&Answer, Lsn),
) -> Decision {
    let reason = Reason::Following(source.name.clone());
    // Nothing is streamed onto a timeline that only has the leader's number.
    match lineage::kin(view, snapshot, lineage::standby_timeline(view, answer), &source.name) {
        Kin::Same => {}
        Kin::Other => {
            return stop(StopMode::Fast { patience: STOP_PATIENCE }, Reason::Diverged(source.name));
        }
        Kin::Open => return idle(Reason::WaitingForLeader, Wake::Soon(HALF_A_SECOND)),
    }
    let feeder = feeder(view, &source);
    let remembered = lineage::is_remembered(view, snapshot, &source.name);
    // It would wait before its next attempt to connect.
    let is_back =
        view.memory.upstream_wal == UpstreamWal::Away && upstreams::serves(snapshot, feeder.as_ref());
    if view.memory.following != feeder || view.memory.frozen.is_some() || !remembered || is_back {
        return Decision { actions: vec![Action::Follow(feeder)], reason, wake: PROMPTLY };
    }
    let stalled = view.memory.not_streaming.is_some_and(|since| view.now.since(since) >= STALLED);
    if !stalled {
        return turn::keep_slots(view, snapshot, (answer, position), source);
    }
    if view.memory.upstream_wal == UpstreamWal::Removed && starved(view) {
        return stop(StopMode::Fast { patience: STOP_PATIENCE }, Reason::WalRemoved(source.name));
    }
    let local = lineage::standby_timeline(view, answer);
    let judged = lineage::known_ancestry(view, &source).map(|asked| {
        let kin = lineage::kin_by_bytes(view, snapshot, local, asked);
        if kin == Kin::Other { Lineage::Left } else { lineage::of_running(local, position, asked) }
    });
    match judged {
        None => compare(view, source),
        Some(Lineage::Left) => {
            stop(StopMode::Fast { patience: STOP_PATIENCE }, Reason::Diverged(source.name))
        }
        // Others may stream from it all the same: one that is tagged `nostream` never streams.
        Some(Lineage::Part | Lineage::Unknown) => {
            turn::change_slots(view, snapshot, (answer, position), source.name)
        }
    }
}

/// Not a reconnection that takes its time: the WAL that this standby needs does not come back.
pub(super) fn starved(view: &View) -> bool {
    view.memory.not_streaming.is_some_and(|since| view.now.since(since) >= STARVED)
}

fn take(claim: Claim) -> Decision {
    Decision { actions: vec![Action::Acquire(claim)], reason: Reason::Winning, wake: NOW }
}

/// A standby's own names take effect at its promotion, which sets them anew.
pub(super) fn start_standby(view: &View, source: Option<Upstream>, reason: Reason) -> Decision {
    if !view.may_try(Job::Start) {
        return retry_later(view, Job::Start);
    }
    act(vec![Action::Start(StartAs::Standby(source), String::new())], reason)
}

fn stop(mode: StopMode, reason: Reason) -> Decision {
    begin(Task::Stop(mode), reason)
}

pub(super) fn begin(task: Task, reason: Reason) -> Decision {
    act(vec![Action::Begin(task)], reason)
}

pub(super) fn act(actions: Vec<Action>, reason: Reason) -> Decision {
    Decision { actions, reason, wake: PROMPTLY }
}

pub(super) fn idle(reason: Reason, wake: Wake) -> Decision {
    Decision { actions: vec![], reason, wake }
}

pub(super) fn retry_later(view: &View, job: Job) -> Decision {
    let why = view.memory.failures.get(&job).map_or_else(String::new, |f| f.why.clone());
    idle(Reason::RetryLater(job, why), Wake::Soon(HALF_A_SECOND))
}
