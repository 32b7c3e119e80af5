//! Who of those that hold data from before pgherd begins the cluster with it. Pure.
//!
//! Adopted data is not a member's data yet: it lies aside until a new cluster is founded, and then takes initdb's place on one
//! node. That must be the node whose data goes furthest; nobody may make an empty cluster beside it, and two different
//! databases are a mistake that only a person can clear up.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::reason::Reason;
use super::view::SurveyAnswer;
use crate::peer::Adopted;

/// Why this node may not begin the cluster, as far as adopted data is concerned.
pub(super) fn refused(mine: Option<Adopted>, answers: &BTreeMap<IpAddr, SurveyAnswer>) -> Option<Reason> {
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
