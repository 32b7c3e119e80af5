//! A `node` with the real PostgreSQL.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use camino::Utf8PathBuf;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgherd::clock;
use pgherd::config::newest_postgres;
use pgherd::process::{self, Exit, InitLink, RunAs};
use pgherd::supervisor::{Rung, Unit, UnitState};
use tokio::task::JoinSet;

use super::{put, unit};

const MINUTE: Duration = Duration::from_secs(60);
/// The patience of a fast shutdown here.
const FAST: Duration = Duration::from_secs(1);
/// The backends that compute.
const BUSY: &str =
    "select pid from pg_stat_activity where query ~ '^select count.*series' and pid <> pg_backend_pid()";

/// A new PGDATA and how its programs are run.
struct Server {
    bin: Utf8PathBuf,
    data: Utf8PathBuf,
    who: RunAs,
}

impl Server {
    async fn new(dir: &Path) -> Self {
        let bin = newest_postgres().unwrap();
        let who = RunAs::account("postgres").unwrap();
        let data = Utf8PathBuf::from_path_buf(dir.join("data")).unwrap();
        process::make_private_dir(&data, &who).unwrap();
        let server = Self { bin, data, who };
        let initdb = server.program("initdb", &["-A", "trust", "-N", "-D", server.data.as_str()]);
        assert!(process::run(&initdb, MINUTE).await.unwrap().exit.is_success());
        server
    }

    fn program(&self, name: &str, args: &[&str]) -> process::Command {
        let command = process::Command::new(name, process::find_program(&[&self.bin], name).unwrap());
        command.args(args.iter().copied()).run_as(&self.who).quiet()
    }

    fn postmaster(&self) -> process::Command {
        let archive = "archive_command=test ! -e slow || sleep 30.019";
        let args = [
            "-D",
            self.data.as_str(),
            "-h",
            "",
            "-k",
            self.data.as_str(),
            "-c",
            "archive_mode=on",
            "-c",
            archive,
        ];
        self.program("postgres", &args).death_signal(Signal::SIGQUIT)
    }

    fn psql(&self, sql: &str) -> process::Command {
        self.program("psql", &["-h", self.data.as_str(), "-Atc", sql, "postgres"])
    }

    async fn ask(&self, sql: &str) -> String {
        process::run(&self.psql(sql), MINUTE).await.unwrap().stdout.trim().to_owned()
    }

    async fn until_true(&self, sql: &str) {
        while self.ask(sql).await != "t" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Clients: so many that compute, for ever.
    async fn busy(&self, n: usize, tasks: &mut JoinSet<()>) {
        for _ in 0..n {
            let busy = self.psql("select count(*) from generate_series(1, 100000000000)");
            tasks.spawn(async move { drop(process::run(&busy, MINUTE).await) });
        }
        let sql = format!("select count(*) >= {n} from ({BUSY}) busy");
        self.until_true(&sql).await;
    }

    async fn busy_backend(&self) -> Pid {
        Pid::from_raw(self.ask(&format!("{BUSY} limit 1")).await.parse().unwrap())
    }

    async fn start(&self, unit: &Unit) -> u32 {
        let pid = unit.start(self.postmaster()).await.unwrap();
        self.until_true("select true").await;
        pid
    }

    async fn state(&self) -> String {
        let control =
            process::run(&self.program("pg_controldata", &[self.data.as_str()]), MINUTE).await.unwrap();
        let line = control.stdout.lines().find_map(|line| line.strip_prefix("Database cluster state:"));
        line.unwrap().trim().to_owned()
    }
}

fn ladder(fast: Duration) -> Vec<Rung> {
    let quit = Rung { signal: Signal::SIGQUIT, wait: Duration::from_millis(700) };
    vec![Rung { signal: Signal::SIGINT, wait: fast }, quit]
}

/// The real PostgreSQL, killed while a backend computes: idle ones notice, this one does not. The next postmaster must not
/// meet the shared memory of the last.
pub(super) async fn crash(link: InitLink, dir: &Path) -> ExitCode {
    let server = Server::new(dir).await;
    let mut tasks = JoinSet::new();
    let unit = unit(link, &mut tasks);
    server.start(&unit).await;
    server.busy(1, &mut tasks).await;
    let killed = clock::now();
    unit.signal(Signal::SIGKILL);
    let down = |state: &UnitState| matches!(state, UnitState::Down { last: Some(Exit::Signal(9)) });
    unit.state().wait_for(down).await.unwrap();
    put(dir, "gate", &clock::now().since(killed).as_millis().to_string());
    server.start(&unit).await;
    put(dir, "writable", &clock::now().since(killed).as_millis().to_string());
    let log = unit.last_lines().join("\n");
    put(dir, "log", &log);
    let clean = unit.stop(None).await == Some(Exit::Code(0)) && !log.contains("shared memory");
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The stops that matter: with clients, with a process that hangs, with an archiver that is slow; and a backend's crash,
/// which is the server's own affair.
pub(super) async fn stops(link: InitLink, dir: &Path) -> ExitCode {
    let server = Server::new(dir).await;
    let mut tasks = JoinSet::new();
    let unit = unit(link, &mut tasks);
    backend_crash(&server, &unit, &mut tasks).await;
    let times = [
        ("busy clients", stop_with_clients(&server, &unit, &mut tasks).await),
        ("a stopped backend", stop_with_a_stopped_backend(&server, &unit, &mut tasks).await),
        ("a slow archiver", stop_with_a_slow_archiver(&server, &unit).await),
    ];
    put(dir, "times", &format!("{times:?}"));
    put(dir, "log", &unit.last_lines().join("\n"));
    let in_time = times.iter().all(|(_, took)| *took < Duration::from_millis(2500));
    if in_time { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The same postmaster goes on. It is left running.
async fn backend_crash(server: &Server, unit: &Unit, tasks: &mut JoinSet<()>) {
    let pid = server.start(unit).await;
    server.busy(1, tasks).await;
    let backend = server.busy_backend().await;
    kill(backend, Signal::SIGKILL).unwrap();
    server.until_true(&format!("select not exists ({BUSY})")).await;
    assert!(matches!(*unit.state().borrow(), UnitState::Running { pid: same, .. } if same == pid));
}

async fn stop_with_clients(server: &Server, unit: &Unit, tasks: &mut JoinSet<()>) -> Duration {
    server.busy(4, tasks).await;
    let start = clock::now();
    assert_eq!(unit.stop(Some(ladder(Duration::from_secs(5)))).await, Some(Exit::Code(0)));
    let took = clock::now().since(start);
    assert_eq!(server.state().await, "shut down");
    took
}

/// Every rung, and nothing is left.
async fn stop_with_a_stopped_backend(server: &Server, unit: &Unit, tasks: &mut JoinSet<()>) -> Duration {
    server.start(unit).await;
    server.busy(1, tasks).await;
    let backend = server.busy_backend().await;
    kill(backend, Signal::SIGSTOP).unwrap();
    let start = clock::now();
    assert_eq!(unit.stop(Some(ladder(FAST))).await, Some(Exit::Signal(9)));
    let took = clock::now().since(start);
    // The liveness pipe closes an instant before the process counts as dead.
    super::super::wait_until("the end of the backend", || !super::super::is_alive(backend.as_raw()));
    took
}

async fn stop_with_a_slow_archiver(server: &Server, unit: &Unit) -> Duration {
    server.start(unit).await;
    std::fs::write(server.data.join("slow"), "").unwrap();
    server.ask("select pg_switch_wal() from pg_create_restore_point('here')").await;
    while !is_archiving() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let start = clock::now();
    let exit = unit.stop(Some(ladder(FAST))).await;
    let took = clock::now().since(start);
    assert!(took >= FAST, "it was slow: {took:?}");
    // The shutdown checkpoint was written before the archiver was waited for: what SIGQUIT cut short was only that wait.
    assert_eq!((exit, server.state().await.as_str()), (Some(Exit::Code(0)), "shut down"));
    super::super::wait_until("the end of the archive command", || !is_archiving());
    took
}

fn is_archiving() -> bool {
    let pids =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut lines = pids.filter_map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok());
    lines.any(|line| line == b"sleep\x0030.019\x00" || line == b"/bin/sleep\x0030.019\x00")
}
