//! What the supervision tests start: `init` with a fake `node`, whose fake PostgreSQL is a shell script, and a flood of lines.

#[path = "real.rs"]
mod real;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};
use pgherd::clock;
use pgherd::init::{InitOptions, RestartNode, run_node};
use pgherd::log::{self, Stream};
use pgherd::process::{self, Exit, InitLink, RunAs};
use pgherd::supervisor::{Restart, Rung, Unit, UnitSpec, UnitState};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

pub(crate) fn main(args: &[String]) -> ExitCode {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["init", role, dir] => run_node(options(role, dir)),
        ["init-once", role, dir] => {
            run_node(InitOptions { restart: RestartNode::Exit, ..options(role, dir) })
        }
        ["init-impatient", role, dir] => {
            run_node(InitOptions { silence_limit: Duration::from_millis(500), ..options(role, dir) })
        }
        ["node", role, dir] => node(role, Path::new(dir)),
        ["flood", lines, done] => flood(lines.parse().unwrap(), Path::new(done)),
        ["ears", file, last] => ears(Path::new(file), last),
        ["status"] => status(),
        ["out-of-threads"] => out_of_threads(),
        ["panic"] => panic_on_purpose(),
        _ => ExitCode::from(2),
    }
}

fn options(role: &str, dir: &str) -> InitOptions {
    let args = ["probe", "node", role, dir].map(Into::into).to_vec();
    InitOptions { program: std::env::current_exe().unwrap(), args, ..InitOptions::default() }
}

/// Writes a file as a whole, so that a reader never sees a part.
fn put(dir: &Path, name: &str, text: &str) {
    let new = dir.join(format!("{name}.new"));
    std::fs::write(&new, format!("{text}\n")).unwrap();
    std::fs::rename(&new, dir.join(name)).unwrap();
}

fn node(role: &str, dir: &Path) -> ExitCode {
    process::hide_memory();
    let link = InitLink::inherit();
    let mut lives = OpenOptions::new().create(true).append(true).open(dir.join("lives")).unwrap();
    writeln!(lives, "{}", std::process::id()).unwrap();
    put(dir, "node", &std::process::id().to_string());
    let first = std::fs::read_to_string(dir.join("lives")).unwrap().lines().count() == 1;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match role {
            "exit-3" => ExitCode::from(3),
            "exit-64" => ExitCode::from(64),
            "two-terms" => two_terms(dir).await,
            "crash" => crash(link, dir).await,
            "real-crash" => real::crash(link, dir).await,
            "real-stops" => real::stops(link, dir).await,
            "stopped-in-time" => stopped_in_time(link, dir).await,
            "disarmed" => disarmed(link, dir).await,
            "frozen" if first => frozen(link, dir).await,
            "silent" if first => serve(link, dir, Duration::from_secs(3600)).await,
            _ => serve(link, dir, Duration::from_millis(100)).await,
        }
    })
}

/// A fake PostgreSQL: it notes its signals, and its backend lives in a session of its own and ignores everything.
fn postgres(dir: &Path) -> process::Command {
    let backend = "trap \"\" TERM INT QUIT HUP; echo $$ > backend.new; mv backend.new backend; while :; do sleep 0.02; done";
    let script = format!(
        "setsid sh -c '{backend}' & trap 'echo QUIT >> signals; exit 2' QUIT; trap 'echo INT >> signals; exit 0' INT; \
         while [ ! -e backend ]; do sleep 0.01; done; echo $$ > postgres.new; mv postgres.new postgres; \
         while :; do sleep 0.02; done"
    );
    let dir = camino::Utf8PathBuf::from_path_buf(dir.to_owned()).unwrap();
    process::Command::new("postgres", "/bin/sh").args(["-c", &script]).cwd(dir).death_signal(Signal::SIGQUIT)
}

fn unit(link: InitLink, tasks: &mut JoinSet<()>) -> Unit {
    let stop = vec![Rung { signal: Signal::SIGINT, wait: Duration::from_secs(5) }];
    Unit::spawn(UnitSpec { name: "postgres", restart: Restart::Never, stop }, link, tasks)
}

/// Starts PostgreSQL and returns when it has set itself up.
async fn start(unit: &Unit, dir: &Path) -> u32 {
    for name in ["postgres", "backend"] {
        std::fs::remove_file(dir.join(name)).ok();
    }
    let pid = unit.start(postgres(dir)).await.unwrap();
    until_there(&dir.join("postgres")).await;
    pid
}

async fn until_there(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A `node` that works: beats, and stops everything on SIGTERM.
async fn serve(link: InitLink, dir: &Path, beat_every: Duration) -> ExitCode {
    let mut term = signal(SignalKind::terminate()).unwrap();
    process::hear_requests();
    let mut tasks = JoinSet::new();
    let postgres = unit(link.clone(), &mut tasks);
    let _pid = start(&postgres, dir).await;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            () = tokio::time::sleep(beat_every) => link.beat(),
        }
    }
    postgres.stop(None).await;
    ExitCode::SUCCESS
}

async fn two_terms(dir: &Path) -> ExitCode {
    let mut term = signal(SignalKind::terminate()).unwrap();
    process::hear_requests();
    put(dir, "terms", "0");
    for n in 1..=2 {
        term.recv().await;
        put(dir, "terms", &n.to_string());
    }
    ExitCode::SUCCESS
}

/// Arms the deadman and is stopped, as if the machine had forgotten it.
async fn frozen(link: InitLink, dir: &Path) -> ExitCode {
    let mut tasks = JoinSet::new();
    let postgres = unit(link.clone(), &mut tasks);
    let pid = start(&postgres, dir).await;
    let deadline = clock::now() + Duration::from_millis(800);
    put(dir, "deadline", &deadline.0.to_string());
    link.arm(pid, deadline);
    raise(Signal::SIGSTOP).unwrap();
    ExitCode::FAILURE
}

/// PostgreSQL has been stopped when the deadline comes, as on a primary that lost the store.
async fn stopped_in_time(link: InitLink, dir: &Path) -> ExitCode {
    let mut term = signal(SignalKind::terminate()).unwrap();
    process::hear_requests();
    let mut tasks = JoinSet::new();
    let postgres = unit(link.clone(), &mut tasks);
    let pid = start(&postgres, dir).await;
    link.arm(pid, clock::now() + Duration::from_millis(800));
    tokio::time::sleep(Duration::from_millis(200)).await;
    postgres.stop(None).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    put(dir, "passed", "");
    term.recv().await;
    ExitCode::SUCCESS
}

async fn disarmed(link: InitLink, dir: &Path) -> ExitCode {
    let mut term = signal(SignalKind::terminate()).unwrap();
    process::hear_requests();
    let mut tasks = JoinSet::new();
    let postgres = unit(link.clone(), &mut tasks);
    let pid = start(&postgres, dir).await;
    link.arm(pid, clock::now() + Duration::from_millis(300));
    link.disarm();
    tokio::time::sleep(Duration::from_millis(600)).await;
    put(dir, "passed", "");
    term.recv().await;
    postgres.stop(None).await;
    ExitCode::SUCCESS
}

/// PostgreSQL is killed; its backend goes on. The next one may start only when it has been swept.
async fn crash(link: InitLink, dir: &Path) -> ExitCode {
    let mut tasks = JoinSet::new();
    let postgres = unit(link, &mut tasks);
    start(&postgres, dir).await;
    let mut states = postgres.state();
    let killed = clock::now();
    postgres.signal(Signal::SIGKILL);
    states.mark_unchanged();
    states.changed().await.unwrap();
    let draining = *states.borrow_and_update();
    states.changed().await.unwrap();
    let down = *states.borrow_and_update();
    put(dir, "gate", &clock::now().since(killed).as_millis().to_string());
    let last = Exit::Signal(9);
    let right = (draining, down) == (UnitState::Draining { last }, UnitState::Down { last: Some(last) });
    eprintln!("{draining:?}, then {down:?}");
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Notes every signal in a file; ends after one of this name.
fn ears(file: &Path, last: &str) -> ExitCode {
    let all = SigSet::all();
    all.thread_block().unwrap();
    let mut notes = OpenOptions::new().create(true).append(true).open(file).unwrap();
    writeln!(notes, "listening").unwrap();
    loop {
        let signal = all.wait().unwrap();
        writeln!(notes, "{signal}").unwrap();
        if signal.as_str() == last {
            return ExitCode::SUCCESS;
        }
    }
}

/// The kernel grants this account no process and no thread more: what needs a thread of the runtime's must get one all the same.
fn out_of_threads() -> ExitCode {
    let runtime = process::runtime().unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
    setrlimit(Resource::RLIMIT_NPROC, 1, hard).unwrap();
    std::thread::Builder::new().spawn(|| {}).expect_err("the limit holds");
    let looked = runtime.block_on(async {
        process::spawn(&process::Command::new("x", "/bin/true")).expect_err("no process either");
        (tokio::fs::metadata("/").await, tokio::net::lookup_host("localhost:1").await.map(|_| ()))
    });
    eprintln!("{looked:?}");
    if matches!(looked, (Ok(_), Ok(()))) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn panic_on_purpose() -> ExitCode {
    let layout = log::Layout::default();
    let config = log::Config { format: log::Format::Json, level: "info".to_owned(), layout, files: None };
    let _guard = log::install(&config).unwrap();
    panic!("on purpose");
}

fn flood(lines: u64, done: &Path) -> ExitCode {
    let layout = log::Layout::default();
    let config = log::Config { format: log::Format::Text, level: "info".to_owned(), layout, files: None };
    let _guard = log::install(&config).unwrap();
    let padding = "x".repeat(100);
    for n in 0..lines {
        log::line("flood", Stream::Stdout, format!("line {n} {padding} end").as_bytes());
    }
    std::fs::write(done, "").unwrap();
    for n in 1.. {
        log::line("flood", Stream::Stdout, format!("last {n} end").as_bytes());
        std::thread::sleep(Duration::from_millis(50));
    }
    ExitCode::SUCCESS
}

/// What a child sees of us: run with everything wrong that a parent can get wrong.
fn status() -> ExitCode {
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTERM);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).unwrap();
    let script = "cat /proc/self/status; echo core: $(ulimit -c); env; \
        for fd in /proc/$$/fd/*; do [ -e $fd ] && open=\"$open ${fd##*/}\"; done; echo fds: $open";
    let who = RunAs::account("nobody").unwrap();
    let command = process::Command::new("status", "/bin/sh").args(["-c", script]).run_as(&who).quiet();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let output = runtime.block_on(process::run(&command, Duration::from_secs(10))).unwrap();
    println!("{}{}", output.stdout, output.stderr);
    ExitCode::SUCCESS
}
