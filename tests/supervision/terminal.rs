//! `pgherd init -- CMD`: terminals, early and strange signals, failures while orphans churn.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use pgherd::clock;
use pgherd::process;

use super::{
    PGHERD, Running, Stage, Test, can_unshare, foreign, is_alive, lateness, ourselves, output_of, pid_in,
    read, scene, shell, signal, text, wait_until,
};

pub(super) const TESTS: &[Test] = &[
    ("t05_every_signal_is_passed_on_once", every_signal),
    ("t15_failing_execs_amid_orphans_are_only_errors", failing_execs),
    ("t20_a_terminal_can_be_read_to_its_end", terminal_end),
    ("t21_a_shell_has_job_control", job_control),
    ("t22_a_terminal_that_hangs_up_is_a_stop", hang_up),
    ("t24_an_early_term_is_kept", early_term),
    ("everything_as_an_ordinary_user", as_an_ordinary_user),
    ("t59_the_deadman_keeps_its_time_among_busy_threads", deadman_among_hogs),
];

fn every_signal() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ears");
    let mut command =
        foreign(&[ourselves().to_str().unwrap(), "probe", "ears", file.to_str().unwrap(), "SIGTERM"]);
    command.stderr(Stdio::null());
    let mut init = Running::start(command);
    wait_until("open ears", || read(&file) == "listening\n");
    // A fault that somebody else sends is a signal like any other. The last three end or stop the command.
    let others = [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGTSTP, Signal::SIGTERM];
    let about_us = [Signal::SIGCHLD, Signal::SIGTTIN, Signal::SIGTTOU];
    let mut expected = "listening\n".to_owned();
    for one in Signal::iterator().filter(|one| !others.contains(one)) {
        init.signal(one);
        if about_us.contains(&one) {
            continue;
        }
        expected.push_str(&format!("{one}\n"));
        wait_until(&format!("{one} once"), || read(&file) == expected);
    }
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
    assert_eq!(read(&file), expected + "SIGTERM\n");
}

fn failing_execs() {
    let churn = "while :; do (true &); (sleep 0.001 &); done";
    scene(
        |unit| async move {
            unit.start(shell(churn)).await.unwrap();
            for n in 0..500 {
                let error = process::spawn(&process::Command::new("x", "/nonexistent/program")).unwrap_err();
                assert_eq!(error.to_string(), "could not start /nonexistent/program", "{n}");
            }
            unit.stop(None).await;
        },
        super::Restart::Never,
    );
}

/// A terminal, by way of `script`, which makes one and leads a session on it.
pub(super) fn on_a_terminal(command: &str) -> Option<Command> {
    if Command::new("script").arg("--version").output().is_err() {
        println!("SKIPPED: script is not installed");
        return None;
    }
    let mut script = Command::new("script");
    script.args(["-qec", command, "/dev/null"]);
    Some(script)
}

fn terminal_end() {
    let Some(mut script) = on_a_terminal(&format!("{PGHERD} init -- tac")) else { return };
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut terminal = Running::start(script);
    let mut keyboard = terminal.0.stdin.take().unwrap();
    keyboard.write_all(b"one\ntwo\n\x04").unwrap();
    let mut out = terminal.0.stdout.take().unwrap();
    let mut all = String::new();
    std::io::Read::read_to_string(&mut out, &mut all).unwrap();
    assert_eq!(terminal.code(), Some(0));
    drop(keyboard);
    let printed = all.replace("\r\n", "\n");
    assert!(printed.contains("two\none\n"), "{printed:?}");
}

fn job_control() {
    let Some(mut script) =
        on_a_terminal(&format!("{PGHERD} init -- bash --norc -mc 'echo flags $-; sleep 0.01 & fg'"))
    else {
        return;
    };
    let output = output_of({
        script.stdin(Stdio::null());
        script
    });
    let said = text(&output.stdout);
    let flags = said.split_once("flags ").map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
    assert!(flags.is_some_and(|flags| flags.contains('m')), "{said}");
    assert!(!said.contains("no job control"), "{said}");
}

fn hang_up() {
    let dir = tempfile::tempdir().unwrap();
    let (ready, heard) = (dir.path().join("ready"), dir.path().join("heard"));
    let child = dir.path().join("child.sh");
    let script = format!(
        "trap 'echo HUP >> {heard}; exit 0' HUP; trap 'echo CONT >> {heard}' CONT; trap 'echo TERM >> {heard}; exit 0' TERM; \
         echo $$ > {ready}; while :; do sleep 0.02; done",
        heard = heard.display(),
        ready = ready.display()
    );
    fs::write(&child, script).unwrap();
    let Some(mut script) = on_a_terminal(&format!("exec {PGHERD} init -- sh {}", child.display())) else {
        return;
    };
    let terminal = Running::start({
        script.stdin(Stdio::null()).stdout(Stdio::null());
        script
    });
    let pid = pid_in(&ready);
    assert_eq!(read(&heard), "", "nothing of the hand-over is passed on");
    terminal.signal(Signal::SIGKILL);
    wait_until("the end of the child", || !is_alive(pid));
    assert!(read(&heard).starts_with("HUP"), "{}", read(&heard));
}

/// How many of so many SIGTERMs are lost that come so long after the exec of PID 1.
fn lost_after(delay: Duration, tries: usize) -> usize {
    let mut lost = 0;
    for _ in 0..tries {
        let mut command = super::unshare();
        command.args([PGHERD, "init", "--", "sleep", "1000"]);
        let mut unshare = Running::start(command);
        let mut pid_1 = None;
        let start = clock::now();
        while pid_1.is_none() && clock::now().since(start) < Duration::from_secs(10) {
            let us = unshare.pid();
            let child: Option<i32> =
                read(Path::new(&format!("/proc/{us}/task/{us}/children"))).trim().parse().ok();
            pid_1 = child.filter(|pid| {
                fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(PGHERD))
            });
        }
        let start = clock::now();
        while clock::now().since(start) < delay {
            std::hint::spin_loop();
        }
        kill(Pid::from_raw(pid_1.unwrap()), Signal::SIGTERM).unwrap();
        let start = clock::now();
        let mut ended = false;
        while !ended && clock::now().since(start) < Duration::from_secs(1) {
            ended = unshare.0.try_wait().unwrap().is_some();
            std::thread::sleep(Duration::from_millis(1));
        }
        lost += usize::from(!ended);
    }
    lost
}

fn early_term() {
    if !can_unshare() {
        return;
    }
    for micros in [0, 200, 500, 1000, 2000, 4000, 8000] {
        let lost = lost_after(Duration::from_micros(micros), 3);
        println!("{lost} of 3 lost {micros} us after exec");
    }
    // The dynamic loader of an unoptimised binary has done its work by then.
    assert_eq!(lost_after(Duration::from_millis(50), 3), 0);
}

/// What runs the rest of its command line as somebody who is not root; `None` where such a one may not execute this build.
pub(super) fn as_nobody() -> Option<Command> {
    let mut command = Command::new("setpriv");
    if !Uid::effective().is_root() {
        return Some(command);
    }
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    command.args(nobody);
    let may = Command::new("setpriv").args(nobody).arg(PGHERD).arg("version").output();
    may.is_ok_and(|output| output.status.success()).then_some(command)
}

/// All of it once more, without being root: the same binary.
fn as_an_ordinary_user() {
    let Some(mut command) = as_nobody().filter(|_command| Uid::effective().is_root()) else {
        println!("SKIPPED: we are nobody else already, or nobody may execute this build");
        return;
    };
    command.arg(ourselves()).current_dir("/").env("HOME", "/");
    let output = output_of(command);
    assert!(output.status.success(), "{}", text(&output.stdout));
    println!("{} tests", text(&output.stdout).matches(" ... ok").count());
}

fn deadman_among_hogs() {
    let hogs: Vec<Running> = (0..6)
        .map(|_| {
            let mut hog = Command::new("/bin/sh");
            hog.args(["-c", "while :; do :; done"]);
            Running::start(hog)
        })
        .collect();
    let stage = Stage::new();
    let mut init = stage.init("init", "frozen");
    let (postgres, backend) = (stage.pid("postgres"), stage.pid("backend"));
    let late = lateness(&stage, postgres);
    println!("gone {late:?} after the deadline, beside {} busy processes", hogs.len());
    assert!(late < Duration::from_millis(700), "{late:?}");
    wait_until("the end of the backend", || !is_alive(backend));
    drop(hogs);
    stage.wait_for_life(2);
    signal(init.pid(), Signal::SIGTERM);
    init.code();
}
