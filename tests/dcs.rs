//! One conformance suite for every coordination store, and what only a real etcd can show.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "test helpers start etcd and may panic")]
#![expect(clippy::panic, clippy::indexing_slicing, reason = "test helpers")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgherd::clock;
use pgherd::dcs::etcd::{EtcdConfig, EtcdStore, ReadyKey};
use pgherd::dcs::memory::{MemoryCluster, MemoryStore};
use pgherd::dcs::{
    Claim, Dcs, Error, Failover, Initialize, Key, Member, MemberState, Precondition, Readiness,
    ReplicationState, Role, Status, Sync,
};
use pgherd::tls::{EtcdClient, Identity};
use pgherd::types::{Lsn, NodeName, SlotName, SystemId, Timeline};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The shortest that a single etcd with its default timing grants.
const TTL: Duration = Duration::from_secs(2);
/// A condition that is not met by then never will be.
const DEADLINE: Duration = Duration::from_secs(20);
const READY: &str = "/pgherd/demo/ready";

/// A store under test, seen from outside.
trait World {
    type Store: Dcs;
    /// One more node's access.
    fn node(&mut self) -> Self::Store;
    /// Writes a key below the scope, as another program might.
    async fn raw(&self, key: &str, value: &str);
    async fn make_ready(&self);
    /// Lets a little time pass.
    async fn tick(&self);
}

impl World for MemoryCluster {
    type Store = MemoryStore;
    fn node(&mut self) -> MemoryStore {
        self.store(TTL)
    }
    async fn raw(&self, key: &str, value: &str) {
        self.write_raw(key, value);
    }
    async fn make_ready(&self) {
        self.set_readiness(Readiness::Ready);
    }
    async fn tick(&self) {
        tokio::task::yield_now().await;
        self.advance(Duration::from_millis(100));
    }
}

/// A real etcd of one member, and stores on it. Killed and removed when dropped.
struct Etcd {
    process: Child,
    url: String,
    _dir: tempfile::TempDir,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop.cancel();
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn free_port(host: &str) -> u16 {
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port()
}

impl Etcd {
    async fn start(host: &str) -> Self {
        let mut etcd = Self::spawn(host, "http", &[]);
        let probe = etcd.node();
        until(&etcd, "etcd starts", async || probe.snapshot().await.is_ok()).await;
        etcd
    }

    fn spawn(host: &str, scheme: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("{scheme}://{host}:{}", free_port(host));
        let peer = format!("http://{host}:{}", free_port(host));
        let process = Command::new("/usr/bin/etcd")
            .args(["--name", "one", "--log-level", "error", "--data-dir"])
            .arg(dir.path())
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, url, _dir: dir, tasks: JoinSet::new(), stop: CancellationToken::new() }
    }

    fn store(
        &mut self,
        endpoints: &[&str],
        tls: Option<EtcdClient>,
    ) -> (EtcdStore, watch::Sender<Vec<String>>) {
        let (sender, endpoints) = watch::channel(endpoints.iter().map(|&e| e.to_owned()).collect());
        let (scope, namespace) = ("demo".to_owned(), "service".to_owned());
        let tls = tls.map(|shown| watch::channel(shown).1);
        let config = EtcdConfig {
            scope,
            namespace,
            tls,
            login: None,
            ready: ReadyKey::Key(READY.to_owned()),
            ttl: TTL,
        };
        (EtcdStore::new(config, endpoints, &mut self.tasks, self.stop.clone()), sender)
    }

    async fn client(&self) -> etcd_client::Client {
        etcd_client::Client::connect([&self.url], None).await.unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }
}

impl World for Etcd {
    type Store = EtcdStore;
    fn node(&mut self) -> EtcdStore {
        let url = self.url.clone();
        self.store(&[&url], None).0
    }
    async fn raw(&self, key: &str, value: &str) {
        self.client().await.put(format!("/service/demo/{key}"), value, None).await.unwrap();
    }
    async fn make_ready(&self) {
        self.client().await.put(READY, "yes", None).await.unwrap();
    }
    async fn tick(&self) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ticks until the condition holds.
async fn until(world: &impl World, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = clock::now();
    while !holds().await {
        assert!(clock::now().since(began) < DEADLINE, "never happened: {what}");
        world.tick().await;
    }
}

fn name(text: &str) -> NodeName {
    NodeName::from(text)
}

fn member(text: &str) -> Member {
    Member {
        name: name(text),
        conn_url: "postgres://127.0.14.1:5432/postgres".to_owned(),
        api_url: "http://127.0.14.1:8008/patroni".to_owned(),
        state: MemberState::Running,
        role: Role::Replica,
        version: "4.1.4".to_owned(),
        proxy_url: None,
        pgherd_version: None,
        node_id: None,
        checkpoint_after_promote: None,
        tags: serde_json::Map::new(),
        pending_restart: None,
        pending_restart_reason: None,
        scheduled_restart: None,
        xlog_location: Some(Lsn(67_109_616)),
        replay_lsn: Some(Lsn(67_109_616)),
        receive_lsn: Some(Lsn(67_109_616)),
        replication_state: Some(ReplicationState::Streaming),
        timeline: Some(Timeline(1)),
        pause: None,
        room: None,
    }
}

fn is_conflict<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Conflict { .. }))
}

/// Every check, in one store after the other: each leaves the store without a leader.
async fn conformance(mut world: impl World) {
    nobody_leads_before_ready(&mut world).await;
    one_of_two_creates(&mut world).await;
    renewal_moves_the_revision_and_notices_loss(&mut world).await;
    a_takeover_needs_the_revision_it_saw(&mut world).await;
    release_is_for_the_holder(&mut world).await;
    a_restarted_node_keeps_its_key(&mut world).await;
    another_ttl_keeps_the_key(&mut world).await;
    an_ended_lease_takes_leader_and_member(&mut world).await;
    preconditions_hold(&mut world).await;
    values_are_patronis(&mut world).await;
    changes_are_hinted(&mut world).await;
}

async fn nobody_leads_before_ready(world: &mut impl World) {
    let node = world.node();
    assert_eq!(node.snapshot().await.unwrap().readiness, Readiness::NotReady);
    let early = node.acquire_leader(&name("n0"), Claim::Vacant).await;
    assert!(matches!(early, Err(Error::Rejected(_))), "{early:?}");
    assert_eq!(node.snapshot().await.unwrap().leader, None);
    world.make_ready().await;
    assert_eq!(node.snapshot().await.unwrap().readiness, Readiness::Ready);
}

async fn one_of_two_creates(world: &mut impl World) {
    let (a, b) = (world.node(), world.node());
    let (n0, n1) = (name("n0"), name("n1"));
    let race = tokio::join!(a.acquire_leader(&n0, Claim::Vacant), b.acquire_leader(&n1, Claim::Vacant));
    let (winner, loser) = match &race {
        (Ok(_), lost) if is_conflict(lost) => ((&a, &n0), (&b, &n1)),
        (lost, Ok(_)) if is_conflict(lost) => ((&b, &n1), (&a, &n0)),
        other => panic!("{other:?}"),
    };
    let seen = winner.0.snapshot().await.unwrap().leader.unwrap();
    assert_eq!(seen.name, *winner.1);
    assert_eq!(Some(seen.revision), [&race.0, &race.1].into_iter().flatten().map(|h| h.revision).next());
    assert!(is_conflict(&loser.0.renew_leader(loser.1).await));
    winner.0.release_leader(winner.1).await.unwrap();
}

async fn renewal_moves_the_revision_and_notices_loss(world: &mut impl World) {
    let (a, b) = (world.node(), world.node());
    let first = a.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    let second = a.renew_leader(&name("n0")).await.unwrap();
    assert!(second.revision > first.revision && second.sent >= first.sent);
    assert_eq!(a.snapshot().await.unwrap().leader.unwrap().revision, second.revision);
    b.acquire_leader(&name("n1"), Claim::Expired(second.revision)).await.unwrap();
    assert!(is_conflict(&a.renew_leader(&name("n0")).await));
    b.release_leader(&name("n1")).await.unwrap();
    assert!(is_conflict(&a.renew_leader(&name("n0")).await), "a key that is gone is lost");
}

async fn a_takeover_needs_the_revision_it_saw(world: &mut impl World) {
    let (a, b) = (world.node(), world.node());
    let seen = a.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    a.renew_leader(&name("n0")).await.unwrap();
    assert!(is_conflict(&b.acquire_leader(&name("n1"), Claim::Expired(seen.revision)).await));
    // Both at once: exactly one of them holds the key afterwards.
    for _round in 0..20 {
        let seen = b.snapshot().await.unwrap().leader.unwrap().revision;
        let (n0, n1) = (name("n0"), name("n1"));
        let (renewed, taken) = tokio::join!(a.renew_leader(&n0), b.acquire_leader(&n1, Claim::Expired(seen)));
        assert_ne!(renewed.is_ok(), taken.is_ok(), "{renewed:?} {taken:?}");
        if let Ok(held) = taken {
            a.acquire_leader(&n0, Claim::Expired(held.revision)).await.unwrap();
        }
    }
    a.release_leader(&name("n0")).await.unwrap();
}

async fn release_is_for_the_holder(world: &mut impl World) {
    let (a, b) = (world.node(), world.node());
    a.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    assert!(is_conflict(&b.release_leader(&name("n1")).await));
    a.renew_leader(&name("n0")).await.unwrap();
    a.release_leader(&name("n0")).await.unwrap();
    a.release_leader(&name("n0")).await.unwrap();
    assert_eq!(b.snapshot().await.unwrap().leader, None);
}

async fn a_restarted_node_keeps_its_key(world: &mut impl World) {
    let before = world.node();
    let held = before.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    let old = before.snapshot().await.unwrap().leader.unwrap();
    drop(before);
    let after = world.node();
    let renewed = after.renew_leader(&name("n0")).await.unwrap();
    assert!(renewed.revision > held.revision);
    let new = after.snapshot().await.unwrap().leader.unwrap();
    assert_eq!((new.name, new.revision), (old.name, renewed.revision));
    assert_ne!(new.lease, old.lease);
    let again = after.acquire_leader(&name("n0"), Claim::Expired(renewed.revision)).await.unwrap();
    assert!(again.revision > renewed.revision);
    after.release_leader(&name("n0")).await.unwrap();
}

async fn another_ttl_keeps_the_key(world: &mut impl World) {
    let node = world.node();
    node.put_member(&member("n0")).await.unwrap();
    node.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    let before = node.snapshot().await.unwrap().leader.unwrap();
    node.set_ttl(TTL * 2);
    node.renew_leader(&name("n0")).await.unwrap();
    node.put_member(&member("n0")).await.unwrap();
    let after = node.snapshot().await.unwrap();
    assert_ne!(after.leader.as_ref().unwrap().lease, before.lease);
    assert!(after.member(&name("n0")).is_some());
    node.set_ttl(TTL);
    node.put_member(&member("n0")).await.unwrap();
    let released = node.release_leader(&name("n0")).await;
    assert!(released.is_ok(), "the key is under the lease before: {released:?}");
    assert_eq!(node.snapshot().await.unwrap().leader, None);
    node.delete_member(&name("n0")).await.unwrap();
}

async fn an_ended_lease_takes_leader_and_member(world: &mut impl World) {
    let (a, b) = (world.node(), world.node());
    a.put_member(&member("n0")).await.unwrap();
    a.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    assert!(b.snapshot().await.unwrap().member(&name("n0")).is_some());
    until(world, "the leader is gone", async || b.snapshot().await.unwrap().leader.is_none()).await;
    until(world, "the member is gone", async || b.snapshot().await.unwrap().members.is_empty()).await;
    assert!(is_conflict(&a.renew_leader(&name("n0")).await));
    // The node comes back under a new lease.
    a.put_member(&member("n0")).await.unwrap();
    a.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    let back = b.snapshot().await.unwrap();
    assert_eq!(back.leader_name(), Some(&name("n0")));
    assert!(back.member(&name("n0")).is_some());
    a.release_leader(&name("n0")).await.unwrap();
    a.delete_member(&name("n0")).await.unwrap();
    assert!(b.snapshot().await.unwrap().members.is_empty());
}

async fn preconditions_hold(world: &mut impl World) {
    let node = world.node();
    let put = |value: &str, when| node.put(Key::Config, value.to_owned(), when);
    let first = put(r#"{"ttl":30}"#, Precondition::Absent).await.unwrap();
    assert!(is_conflict(&put("{}", Precondition::Absent).await));
    let second = put(r#"{"ttl":20,"mine":1}"#, Precondition::Unchanged(first)).await.unwrap();
    assert!(is_conflict(&put("{}", Precondition::Unchanged(first)).await));
    let config = node.snapshot().await.unwrap().config.unwrap();
    assert_eq!((config.revision, config.value["mine"].as_u64()), (second, Some(1)));
    assert!(is_conflict(&node.delete(Key::Config, Precondition::Unchanged(first)).await));
    node.delete(Key::Config, Precondition::Unchanged(second)).await.unwrap();
    node.delete(Key::Config, Precondition::None).await.unwrap();
    assert_eq!(node.snapshot().await.unwrap().config, None);
}

async fn values_are_patronis(world: &mut impl World) {
    let node = world.node();
    let raws = [
        ("initialize", "7402367211394729234"),
        ("status", r#"{"optime":67109616,"slots":{"n0":67109616},"retain_slots":["n0"]}"#),
        (
            "history",
            r#"[[1,67109616,"no recovery target specified","2026-11-20T15:56:07.993446+00:00","n1"]]"#,
        ),
        ("sync", r#"{"leader":"n0","quorum":0,"sync_standby":"n1,n2"}"#),
        ("failover", r#"{"leader":"n0","member":"n1"}"#),
        ("failsafe", r#"{"n0":"http://127.0.14.1:8008/patroni"}"#),
        (
            "members/stock",
            r#"{"conn_url":"c","api_url":"a","state":"running","role":"master","version":"4.1.4","new":1}"#,
        ),
        ("members/broken", "{"),
        ("members/too/deep", "{}"),
        ("unknown", "x"),
    ];
    for (key, value) in raws {
        world.raw(key, value).await;
    }
    let seen = node.snapshot().await.unwrap();
    assert_eq!(seen.initialize.unwrap().value, Initialize::Done(SystemId(7_402_367_211_394_729_234)));
    assert_eq!(serde_json::to_string(&seen.status.unwrap().value).unwrap(), raws[1].1);
    assert_eq!(serde_json::to_string(&seen.history.unwrap().value).unwrap(), raws[2].1);
    assert_eq!(serde_json::to_string(&seen.sync.unwrap().value).unwrap(), raws[3].1);
    assert_eq!(serde_json::to_string(&seen.failover.unwrap().value).unwrap(), raws[4].1);
    assert_eq!(serde_json::to_string(&seen.failsafe.unwrap().value).unwrap(), raws[5].1);
    assert_eq!(seen.members.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["stock"]);
    assert_eq!(seen.members[0].role, Role::Primary);

    for (key, value) in [("failover", "{}"), ("initialize", "nonsense"), ("sync", "["), ("status", "!")] {
        world.raw(key, value).await;
    }
    let seen = node.snapshot().await.unwrap();
    assert_eq!(seen.failover, None);
    assert_eq!(seen.initialize.unwrap().value, Initialize::Invalid);
    assert_eq!((seen.sync, seen.status), (None, None));
    world.raw("initialize", "").await;
    assert_eq!(node.snapshot().await.unwrap().initialize.unwrap().value, Initialize::InProgress);
}

async fn changes_are_hinted(world: &mut impl World) {
    let (node, other) = (world.node(), world.node());
    let changes = node.changes();
    // The first stream counts as a change; writing until it is seen shows that the stream stands.
    let mut n = 0;
    let start = *changes.borrow();
    until(world, "the watch stands", async || {
        n += 1;
        other.put(Key::Config, format!(r#"{{"n":{n}}}"#), Precondition::None).await.unwrap();
        *changes.borrow() > start + 1
    })
    .await;
    for key in [Key::Failover, Key::Sync] {
        let before = *changes.borrow();
        n += 1;
        other.put(key, format!(r#"{{"n":{n}}}"#), Precondition::None).await.unwrap();
        until(world, "a request is hinted", async || *changes.borrow() > before).await;
    }
    other.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    // Renewals and statuses are not news: after them exactly the change that follows is counted.
    let settled = settle(world, &changes).await;
    other.renew_leader(&name("n0")).await.unwrap();
    other.put(Key::Status, r#"{"optime":1}"#.to_owned(), Precondition::None).await.unwrap();
    other.release_leader(&name("n0")).await.unwrap();
    until(world, "the release is hinted", async || *changes.borrow() > settled).await;
    assert_eq!(*changes.borrow(), settled + 1);
}

/// The counter once the write of a marker has been counted, so that nothing older is on its way.
async fn settle(world: &impl World, changes: &watch::Receiver<u64>) -> u64 {
    loop {
        let before = *changes.borrow();
        let marker = format!(r#"{{"marker":{before}}}"#);
        world.raw("sync", &marker).await;
        until(world, "the marker is hinted", async || *changes.borrow() > before).await;
        if *changes.borrow() == before + 1 {
            return before + 1;
        }
    }
}

#[tokio::test]
async fn memory_conforms() {
    conformance(MemoryCluster::default()).await;
}

#[tokio::test]
async fn etcd_conforms() {
    Box::pin(conformance(Etcd::start("127.0.14.2").await)).await;
}

#[tokio::test]
async fn a_dead_and_a_frozen_endpoint_are_stepped_over() {
    let mut live = Etcd::start("127.0.14.3").await;
    let frozen = Etcd::start("127.0.14.4").await;
    live.make_ready().await;
    frozen.signal(Signal::SIGSTOP);
    let dead = format!("http://127.0.14.3:{}", free_port("127.0.14.3"));
    let url = live.url.clone();
    let (store, endpoints) = live.store(&[&dead, &frozen.url, &url], None);
    let began = clock::now();
    store.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    assert!(clock::now().since(began) < Duration::from_secs(4), "one frozen endpoint costs one attempt");
    let began = clock::now();
    store.renew_leader(&name("n0")).await.unwrap();
    assert!(clock::now().since(began) < Duration::from_secs(1), "and is then out of the way");

    // The list changes while running, and with nobody left a call ends all the same.
    endpoints.send_replace(vec![frozen.url.clone(), dead]);
    let began = clock::now();
    assert!(matches!(store.renew_leader(&name("n0")).await, Err(Error::Unreachable(_))));
    assert!(clock::now().since(began) < Duration::from_secs(4));
    endpoints.send_replace(vec![url]);
    store.snapshot().await.unwrap();
    frozen.signal(Signal::SIGCONT);
}

/// Passes on what is said to etcd; what etcd says only until it is muted.
async fn relay(host: &str, url: &str) -> (String, watch::Sender<bool>) {
    let target = url.trim_start_matches("http://").to_owned();
    let listener = tokio::net::TcpListener::bind((host, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, muted) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let etcd = tokio::net::TcpStream::connect(&target).await.unwrap();
            let ((mut asks, mut hears), (mut says, mut takes)) = (client.into_split(), etcd.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut asks, &mut takes).await });
            let muted = muted.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = says.read(&mut buffer).await {
                    if !*muted.borrow() && hears.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, sender)
}

/// The keys are deleted and the answer is lost: that is not "nothing was removed".
#[tokio::test]
async fn a_scope_that_is_gone_without_an_answer_is_gone() {
    let mut etcd = Etcd::start("127.0.6.8").await;
    let (relayed, mute) = relay("127.0.6.8", &etcd.url).await;
    etcd.raw("leader", "n0").await;
    etcd.raw("initialize", "1").await;
    let url = etcd.url.clone();
    let (store, _endpoints) = etcd.store(&[&relayed, &url], None);
    let seen = store.snapshot().await.unwrap();
    assert_eq!((seen.leader_name(), store.n_keys().await.unwrap()), (Some(&name("n0")), 2));
    mute.send(true).unwrap();
    assert_eq!(store.remove_scope(&seen).await.unwrap(), None);
    assert_eq!(store.n_keys().await.unwrap(), 0);
    // Asked once and answered, it is as before.
    etcd.raw("leader", "n1").await;
    assert!(is_conflict(&store.remove_scope(&seen).await));
}

#[tokio::test]
async fn a_frozen_store_leaves_the_held_moment_behind() {
    let mut etcd = Etcd::start("127.0.14.5").await;
    etcd.make_ready().await;
    let store = etcd.node();
    let before = clock::now();
    let held = store.acquire_leader(&name("n0"), Claim::Vacant).await.unwrap();
    assert!(held.sent >= before && held.sent <= clock::now());
    etcd.signal(Signal::SIGSTOP);
    assert!(matches!(store.renew_leader(&name("n0")).await, Err(Error::Unreachable(_))));
    etcd.signal(Signal::SIGCONT);
    let asked = clock::now();
    // The unanswered renewal may be applied only now; ours succeeds all the same.
    let renewed = store.renew_leader(&name("n0")).await.unwrap();
    assert!(renewed.sent >= asked && renewed.revision > held.revision);
}

#[tokio::test]
async fn tls_verifies_the_address() {
    let dir = tempfile::tempdir().unwrap();
    for (file, san) in [("good", "IP:127.0.14.6"), ("bad", "IP:127.0.14.99")] {
        certificate(&dir, file, san);
    }
    let path = |file: &str| dir.path().join(file).to_str().unwrap().to_owned();
    let pem = |file: &str| std::fs::read_to_string(path(file)).unwrap();
    let tls = EtcdClient {
        ca: pem("ca.crt"),
        identity: Some(Identity { certificate: pem("good.crt"), key: pem("good.key").into() }),
    };
    for (file, trusted) in [("good", true), ("bad", false)] {
        let (cert, key, ca) = (path(&format!("{file}.crt")), path(&format!("{file}.key")), path("ca.crt"));
        let args = ["--cert-file", &cert, "--key-file", &key, "--client-cert-auth", "--trusted-ca-file", &ca];
        let mut etcd = Etcd::spawn("127.0.14.6", "https", &args);
        let url = etcd.url.clone();
        let (store, _endpoints) = etcd.store(&[&url], Some(tls.clone()));
        let address = url.trim_start_matches("https://").to_owned();
        until(&etcd, "etcd listens", async || tokio::net::TcpStream::connect(&address).await.is_ok()).await;
        if trusted {
            until(&etcd, "a snapshot", async || store.snapshot().await.is_ok()).await;
        } else {
            let refused = store.snapshot().await.unwrap_err();
            assert!(refused.to_string().contains("certificate"), "{refused}");
        }
    }
}

/// A certificate for this name, of a CA that is made on first use.
fn certificate(dir: &tempfile::TempDir, file: &str, san: &str) {
    let openssl = |args: &str| {
        let done =
            Command::new("openssl").args(args.split_whitespace()).current_dir(dir.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    if !dir.path().join("ca.crt").exists() {
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=ca -days 2"));
    }
    openssl(&format!("req {key} -keyout {file}.key -out {file}.csr -subj /CN={file}"));
    std::fs::write(dir.path().join("ext"), format!("subjectAltName={san}\nbasicConstraints=CA:FALSE\n"))
        .unwrap();
    openssl(&format!(
        "x509 -req -in {file}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out {file}.crt"
    ));
}

#[test]
fn a_member_has_patronis_fields_in_patronis_order() {
    let expected = concat!(
        r#"{"conn_url":"postgres://127.0.14.1:5432/postgres","api_url":"http://127.0.14.1:8008/patroni","#,
        r#""state":"running","role":"replica","version":"4.1.4","xlog_location":67109616,"replay_lsn":67109616,"#,
        r#""receive_lsn":67109616,"replication_state":"streaming","timeline":1}"#
    );
    assert_eq!(serde_json::to_string(&member("n0")).unwrap(), expected);
    let mut full = member("n0");
    full.checkpoint_after_promote = Some(false);
    full.tags.insert("nofailover".to_owned(), true.into());
    (full.pending_restart, full.pause) = (Some(true), Some(true));
    let text = serde_json::to_string(&full).unwrap();
    let at = |field: &str| text.find(&format!("\"{field}\"")).unwrap();
    let order = [
        "version",
        "checkpoint_after_promote",
        "tags",
        "pending_restart",
        "xlog_location",
        "timeline",
        "pause",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{text}");
}

#[test]
fn documents_have_patronis_shapes() {
    assert_eq!(
        json(&Sync::new(&name("n0"), 0, &[name("n2"), name("n1")])),
        r#"{"leader":"n0","quorum":0,"sync_standby":"n1,n2"}"#
    );
    assert_eq!(json(&Sync::new(&name("n0"), 0, &[])), r#"{"leader":"n0","quorum":0,"sync_standby":null}"#);
    assert_eq!(json(&Status { optime: Some(Lsn(5)), ..Status::default() }), r#"{"optime":5}"#);
    assert_eq!(json(&Failover::default()), "{}");
    assert_eq!(json(&MemberState::CreatingReplica), r#""creating replica""#);
    let scheduled = Failover {
        leader: Some(name("n0")),
        member: None,
        scheduled_at: Some("2030-01-01T00:00:00+00:00".to_owned()),
    };
    assert_eq!(json(&scheduled), r#"{"leader":"n0","scheduled_at":"2030-01-01T00:00:00+00:00"}"#);
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

#[test]
fn slot_names_follow_patronis_mapping() {
    for (member, slot) in [("node-1.a", "node_1_a"), ("N0", "n0"), ("a b", "au0032b"), ("é", "u0233")] {
        assert_eq!(name(member).slot_name(), SlotName(slot.to_owned()));
    }
    assert_eq!(name(&"x".repeat(70)).slot_name().0.len(), 63);
}
