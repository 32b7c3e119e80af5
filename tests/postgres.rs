//! A real PostgreSQL, the newest one installed, on 127.0.16.0/24: every promise of `pgherd::postgres`.
#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "test helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgherd::clock;
use pgherd::dcs::ReplicationState;
use pgherd::postgres::{
    Answer, ClientTls, Config, Containment, ControlState, DataDir, Error, Foreign, Horizon, Kind, Part,
    Pedigree, Postgres, SlotKind, SlotPlan, StartAs, Status, StopMode, Stored, Upstream,
};
use pgherd::process::{self, InitLink, Mode, RunAs};
use pgherd::supervisor::{Restart, Unit, UnitSpec, UnitState};
use pgherd::tls::{self, Root, Secrecy, Secret, Subject};
use pgherd::types::{Lsn, NodeId, NodeName, SlotName, Timeline};
use secrecy::SecretString;
use tokio::task::JoinSet;

#[path = "postgres/import.rs"]
mod import;
#[path = "postgres/slots.rs"]
mod slots;

/// Every character that has a meaning in SQL, pgpass, conninfo, a shell or a template.
const SUPERUSER_PASSWORD: &str = r#"s$u'p"e\r %w@o:r{{d}}dé supercalifragil"#;
const REPLICATION_PASSWORD: &str = r#" r\\e:p'l%"$(id) ö expialidocious"#;
/// Only the WAL of an old primary says so.
const PRIVATE: &str = "nobody has followed this";
/// Generous: the machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);
/// Several looks at a pid file.
const OPEN: Duration = Duration::from_millis(20);
const FAST: StopMode = StopMode::Fast { patience: Duration::from_secs(30) };

/// One node: its directories, its handle, and the tasks that drive it.
struct Node {
    pg: Postgres,
    config: Config,
    address: IpAddr,
    id: NodeId,
    tasks: JoinSet<()>,
    volume: tempfile::TempDir,
}

impl Node {
    /// Makes the physical slots that nobody uses be these.
    async fn keep_slots(&self, wanted: &[SlotName]) {
        let answer = self.until("an answer", |_| true).await;
        let physical = answer.slots.iter().filter(|slot| slot.kind == SlotKind::Physical);
        let drop = physical.map(|slot| slot.name.clone()).filter(|name| !wanted.contains(name)).collect();
        let missing = wanted.iter().filter(|name| answer.slots.iter().all(|slot| slot.name != **name));
        let create = missing.map(|name| (name.clone(), SlotKind::Physical)).collect();
        self.pg.change_slots(&SlotPlan { drop, create, ..SlotPlan::default() }).await.unwrap();
    }

    async fn advance_slots(&self, advance: BTreeMap<SlotName, Lsn>) {
        self.pg.change_slots(&SlotPlan { advance, ..SlotPlan::default() }).await.unwrap();
    }

    /// A node with an empty volume at 127.0.16.`last`.
    fn new(name: &str, last: u8) -> Self {
        Self::with(name, last, |_config| {})
    }

    fn with(name: &str, last: u8, edit: impl FnOnce(&mut Config)) -> Self {
        let volume = tempfile::tempdir().unwrap();
        // PostgreSQL's account must be able to walk through.
        std::fs::set_permissions(volume.path(), Permissions::from_mode(0o755)).unwrap();
        let root = Utf8PathBuf::from_path_buf(volume.path().to_owned()).unwrap();
        let run_as = RunAs::account("postgres").unwrap();
        let id = NodeId(format!("{last:016x}"));
        let address: IpAddr = format!("127.0.16.{last}").parse().unwrap();
        let mut config = Config {
            bin_dir: pgherd::config::newest_postgres().unwrap(),
            data_dir: root.join("data/pgdata"),
            state_dir: root.join("data/pgherd"),
            run_dir: root.join("run"),
            tls_dir: root.join("run/tls"),
            run_as,
            listen: address.to_string(),
            port: 5432,
            advertised_port: 5432,
            name: NodeName::from(name),
            superuser_password: SecretString::from(SUPERUSER_PASSWORD),
            replication_password: SecretString::from(REPLICATION_PASSWORD),
            superuser: "boss".to_owned(),
            database: "App db".to_owned(),
            replication_user: "replicator".to_owned(),
            initdb_args: vec!["--wal-segsize=16".to_owned()],
            parameters: BTreeMap::from([("shared_buffers".to_owned(), "16MB".to_owned())]),
            hba: Vec::new(),
            tls_required: ClientTls::Offered,
            init_scripts: root.join("init.d"),
            premises: pgherd::postgres::Premises::Container,
            import: None,
            foreign_login: pgherd::postgres::ForeignLogin::Password,
        };
        edit(&mut config);
        process::make_private_dir(&config.state_dir, &RunAs::Same).unwrap();
        write_tls(&config, &id, address);
        let mut tasks = JoinSet::new();
        let spec = UnitSpec { name: "postgres", restart: Restart::Never, stop: Vec::new() };
        let unit = Unit::spawn(spec, InitLink::inherit(), &mut tasks);
        Self { pg: Postgres::new(config.clone(), unit), config, address, id, tasks, volume }
    }

    fn upstream(&self) -> Upstream {
        Upstream {
            name: self.config.name.clone(),
            node_id: Some(self.id.clone()),
            address: self.address.into(),
            port: self.config.port,
            foreign: None,
        }
    }

    async fn status(&self) -> Status {
        self.pg.status(Duration::from_secs(5)).await
    }

    /// Waits until the server answers and `ready` holds.
    async fn until(&self, what: &str, ready: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = clock::now() + DEADLINE;
        loop {
            let status = self.status().await;
            match &status.sql {
                Some(answer) if ready(answer) => return answer.clone(),
                _ => assert!(clock::now() < deadline, "{what}: {} {status:#?}", self.pg.last_words()),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A fresh cluster that takes writes.
    async fn bootstrap(&self) {
        self.pg.initdb().await.unwrap();
        self.start_primary().await;
        self.pg.finish_bootstrap().await.unwrap();
    }

    async fn start_primary(&self) {
        self.pg.start(&StartAs::Primary, "").await.unwrap();
        self.until("primary", is_primary).await;
    }

    async fn start_standby_of(&self, upstream: &Self) -> Answer {
        self.pg.start(&StartAs::Standby(Some(upstream.upstream())), "").await.unwrap();
        self.until("streaming", is_streaming).await
    }

    /// Waits until a session sees this value; what it sees.
    async fn until_shows(&self, name: &str, value: &str) -> String {
        let deadline = clock::now() + DEADLINE;
        loop {
            let shown = self.ask(&format!("SHOW {name}")).await;
            if shown == value || clock::now() > deadline {
                return shown;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until no process of it is left.
    async fn until_down(&self) {
        let down = |state: &UnitState| matches!(state, UnitState::Down { .. });
        let mut process = self.pg.process();
        tokio::time::timeout(DEADLINE, process.wait_for(down)).await.unwrap().unwrap();
    }

    /// One value, by an ordinary client over TCP.
    async fn ask(&self, sql: &str) -> String {
        self.ask_as((&self.config.superuser, SUPERUSER_PASSWORD), &self.config.database, sql).await
    }

    async fn ask_as(&self, (user, password): (&str, &str), database: &str, sql: &str) -> String {
        let mut client = tokio_postgres::Config::new();
        client.host(self.config.listen.as_str()).port(self.config.port).user(user);
        client.password(password).dbname(database);
        let (client, connection) = client.connect(tokio_postgres::NoTls).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move { connection.await.unwrap() });
        let messages = client.simple_query(sql).await.unwrap();
        let row = messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        row.unwrap_or_default()
    }

    fn postmaster(&self) -> Pid {
        match *self.pg.process().borrow() {
            UnitState::Running { pid, .. } => Pid::from_raw(pid.try_into().unwrap()),
            other => panic!("not running: {other:?}"),
        }
    }

    /// Names beside PGDATA that an interrupted copy left.
    fn leftovers(&self) -> usize {
        let parent = self.config.data_dir.parent().unwrap();
        let names = parent.read_dir_utf8().unwrap().map(|entry| entry.unwrap().file_name().to_owned());
        names.filter(|name| name.starts_with("pgdata.")).count()
    }

    fn quarantined(&self) -> usize {
        self.config.state_dir.join("quarantine").read_dir_utf8().map_or(0, Iterator::count)
    }
}

/// Nobody is `init` here: what a killed postmaster leaves behind is ours to end. A backend that waits for a lock of one that died
/// in the middle of something waits for ever.
impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.abort_all();
        let volume = self.volume.path();
        for _ in 0..1000 {
            let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
            let pids =
                processes.filter(|p| p.path().join("cwd").read_link().is_ok_and(|at| at.starts_with(volume)));
            let pids: Vec<i32> = pids.filter_map(|p| p.file_name().to_str()?.parse().ok()).collect();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }
}

fn write_tls(config: &Config, id: &NodeId, address: IpAddr) {
    let root = Root::derive(&Secret::Passphrase(b"a passphrase for tests"), "test").unwrap();
    let subject = Subject {
        app: "test".to_owned(),
        node_id: id.clone(),
        addresses: vec![address],
        names: Vec::new(),
        validity_days: 30,
    };
    let bundle = tls::issue(&root, &subject, clock::wall()).unwrap();
    process::make_private_dir(&config.run_dir, &config.run_as).unwrap();
    process::make_private_dir(&config.tls_dir, &config.run_as).unwrap();
    for file in &bundle.files {
        let mode = match file.secret {
            Secrecy::Public => Mode::Public,
            Secrecy::Key => Mode::Private,
        };
        process::write_atomic(&config.tls_dir.join(file.name), file.pem.as_bytes(), &config.run_as, mode)
            .unwrap();
    }
}

fn is_primary(answer: &Answer) -> bool {
    matches!(answer.kind, Kind::Primary { .. })
}

fn is_streaming(answer: &Answer) -> bool {
    matches!(answer.kind, Kind::Standby { replication: Some(ReplicationState::Streaming), .. })
}

fn received(answer: &Answer) -> Lsn {
    match answer.kind {
        Kind::Standby { received, .. } => received,
        Kind::Primary { .. } => panic!("not a standby"),
    }
}

fn replayed(answer: &Answer) -> Lsn {
    match answer.kind {
        Kind::Standby { replayed, .. } => replayed,
        Kind::Primary { .. } => panic!("not a standby"),
    }
}

fn position(answer: &Answer) -> Lsn {
    match answer.kind {
        Kind::Primary { lsn, .. } => lsn,
        Kind::Standby { .. } => panic!("not a primary"),
    }
}

fn write(path: &Utf8Path, text: &[u8], mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, text).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_cluster_is_made_once_and_started_with_its_roles() {
    let node = Node::new("a-1", 1);
    assert_eq!(node.status().await.data, DataDir::Empty);
    let system_id = node.pg.initdb().await.unwrap();
    let DataDir::Cluster(control) = node.status().await.data else { panic!("no cluster") };
    assert_eq!((control.system_id, control.state), (system_id, ControlState::ShutDown));
    assert!(matches!(node.pg.initdb().await, Err(Error::NotEmpty { .. })), "never over data");

    node.start_primary().await;
    node.pg.finish_bootstrap().await.unwrap();
    let answer = node.until("primary", is_primary).await;
    assert_eq!(answer.timeline, Timeline(1));
    assert!(answer.server_version >= 140_000);
    assert!(position(&answer) > Lsn(0));
    assert!(matches!(node.pg.initdb().await, Err(Error::StillRunning)));

    let role = "SELECT rolreplication AND rolcanlogin AND NOT rolsuper AND rolpassword LIKE 'SCRAM-SHA-256$%'
                FROM pg_authid WHERE rolname = 'replicator'";
    assert_eq!(node.ask(role).await, "t");
    assert_eq!(node.ask("SHOW data_checksums").await, "on");
    assert_eq!(node.ask("SELECT current_database()").await, "App db");
    // Data from before pgherd has such roles.
    node.ask("SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD 'old-secret'").await;
    assert_eq!(node.ask_as(("old", "old-secret"), "App db", "SELECT 'in'").await, "in");

    node.pg.stop(FAST).await.unwrap();
    let status = node.status().await;
    assert!(matches!(status.process, UnitState::Down { .. }));
    let DataDir::Cluster(control) = status.data else { panic!("no cluster") };
    assert_eq!(control.state, ControlState::ShutDown);
    assert_eq!((status.sql, status.silence), (None, None));

    // Data of another major version, found at the start of a node: a refusal that names both.
    write(&node.config.data_dir.join("PG_VERSION"), b"9\n", 0o600);
    let (other, _tasks) = another_handle(&node);
    let DataDir::Unreadable { why } = other.status(PATIENCE).await.data else { panic!("readable") };
    assert!(why.contains("PostgreSQL 9,") && why.contains("programs"), "{why}");
}

/// A second handle on the same directory, which knows nothing of the first.
fn another_handle(node: &Node) -> (Postgres, JoinSet<()>) {
    let mut tasks = JoinSet::new();
    let spec = UnitSpec { name: "postgres", restart: Restart::Never, stop: Vec::new() };
    let unit = Unit::spawn(spec, InitLink::inherit(), &mut tasks);
    (Postgres::new(node.config.clone(), unit), tasks)
}

#[tokio::test]
async fn init_scripts_run_once_in_order_and_a_failing_one_is_named() {
    let node = Node::new("b-1", 2);
    let dir = node.config.init_scripts.clone();
    write(&dir.join("10-table.sql"), b"CREATE TABLE t (n int); INSERT INTO t VALUES (1);", 0o644);
    write(&dir.join("20-bad.sql"), b"SELECT nonsense;", 0o644);
    write(
        &dir.join("30-run.sh"),
        b"#!/bin/sh\npsql -qc \"INSERT INTO t VALUES (length('$POSTGRES_USER'))\"\n",
        0o755,
    );
    write(&dir.join("40-read.sh"), b"psql -qc 'INSERT INTO t VALUES (5)' || exit 1\n", 0o644);
    write(&dir.join("50-packed.sql"), b"INSERT INTO t VALUES (6);", 0o644);
    let gzip = process::Command::new("gzip", "/usr/bin/gzip").arg(dir.join("50-packed.sql").as_str());
    assert!(process::run(&gzip, PATIENCE).await.unwrap().exit.is_success());
    node.pg.initdb().await.unwrap();
    node.start_primary().await;

    let error = node.pg.finish_bootstrap().await.unwrap_err();
    assert!(error.to_string().contains("20-bad.sql"), "{error}");
    assert_eq!(node.ask("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await, "1");
    write(&dir.join("20-bad.sql"), b"INSERT INTO t VALUES (2);", 0o644);
    for _ in 0..2 {
        node.pg.finish_bootstrap().await.unwrap();
        assert_eq!(node.ask("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await, "1,2,4,5,6");
    }
    let left = node.config.run_dir.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned());
    let secrets: Vec<_> = left.filter(|name| name.starts_with("init")).collect();
    assert!(secrets.is_empty(), "{secrets:?}");
}

#[tokio::test]
async fn settings_and_slots_follow_what_is_asked() {
    let node = Node::with("c-1", 3, |config| {
        config.parameters.insert("wal_level".to_owned(), "logical".to_owned());
    });
    node.bootstrap().await;
    let slot = |name: &str| SlotName(name.to_owned());
    let slots = |answer: &Answer| answer.slots.iter().map(|s| s.name.0.clone()).collect::<Vec<_>>().join(" ");
    let lsn_of = |answer: &Answer, name: &str| {
        answer.slots.iter().find(|s| s.name.0 == name).and_then(|s| s.restart_lsn).unwrap()
    };

    node.ask("SELECT pg_create_logical_replication_slot('mine', 'pgoutput')").await;
    node.keep_slots(&[slot("n1"), slot("n2")]).await;
    node.keep_slots(&[slot("n2"), slot("n3")]).await;
    let answer = node.until("three slots", |answer| answer.slots.len() == 3).await;
    let mut names: Vec<_> = slots(&answer).split(' ').map(str::to_owned).collect();
    names.sort_unstable();
    assert_eq!(names, ["mine", "n2", "n3"]);
    assert!(answer.slots.iter().all(|s| !s.active && (s.kind == SlotKind::Physical) == (s.name.0 != "mine")));

    let mine = SlotKind::Logical { database: "App db".into(), plugin: "pgoutput".into() };
    let logical = answer.slots.iter().find(|s| s.kind == mine).unwrap();
    assert!(logical.confirmed.is_some() && logical.horizon == Horizon::Free, "{logical:?}");
    let create = BTreeMap::from([(slot("theirs"), mine.clone()), (slot("mine"), mine)]);
    node.pg.change_slots(&SlotPlan { create, ..SlotPlan::default() }).await.unwrap();
    let drop = BTreeSet::from([slot("theirs"), slot("absent")]);
    node.until("a logical slot more", |answer| answer.slots.len() == 4).await;
    node.pg.change_slots(&SlotPlan { drop, ..SlotPlan::default() }).await.unwrap();
    node.until("one slot less", |answer| answer.slots.len() == 3).await;
    node.ask("ALTER ROLE replicator SET synchronous_commit = 'local'").await;
    let weak = |answer: &Answer| answer.weakened == ["role replicator"];
    node.until("a role whose commits wait for less", weak).await;
    node.ask("ALTER ROLE replicator RESET synchronous_commit").await;

    let old = lsn_of(&answer, "n2");
    node.ask("CREATE TABLE t AS SELECT generate_series(1, 1000)").await;
    let target = position(&node.until("primary", is_primary).await);
    let positions = BTreeMap::from([(slot("n2"), target), (slot("absent"), target), (slot("n3"), Lsn(1))]);
    node.advance_slots(positions).await;
    let answer = node.until("primary", is_primary).await;
    assert_eq!((lsn_of(&answer, "n2"), lsn_of(&answer, "n3")), (target, old));

    assert!(answer.pending_restart.is_empty());
    node.ask("ALTER SYSTEM SET shared_buffers = '17MB'").await;
    node.ask("ALTER SYSTEM SET max_connections = 77").await;
    node.ask("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    node.ask("SELECT pg_reload_conf()").await;
    let answer = node.until("pending", |answer| !answer.pending_restart.is_empty()).await;
    assert_eq!(pending(&answer), [("shared_buffers", "16MB", "17MB")]);
    node.pg.set_sync_names("").await.unwrap();
    assert_eq!(node.ask("SHOW synchronous_standby_names").await, "", "what the cluster owns is taken back");
    node.pg.stop(FAST).await.unwrap();
    node.start_primary().await;
    let answer = node.until("primary", is_primary).await;
    assert_eq!((answer.sync_names.as_str(), answer.pending_restart.len()), ("", 0));
    assert_eq!(node.ask("SHOW shared_buffers").await, "17MB", "what the cluster does not own stays");
    assert_eq!(node.ask("SHOW max_connections").await, "100", "what must be equal on every member does not");
}

fn pending(answer: &Answer) -> Vec<(&str, &str, &str)> {
    answer
        .pending_restart
        .iter()
        .map(|s| (s.name.as_str(), s.old_value.as_str(), s.new_value.as_str()))
        .collect()
}

fn stored(section: serde_json::Value) -> Stored {
    Stored::of(&serde_json::json!({ "postgresql": section }))
}

#[tokio::test]
async fn settings_of_the_store_are_checked_reloaded_and_wait_for_a_restart_by_name() {
    let node = Node::new("e-1", 12);
    node.bootstrap().await;
    node.pg.configure(Part::Primary).await.unwrap();
    assert_eq!(node.pg.complaints(), [""; 0]);

    // What can be used is; what the server refuses is named; what needs a restart waits for it.
    node.pg.intend(stored(serde_json::json!({
        "parameters": {"work_mem": "9MB", "max_connections": 120, "no_such": 1, "maintenance_work_mem": "lots",
            "shared_buffers": "20MB", "archive_command": "touch /tmp/x", "my.own": "kept"},
        "parameters_primary": {"work_mem": "11MB"},
        "pg_hba": ["host all all 127.0.0.0/8 scram-sha-256", "hostssl all all 127.0.0.0/8 cert clientcert=magic"],
    })));
    node.pg.configure(Part::Primary).await.unwrap();
    let answer = node.until("pending", |answer| !answer.pending_restart.is_empty()).await;
    // POSTGRES_PARAMETERS of this node (shared_buffers) wins over the store.
    assert_eq!(pending(&answer), [("max_connections", "100", "120")]);
    assert_eq!(node.until_shows("work_mem", "11MB").await, "11MB");
    assert_eq!(node.ask("SHOW my.own").await, "kept");
    let complaints = node.pg.complaints();
    for word in ["no_such", "maintenance_work_mem", "shared_buffers", "archive_command", "magic"] {
        assert!(complaints.iter().any(|c| c.contains(word)), "{word}: {complaints:?}");
    }
    assert_eq!(complaints.len(), 5, "{complaints:#?}");
    assert_eq!(node.ask("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL").await, "0");

    node.pg.stop(FAST).await.unwrap();
    node.start_primary().await;
    assert_eq!(node.ask("SHOW max_connections").await, "120");
    assert_eq!(node.until("primary", is_primary).await.pending_restart, []);
}

#[tokio::test]
async fn settings_that_the_server_cannot_start_with_give_way_to_those_before() {
    let node = Node::new("e-2", 13);
    node.bootstrap().await;
    node.pg.configure(Part::Primary).await.unwrap();
    node.pg.stop(FAST).await.unwrap();
    // It passes every check but the start: there is no such library.
    node.pg
        .intend(stored(serde_json::json!({"parameters": {"shared_preload_libraries": "no_such_library"}})));
    node.pg.start(&StartAs::Primary, "").await.unwrap();
    node.until_down().await;
    node.start_primary().await;
    assert_eq!(node.ask("SHOW shared_preload_libraries").await, "");
    assert!(!node.pg.complaints().is_empty());
    // And it is not tried again until it is another one.
    node.pg.configure(Part::Primary).await.unwrap();
    node.pg.stop(FAST).await.unwrap();
    node.start_primary().await;
    node.pg.intend(stored(serde_json::json!({"parameters": {"max_connections": 50}})));
    node.pg.configure(Part::Primary).await.unwrap();
    assert_eq!(node.pg.complaints(), [""; 0]);
}

#[tokio::test]
async fn a_standby_starts_with_no_less_than_its_primary_and_says_that_it_waits() {
    let (a, b) = (Node::new("e-3", 14), Node::new("e-4", 15));
    a.pg.intend(stored(serde_json::json!({"parameters": {"max_connections": 150}})));
    a.bootstrap().await;
    a.keep_slots(&[b.config.name.slot_name()]).await;
    b.pg.clone_from(&a.upstream()).await.unwrap();
    b.pg.intend(stored(serde_json::json!({"parameters": {"max_connections": 60}})));
    let answer = b.start_standby_of(&a).await;
    assert_eq!(pending(&answer), [("max_connections", "150", "60")]);
    b.pg.configure(Part::Replica).await.unwrap();
    assert_eq!(pending(&b.until("streaming", is_streaming).await), [("max_connections", "150", "60")]);
}

#[tokio::test]
async fn a_standby_streams_freezes_is_promoted_and_the_old_primary_is_rewound() {
    let (a, b) = (Node::new("d-1", 4), Node::new("d-2", 5));
    a.bootstrap().await;
    a.ask("CREATE TABLE t (n int)").await;
    a.keep_slots(&[b.config.name.slot_name()]).await;
    b.pg.clone_from(&a.upstream()).await.unwrap();
    let DataDir::Cluster(copy) = b.status().await.data else { panic!("no copy") };
    let as_primary = b.pg.start(&StartAs::Primary, "").await;
    assert!(matches!(as_primary, Err(Error::Incomplete { .. })), "{as_primary:?}");
    let streaming = b.start_standby_of(&a).await;
    check_standby(&streaming, &a);
    let primary = a.until("a standby", |answer| match &answer.kind {
        Kind::Primary { standbys, .. } => {
            standbys.iter().any(|s| s.state == "streaming" && s.flushed.is_some())
        }
        Kind::Standby { .. } => false,
    });
    let Kind::Primary { standbys, .. } = primary.await.kind else { panic!("not a primary") };
    assert_eq!((standbys[0].name.as_str(), standbys[0].user.as_str()), ("d-2", "replicator"));
    no_secret_is_written_where_it_is_not_needed(&b);
    let tls = a.ask("SELECT client_dn FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)").await;
    assert!(tls.ends_with("/CN=replicator"), "{tls}");

    synchronous_commit_waits(&a, &b).await;
    freezing_stops_the_position(&a, &b).await;
    a_position_that_cannot_settle_is_not_called_frozen(&a, &b).await;
    a_standby_keeps_slots_too(&a, &b).await;
    let history = b.pg.upstream_history(&a.upstream()).await.unwrap();
    assert_eq!((history.timeline, history.history.0.len()), (Timeline(1), 0));
    the_upstreams_log_is_looked_into(&a, &b).await;

    // The old primary goes on alone, unaware.
    let fork = replayed(&b.until("standby", |_| true).await);
    b.pg.follow(None).await.unwrap();
    b.pg.promote(PATIENCE).await.unwrap();
    let promoted = b.until("promoted", is_primary).await;
    assert_eq!(promoted.timeline, Timeline(2));
    b.pg.checkpoint(PATIENCE).await.unwrap();
    a.ask("INSERT INTO t VALUES (666)").await;
    a.ask(&format!("SELECT pg_logical_emit_message(true, 'test', '{PRIVATE}')")).await;
    let segment = a.ask("SELECT pg_walfile_name(pg_current_wal_flush_lsn())").await;
    b.ask("INSERT INTO t VALUES (7)").await;
    a.pg.stop(StopMode::Immediate).await.unwrap();
    let Pedigree { timeline, history, .. } = a.pg.upstream_history(&b.upstream()).await.unwrap();
    assert_eq!(timeline, Timeline(2));
    assert!(history.end_of(Timeline(1)).unwrap() >= fork);

    let DataDir::Cluster(crashed) = a.status().await.data else { panic!("no cluster") };
    assert_eq!(crashed.state, ControlState::InProduction);
    a.pg.rewind(&b.upstream()).await.unwrap();
    its_own_wal_is_kept(&a, &segment);
    b.keep_slots(&[a.config.name.slot_name()]).await;
    let rejoined = a.start_standby_of(&b).await;
    assert_eq!(rejoined.timeline, Timeline(2));
    let target = position(&b.until("primary", is_primary).await);
    a.until("caught up", |answer| replayed(answer) >= target).await;
    assert_eq!(a.ask("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await, "1,2,3,7");
    let DataDir::Cluster(rewound) = a.status().await.data else { panic!("no cluster") };
    assert_eq!(rewound.system_id, copy.system_id);
    a.pg.freeze().await.unwrap();
    assert_eq!(a.until("frozen", |_| true).await.timeline, Timeline(2), "not forgotten with the walreceiver");
}

/// What the old primary alone has written goes with the rewind, and lies aside.
fn its_own_wal_is_kept(node: &Node, segment: &str) {
    let has = |path: &Utf8Path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(PRIVATE.len()).any(|w| w == PRIVATE.as_bytes())
    };
    assert!(!has(&node.config.data_dir.join("pg_wal").join(segment)), "it is not rewound");
    let place = node.config.state_dir.join(pgherd::postgres::salvage::PLACE);
    let kept: Vec<_> = place.read_dir_utf8().unwrap().map(|entry| entry.unwrap().into_path()).collect();
    assert!(kept.len() == 1 && kept.iter().all(|path| has(&path.join(segment))), "{kept:?}");
}

fn check_standby(answer: &Answer, upstream: &Node) {
    assert_eq!(answer.timeline, Timeline(1));
    let Kind::Standby { received, replayed, replay_paused, upstream_host, .. } = &answer.kind else {
        panic!("not a standby")
    };
    assert!(*received > Lsn(0) && *replayed > Lsn(0));
    assert!(!replay_paused);
    assert_eq!(upstream_host.as_deref(), Some(&*format!("{}.pgherd.internal", upstream.id)));
}

/// Everything below PGDATA and the run directory but the one password file.
fn no_secret_is_written_where_it_is_not_needed(node: &Node) {
    let mut pending = vec![node.config.data_dir.clone(), node.config.run_dir.clone()];
    let mut n_files = 0;
    while let Some(dir) = pending.pop() {
        for path in dir.read_dir_utf8().unwrap().map(|entry| entry.unwrap().path().to_owned()) {
            if path.is_dir() {
                pending.push(path);
            } else if path.is_file() && path.file_name() != Some("pgpass") {
                let bytes = std::fs::read(&path).unwrap();
                for secret in [SUPERUSER_PASSWORD, REPLICATION_PASSWORD] {
                    // The longest stretch that no quoting changes.
                    let plain = secret.split(|c: char| !c.is_ascii_alphanumeric()).max_by_key(|s| s.len());
                    let plain = plain.unwrap().as_bytes();
                    assert!(plain.len() >= 12);
                    assert!(!bytes.windows(plain.len()).any(|w| w == plain), "{path}");
                }
                n_files += 1;
            }
        }
    }
    assert!(n_files > 100);
}

/// It is asked whether it has our last checkpoint, byte for byte.
async fn the_upstreams_log_is_looked_into(a: &Node, b: &Node) {
    let foreign = |of: &Node| Upstream { foreign: Some(Foreign { slot: None }), ..of.upstream() };
    let asked = async |of: &Node, whom: &Node| of.pg.upstream_history(&foreign(whom)).await.unwrap();
    a.pg.checkpoint(PATIENCE).await.unwrap();
    let end = position(&a.until("primary", is_primary).await);
    b.until("caught up", |answer| replayed(answer) >= end).await;
    let shown = asked(a, b).await;
    let DataDir::Cluster(control) = a.status().await.data else { panic!("no cluster") };
    assert_eq!(
        (shown.system_id, shown.contains_ours),
        (control.system_id, Containment::Shown(control.timeline))
    );
    assert_eq!(asked(b, a).await.contains_ours, shown.contains_ours);
    let place = "pg_walfile_name(checkpoint_lsn), (checkpoint_lsn - '0/0') % (16 << 20)";
    let place = a.ask(&format!("SELECT concat_ws('/', {place}) FROM pg_control_checkpoint()")).await;
    let (file, offset) = place.split_once('/').unwrap();
    let path = b.config.data_dir.join("pg_wal").join(file);
    let (wal, offset) =
        (std::fs::File::options().read(true).write(true).open(path).unwrap(), offset.parse().unwrap());
    let mut record = [0; 24];
    wal.read_exact_at(&mut record, offset).unwrap();
    wal.write_all_at(&record.map(|byte| !byte), offset).unwrap();
    assert_eq!(asked(a, b).await.contains_ours, Containment::Differs);
    wal.write_all_at(&record, offset).unwrap();
    assert_eq!(b.pg.upstream_history(&a.upstream()).await.unwrap().contains_ours, shown.contains_ours);
}

async fn synchronous_commit_waits(a: &Node, b: &Node) {
    a.pg.set_sync_names(r#"ANY 1 ("d-2")"#).await.unwrap();
    assert_eq!(a.until("primary", is_primary).await.sync_names, r#"ANY 1 ("d-2")"#);
    a.ask("INSERT INTO t VALUES (1)").await;
    let lsn = position(&a.until("primary", is_primary).await);
    b.until("replayed", |answer| replayed(answer) >= lsn).await;
    a.pg.set_sync_names("").await.unwrap();
}

async fn a_position_that_cannot_settle_is_not_called_frozen(a: &Node, b: &Node) {
    b.ask("SELECT pg_wal_replay_pause()").await;
    let paused = |answer: &Answer| matches!(answer.kind, Kind::Standby { replay_paused: true, .. });
    b.until("paused", paused).await;
    a.ask("INSERT INTO t VALUES (4); DELETE FROM t WHERE n = 4").await;
    let lsn = position(&a.until("primary", is_primary).await);
    b.until("received, not replayed", |answer| received(answer) >= lsn && replayed(answer) < lsn).await;
    let frozen = b.pg.freeze().await;
    assert!(matches!(frozen, Err(Error::TimedOut { .. })), "{frozen:?}");
    b.ask("SELECT pg_wal_replay_resume()").await;
    b.pg.follow(Some(&a.upstream())).await.unwrap();
    b.until("following again", |answer| is_streaming(answer) && replayed(answer) >= lsn).await;
}

async fn a_standby_keeps_slots_too(a: &Node, b: &Node) {
    let slot = a.config.name.slot_name();
    b.keep_slots(std::slice::from_ref(&slot)).await;
    a.ask("INSERT INTO t SELECT 0 FROM generate_series(1, 1000)").await;
    a.ask("DELETE FROM t WHERE n = 0").await;
    let target = position(&a.until("primary", is_primary).await);
    b.until("replayed", |answer| replayed(answer) >= target).await;
    b.advance_slots(BTreeMap::from([(slot.clone(), target)])).await;
    let answer = b.until("standby", |_| true).await;
    assert_eq!(answer.slots.iter().find(|s| s.name == slot).unwrap().restart_lsn, Some(target));
    b.keep_slots(&[]).await;
    b.until("no slots", |answer| answer.slots.is_empty()).await;
}

async fn freezing_stops_the_position(a: &Node, b: &Node) {
    b.pg.freeze().await.unwrap();
    let frozen = b.status().await.sql.unwrap();
    assert!(!is_streaming(&frozen), "frozen when it says so");
    a.ask("INSERT INTO t VALUES (2)").await;
    let later = b.until("still frozen", |_| true).await;
    assert_eq!((received(&later), replayed(&later)), (received(&frozen), replayed(&frozen)));
    assert_eq!(later.timeline, Timeline(1));
    let Kind::Standby { upstream_host, .. } = later.kind else { panic!("not a standby") };
    assert_eq!(upstream_host, None);

    b.pg.follow(Some(&a.upstream())).await.unwrap();
    a.ask("INSERT INTO t VALUES (3)").await;
    let lsn = position(&a.until("primary", is_primary).await);
    b.until("following again", |answer| is_streaming(answer) && replayed(answer) >= lsn).await;
    let pid = b.ask("SELECT pid FROM pg_stat_wal_receiver").await;
    b.pg.follow(Some(&a.upstream())).await.unwrap();
    assert_eq!(
        b.ask("SELECT pid FROM pg_stat_wal_receiver").await,
        pid,
        "nothing to change, nothing restarted"
    );
}

/// Nobody is there to stream from, and the control file tells of the timeline before.
#[tokio::test]
async fn a_standby_that_restarts_alone_knows_the_timeline_that_it_replays() {
    let (a, b, c) = (Node::new("j-1", 21), Node::new("j-2", 22), Node::new("j-3", 23));
    a.bootstrap().await;
    a.ask("CREATE TABLE t (n int)").await;
    for standby in [&b, &c] {
        a.keep_slots(&[b.config.name.slot_name(), c.config.name.slot_name()]).await;
        standby.pg.clone_from(&a.upstream()).await.unwrap();
        standby.start_standby_of(&a).await;
    }
    a.pg.stop(FAST).await.unwrap();
    b.pg.promote(PATIENCE).await.unwrap();
    b.until("promoted", is_primary).await;
    b.keep_slots(&[c.config.name.slot_name()]).await;
    c.pg.follow(Some(&b.upstream())).await.unwrap();
    b.ask("INSERT INTO t VALUES (1)").await;
    let end: Lsn = b.ask("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
    c.until("on the next timeline", |answer| answer.timeline == Timeline(2) && replayed(answer) >= end).await;
    b.pg.stop(StopMode::Immediate).await.unwrap();
    c.pg.stop(StopMode::Immediate).await.unwrap();
    let DataDir::Cluster(control) = c.status().await.data else { panic!("no data") };
    assert_eq!(control.reached(), Timeline(1), "the test needs one that lags behind");

    c.pg.start(&StartAs::Standby(None), "").await.unwrap();
    let alone = c.until("alone", |answer| replayed(answer) >= end).await;
    assert_eq!(alone.timeline, Timeline(2));
}

/// A node whose identity we do not know is reached by its address, and lets the password in without a certificate.
#[tokio::test]
async fn a_stock_node_is_followed_by_its_address() {
    let stock = Node::with("h-1", 10, |config| {
        config.hba = vec![
            "host replication replicator all scram-sha-256".to_owned(),
            "host all replicator all scram-sha-256".to_owned(),
        ];
    });
    let node = Node::new("h-2", 11);
    stock.bootstrap().await;
    stock.keep_slots(&[node.config.name.slot_name()]).await;
    let upstream = Upstream { node_id: None, ..stock.upstream() };
    node.pg.clone_from(&upstream).await.unwrap();
    node.pg.start(&StartAs::Standby(None), "").await.unwrap();
    let alone = node.until("following nobody", |_| true).await;
    assert!(!is_streaming(&alone));
    assert_eq!(alone.timeline, Timeline(1));
    node.pg.follow(Some(&upstream)).await.unwrap();
    let answer = node.until("streaming", is_streaming).await;
    let Kind::Standby { upstream_host, .. } = answer.kind else { panic!("not a standby") };
    assert_eq!(upstream_host, Some(stock.address.to_string()));
    assert_eq!(node.pg.upstream_history(&upstream).await.unwrap().timeline, Timeline(1));

    // A node that cannot prove that it is the one we mean is not followed.
    let stranger = Upstream { node_id: Some(NodeId("0000000000000bad".to_owned())), ..upstream };
    let error = node.pg.upstream_history(&stranger).await.unwrap_err();
    assert!(error.to_string().contains("0000000000000bad"), "{error}");
}

#[tokio::test]
async fn an_interrupted_clone_is_good_only_for_another_and_old_data_is_kept() {
    let (a, b) = (Node::new("e-1", 6), Node::new("e-2", 7));
    a.bootstrap().await;
    {
        let upstream = a.upstream();
        let clone = b.pg.clone_from(&upstream);
        tokio::pin!(clone);
        let begun = async {
            while b.config.data_dir.parent().unwrap().read_dir_utf8().is_err() || b.leftovers() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            done = &mut clone => panic!("too fast to interrupt: {done:?}"),
            () = begun => {}
        }
    }
    assert!(matches!(b.status().await.data, DataDir::Incomplete { .. }));
    assert!(matches!(b.pg.initdb().await, Err(Error::Incomplete { .. })));
    assert!(matches!(b.pg.start(&StartAs::Primary, "").await, Err(Error::Incomplete { .. })));
    assert_eq!(b.leftovers(), 1);

    for n in 0..4 {
        assert_eq!(b.quarantined(), std::cmp::min(n.max(1) - 1, 2));
        b.pg.clone_from(&a.upstream()).await.unwrap();
        assert!(matches!(b.status().await.data, DataDir::Cluster(_)));
        assert_eq!(b.leftovers(), 0);
    }

    // A clone or a rewind that fails leaves what was there.
    a.keep_slots(&[b.config.name.slot_name()]).await;
    b.start_standby_of(&a).await;
    b.pg.stop(FAST).await.unwrap();
    a.pg.stop(FAST).await.unwrap();
    let before = b.status().await.data;
    let error = b.pg.clone_from(&a.upstream()).await.unwrap_err();
    assert!(matches!(error, Error::Failed { .. }), "{error}");
    assert_eq!((b.status().await.data, b.leftovers()), (before.clone(), 0));
    let error = b.pg.rewind(&a.upstream()).await.unwrap_err();
    assert!(matches!(&error, Error::Failed { tool, .. } if tool == "pg_rewind"), "{error}");
    assert_eq!(b.status().await.data, before, "the trial run failed first");
    // Half a rewind is not a cluster.
    write(&b.config.state_dir.join("rewind-in-progress"), b"", 0o600);
    assert!(matches!(b.status().await.data, DataDir::Incomplete { .. }));
    assert!(matches!(b.pg.start(&StartAs::Standby(None), "").await, Err(Error::Incomplete { .. })));
    // Nor is it one when the volume was moved, and the directory has another number.
    write(&b.config.state_dir.join("rewind-in-progress"), b"1 2 3", 0o600);
    assert!(matches!(b.status().await.data, DataDir::Incomplete { .. }));
    std::fs::remove_file(b.config.state_dir.join("rewind-in-progress")).unwrap();
    assert_eq!(b.status().await.data, before);
    // Data that came into the place of what a command had begun is not founded over, and not run either.
    for said in ["", "1 2 3"] {
        write(&b.config.state_dir.join("bootstrap-in-progress"), said.as_bytes(), 0o600);
        assert!(matches!(b.status().await.data, DataDir::Incomplete { .. }), "{said:?}");
        assert!(matches!(b.pg.initdb().await, Err(Error::Incomplete { .. })), "{said:?}");
    }
}

#[tokio::test]
async fn a_killed_postmaster_and_any_lock_file_it_left_do_not_stop_the_next_start() {
    let node = Node::new("f-1", 8);
    node.bootstrap().await;
    node.ask("CREATE TABLE t AS SELECT 42 AS n").await;
    let mut process = node.pg.process();
    kill(node.postmaster(), Signal::SIGKILL).unwrap();
    let down = process.wait_for(|state| matches!(state, UnitState::Down { .. }));
    tokio::time::timeout(DEADLINE, down).await.unwrap().unwrap();
    let pid_file = node.config.data_dir.join("postmaster.pid");
    assert!(pid_file.exists(), "the test needs a stale one");

    // The pid now belongs to a living process of PostgreSQL's own account, which PostgreSQL alone would obey.
    let mut helpers = JoinSet::new();
    let sleeper = process::Command::new("sleeper", "/bin/sh").args(["-c", "echo $$; exec sleep 600"]);
    let spec = UnitSpec { name: "sleeper", restart: Restart::Never, stop: Vec::new() };
    let unit = Unit::spawn(spec, InitLink::inherit(), &mut helpers);
    let sleeper = unit.start(sleeper.run_as(&node.config.run_as)).await.unwrap();
    let rest = std::fs::read_to_string(&pid_file).unwrap();
    let rest = rest.split_once('\n').unwrap().1.to_owned();
    for first in [sleeper.to_string(), String::new(), "garbage".to_owned(), std::process::id().to_string()] {
        write(&pid_file, format!("{first}\n{rest}").as_bytes(), 0o600);
        nix::unistd::chown(pid_file.as_std_path(), Some(owner(&node)), None).unwrap();
        node.start_primary().await;
        assert_eq!(node.ask("SELECT n FROM t").await, "42");
        let opened = tokio::time::timeout(DEADLINE, node.pg.opened(None)).await.unwrap();
        assert_eq!(opened.cast_signed(), node.postmaster().as_raw());
        let known = tokio::time::timeout(OPEN, node.pg.opened(Some(opened))).await;
        assert!(known.is_err(), "that is no news");
        node.pg.stop(FAST).await.unwrap();
    }
    unit.stop(None).await;
}

fn owner(node: &Node) -> nix::unistd::Uid {
    use std::os::unix::fs::MetadataExt;
    nix::unistd::Uid::from_raw(node.config.data_dir.metadata().unwrap().uid())
}

#[tokio::test]
async fn a_living_postmaster_of_somebody_else_is_left_alone() {
    let node = Node::new("g-1", 9);
    node.bootstrap().await;
    let (other, _tasks) = another_handle(&node);
    let foreign = |result: Result<(), Error>| matches!(result, Err(Error::ForeignPostmaster { .. }));
    assert!(foreign(other.start(&StartAs::Primary, "").await));
    assert!(foreign(other.clone_from(&node.upstream()).await));
    assert!(foreign(other.rewind(&node.upstream()).await));
    // Who adopts it takes its data for whole.
    let markers = ["bootstrap-in-progress", "copy-in-progress"].map(|name| node.config.state_dir.join(name));
    for path in &markers {
        write(path, b"", 0o600);
    }
    assert!(other.adopt_running().await.unwrap().is_some());
    assert!(!markers.iter().any(|path| path.exists()));
    assert_eq!(node.ask("SELECT 1").await, "1");
}
