//! A reserve of room on the volume: held while there is plenty, given back when a server that ran out of room has to recover. Pure.
//!
//! A full disk ends PostgreSQL, and crash recovery writes too: without a few segments of WAL more it ends again at every start,
//! and neither a checkpoint nor a person's DROP ever frees what is needed. It is not given to a server that runs: that one would
//! fill it, and there would be none for its recovery.

use crate::postgres::Reserve;
use crate::types::{Access, Room};

use super::fitness;
use super::lead::NOW;
use super::reason::{Action, Decision, Reason};
use super::view::{Instance, Job, View};

/// Below this a server cannot make its next segments of WAL.
const TOO_LITTLE: u64 = 48 << 20;

/// What is known of the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stock {
    /// It may be there, from an earlier life of this process.
    #[default]
    Unknown,
    /// It is being laid in.
    OnItsWay,
    /// It is there.
    Held,
    /// It is not.
    Given,
    /// It was not laid in: the file system does not do it, or it was cut off, and the file may be there all the same.
    Impossible,
}

/// Gives the reserve back before a start that needs it, and lays it in after everything else when there is room.
pub(super) fn also_keep(view: &View, mut decision: Decision) -> Decision {
    let Some(reserve) = view.rules.reserve else { return decision };
    let starts = decision.actions.iter().any(|action| matches!(action, Action::Start(..)));
    if starts && is_needed(view) && view.memory.reserve != Stock::Given {
        return Decision { actions: vec![Action::GiveReserve], reason: Reason::GivingReserve, wake: NOW };
    }
    let busy = decision.actions.iter().any(|action| matches!(action, Action::Begin(_) | Action::Finish));
    if !busy && matches!(view.memory.reserve, Stock::Unknown | Stock::Given) && fits(view, reserve) {
        decision.actions.push(Action::LayInReserve(reserve));
    }
    decision
}

/// Whether a start would fail, or has failed, for want of room.
fn is_needed(view: &View) -> bool {
    let refused = view.memory.failures.get(&Job::Start).is_some_and(|failed| fitness::is_full(&failed.why));
    let room = view.memory.vitals.room;
    refused || room.is_some_and(|room| room.access == Access::Writable && room.free < TOO_LITTLE)
}

/// Never so much that the volume counts as low by it: there must be room for two.
fn fits(view: &View, reserve: Reserve) -> bool {
    let serves = matches!(view.instance(), Instance::Primary(..) | Instance::Standby(..));
    let left = |room: Room| Room { free: room.free.saturating_sub(2 * reserve.bytes), ..room };
    let room = view.memory.vitals.room.filter(|room| room.access == Access::Writable);
    serves && view.doing.is_none() && room.is_some_and(|room| !fitness::is_low(&left(room)))
}
