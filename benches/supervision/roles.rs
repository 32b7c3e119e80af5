//! What the benchmark's binary plays when it is started by a supervisor: services, and a `node` for the deadman.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, raise};
use pgherd::clock;
use pgherd::init::{InitOptions, RestartNode, run_node};
use pgherd::process::{Command, InitLink};
use pgherd::supervisor::{Restart, Unit, UnitSpec};
use tokio::task::JoinSet;

/// Plays a role, if the arguments name one.
pub(crate) fn play(args: &[String]) -> Option<ExitCode> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["stamp", file] => stamp(Path::new(file)),
        ["flood", lines, write, file] => flood(lines.parse().unwrap(), write.parse().unwrap(), file),
        ["chatter", file] => chatter(Path::new(file)),
        ["init", mode, dir] => return Some(init(mode, dir)),
        ["node", mode, dir] => node(mode, Path::new(dir)),
        ["target", dir] => target(Path::new(dir)),
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

fn append(file: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn pause() {
    SigSet::empty().suspend().ok();
}

/// Writes down when it lives, and lives on.
fn stamp(file: &Path) {
    let now = clock::now();
    append(file, &format!("{} {}\n", std::process::id(), now.0));
    pause();
}

/// Waits for the start, prints lines of 120 bytes as fast as they are taken, says so and lives on.
fn flood(lines: usize, write: usize, file: &str) {
    let line = format!("{}\n", "x".repeat(119));
    let block = line.repeat((write / 120).max(1));
    append(Path::new(file), "ready\n");
    while !Path::new(&format!("{file}.go")).exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut left = lines * 120;
    let mut out =
        std::fs::File::from(std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned().unwrap());
    while left > 0 {
        let n = left.min(block.len());
        out.write_all(&block.as_bytes()[..n]).unwrap();
        left -= n;
    }
    append(Path::new(file), "done\n");
    pause();
}

/// Prints a megabyte every tenth of a second, and notes each.
fn chatter(file: &Path) {
    let block = format!("{}\n", "x".repeat(119)).repeat(8738);
    let mut out =
        std::fs::File::from(std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned().unwrap());
    let mut due = clock::now();
    loop {
        out.write_all(block.as_bytes()).unwrap();
        append(file, "1 MB\n");
        due = due + Duration::from_millis(100);
        std::thread::sleep(clock::now().until(due));
    }
}

fn init(mode: &str, dir: &str) -> ExitCode {
    run_node(InitOptions {
        restart: RestartNode::Exit,
        program: std::env::current_exe().unwrap(),
        args: ["node", mode, dir].map(Into::into).to_vec(),
        ..InitOptions::default()
    })
}

/// Arms the deadman for its PostgreSQL, and is stopped.
fn node(mode: &str, dir: &Path) {
    let link = InitLink::inherit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let spec = UnitSpec { name: "postgres", restart: Restart::Never, stop: vec![] };
        let unit = Unit::spawn(spec, link.clone(), &mut tasks);
        let ourselves = std::env::current_exe().unwrap();
        let command =
            Command::new("postgres", ourselves.to_str().unwrap()).args(["target", dir.to_str().unwrap()]);
        let pid = unit.start(command.death_signal(Signal::SIGQUIT)).await.unwrap();
        while !dir.join("ready").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if mode == "stopped" {
            unit.signal(Signal::SIGSTOP);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let deadline = clock::now() + Duration::from_millis(30);
        append(&dir.join("deadline"), &format!("{}\n", deadline.0));
        link.arm(pid, deadline);
        raise(Signal::SIGSTOP).unwrap();
    });
}

/// Notes when SIGQUIT came.
fn target(dir: &Path) {
    let mut quit = SigSet::empty();
    quit.add(Signal::SIGQUIT);
    quit.thread_block().unwrap();
    super::touch(&dir.join("ready"));
    quit.wait().unwrap();
    let now = clock::now();
    append(&dir.join("quit"), &format!("{}\n", now.0));
}
