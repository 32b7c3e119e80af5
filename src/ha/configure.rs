//! When PostgreSQL is brought to other settings: they have changed in the store, or the server plays another part. Pure.
//!
//! Last in a decision, so that what it costs delays nothing that others wait for; never beside a long action, which
//! may be a promotion or a stop.

use crate::postgres::{Part, Stored};

use super::Phase;
use super::reason::{Action, Decision};
use super::remote;
use super::view::{Instance, Lease, View};

/// What the running server was last brought to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// What the store said.
    pub stored: Stored,
    /// The part.
    pub part: Part,
}

/// The decision, and after it the settings if they are not what they should be.
#[must_use]
pub fn with_settings(view: &View, mut decision: Decision) -> Decision {
    let begins = decision.actions.iter().any(|action| matches!(action, Action::Begin(_) | Action::Finish));
    if let Some(wanted) = wanted(view).filter(|_| !begins)
        && view.memory.configured.as_ref() != Some(&wanted)
    {
        decision.actions.push(Action::Configure(wanted.part));
    }
    decision
}

/// What the running server should be told; none while there is no server that listens, nothing is known of the store, or no
/// clients are let in: the rules by which they are cannot be checked then.
fn wanted(view: &View) -> Option<Configured> {
    let part = match view.instance() {
        Instance::Primary(..) => Part::Primary,
        Instance::Standby(..) if view.lease != Lease::None && remote::of(view).is_some() => {
            Part::StandbyLeader
        }
        Instance::Standby(..) => Part::Replica,
        Instance::Down | Instance::Silent | Instance::Ending => return None,
    };
    let idle = view.phase == Phase::Serving && view.doing.is_none() && view.memory.closed.is_none();
    Some(Configured { stored: view.rules.server.clone()?, part }).filter(|_| idle)
}
