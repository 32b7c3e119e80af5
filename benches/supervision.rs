//! Supervision, measured: restarts, starts, idleness, the log path, a stalled reader, the deadman, a soak; beside supervisord and
//! s6 where they are installed (`SUPERVISORD` names the former's program), in one run.
//!
//! `cargo bench --bench supervision [-- PART ...]`. Each figure is printed with its sample. This binary plays the services
//! itself: started with a role as its first argument it is one.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a program that measures")]
#![expect(clippy::disallowed_methods, reason = "it starts programs and waits for them")]
#![expect(clippy::print_stdout, reason = "it prints what it measured")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

#[path = "supervision/roles.rs"]
mod roles;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgherd::clock::{self, Moment};
use pgherd::config::newest_postgres;
use serde_json::{Value, json};

const PGHERD: &str = env!("CARGO_BIN_EXE_pgherd");
const PATIENCE: Duration = Duration::from_secs(120);

type Part = (&'static str, fn());

const PARTS: &[Part] = &[
    ("restart", restart),
    ("start", start),
    ("idle", idle),
    ("log", log),
    ("stall", stall),
    ("postgres", postgres),
    ("deadman", deadman),
    ("soak", soak),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = roles::play(&args) {
        return code;
    }
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| name == wanted) {
            part();
        }
    }
    ExitCode::SUCCESS
}

// ---- the three supervisors

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pgherd,
    Supervisord,
    S6,
}

impl Kind {
    fn all() -> Vec<Self> {
        let mut kinds = vec![Self::Pgherd];
        kinds.extend(supervisord().map(|_| Self::Supervisord));
        if Command::new("s6-svscan").arg("-h").output().is_ok() {
            kinds.push(Self::S6);
        }
        kinds
    }
}

fn supervisord() -> Option<PathBuf> {
    std::env::var_os("SUPERVISORD").map(PathBuf::from)
}

fn ourselves() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

/// A supervisor with services, each of which is one of our roles.
struct Supervisor {
    dir: tempfile::TempDir,
    child: Child,
    started: Moment,
}

impl Supervisor {
    fn start(kind: Kind, services: &[(&str, Vec<String>)], out: Stdio) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = match kind {
            Kind::Pgherd => pgherd(dir.path(), services),
            Kind::Supervisord => supervisord_with(dir.path(), services),
            Kind::S6 => s6(dir.path(), services),
        };
        command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
        let started = clock::now();
        Self { child: command.spawn().unwrap(), dir, started }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The process that reads what the services print: beneath `init` with us.
    fn reader(&self, kind: Kind) -> i32 {
        match kind {
            Kind::Pgherd => children(self.pid())[0],
            Kind::Supervisord | Kind::S6 => self.pid(),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let all = descendants(self.pid());
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).ok();
        let until = clock::now() + Duration::from_secs(3);
        while self.child.try_wait().unwrap().is_none() {
            if clock::now() > until {
                self.child.kill().ok();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for pid in all {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// `DIR` in an argument is the directory of the run.
fn in_dir(dir: &Path, args: &[String]) -> Vec<String> {
    args.iter().map(|arg| arg.replace("DIR", dir.to_str().unwrap())).collect()
}

fn pgherd(dir: &Path, services: &[(&str, Vec<String>)]) -> Command {
    let unit = |(name, args): &(&str, Vec<String>)| json!({"name": name, "exec": in_dir(dir, args), "healthy_after": 0});
    list(dir, services.iter().map(unit).collect())
}

fn list(dir: &Path, units: Value) -> Command {
    fs::write(dir.join("list.json"), json!({ "units": units }).to_string()).unwrap();
    let mut command = Command::new(PGHERD);
    command.arg("supervise").arg(dir.join("list.json"));
    command
}

fn supervisord_with(dir: &Path, services: &[(&str, Vec<String>)]) -> Command {
    let here = dir.to_str().unwrap();
    let mut text =
        format!("[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={here}/pid\n");
    for (name, args) in services {
        let command = in_dir(dir, args).join(" ");
        text.push_str(&format!(
            "[program:{name}]\ncommand={command}\nautorestart=true\nstartsecs=0\nstdout_logfile=/dev/stdout\nstdout_logfile_maxbytes=0\n"
        ));
    }
    fs::write(dir.join("conf"), text).unwrap();
    let mut command = Command::new(supervisord().unwrap());
    command.arg("-c").arg(dir.join("conf"));
    command
}

fn s6(dir: &Path, services: &[(&str, Vec<String>)]) -> Command {
    for (name, args) in services {
        let service = dir.join("scan").join(name);
        fs::create_dir_all(&service).unwrap();
        let run = service.join("run");
        fs::write(&run, format!("#!/bin/sh\nexec {}\n", in_dir(dir, args).join(" "))).unwrap();
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("s6-svscan");
    command.arg(dir.join("scan"));
    command
}

// ---- helpers

fn role(words: &[&str]) -> Vec<String> {
    std::iter::once(ourselves()).chain(words.iter().map(|word| (*word).to_owned())).collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = clock::now() + PATIENCE;
    while !done() {
        assert!(clock::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
    whole.lines().map(str::to_owned).collect()
}

/// "pid nanoseconds", as the role `stamp` writes them.
fn stamps(path: &Path) -> Vec<(i32, Moment)> {
    let parse = |line: String| {
        let (pid, at) = line.split_once(' ')?;
        Some((pid.parse().ok()?, Moment(at.parse().ok()?)))
    };
    lines(path).into_iter().filter_map(parse).collect()
}

fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    texts
        .flat_map(|text| text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>())
        .collect()
}

fn descendants(pid: i32) -> Vec<i32> {
    let mut all = children(pid);
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        all.extend(children(pid));
        next += 1;
    }
    all
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn say(what: &str, kind: impl std::fmt::Debug, mut sample: Vec<Duration>) {
    sample.sort();
    let at = |percent: usize| millis(sample[(sample.len() - 1) * percent / 100]);
    println!(
        "{what:<28} {:<12} median {:8.3} ms  p99 {:8.3} ms  max {:8.3} ms  n {}",
        format!("{kind:?}"),
        at(50),
        at(99),
        at(100),
        sample.len()
    );
}

/// CPU seconds of a process so far.
fn cpu(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (words[11].parse::<f64>().unwrap() + words[12].parse::<f64>().unwrap()) / 100.0
}

fn switches(pid: i32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(Result::ok);
    let status = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let count = |text: String| -> u64 {
        let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
        lines.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
    };
    status.map(count).sum()
}

fn weight(pid: i32) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    (rss.trim().trim_end_matches(" kB").parse().unwrap(), fds)
}

// ---- the parts

fn restart() {
    for kind in Kind::all() {
        let rounds = if kind == Kind::Pgherd { 300 } else { 15 };
        let supervisor = Supervisor::start(kind, &[("a", role(&["stamp", "DIR/stamps"]))], Stdio::null());
        let file = supervisor.file("stamps");
        wait_until("the first", || stamps(&file).len() == 1);
        let mut sample = Vec::new();
        for n in 1..=rounds {
            // s6 takes a service that has just started for one that fails; so would anybody's backoff.
            std::thread::sleep(Duration::from_millis(20));
            let (pid, _) = *stamps(&file).last().unwrap();
            let killed = clock::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            wait_until("another life", || stamps(&file).len() > n);
            sample.push(stamps(&file)[n].1.since(killed));
        }
        say("restart after kill -9", kind, sample);
    }
}

fn start() {
    for kind in Kind::all() {
        let rounds = if kind == Kind::Supervisord { 5 } else { 30 };
        let (mut whole, mut since_first) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let names = ["a", "b", "c", "d"];
            let services = names.map(|name| (name, role(&["stamp", "DIR/stamps"])));
            let supervisor = Supervisor::start(kind, &services, Stdio::null());
            let file = supervisor.file("stamps");
            wait_until("all four", || stamps(&file).len() == 4);
            let last = stamps(&file).iter().map(|(_, at)| *at).max().unwrap();
            whole.push(last.since(supervisor.started));
            if kind == Kind::Pgherd {
                since_first.push(last.since(began(supervisor.reader(kind))));
            }
        }
        say("start of four, from exec", kind, whole);
        if kind == Kind::Pgherd {
            say("start of four, node up", kind, since_first);
        }
    }
}

/// When a process was forked, to a hundredth of a second (the kernel does not say more).
fn began(pid: i32) -> Moment {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    Moment(words[19].parse::<u64>().unwrap() * 10_000_000)
}

fn idle() {
    const WATCHED: Duration = Duration::from_secs(20);
    for kind in Kind::all() {
        let supervisor = Supervisor::start(kind, &[("a", role(&["stamp", "DIR/stamps"]))], Stdio::null());
        wait_until("the service", || stamps(&supervisor.file("stamps")).len() == 1);
        std::thread::sleep(Duration::from_secs(2));
        let (first, reader) = (supervisor.pid(), supervisor.reader(kind));
        let before = (switches(first), switches(reader));
        std::thread::sleep(WATCHED);
        let per_second = |now: u64, then: u64| (now - then) as f64 / WATCHED.as_secs_f64();
        println!(
            "idle, wake-ups per second    {kind:?}: first process {:.2}, the one with the units {:.2}",
            per_second(switches(first), before.0),
            per_second(switches(reader), before.1)
        );
    }
}

/// Reads a pipe to its end on a thread of its own; counts bytes, and stops for as long as it is told to.
fn count(mut out: impl std::io::Read + Send + 'static) -> (Arc<AtomicU64>, Arc<AtomicU64>) {
    let (bytes, hold) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (counted, held) = (Arc::clone(&bytes), Arc::clone(&hold));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(n) = out.read(&mut buffer) {
            if n == 0 {
                break;
            }
            counted.fetch_add(n as u64, Ordering::Relaxed);
            while held.load(Ordering::Relaxed) != 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    (bytes, hold)
}

/// What the writer alone can do, with nobody between it and the reader.
fn ceiling(lines_to_write: u64, write: &str) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flood");
    let mut command = Command::new(ourselves());
    command.args(["flood", &lines_to_write.to_string(), write]).arg(&file).stdout(Stdio::piped());
    let mut writer = command.spawn().unwrap();
    let (_bytes, _hold) = count(writer.stdout.take().unwrap());
    wait_until("the writer", || lines(&file).len() == 1);
    fs::write(dir.path().join("flood.go"), "").unwrap();
    let start = clock::now();
    wait_until("its end", || lines(&file).len() == 2);
    let took = clock::now().since(start).as_secs_f64();
    writer.kill().unwrap();
    writer.wait().unwrap();
    (lines_to_write * 120) as f64 / 1e6 / took
}

fn log() {
    const LINES: u64 = 8_000_000;
    const LINE_BYTES: u64 = 120;
    for (form, write) in [("65536 bytes a write", "65536"), ("one line a write", "120")] {
        let total = if write == "120" { LINES / 8 } else { LINES };
        println!("log path, {form:<20} nobody between: {:.0} MB/s", ceiling(total, write));
    }
    for kind in Kind::all().into_iter().filter(|kind| *kind != Kind::S6) {
        for (form, write) in [("65536 bytes a write", "65536"), ("one line a write", "120")] {
            let total = if write == "120" { LINES / 8 } else { LINES };
            let args = role(&["flood", &total.to_string(), write, "DIR/flood"]);
            let mut supervisor = Supervisor::start(kind, &[("a", args)], Stdio::piped());
            let (bytes, _hold) = count(supervisor.child.stdout.take().unwrap());
            let file = supervisor.file("flood");
            wait_until("the flood", || lines(&file).len() == 1);
            let reader = supervisor.reader(kind);
            let before = cpu(reader);
            fs::write(supervisor.file("flood.go"), "").unwrap();
            let start = clock::now();
            wait_until("its end", || lines(&file).len() == 2);
            // What is on its way arrives.
            let mut last = (bytes.load(Ordering::Relaxed), clock::now());
            while clock::now().since(last.1) < Duration::from_millis(300) {
                std::thread::sleep(Duration::from_millis(5));
                let now = bytes.load(Ordering::Relaxed);
                if now != last.0 {
                    last = (now, clock::now());
                }
            }
            let took = last.1.since(start).as_secs_f64();
            let megabytes = (total * LINE_BYTES) as f64 / 1e6;
            println!(
                "log path, {form:<20} {kind:?}: {:.0} MB in, {:.0} MB out, {:.0} MB/s, {:.2} CPU s per GB",
                megabytes,
                last.0 as f64 / 1e6,
                megabytes / took,
                (cpu(reader) - before) / (megabytes / 1e3)
            );
        }
    }
}

fn stall() {
    const STALLED: Duration = Duration::from_secs(10);
    for kind in Kind::all().into_iter().filter(|kind| *kind != Kind::S6) {
        let mut supervisor =
            Supervisor::start(kind, &[("a", role(&["chatter", "DIR/chatter"]))], Stdio::piped());
        let (_bytes, hold) = count(supervisor.child.stdout.take().unwrap());
        let file = supervisor.file("chatter");
        wait_until("the service", || lines(&file).len() > 5);
        let read = lines(&file).len();
        std::thread::sleep(STALLED);
        let normal = lines(&file).len() - read;
        hold.store(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(1));
        let read = lines(&file).len();
        std::thread::sleep(STALLED);
        let stalled = lines(&file).len() - read;
        println!(
            "stalled reader               {kind:?}: a service of 10 MB/s wrote {normal} times 1 MB while read, {stalled} while stalled for {STALLED:?}"
        );
    }
}

/// A PostgreSQL under `pgherd supervise`, which logs every statement.
struct Server {
    dir: tempfile::TempDir,
    child: Child,
    hold: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

/// One of the programs of the newest PostgreSQL of this machine.
fn program(name: &str) -> Option<String> {
    let path = newest_postgres()?.join(name);
    path.exists().then(|| path.into_string())
}

fn as_postgres(args: &[&str]) -> String {
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).args(args).current_dir("/").stdin(Stdio::null());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(dir.path().join("script"), "select 1;\n").unwrap();
        let data = dir.path().join("data").to_str().unwrap().to_owned();
        as_postgres(&[&program("initdb").unwrap(), "-A", "trust", "-N", "-D", &data]);
        let postgres = program("postgres").unwrap();
        let exec = [&postgres, "-D", &data, "-h", "", "-k", &data, "-c", "log_statement=all"];
        let stop = json!([{"signal": "INT", "wait": 5}]);
        let units = json!([{"name": "postgres", "exec": exec, "user": "postgres", "stop": stop}]);
        let mut command = list(dir.path(), units);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (bytes, hold) = count(child.stdout.take().unwrap());
        let psql = program("psql").unwrap();
        let asked = || as_postgres(&[&psql, "-h", &data, "-Atc", "select 1", "postgres"]);
        wait_until("the server", || asked() == "1\n");
        Self { dir, child, hold, bytes }
    }

    fn tps(&self, seconds: &str) -> f64 {
        let path = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        let (data, script) = (path("data"), path("script"));
        let pgbench = program("pgbench").unwrap();
        let said =
            as_postgres(&[&pgbench, "-n", "-h", &data, "-c", "4", "-T", seconds, "-f", &script, "postgres"]);
        let line = said.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap_or("0 ").to_owned();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

/// Transactions with `log_statement=all`, with a reader and with a stalled one.
fn postgres() {
    const SECONDS: &str = "60";
    if program("pgbench").is_none() || !nix::unistd::Uid::effective().is_root() {
        println!("postgres: SKIPPED, it is not installed or we are not root");
        return;
    }
    let mut server = Server::start();
    let mut rates = Vec::new();
    // In this order, so that a machine that becomes busier or quieter favours neither.
    for stalled in [0, 1, 1, 0] {
        server.hold.store(stalled, Ordering::Relaxed);
        rates.push((if stalled == 0 { "read" } else { "stalled" }, server.tps(SECONDS)));
    }
    let logged = server.bytes.load(Ordering::Relaxed) as f64 / 1e6;
    println!(
        "postgres, log_statement=all  tps with a reader and with a stalled one, {SECONDS} s each: {rates:.0?} ({logged:.0} MB read)"
    );
    server.hold.store(0, Ordering::Relaxed);
    kill(Pid::from_raw(server.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    server.child.wait().unwrap();
}

/// One fence by a new `init`; what the target noted.
fn fence(mode: &str) -> (Duration, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let mut init = Command::new(ourselves());
    init.args(["init", mode]).arg(dir.path()).stdin(Stdio::null()).stderr(Stdio::null());
    let mut init = init.spawn().unwrap();
    init.wait().unwrap();
    let gone = clock::now();
    let moment = |name: &str| {
        let text = fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        text.trim().parse().map(Moment).ok()
    };
    let deadline = moment("deadline").unwrap();
    (moment("quit").map_or(Duration::ZERO, |quit| quit.since(deadline)), gone.since(deadline))
}

fn deadman() {
    let fences: Vec<_> = (0..200).map(|_| fence("plain")).collect();
    say("deadline -> SIGQUIT heard", Kind::Pgherd, fences.iter().map(|(quit, _)| *quit).collect());
    say("deadline -> everything gone", Kind::Pgherd, fences.iter().map(|(_, gone)| *gone).collect());
    let stopped: Vec<_> = (0..20).map(|_| fence("stopped")).collect();
    say("the same, a stopped child", Kind::Pgherd, stopped.iter().map(|(_, gone)| *gone).collect());
}

fn soak() {
    const RESTARTS: u64 = 10_000;
    let args = vec!["/bin/true".to_owned()];
    let mut supervisor = Supervisor::start(Kind::Pgherd, &[("a", args)], Stdio::piped());
    let mut out = supervisor.child.stdout.take().unwrap();
    let starts = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&starts);
    std::thread::spawn(move || {
        let (mut buffer, mut text) = (vec![0; 1 << 16], String::new());
        while let Ok(n) = out.read(&mut buffer) {
            if n == 0 {
                break;
            }
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
            let whole = text.rfind('\n').map_or(0, |at| at + 1);
            let seen = text[..whole].matches("started unit=a").count();
            counted.fetch_add(seen as u64, Ordering::Relaxed);
            text.drain(..whole);
        }
    });
    wait_until("the first restarts", || starts.load(Ordering::Relaxed) > 500);
    let pids = (supervisor.pid(), supervisor.reader(Kind::Pgherd));
    let before = (weight(pids.0), weight(pids.1));
    let start = clock::now();
    wait_until("the soak", || starts.load(Ordering::Relaxed) > 500 + RESTARTS);
    let took = clock::now().since(start);
    let after = (weight(pids.0), weight(pids.1));
    println!(
        "soak                         {RESTARTS} restarts in {took:.1?}: (kB, fds) of init {:?} -> {:?}, of the units' process {:?} -> {:?}",
        before.0, after.0, before.1, after.1
    );
}

/// Keeps the compiler from a warning where nothing of a file is needed but its being made.
fn touch(path: &Path) {
    File::create(path).unwrap();
}
