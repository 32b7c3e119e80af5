//! The unmodified patronictl operates a cluster, with TLS and the client certificate that `pgherd patronictl-config` writes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::patroni::{Patroni, all_cases};
use crate::support::{Cluster, FORMED, Setup, client, eventually};

/// patronictl behind the file that a node has written for it.
pub(crate) struct Tool {
    program: PathBuf,
    dir: tempfile::TempDir,
    file: &'static str,
}

impl Tool {
    pub(crate) fn new((cluster, node): (&Cluster, u8), program: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let written = cluster.exec(node, &["patronictl-config", dir.path().to_str().unwrap(), "--json"]);
        assert!(written.status.success(), "{written:?}");
        let told: Value = serde_json::from_slice(&written.stdout).unwrap();
        assert!(told["file"].as_str().unwrap().ends_with("/patronictl.yaml"), "{told}");
        Self { program, dir, file: "patronictl.yaml" }
    }

    /// Exit code and everything said, with `typed` at the questions.
    pub(crate) fn asked(&self, args: &[&str], typed: &str) -> (Option<i32>, String) {
        let input = self.dir.path().join("typed");
        std::fs::write(&input, typed).unwrap();
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.dir.path().join(self.file)).args(args).current_dir(self.dir.path());
        command.env_clear().env("LC_ALL", "C.UTF-8").env("PGPASSWORD", "super").env("PGSSLMODE", "require");
        let output = command.stdin(std::fs::File::open(input).unwrap()).output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), said.concat())
    }

    /// What it says, which must contain these words.
    pub(crate) fn says(&self, args: &[&str], words: &[&str]) -> String {
        let (code, said) = self.asked(args, "");
        assert_eq!(code, Some(0), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?} does not say {word:?}: {said}");
        }
        said
    }

    fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.says(&["list", "-f", "json"], &[])).unwrap()
    }

    /// The leader, and a replica.
    fn parts(&self) -> (String, String) {
        let rows = self.list();
        let name = |leads: bool| {
            let row = rows.iter().find(|row| (row["Role"] == "Leader") == leads).unwrap();
            row["Member"].as_str().unwrap().to_owned()
        };
        (name(true), name(false))
    }

    /// Waits until the table shows it.
    async fn shows(&self, what: &str, is_there: impl Fn(&[Value]) -> bool) {
        let seen = eventually(FORMED, async || is_there(&self.list()).then_some(()));
        assert!(seen.await.is_some(), "{what}: {:?}", self.list());
    }
}

async fn cluster_and_tool() -> Option<(Cluster, Tool)> {
    let program = Patroni::installed()?.program("patronictl", None)?;
    let setup = Setup::three().env("SSL_ENABLED", "true").env("SSL_PASSPHRASE", "p8fK-2mZq-7TxV-w3Lr-9cHd");
    let cluster = Cluster::formed(setup).await;
    cluster.can_fail_over(FORMED).await;
    let tool = Tool::new((&cluster, 1), program);
    Some((cluster, tool))
}

/// A moment so many seconds from now, as patronictl wants it.
fn in_seconds(seconds: u64) -> String {
    let at = pgherd::clock::wall() + Duration::from_secs(seconds);
    at.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string()
}

#[tokio::test]
async fn what_an_operator_does_every_day() {
    let Some((cluster, tool)) = cluster_and_tool().await else { return };
    let rows = tool.list();
    assert_eq!(rows.len(), 3, "{rows:?}");
    let (leader, replica) = tool.parts();
    tool.says(&["topology"], &[&format!("| {leader}"), &format!("| + {replica}"), "Quorum Standby"]);
    tool.says(&["show-config"], &["synchronous_mode: quorum"]);
    tool.says(&["version", "test"], &[&format!("{replica}: Patroni 4.1.4 PostgreSQL 1")]);
    let host = rows.iter().find(|row| row["Role"] == "Leader").unwrap()["Host"].as_str().unwrap();
    tool.says(&["dsn"], &[&format!("host={host} port=5432")]);
    let query = ["query", "-U", "postgres", "-d", "postgres", "-c", "SELECT pg_is_in_recovery() AS r"];
    tool.says(&query, &["False"]);

    let edit =
        ["edit-config", "--force", "-s", "maximum_lag_on_failover=2097152", "-p", "max_connections=123"];
    tool.says(&edit, &["+    max_connections: 123", "Configuration changed"]);
    let waits = |row: &Value| row["Pending restart"] == "*";
    tool.shows("a pending restart everywhere", |rows| rows.iter().all(waits)).await;
    let done = [format!("Success: restart on member {replica}")];
    tool.says(&["restart", "--force", "test", "--pending", "-r", "replica"], &[&done[0]]);
    tool.shows("one pending restart", |rows| rows.iter().filter(|row| waits(row)).count() == 1).await;

    cluster.can_fail_over(FORMED).await;
    let moved = format!("Successfully switched over to \"{replica}\"");
    tool.says(&["switchover", "--force", "--leader", &leader, "--candidate", &replica], &[&moved]);
    cluster.all_stream(FORMED).await;
    let written = async || {
        let history: Value = serde_json::from_str(&tool.says(&["history", "-f", "json"], &[])).unwrap();
        (history[0]["New Leader"] == replica.as_str()).then_some(())
    };
    assert!(eventually(FORMED, written).await.is_some(), "the history does not name {replica}");

    tool.says(&["pause", "--wait"], &["Success: cluster management is paused"]);
    tool.says(&["list"], &["Maintenance mode: on"]);
    tool.says(&["resume", "--wait"], &["Success: cluster management is resumed"]);
}

#[tokio::test]
async fn everything_else_that_it_knows() {
    if !all_cases() {
        return;
    }
    let Some((cluster, mut tool)) = cluster_and_tool().await else { return };
    every_format(&tool);
    configuration_from_files(&tool).await;
    orders(&cluster, &tool).await;
    leaders(&cluster, &tool).await;
    without_an_answer(&cluster, &mut tool).await;
    removal(&cluster, &tool).await;
}

fn every_format(tool: &Tool) {
    tool.says(&["list", "-e", "-t"], &["Receive LSN", "Pending restart reason", "Scheduled restart", "Tags"]);
    tool.says(&["list", "-f", "yaml"], &["- Cluster: test", "Role: Leader"]);
    tool.says(&["list", "-f", "tsv"], &["Cluster\tMember\tHost\tRole\tState\tTL\tReceive LSN"]);
    tool.says(&["dsn", "-r", "replica"], &["host=127.0.18."]);
    let query = ["query", "-U", "postgres", "-d", "postgres", "-r", "replica", "--format", "json", "-c"];
    tool.says(&[&query[..], &["SELECT pg_is_in_recovery() AS r"]].concat(), &["\"r\": true"]);
}

async fn configuration_from_files(tool: &Tool) {
    let file = tool.dir.path().join("patch.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(
        &file,
        "maximum_lag_on_failover: 3000000\npostgresql:\n  parameters:\n    work_mem: 7MB\n",
    )
    .unwrap();
    tool.says(&["edit-config", "--force", "--apply", path], &["+    work_mem: 7MB", "Configuration changed"]);
    tool.says(
        &["edit-config", "--force", "-s", "postgresql.parameters.work_mem=null"],
        &["-    work_mem: 7MB"],
    );
    let whole = tool.says(&["show-config"], &["maximum_lag_on_failover: 3000000"]);
    std::fs::write(&file, whole.replace("3000000", "1048576")).unwrap();
    tool.says(&["edit-config", "--force", "--replace", path], &["+maximum_lag_on_failover: 1048576"]);
}

async fn orders(cluster: &Cluster, tool: &Tool) {
    let (_, replica) = tool.parts();
    tool.says(&["reload", "--force", "test"], &["Reload request received for member"]);
    let later = in_seconds(3600);
    let scheduled = format!("Success: restart scheduled on member {replica}");
    tool.says(&["restart", "--force", "test", &replica, "--scheduled", &later], &[&scheduled]);
    tool.shows("a scheduled restart", |rows| {
        rows.iter().any(|row| row["Scheduled restart"].as_str().is_some_and(|at| at.starts_with(&later)))
    })
    .await;
    // patronictl takes the one that is scheduled back before it schedules another.
    tool.says(&["restart", "--force", "test", &replica, "--scheduled", &in_seconds(7200)], &[&scheduled]);
    let flushed = format!("Success: flush scheduled restart for member {replica}");
    tool.says(&["flush", "--force", "test", "restart"], &[&flushed]);
    let done = format!("Success: restart on member {replica}");
    tool.says(&["restart", "--force", "test", &replica, "--timeout", "60"], &[&done]);
    let (_, newer) = tool.asked(&["restart", "--force", "test", &replica, "--pg-version", "9.5.2"], "");
    assert!(newer.contains("restart conditions are not satisfied"), "{newer}");
    // With its questions: when, which version, and whether.
    let (code, said) = tool.asked(&["restart", "test", &replica], "now\ny\n\n");
    assert!(code == Some(0) && said.contains(&done), "{said}");
    cluster.all_stream(FORMED).await;
    let copied = format!("Reinitialize is completed on: {replica}");
    tool.says(&["reinit", "--force", "--wait", "test", &replica], &[&copied]);
    cluster.can_fail_over(FORMED).await;
}

async fn leaders(cluster: &Cluster, tool: &Tool) {
    let (leader, replica) = tool.parts();
    let later = in_seconds(3600);
    let switchover = ["switchover", "--force", "--leader", &leader];
    tool.says(&[&switchover[..], &["--scheduled", &later]].concat(), &["Switchover scheduled at", &later]);
    tool.says(&["flush", "--force", "test", "switchover"], &["Success: scheduled switchover deleted"]);
    tool.says(&["flush", "--force", "test", "switchover"], &["No pending scheduled switchover"]);
    let (_, wrong) = tool.asked(&["switchover", "--force", "--leader", &replica], "");
    assert!(wrong.contains(&format!("Member {replica} is not the leader of cluster test")), "{wrong}");

    tool.says(&[&switchover[..], &["--candidate", &replica, "--scheduled", &in_seconds(6)]].concat(), &[]);
    tool.shows("the scheduled leader", |rows| {
        rows.iter().any(|row| row["Member"] == replica.as_str() && row["Role"] == "Leader")
    })
    .await;
    cluster.can_fail_over(FORMED).await;
    let moved = format!("Successfully failed over to \"{leader}\"");
    tool.says(&["failover", "--force", "--candidate", &leader], &[&moved]);
    cluster.can_fail_over(FORMED).await;
}

/// Where no member answers patronictl, it writes the request into etcd itself.
async fn without_an_answer(cluster: &Cluster, tool: &mut Tool) {
    let (leader, replica) = tool.parts();
    let usual = std::fs::read_to_string(tool.dir.path().join(tool.file)).unwrap();
    let distrustful = usual.replace("api-ca.crt", "ca.crt");
    std::fs::write(tool.dir.path().join("distrustful.yaml"), distrustful).unwrap();
    tool.file = "distrustful.yaml";
    let said = tool.says(&["switchover", "--force", "--leader", &leader, "--candidate", &replica], &[]);
    assert!(said.contains("falling back to DCS"), "{said}");
    tool.file = "patronictl.yaml";
    tool.shows("who was asked for in the store", |rows| {
        rows.iter().any(|row| row["Member"] == replica.as_str() && row["Role"] == "Leader")
    })
    .await;
    cluster.can_fail_over(FORMED).await;
}

/// Another cluster's keys go, with the questions that patronictl asks; this one's stay.
async fn removal(cluster: &Cluster, tool: &Tool) {
    for key in ["config", "initialize"] {
        cluster.store_put(&format!("/service/other/{key}"), "{}").await;
    }
    let (code, said) = tool.asked(&["remove", "other"], "other\nYes I am aware\n");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(cluster.store_count("/service/other/").await, 0);
    let (code, said) = tool.asked(&["remove", "test"], "test\nno\n");
    assert_eq!(code, Some(1), "{said}");
    assert!(cluster.store_count("/service/test/").await > 5);
    assert!(client::ask(&cluster.target(1), "SELECT 1").await.is_ok());
}
