//! The demo itself: one task that owns the nodes, and what it does with each event.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::control::{self, Answer, Api, Order, Request};
use super::place::{API_PORT, Memory, PORTS, Place, Subnet, check_ports};
use super::screen::{Facts, Screen};
use super::{Ssl, shim};
use crate::clock::{self, Moment};
use crate::process::{self, Mode, RunAs};

/// How often the table is fetched.
const TICK: Duration = Duration::from_millis(500);
/// A node that does not answer within this is passed over; a frozen one must not hold up the page.
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// Beyond a node's own budget for an orderly stop: then its tree is killed.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// The name that the location API knows the cluster by.
const APP_NAME: &str = "demo";

/// What was asked for on the command line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) nodes: u8,
    pub(super) ssl: Ssl,
    pub(super) restart_after: Duration,
    pub(super) subnet: Subnet,
}

/// Runs the cluster until SIGINT or SIGTERM.
pub(super) async fn run(place: Place, plan: Plan) -> anyhow::Result<ExitCode> {
    ensure!(!place.is_running(), "a demo runs already in {}", place.home);
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut demo = Demo::new(place, plan)?;
    let (orders, mut inbox) = mpsc::channel(1);
    let mut server = JoinSet::new();
    demo.start_everything()?;
    server.spawn(control::serve(control::listen(&demo.place)?, orders));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => demo.tick(),
            Some(Ok(answer)) = demo.polls.join_next() => demo.polled(answer),
            Some(Ok((who, status))) = demo.exits.join_next() => demo.exited(who, status),
            Some(Request { order, reply }) = inbox.recv() => {
                // A caller that did not wait for the answer has lost nothing but the answer.
                reply.send(demo.obey(&order)).ok();
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    demo.stop_everything(&mut interrupt).await
}

/// Whose shim it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Node(u8),
    Api,
}

/// One node's process tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tree {
    /// Runs; when it ends it is started again.
    Up { shim: Pid },
    /// Runs, but was told to stop and to stay so.
    Stopping { shim: Pid },
    /// Died; a container runtime would start it again at this moment.
    Died { again_at: Moment },
    /// Stays so until somebody starts it.
    Stopped,
}

impl Tree {
    fn shim(self) -> Option<Pid> {
        match self {
            Self::Up { shim } | Self::Stopping { shim } => Some(shim),
            Self::Died { .. } | Self::Stopped => None,
        }
    }
}

#[derive(Debug)]
struct Demo {
    place: Place,
    plan: Plan,
    memory: Memory,
    /// This program, as every node runs it.
    pgherd: Utf8PathBuf,
    nodes: BTreeMap<u8, Tree>,
    api: Option<Pid>,
    exits: JoinSet<(Who, std::io::Result<ExitStatus>)>,
    polls: JoinSet<Option<Value>>,
    http: reqwest::Client,
    cluster: Option<Value>,
    screen: Screen,
}

impl Demo {
    fn new(place: Place, plan: Plan) -> anyhow::Result<Self> {
        let memory = place.memory()?;
        let pgherd = Utf8PathBuf::try_from(std::env::current_exe().context("cannot find this program")?)?;
        let facts = Facts {
            place: place.clone(),
            subnet: plan.subnet,
            ssl: plan.ssl,
            password: memory.superuser_password.clone(),
            program: as_typed(&pgherd),
        };
        Ok(Self {
            nodes: (1..=plan.nodes)
                .chain(memory.listed.iter().copied())
                .map(|node| (node, Tree::Stopped))
                .collect(),
            place,
            plan,
            memory,
            pgherd,
            api: None,
            exits: JoinSet::new(),
            polls: JoinSet::new(),
            http: http_client()?,
            cluster: None,
            screen: Screen::new(facts),
        })
    }

    fn start_everything(&mut self) -> anyhow::Result<()> {
        let nodes: Vec<u8> = self.nodes.keys().copied().collect();
        let sockets = nodes
            .iter()
            .flat_map(|node| PORTS.map(|port| SocketAddr::new(self.plan.subnet.node(*node), port)));
        check_ports(&sockets.chain([self.plan.subnet.location_api()]).collect::<Vec<_>>())?;
        self.memory.listed = nodes.iter().copied().collect();
        self.publish()?;
        self.start_api()?;
        if nodes.len() > usize::from(self.plan.nodes) {
            self.screen
                .event(&format!("{} nodes: the kept data has them (--fresh starts anew)", nodes.len()));
        }
        nodes.into_iter().try_for_each(|node| self.start_node(node))
    }

    /// Writes down who is listed, for the location API and for the next run.
    fn publish(&mut self) -> anyhow::Result<()> {
        self.screen.listed(&self.memory.listed.iter().copied().collect::<Vec<_>>());
        let locations = locations(&self.plan, &self.memory);
        let text = serde_json::to_vec_pretty(&locations)?;
        process::write_atomic(&self.place.locations(), &text, &RunAs::Same, Mode::Public)?;
        self.place.remember(&self.memory)
    }

    fn start_api(&mut self) -> anyhow::Result<()> {
        let mock = self.pgherd.with_file_name("mock-flux-api");
        ensure!(mock.exists(), "{mock} is missing; build it with: cargo build --workspace");
        let listen = self.plan.subnet.location_api().to_string();
        let words = [mock.as_str(), "--listen", &listen, "--file", self.place.locations().as_str()]
            .map(str::to_owned);
        self.api = Some(self.spawn(Who::Api, &words, BTreeMap::new())?);
        Ok(())
    }

    fn start_node(&mut self, node: u8) -> anyhow::Result<()> {
        self.place.prepare(node)?;
        let words = [self.pgherd.to_string(), "init".to_owned()];
        let shim = self.spawn(Who::Node(node), &words, self.environment(node))?;
        self.nodes.insert(node, Tree::Up { shim });
        self.screen.event(&format!("node {node} started, log: {}", self.place.log(node)));
        Ok(())
    }

    /// What a node is told. Everything else passes through from our own environment: `LOG_LEVEL=debug make demo`.
    fn environment(&self, node: u8) -> BTreeMap<&'static str, String> {
        let address = self.plan.subnet.node(node).to_string();
        let [postgres, api, etcd_client, etcd_peer] = PORTS.map(|port| port.to_string());
        let volume = self.place.volume(node);
        let mut environment = BTreeMap::from([
            ("APP_NAME", APP_NAME.to_owned()),
            ("NODE_NAME", format!("node-{node}")),
            ("LISTEN_ADDRESS", address.clone()),
            ("ADVERTISE_ADDRESS", address),
            ("DISCOVERY", "flux".to_owned()),
            ("FLUX_API_URL", format!("http://{}", self.plan.subnet.location_api())),
            ("DATA_VOLUME", volume.to_string()),
            ("PGDATA", volume.join("pgdata").into_string()),
            ("RUN_DIR", self.place.run_dir(node).into_string()),
            ("POSTGRES_USER", "postgres".to_owned()),
            ("POSTGRES_DB", "postgres".to_owned()),
            ("POSTGRES_SUPERUSER_PASSWORD", self.memory.superuser_password.clone()),
            ("POSTGRES_REPLICATION_PASSWORD", self.memory.replication_password.clone()),
            ("SSL_ENABLED", (self.plan.ssl == Ssl::True).to_string()),
            ("POSTGRES_PORT", postgres.clone()),
            ("HOST_POSTGRES_PORT", postgres),
            ("PATRONI_API_PORT", api.clone()),
            ("HOST_PATRONI_API_PORT", api),
            ("ETCD_CLIENT_PORT", etcd_client.clone()),
            ("HOST_ETCD_CLIENT_PORT", etcd_client),
            ("ETCD_PEER_PORT", etcd_peer.clone()),
            ("HOST_ETCD_PEER_PORT", etcd_peer),
        ]);
        if self.plan.ssl == Ssl::True {
            environment.insert("SSL_PASSPHRASE", self.memory.ssl_passphrase.clone());
        }
        environment
    }

    /// Starts a command in a shim, its output appended to a log of its own.
    #[expect(
        clippy::disallowed_methods,
        reason = "the demo plays the container runtime, outside of every node: process::Command belongs to what runs \
                  inside one (its user, its log, its death signal)"
    )]
    fn spawn(
        &mut self,
        who: Who,
        words: &[String],
        env: BTreeMap<&'static str, String>,
    ) -> anyhow::Result<Pid> {
        let log = self.open_log(who)?;
        let mut command = tokio::process::Command::new(&self.pgherd);
        command
            .args(["demo", "shim", "--parent", &getpid().to_string(), "--"])
            .args(words)
            .envs(env)
            // Open to every account, unlike perhaps the directory that the user stands in.
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.pgherd))?;
        let pid = child.id().context("the shim ended at once")?;
        self.exits.spawn(async move { (who, child.wait().await) });
        Ok(Pid::from_raw(i32::try_from(pid)?))
    }

    fn open_log(&self, who: Who) -> anyhow::Result<File> {
        let path = match who {
            Who::Node(node) => self.place.log(node),
            Who::Api => self.place.home.join("api.log"),
        };
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {path}"))
    }

    // ---- events

    fn tick(&mut self) {
        let due = |tree: &Tree| matches!(tree, Tree::Died { again_at } if *again_at <= clock::now());
        let again: Vec<u8> = self.nodes.iter().filter(|(_, tree)| due(tree)).map(|(node, _)| *node).collect();
        for node in again {
            if let Err(error) = self.start_node(node) {
                self.died(node, &format!("cannot be started: {error:#}"));
            }
        }
        if self.polls.is_empty() {
            let up = self.nodes.iter().filter(|(_, tree)| tree.shim().is_some());
            let urls = up.map(|(node, _)| self.cluster_url(*node)).collect();
            self.polls.spawn(poll(self.http.clone(), urls));
        }
    }

    fn cluster_url(&self, node: u8) -> String {
        let scheme = match self.plan.ssl {
            Ssl::True => "https",
            Ssl::False => "http",
        };
        format!("{scheme}://{}:{API_PORT}/cluster", self.plan.subnet.node(node))
    }

    fn polled(&mut self, cluster: Option<Value>) {
        self.cluster = cluster;
        self.screen.members(self.cluster.as_ref());
    }

    fn exited(&mut self, who: Who, status: std::io::Result<ExitStatus>) {
        let how = status.map_or_else(|error| error.to_string(), describe);
        match who {
            Who::Api => {
                self.api = None;
                self.screen.event(&format!("the location API ended: {how}"));
            }
            Who::Node(node) => match self.nodes.get(&node) {
                Some(Tree::Stopping { .. }) => {
                    self.nodes.insert(node, Tree::Stopped);
                    self.screen.event(&format!("node {node} stopped: {how}"));
                }
                Some(Tree::Up { .. } | Tree::Died { .. } | Tree::Stopped) | None => {
                    self.died(node, &format!("died: {how}"));
                }
            },
        }
    }

    fn died(&mut self, node: u8, how: &str) {
        let wait = self.plan.restart_after;
        self.nodes.insert(node, Tree::Died { again_at: clock::now() + wait });
        self.screen.event(&format!("node {node} {how}; starts again in {} s", wait.as_secs()));
    }

    // ---- orders

    fn obey(&mut self, order: &Order) -> Answer {
        let done = match order {
            Order::Add => self.add(),
            Order::Remove { node } => self.remove(node),
            Order::Stop { node } => self.stop(node),
            Order::Start { node } => self.start(node),
            Order::Kill { node } => self.kill_tree(node),
            Order::Crash { node } => self.crash(node),
            Order::Api { state: Api::On } => self.api_on(),
            Order::Api { state: Api::Off } => self.api_off(),
        };
        let answer = done.map_err(|error| format!("{error:#}"));
        if let Ok(text) = &answer {
            self.screen.event(&format!("you: {text}"));
        }
        answer
    }

    /// The node that is meant by a number or by `primary`.
    fn named(&self, name: &str) -> anyhow::Result<u8> {
        if name == "primary" {
            return self.primary().context("no primary is known at the moment");
        }
        let node = name.trim_start_matches("node-").parse().ok().filter(|node| self.nodes.contains_key(node));
        node.with_context(|| format!("{name:?} is no node; there are {:?} and `primary`", self.nodes.keys()))
    }

    fn primary(&self) -> Option<u8> {
        let members = self.cluster.as_ref()?.get("members")?.as_array()?;
        let leader = members.iter().find(|member| member.get("role").is_some_and(|role| role == "leader"))?;
        leader.get("name")?.as_str()?.strip_prefix("node-")?.parse().ok()
    }

    fn add(&mut self) -> anyhow::Result<String> {
        let node = self.nodes.keys().next_back().copied().unwrap_or(0).saturating_add(1);
        ensure!(node <= 20, "20 nodes are enough for one machine");
        check_ports(&PORTS.map(|port| SocketAddr::new(self.plan.subnet.node(node), port)))?;
        self.memory.listed.insert(node);
        self.publish()?;
        self.start_node(node)?;
        Ok(format!("node {node} added"))
    }

    fn remove(&mut self, name: &str) -> anyhow::Result<String> {
        let node = self.named(name)?;
        self.memory.listed.remove(&node);
        self.publish()?;
        Ok(format!("node {node} taken out of the location API; it runs until you stop it"))
    }

    fn start(&mut self, name: &str) -> anyhow::Result<String> {
        let node = self.named(name)?;
        ensure!(self.tree(node).shim().is_none(), "node {node} runs");
        self.memory.listed.insert(node);
        self.publish()?;
        self.start_node(node)?;
        Ok(format!("node {node} started"))
    }

    fn stop(&mut self, name: &str) -> anyhow::Result<String> {
        let node = self.named(name)?;
        let Some(shim) = self.tree(node).shim() else {
            self.nodes.insert(node, Tree::Stopped);
            return Ok(format!("node {node} did not run"));
        };
        self.nodes.insert(node, Tree::Stopping { shim });
        kill(shim, Signal::SIGTERM)?;
        Ok(format!("node {node} is stopping"))
    }

    fn kill_tree(&self, name: &str) -> anyhow::Result<String> {
        let node = self.named(name)?;
        let shim = self.tree(node).shim().with_context(|| format!("node {node} does not run"))?;
        kill_below(shim)?;
        Ok(format!("node {node} killed"))
    }

    fn crash(&self, name: &str) -> anyhow::Result<String> {
        let node = self.named(name)?;
        let path = self.place.volume(node).join("pgdata/postmaster.pid");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("node {node} runs no PostgreSQL"))?;
        let pid: i32 =
            text.lines().next().unwrap_or_default().trim().parse().context("no process id in it")?;
        let shim = self.tree(node).shim().with_context(|| format!("node {node} does not run"))?;
        // A file left by a crash may name a process that is not ours.
        ensure!(shim::descendants(shim)?.contains(&Pid::from_raw(pid)), "node {node} runs no PostgreSQL");
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        Ok(format!("the postmaster of node {node} (process {pid}) killed"))
    }

    fn api_on(&mut self) -> anyhow::Result<String> {
        ensure!(self.api.is_none(), "the location API runs");
        self.start_api()?;
        Ok("location API started".to_owned())
    }

    fn api_off(&self) -> anyhow::Result<String> {
        let Some(shim) = self.api else { bail!("the location API does not run") };
        kill(shim, Signal::SIGTERM)?;
        Ok("location API stopped".to_owned())
    }

    fn tree(&self, node: u8) -> Tree {
        self.nodes.get(&node).copied().unwrap_or(Tree::Stopped)
    }

    // ---- the end

    /// Replicas first, so that nobody takes over; then the primary; then the location API. A second Ctrl-C kills.
    async fn stop_everything(&mut self, impatience: &mut SignalStream) -> anyhow::Result<ExitCode> {
        let primary = self.primary();
        let (last, first): (Vec<u8>, Vec<u8>) = self.nodes.keys().partition(|node| Some(**node) == primary);
        self.screen.close();
        self.screen.event("stopping (Ctrl-C again kills at once)");
        for (what, nodes) in [("replicas", first), ("primary", last)] {
            let up: Vec<(u8, Pid)> =
                nodes.iter().filter_map(|node| Some((*node, self.tree(*node).shim()?))).collect();
            if !up.is_empty() {
                self.screen.event(&format!("stopping the {what}: {nodes:?}"));
            }
            self.nodes.extend(up.iter().map(|(node, shim)| (*node, Tree::Stopping { shim: *shim })));
            self.stop_shims(&up.into_iter().map(|(_, shim)| shim).collect::<Vec<_>>(), impatience).await?;
        }
        let api: Vec<Pid> = self.api.into_iter().collect();
        self.stop_shims(&api, impatience).await?;
        std::fs::remove_file(self.place.socket()).ok();
        let left = shim::descendants(getpid())?;
        ensure!(left.is_empty(), "these processes are left: {left:?}");
        self.screen.event("stopped; no process is left");
        Ok(ExitCode::SUCCESS)
    }

    /// Ends when all of these have been reaped.
    async fn stop_shims(&mut self, shims: &[Pid], impatience: &mut SignalStream) -> anyhow::Result<()> {
        for shim in shims {
            kill(*shim, Signal::SIGTERM).ok();
        }
        let deadline = clock::now() + STOP_LIMIT;
        let alive = |demo: &Self| {
            let shims_now: Vec<Pid> =
                demo.nodes.values().filter_map(|tree| tree.shim()).chain(demo.api).collect();
            shims.iter().any(|shim| shims_now.contains(shim))
        };
        while alive(self) {
            tokio::select! {
                Some(Ok((who, status))) = self.exits.join_next() => self.exited(who, status),
                _ = impatience.recv() => shims.iter().try_for_each(|shim| kill_below(*shim))?,
                () = tokio::time::sleep(clock::now().until(deadline)) => {
                    self.screen.event("too slow: killing what is left");
                    shims.iter().try_for_each(|shim| kill_below(*shim))?;
                    tokio::time::sleep(TICK).await;
                }
            }
        }
        Ok(())
    }
}

/// SIGKILL to everything in a shim; the shim reaps, finds what was forked meanwhile, and ends.
fn kill_below(shim: Pid) -> anyhow::Result<()> {
    for pid in shim::descendants(shim)? {
        kill(pid, Signal::SIGKILL).ok();
    }
    Ok(())
}

/// The first answer of any node; nodes are asked at once, so that a frozen one costs nothing.
async fn poll(http: reqwest::Client, urls: Vec<String>) -> Option<Value> {
    let mut asked = JoinSet::new();
    for url in urls {
        let http = http.clone();
        asked.spawn(async move { http.get(url).send().await.ok()?.json::<Value>().await.ok() });
    }
    let first = async {
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some(cluster)) = answer {
                return Some(cluster);
            }
        }
        None
    };
    timeout(POLL_TIMEOUT, first).await.ok().flatten()
}

/// Certificates are not checked: the table comes from our own children over loopback, and nothing secret is sent.
fn http_client() -> anyhow::Result<reqwest::Client> {
    let builder =
        reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().timeout(POLL_TIMEOUT);
    builder.build().context("cannot set up an HTTP client")
}

/// The file that `mock-flux-api` serves. The specification asks for as many instances as were asked for at the
/// start, or as there are now if that is more: a removed node leaves a place to fill.
fn locations(plan: &Plan, memory: &Memory) -> Value {
    let nodes: Vec<String> = memory.listed.iter().map(|node| plan.subnet.node(*node).to_string()).collect();
    json!({ "app": APP_NAME, "instances": nodes.len().max(usize::from(plan.nodes)), "nodes": nodes })
}

/// How the user can type this program: relative to where they stand, when it lies below.
fn as_typed(program: &Utf8Path) -> String {
    let here = std::env::current_dir().ok().and_then(|dir| Utf8PathBuf::try_from(dir).ok());
    here.filter(|dir| dir.parent().is_some())
        .and_then(|dir| program.strip_prefix(dir).ok())
        .unwrap_or(program)
        .to_string()
}

fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(64) => "exit code 64, a mistake in the configuration (see its log)".to_owned(),
        Some(137) => "killed (signal 9)".to_owned(),
        Some(code) => format!("exit code {code}"),
        None => format!("signal {}", status.signal().unwrap_or_default()),
    }
}
