//! The model store: one linearizable map with leases, the transactions exactly as `dcs::Dcs` documents them. What is
//! late, lost or unknown is the business of the network around it.

use std::collections::BTreeMap;

use pgherd::clock::Moment;
use pgherd::dcs::MemberState;
use pgherd::dcs::{
    Claim, Failover, Failsafe, History, Initialize, Leader, Member, Precondition, Readiness, Snapshot,
    Status, Sync, Versioned,
};
use pgherd::types::{LeaseId, NodeName, Revision, SystemId};

/// A request to the store.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Snapshot,
    Acquire(Claim),
    Renew,
    /// Bound to the lease of its sender: one that comes late must not delete what the node has taken anew.
    Release(Option<LeaseId>),
    Member(Box<Member>),
    Put(Box<Document>, Precondition),
    DeleteSync(Revision),
    DeleteFailsafe(Revision),
}

/// A document and its new value.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    Initialize(Option<SystemId>),
    Config(serde_json::Value),
    Sync(Sync),
    Status(Status),
    Failover(Failover),
    History(History),
    Failsafe(Failsafe),
}

/// What the store answers.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Snapshot(Box<Snapshot>),
    Done,
    /// The leader key is the asker's, under a lease of so many microseconds.
    Held(u64),
    Conflict,
}

/// The whole state.
#[derive(Debug)]
pub(crate) struct Store {
    revision: i64,
    /// When each ends, and for how long it was granted: that never changes.
    leases: BTreeMap<i64, (u64, u64)>,
    last_lease: i64,
    lease_of: BTreeMap<NodeName, i64>,
    ttl: u64,
    /// What each node asks for, once it has read another.
    ttl_of: BTreeMap<NodeName, u64>,
    leader: Option<Leader>,
    members: BTreeMap<NodeName, (Member, i64)>,
    initialize: Option<Versioned<Initialize>>,
    config: Option<Versioned<serde_json::Value>>,
    sync: Option<Versioned<Sync>>,
    status: Option<Versioned<Status>>,
    failover: Option<Versioned<Failover>>,
    history: Option<Versioned<History>>,
    failsafe: Option<Versioned<Failsafe>>,
    /// Moves when somebody who watches should look again.
    pub(crate) hints: u64,
}

fn put<T>(slot: &mut Option<Versioned<T>>, value: T, when: Precondition, next: Revision) -> bool {
    let holds = match when {
        Precondition::None => true,
        Precondition::Absent => slot.is_none(),
        Precondition::Unchanged(seen) => slot.as_ref().is_some_and(|v| v.revision == seen),
    };
    if holds {
        *slot = Some(Versioned { value, revision: next });
    }
    holds
}

impl Store {
    pub(crate) fn new(ttl: u64) -> Self {
        Self {
            revision: 1,
            leases: BTreeMap::new(),
            last_lease: 0,
            lease_of: BTreeMap::new(),
            ttl,
            ttl_of: BTreeMap::new(),
            leader: None,
            members: BTreeMap::new(),
            initialize: None,
            config: None,
            sync: None,
            status: None,
            failover: None,
            history: None,
            failsafe: None,
            hints: 0,
        }
    }

    pub(crate) fn leader(&self) -> Option<&NodeName> {
        self.leader.as_ref().map(|l| &l.name)
    }

    /// Who wrote the `sync` key.
    pub(crate) fn sync_leader(&self) -> Option<&NodeName> {
        self.sync.as_ref()?.value.leader.as_ref()
    }

    /// Leases end.
    pub(crate) fn expire(&mut self, now: u64) {
        let before = self.leases.len();
        self.leases.retain(|_id, (end, _ttl)| *end > now);
        if self.leases.len() == before {
            return;
        }
        self.revision += 1;
        let leases = &self.leases;
        self.members.retain(|_name, (_member, lease)| leases.contains_key(lease));
        if self.leader.as_ref().is_some_and(|l| !leases.contains_key(&l.lease.0)) {
            self.leader = None;
            self.hints += 1;
        }
    }

    /// The store's own leader changes: every lease starts anew.
    pub(crate) fn restart_leases(&mut self, now: u64) {
        self.leases.values_mut().for_each(|(end, ttl)| *end = now + *ttl);
    }

    /// The node's lease, kept alive now; another one when it is for another time. The old one then runs out by itself, and with
    /// it what is still bound to it.
    fn lease(&mut self, me: &NodeName, now: u64) -> (LeaseId, u64) {
        let ttl = self.ttl_of.get(me).copied().unwrap_or(self.ttl);
        let same = |id: &i64| self.leases.get(id).is_some_and(|(_end, granted)| *granted == ttl);
        let known = self.lease_of.get(me).copied().filter(same);
        let id = known.unwrap_or_else(|| {
            self.last_lease += 1;
            self.last_lease
        });
        self.lease_of.insert(me.clone(), id);
        self.leases.insert(id, (now + ttl, ttl));
        (LeaseId(id), ttl)
    }

    fn lead(&mut self, me: &NodeName, now: u64) -> Answer {
        let (lease, ttl) = self.lease(me, now);
        let revision = self.next();
        if self.leader() != Some(me) {
            self.hints += 1;
        }
        self.leader = Some(Leader { name: me.clone(), lease, revision });
        Answer::Held(ttl)
    }

    fn next(&mut self) -> Revision {
        self.revision += 1;
        Revision(self.revision)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            taken: Moment(0),
            readiness: Readiness::Ready,
            initialize: self.initialize.clone(),
            leader: self.leader.clone(),
            members: self.members.values().map(|(member, _)| member.clone()).collect(),
            config: self.config.clone(),
            status: self.status.clone(),
            history: self.history.clone(),
            sync: self.sync.clone(),
            failover: self.failover.clone(),
            failsafe: self.failsafe.clone(),
        }
    }

    /// A new process of the node knows nothing of the lease that it had.
    pub(crate) fn forget_lease(&mut self, me: &NodeName) {
        self.lease_of.remove(me);
    }

    /// The node's leases last so long from now on.
    pub(crate) fn set_ttl(&mut self, me: &NodeName, ttl: u64) {
        self.ttl_of.insert(me.clone(), ttl);
    }

    /// Whether a person has asked for another leader.
    pub(crate) fn is_asked(&self) -> bool {
        self.failover.is_some()
    }

    /// Whether there is a dynamic configuration to change.
    pub(crate) fn is_configured(&self) -> bool {
        self.config.is_some()
    }

    /// One key of the dynamic configuration.
    pub(crate) fn setting(&self, key: &str) -> Option<&serde_json::Value> {
        self.config.as_ref()?.value.get(key)
    }

    pub(crate) fn member_state(&self, name: &NodeName) -> Option<MemberState> {
        self.members.get(name).map(|(member, _)| member.state)
    }

    /// Somebody changes the dynamic configuration.
    pub(crate) fn configure(&mut self, key: &str, value: &serde_json::Value) {
        let next = self.next();
        let Some(config) = self.config.as_mut() else { return };
        let mut put = |key: &str, value: serde_json::Value| {
            if let Some(map) = config.value.as_object_mut() {
                map.insert(key.to_owned(), value);
            }
        };
        match (key, value.as_str()) {
            ("mode", Some("strict")) => {
                put("synchronous_mode", "quorum".into());
                put("synchronous_mode_strict", true.into());
            }
            ("mode", word) => {
                put("synchronous_mode", word.unwrap_or("quorum").into());
                put("synchronous_mode_strict", false.into());
            }
            ("ttl", _) => {
                let local = value.as_u64().is_some_and(|ttl| ttl < 15);
                let (loop_wait, retry) = if local { (2, 4) } else { (3, 6) };
                put("loop_wait", loop_wait.into());
                put("retry_timeout", retry.into());
                put("ttl", value.clone());
            }
            (key, _) => put(key, value.clone()),
        }
        config.revision = next;
        self.hints += 1;
    }

    pub(crate) fn apply(&mut self, me: &NodeName, request: Request, now: u64) -> Answer {
        self.expire(now);
        match request {
            Request::Snapshot => Answer::Snapshot(Box::new(self.snapshot())),
            Request::Acquire(claim) => {
                let free = match (claim, &self.leader) {
                    (Claim::Vacant, None) => true,
                    (Claim::Vacant, Some(_)) | (Claim::Expired(_), None) => false,
                    (Claim::Expired(seen), Some(leader)) => leader.revision == seen,
                };
                if free { self.lead(me, now) } else { Answer::Conflict }
            }
            Request::Renew if self.leader() == Some(me) => self.lead(me, now),
            Request::Renew => Answer::Conflict,
            Request::Release(lease) => self.release(me, lease),
            Request::Member(member) => {
                let (lease, _ttl) = self.lease(me, now);
                self.revision += 1;
                self.members.insert(me.clone(), (*member, lease.0));
                Answer::Done
            }
            Request::Put(document, when) => self.write(*document, when),
            Request::DeleteFailsafe(seen) => {
                let holds = self.failsafe.as_ref().is_some_and(|key| key.revision == seen);
                if holds {
                    self.failsafe = None;
                    Answer::Done
                } else {
                    Answer::Conflict
                }
            }
            Request::DeleteSync(seen) => {
                let holds = self.sync.as_ref().is_some_and(|s| s.revision == seen);
                if holds {
                    self.sync = None;
                    Answer::Done
                } else {
                    Answer::Conflict
                }
            }
        }
    }

    pub(crate) fn holds(&self, me: &NodeName, lease: Option<LeaseId>) -> bool {
        self.leader.as_ref().is_some_and(|l| l.name == *me && Some(l.lease) == lease)
    }

    pub(crate) fn lease_of(&self, me: &NodeName) -> Option<LeaseId> {
        self.lease_of.get(me).copied().map(LeaseId)
    }

    fn release(&mut self, me: &NodeName, lease: Option<LeaseId>) -> Answer {
        // The lease is not used again.
        if self.lease_of(me) == lease {
            self.forget_lease(me);
        }
        if self.holds(me, lease) {
            self.leader = None;
            self.revision += 1;
            self.hints += 1;
        }
        if self.leader.as_ref().is_none_or(|l| l.name != *me || Some(l.lease) != lease) {
            Answer::Done
        } else {
            Answer::Conflict
        }
    }

    fn write(&mut self, document: Document, when: Precondition) -> Answer {
        let next = self.next();
        let done = match document {
            Document::Initialize(id) => {
                let value = id.map_or(Initialize::InProgress, Initialize::Done);
                put(&mut self.initialize, value, when, next)
            }
            Document::Config(value) => put(&mut self.config, value, when, next),
            Document::Sync(value) => {
                self.hints += 1;
                put(&mut self.sync, value, when, next)
            }
            Document::Failover(value) => {
                let done = put(&mut self.failover, value, when, next);
                self.failover = self.failover.take().filter(|f| f.value != Failover::default());
                self.hints += u64::from(done);
                done
            }
            Document::Status(value) => put(&mut self.status, value, when, next),
            Document::History(value) => put(&mut self.history, value, when, next),
            Document::Failsafe(value) => put(&mut self.failsafe, value, when, next),
        };
        if done { Answer::Done } else { Answer::Conflict }
    }
}
