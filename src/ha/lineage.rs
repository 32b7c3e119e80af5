//! Is the local history part of the leader's, or has it left it? Ancestry first, then position.
//!
//! Who began a timeline is known from the record: whom this node was about to follow when it took WAL in. One way around that
//! is left: a server whose agent stands still goes on streaming from another standby, which may hand it the timeline of a
//! leader that this agent has never heard of. A second timeline of that number matters only if the first one was lost before
//! the store knew of it. Then the bytes tell: whoever comes back, or stops streaming, asks the leader for what is at its own last
//! checkpoint, and where something else is there ([`Containment::Differs`]) the data is copied. Before that checkpoint
//! PostgreSQL itself has the last word: a record that does not fit the one before it is not replayed.

use std::time::Duration;

use crate::dcs::{History, Member, MemberState, Role, Snapshot};
use crate::postgres::status::{Answer, Control, ControlState};
use crate::postgres::{Containment, StartAs, Upstream};
use crate::record::{Followed, Record};
use crate::types::{Lsn, NodeName, Timeline};

use super::Position;
use super::publish;
use super::reason::Action;
use super::remote;
use super::rules::Mode;
use super::view::{Ancestry, Instance, Job, Later, Lease, Origin, View};

/// What the leader said of its history is good for this long.
pub(super) const ANCESTRY_AGE: Duration = Duration::from_secs(30);

/// How a local history relates to the leader's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lineage {
    /// It is part of it: streaming can go on from here.
    Part,
    /// It has gone its own way: it must be rewound.
    Left,
    /// The end of the local history is not known (it crashed as a primary on an older timeline): pg_rewind finds out.
    Unknown,
}

/// The lineage of a running standby at this position.
pub fn of_running(timeline: Timeline, position: Lsn, leader: &Ancestry) -> Lineage {
    if timeline == leader.timeline {
        return Lineage::Part;
    }
    match leader.history.end_of(timeline) {
        Some(end) if position <= end => Lineage::Part,
        Some(_) | None => Lineage::Left,
    }
}

/// The lineage of a stopped instance, by its control file.
pub fn of_stopped(control: &Control, leader: &Ancestry) -> Lineage {
    let timeline = control.reached();
    if timeline == leader.timeline {
        return Lineage::Part;
    }
    let Some(end) = leader.history.end_of(timeline) else {
        return Lineage::Left;
    };
    match control.state {
        // The shutdown checkpoint is the last record: it must lie before the fork, not at it.
        ControlState::ShutDown if control.checkpoint < end => Lineage::Part,
        ControlState::ShutDown => Lineage::Left,
        ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => {
            of_running(timeline, control.min_recovery_end.max(control.checkpoint), leader)
        }
        ControlState::StartingUp
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction
        | ControlState::Unknown => Lineage::Unknown,
    }
}

/// Whether a local timeline is the leader's of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kin {
    /// It is, or its number alone tells.
    Same,
    /// Two nodes were promoted to one number, and this is the other one's.
    Other,
    /// The leader has not said yet what it writes, or how it came to it.
    Open,
}

/// What the local data holds that the store did not know of when it came: timelines of which this node began the only one in its
/// promotion, or the leader that it followed then the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken<'a> {
    author: &'a NodeName,
    first: Timeline,
    last: Timeline,
}

impl Taken<'_> {
    fn holds(&self, timeline: Timeline) -> bool {
        self.first <= timeline && timeline <= self.last
    }

    /// Who began these timelines, as far as the store knows by now.
    fn begun(&self, history: &History) -> Vec<(Timeline, NodeName)> {
        let named = |number| Some((Timeline(number), history.beginner_of(Timeline(number))?));
        (self.first.0..=self.last.0).filter_map(named).collect()
    }
}

/// The same for data that ends on this timeline; none when the store knew of all of it.
pub(super) fn taken(view: &View, local: Timeline) -> Option<Taken<'_>> {
    if view.volume.promoted == Some(local) {
        let author = view.volume.promoted_as.as_ref().unwrap_or(&view.me);
        return Some(Taken { author, first: local, last: local });
    }
    view.volume.taken.as_ref().map(|followed| {
        let first = Timeline(followed.known.0.saturating_add(1));
        Taken { author: &followed.leader, first, last: local.max(first) }
    })
}

/// A timeline of which the cluster has another one than the local data, and who began the cluster's.
pub fn foreign(view: &View, snapshot: &Snapshot, local: Timeline) -> Option<(Timeline, NodeName)> {
    let taken = taken(view, local)?;
    let begun = taken.begun(&snapshot.history.as_ref()?.value);
    begun.into_iter().find(|(_, began)| began != taken.author)
}

/// Whether the data holds what somebody else than this leader began, as far as is known without the store.
pub fn is_of_another(view: &View, local: Timeline, asked: &Ancestry) -> bool {
    asked.contains_ours == Containment::Differs
        || taken(view, local).is_some_and(|taken| *taken.author != asked.leader)
}

/// The same once the leader was asked: bytes tell more than numbers and names.
pub fn kin_by_bytes(view: &View, snapshot: &Snapshot, local: Timeline, asked: &Ancestry) -> Kin {
    match asked.contains_ours {
        Containment::Differs => Kin::Other,
        Containment::Shown(_) | Containment::Unshown => kin(view, snapshot, local, &asked.leader),
    }
}

/// Whether the local timeline is the leader's, or a part of what the leader's came from.
pub fn kin(view: &View, snapshot: &Snapshot, local: Timeline, leader: &NodeName) -> Kin {
    let Some(taken) = taken(view, local).filter(|taken| taken.author != leader) else {
        return Kin::Same;
    };
    let begun = snapshot.history.as_ref().map(|h| taken.begun(&h.value)).unwrap_or_default();
    let is_authors = |(_, began): &(Timeline, NodeName)| began == taken.author;
    let theirs_alone = !begun.is_empty() && begun.iter().all(is_authors);
    if remote::of(view).is_some() {
        // Nobody here begins a timeline: what the store does not know by now it never will.
        return if theirs_alone { Kin::Same } else { Kin::Other };
    }
    match written_by(snapshot, leader) {
        // A primary has begun what it writes.
        Some(written) if taken.holds(written) => Kin::Other,
        Some(_) | None if theirs_alone => Kin::Same,
        Some(_) | None if !begun.is_empty() => Kin::Other,
        None => Kin::Open,
        Some(_) if view.volume.promoted == Some(local) => Kin::Other,
        Some(written) if written > taken.last && written > known(snapshot) => Kin::Open,
        // Rows of long ago, or without a name.
        Some(_) => Kin::Same,
    }
}

/// The timeline that a leader says it writes as a primary.
pub(super) fn written_by(snapshot: &Snapshot, leader: &NodeName) -> Option<Timeline> {
    let serving = |m: &&Member| m.state == MemberState::Running && m.role == Role::Primary;
    snapshot.member(leader).filter(serving).and_then(|m| m.timeline)
}

/// The cluster's timeline as far as the store knows.
pub fn known(snapshot: &Snapshot) -> Timeline {
    snapshot.history.as_ref().map_or(Timeline(1), |h| h.value.cluster_timeline())
}

/// Whether the store knows of what this leader writes: it begins no other timeline while it leads.
fn is_settled(snapshot: &Snapshot, leader: &NodeName) -> bool {
    written_by(snapshot, leader).is_some_and(|timeline| timeline <= known(snapshot))
}

/// Whether it is on disk already that this leader is followed, where that must be.
pub fn is_remembered(view: &View, snapshot: &Snapshot, leader: &NodeName) -> bool {
    remote::of(view).is_some()
        || is_settled(snapshot, leader)
        || view.volume.followed.as_ref().is_some_and(|f| f.leader == *leader)
}

/// Whether something of it must be on disk before it is done, here or by [`super::door`]. Everything else, above all a stop, waits
/// for no disk.
pub fn needs_disk(action: &Action) -> bool {
    matches!(action, Action::Follow(_) | Action::Start(StartAs::Standby(_), _) | Action::OpenDoor)
}

/// What must be on disk before WAL of the leader is taken in: a leader that the store does not know enough of may begin a
/// timeline that nobody hears of. The leader of a cluster that follows another one begins none.
pub fn source(view: &View) -> Option<Followed> {
    let snapshot = view.snapshot().filter(|_| remote::of(view).is_none())?;
    let leader = snapshot.leader_name().filter(|leader| !is_settled(snapshot, leader))?.clone();
    Some(Followed { leader, known: known(snapshot) })
}

/// The same, where this is about to take WAL in.
pub fn remember(view: &View, action: &Action, record: &mut Record) {
    let (Action::Follow(Some(upstream)) | Action::Start(StartAs::Standby(Some(upstream)), _)) = action else {
        return;
    };
    record.promoted = record.promoted.filter(|begun| !was_never_asked_for(view, *begun));
    match (view.snapshot(), view.control()) {
        (Some(_), _) => record.followed = source(view),
        // The store is silent and says nothing of this leader: what it begins from here on is its own, and whoever was followed
        // before has begun nothing that is here (else this one would not be followed).
        (None, Some(control)) if view.volume.taken.is_none() => {
            record.followed = Some(Followed { leader: upstream.name.clone(), known: control.reached() });
        }
        (None, Some(_) | None) => {}
    }
}

/// What must be on disk before a promotion. Where the data is on a timeline that this node has begun before, and whose row in the
/// history it may never have written, the rows from there on are its own, not those of whom it followed before.
pub fn begin(view: &View, record: &mut Record) {
    if let Some(own) = record.promoted.filter(|own| view.timeline() == Some(*own)) {
        let leader = record.promoted_as.take().unwrap_or_else(|| view.me.clone());
        record.followed = Some(Followed { leader, known: Timeline(own.0.saturating_sub(1)) });
    }
    (record.promoted, record.promoted_as) = (publish::next_timeline(view), Some(view.me.clone()));
}

/// Whether a promotion that is written down is one that nobody has asked the server for: its record came late, when whoever waited
/// for it had given it up. From here on a timeline of that number is the leader's. The control file alone does not tell, since
/// a server that dies in its promotion writes the history first; nor does the history, as long as this server may have been
/// asked and is on its way. (One that starts has forgotten that.)
fn was_never_asked_for(view: &View, begun: Timeline) -> bool {
    let never_asked = match view.instance() {
        Instance::Down => true,
        Instance::Silent | Instance::Ending | Instance::Primary(..) | Instance::Standby(..) => {
            view.memory.origin == Origin::Started && view.n_failures(Job::Promote) == 0
        }
    };
    never_asked && view.timeline() < Some(begun) && view.volume.later == Later::NotSeen
}

/// What the volume need not remember any more: a promotion that came to nothing (this node streams on from somebody else,
/// before the timeline that it was to begin), one whose timeline is another cluster's too, which this node streams from, and a
/// leader whose timeline has become the cluster's.
pub fn forget(view: &View, record: &mut Record) {
    let Some(snapshot) = view.snapshot() else { return };
    if let Instance::Standby(answer, _) = view.instance() {
        let streams = view.memory.not_streaming.is_none() && publish::streams(answer);
        let follows = view.doing.is_none() && view.lease == Lease::None && view.memory.following.is_some();
        let shared = view.memory.following.as_ref().is_some_and(|upstream| upstream.foreign.is_some());
        let is_over = |begun: &Timeline| streams && (shared || (follows && answer.timeline < *begun));
        record.promoted = record.promoted.filter(|begun| !is_over(begun));
    }
    // What a primary holds of others' it has made part of a timeline of its own, once the history says so.
    let own = matches!(view.instance(), Instance::Primary(answer, _)
        if view.volume.promoted == Some(answer.timeline) && known(snapshot) >= answer.timeline);
    let settled = |f: &Followed| snapshot.leader_name() == Some(&f.leader) && is_settled(snapshot, &f.leader);
    record.followed = record.followed.take().filter(|f| !own && !settled(f));
}

/// What others may make of the local position in a vote.
pub fn position(view: &View) -> Position {
    let timeline = view.local.sql.as_ref().map(|answer| standby_timeline(view, answer));
    let foreign = view.snapshot().zip(timeline).and_then(|(snapshot, local)| foreign(view, snapshot, local));
    match (foreign, view.memory.frozen) {
        (Some(_began), _) => Position::Foreign,
        (None, Some(_since)) => Position::Frozen,
        (None, None) => Position::Moving,
    }
}

/// The timeline of a standby for a comparison: what it receives, or replays, never older than its control file's.
pub fn standby_timeline(view: &View, answer: &Answer) -> Timeline {
    view.control().map_or(answer.timeline, |c| c.reached().max(answer.timeline))
}

/// Whether PostgreSQL was found running when the agent started, and its control file is not a standby's. What was started
/// since then is another matter: the control file of a primary that starts as a standby still says what it was.
pub fn was_found_writable(view: &View) -> bool {
    let agent = matches!(view.rules.mode, Mode::Agent { .. });
    let found = view.memory.origin == Origin::Found;
    agent && found && view.control().is_some_and(|control| !was_standby(control))
}

/// Whether the data was a standby's when the server ended, or cannot be shown to have been a primary's.
pub fn was_standby(control: &Control) -> bool {
    match control.state {
        ControlState::ShutDown
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction => false,
        ControlState::StartingUp
        | ControlState::ShutDownInRecovery
        | ControlState::InArchiveRecovery
        | ControlState::Unknown => true,
    }
}

/// What this leader said of its history, if it is fresh enough.
pub(super) fn known_ancestry<'a>(view: &'a View, source: &Upstream) -> Option<&'a Ancestry> {
    let fresh = |a: &&Ancestry| a.leader == source.name && view.now.since(a.at) < ANCESTRY_AGE;
    view.memory.ancestry.as_ref().filter(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::types::{NodeName, SystemId, TimelineHistory};

    fn leader(history: &str, timeline: u32) -> Ancestry {
        let history = TimelineHistory::parse(history).unwrap();
        let contains_ours = Containment::Unshown;
        Ancestry {
            leader: NodeName::from("n1"),
            at: Moment(0),
            system_id: None,
            timeline: Timeline(timeline),
            history,
            contains_ours,
        }
    }

    fn control(state: ControlState, timeline: u32, checkpoint: u64, min_recovery_end: u64) -> Control {
        Control {
            system_id: SystemId(7_000_000_000_000_000_000),
            state,
            timeline: Timeline(timeline),
            checkpoint: Lsn(checkpoint),
            min_recovery_end: Lsn(min_recovery_end),
            min_recovery_timeline: Timeline(if min_recovery_end > 0 { timeline } else { 0 }),
        }
    }

    #[test]
    fn a_clean_shutdown_before_the_fork_is_part_of_the_leaders_history() {
        let leader = leader("1\t0/5000000\tno recovery target specified\n", 2);
        let clean = |lsn| of_stopped(&control(ControlState::ShutDown, 1, lsn, 0), &leader);
        assert_eq!(clean(0x4ff_ff88), Lineage::Part);
        assert_eq!(clean(0x500_0000), Lineage::Left, "the shutdown checkpoint itself was not received");
    }

    #[test]
    fn a_crashed_primary_on_an_older_timeline_is_left_to_pg_rewind() {
        let leader = leader("1\t0/5000000\t\n", 2);
        assert_eq!(
            of_stopped(&control(ControlState::InProduction, 1, 0x400_0000, 0), &leader),
            Lineage::Unknown
        );
    }

    #[test]
    fn a_newer_private_timeline_has_left_however_long_it_is() {
        let leader = leader("1\t0/5000000\t\n", 2);
        assert_eq!(of_stopped(&control(ControlState::ShutDown, 3, 0x900_0000, 0), &leader), Lineage::Left);
        assert_eq!(of_running(Timeline(3), Lsn(0x100), &leader), Lineage::Left);
    }

    #[test]
    fn a_standby_that_replayed_beyond_the_fork_has_left() {
        let leader = leader("1\t0/5000000\t\n", 2);
        let standby =
            |end| of_stopped(&control(ControlState::ShutDownInRecovery, 1, 0x300_0000, end), &leader);
        assert_eq!(standby(0x500_0000), Lineage::Part);
        assert_eq!(standby(0x500_0001), Lineage::Left);
        assert_eq!(of_running(Timeline(1), Lsn(0x500_0001), &leader), Lineage::Left);
    }
}
