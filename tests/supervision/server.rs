//! The real PostgreSQL and the real `pgherd init`: stops, crashes of backends, the volume's lock, secrets.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use pgherd::clock;
use pgherd::config::newest_postgres;

use super::{PGHERD, Running, Stage, Test, is_alive, read, signal, text, wait_until};

pub(super) const TESTS: &[Test] = &[
    ("t51_t52_t53_t55_a_real_postgres_is_stopped_in_time", real_stops),
    ("t26_t56_a_stale_pid_file_of_any_kind_is_no_obstacle_and_quit_hurries", stale_pid_files),
    ("t26_t42_t43_t57_a_real_node_hides_its_secrets_and_guards_its_volume", real_node),
];

pub(super) fn has_postgres() -> bool {
    let has = newest_postgres().is_some();
    if !has {
        println!("SKIPPED: no PostgreSQL");
    }
    has
}

fn real_stops() {
    if !has_postgres() {
        return;
    }
    let stage = Stage::new();
    fs::set_permissions(stage.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let code = stage.init("init-once", "real-stops").code();
    println!("{}", read(&stage.file("times")));
    assert_eq!(code, Some(0), "{}", read(&stage.file("log")));
}

/// Every process below another one.
fn descendants(ancestor: i32) -> Vec<i32> {
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
        for task in tasks {
            let children = read(&task.path().join("children"));
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        next += 1;
    }
    found
}

fn node(dir: &Path, log: &str) -> Command {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let log = File::create(dir.join(log)).unwrap();
    let mut command = Command::new(PGHERD);
    command.arg("init").env_clear().stdin(Stdio::null()).stderr(log.try_clone().unwrap()).stdout(log);
    for (name, value) in [
        ("PATH", std::env::var("PATH").unwrap()),
        ("APP_NAME", "supervised".to_owned()),
        ("DATA_VOLUME", path("volume")),
        ("RUN_DIR", path("run")),
        ("DISCOVERY", "static".to_owned()),
        ("DISCOVERY_PEERS", "127.0.19.2".to_owned()),
        ("ADVERTISE_ADDRESS", "127.0.19.2".to_owned()),
        ("LISTEN_ADDRESS", "127.0.19.2".to_owned()),
        ("CLUSTER_SIZE", "1".to_owned()),
        ("NETWORK", "local".to_owned()),
        ("POSTGRES_SUPERUSER_PASSWORD", "hush-super".to_owned()),
        ("POSTGRES_REPLICATION_PASSWORD", "hush-replica".to_owned()),
        // Of whatever name.
        ("ELSEWHERE", "postgres://me:hush-url@192.0.2.1/app".to_owned()),
    ] {
        command.env(name, value);
    }
    command
}

fn real_node() {
    if !has_postgres() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let log = dir.path().join("first");
    let mut first = Running::start(node(dir.path(), "first"));
    wait_until("the node's PostgreSQL", || {
        assert!(first.0.try_wait().unwrap().is_none(), "{}", read(&log));
        read(&log).contains("database system is ready to accept connections")
    });
    let all = descendants(first.pid());
    assert!(all.len() > 6, "init, node, etcd, the postmaster and its children: {all:?}");
    for pid in &all {
        let environ = text(&fs::read(format!("/proc/{pid}/environ")).unwrap_or_default());
        let command = text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
        assert!(!environ.contains("hush") && !command.contains("hush"), "{pid}: {command}");
    }
    assert!(!read(&log).contains("hush"), "the log");

    // A person asks.
    first.signal(Signal::SIGUSR1);
    wait_until("the states", || read(&log).contains("state unit=postgres state=running"));
    first.signal(Signal::SIGHUP);

    // A second node on the volume is refused, and told by whom.
    let holder = read(&dir.path().join("volume/pgherd/.lock"));
    let mut second = Running::start(node(dir.path(), "second"));
    let said = dir.path().join("second");
    let start = clock::now();
    wait_until("the refusal", || {
        assert!(clock::now().since(start) < Duration::from_secs(20), "{}", read(&said));
        assert!(second.0.try_wait().unwrap().is_none(), "{}", read(&said));
        read(&said).contains("another node uses this volume")
    });
    assert!(read(&said).contains(holder.trim()), "{holder}: {}", read(&said));
    second.signal(Signal::SIGTERM);
    second.code();
    // The lock is the postmaster's too: it outlives us for as long as a backend lives.
    let lock = fs::canonicalize(dir.path().join("volume/pgherd/.lock")).unwrap();
    let holds = |pid: &&i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(Result::ok);
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|file| file == lock)
    };
    let holders = all.iter().filter(holds).count();
    assert!(holders >= 5, "node, the postmaster and its children: {holders} of {all:?}");

    // Twice, as by somebody who asks it and its whole process group: that is one request.
    let start = clock::now();
    first.signal(Signal::SIGTERM);
    first.signal(Signal::SIGINT);
    assert_eq!(first.code(), Some(0), "{}", read(&log));
    let took = clock::now().since(start);
    println!("a whole node stopped in {took:?}");
    assert!(took < Duration::from_secs(9), "{took:?}");
    assert!(!read(&log).contains("was not properly shut down"));
}

/// What may stand in the first line of a `postmaster.pid` that nobody has removed. (Unit tests of the launch know more; each crash
/// in a row waits longer here.)
fn stale_pids(init: i32, zombie: u32) -> Vec<(&'static str, String)> {
    let node = super::only_child(init);
    let siblings = descendants(node);
    let named = |wanted: &str| {
        let name = |pid: &&i32| read(Path::new(&format!("/proc/{pid}/comm"))).trim() == wanted;
        siblings.iter().find(name).unwrap().to_string()
    };
    let mut threads = fs::read_dir(format!("/proc/{node}/task")).unwrap().filter_map(Result::ok);
    let thread = threads.find_map(|thread| {
        let name = thread.file_name().into_string().unwrap();
        (name != node.to_string()).then_some(name)
    });
    vec![
        ("node", node.to_string()),
        ("a thread of node's", thread.unwrap()),
        ("another service", named("etcd")),
        ("a zombie", zombie.to_string()),
        ("nothing", "nothing".to_owned()),
    ]
}

/// The postmaster dies while `node` looks away, and what its file says is no truth any more when `node` looks again.
fn stale_pid_files() {
    if !has_postgres() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let log = dir.path().join("log");
    let mut init = Running::start(node(dir.path(), "log"));
    let pid = init.pid();
    let mut seen = 0;
    // A start that was cut short would make the next one wait.
    let mut settle = || {
        wait_until("a leader that is content", || {
            assert!(init.0.try_wait().unwrap().is_none(), "{}", read(&log));
            read(&log).matches("the leader with the lock").count() > seen
        });
        seen = read(&log).matches("the leader with the lock").count();
    };
    settle();
    let file = dir.path().join("volume/pgdata/postmaster.pid");
    let mut zombie = Command::new("true").spawn().unwrap();
    for (what, first) in stale_pids(pid, zombie.id()) {
        println!("over {what}");
        let text = read(&file);
        let postmaster: i32 = text.lines().next().unwrap().parse().unwrap();
        let node = super::only_child(pid);
        signal(node, Signal::SIGSTOP);
        signal(postmaster, Signal::SIGKILL);
        wait_until("the postmaster's end", || !is_alive(postmaster));
        let rest = text.split_once('\n').unwrap().1;
        match first.as_str() {
            "nothing" => fs::write(&file, "").unwrap(),
            first => fs::write(&file, format!("{first}\n{rest}")).unwrap(),
        }
        signal(node, Signal::SIGCONT);
        settle();
    }
    zombie.wait().unwrap();
    assert!(!read(&log).contains("lock file \"postmaster.pid\""), "{}", read(&log));
    // Also this is a stop in order: nothing that standbys lack is left behind.
    init.signal(Signal::SIGQUIT);
    assert_eq!(init.code(), Some(0), "{}", read(&log));
    let log = read(&log);
    assert!(log.contains("received fast shutdown request"), "{log}");
    assert!(!log.contains("received immediate shutdown request"), "{log}");
}
