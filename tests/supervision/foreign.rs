//! `pgherd init -- CMD` as the suites of other inits look at it: what the command inherits, what it hears, what is left of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::signal::Signal;

use super::{
    PGHERD, Running, Test, code_of, foreign, foreign_shell, is_alive, output_of, pid_in, read, text,
    wait_until,
};

pub(super) const TESTS: &[Test] = &[
    ("t05_signals_without_a_name_are_passed_on", real_time),
    ("t06_a_signal_can_be_rewritten", rewritten),
    ("t06_to_nothing_too_and_even_what_is_about_us", rewritten_oddly),
    ("t34_the_death_of_whoever_started_us_is_passed_on", parent_death),
    ("a_group_hears_what_its_leader_hears", whole_group),
    ("an_exit_code_can_be_forgiven", forgiven),
    ("the_command_has_our_input_environment_and_descriptors", inherited),
    ("a_directory_that_may_not_be_entered_is_inherited", forbidden_directory),
    ("ignored_children_are_waited_for_nevertheless", ignored_children),
    ("t23_a_command_pauses_and_goes_on_but_init_does_not_stop", pauses),
    ("who_is_orphaned_by_the_end_is_told_politely", late_orphans),
    ("a_shell_gets_its_terminal_back", terminal_back),
    ("a_command_in_the_background_leaves_the_terminal_alone", in_the_background),
    ("nonsense_on_the_command_line_is_refused", nonsense),
];

fn init(options: &[&str], command: &[&str]) -> Command {
    let mut init = Command::new(PGHERD);
    init.arg("init").args(options).arg("--").args(command).stdin(Stdio::null());
    init
}

/// A shell that has set its traps and says so in a file.
fn trapped(dir: &Path, traps: &str) -> String {
    format!("{traps}; echo $$ > {}; while :; do sleep 0.02; done", dir.join("ready").display())
}

fn real_time() {
    let dir = tempfile::tempdir().unwrap();
    let script = trapped(dir.path(), "trap 'exit 9' RTMIN+1");
    let mut init = Running::start(init(&[], &["bash", "-c", &script]));
    pid_in(&dir.path().join("ready"));
    let number = libc::SIGRTMIN() + 1;
    let sent = Command::new("kill").args([format!("-{number}"), init.pid().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(init.code(), Some(9));
}

fn rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let script = trapped(dir.path(), "trap 'exit 4' INT; trap 'exit 5' TERM");
    let mut init =
        Running::start(init(&["--rewrite", "TERM:INT", "-r", "1:15"], &["/bin/sh", "-c", &script]));
    pid_in(&dir.path().join("ready"));
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(4));
}

/// To nothing, and one that is not passed on otherwise.
fn rewritten_oddly() {
    let dir = tempfile::tempdir().unwrap();
    let script = trapped(dir.path(), "trap 'exit 4' INT; trap 'exit 5' USR1");
    let mut init = Running::start(init(&["-r", "INT:0", "-r", "TTIN:USR1"], &["/bin/sh", "-c", &script]));
    pid_in(&dir.path().join("ready"));
    init.signal(Signal::SIGINT);
    init.signal(Signal::SIGTTIN);
    assert_eq!(init.code(), Some(5));
}

fn parent_death() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("note");
    let script = trapped(dir.path(), &format!("trap 'echo USR1 > {}; exit 0' USR1", note.display()));
    let mut parent = Command::new("/bin/sh");
    parent.args(["-c", "\"$@\" & wait", "sh", PGHERD, "init", "-p", "USR1", "--", "/bin/sh", "-c", &script]);
    let parent = Running::start(parent);
    let child = pid_in(&dir.path().join("ready"));
    parent.signal(Signal::SIGKILL);
    wait_until("the signal", || read(&note) == "USR1\n");
    wait_until("the command's end", || !is_alive(child));
}

fn whole_group() {
    for (options, heard) in [(&["--group"][..], "TERM\n"), (&[], "")] {
        let dir = tempfile::tempdir().unwrap();
        let (member, note) = (dir.path().join("member"), dir.path().join("note"));
        let deaf = format!(
            "trap 'echo TERM >> {note}' TERM; echo $$ > {member}; while :; do sleep 0.02; done",
            note = note.display(),
            member = member.display()
        );
        // The leader ends by another signal, which the member does not hear.
        let leader = trapped(dir.path(), "trap 'echo > LEADER' TERM; trap 'kill -9 $!; exit 3' USR1");
        let leader = leader.replace("LEADER", dir.path().join("leader").to_str().unwrap());
        let script = format!("sh -c '{deaf2}' & {leader}", deaf2 = deaf.replace('\'', "\""));
        let mut init = Running::start(init(options, &["/bin/sh", "-c", &script]));
        pid_in(&member);
        pid_in(&dir.path().join("ready"));
        init.signal(Signal::SIGTERM);
        wait_until("the leader's ear", || dir.path().join("leader").exists());
        if !heard.is_empty() {
            wait_until("the member's ear", || read(&note) == heard);
        }
        assert_eq!(read(&note), heard);
        let leader = pid_in(&dir.path().join("ready"));
        super::signal(leader, Signal::SIGUSR1);
        assert_eq!(init.code(), Some(3));
    }
}

fn forgiven() {
    let options = ["-e", "143", "--forgive", "7"];
    for (script, code) in [("kill -TERM $$", 0), ("exit 7", 0), ("exit 8", 8)] {
        assert_eq!(code_of(init(&options, &["/bin/sh", "-c", script])), Some(code), "{script}");
    }
}

fn inherited() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "from nine\n").unwrap();
    let script = "read -r input; read -r nine <&9; n=0; for fd in /proc/$$/fd/*; do n=$((n+1)); done; echo \"$input, $nine, $MINE, $1, $n\"";
    let said = |between: &str| {
        let outer = format!("exec 9<{}; exec {between} /bin/sh -c '{script}' sh 'a  b'", file.display());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("echo typed | ({outer})")]).env("MINE", "yes");
        text(&output_of(command).stdout)
    };
    let with_us = said(&format!("{PGHERD} init --"));
    assert!(with_us.starts_with("typed, from nine, yes, a  b, "), "{with_us}");
    assert_eq!(with_us, said(""), "no descriptor more, none less");
}

/// As whoever gives up being root in root's own directory leaves it.
fn forbidden_directory() {
    let Some(nobody) = super::terminal::as_nobody() else {
        println!("SKIPPED: nobody may execute this build");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "chmod 0 . && exec \"$@\"", "sh"]).arg(nobody.get_program()).args(nobody.get_args());
    command.arg(PGHERD).args(["init", "--", "readlink", "/proc/self/cwd"]).current_dir(dir.path());
    let output = output_of(command);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(Path::new(text(&output.stdout).trim_end()), dir.path(), "{}", text(&output.stderr));
}

fn ignored_children() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("trap '' CHLD; exec {PGHERD} init -- /bin/sh -c 'exit 6'")]);
    assert_eq!(code_of(command), Some(6));
}

fn state_of(pid: i32) -> char {
    let stat = read(Path::new(&format!("/proc/{pid}/stat")));
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?')
}

fn pauses() {
    let dir = tempfile::tempdir().unwrap();
    let mut init = Running::start(foreign_shell(&trapped(dir.path(), "trap 'exit 5' USR1")));
    let child = pid_in(&dir.path().join("ready"));
    for what in [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGTSTP] {
        init.signal(what);
    }
    wait_until("the command's pause", || state_of(child) == 'T');
    assert_ne!(state_of(init.pid()), 'T');
    init.signal(Signal::SIGCONT);
    wait_until("its going on", || state_of(child) != 'T');
    init.signal(Signal::SIGUSR1);
    assert_eq!(init.code(), Some(5));
}

fn late_orphans() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let grandchild = format!(
        "trap \"echo TERM > {}; exit 0\" TERM; echo $$ > {}; while :; do sleep 0.02; done",
        at("note"),
        at("grandchild")
    );
    // The middle one is adopted first, and leaves the third to us when it dies of SIGTERM.
    let middle = format!("setsid sh -c '{grandchild}' & wait");
    fs::write(at("middle"), &middle).unwrap();
    let script = format!(
        "setsid sh {} & while [ ! -s {} ]; do sleep 0.01; done; exit 2",
        at("middle"),
        at("grandchild")
    );
    assert_eq!(code_of(foreign_shell(&script)), Some(2));
    assert_eq!(read(Path::new(&at("note"))), "TERM\n");
}

fn terminal_back() {
    let Some(mut script) = super::terminal::on_a_terminal(&format!(
        "sh -c '{PGHERD} init -- true; read -r line; echo got $line'"
    )) else {
        return;
    };
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = Running::start(script);
    let mut keyboard = shell.0.stdin.take().unwrap();
    std::io::Write::write_all(&mut keyboard, b"it\n").unwrap();
    assert_eq!(shell.code(), Some(0));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut shell.0.stdout.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("got it"), "{said:?}");
}

fn in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let up = dir.path().join("up");
    let Some(mut script) = super::terminal::on_a_terminal("bash --norc --noprofile -i") else { return };
    script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut shell = Running::start(script);
    let mut keyboard = shell.0.stdin.take().unwrap();
    let mut type_in = |line: String| std::io::Write::write_all(&mut keyboard, line.as_bytes()).unwrap();
    type_in(format!("{PGHERD} init -- sh -c 'echo $$ > {}; exec sleep 1000' &\n", up.display()));
    let child = pid_in(&up);
    // Tpgid is the eighth word of its state: the shell's own group, which is waiting for the next line.
    let stat = read(Path::new(&format!("/proc/{child}/stat")));
    let words: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split_whitespace().collect();
    let (group, foreground) = (words[2], words[5]);
    assert_ne!(group, foreground, "{stat}");
    type_in("kill %1; wait; exit 7\n".to_owned());
    assert_eq!(shell.code(), Some(7));
}

fn nonsense() {
    for options in [&["--rewrite", "TERM"][..], &["-r", "99:1"], &["-e", "256"], &["-p", "KILL"]] {
        let output = output_of(init(options, &["true"]));
        assert_eq!(output.status.code(), Some(2), "{options:?}");
    }
    // Options of a command, without one.
    let mut command = Command::new(PGHERD);
    command.args(["init", "--group"]);
    assert_eq!(code_of(command), Some(2));
    assert_eq!(code_of(foreign(&["true"])), Some(0));
}
