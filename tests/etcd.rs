//! The etcd room with real etcds on loopback: real agents, real TLS, the real API between them.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test helpers may panic")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgherd::api::{self, NodeFacts, Plain};
use pgherd::discovery::Peers;
use pgherd::etcd::{self, PrimaryHere, Status, Timing};
use pgherd::peer::{DataFacts, PeerClient, StorePart};
use pgherd::process::{InitLink, RunAs};
use pgherd::record::Keeper;
use pgherd::supervisor::{Restart, Rung, Unit, UnitSpec, UnitState};
use pgherd::tls::{self, Root, Secret, Subject};
use pgherd::types::{NodeName, Ports};
use pgherd::{clock, etcd::Deps};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const APP: &str = "membership";
const PORTS: Ports = Ports { postgres: 15432, api: 18008, etcd_client: 12379, etcd_peer: 12380 };
/// A condition that is not met by then never will be; two joins take six seconds by etcd's own rules.
const DEADLINE: Duration = Duration::from_secs(60);
/// The machines that run this may be busy.
const PRUNE_AFTER: Duration = Duration::from_secs(2);

/// A container: what is left of it when it stops is its volume.
struct Node {
    address: IpAddr,
    volume: TempDir,
    root: Arc<Root>,
    peers: watch::Sender<Peers>,
    life: Option<Life>,
}

struct Life {
    handle: etcd::Handle,
    unit: Unit,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    // Closed channels would read as "no news for ever", which is not what is tested here.
    _data: watch::Sender<DataFacts>,
    primary: watch::Sender<PrimaryHere>,
    _ha: watch::Sender<Option<pgherd::ha::Status>>,
}

fn addresses(last: &[u8]) -> BTreeSet<IpAddr> {
    last.iter().map(|n| IpAddr::from([127, 0, 15, *n])).collect()
}

fn listed(addrs: BTreeSet<IpAddr>, answers: u64) -> Peers {
    Peers { addrs, fetched_at: Some(clock::now()), answers, failing: None, desired_size: Some(3) }
}

fn root() -> Arc<Root> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
        let filter = tracing_subscriber::EnvFilter::new("pgherd::etcd=debug");
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
    });
    Arc::new(Root::derive(&Secret::Passphrase(b"a passphrase for tests"), APP).unwrap())
}

impl Node {
    fn new(last: u8, root: &Arc<Root>, all: &[u8]) -> Self {
        let peers = watch::channel(listed(addresses(all), 1)).0;
        let address = IpAddr::from([127, 0, 15, last]);
        Self { address, volume: TempDir::new().unwrap(), root: Arc::clone(root), peers, life: None }
    }

    fn path(&self) -> Utf8PathBuf {
        Utf8Path::from_path(self.volume.path()).unwrap().to_owned()
    }

    async fn start(&mut self) {
        let record = Keeper::open(&self.path().join("pgherd"), &RunAs::Same).unwrap();
        let node_id = record.read().node_id;
        let subject = Subject {
            app: APP.to_owned(),
            node_id: node_id.clone(),
            addresses: vec![self.address],
            names: Vec::new(),
            validity_days: 30,
        };
        let bundle = tls::issue(&self.root, &subject, clock::wall()).unwrap();
        let tls_dir = self.path().join("tls");
        std::fs::create_dir_all(&tls_dir).unwrap();
        for file in &bundle.files {
            pgherd::process::write_atomic(
                &tls_dir.join(file.name),
                file.pem.as_bytes(),
                &RunAs::Same,
                pgherd::process::Mode::Private,
            )
            .unwrap();
        }
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let spec = UnitSpec {
            name: "etcd",
            restart: Restart::Never,
            stop: vec![Rung { signal: Signal::SIGTERM, wait: Duration::from_secs(5) }],
        };
        let unit = Unit::spawn(spec, InitLink::inherit(), &mut tasks);
        let (data, data_seen) = watch::channel(DataFacts::default());
        let (primary, primary_seen) = watch::channel(PrimaryHere::No);
        let deps = Deps {
            unit: unit.clone(),
            record,
            peers: self.peers.subscribe(),
            peer_client: PeerClient::new(Arc::clone(&bundle.peer_client), PORTS.api).unwrap(),
            data: data_seen.clone(),
            primary: primary_seen,
            tls: watch::channel(bundle.etcd_client.clone()).1,
        };
        let handle = etcd::spawn(self.config(tls_dir), deps, &mut tasks, stop.clone());
        let (ha, ha_seen) = watch::channel(None);
        let state = api::State {
            node: NodeFacts { node_id, name: NodeName::from("node"), app: APP.to_owned() },
            ha: ha_seen,
            store: handle.status(),
            peers: self.peers.subscribe(),
            data: data_seen,
            promises: None,
            etcd: Some(handle.clone()),
            desk: None,
            access: api::access::Access::default(),
            whereabouts: api::Whereabouts::default(),
            certificates: watch::channel(None).1,
            processes: api::Processes::default(),
        };
        let config = api::Config::new(self.address.to_string(), PORTS.api, Plain::Refused);
        api::serve(config, state, Some(bundle.api_server), &mut tasks, stop.clone()).await.unwrap();
        self.life = Some(Life { handle, unit, stop, tasks, _data: data, primary, _ha: ha });
    }

    fn config(&self, tls_dir: Utf8PathBuf) -> etcd::Config {
        etcd::Config {
            program: Utf8PathBuf::from("/usr/bin/etcd"),
            data_dir: self.path().join("etcd"),
            tls_dir,
            run_as: RunAs::Same,
            app: APP.to_owned(),
            address: self.address,
            listen: self.address.to_string(),
            bound: PORTS,
            advertised: PORTS,
            token: self.root.token(),
            metrics_url: None,
            timing: Timing {
                heartbeat: Duration::from_millis(100),
                election: Duration::from_secs(1),
                prune_after: PRUNE_AFTER,
            },
        }
    }

    fn life(&self) -> &Life {
        self.life.as_ref().unwrap()
    }

    fn status(&self) -> Status {
        self.life().handle.status().borrow().clone()
    }

    fn etcd_pid(&self) -> Option<i32> {
        match *self.life().unit.state().borrow() {
            UnitState::Running { pid, .. } => i32::try_from(pid).ok(),
            UnitState::Down { .. }
            | UnitState::Stopping { .. }
            | UnitState::Draining { .. }
            | UnitState::Backoff { .. } => None,
        }
    }

    /// SIGTERM to the container: agent, then etcd, then the rest.
    async fn stop(&mut self) {
        let Some(mut life) = self.life.take() else { return };
        life.stop.cancel();
        life.unit.stop(None).await;
        life.tasks.shutdown().await;
    }

    async fn until(&self, what: &str, condition: impl Fn(&Status) -> bool) {
        let mut status = self.life().handle.status();
        let met = timeout(DEADLINE, status.wait_for(|s| condition(s))).await;
        if met.is_err() {
            let last = self.status();
            panic!("{} is not {what}: {last:?}\n{:?}", self.address, self.life().unit.last_lines());
        }
    }
}

fn is_voter_of(n: usize) -> impl Fn(&Status) -> bool {
    move |s: &Status| s.facts.part == StorePart::Voter && s.facts.quorum && s.facts.voters.len() == n
}

async fn cluster(last: &[u8]) -> Vec<Node> {
    let root = root();
    let mut nodes: Vec<_> = last.iter().map(|n| Node::new(*n, &root, last)).collect();
    for node in &mut nodes {
        node.start().await;
    }
    for node in &nodes {
        node.until("a voter of three", is_voter_of(3)).await;
    }
    nodes
}

async fn end(nodes: Vec<Node>) {
    for mut node in nodes {
        node.stop().await;
    }
}

/// Keeps telling all nodes this list until the condition holds.
async fn tell_until(nodes: &[Node], list: &BTreeSet<IpAddr>, condition: impl Fn() -> bool) {
    let telling = async {
        while !condition() {
            for node in nodes {
                node.peers.send_modify(|p| *p = listed(list.clone(), p.answers + 1));
            }
            sleep(Duration::from_millis(300)).await;
        }
    };
    timeout(DEADLINE, telling).await.unwrap_or_else(|_| panic!("{:?}", nodes[0].status()));
}

#[tokio::test]
async fn three_nodes_become_one_store_from_nothing() {
    let nodes = cluster(&[11, 12, 13]).await;
    let all: BTreeSet<_> = nodes.iter().map(|n| n.status().facts.cluster_uuid.unwrap()).collect();
    assert_eq!(all.len(), 1, "one cluster");
    for node in &nodes {
        let status = node.status();
        assert_eq!(status.facts.epoch.0, 1);
        let own = format!("https://{}:{}", node.address, PORTS.etcd_client);
        assert_eq!(status.endpoints.first(), Some(&own), "own voter first");
        assert_eq!(status.endpoints.len(), 3);
    }
    end(nodes).await;
}

#[tokio::test]
async fn a_killed_etcd_comes_back_and_a_wiped_node_comes_back_as_another_member() {
    let mut nodes = cluster(&[21, 22, 23]).await;

    let pid = nodes[1].etcd_pid().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let before = nodes[1].status().facts.member_id;
    nodes[1].until("gone", |s| s.facts.part != StorePart::Voter).await;
    nodes[1].until("back", is_voter_of(3)).await;
    assert_ne!(nodes[1].etcd_pid(), Some(pid));
    assert_eq!(nodes[1].status().facts.member_id, before, "the same member, from its own data");

    let before = nodes[2].status().facts.member_id.unwrap();
    nodes[2].stop().await;
    nodes[2].volume = TempDir::new().unwrap();
    nodes[2].start().await;
    nodes[2].until("a voter again", is_voter_of(3)).await;
    assert_ne!(nodes[2].status().facts.member_id.unwrap(), before, "a new member");
    end(nodes).await;
}

#[tokio::test]
async fn all_nodes_restart_with_their_data_and_are_the_same_store() {
    let mut nodes = cluster(&[31, 32, 33]).await;
    let uuid = nodes[0].status().facts.cluster_uuid;
    for node in &mut nodes {
        node.stop().await;
    }
    for node in nodes.iter_mut().rev() {
        node.start().await;
    }
    for node in &nodes {
        node.until("a voter again", is_voter_of(3)).await;
        assert_eq!(node.status().facts.cluster_uuid, uuid);
        assert_eq!(node.status().facts.epoch.0, 1);
    }
    end(nodes).await;
}

#[tokio::test]
async fn a_departed_member_is_removed_and_a_replacement_takes_its_place() {
    let mut nodes = cluster(&[41, 42, 43]).await;
    let mut gone = nodes.pop().unwrap();
    gone.stop().await;

    let list = addresses(&[41, 42, 44]);
    tell_until(&nodes, &list, || nodes.iter().any(|n| n.status().facts.voters.len() == 2)).await;

    let mut replacement = Node::new(44, &root(), &[41, 42, 44]);
    replacement.start().await;
    replacement.until("a voter", is_voter_of(3)).await;
    nodes.push(replacement);
    end(nodes).await;
}

#[tokio::test]
async fn a_delisted_member_that_answers_stays_and_raft_leadership_leaves_the_primary() {
    let nodes = cluster(&[51, 52, 53]).await;
    let list = addresses(&[51, 52]);
    let held = || {
        nodes
            .iter()
            .flat_map(|n| n.status().held)
            .any(|(a, why)| a == nodes[2].address && why.contains("answers"))
    };
    tell_until(&nodes[..2], &list, held).await;
    assert_eq!(nodes[0].status().facts.voters.len(), 3);

    // Every node in turn is the primary: raft leadership must leave at least one of them.
    let moved = |n: &Node| n.status().doing.contains("handing raft leadership");
    for node in &nodes {
        node.life().primary.send_replace(PrimaryHere::Yes);
    }
    let leaving = async {
        while !nodes.iter().any(moved) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, leaving).await.unwrap();
    end(nodes).await;
}
