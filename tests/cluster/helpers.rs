//! The programs that come with PostgreSQL are interrupted half way, and its own processes are killed. (Numbers 61 and 62 of
//! the black-box tests of supervision.)

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgherd::config::newest_postgres;

use crate::support::{Cluster, FORMED, Setup, eventually};

/// What a node may take to stop that has no database to stop.
const PROMPT: Duration = Duration::from_secs(8);
const MINUTE: Duration = Duration::from_secs(60);

/// A directory of PostgreSQL's programs in which those that make a data directory do their work and then do not end,
/// as long as they are told so.
struct Programs {
    dir: tempfile::TempDir,
}

impl Programs {
    fn new() -> Self {
        let programs = Self { dir: tempfile::tempdir().unwrap() };
        fs::set_permissions(programs.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        for entry in newest_postgres().unwrap().read_dir_utf8().unwrap().map(Result::unwrap) {
            let place = programs.file(entry.file_name());
            if matches!(entry.file_name(), "initdb" | "pg_basebackup") {
                let (pid, endless) = (programs.file("pid"), programs.file("endless"));
                let script = format!(
                    "#!/bin/sh\n{} \"$@\" || exit\n[ -e {} ] || exit 0\necho $$ > {}\nexec sleep 1000\n",
                    entry.path(),
                    endless.display(),
                    pid.display()
                );
                fs::write(&place, script).unwrap();
                fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
            } else {
                symlink(entry.path(), place).unwrap();
            }
        }
        programs
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// From now on they do not end.
    fn hang(&self) {
        fs::write(self.file("endless"), "").unwrap();
    }

    /// From now on they do.
    fn mend(&self) {
        fs::remove_file(self.file("endless")).unwrap();
    }

    /// Waits for one that has done its work and does not end.
    async fn hanging(&self) -> Pid {
        let file = self.file("pid");
        let pid = eventually(MINUTE, async || fs::read_to_string(&file).ok()?.trim().parse().ok()).await;
        fs::remove_file(&file).unwrap();
        Pid::from_raw(pid.unwrap_or_else(|| panic!("none of them was started")))
    }
}

/// A node whose helper hangs is stopped, and another time loses its `node` process: each time the helper goes along.
async fn interrupt(cluster: &mut Cluster, node: u8, programs: &Programs) {
    let helper = programs.hanging().await;
    cluster.node(node).terminate();
    assert_eq!(cluster.node(node).exit_code(PROMPT).await, Some(0));
    assert!(kill(helper, None).is_err(), "the helper outlives its node");

    cluster.start_node(node);
    let helper = programs.hanging().await;
    let process = cluster.node(node).node_process();
    kill(process, Signal::SIGKILL).unwrap();
    let gone = eventually(PROMPT, async || kill(helper, None).is_err().then_some(())).await;
    assert!(gone.is_some(), "the helper outlives its node process");

    let helper = programs.hanging().await;
    programs.mend();
    kill(helper, Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn interrupted_helpers_leave_nothing_that_is_taken_for_data() {
    let programs = Programs::new();
    programs.hang();
    let setup = Setup { nodes: 1, ..Setup::three() }.env("PG_BINDIR", programs.path().to_str().unwrap());
    let mut cluster = Cluster::start(setup).await;
    interrupt(&mut cluster, 1, &programs).await;
    assert_eq!(cluster.all_stream(FORMED).await, 1);
    cluster.sql(1, "CREATE TABLE t AS SELECT 42 AS x; SELECT x FROM t").await.unwrap();

    programs.hang();
    let second = cluster.add_node();
    interrupt(&mut cluster, second, &programs).await;
    assert_eq!(cluster.all_stream(FORMED).await, 1);
    assert_eq!(cluster.sql(second, "SELECT x FROM t").await.unwrap(), "42");
}

#[tokio::test]
async fn a_standby_whose_own_processes_are_killed_comes_back_without_a_storm() {
    let mut cluster = Cluster::formed(Setup::three()).await;
    let leader = cluster.all_stream(FORMED).await;
    let standby = cluster.numbers().into_iter().find(|node| *node != leader).unwrap();
    let starts = |cluster: &mut Cluster| {
        let log = fs::read_to_string(cluster.node(standby).log()).unwrap();
        log.lines().filter(|line| line.contains("started unit=postgres")).count()
    };
    let before = starts(&mut cluster);
    assert!(before > 0, "the log says when PostgreSQL is started");

    // PostgreSQL's own affair: the same postmaster starts its processes again.
    let postmaster = cluster.node(standby).postmaster().unwrap();
    kill_backend(&cluster, standby, "walreceiver").await;
    streams_again(&cluster, standby).await;
    assert_eq!((cluster.node(standby).postmaster(), starts(&mut cluster)), (Some(postmaster), before));

    // Without this one the postmaster ends, and is started again.
    kill_backend(&cluster, standby, "startup").await;
    streams_again(&cluster, standby).await;
    assert_ne!(cluster.node(standby).postmaster(), Some(postmaster));
    let again = starts(&mut cluster) - before;
    assert_eq!(again, 1, "one death, {again} starts");
    assert_eq!(cluster.all_stream(FORMED).await, leader, "the primary has nothing to do with it");
}

async fn kill_backend(cluster: &Cluster, node: u8, kind: &str) {
    let query = format!("SELECT pid::text FROM pg_stat_activity WHERE backend_type = '{kind}'");
    let pid = eventually(MINUTE, async || cluster.sql(node, &query).await.ok()?.parse().ok()).await;
    let pid = Pid::from_raw(pid.unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    let gone = eventually(MINUTE, async || kill(pid, None).is_err().then_some(())).await;
    assert!(gone.is_some(), "{kind} lives on");
}

async fn streams_again(cluster: &Cluster, node: u8) {
    let query = "SELECT status FROM pg_stat_wal_receiver";
    let again = async || cluster.sql(node, query).await.ok().filter(|status| status == "streaming");
    assert!(eventually(FORMED, again).await.is_some(), "node {node} does not stream again");
}

/// PostgreSQL's `restart_after_crash`: on, the same postmaster recovers; off (the default while commits wait for standbys), the end of a backend is the end of
/// the postmaster, and the HA core decides what follows.
#[tokio::test]
async fn a_crash_is_recovered_from_by_postgresql_or_by_the_ha_core_as_it_is_set() {
    for (value, same_postmaster) in [("on", true), ("off", false)] {
        let setup = Setup { nodes: 1, ..Setup::three() }
            .env("POSTGRES_PARAMETERS", &format!("restart_after_crash={value}"));
        let mut cluster = Cluster::start(setup).await;
        assert_eq!(cluster.all_stream(FORMED).await, 1);
        let before = cluster.node(1).postmaster();
        kill_backend(&cluster, 1, "walwriter").await;
        let back = eventually(FORMED, async || cluster.is_writable(1).await.then_some(())).await;
        assert!(back.is_some(), "{value}: it does not come back");
        let after = cluster.node(1).postmaster();
        assert_eq!(after == before, same_postmaster, "{value}: {before:?}, then {after:?}");
    }
}
