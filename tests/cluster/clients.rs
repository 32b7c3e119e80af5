//! Programs of others that look at a Patroni cluster and find their way in it: HAProxy with the configuration that Patroni's
//! documentation has, libpq with several hosts, and the monitoring plugin `check_patroni`.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::json;

use crate::patroni::{Patroni, all_cases};
use crate::support::{Cluster, FORMED, Setup, eventually};

/// An HAProxy that leads to the primary and to the replicas by Patroni's health checks.
struct Proxy {
    process: Child,
    address: &'static str,
    _dir: tempfile::TempDir,
}

impl Proxy {
    fn start(cluster: &Cluster) -> Option<Self> {
        let program =
            ["/usr/sbin/haproxy", "/usr/bin/haproxy"].into_iter().find(|path| Path::new(path).exists())?;
        let address = "127.0.18.253";
        let servers: String = cluster
            .numbers()
            .into_iter()
            .map(|node| {
                let at = cluster.address(node);
                format!("    server postgresql_{at}_5432 {at}:5432 maxconn 100 check port 8008\n")
            })
            .collect();
        let usual = "    http-check expect status 200\n    \
                     default-server inter 1s fall 2 rise 2 on-marked-down shutdown-sessions\n";
        let config = format!(
            "global\n    maxconn 100\ndefaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    \
             timeout connect 4s\n    timeout server 30m\n    timeout check 5s\n\
             listen primary\n    bind {address}:5000\n    option httpchk\n{usual}{servers}\
             listen replicas\n    bind {address}:5001\n    option httpchk GET /replica\n{usual}{servers}"
        );
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let process = Command::new(program).arg("-f").arg(file).stdin(Stdio::null()).spawn().unwrap();
        Some(Self { process, address, _dir: dir })
    }

    async fn leads_to(&self, port: u16, wanted: &str) {
        let conninfo = format!("host={} port={port} user=postgres password=super", self.address);
        let there = eventually(FORMED, async || (psql(&conninfo) == Some(wanted.to_owned())).then_some(()));
        assert!(there.await.is_some(), "port {port} does not lead to {wanted}: {:?}", psql(&conninfo));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Which server a client reaches, and whether it is in recovery.
fn psql(conninfo: &str) -> Option<String> {
    let query = "SELECT pg_is_in_recovery()::text || ' ' || host(inet_server_addr())";
    let output =
        Command::new("psql").args(["-XAtqc", query, conninfo]).env("PGCONNECT_TIMEOUT", "3").output();
    let output = output.unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// libpq tries the hosts in turn and takes the one of the wanted kind.
fn several_hosts(cluster: &Cluster, kind: &str) -> Option<String> {
    let hosts: Vec<String> = cluster.numbers().into_iter().map(|node| cluster.address(node)).collect();
    let hosts = hosts.join(",");
    psql(&format!("host={hosts} port=5432 user=postgres password=super target_session_attrs={kind}"))
}

/// check_patroni's verdict: 0 is good, 1 a warning, 2 critical.
fn check(program: &Path, endpoints: &str, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, .. } = Command::new(program)
        .args(["-e", endpoints, "--timeout", "5"])
        .args(args)
        .current_dir("/")
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

async fn monitored(cluster: &Cluster, leader: u8, program: &Path) {
    let endpoint = |node: u8| format!("http://{}:8008", cluster.address(node));
    let all = cluster.numbers().into_iter().map(endpoint).collect::<Vec<_>>().join(",");
    let replica = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    let (on_leader, on_replica) = (endpoint(leader), endpoint(replica));
    let verdicts: &[(&str, i32, &[&str])] = &[
        (&all, 0, &["cluster_has_leader"]),
        (&all, 0, &["cluster_has_replica", "--critical", "@0", "--warning", "@1", "--max-lag", "1MB"]),
        (&all, 0, &["cluster_has_replica", "--sync-type", "quorum", "--sync-critical", "@1"]),
        (&all, 0, &["cluster_node_count", "--critical", "@2", "--healthy-critical", "@2"]),
        (&all, 0, &["cluster_is_in_maintenance"]),
        (&all, 0, &["cluster_has_scheduled_action"]),
        (&all, 2, &["cluster_config_has_changed", "--hash", "x"]),
        (&on_leader, 0, &["node_is_alive"]),
        (&on_leader, 0, &["node_is_leader"]),
        (&on_leader, 0, &["node_is_primary"]),
        (&on_leader, 2, &["node_is_replica"]),
        (&on_replica, 0, &["node_is_replica", "--max-lag", "1MB"]),
        (&on_replica, 0, &["node_is_replica", "--is-sync", "--sync-type", "quorum"]),
        (&on_replica, 2, &["node_is_replica", "--is-async"]),
        (&on_replica, 2, &["node_is_primary"]),
        (&on_leader, 0, &["node_is_pending_restart"]),
        (&on_leader, 0, &["node_patroni_version", "--patroni-version", "4.1.4"]),
        (&on_leader, 0, &["node_tl_has_changed", "--timeline", "1"]),
        (&on_leader, 2, &["node_tl_has_changed", "--timeline", "7"]),
    ];
    for (endpoints, wanted, args) in verdicts {
        let (code, said) = check(program, endpoints, args);
        assert_eq!(code, Some(*wanted), "{args:?}: {said}");
    }
}

#[tokio::test]
async fn others_find_the_primary_and_the_replicas() {
    if !all_cases() {
        return;
    }
    let cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.can_fail_over(FORMED).await;
    let program =
        Patroni::installed().and_then(|patroni| patroni.program("check_patroni", Some("check_patroni")));
    if let Some(program) = program {
        monitored(&cluster, leader, &program).await;
    }

    let proxy = Proxy::start(&cluster);
    let at = |node: u8| format!("false {}", cluster.address(node));
    if let Some(proxy) = &proxy {
        proxy.leads_to(5000, &at(leader)).await;
    }
    assert_eq!(several_hosts(&cluster, "read-write"), Some(at(leader)));
    let replica = several_hosts(&cluster, "standby").unwrap();
    assert!(replica.starts_with("true ") && !replica.ends_with(&cluster.address(leader)), "{replica}");

    let next = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    let url = format!("http://{}:8008/switchover", cluster.address(leader));
    let body = json!({ "leader": format!("n{leader}"), "candidate": format!("n{next}") });
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.post(url).body(body.to_string()).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    cluster.all_stream(FORMED).await;
    if let Some(proxy) = &proxy {
        proxy.leads_to(5000, &at(next)).await;
        let third = cluster.numbers().into_iter().find(|node| ![leader, next].contains(node)).unwrap();
        let some_replica = eventually(FORMED, async || {
            let found = psql(&format!("host={} port=5001 user=postgres password=super", proxy.address))?;
            let replicas = [leader, third].map(|node| format!("true {}", cluster.address(node)));
            replicas.contains(&found).then_some(())
        });
        assert!(some_replica.await.is_some(), "the second port does not lead to a replica");
    }
    assert_eq!(several_hosts(&cluster, "read-write"), Some(at(next)));
}
