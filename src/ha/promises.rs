//! The one place where a promise to a leader (see [`super::failsafe`]) and an attempt to take the leader key meet.
//!
//! Invariant: never both. While a promise binds, nobody begins to take the key; while the key is being taken, or may have been
//! taken by a request whose outcome is unknown, nothing is promised. The promise is on disk before it is given: after a restart
//! a volume that had promised is bound for its whole length once more, for the clock of the promise may be gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Moment;
use crate::record::{self, Loyalty};
use crate::types::NodeName;

use super::failsafe::Refusal;

/// The promises of one node. Clones share them.
#[derive(Debug, Clone)]
pub struct Promises {
    state: Arc<Mutex<State>>,
    record: record::Keeper,
}

#[derive(Debug, Default)]
struct State {
    promised: Option<(NodeName, Moment)>,
    standing: Option<Moment>,
}

/// The key may not be taken.
#[derive(Debug, thiserror::Error)]
#[error("this node has promised {0} not to lead")]
pub struct Bound(NodeName);

impl Promises {
    /// A promise that an earlier life has written down binds once more, from now.
    pub fn open(record: record::Keeper, now: Moment) -> Self {
        let promised =
            record.read().failsafe.map(|kept| (kept.leader, now + Duration::from_millis(kept.millis)));
        Self { state: Arc::new(Mutex::new(State { promised, standing: None })), record }
    }

    /// Promises this leader not to take the key for `ttl`.
    ///
    /// # Errors
    /// The key is being taken, or the promise cannot be written down.
    pub fn promise(&self, leader: &NodeName, now: Moment, ttl: Duration) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.standing.is_some_and(|until| now < until) {
            return Err(Refusal::Standing);
        }
        // Never shorter than what was promised before.
        let until = state.promised.as_ref().map_or(now + ttl, |(_, until)| (now + ttl).max(*until));
        let millis = u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX);
        let loyalty = Loyalty { leader: leader.clone(), millis };
        if self.record.update(|record| record.failsafe = Some(loyalty)).is_err() {
            return Err(Refusal::NotWritten);
        }
        state.promised = Some((leader.clone(), until));
        Ok(())
    }

    /// What binds this node; what has run out is forgotten, on disk too.
    pub fn promised(&self, now: Moment) -> Option<(NodeName, Moment)> {
        let mut state = self.lock();
        if state.promised.as_ref().is_some_and(|(_, until)| now >= *until) {
            state.promised = None;
            if let Err(error) = self.record.update(|record| record.failsafe = None) {
                tracing::warn!(%error, "a promise that has run out stays in the record");
            }
        }
        state.promised.clone()
    }

    /// The key is about to be taken; its outcome may be unknown for as long as `until`.
    ///
    /// # Errors
    /// A promise binds this node.
    pub fn stand(&self, now: Moment, until: Moment) -> Result<(), Bound> {
        let mut state = self.lock();
        if let Some((leader, _)) = state.promised.as_ref().filter(|(_, bound)| now < *bound) {
            return Err(Bound(leader.clone()));
        }
        state.standing = Some(until);
        Ok(())
    }

    /// The key was not taken, for certain.
    pub fn sit_down(&self) {
        self.lock().standing = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;
    use crate::process::RunAs;

    const TTL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        Moment(0) + Duration::from_secs(seconds)
    }

    fn record() -> (tempfile::TempDir, record::Keeper) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("pgherd")).unwrap();
        let keeper = record::Keeper::open(&path, &RunAs::Same).unwrap();
        (dir, keeper)
    }

    #[test]
    fn a_promise_and_an_attempt_never_meet() {
        let (_keep, record) = record();
        let promises = Promises::open(record, at(0));
        let leader = NodeName::from("n1");
        promises.stand(at(1), at(11)).unwrap();
        assert_eq!(
            promises.promise(&leader, at(2), TTL),
            Err(Refusal::Standing),
            "the outcome may be unknown"
        );
        promises.sit_down();
        promises.promise(&leader, at(3), TTL).unwrap();
        assert!(promises.stand(at(12), at(22)).is_err());
        // A shorter one does not shorten it.
        promises.promise(&leader, at(4), Duration::from_secs(1)).unwrap();
        assert!(promises.stand(at(12), at(22)).is_err());
        promises.stand(at(13), at(23)).unwrap();
    }

    #[test]
    fn a_restart_does_not_forget_a_promise() {
        let (_keep, record) = record();
        Promises::open(record.clone(), at(0)).promise(&NodeName::from("n1"), at(1), TTL).unwrap();
        let again = Promises::open(record.clone(), at(5));
        assert_eq!(again.promised(at(14)), Some((NodeName::from("n1"), at(15))));
        assert_eq!(again.promised(at(15)), None);
        assert_eq!(Promises::open(record, at(16)).promised(at(16)), None, "it was forgotten on disk");
    }
}
