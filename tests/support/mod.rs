//! Real clusters for tests and benches: the built binary, the real mock of the location API, real etcd and PostgreSQL,
//! every node on a loopback address of its own with the same ports on each.
//!
//! A node runs in the shim of `pgherd demo`: killing its tree is what the death of a container is. Nothing here knows
//! how pgherd works inside; it sees what a user sees: SQL, REST, files of the volume, processes.
//! Clusters run one at a time. One that fails leaves its directory and the ends of its logs.

pub(crate) mod client;
pub(crate) mod node;
pub(crate) mod wait;
pub(crate) mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use pgherd::clock::{self, Moment};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use node::Node;
pub(crate) use wait::eventually;
use wait::mock;

/// What a cluster of this machine may take to form; a loaded build machine is several times slower than the 10 s that
/// are promised.
pub(crate) const FORMED: Duration = Duration::from_secs(60);
/// One look at one node.
const ANSWER: Duration = Duration::from_secs(1);

/// Two clusters at once would fight for two cores, and every deadline would have to be longer.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
/// Every cluster has ten addresses of its own: a port in TIME_WAIT of the last one disturbs nobody.
static CLUSTERS: AtomicU8 = AtomicU8::new(0);

/// What a test wants its cluster to be.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// How many nodes at the start.
    pub(crate) nodes: u8,
    /// Variables beyond the ones that every node needs; they win.
    pub(crate) env: BTreeMap<String, String>,
}

impl Setup {
    /// Three nodes.
    pub(crate) fn three() -> Self {
        Self { nodes: 3, env: BTreeMap::new() }
    }

    /// With a variable more.
    #[must_use]
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    setup: Setup,
    base: u8,
    dir: PathBuf,
    api: Option<Child>,
    nodes: BTreeMap<u8, Node>,
    listed: BTreeSet<u8>,
    http: reqwest::Client,
    /// When the processes were started.
    pub(crate) started: Moment,
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Cluster {
    /// Starts the location API and every node at once; waits for nothing.
    pub(crate) async fn start(setup: Setup) -> Self {
        let alone = ONE_AT_A_TIME.lock().await;
        Self::start_now(setup, Some(alone))
    }

    /// A second one of the same test, which ends no later than the first.
    pub(crate) fn beside(_first: &Self, setup: Setup) -> Self {
        Self::start_now(setup, None)
    }

    fn start_now(setup: Setup, alone: Option<MutexGuard<'static, ()>>) -> Self {
        pgherd::tls::install_provider();
        let dir = tempfile::Builder::new().prefix("pgherd-").tempdir().unwrap().keep();
        // PostgreSQL's account must be able to enter.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let builder =
            reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).timeout(ANSWER);
        let mut cluster = Self {
            base: CLUSTERS.fetch_add(1, Ordering::Relaxed) % 25 * 10,
            dir,
            api: None,
            nodes: BTreeMap::new(),
            listed: (1..=setup.nodes).collect(),
            http: builder.build().unwrap(),
            started: clock::now(),
            setup,
            _alone: alone,
        };
        cluster.publish();
        cluster.start_api();
        cluster.started = clock::now();
        for node in 1..=cluster.setup.nodes {
            cluster.start_node(node);
        }
        cluster
    }

    /// A cluster in which one node leads, all others stream, and etcd can spare one of its voters. (etcd takes voters one
    /// by one, a few seconds apart: a cluster that is whole in the table may still depend on its founder.)
    pub(crate) async fn formed(setup: Setup) -> Self {
        let cluster = Self::start(setup).await;
        let leader = cluster.all_stream(FORMED).await;
        let wanted = usize::from(cluster.setup.nodes.min(3));
        let voters = eventually(FORMED, async || {
            cluster.etcd_voters(leader).await.filter(|voters| voters.len() == wanted)
        });
        assert!(voters.await.is_some(), "etcd has not {wanted} voters within {FORMED:?}");
        cluster
    }

    // ---- the platform

    /// The address of a node.
    pub(crate) fn address(&self, node: u8) -> String {
        format!("127.0.18.{}", self.base + node)
    }

    fn api_address(&self) -> String {
        format!("127.0.18.{}:16127", self.base)
    }

    fn start_api(&mut self) {
        let log = std::fs::File::create(self.dir.join("api.log")).unwrap();
        let mut command = Command::new(mock());
        command.args(["--listen", &self.api_address(), "--file"]).arg(self.dir.join("locations.json"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.api = Some(command.spawn().unwrap());
    }

    fn publish(&self) {
        let nodes: Vec<String> = self.listed.iter().map(|node| self.address(*node)).collect();
        let list = json!({ "app": "test", "instances": self.setup.nodes, "nodes": nodes });
        let path = self.dir.join("locations.json");
        let new = self.dir.join("locations.new");
        std::fs::write(&new, list.to_string()).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// The next node of the location API, and running.
    pub(crate) fn add_node(&mut self) -> u8 {
        let node = self.nodes.keys().next_back().unwrap() + 1;
        self.listed.insert(node);
        self.publish();
        self.start_node(node);
        node
    }

    /// Takes a node out of the location API; it goes on running.
    pub(crate) fn delist(&mut self, node: u8) {
        self.listed.remove(&node);
        self.publish();
    }

    /// Makes the location API lie or fail, as the mock's `/admin/fault` describes.
    pub(crate) async fn fault(&self, kind: &str) {
        let url = format!("http://{}/admin/fault", self.api_address());
        let answer = self.http.put(url).json(&json!({ "kind": kind })).send().await.unwrap();
        assert!(answer.status().is_success(), "the mock refuses {kind}: {}", answer.status());
    }

    /// Starts a node that is not running (its volume is kept).
    pub(crate) fn start_node(&mut self, node: u8) {
        let dir = self.dir.join(format!("n{node}"));
        let env = self.environment(node, &dir);
        let started = Node::start(dir, &env);
        assert!(self.nodes.insert(node, started).is_none_or(|old| old.is_gone()), "node {node} runs");
    }

    fn environment(&self, node: u8, dir: &Path) -> BTreeMap<String, String> {
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let address = self.address(node);
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("APP_NAME".to_owned(), "test".to_owned()),
            ("NODE_NAME".to_owned(), name(node)),
            ("LISTEN_ADDRESS".to_owned(), address.clone()),
            ("ADVERTISE_ADDRESS".to_owned(), address),
            ("FLUX_API_URL".to_owned(), format!("http://{}", self.api_address())),
            ("DATA_VOLUME".to_owned(), path("data")),
            ("RUN_DIR".to_owned(), path("run")),
            ("POSTGRES_SUPERUSER_PASSWORD".to_owned(), "super".to_owned()),
            ("POSTGRES_REPLICATION_PASSWORD".to_owned(), "replica".to_owned()),
        ]);
        env.extend(self.setup.env.clone());
        env
    }

    /// A command of `pgherd` in a node's environment, as `docker exec` runs it.
    pub(crate) fn exec(&self, node: u8, args: &[&str]) -> std::process::Output {
        self.exec_typing(node, args, "")
    }

    /// The same with `typed` at the questions.
    pub(crate) fn exec_typing(&self, node: u8, args: &[&str], typed: &str) -> std::process::Output {
        let env = self.environment(node, &self.dir.join(format!("n{node}")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
        let input = self.dir.join(format!("typed-{node}"));
        std::fs::write(&input, typed).unwrap();
        let input = std::fs::File::open(input).unwrap();
        command.args(args).env_clear().envs(env).stdin(input).output().unwrap()
    }

    /// A node, to be killed, frozen or looked into.
    pub(crate) fn node(&mut self, node: u8) -> &mut Node {
        self.nodes.get_mut(&node).unwrap()
    }

    /// The numbers of all nodes, running or not.
    pub(crate) fn numbers(&self) -> Vec<u8> {
        self.nodes.keys().copied().collect()
    }

    // ---- what a user sees

    /// The members as any node's `/cluster` shows them.
    pub(crate) async fn members(&self) -> Vec<Member> {
        for node in self.nodes.keys() {
            let Ok(answer) = self.http.get(self.url(*node, "cluster")).send().await else { continue };
            let Ok(cluster) = answer.json::<Value>().await else { continue };
            return Member::all(&cluster);
        }
        Vec::new()
    }

    /// How many members the `failsafe` key names, as this node shows it.
    pub(crate) async fn failsafe_members(&self, node: u8) -> usize {
        let map = self.page(node, "failsafe").await;
        map.and_then(|(_, map)| Some(map.as_object()?.len())).unwrap_or(0)
    }

    /// The value of the first line of a node's metrics that has this in it.
    pub(crate) async fn metric(&self, node: u8, what: &str) -> Option<f64> {
        let page = self.http.get(self.url(node, "metrics")).send().await.ok()?.text().await.ok()?;
        let line = page.lines().find(|line| !line.starts_with('#') && line.contains(what))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// A page of a node's API: status and JSON.
    pub(crate) async fn page(&self, node: u8, page: &str) -> Option<(u16, Value)> {
        let answer = self.http.get(self.url(node, page)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.json().await.ok()?))
    }

    fn is_ssl(&self) -> bool {
        self.setup.env.get("SSL_ENABLED").is_some_and(|value| value == "true")
    }

    /// Waits until one member leads and every running node but it streams; gives the leader.
    pub(crate) async fn all_stream(&self, limit: Duration) -> u8 {
        let running = self.nodes.values().filter(|node| !node.is_gone()).count();
        let mut seen = Vec::new();
        let found = eventually(limit, async || {
            seen = self.members().await;
            let streaming = seen.iter().filter(|member| member.state == "streaming").count();
            let leaders: Vec<_> = seen.iter().filter(|member| member.role == "leader").collect();
            match leaders.as_slice() {
                [leader] if streaming + 1 == running && leader.state == "running" => number(&leader.name),
                _ => None,
            }
        });
        let found = found.await;
        found.unwrap_or_else(|| {
            panic!("no leader with {} streaming replicas within {limit:?}: {seen:#?}", running - 1)
        })
    }

    /// Waits until every replica streams and confirms commits, so that any of them can take over; gives the leader.
    pub(crate) async fn can_fail_over(&self, limit: Duration) -> u8 {
        let leader = self.all_stream(limit).await;
        let replicas = self.nodes.values().filter(|node| !node.is_gone()).count() - 1;
        let confirmed = eventually(limit, async || {
            let members = self.members().await;
            (members.iter().filter(|m| m.role == "quorum_standby").count() == replicas).then_some(())
        });
        assert!(confirmed.await.is_some(), "not every replica confirms commits within {limit:?}");
        leader
    }

    /// Waits until a node other than `except` accepts a write; gives it.
    pub(crate) async fn writable(&self, except: Option<u8>, limit: Duration) -> u8 {
        let found = eventually(limit, async || {
            for node in self.nodes.keys().filter(|node| Some(**node) != except) {
                if self.is_writable(*node).await {
                    return Some(*node);
                }
            }
            None
        });
        found.await.unwrap_or_else(|| panic!("no node (except {except:?}) is writable within {limit:?}"))
    }

    /// Whether a node says that it is no standby.
    pub(crate) async fn is_writable(&self, node: u8) -> bool {
        let asked = self.sql(node, "SELECT (NOT pg_is_in_recovery())::text").await;
        asked.is_ok_and(|answer| answer == "true")
    }

    /// The first column of the first row of a query, on one node.
    pub(crate) async fn sql(&self, node: u8, query: &str) -> Result<String, client::Error> {
        client::ask(&self.target(node), query).await
    }

    /// How a client reaches a node.
    pub(crate) fn target(&self, node: u8) -> client::Target {
        let env = |name: &str, default: &str| {
            self.setup.env.get(name).cloned().unwrap_or_else(|| default.to_owned())
        };
        client::Target {
            host: self.address(node),
            at: None,
            port: 5432,
            user: env("POSTGRES_USER", "postgres"),
            password: env("POSTGRES_SUPERUSER_PASSWORD", "super"),
            database: env("POSTGRES_DB", "postgres"),
            ca: self.is_ssl().then(|| self.dir.join(format!("n{node}/run/tls/service-ca.crt"))),
        }
    }

    /// A client of all nodes that writes until it is asked what became of it.
    pub(crate) fn writer(&self) -> writer::Writer {
        writer::Writer::start(self.nodes.keys().map(|node| self.target(*node)).collect())
    }

    /// A client of one port that writes until it is asked what became of it.
    pub(crate) fn writer_through(&self, target: client::Target) -> writer::Writer {
        writer::Writer::start(vec![target])
    }

    /// The peer addresses of the voters of etcd, as one node's etcd lists them.
    pub(crate) async fn etcd_voters(&self, node: u8) -> Option<BTreeSet<String>> {
        client::etcd_voters(&self.address(node), &self.dir.join(format!("n{node}/run/tls"))).await
    }

    /// Writes a key of the store, as somebody else would.
    pub(crate) async fn store_put(&self, key: &str, value: &str) {
        client::etcd_put(&self.address(1), &self.dir.join("n1/run/tls"), (key, value)).await.unwrap();
    }

    /// How many keys lie beneath a prefix of the store.
    pub(crate) async fn store_count(&self, prefix: &str) -> i64 {
        client::etcd_count(&self.address(1), &self.dir.join("n1/run/tls"), prefix).await.unwrap()
    }

    /// Makes a node's etcd the leader of the store.
    pub(crate) async fn lead_store(&self, node: u8) {
        let tls = self.dir.join(format!("n{node}/run/tls"));
        let led = eventually(FORMED, async || client::etcd_lead(&self.address(node), &tls).await);
        assert!(led.await.is_some(), "node {node} does not become the leader of the store");
    }

    /// How long the outage would be if the primary's machine were lost now, as a node says in `/why`.
    pub(crate) async fn forecast(&self, node: u8) -> Option<Duration> {
        let page = self.http.get(self.url(node, "why")).send().await.ok()?.json::<Value>().await.ok()?;
        page.pointer("/if_the_primary_dies/within_seconds")?.as_f64().map(Duration::from_secs_f64)
    }

    fn url(&self, node: u8, page: &str) -> String {
        let scheme = if self.is_ssl() { "https" } else { "http" };
        format!("{scheme}://{}:8008/{page}", self.address(node))
    }

    fn print_logs(&self) {
        for node in self.nodes.values() {
            let log = std::fs::read_to_string(node.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the end of {}", node.log().display());
            lines.iter().skip(lines.len().saturating_sub(60)).for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.values_mut().for_each(Node::kill_tree);
        self.nodes.values_mut().for_each(Node::reap);
        if let Some(mut api) = self.api.take() {
            api.kill().ok();
            api.wait().ok();
        }
        if std::thread::panicking() {
            self.print_logs();
            eprintln!("kept for a look: {}", self.dir.display());
        } else {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}

/// One row of `/cluster`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its name.
    pub(crate) name: String,
    /// `leader`, `replica`, `sync_standby`, `quorum_standby`.
    pub(crate) role: String,
    /// `running`, `streaming`, ...
    pub(crate) state: String,
}

impl Member {
    fn all(cluster: &Value) -> Vec<Self> {
        let word = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let rows = cluster["members"].as_array().into_iter().flatten();
        let member =
            |row| Self { name: word(row, "name"), role: word(row, "role"), state: word(row, "state") };
        rows.map(member).collect()
    }
}

/// The name of a node.
fn name(node: u8) -> String {
    format!("n{node}")
}

fn number(name: &str) -> Option<u8> {
    name.strip_prefix('n')?.parse().ok()
}
