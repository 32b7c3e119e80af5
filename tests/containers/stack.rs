//! The compose project under test: three nodes, each with a proxy, and the location API.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pgherd::clock;
use serde_json::Value;

use super::client::{self, Target};
use super::engine::{IMAGE, MOCK, compose, docker, try_docker};
use super::eventually;

/// What a cluster may take to form on a busy machine; the promise, 20 s on an idle one, is reported.
pub(crate) const FORMED: Duration = Duration::from_secs(240);
/// What the nodes are told.
const NODES_ENV: &str = "tests/containers/nodes.env";
/// Without more files.
const ALONE: &[&str] = &["-f", "docker-compose.yml"];
/// One answer of an API.
const ANSWER: Duration = Duration::from_secs(2);

/// A running project; removed with its volumes when dropped.
pub(crate) struct Stack {
    project: String,
    subnet: String,
    /// The compose files, as compose wants to be told of them.
    files: &'static [&'static str],
    env: BTreeMap<String, String>,
    http: reqwest::Client,
}

impl Stack {
    /// Brings the project up; every project has a network of its own.
    pub(crate) fn up(number: u8) -> Self {
        Self::up_with(number, ALONE)
    }

    /// The same with more files.
    pub(crate) fn up_with(number: u8, files: &'static [&'static str]) -> Self {
        let stack = Self::new(number, files, NODES_ENV);
        stack.compose(&["up", "-d", "--no-build"]);
        stack
    }

    /// The same with other words for the nodes, and with something on their volumes before they start.
    pub(crate) fn up_on(number: u8, nodes_env: &str, fill: impl FnOnce(&Self)) -> Self {
        let stack = Self::new(number, ALONE, nodes_env);
        stack.compose(&["up", "--no-start", "--no-build"]);
        fill(&stack);
        stack.compose(&["up", "-d", "--no-build"]);
        stack
    }

    fn new(number: u8, files: &'static [&'static str], nodes_env: &str) -> Self {
        pgherd::tls::install_provider();
        let project = format!("pgherd-test-{number}");
        let subnet = format!("172.30.{}", 180 + number);
        let env = [
            ("COMPOSE_PROJECT_NAME", project.as_str()),
            ("SUBNET", subnet.as_str()),
            // Loopback addresses that nobody else listens on.
            ("PUBLISH_ADDRESS", &format!("127.0.30.{number}")),
            ("MOCK_IMAGE", MOCK),
            ("BIN", "prebuilt"),
            ("ENV_FILE", &format!("./{nodes_env}")),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let builder = reqwest::Client::builder().no_proxy().timeout(ANSWER);
        let http = builder.tls_danger_accept_invalid_certs(true).build().unwrap();
        let stack = Self { project, subnet, files, env, http };
        stack.down();
        stack
    }

    /// Runs compose in this project; what it printed.
    pub(crate) fn compose(&self, args: &[&str]) -> String {
        self.compose_with(IMAGE, args)
    }

    /// Starts one node anew from another image, on the volume that it has.
    pub(crate) fn upgrade(&self, node: u8, image: &str) {
        self.compose_with(image, &["up", "-d", "--no-build", "--no-deps", &format!("node{node}")]);
    }

    fn compose_with(&self, image: &str, args: &[&str]) -> String {
        let way = compose().unwrap();
        let mut command = Command::new(way[0]);
        command.args(&way[1..]).args(self.files).args(args).envs(&self.env).stdin(Stdio::null());
        command.env("PGHERD_IMAGE", image);
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "compose {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn down(&self) {
        self.compose(&["--profile", "proxy", "down", "-v", "--remove-orphans", "-t", "0"]);
        for container in docker(&["ps", "-aq", "--filter", &format!("network={}", self.network())]).lines() {
            try_docker(&["rm", "-f", "-v", container]).ok();
        }
    }

    /// The project's network.
    pub(crate) fn network(&self) -> String {
        format!("{}_cluster", self.project)
    }

    /// The volume of a node.
    pub(crate) fn volume(&self, node: u8) -> String {
        format!("{}_data{node}", self.project)
    }

    /// The container of a node.
    pub(crate) fn container(&self, node: u8) -> String {
        self.compose(&["ps", "-aq", &format!("node{node}")]).trim().to_owned()
    }

    /// Starts a node that the compose file does not know, as somebody else's machine would.
    pub(crate) fn add(&self, node: u8) -> String {
        let address = self.address(node);
        let network = self.network();
        let env = [
            format!("NODE_NAME=node{node}"),
            format!("ADVERTISE_ADDRESS={address}"),
            format!("FLUX_API_URL={}", self.mock("")),
            format!("HOSTINFO_URL={}", self.mock("/hostinfo")),
        ];
        let env = env.iter().flat_map(|variable| ["-e", variable]);
        let fixed = ["run", "-d", "--network", &network, "--ip", &address, "--env-file", NODES_ENV];
        docker(&fixed.into_iter().chain(env).chain([IMAGE]).collect::<Vec<_>>())
    }

    /// The location API, as everybody on the network reaches it.
    fn mock(&self, path: &str) -> String {
        format!("http://{}.10:8080{path}", self.subnet)
    }

    /// Has the location API list a node.
    pub(crate) async fn list(&self, node: u8) {
        let body = serde_json::json!({ "ip": self.address(node) });
        let answer = self.http.post(self.mock("/admin/nodes")).json(&body).send().await;
        assert!(answer.unwrap().status().is_success());
    }

    /// Has it forget the node.
    pub(crate) async fn delist(&self, node: u8) {
        let url = self.mock(&format!("/admin/nodes/{}", self.address(node)));
        assert!(self.http.delete(url).send().await.unwrap().status().is_success());
    }

    /// The address of a node.
    pub(crate) fn address(&self, node: u8) -> String {
        format!("{}.{}", self.subnet, 10 + node)
    }

    /// How a client reaches a port of a node.
    pub(crate) fn target(&self, node: u8, port: u16) -> Target {
        Target {
            host: self.address(node),
            at: None,
            port,
            user: "postgres".to_owned(),
            password: "super".to_owned(),
            database: "postgres".to_owned(),
            ca: None,
        }
    }

    /// One column of one row, from one node's PostgreSQL.
    pub(crate) async fn sql(&self, node: u8, query: &str) -> Result<String, client::Error> {
        client::ask(&self.target(node, 5432), query).await
    }

    /// `/cluster`, as this node answers it.
    pub(crate) async fn cluster(&self, node: u8) -> Option<Vec<(String, String, String)>> {
        let url = format!("http://{}:8008/cluster", self.address(node));
        let page: Value = self.http.get(url).send().await.ok()?.json().await.ok()?;
        let word = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let rows = page["members"].as_array()?.iter();
        Some(rows.map(|row| (word(row, "name"), word(row, "role"), word(row, "state"))).collect())
    }

    /// Waits until these nodes agree on one leader and all the others of them stream and may take over; gives the leader.
    pub(crate) async fn whole(&self, nodes: &[u8], limit: Duration) -> u8 {
        let mut seen = None;
        let began = clock::now();
        let found = eventually(limit, async || {
            let mut leaders = Vec::new();
            for node in nodes {
                let members = self.cluster(*node).await?;
                leaders.push(leader_of(&members, nodes));
                seen = Some(members);
            }
            let first = *leaders.first()?;
            leaders.iter().all(|leader| *leader == first).then_some(first)?
        });
        let found = found.await;
        found.unwrap_or_else(|| panic!("not whole after {:?}: {seen:#?}", clock::now().since(began)))
    }

    /// Waits until one of these nodes accepts a write by itself; gives it.
    pub(crate) async fn writable(&self, nodes: &[u8], limit: Duration) -> u8 {
        let found = eventually(limit, async || {
            for node in nodes {
                let answer = self.sql(*node, "SELECT (NOT pg_is_in_recovery())::text").await;
                if answer.is_ok_and(|answer| answer == "true") {
                    return Some(*node);
                }
            }
            None
        });
        found.await.unwrap_or_else(|| panic!("none of {nodes:?} is writable within {limit:?}"))
    }

    /// The ends of the logs, for a case that has failed.
    fn print_logs(&self) {
        for node in 1..=3 {
            let container = self.container(node);
            if let Ok(output) = Command::new("docker").args(["logs", "--tail", "60", &container]).output() {
                eprintln!("--- node{node}\n{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}

/// The one leader among these rows, when every other node of the list streams as somebody who may be elected.
fn leader_of(members: &[(String, String, String)], nodes: &[u8]) -> Option<u8> {
    let mut leader = None;
    for node in nodes {
        let (_, role, state) = members.iter().find(|(name, ..)| *name == format!("node{node}"))?;
        match (role.as_str(), state.as_str()) {
            ("leader", "running") if leader.is_none() => leader = Some(*node),
            ("quorum_standby", "streaming") => {}
            _ => return None,
        }
    }
    leader
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        self.down();
    }
}
