//! Whether this node can do a primary's work, and what follows when it cannot. Pure.
//!
//! A lease says who may lead, not who can: a postmaster that stands still, a disk that keeps every commit waiting or takes
//! none keeps its lease for ever. So while this node leads it asks for signs of life ([`due`]), remembers what came
//! ([`Vitals`]), and hands over when the signs have been bad for long enough and another node is better ([`unfit`]).
//!
//! - **Absence of a sign is not a bad sign.** Only a question that was asked and not answered counts, from when it was asked.
//! - **Saturation is not death.** Too many clients is an answer. While WAL still reaches the disk a postmaster that makes no
//!   backends is given [`STUBBORN`] times as long, and a commit that waits is no dead disk.
//! - **It is handed over, not thrown away**: PostgreSQL and every descendant are gone before the key is released, and only
//!   when somebody is there who may take it. Otherwise this node stays, and says why.
//! - Who has just handed over stands back for a while, or it would win its own lock again with the longest log.
//!
//! What is absent: crash recovery that takes long (a postmaster that recovers answers), and the replica's fitness.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::clock::Moment;
use crate::dcs::{Member, MemberState, Role, Snapshot};
use crate::postgres::{Check, Posture, Pulse, StopMode};
use crate::supervisor::UnitState;
use crate::types::{Access, Lsn, NodeName, Room, SyncMode, Timeline};

use super::lead;
use super::manual;
use super::pause;
use super::reason::{Action, Decision, Reason, Task, Wake};
use super::sync::Electors;
use super::view::{Candidate, Eligibility, Instance, Job, Lease, Poll, PollAnswer, View};

/// A backend is made in a millisecond; on a machine that swaps, in a second.
const KNOCK_PATIENCE: Duration = Duration::from_secs(1);
/// Between two knocks: a wake-up of the loop costs more than a knock does.
const KNOCK_EVERY: Duration = Duration::from_secs(1);
/// The kernel knows the room on a volume without looking.
const MEASURE_PATIENCE: Duration = Duration::from_secs(5);
/// Between two measurements; a disk fills slowly, compared with this.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// The same while there is little: nobody shall hand over, or stand back, for what somebody has made room for since.
const MEASURE_LOW_EVERY: Duration = Duration::from_secs(2);
/// A question that the kernel keeps also keeps its thread: it is not asked often.
const MEASURE_AFTER_SILENCE: Duration = Duration::from_secs(600);
/// A postmaster that makes no backends while WAL still moves is given so many TTLs: somebody is still served.
const STUBBORN: u32 = 6;
/// A stop by SIGKILL that has not ended by now ends when the kernel lets go of a process that can do nothing any more.
const STOP_HANGS: Duration = Duration::from_secs(15);
/// Who has handed over stands back for so many TTLs. An heir leads within moments; where none does, this node may be better
/// than nobody.
const STAND_BACK: u32 = 1;
/// A full node whose hand-over came back to it does not try again at once.
const HANDOVER_PAUSE: Duration = Duration::from_secs(600);
/// Below this a server cannot even make its next segments of WAL.
const LOW_AT_LEAST: u64 = 48 << 20;
/// However large the volume, so much is enough for a person to react.
const LOW_AT_MOST: u64 = 2 << 30;
/// The part of a volume that counts as low: a twentieth.
const LOW_PART: u64 = 20;

/// What is known of the local server's fitness.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vitals {
    /// The process that this is about.
    pid: Option<u32>,
    /// When durable work was last seen: WAL that moved, or a commit of our own.
    worked: Option<(Lsn, Moment)>,
    /// Since when the postmaster makes no backends.
    mute: Option<(Moment, Posture)>,
    /// Since when no commit of our own ends, and why.
    stuck: Option<(Moment, Ailment)>,
    /// The room on the volume.
    pub room: Option<Room>,
    /// When each check was last begun, and whether it still runs.
    asked: BTreeMap<Check, Asked>,
    /// Why this node cannot do a primary's work.
    pub failed: Option<Ailment>,
    /// When it last handed over because of that.
    yielded: Option<Moment>,
}

/// One check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    at: Moment,
    progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Running,
    Ended,
    Unanswered,
}

/// What keeps a primary from its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ailment {
    /// The postmaster makes no backends.
    Mute,
    /// The postmaster was stopped by a signal.
    Stopped,
    /// A commit does not reach the disk.
    Stuck,
    /// The server says that its disk fails.
    Refused(String),
    /// The file system has been turned read-only.
    ReadOnly,
    /// So many bytes are left on the volume.
    Full(u64),
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mute => f.write_str("the postmaster takes no connections"),
            Self::Stopped => f.write_str("the postmaster has been stopped by a signal"),
            Self::Stuck => f.write_str("commits do not reach the disk"),
            Self::Refused(words) => write!(f, "the disk fails: {words}"),
            Self::ReadOnly => f.write_str("the file system is read-only"),
            Self::Full(bytes) => write!(f, "the volume is full: {} MiB are left", bytes >> 20),
        }
    }
}

/// Whether a volume has too little room for a primary.
pub fn is_low(room: &Room) -> bool {
    room.free < (room.total / LOW_PART).clamp(LOW_AT_LEAST, LOW_AT_MOST)
}

/// The checks to begin now, each with its patience.
pub fn due(view: &View) -> Vec<(Check, Duration)> {
    let vitals = &view.memory.vitals;
    let ttl = view.rules.timing.ttl;
    let leads = matches!(view.lease, Lease::Held { .. });
    let runs = matches!(view.local.process, UnitState::Running { .. }) && leads;
    // Before it has once taken writes it may be recovering, and says so to whoever knocks.
    let idle = vitals.worked.is_some_and(|(_, at)| view.now.since(at) >= ttl);
    let low = vitals.room.as_ref().is_some_and(is_low);
    let measure_every = if low { MEASURE_LOW_EVERY } else { MEASURE_EVERY };
    let wanted = [
        (Check::Measure, true, measure_every, MEASURE_PATIENCE),
        (Check::Knock, runs, KNOCK_EVERY, KNOCK_PATIENCE),
        // A commit is only asked for when none was seen: an idle primary makes one per TTL, a busy one none.
        (Check::Write, runs && idle, ttl / 2, ttl),
    ];
    let due = wanted
        .into_iter()
        .filter(|(check, wanted, every, _)| *wanted && vitals.may_ask(*check, *every, view.now));
    due.map(|(check, _, _, patience)| (check, patience)).collect()
}

impl Vitals {
    fn may_ask(&self, check: Check, every: Duration, now: Moment) -> bool {
        self.asked.get(&check).is_none_or(|asked| match (asked.progress, check) {
            (Progress::Running, _) => false,
            (Progress::Unanswered, Check::Measure) => now.since(asked.at) >= MEASURE_AFTER_SILENCE,
            (Progress::Ended | Progress::Unanswered, _) => now.since(asked.at) >= every,
        })
    }

    /// A check has been begun.
    pub fn ask(&mut self, check: Check, at: Moment) {
        self.asked.insert(check, Asked { at, progress: Progress::Running });
    }

    /// A check has ended.
    pub fn hear(&mut self, check: Check, pulse: &Pulse, now: Moment) {
        let began = self.asked.get(&check).map_or(now, |asked| asked.at);
        let silent = matches!(pulse, Pulse::Silent(_));
        let progress = if silent { Progress::Unanswered } else { Progress::Ended };
        self.asked.insert(check, Asked { at: began, progress });
        match (check, pulse) {
            (_, Pulse::Gone) => {}
            (_, Pulse::Measured(room)) => self.room = Some(*room),
            (Check::Measure, _) => {}
            (Check::Knock, Pulse::Silent(posture)) => {
                self.mute = Some((self.mute.map_or(began, |(since, _)| since), *posture));
            }
            (Check::Knock, _) => self.mute = None,
            (Check::Write, Pulse::Silent(_)) => self.stick(began, Ailment::Stuck),
            (Check::Write, Pulse::Refused(words)) => self.stick(began, Ailment::Refused(words.clone())),
            (Check::Write, Pulse::Wrote | Pulse::Answered | Pulse::Declined(_)) => {
                self.stuck = None;
                self.worked = self.worked.map(|(lsn, _)| (lsn, now));
            }
        }
    }

    fn stick(&mut self, began: Moment, ailment: Ailment) {
        let since = self.stuck.as_ref().map_or(began, |(since, _)| *since);
        self.stuck = Some((since, ailment));
    }

    /// Takes in what the local instance is. A server that has ended keeps the verdict until the next one runs.
    pub(super) fn saw(&mut self, view: &View) {
        if let UnitState::Running { pid, .. } = view.local.process
            && self.pid != Some(pid)
        {
            (self.pid, self.worked, self.mute, self.stuck) = (Some(pid), None, None, None);
        }
        match view.instance() {
            Instance::Primary(_, lsn) => {
                if self.worked.is_none_or(|(known, _)| lsn > known) {
                    self.worked = Some((lsn, view.now));
                }
                self.failed = self.judge(view);
            }
            Instance::Silent => self.failed = self.judge(view),
            Instance::Standby(..) => self.failed = None,
            Instance::Down => self.ended(view),
            Instance::Ending => {}
        }
    }

    fn ended(&mut self, view: &View) {
        let words = view.memory.failures.get(&Job::Start).map(|f| f.why.as_str());
        if let Some(words) = words.filter(|words| speaks_of_the_disk(words)) {
            self.failed = Some(Ailment::Refused(words.to_owned()));
        }
        if self.failed.is_some() && view.lease == Lease::None {
            self.yielded.get_or_insert(view.now);
        } else if view.lease != Lease::None
            && self.yielded.is_some_and(|at| view.now.since(at) >= HANDOVER_PAUSE)
        {
            self.yielded = None;
        }
    }

    fn judge(&self, view: &View) -> Option<Ailment> {
        if view.lease == Lease::None {
            return None;
        }
        let (now, ttl) = (view.now, view.rules.timing.ttl);
        let still = self.worked.is_none_or(|(_, at)| now.since(at) >= ttl);
        let mute = self.mute.and_then(|(since, posture)| match posture {
            // Somebody has stopped it, and it will not go on by itself.
            Posture::Stopped => (now.since(since) >= ttl / 2).then_some(Ailment::Stopped),
            Posture::Alive => {
                let patience = if still { ttl } else { STUBBORN * ttl };
                (now.since(since) >= patience).then_some(Ailment::Mute)
            }
        });
        let stuck = self.stuck.as_ref().filter(|(since, _)| still && now.since(*since) >= ttl);
        let read_only = self.room.filter(|r| r.access == Access::ReadOnly).map(|_| Ailment::ReadOnly);
        let full = self.room.filter(is_low).map(|room| Ailment::Full(room.free));
        mute.or_else(|| stuck.map(|(_, ailment)| ailment.clone())).or(read_only).or(full)
    }
}

/// What PostgreSQL and the kernel say when a disk is full or failing.
fn speaks_of_the_disk(words: &str) -> bool {
    ["No space left on device", "Read-only file system", "Input/output error", "Disk quota exceeded"]
        .iter()
        .any(|phrase| words.contains(phrase))
}

/// Whether these words are of a server that has found no room.
pub(super) fn is_full(words: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|phrase| words.contains(phrase))
}

/// Whether the last start failed, or would fail, for want of room or of a disk that works.
pub(super) fn disk_is_to_blame(view: &View) -> bool {
    let words = view.memory.failures.get(&Job::Start).is_some_and(|f| speaks_of_the_disk(&f.why));
    let room = view.memory.vitals.room;
    words || room.is_some_and(|room| is_low(&room) || room.access == Access::ReadOnly)
}

/// A leader that cannot do its work: what it does about it; `None` when it goes on as ever.
pub(super) fn unfit(view: &View, snapshot: &Snapshot) -> Option<Decision> {
    // In maintenance mode nothing is handed over: whoever pauses a cluster looks after it.
    let ailment = view.memory.vitals.failed.as_ref().filter(|_| !pause::is_on(view))?;
    if matches!(ailment, Ailment::Full(_)) && !lead::timeline_is_written(view, snapshot) {
        // It works. Whoever leads next must not give its timeline the same number.
        return None;
    }
    let heir = heir(view, snapshot, ailment);
    match (view.instance(), heir) {
        (Instance::Primary(..) | Instance::Silent, Some(heir)) => {
            let task = match ailment {
                // It still works: an orderly end, so that the heir has everything.
                Ailment::Full(_) => {
                    Task::StopAfterCheckpoint(StopMode::Fast { patience: super::decide::STOP_PATIENCE })
                }
                Ailment::Mute
                | Ailment::Stopped
                | Ailment::Stuck
                | Ailment::Refused(_)
                | Ailment::ReadOnly => Task::Stop(StopMode::Immediate),
            };
            Some(act(Action::Begin(task), Reason::Unfit(ailment.clone(), heir.clone())))
        }
        (Instance::Down, Some(heir)) => {
            Some(act(Action::Release, Reason::Unfit(ailment.clone(), heir.clone())))
        }
        (Instance::Primary(..) | Instance::Silent, None) if worth_a_restart(view, ailment) => {
            Some(act(Action::Begin(Task::Stop(StopMode::Immediate)), Reason::UnfitAlone(ailment.clone())))
        }
        (Instance::Silent, None) => {
            Some(Decision { actions: vec![], reason: Reason::UnfitAlone(ailment.clone()), wake: Wake::Loop })
        }
        (Instance::Primary(..) | Instance::Down, None) | (Instance::Ending | Instance::Standby(..), _) => {
            None
        }
    }
}

/// The duties of a leader that cannot do its work and has nobody to hand over to, under their true reason.
pub(super) fn told(view: &View, duties: Decision) -> Decision {
    match &view.memory.vitals.failed {
        Some(ailment) if duties.reason == Reason::Leading => {
            Decision { reason: Reason::UnfitAlone(ailment.clone()), ..duties }
        }
        Some(_) | None => duties,
    }
}

fn act(action: Action, reason: Reason) -> Decision {
    Decision { actions: vec![action], reason, wake: lead::PROMPTLY }
}

/// A new postmaster mends what hangs in the old one; it mends no disk.
fn worth_a_restart(view: &View, ailment: &Ailment) -> bool {
    match ailment {
        Ailment::Stopped => true,
        Ailment::Mute => {
            let since = view.memory.vitals.mute.map_or(view.now, |(since, _)| since);
            view.now.since(since) >= STUBBORN * view.rules.timing.ttl
        }
        Ailment::Stuck | Ailment::Refused(_) | Ailment::ReadOnly | Ailment::Full(_) => false,
    }
}

/// Who could lead in this node's place, with the room for it and with everything that was acknowledged.
fn heir<'a>(view: &View, snapshot: &'a Snapshot, ailment: &Ailment) -> Option<&'a NodeName> {
    let paused_by_pause = matches!(ailment, Ailment::Full(_))
        && view.memory.vitals.yielded.is_some_and(|at| view.now.since(at) < HANDOVER_PAUSE);
    if paused_by_pause {
        return None;
    }
    let optime = snapshot.status.as_ref().and_then(|s| s.value.optime).unwrap_or_default();
    let near = |m: &Member| {
        optime.bytes_ahead_of(m.xlog_location.unwrap_or_default()) <= view.rules.maximum_lag_on_failover
    };
    // In a race it would be no candidate: it has nothing of what was written since.
    let cluster = snapshot.history.as_ref().map_or(Timeline(0), |h| h.value.cluster_timeline());
    let current = |m: &Member| m.timeline.is_none_or(|timeline| timeline >= cluster);
    let fit = |m: &&Member| is_candidate(view, m) && current(m) && has_room(m, ailment);
    let electors = snapshot.sync.as_ref().map(|s| Electors::of(&s.value));
    match (view.rules.sync_mode, electors) {
        (SyncMode::Off, _) => snapshot.members.iter().filter(fit).find(|m| near(m)).map(|m| &m.name),
        (SyncMode::On | SyncMode::Quorum, None) => None,
        (SyncMode::On | SyncMode::Quorum, Some(electors)) => {
            let voters = || snapshot.members.iter().filter(|m| electors.voters.contains(&m.name));
            let votes = voters().filter(|m| is_candidate(view, m)).count();
            // The heir's own vote is not counted against the quorum.
            let enough = u32::try_from(votes).is_ok_and(|votes| votes > electors.quorum);
            voters().filter(|_| enough).find(fit).map(|m| &m.name)
        }
    }
}

fn is_candidate(view: &View, member: &Member) -> bool {
    let runs = member.state == MemberState::Running && member.role == Role::Replica;
    member.name != view.me && runs && manual::priority(member) > 0
}

/// Never to a fuller node. One that does not tell (a stock node) is taken for one with room, unless room is the matter.
fn has_room(member: &Member, ailment: &Ailment) -> bool {
    match (&member.room, ailment) {
        (Some(room), _) if is_low(room) || room.access == Access::ReadOnly => false,
        // Not for a few megabytes: the next one would hand it back.
        (Some(room), Ailment::Full(mine)) => room.free / 2 >= *mine,
        (None, Ailment::Full(_)) => false,
        (Some(_) | None, _) => true,
    }
}

/// Whether this node has just handed over: it stands back for others, with its server down.
pub(super) fn stands_back(view: &View) -> bool {
    let vitals = &view.memory.vitals;
    let lately = vitals.yielded.is_some_and(|at| view.now.since(at) < STAND_BACK * view.rules.timing.ttl);
    vitals.failed.is_some() && lately && view.lease == Lease::None
}

/// In a race: somebody who is not behind this node has room where this one has none.
pub(super) fn roomier<'a>(
    view: &View,
    snapshot: &Snapshot,
    poll: &'a Poll,
    mine: (Timeline, Lsn),
) -> Option<&'a NodeName> {
    let room = view.memory.vitals.room.filter(is_low)?;
    let with_more = |name: &NodeName| {
        let theirs = snapshot.member(name).and_then(|m| m.room);
        theirs.is_some_and(|theirs| !is_low(&theirs) && theirs.free > room.free)
    };
    let level = |other: &Candidate| {
        (other.timeline, other.position) >= mine && other.eligibility == Eligibility::Eligible
    };
    poll.answers.iter().find_map(|(name, answer)| match answer {
        PollAnswer::Standby(other) if level(other) && with_more(name) => Some(name),
        PollAnswer::Standby(_) | PollAnswer::Primary | PollAnswer::Down | PollAnswer::Unreachable => None,
    })
}

/// A stop that does not end: SIGKILL has been sent to everything, and what the kernel still holds (a process that waits for a
/// dead disk) can execute nothing any more. The key is not released; it is let run out.
pub(super) fn stop_hangs(view: &View) -> Option<Decision> {
    let doing = view.doing.filter(|d| d.job == Job::Stop && view.now.since(d.since) >= STOP_HANGS)?;
    let held = view.lease != Lease::None;
    held.then(|| act(Action::Forget, Reason::StopHangs(view.now.since(doing.since).as_secs())))
}
