//! What a Swarm makes of a node, without a Swarm: a name in place of a location API, secrets in files, the read-write port as a
//! socket, and another address for every task.

use super::engine::{IMAGE, docker, try_docker};
use super::outage::NODES;
use super::stack::FORMED;
use super::{engine_for_all, eventually, shout};

const NETWORK: &str = "pgherd-test-tasks";
const SUBNET: &str = "172.30.191";
/// What `docker/stack.yml` says, and what Swarm replaces in it.
const ENVIRONMENT: [&str; 10] = [
    "APP_NAME=tasks",
    "DISCOVERY=dns",
    "DISCOVERY_DNS_NAME=tasks.node",
    "CLUSTER_SIZE=3",
    "POSTGRES_SUPERUSER_PASSWORD_FILE=/run/secrets/pgherd_superuser",
    "POSTGRES_REPLICATION_PASSWORD_FILE=/run/secrets/pgherd_replication",
    "SYNCHRONOUS_MODE=quorum",
    "SYNCHRONOUS_MODE_STRICT=true",
    "PROXY_ENABLED=true",
    "PROXY_SOCKET_DIR=/sockets",
];

/// The tasks of a service, each on a machine of its own, as its volumes say.
struct Service {
    secrets: tempfile::TempDir,
}

impl Service {
    fn new() -> Self {
        let service = Self { secrets: tempfile::tempdir().unwrap() };
        service.remove();
        for (name, secret) in [("pgherd_superuser", "super"), ("pgherd_replication", "replica")] {
            // As `openssl rand -base64 24 | docker secret create` leaves it: with a line break.
            std::fs::write(service.secrets.path().join(name), format!("{secret}\n")).unwrap();
        }
        docker(&["network", "create", "--subnet", &format!("{SUBNET}.0/24"), NETWORK]);
        service
    }

    fn task(node: u8) -> String {
        format!("pgherd-test-task{node}")
    }

    /// Starts a task on a node, at this address and in the place of the one before.
    fn start(&self, node: u8, address: u8) {
        let name = Self::task(node);
        if try_docker(&["stop", "-t", "15", &name]).is_ok() {
            docker(&["rm", "-v", &name]);
        }
        let (member, address) = (format!("NODE_NAME=worker{node}"), format!("{SUBNET}.{address}"));
        let mounts = [
            format!("{name}:/var/lib/postgresql/data"),
            format!("{name}-sockets:/sockets"),
            format!("{}:/run/secrets:ro", self.secrets.path().display()),
        ];
        let environment = ENVIRONMENT.into_iter().chain([member.as_str()]).flat_map(|word| ["-e", word]);
        let volumes = mounts.iter().flat_map(|volume| ["-v", volume.as_str()]);
        let run = ["run", "-d", "--name", &name, "--network", NETWORK, "--network-alias", "tasks.node"];
        let all = run.into_iter().chain(["--ip", &address]).chain(environment).chain(volumes).chain([IMAGE]);
        docker(&all.collect::<Vec<_>>());
    }

    /// Waits until every node shows three members, one of them as the leader and the others as streaming.
    async fn whole(&self) {
        let is_whole = async || {
            let tables =
                NODES.map(|node| try_docker(&["exec", &Self::task(node), "pgherd", "list", "--json"]));
            let count = |table: &str, what: &str| table.matches(what).count();
            let good = |table: &Result<String, String>| {
                table
                    .as_ref()
                    .is_ok_and(|t| count(t, "\"streaming\"") == 2 && count(t, "\"name\": \"worker") == 3)
            };
            tables.iter().all(good).then_some(())
        };
        let found = eventually(FORMED, is_whole).await;
        assert!(found.is_some(), "{:?}", try_docker(&["logs", "--tail", "40", &Self::task(1)]));
    }

    /// Asks through the socket on a node, which leads to the primary wherever it is.
    fn ask(node: u8, query: &str) -> Result<String, String> {
        let by = "host=/sockets user=postgres password=super dbname=postgres";
        try_docker(&["exec", &Self::task(node), "psql", "-XAtq", by, "-c", query])
    }

    fn remove(&self) {
        for node in NODES {
            let name = Self::task(node);
            try_docker(&["rm", "-f", "-v", &name]).ok();
            try_docker(&["volume", "rm", "-f", &name, &format!("{name}-sockets")]).ok();
        }
        try_docker(&["network", "rm", NETWORK]).ok();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.remove();
    }
}

#[tokio::test]
async fn tasks_find_each_other_by_name_and_keep_their_names_at_other_addresses() {
    let Some(_turn) = engine_for_all().await else { return };
    let service = Service::new();
    NODES.into_iter().for_each(|node| service.start(node, 10 + node));
    service.whole().await;
    Service::ask(1, "CREATE TABLE kept AS SELECT 42 AS n").unwrap();
    for node in NODES {
        service.start(node, 20 + node);
        service.whole().await;
        let kept = eventually(FORMED, async || Service::ask(node, "SELECT n FROM kept").ok()).await;
        assert_eq!(kept.as_deref(), Some("42"), "worker{node}");
    }
    shout("every task has got another address");
}
