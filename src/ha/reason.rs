//! Decisions and their reasons: what `decide` can answer.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::dcs::{Claim, Failsafe, Precondition, Shutdown, Sync};
use crate::postgres::{Part, Reserve, SlotPlan, StartAs, Upstream};
use crate::types::{Lsn, NodeName, Revision, SlotName, SystemId, Timeline};

use super::fitness::Ailment;
pub use super::job::Task;
use super::manual::Refusal;
use super::orders::{Order, Settled};
use super::view::Job;

/// What to do now, why, and when to look again at the latest.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// In this order; a failure ends the list (the next tick decides anew).
    pub actions: Vec<Action>,
    /// Why, or why nothing.
    pub reason: Reason,
    /// When to look again.
    pub wake: Wake,
}

/// When to look again at the latest. Events wake the loop in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// After `loop_wait`.
    Loop,
    /// Sooner: something is about to change.
    Soon(Duration),
}

/// One thing to do. The agent has one line for each.
#[derive(Debug, Clone, PartialEq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    /// Take the leader key.
    Acquire(Claim),
    /// Stop renewing a lease that is over.
    Forget,
    /// Give it back. Only ever decided when no PostgreSQL here can take writes.
    Release,
    /// Say in `initialize` that a new cluster is being made here.
    ClaimInitialize(Precondition),
    /// Write the system identifier to `initialize`.
    PutInitialize(SystemId),
    /// Write the dynamic configuration that a new cluster begins with.
    PutConfig,
    /// Write the `sync` key.
    PutSync(Sync, Precondition),
    /// Delete the `sync` key.
    DeleteSync(Revision),
    /// Clear the request in the `failover` key.
    ClearFailover(Revision),
    /// Write the leader's last position, and that this was its end.
    PutShutdown(Lsn, Shutdown),
    /// Write the leader's position and the slots.
    PutStatus(Lsn),
    /// Write the timeline history.
    PutHistory(Timeline),
    /// Start PostgreSQL, with these `synchronous_standby_names` from its first commit on.
    Start(StartAs, String),
    /// Let no clients in at the next start.
    CloseDoor,
    /// Let clients in.
    OpenDoor,
    /// Stream from this node, or from nobody (and resume a held walreceiver).
    Follow(Option<Upstream>),
    /// Hold the walreceiver so that the position no longer moves.
    Freeze,
    /// Set `synchronous_standby_names`.
    SetSyncNames(String),
    /// Bring the server to the settings for this part.
    Configure(Part),
    /// Drop, make and move replication slots.
    ChangeSlots(SlotPlan),
    /// See to it that these logical slots of this leader's can be copied. Nothing waits for it.
    PrepareCopies(Upstream, BTreeSet<SlotName>),
    /// Write the `failsafe` key.
    PutFailsafe(Failsafe, Precondition),
    /// Delete it.
    DeleteFailsafe(Revision),
    /// Ask every member of the `failsafe` key for its promise. Nothing waits for it.
    AskMembers,
    /// Begin a long action; it is shown as `doing` until it ends.
    Begin(Task),
    /// Bring the server to its settings again.
    Reload,
    /// The scheduled restart is due.
    TakeUpSchedule,
    /// The scheduled restart is not done.
    DropSchedule,
    /// A restart of what is down: only the start is left.
    RestartStopped,
    /// The copy is begun: whoever asked for it is told.
    AcceptReinitialize,
    /// The order is done, or not to be done.
    Settle(Order, Settled),
    /// The lock is given up as soon as PostgreSQL is down.
    GiveAway,
    /// Hold so much room back.
    LayInReserve(Reserve),
    /// Give the room back that was held.
    GiveReserve,
    /// Set the watchdog going.
    ArmWatchdog,
    /// Stop the watchdog: nothing here can take writes.
    DisarmWatchdog,
    /// End the loop: everything is in order.
    Finish,
}

impl Action {
    /// Whether it takes as long as the store does to answer.
    pub fn waits_for_store(&self) -> bool {
        match self {
            Self::Acquire(_)
            | Self::ClaimInitialize(_)
            | Self::PutInitialize(_)
            | Self::PutConfig
            | Self::PutSync(..)
            | Self::DeleteSync(_)
            | Self::ClearFailover(_)
            | Self::PutShutdown(..)
            | Self::PutStatus(_)
            | Self::PutHistory(_)
            | Self::PutFailsafe(..)
            | Self::DeleteFailsafe(_) => true,
            // A release has a limit of its own: nothing leads any more when it is sent.
            Self::Release
            | Self::Forget
            | Self::Start(..)
            | Self::CloseDoor
            | Self::OpenDoor
            | Self::Follow(_)
            | Self::Freeze
            | Self::SetSyncNames(_)
            | Self::Configure(_)
            | Self::ChangeSlots(_)
            | Self::PrepareCopies(..)
            | Self::AskMembers
            | Self::Begin(_)
            | Self::Reload
            | Self::TakeUpSchedule
            | Self::DropSchedule
            | Self::RestartStopped
            | Self::AcceptReinitialize
            | Self::Settle(..)
            | Self::GiveAway
            | Self::LayInReserve(_)
            | Self::GiveReserve
            | Self::ArmWatchdog
            | Self::DisarmWatchdog
            | Self::Finish => false,
        }
    }
}

/// Why something is done, or why nothing is.
#[derive(Debug, Clone, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// A primary with a valid lease.
    Leading,
    /// A primary with a valid lease, whose commits wait: none of these standbys streams.
    CommitsWait(Vec<NodeName>),
    /// A primary with a valid lease that lets no clients in yet: these standbys have not confirmed what it recovered.
    ClientsWait(Vec<NodeName>),
    /// A standby of the leader.
    Following(NodeName),
    /// A long action is under way.
    Busy(Job),
    /// The lease is about to end, or is lost: a primary must not go on.
    LeaseEnding,
    /// Another node leads: this primary must not go on.
    AnotherLeads(NodeName),
    /// The store does not answer.
    StoreSilent(String),
    /// The store does not answer, and may say that everything ended with this node: its primary is not started again.
    ShutdownMarkStands,
    /// The store has not been confirmed by enough members.
    StoreNotReady,
    /// No leader: PostgreSQL is started to learn how far it is.
    StartToVote,
    /// PostgreSQL is starting.
    Starting,
    /// PostgreSQL is ending.
    Ending,
    /// PostgreSQL died, and the lease is ours: it is started again in place.
    CrashRestart,
    /// It dies again and again: somebody else shall lead.
    CrashLoop(u32),
    /// This node cannot do a primary's work, and that one can.
    Unfit(Ailment, NodeName),
    /// This node cannot do a primary's work, and nobody else could do it better.
    UnfitAlone(Ailment),
    /// This node has handed over because it cannot do a primary's work.
    StandingBack,
    /// The volume is full: the room that was held back goes to the server that has to recover.
    GivingReserve,
    /// The watchdog is set going before this node can take writes.
    ArmingWatchdog,
    /// Nobody leads without a watchdog, and this node's cannot be used.
    WatchdogFailed(String),
    /// The lock is ours; `pre_promote` is asked whether this node may be promoted.
    AwaitingApproval,
    /// `pre_promote` has said no: another node shall lead, and this one may ask again after a TTL.
    NotApproved(String),
    /// Everything has been sent SIGKILL, and the kernel still holds a process, for so many seconds.
    StopHangs(u64),
    /// Somebody who is not behind has room on its volume, and this node has none.
    Fuller(NodeName),
    /// The store is silent, and these members have promised not to take this primary's place.
    Outlasting(Vec<NodeName>),
    /// The store is silent, and these members have not promised.
    NotAllowedToOutlast(Vec<NodeName>),
    /// This node has promised that leader not to take its place.
    Promised(NodeName),
    /// This node is not in the `failsafe` key: the leader may go on without having asked it.
    NotInFailsafe,
    /// Maintenance mode has ended a moment ago.
    Resumed,
    /// The vote is held on a position that does not move.
    Freezing,
    /// The others are asked for their positions.
    Polling,
    /// Nobody is ahead of this node.
    Winning,
    /// This node leads and becomes the primary.
    Promoting,
    /// The lease has too little left for a promotion.
    LeaseTooShort,
    /// This node may not lead.
    NoFailover,
    /// This node's timeline is older than the cluster's.
    BehindTimeline {
        /// This node's.
        mine: Timeline,
        /// The cluster's.
        cluster: Timeline,
    },
    /// This node's timeline has the cluster's number and another beginning.
    AnotherTimeline {
        /// Its number.
        timeline: Timeline,
        /// Who began the cluster's.
        began: NodeName,
    },
    /// This node lacks more than is allowed.
    LagTooLarge(u64),
    /// Another node has more.
    Behind(NodeName),
    /// Another node has as much, and a higher priority.
    Outranked {
        /// Who.
        name: NodeName,
        /// Its priority.
        theirs: u32,
        /// This node's.
        mine: u32,
    },
    /// A primary answers although nobody holds the key.
    PrimaryAlive(NodeName),
    /// This node is no synchronous standby: it may lack acknowledged commits.
    NotSynchronous(Vec<NodeName>),
    /// Too few synchronous standbys can be asked.
    VotesMissing {
        /// Votes counted.
        have: u32,
        /// Votes needed.
        need: u32,
        /// Who could give one.
        missing: Vec<NodeName>,
    },
    /// Somebody has asked for another leader: the others are asked how far they are.
    AskingSuccessors,
    /// Somebody has asked for another leader, and it is not done.
    RequestRefused(Refusal),
    /// Stops so that one of these can lead.
    HandingOver(Vec<NodeName>),
    /// This member has everything: the lock is given up for it.
    HandedOver(NodeName),
    /// Somebody has asked for this member to lead.
    LeftTo(NodeName),
    /// Maintenance mode: nothing is done by itself.
    Paused,
    /// An operator has asked for a restart.
    Restarting,
    /// An operator has asked for another copy.
    Reinitializing,
    /// An operator has asked for the settings to be read again.
    Reloading,
    /// PostgreSQL takes too long to start: somebody else shall lead.
    StartTooSlow,
    /// A new cluster is made here.
    Bootstrapping,
    /// Everybody listed is asked for data before a new cluster is made.
    Surveying,
    /// This node holds data from before pgherd that goes further, or holds it alone: the cluster begins there.
    AdoptedElsewhere(IpAddr),
    /// This node holds another database from before pgherd than we do.
    AdoptedTwo(IpAddr),
    /// These listed nodes have not said that they have no data: no new cluster is made.
    SurveyIncomplete(Vec<IpAddr>),
    /// A listed node has data: it shall lead.
    DataElsewhere(IpAddr),
    /// Without data, and nobody to copy from yet.
    WaitingForLeader,
    /// The volume once held a cluster and its data is gone, while the store knows no cluster: a person must look.
    DataLost(SystemId),
    /// The local data belongs to another cluster.
    SystemIdMismatch {
        /// The data directory's.
        local: SystemId,
        /// The store's.
        cluster: SystemId,
    },
    /// The data directory cannot be read.
    DataUnreadable(String),
    /// A copy of the leader is taken.
    Cloning(NodeName),
    /// Nobody leads: a command of the administrator's makes a copy.
    CopyingAlone,
    /// The leader has just been promoted: its control file cannot be compared with before its first checkpoint.
    AwaitingCheckpoint(NodeName),
    /// Logical slots of the leader's are copied, for which PostgreSQL is started again.
    CopyingSlots(NodeName),
    /// They are copied when this member is done: one after the other is started again.
    AwaitingTurn(NodeName),
    /// The leader's history is compared with the local one.
    Comparing(NodeName),
    /// The local history has left the leader's: it is rewound.
    Diverged(NodeName),
    /// The upstream has removed WAL that this standby needs: it is copied anew.
    WalRemoved(NodeName),
    /// The display name is not this node's yet.
    ClaimingName,
    /// A job failed and is tried again later.
    RetryLater(Job, String),
    /// Gives the key back, since this node has nothing to lead with.
    NothingToLead,
    /// A standby that stops says so first: to the proxies, and to whoever waits for its confirmations.
    AwaitingDismissal,
    /// A standby leads, following this server of another cluster (or its archive).
    LeadingStandby(Option<NodeName>),
    /// The cluster is to follow another one: its primary becomes a standby.
    BecomingStandby,
    /// The lock is ours, in a cluster that follows another one: started as a standby.
    StartingStandby,
    /// The cluster that is to be followed is another database.
    RemoteIsAnother(SystemId),
    /// This cluster has begun its timeline, and the one that is to be followed is not shown to have it.
    RemoteUnshown(Timeline),
    /// The cluster that is to be followed has another timeline of the number of ours.
    RemoteDiffers(Timeline),
    /// The server of the other cluster that answers is on a timeline before ours.
    RemoteBehind(Timeline),
    /// The cluster that is to be followed is named in no way that can be used.
    RemoteUnusable,
    /// Data from before pgherd, in a cluster that is to follow another one.
    AdoptedInStandby,
    /// Stopping, in order.
    Stopping,
    /// Stopped.
    Stopped,
}

impl fmt::Display for Reason {
    #[expect(clippy::too_many_lines, reason = "one line for each variant")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leading => f.write_str("the leader with the lock"),
            Self::CommitsWait(who) if who.is_empty() => {
                f.write_str("the leader with the lock; commits wait, since no standby may confirm them")
            }
            Self::CommitsWait(who) => {
                write!(f, "the leader with the lock; commits wait, since none of {} streams", names(who))
            }
            Self::ClientsWait(who) => write!(
                f,
                "the leader with the lock; clients wait until what was recovered is on enough of {}",
                names(who)
            ),
            Self::Following(leader) => write!(f, "a secondary, and following a leader ({leader})"),
            Self::Busy(job) => write!(f, "busy: {}", job.words()),
            Self::LeaseEnding => f.write_str("the lease is ending or lost: the primary must stop"),
            Self::AnotherLeads(name) => write!(f, "{name} leads: this primary must stop"),
            Self::StoreSilent(why) => write!(f, "the store does not answer: {why}"),
            Self::ShutdownMarkStands => f.write_str(
                "the store does not answer, and may say that this primary was shut down: not starting it",
            ),
            Self::StoreNotReady => f.write_str("the store is not confirmed by enough members yet"),
            Self::StartToVote => f.write_str("no leader: starting PostgreSQL to learn its position"),
            Self::Starting => f.write_str("PostgreSQL is starting"),
            Self::Ending => f.write_str("PostgreSQL is ending"),
            Self::CrashRestart => f.write_str("PostgreSQL died and the lock is ours: starting it again"),
            Self::CrashLoop(n) => write!(f, "PostgreSQL failed to start {n} times: giving the lock away"),
            Self::Unfit(ailment, heir) => write!(f, "{ailment}: handing over, {heir} can lead"),
            Self::UnfitAlone(ailment) => {
                write!(f, "{ailment}, and nobody else could lead in this node's place")
            }
            Self::GivingReserve => {
                f.write_str("the volume is full: giving the reserve back, so that PostgreSQL can recover")
            }
            Self::ArmingWatchdog => f.write_str("the lock is ours: setting the watchdog going"),
            Self::WatchdogFailed(why) => write!(f, "nobody leads without a watchdog, and here there is none: {why}"),
            Self::AwaitingApproval => f.write_str("the lock is ours: asking pre_promote"),
            Self::NotApproved(why) => write!(f, "pre_promote does not let this node lead: {why}"),
            Self::StandingBack => {
                f.write_str("no leader, and this node has just given up the lock: standing back")
            }
            Self::StopHangs(seconds) => write!(
                f,
                "PostgreSQL does not end for {seconds} s although it was killed: letting the lease run out"
            ),
            Self::Fuller(name) => {
                write!(f, "{name} has as much and more room on its volume: not a candidate")
            }
            Self::Outlasting(who) if who.is_empty() => {
                f.write_str("the store is silent: going on, since there is nobody else")
            }
            Self::Outlasting(who) => {
                write!(f, "the store is silent: going on, since {} will not take over", names(who))
            }
            Self::NotAllowedToOutlast(who) => write!(
                f,
                "the store is silent: stopping when the lease ends, since {} did not promise not to take over",
                names(who)
            ),
            Self::Promised(leader) => {
                write!(f, "no leader, and {leader} was promised that this node does not take over")
            }
            Self::NotInFailsafe => {
                f.write_str("no leader, and this node is not in the failsafe key: not a candidate")
            }
            Self::Resumed => f.write_str("no leader: a primary may not have heard of the end of maintenance yet"),
            Self::Freezing => f.write_str("no leader: holding the position for the vote"),
            Self::Polling => f.write_str("no leader: asking the others for their positions"),
            Self::Winning => f.write_str("no leader and nobody is ahead: taking the lock"),
            Self::Promoting => f.write_str("the lock is ours: promoting"),
            Self::LeaseTooShort => f.write_str("too little of the lease is left for a promotion"),
            Self::NoFailover => f.write_str(
                "no leader, and tagged nofailover: following a different leader because I am not allowed to promote",
            ),
            Self::BehindTimeline { mine, cluster } => {
                write!(f, "timeline {mine} is older than the cluster's {cluster}: not a candidate")
            }
            Self::AnotherTimeline { timeline, began } => write!(
                f,
                "the cluster's timeline {timeline} was begun by {began}, the one here by another node: not a candidate"
            ),
            Self::LagTooLarge(bytes) => write!(f, "{bytes} bytes behind the last leader: not a candidate"),
            Self::Behind(name) => write!(f, "Wal position of {name} is ahead of my wal position: not a candidate"),
            Self::Outranked { name, theirs, mine } => write!(
                f,
                "{name} has equally tolerable WAL position and priority {theirs}, while this node has priority {mine}"
            ),
            Self::PrimaryAlive(name) => write!(f, "{name} still runs as a primary: waiting"),
            Self::NotSynchronous(who) => {
                write!(f, "may lack acknowledged commits: only {} can lead", names(who))
            }
            Self::VotesMissing { have, need, missing } => {
                write!(f, "{have} of {need} votes: an acknowledged commit may be on {} only", names(missing))
            }
            Self::AskingSuccessors => {
                f.write_str("another leader is asked for: asking the others how far they are")
            }
            Self::RequestRefused(why) => write!(f, "another leader is asked for, and it is not done: {why}"),
            Self::HandingOver(who) => {
                write!(f, "another leader is asked for: stopping so that {} can lead", names(who))
            }
            Self::HandedOver(name) => write!(f, "{name} has everything: giving the lock up for it"),
            Self::LeftTo(name) => write!(f, "{name} is asked to lead: not a candidate"),
            Self::Paused => f.write_str("maintenance mode: nothing is started, stopped or elected"),
            Self::Restarting => f.write_str("a restart is asked for"),
            Self::Reinitializing => f.write_str("another copy of the leader's data is asked for"),
            Self::Reloading => f.write_str("a reload is asked for"),
            Self::StartTooSlow => f.write_str("PostgreSQL takes too long to start: giving the lock away"),
            Self::Bootstrapping => f.write_str("making a new cluster"),
            Self::AdoptedElsewhere(who) => {
                write!(f, "the cluster begins with the data that {who} has from before")
            }
            Self::AdoptedTwo(who) => {
                write!(
                    f,
                    "{who} has another database from before than this node: one of the two volumes is a mistake"
                )
            }
            Self::Surveying => f.write_str("asking every listed node whether it has data"),
            Self::SurveyIncomplete(who) => {
                let list: Vec<_> = who.iter().map(ToString::to_string).collect();
                write!(f, "no new cluster: {} may have data and does not answer", list.join(", "))
            }
            Self::DataElsewhere(address) => write!(f, "no new cluster: {address} has data"),
            Self::WaitingForLeader => f.write_str("no data here: waiting for a leader to copy"),
            Self::DataLost(id) => write!(
                f,
                "this volume held cluster {id}, its data is gone and the store knows no cluster: a person must look"
            ),
            Self::SystemIdMismatch { local, cluster } => write!(
                f,
                "the data here is of cluster {local}, this cluster is {cluster}: move it away or use another volume"
            ),
            Self::DataUnreadable(why) => write!(f, "the data directory cannot be read: {why}"),
            Self::Cloning(name) => write!(f, "copying the data of {name}"),
            Self::CopyingAlone => f.write_str("no data here and no leader: copying without one"),
            Self::AwaitingCheckpoint(name) => write!(f, "waiting for the first checkpoint of {name}"),
            Self::CopyingSlots(name) => {
                write!(f, "copying the logical slots of {name}: PostgreSQL is started again for it")
            }
            Self::AwaitingTurn(name) => {
                write!(f, "PostgreSQL is to be started again for copies of logical slots, after {name} has done so")
            }
            Self::Comparing(name) => write!(f, "comparing the history with that of {name}"),
            Self::Diverged(name) => write!(f, "the local history has left that of {name}: rewinding"),
            Self::WalRemoved(name) => {
                write!(f, "{name} has removed WAL that is needed here: copying its data anew")
            }
            Self::ClaimingName => f.write_str("claiming the name of this member in the store"),
            Self::RetryLater(job, why) => write!(f, "{} failed and is tried again: {why}", job.words()),
            Self::NothingToLead => f.write_str("the lock is ours and there is no data here: giving it away"),
            Self::AwaitingDismissal => f.write_str("stopping: nobody shall count on this standby any more"),
            Self::LeadingStandby(Some(remote)) => {
                write!(f, "the standby leader with the lock, following {remote}")
            }
            Self::LeadingStandby(None) => f.write_str("the standby leader with the lock"),
            Self::BecomingStandby => f.write_str("this cluster is to follow another one: becoming a standby"),
            Self::StartingStandby => f.write_str("the lock is ours: starting as the standby leader"),
            Self::RemoteIsAnother(id) => {
                write!(f, "the cluster that is to be followed is another database ({id}): not followed")
            }
            Self::RemoteUnshown(timeline) => write!(
                f,
                "timeline {timeline} was begun by this cluster, and the one that is to be followed is not shown to have it: \
                 not followed"
            ),
            Self::RemoteDiffers(timeline) => {
                write!(f, "the cluster that is to be followed has another timeline {timeline}: not followed")
            }
            Self::RemoteBehind(theirs) => write!(
                f,
                "the server that answers for the other cluster is left behind on timeline {theirs}: waiting for a newer one"
            ),
            Self::RemoteUnusable => f.write_str("standby_cluster names no host that can be used: going on"),
            Self::AdoptedInStandby => f.write_str(
                "there is data from before pgherd here, and this cluster is to follow another one: a person must decide",
            ),
            Self::Stopping => f.write_str("stopping"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

fn names(list: &[NodeName]) -> String {
    list.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}
