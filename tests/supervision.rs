//! Supervision from the outside: PID 1, the deadman, units, the log. The numbers are those of the list of black-box tests in
//! the supervision notes.
//!
//! This binary is its own helper: started as `supervision probe <mode> ...` it plays `init`, `node` or a chatty program.
//! It has no harness because a child's parent-death signal is bound to the thread that forked it: tests run one after
//! another on the main thread. An argument selects tests by a part of their name.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "test helpers")]
#![expect(clippy::disallowed_methods, reason = "tests start programs and wait for them")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a test harness")]

#[path = "supervision/foreign.rs"]
mod foreign_command;
#[path = "supervision/list.rs"]
mod list;
#[path = "supervision/probe.rs"]
mod probe;
#[path = "supervision/server.rs"]
mod server;
#[path = "supervision/terminal.rs"]
mod terminal;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use pgherd::clock::{self, Backoff};
use pgherd::process::{self, Exit, InitLink, RunAs};
use pgherd::supervisor::{Restart, Rung, Unit, UnitSpec, UnitState};
use tokio::task::JoinSet;

const PGHERD: &str = env!("CARGO_BIN_EXE_pgherd");
/// No condition in here takes longer on a machine that is merely busy.
const PATIENCE: Duration = Duration::from_secs(60);

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("t01_every_exit_code_comes_through", exit_codes),
    ("t02_a_signal_death_is_128_plus_n", signal_deaths),
    ("t03_what_cannot_be_executed_is_127_or_126", exec_failures),
    ("t05_t08_signals_are_passed_on_and_the_childs_code_is_kept", passed_on),
    ("t10_t11_nothing_survives_the_child", leftovers),
    ("t12_orphans_are_reaped_by_pid_1", orphans_of_pid_1),
    ("t13_orphans_are_reaped_by_a_subreaper", orphans_of_a_subreaper),
    ("t23_terminal_stops_do_not_stop_init", never_stopped),
    ("t33_the_death_of_pid_1_takes_everything_along", death_of_pid_1),
    ("t09_the_ladder_ends_with_sigkill_in_time", ladder_in_time),
    ("t16_every_fast_exit_is_seen", fast_exits),
    ("t17_t18_t41_a_child_sees_nothing_of_ours", clean_child),
    ("t19_a_service_starts_where_it_should", working_directory),
    ("t31_a_program_that_comes_back_is_started", program_comes_back),
    ("t39_death_is_seen_though_the_output_stays_open", death_with_open_output),
    ("t36_a_stalled_reader_blocks_nobody_and_drops_are_counted", stalled_reader),
    ("t37_a_closed_reader_is_survived", closed_reader),
    ("t48_without_threads_files_can_be_read", out_of_threads),
    ("a_panic_is_a_line_of_the_log", panic_as_a_line),
    ("t34_the_death_of_init_quits_postgres", death_of_init),
    ("t26_every_term_reaches_node_and_its_zero_is_ours", terms_reach_node),
    ("node_is_started_again_unless_it_may_not", node_restarts),
    ("the_death_of_node_quits_postgres_and_sweeps_orphans", death_of_node),
    ("t54_the_gate_opens_only_after_the_last_orphan", gate_after_orphans),
    ("t54_a_killed_postmaster_with_a_busy_backend_is_replaced", real_postgres_crash),
    ("t58_t60_the_deadman_fires_though_node_is_stopped", deadman),
    ("t58_the_deadman_kills_a_postgres_that_does_not_quit", deadman_against_a_stopped_postgres),
    ("t58_the_deadman_works_as_pid_1", deadman_as_pid_1),
    ("a_disarmed_deadman_stays_quiet", disarmed_deadman),
    ("a_deadline_without_postgres_leaves_a_living_node_alone", nothing_to_stop),
    ("a_silent_node_is_replaced", silent_node),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("probe", rest)) = args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return probe::main(rest);
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let mut failed: Vec<&str> = Vec::new();
    let all = TESTS
        .iter()
        .chain(foreign_command::TESTS)
        .chain(terminal::TESTS)
        .chain(server::TESTS)
        .chain(list::TESTS);
    for (name, test) in all.filter(|(name, _)| wanted(name)) {
        let start = clock::now();
        let outcome = std::panic::catch_unwind(test);
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({:?})", clock::now().since(start));
        failed.extend(outcome.is_err().then_some(*name));
    }
    println!("{} failed: {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

// ---- helpers

fn ourselves() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn probe_command(args: &[&str]) -> Command {
    let mut command = Command::new(ourselves());
    command.arg("probe").args(args).stdin(Stdio::null());
    command
}

fn foreign(command: &[&str]) -> Command {
    let mut init = Command::new(PGHERD);
    init.args(["init", "--"]).args(command).stdin(Stdio::null());
    init
}

fn foreign_shell(script: &str) -> Command {
    foreign(&["/bin/sh", "-c", script])
}

/// In a PID namespace of its own, as PID 1.
fn as_pid_1(script: &str) -> Command {
    let mut command = unshare();
    command.args([PGHERD, "init", "--", "/bin/sh", "-c", script]);
    command.stdin(Stdio::null());
    command
}

/// What makes the next word of a command PID 1. An ordinary user needs a user namespace for it.
fn unshare_words() -> Vec<&'static str> {
    let mut words = vec!["unshare", "-pf", "--kill-child", "--mount-proc"];
    if !Uid::effective().is_root() {
        words.insert(1, "-Ur");
    }
    words
}

fn unshare() -> Command {
    let words = unshare_words();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

fn can_unshare() -> bool {
    let can = unshare().arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !can {
        println!("SKIPPED: no PID namespaces here");
    }
    can
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = clock::now() + PATIENCE;
    while !done() {
        assert!(clock::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn pid_in(path: &Path) -> i32 {
    wait_until(&format!("a pid in {path:?}"), || read(path).ends_with('\n'));
    read(path).trim().parse().unwrap()
}

fn is_alive(pid: i32) -> bool {
    let stat = read(Path::new(&format!("/proc/{pid}/stat")));
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A program of ours which must not outlive its test.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }
    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
    fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }
    fn code(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the end of a program", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn code_of(mut command: Command) -> Option<i32> {
    command.status().unwrap().code()
}

fn output_of(mut command: Command) -> Output {
    command.output().unwrap()
}

/// Runs a scene with units on a runtime like `node`'s: one thread, this one.
fn scene<F: Future<Output = ()>>(play: impl FnOnce(Unit) -> F, restart: Restart) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let stop = vec![Rung { signal: Signal::SIGTERM, wait: Duration::from_secs(1) }];
        let spec = UnitSpec { name: "scene", restart, stop };
        let unit = Unit::spawn(spec, InitLink::dead(), &mut tasks);
        tokio::time::timeout(PATIENCE, play(unit)).await.unwrap();
        tasks.shutdown().await;
    });
}

fn shell(script: &str) -> process::Command {
    process::Command::new("scene", "/bin/sh").args(["-c", script])
}

async fn reach(unit: &Unit, wanted: impl FnMut(&UnitState) -> bool) -> UnitState {
    *unit.state().wait_for(wanted).await.unwrap()
}

fn is_down(state: &UnitState) -> bool {
    matches!(state, UnitState::Down { .. })
}

const QUICKLY: Restart = Restart::Always {
    backoff: Backoff { base: Duration::from_millis(1), cap: Duration::from_millis(2) },
    healthy_after: Duration::from_secs(60),
};

// ---- pgherd init -- COMMAND

fn exit_codes() {
    for code in 0..=255 {
        assert_eq!(code_of(foreign_shell(&format!("exit {code}"))), Some(code));
    }
}

fn signal_deaths() {
    for (name, number) in [("TERM", 15), ("HUP", 1), ("QUIT", 3), ("KILL", 9), ("SEGV", 11)] {
        assert_eq!(code_of(foreign_shell(&format!("kill -{name} $$"))), Some(128 + number), "{name}");
    }
}

fn exec_failures() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "no program").unwrap();
    for (file, code) in [("/nonexistent/x", 127), (plain.to_str().unwrap(), 126)] {
        let output = output_of(foreign(&[file]));
        assert_eq!(output.status.code(), Some(code));
        assert!(text(&output.stderr).contains(file), "{}", text(&output.stderr));
    }
}

fn passed_on() {
    for name in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let short = name.as_str().trim_start_matches("SIG");
        let script = format!(
            "trap 'sleep 0.1; exit 7' {short}; echo $$ > {}; while :; do sleep 0.02; done",
            ready.display()
        );
        let mut init = Running::start(foreign_shell(&script));
        pid_in(&ready);
        init.signal(name);
        assert_eq!(init.code(), Some(7), "{name}");
    }
}

fn leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let (same, own) = (dir.path().join("same"), dir.path().join("own"));
    let stubborn = "trap \"\" TERM INT HUP; while :; do sleep 0.05; done";
    let script = format!(
        "sh -c 'echo $$ > {same}; {stubborn}' & setsid sh -c 'echo $$ > {own}; {stubborn}' & trap 'exit 3' TERM; while :; do sleep 0.02; done",
        same = same.display(),
        own = own.display(),
    );
    let mut init = Running::start(foreign_shell(&script));
    let pids = [pid_in(&same), pid_in(&own)];
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(3));
    for pid in pids {
        assert!(!is_alive(pid), "{pid} survived");
    }
}

/// Leaves a thousand orphans behind, waits until they are gone, counts what is left of them.
const ORPHANS: &str = "i=0; while [ $i -lt 1000 ]; do (sleep 0.01 &) ; i=$((i+1)); done; \
    n=0; while [ $n -lt 500 ]; do z=$(grep -ls '^State:.Z' /proc/[0-9]*/status | while read f; do \
    grep -l \"^PPid:.$PPID$\" $f; done | wc -l); l=$(tr ' ' '\\n' < /proc/$PPID/task/$PPID/children | grep -c .); \
    [ $z = 0 ] && [ $l = 1 ] && exit 42; n=$((n+1)); sleep 0.02; done; echo $z zombies, $l children; exit 1";

fn orphans_of_pid_1() {
    if can_unshare() {
        assert_eq!(code_of(as_pid_1(ORPHANS)), Some(42));
    }
}

fn orphans_of_a_subreaper() {
    assert_eq!(code_of(foreign_shell(ORPHANS)), Some(42));
}

fn never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let script = format!("trap 'exit 5' USR1; echo $$ > {}; while :; do sleep 0.02; done", ready.display());
    let mut init = Running::start(foreign_shell(&script));
    pid_in(&ready);
    for what in [Signal::SIGTTIN, Signal::SIGTTOU] {
        init.signal(what);
    }
    // A stopped or dead init would not pass this on.
    init.signal(Signal::SIGUSR1);
    assert_eq!(init.code(), Some(5));
}

fn death_of_pid_1() {
    if !can_unshare() {
        return;
    }
    // Our stdout pipe is held by everybody in the namespace: its end means that nobody is left.
    let script = "i=0; while [ $i -lt 100 ]; do setsid sleep 1000 & i=$((i+1)); done; echo ready; sleep 1000";
    let mut command = as_pid_1(script);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = Running::start(command);
    let mut out = running.0.stdout.take().unwrap();
    out.read_exact(&mut [0; 6]).unwrap();
    let pid_1 = only_child(running.pid());
    let start = clock::now();
    signal(pid_1, Signal::SIGKILL);
    out.read_to_end(&mut Vec::new()).unwrap();
    let took = clock::now().since(start);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

// ---- units

/// A shell command that leaves a descendant in a session of its own behind, whose pid it writes.
fn orphan(pid_file: &Path) -> String {
    format!("setsid sh -c 'echo $$ > {}; exec sleep 1000' &", pid_file.display())
}

fn ladder_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("orphan");
    let script =
        format!("trap '' TERM; {} while [ ! -s {} ]; do sleep 0.01; done", orphan(&file), file.display());
    let script = format!("{script}; echo deaf; while :; do sleep 0.02; done");
    let play = |unit: Unit| async move {
        unit.start(shell(&script)).await.unwrap();
        while unit.last_lines() != ["deaf"] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let start = clock::now();
        let watch_it = async {
            let state = reach(&unit, |state| matches!(state, UnitState::Draining { .. })).await;
            let took = clock::now().since(start);
            assert!(took >= Duration::from_secs(1) && took < Duration::from_millis(1500), "{took:?}");
            assert_eq!(state, UnitState::Draining { last: Exit::Signal(9) });
            let error = unit.start(shell("true")).await.unwrap_err();
            assert_eq!(error.to_string(), "scene is still draining");
            // There is no init in this scene: the orphan is ours to kill.
            signal(pid_in(&file), Signal::SIGKILL);
        };
        let (exit, ()) = tokio::join!(unit.stop(None), watch_it);
        assert_eq!(exit, Some(Exit::Signal(9)));
    };
    scene(play, Restart::Never);
}

fn fast_exits() {
    scene(
        |unit| async move {
            for n in 0..300 {
                unit.start(process::Command::new("scene", "/bin/true")).await.unwrap();
                let state = reach(&unit, is_down).await;
                assert_eq!(state, UnitState::Down { last: Some(Exit::Code(0)) }, "{n}");
            }
        },
        Restart::Never,
    );
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    scene(
        |unit| async move {
            unit.start(shell(&format!("echo x >> {}; exit 1", count.display()))).await.unwrap();
            while read(&count).len() < 100 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            unit.stop(None).await;
            let n = read(&count).len();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(read(&count).len(), n, "nothing starts after a stop");
        },
        QUICKLY,
    );
}

fn clean_child() {
    // Our helper is started with HUP ignored, TERM blocked (by the probe itself) and a stray descriptor.
    let script =
        format!("trap '' HUP; exec 9</dev/null; umask 022; exec {} probe status", ourselves().display());
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).env("SECRET_OF_OURS", "hush");
    let report = text(&output_of(command).stdout);
    let field =
        |name: &str| report.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("SigBlk:"), "0000000000000000");
    assert_eq!(field("SigIgn:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Umask:"), "0077");
    assert_eq!(field("core:"), "0");
    assert!(!report.contains("SECRET_OF_OURS") && !report.contains("hush"), "{report}");
    let fds = field("fds:");
    let n_fds = fds.split_whitespace().count();
    assert!(
        n_fds == 4 && !fds.split_whitespace().any(|fd| fd == "9"),
        "0, 1, 2 and the liveness pipe: {fds}"
    );
    if Uid::effective().is_root() {
        let RunAs::Account(nobody) = RunAs::account("nobody").unwrap() else { panic!("we are root") };
        assert_eq!(field("Uid:"), format!("{0}\t{0}\t{0}\t{0}", nobody.uid));
        assert_eq!(field("Gid:"), format!("{0}\t{0}\t{0}\t{0}", nobody.gid));
        let groups: Vec<u32> = field("Groups:").split_whitespace().map(|gid| gid.parse().unwrap()).collect();
        assert_eq!(groups, nobody.groups);
        assert_eq!(field("CapEff:"), "0000000000000000");
    }
}

fn working_directory() {
    let dir = tempfile::tempdir().unwrap();
    let here = fs::canonicalize(dir.path()).unwrap();
    let path = camino::Utf8PathBuf::from_path_buf(here.clone()).unwrap();
    scene(
        |unit| async move {
            unit.start(shell("pwd").cwd(path.clone())).await.unwrap();
            reach(&unit, is_down).await;
            assert_eq!(unit.last_lines(), [path.as_str()]);
        },
        Restart::Never,
    );
    let ready = here.join("ready");
    // The command may look at once where `init` is.
    let look = "readlink /proc/$PPID/cwd /proc/$$/cwd";
    let mut command = foreign_shell(&format!("{look} > {}.cwd", ready.display()));
    command.current_dir(&here);
    assert_eq!(code_of(command), Some(0));
    assert_eq!(read(&here.join("ready.cwd")), format!("/\n{}\n", here.display()));
}

fn program_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    let mark = dir.path().join("mark");
    let write = |script: &str| {
        let new = dir.path().join("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &program).unwrap();
    };
    write(&format!("rm {}; exit 1", program.display()));
    let path = camino::Utf8PathBuf::from_path_buf(program.clone()).unwrap();
    scene(
        |unit| async move {
            unit.start(process::Command::new("scene", path)).await.unwrap();
            let missing =
                |state: &UnitState| matches!(state, UnitState::Backoff { last: Exit::Code(127), .. });
            reach(&unit, missing).await;
            write(&format!("echo here > {}; exec sleep 1000", mark.display()));
            while read(&mark).is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(matches!(*unit.state().borrow(), UnitState::Running { .. }));
            assert_eq!(unit.stop(None).await, Some(Exit::Signal(15)));
            assert_eq!(unit.stop(None).await, None);
        },
        QUICKLY,
    );
}

fn death_with_open_output() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("orphan");
    scene(
        |unit| async move {
            // It closes its output and lives on.
            let pid = unit.start(shell("exec >/dev/null 2>&1; exec sleep 1000")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(matches!(*unit.state().borrow(), UnitState::Running { .. }));
            let start = clock::now();
            signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
            reach(&unit, is_down).await;
            assert!(clock::now().since(start) < Duration::from_millis(500));
            // A grandchild in a session of its own keeps it open.
            let script = orphan(&file);
            let ready = format!("while [ ! -s {} ]; do sleep 0.01; done; kill -9 $$", file.display());
            unit.start(shell(&format!("{script} {ready}"))).await.unwrap();
            let state = reach(&unit, |state| matches!(state, UnitState::Draining { .. })).await;
            assert_eq!(state, UnitState::Draining { last: Exit::Signal(9) });
            signal(pid_in(&file), Signal::SIGKILL);
            reach(&unit, is_down).await;
        },
        Restart::Never,
    );
}

// ---- the log

fn stalled_reader() {
    const LINES: u64 = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let mut command = probe_command(&["flood", &LINES.to_string(), done.to_str().unwrap()]);
    command.stdout(Stdio::piped());
    let mut flood = Running::start(command);
    // Nobody reads, and yet everything has been logged.
    wait_until("the end of the flood", || done.exists());
    let mut out = flood.0.stdout.take().unwrap();
    let mut all = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    // After the flood come numbered last lines, some of which are dropped too. When one is here, so is every report of what
    // was dropped before it.
    let last: u64 = loop {
        let tail = text(&all[all.len().saturating_sub(200)..]);
        let whole = tail.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
        if let Some(n) =
            whole.rsplit_once(" flood| last ").and_then(|(_, rest)| rest.strip_suffix(" end")?.parse().ok())
        {
            break n;
        }
        let n = out.read(&mut chunk).unwrap();
        assert!(n > 0, "the log ended early");
        all.extend_from_slice(&chunk[..n]);
    };
    let all = text(&all);
    let seen = all.lines().filter(|line| line.contains(" flood| l") && line.ends_with("end")).count() as u64;
    let dropped: u64 = all
        .lines()
        .filter_map(|line| line.split_once("dropped=")?.1.split_once(" lines")?.0.parse::<u64>().ok())
        .sum();
    assert!(dropped > 0, "{seen} lines fitted");
    assert_eq!(seen + dropped, LINES + last, "{last} last lines");
}

fn closed_reader() {
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let mut command = probe_command(&["flood", "1000", done.to_str().unwrap()]);
    command.stdout(Stdio::piped());
    let mut flood = Running::start(command);
    drop(flood.0.stdout.take());
    wait_until("the end of the flood", || done.exists());
    assert_eq!(flood.0.try_wait().unwrap(), None, "it lives on");
}

/// As an account that has no other process: its limit is ours.
fn out_of_threads() {
    let mut command = Command::new("setpriv");
    if Uid::effective().is_root() {
        command.args(["--reuid=54321", "--regid=54321", "--clear-groups"]);
    }
    command.arg(ourselves()).args(["probe", "out-of-threads"]).stdin(Stdio::null());
    let output = output_of(command);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

fn panic_as_a_line() {
    let output = output_of(probe_command(&["panic"]));
    let said = text(&output.stderr);
    let line: serde_json::Value = serde_json::from_str(said.trim()).expect(&said);
    assert!(line["message"].as_str().unwrap().contains("on purpose"), "{said}");
    assert_eq!(line["service"], "pgherd");
}

// ---- pgherd init, with a node

/// A scene with `init`, a `node` of the probe's and a fake PostgreSQL, which all write into one directory.
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
    fn init(&self, mode: &str, role: &str) -> Running {
        let mut command = probe_command(&[mode, role, self.dir.path().to_str().unwrap()]);
        // Its end must not end us, and its Ctrl-C is not ours.
        command.process_group(0);
        Running::start(command)
    }
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn pid(&self, name: &str) -> i32 {
        pid_in(&self.file(name))
    }
    fn wait_for_life(&self, n: usize) {
        wait_until(&format!("life {n} of node"), || read(&self.file("lives")).lines().count() >= n);
    }
}

fn death_of_init() {
    let stage = Stage::new();
    let init = stage.init("init", "primary");
    let postgres = stage.pid("postgres");
    init.signal(Signal::SIGKILL);
    wait_until("postgres gone", || !is_alive(postgres));
    assert_eq!(read(&stage.file("signals")), "QUIT\n");
    kill_left(&[stage.pid("backend")]);
}

fn kill_left(pids: &[i32]) {
    for pid in pids {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
    }
}

fn terms_reach_node() {
    let stage = Stage::new();
    let mut init = stage.init("init", "two-terms");
    wait_until("node's ears", || read(&stage.file("terms")) == "0\n");
    init.signal(Signal::SIGTERM);
    wait_until("the first term", || read(&stage.file("terms")) == "1\n");
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
    assert_eq!(read(&stage.file("lives")).lines().count(), 1);
}

fn node_restarts() {
    let stage = Stage::new();
    let mut init = stage.init("init", "exit-3");
    stage.wait_for_life(3);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(3), "a stop in a life too short to hear it");
    let stage = Stage::new();
    assert_eq!(stage.init("init", "exit-64").code(), Some(64), "a configuration error");
    let stage = Stage::new();
    assert_eq!(stage.init("init-once", "exit-3").code(), Some(3), "RESTART_NODE=false");
}

fn death_of_node() {
    let stage = Stage::new();
    let mut init = stage.init("init", "primary");
    let (postgres, backend) = (stage.pid("postgres"), stage.pid("backend"));
    let node = stage.pid("node");
    let start = clock::now();
    signal(node, Signal::SIGKILL);
    wait_until("everything gone", || !is_alive(postgres) && !is_alive(backend));
    let took = clock::now().since(start);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(read(&stage.file("signals")).starts_with("QUIT\n"));
    stage.wait_for_life(2);
    init.signal(Signal::SIGTERM);
    init.code();
    assert!(!is_alive(stage.pid("postgres")) && !is_alive(stage.pid("backend")));
}

fn gate_after_orphans() {
    let stage = Stage::new();
    let mut init = stage.init("init-once", "crash");
    assert_eq!(init.code(), Some(0), "see the probe's assertions above");
    assert!(!is_alive(stage.pid("backend")));
    let millis: u64 = read(&stage.file("gate")).trim().parse().unwrap();
    assert!(millis < 1000, "the gate opened after {millis} ms");
}

fn real_postgres_crash() {
    if !server::has_postgres() {
        return;
    }
    let stage = Stage::new();
    fs::set_permissions(stage.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let code = stage.init("init-once", "real-crash").code();
    assert_eq!(code, Some(0), "{}", read(&stage.file("log")));
    let millis = |name: &str| read(&stage.file(name)).trim().parse::<u64>().unwrap();
    println!("gate open after {} ms, writable after {} ms", millis("gate"), millis("writable"));
    assert!(millis("gate") < 1000);
}

/// How long after the armed deadline the process was gone.
fn lateness(stage: &Stage, pid: i32) -> Duration {
    wait_until("the end of postgres", || !is_alive(pid));
    let now = clock::now();
    let deadline: u64 = read(&stage.file("deadline")).trim().parse().unwrap();
    assert!(now.0 >= deadline, "too early");
    now.since(clock::Moment(deadline))
}

fn deadman() {
    let stage = Stage::new();
    let mut init = stage.init("init", "frozen");
    let (postgres, backend) = (stage.pid("postgres"), stage.pid("backend"));
    let late = lateness(&stage, postgres);
    assert!(late < Duration::from_millis(250), "{late:?}");
    assert_eq!(read(&stage.file("signals")), "QUIT\n");
    wait_until("the end of the backend", || !is_alive(backend));
    stage.wait_for_life(2);
    init.signal(Signal::SIGTERM);
    init.code();
}

fn deadman_against_a_stopped_postgres() {
    let stage = Stage::new();
    let mut init = stage.init("init", "frozen");
    let (postgres, backend) = (stage.pid("postgres"), stage.pid("backend"));
    signal(postgres, Signal::SIGSTOP);
    signal(backend, Signal::SIGSTOP);
    let late = lateness(&stage, postgres);
    assert!(late >= Duration::from_millis(290) && late < Duration::from_millis(800), "{late:?}");
    wait_until("the end of the backend", || !is_alive(backend));
    stage.wait_for_life(2);
    init.signal(Signal::SIGTERM);
    init.code();
}

fn only_child(pid: i32) -> i32 {
    read(Path::new(&format!("/proc/{pid}/task/{pid}/children"))).trim().parse().unwrap()
}

fn deadman_as_pid_1() {
    if !can_unshare() {
        return;
    }
    let stage = Stage::new();
    let mut command = unshare();
    command.arg(ourselves());
    command.args(["probe", "init", "frozen"]).arg(stage.dir.path()).stdin(Stdio::null());
    let mut unshare = Running::start(command);
    stage.wait_for_life(2);
    assert_eq!(read(&stage.file("signals")), "QUIT\n");
    // The second life has a PostgreSQL of its own.
    wait_until("another postgres", || {
        read(&stage.file("lives"))
            .lines()
            .last()
            .is_some_and(|node| stage.file("postgres").exists() && read(&stage.file("node")).trim() == node)
    });
    signal(only_child(unshare.pid()), Signal::SIGTERM);
    assert!(matches!(unshare.code(), Some(0 | 143)));
}

fn disarmed_deadman() {
    let stage = Stage::new();
    let mut init = stage.init("init", "disarmed");
    let postgres = stage.pid("postgres");
    wait_until("the deadline's passing", || stage.file("passed").exists());
    assert!(is_alive(postgres));
    assert_eq!(read(&stage.file("lives")).lines().count(), 1);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
}

fn nothing_to_stop() {
    let stage = Stage::new();
    let mut init = stage.init("init", "stopped-in-time");
    wait_until("the deadline's passing", || stage.file("passed").exists());
    assert_eq!(read(&stage.file("lives")).lines().count(), 1);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
}

fn silent_node() {
    let stage = Stage::new();
    let mut init = stage.init("init-impatient", "silent");
    let postgres = stage.pid("postgres");
    stage.wait_for_life(2);
    assert!(!is_alive(postgres));
    init.signal(Signal::SIGTERM);
    init.code();
}
