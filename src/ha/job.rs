//! The long actions by their kinds: what is shown as being done, what is retried, what an order has to wait for. Pure.

use super::reason::Task;

/// A long action, run beside the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// initdb.
    Initdb,
    /// Roles, database and init scripts of a new cluster.
    FinishBootstrap,
    /// A base backup.
    Clone,
    /// pg_rewind.
    Rewind,
    /// Asking a program of the operator's whether this node may be promoted.
    Approval,
    /// A promotion.
    Promote,
    /// A stop.
    Stop,
    /// A stop of the leader for a request, until another member has everything.
    HandOver,
    /// Asking the other members for their positions.
    Poll,
    /// Asking every listed node whether it has data.
    Survey,
    /// Asking the leader for its timeline history.
    Compare,
    /// Copying logical slots of the leader's, with the server stopped.
    CopySlots,
    /// A start of PostgreSQL (not run beside the loop; it fails when it ends before it has answered).
    Start,
}

impl Job {
    /// Whether the data directory or its server is being changed: an order has to wait for that, or to end it.
    pub fn holds_postgres(self) -> bool {
        match self {
            Self::Poll | Self::Survey | Self::Compare | Self::Approval => false,
            Self::Initdb
            | Self::FinishBootstrap
            | Self::Clone
            | Self::Rewind
            | Self::Promote
            | Self::Stop
            | Self::HandOver
            | Self::CopySlots
            | Self::Start => true,
        }
    }

    /// What it is, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Initdb => "initdb",
            Self::FinishBootstrap => "finishing the new cluster",
            Self::Clone => "copying the leader's data",
            Self::Rewind => "rewinding",
            Self::Approval => "asking pre_promote",
            Self::Promote => "promoting",
            Self::Stop => "stopping PostgreSQL",
            Self::HandOver => "handing the lead over",
            Self::Poll => "asking for positions",
            Self::Survey => "asking for data",
            Self::Compare => "comparing histories",
            Self::CopySlots => "copying logical slots",
            Self::Start => "starting PostgreSQL",
        }
    }
}

impl Task {
    /// Its kind.
    pub fn job(&self) -> Job {
        match self {
            Self::Initdb => Job::Initdb,
            Self::FinishBootstrap => Job::FinishBootstrap,
            Self::Clone(_) | Self::CopyAlone => Job::Clone,
            Self::Rewind(_) => Job::Rewind,
            Self::Approval(_) => Job::Approval,
            Self::Promote => Job::Promote,
            Self::Stop(_) | Self::StopAfterCheckpoint(_) => Job::Stop,
            Self::HandOver { .. } => Job::HandOver,
            Self::Poll => Job::Poll,
            Self::Survey => Job::Survey,
            Self::Compare(_) => Job::Compare,
            Self::CopySlots { .. } => Job::CopySlots,
        }
    }
}
