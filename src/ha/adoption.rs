//! Who of those that hold data from before pgherd begins the cluster with it. Pure.
//!
//! Adopted data is not a member's data yet: it lies aside until a new cluster is founded, and then takes initdb's place on one
//! node. That must be the node whose data goes furthest; nobody may make an empty cluster beside it, and two different
//! databases are a mistake that only a person can clear up.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::reason::{Action, Reason};
use super::rules::Mode;
use super::view::{SurveyAnswer, View};
use crate::dcs::{Initialize, Member, MemberState, Precondition, Role, Snapshot};
use crate::peer::Adopted;
use crate::record::Bootstrap;
use crate::types::{NodeName, Revision};

/// Why no new cluster may be made: initdb happens only when every listed node has said that it has no data.
pub(super) fn fresh_cluster_refused(view: &View) -> Option<Reason> {
    if let Some(id) = view.volume.system_id {
        return Some(Reason::DataLost(id));
    }
    if view.rules.mode != Mode::Node {
        // There is no list of nodes to ask: whoever creates `initialize` founds the cluster.
        return None;
    }
    let Some(survey) = view.memory.survey.as_ref() else {
        return Some(Reason::Surveying);
    };
    let with_data = survey.answers.iter().find(|(_, a)| matches!(a, SurveyAnswer::Data(_)));
    if let Some((address, _)) = with_data {
        return Some(Reason::DataElsewhere(*address));
    }
    if let Some(reason) = refused(view.volume.adopted, &survey.answers) {
        return Some(reason);
    }
    let unsure = |a: &SurveyAnswer| matches!(a, SurveyAnswer::Silent | SurveyAnswer::Unreadable);
    let silent: Vec<_> = survey.answers.iter().filter(|(_, a)| unsure(a)).map(|(ip, _)| *ip).collect();
    (!silent.is_empty()).then_some(Reason::SurveyIncomplete(silent))
}

/// Why this node may not begin the cluster, as far as adopted data is concerned.
fn refused(mine: Option<Adopted>, answers: &BTreeMap<IpAddr, SurveyAnswer>) -> Option<Reason> {
    answers.iter().find_map(|(address, answer)| {
        let theirs = match answer {
            SurveyAnswer::Adopted(theirs) => *theirs,
            SurveyAnswer::Silent
            | SurveyAnswer::Unreadable
            | SurveyAnswer::NoData
            | SurveyAnswer::Data(_) => return None,
        };
        match mine {
            None => Some(Reason::AdoptedElsewhere(*address)),
            Some(mine) if mine.system_id != theirs.system_id => Some(Reason::AdoptedTwo(*address)),
            Some(mine) if theirs.reach() > mine.reach() => Some(Reason::AdoptedElsewhere(*address)),
            Some(_) => None,
        }
    })
}

/// A founder that has died has left nobody behind who could be at it; two who wait for it are no founders. Its member key says
/// what it does within a loop of its own, which is well within a lease, so two of these are long enough.
const FORSAKEN_TTLS: u32 = 2;

/// A Patroni node that founds a cluster takes `initialize` first and the lock last: the lock is free while it works. Its member
/// key stands as long as it lives: when nobody else is there, or nobody who does not wait as this node does, whoever took
/// `initialize` has died, and the key is nobody's. (Patroni's own nodes wait for a person then. Of several that go on from here
/// the lock lets one.)
pub(super) fn founded_elsewhere(view: &View) -> bool {
    let somebody = view.snapshot().is_some_and(|s| others(s, &view.me).next().is_some());
    let forsaken = view
        .memory
        .forsaken
        .is_some_and(|(_key, since)| view.now.since(since) >= FORSAKEN_TTLS * view.rules.timing.ttl);
    view.rules.mode != Mode::Node && view.volume.bootstrap == Bootstrap::Settled && somebody && !forsaken
}

fn others<'a>(snapshot: &'a Snapshot, me: &'a NodeName) -> impl Iterator<Item = &'a Member> {
    snapshot.members.iter().filter(move |member| member.name != *me)
}

/// An `initialize` key that somebody has taken, and nobody in the store can be at it: which one.
pub(super) fn forsaken(snapshot: &Snapshot, me: &NodeName) -> Option<Revision> {
    let key = snapshot.initialize.as_ref().filter(|key| key.value == Initialize::InProgress)?;
    let led = snapshot.leader_name().is_some_and(|leader| leader != me);
    let waits = |m: &Member| m.state == MemberState::Stopped && m.role == Role::Uninitialized;
    (!led && others(snapshot, me).all(waits)).then_some(key.revision)
}

/// Whether this node may make the cluster, with the lock in hand.
pub(super) enum Founding {
    /// It may, when this is written.
    Open(Option<Action>),
    /// Another node makes it.
    Elsewhere,
    /// It exists.
    Done,
}

/// What the `initialize` key says of it.
pub(super) fn founding(view: &View, snapshot: &Snapshot) -> Founding {
    let Some(key) = &snapshot.initialize else {
        return Founding::Open(Some(Action::ClaimInitialize(Precondition::Absent)));
    };
    match key.value {
        Initialize::InProgress if founded_elsewhere(view) => Founding::Elsewhere,
        Initialize::InProgress => Founding::Open(None),
        Initialize::Invalid => {
            Founding::Open(Some(Action::ClaimInitialize(Precondition::Unchanged(key.revision))))
        }
        Initialize::Done(_) => Founding::Done,
    }
}
