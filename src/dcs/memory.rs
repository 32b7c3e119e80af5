//! The coordination store in memory: the same meaning without a network, on a clock that moves only when told to.
//! For the simulator and for tests. It passes the same conformance suite as etcd.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::rows::{self, LEADER, MEMBERS, Row};
use super::{Claim, Dcs, Error, Held, Key, Member, Precondition, Readiness, Renewal, Snapshot};
use crate::clock::Moment;
use crate::types::{LeaseId, NodeName, Revision};

/// What several [`MemoryStore`]s share. Cheap to clone: every clone is the same store.
#[derive(Debug, Clone)]
pub struct MemoryCluster {
    world: Arc<Mutex<World>>,
    changes: Arc<watch::Sender<u64>>,
    renewals: Arc<watch::Sender<Option<Renewal>>>,
}

#[derive(Debug)]
struct World {
    now: Moment,
    readiness: Readiness,
    revision: i64,
    last_lease: i64,
    /// Lease to TTL and end.
    leases: BTreeMap<i64, (Duration, Moment)>,
    /// Keys below the scope.
    keys: BTreeMap<String, Row>,
}

/// One node's access to a [`MemoryCluster`].
#[derive(Debug)]
pub struct MemoryStore {
    cluster: MemoryCluster,
    mine: Mutex<Mine>,
}

#[derive(Debug)]
struct Mine {
    ttl: Duration,
    lease: Option<(i64, Duration)>,
}

impl Default for MemoryCluster {
    fn default() -> Self {
        let world = World {
            // Not zero, so that "long before now" exists.
            now: Moment(0) + Duration::from_secs(1_000_000),
            readiness: Readiness::NotReady,
            revision: 1,
            last_lease: 0,
            leases: BTreeMap::new(),
            keys: BTreeMap::new(),
        };
        Self {
            world: Arc::new(Mutex::new(world)),
            changes: Arc::new(watch::channel(0).0),
            renewals: Arc::new(watch::channel(None).0),
        }
    }
}

impl MemoryCluster {
    /// One more node's access, with a lease of this length.
    pub fn store(&self, ttl: Duration) -> MemoryStore {
        MemoryStore { cluster: self.clone(), mine: Mutex::new(Mine { ttl, lease: None }) }
    }

    /// Sets whether anybody may lead.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.world().readiness = readiness;
    }

    /// The present, on the clock of this store.
    pub fn now(&self) -> Moment {
        self.world().now
    }

    /// Lets time pass; leases end.
    pub fn advance(&self, by: Duration) {
        let mut world = self.world();
        world.now = world.now + by;
        let now = world.now;
        world.leases.retain(|_id, (_ttl, end)| *end > now);
        let ended = |w: &World, row: &Row| row.lease.0 != 0 && !w.leases.contains_key(&row.lease.0);
        let gone: Vec<_> =
            world.keys.values().filter(|row| ended(&world, row)).map(|r| r.key.clone()).collect();
        for key in gone {
            self.remove(&mut world, &key);
        }
    }

    /// Writes any key below the scope, as another program might.
    pub fn write_raw(&self, key: &str, value: &str) {
        self.write(&mut self.world(), key, value, LeaseId(0));
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, world: &mut World, key: &str, value: &str, lease: LeaseId) -> Revision {
        world.revision += 1;
        let row = Row { key: key.to_owned(), value: value.into(), revision: Revision(world.revision), lease };
        let revision = row.revision;
        let before = world.keys.insert(key.to_owned(), row);
        if before.is_none_or(|before| before.value != value.as_bytes()) {
            self.hint(key);
        }
        revision
    }

    fn remove(&self, world: &mut World, key: &str) {
        if world.keys.remove(key).is_some() {
            world.revision += 1;
            self.hint(key);
        }
    }

    fn hint(&self, key: &str) {
        let wanted = [LEADER, Key::Config.segment(), Key::Failover.segment(), Key::Sync.segment()];
        if wanted.contains(&key) {
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

impl World {
    fn holds(&self, key: &str, when: Precondition) -> bool {
        let standing = self.keys.get(key).map(|row| row.revision);
        match when {
            Precondition::None => true,
            Precondition::Absent => standing.is_none(),
            Precondition::Unchanged(seen) => standing == Some(seen),
        }
    }

    fn names(&self, me: &NodeName) -> bool {
        self.keys.get(LEADER).is_some_and(|row| row.value == me.as_str().as_bytes())
    }
}

impl MemoryStore {
    /// This node's lease, kept alive now; a new one when it ended or is for another TTL.
    fn lease(&self, world: &mut World) -> LeaseId {
        let mut mine = self.mine.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = mine.lease.filter(|(id, ttl)| *ttl == mine.ttl && world.leases.contains_key(id));
        let id = usable.map_or(world.last_lease + 1, |(id, _ttl)| id);
        world.last_lease = world.last_lease.max(id);
        world.leases.insert(id, (mine.ttl, world.now + mine.ttl));
        mine.lease = Some((id, mine.ttl));
        LeaseId(id)
    }

    fn lead(&self, world: &mut World, me: &NodeName) -> Held {
        let lease = self.lease(world);
        let ttl = self.mine.lock().unwrap_or_else(PoisonError::into_inner).ttl;
        Held { sent: world.now, ttl, revision: self.cluster.write(world, LEADER, me.as_str(), lease) }
    }
}

/// The node id and the address in a member's row.
fn owner(row: &Row) -> Option<(Option<String>, String)> {
    serde_json::from_slice::<Member>(&row.value).ok().map(|member| (member.node_id, member.conn_url))
}

const LOST: Error = Error::Conflict { what: "the leader key" };

impl Dcs for MemoryStore {
    async fn snapshot(&self) -> Result<Snapshot, Error> {
        let world = self.cluster.world();
        let rows: Vec<_> = world.keys.values().cloned().collect();
        Ok(rows::snapshot(world.now, world.readiness, &rows))
    }

    async fn acquire_leader(&self, me: &NodeName, claim: Claim) -> Result<Held, Error> {
        let mut world = self.cluster.world();
        match world.readiness {
            Readiness::Ready => {}
            Readiness::NotReady => {
                let why = "the store has not been confirmed as ready: nobody may lead";
                return Err(Error::Rejected(why.to_owned()));
            }
        }
        let when = match claim {
            Claim::Vacant => Precondition::Absent,
            Claim::Expired(seen) => Precondition::Unchanged(seen),
        };
        if world.holds(LEADER, when) { Ok(self.lead(&mut world, me)) } else { Err(LOST) }
    }

    async fn renew_leader(&self, me: &NodeName) -> Result<Held, Error> {
        let mut world = self.cluster.world();
        if world.names(me) { Ok(self.lead(&mut world, me)) } else { Err(LOST) }
    }

    async fn release_leader(&self, me: &NodeName) -> Result<(), Error> {
        let mut world = self.cluster.world();
        if world.names(me) {
            self.cluster.remove(&mut world, LEADER);
        }
        if world.keys.contains_key(LEADER) { Err(LOST) } else { Ok(()) }
    }

    async fn put_member(&self, member: &Member) -> Result<(), Error> {
        let text = serde_json::to_string(member).map_err(|error| Error::Rejected(error.to_string()))?;
        let mut world = self.cluster.world();
        let lease = self.lease(&mut world);
        let key = format!("{MEMBERS}{}", member.name);
        if world.keys.get(&key).is_some_and(|row| {
            row.lease != lease && owner(row) != Some((member.node_id.clone(), member.conn_url.clone()))
        }) {
            return Err(Error::Conflict { what: "the member's name" });
        }
        let same = |row: &Row| row.value == text.as_bytes() && row.lease == lease;
        if !world.keys.get(&key).is_some_and(same) {
            self.cluster.write(&mut world, &key, &text, lease);
        }
        Ok(())
    }

    async fn delete_member(&self, name: &NodeName) -> Result<(), Error> {
        self.cluster.remove(&mut self.cluster.world(), &format!("{MEMBERS}{name}"));
        Ok(())
    }

    async fn put(&self, key: Key, value: String, when: Precondition) -> Result<Revision, Error> {
        let mut world = self.cluster.world();
        if world.holds(key.segment(), when) {
            Ok(self.cluster.write(&mut world, key.segment(), &value, LeaseId(0)))
        } else {
            Err(Error::Conflict { what: key.segment() })
        }
    }

    async fn delete(&self, key: Key, when: Precondition) -> Result<(), Error> {
        let mut world = self.cluster.world();
        if world.holds(key.segment(), when) {
            self.cluster.remove(&mut world, key.segment());
            Ok(())
        } else {
            Err(Error::Conflict { what: key.segment() })
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.cluster.changes.subscribe()
    }

    /// Nothing is heard before a snapshot shows it.
    fn renewals(&self) -> watch::Receiver<Option<Renewal>> {
        self.cluster.renewals.subscribe()
    }

    fn set_ttl(&self, ttl: Duration) {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner).ttl = ttl;
    }
}
