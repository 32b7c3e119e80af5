//! `pgherd supervise FILE`: order, readiness, restarts, stops, limits, the log, idleness, a soak.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Uid;
use pgherd::clock;
use serde_json::{Value, json};

use super::{
    PGHERD, Running, Test, can_unshare, is_alive, ourselves, output_of, pid_in, read, signal, text,
    wait_until,
};

pub(super) const TESTS: &[Test] = &[
    ("t01_t02_t03_a_list_ends_with_its_services_code", codes),
    ("t04_a_wrong_list_is_refused_and_explained", wrong_lists),
    ("t06_t07_every_stop_signal_arrives_and_no_other", stop_signals),
    ("t08_t09_a_stop_waits_as_long_as_it_must_and_no_longer", stop_in_time),
    ("t12_t13_every_end_is_told_rightly_amid_orphans", ends_amid_orphans),
    ("t11_what_does_not_die_is_reported_and_left_behind", undying),
    ("t14_beneath_another_init_orphans_are_ours", beneath_tini),
    ("t22_a_terminal_that_hangs_up_stops_a_list", hang_up),
    ("t24_t25_requests_before_anybody_listens_are_kept", early_requests),
    ("t25_a_stop_is_prompt_in_every_state", stop_in_every_state),
    ("t26_a_second_term_changes_nothing_and_quit_hurries", hurry),
    ("t27_stops_go_in_the_reverse_order", order),
    ("t28_a_service_waits_for_what_it_needs", readiness),
    ("t29_a_crash_loop_slows_down_shows_its_lines_and_ends", crash_loop),
    ("t30_health_forgives_earlier_crashes", forgiveness),
    ("t31_what_could_not_be_executed_is_tried_again", appears_later),
    ("t32_a_shifted_clock_changes_nothing", shifted_clock),
    ("t29_what_cannot_be_executed_is_given_up_too", never_executed),
    ("t38_hostile_output_becomes_valid_bounded_json", hostile_output),
    ("t38_what_goes_wrong_is_told_in_json_too", complaints_in_json),
    ("t40_lines_stay_whole_and_in_order", order_of_lines),
    ("t41_capabilities_of_ours_are_no_services", ambient_capabilities),
    ("t42_no_secret_in_any_environment_of_a_list", environments),
    ("t42_a_verb_shows_its_environment_to_nobody_of_its_account", hidden_verb),
    ("t43_limits_are_set", limits),
    ("t44_a_changed_list_moves_only_what_has_changed", changed_list),
    ("t44_services_leave_in_order_and_a_stop_takes_the_leaving_along", leaving),
    ("t45_a_read_only_root_will_do", read_only_root),
    ("t46_an_account_without_a_name_will_do", nameless_account),
    ("t47_dying_orphans_disturb_nobody", dying_orphans),
    ("t48_without_descriptors_it_tries_again", out_of_descriptors),
    ("sigusr1_tells_the_state_of_every_unit", state_dump),
    ("t35_t49_idle_means_idle_and_services_stay", idle),
    ("t50_two_thousand_restarts_leave_nothing_behind", soak),
];

/// A list and where it writes.
struct List {
    dir: tempfile::TempDir,
}

impl List {
    fn new(units: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let list = Self { dir };
        list.write(units);
        list
    }
    /// `DIR` in the list is the list's directory.
    fn write(&self, units: Value) {
        let text = json!({ "units": units }).to_string();
        let text = text.replace("DIR", self.dir.path().to_str().unwrap());
        fs::write(self.file("list.json"), text).unwrap();
        fs::set_permissions(self.file("list.json"), fs::Permissions::from_mode(0o644)).unwrap();
    }
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn command(&self, wrapper: &[&str]) -> Command {
        let mut words = wrapper.to_vec();
        words.extend([PGHERD, "supervise"]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(self.file("list.json")).stdin(Stdio::null());
        let log = File::create(self.file("log")).unwrap();
        command.stderr(log.try_clone().unwrap()).stdout(log);
        command
    }
    fn start(&self) -> Running {
        Running::start(self.command(&[]))
    }
    fn log(&self) -> String {
        read(&self.file("log"))
    }
    fn wait_for(&self, what: &str) {
        wait_until(&format!("{what:?} in the log"), || self.log().contains(what));
    }
}

fn sh(name: &str, script: &str) -> Value {
    json!({ "name": name, "exec": ["/bin/sh", "-c", script] })
}

fn with(mut unit: Value, more: Value) -> Value {
    unit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    unit
}

/// The process beneath `init` that runs the units.
fn units_process(init: &Running) -> i32 {
    super::only_child(init.pid())
}

fn codes() {
    let container = json!({ "restart": "exit-container" });
    let bystander = sh("bystander", "exec sleep 1000");
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 64", 64),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -SEGV $$", 139),
    ] {
        let list = List::new(json!([with(sh("a", script), container.clone()), bystander]));
        assert_eq!(list.start().code(), Some(code), "{script}: {}", list.log());
    }
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "no program").unwrap();
    for (file, code) in [("/nonexistent/x", 127), (plain.to_str().unwrap(), 126)] {
        let list = List::new(json!([with(json!({"name": "a", "exec": [file]}), container.clone())]));
        assert_eq!(list.start().code(), Some(code));
        assert!(list.log().contains(file), "{}", list.log());
    }
    // When nothing is left to do, that is the end.
    let done = json!([
        with(sh("a", "exit 0"), json!({"restart": "on-failure"})),
        with(sh("b", "exit 9"), json!({"restart": "never"}))
    ]);
    assert_eq!(List::new(done).start().code(), Some(9));
}

fn wrong_lists() {
    let list = List::new(json!([{"name": "a", "exec": ["/bin/true"], "colour": 1}]));
    assert_eq!(list.start().code(), Some(64));
    assert!(list.log().contains("unknown field `colour`"), "{}", list.log());
    let output = output_of({
        let mut command = Command::new(PGHERD);
        command.args(["supervise", "/nonexistent/list"]);
        command
    });
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nonexistent/list"));
    for (args, code, on_stdout) in [
        (&["--help"][..], 0, true),
        (&["--version"], 0, true),
        (&["version"], 0, true),
        (&[], 0, true),
        (&["--nonsense"], 2, false),
        (&["nonsense"], 2, false),
        (&["supervise"], 2, false),
    ] {
        let output = output_of({
            let mut command = Command::new(PGHERD);
            command.args(args);
            command
        });
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let (said, silent) =
            if on_stdout { (&output.stdout, &output.stderr) } else { (&output.stderr, &output.stdout) };
        assert!(!said.is_empty() && silent.is_empty(), "{args:?}");
    }
}

/// A program that notes every signal it gets in a file, and ends after this one.
fn ears(name: &str, last: &str) -> Value {
    let ourselves = ourselves();
    json!({ "name": name, "exec": [ourselves, "probe", "ears", format!("DIR/{name}"), last] })
}

fn stop_signals() {
    let all: Vec<Signal> =
        Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)).collect();
    assert!(all.len() >= 28);
    let unit = |s: &Signal| {
        let stop = json!({ "stop": [{"signal": s.as_str(), "wait": 20}] });
        with(ears(s.as_str(), s.as_str()), stop)
    };
    let list = List::new(all.iter().map(unit).collect());
    let mut init = list.start();
    for one in &all {
        wait_until("open ears", || read(&list.file(one.as_str())) == "listening\n");
    }
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0), "{}", list.log());
    for one in all {
        assert_eq!(read(&list.file(one.as_str())), format!("listening\n{one}\n"));
    }
    // So many services are all init's to end, if the process that runs them dies.
    assert!(!list.log().contains("not watched"), "{}", list.log());
}

fn stop_in_time() {
    let cleaner = "trap 'sleep 1; echo clean > DIR/clean; exit 7' TERM; echo $$ > DIR/ready; while :; do sleep 0.02; done";
    let list = List::new(json!([sh("a", cleaner)]));
    let mut init = list.start();
    pid_in(&list.file("ready"));
    let start = clock::now();
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
    let took = clock::now().since(start);
    assert!(took >= Duration::from_secs(1) && took < Duration::from_millis(1600), "{took:?}");
    assert_eq!(read(&list.file("clean")), "clean\n");

    let deaf = "trap '' TERM; echo $$ > DIR/ready; while :; do sleep 0.02; done";
    let list = List::new(json!([with(sh("a", deaf), json!({"stop": [{"signal": "TERM", "wait": 1}]}))]));
    let mut init = list.start();
    pid_in(&list.file("ready"));
    let start = clock::now();
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(137));
    let took = clock::now().since(start);
    assert!(took >= Duration::from_secs(1) && took < Duration::from_millis(1500), "{took:?}");
}

/// Leaves orphans behind for as long as it lives.
const ORPHANS: &str =
    "n=0; while [ $n -lt 200 ]; do (sleep 0.01 &); n=$((n+1)); done; echo $$ > DIR/ready; exec sleep 1000";

/// Children of ours and a flood of orphans end at the same time, beneath PID 1 and beneath a subreaper.
fn ends_amid_orphans() {
    let mut wrappers = vec![vec![]];
    wrappers.extend(can_unshare().then(super::unshare_words));
    for wrapper in wrappers {
        let once = json!({"restart": "never"});
        let codes =
            (0..100).map(|n| with(sh(&format!("n{n}"), &format!("sleep 0.1; exit {n}")), once.clone()));
        let flood = "n=0; while [ $n -lt 1000 ]; do (true &); n=$((n+1)); done";
        let list = List::new(codes.chain([with(sh("flood", flood), once.clone())]).collect());
        let code = Running::start(list.command(&wrapper)).code();
        assert!(code.is_some_and(|code| code > 0), "{code:?}");
        let log = list.log();
        for n in 0..100 {
            let told = format!("the process ended unit=n{n} exit=Code({n})\n");
            assert_eq!(log.matches(&told).count(), 1, "{told}{log}");
        }
    }
}

fn beneath_tini() {
    if Command::new("tini").arg("--version").output().is_err() {
        println!("SKIPPED: tini is not installed");
        return;
    }
    let list = List::new(json!([sh("a", ORPHANS)]));
    let mut tini = Running::start(list.command(&["tini", "--"]));
    pid_in(&list.file("ready"));
    let init = super::only_child(tini.pid());
    wait_until("all orphans reaped by us", || {
        let children = read(Path::new(&format!("/proc/{init}/task/{init}/children")));
        children.split_whitespace().count() == 1
    });
    tini.signal(Signal::SIGTERM);
    assert_eq!(tini.code(), Some(0), "{}", list.log());
}

/// A frozen group of the old kind is as deaf to SIGKILL as uninterruptible IO.
struct Freezer(PathBuf);

impl Freezer {
    fn new() -> Option<Self> {
        let dir = format!("/sys/fs/cgroup/freezer/pgherd-test-{}", std::process::id());
        fs::create_dir(&dir).ok().map(|()| Self(dir.into()))
    }
    fn put(&self, what: &str, text: &str) {
        fs::write(self.0.join(what), text).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.put("freezer.state", "THAWED");
        wait_until("the end of what was frozen", || fs::remove_dir(&self.0).is_ok());
    }
}

fn undying() {
    let Some(freezer) = Freezer::new() else {
        println!("SKIPPED: no freezer here");
        return;
    };
    let rung = json!({"stop": [{"signal": "TERM", "wait": 0.2}]});
    let list = List::new(json!([
        with(sh("frozen", "echo $$ > DIR/frozen; exec sleep 1000"), rung.clone()),
        with(sh("below", "echo $$ > DIR/below; exec sleep 1000"), rung)
    ]));
    let mut init = list.start();
    let (frozen, below) = (pid_in(&list.file("frozen")), pid_in(&list.file("below")));
    freezer.put("cgroup.procs", &frozen.to_string());
    freezer.put("freezer.state", "FROZEN");
    wait_until("ice", || read(&freezer.0.join("freezer.state")) == "FROZEN\n");
    let start = clock::now();
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(137), "{}", list.log());
    let took = clock::now().since(start);
    // Two seconds for the service, its lines, init's own last look, and its leftovers each, and no end is waited for.
    assert!(took < Duration::from_secs(10), "{took:?}");
    let log = list.log();
    assert!(log.contains("something of it does not die of SIGKILL"), "{log}");
    assert!(log.contains("it is left behind unit=frozen"), "{log}");
    assert!(is_alive(frozen) && !is_alive(below));
}

fn hang_up() {
    let list = List::new(json!([sh(
        "a",
        "trap 'echo TERM > DIR/heard; exit 0' TERM; echo $$ > DIR/up; while :; do sleep 0.02; done"
    )]));
    let command = format!("exec {PGHERD} supervise {}", list.file("list.json").display());
    let Some(mut script) = super::terminal::on_a_terminal(&command) else { return };
    script.stdin(Stdio::null()).stdout(Stdio::null());
    let terminal = Running::start(script);
    let service = pid_in(&list.file("up"));
    terminal.signal(Signal::SIGKILL);
    wait_until("the end of the service", || !is_alive(service));
    assert_eq!(read(&list.file("heard")), "TERM\n");
}

fn early_requests() {
    for millis in [0, 1, 2, 4, 8, 16, 32, 64] {
        let list = List::new(json!([sh("a", "exec sleep 1000")]));
        let mut init = list.start();
        let children = format!("/proc/{0}/task/{0}/children", init.pid());
        wait_until("the process of the units", || !read(Path::new(&children)).is_empty());
        std::thread::sleep(Duration::from_millis(millis));
        for request in [Signal::SIGHUP, Signal::SIGUSR1] {
            init.signal(request);
        }
        // The dump's first word says that nobody has died of it.
        list.wait_for("unit");
        init.signal(Signal::SIGTERM);
        assert_eq!(init.code(), Some(0), "after {millis} ms: {}", list.log());
        let list = List::new(json!([sh("a", "exec sleep 1000")]));
        let mut init = list.start();
        let children = format!("/proc/{0}/task/{0}/children", init.pid());
        wait_until("the process of the units", || !read(Path::new(&children)).is_empty());
        std::thread::sleep(Duration::from_millis(millis));
        init.signal(Signal::SIGTERM);
        assert_eq!(init.code(), Some(0), "after {millis} ms: {}", list.log());
    }
}

fn stop_in_every_state() {
    let sleeper = "echo $$ > DIR/started; exec sleep 1000";
    let never = json!({"ready": {"file": "/nonexistent"}});
    let waits = with(sh("late", "echo x > DIR/late"), json!({"after": ["a"]}));
    let loops = with(sh("a", "echo $$ > DIR/started; exit 1"), json!({"backoff": {"base": 60, "cap": 60}}));
    let lists = [
        ("while a dependency waits", json!([with(sh("a", sleeper), never), waits])),
        ("in backoff", json!([loops])),
        (
            "while it cannot be executed",
            json!([{"name": "a", "exec": ["/nonexistent"], "backoff": {"base": 60, "cap": 60}}, sh("b", sleeper)]),
        ),
    ];
    for (state, units) in lists {
        let list = List::new(units);
        let mut init = list.start();
        pid_in(&list.file("started"));
        if state == "in backoff" {
            wait_until("the second end", || list.log().matches("the process ended").count() == 2);
        }
        let start = clock::now();
        init.signal(Signal::SIGTERM);
        assert_eq!(init.code(), Some(0), "{state}: {}", list.log());
        let took = clock::now().since(start);
        assert!(took < Duration::from_secs(1), "{state}: {took:?}");
        assert!(!list.file("late").exists(), "{state}");
    }
}

fn hurry() {
    let slow = "trap 'echo x >> DIR/terms' TERM; echo $$ > DIR/ready; while :; do sleep 0.02; done";
    let list = List::new(json!([with(sh("a", slow), json!({"stop": [{"signal": "TERM", "wait": 60}]}))]));
    let mut init = list.start();
    pid_in(&list.file("ready"));
    init.signal(Signal::SIGTERM);
    wait_until("the first", || read(&list.file("terms")) == "x\n");
    init.signal(Signal::SIGTERM);
    list.wait_for("stopping already");
    assert_eq!(read(&list.file("terms")), "x\n", "it is not told again");
    let start = clock::now();
    init.signal(Signal::SIGQUIT);
    assert_eq!(init.code(), Some(137));
    let took = clock::now().since(start);
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(1), "{took:?}");
}

fn order() {
    let unit = |name: &str, after: &[&str]| {
        let script = format!(
            "echo {name} up >> DIR/order; trap 'sleep 0.05; echo {name} down >> DIR/order; exit 0' TERM; \
             echo > DIR/{name}; while :; do sleep 0.01; done"
        );
        with(sh(name, &script), json!({"after": after, "ready": {"file": format!("DIR/{name}")}}))
    };
    let list = List::new(json!([unit("c", &["b"]), unit("b", &["a"]), unit("a", &[])]));
    let mut init = list.start();
    wait_until("c", || list.file("c").exists());
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
    assert_eq!(read(&list.file("order")), "a up\nb up\nc up\nc down\nb down\na down\n");
}

fn readiness() {
    // By file after a while, by a command, by a port: this test listens on it.
    let a = "sleep 0.3; echo a > DIR/ready; exec sleep 1000";
    let probe = json!({"ready": {"exec": ["/bin/sh", "-c", "test -e DIR/ready"]}});
    let b = with(sh("b", "test -e DIR/ready && echo $$ > DIR/b; exec sleep 1000"), json!({"after": ["a"]}));
    let listener = std::net::TcpListener::bind("127.0.19.1:0").unwrap();
    let tcp = json!({"after": ["b"], "ready": {"tcp": listener.local_addr().unwrap().to_string()}});
    let c = with(sh("c", "exec sleep 1000"), tcp);
    let d = with(sh("d", "echo $$ > DIR/d; exec sleep 1000"), json!({"after": ["c"]}));
    let list = List::new(json!([with(sh("a", a), probe), b, c, d]));
    let mut init = list.start();
    pid_in(&list.file("b"));
    pid_in(&list.file("d"));
    init.signal(Signal::SIGTERM);
    init.code();
    told_ready();
    // Ended for good before it was ready: nobody waits for the minute to pass.
    let stillborn = json!({"ready": {"file": "/nonexistent"}, "restart": "exit-container"});
    let list = List::new(json!([with(sh("a", "exit 9"), stillborn)]));
    let start = clock::now();
    assert_eq!(list.start().code(), Some(9), "{}", list.log());
    assert!(clock::now().since(start) < Duration::from_secs(20));
    // What made it ready was the last thing that it did: whoever needs it goes on all the same.
    for (tell, ready) in [("touch DIR/done", json!({"file": "DIR/done"})), ("echo >&3", json!({"fd": 3}))] {
        let once = json!({"ready": ready, "restart": "never"});
        let list = List::new(json!([
            with(sh("once", &format!("sleep 0.1; {tell}")), once),
            with(sh("b", "echo > DIR/b"), json!({"after": ["once"], "restart": "never"}))
        ]));
        assert_eq!(list.start().code(), Some(0), "{tell}: {}", list.log());
        assert!(list.file("b").exists(), "{tell}: {}", list.log());
    }
    // Ended for good and never ready: whoever needs it would wait for ever, so everything stops.
    let list = List::new(json!([
        with(sh("a", "exit 9"), json!({"ready": {"file": "/nonexistent"}, "restart": "never"})),
        with(sh("b", "echo > DIR/b"), json!({"after": ["a"]})),
        sh("bystander", "exec sleep 1000")
    ]));
    assert_eq!(list.start().code(), Some(1), "{}", list.log());
    assert!(list.log().contains("was never ready") && !list.file("b").exists(), "{}", list.log());
    // In vain.
    let never = json!({"ready": {"file": "/nonexistent"}, "ready_within": 0.3});
    let list = List::new(json!([
        with(sh("a", "exec sleep 1000"), never),
        with(sh("b", "echo > DIR/b"), json!({"after": ["a"]}))
    ]));
    assert_eq!(list.start().code(), Some(1));
    assert!(list.log().contains("did not become ready"), "{}", list.log());
    assert!(!list.file("b").exists());
}

/// By a line on a descriptor, from every life of the service, and under every number that may be asked for.
fn told_ready() {
    let mut units = Vec::new();
    for fd in 3..=9 {
        let (name, told) = (format!("tells-{fd}"), format!("told-{fd}"));
        let script = format!(
            "printf half >&{fd}; sleep 0.2; echo a > DIR/{told}; echo >&{fd}; ls -l /proc/$$/fd > DIR/fds-{fd}; \
             echo $$ >> DIR/lives-{fd}; exec sleep 1000"
        );
        units.push(with(sh(&name, &script), json!({"ready": {"fd": fd}})));
        let waits = format!("test -e DIR/{told} && echo $$ > DIR/after-{fd}; exec sleep 1000");
        units.push(with(sh(&format!("after-{fd}"), &waits), json!({"after": [name]})));
    }
    let list = List::new(json!(units));
    let mut init = list.start();
    for fd in 3..=9 {
        pid_in(&list.file(&format!("after-{fd}")));
    }
    // Standard streams, its descriptor and the liveness pipe.
    pid_in(&list.file("lives-3"));
    let fds = read(&list.file("fds-3"));
    assert_eq!((fds.matches("pipe:").count(), fds.matches("-> /dev/null").count()), (4, 1), "{fds}");
    let first = read(&list.file("lives-3")).trim().parse().unwrap();
    signal(first, Signal::SIGKILL);
    wait_until("a second life", || read(&list.file("lives-3")).lines().count() == 2);
    let second: i32 = read(&list.file("lives-3")).lines().last().unwrap().parse().unwrap();
    assert!(is_alive(second), "telling a second time hurts nobody");
    // Nor does telling while it is being stopped.
    let script =
        "trap 'echo >&3; echo told > DIR/late; exit 0' TERM; echo $$ > DIR/up; while :; do sleep 0.02; done";
    let late = List::new(json!([with(sh("late", script), json!({"ready": {"fd": 3}}))]));
    let mut stopped = late.start();
    pid_in(&late.file("up"));
    stopped.signal(Signal::SIGTERM);
    assert_eq!(stopped.code(), Some(0), "{}", late.log());
    assert_eq!(read(&late.file("late")), "told\n");
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0), "{}", list.log());
}

fn crash_loop() {
    let script = "date +%s%N >> DIR/starts; echo the reason; exit 3";
    let rules = json!({"backoff": {"base": 0.1, "cap": 0.4}, "give_up": {"restarts": 5, "within": 60}});
    let list = List::new(json!([with(sh("a", script), rules)]));
    assert_eq!(list.start().code(), Some(3), "{}", list.log());
    let starts: Vec<u64> = read(&list.file("starts")).lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(starts.len(), 6, "the first start and five restarts");
    let gaps: Vec<u64> = starts.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    // At once, then at least half of 100, 200, 400, 400 ms, and what a start costs on a busy machine.
    for (gap, least) in gaps.iter().zip([0, 50, 100, 200, 200]) {
        assert!((least..least * 2 + 1500).contains(gap), "{gaps:?}");
    }
    let log = list.log();
    let told = log.split_once("keeps ending by itself").expect("the loop is named").1;
    assert!(told.contains("> the reason"), "{log}");
}

fn never_executed() {
    let rules = json!({"backoff": {"base": 0.02, "cap": 0.02}, "give_up": {"restarts": 3, "within": 60}});
    let missing = json!({"name": "a", "exec": ["/nonexistent/x"]});
    let list = List::new(json!([with(missing.clone(), rules)]));
    assert_eq!(list.start().code(), Some(127), "{}", list.log());
    assert_eq!(list.log().matches("not started").count(), 4, "{}", list.log());
    // Whoever needs it would wait for ever; where nobody does, the others go on.
    let once = with(missing, json!({"restart": "never"}));
    let needs = with(sh("b", "echo > DIR/b; exec sleep 1000"), json!({"after": ["a"]}));
    let list = List::new(json!([once, needs, sh("c", "exec sleep 1000")]));
    assert_eq!(list.start().code(), Some(1), "{}", list.log());
    assert!(list.log().contains("others need it") && !list.file("b").exists(), "{}", list.log());
    let list = List::new(json!([once, sh("c", "echo $$ > DIR/c; exec sleep 1000")]));
    let mut init = list.start();
    list.wait_for("has ended for good unit=a code=127");
    assert!(is_alive(pid_in(&list.file("c"))));
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0), "{}", list.log());
}

fn forgiveness() {
    // Never healthy it would wait for at least ten seconds before its second restart.
    let script = "echo x >> DIR/starts; sleep 0.3; exit 1";
    let rules = json!({"backoff": {"base": 20, "cap": 20}, "healthy_after": 0.2});
    let list = List::new(json!([with(sh("a", script), rules)]));
    let start = clock::now();
    let mut init = list.start();
    wait_until("four restarts", || read(&list.file("starts")).lines().count() == 5);
    let took = clock::now().since(start);
    assert!(took < Duration::from_secs(10), "{took:?}");
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
}

fn appears_later() {
    let rules = json!({"name": "a", "exec": ["DIR/program"], "backoff": {"base": 0.05, "cap": 0.05}});
    let list = List::new(json!([rules]));
    let mut init = list.start();
    list.wait_for("not started");
    let new = list.file("new");
    fs::write(&new, "#!/bin/sh\necho here\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, list.file("program")).unwrap();
    list.wait_for("a| here");
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
}

/// The wall clock of the machine is not ours to set; the clocks that we do use can be another's in a namespace.
fn shifted_clock() {
    let shift = ["unshare", "-T", "--boottime", "30000000", "--monotonic", "20000000", "-f"];
    if !Command::new(shift[0]).args(&shift[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        println!("SKIPPED: no time namespaces here");
        return;
    }
    let rules = json!({"backoff": {"base": 0.1, "cap": 0.1}, "give_up": {"restarts": 3, "within": 60}});
    let list = List::new(json!([with(sh("a", "exit 4"), rules)]));
    let start = clock::now();
    assert_eq!(Running::start(list.command(&shift)).code(), Some(4), "{}", list.log());
    let took = clock::now().since(start);
    assert!(took > Duration::from_millis(100) && took < Duration::from_secs(3), "{took:?}");
}

fn hostile_output() {
    let script = "head -c 10000000 /dev/zero | tr '\\0' x; echo; printf 'a\\0b\\377c\\033[31m\\n'; \
        echo '{\"level\":\"warn\",\"msg\":\"own\"}'; n() { head -c $1 /dev/zero | tr '\\0' $2; }; \
        for deep in 100 126 127 128 5000; do echo \"{\\\"deep\\\":$(n $deep '[')$(n $deep ']')}\"; done; printf 'no end'";
    let list = List::new(json!([with(sh("a", script), json!({"restart": "never"}))]));
    let mut command = list.command(&[]);
    command.args(["--log-format", "json"]);
    assert_eq!(Running::start(command).code(), Some(0));
    let log = fs::read_to_string(list.file("log")).expect("valid UTF-8");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(log.lines().all(|line| line.len() < 20_000), "bounded");
    let ours = |line: &&Value| line["service"] == "a";
    let messages: Vec<&str> = lines.iter().filter(ours).filter_map(|line| line["message"].as_str()).collect();
    assert_eq!(messages.iter().map(|m| m.matches('x').count()).sum::<usize>(), 10_000_000);
    assert!(
        messages.contains(&"a\0b\u{fffd}c\u{1b}[31m") && messages.contains(&"no end"),
        "{:?}",
        messages.last()
    );
    let own = lines.iter().find(|line| line["msg"] == "own").unwrap();
    assert_eq!((&own["level"], &own["service"]), (&"warn".into(), &"a".into()));
    assert_eq!(lines.iter().find(|line| line["message"] == "no end").unwrap()["partial"], true);
}

/// Every line of both streams, of a list that cannot be used and of an environment that cannot.
fn complaints_in_json() {
    let list = List::new(json!([{"name": "a", "exec": ["/bin/true"], "colour": 1}]));
    let mut command = list.command(&[]);
    command.args(["--log-format", "json"]);
    assert_eq!(Running::start(command).code(), Some(64));
    let mut node = Command::new(PGHERD);
    node.arg("init").env_clear().env("LOG_FORMAT", "json").env("APP_NAME", "?").stdin(Stdio::null());
    let log = File::create(list.file("node")).unwrap();
    node.stdout(log.try_clone().unwrap()).stderr(log);
    assert_eq!(Running::start(node).code(), Some(64));
    for (name, told) in [("log", "unknown field `colour`"), ("node", "APP_NAME")] {
        let log = read(&list.file(name));
        assert!(log.contains(told), "{log}");
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).expect(line);
            assert!(line["ts"].is_string() && line["service"].is_string(), "{line}");
        }
    }
}

fn order_of_lines() {
    const LINES: u64 = 50_000;
    let names = ["w", "x", "y", "z"];
    let script = format!("seq -f 'number %.0f end' 1 {LINES}");
    let units = names.map(|name| with(sh(name, &script), json!({"restart": "never"})));
    let list = List::new(json!(units));
    assert_eq!(list.start().code(), Some(0));
    let log = list.log();
    let mut seen = 0;
    for name in names {
        let mark = format!(" {name}| number ");
        let mut last = 0;
        for line in log.lines().filter(|line| line.contains(&mark)) {
            let n = line.split_once(&mark).unwrap().1.strip_suffix(" end").expect("a whole line");
            let n: u64 = n.parse().unwrap();
            assert!(n > last, "{line} after {last}");
            (last, seen) = (n, seen + 1);
        }
    }
    let dropped: u64 = log
        .lines()
        .filter_map(|line| line.split_once("dropped=")?.1.split_once(" lines")?.0.parse::<u64>().ok())
        .sum();
    assert_eq!(seen + dropped, 4 * LINES, "dropped {dropped}");
}

fn ambient_capabilities() {
    let wrapper = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"];
    let given = ["--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"];
    let may = Uid::effective().is_root()
        && output_of({
            let mut command = Command::new(wrapper[0]);
            command.args(&wrapper[1..]).args(given).args(["grep", "CapEff", "/proc/self/status"]);
            command
        })
        .stdout
        .ends_with(b"400\n");
    if !may {
        println!("SKIPPED: nobody can be given a capability here");
        return;
    }
    let list = List::new(json!([sh(
        "a",
        "grep Cap /proc/self/status > DIR/caps; echo $$ > DIR/up; exec sleep 1000"
    )]));
    let mut init = Running::start(list.command(&[&wrapper[..], &given].concat()));
    pid_in(&list.file("up"));
    let caps = read(&list.file("caps"));
    for set in ["CapEff", "CapPrm", "CapAmb"] {
        assert!(caps.contains(&format!("{set}:\t0000000000000000")), "{caps}");
    }
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0), "{}", list.log());
}

fn environments() {
    let list = List::new(json!([with(
        // No exec after the file is there: in the middle of one a process shows no environment.
        sh("a", "echo $$ > DIR/ready; while :; do sleep 1; done"),
        json!({"env": {"MINE": "1"}})
    )]));
    let mut command = list.command(&[]);
    command.env("POSTGRES_SUPERUSER_PASSWORD", "hush-hush");
    let mut init = Running::start(command);
    let service = pid_in(&list.file("ready"));
    let environ = |pid: i32| fs::read(format!("/proc/{pid}/environ"));
    for pid in [init.pid(), units_process(&init)] {
        // Of an ordinary user's own process not even that user can read it.
        match environ(pid) {
            Ok(bytes) => assert!(!text(&bytes).contains("hush"), "{pid}"),
            Err(_hidden) => assert!(!Uid::effective().is_root()),
        }
    }
    let theirs = text(&environ(service).unwrap());
    let names: Vec<&str> = theirs.split('\0').filter_map(|entry| Some(entry.split_once('=')?.0)).collect();
    // The shell adds the last.
    let mut names: Vec<&str> = names.into_iter().filter(|name| *name != "PWD").collect();
    names.sort_unstable();
    assert_eq!(names, ["HOME", "LANG", "MINE", "PATH", "USER"]);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
}

/// What asks a node for something has its environment, and runs as the account of the services where nobody is root.
fn hidden_verb() {
    let silent = std::net::TcpListener::bind("127.0.19.1:0").unwrap();
    silent.set_nonblocking(true).unwrap();
    let Some(mut command) = super::terminal::as_nobody() else {
        println!("SKIPPED: nobody may execute this build");
        return;
    };
    command.arg(PGHERD).args(["health", "--api", &format!("http://{}", silent.local_addr().unwrap())]);
    command.env("POSTGRES_SUPERUSER_PASSWORD", "hush-hush").stdin(Stdio::null()).stderr(Stdio::null());
    let verb = Running::start(command);
    // It has connected and waits for an answer.
    let mut asked = None;
    wait_until("its question", || {
        asked = asked.take().or_else(|| silent.accept().ok());
        asked.is_some()
    });
    let owner = |pid: i32| fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
    assert_eq!(owner(verb.pid()), 0, "what may be looked at belongs to its account");
}

fn limits() {
    let script = "ulimit -n > DIR/nofile; ulimit -c > DIR/core; umask > DIR/umask; echo $$ > DIR/done; exec sleep 1000";
    let list = List::new(json!([with(sh("a", script), json!({"oom_score_adj": 700}))]));
    let mut init = list.start();
    let service = pid_in(&list.file("done"));
    // Where nobody is root it is set a moment after exec.
    let score = format!("/proc/{service}/oom_score_adj");
    wait_until("the score", || read(Path::new(&score)) == "700\n");
    let nofile: u64 = read(&list.file("nofile")).trim().parse().unwrap();
    // Where the hard limit is lower and may not be raised, all of it.
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    assert!(nofile == 65536 || nofile == hard && hard < 65536, "{nofile}");
    assert_eq!(
        (read(&list.file("core")), read(&list.file("umask"))),
        ("0\n".to_owned(), "0077\n".to_owned())
    );
    init.signal(Signal::SIGTERM);
    init.code();
}

/// Notes each life and each reload.
fn chronicle(name: &str, more: &str) -> Value {
    let script = format!(
        "trap 'echo reload >> DIR/{name}' HUP; trap 'echo end >> DIR/{name}; exit 0' TERM; {more} \
         echo life >> DIR/{name}; while :; do sleep 0.02; done"
    );
    with(sh(name, &script), json!({"reload": "HUP"}))
}

fn changed_list() {
    let list = List::new(json!([chronicle("same", ""), chronicle("changed", ""), chronicle("gone", "")]));
    let mut init = list.start();
    let noted = |name: &str, text: &str| {
        wait_until(&format!("{text:?} of {name}"), || read(&list.file(name)) == text);
    };
    for name in ["same", "changed", "gone"] {
        noted(name, "life\n");
    }
    // What cannot be used changes nothing, and says why.
    list.write(json!([{"name": "same", "exec": ["/bin/true"], "colour": 1}]));
    init.signal(Signal::SIGHUP);
    list.wait_for("unknown field `colour`");
    list.wait_for("everything stays as it was");
    // The second comes first, and what is new waits for it.
    let new = with(chronicle("new", ""), json!({"after": ["changed"]}));
    list.write(json!([chronicle("changed", "sleep 0.1;"), new, chronicle("same", "")]));
    init.signal(Signal::SIGHUP);
    noted("changed", "life\nend\nlife\n");
    noted("new", "life\n");
    noted("gone", "life\nend\n");
    noted("same", "life\nreload\n");
    init.signal(Signal::SIGUSR1);
    list.wait_for("state unit=new state=running");
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0), "{}", list.log());
    assert_eq!(read(&list.file("gone")), "life\nend\n", "what has left stays away");
    assert_eq!(read(&list.file("same")), "life\nreload\nend\n");
}

fn leaving() {
    let ears = "trap 'echo x >> DIR/asked' TERM; echo $$ > DIR/deaf; while :; do sleep 0.02; done";
    let deaf = with(sh("deaf", ears), json!({"stop": [{"signal": "TERM", "wait": 60}]}));
    let above = with(sh("above", "echo $$ > DIR/above; exec sleep 1000"), json!({"after": ["deaf"]}));
    let stays = sh("stays", "echo $$ > DIR/stays; exec sleep 1000");
    let list = List::new(json!([deaf, above, stays]));
    let mut init = list.start();
    let [deaf, above, stays_pid] = ["deaf", "above", "stays"].map(|name| pid_in(&list.file(name)));
    list.write(json!([stays]));
    init.signal(Signal::SIGHUP);
    wait_until("the stop of what was needed", || read(&list.file("asked")) == "x\n");
    assert!(!is_alive(above), "what needs it ends before");
    // Put back meanwhile, it waits for itself to be gone.
    list.write(json!([sh("deaf", "echo again > DIR/again; exec sleep 1000"), stays]));
    init.signal(Signal::SIGHUP);
    wait_until("the new one", || {
        init.signal(Signal::SIGUSR1);
        list.log().contains("state unit=deaf state=down")
    });
    assert!(is_alive(deaf) && !list.file("again").exists(), "two generations");
    assert!(is_alive(deaf));
    // A stop waits for the leaving too; the hurry reaches it.
    wait_until("a stop under way", || {
        init.signal(Signal::SIGTERM);
        list.log().contains("stopping already")
    });
    assert!(is_alive(deaf) && is_alive(stays_pid), "what is leaving goes first");
    init.signal(Signal::SIGQUIT);
    assert_eq!(init.code(), Some(137), "{}", list.log());
    assert!(!is_alive(deaf));
}

fn read_only_root() {
    let script = "touch /etc/pgherd-was-here 2>/dev/null && exit 9; echo read-only; exec sleep 1000";
    let list = List::new(json!([with(sh("a", script), json!({"restart": "exit-container"}))]));
    let mount = ["unshare", "-m", "sh", "-c", "mount -o remount,bind,ro / && exec \"$@\"", "sh"];
    let allowed = Uid::effective().is_root()
        && Command::new(mount[0]).args(&mount[1..]).arg("true").status().is_ok_and(|status| status.success());
    if !allowed {
        println!("SKIPPED: mounts cannot be changed here");
        return;
    }
    let mut init = Running::start(list.command(&mount));
    list.wait_for("a| read-only");
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0), "{}", list.log());
}

fn nameless_account() {
    if !Uid::effective().is_root() {
        println!("SKIPPED: only root can become another");
        return;
    }
    let list = List::new(json!([sh("a", "echo $HOME $USER $(id -u); exec sleep 1000")]));
    let mut init =
        Running::start(list.command(&["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]));
    list.wait_for("a| / 54321 54321");
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0), "{}", list.log());
}

fn dying_orphans() {
    let noisy = "n=0; while [ $n -lt 300 ]; do (sh -c 'kill -PIPE $$' &); n=$((n+1)); done; echo $$ > DIR/done; exec sleep 1000";
    let calm = "echo $$ > DIR/calm; exec sleep 1000";
    let list = List::new(json!([sh("calm", calm), with(sh("noisy", noisy), json!({"after": ["calm"]}))]));
    let mut init =
        if can_unshare() { Running::start(list.command(&super::unshare_words())) } else { list.start() };
    pid_in(&list.file("done"));
    assert_eq!(list.log().matches("the process ended").count(), 0, "{}", list.log());
    let target = if can_unshare() { super::only_child(init.pid()) } else { init.pid() };
    signal(target, Signal::SIGTERM);
    assert_eq!(init.code(), Some(0), "{}", list.log());
}

fn out_of_descriptors() {
    let rules = json!({"backoff": {"base": 0.05, "cap": 0.05}});
    let list = List::new(json!([with(
        sh("a", "echo $$ > DIR/pid.new; mv DIR/pid.new DIR/pid; exec sleep 1000"),
        rules
    )]));
    let mut init = list.start();
    let first = pid_in(&list.file("pid"));
    let units = units_process(&init);
    let set = |soft: &str| {
        let args = ["--pid", &units.to_string(), &format!("--nofile={soft}:")];
        assert!(Command::new("prlimit").args(args).status().unwrap().success());
    };
    set("4");
    signal(first, Signal::SIGKILL);
    list.wait_for("Too many open files");
    wait_until("several attempts", || list.log().matches("restart failed").count() >= 3);
    set("1024");
    wait_until("another life", || read(&list.file("pid")).trim().parse().is_ok_and(|pid: i32| pid != first));
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0), "{}", list.log());
}

fn state_dump() {
    let list = List::new(json!([
        sh("a", "echo $$ > DIR/ready; exec sleep 1000"),
        with(sh("b", "exit 5"), json!({"restart": "never"}))
    ]));
    let mut init = list.start();
    let pid = pid_in(&list.file("ready"));
    list.wait_for("has ended for good");
    init.signal(Signal::SIGUSR1);
    list.wait_for("state unit=b state=down, ended with code 5");
    assert!(list.log().contains(&format!("state unit=a state=running, pid {pid}")), "{}", list.log());
    init.signal(Signal::SIGHUP);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
}

/// How often a process has been scheduled so far, all its threads.
fn switches(pid: i32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(Result::ok);
    let count = |status: String| -> u64 {
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        lines.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
    };
    threads.map(|thread| count(read(&thread.path().join("status")))).sum()
}

fn idle() {
    const WATCHED: Duration = Duration::from_secs(12);
    let list = List::new(json!([sh("a", "echo $$ > DIR/ready; exec sleep 1000")]));
    let mut init = list.start();
    let service = pid_in(&list.file("ready"));
    // What a start leaves to do is soon done.
    std::thread::sleep(Duration::from_millis(300));
    let units = units_process(&init);
    let before = (switches(init.pid()), switches(units));
    std::thread::sleep(WATCHED);
    let woken = (switches(init.pid()) - before.0, switches(units) - before.1);
    println!("woken in {WATCHED:?}: init {}, its child {}", woken.0, woken.1);
    // The beat moves an alarm that `init` sleeps on: it wakes only who beats, every ten seconds.
    assert!(woken.0 == 0 && woken.1 <= 12, "{woken:?}");
    assert!(is_alive(service));
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
}

fn soak() {
    let rules = json!({"name": "a", "exec": ["/bin/true"], "healthy_after": 0});
    let list = List::new(json!([rules]));
    let mut init = list.start();
    let restarts = || list.log().matches("started unit=a").count();
    let units = {
        wait_until("the first", || restarts() > 0);
        units_process(&init)
    };
    let weigh = |pid: i32| {
        let status = read(Path::new(&format!("/proc/{pid}/status")));
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let rss: i64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
        // An ordinary user may not look into a process that hides its memory, its own or not.
        (rss, fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count))
    };
    wait_until("300 restarts", || restarts() > 300);
    let before = (weigh(init.pid()), weigh(units));
    wait_until("2000 more", || restarts() > 2300);
    let after = (weigh(init.pid()), weigh(units));
    println!("kB and descriptors of init and its child: {before:?}, then {after:?}");
    assert!(after.0.0 - before.0.0 < 256 && after.1.0 - before.1.0 < 1024, "memory");
    // A child that is being started has up to seven.
    assert!(after.0.1 <= before.0.1 + 1 && after.1.1 <= before.1.1 + 8, "descriptors");
    init.signal(Signal::SIGTERM);
    assert_eq!(init.code(), Some(0));
}
