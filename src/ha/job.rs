//! The long actions by their kinds: what is shown as being done, what is retried, what an order has to wait for. Pure.

use std::collections::BTreeSet;

use crate::postgres::{StopMode, Upstream};
use crate::types::{NodeName, Revision, SlotName};

use super::callbacks::Program;

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

/// A long action with its parameters.
#[derive(Debug, Clone, PartialEq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Task {
    /// initdb.
    Initdb,
    /// Roles, database, init scripts.
    FinishBootstrap,
    /// A base backup from this node.
    Clone(Upstream),
    /// A copy by a command of the administrator's that needs no member to copy from.
    CopyAlone,
    /// pg_rewind from this node.
    Rewind(Upstream),
    /// Run this program of the operator's: it says whether this node may be promoted.
    Approval(Program),
    /// Promote.
    Promote,
    /// Stop PostgreSQL. May replace any task that is under way.
    Stop(StopMode),
    /// A checkpoint first, bounded, then a fast stop: for a planned hand-over.
    StopAfterCheckpoint(StopMode),
    /// The same for a request: until one of these has everything that was written, shutdown checkpoint included.
    HandOver {
        /// Who may take over.
        to: BTreeSet<NodeName>,
        /// The revision of the request.
        request: Revision,
    },
    /// Ask the members for their positions.
    Poll,
    /// Ask every listed node whether it has data.
    Survey,
    /// Ask this leader for its history.
    Compare(Upstream),
    /// Copy these logical slots of this leader's: PostgreSQL is stopped for it.
    CopySlots {
        /// Whose.
        from: Upstream,
        /// Which.
        names: BTreeSet<SlotName>,
    },
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
