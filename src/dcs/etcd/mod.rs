//! The coordination store on etcd 3.4 or later, by native gRPC. Keys, values and leases are Patroni's.
//!
//! Why at most one node may believe that it leads (what each step contributes):
//!
//! 1. The key is taken and renewed by transactions that go through consensus and compare the key as it is *when they
//!    are applied*. A takeover names the revision that its observer saw; a renewal names our lease, which nobody else
//!    can write with. Of a renewal and a takeover exactly one wins, whatever the network delays or repeats.
//! 2. [`Held::sent`] lies before the transaction was sent, hence before it was applied, hence before any observer
//!    can have seen its revision: an observer that waits a TTL from then on comes later than the leader's deadline.
//! 3. etcd deletes the key when the lease ends. So [`Held::sent`] also never lies after the last *proven* keepalive
//!    (see [`lease`]): a leader whose writes get through while its keepalives do not runs out of time before its key
//!    vanishes.
//!
//! Absent: retries (but for the next endpoint), policy, and any belief in who leads.

mod lease;
mod link;
mod removal;
mod watcher;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, GetResponse, Identity, KeyValue,
    PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::lease::{Guarded, Kept, Lease, guarded, keep_alive};
use self::link::{Answer, Fault, Link, Stamp};
use self::watcher::Watcher;
use super::rows::{self, LEADER, MEMBERS, Row};
use super::{Claim, Dcs, Error, Held, Key, Member, Precondition, Readiness, Renewal, Snapshot};
use crate::clock::{self, Moment};
use crate::tls::EtcdClient;
use crate::types::{LeaseId, NodeName, Revision};

/// What to show to etcd and what to trust. The certificate is renewed now and then: connections made after that show
/// the new one.
pub type Credentials = watch::Receiver<EtcdClient>;

/// How to connect, with what is to be shown now; `limit` bounds the connecting.
pub fn connect_options(credentials: Option<&EtcdClient>, limit: Duration) -> ConnectOptions {
    let options = ConnectOptions::new().with_connect_timeout(limit);
    match credentials {
        // The server's certificate is verified against the host of the URL; etcd's carry their IP addresses.
        Some(pem) => {
            let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(&pem.ca));
            options.with_tls(match &pem.identity {
                Some(own) => tls.identity(Identity::from_pem(&own.certificate, own.key.as_bytes())),
                None => tls,
            })
        }
        None => options,
    }
}

/// Whether the store must have been confirmed before anybody may lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyKey {
    /// This key must exist: the ballot's founder writes it when enough members have confirmed.
    Key(String),
    /// The store is somebody else's (agent mode).
    NotNeeded,
}

/// A user of etcd's own.
#[derive(Debug, Clone)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password.
    pub password: SecretString,
}

/// Which part of which etcd.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// The cluster's name: the last part of the prefix.
    pub scope: String,
    /// The first part, `service` unless configured otherwise.
    pub namespace: String,
    /// For `https` endpoints.
    pub tls: Option<Credentials>,
    /// Where etcd asks for a user and a password.
    pub login: Option<Login>,
    /// What leading depends on.
    pub ready: ReadyKey,
    /// The lease's time to live, until [`Dcs::set_ttl`].
    pub ttl: Duration,
}

/// Who owns a member's name: a key beside the member's, under the same lease, whose value is the node id and the address, so
/// that a copy of the volume elsewhere is somebody else. Two live nodes of one name would take each other's leader key for
/// their own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    key: String,
    owner: String,
}

impl Name {
    fn compare(&self) -> Compare {
        Compare::value(self.key.as_str(), CompareOp::Equal, self.owner.as_str())
    }

    /// Does `put` if the name is ours, or nobody's.
    fn guarding(&self, put: TxnOp, lease: i64) -> Txn {
        let both = || [put_op(&self.key, &self.owner, lease), put.clone()];
        let vacant = Compare::create_revision(self.key.as_str(), CompareOp::Equal, 0);
        let otherwise = Txn::new().when([vacant]).and_then(both());
        Txn::new().when([self.compare()]).and_then(both()).or_else([TxnOp::txn(otherwise)])
    }
}

/// Where names are claimed, beneath the scope.
const NAMES: &str = "pgherd/names/";

/// See the module.
#[derive(Debug)]
pub struct EtcdStore {
    link: Arc<Link>,
    prefix: String,
    ready: ReadyKey,
    changes: watch::Receiver<u64>,
    renewals: watch::Receiver<Option<Renewal>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ttl: Duration,
    lease: Option<Lease>,
    /// The one before: the leader key hangs on it until it is renewed.
    before: Option<i64>,
    /// What was last written to `members/<me>`: key, value, lease. Spares the write when nothing changed.
    member: Option<(String, String, i64)>,
    /// The name that this process has claimed.
    name: Option<Name>,
    /// The leases under which the leader key was last given back.
    parted: Vec<i64>,
}

impl EtcdStore {
    /// A store behind these endpoints (client URLs, best first), which may change at any time. Its watch runs on
    /// `tasks` until `stop`. Connects when it is first used.
    pub fn new(
        config: EtcdConfig,
        endpoints: watch::Receiver<Vec<String>>,
        tasks: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> Self {
        let link = Arc::new(Link::new(config.tls, config.login, endpoints));
        let prefix = prefix(&config.namespace, &config.scope);
        let (counter, changes) = watch::channel(0);
        let (heard, renewals) = watch::channel(None);
        let watcher =
            Watcher { link: Arc::clone(&link), prefix: prefix.clone(), changes: counter, renewals: heard };
        tasks.spawn(watcher.run(stop));
        let state = Mutex::new(State {
            ttl: config.ttl,
            lease: None,
            before: None,
            member: None,
            name: None,
            parted: Vec::new(),
        });
        Self { link, prefix, ready: config.ready, changes, renewals, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, segment: &str) -> String {
        format!("{}{segment}", self.prefix)
    }

    fn leader_key(&self) -> String {
        self.key(LEADER)
    }

    async fn txn(&self, txn: Txn) -> Result<Answer<TxnResponse>, Fault> {
        let txn = &txn;
        self.link
            .call(move |mut client: Client| {
                let txn = txn.clone();
                async move {
                    client.txn(txn).await.map(|reply| {
                        let stamp = Stamp::of(reply.header());
                        (reply, stamp)
                    })
                }
            })
            .await
    }

    /// This node's lease: the one at hand if it is for the present TTL, else a new one. The old one is not revoked:
    /// keys still attached to it are written anew under the new one, and until then they should live.
    async fn lease(&self) -> Result<Lease, Fault> {
        let (ttl, known) = {
            let state = self.state();
            (state.ttl, state.lease.filter(|lease| lease.ttl == state.ttl))
        };
        if let Some(lease) = known {
            return Ok(lease);
        }
        let granted = self.link.call(move |client: Client| async move {
            let proven = clock::now();
            let reply = client.lease_client().grant(whole_seconds(ttl), None).await?;
            Ok(((reply.id(), proven), Stamp::of(reply.header())))
        });
        let (id, proven) = granted.await?.reply;
        let lease = Lease { id, ttl, proven, kept: proven };
        let mut state = self.state();
        state.before = state.lease.replace(lease).map(|old| old.id).or(state.before);
        Ok(lease)
    }

    /// Replaces what is known of this lease, unless another has taken its place.
    fn note(&self, id: i64, known: Option<Lease>) {
        let mut state = self.state();
        if state.lease.is_some_and(|lease| lease.id == id) {
            state.lease = known;
        }
    }

    /// Sends a transaction of the leader under the lease, with a keepalive beside it; makes the lease anew once when
    /// it turns out to be gone. Gives the moment from which the TTL counts, should the transaction have succeeded.
    async fn lead(
        &self,
        txn: impl Fn(i64) -> Txn + Send + Sync,
    ) -> Result<(Moment, Duration, Answer<TxnResponse>), Error> {
        let mut lease = self.lease().await.map_err(refused)?;
        let answer = match self.guarded(txn(lease.id), lease.id).await {
            Err(Fault::LeaseLost) => {
                self.note(lease.id, None);
                lease = self.lease().await.map_err(refused)?;
                self.guarded(txn(lease.id), lease.id).await
            }
            other => other,
        };
        let Answer { reply: guarded, repeated } = answer.map_err(refused)?;
        let after = lease.after(guarded.sent, guarded.kept, Stamp::of(guarded.reply.header()));
        self.note(lease.id, after);
        let proven = after.unwrap_or(lease).proven;
        Ok((guarded.sent.min(proven), lease.ttl, Answer { reply: guarded.reply, repeated }))
    }

    async fn guarded(&self, txn: Txn, id: i64) -> Result<Answer<Guarded>, Fault> {
        let txn = &txn;
        self.link.call(move |client| guarded(client, txn.clone(), id)).await
    }

    /// Keeps the lease alive for the member's key when it is due.
    async fn keep(&self, lease: Lease) -> Result<(), Fault> {
        // Three chances within a TTL.
        if clock::now().since(lease.kept) < lease.ttl / 3 {
            return Ok(());
        }
        let sent = clock::now();
        let kept = self.link.call(move |client| async move {
            match keep_alive(client, lease.id).await {
                Kept::Alive(stamp) => Ok((Kept::Alive(stamp), stamp)),
                Kept::Lost => Ok((Kept::Lost, Stamp::UNKNOWN)),
                Kept::Unknown => Err(etcd_client::Error::Internal("no answer to a keepalive".to_owned())),
            }
        });
        match kept.await?.reply {
            Kept::Alive(_) | Kept::Unknown => self.note(lease.id, Some(Lease { kept: sent, ..lease })),
            Kept::Lost => return Err(Fault::LeaseLost),
        }
        Ok(())
    }

    async fn write_member(&self, key: &str, value: &str, name: Option<Name>) -> Result<(), Fault> {
        let lease = self.lease().await?;
        self.keep(lease).await?;
        let written = (key.to_owned(), value.to_owned(), lease.id);
        if self.state().member.as_ref() == Some(&written) {
            return Ok(());
        }
        let put = put_op(key, value, lease.id);
        let txn = match &name {
            None => Txn::new().and_then([put]),
            Some(name) => name.guarding(put, lease.id),
        };
        let reply = self.txn(txn).await?.reply;
        if !reply.succeeded() && !reply.op_responses().iter().any(is_won) {
            return Err(Fault::Store(Error::Conflict { what: "the member's name" }));
        }
        let mut state = self.state();
        state.member = Some(written);
        state.name = name;
        Ok(())
    }

    /// That the name this process goes by is still its own.
    fn name_compare(&self) -> Option<Compare> {
        self.state().name.as_ref().map(Name::compare)
    }

    /// The leases under which the leader key may be, to give it back. They are never used again: a release that arrives late must
    /// not delete a key that this node has taken anew.
    fn part_with_leases(&self) -> Vec<i64> {
        let mut state = self.state();
        let held = state.lease.take().map(|lease| lease.id);
        let leases: Vec<i64> = held.into_iter().chain(state.before.take()).collect();
        if !leases.is_empty() {
            state.parted = leases;
        }
        state.parted.clone()
    }

    fn ready_compare(&self) -> Option<Compare> {
        match &self.ready {
            ReadyKey::Key(key) => Some(Compare::create_revision(key.as_str(), CompareOp::Greater, 0)),
            ReadyKey::NotNeeded => None,
        }
    }

    /// ```text
    /// if the claim holds and READY exists      then put(me, lease)
    /// else if value == me and lease == mine    then put(me, lease)      (and READY exists)
    /// ```
    /// The second arm is for a repeated attempt whose first try was applied although no answer came back: nobody but
    /// this process can have written the key under this lease. It is a renewal, with its own moment of sending.
    fn acquisition(&self, me: &NodeName, claim: Claim, lease: i64) -> Txn {
        let leader = self.leader_key();
        let claim = match claim {
            Claim::Vacant => Compare::create_revision(leader.as_str(), CompareOp::Equal, 0),
            Claim::Expired(Revision(seen)) => Compare::mod_revision(leader.as_str(), CompareOp::Equal, seen),
        };
        let mut first = vec![claim];
        let mut second = mine(&leader, me, lease);
        for condition in [self.ready_compare(), self.name_compare()].into_iter().flatten() {
            first.push(condition.clone());
            second.push(condition);
        }
        let ready = match &self.ready {
            ReadyKey::Key(key) => key.as_str(),
            ReadyKey::NotNeeded => leader.as_str(),
        };
        let put = || put_op(&leader, me.as_str(), lease);
        Txn::new()
            .when(first)
            .and_then([put()])
            .or_else([TxnOp::txn(Txn::new().when(second).and_then([put()])), TxnOp::get(ready, None)])
    }

    /// ```text
    /// if value == me and lease == mine                then put(me, lease)
    /// else if value == me and mod_revision == seen    then put(me, lease)
    /// ```
    /// For a key that carries our name under another lease: this node was restarted, its lease ran out or its TTL
    /// was changed. The name is this volume's ([`Name`]), so the other lease was ours, and the process that held it is
    /// gone (or never knew a newer one). Until this is applied the key is as it was; afterwards its revision is new, and a
    /// takeover that names the old one fails. So it is a renewal like any other.
    fn adoption(&self, me: &NodeName, seen: Revision, lease: i64) -> Txn {
        let leader = self.leader_key();
        let put = || put_op(&leader, me.as_str(), lease);
        let mut same = vec![
            Compare::value(leader.as_str(), CompareOp::Equal, me.as_str()),
            Compare::mod_revision(leader.as_str(), CompareOp::Equal, seen.0),
        ];
        same.extend(self.name_compare());
        let second = Txn::new().when(same).and_then([put()]);
        Txn::new().when(mine(&leader, me, lease)).and_then([put()]).or_else([TxnOp::txn(second)])
    }
}

impl Dcs for EtcdStore {
    async fn snapshot(&self) -> Result<Snapshot, Error> {
        let all = GetOptions::new().with_prefix();
        let mut reads = vec![TxnOp::get(self.prefix.as_str(), Some(all))];
        if let ReadyKey::Key(key) = &self.ready {
            reads.push(TxnOp::get(key.as_str(), None));
        }
        let taken = clock::now();
        let reply = self.txn(Txn::new().and_then(reads)).await.map_err(refused)?.reply;
        let mut gets = reply.op_responses().into_iter().filter_map(as_get);
        let scope = gets.next();
        let kvs = scope.as_ref().map_or(&[][..], GetResponse::kvs);
        let is_ready =
            self.ready == ReadyKey::NotNeeded || gets.next().is_some_and(|get| !get.kvs().is_empty());
        let readiness = if is_ready { Readiness::Ready } else { Readiness::NotReady };
        let mut state = self.state();
        if state.member.as_ref().is_some_and(|(key, ..)| !kvs.iter().any(|kv| kv.key() == key.as_bytes())) {
            // Somebody deleted our key: it must be written again although nothing in it changed.
            state.member = None;
        }
        let rows: Vec<_> = kvs.iter().filter_map(|kv| row(kv, &self.prefix)).collect();
        Ok(rows::snapshot(taken, readiness, &rows))
    }

    async fn acquire_leader(&self, me: &NodeName, claim: Claim) -> Result<Held, Error> {
        let (sent, ttl, answer) = self.lead(|lease| self.acquisition(me, claim, lease)).await?;
        let reply = answer.reply;
        let nested = reply.op_responses().iter().any(is_won);
        if reply.succeeded() || nested {
            return Ok(Held { sent, ttl, revision: revision(&reply) });
        }
        let is_ready = reply.op_responses().into_iter().filter_map(as_get).any(|get| !get.kvs().is_empty());
        if self.ready != ReadyKey::NotNeeded && !is_ready {
            return Err(Error::Rejected(
                "the store has not been confirmed as ready: nobody may lead".to_owned(),
            ));
        }
        Err(Error::Conflict { what: "the leader key" })
    }

    /// Compares value and lease, and not the revision that we wrote last: the lease already says that nobody else
    /// wrote since (a takeover writes another lease), while after an unanswered renewal our revision is unknown and
    /// comparing it would make the next renewal fail although the key is ours.
    async fn renew_leader(&self, me: &NodeName) -> Result<Held, Error> {
        let leader = self.leader_key();
        let renewal = |lease: i64| {
            let put = put_op(&leader, me.as_str(), lease);
            let look = TxnOp::get(leader.as_str(), None);
            Txn::new().when(mine(&leader, me, lease)).and_then([put]).or_else([look])
        };
        let (sent, ttl, answer) = self.lead(renewal).await?;
        let reply = answer.reply;
        if reply.succeeded() {
            return Ok(Held { sent, ttl, revision: revision(&reply) });
        }
        let lost = Error::Conflict { what: "the leader key" };
        let Some(seen) = standing(&reply).filter(|(value, _seen)| value == me.as_str().as_bytes()) else {
            return Err(lost);
        };
        let (sent, ttl, answer) = self.lead(|lease| self.adoption(me, seen.1, lease)).await?;
        let reply = answer.reply;
        let won = reply.succeeded() || reply.op_responses().iter().any(is_won);
        if won { Ok(Held { sent, ttl, revision: revision(&reply) }) } else { Err(lost) }
    }

    async fn release_leader(&self, me: &NodeName) -> Result<(), Error> {
        let leader = self.leader_key();
        let mut claims: Vec<_> =
            self.part_with_leases().into_iter().map(|lease| mine(&leader, me, lease)).collect();
        if claims.is_empty() {
            claims.push(vec![Compare::value(leader.as_str(), CompareOp::Equal, me.as_str())]);
        }
        for ours in claims {
            let txn = Txn::new()
                .when(ours)
                .and_then([TxnOp::delete(leader.as_str(), None)])
                .or_else([TxnOp::get(leader.as_str(), None)]);
            let reply = self.txn(txn).await.map_err(refused)?.reply;
            // A key that is gone is what was asked for.
            if reply.succeeded() || standing(&reply).is_none() {
                return Ok(());
            }
        }
        Err(Error::Conflict { what: "the leader key" })
    }

    async fn put_member(&self, member: &Member) -> Result<(), Error> {
        let key = self.key(&format!("{MEMBERS}{}", member.name));
        let value = serde_json::to_string(member).map_err(|e| Error::Rejected(format!("{key}: {e}")))?;
        let name = member.node_id.as_ref().map(|node_id| Name {
            key: self.key(&format!("{NAMES}{}", member.name)),
            owner: format!("{node_id} at {}", member.conn_url),
        });
        let written = match self.write_member(&key, &value, name.clone()).await {
            Err(Fault::LeaseLost) => {
                self.state().lease = None;
                self.write_member(&key, &value, name).await
            }
            other => other,
        };
        written.map_err(refused)
    }

    async fn delete_member(&self, name: &NodeName) -> Result<(), Error> {
        let key = self.key(&format!("{MEMBERS}{name}"));
        self.txn(Txn::new().and_then([TxnOp::delete(key, None)])).await.map_err(refused)?;
        Ok(())
    }

    async fn put(&self, key: Key, value: String, when: Precondition) -> Result<Revision, Error> {
        let path = self.key(key.segment());
        let put = TxnOp::put(path.as_str(), value, None);
        let answer = self.txn(Txn::new().when(compares(&path, when)).and_then([put])).await;
        settled(key, answer.map_err(refused)?)
    }

    async fn delete(&self, key: Key, when: Precondition) -> Result<(), Error> {
        let path = self.key(key.segment());
        let delete = TxnOp::delete(path.as_str(), None);
        let answer = self.txn(Txn::new().when(compares(&path, when)).and_then([delete])).await;
        settled(key, answer.map_err(refused)?).map(|_revision| ())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    fn renewals(&self) -> watch::Receiver<Option<Renewal>> {
        self.renewals.clone()
    }

    fn set_ttl(&self, ttl: Duration) {
        self.state().ttl = ttl;
    }
}

/// `/<namespace>/<scope>/` with redundant slashes collapsed.
fn prefix(namespace: &str, scope: &str) -> String {
    let parts = namespace.split('/').chain(scope.split('/')).filter(|part| !part.is_empty());
    parts.fold("/".to_owned(), |path, part| path + part + "/")
}

/// etcd counts in seconds: rounded up, since a lease that ends too early is the dangerous one.
fn whole_seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1)
}

/// The key is ours and was written by this process.
fn mine(leader: &str, me: &NodeName, lease: i64) -> Vec<Compare> {
    vec![
        Compare::value(leader, CompareOp::Equal, me.as_str()),
        Compare::lease(leader, CompareOp::Equal, lease),
    ]
}

fn put_op(key: &str, value: &str, lease: i64) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
}

fn compares(path: &str, when: Precondition) -> Vec<Compare> {
    match when {
        Precondition::None => Vec::new(),
        Precondition::Absent => vec![Compare::create_revision(path, CompareOp::Equal, 0)],
        Precondition::Unchanged(Revision(seen)) => vec![Compare::mod_revision(path, CompareOp::Equal, seen)],
    }
}

/// The end of a conditional write. When the condition fails on a repeated attempt, the first one may have been what
/// changed the key: then nobody can tell from here, and the outcome is unknown rather than lost.
fn settled(key: Key, answer: Answer<TxnResponse>) -> Result<Revision, Error> {
    match (answer.reply.succeeded(), answer.repeated) {
        (true, _either) => Ok(revision(&answer.reply)),
        (false, false) => Err(Error::Conflict { what: key.segment() }),
        (false, true) => {
            Err(Error::Unreachable(format!("{} was changed, by us or by somebody else", key.segment())))
        }
    }
}

fn refused(fault: Fault) -> Error {
    match fault {
        Fault::LeaseLost => Error::Unreachable("the lease was lost twice in one call".to_owned()),
        Fault::Store(error) => error,
    }
}

/// The store's revision after a transaction: what a key that it wrote now stands at.
fn revision(reply: &TxnResponse) -> Revision {
    Revision(reply.header().map_or(0, etcd_client::ResponseHeader::revision))
}

fn is_won(op: &TxnOpResponse) -> bool {
    match op {
        TxnOpResponse::Txn(nested) => nested.succeeded(),
        TxnOpResponse::Put(_) | TxnOpResponse::Get(_) | TxnOpResponse::Delete(_) => false,
    }
}

fn as_get(op: TxnOpResponse) -> Option<GetResponse> {
    match op {
        TxnOpResponse::Get(get) => Some(get),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    }
}

/// The value and revision that a transaction found where it lost.
fn standing(reply: &TxnResponse) -> Option<(Vec<u8>, Revision)> {
    let get = reply.op_responses().into_iter().find_map(as_get)?;
    get.kvs().first().map(|kv| (kv.value().to_vec(), Revision(kv.mod_revision())))
}

fn row(kv: &KeyValue, prefix: &str) -> Option<Row> {
    let key = std::str::from_utf8(kv.key()).ok()?.strip_prefix(prefix)?.to_owned();
    let (revision, lease) = (Revision(kv.mod_revision()), LeaseId(kv.lease()));
    Some(Row { key, value: kv.value().to_vec(), revision, lease })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_has_no_redundant_slashes() {
        for (namespace, scope) in [("service", "demo"), ("/service/", "demo"), ("//service", "/demo/")] {
            assert_eq!(prefix(namespace, scope), "/service/demo/");
        }
    }

    #[test]
    fn a_lease_is_never_shorter_than_asked() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(9001)), 10);
        assert_eq!(whole_seconds(Duration::from_secs(20)), 20);
    }
}
