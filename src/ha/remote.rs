//! A cluster that follows another one (`standby_cluster`): its leader streams from a server elsewhere, the others from the
//! leader, and nobody takes writes until a person ends it.
//!
//! Invariants: no server here is started or kept as a primary, and none is made by initdb; nothing is streamed or copied over
//! data of another database; where this cluster has begun the timeline that its data is on, the other one is followed
//! only when its log is shown to hold ours, since two promotions can give their timelines one number; where it is shown to hold
//! something else there, it is not followed whoever began ours. What is absent: any
//! deadman's business (a standby can always go on), and a way to follow an archive from the store's word alone in a container.

use serde_json::{Value, json};

use crate::clock::Moment;
use crate::dcs::{Claim, Initialize, Snapshot};
use crate::postgres::status::{Answer, Control, DataDir};
use crate::postgres::{Containment, Foreign, StartAs, StopMode, Upstream};
use crate::types::{Host, Lsn, NodeName, SlotName, SystemId, Timeline};

use super::adoption::{self, Founding};
use super::decide::{REWINDS, STALLED, copies, retry_later, starved};
use super::failsafe;
use super::lead::{self, PROMPTLY};
use super::lineage::{self, Lineage};
use super::manual::{self, Refusal, Verdict};
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::rules::{Failover, Mode};
use super::slots;
use super::view::{Ancestry, Instance, Job, PollAnswer, UpstreamWal, View};

/// Where a server listens when nothing is said.
const PORT: u16 = 5432;
/// PostgreSQL's limit for a slot's name.
const LONGEST_NAME: usize = 63;
/// What the other cluster said so long ago was said after what this node has streamed from it.
const JUST_NOW: std::time::Duration = std::time::Duration::from_secs(3);
/// A stop that turns a primary into a standby waits so long for the other cluster to have everything.
const STEP_DOWN: std::time::Duration = std::time::Duration::from_secs(60);

/// Whom this cluster follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// A server of the other cluster, or several; none: only its archive is read.
    pub host: Option<Host>,
    /// Its port.
    pub port: u16,
    /// A slot that exists there.
    pub slot: Option<SlotName>,
}

/// Whether a dynamic configuration makes a cluster follow another one: Patroni's rule.
pub fn is_declared(config: &Value) -> bool {
    let said = |key: &str| match config.pointer(&format!("/standby_cluster/{key}")) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Bool(true) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => true,
    };
    ["host", "port", "restore_command"].into_iter().any(said)
}

impl Remote {
    /// From the dynamic configuration, and what in it could not be used. What cannot be read still makes it a standby cluster.
    pub fn of(config: &Value) -> (Option<Self>, Vec<String>) {
        if !is_declared(config) {
            return (None, Vec::new());
        }
        let mut complaints = Vec::new();
        let at = |key: &str| config.pointer(&format!("/standby_cluster/{key}")).filter(|v| !v.is_null());
        let mut complain = |key: &str, value: &Value, expected: &str| {
            complaints.push(format!("standby_cluster.{key} is {value}, expected {expected}: it is not used"));
        };
        let host = at("host").and_then(|value| match value.as_str().map(str::trim) {
            Some(text) if is_host(text) => Some(Host::from(text)),
            Some(_) | None => {
                complain("host", value, "a name or an address, or several with commas between them");
                None
            }
        });
        let port = at("port").map_or(PORT, |value| {
            let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
            number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0).unwrap_or_else(|| {
                complain("port", value, "one port");
                PORT
            })
        });
        let slot = at("primary_slot_name").and_then(|value| match value.as_str() {
            Some(name) if is_slot(name) => Some(SlotName(name.to_owned())),
            Some(_) | None => {
                complain("primary_slot_name", value, "the name of a slot");
                None
            }
        });
        (Some(Self { host, port, slot }), complaints)
    }

    /// What is wrong with `create_replica_methods` where no administrator's commands are.
    pub fn unusable_methods(config: &Value) -> Option<String> {
        let methods = config.pointer("/standby_cluster/create_replica_methods").filter(|v| !v.is_null())?;
        let usable = methods.as_array().is_some_and(|list| list.iter().any(|method| method == "basebackup"));
        (!usable).then(|| {
            format!(
                "standby_cluster.create_replica_methods is {methods}, expected a list with basebackup, the only one \
                 that there is: it is not used"
            )
        })
    }

    /// As it stands in the dynamic configuration.
    pub fn to_json(&self) -> Value {
        let mut section = json!({ "port": self.port });
        if let Some(section) = section.as_object_mut() {
            section.extend(self.host.as_ref().map(|host| ("host".to_owned(), host.to_string().into())));
            let slot = self.slot.as_ref();
            section.extend(slot.map(|slot| ("primary_slot_name".to_owned(), slot.0.clone().into())));
        }
        section
    }

    /// How to reach it.
    pub fn upstream(&self) -> Option<Upstream> {
        let address = self.host.clone()?;
        Some(Upstream {
            name: NodeName(format!("{address}:{}", self.port)),
            node_id: None,
            address,
            port: self.port,
            foreign: Some(Foreign { slot: self.slot.clone() }),
        })
    }
}

/// What may stand in a connection string as a host.
pub fn is_host(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:,[]".contains(c);
    !text.is_empty() && text.chars().all(plain)
}

/// What may be a slot's name.
pub fn is_slot(name: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    !name.is_empty() && name.len() <= LONGEST_NAME && name.chars().all(letters)
}

/// Whom this cluster follows, as far as is known here. The environment speaks of a cluster that is to be made; as long as the
/// store's configuration was never seen it may have been promoted since, and what was a primary is taken for one.
pub fn of(view: &View) -> Option<&Remote> {
    let heard = view.rules.server.is_some() || view.snapshot().is_some_and(|s| s.config.is_some());
    let takes_writes = match view.instance() {
        Instance::Primary(..) => true,
        Instance::Down | Instance::Silent | Instance::Ending => {
            view.control().is_some_and(|control| !lineage::was_standby(control))
        }
        Instance::Standby(..) => false,
    };
    let is_made = view.cluster_system_id().or(view.volume.system_id).is_some();
    let outdated = !heard && is_made && takes_writes;
    view.rules.remote.as_ref().filter(|_| !outdated)
}

fn act(actions: Vec<Action>, reason: Reason) -> Decision {
    Decision { actions, reason, wake: PROMPTLY }
}

fn idle(reason: Reason, wake: Wake) -> Decision {
    Decision { actions: vec![], reason, wake }
}

/// The lock is ours, in a cluster that follows another one.
pub(super) fn at_leader(view: &View, snapshot: &Snapshot, remote: &Remote) -> Decision {
    match (view.instance(), &view.local.data) {
        (Instance::Primary(answer, lsn), _) => step_down(view, snapshot, remote, (answer, lsn)),
        (Instance::Standby(answer, position), _) => lead(view, snapshot, remote, (answer, position)),
        (Instance::Silent, _) => lead::starting(view, snapshot),
        (Instance::Ending, _) => idle(Reason::Ending, PROMPTLY),
        (Instance::Down, _) if lead::gives_away(view, snapshot) => {
            act(vec![Action::Release], Reason::StartTooSlow)
        }
        (Instance::Down, DataDir::Cluster(control)) => start(view, snapshot, remote, control),
        (Instance::Down, DataDir::Empty | DataDir::Incomplete { .. }) => found(view, snapshot, remote),
        (Instance::Down, DataDir::Unreadable { .. }) => act(vec![Action::Release], Reason::NothingToLead),
    }
}

/// A primary in a cluster that has been told to follow another one becomes a standby. It is asked first whether that is the same
/// database: an address that was mistyped is no reason to stop one. Whoever does not answer cannot say so.
fn step_down(view: &View, snapshot: &Snapshot, remote: &Remote, (answer, lsn): (&Answer, Lsn)) -> Decision {
    let upstream = remote.upstream();
    let said = upstream.as_ref().and_then(|upstream| lineage::known_ancestry(view, upstream));
    let unasked = view
        .memory
        .failures
        .get(&Job::Compare)
        .is_none_or(|f| view.now.since(f.last) > lineage::ANCESTRY_AGE);
    let go_on = |reason| Decision { reason, ..lead::duties(view, snapshot, answer, lsn) };
    match (upstream, said) {
        (Some(_), Some(ancestry)) if another(view, ancestry).is_some() => {
            go_on(another(view, ancestry).map_or(Reason::Leading, Reason::RemoteIsAnother))
        }
        // Only on a machine an archive alone can be followed: its settings are the administrator's.
        (None, _) if view.rules.mode == Mode::Node => go_on(Reason::RemoteUnusable),
        (Some(upstream), None) if unasked => compare(view, upstream),
        (Some(_) | None, Some(_) | None) => {
            let stop = Task::StopAfterCheckpoint(StopMode::Fast { patience: STEP_DOWN });
            act(vec![Action::Begin(stop)], Reason::BecomingStandby)
        }
    }
}

/// The other cluster's identifier, if it is another database.
fn another(view: &View, ancestry: &Ancestry) -> Option<SystemId> {
    let ours = view.control().map(|c| c.system_id).or_else(|| view.cluster_system_id());
    ancestry.system_id.filter(|theirs| Some(*theirs) != ours)
}

fn compare(view: &View, upstream: Upstream) -> Decision {
    if !view.may_try(Job::Compare) {
        return retry_later(view, Job::Compare);
    }
    let reason = Reason::Comparing(upstream.name.clone());
    act(vec![Action::Begin(Task::Compare(upstream))], reason)
}

/// What is to be made of the other cluster's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// It goes on from here.
    Joins,
    /// Ours has left it.
    Left,
    /// It is another database.
    Another(SystemId),
    /// Both are on a timeline of this number, and nothing shows that it is the same one.
    Unshown,
    /// It came by where we were, and was on another timeline of this number then: neither rewound (pg_rewind goes by numbers) nor
    /// replaced, since which of the two is to stay is a person's to say.
    Differs,
    /// It is on a timeline before ours, which came from there: a server that has been left behind answers.
    Behind,
}

/// What the other cluster said of its history, if it may be gone by. That it is behind our timeline is old news as a rule: what it
/// said before its promotion, which this node has streamed since.
fn heard<'a>(view: &'a View, upstream: &Upstream, local: Timeline) -> Option<&'a Ancestry> {
    let current = |a: &&Ancestry| a.timeline >= local || view.now.since(a.at) < JUST_NOW;
    lineage::known_ancestry(view, upstream).filter(current)
}

fn course(view: &View, ancestry: &Ancestry, timeline: Timeline, lineage: Lineage) -> Course {
    if let Some(id) = another(view, ancestry) {
        return Course::Another(id);
    }
    if ancestry.contains_ours == Containment::Differs {
        return Course::Differs;
    }
    if began_here(view, timeline) && ancestry.contains_ours != Containment::Shown(timeline) {
        return Course::Unshown;
    }
    if ancestry.timeline < timeline {
        return Course::Behind;
    }
    match lineage {
        Lineage::Part => Course::Joins,
        Lineage::Left | Lineage::Unknown => Course::Left,
    }
}

/// Whether somebody in this cluster has begun the timeline, as far as is known. (The first one comes from initdb.)
fn began_here(view: &View, timeline: Timeline) -> bool {
    let written = view.snapshot().and_then(|s| s.history.as_ref()).map(|h| h.value.cluster_timeline());
    timeline > Timeline(1) && (lineage::taken(view, timeline).is_some() || written == Some(timeline))
}

/// A standby with the lock: the standby leader.
fn lead(view: &View, snapshot: &Snapshot, remote: &Remote, mine: (&Answer, Lsn)) -> Decision {
    let (answer, position) = mine;
    // As long as the set of the last primary stands, nobody else may lead.
    if let Some(decision) = hand_over(view, snapshot, mine).filter(|_| snapshot.sync.is_none()) {
        return decision;
    }
    let mut actions = duties(view, snapshot, answer, position);
    let Some(upstream) = remote.upstream() else {
        actions.extend(view.memory.frozen.map(|_held| Action::Follow(None)));
        return Decision { actions, reason: Reason::LeadingStandby(None), wake: Wake::Loop };
    };
    let reason = Reason::LeadingStandby(Some(upstream.name.clone()));
    let follows = view.memory.following.as_ref() == Some(&upstream) && view.memory.frozen.is_none();
    let stalled = view.memory.not_streaming.is_some_and(|since| view.now.since(since) >= STALLED);
    if follows && !stalled {
        return Decision { actions, reason, wake: Wake::Loop };
    }
    let timeline = lineage::standby_timeline(view, answer);
    let Some(ancestry) = heard(view, &upstream, timeline) else {
        let compared = compare(view, upstream);
        actions.extend(compared.actions);
        return Decision { actions, ..compared };
    };
    let part = lineage::of_running(timeline, position, ancestry);
    let patient = StopMode::Fast { patience: super::decide::STOP_PATIENCE };
    let stop = |reason| act(vec![Action::Begin(Task::Stop(patient))], reason);
    let apart = |mut actions: Vec<Action>, reason| {
        actions.extend(view.memory.following.as_ref().map(|_any| Action::Follow(None)));
        Decision { actions, reason, wake: Wake::Soon(STALLED) }
    };
    match course(view, ancestry, timeline, part) {
        Course::Another(id) => apart(actions, Reason::RemoteIsAnother(id)),
        Course::Unshown => apart(actions, Reason::RemoteUnshown(timeline)),
        Course::Differs => apart(actions, Reason::RemoteDiffers(timeline)),
        // Its walreceiver finds the newer one again when that is back.
        Course::Behind => {
            Decision { actions, reason: Reason::RemoteBehind(ancestry.timeline), wake: Wake::Soon(STALLED) }
        }
        Course::Left => stop(Reason::Diverged(upstream.name)),
        Course::Joins if follows && view.memory.upstream_wal == UpstreamWal::Removed && starved(view) => {
            stop(Reason::WalRemoved(upstream.name))
        }
        Course::Joins => {
            actions.extend((!follows).then_some(Action::Follow(Some(upstream))));
            Decision { actions, reason, wake: Wake::Loop }
        }
    }
}

/// What every leader keeps in the store, as far as it is a standby's to keep. No set of synchronous standbys: nothing is
/// acknowledged here, and whoever is promoted later begins anew.
fn duties(view: &View, snapshot: &Snapshot, answer: &Answer, position: Lsn) -> Vec<Action> {
    let known = matches!(snapshot.initialize.as_ref().map(|i| i.value), Some(Initialize::Done(_)));
    let identifier = view.control().map(|c| c.system_id).or(view.volume.system_id);
    let first = [
        identifier.filter(|_| !known).map(Action::PutInitialize),
        snapshot.config.is_none().then_some(Action::PutConfig),
        snapshot.sync.as_ref().map(|sync| Action::DeleteSync(sync.revision)),
        failsafe::key(view, snapshot),
        Some(Action::PutStatus(position)),
        slots::of_standby_leader(view, snapshot, answer, position).map(Action::ChangeSlots),
    ];
    first.into_iter().flatten().collect()
}

/// A request at a standby leader. Nothing is stopped for it: the position is held, and the lock is given up when somebody has as
/// much, so that nobody who leads later lacks what this one had.
fn hand_over(view: &View, snapshot: &Snapshot, (answer, position): (&Answer, Lsn)) -> Option<Decision> {
    let request = snapshot.failover.as_ref()?;
    let clear = |reason| act(vec![Action::ClearFailover(request.revision)], reason);
    let to = match manual::judged(view, snapshot, answer, request) {
        Verdict::Waits => return None,
        Verdict::Ask => return Some(manual::ask(view)),
        // It was carried out: this node leads since.
        Verdict::Refused(Refusal::NotTheLeader(_) | Refusal::AlreadyLeads) => {
            return Some(clear(Reason::LeadingStandby(None)));
        }
        Verdict::Refused(refusal) => return Some(clear(Reason::RequestRefused(refusal))),
        Verdict::HandOver(to) => to,
    };
    let Some(held) = view.memory.frozen else {
        return Some(act(vec![Action::Freeze], Reason::HandingOver(to.into_iter().collect())));
    };
    let mine = (answer.timeline, position);
    match to.iter().find(|name| has_reached(view, name, mine, held)) {
        Some(name) => Some(act(vec![Action::Release], Reason::HandedOver(name.clone()))),
        None if view.now.since(held) >= view.rules.timing.retry_timeout => {
            let why = format!("nobody else has everything up to {position}");
            Some(clear(Reason::RequestRefused(Refusal::Missed(why))))
        }
        None => Some(manual::ask(view)),
    }
}

fn has_reached(view: &View, name: &NodeName, mine: (Timeline, Lsn), held: Moment) -> bool {
    let poll = view.memory.poll.as_ref().filter(|poll| poll.at >= held);
    match poll.and_then(|poll| poll.answers.get(name)) {
        Some(PollAnswer::Standby(candidate)) => (candidate.timeline, candidate.position) >= mine,
        Some(PollAnswer::Primary | PollAnswer::Down | PollAnswer::Unreachable) | None => false,
    }
}

/// Down, with the lock and with data: always a standby, whatever it was. It follows nobody until the histories are compared,
/// which it can be read meanwhile.
fn start(view: &View, snapshot: &Snapshot, remote: &Remote, control: &Control) -> Decision {
    let n = view.n_failures(Job::Start);
    if n >= lead::FAILED_STARTS && lead::somebody_else_runs(view, snapshot) {
        return act(vec![Action::Release], Reason::CrashLoop(n));
    }
    let upstream = remote.upstream();
    let known = upstream.as_ref().and_then(|upstream| heard(view, upstream, control.reached()));
    let judged =
        known.map(|known| course(view, known, control.reached(), lineage::of_stopped(control, known)));
    match (upstream, judged) {
        (Some(upstream), Some(Course::Left)) => mend(view, upstream),
        (Some(upstream), Some(Course::Joins)) if view.memory.upstream_wal == UpstreamWal::Removed => {
            copy(view, upstream)
        }
        // It was stopped to be copied, and what the other cluster said is old by now: started again, it would wait for the WAL that
        // is gone a second time.
        (Some(upstream), None)
            if view.memory.upstream_wal == UpstreamWal::Removed && view.n_failures(Job::Compare) == 0 =>
        {
            compare(view, upstream)
        }
        (upstream, judged) => {
            if !view.may_try(Job::Start) {
                return retry_later(view, Job::Start);
            }
            let known = matches!(snapshot.initialize.as_ref().map(|i| i.value), Some(Initialize::Done(_)));
            let publish = (!known).then_some(Action::PutInitialize(control.system_id));
            let whom = upstream.filter(|_| judged == Some(Course::Joins));
            let start = Action::Start(StartAs::Standby(whom), String::new());
            act(publish.into_iter().chain([start]).collect(), Reason::StartingStandby)
        }
    }
}

/// The data has left the other cluster's history, which is shown to be what it comes from.
fn mend(view: &View, upstream: Upstream) -> Decision {
    if copies(view) || view.n_failures(Job::Rewind) >= REWINDS {
        return copy(view, upstream);
    }
    if !view.may_try(Job::Rewind) {
        return retry_later(view, Job::Rewind);
    }
    let reason = Reason::Diverged(upstream.name.clone());
    act(vec![Action::Begin(Task::Rewind(upstream))], reason)
}

fn copy(view: &View, upstream: Upstream) -> Decision {
    if !view.may_try(Job::Clone) {
        return retry_later(view, Job::Clone);
    }
    let reason = Reason::Cloning(upstream.name.clone());
    act(vec![Action::Begin(Task::Clone(upstream))], reason)
}

/// The lock is ours and there is no whole data here: it is copied from the other cluster, never made.
fn found(view: &View, snapshot: &Snapshot, remote: &Remote) -> Decision {
    let Some(upstream) = remote.upstream() else {
        return act(vec![Action::Release], Reason::NothingToLead);
    };
    let claim = match adoption::founding(view, snapshot) {
        Founding::Open(claim) => claim,
        Founding::Elsewhere => return act(vec![Action::Release], Reason::WaitingForLeader),
        Founding::Done => return copy_again(view, snapshot, upstream),
    };
    if let Some(reason) = refused(view) {
        return act(vec![Action::Release], reason);
    }
    let made = copy(view, upstream);
    Decision { actions: claim.into_iter().chain(made.actions).collect(), ..made }
}

/// Why no standby cluster is made here. Data from before pgherd has no place in one.
fn refused(view: &View) -> Option<Reason> {
    let adopted = view.volume.adopted.map(|_data| Reason::AdoptedInStandby);
    adopted.or_else(|| adoption::fresh_cluster_refused(view))
}

/// The cluster exists, and nobody else has its data: the other cluster has, if it is the same database.
fn copy_again(view: &View, snapshot: &Snapshot, upstream: Upstream) -> Decision {
    if !is_alone(view, snapshot) {
        return act(vec![Action::Release], Reason::NothingToLead);
    }
    match lineage::known_ancestry(view, &upstream) {
        None => compare(view, upstream),
        Some(ancestry) => match another(view, ancestry) {
            Some(id) => act(vec![Action::Release], Reason::RemoteIsAnother(id)),
            None => copy(view, upstream),
        },
    }
}

fn is_alone(view: &View, snapshot: &Snapshot) -> bool {
    snapshot.members.iter().all(|member| member.name == view.me)
}

/// Whether a cluster that follows another one is still to be made: half a copy is as good as none then.
pub(super) fn is_unmade(view: &View) -> bool {
    of(view).is_some() && view.cluster_system_id().is_none()
}

/// Nobody leads a cluster that exists, and there is no whole data here: this node may lead if nobody else is left, since the
/// other cluster has the data.
pub(super) fn without_leader(view: &View, snapshot: &Snapshot, claim: Claim) -> Option<Decision> {
    let upstream = of(view).and_then(Remote::upstream)?;
    let lacks = view.instance() == Instance::Down
        && matches!(view.local.data, DataDir::Empty | DataDir::Incomplete { .. });
    let may = view.rules.tags.failover != Failover::Never && is_alone(view, snapshot);
    let foreign = lineage::known_ancestry(view, &upstream).is_some_and(|a| another(view, a).is_some());
    if !lacks || !may || foreign || view.cluster_system_id().is_none() {
        return None;
    }
    let actions = vec![Action::Acquire(claim)];
    Some(Decision { actions, reason: Reason::Winning, wake: lead::NOW })
}
