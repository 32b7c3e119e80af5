//! The one place where a promise to a leader (see [`super::failsafe`]) and an attempt to take the leader key meet.
//!
//! Invariant: never both. While a promise binds, nobody begins to take the key; while the key is being taken, or may have been
//! taken by a request whose outcome is unknown, nothing is promised. A promise binds this node from the moment that it is asked for,
//! which is decided under one lock with the attempts; it is on disk before it is given, and no lock that others need is held for
//! that. After a restart a volume that had promised is bound for its whole length once more, for the clock of the promise may be gone. It ends
//! early in two cases: the leader itself is known to have stopped and given the key back ([`Promise::is_over`]), and nobody can count
//! on it, since it was never given, or whoever asked for it has said that it came to nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Moment;
use crate::dcs::Snapshot;
use crate::postgres::Upstream;
use crate::record::{self, Loyalty};
use crate::types::{Lsn, NodeName, SlotName};

use super::failsafe::{Ping, Refusal};
use super::view::upstream_at;

/// The promises of one node. Clones share them.
#[derive(Debug, Clone)]
pub struct Promises {
    state: Arc<Mutex<State>>,
    record: record::Keeper,
}

#[derive(Debug, Default)]
struct State {
    /// What binds this node.
    promised: Option<Binding>,
    /// In answer to what it was given, and what had bound this node before.
    answered: Option<Answered>,
    /// How many questions there were.
    questions: u64,
    standing: Option<Moment>,
}

/// A promise, and as it stands in the record.
type Binding = (Promise, Loyalty);

/// The last question that was answered.
#[derive(Debug)]
struct Answered {
    /// Its number here, and among its leader's.
    number: u64,
    theirs: Option<u64>,
    before: Option<Binding>,
}

/// A promise to a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// Who leads.
    pub leader: NodeName,
    /// Until when it binds.
    pub until: Moment,
    /// When it was given last.
    pub given: Moment,
    /// The position that the leader's primary had then; none when it had none to tell.
    pub position: Option<Lsn>,
    /// How its server is reached.
    pub upstream: Option<Upstream>,
    /// Where it says that slots are.
    pub slots: BTreeMap<SlotName, Lsn>,
}

impl Promise {
    /// Whether its leader has stopped for good since, and leads no more: the key is gone, and the store says that everything
    /// ended with this leader. That mark stands only while its server is down, since it is taken back before a start; that it
    /// is no older than the promise shows by the end, which lies beyond what had been written when the leader asked.
    pub fn is_over(&self, snapshot: &Snapshot) -> bool {
        let end = snapshot.status.as_ref().and_then(|status| status.value.shutdown.as_ref());
        let stopped = |position| end.is_some_and(|end| end.leader == self.leader && end.end > position);
        snapshot.leader.is_none() && snapshot.taken > self.given && self.position.is_some_and(stopped)
    }
}

/// The question was not the last one that this node has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotPromised;

/// The key may not be taken.
#[derive(Debug, thiserror::Error)]
#[error("this node has promised {0} not to lead")]
pub struct Bound(NodeName);

impl Promises {
    /// A promise that an earlier life has written down binds once more, from now.
    pub fn open(record: record::Keeper, now: Moment) -> Self {
        let promised = record.read().failsafe.map(|kept| {
            let promise = Promise {
                until: now + Duration::from_millis(kept.millis),
                given: now,
                position: None,
                upstream: upstream_at(&kept.leader, kept.node_id.clone(), &kept.conn_url),
                leader: kept.leader.clone(),
                slots: BTreeMap::new(),
            };
            (promise, kept)
        });
        Self { state: Arc::new(Mutex::new(State { promised, ..State::default() })), record }
    }

    /// Promises the leader that asks not to take the key for `ttl`.
    ///
    /// # Errors
    /// The key is being taken, or the promise cannot be written down.
    pub async fn promise(&self, ping: &Ping, now: Moment, ttl: Duration) -> Result<(), Refusal> {
        let (until, number) = self.bind(ping, now, ttl)?;
        let written = self.write_down().await.is_ok();
        // Over before it was written is not given.
        let binds = |(promise, _): &Binding| promise.leader == ping.name && promise.until >= until;
        if written && self.lock().promised.as_ref().is_some_and(binds) {
            return Ok(());
        }
        // Nobody will be told of it: nobody counts on it.
        self.take_back(|answered| answered.number == number);
        Err(Refusal::NotWritten)
    }

    /// The leader says that this question of its has come to nothing: what bound this node before binds it again. Only the last
    /// question can be taken back, and whoever has asked it knows that it has not been heard by all.
    ///
    /// # Errors
    /// Something else was promised since, or nothing was.
    pub async fn withdraw(&self, leader: &NodeName, question: u64) -> Result<(), NotPromised> {
        let theirs = self.lock().promised.as_ref().is_some_and(|(promise, _)| promise.leader == *leader);
        if !theirs || !self.take_back(|answered| answered.theirs == Some(question)) {
            return Err(NotPromised);
        }
        self.bring_up_to_date().await;
        Ok(())
    }

    fn take_back(&self, is_it: impl Fn(&Answered) -> bool) -> bool {
        let mut state = self.lock();
        let answered = state.answered.take_if(|answered| is_it(answered));
        let found = answered.is_some();
        if let Some(answered) = answered {
            state.promised = answered.before;
        }
        found
    }

    /// From here on this node takes no key, whatever becomes of the record.
    fn bind(&self, ping: &Ping, now: Moment, ttl: Duration) -> Result<(Moment, u64), Refusal> {
        let mut state = self.lock();
        if state.standing.is_some_and(|until| now < until) {
            return Err(Refusal::Standing);
        }
        let before = state.promised.take().filter(|(promise, _)| now < promise.until);
        // Never shorter than what was promised before.
        let until = before.as_ref().map_or(now + ttl, |(before, _)| (now + ttl).max(before.until));
        let millis = u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX);
        let (leader, node_id, conn_url) = (ping.name.clone(), ping.node_id.clone(), ping.conn_url.clone());
        let upstream = upstream_at(&leader, node_id.clone(), &conn_url);
        let loyalty = Loyalty { leader: leader.clone(), millis, conn_url, node_id };
        let slots = ping.slots.clone().unwrap_or_default();
        let promise = Promise { leader, until, given: now, position: ping.position(), upstream, slots };
        state.questions += 1;
        state.promised = Some((promise, loyalty));
        let number = state.questions;
        state.answered = Some(Answered { number, theirs: ping.question, before });
        Ok((until, number))
    }

    /// Brings the record to what binds this node when its turn comes, so that no older state is written over a newer one.
    async fn write_down(&self) -> Result<(), record::Error> {
        let binds = || self.lock().promised.as_ref().map(|(_, loyalty)| loyalty.clone());
        self.record.update(|record| record.failsafe = binds()).await.map(|_record| ())
    }

    /// What binds this node; what has run out is forgotten, on disk too.
    pub async fn promised(&self, now: Moment) -> Option<Promise> {
        self.forget_if(|promise| now >= promise.until).await;
        self.lock().promised.as_ref().map(|(promise, _)| promise.clone())
    }

    /// Takes in a snapshot: a promise to a leader that has given the key back by itself has no object any more.
    pub async fn saw_store(&self, snapshot: &Snapshot) {
        self.forget_if(|promise| promise.is_over(snapshot)).await;
    }

    async fn forget_if(&self, is_over: impl Fn(&Promise) -> bool) {
        if self.lock().promised.take_if(|(promise, _)| is_over(promise)).is_some() {
            self.bring_up_to_date().await;
        }
    }

    async fn bring_up_to_date(&self) {
        if let Err(error) = self.write_down().await {
            tracing::warn!(%error, "a promise that binds no more stays in the record");
        }
    }

    /// The key is about to be taken; its outcome may be unknown for as long as `until`.
    ///
    /// # Errors
    /// A promise binds this node.
    pub fn stand(&self, now: Moment, until: Moment) -> Result<(), Bound> {
        let mut state = self.lock();
        if let Some((promise, _)) = state.promised.as_ref().filter(|(promise, _)| now < promise.until) {
            return Err(Bound(promise.leader.clone()));
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
    use crate::dcs::{Leader, Readiness, Shutdown, Status, Versioned};
    use crate::process::RunAs;
    use crate::types::{LeaseId, NodeId, Revision, Timeline};

    const TTL: Duration = Duration::from_secs(10);
    const HERE: Lsn = Lsn(0x3000_0000);

    fn at(seconds: u64) -> Moment {
        Moment(0) + Duration::from_secs(seconds)
    }

    fn record() -> (tempfile::TempDir, record::Keeper) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("pgherd")).unwrap();
        let keeper = record::Keeper::open(&path, &RunAs::Same).unwrap();
        (dir, keeper)
    }

    fn ping() -> Ping {
        let name = NodeName::from("n1");
        Ping {
            slots: Some([(name.slot_name(), HERE)].into()),
            conn_url: "postgres://192.0.2.1:5432/postgres".into(),
            node_id: Some(NodeId("00000000000000a1".into())),
            ..Ping::of(name)
        }
    }

    fn nobody(taken: Moment) -> Snapshot {
        Snapshot {
            taken,
            readiness: Readiness::Ready,
            initialize: None,
            leader: None,
            members: vec![],
            config: None,
            status: None,
            history: None,
            sync: None,
            failover: None,
            failsafe: None,
        }
    }

    /// Nobody leads, and this leader's end is written down.
    fn ended(leader: &str, end: Lsn, taken: Moment) -> Snapshot {
        let shutdown = Shutdown { leader: leader.into(), timeline: Timeline(1), end };
        let status = Status { shutdown: Some(shutdown), ..Status::default() };
        let status = Some(Versioned { value: status, revision: Revision(3) });
        Snapshot { status, ..nobody(taken) }
    }

    #[tokio::test]
    async fn a_promise_and_an_attempt_never_meet() {
        let (_keep, record) = record();
        let promises = Promises::open(record, at(0));
        promises.stand(at(1), at(11)).unwrap();
        assert_eq!(
            promises.promise(&ping(), at(2), TTL).await,
            Err(Refusal::Standing),
            "the outcome may be unknown"
        );
        promises.sit_down();
        promises.promise(&ping(), at(3), TTL).await.unwrap();
        assert!(promises.stand(at(12), at(22)).is_err());
        // A shorter one does not shorten it.
        promises.promise(&ping(), at(4), Duration::from_secs(1)).await.unwrap();
        assert!(promises.stand(at(12), at(22)).is_err());
        promises.stand(at(13), at(23)).unwrap();
    }

    #[tokio::test]
    async fn a_promise_binds_while_it_is_written() {
        let (_keep, record) = record();
        let promises = Promises::open(record.clone(), at(0));
        let given = tokio::time::timeout(Duration::ZERO, promises.promise(&ping(), at(1), TTL)).await;
        drop(given);
        assert!(promises.stand(at(2), at(12)).is_err(), "it may be on disk already");
        record.update(|_unchanged| {}).await.unwrap();
        assert!(record.read().failsafe.is_some(), "whoever asked has gone, the write goes on");
    }

    #[tokio::test]
    async fn a_question_that_came_to_nothing_binds_as_far_as_the_one_before_it() {
        let (_keep, record) = record();
        let promises = Promises::open(record.clone(), at(0));
        let asks = |question| Ping { question: Some(question), ..ping() };
        let leader = ping().name;
        promises.promise(&asks(1), at(1), TTL).await.unwrap();
        promises.promise(&asks(2), at(5), TTL).await.unwrap();
        assert_eq!(promises.withdraw(&leader, 1).await, Err(NotPromised), "that one it may count on");
        assert_eq!(promises.withdraw(&"n2".into(), 2).await, Err(NotPromised), "nobody else can say that");
        promises.withdraw(&leader, 2).await.unwrap();
        assert_eq!(promises.promised(at(5)).await.unwrap().until, at(11), "the first question stands");
        assert_eq!(promises.withdraw(&leader, 2).await, Err(NotPromised), "once");
        promises.promise(&asks(3), at(12), TTL).await.unwrap();
        promises.withdraw(&leader, 3).await.unwrap();
        promises.stand(at(12), at(22)).unwrap();
        assert_eq!(Promises::open(record, at(13)).promised(at(13)).await, None, "it was forgotten on disk");
    }

    #[tokio::test]
    async fn what_cannot_be_written_down_is_not_promised_and_binds_nobody() {
        let (keep, record) = record();
        let promises = Promises::open(record, at(0));
        promises.promise(&ping(), at(1), TTL).await.unwrap();
        std::fs::remove_dir_all(keep.path().join("pgherd")).unwrap();
        let other = Ping::of("n2".into());
        assert_eq!(promises.promise(&other, at(5), TTL).await, Err(Refusal::NotWritten));
        let bound = promises.promised(at(6)).await.unwrap();
        assert_eq!((bound.leader.as_str(), bound.until), ("n1", at(11)));
    }

    #[tokio::test]
    async fn a_restart_does_not_forget_a_promise() {
        let (_keep, record) = record();
        Promises::open(record.clone(), at(0)).promise(&ping(), at(1), TTL).await.unwrap();
        let again = Promises::open(record.clone(), at(5));
        let bound = again.promised(at(14)).await.unwrap();
        assert_eq!((bound.leader.as_str(), bound.until), ("n1", at(15)));
        let upstream = bound.upstream.unwrap();
        assert_eq!((upstream.port, upstream.node_id), (5432, ping().node_id));
        again.saw_store(&ended("n1", Lsn(HERE.0 + 114), at(9))).await;
        assert!(again.promised(at(14)).await.is_some(), "nothing is known of its position");
        assert_eq!(again.promised(at(15)).await, None);
        assert_eq!(Promises::open(record, at(16)).promised(at(16)).await, None, "it was forgotten on disk");
    }

    #[tokio::test]
    async fn a_leader_that_has_stopped_and_given_the_key_back_needs_no_promise() {
        let (_keep, record) = record();
        let promises = Promises::open(record.clone(), at(0));
        promises.promise(&ping(), at(3), TTL).await.unwrap();
        let end = Lsn(HERE.0 + 114);
        let mut held = ended("n1", end, at(4));
        held.leader = Some(Leader { name: "n1".into(), lease: LeaseId(7), revision: Revision(9) });
        let not_yet = [
            (held, "the key is there"),
            (ended("n2", end, at(4)), "another's end"),
            (ended("n1", HERE, at(4)), "from before the promise: it has been started again since"),
            (ended("n1", end, at(2)), "read before the promise was given"),
            (nobody(at(4)), "a key that has run out says nothing of its holder"),
        ];
        for (snapshot, why) in not_yet {
            promises.saw_store(&snapshot).await;
            assert!(promises.stand(at(4), at(14)).is_err(), "{why}");
        }
        promises.promise(&Ping { slots: None, ..ping() }, at(4), TTL).await.unwrap();
        promises.saw_store(&ended("n1", end, at(5))).await;
        assert!(promises.stand(at(5), at(15)).is_err(), "its server was down: nothing to compare with");
        promises.promise(&ping(), at(5), TTL).await.unwrap();
        promises.saw_store(&ended("n1", end, at(6))).await;
        assert_eq!(promises.promised(at(6)).await, None);
        promises.stand(at(6), at(16)).unwrap();
        assert_eq!(Promises::open(record, at(7)).promised(at(7)).await, None, "it was forgotten on disk");
    }
}
